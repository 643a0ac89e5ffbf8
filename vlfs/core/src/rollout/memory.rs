//! What the audit log tells of rollouts: a state that was lost is made anew from it and
//! from the links.
//!
//! The links tell where everything is; the log tells what must not move: what is
//! quarantined, halted or paused, and where rings go back to. Where the log does not reach back, a rollout
//! that has something to move waits for an operator: what it would move to may be what was
//! stopped.
//!
//! Gates are owed again by rings of which the log does not say that they passed.

use std::collections::{BTreeMap, BTreeSet};

use super::advance::Input;
use super::state::{Halt, Pause, Quarantine, RingState, RingStep, RolloutState};
use crate::digest::GenerationId;
use crate::event::Event;
use crate::names::{CompositionName, RingName};

/// Why a rollout waits of which too little is known.
pub const UNKNOWN: &str = "the rollout state was lost, and the audit log does not tell whether this \
     commit was stopped: look at it, then: strata rollout resume";

/// What is known of one composition's rollout.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remembered {
    /// What a commit wanted last, which commit, and since when.
    target: Option<(GenerationId, String, u64)>,
    done_at_ms: Option<u64>,
    /// What was everywhere last.
    good: Option<GenerationId>,
    /// Rings that were moved to the target, and those of them that passed.
    moved: BTreeSet<RingName>,
    passed: BTreeSet<RingName>,
    /// Those that an operator let pass, whatever their VAs say.
    waived: BTreeSet<RingName>,
    paused: Option<Pause>,
    halted: Option<Halt>,
    quarantined: Option<Quarantine>,
    window_override: Option<String>,
    promoted: Option<String>,
}

/// A fold over all events, in the order of the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Memory {
    compositions: BTreeMap<CompositionName, Remembered>,
}

impl Memory {
    pub fn take(&mut self, at_ms: u64, event: &Event) {
        let concerns = matches!(
            event,
            Event::RolloutStarted { .. }
                | Event::RingMoved { .. }
                | Event::RingPassed { .. }
                | Event::RolloutDone { .. }
                | Event::RolloutHalted { .. }
                | Event::RolledBack { .. }
                | Event::Paused { .. }
                | Event::Resumed { .. }
                | Event::Promoted { .. }
                | Event::WindowOverridden { .. }
        );
        if let Some(composition) = event.composition().filter(|_| concerns) {
            self.compositions.entry(composition.clone()).or_default().take(at_ms, event);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.compositions.is_empty()
    }

    pub fn of(&self, composition: &CompositionName) -> Option<&Remembered> {
        self.compositions.get(composition)
    }
}

impl Remembered {
    fn take(&mut self, at_ms: u64, event: &Event) {
        match event {
            Event::RolloutStarted { generation, commit, .. } => {
                // What is only judged anew has been moved already.
                let again = self.is_target(generation);
                let moved = std::mem::take(&mut self.moved).into_iter().filter(|_| again);
                let (paused, good, moved) = (self.paused.take(), self.good, moved.collect());
                let target = Some((*generation, commit.clone(), at_ms));
                *self = Remembered { target, paused, good, moved, ..Remembered::default() };
            }
            Event::RolloutDone { generation, commit, .. } => {
                let target = Some((*generation, commit.clone(), at_ms));
                let (paused, good) = (self.paused.take(), Some(*generation));
                let done_at_ms = Some(at_ms);
                *self = Remembered { target, done_at_ms, good, paused, ..Remembered::default() };
            }
            Event::RingMoved { ring, to, .. } if self.is_target(to) => {
                self.moved.insert(ring.clone());
            }
            Event::RingPassed { ring, generation, .. } if self.is_target(generation) => {
                self.passed.insert(ring.clone());
            }
            Event::RolloutHalted { ring, generation, reason, unhealthy, .. }
                if self.is_target(generation) =>
            {
                let (ring, reason, unhealthy) = (ring.clone(), reason.clone(), unhealthy.clone());
                let commit = self.target.as_ref().map(|(_, commit, _)| commit.clone());
                let commit = commit.unwrap_or_default();
                self.halted = Some(Halt { ring, commit, reason, unhealthy, at_ms });
            }
            Event::RolledBack { generation, commit, reason, unhealthy, .. } => {
                if !self.is_target(generation) {
                    // The log begins later than this rollout did.
                    self.target = Some((*generation, commit.clone(), at_ms));
                }
                let (commit, reason) = (commit.clone(), reason.clone());
                let unhealthy = unhealthy.clone();
                self.quarantined = Some(Quarantine { commit, reason, unhealthy, at_ms });
                (self.halted, self.done_at_ms) = (None, None);
                (self.moved, self.passed) = (BTreeSet::new(), BTreeSet::new());
                self.waived.clear();
            }
            Event::Paused { reason, .. } => {
                self.paused = Some(Pause { reason: reason.clone(), at_ms });
            }
            Event::Resumed { quarantined, .. } => {
                // Without a pause there was nothing else to resume.
                if *quarantined || self.paused.is_none() {
                    self.quarantined = None;
                }
                (self.paused, self.halted) = (None, None);
                self.waived.clear();
            }
            Event::Promoted { all, reason, .. } => {
                self.waived.extend(self.moved.difference(&self.passed).cloned());
                self.waived.extend(self.halted.take().map(|halt| halt.ring));
                self.passed.extend(self.moved.iter().cloned());
                if *all {
                    self.promoted = Some(reason.clone());
                }
            }
            Event::WindowOverridden { reason, .. } => self.window_override = Some(reason.clone()),
            _ => {}
        }
    }

