//! Revisions of a repository that the operator works in, for `strata plan`,
//! `strata update` and `strata template`.
//!
//! Objects are read and written by id; nothing is fetched, and no work tree is touched but
//! by [`WorkRepository::commit_to_head`].

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
    #[error("{0} is a bare repository: there is no work tree to commit")]
    Bare(PathBuf),
    #[error("{0} has no commit yet")]
    NoCommit(PathBuf),
    #[error("in {0} a merge, rebase or the like is under way")]
    Unfinished(PathBuf),
    #[error("git is to sign commits here (commit.gpgsign), which strata cannot")]
    Signing,
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

    /// Opens the repository at `directory` if a commit can be made there on what is
    /// checked out.
    ///
    /// # Errors
    /// As [`WorkRepository::open`], or a commit is not possible, or not without more.
    pub fn open_to_commit(directory: &Path) -> Result<Self, RevisionError> {
        let work = Self::open(directory)?;
        let repository = &work.repository;
        let path = || directory.to_owned();
        if repository.is_bare() {
            return Err(RevisionError::Bare(path()));
        }
        if repository.state() != git2::RepositoryState::Clean {
            return Err(RevisionError::Unfinished(path()));
        }
        match repository.head() {
            Err(error) if error.code() == git2::ErrorCode::UnbornBranch => {
                return Err(RevisionError::NoCommit(path()));
            }
            head => head?,
        };
        work.identity("GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")?;
        if repository.config()?.get_bool("commit.gpgsign").unwrap_or(false) {
            return Err(RevisionError::Signing);
        }
        Ok(work)
    }

    /// A file of the commit that is checked out; `None` where there is no such file.
    ///
    /// # Errors
    /// The commit cannot be read.
    pub fn text_at_head(&self, path: &str) -> Result<Option<Vec<u8>>, RevisionError> {
        let tree = self.repository.head()?.peel_to_tree()?;
        match tree.get_path(Path::new(path)) {
            Err(error) if error.code() == git2::ErrorCode::NotFound => Ok(None),
            entry => Ok(Some(self.repository.find_blob(entry?.id())?.content().to_vec())),
        }
    }

    /// Commits these files, as the work tree has them, on what is checked out. What
    /// else is changed or staged stays so.
    ///
    /// # Errors
    /// The index or the commit cannot be written, or another commit came first.
    pub fn commit_to_head(
        &self,
        files: &BTreeMap<String, String>,
        message: &str,
    ) -> Result<Oid, RevisionError> {
        let head = self.repository.head()?.resolve()?;
        let parent = head.peel_to_commit()?.id();
        let commit = self.commit(parent, files, message)?;
        // Cut off after this, the files are staged and not committed.
        let mut index = self.repository.index()?;
        for path in files.keys() {
            index.add_path(Path::new(path))?;
        }
        index.write()?;
        let name = std::str::from_utf8(head.name_bytes())
            .map_err(|_| git2::Error::from_str("the branch has no UTF-8 name"))?;
        let subject = message.lines().next().unwrap_or_default();
        let log = format!("commit: {subject}");
        self.repository.reference_matching(name, commit, true, parent, &log)?;
        Ok(commit)
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

    /// Whether git takes a branch of this name.
    pub fn is_branch_name(name: &str) -> bool {
        git2::Branch::name_is_valid(name).unwrap_or(false)
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
        let committer = self.identity("GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")?;
        let author = self.identity("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL")?;
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
        Ok(self.repository.commit(None, &author, &committer, message, &tree, &[&parent])?)
    }

    /// Who commits: as the environment says, and what it leaves out as git's configuration
    /// does, which is how git itself does it.
    fn identity(&self, name: &str, email: &str) -> Result<git2::Signature<'static>, RevisionError> {
        let said = |key: &str| std::env::var(key).ok().filter(|text| !text.trim().is_empty());
        let (name, email) = match (said(name), said(email)) {
            (Some(name), Some(email)) => (name, email),
            (name, email) => {
                let configured = self.repository.signature().map_err(RevisionError::Committer)?;
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let name = name.unwrap_or_else(|| text(configured.name_bytes()));
                (name, email.unwrap_or_else(|| text(configured.email_bytes())))
            }
        };
        git2::Signature::now(&name, &email).map_err(RevisionError::Committer)
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
