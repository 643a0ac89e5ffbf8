//! VAs that a commit gives to another template or ring: they swap as those do whose ring
//! moves, so they go as carefully.
//!
//! A VA goes to a ring once that ring is on the target of its template, nobody paused,
//! halted or took back the template's rollout, nor paused the template that it leaves; while the ring's windows are open and no
//! freeze is on; so many at a time as the ring lets swap at once; and to a later ring only
//! when those of the earlier ones that run are healthy and have soaked. What waits is
//! remembered nowhere: links that are not where a commit wants them say it.

use std::collections::BTreeMap;
use std::fmt;

use super::health::RingHealth;
use super::policy::{Gate, RingPolicy, RolloutPolicy};
use super::schedule::Opening;
use super::state::RolloutState;
use crate::names::{CompositionName, MacAddr, RingName};

/// A ring to which VAs go, or that comes before such a one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Destination {
    /// VAs that are to go there.
    pub waiting: Vec<MacAddr>,
    /// How those do that are there, with the template's target; `None` where nobody has
    /// looked yet.
    pub health: Option<RingHealth>,
    /// When the last VA went there, in milliseconds since 1970.
    pub last_moved_at_ms: Option<u64>,
}

/// What is decided from. One composition's.
#[derive(Debug, Clone, Copy)]
pub struct TransferInput<'a> {
    pub composition: &'a CompositionName,
    pub policy: &'a RolloutPolicy,
    pub state: Option<&'a RolloutState>,
    pub rings: &'a BTreeMap<RingName, Destination>,
    /// Milliseconds since 1970.
    pub now_ms: u64,
}

/// Why VAs do not go to their ring yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    /// The ring is not on the template's target yet, or stopped on its way.
    Rollout {
        phase: &'static str,
    },
    /// An operator paused the template that they go to, or the one that they leave.
    Paused {
        composition: CompositionName,
        reason: String,
    },
    Window,
    Freeze {
        reason: String,
    },
    /// As many as may swap at once do.
    Batch,
    /// Those of a ring have not told yet how they do.
    Evidence {
        ring: RingName,
    },
    Health {
        ring: RingName,
    },
    Soak {
        ring: RingName,
    },
}

impl Hold {
    /// The pause of a template, where it is paused.
    pub fn of_pause(composition: &CompositionName, state: &RolloutState) -> Option<Self> {
        let reason = state.paused.as_ref()?.reason.clone();
        Some(Hold::Paused { composition: composition.clone(), reason })
    }

    /// Whether nobody can go to the template, however its VAs do.
    pub fn is_of_template(&self) -> bool {
        match self {
            Hold::Rollout { .. } | Hold::Paused { .. } | Hold::Window | Hold::Freeze { .. } => true,
            Hold::Batch | Hold::Evidence { .. } | Hold::Health { .. } | Hold::Soak { .. } => false,
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hold::Rollout { phase } => write!(f, "its own rollout is {phase}"),
            Hold::Paused { composition, reason } => match reason.as_str() {
                "" => write!(f, "{composition} is paused"),
                reason => write!(f, "{composition} is paused: {reason}"),
            },
            Hold::Window => write!(f, "its window is closed"),
            Hold::Freeze { reason } if reason.is_empty() => write!(f, "frozen"),
            Hold::Freeze { reason } => write!(f, "frozen: {reason}"),
            Hold::Batch => write!(f, "so many swap at once as may"),
            Hold::Evidence { ring } => write!(f, "{ring} has not told how it does"),
            Hold::Health { ring } => write!(f, "waits for healthy VAs in {ring}"),
            Hold::Soak { ring } => write!(f, "{ring}: healthy, soaks"),
        }
    }
}

/// What may be done now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transfers {
    /// VAs that go now.
    pub go: Vec<MacAddr>,
    /// The first ring whose VAs wait, and for what.
    pub hold: Option<(RingName, Hold)>,
    /// When to ask again, if nothing else happens.
    pub wake_at_ms: Option<u64>,
}

/// Decides who goes.
pub fn transfers(input: &TransferInput<'_>) -> Transfers {
    let mut transfers = Transfers::default();
    let waits = |ring: &RingPolicy| input.destination(ring).is_some_and(|d| !d.waiting.is_empty());
    let rings = &input.policy.rings;
    for (index, ring) in rings.iter().enumerate() {
        let Some(next) = rings[index..].iter().find(|ring| waits(ring)) else { break };
        let held = if waits(ring) {
            input.enter(ring, &mut transfers)
        } else {
            ring.gate.and_then(|gate| input.proof(ring, &gate, &mut transfers))
        };
        if let Some(hold) = held {
            transfers.hold = Some((next.name.clone(), hold));
            break;
        }
        // Who has just gone must show how he does before the later ones follow.
        let follow = rings[index + 1..].iter().find(|ring| waits(ring));
        if let (true, Some(_), Some(follow)) = (waits(ring), ring.gate, follow) {
            let hold = Hold::Evidence { ring: ring.name.clone() };
            transfers.hold = Some((follow.name.clone(), hold));
            break;
        }
    }
    transfers
}

