//! One step of one composition's rollout.

use std::collections::BTreeMap;

use serde::Serialize;

use super::command::rolled_back;
use super::health::{RingHealth, UnhealthyVa};
use super::policy::{DriftMode, Gate, OnFailure, RingPolicy, RolloutPolicy};
use super::schedule::Opening;
use super::state::{Halt, Quarantine, RingState, RingStep, RolloutState, Waiting};
use crate::digest::{Digest, GenerationId};
use crate::event::Event;
use crate::names::{CompositionName, MacAddr, RingName};

/// A ring as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RingView {
    /// The generation that its link names.
    pub linked: Option<GenerationId>,
    pub linked_at_ms: Option<u64>,
    /// Whether there is a link for VAs that are moved in batches.
    pub staged: bool,
    /// How its VAs do with the target; `None` where nobody has looked yet.
    pub health: Option<RingHealth>,
}

/// What a step is decided from.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    pub composition: &'a CompositionName,
    pub policy: &'a RolloutPolicy,
    /// What the commit wants the composition to be.
    pub target: GenerationId,
    pub commit: &'a str,
    /// By which health checks the commit has it judged; `None` where that is not known.
    pub checks: Option<Digest>,
    /// Whether rings may move to the target: not while its commit cannot be judged.
    pub forward: bool,
    pub rings: &'a BTreeMap<RingName, RingView>,
    /// Milliseconds since 1970.
    pub now_ms: u64,
}

/// A change of links.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "move", rename_all = "kebab-case")]
pub enum RingMove {
    /// The ring's link: one rename, all its VAs.
    Ring { ring: RingName, from: Option<GenerationId>, to: GenerationId },
    /// Some VAs, to the link for batches.
    Stage { ring: RingName, to: GenerationId, vas: Vec<MacAddr> },
    /// All VAs of the link for batches, back to the ring's own; that link goes.
    Unstage { ring: RingName },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advance {
    pub state: RolloutState,
    /// To be taken in this order, after the state is durable.
    pub moves: Vec<RingMove>,
    pub events: Vec<Event>,
    /// When to ask again, at the latest, if nothing else happens.
    pub wake_at_ms: Option<u64>,
}

/// Takes one step.
pub fn advance(input: &Input<'_>, state: Option<&RolloutState>) -> Advance {
    let mut step = Step { input, moves: Vec::new(), events: Vec::new(), wake_at_ms: None };
    let mut state = match state {
        Some(state) if state.target == input.target && !is_judged_anew(input, state) => {
            let checks = input.checks.or(state.checks);
            RolloutState { commit: input.commit.to_owned(), checks, ..state.clone() }
        }
        Some(state) => step.supersede(state),
        None => step.adopt(),
    };
    state.know_the_time(input.now_ms);
    step.admit_rings(&mut state);
    step.put_back(&mut state);
    step.judge(&mut state);
    state.waiting = None;
    if state.is_active() && state.halted.is_none() && state.paused.is_none() {
        state.waiting = match input.forward {
            true => step.proceed(&mut state),
            false => step.stand(&state),
        };
    }
    let Step { moves, events, wake_at_ms, .. } = step;
    Advance { state, moves, events, wake_at_ms }
}

/// Whether what halted by its health checks is now to be judged by others: then it is as good
/// as another target. What was taken back is not tried again by that.
fn is_judged_anew(input: &Input<'_>, state: &RolloutState) -> bool {
    let differ = matches!((state.checks, input.checks), (Some(then), Some(now)) if then != now);
    differ && state.halted.is_some() && state.quarantined.is_none()
}

struct Step<'i, 'a> {
    input: &'i Input<'a>,
    moves: Vec<RingMove>,
    events: Vec<Event>,
    wake_at_ms: Option<u64>,
}

impl Step<'_, '_> {
    fn view(&self, ring: &RingName) -> RingView {
        self.input.rings.get(ring).cloned().unwrap_or_default()
    }

    fn wake(&mut self, at_ms: u64) {
        self.wake_at_ms = Some(self.wake_at_ms.map_or(at_ms, |wake| wake.min(at_ms)));
    }

