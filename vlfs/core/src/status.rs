//! The fold from what is observed to one word for each VA.
//!
//! A VA is in sync when its own file system says that it serves the desired
//! generation, and only then: neither the ring link nor what the reconciler did
//! is evidence. A report of a running VA that was not renewed in time is none
//! either, whatever it says.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use crate::digest::GenerationId;
use crate::links::VaTarget;
use crate::names::{CompositionName, MacAddr, RingName, VaName};
use crate::printable::OneLine;
use crate::report::{Report, ServingState};
use crate::rollout::policy::base_ring;
use crate::scripts::outcome::{ScriptFailure, ScriptsState};

/// For so long after a ring moved is a swap that has not happened yet no drift.
pub const SWAP_GRACE_MS: u64 = 30_000;
/// A report is believed for this many of its own intervals.
pub const STALE_INTERVALS: u64 = 3;
/// The longest interval that a report may claim for itself, in seconds.
pub const LONGEST_INTERVAL_S: u32 = 300;

/// Whether a VA's processes run. `None` in [`ObservedVa`] where no machine of this
/// host is known: the VA runs elsewhere, and only its report speaks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    Running,
    Suspended,
    Stopped,
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            RunState::Running => "running",
            RunState::Suspended => "suspended",
            RunState::Stopped => "stopped",
        })
    }
}

/// A VA's report as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportView {
    /// The VA never wrote one.
    Missing,
    /// What stands there is no report of this VA.
    Unreadable(String),
    /// A report, written `age_ms` ago.
    Read { report: Box<Report>, age_ms: u64 },
}

/// All that is known about one VA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedVa {
    pub name: Option<VaName>,
    pub mac: MacAddr,
    pub target: VaTarget,
    /// The generation at the end of the VA's link.
    pub desired: Option<GenerationId>,
    /// Milliseconds since the VA's ring was moved.
    pub ring_age_ms: Option<u64>,
    pub report: ReportView,
    pub run_state: Option<RunState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyncState {
    InSync,
    Pending,
    Drifted,
    Failed,
    Unknown,
}

impl SyncState {
    pub const ALL: [SyncState; 5] = [
        SyncState::InSync,
        SyncState::Pending,
        SyncState::Drifted,
        SyncState::Failed,
        SyncState::Unknown,
    ];
}

impl fmt::Display for SyncState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            SyncState::InSync => "in-sync",
            SyncState::Pending => "pending",
            SyncState::Drifted => "drifted",
            SyncState::Failed => "failed",
            SyncState::Unknown => "unknown",
        })
    }
}

/// Why a VA is not simply in sync, or how old the evidence is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Reason {
    Suspended,
    Stopped,
    NeverStarted,
    SwapUnderWay,
    /// Its ring has no generation: no commit brought its composition.
    NotRolledOut,
    /// It serves another generation although it had the time to change.
    OtherGeneration,
    /// It runs, and its last report is too old to be believed.
    Stale {
        age_ms: u64,
    },
    /// It runs and has not reported.
    NoReport,
    UnreadableReport {
        error: String,
    },
    Refused {
        error: String,
    },
    /// In sync as of its last report, which cannot be newer.
    AsOfLastReport {
        run_state: RunState,
        age_ms: u64,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Suspended => write!(f, "suspended"),
            Reason::Stopped => write!(f, "stopped"),
            Reason::NeverStarted => write!(f, "never started"),
            Reason::SwapUnderWay => write!(f, "swap under way"),
            Reason::NotRolledOut => write!(f, "its ring has no generation yet"),
            Reason::OtherGeneration => write!(f, "serves another generation"),
            Reason::Stale { age_ms } => write!(f, "last report {} ago", Age(*age_ms)),
            Reason::NoReport => write!(f, "runs and has not reported"),
            // What a VA claims.
            Reason::UnreadableReport { error } | Reason::Refused { error } => {
                OneLine(f).write_str(error)
            }
            Reason::AsOfLastReport { run_state, age_ms } => {
                write!(f, "{run_state}, last report {} ago", Age(*age_ms))
            }
        }
    }
}

