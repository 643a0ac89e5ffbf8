//! Who uses a layer unit: generations, rings, links of VAs and what VAs report.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use strata_core::collect::UnitKey;
use strata_core::{CompositionName, GenerationId, MacAddr, RingName, VaName};
use strata_store::Store;

use crate::fleet::{self, FleetError};

/// A VA that is to use a unit, or says that it does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct UsingVa {
    pub name: Option<VaName>,
    pub mac: MacAddr,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Users {
    /// Sealed generations, with the composition that each is of.
    pub generations: BTreeMap<GenerationId, CompositionName>,
    /// Rings that are on one of them, as `composition/ring`.
    pub rings: BTreeSet<String>,
    /// VAs whose link leads to one of them.
    pub desired: BTreeSet<UsingVa>,
    /// VAs that say they serve one of them.
    pub active: BTreeSet<UsingVa>,
    /// What could not be read and might use it as well.
    pub unreadable: Vec<String>,
}

impl Users {
    pub fn is_empty(&self) -> bool {
        self.generations.is_empty()
            && self.desired.is_empty()
            && self.active.is_empty()
            && self.unreadable.is_empty()
    }
}

/// All users of a unit.
///
/// # Errors
/// The store cannot be read. A single thing in it that cannot is among the users.
pub fn users(store: &Store, key: &UnitKey) -> Result<Users, FleetError> {
    let mut users = Users::default();
    for id in store.generations()? {
        match store.generation(&id) {
            Ok(generation) => {
                if generation.layers().iter().any(|layer| UnitKey::from(layer) == *key) {
                    users.generations.insert(id, generation.composition().clone());
                }
            }
            Err(error) => users.unreadable.push(error.to_string()),
        }
    }
    let uses = |id: Option<GenerationId>| id.is_some_and(|id| users.generations.contains_key(&id));
    let ring = |(composition, ring): (CompositionName, RingName)| format!("{composition}/{ring}");
    let rings = store.rings()?;
    users.rings =
        rings.into_iter().filter(|(_, id)| uses(Some(*id))).map(|(r, _)| ring(r)).collect();
    let machines = fleet::machines(store)?;
    let named = |mac| UsingVa { name: machines.get(&mac).map(|view| view.name.clone()), mac };
    let mut desired = BTreeSet::new();
    for mac in store.va_links()?.targets.into_keys() {
        if uses(store.desired(mac).ok().flatten()) {
            desired.insert(named(mac));
        }
    }
    let mut active = BTreeSet::new();
    let mut unreadable = Vec::new();
    for mac in store.reporting_vas()? {
        match store.report(mac) {
            Ok(report) if uses(report.as_ref().and_then(|report| report.generation)) => {
                active.insert(named(mac));
            }
            Ok(_) => {}
            Err(error) => unreadable.push(error.to_string()),
        }
    }
    (users.desired, users.active) = (desired, active);
    users.unreadable.extend(unreadable);
    Ok(users)
}
