//! Removes what git no longer has, within the policy's limit or once it is confirmed.
//!
//! A VA's link goes only where nothing says that the VA may run on some host: neither its
//! machine, nor the lock of its private layer, nor its last report. Reports are claims, and
//! whoever may write one may make a VA stay, or one without a machine go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use strata_core::event::Event;
use strata_core::plan::Desired;
use strata_core::rollout::prune::{Removal, Standing, may_run, removals, token};
use strata_core::status::RunState;
use strata_core::{GenerationId, MacAddr, VaName};
use strata_machine::{MachineError, Machines, VaRecord};
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

/// What goes now.
#[derive(Debug, Default)]
pub struct Decided {
    removals: Vec<Removal>,
    /// The machines of VAs that go.
    machines: BTreeMap<MacAddr, VaName>,
}

impl Decided {
    /// What is about to happen.
    pub fn events(&self) -> impl Iterator<Item = Event> {
        self.removals.iter().cloned().map(|removal| match removal {
            Removal::Va { name, mac } => Event::VaRemoved { name, mac },
            Removal::Ring { composition, ring } => Event::RingRemoved { composition, ring },
        })
    }
}

/// The VAs that were provisioned, on whichever host.
struct Provisioned {
    records: BTreeMap<MacAddr, VaRecord>,
    /// Whose record cannot be read: nothing is known of them.
    damaged: BTreeSet<VaName>,
}

impl Provisioned {
    fn read(machines: &Machines<'_>) -> Result<Self, MachineError> {
        let (mut records, mut damaged) = (BTreeMap::new(), BTreeSet::new());
        for name in machines.names()? {
            match machines.record(&name) {
                Ok(record) => {
                    records.insert(record.mac, record);
                }
                Err(MachineError::NoVa(_)) => {}
                Err(error) => {
                    tracing::warn!(%error, "the record of a VA cannot be read");
                    damaged.insert(name);
                }
            }
        }
        Ok(Provisioned { records, damaged })
    }

    fn has(&self, mac: &MacAddr, name: &VaName) -> bool {
        self.records.contains_key(mac) || self.damaged.contains(name)
    }
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
) -> Result<Decided, RolloutError> {
    note_declared(store, file, desired)?;
    let is_declared = |mac: &MacAddr| desired.appliances.contains_key(mac);
    let Some(limit) = limit else {
        // Without pruning nobody is waited for.
        file.declared.retain(|mac, _| is_declared(mac));
        file.adopted.retain(|mac, _| is_declared(mac));
        (file.removals_waiting, file.confirmed_removals) = (None, None);
        return Ok(Decided::default());
    };
    let undeclared = file.declared.keys().chain(file.adopted.keys()).any(|mac| !is_declared(mac));
    let abandoned = rings.keys().any(|(name, _)| !desired.compositions.contains_key(name));
    if !undeclared && !abandoned {
        (file.removals_waiting, file.confirmed_removals) = (None, None);
        return Ok(Decided::default());
    }
    let links = store.va_links()?.targets;
    let machines = Machines::open(store)?;
    let provisioned = Provisioned::read(&machines)?;
    for (mac, name) in std::mem::take(&mut file.adopted) {
        if is_declared(&mac) {
            file.adopted.insert(mac, name);
        } else if !provisioned.has(&mac, &name) {
            // The machine was destroyed: the link that is there now was made for a commit.
            file.declared.insert(mac, name);
        }
    }
    let undeclared = file.declared.iter().filter(|(mac, _)| !is_declared(mac));
    let busy = busy(store, &machines, &provisioned, undeclared);
    let standing = Standing { rings, links: &links, busy: &busy };
    let found = removals(&file.declared, desired, &standing);
    // Whose link is gone already is no longer remembered.
    file.declared.retain(|mac, _| links.contains_key(mac) || is_declared(mac));
    let count = u32::try_from(found.len()).unwrap_or(u32::MAX);
    let token = token(&found);
    if count > limit && file.confirmed_removals.as_ref() != Some(&token) {
        let first = found.iter().take(NAMED).map(ToString::to_string).collect();
        let waiting = WaitingRemovals { token: token.clone(), count, limit, first };
        if file.removals_waiting.as_ref() != Some(&waiting) {
            events.push(Event::RemovalsWait { count, limit, token });
        }
        file.removals_waiting = Some(waiting);
        return Ok(Decided::default());
    }
    file.removals_waiting = None;
    if found.is_empty() {
        file.confirmed_removals = None;
    }
    let records = provisioned.records.into_iter();
    let machines = records.map(|(mac, record)| (mac, record.name)).collect();
    Ok(Decided { removals: found, machines })
}

