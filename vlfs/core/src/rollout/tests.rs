//! The state machine, one situation after the other.

use super::health::{Clock, Member, VaHealth};
use super::policy::{DriftMode, Gate, OnFailure, Percent, RingPolicy, RolloutPolicy, Share};
use super::*;
use crate::event::Event;
use crate::names::{CompositionName, RingName};
use crate::rollout::health::RingHealth;
use crate::{Digest, GenerationId};
use std::collections::BTreeMap;

pub(super) fn id(text: &str) -> GenerationId {
    Digest::of(text.as_bytes())
}

pub(super) fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a valid name")
}

/// What the VAs of a ring say with respect to a generation: whether each has it, and
/// how it does.
pub(super) struct Said {
    of: GenerationId,
    vas: Vec<(bool, VaHealth)>,
}

/// Healthy, unhealthy, swapping, idle, waiting.
pub(super) fn health(of: &str, counts: [u32; 5]) -> Said {
    let kinds = [
        (true, VaHealth::Healthy),
        (true, VaHealth::Unhealthy("it is ill".to_owned())),
        (true, VaHealth::Swapping),
        (true, VaHealth::Idle),
        (false, VaHealth::Healthy),
    ];
    let vas = kinds.into_iter().zip(counts);
    said(of, vas.flat_map(|(kind, count)| vec![kind; count as usize]))
}

/// One after the other.
pub(super) fn said(of: &str, vas: impl IntoIterator<Item = (bool, VaHealth)>) -> Said {
    Said { of: id(of), vas: vas.into_iter().collect() }
}

/// A composition in a store that takes every move.
pub(super) struct World {
    pub composition: CompositionName,
    pub policy: RolloutPolicy,
    pub rings: BTreeMap<RingName, RingView>,
    pub state: Option<RolloutState>,
    pub now_ms: u64,
    pub commit: u32,
    /// What the process that runs knows of VAs.
    pub members: BTreeMap<RingName, (GenerationId, Vec<Member>)>,
    /// Whether a process looks once and ends.
    pub once: bool,
    /// Whether the commit can be judged.
    pub judged: bool,
    /// The template's health checks.
    pub checks: &'static str,
}

impl World {
    /// The rings canary and all, gated, soaking for 100 ms, on `one`.
    pub fn new(on_failure: OnFailure) -> Self {
        let gate = Gate { soak_ms: 100, deadline_ms: 1000, ..Gate::default() };
        let ring = |ring: &str| RingPolicy { gate: Some(gate), ..RingPolicy::plain(name(ring)) };
        let rings = vec![ring("canary"), ring("all")];
        let policy = RolloutPolicy { rings, on_failure, ..RolloutPolicy::default() };
        let mut world = World {
            composition: name("web"),
            policy,
            rings: BTreeMap::new(),
            state: None,
            now_ms: 1_000_000,
            commit: 0,
            members: BTreeMap::new(),
            once: false,
            judged: true,
            checks: "",
        };
        let first = world.step("one");
        assert_eq!(first.moves.len(), 2, "a new composition is everywhere at once");
        assert_eq!(world.links(), "one one");
        world
    }

    pub fn step(&mut self, target: &str) -> Advance {
        self.count();
        let input = Input {
            composition: &self.composition,
            policy: &self.policy,
            target: id(target),
            commit: &format!("commit {}", self.commit),
            checks: self.judged.then(|| id(self.checks)),
            forward: self.judged,
            rings: &self.rings,
            now_ms: self.now_ms,
        };
        let advance = advance(&input, self.state.as_ref());
        self.state = Some(advance.state.clone());
        self.take(&advance.moves);
        self.state.as_mut().expect("set").settle();
        advance
    }

