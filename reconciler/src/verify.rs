//! Verification: do the VAs serve what their rings name?
//!
//! Moving a link proves nothing. After a rollout the VAs of each moved ring are
//! looked at until their own reports say that they serve the new generation;
//! besides, a slow round over the whole fleet finds VAs that drifted or failed
//! since. Each tick reads a bounded number of reports, so that the cost is the
//! same for ten VAs and for a hundred thousand. Nothing here writes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use strata_core::links::VaTarget;
use strata_core::plan::Action;
use strata_core::rollout::policy::{DEFAULT_SILENT_DAYS, base_ring};
use strata_core::status::{ObservedVa, RunState, SWAP_GRACE_MS, SyncState, VaStatus, va_status};
use strata_core::{CompositionName, GenerationId, MacAddr, RingName};
use strata_store::{Store, StoreError};

use crate::fleet::{self, MachineView, Observer};
use crate::rollout::RolloutFile;

/// Reports that one tick reads, for rollouts and for the round each.
const REPORTS: usize = 2_000;
/// VAs that are named in one event.
const NAMED: usize = 10;
/// The pause between two rounds over the whole fleet.
const ROUND_PAUSE: Duration = Duration::from_secs(60);
const DAY_MS: u64 = 86_400_000;

/// What verification found; each is told once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    RingInSync {
        composition: CompositionName,
        ring: RingName,
        generation: GenerationId,
        vas: usize,
        after: Duration,
    },
    /// The grace for swapping is over, and some VAs are not in sync.
    RingWaiting {
        composition: CompositionName,
        ring: RingName,
        generation: GenerationId,
        waiting: usize,
        /// Of those, VAs that this host has suspended or stopped: they take the
        /// generation when they go on.
        idle: usize,
        of: usize,
        first: Vec<MacAddr>,
    },
    VaChanged {
        mac: MacAddr,
        from: Option<SyncState>,
        status: Box<VaStatus>,
    },
    /// A VA was not seen for longer than the policy says.
    VaSilent {
        mac: MacAddr,
        days: u64,
    },
}

#[derive(Debug)]
struct Rollout {
    generation: GenerationId,
    begun: Instant,
    vas: usize,
    waiting: Vec<MacAddr>,
    /// How many were waiting when that was last told.
    told: Option<usize>,
}

/// The round over the whole fleet.
#[derive(Debug, Default)]
struct Round {
    left: Vec<MacAddr>,
    begun: Option<Instant>,
    /// VAs that were found drifted or failed; the others are not remembered.
    troubled: HashMap<MacAddr, SyncState>,
    /// VAs that were not seen for long.
    silent: HashSet<MacAddr>,
    silent_days: u32,
}

#[derive(Debug)]
pub struct Verifier {
    store: Arc<Store>,
    rollouts: BTreeMap<(CompositionName, RingName), Rollout>,
    round: Round,
}

impl Verifier {
    pub fn new(store: Arc<Store>) -> Self {
        Verifier { store, rollouts: BTreeMap::new(), round: Round::default() }
    }

    /// Starts to follow the rings that a pass has moved.
    ///
    /// # Errors
    /// The VA links cannot be listed.
    pub fn follow(&mut self, actions: &[Action]) -> Result<(), StoreError> {
        let moved: BTreeMap<_, _> = actions
            .iter()
            .filter_map(|action| match action {
                Action::MoveRing { composition, ring, to, .. } => {
                    Some(((composition.clone(), ring.clone()), *to))
                }
                _ => None,
            })
            .collect();
        if moved.is_empty() {
            return Ok(());
        }
        let mut members: BTreeMap<_, Vec<MacAddr>> = BTreeMap::new();
        for (mac, target) in self.store.va_links()?.targets {
            if let VaTarget::Ring { composition, ring } = target {
                members.entry((composition, base_ring(&ring).0)).or_default().push(mac);
            }
        }
        let begun = Instant::now();
        for (key, generation) in moved {
            // A ring without VAs has nothing to verify.
            let waiting = members.remove(&key).unwrap_or_default();
            let vas = waiting.len();
            match vas {
                0 => self.rollouts.remove(&key),
                _ => self
                    .rollouts
                    .insert(key, Rollout { generation, begun, vas, waiting, told: None }),
            };
        }
        Ok(())
    }

