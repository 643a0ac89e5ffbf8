//! What lets a rollout go on that stands, and what is told of one that neither goes on nor fails.

use super::health::VaHealth;
use super::policy::{OnFailure, Share};
use super::tests::{World, health, said};
use super::*;
use crate::event::Event;

#[test]
fn a_commit_that_mends_the_health_checks_lets_a_halted_rollout_go_on() {
    let mut world = World::new(OnFailure::Halt);
    world.checks = "with a typo";
    world.commit = 1;
    world.step("two");
    world.tell("canary", health("two", [0, 1, 0, 0, 0]));
    world.step("two");
    let halt = world.state.as_ref().and_then(|state| state.halted.clone()).expect("halted");
    assert_eq!(halt.commit, "commit 1");
    // A commit that has nothing to do with it, and a time in which none can be judged.
    world.commit = 2;
    assert!(world.after(10_000).step("two").events.is_empty());
    world.judged = false;
    world.step("two");
    world.judged = true;
    world.step("two");
    assert_eq!(world.state.as_ref().and_then(|state| state.halted.clone()), Some(halt));
    (world.commit, world.checks) = (3, "mended");
    let mended = world.step("two");
    assert!(
        matches!(&mended.events[..], [Event::RolloutStarted { commit, .. }] if commit == "commit 3"),
        "{mended:?}"
    );
    assert!(mended.moves.is_empty(), "the ring is there already: {mended:?}");
    assert_eq!((world.links().as_str(), world.phase()), ("two one", "rolling"));
    world.tell("canary", health("two", [1, 0, 0, 0, 0]));
    world.step("two");
    world.after(100).step("two");
    assert_eq!(world.links(), "two two");
    // It is judged by the new ones as ever.
    world.tell("all", health("two", [0, 1, 0, 0, 0]));
    world.step("two");
    assert_eq!(world.phase(), "halted");
}

#[test]
fn what_was_taken_back_waits_for_more_than_other_health_checks() {
    let mut world = World::new(OnFailure::AutoRollback);
    world.step("two");
    world.tell("canary", health("two", [0, 1, 0, 0, 0]));
    world.step("two");
    world.checks = "mended";
    world.step("two");
    assert_eq!((world.links().as_str(), world.phase()), ("one one", "quarantined"));
    world.order(Order::Resume { quarantined: true }).expect("resumed");
    world.step("two");
    assert_eq!((world.links().as_str(), world.phase()), ("two one", "rolling"));
}

#[test]
fn a_ring_that_neither_passes_nor_fails_is_told_once() {
    let mut world = World::new(OnFailure::Halt);
    let gate = world.policy.rings[0].gate.as_mut().expect("gated");
    gate.unhealthy = Some(Share::Number(1));
    world.step("two");
    world.tell("canary", health("two", [2, 1, 0, 0, 0]));
    let early = world.after(1).step("two");
    assert!(early.events.is_empty(), "it has its deadline: {early:?}");
    assert_eq!(early.wake_at_ms, Some(world.now_ms + 999));
    let told = world.after(999).step("two");
    let [Event::RingStuck { of: 3, unhealthy, .. }] = &told.events[..] else {
        panic!("{told:?}");
    };
    assert!(world.waiting().ends_with(&format!("1 unhealthy: {}", unhealthy[0].mac)));
    assert!(world.after(10_000).step("two").events.is_empty());
    assert_eq!(world.phase(), "rolling");
    // Another commit is another matter.
    world.step("three");
    world.tell("canary", health("three", [2, 1, 0, 0, 0]));
    world.step("three");
    assert_eq!(world.after(1000).step("three").events.len(), 1);
}

#[test]
fn who_cannot_be_understood_is_not_said_to_be_silent() {
    for (why, words) in [(None, "no word by the deadline"), (Some("no JSON"), "deadline: no JSON")]
    {
        let mut world = World::new(OnFailure::Halt);
        world.step("two");
        let unknown = VaHealth::Unknown(why.map(str::to_owned));
        world.tell("canary", said("two", [(true, unknown)]));
        world.step("two");
        world.after(1001).step("two");
        let halt = world.state.as_ref().and_then(|state| state.halted.as_ref()).expect("halted");
        assert!(halt.reason.ends_with(words), "{}", halt.reason);
    }
}
