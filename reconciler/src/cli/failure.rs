//! How a command ends.

use std::fmt;
use std::io::ErrorKind;
use std::path::Path;

use strata_core::configuration::CONFIGURATION_FILE;
use strata_core::printable::printable_lines;
use strata_core::{Diagnostic, Severity};
use strata_store::StoreError;

use crate::directory::DirectoryError;

/// What a command that did its work found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done, or no difference. Exit status 0.
    Done,
    /// A difference, or a check that did not hold. Exit status 1.
    Difference,
}

/// Refuses a `strata.toml` with faults: of a filter or a pin that could not be read, nobody
/// knows what it would have kept out.
///
/// # Errors
/// The first fault.
pub fn refuse_faulty_configuration(
    diagnostics: &[Diagnostic],
    directory: &Path,
) -> Result<(), Failure> {
    match diagnostics.iter().find(|found| is_of_configuration(found)) {
        None => Ok(()),
        Some(fault) => {
            Err(Failure::new(fault)
                .hint(format!("see them all: strata check {}", directory.display())))
        }
    }
}

/// Whether something is wrong with `strata.toml`.
pub fn is_of_configuration(found: &Diagnostic) -> bool {
    found.severity == Severity::Error && found.file == CONFIGURATION_FILE
}

/// Why a command could not do its work, and what to do about it. Exit status 2.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
}

impl Failure {
    pub fn new(message: impl fmt::Display) -> Self {
        Failure { message: message.to_string(), hint: None }
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Prints it to stderr, the hint on a line of its own.
    pub fn print(&self) {
        eprintln!("error: {}", printable_lines(&self.message));
        if let Some(hint) = &self.hint {
            eprintln!("hint: {}", printable_lines(hint));
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let hint = match &error {
            StoreError::NotAStore(path) => Some(format!(
                "name the store with --store or STRATA_STORE, or make it: strata init {}",
                path.display()
            )),
            StoreError::NoRepository(name) => Some(format!(
                "`strata repo list` prints those that there are; to make it, import layers: strata layer import --repo {name} FILE.deb …"
            )),
            StoreError::Mirror(_) => {
                Some("`strata repo sync DIR` brings what was changed there".to_owned())
            }
            StoreError::Misplaced { .. } => Some(
                "a unit's directory is LAYER_VERSION: rename it, or move it out of the repository"
                    .to_owned(),
            ),
            StoreError::Locked(_) => Some("wait for the other process, or end it".to_owned()),
            StoreError::Damaged { .. } => {
                Some("restore the unit from its source under the same version".to_owned())
            }
            StoreError::NoVerity { .. } => Some(
                "ext4: tune2fs -O verity DEVICE; btrfs and f2fs have it; the kernel needs CONFIG_FS_VERITY"
                    .to_owned(),
            ),
            StoreError::NoAccess { path, .. } => Some(format!(
                "file permissions decide who reads a repository: see ls -ld {}, and ask its owner for its group",
                path.parent().unwrap_or(path).display()
            )),
            StoreError::Compression { .. } => {
                Some("restore the file, or move it away and run `strata repo index`".to_owned())
            }
            StoreError::NoMirror(name) => Some(format!(
                "give one of the two another name in strata.toml, or move repos/{name} away"
            )),
            StoreError::Withdrawn { path, .. } => Some(format!(
                "mend the line, or take it out: a line of {} is a layer, a version and why it is withdrawn",
                path.display()
            )),
            StoreError::Io { source, .. } if source.kind() == ErrorKind::ReadOnlyFilesystem => {
                Some("the store is mounted read-only here: what changes it needs a host that may write it".to_owned())
            }
            StoreError::ReservedRepository => Some("choose another repository name".to_owned()),
            _ => None,
        };
        Failure { message: error.to_string(), hint }
    }
}

impl From<DirectoryError> for Failure {
    fn from(error: DirectoryError) -> Self {
        let failure = Failure::new(&error);
        match error {
            DirectoryError::NotADirectory(_) => {
                failure.hint("name the directory that holds strata.toml")
            }
            DirectoryError::Io { .. } | DirectoryError::Read(_) | DirectoryError::Limit(_) => {
                failure
            }
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::new(format!("{error:#}"))
    }
}