    pub fn take(&mut self, moves: &[RingMove]) {
        for step in moves {
            match step {
                RingMove::Ring { ring, to, .. } => {
                    let view = self.rings.entry(ring.clone()).or_default();
                    (view.linked, view.linked_at_ms) = (Some(*to), Some(self.now_ms));
                    view.health = None;
                    self.members.remove(ring);
                }
                RingMove::Stage { ring, .. } => {
                    self.rings.entry(ring.clone()).or_default().staged = true;
                }
                RingMove::Unstage { ring } => {
                    self.rings.entry(ring.clone()).or_default().staged = false;
                }
            }
        }
    }

    pub fn tell(&mut self, ring: &str, said: Said) {
        let ring: RingName = name(ring);
        let state = self.state.as_ref().and_then(|state| state.rings.get(&ring));
        let durable = state.and_then(|ring| ring.short_since_ms).filter(|_| self.once);
        let first_ms = durable.unwrap_or(self.now_ms);
        let known = self.members.remove(&ring).filter(|(of, _)| *of == said.of);
        let (_, known) = known.unwrap_or((said.of, Vec::new()));
        let member = |(number, (has_it, health)): (usize, (bool, VaHealth))| {
            let last = u8::try_from(number).expect("a small fleet");
            let mac = crate::MacAddr::locally_administered([2, 0, 0, 0, 0, last]);
            let desired = Some(said.of).filter(|_| has_it);
            let before = known.get(number);
            let since_ms = Member::owes_since(before, desired, first_ms, self.now_ms);
            Member { mac, desired, health, since_ms }
        };
        let members = said.vas.into_iter().enumerate().map(member).collect();
        self.members.insert(ring, (said.of, members));
        self.count();
    }

    /// Counts what VAs said, as it is now.
    pub fn count(&mut self) {
        for policy in &self.policy.rings {
            let Some((of, members)) = self.members.get(&policy.name) else { continue };
            let deadline_ms = policy.gate.unwrap_or_default().deadline_ms;
            let clock = Clock { deadline_ms, now_ms: self.now_ms };
            let health = RingHealth::of(*of, members, 255, clock);
            self.rings.entry(policy.name.clone()).or_default().health = Some(health);
        }
    }

    /// Another process goes on. It knows nothing of VAs until they tell.
    pub fn restart(&mut self) {
        self.members.clear();
        self.rings.values_mut().for_each(|view| view.health = None);
    }

    pub fn after(&mut self, ms: u64) -> &mut Self {
        self.now_ms += ms;
        self
    }

    /// The generations of the links, as the tests call them.
    pub fn links(&self) -> String {
        let known = ["one", "two", "three"];
        let called = |ring: &RingPolicy| {
            let linked = self.rings.get(&ring.name).and_then(|view| view.linked);
            known.into_iter().find(|text| Some(id(text)) == linked).unwrap_or("none")
        };
        self.policy.rings.iter().map(called).collect::<Vec<_>>().join(" ")
    }

    pub fn phase(&self) -> &'static str {
        self.state.as_ref().expect("a state").phase()
    }

    pub fn order(&mut self, order: Order) -> Result<(), CommandError> {
        let command = Command { order, reason: "because".to_owned() };
        let state = self.state.as_ref().expect("a state");
        let (state, _) = apply_command(&self.composition, state, &command, self.now_ms)?;
        self.state = Some(state);
        Ok(())
    }

    pub fn waiting(&self) -> String {
        let waiting = self.state.as_ref().and_then(|state| state.waiting.as_ref());
        waiting.map(ToString::to_string).unwrap_or_default()
    }
}

#[test]
fn plain_rings_move_at_once() {
    let mut world = World::new(OnFailure::Halt);
    world.policy = RolloutPolicy::plain([name("canary"), name("all")]);
    let advance = world.step("two");
    assert_eq!(advance.moves.len(), 2);
    assert_eq!((world.links().as_str(), world.phase()), ("two two", "done"));
    assert_eq!(world.step("two").moves, []);
}

