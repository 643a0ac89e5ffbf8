//! What rollouts make of the reconciler's conditions.

use serde::Serialize;
use strata_core::CompositionName;
use strata_core::rollout::RolloutState;

use super::file::RolloutFile;
use crate::state::{Condition, ConditionKind};

/// A rollout that is not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unfinished {
    pub composition: CompositionName,
    pub phase: &'static str,
    pub message: String,
}

/// The rollouts that are not done, with why.
pub fn unfinished(file: &RolloutFile) -> Vec<Unfinished> {
    let open = file.compositions.iter().filter(|(_, state)| state.phase() != "done");
    let told = open.map(|(composition, state)| Unfinished {
        composition: composition.clone(),
        phase: state.phase(),
        message: message(state),
    });
    told.collect()
}

fn message(state: &RolloutState) -> String {
    let quarantined = state.quarantined.as_ref().map(|quarantine| quarantine.reason.clone());
    let halted = || state.halted.as_ref().map(|halt| halt.reason.clone());
    let paused = || state.paused.as_ref().map(|pause| pause.reason.clone());
    let waiting = || state.waiting.as_ref().map(ToString::to_string);
    quarantined.or_else(halted).or_else(paused).or_else(waiting).unwrap_or_default()
}

/// Ready only where all rollouts are done; Stalled where one needs a commit or an
/// operator; Reconciling where one goes on by itself.
pub fn refine(mut conditions: [Condition; 4], unfinished: &[Unfinished]) -> [Condition; 4] {
    let stuck = unfinished.iter().find(|open| matches!(open.phase, "quarantined" | "halted"));
    let going = unfinished.iter().find(|open| matches!(open.phase, "rolling" | "paused"));
    let mut set = |kind: ConditionKind, status: bool, reason: &str, open: &Unfinished| {
        for condition in conditions.iter_mut().filter(|condition| condition.kind == kind) {
            // What the source itself has to say comes first.
            if condition.status != status {
                condition.status = status;
                condition.reason = reason.to_owned();
                condition.message = format!("{}: {}", open.composition, open.message);
            }
        }
    };
    if let Some(open) = stuck {
        let reason = if open.phase == "halted" { "RolloutHalted" } else { "Quarantined" };
        set(ConditionKind::Ready, false, reason, open);
        set(ConditionKind::Stalled, true, reason, open);
    }
    if let Some(open) = going {
        set(ConditionKind::Ready, false, "RollingOut", open);
        set(ConditionKind::Reconciling, true, "RollingOut", open);
    }
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Found, ReconcileState};

    #[test]
    fn rollouts_show_in_the_conditions() {
        let applied = Found::Applied { commit: "a".to_owned() };
        let conditions = ReconcileState::new(String::new()).after(&applied, 1).conditions();
        let open = |phase| Unfinished {
            composition: "web".parse().expect("valid"),
            phase,
            message: "ill".to_owned(),
        };
        for (phases, expected) in [
            (vec![], [true, false, false]),
            (vec!["rolling"], [false, true, false]),
            (vec!["quarantined"], [false, false, true]),
            (vec!["rolling", "halted"], [false, true, true]),
        ] {
            let open: Vec<_> = phases.iter().copied().map(open).collect();
            let refined = refine(conditions.clone(), &open);
            let status = refined.map(|condition| condition.status);
            assert_eq!(status[..3], expected, "{phases:?}");
        }
    }
}