    fn is_target(&self, generation: &GenerationId) -> bool {
        self.target.as_ref().is_some_and(|(target, ..)| target == generation)
    }

    /// Forgets where to go back to, where that is no longer in the store.
    pub fn keep_good(&mut self, is_there: impl Fn(&GenerationId) -> bool) {
        self.good = self.good.filter(is_there);
    }

    /// The state of the rollout. `None` where no commit is known to have wanted anything.
    fn state(&self, input: &Input<'_>) -> Option<RolloutState> {
        let (target, commit, begun_at_ms) = self.target.clone()?;
        let linked = |ring: &RingName| input.rings.get(ring).and_then(|view| view.linked);
        // Later rings are on what was good longer.
        let mut others = input.policy.rings.iter().rev().filter_map(|ring| linked(&ring.name));
        let good = self.good.or_else(|| others.find(|id| *id != target));
        let mut state = RolloutState {
            target,
            commit,
            checks: None,
            begun_at_ms,
            done_at_ms: self.done_at_ms,
            rings: BTreeMap::new(),
            paused: self.paused.clone(),
            halted: self.halted.clone(),
            quarantined: None,
            window_override: self.window_override.clone(),
            promoted: self.promoted.clone(),
            waiting: None,
        };
        for policy in &input.policy.rings {
            // One without a link gets it in the next step.
            let Some(linked) = linked(&policy.name) else { continue };
            let view = &input.rings[&policy.name];
            let step = match linked == target {
                _ if self.done_at_ms.is_some() => RingStep::Passed,
                true if self.passed.contains(&policy.name) => RingStep::Passed,
                true => RingStep::Moved,
                false if view.staged => RingStep::Staging,
                false => RingStep::Waiting,
            };
            let since_ms = match step {
                RingStep::Moved => view.linked_at_ms.unwrap_or(input.now_ms).min(input.now_ms),
                _ => input.now_ms,
            };
            let at = if self.done_at_ms.is_some() { target } else { linked };
            let ring = RingState {
                at,
                good,
                step,
                since_ms,
                healthy_since_ms: None,
                short_since_ms: None,
                promoted: self.waived.contains(&policy.name),
                stuck: false,
                moving: false,
                drifted: None,
            };
            state.rings.insert(policy.name.clone(), ring);
        }
        if let Some(quarantine) = &self.quarantined {
            state.take_back(quarantine.clone());
        }
        Some(state)
    }
}

/// The state of a rollout that was lost, and whether it is held because too little is
/// known; then that is to be told. `whole` says whether the log tells all that ever happened to the
/// composition since its last rollout began. `None` for a composition that is new.
pub fn rebuild(
    known: Option<&Remembered>,
    whole: bool,
    input: &Input<'_>,
) -> Option<(RolloutState, bool)> {
    let links: Vec<_> = input.rings.values().filter_map(|view| view.linked).collect();
    let moves = links.iter().any(|linked| *linked != input.target);
    let known = known.cloned().unwrap_or_default();
    let told = whole && known.target.is_some();
    let mut state = match known.state(input) {
        Some(state) => state,
        None if links.is_empty() && known.paused.is_none() => return None,
        None => {
            let target = Some((input.target, input.commit.to_owned(), input.now_ms));
            let done_at_ms = Some(input.now_ms).filter(|_| !moves && !links.is_empty());
            Remembered { target, done_at_ms, ..known }.state(input)?
        }
    };
    let stopped = state.paused.is_some() || state.quarantined.is_some();
    let held = moves && !told && !stopped;
    if held {
        let (reason, at_ms) = (UNKNOWN.to_owned(), input.now_ms);
        state.paused = Some(Pause { reason, at_ms });
    }
    Some((state, held))
}

#[cfg(test)]
mod tests {
    use super::super::policy::OnFailure;
    use super::super::tests::{World, health, id, name};
    use super::super::{Command, Order, advance, apply_command};
    use super::*;

