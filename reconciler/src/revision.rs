//! Revisions of a repository that the operator works in, for `strata plan` and
//! `strata update`.
//!
//! Objects are read and written by id; no work tree is touched and nothing is fetched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use git2::{BranchType, FileMode, Oid, Repository, RepositoryOpenFlags};
use strata_core::source::SourceTree;

use crate::commit_tree::{self, ReadError};

#[derive(Debug, thiserror::Error)]
pub enum RevisionError {
    #[error("{0} is in no git repository")]
    NoRepository(PathBuf),
    #[error("the repository cannot be read: {0}")]
    Git(#[from] git2::Error),
    #[error("git does not know who commits: {0}")]
    Committer(git2::Error),
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

    /// Whether a branch of this name is there.
    pub fn has_branch(&self, name: &str) -> bool {
        self.repository.find_branch(name, BranchType::Local).is_ok()
    }

    /// Whether the branch is the one that is checked out.
    pub fn is_checked_out(&self, name: &str) -> bool {
        let head = self.repository.find_reference("HEAD");
        let target =
            head.ok().and_then(|head| head.symbolic_target().ok().flatten().map(str::to_owned));
        target.is_some_and(|target| target == format!("refs/heads/{name}"))
    }

    /// Makes a commit on top of `parent` in which these files have this text. No work
    /// tree and no branch is touched.
    ///
    /// # Errors
    /// git knows no name and address of the committer, or the objects cannot be written.
    pub fn commit(
        &self,
        parent: Oid,
        files: &BTreeMap<String, String>,
        message: &str,
    ) -> Result<Oid, RevisionError> {
        let committer = self.repository.signature().map_err(RevisionError::Committer)?;
        let parent = self.repository.find_commit(parent)?;
        let tree = parent.tree()?;
        let mut builder = git2::build::TreeUpdateBuilder::new();
        for (path, text) in files {
            let executable =
                tree.get_path(Path::new(path)).is_ok_and(|e| e.filemode() & 0o100 != 0);
            let mode = if executable { FileMode::BlobExecutable } else { FileMode::Blob };
            builder.upsert(path, self.repository.blob(text.as_bytes())?, mode);
        }
        let tree = self.repository.find_tree(builder.create_updated(&self.repository, &tree)?)?;
        Ok(self.repository.commit(None, &committer, &committer, message, &tree, &[&parent])?)
    }

    /// Sets a branch, in one step.
    ///
    /// # Errors
    /// The name is no branch's, or the branch is there and `replace` is not set.
    pub fn set_branch(&self, name: &str, commit: Oid, replace: bool) -> Result<(), RevisionError> {
        let commit = self.repository.find_commit(commit)?;
        self.repository.branch(name, &commit, replace)?;
        Ok(())
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
