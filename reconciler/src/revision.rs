//! Revisions of a repository that the operator works in, for `strata plan`.
//!
//! Objects are read by id; no work tree is touched and nothing is fetched.

use std::path::{Path, PathBuf};

use git2::{Oid, Repository, RepositoryOpenFlags};
use strata_core::source::SourceTree;

use crate::commit_tree::{self, ReadError};

#[derive(Debug, thiserror::Error)]
pub enum RevisionError {
    #[error("{0} is in no git repository")]
    NoRepository(PathBuf),
    #[error("the repository cannot be read: {0}")]
    Git(#[from] git2::Error),
    #[error("there is no revision {0:?}")]
    Unknown(String),
    #[error("the commit {commit}: {source}")]
    Read { commit: Oid, source: ReadError },
}

/// A commit and what the operator called it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Revision {
    pub revision: String,
    /// `None` for a directory as it stands, committed or not, and for nothing at all.
    pub commit: Option<String>,
}

/// The git repository of a GitOps repository's work tree, or a bare one.
pub struct WorkRepository {
    repository: Repository,
}

impl std::fmt::Debug for WorkRepository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("WorkRepository").field(&self.repository.path()).finish()
    }
}

impl WorkRepository {
    /// Opens the repository at `directory`, not one above it.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn open(directory: &Path) -> Result<Self, RevisionError> {
        let flags = RepositoryOpenFlags::NO_SEARCH;
        let none: [&Path; 0] = [];
        match Repository::open_ext(directory, flags, none) {
            Ok(repository) => Ok(WorkRepository { repository }),
            Err(error) if error.code() == git2::ErrorCode::NotFound => {
                Err(RevisionError::NoRepository(directory.to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The commit that a revision names.
    ///
    /// # Errors
    /// There is no such commit.
    pub fn resolve(&self, revision: &str) -> Result<Oid, RevisionError> {
        let unknown = |_| RevisionError::Unknown(revision.to_owned());
        let object = self.repository.revparse_single(revision).map_err(unknown)?;
        Ok(object.peel_to_commit().map_err(unknown)?.id())
    }

    /// The commit where the history of `head` left that of `base`: what lies between
    /// is what merging `head` brings. `base` itself where the two share nothing.
    ///
    /// # Errors
    /// The history cannot be read.
    pub fn merge_base(&self, base: Oid, head: Oid) -> Result<Oid, RevisionError> {
        match self.repository.merge_base(base, head) {
            Ok(found) => Ok(found),
            Err(error) if error.code() == git2::ErrorCode::NotFound => Ok(base),
            Err(error) => Err(error.into()),
        }
    }

    /// The first parent of a commit; `None` for the first commit.
    ///
    /// # Errors
    /// The commit cannot be read.
    pub fn parent(&self, commit: Oid) -> Result<Option<Oid>, RevisionError> {
        Ok(self.repository.find_commit(commit)?.parent_ids().next())
    }

    /// What concerns Strata of a commit.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(&self, commit: Oid) -> Result<SourceTree, RevisionError> {
        commit_tree::read(&self.repository, commit)
            .map_err(|source| RevisionError::Read { commit, source })
    }
}
