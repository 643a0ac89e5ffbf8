//! What happens to a fleet, as data: the one source for the log, the audit log,
//! notifications and metrics.
//!
//! An event says what was decided or found, once, by whoever decided or found it.
//! The JSON form is versioned and specified in `docs/formats.md`, "Events".

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::GenerationId;
use crate::names::{CompositionName, MacAddr, RingName, VaName};
use crate::rollout::health::UnhealthyVa;

/// The version of the JSON form.
pub const VERSION: u32 = 1;

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Importance {
    Info,
    /// Something is not as it should be.
    Warning,
    /// An operator must act.
    Error,
}

/// An event with its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    pub version: u32,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    #[serde(flatten)]
    pub event: Event,
}

impl EventRecord {
    pub fn new(at_ms: u64, event: Event) -> Self {
        EventRecord { version: VERSION, at_ms, event }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A commit wants another generation of a composition.
    RolloutStarted {
        composition: CompositionName,
        generation: GenerationId,
        commit: String,
    },
    RingMoved {
        composition: CompositionName,
        ring: RingName,
        from: Option<GenerationId>,
        to: GenerationId,
    },
    /// Some VAs of a ring that swaps in batches were moved.
    BatchMoved {
        composition: CompositionName,
        ring: RingName,
        to: GenerationId,
        vas: Vec<MacAddr>,
    },
    /// A ring was healthy for as long as it had to be.
    RingPassed {
        composition: CompositionName,
        ring: RingName,
        generation: GenerationId,
    },
    RolloutDone {
        composition: CompositionName,
        generation: GenerationId,
        commit: String,
    },
    RolloutHalted {
        composition: CompositionName,
        ring: RingName,
        generation: GenerationId,
        reason: String,
        unhealthy: Vec<UnhealthyVa>,
    },
    /// The rings went back; the commit is not applied to this composition again.
    RolledBack {
        composition: CompositionName,
        generation: GenerationId,
        commit: String,
        reason: String,
        unhealthy: Vec<UnhealthyVa>,
    },
    Paused {
        composition: CompositionName,
        reason: String,
    },
    Resumed {
        composition: CompositionName,
        reason: String,
    },
    Promoted {
        composition: CompositionName,
        all: bool,
        reason: String,
    },
    /// A window or freeze was passed over by an operator.
    WindowOverridden {
        composition: CompositionName,
        reason: String,
    },
    /// A ring's link is not where Strata put it.
    LinkDrifted {
        composition: CompositionName,
        ring: RingName,
        found: Option<GenerationId>,
        expected: GenerationId,
        restored: bool,
    },
    /// A file of a VA's private layer changed that should not.
    PrivateDrift {
        name: VaName,
        mac: MacAddr,
        paths: Vec<String>,
        more: u64,
    },
    VaPinned {
        mac: MacAddr,
        generation: GenerationId,
        reason: String,
        expires_at_ms: Option<u64>,
    },
    VaUnpinned {
        mac: MacAddr,
        expired: bool,
    },
    /// More would be removed than one pass may.
    RemovalsWait {
        count: u32,
        limit: u32,
        token: String,
    },
    VaRemoved {
        name: VaName,
        mac: MacAddr,
    },
    RingRemoved {
        composition: CompositionName,
        ring: RingName,
    },
}

impl Event {
    /// The name of its kind, as in the JSON form.
    pub fn kind(&self) -> &'static str {
        match self {
            Event::RolloutStarted { .. } => "rollout-started",
            Event::RingMoved { .. } => "ring-moved",
            Event::BatchMoved { .. } => "batch-moved",
            Event::RingPassed { .. } => "ring-passed",
            Event::RolloutDone { .. } => "rollout-done",
            Event::RolloutHalted { .. } => "rollout-halted",
            Event::RolledBack { .. } => "rolled-back",
            Event::Paused { .. } => "paused",
            Event::Resumed { .. } => "resumed",
            Event::Promoted { .. } => "promoted",
            Event::WindowOverridden { .. } => "window-overridden",
            Event::LinkDrifted { .. } => "link-drifted",
            Event::PrivateDrift { .. } => "private-drift",
            Event::VaPinned { .. } => "va-pinned",
            Event::VaUnpinned { .. } => "va-unpinned",
            Event::RemovalsWait { .. } => "removals-wait",
            Event::VaRemoved { .. } => "va-removed",
            Event::RingRemoved { .. } => "ring-removed",
        }
    }