    /// The state of a composition that has none: it is new, or the state was lost.
    fn adopt(&mut self) -> RolloutState {
        let mut state = RolloutState {
            target: self.input.target,
            commit: self.input.commit.to_owned(),
            checks: self.input.checks,
            begun_at_ms: self.input.now_ms,
            done_at_ms: None,
            rings: BTreeMap::new(),
            paused: None,
            halted: None,
            quarantined: None,
            window_override: None,
            promoted: None,
            waiting: None,
        };
        let names = self.input.policy.rings.iter().map(|ring| &ring.name);
        let linked: Vec<_> = names.map(|name| self.view(name).linked).collect();
        if linked.iter().any(|linked| linked.is_some_and(|id| id != self.input.target)) {
            self.started();
        } else if linked.iter().any(Option::is_some) {
            // Nothing was under way.
            state.done_at_ms = Some(self.input.now_ms);
        }
        state
    }

    /// A new target. What waited for the old one is forgotten; the links stay.
    fn supersede(&mut self, old: &RolloutState) -> RolloutState {
        self.started();
        let mut state = RolloutState {
            target: self.input.target,
            commit: self.input.commit.to_owned(),
            checks: self.input.checks,
            begun_at_ms: self.input.now_ms,
            done_at_ms: None,
            halted: None,
            quarantined: None,
            window_override: None,
            promoted: None,
            waiting: None,
            ..old.clone()
        };
        for ring in state.rings.values_mut() {
            (ring.step, ring.healthy_since_ms) = (RingStep::Waiting, None);
            (ring.short_since_ms, ring.promoted, ring.stuck) = (None, false, false);
            ring.since_ms = self.input.now_ms;
        }
        state
    }

    fn started(&mut self) {
        let Input { composition, target, commit, .. } = *self.input;
        let (composition, commit) = (composition.clone(), commit.to_owned());
        self.events.push(Event::RolloutStarted { composition, generation: target, commit });
    }

    /// Rings that the policy no longer has are let go; new ones start from their
    /// links, or from what their neighbours run.
    fn admit_rings(&mut self, state: &mut RolloutState) {
        let policy = self.input.policy;
        state.rings.retain(|name, _| policy.ring(name).is_some());
        let target = self.input.target;
        // From the last ring backwards: later rings are on what was good longer.
        let mut neighbour = None;
        for ring in policy.rings.iter().rev() {
            let known = state.rings.get(&ring.name).map(|ring| ring.good.unwrap_or(ring.at));
            let linked = self.view(&ring.name).linked;
            neighbour = known.or(linked.filter(|id| *id != target)).or(neighbour);
            if known.is_none() {
                self.admit(state, ring, neighbour);
            }
        }
    }

    fn admit(
        &mut self,
        state: &mut RolloutState,
        ring: &RingPolicy,
        neighbour: Option<GenerationId>,
    ) {
        let (target, now_ms) = (self.input.target, self.input.now_ms);
        let view = self.view(&ring.name);
        // Neighbours before this ring count where none after it has anything.
        let earlier = || {
            let names = self.input.policy.rings.iter().map(|ring| &ring.name);
            let mut linked = names.filter_map(|name| self.view(name).linked);
            linked.find(|id| *id != target)
        };
        let good = neighbour.or_else(earlier);
        let at = view.linked.or(good).unwrap_or(target);
        let step = match (at == target, view.linked) {
            // Nothing runs in a ring that has no generation.
            (true, None) => RingStep::Passed,
            (true, Some(_)) if state.done_at_ms.is_some() => RingStep::Passed,
            (true, Some(_)) => RingStep::Moved,
            (false, _) => RingStep::Waiting,
        };
        let since_ms = match step {
            RingStep::Moved => view.linked_at_ms.unwrap_or(now_ms).min(now_ms),
            _ => now_ms,
        };
        let moving = view.linked.is_none();
        let good = good.or(state.done_at_ms.map(|_| target));
        let fresh = RingState {
            at,
            good,
            step,
            since_ms,
            healthy_since_ms: None,
            short_since_ms: Some(since_ms).filter(|_| step == RingStep::Moved),
            promoted: false,
            stuck: false,
            moving,
            drifted: None,
        };
        state.rings.insert(ring.name.clone(), fresh);
        if moving {
            let (composition, ring) = (self.input.composition.clone(), ring.name.clone());
            self.events.push(Event::RingMoved { composition, ring, from: None, to: at });
        }
    }