impl TransferInput<'_> {
    fn destination(&self, ring: &RingPolicy) -> Option<&Destination> {
        self.rings.get(&ring.name)
    }

    /// Lets the VAs of one ring go as far as may be. Why the others do not.
    fn enter(&self, ring: &RingPolicy, transfers: &mut Transfers) -> Option<Hold> {
        let destination = self.destination(ring)?;
        let paused = self.state.and_then(|state| Hold::of_pause(self.composition, state));
        if paused.is_some() {
            return paused;
        }
        let state = self.state.filter(|state| {
            let at_target = state.rings.get(&ring.name).map(|ring| ring.at) == Some(state.target);
            at_target && matches!(state.phase(), "rolling" | "done")
        });
        let Some(state) = state else {
            let phase = self.state.map_or("not begun", RolloutState::phase);
            return Some(Hold::Rollout { phase });
        };
        let opening = match state.window_override {
            Some(_) => Opening::Open,
            None => self.policy.schedule.opening(self.composition, &ring.name, self.now_ms),
        };
        if let Opening::Closed { until_ms, freeze } = opening {
            transfers.wake_at_ms = until_ms;
            return Some(freeze.map_or(Hold::Window, |reason| Hold::Freeze { reason }));
        }
        let room = match ring.swapping {
            None => usize::MAX,
            Some(limit) => {
                let Some(health) = self.health(destination) else {
                    return Some(Hold::Evidence { ring: ring.name.clone() });
                };
                let under_way = health.swapping + health.unknown + health.waiting;
                limit.saturating_sub(under_way) as usize
            }
        };
        transfers.go.extend(destination.waiting.iter().take(room));
        (destination.waiting.len() > room).then_some(Hold::Batch)
    }

    fn health<'d>(&self, destination: &'d Destination) -> Option<&'d RingHealth> {
        let target = self.state.map(|state| state.target);
        destination.health.as_ref().filter(|health| Some(health.generation) == target)
    }

    /// What a ring still owes to which nobody goes any more. One of which no VA runs has
    /// nothing to show.
    fn proof(&self, ring: &RingPolicy, gate: &Gate, transfers: &mut Transfers) -> Option<Hold> {
        let name = ring.name.clone();
        let destination = self.destination(ring)?;
        let Some(health) = self.health(destination) else {
            return Some(Hold::Evidence { ring: name });
        };
        if health.active() + health.waiting == 0 {
            return None;
        }
        if !health.meets(gate) {
            return Some(Hold::Health { ring: name });
        }
        let until_ms = destination.last_moved_at_ms?.saturating_add(gate.soak_ms);
        if self.now_ms < until_ms {
            transfers.wake_at_ms = Some(until_ms);
            return Some(Hold::Soak { ring: name });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::health::Clock;
    use crate::rollout::state::RingState;
    use crate::rollout::tests::{id, name};
    use crate::rollout::{Halt, Pause, RingStep, schedule::Freeze};

    struct World {
        policy: RolloutPolicy,
        state: RolloutState,
        rings: BTreeMap<RingName, Destination>,
        now_ms: u64,
    }

    fn mac(n: u8) -> MacAddr {
        MacAddr::locally_administered([2, 0, 0, 0, 0, n])
    }

    fn healthy(count: u32) -> RingHealth {
        let clock = Clock { deadline_ms: 600_000, now_ms: 0 };
        let mut health = RingHealth::of(id("new"), [], 0, clock);
        health.healthy = count;
        health
    }

    impl World {
        /// Two gated rings on the target; VAs 1 and 2 go to the first, 3 to 6 to the last.
        fn new() -> Self {
            let mut policy = RolloutPolicy::plain([name("canary"), name("everyone")]);
            for ring in &mut policy.rings {
                ring.gate = Some(Gate { soak_ms: 1_000, ..Gate::default() });
            }
            let at = id("new");
            let ring = RingState {
                at,
                good: Some(at),
                step: RingStep::Passed,
                since_ms: 0,
                healthy_since_ms: None,
                short_since_ms: None,
                promoted: false,
                stuck: false,
                moving: false,
                drifted: None,
            };
            let state = RolloutState {
                target: at,
                commit: "c".to_owned(),
                checks: None,
                begun_at_ms: 0,
                done_at_ms: Some(0),
                rings: [(name("canary"), ring.clone()), (name("everyone"), ring)].into(),
                paused: None,
                halted: None,
                quarantined: None,
                window_override: None,
                promoted: None,
                waiting: None,
            };
            let waiting = |numbers: std::ops::RangeInclusive<u8>| Destination {
                waiting: numbers.map(mac).collect(),
                health: Some(healthy(9)),
                last_moved_at_ms: None,
            };
            let rings = [(name("canary"), waiting(1..=2)), (name("everyone"), waiting(3..=6))];
            World { policy, state, rings: rings.into(), now_ms: 10_000 }
        }

        fn ask(&self) -> Transfers {
            transfers(&TransferInput {
                composition: &name("web"),
                policy: &self.policy,
                state: Some(&self.state),
                rings: &self.rings,
                now_ms: self.now_ms,
            })
        }

        /// Those that may go have gone.
        fn take(&mut self) -> usize {
            let go = self.ask().go;
            for destination in self.rings.values_mut() {
                let before = destination.waiting.len();
                destination.waiting.retain(|mac| !go.contains(mac));
                if destination.waiting.len() < before {
                    destination.last_moved_at_ms = Some(self.now_ms);
                    destination.health = None;
                }
            }
            go.len()
        }

        fn tell(&mut self, ring: &str, health: RingHealth) {
            self.rings.get_mut(&name(ring)).expect("a ring").health = Some(health);
        }

        fn held(&self) -> String {
            self.ask().hold.map(|(ring, hold)| format!("{ring}: {hold}")).unwrap_or_default()
        }
    }

    #[test]
    fn later_rings_follow_healthy_earlier_ones() {
        let mut world = World::new();
        assert_eq!(world.held(), "everyone: canary has not told how it does");
        assert_eq!(world.take(), 2);
        assert_eq!(world.held(), "everyone: canary has not told how it does");
        let mut ill = healthy(8);
        ill.unhealthy = 1;
        world.tell("canary", ill);
        assert_eq!(
            (world.held().as_str(), world.take()),
            ("everyone: waits for healthy VAs in canary", 0)
        );
        world.tell("canary", healthy(11));
        assert_eq!((world.held().as_str(), world.take()), ("everyone: canary: healthy, soaks", 0));
        assert_eq!(world.ask().wake_at_ms, Some(11_000));
        world.now_ms = 11_000;
        assert_eq!((world.held().as_str(), world.take()), ("", 4));
        assert_eq!(world.ask(), Transfers::default());
    }

    #[test]
    fn nobody_runs_in_the_first_ring_and_the_others_go() {
        let mut world = World::new();
        world.take();
        let mut idle = healthy(0);
        idle.idle = 2;
        world.tell("canary", idle);
        assert_eq!(world.take(), 4);
    }

    #[test]
    fn without_gates_all_go_at_once() {
        let mut world = World::new();
        world.policy = RolloutPolicy::plain([name("canary"), name("everyone")]);
        for destination in world.rings.values_mut() {
            destination.health = None;
        }
        assert_eq!((world.held().as_str(), world.take()), ("", 6));
    }

    #[test]
    fn no_more_swap_at_once_than_may() {
        let mut world = World::new();
        world.policy.rings[1].swapping = Some(3);
        world.rings.get_mut(&name("canary")).expect("a ring").waiting.clear();
        let mut busy = healthy(7);
        (busy.swapping, busy.unknown) = (1, 1);
        world.tell("everyone", busy);
        assert_eq!(
            (world.held().as_str(), world.take()),
            ("everyone: so many swap at once as may", 1)
        );
        assert_eq!(world.held(), "everyone: everyone has not told how it does");
        world.tell("everyone", healthy(10));
        assert_eq!((world.held().as_str(), world.take()), ("", 3));
    }

    #[test]
    fn freezes_and_what_stops_a_rollout_hold_them() {
        let mut world = World::new();
        let (reason, scope) = ("the year's end".to_owned(), Default::default());
        world.policy.schedule.freezes = vec![Freeze { from_ms: 0, to_ms: 20_000, reason, scope }];
        assert_eq!((world.held().as_str(), world.take()), ("canary: frozen: the year's end", 0));
        assert_eq!(world.ask().wake_at_ms, Some(20_000));
        world.state.window_override = Some("urgent".to_owned());
        assert_eq!(world.ask().go.len(), 2);
        world.state.halted = Some(Halt {
            ring: name("canary"),
            commit: String::new(),
            reason: String::new(),
            unhealthy: vec![],
            at_ms: 0,
        });
        assert_eq!((world.held().as_str(), world.take()), ("canary: its own rollout is halted", 0));
        world.state.halted = None;
        world.state.paused = Some(Pause { reason: "an incident".to_owned(), at_ms: 0 });
        assert_eq!(
            (world.held().as_str(), world.take()),
            ("canary: web is paused: an incident", 0)
        );
        world.state.paused = None;
        world.state.rings.get_mut(&name("canary")).expect("a ring").at = id("old");
        assert_eq!((world.held().as_str(), world.take()), ("canary: its own rollout is done", 0));
    }
}
