//! Where commits come from: repositories in the order in which they are asked, and
//! what of them is followed.
//!
//! Everything here is safe to hand to git once it was constructed, and displaying it
//! shows no credentials.

mod credentials;
mod remote;
mod selector;
mod testing;

use std::fmt;
use std::path::{Path, PathBuf};

pub use credentials::{Credentials, Token};
pub use remote::Remote;
pub use selector::{Ambiguous, Selector, highest};
pub use testing::Testing;

/// Protocols that git may use, in the form of `GIT_ALLOW_PROTOCOL`. `git://` and
/// `http://` are left out: neither proves who answers.
pub const ALLOWED_PROTOCOLS: &str = "file:https:ssh";
/// Bytes of a secret from which on it is masked wherever it stands in a text: a shorter one would be
/// told by the words that have its letters.
const MASKED_BYTES: usize = 4;

/// Remotes of one source.
const REMOTES: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error("the source is empty")]
    Empty,
    #[error("the source {0:?} contains white space or a control character")]
    Character(String),
    #[error("the source {0} is not allowed: use a path, file://, https:// or ssh://")]
    Protocol(String),
    #[error("the source {0} names no host, or one that looks like an option")]
    Host(String),
    #[error("the source {path}: {error}")]
    Path { path: String, error: String },
    #[error("{0:?} is no name for a branch")]
    Branch(String),
    #[error("{0:?} is no name for a tag")]
    Tag(String),
    #[error("{0:?} is no range of versions: {1}")]
    Range(String, String),
    #[error("{0:?} is no commit id of 40 digits")]
    Commit(String),
    #[error("it names no definition, or too many")]
    NoDefinition,
    #[error("{0:?} is no definition: write templates/NAME or appliances/NAME")]
    Definition(String),
    #[error("a source has from one to {REMOTES} remotes")]
    Remotes,
    #[error("the source {0} holds a password or token")]
    Password(String),
    #[error("the source {0} takes no such credentials: tokens are for https://, keys for SSH")]
    Credentials(String),
    #[error("{0:?} must be an absolute path of letters, digits and / . _ - + @ , :")]
    CredentialPath(PathBuf),
}

/// What is followed, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    remotes: Vec<Remote>,
    selector: Selector,
    testing: Option<Testing>,
}

impl Source {
    /// A branch of one repository.
    ///
    /// # Errors
    /// See [`Remote::parse`] and [`Selector::branch`].
    pub fn parse(text: &str, branch: &str) -> Result<Self, SourceError> {
        Self::new(vec![Remote::parse(text)?], Selector::branch(branch)?)
    }

    /// Remotes in the order in which they are asked.
    ///
    /// # Errors
    /// There are none, or too many.
    pub fn new(remotes: Vec<Remote>, selector: Selector) -> Result<Self, SourceError> {
        match remotes.len() {
            1..=REMOTES => Ok(Source { remotes, selector, testing: None }),
            _ => Err(SourceError::Remotes),
        }
    }

    #[must_use]
    pub fn with_testing(self, testing: Testing) -> Self {
        Source { testing: Some(testing), ..self }
    }

    pub fn testing(&self) -> Option<&Testing> {
        self.testing.as_ref()
    }

    /// At least one.
    pub fn remotes(&self) -> &[Remote] {
        &self.remotes
    }

    pub fn selector(&self) -> &Selector {
        &self.selector
    }

    /// The directory of the first remote, where that is on this host.
    pub fn local_path(&self) -> Option<&Path> {
        self.remotes[0].local_path()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.remotes[0], self.selector)
    }
}
