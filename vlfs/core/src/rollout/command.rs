//! What operators may say to a rollout.

use serde::{Deserialize, Serialize};

use super::state::{Pause, Quarantine, RingStep, RolloutState};
use crate::event::Event;
use crate::names::{CompositionName, RingName};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Order {
    /// No ring moves until it is resumed.
    Pause,
    /// Goes on after a pause or a halt; the rings have their time again.
    Resume {
        /// Also a target that is quarantined, from the first ring on.
        quarantined: bool,
    },
    /// The rings go back; the target is quarantined.
    Abort,
    /// The ring that is waited for passes, whatever its VAs say.
    Promote {
        /// And all that follow.
        all: bool,
        override_window: bool,
    },
}

/// An order of an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    #[serde(flatten)]
    pub order: Order,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("{0} is not being rolled out: its target is everywhere")]
    Done(CompositionName),
    #[error("{0} is quarantined; only a new commit, or resume --quarantined, goes on")]
    Quarantined(CompositionName),
    #[error("{0} has no former generation to go back to")]
    NothingToGoBackTo(CompositionName),
}

/// The state after an order, and what there is to tell.
///
/// # Errors
/// The order makes no sense in this state, which stays as it is.
pub fn apply_command(
    composition: &CompositionName,
    state: &RolloutState,
    command: &Command,
    now_ms: u64,
) -> Result<(RolloutState, Vec<Event>), CommandError> {
    let mut next = state.clone();
    let mut events = Vec::new();
    let reason = command.reason.clone();
    let composition = composition.clone();
    match &command.order {
        Order::Pause => {
            next.paused = Some(Pause { reason: reason.clone(), at_ms: now_ms });
            events.push(Event::Paused { composition, reason });
        }
        Order::Resume { quarantined } => {
            if next.quarantined.is_some() && !quarantined && next.paused.is_none() {
                return Err(CommandError::Quarantined(composition));
            }
            (next.paused, next.halted) = (None, None);
            let quarantined = *quarantined && next.quarantined.take().is_some();
            for ring in next.rings.values_mut() {
                (ring.since_ms, ring.healthy_since_ms) = (now_ms, None);
                (ring.short_since_ms, ring.promoted, ring.stuck) = (None, false, false);
            }
            events.push(Event::Resumed { composition, reason, quarantined });
        }
        Order::Abort => {
            if next.done_at_ms.is_some() {
                return Err(CommandError::Done(composition));
            }
            if next.rings.values().any(|ring| ring.at == next.target && ring.good.is_none()) {
                return Err(CommandError::NothingToGoBackTo(composition));
            }
            let reason = format!("aborted: {reason}");
            let (commit, unhealthy) = (next.commit.clone(), Vec::new());
            next.halted = None;
            next.take_back(Quarantine { commit, reason, unhealthy, at_ms: now_ms });
            let quarantine = next.quarantined.as_ref().expect("just set");
            events.push(rolled_back(composition, None, &next, quarantine));
        }
        Order::Promote { all, override_window } => {
            if next.quarantined.is_some() {
                return Err(CommandError::Quarantined(composition));
            }
            if next.done_at_ms.is_some() {
                return Err(CommandError::Done(composition));
            }
            let halted = next.halted.take().map(|halt| halt.ring);
            for (name, ring) in &mut next.rings {
                ring.promoted |= ring.step == RingStep::Moved || halted.as_ref() == Some(name);
                if ring.step == RingStep::Moved {
                    ring.step = RingStep::Passed;
                }
            }
            if *all {
                next.promoted = Some(reason.clone());
            }
            if *override_window {
                next.window_override = Some(reason.clone());
                let (composition, reason) = (composition.clone(), reason.clone());
                events.push(Event::WindowOverridden { composition, reason });
            }
            events.push(Event::Promoted { composition, all: *all, reason });
        }
    }
    Ok((next, events))
}

pub(super) fn rolled_back(
    composition: CompositionName,
    ring: Option<RingName>,
    state: &RolloutState,
    quarantine: &Quarantine,
) -> Event {
    Event::RolledBack {
        composition,
        ring,
        generation: state.target,
        commit: quarantine.commit.clone(),
        reason: quarantine.reason.clone(),
        unhealthy: quarantine.unhealthy.clone(),
    }
}

impl RolloutState {
    /// Sends every ring back to where it was good, and keeps it there.
    pub(super) fn take_back(&mut self, quarantine: Quarantine) {
        for ring in self.rings.values_mut() {
            if let Some(good) = ring.good
                && ring.at != good
            {
                (ring.at, ring.moving) = (good, true);
            }
            (ring.step, ring.healthy_since_ms) = (RingStep::Waiting, None);
            (ring.short_since_ms, ring.promoted, ring.stuck) = (None, false, false);
            ring.since_ms = quarantine.at_ms;
        }
        self.quarantined = Some(quarantine);
        self.waiting = None;
    }
}
