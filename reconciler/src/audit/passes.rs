//! What a pass has to tell beside what its rollouts do.

use strata_core::event::{Event, EventRecord};
use strata_core::links::VaTarget;
use strata_core::plan::Action;

use crate::pass::{PassError, PassReport};
use crate::state::Failure;

/// Problems of a refused commit that are kept.
const PROBLEMS: usize = 20;

/// How a pass ended.
pub fn ended(passed: &Result<PassReport, PassError>, at_ms: u64) -> EventRecord {
    let event = match passed {
        Err(error) => Event::PassFailed { message: error.to_string() },
        Ok(report) => {
            let (commit, took_ms) = (report.commit.clone(), report.timings.total_ms as u64);
            match report.refusal {
                None => Event::CommitApplied { commit, took_ms },
                Some(reason) => Event::CommitRefused {
                    commit,
                    reason: reason.to_string(),
                    message: report.message.clone().unwrap_or_default(),
                    problems: report
                        .diagnostics
                        .iter()
                        .take(PROBLEMS)
                        .map(ToString::to_string)
                        .collect(),
                    took_ms,
                },
            }
        }
    };
    EventRecord::new(at_ms, event)
}

/// That passes work again.
pub fn recovered(failure: &Failure, at_ms: u64) -> EventRecord {
    let (message, failing_ms) = (failure.message.clone(), at_ms.saturating_sub(failure.at_ms));
    EventRecord::new(at_ms, Event::PassRecovered { message, failing_ms })
}

/// The links of VAs that are about to be made or moved.
pub fn links(actions: &[Action], at_ms: u64) -> Vec<EventRecord> {
    let events = actions.iter().filter_map(|action| match action {
        Action::LinkVa { name, mac, from, to } => Some(Event::VaLinked {
            name: name.clone(),
            mac: *mac,
            from: from.as_ref().map(target),
            to: target(to),
        }),
        Action::SealLayer { .. } | Action::SealGeneration { .. } | Action::MoveRing { .. } => None,
    });
    events.map(|event| EventRecord::new(at_ms, event)).collect()
}

/// Where a link leads, for people.
fn target(target: &VaTarget) -> String {
    match target {
        VaTarget::Ring { composition, ring } => format!("{composition}/{ring}"),
        VaTarget::Pinned { composition, generation } => {
            format!("{composition}@{}", generation.short())
        }
    }
}
