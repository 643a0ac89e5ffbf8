//! Takes the moves of a rollout: links of rings, and of VAs that move in batches.
//!
//! Each move can be taken twice, and stopped anywhere, the rollout's next step gives
//! the rest of it again.

use strata_core::CompositionName;
use strata_core::links::VaTarget;
use strata_core::plan::Action;
use strata_core::rollout::RingMove;
use strata_core::rollout::policy::staged_ring;
use strata_store::{Store, StoreError};

/// A composition's links could not be moved.
#[derive(Debug, thiserror::Error)]
#[error("{composition}: {source}")]
pub struct MoveError {
    pub composition: CompositionName,
    pub source: StoreError,
}

/// Takes the moves in order. Returns those of rings, as actions of the pass.
///
/// # Errors
/// The first move that failed; those before it stand.
pub fn take(
    store: &Store,
    composition: &CompositionName,
    moves: &[RingMove],
) -> Result<Vec<Action>, MoveError> {
    let mut actions = Vec::new();
    for step in moves {
        let taken = match step {
            RingMove::Ring { ring, from, to } => {
                let (composition, ring) = (composition.clone(), ring.clone());
                let moved = store.move_ring(&composition, &ring, to);
                actions.push(Action::MoveRing { composition, ring, from: *from, to: *to });
                moved
            }
            RingMove::Stage { ring, to, vas } => stage(store, composition, ring, to, vas),
            RingMove::Unstage { ring } => unstage(store, composition, ring),
        };
        taken.map_err(|source| MoveError { composition: composition.clone(), source })?;
    }
    Ok(actions)
}

fn stage(
    store: &Store,
    composition: &CompositionName,
    ring: &strata_core::RingName,
    to: &strata_core::GenerationId,
    vas: &[strata_core::MacAddr],
) -> Result<(), StoreError> {
    let staged = staged_ring(ring);
    if store.ring(composition, &staged)? != Some(*to) {
        store.move_ring(composition, &staged, to)?;
    }
    let (composition, ring) = (composition.clone(), ring.clone());
    let own = VaTarget::Ring { composition: composition.clone(), ring };
    let target = VaTarget::Ring { composition, ring: staged };
    for mac in vas {
        // Whoever was moved or pinned meanwhile is left alone.
        if store.va_target(*mac)?.as_ref() == Some(&own) {
            store.move_va(*mac, &target)?;
        }
    }
    Ok(())
}

fn unstage(
    store: &Store,
    composition: &CompositionName,
    ring: &strata_core::RingName,
) -> Result<(), StoreError> {
    let staged = staged_ring(ring);
    let own = VaTarget::Ring { composition: composition.clone(), ring: ring.clone() };
    let from = VaTarget::Ring { composition: composition.clone(), ring: staged.clone() };
    for (mac, target) in store.va_links()?.targets {
        if target == from {
            store.move_va(mac, &own)?;
        }
    }
    store.remove_ring(composition, &staged)
}
