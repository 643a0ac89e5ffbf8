//! What changes among the declared VAs.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::configuration::Appliance;
use crate::desired::DesiredState;
use crate::names::{CompositionName, MacAddr, RingName, VaName};

/// A change of one declared VA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum ApplianceChange {
    Added { name: VaName, mac: MacAddr, composition: CompositionName, ring: RingName },
    Removed { name: VaName, mac: MacAddr },
    Moved { name: VaName, from: Place, to: Place },
}

/// Where a declared VA belongs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    pub mac: MacAddr,
    pub composition: CompositionName,
    pub ring: RingName,
    /// By which selectors choose, and which health checks fill in.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

fn place(appliance: &Appliance) -> Place {
    let Appliance { mac, composition, ring, labels, .. } = appliance;
    let (composition, ring, labels) = (composition.clone(), ring.clone(), labels.clone());
    Place { mac: *mac, composition, ring, labels }
}

/// By name.
pub(super) fn changes(base: &DesiredState, head: &DesiredState) -> Vec<ApplianceChange> {
    let (before, after) = (&base.appliances, &head.appliances);
    let mut names: Vec<_> = before.keys().chain(after.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let of = |name: &VaName| {
        let name = name.clone();
        match (before.get(&name).map(place), after.get(&name).map(place)) {
            (None, Some(Place { mac, composition, ring, .. })) => {
                Some(ApplianceChange::Added { name, mac, composition, ring })
            }
            (Some(Place { mac, .. }), None) => Some(ApplianceChange::Removed { name, mac }),
            (Some(from), Some(to)) if from != to => Some(ApplianceChange::Moved { name, from, to }),
            _ => None,
        }
    };
    names.into_iter().filter_map(of).collect()
}
