//! Rollouts: one ring after the other, each only when the one before does well.
//!
//! A pure state machine, one for each composition, so that none delays another.
//! [`advance`] takes what a commit desires, what the links are, how the VAs do, the
//! policy, the durable state and the time, and gives the next state, moves of links
//! and events. Whoever calls it makes the state durable first and then takes the
//! moves; stopped anywhere, the next call finds links that are not where the state
//! wants them and gives the moves again.
//!
//! What it guarantees: a ring moves only when all before it have passed; a new
//! target replaces one that waits; a halted, paused or quarantined rollout moves no
//! ring to its target. A lost state is made anew from the links and from what the audit
//! log tells ([`memory`]); from the links alone, rings that are at the target already have
//! to pass again.
//!
//! A ring that has no generation yet takes one at once: nothing runs there.

mod advance;
mod command;
pub mod health;
pub mod memory;
pub mod patterns;
pub mod policy;
pub mod prune;
pub mod schedule;
mod state;
pub mod transfer;

pub use advance::{Advance, Input, RingMove, RingView, advance};
pub use command::{Command, CommandError, Order, apply_command};
pub use health::RingHealth;
pub use state::{
    Halt, Pause, Quarantine, RingState, RingStep, RolloutState, STATE_VERSION, Waiting,
};

#[cfg(test)]
mod halt_tests;
#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod time_tests;