    /// When to call [`Verifier::tick`] next.
    pub fn pause(&self) -> Duration {
        let youngest = self.rollouts.values().map(|rollout| rollout.begun.elapsed()).min();
        match youngest {
            Some(age) if age < Duration::from_secs(10) => Duration::from_millis(200),
            Some(age) if age < Duration::from_secs(120) => Duration::from_secs(1),
            Some(_) => Duration::from_secs(10),
            None if self.round.left.is_empty() => ROUND_PAUSE / 4,
            None => Duration::from_secs(1),
        }
    }

    /// Looks at some VAs.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn tick(&mut self) -> Result<Vec<Event>, StoreError> {
        let mut events = Vec::new();
        self.tick_rollouts(&mut events)?;
        self.tick_round(&mut events)?;
        Ok(events)
    }

    fn tick_rollouts(&mut self, events: &mut Vec<Event>) -> Result<(), StoreError> {
        let store = self.store.clone();
        let mut observer = Observer::new(&store);
        let mut budget = REPORTS;
        for ((composition, ring), rollout) in &mut self.rollouts {
            let count = budget.min(rollout.waiting.len());
            budget -= count;
            // Those looked at go to the end, so that all have their turn.
            for mac in rollout.waiting.drain(..count).collect::<Vec<_>>() {
                let still = va_target(&store, mac)?.filter(|target| {
                    matches!(target, VaTarget::Ring { composition: c, ring: r } if c == composition && r == ring)
                });
                let Some(target) = still else { continue };
                let status = va_status(&observer.observe(mac, target, None)?);
                let arrived =
                    status.active == Some(rollout.generation) && status.state == SyncState::InSync;
                if !arrived {
                    rollout.waiting.push(mac);
                }
            }
            let generation = rollout.generation;
            let (composition, ring) = (composition.clone(), ring.clone());
            let grace = rollout.begun.elapsed() > Duration::from_millis(SWAP_GRACE_MS);
            let waiting = rollout.waiting.len();
            if waiting == 0 {
                let (vas, after) = (rollout.vas, rollout.begun.elapsed());
                events.push(Event::RingInSync { composition, ring, generation, vas, after });
            } else if grace && rollout.told.is_none_or(|told| told != waiting) {
                rollout.told = Some(waiting);
                let idle = idle(&store);
                let (idle, active): (Vec<_>, Vec<_>) =
                    rollout.waiting.iter().partition(|mac| idle.contains(mac));
                let first = active.iter().chain(&idle).copied().take(NAMED).collect();
                let (idle, of) = (idle.len(), rollout.vas);
                let event =
                    Event::RingWaiting { composition, ring, generation, waiting, idle, of, first };
                events.push(event);
            }
        }
        self.rollouts.retain(|_, rollout| !rollout.waiting.is_empty());
        Ok(())
    }

    fn tick_round(&mut self, events: &mut Vec<Event>) -> Result<(), StoreError> {
        if self.round.left.is_empty() {
            if self.round.begun.is_some_and(|begun| begun.elapsed() < ROUND_PAUSE) {
                return Ok(());
            }
            self.round.begun = Some(Instant::now());
            self.round.silent_days = silent_days(&self.store);
            self.round.left = self.store.va_links()?.targets.into_keys().collect();
        }
        let store = self.store.clone();
        let mut observer = Observer::new(&store);
        let from = self.round.left.len().saturating_sub(REPORTS);
        for mac in self.round.left.split_off(from) {
            let Some(target) = va_target(&store, mac)? else {
                self.round.troubled.remove(&mac);
                continue;
            };
            let observed: ObservedVa = observer.observe(mac, target, None)?;
            self.round.note(va_status(&observed), events);
        }
        Ok(())
    }
}

/// A VA's link; one that somebody else made counts as none, and `strata status`
/// names it.
fn va_target(store: &Store, mac: MacAddr) -> Result<Option<VaTarget>, StoreError> {
    match store.va_target(mac) {
        Err(error) if error.is_foreign_link() => Ok(None),
        target => target,
    }
}

/// VAs that are suspended or stopped on this host.
fn idle(store: &Store) -> HashSet<MacAddr> {
    match fleet::machines(store) {
        Ok(machines) => {
            let idle = |view: &MachineView| {
                matches!(view.run_state, Some(RunState::Suspended | RunState::Stopped))
            };
            machines.iter().filter(|(_, view)| idle(view)).map(|(mac, _)| *mac).collect()
        }
        Err(error) => {
            tracing::warn!(%error, "the run states of this host's VAs cannot be told");
            HashSet::new()
        }
    }
}

