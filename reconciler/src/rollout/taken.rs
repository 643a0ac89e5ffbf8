//! What a commit wants of rollouts; without one, what the last that was taken wanted.

use std::collections::BTreeMap;

use strata_core::audit::Who;
use strata_core::plan::Desired;
use strata_core::rollout::RolloutState;
use strata_core::rollout::policy::RolloutPolicy;
use strata_core::{CompositionName, Digest, GenerationId, health_checks};

use super::file::RolloutFile;
use crate::traces::spans::Origin;

/// What a commit that was accepted wants of rollouts.
#[derive(Debug)]
pub struct Taken {
    pub commit: String,
    /// On whose account all that follows from it happens.
    pub who: Who,
    /// The pass that took it.
    pub origin: Origin,
    pub desired: Desired,
    /// The digests of templates' health checks, of those that have any.
    pub checks: BTreeMap<CompositionName, Digest>,
    pub policy: RolloutPolicy,
    /// The text that the policy was read from.
    pub policy_text: String,
}

impl Taken {
    /// By what the VAs of a composition are judged.
    pub(super) fn checks_of(&self, composition: &CompositionName) -> Digest {
        self.checks.get(composition).copied().unwrap_or_else(|| health_checks::digest(&[]))
    }
}

/// What a composition is to be, the commit that wants it, and what it is judged by.
pub(super) struct Wish {
    pub composition: CompositionName,
    pub target: GenerationId,
    pub commit: String,
    pub checks: Option<Digest>,
}

/// What every composition is to be.
pub(super) fn wishes(taken: Option<&Taken>, file: &RolloutFile) -> Vec<Wish> {
    match taken {
        Some(taken) => {
            let wanted = taken.desired.compositions.iter();
            let wish = |(composition, target): (&CompositionName, &GenerationId)| Wish {
                composition: composition.clone(),
                target: *target,
                commit: taken.commit.clone(),
                checks: Some(taken.checks_of(composition)),
            };
            wanted.map(wish).collect()
        }
        None => {
            let remembered = file.compositions.iter();
            let wish = |(composition, state): (&CompositionName, &RolloutState)| Wish {
                composition: composition.clone(),
                target: state.target,
                commit: state.commit.clone(),
                checks: None,
            };
            remembered.map(wish).collect()
        }
    }
}
