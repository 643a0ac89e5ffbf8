//! What holds whatever happens.

use proptest::collection::vec;
use proptest::prelude::*;

use super::health::VaHealth;
use super::policy::OnFailure;
use super::tests::{World, health, id, name, said};
use super::*;

/// Something that happens to a fleet.
#[derive(Debug, Clone)]
enum Happening {
    Commit(usize),
    Health {
        ring: usize,
        counts: [u32; 5],
    },
    Time(u64),
    /// The reconciler dies after the state is durable and `moves` moves were taken.
    Kill {
        moves: usize,
    },
    LinkByHand {
        ring: usize,
        generation: usize,
    },
    Order(Order),
    /// Another process goes on, which knows nothing of VAs yet.
    Restart,
    /// The clock is set back.
    Back(u64),
    /// The commit can be judged, or cannot any more.
    Judged(bool),
}

const GENERATIONS: [&str; 3] = ["one", "two", "three"];
const RINGS: [&str; 2] = ["canary", "all"];

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        2 => (0..3_usize).prop_map(Happening::Commit),
        4 => (0..2_usize, [0..4_u32, 0..2, 0..2, 0..2, 0..1])
            .prop_map(|(ring, counts)| Happening::Health { ring, counts }),
        4 => (0..200_u64).prop_map(Happening::Time),
        1 => (0..3_usize).prop_map(|moves| Happening::Kill { moves }),
        1 => (0..2_usize, 0..3_usize)
            .prop_map(|(ring, generation)| Happening::LinkByHand { ring, generation }),
        1 => Just(Happening::Restart),
        1 => (0..500_u64).prop_map(Happening::Back),
        1 => any::<bool>().prop_map(Happening::Judged),
        1 => prop_oneof![
            Just(Order::Pause),
            Just(Order::Resume { quarantined: false }),
            Just(Order::Abort),
            Just(Order::Promote { all: false, override_window: false }),
        ]
        .prop_map(Happening::Order),
    ]
}

/// One step, cut short where `moves` says so; the links and the state stay.
fn step(world: &mut World, target: &str, moves: Option<usize>) -> Advance {
    world.count();
    let input = Input {
        composition: &world.composition,
        policy: &world.policy,
        target: id(target),
        commit: "commit",
        checks: None,
        forward: world.judged,
        rings: &world.rings,
        now_ms: world.now_ms,
    };
    let done = advance(&input, world.state.as_ref());
    assert_eq!(done, advance(&input, world.state.as_ref()), "the same next step");
    let text = serde_json::to_string(&done.state).expect("JSON");
    world.state = Some(serde_json::from_str(&text).expect("reads back"));
    match moves {
        Some(moves) => world.take(&done.moves[..moves.min(done.moves.len())]),
        None => {
            world.take(&done.moves);
            world.state.as_mut().expect("set").settle();
        }
    }
    done
}

fn check(world: &World, before: Option<&RolloutState>, done: &Advance) {
    let state = &done.state;
    let order: Vec<_> = RINGS.iter().map(|ring| &state.rings[&name(ring)]).collect();
    for moved in &done.moves {
        let RingMove::Ring { ring, to, .. } = moved else { continue };
        assert_eq!(state.rings[ring].at, *to, "the state knows of every move");
        let new = before.is_some_and(|before| before.rings.get(ring).is_some_and(|r| r.at != *to));
        if !new || *to != state.target || state.quarantined.is_some() {
            continue;
        }
        assert!(state.halted.is_none() && state.paused.is_none(), "halted, it moved {ring}");
        assert!(world.judged, "without a commit it moved {ring}");
        let index = RINGS.iter().position(|known| name::<crate::RingName>(known) == *ring);
        for earlier in &order[..index.expect("a ring of the policy")] {
            assert_eq!(earlier.step, RingStep::Passed, "{ring} moved too early");
        }
    }
    if state.quarantined.is_some() {
        let quarantined = |ring: &&RingState| ring.at == state.target && ring.good != Some(ring.at);
        assert!(!order.iter().any(quarantined), "a quarantined target is in a ring");
    }
    assert!(world.state.is_some());
}