/// The policy of the last commit that was taken.
fn silent_days(store: &Store) -> u32 {
    let file = RolloutFile::read(store);
    file.ok().and_then(|file| file.silent_days).unwrap_or(DEFAULT_SILENT_DAYS)
}

impl Round {
    /// Tells a VA that came to drift or fail, and one that no longer does.
    fn note(&mut self, status: VaStatus, events: &mut Vec<Event>) {
        let days = status.report_age_ms.unwrap_or(0) / DAY_MS;
        if days < u64::from(self.silent_days).max(1) {
            self.silent.remove(&status.mac);
        } else if self.silent.insert(status.mac) {
            events.push(Event::VaSilent { mac: status.mac, days });
        }
        let from = self.troubled.get(&status.mac).copied();
        let troubled = match status.state {
            SyncState::Drifted | SyncState::Failed => Some(status.state),
            SyncState::InSync => None,
            // No evidence either way.
            SyncState::Pending | SyncState::Unknown => from,
        };
        if troubled == from {
            return;
        }
        match troubled {
            Some(state) => self.troubled.insert(status.mac, state),
            None => self.troubled.remove(&status.mac),
        };
        events.push(Event::VaChanged { mac: status.mac, from, status: Box::new(status) });
    }
}

impl Event {
    /// Writes the event to the log.
    pub fn log(&self) {
        match self {
            Event::RingInSync { composition, ring, generation, vas, after } => {
                let after_ms = after.as_millis();
                tracing::info!(%composition, %ring, %generation, vas, after_ms, "ring in sync");
            }
            Event::RingWaiting { composition, ring, generation, waiting, idle, of, first } => {
                let first: Vec<_> = first.iter().map(MacAddr::to_string).collect();
                let first = first.join(" ");
                tracing::info!(%composition, %ring, %generation, waiting, idle, of, first, "ring not in sync yet");
            }
            Event::VaSilent { mac, days } => {
                tracing::warn!(%mac, days, "VA not seen for long");
            }
            Event::VaChanged { mac, status, .. } => {
                let reason = status.reason.as_ref().map(ToString::to_string);
                match status.state {
                    SyncState::InSync => tracing::info!(%mac, "VA in sync again"),
                    state => tracing::warn!(%mac, %state, reason, "VA not in sync"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use strata_core::generation::Generation;
    use strata_machine::{Machines, ProvisionRequest};

    use super::*;

    /// A VA that does not run cannot swap: those who wait for it should know.
    #[test]
    fn vas_that_do_not_run_are_told_apart() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Arc::new(Store::init(directory.path()).expect("a store"));
        let composition = CompositionName::new("web").expect("valid");
        let ring = RingName::new("everyone").expect("valid");
        let empty = Generation::new(composition.clone(), Vec::new(), String::new());
        let (to, _) = store.seal_generation(&empty.expect("empty"), "test").expect("sealed");
        store.move_ring(&composition, &ring, &to).expect("moved");
        let request = ProvisionRequest {
            composition: composition.clone(),
            ring: None,
            mac: None,
            name: Some("stopped".parse().expect("valid")),
            count: None,
            private: None,
        };
        let machines = Machines::open(&store).expect("machines");
        let stopped = machines.provision(&request, &mut |_, _| ()).expect("provisioned");
        let elsewhere = "02:00:00:00:00:01".parse().expect("valid");
        let target = VaTarget::Ring { composition: composition.clone(), ring: ring.clone() };
        store.claim_va(elsewhere, &target).expect("claimed");
        let mut verifier = Verifier::new(store.clone());
        let moved = Action::MoveRing { composition, ring, from: None, to };
        verifier.follow(&[moved]).expect("followed");
        let long_ago = Instant::now() - Duration::from_millis(2 * SWAP_GRACE_MS);
        verifier.rollouts.values_mut().for_each(|rollout| rollout.begun = long_ago);
        match verifier.tick().expect("a tick").as_slice() {
            [Event::RingWaiting { waiting: 2, idle: 1, of: 2, first, .. }] => {
                assert_eq!(first, &[elsewhere, stopped[0].record.mac], "who runs comes first");
            }
            other => panic!("{other:?}"),
        }
    }
}