#[test]
fn a_ring_follows_when_the_one_before_was_healthy_for_its_soak_time() {
    let mut world = World::new(OnFailure::Halt);
    world.step("two");
    assert_eq!(world.links(), "two one");
    assert_eq!(world.waiting(), "canary: waits for reports");
    world.tell("canary", health("two", [1, 0, 1, 0, 0]));
    world.after(10).step("two");
    assert_eq!((world.links().as_str(), world.phase()), ("two one", "rolling"));
    world.tell("canary", health("two", [2, 0, 0, 3, 0]));
    let advance = world.after(10).step("two");
    assert_eq!(advance.wake_at_ms, Some(world.now_ms + 100));
    world.after(99).step("two");
    assert_eq!(world.links(), "two one");
    world.after(1).step("two");
    assert_eq!(world.links(), "two two");
    world.tell("all", health("two", [9, 0, 0, 9, 0]));
    world.after(1).step("two");
    let done = world.after(100).step("two");
    assert!(matches!(done.events.last(), Some(Event::RolloutDone { .. })), "{done:?}");
    assert_eq!((world.phase(), world.step("two").events.len()), ("done", 0));
}

#[test]
fn an_empty_ring_passes_and_one_that_rests_waits() {
    let mut world = World::new(OnFailure::Halt);
    world.step("two");
    world.tell("canary", health("two", [0, 0, 0, 2, 0]));
    world.after(5000).step("two");
    assert_eq!((world.links().as_str(), world.phase()), ("two one", "rolling"));
    assert!(world.waiting().contains("none of its VAs runs"));
    world.tell("canary", health("two", [0; 5]));
    world.step("two");
    assert_eq!(world.links(), "two two");
    // Nothing follows the last ring: who rests there does not hold it open.
    world.tell("all", health("two", [0, 0, 0, 7, 0]));
    world.step("two");
    world.after(100).step("two");
    assert_eq!(world.phase(), "done");
}

#[test]
fn a_failed_ring_halts_and_a_new_commit_goes_on() {
    let mut world = World::new(OnFailure::Halt);
    world.step("two");
    world.tell("canary", health("two", [3, 1, 0, 0, 0]));
    let halted = world.after(1).step("two");
    assert!(matches!(halted.events.as_slice(), [Event::RolloutHalted { .. }]), "{halted:?}");
    world.tell("canary", health("two", [4, 0, 0, 0, 0]));
    world.after(10_000).step("two");
    assert_eq!((world.links().as_str(), world.phase()), ("two one", "halted"));
    world.commit += 1;
    world.step("three");
    assert_eq!((world.links().as_str(), world.phase()), ("three one", "rolling"));
}

#[test]
fn who_has_not_arrived_by_the_deadline_counts_as_unhealthy() {
    let mut world = World::new(OnFailure::Halt);
    world.step("two");
    world.tell("canary", health("two", [1, 0, 1, 0, 0]));
    let advance = world.after(1000).step("two");
    assert_eq!(advance.wake_at_ms, Some(world.now_ms + 1));
    assert_eq!(world.phase(), "rolling");
    world.after(1).step("two");
    assert_eq!(world.phase(), "halted");
}

#[test]
fn what_was_promoted_passes_whatever_its_vas_say() {
    let mut world = World::new(OnFailure::Halt);
    let early = RingPolicy { name: name("early"), ..world.policy.rings[0].clone() };
    world.policy.rings.insert(1, early);
    world.step("two");
    world.tell("canary", health("two", [0, 1, 0, 0, 0]));
    world.step("two");
    assert_eq!((world.phase(), world.links().as_str()), ("halted", "two one one"));
    world.order(Order::Promote { all: false, override_window: false }).expect("promoted");
    world.step("two");
    assert_eq!((world.phase(), world.links().as_str()), ("rolling", "two two one"));
    // The next ring is judged as ever, also when it has passed.
    world.tell("early", health("two", [1, 0, 0, 0, 0]));
    world.step("two");
    world.after(100).step("two");
    assert_eq!((world.phase(), world.links().as_str()), ("rolling", "two two two"));
    world.tell("early", health("two", [0, 1, 0, 0, 0]));
    world.step("two");
    assert_eq!((world.phase(), world.links().as_str()), ("halted", "two two two"));
    world.order(Order::Promote { all: false, override_window: false }).expect("promoted");
    world.step("two");
    assert_eq!(world.phase(), "done");
    // Another commit is another matter.
    world.step("three");
    world.tell("canary", health("three", [0, 1, 0, 0, 0]));
    world.step("three");
    assert_eq!(world.phase(), "halted");
}