    pub fn importance(&self) -> Importance {
        match self {
            Event::RolloutHalted { .. } | Event::RolledBack { .. } | Event::RemovalsWait { .. } => {
                Importance::Error
            }
            Event::LinkDrifted { .. }
            | Event::PrivateDrift { .. }
            | Event::WindowOverridden { .. } => Importance::Warning,
            Event::RolloutStarted { .. }
            | Event::RingMoved { .. }
            | Event::BatchMoved { .. }
            | Event::RingPassed { .. }
            | Event::RolloutDone { .. }
            | Event::Paused { .. }
            | Event::Resumed { .. }
            | Event::Promoted { .. }
            | Event::VaPinned { .. }
            | Event::VaUnpinned { .. }
            | Event::VaRemoved { .. }
            | Event::RingRemoved { .. } => Importance::Info,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::RolloutStarted { composition, generation, commit } => {
                write!(f, "{composition}: {} starts, from {}", generation.short(), short(commit))
            }
            Event::RingMoved { composition, ring, from, to } => {
                let from = from.map_or_else(|| "nothing".to_owned(), |from| from.short());
                write!(f, "{composition}: {ring} moved from {from} to {}", to.short())
            }
            Event::BatchMoved { composition, ring, to, vas } => {
                write!(f, "{composition}: {} VAs of {ring} moved to {}", vas.len(), to.short())
            }
            Event::RingPassed { composition, ring, generation } => {
                write!(f, "{composition}: {ring} is healthy on {}", generation.short())
            }
            Event::RolloutDone { composition, generation, commit } => {
                write!(
                    f,
                    "{composition}: {} is everywhere, from {}",
                    generation.short(),
                    short(commit)
                )
            }
            Event::RolloutHalted { composition, ring, generation, reason, .. } => {
                write!(f, "{composition}: {} halted in {ring}: {reason}", generation.short())
            }
            Event::RolledBack { composition, generation, commit, reason, .. } => write!(
                f,
                "{composition}: {} rolled back, {} quarantined: {reason}",
                generation.short(),
                short(commit)
            ),
            Event::Paused { composition, reason } => write!(f, "{composition}: paused: {reason}"),
            Event::Resumed { composition, reason } => write!(f, "{composition}: resumed: {reason}"),
            Event::Promoted { composition, all, reason } => {
                let what = if *all { "all rings" } else { "the next ring" };
                write!(f, "{composition}: {what} promoted: {reason}")
            }
            Event::WindowOverridden { composition, reason } => {
                write!(f, "{composition}: windows and freezes overridden: {reason}")
            }
            Event::LinkDrifted { composition, ring, restored, .. } => {
                let then = if *restored { "; it was put back" } else { "" };
                write!(f, "{composition}: the link of {ring} was moved by hand{then}")
            }
            Event::PrivateDrift { name, paths, more, .. } => {
                write!(f, "{name}: changed {}", paths.join(", "))?;
                if *more > 0 { write!(f, " and {more} more") } else { Ok(()) }
            }
            Event::VaPinned { mac, generation, reason, .. } => {
                write!(f, "{mac} pinned to {}: {reason}", generation.short())
            }
            Event::VaUnpinned { mac, expired: true } => write!(f, "{mac}: the pin expired"),
            Event::VaUnpinned { mac, expired: false } => write!(f, "{mac} unpinned"),
            Event::RemovalsWait { count, limit, token } => write!(
                f,
                "{count} removals wait for a confirmation (limit {limit}): strata rollout confirm {token}"
            ),
            Event::VaRemoved { name, .. } => {
                write!(f, "{name} is no longer declared; its link is gone")
            }
            Event::RingRemoved { composition, ring } => {
                write!(f, "{composition}: the link of {ring} is gone, as git no longer has it")
            }
        }
    }
}

/// The beginning of a commit's id.
pub fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
}