    /// Links that are not where they belong: a move that was cut short, or
    /// somebody's hand.
    fn put_back(&mut self, state: &mut RolloutState) {
        let mut restored_links = Vec::new();
        for policy in &self.input.policy.rings {
            let view = self.view(&policy.name);
            let Some(ring) = state.rings.get_mut(&policy.name) else { continue };
            if view.staged && ring.step != RingStep::Staging {
                self.moves.push(RingMove::Unstage { ring: policy.name.clone() });
            }
            if view.linked == Some(ring.at) {
                (ring.moving, ring.drifted) = (false, None);
                continue;
            }
            // Without a link VAs cannot start: that one always comes back.
            let restored = ring.moving
                || view.linked.is_none()
                || self.input.policy.drift.links == DriftMode::Enforce;
            if !ring.moving && (restored || ring.drifted != view.linked) {
                self.events.push(Event::LinkDrifted {
                    composition: self.input.composition.clone(),
                    ring: policy.name.clone(),
                    found: view.linked,
                    expected: ring.at,
                    restored,
                });
            }
            if restored {
                (ring.moving, ring.drifted) = (true, None);
                let (from, to) = (view.linked, ring.at);
                restored_links.push(RingMove::Ring { ring: policy.name.clone(), from, to });
            } else {
                ring.drifted = view.linked;
            }
        }
        // A ring's own link first: the VAs of a batch go back to it.
        self.moves.splice(0..0, restored_links);
    }

    /// Finds rings that fail.
    fn judge(&mut self, state: &mut RolloutState) {
        if !state.is_active() || state.halted.is_some() || state.promoted.is_some() {
            return;
        }
        let now_ms = self.input.now_ms;
        for policy in &self.input.policy.rings {
            let (Some(gate), Some(ring)) = (&policy.gate, state.rings.get_mut(&policy.name)) else {
                continue;
            };
            if ring.step == RingStep::Waiting || ring.promoted {
                continue;
            }
            let health = self.view(&policy.name).health;
            let Some(health) = health.filter(|health| health.generation == state.target) else {
                continue;
            };
            let short_since_ms = ring.short_since_ms.unwrap_or(now_ms);
            ring.short_since_ms = health.is_short(gate).then_some(short_since_ms);
            if let Some(bad) = health.too_many(gate) {
                let of = health.active() + health.waiting;
                let first = health.first_unhealthy.first();
                let first = first.map(|va| format!(": {}: {}", va.mac, va.reason));
                let first = first.unwrap_or_default();
                let reason = format!("{bad} of {of} VAs of {} are unhealthy{first}", policy.name);
                let name = policy.name.clone();
                return self.fail(state, &name, reason, health.first_unhealthy);
            }
        }
    }

    fn fail(
        &mut self,
        state: &mut RolloutState,
        ring: &RingName,
        reason: String,
        unhealthy: Vec<UnhealthyVa>,
    ) {
        let at_ms = self.input.now_ms;
        let composition = self.input.composition.clone();
        let may_go_back = state.rings.values().all(|r| r.at != state.target || r.good.is_some());
        if self.input.policy.on_failure == OnFailure::AutoRollback && may_go_back {
            let commit = state.commit.clone();
            state.take_back(Quarantine { commit, reason, unhealthy, at_ms });
            let quarantine = state.quarantined.clone().expect("just set");
            self.events.push(rolled_back(composition, Some(ring.clone()), state, &quarantine));
            self.moves.clear();
            return self.put_back(state);
        }
        self.events.push(Event::RolloutHalted {
            composition,
            ring: ring.clone(),
            generation: state.target,
            reason: reason.clone(),
            unhealthy: unhealthy.clone(),
        });
        let (ring, commit) = (ring.clone(), state.commit.clone());
        state.halted = Some(Halt { ring, commit, reason, unhealthy, at_ms });
    }