/// Orders, links and rings that fail need no commit; only going on does.
#[test]
fn without_its_commit_a_rollout_stands_and_is_looked_after() {
    let mut world = World::new(OnFailure::AutoRollback);
    world.step("two");
    world.judged = false;
    world.tell("canary", health("two", [1, 0, 0, 0, 0]));
    world.step("two");
    world.after(5_000).step("two");
    assert_eq!((world.phase(), world.links().as_str()), ("rolling", "two one"));
    assert_eq!(world.waiting(), "canary: the commit that wants it cannot be taken now");
    assert_eq!(world.step("two").events, []);
    // A link that is gone comes back.
    world.rings.get_mut(&name("all")).expect("a ring").linked = None;
    world.step("two");
    assert_eq!(world.links(), "two one");
    let mut failing = World {
        policy: world.policy.clone(),
        state: world.state.clone(),
        rings: world.rings.clone(),
        now_ms: world.now_ms,
        judged: false,
        ..World::new(OnFailure::AutoRollback)
    };
    failing.tell("canary", health("two", [0, 1, 0, 0, 0]));
    failing.step("two");
    assert_eq!((failing.phase(), failing.links().as_str()), ("quarantined", "one one"));
    world.order(Order::Abort).expect("aborted");
    world.step("two");
    assert_eq!((world.phase(), world.links().as_str()), ("quarantined", "one one"));
}

#[test]
fn thresholds() {
    for (success, unhealthy, counts, fails, passes) in [
        (90, None, [9, 1, 0, 0, 0], false, true),
        (90, None, [8, 2, 0, 0, 0], true, false),
        (50, Some(Share::Number(2)), [4, 2, 0, 0, 0], false, true),
        (50, Some(Share::Number(1)), [4, 2, 0, 0, 0], true, true),
        (100, None, [4, 0, 1, 0, 0], false, false),
    ] {
        let mut world = World::new(OnFailure::Halt);
        let gate = Gate { success: Percent(success), unhealthy, ..Gate::default() };
        world.policy.rings[0].gate = Some(gate);
        world.step("two");
        world.tell("canary", health("two", counts));
        world.step("two");
        assert_eq!(world.phase() == "halted", fails, "{success} {unhealthy:?} {counts:?}");
        assert_eq!(world.links() == "two two", passes && !fails, "{success} {counts:?}");
    }
}

#[test]
fn auto_rollback_quarantines_until_another_generation_is_wanted() {
    let mut world = World::new(OnFailure::AutoRollback);
    world.step("two");
    world.tell("canary", health("two", [2, 0, 0, 0, 0]));
    world.step("two");
    world.after(100).step("two");
    assert_eq!(world.links(), "two two");
    // It fails late, in the second ring: both go back.
    world.tell("all", health("two", [5, 1, 0, 0, 0]));
    let back = world.after(1).step("two");
    assert!(matches!(back.events.as_slice(), [Event::RolledBack { .. }]), "{back:?}");
    assert_eq!((world.links().as_str(), world.phase()), ("one one", "quarantined"));
    // Another commit that wants the same does not bring it back.
    world.commit += 1;
    world.after(100_000).step("two");
    assert_eq!(world.links(), "one one");
    assert_eq!(
        world.state.as_ref().expect("one").quarantined.as_ref().expect("it").commit,
        "commit 0"
    );
    // A revert is where everything is already.
    let mut reverted = World {
        state: world.state.clone(),
        rings: world.rings.clone(),
        ..World::new(OnFailure::Halt)
    };
    assert_eq!(reverted.step("one").moves, []);
    assert_eq!(reverted.phase(), "done");
    world.step("three");
    assert_eq!((world.links().as_str(), world.phase()), ("three one", "rolling"));
}

