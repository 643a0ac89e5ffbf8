//! How the VAs of rings do that a rollout waits for.
//!
//! The members of such a ring are looked at in turn, a bounded number at a time, so
//! that a look costs the same for ten VAs and for a hundred thousand: first those
//! that are not settled, then the others again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use strata_core::links::VaTarget;
use strata_core::rollout::health::{CheckOutcome, Clock, Member, RingHealth, VaHealth, va_health};
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
/// A clock that is so far ahead of the time that has passed was set.
const CLOCK_JUMP_MS: u64 = 5_000;

/// A ring of a composition.
pub type RingKey = (CompositionName, RingName);

/// A ring that is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub target: GenerationId,
    /// VAs of the next batch.
    pub batch: usize,
    pub deadline_ms: u64,
    /// Since when its VAs owe an answer that were not looked at yet; from the first look
    /// on where that is not known.
    pub since_ms: Option<u64>,
}

#[derive(Debug)]
struct Ring {
    wanted: Wanted,
    /// What the last look found; nothing where there was none.
    members: BTreeMap<MacAddr, Option<Member>>,
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
    /// The last tick, by both clocks.
    ticked: Option<(Instant, u64)>,
}

/// How much a tick looks at.
#[derive(Debug, Clone, Copy)]
pub enum Looks<'c> {
    /// Some VAs.
    Some,
    /// Every one that is not settled.
    Whole,
    /// And again once the checks have answered, as this process ends after the tick.
    Last { cancelled: &'c AtomicBool },
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

    /// Waits until all have answered that were asked.
    fn wait(&mut self, cancelled: &AtomicBool);
}

impl Watcher {
    pub fn new(store: Arc<Store>) -> Self {
        let (rings, records) = (BTreeMap::new(), BTreeMap::new());
        Watcher { store, rings, records, listed: None, ticked: None }
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
                    None
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

    /// Looks at VAs.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn tick(
        &mut self,
        looks: Looks<'_>,
        checks: &mut dyn Checks,
        now_ms: u64,
    ) -> Result<(), RolloutError> {
        self.know_the_time(now_ms);
        if self.rings.is_empty() {
            return Ok(());
        }
        self.look(!matches!(looks, Looks::Some), checks, now_ms)?;
        if let Looks::Last { cancelled } = looks {
            checks.wait(cancelled);
            self.look(true, checks, now_ms)?;
        }
        Ok(())
    }

    /// Where the clock was set ahead, nobody owes an answer for that time.
    fn know_the_time(&mut self, now_ms: u64) {
        let Some((at, then_ms)) = self.ticked.replace((Instant::now(), now_ms)) else { return };
        let passed_ms = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let ahead_ms = now_ms.saturating_sub(then_ms.saturating_add(passed_ms));
        if ahead_ms <= CLOCK_JUMP_MS {
            return;
        }
        tracing::warn!(ahead_ms, "the clock was set");
        for member in self.rings.values_mut().flat_map(|ring| ring.members.values_mut()).flatten() {
            member.since_ms = member.since_ms.saturating_add(ahead_ms);
        }
    }

    fn look(
        &mut self,
        whole: bool,
        checks: &mut dyn Checks,
        now_ms: u64,
    ) -> Result<(), RolloutError> {
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
                let before = ring.members.get(&mac).and_then(Option::as_ref);
                let first_ms = ring.wanted.since_ms.unwrap_or(now_ms);
                let since = |desired| Member::owes_since(before, desired, first_ms, now_ms);
                let va = (mac, record, view.as_ref());
                let member = look(&mut observer, &store, va, checks, (&since, now_ms))?;
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
                ring.members.insert(mac, Some(member));
            }
        }
        Ok(())
    }

    /// How the VAs of a ring do, once each was looked at.
    pub fn health(&self, key: &RingKey, now_ms: u64) -> Option<RingHealth> {
        let ring = self.rings.get(key)?;
        if ring.members.values().any(Option::is_none) {
            return None;
        }
        let Wanted { target, batch, deadline_ms, .. } = ring.wanted;
        let members = ring.members.values().flatten();
        Some(RingHealth::of(target, members, batch, Clock { deadline_ms, now_ms }))
    }
}

/// Looks at one VA; `None` where it has no link that Strata made.
fn look(
    observer: &mut Observer<'_>,
    store: &Store,
    (mac, record, view): (MacAddr, Option<&VaRecord>, Option<&MachineView>),
    checks: &mut dyn Checks,
    (since, now_ms): (&dyn Fn(Option<GenerationId>) -> u64, u64),
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
    let since_ms = since(observed.desired);
    let expected_ms = now_ms.saturating_sub(since_ms);
    let health = va_health(&observed, &status, &check, expected_ms);
    Ok(Some(Member { mac, desired: observed.desired, health, since_ms }))
}