    /// Where it would go on.
    fn stand(&self, state: &RolloutState) -> Option<Waiting> {
        let mut rings = self.input.policy.rings.iter().map(|ring| &ring.name);
        let open = |name: &&RingName| {
            state.rings.get(name).is_some_and(|ring| ring.step != RingStep::Passed)
        };
        let last = rings.clone().next_back();
        rings.find(open).or(last).map(|ring| Waiting::Commit { ring: ring.clone() })
    }

    /// Moves what may move. Returns what is waited for; nothing once it is done.
    fn proceed(&mut self, state: &mut RolloutState) -> Option<Waiting> {
        let policy = self.input.policy;
        let last = policy.rings.len().saturating_sub(1);
        for (index, ring) in policy.rings.iter().enumerate() {
            if let Some(waiting) = self.proceed_in(state, ring, index == last) {
                return Some(waiting);
            }
        }
        for ring in state.rings.values_mut() {
            ring.good = Some(state.target);
        }
        state.done_at_ms = Some(self.input.now_ms);
        (state.window_override, state.promoted) = (None, None);
        self.events.push(Event::RolloutDone {
            composition: self.input.composition.clone(),
            generation: state.target,
            commit: state.commit.clone(),
        });
        None
    }

    fn proceed_in(
        &mut self,
        state: &mut RolloutState,
        policy: &RingPolicy,
        last: bool,
    ) -> Option<Waiting> {
        let view = self.view(&policy.name);
        let window_open = state.window_override.is_some();
        let skip = state.promoted.is_some();
        let (target, now_ms) = (state.target, self.input.now_ms);
        let ring = state.rings.get_mut(&policy.name)?;
        if matches!(ring.step, RingStep::Waiting | RingStep::Staging) {
            if ring.at == target {
                // It goes no further; what it was known to be good for needs no proof.
                let known = ring.good == Some(target);
                ring.step = if known { RingStep::Passed } else { RingStep::Moved };
                ring.since_ms = now_ms;
            } else {
                if !window_open && let Some(waiting) = self.closed(policy) {
                    return Some(waiting);
                }
                let was_staging = ring.step == RingStep::Staging;
                if let Some(waiting) = self.stage(ring, policy, &view, target) {
                    return Some(waiting);
                }
                self.move_ring(ring, policy, &view, was_staging, target);
            }
        }
        if ring.step == RingStep::Moved {
            let gate = policy.gate.filter(|_| !skip && !ring.promoted);
            let waiting = gate.and_then(|gate| self.gate(ring, policy, &gate, &view, last, target));
            if waiting.is_some() {
                return waiting;
            }
            ring.step = RingStep::Passed;
            if policy.gate.is_some() {
                self.events.push(Event::RingPassed {
                    composition: self.input.composition.clone(),
                    ring: policy.name.clone(),
                    generation: target,
                });
            }
        }
        None
    }

    /// Why the ring may not move at this time.
    fn closed(&mut self, policy: &RingPolicy) -> Option<Waiting> {
        let schedule = &self.input.policy.schedule;
        match schedule.opening(self.input.composition, &policy.name, self.input.now_ms) {
            Opening::Open => None,
            Opening::Closed { until_ms, freeze } => {
                if let Some(until_ms) = until_ms {
                    self.wake(until_ms);
                }
                let ring = policy.name.clone();
                Some(match freeze {
                    Some(reason) => Waiting::Freeze { ring, until_ms, reason },
                    None => Waiting::Window { ring, until_ms },
                })
            }
        }
    }

    /// Moves the next batch of a ring of which only so many VAs may swap at once.
    /// `None` once the ring's own link may move.
    fn stage(
        &mut self,
        ring: &mut RingState,
        policy: &RingPolicy,
        view: &RingView,
        target: GenerationId,
    ) -> Option<Waiting> {
        let limit = policy.swapping?;
        let waiting = Some(Waiting::Batch { ring: policy.name.clone() });
        let Some(health) = view.health.as_ref().filter(|health| health.generation == target) else {
            return Some(Waiting::Evidence { ring: policy.name.clone() });
        };
        if ring.step == RingStep::Waiting && health.active() + health.waiting <= limit {
            return None;
        }
        let under_way = health.swapping + health.unknown;
        if health.waiting == 0 && under_way == 0 {
            return None;
        }
        ring.step = RingStep::Staging;
        let room = limit.saturating_sub(under_way) as usize;
        let vas: Vec<_> = health.ready.iter().copied().take(room).collect();
        if !vas.is_empty() {
            ring.since_ms = self.input.now_ms;
            let (ring, to) = (policy.name.clone(), target);
            self.moves.push(RingMove::Stage { ring: ring.clone(), to, vas: vas.clone() });
            let composition = self.input.composition.clone();
            self.events.push(Event::BatchMoved { composition, ring, to, vas });
        }
        self.wake_for_the_late(health);
        waiting
    }