    /// A world whose events are remembered.
    struct Told {
        world: World,
        memory: Memory,
    }

    impl Told {
        fn new() -> Self {
            let mut memory = Memory::default();
            let world = World::new(OnFailure::AutoRollback);
            let (composition, commit) = (world.composition.clone(), "first".to_owned());
            let done = Event::RolloutDone { composition, generation: id("one"), commit };
            memory.take(1, &done);
            Told { world, memory }
        }

        fn step(&mut self, target: &str) -> Vec<Event> {
            let done = self.world.step(target);
            done.events.iter().for_each(|event| self.memory.take(self.world.now_ms, event));
            done.events
        }

        fn order(&mut self, order: Order) {
            let command = Command { order, reason: "because".to_owned() };
            let state = self.world.state.as_ref().expect("a state");
            let (next, events) =
                apply_command(&self.world.composition, state, &command, self.world.now_ms)
                    .expect("it makes sense");
            events.iter().for_each(|event| self.memory.take(self.world.now_ms, event));
            self.world.state = Some(next);
        }

        fn rebuilt(&self, target: &str, whole: bool) -> Option<(RolloutState, bool)> {
            let input = Input {
                composition: &self.world.composition,
                policy: &self.world.policy,
                target: id(target),
                commit: "commit",
                checks: None,
                forward: true,
                rings: &self.world.rings,
                now_ms: self.world.now_ms,
            };
            rebuild(self.memory.of(&self.world.composition), whole, &input)
        }

        /// Loses the state; it is made anew.
        fn lose(&mut self, target: &str) {
            let (state, held) = self.rebuilt(target, true).expect("it is known");
            assert!(!held);
            let before = self.world.state.replace(state.clone()).expect("a state");
            // All that decides is as it was.
            assert_eq!(state.phase(), before.phase());
            assert_eq!((state.target, state.paused), (before.target, before.paused));
            assert_eq!((state.halted, state.quarantined), (before.halted, before.quarantined));
            assert_eq!(state.promoted, before.promoted);
            for (ring, now) in &state.rings {
                let then = &before.rings[ring];
                assert_eq!((now.at, now.step), (then.at, then.step), "{ring}");
                assert_eq!(now.good, then.good, "{ring}");
            }
        }
    }

    #[test]
    fn what_is_quarantined_stays_so() {
        let mut told = Told::new();
        told.step("three");
        assert_eq!(told.world.links(), "three one");
        told.world.tell("canary", health("three", [0, 2, 0, 0, 0]));
        let events = told.step("three");
        assert!(
            matches!(&events[..], [Event::RolledBack { ring: Some(ring), .. }] if ring.as_str() == "canary"),
            "{events:?}"
        );
        assert_eq!(told.world.links(), "one one");
        told.lose("three");
        assert!(told.step("three").is_empty());
        assert_eq!(told.world.links(), "one one");
        // Paused as well, then let go on: the quarantine stays.
        told.order(Order::Pause);
        told.order(Order::Resume { quarantined: false });
        told.lose("three");
        assert_eq!(told.world.state.as_ref().expect("a state").phase(), "quarantined");
        // The fix is taken, and so is what an operator wants all the same.
        let mut other = Told { world: told.world, memory: told.memory.clone() };
        other.order(Order::Resume { quarantined: true });
        other.lose("three");
        other.step("three");
        assert_eq!(other.world.links(), "three one");
    }

