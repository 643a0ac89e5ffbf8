//! Why a pass failed, what to do about it, and what an operator can do.

use strata_store::StoreError;

use crate::apply::ApplyError;
use crate::audit::AuditError;
use crate::commit_tree::ReadError;
use crate::mirror::MirrorError;
use crate::rollout::{RolloutError, RolloutFileError};
use crate::state::StateError;
use crate::trust::TrustError;

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Try again, each time after a longer wait.
    Retry,
    /// Nothing will get better by itself: an operator must act.
    Fatal,
}

#[derive(Debug, thiserror::Error)]
pub enum PassError {
    #[error("another reconciler works on this store{holder}")]
    Locked { holder: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    #[error("the commit {commit}: {source}")]
    Read { commit: String, source: ReadError },
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(transparent)]
    Trust(#[from] TrustError),
}

impl PassError {
    pub fn policy(&self) -> Policy {
        match self {
            PassError::Locked { .. } => Policy::Fatal,
            PassError::State(
                StateError::Damaged(_) | StateError::Version(_) | StateError::Commit,
            ) => Policy::Fatal,
            PassError::Rollout(RolloutError::File(
                RolloutFileError::Damaged(_) | RolloutFileError::Version(_),
            )) => Policy::Fatal,
            PassError::State(StateError::Store(_))
            | PassError::Rollout(_)
            | PassError::Audit(_)
            | PassError::Trust(_)
            | PassError::Store(_)
            | PassError::Mirror(_)
            | PassError::Read { .. }
            | PassError::Apply(_) => Policy::Retry,
        }
    }

    /// What an operator can do.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            PassError::Locked { .. } => Some("stop it first; one reconciler serves a whole store"),
            PassError::State(StateError::Damaged(_) | StateError::Commit) => Some(
                "it guards against rewritten branches: restore it, or remove it, and the audit log tells what was applied last",
            ),
            PassError::Rollout(RolloutError::File(RolloutFileError::Damaged(_))) => {
                Some("restore it, or remove it: the links and the audit log then tell the rest")
            }
            PassError::Store(StoreError::Io { source, .. })
            | PassError::Rollout(RolloutError::Store(StoreError::Io { source, .. }))
                if source.kind() == std::io::ErrorKind::NotADirectory =>
            {
                Some("something else stands where a directory should: move it away")
            }
            PassError::Store(StoreError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem =>
            {
                Some("the store is mounted read-only here; a reconciler must be able to write it")
            }
            PassError::Mirror(MirrorError::Missing { .. }) => Some(
                "see what it has: git ls-remote SOURCE; what is followed stands under [source] in the settings",
            ),
            PassError::Mirror(MirrorError::Fetch { .. } | MirrorError::All(_)) => {
                Some("try by hand: git ls-remote SOURCE; what was applied before stays as it is")
            }
            PassError::Mirror(MirrorError::TooLarge { .. }) => {
                Some("raise --fetch-limit, or take out of the repository what is large")
            }
            PassError::Trust(TrustError::List { .. }) => {
                Some("the settings name it under [trust]; what was applied before stays as it is")
            }
            PassError::Trust(TrustError::Child(_)) => {
                Some("ssh-keygen (openssh-client) and gpgv check signatures; install them")
            }
            _ => None,
        }
    }
}