/// A time in milliseconds, for people: in one unit only.
pub struct Age(pub u64);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 / 1000 {
            seconds @ ..120 => write!(f, "{seconds} s"),
            seconds @ ..7200 => write!(f, "{} min", seconds / 60),
            seconds @ ..172_800 => write!(f, "{} h", seconds / 3600),
            seconds => write!(f, "{} days", seconds / 86_400),
        }
    }
}

/// One VA's status. The JSON form is specified in `docs/formats.md`, "Status".
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VaStatus {
    pub name: Option<VaName>,
    pub mac: MacAddr,
    pub composition: CompositionName,
    /// `None` for a VA that is pinned to a generation.
    pub ring: Option<RingName>,
    pub run_state: Option<RunState>,
    pub desired: Option<GenerationId>,
    /// What the VA's file system serves, or served when it last reported.
    pub active: Option<GenerationId>,
    pub state: SyncState,
    #[serde(flatten)]
    pub reason: Option<Reason>,
    pub report_age_ms: Option<u64>,
    /// What an operator must look at although the VA may be in sync.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<VaCondition>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum VaConditionKind {
    /// Scripts of its layers failed (§5.1).
    ScriptsFailed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum VaConditionReason {
    /// The new layers stay.
    KeptGoing,
    /// The VA went back to the layers of before.
    SwappedBack,
}

/// A condition that holds for a VA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VaCondition {
    #[serde(rename = "type")]
    pub kind: VaConditionKind,
    pub status: &'static str,
    pub reason: VaConditionReason,
    pub message: String,
    /// The latest ones, oldest first.
    pub failures: Vec<ScriptFailure>,
}

/// The conditions that a report gives its VA.
fn conditions(report: &Report) -> Vec<VaCondition> {
    let Some(scripts) = report.scripts.as_ref().filter(|scripts| scripts.failure_count > 0) else {
        return Vec::new();
    };
    let reason = match scripts.state {
        ScriptsState::SwappedBack => VaConditionReason::SwappedBack,
        ScriptsState::Idle
        | ScriptsState::Waiting
        | ScriptsState::Running
        | ScriptsState::Damaged => VaConditionReason::KeptGoing,
    };
    let mut message = match scripts.failures.last() {
        Some(failure) => failure.to_string(),
        None => "the report does not say which".to_owned(),
    };
    if scripts.failure_count > 1 {
        message.push_str(&format!(" (and {} more)", scripts.failure_count - 1));
    }
    let (kind, failures) = (VaConditionKind::ScriptsFailed, scripts.failures.clone());
    vec![VaCondition { kind, status: "True", reason, message, failures }]
}

/// Judges one VA.
pub fn va_status(va: &ObservedVa) -> VaStatus {
    let (active, report_age_ms) = match &va.report {
        ReportView::Read { report, age_ms } => (report.generation, Some(*age_ms)),
        ReportView::Missing | ReportView::Unreadable(_) => (None, None),
    };
    let conditions = match &va.report {
        ReportView::Read { report, .. } => conditions(report),
        ReportView::Missing | ReportView::Unreadable(_) => Vec::new(),
    };
    let (state, reason) = judge(va);
    VaStatus {
        name: va.name.clone(),
        mac: va.mac,
        composition: va.target.composition().clone(),
        ring: match &va.target {
            VaTarget::Ring { ring, .. } => Some(base_ring(ring).0),
            VaTarget::Pinned { .. } => None,
        },
        run_state: va.run_state,
        desired: va.desired,
        active,
        state,
        reason,
        report_age_ms,
        conditions,
    }
}

