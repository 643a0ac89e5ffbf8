//! The high-water commit of a store whose `state/reconcile.json` is gone.

use strata_core::event::Event;
use strata_store::Store;

use super::PassError;
use crate::rollout::rebuild;
use crate::state::{self, ReconcileState};

/// The state of a store that has none: it is new, or the file was lost. Then the audit log
/// tells below which commit the branch may not be rewritten.
pub(super) fn state(store: &Store) -> Result<(ReconcileState, Option<Event>), PassError> {
    let told = rebuild::replay(store)?;
    let kept = told.applied.iter().map(|applied| format!("{} was applied", applied.commit));
    let kept: Vec<_> = kept.collect();
    let applied = told.applied.clone();
    let state = ReconcileState { applied, ..ReconcileState::new(String::new()) };
    // After a crash in the first pass of all, the log tells of rollouts and of no commit yet.
    let begun = told.doubt.is_none() && told.knows_rollouts();
    let is_new = state.applied.is_none() && (begun || store.rings()?.is_empty());
    let doubt = match &state.applied {
        Some(_) => told.doubt,
        None => {
            let doubt = told.doubt.unwrap_or_else(|| "the audit log names no commit".to_owned());
            Some(format!("{doubt}: whatever is on the branch is taken"))
        }
    };
    let event = Event::StateRebuilt { file: state::PATH.to_owned(), kept, doubt };
    Ok((state, Some(event).filter(|_| !is_new)))
}