/// Notes who is declared. Whoever has a machine and a link when a commit first names him
/// was provisioned by people, and stays when no commit names him any more: the link of a
/// VA that a commit brought is there before its machine is.
fn note_declared(
    store: &Store,
    file: &mut RolloutFile,
    desired: &Desired,
) -> Result<(), RolloutError> {
    let mut provisioned = None;
    for (mac, va) in &desired.appliances {
        let known = file.declared.get_mut(mac).or(file.adopted.get_mut(mac));
        if let Some(name) = known {
            name.clone_from(&va.name);
            continue;
        }
        let linked = match store.va_target(*mac) {
            Err(error) if error.is_foreign_link() => true,
            target => target?.is_some(),
        };
        let adopted = linked && {
            if provisioned.is_none() {
                provisioned = Some(Provisioned::read(&Machines::open(store)?)?);
            }
            provisioned.as_ref().is_some_and(|provisioned| provisioned.has(mac, &va.name))
        };
        let list = if adopted { &mut file.adopted } else { &mut file.declared };
        list.insert(*mac, va.name.clone());
    }
    Ok(())
}

/// Who of these may run on some host.
fn busy<'a>(
    store: &Store,
    machines: &Machines<'_>,
    provisioned: &Provisioned,
    vas: impl Iterator<Item = (&'a MacAddr, &'a VaName)>,
) -> BTreeSet<MacAddr> {
    let (now, host) = (SystemTime::now(), fleet::host_name());
    let rests = |mac: &MacAddr, name: &VaName| -> Result<bool, MachineError> {
        if provisioned.damaged.contains(name) {
            return Ok(false);
        }
        let machine = match provisioned.records.get(mac) {
            Some(record) if machines.hold_resting(&record.name)?.is_none() => return Ok(false),
            Some(_) => Some(RunState::Stopped),
            None => None,
        };
        Ok(!may_run(machine, &fleet::report_view(store, *mac, now), &host))
    };
    let busy = vas.filter(|(mac, name)| match rests(mac, name) {
        Ok(rests) => !rests,
        Err(error) => {
            tracing::warn!(va = %name, %error, "the VA counts as one that runs");
            true
        }
    });
    busy.map(|(mac, _)| *mac).collect()
}

/// Removes what was decided and told. Taken twice it does no harm.
///
/// # Errors
/// A link cannot be removed; those before it are gone.
pub fn take(store: &Store, decided: Decided) -> Result<(), RolloutError> {
    let machines = Machines::open(store)?;
    for removal in decided.removals {
        match removal {
            Removal::Va { name, mac } => {
                // Held until the link is gone: who starts it then is told so.
                let _hold = match decided.machines.get(&mac).map(|va| machines.hold_resting(va)) {
                    Some(Ok(None)) => {
                        tracing::info!(va = %name, "it was started meanwhile; its link stays");
                        continue;
                    }
                    Some(Err(MachineError::NoVa(_))) | None => None,
                    Some(hold) => hold?,
                };
                store.release_va(mac)?;
            }
            Removal::Ring { composition, ring } => store.remove_ring(&composition, &ring)?,
        }
    }
    Ok(())
}