#[test]
fn a_superseding_commit_keeps_the_way_back() {
    let mut world = World::new(OnFailure::AutoRollback);
    world.step("two");
    world.step("three");
    assert_eq!(world.links(), "three one");
    world.tell("canary", health("three", [0, 1, 0, 0, 0]));
    world.step("three");
    assert_eq!(world.links(), "one one", "two was never good");
}

#[test]
fn operators_pause_resume_promote_and_abort() {
    let mut world = World::new(OnFailure::Halt);
    world.order(Order::Pause).expect("paused");
    world.step("two");
    assert_eq!((world.links().as_str(), world.phase()), ("one one", "paused"));
    world.order(Order::Resume { quarantined: false }).expect("resumed");
    world.step("two");
    assert_eq!(world.links(), "two one");
    world.order(Order::Promote { all: false, override_window: false }).expect("promoted");
    world.step("two");
    assert_eq!((world.links().as_str(), world.phase()), ("two two", "rolling"));
    world.order(Order::Abort).expect("aborted");
    world.step("two");
    assert_eq!((world.links().as_str(), world.phase()), ("one one", "quarantined"));
    let refused = world.order(Order::Promote { all: true, override_window: false });
    assert!(matches!(refused, Err(CommandError::Quarantined(_))));
    world.order(Order::Resume { quarantined: true }).expect("lifted");
    world.step("two");
    assert_eq!(world.links(), "two one");
    world.order(Order::Promote { all: true, override_window: false }).expect("promoted");
    world.step("two");
    assert_eq!((world.links().as_str(), world.phase()), ("two two", "done"));
    assert!(matches!(world.order(Order::Abort), Err(CommandError::Done(_))));
}

#[test]
fn a_closed_window_holds_a_ring_until_it_opens_or_is_overridden() {
    let text = "[[rollout.ring]]\nname = \"canary\"\n[[rollout.ring]]\nname = \"all\"\n[[rollout.window]]\nfrom = \"01:00\"\nto = \"02:00\"\nzone = \"UTC\"\nrings = [\"all\"]\n";
    let (configuration, faults) = crate::configuration::Configuration::read(text.as_bytes());
    assert_eq!(faults, []);
    let mut world = World::new(OnFailure::Halt);
    world.policy = configuration.rollout;
    world.now_ms = 10 * 3_600_000;
    world.step("two");
    world.tell("canary", health("two", [1, 0, 0, 0, 0]));
    let advance = world.step("two");
    assert_eq!(world.links(), "two one");
    assert_eq!(advance.wake_at_ms, Some(25 * 3_600_000), "it acts when the window opens");
    let mut overridden = World {
        policy: world.policy.clone(),
        state: world.state.clone(),
        rings: world.rings.clone(),
        ..World::new(OnFailure::Halt)
    };
    overridden.now_ms = world.now_ms;
    overridden.order(Order::Promote { all: false, override_window: true }).expect("overridden");
    overridden.step("two");
    assert_eq!(overridden.links(), "two two");
    world.now_ms = 25 * 3_600_000;
    world.step("two");
    assert_eq!(world.links(), "two two");
}

