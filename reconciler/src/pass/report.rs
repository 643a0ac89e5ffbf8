//! What a pass found and did, as data: for the command line, the state, the log and the
//! metrics.

use std::time::Instant;

use serde::Serialize;
use strata_core::CompositionName;
use strata_core::diagnostic::Diagnostic;
use strata_core::event::EventRecord;
use strata_core::plan::{Action, Note};
use strata_core::rollout::Waiting;

use super::PassError;
use crate::rollout::Stepped;
use crate::source::Source;
use crate::state::{Fallback, Found, RefusalReason, TestingState};
use crate::traces::spans::{self, Origin};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PassResult {
    /// The store was changed.
    Applied,
    /// The store said what the commit says already.
    Unchanged,
    Refused,
}

impl PassResult {
    pub fn as_str(self) -> &'static str {
        match self {
            PassResult::Applied => "applied",
            PassResult::Unchanged => "unchanged",
            PassResult::Refused => "refused",
        }
    }
}

/// What a pass found and did. The JSON form is specified in `docs/formats.md`.
#[derive(Debug, Clone, Serialize)]
pub struct PassReport {
    pub source: String,
    pub commit: String,
    /// The remote that was used because those before it failed.
    pub fallback: Option<Fallback>,
    /// The testing branch, where one is followed.
    pub testing: Option<TestingState>,
    /// Who signed the commit, where that was checked in this pass.
    pub signer: Option<String>,
    pub result: PassResult,
    pub refusal: Option<RefusalReason>,
    pub message: Option<String>,
    pub actions: Vec<Action>,
    pub notes: Vec<Note>,
    pub events: Vec<EventRecord>,
    /// What rollouts wait for.
    pub waiting: Vec<RolloutWaits>,
    pub diagnostics: Vec<Diagnostic>,
    /// `rename(2)` calls in the store.
    pub renames: u64,
    pub timings: Timings,
    /// False where an earlier pass of this process found just the same.
    #[serde(skip)]
    pub news: bool,
    /// When the commit was made, where it was seen for the first time.
    #[serde(skip)]
    pub committed_at_ms: Option<u64>,
    /// Where what was done is in a trace.
    #[serde(skip)]
    pub trace: Origin,
    /// When rollouts have something to do, in milliseconds since 1970.
    #[serde(skip)]
    pub wake_at_ms: Option<u64>,
}

/// A rollout that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RolloutWaits {
    pub composition: CompositionName,
    pub waiting: Waiting,
}

impl PassReport {
    pub(super) fn new(source: &Source, commit: String) -> Self {
        PassReport {
            source: source.to_string(),
            commit,
            fallback: None,
            testing: None,
            signer: None,
            result: PassResult::Refused,
            refusal: None,
            message: None,
            actions: Vec::new(),
            notes: Vec::new(),
            events: Vec::new(),
            waiting: Vec::new(),
            diagnostics: Vec::new(),
            renames: 0,
            timings: Timings::default(),
            news: false,
            committed_at_ms: None,
            trace: Origin::default(),
            wake_at_ms: None,
        }
    }

    /// Takes over what a step of the rollouts did.
    pub(super) fn add(&mut self, stepped: Stepped) {
        self.news |= !stepped.actions.is_empty() || !stepped.events.is_empty();
        self.actions.extend(stepped.actions);
        self.notes.extend(stepped.notes);
        self.events.extend(stepped.events);
        let waits = |(composition, waiting)| RolloutWaits { composition, waiting };
        self.waiting.extend(stepped.waiting.into_iter().map(waits));
        self.wake_at_ms = stepped.wake_at_ms;
        self.trace.or(stepped.trace);
    }

    /// What it says of the commit, for the reconciler's state.
    pub(super) fn found(&self) -> Found {
        let commit = self.commit.clone();
        match self.refusal {
            None => Found::Applied { commit },
            Some(reason) => Found::Refused {
                commit,
                reason,
                message: self.message.clone().unwrap_or_default(),
                problems: self.diagnostics.iter().map(Diagnostic::to_string).collect(),
            },
        }
    }

    /// The commit is not taken.
    pub(super) fn refuse(&mut self, reason: RefusalReason, message: String) {
        self.refusal = Some(reason);
        self.message = Some(message);
    }
}

/// Milliseconds that the parts of a pass took.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Timings {
    pub fetch_ms: f64,
    pub check_ms: f64,
    pub plan_ms: f64,
    pub apply_ms: f64,
    pub total_ms: f64,
}

/// Milliseconds since `since`, which becomes now.
pub(super) fn lap(since: &mut Instant) -> f64 {
    let elapsed = since.elapsed();
    *since = Instant::now();
    elapsed.as_secs_f64() * 1000.0
}

/// Says in the span of a pass how it ended.
pub(super) fn trace(passed: &Result<PassReport, PassError>, span: &spans::Pass) {
    let report = match passed {
        Ok(report) => report,
        Err(error) => return span.failed(error),
    };
    span.set("source", report.source.clone());
    span.set("result", report.result.as_str());
    if let Some(reason) = report.refusal {
        span.set("refusal", reason.to_string());
    }
    let count = |which: fn(&Action) -> bool| {
        let count = report.actions.iter().filter(|action| which(action)).count();
        i64::try_from(count).unwrap_or(i64::MAX)
    };
    span.set("rings", count(|action| matches!(action, Action::MoveRing { .. })));
    span.set("vas", count(|action| matches!(action, Action::LinkVa { .. })));
    span.set("renames", i64::try_from(report.renames).unwrap_or(i64::MAX));
}