    fn move_ring(
        &mut self,
        ring: &mut RingState,
        policy: &RingPolicy,
        view: &RingView,
        staged: bool,
        target: GenerationId,
    ) {
        let name = policy.name.clone();
        (ring.at, ring.moving, ring.drifted) = (target, true, None);
        (ring.step, ring.since_ms) = (RingStep::Moved, self.input.now_ms);
        (ring.healthy_since_ms, ring.short_since_ms) = (None, Some(self.input.now_ms));
        ring.stuck = false;
        let from = view.linked;
        // The move supersedes one that puts the link back.
        self.moves.retain(|m| !matches!(m, RingMove::Ring { ring, .. } if *ring == name));
        self.moves.push(RingMove::Ring { ring: name.clone(), from, to: target });
        if staged {
            self.moves.push(RingMove::Unstage { ring: name.clone() });
        }
        let composition = self.input.composition.clone();
        self.events.push(Event::RingMoved { composition, ring: name, from, to: target });
    }

    /// Asks to be asked again when the next VA is late.
    fn wake_for_the_late(&mut self, health: &RingHealth) {
        if let Some(late_in_ms) = health.late_in_ms {
            self.wake(self.input.now_ms.saturating_add(late_in_ms).saturating_add(1));
        }
    }

    /// Tells, once its deadline has passed, of a ring that neither passes nor fails.
    fn stuck(
        &mut self,
        ring: &mut RingState,
        name: &RingName,
        health: &RingHealth,
        deadline_ms: u64,
    ) {
        if self.input.now_ms < deadline_ms {
            return self.wake(deadline_ms);
        }
        ring.stuck = true;
        self.events.push(Event::RingStuck {
            composition: self.input.composition.clone(),
            ring: name.clone(),
            generation: health.generation,
            of: health.active(),
            unhealthy: health.first_unhealthy.clone(),
        });
    }

    /// What a moved ring still owes. `None` once it passes.
    fn gate(
        &mut self,
        ring: &mut RingState,
        policy: &RingPolicy,
        gate: &Gate,
        view: &RingView,
        last: bool,
        target: GenerationId,
    ) -> Option<Waiting> {
        let name = policy.name.clone();
        let now_ms = self.input.now_ms;
        let health = view.health.as_ref();
        let Some(health) = health.filter(|h| h.generation == target && !ring.moving) else {
            return Some(Waiting::Evidence { ring: name });
        };
        if health.is_empty() {
            return None;
        }
        if health.active() + health.waiting == 0 && !last {
            ring.healthy_since_ms = None;
            return Some(Waiting::Idle { ring: name });
        }
        if !health.meets(gate) {
            ring.healthy_since_ms = None;
            self.wake_for_the_late(health);
            let since_ms = ring.short_since_ms.unwrap_or(ring.since_ms);
            let deadline_ms = since_ms.saturating_add(gate.deadline_ms);
            if health.is_stuck() && !ring.stuck {
                self.stuck(ring, &name, health, deadline_ms);
            }
            let unhealthy = health.unhealthy + health.late;
            let first = health.first_unhealthy.iter().map(|va| va.mac).collect();
            return Some(Waiting::Health { ring: name, deadline_ms, unhealthy, first });
        }
        let since = *ring.healthy_since_ms.get_or_insert(now_ms);
        let until_ms = since.saturating_add(gate.soak_ms);
        if now_ms < until_ms {
            self.wake(until_ms);
            return Some(Waiting::Soak { ring: name, until_ms });
        }
        None
    }
}
