//! Repositories that are somewhere else (§5.4): what they hold is known here, and a layer is
//! mirrored when a resolution chose it.
//!
//! [`sync`] brings a repository's database, checked, and [`units`] the layers; both leave the
//! store as it was or with what was asked for, whenever they are stopped. [`storage`] is the
//! only module that speaks to a network.

pub mod storage;
pub mod sync;
pub mod units;

use std::time::Duration;

use crate::transfer::{Observer, Pace};

/// How repositories are fetched.
#[derive(Clone)]
pub struct Options {
    /// Files fetched at once.
    pub connections: usize,
    pub pace: Pace,
    /// Bytes of layers, unpacked, that one call may bring.
    pub most_bytes: Option<u64>,
    /// For all of a call.
    pub deadline: Duration,
    /// Told of each chunk that comes.
    pub observer: Observer,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("connections", &self.connections)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            connections: 4,
            pace: Pace::new(None),
            most_bytes: None,
            deadline: Duration::from_secs(1800),
            observer: std::sync::Arc::new(|_| ()),
        }
    }
}

/// Runs a fetch to its end on the calling thread, which must not be one of a runtime's.
///
/// # Errors
/// The runtime cannot be made.
pub fn run<T>(fetch: impl Future<Output = T>) -> std::io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(fetch))
}