proptest! {
    #[test]
    fn order_halt_and_quarantine_hold(
        auto in any::<bool>(),
        happenings in vec(happening(), 1..60),
    ) {
        let mut world = World::new(if auto { OnFailure::AutoRollback } else { OnFailure::Halt });
        let mut target = "one";
        for happening in happenings {
            let mut kill = None;
            match happening {
                // A commit that cannot be judged wants nothing.
                Happening::Commit(n) if world.judged => target = GENERATIONS[n],
                Happening::Commit(_) => {}
                Happening::Judged(judged) => world.judged = judged,
                Happening::Health { ring, counts } => world.tell(RINGS[ring], health(target, counts)),
                Happening::Time(ms) => world.now_ms += ms,
                Happening::Kill { moves } => kill = Some(moves),
                Happening::Restart => world.restart(),
                Happening::Back(ms) => world.now_ms -= ms,
                Happening::LinkByHand { ring, generation } => {
                    let view = world.rings.get_mut(&name(RINGS[ring])).expect("a ring");
                    view.linked = Some(id(GENERATIONS[generation]));
                }
                Happening::Order(order) => {
                    let command = Command { order, reason: String::new() };
                    let state = world.state.as_ref().expect("a state");
                    if state.target == id(target)
                        && let Ok((next, _)) =
                            apply_command(&world.composition, state, &command, world.now_ms)
                    {
                        world.state = Some(next);
                    }
                }
            }
            let before = world.state.clone();
            let done = step(&mut world, target, kill);
            check(&world, before.as_ref(), &done);
        }
        world.judged = true;
        // Undisturbed from now on, with healthy VAs, it ends on the target unless
        // that was judged bad, and then stands still.
        if world.state.as_ref().is_some_and(|state| state.paused.is_some() || state.halted.is_some()) {
            let command = Command { order: Order::Resume { quarantined: false }, reason: String::new() };
            let state = world.state.as_ref().expect("a state");
            if let Ok((next, _)) = apply_command(&world.composition, state, &command, world.now_ms) {
                world.state = Some(next);
            }
        }
        for _ in 0..8 {
            for ring in RINGS {
                world.tell(ring, health(target, [3, 0, 0, 1, 0]));
            }
            step(&mut world, target, None);
            world.now_ms += 101;
        }
        let state = world.state.clone().expect("a state");
        if state.quarantined.is_none() {
            prop_assert_eq!(world.links(), format!("{target} {target}"));
            prop_assert_eq!(state.phase(), "done");
        }
        for ring in RINGS {
            prop_assert_eq!(world.rings[&name(ring)].linked, Some(state.rings[&name(ring)].at));
        }
        let still = step(&mut world, target, None);
        prop_assert_eq!((still.moves.len(), still.events.len()), (0, 0));
    }

    /// Where no VA says that it is ill, a ring fails if and only if one of them owed an
    /// answer for longer than the deadline: since its ring was moved, since it was
    /// healthy or rested, since this process has known it.
    #[test]
    fn a_ring_fails_at_the_deadline_of_a_va_and_never_before(
        looks in vec((vec(0..4_usize, 3), 0..700_u64, prop::bool::weighted(0.1)), 1..40),
    ) {
        let kinds = [VaHealth::Healthy, VaHealth::Idle, VaHealth::Swapping, VaHealth::Unknown(None)];
        let mut world = World::new(OnFailure::Halt);
        let gate = world.policy.rings[0].gate.as_mut().expect("a gate");
        gate.soak_ms = 1_000_000;
        let deadline_ms = gate.deadline_ms;
        world.step("two");
        let mut owes_since: [Option<u64>; 3] = [None; 3];
        for (vas, ms, restart) in looks {
            world.now_ms += ms;
            if restart {
                world.restart();
                owes_since = [None; 3];
            }
            for (owes, va) in owes_since.iter_mut().zip(&vas) {
                *owes = (*va >= 2).then(|| owes.unwrap_or(world.now_ms));
            }
            world.tell("canary", said("two", vas.iter().map(|va| (true, kinds[*va].clone()))));
            step(&mut world, "two", None);
            let late = owes_since.iter().flatten().any(|since| world.now_ms - since > deadline_ms);
            prop_assert_eq!(world.phase(), if late { "halted" } else { "rolling" });
            if late {
                break;
            }
        }
    }

    #[test]
    fn a_lost_state_ends_where_a_kept_one_does(
        moved in 0..3_usize,
        healthy in any::<bool>(),
    ) {
        let mut world = World::new(OnFailure::AutoRollback);
        for _ in 0..moved {
            world.step("two");
            world.tell("canary", health("two", [2, 0, 0, 0, 0]));
            world.now_ms += 101;
        }
        world.state = None;
        for _ in 0..8 {
            for ring in RINGS {
                let counts = if healthy { [2, 0, 0, 0, 0] } else { [0, 2, 0, 0, 0] };
                world.tell(ring, health("two", counts));
            }
            world.step("two");
            world.now_ms += 101;
        }
        let everywhere = if healthy { "two two" } else { "one one" };
        prop_assert_eq!(world.links(), everywhere);
    }
}
