//! Verification: do the VAs serve what their rings name?
//!
//! Moving a link proves nothing. After a rollout the VAs of each moved ring are
//! looked at until their own reports say that they serve the new generation: when a
//! report is written ([`crate::report_watch`]), and in turn, as events can be
//! lost. Besides, a slow round over the whole fleet finds VAs that drifted or failed
//! since. Each tick reads a bounded share of the reports. Nothing here writes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use strata_core::links::VaTarget;
use strata_core::plan::Action;
use strata_core::rollout::policy::{DEFAULT_SILENT_DAYS, base_ring};
use strata_core::status::{RunState, SWAP_GRACE_MS, SyncState, VaStatus, va_status};
use strata_core::{CompositionName, GenerationId, MacAddr, RingName};
use strata_store::{Store, StoreError};
use tracing::Span;

use crate::fleet::{self, MachineView, Observer};
use crate::rollout::RolloutFile;
use crate::traces::spans::{self, Origin};

/// Reports that one tick reads, for each rollout and for the round.
const REPORTS: usize = 2_000;
/// Of a larger ring, a tick reads this share, so that so many ticks see all of it.
const TICKS: usize = 10;
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
    waiting: BTreeSet<MacAddr>,
    /// Where the next tick goes on.
    after: Option<MacAddr>,
    /// How many were waiting when that was last told.
    told: Option<usize>,
    /// The part of a trace that ends when nobody waits any more.
    span: Span,
}

impl Rollout {
    /// Those whose turn it is.
    fn turn(&mut self) -> Vec<MacAddr> {
        let count = REPORTS.max(self.waiting.len().div_ceil(TICKS)).min(self.waiting.len());
        let from = self.after.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.waiting.range((from, Bound::Unbounded));
        let turn: Vec<_> = rest.chain(&self.waiting).take(count).copied().collect();
        self.after = turn.last().copied();
        turn
    }

    /// Looks at some of those who are waiting; who arrived or left the ring waits
    /// no longer.
    fn look(
        &mut self,
        composition: &CompositionName,
        ring: &RingName,
        macs: &[MacAddr],
        observer: &mut Observer<'_>,
        store: &Store,
    ) -> Result<(), StoreError> {
        for mac in macs {
            let target = va_target(store, *mac)?.filter(|target| {
                matches!(target, VaTarget::Ring { composition: c, ring: r } if c == composition && r == ring)
            });
            let waits = match target {
                None => false,
                Some(target) => {
                    let status = va_status(&observer.observe(*mac, target, None)?);
                    status.active != Some(self.generation) || status.state != SyncState::InSync
                }
            };
            if !waits {
                self.waiting.remove(mac);
            }
        }
        Ok(())
    }
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

