//! State files that are gone are made anew: from the links, and from the audit log, as far as its
//! chain holds.
//!
//! A file that is there and cannot be read is none of this: it is an error, and an
//! operator decides.

use strata_core::audit::Record;
use strata_core::event::Event;
use strata_core::rollout::memory::{self, Memory};
use strata_core::rollout::{Input, RolloutState};
use strata_store::{Store, StoreError};

use crate::audit::{self, Verified};
use crate::state::CommitRecord;

/// What the audit log tells.
#[derive(Debug)]
pub struct Told {
    memory: Memory,
    /// The last commit that was applied.
    pub applied: Option<CommitRecord>,
    /// Whether the log is there, and its chain holds to the end.
    whole: bool,
    /// Why there may be something that is not known here.
    pub doubt: Option<String>,
}

/// Reads the audit log.
///
/// # Errors
/// It cannot be read.
pub fn replay(store: &Store) -> Result<Told, StoreError> {
    let (mut memory, mut applied) = (Memory::default(), None);
    let verified = audit::replay(store, &mut |record: &Record| {
        memory.take(record.at_ms, &record.event);
        if let Event::CommitApplied { commit, .. } = &record.event {
            applied = Some(CommitRecord { commit: commit.clone(), at_ms: record.at_ms });
        }
    })?;
    let whole = verified.broken.is_none() && verified.records > 0;
    Ok(Told { memory, applied, whole, doubt: doubt(&verified) })
}

fn doubt(verified: &Verified) -> Option<String> {
    match (&verified.broken, verified.first) {
        (Some(broken), _) => Some(format!(
            "the audit log is broken at record {} ({}:{}: {}), so what came after it is not known",
            broken.seq, broken.file, broken.line, broken.reason
        )),
        (None, None) => Some("the audit log is gone as well".to_owned()),
        (None, Some(first @ 2..)) => Some(format!(
            "the audit log begins at record {first}: pauses from before are not known"
        )),
        (None, Some(_)) => None,
    }
}

impl Told {
    /// Whether it tells of any rollout at all.
    pub fn knows_rollouts(&self) -> bool {
        !self.memory.is_empty()
    }

    /// The state of a rollout that was lost, and whether it is held because too little is
    /// known. `None` where the composition is new.
    pub fn rollout(&self, store: &Store, input: &Input<'_>) -> Option<(RolloutState, bool)> {
        let mut known = self.memory.of(input.composition).cloned();
        if let Some(known) = &mut known {
            known.keep_good(|generation| store.has_generation(generation));
        }
        memory::rebuild(known.as_ref(), self.whole, input)
    }
}

/// What of a rollout's state the links do not tell.
pub fn kept(input: &Input<'_>, state: &RolloutState) -> Vec<String> {
    let quarantined = state.quarantined.as_ref().map(|quarantine| {
        format!("{} is quarantined", strata_core::event::short(&quarantine.commit))
    });
    let halted = state.halted.as_ref().map(|_| "halted".to_owned());
    let paused = state.paused.as_ref().map(|_| "paused".to_owned());
    let all = [quarantined, halted, paused].into_iter().flatten();
    all.map(|text| format!("{}: {text}", input.composition)).collect()
}
