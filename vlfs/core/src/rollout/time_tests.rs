//! Deadlines, soak times and clocks.

use super::health::VaHealth;
use super::policy::{Gate, OnFailure};
use super::tests::{World, health, said};

/// Everything that makes VAs owe an answer long after their ring was moved and healthy.
#[test]
fn a_healthy_ring_has_its_time_again() {
    for case in ["checks anew", "restart", "join", "resume", "power cut", "once"] {
        let mut world = World::new(OnFailure::AutoRollback);
        world.policy.rings[0].gate =
            Some(Gate { soak_ms: 100_000, deadline_ms: 1000, ..Gate::default() });
        world.once = case == "once";
        world.step("two");
        world.tell("canary", health("two", [1, 0, 0, 1, 0]));
        world.after(10).step("two");
        assert!(world.waiting().contains("soaks"), "{case}");
        world.after(5_000).step("two");
        let (owes, had_ms) = match case {
            "checks anew" => (vec![(true, VaHealth::Swapping), (true, VaHealth::Idle)], 0),
            "join" => (vec![(true, VaHealth::Healthy), (true, VaHealth::Unknown(None))], 0),
            "resume" => (vec![(true, VaHealth::Healthy), (true, VaHealth::Swapping)], 0),
            _ => (vec![(true, VaHealth::Unknown(None)), (true, VaHealth::Unknown(None))], 1),
        };
        if had_ms > 0 {
            world.restart();
            world.after(3_600_000);
        }
        world.tell("canary", said("two", owes.clone()));
        world.step("two");
        assert_eq!((world.phase(), world.links().as_str()), ("rolling", "two one"), "{case}");
        if world.once {
            world.restart();
        }
        world.after(1000).tell("canary", said("two", owes.clone()));
        world.step("two");
        assert_eq!(world.phase(), "rolling", "{case}");
        if world.once {
            world.restart();
        }
        world.after(1).tell("canary", said("two", owes));
        let failed = world.step("two");
        assert_eq!(world.phase(), "quarantined", "{case}: {failed:?}");
    }
}

/// The time of each VA is its own: a fleet in which one after the other goes on is fine.
#[test]
fn vas_that_take_turns_are_not_late() {
    let mut world = World::new(OnFailure::Halt);
    world.step("two");
    for turn in 0..20 {
        let how = |va| if va == turn % 4 { VaHealth::Swapping } else { VaHealth::Healthy };
        world.tell("canary", said("two", (0..4).map(|va| (true, how(va)))));
        world.after(600).step("two");
        assert_eq!(world.phase(), "rolling");
    }
    // Whose checks wait for those of others is not late either.
    for _ in 0..20 {
        world.tell("canary", said("two", [(true, VaHealth::Queued)]));
        world.after(600).step("two");
        assert_eq!(world.phase(), "rolling");
    }
}

#[test]
fn a_clock_that_was_set_back_makes_nothing_wait_for_it() {
    let mut world = World::new(OnFailure::Halt);
    let month_ms = 30 * 86_400_000;
    world.now_ms += month_ms;
    world.step("two");
    world.tell("canary", health("two", [1, 0, 0, 0, 0]));
    world.step("two");
    world.now_ms -= month_ms;
    world.step("two");
    world.after(100).step("two");
    assert_eq!(world.links(), "two two");
    world.tell("all", health("two", [0, 0, 1, 0, 0]));
    world.now_ms -= 5_000;
    world.tell("all", health("two", [0, 0, 1, 0, 0]));
    world.after(1001).step("two");
    assert_eq!(world.phase(), "halted", "nor does a deadline");
}
