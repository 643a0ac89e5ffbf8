//! What is remembered of a rollout (`docs/formats.md`, "Rollout state").

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::health::UnhealthyVa;
use crate::digest::{Digest, GenerationId};
use crate::names::{MacAddr, RingName};

/// The version of the format.
pub const STATE_VERSION: u32 = 1;

/// How far a ring is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RingStep {
    Waiting,
    /// Its VAs are moved in batches; its link is where it was.
    Staging,
    /// Its link is on the target.
    Moved,
    /// It was healthy for long enough, or an operator said so.
    Passed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RingState {
    /// Where its link belongs now.
    pub at: GenerationId,
    /// Where it goes back to; none where it never had another.
    pub good: Option<GenerationId>,
    pub step: RingStep,
    /// When the step began; of a ring that is moved in batches, the last batch.
    pub since_ms: u64,
    /// Since when enough of its VAs are healthy.
    pub healthy_since_ms: Option<u64>,
    /// Since when it waits for more VAs than may fail: the time that a process that has
    /// not looked at them before takes theirs to have begun at.
    #[serde(default)]
    pub short_since_ms: Option<u64>,
    /// An operator let it pass, whatever its VAs say.
    #[serde(default)]
    pub promoted: bool,
    /// It was told that time alone lets it neither pass nor fail.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stuck: bool,
    /// Its link is about to be moved.
    pub moving: bool,
    /// Another generation that its link was found on and left.
    pub drifted: Option<GenerationId>,
}

/// A ring failed, and an operator or a new commit must decide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Halt {
    pub ring: RingName,
    /// The commit that was rolled out when it failed; empty where that is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub commit: String,
    pub reason: String,
    pub unhealthy: Vec<UnhealthyVa>,
    pub at_ms: u64,
}

/// The target was taken back; it is not rolled out again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quarantine {
    /// The commit that was rolled out when it failed.
    pub commit: String,
    pub reason: String,
    pub unhealthy: Vec<UnhealthyVa>,
    pub at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    pub reason: String,
    pub at_ms: u64,
}

/// What a rollout waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "kebab-case")]
pub enum Waiting {
    /// The VAs of a ring have not told yet how they do.
    Evidence {
        ring: RingName,
    },
    /// None of a ring's VAs runs.
    Idle {
        ring: RingName,
    },
    /// Not enough VAs are healthy; at the deadline those fail that the ring waits for
    /// longest.
    Health {
        ring: RingName,
        deadline_ms: u64,
        /// VAs that are unhealthy or late, which the ring allows; and the first of them.
        #[serde(default, skip_serializing_if = "is_zero")]
        unhealthy: u32,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        first: Vec<MacAddr>,
    },
    Soak {
        ring: RingName,
        until_ms: u64,
    },
    Batch {
        ring: RingName,
    },
    /// The commit that wants it cannot be taken now.
    Commit {
        ring: RingName,
    },
    Window {
        ring: RingName,
        until_ms: Option<u64>,
    },
    Freeze {
        ring: RingName,
        until_ms: Option<u64>,
        reason: String,
    },
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl Waiting {
    pub fn ring(&self) -> &RingName {
        match self {
            Waiting::Evidence { ring }
            | Waiting::Idle { ring }
            | Waiting::Health { ring, .. }
            | Waiting::Soak { ring, .. }
            | Waiting::Batch { ring }
            | Waiting::Commit { ring }
            | Waiting::Window { ring, .. }
            | Waiting::Freeze { ring, .. } => ring,
        }
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Waiting::Evidence { ring } => write!(f, "{ring}: waits for reports"),
            Waiting::Idle { ring } => {
                write!(f, "{ring}: none of its VAs runs; start one, or: strata rollout promote")
            }
            Waiting::Health { ring, unhealthy: 0, .. } => {
                write!(f, "{ring}: waits for healthy VAs")
            }
            Waiting::Health { ring, unhealthy, first, .. } => {
                write!(f, "{ring}: waits for healthy VAs, {unhealthy} unhealthy")?;
                let mut separator = ": ";
                for mac in first {
                    write!(f, "{separator}{mac}")?;
                    separator = ", ";
                }
                Ok(())
            }
            Waiting::Soak { ring, .. } => write!(f, "{ring}: healthy, soaks"),
            Waiting::Batch { ring } => write!(f, "{ring}: moves in batches"),
            Waiting::Commit { ring } => {
                write!(f, "{ring}: the commit that wants it cannot be taken now")
            }
            Waiting::Window { ring, .. } => write!(f, "{ring}: its window is closed"),
            Waiting::Freeze { ring, reason, .. } if reason.is_empty() => {
                write!(f, "{ring}: frozen")
            }
            Waiting::Freeze { ring, reason, .. } => write!(f, "{ring}: frozen: {reason}"),
        }
    }
}

/// The rollout of one composition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutState {
    pub target: GenerationId,
    /// The last commit that wanted it.
    pub commit: String,
    /// By which health checks the target is judged, as
    /// [`digest`](crate::health_checks::digest) has it; `None` where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<Digest>,
    pub begun_at_ms: u64,
    /// When the last ring passed.
    pub done_at_ms: Option<u64>,
    pub rings: BTreeMap<RingName, RingState>,
    pub paused: Option<Pause>,
    pub halted: Option<Halt>,
    pub quarantined: Option<Quarantine>,
    /// Why windows and freezes do not count for this target.
    pub window_override: Option<String>,
    /// Why gates do not count for this target.
    pub promoted: Option<String>,
    pub waiting: Option<Waiting>,
}

impl RolloutState {
    /// The state once all moves were taken.
    pub fn settle(&mut self) {
        for ring in self.rings.values_mut() {
            ring.moving = false;
        }
    }

    /// Times that lie ahead were noted before the clock was set back: what waits for
    /// them waits from now on.
    pub(super) fn know_the_time(&mut self, now_ms: u64) {
        for ring in self.rings.values_mut() {
            ring.since_ms = ring.since_ms.min(now_ms);
            for since_ms in ring.healthy_since_ms.iter_mut().chain(&mut ring.short_since_ms) {
                *since_ms = (*since_ms).min(now_ms);
            }
        }
    }

    /// Whether there is anything to look after.
    pub fn is_active(&self) -> bool {
        self.done_at_ms.is_none() && self.quarantined.is_none()
    }

    /// One word for people and scripts.
    pub fn phase(&self) -> &'static str {
        if self.quarantined.is_some() {
            "quarantined"
        } else if self.halted.is_some() {
            "halted"
        } else if self.done_at_ms.is_some() {
            "done"
        } else if self.paused.is_some() {
            "paused"
        } else {
            "rolling"
        }
    }
}
