//! The audit log: `state/audit/` of the store (`docs/formats.md`, "Audit log").
//!
//! What is decided is written, and on disk, before it is done; how it ended is written
//! after. So nothing moves that no record names, and a crash in between leaves a record
//! too many, never one too few. Where the log cannot be written nothing is done either.
//!
//! Writers are the reconciler and operators' commands, any number of processes: a lock
//! file puts their batches one after the other, each with one sync. Nothing here takes
//! anything away: what a crash tore stays, and the next writer begins a new segment.

mod log;
pub mod passes;
mod read;
mod verify;

pub use log::{AuditError, AuditLog, Entry};
pub use read::{Position, Reader};
pub use verify::{Broken, Verified, replay, verify, verify_knowing};

use serde::{Deserialize, Serialize};
use strata_core::Digest;
use strata_core::event::Event as Told;
use strata_core::status::SyncState;

use crate::verify::Event as Found;

/// A record that is known to be in the log, as somebody remembers who is not the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// The number of the last record.
    pub seq: u64,
    /// The hash of the last line.
    pub hash: Digest,
}

/// The directory below the store's `state/`.
const DIRECTORY: &str = "audit";
/// Bytes of a segment after which the next one begins.
const SEGMENT_BYTES: u64 = 8 << 20;

fn segment_name(number: u64) -> String {
    format!("{number:08}.log")
}

fn segment_number(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".log")?.parse().ok()?;
    (segment_name(number) == name).then_some(number)
}

/// What verification found, as an event for all who listen.
pub fn found(event: &Found) -> Told {
    match event {
        Found::RingInSync { composition, ring, generation, vas, after } => Told::RingVerified {
            composition: composition.clone(),
            ring: ring.clone(),
            generation: *generation,
            vas: *vas as u64,
            took_ms: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
        },
        Found::RingWaiting { composition, ring, generation, waiting, idle, of, first } => {
            Told::RingUnverified {
                composition: composition.clone(),
                ring: ring.clone(),
                generation: *generation,
                waiting: *waiting as u64,
                idle: *idle as u64,
                of: *of as u64,
                first: first.clone(),
            }
        }
        Found::VaChanged { mac, status, .. } => match status.state {
            SyncState::InSync | SyncState::Pending | SyncState::Unknown => Told::VaRecovered {
                mac: *mac,
                name: status.name.clone(),
                composition: status.composition.clone(),
                active: status.active,
            },
            state @ (SyncState::Drifted | SyncState::Failed) => Told::VaTroubled {
                mac: *mac,
                name: status.name.clone(),
                composition: status.composition.clone(),
                state,
                reason: status.reason.as_ref().map(ToString::to_string),
                desired: status.desired,
                active: status.active,
            },
        },
        Found::VaSilent { mac, days } => Told::VaSilent { mac: *mac, days: *days },
    }
}