#[test]
fn batches_never_exceed_the_limit_and_end_with_one_move() {
    let mut world = World::new(OnFailure::AutoRollback);
    world.policy.rings[0].swapping = Some(2);
    world.tell("canary", health("two", [0, 0, 0, 1, 5]));
    let first = world.step("two");
    assert!(matches!(first.moves.as_slice(), [RingMove::Stage { vas, .. }] if vas.len() == 2));
    assert_eq!(world.links(), "one one");
    world.tell("canary", health("two", [1, 0, 1, 1, 3]));
    let second = world.step("two");
    assert!(matches!(second.moves.as_slice(), [RingMove::Stage { vas, .. }] if vas.len() == 1));
    world.tell("canary", health("two", [3, 0, 2, 1, 0]));
    assert_eq!(world.step("two").moves, [], "two are on their way");
    world.tell("canary", health("two", [5, 0, 0, 1, 0]));
    let last = world.step("two");
    assert!(matches!(last.moves.as_slice(), [RingMove::Ring { .. }, RingMove::Unstage { .. }]));
    assert_eq!(world.links(), "two one");
    // A batch that fails goes back at once.
    let mut world = World::new(OnFailure::AutoRollback);
    world.policy.rings[0].swapping = Some(2);
    world.tell("canary", health("two", [0, 0, 0, 1, 5]));
    world.step("two");
    world.tell("canary", health("two", [1, 1, 0, 1, 3]));
    let back = world.step("two");
    assert_eq!(back.moves, [RingMove::Unstage { ring: name("canary") }]);
    assert_eq!((world.links().as_str(), world.phase()), ("one one", "quarantined"));
}

#[test]
fn links_moved_by_hand_are_put_back_or_told_once() {
    let mut world = World::new(OnFailure::Halt);
    world.rings.get_mut(&name("all")).expect("a ring").linked = Some(id("three"));
    let mut told = World {
        policy: world.policy.clone(),
        state: world.state.clone(),
        rings: world.rings.clone(),
        ..World::new(OnFailure::Halt)
    };
    let restored = world.step("one");
    assert!(matches!(restored.events.as_slice(), [Event::LinkDrifted { restored: true, .. }]));
    assert_eq!(world.links(), "one one");
    told.policy.drift.links = DriftMode::Warn;
    assert!(matches!(
        told.step("one").events.as_slice(),
        [Event::LinkDrifted { restored: false, .. }]
    ));
    assert_eq!(told.step("one").events, [], "told once");
    assert_eq!(told.links(), "one three");
    // Without a link no VA of the ring starts.
    told.rings.get_mut(&name("all")).expect("a ring").linked = None;
    told.step("one");
    assert_eq!(told.links(), "one one");
}

#[test]
fn a_lost_state_is_made_anew_from_the_links() {
    let mut world = World::new(OnFailure::AutoRollback);
    world.step("two");
    world.state = None;
    world.after(50).step("two");
    assert_eq!((world.links().as_str(), world.phase()), ("two one", "rolling"));
    world.tell("canary", health("two", [0, 1, 0, 0, 0]));
    world.step("two");
    assert_eq!(world.links(), "one one", "the later ring tells what was good");
    // And one in which nothing was under way.
    let mut world = World::new(OnFailure::Halt);
    world.state = None;
    let advance = world.step("one");
    assert_eq!((advance.moves.len(), advance.events.len(), world.phase()), (0, 0, "done"));
}

#[test]
fn a_new_ring_starts_from_what_its_neighbours_run() {
    let mut world = World::new(OnFailure::Halt);
    let early = RingPolicy { name: name("early"), ..world.policy.rings[0].clone() };
    world.policy.rings.insert(1, early);
    world.step("two");
    assert_eq!(world.links(), "two one one");
}

#[test]
fn the_state_reads_back() {
    let mut world = World::new(OnFailure::Halt);
    world.step("two");
    world.tell("canary", health("two", [0, 1, 0, 0, 0]));
    world.step("two");
    let text = serde_json::to_string(&world.state).expect("JSON");
    let back: Option<RolloutState> = serde_json::from_str(&text).expect("reads back");
    assert_eq!(back, world.state);
}
