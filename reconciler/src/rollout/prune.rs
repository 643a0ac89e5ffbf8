//! Removes what git no longer has, within the policy's limit or once it is confirmed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use strata_core::event::Event;
use strata_core::plan::Desired;
use strata_core::rollout::prune::{Removal, Standing, removals, token};
use strata_core::status::RunState;
use strata_core::{GenerationId, MacAddr};
use strata_store::Store;

use super::file::RolloutFile;
use super::rollouts::RolloutError;
use super::watcher::RingKey;
use crate::fleet;

/// Removals that are named in the state; the others are counted.
const NAMED: usize = 20;

/// Removals that wait for a confirmation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaitingRemovals {
    pub token: String,
    pub count: u32,
    pub limit: u32,
    pub first: Vec<String>,
}

/// Decides what goes, and notes in the file what waits and what was declared.
///
/// # Errors
/// The store cannot be read.
pub fn decide(
    store: &Store,
    file: &mut RolloutFile,
    desired: &Desired,
    rings: &BTreeMap<RingKey, GenerationId>,
    limit: Option<u32>,
    events: &mut Vec<Event>,
) -> Result<Vec<Removal>, RolloutError> {
    let declared = desired.appliances.iter().map(|(mac, va)| (*mac, va.name.clone()));
    let Some(limit) = limit else {
        // Without pruning nobody is waited for.
        file.declared = declared.collect();
        (file.removals_waiting, file.confirmed_removals) = (None, None);
        return Ok(Vec::new());
    };
    file.declared.extend(declared);
    let undeclared = file.declared.keys().any(|mac| !desired.appliances.contains_key(mac));
    let abandoned = rings.keys().any(|(name, _)| !desired.compositions.contains_key(name));
    if !undeclared && !abandoned {
        (file.removals_waiting, file.confirmed_removals) = (None, None);
        return Ok(Vec::new());
    }
    let links = store.va_links()?.targets;
    let busy = busy(store)?;
    let standing = Standing { rings, links: &links, busy: &busy };
    let found = removals(&file.declared, desired, &standing);
    // Whose link is gone already is no longer remembered.
    file.declared.retain(|mac, _| links.contains_key(mac) || desired.appliances.contains_key(mac));
    let count = u32::try_from(found.len()).unwrap_or(u32::MAX);
    let token = token(&found);
    if count > limit && file.confirmed_removals.as_ref() != Some(&token) {
        let first = found.iter().take(NAMED).map(ToString::to_string).collect();
        let waiting = WaitingRemovals { token: token.clone(), count, limit, first };
        if file.removals_waiting.as_ref() != Some(&waiting) {
            events.push(Event::RemovalsWait { count, limit, token });
        }
        file.removals_waiting = Some(waiting);
        return Ok(Vec::new());
    }
    file.removals_waiting = None;
    if found.is_empty() {
        file.confirmed_removals = None;
    }
    Ok(found)
}

/// VAs of this host that are not stopped.
fn busy(store: &Store) -> Result<BTreeSet<MacAddr>, RolloutError> {
    let machines = fleet::machines(store)?;
    let busy = machines.iter().filter(|(_, view)| view.run_state != Some(RunState::Stopped));
    Ok(busy.map(|(mac, _)| *mac).collect())
}

/// Removes what was decided. Taken twice it does no harm.
///
/// # Errors
/// A link cannot be removed; those before it are gone.
pub fn take(
    store: &Store,
    removals: Vec<Removal>,
    events: &mut Vec<Event>,
) -> Result<(), RolloutError> {
    for removal in removals {
        match removal {
            Removal::Va { name, mac } => {
                store.release_va(mac)?;
                events.push(Event::VaRemoved { name, mac });
            }
            Removal::Ring { composition, ring } => {
                store.remove_ring(&composition, &ring)?;
                events.push(Event::RingRemoved { composition, ring });
            }
        }
    }
    Ok(())
}