    #[test]
    fn what_is_judged_anew_is_known_to_be_where_it_is() {
        let mut told = Told::new();
        told.world.policy.on_failure = OnFailure::Halt;
        told.world.checks = "with a typo";
        told.step("two");
        told.world.tell("canary", health("two", [0, 1, 0, 0, 0]));
        told.step("two");
        told.lose("two");
        assert!(told.step("two").is_empty(), "by which checks it halted is not known any more");
        told.world.checks = "mended";
        assert!(matches!(told.step("two")[..], [Event::RolloutStarted { .. }]));
        told.order(Order::Promote { all: false, override_window: false });
        told.lose("two");
        told.step("two");
        assert_eq!(told.world.links(), "two two");
    }

    #[test]
    fn links_that_had_not_gone_back_yet_do() {
        let mut told = Told::new();
        told.step("three");
        told.world.tell("canary", health("three", [0, 2, 0, 0, 0]));
        // The reconciler dies after it told and before it moved.
        let links = told.world.rings.clone();
        told.step("three");
        told.world.rings = links;
        let (state, _) = told.rebuilt("three", true).expect("it is known");
        told.world.state = Some(state);
        told.step("three");
        assert_eq!(told.world.links(), "one one");
    }

    #[test]
    fn pauses_halts_and_passed_rings_stay() {
        let mut told = Told::new();
        told.order(Order::Pause);
        told.lose("one");
        told.step("two");
        assert_eq!(told.world.links(), "one one");
        told.lose("two");
        told.order(Order::Resume { quarantined: false });
        told.step("two");
        told.lose("two");
        told.order(Order::Promote { all: false, override_window: false });
        told.lose("two");
        told.step("two");
        assert_eq!(told.world.links(), "two two");
        told.lose("two");
        let halted = Event::RolloutHalted {
            composition: told.world.composition.clone(),
            ring: name("all"),
            generation: id("two"),
            reason: "ill".to_owned(),
            unhealthy: Vec::new(),
        };
        told.memory.take(7, &halted);
        let (state, _) = told.rebuilt("two", true).expect("it is known");
        assert_eq!((state.phase(), state.halted.expect("halted").at_ms), ("halted", 7));
    }

    #[test]
    fn what_is_not_known_waits_and_what_is_new_does_not() {
        let mut told = Told::new();
        told.world.state = None;
        // Nothing to move: nothing to hold.
        told.memory = Memory::default();
        let (state, held) = told.rebuilt("one", false).expect("links are there");
        assert_eq!((state.phase(), held), ("done", false));
        // Something to move, and no word of it.
        let (state, held) = told.rebuilt("two", true).expect("links are there");
        assert_eq!((state.phase(), held), ("paused", true));
        told.world.state = Some(state);
        assert!(told.step("two").is_empty());
        assert_eq!(told.world.links(), "one one");
        told.order(Order::Resume { quarantined: false });
        told.step("two");
        assert_eq!(told.world.links(), "two one");
        // A log that is broken tells something, and not all.
        let mut broken = Told::new();
        assert!(broken.rebuilt("two", false).expect("known").1);
        assert!(!broken.rebuilt("two", true).expect("known").1);
        // Without links there is nothing to keep.
        broken.memory = Memory::default();
        broken.world.rings.clear();
        assert_eq!(broken.rebuilt("two", false), None);
        let input = Input {
            composition: &broken.world.composition,
            policy: &broken.world.policy,
            target: id("two"),
            commit: "commit",
            checks: None,
            forward: true,
            rings: &broken.world.rings,
            now_ms: 1,
        };
        assert_eq!(advance(&input, None).moves.len(), 2);
    }
}