    /// Starts to follow the rings that a pass has moved, which is at `origin` in a trace.
    ///
    /// # Errors
    /// The VA links cannot be listed.
    pub fn follow(&mut self, actions: &[Action], origin: &Origin) -> Result<(), StoreError> {
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
        let mut members: BTreeMap<_, BTreeSet<MacAddr>> = BTreeMap::new();
        for (mac, target) in self.store.va_links()?.targets {
            if let VaTarget::Ring { composition, ring } = target {
                members.entry((composition, base_ring(&ring).0)).or_default().insert(mac);
            }
        }
        let begun = Instant::now();
        for (number, (key, generation)) in moved.into_iter().enumerate() {
            // A ring without VAs has nothing to verify.
            let waiting = members.remove(&key).unwrap_or_default();
            let vas = waiting.len();
            let former = match vas {
                0 => self.rollouts.remove(&key),
                _ => {
                    let ring = (&key.0, &key.1);
                    let span = spans::verify(number, origin, ring, generation, vas);
                    let (after, told) = (None, None);
                    let rollout = Rollout { generation, begun, vas, waiting, after, told, span };
                    self.rollouts.insert(key, rollout)
                }
            };
            if let Some(former) = former {
                former.span.record("in_sync", false);
            }
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

    /// Looks at VAs whose reports were just written, as far as they are waited for or
    /// in trouble.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn look(&mut self, written: &BTreeSet<MacAddr>) -> Result<Vec<Event>, StoreError> {
        let mut events = Vec::new();
        let store = self.store.clone();
        let mut observer = Observer::new(&store);
        for ((composition, ring), rollout) in &mut self.rollouts {
            let macs: Vec<_> = rollout.waiting.intersection(written).copied().collect();
            rollout.look(composition, ring, &macs, &mut observer, &store)?;
        }
        self.settle(&mut events);
        let troubled = written.iter().filter(|mac| self.round.troubled.contains_key(mac));
        for mac in troubled.copied().collect::<Vec<_>>() {
            self.round.look(mac, &mut observer, &store, &mut events)?;
        }
        Ok(events)
    }

    fn tick_rollouts(&mut self, events: &mut Vec<Event>) -> Result<(), StoreError> {
        let store = self.store.clone();
        let mut observer = Observer::new(&store);
        for ((composition, ring), rollout) in &mut self.rollouts {
            let turn = rollout.turn();
            rollout.look(composition, ring, &turn, &mut observer, &store)?;
            let waiting = rollout.waiting.len();
            let grace = rollout.begun.elapsed() > Duration::from_millis(SWAP_GRACE_MS);
            if waiting > 0 && grace && rollout.told.is_none_or(|told| told != waiting) {
                rollout.told = Some(waiting);
                let idle = idle(&store);
                let (idle, active): (Vec<_>, Vec<_>) =
                    rollout.waiting.iter().partition(|mac| idle.contains(mac));
                events.push(Event::RingWaiting {
                    composition: composition.clone(),
                    ring: ring.clone(),
                    generation: rollout.generation,
                    waiting,
                    idle: idle.len(),
                    of: rollout.vas,
                    first: active.iter().chain(&idle).copied().take(NAMED).collect(),
                });
            }
        }
        self.settle(events);
        Ok(())
    }

    /// Tells the rollouts that nobody is waiting for any more, and forgets them.
    fn settle(&mut self, events: &mut Vec<Event>) {
        self.rollouts.retain(|(composition, ring), rollout| {
            if rollout.waiting.is_empty() {
                rollout.span.record("in_sync", true);
                events.push(Event::RingInSync {
                    composition: composition.clone(),
                    ring: ring.clone(),
                    generation: rollout.generation,
                    vas: rollout.vas,
                    after: rollout.begun.elapsed(),
                });
            }
            !rollout.waiting.is_empty()
        });
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
            self.round.look(mac, &mut observer, &store, events)?;
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
    fn look(
        &mut self,
        mac: MacAddr,
        observer: &mut Observer<'_>,
        store: &Store,
        events: &mut Vec<Event>,
    ) -> Result<(), StoreError> {
        match va_target(store, mac)? {
            Some(target) => self.note(va_status(&observer.observe(mac, target, None)?), events),
            None => {
                self.troubled.remove(&mac);
            }
        }
        Ok(())
    }

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
    use std::time::SystemTime;

    use strata_core::generation::Generation;
    use strata_core::report::Report;
    use strata_machine::{Driver, Machines, ProvisionRequest};

    use super::*;

    fn name(text: &str) -> (CompositionName, RingName) {
        let (composition, ring) = text.split_once('/').expect("composition/ring");
        (composition.parse().expect("valid"), ring.parse().expect("valid"))
    }

    fn mac(number: u64) -> MacAddr {
        format!("52:54:00:00:{:02x}:{:02x}", number / 256, number % 256).parse().expect("valid")
    }

    /// A store with a ring of so many VAs that has just moved, and its generation.
    fn moved(vas: u64) -> (tempfile::TempDir, Verifier, GenerationId) {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Arc::new(Store::init(directory.path()).expect("a store"));
        let (composition, ring) = name("web/everyone");
        let empty = Generation::new(composition.clone(), Vec::new(), String::new());
        let (to, _) = store.seal_generation(&empty.expect("empty"), "test").expect("sealed");
        store.move_ring(&composition, &ring, &to).expect("moved");
        let target = VaTarget::Ring { composition: composition.clone(), ring: ring.clone() };
        (0..vas).for_each(|number| store.claim_va(mac(number), &target).expect("claimed"));
        let mut verifier = Verifier::new(store);
        let moved = Action::MoveRing { composition, ring, from: None, to };
        verifier.follow(&[moved], &Origin::default()).expect("followed");
        (directory, verifier, to)
    }

    fn serve(verifier: &Verifier, mac: MacAddr, generation: GenerationId) {
        let golden = include_str!("../../vlfs/core/golden/report");
        let now_ms = crate::state::milliseconds(SystemTime::now());
        let mut report: Report = serde_json::from_str(golden).expect("the golden file");
        report.mac = mac;
        (report.generation, report.desired) = (Some(generation), Some(generation));
        report.error = None;
        (report.started_at_ms, report.written_at_ms) = (now_ms, now_ms);
        strata_store::write_report(&verifier.store.reports(), &report).expect("written");
    }

    /// Nobody waits for a turn whose report was just written.
    #[test]
    fn a_ring_is_in_sync_with_its_last_report() {
        let (_directory, mut verifier, generation) = moved(3);
        for number in 0..3 {
            serve(&verifier, mac(number), generation);
            let events = verifier.look(&BTreeSet::from([mac(number), mac(99)])).expect("looked");
            match (number, events.as_slice()) {
                (0 | 1, []) => {}
                (2, [Event::RingInSync { vas: 3, .. }]) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(verifier.rollouts.is_empty());
    }

    /// Where no event comes, every VA of a large ring has its turn in so many ticks.
    #[test]
    fn a_large_ring_is_seen_in_ten_turns() {
        let (_directory, mut verifier, _) = moved(1);
        let rollout = verifier.rollouts.values_mut().next().expect("one");
        rollout.waiting = (0..50_000).map(mac).collect();
        let mut seen = BTreeSet::new();
        for _ in 0..TICKS {
            let turn = rollout.turn();
            assert_eq!(turn.len(), 5_000);
            seen.extend(turn);
        }
        assert_eq!(seen, rollout.waiting);
        rollout.waiting = (0..10).map(mac).collect();
        assert_eq!(rollout.turn().len(), 10, "a small one in one");
    }

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
            driver: Driver::Namespace,
            private: None,
        };
        let machines = Machines::open(&store).expect("machines");
        let stopped = machines.provision(&request, &mut |_, _| ()).expect("provisioned");
        let elsewhere = "02:00:00:00:00:01".parse().expect("valid");
        let target = VaTarget::Ring { composition: composition.clone(), ring: ring.clone() };
        store.claim_va(elsewhere, &target).expect("claimed");
        let mut verifier = Verifier::new(store.clone());
        let moved = Action::MoveRing { composition, ring, from: None, to };
        verifier.follow(&[moved], &Origin::default()).expect("followed");
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
