//! Rollouts on a real store: the state on disk, what operators ask for, how the VAs
//! of rings do, and the moves of links.
//!
//! What is decided is decided in `strata_core::rollout`; here it is made durable and
//! carried out. One owner does all of it ([`Rollouts`], which the reconciler holds):
//! commands reach it as files, reports and probes are read by it.

pub mod conditions;
mod file;
mod moves;
pub mod pins;
mod prune;
pub(crate) mod rebuild;
pub mod request;
mod rollouts;
mod taken;
mod transfers;
mod watcher;

pub use file::{PATH as FILE_PATH, RolloutFile, RolloutFileError};
pub use moves::MoveError;
pub use prune::WaitingRemovals;
pub use rollouts::{RolloutError, Rollouts, Stepped};
pub use rollouts::{is_order, log, ring_of};
pub use taken::Taken;
pub use transfers::Pending;
pub use transfers::WaitingMoves;
pub use watcher::{Checks, Watcher};