fn judge(va: &ObservedVa) -> (SyncState, Option<Reason>) {
    let Some(desired) = va.desired else {
        return (SyncState::Pending, Some(Reason::NotRolledOut));
    };
    match &va.report {
        ReportView::Unreadable(error) => {
            (SyncState::Unknown, Some(Reason::UnreadableReport { error: error.clone() }))
        }
        ReportView::Missing => without_report(va),
        ReportView::Read { report, age_ms } => {
            let resting = match (va.run_state, report.state) {
                (Some(RunState::Suspended), _) => Some((RunState::Suspended, Reason::Suspended)),
                (Some(RunState::Stopped), _) | (None, ServingState::Stopped) => {
                    Some((RunState::Stopped, Reason::Stopped))
                }
                (Some(RunState::Running), _) | (None, _) => None,
            };
            match resting {
                Some((run_state, _)) if report.generation == Some(desired) => {
                    let age_ms = *age_ms;
                    (SyncState::InSync, Some(Reason::AsOfLastReport { run_state, age_ms }))
                }
                Some((_, why)) => (SyncState::Pending, Some(why)),
                None => running(va, desired, report, *age_ms),
            }
        }
    }
}

fn without_report(va: &ObservedVa) -> (SyncState, Option<Reason>) {
    match va.run_state {
        Some(RunState::Running) => (SyncState::Unknown, Some(Reason::NoReport)),
        Some(RunState::Suspended) => (SyncState::Pending, Some(Reason::Suspended)),
        Some(RunState::Stopped) | None => (SyncState::Pending, Some(Reason::NeverStarted)),
    }
}

fn running(
    va: &ObservedVa,
    desired: GenerationId,
    report: &Report,
    age_ms: u64,
) -> (SyncState, Option<Reason>) {
    if !is_fresh(report, age_ms) {
        return (SyncState::Unknown, Some(Reason::Stale { age_ms }));
    }
    let serves = report.state == ServingState::Serving && report.generation == Some(desired);
    if serves {
        return (SyncState::InSync, None);
    }
    // An error of an earlier swap says nothing about this one.
    let tried = report.desired == Some(desired);
    let in_grace = va.ring_age_ms.is_some_and(|age| age <= SWAP_GRACE_MS);
    // Those that run before a swap take the time that they are given.
    let scripts = report.scripts.as_ref().map(|scripts| scripts.state);
    let runs_scripts = scripts == Some(ScriptsState::Running);
    match (&report.error, report.state) {
        (Some(error), _) if tried || !in_grace => {
            (SyncState::Failed, Some(Reason::Refused { error: error.clone() }))
        }
        (None, ServingState::Failed) if tried || !in_grace => {
            let error = "the VLFS failed and gave no reason".to_owned();
            (SyncState::Failed, Some(Reason::Refused { error }))
        }
        _ if in_grace || (tried && runs_scripts) => {
            (SyncState::Pending, Some(Reason::SwapUnderWay))
        }
        _ => (SyncState::Drifted, Some(Reason::OtherGeneration)),
    }
}

/// Whether a report of a running VA may be believed `age_ms` after it was written.
pub fn is_fresh(report: &Report, age_ms: u64) -> bool {
    let interval_s = report.interval_s.clamp(1, LONGEST_INTERVAL_S);
    age_ms <= STALE_INTERVALS * u64::from(interval_s) * 1000
}

/// How many VAs are in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Summary {
    pub total: u64,
    pub in_sync: u64,
    pub pending: u64,
    pub drifted: u64,
    pub failed: u64,
    pub unknown: u64,
}

impl Summary {
    pub fn of<'s>(states: impl IntoIterator<Item = &'s VaStatus>) -> Self {
        let mut summary = Summary::default();
        for status in states {
            summary.add(status.state);
        }
        summary
    }

    pub fn add(&mut self, state: SyncState) {
        self.total += 1;
        match state {
            SyncState::InSync => self.in_sync += 1,
            SyncState::Pending => self.pending += 1,
            SyncState::Drifted => self.drifted += 1,
            SyncState::Failed => self.failed += 1,
            SyncState::Unknown => self.unknown += 1,
        }
    }

    pub fn count(&self, state: SyncState) -> u64 {
        match state {
            SyncState::InSync => self.in_sync,
            SyncState::Pending => self.pending,
            SyncState::Drifted => self.drifted,
            SyncState::Failed => self.failed,
            SyncState::Unknown => self.unknown,
        }
    }

    pub fn all_in_sync(&self) -> bool {
        self.in_sync == self.total
    }
}

#[cfg(test)]
mod tests;
