//! How the VAs of rings do that a rollout waits for.
//!
//! The members of such a ring are looked at in turn, a bounded number at a time, so
//! that a look costs the same for ten VAs and for a hundred thousand: first those
//! that are not settled, then the others again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use strata_core::links::VaTarget;
use strata_core::rollout::health::{CheckOutcome, Member, RingHealth, VaHealth, va_health};
use strata_core::rollout::policy::base_ring;
use strata_core::status::va_status;
use strata_core::{CompositionName, GenerationId, MacAddr, RingName};
use strata_machine::{Machines, VaRecord};
use strata_store::Store;

use super::rollouts::RolloutError;
use crate::fleet::{MachineView, Observer};

/// VAs that are looked at in one tick.
const LOOKS: usize = 2_000;
/// Of those, settled ones that are looked at again.
const SECOND_LOOKS: usize = 200;
/// Links are listed again this often, for VAs that came or went.
const LIST_AGAIN: Duration = Duration::from_secs(30);

/// A ring of a composition.
pub type RingKey = (CompositionName, RingName);

/// A ring that is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub target: GenerationId,
    /// VAs of the next batch.
    pub batch: usize,
}

#[derive(Debug)]
struct Ring {
    wanted: Wanted,
    members: BTreeMap<MacAddr, Member>,
    /// Not looked at yet, or on their way.
    restless: VecDeque<MacAddr>,
    settled: VecDeque<MacAddr>,
}

#[derive(Debug)]
pub struct Watcher {
    store: Arc<Store>,
    rings: BTreeMap<RingKey, Ring>,
    records: BTreeMap<MacAddr, VaRecord>,
    listed: Option<Instant>,
}

/// Runs the checks of VAs' templates.
pub trait Checks {
    /// What the checks of a VA say of a generation, as far as they are.
    fn outcome(
        &mut self,
        composition: &CompositionName,
        mac: MacAddr,
        record: Option<&VaRecord>,
        generation: GenerationId,
    ) -> CheckOutcome;
}

impl Watcher {
    pub fn new(store: Arc<Store>) -> Self {
        let (rings, records) = (BTreeMap::new(), BTreeMap::new());
        Watcher { store, rings, records, listed: None }
    }

    /// Says which rings are waited for from now on.
    ///
    /// # Errors
    /// The links or the VAs' records cannot be listed.
    pub fn want(&mut self, wanted: &BTreeMap<RingKey, Wanted>) -> Result<(), RolloutError> {
        self.rings.retain(|key, ring| {
            wanted.get(key).is_some_and(|wanted| wanted.target == ring.wanted.target)
        });
        let new = wanted.keys().any(|key| !self.rings.contains_key(key));
        let stale = self.listed.is_none_or(|at| at.elapsed() > LIST_AGAIN);
        for (key, wanted) in wanted {
            let ring = self.rings.entry(key.clone()).or_insert_with(|| Ring {
                wanted: *wanted,
                members: BTreeMap::new(),
                restless: VecDeque::new(),
                settled: VecDeque::new(),
            });
            ring.wanted = *wanted;
        }
        if !wanted.is_empty() && (new || stale) {
            self.list()?;
        }
        Ok(())
    }

    fn list(&mut self) -> Result<(), RolloutError> {
        self.listed = Some(Instant::now());
        let mut found: BTreeMap<RingKey, Vec<MacAddr>> = BTreeMap::new();
        for (mac, target) in self.store.va_links()?.targets {
            if let VaTarget::Ring { composition, ring } = target {
                let key = (composition, base_ring(&ring).0);
                if self.rings.contains_key(&key) {
                    found.entry(key).or_default().push(mac);
                }
            }
        }
        for (key, ring) in &mut self.rings {
            let now = found.remove(key).unwrap_or_default();
            ring.members.retain(|mac, _| now.binary_search(mac).is_ok());
            for mac in now {
                ring.members.entry(mac).or_insert_with(|| {
                    ring.restless.push_back(mac);
                    Member { mac, desired: None, health: VaHealth::Unknown }
                });
            }
        }
        let records = Machines::open(&self.store)?.records()?.into_iter().flatten();
        self.records = records.map(|record| (record.mac, record)).collect();
        Ok(())
    }

    /// VAs came or went: the next [`Self::want`] finds out.
    pub fn list_again(&mut self) {
        self.listed = None;
    }

    /// Whether anything is waited for.
    pub fn is_idle(&self) -> bool {
        self.rings.is_empty()
    }

    /// Looks at some VAs; with `whole`, at every one that is not settled.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn tick(&mut self, whole: bool, checks: &mut dyn Checks) -> Result<(), RolloutError> {
        if self.rings.is_empty() {
            return Ok(());
        }
        let store = self.store.clone();
        let machines = Machines::open(&store)?;
        let mut observer = Observer::new(&store);
        let share = LOOKS.div_ceil(self.rings.len());
        for ring in self.rings.values_mut() {
            let restless = if whole { usize::MAX } else { share };
            let mut looks: Vec<_> =
                ring.restless.drain(..restless.min(ring.restless.len())).collect();
            let again = SECOND_LOOKS.min(ring.settled.len());
            looks.extend(ring.settled.drain(..again));
            for mac in looks {
                let record = self.records.get(&mac);
                let view = record.map(|record| MachineView {
                    name: record.name.clone(),
                    run_state: machines.run_state(record).ok(),
                });
                let member = look(&mut observer, &store, mac, record, view.as_ref(), checks)?;
                let Some(member) = member else {
                    ring.members.remove(&mac);
                    continue;
                };
                let arrived = member.desired == Some(ring.wanted.target);
                match member.health {
                    VaHealth::Healthy | VaHealth::Unhealthy(_) | VaHealth::Idle if arrived => {
                        ring.settled.push_back(mac);
                    }
                    _ => ring.restless.push_back(mac),
                }
                ring.members.insert(mac, member);
            }
        }
        Ok(())
    }

    /// How the VAs of a ring do, once each was looked at.
    pub fn health(&self, key: &RingKey) -> Option<RingHealth> {
        let ring = self.rings.get(key)?;
        let unseen =
            |member: &Member| member.desired.is_none() && member.health == VaHealth::Unknown;
        if ring.members.values().any(unseen) {
            return None;
        }
        let Wanted { target, batch } = ring.wanted;
        Some(RingHealth::of(target, ring.members.values(), batch))
    }
}

/// Looks at one VA; `None` where it has no link that Strata made.
fn look(
    observer: &mut Observer<'_>,
    store: &Store,
    mac: MacAddr,
    record: Option<&VaRecord>,
    view: Option<&MachineView>,
    checks: &mut dyn Checks,
) -> Result<Option<Member>, RolloutError> {
    let target = match store.va_target(mac) {
        Err(error) if error.is_foreign_link() => return Ok(None),
        target => target?,
    };
    let Some(target @ VaTarget::Ring { .. }) = target else { return Ok(None) };
    let composition = target.composition().clone();
    let observed = observer.observe(mac, target, view)?;
    let status = va_status(&observed);
    let check = match (status.state, observed.desired) {
        (strata_core::status::SyncState::InSync, Some(generation)) => {
            checks.outcome(&composition, mac, record, generation)
        }
        _ => CheckOutcome::None,
    };
    let health = va_health(&observed, &status, &check);
    Ok(Some(Member { mac, desired: observed.desired, health }))
}
