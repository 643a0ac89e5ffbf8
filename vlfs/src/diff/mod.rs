//! What a private layer holds against the layers, from outside (§4.5).
//!
//! Needs the private directory alone, another machine's too: copies carry what
//! they were made from, and white-outs say what was hidden. With the originals
//! (a generation of a store, or plain layer directories) nothing of that is
//! believed: copies are compared with the manifests, and what the generation no
//! longer has is told.
//!
//! The private directory may be that of a compromised VA. No link is followed,
//! nothing but a regular file is opened, contents are compared whatever the
//! times say, and depth, number and size of what is read have bounds. Nothing
//! is written.

mod compare;
pub mod content;
pub mod originals;
mod walk;

use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::Serialize;
use strata_store::StoreError;

use originals::Originals;

/// Differences that are listed; more are counted.
pub const LISTED: usize = 1_000_000;
/// Directories that wait to be read, and white-outs: what is beyond is not walked.
pub const HELD_PATHS: usize = 4_000_000;
/// Places that were not walked and are named; more are counted.
pub const NAMED: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// No layer has it, or had it when it was made.
    Added,
    /// Its content or type is another than the original's.
    Modified,
    /// Mode, owner, extended attributes or time; the content is the original's.
    Attributes,
    /// Hidden by a white-out, and nothing private stands there.
    Deleted,
    /// A copy that is as its original again but for the time: written and put back.
    /// `revert` itself leaves no trace.
    Reverted,
    /// A copy of a file whose layer unit the generation no longer has.
    Orphaned,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub change: Change,
    /// Relative to the mount's root; bytes that are not UTF-8 shown as U+FFFD.
    pub path: String,
    /// The path as bytes, in hexadecimal, where `path` could not hold it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// Layer unit that the original belongs to, as `<repo>/<unit>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Path of the original, when the file was moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moved_from: Option<String>,
    /// The unit of the generation whose file at this path it hides now, when that is not `unit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub obscures: Option<String>,
    /// A unified diff, or why there is none; where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// What to compare with and what to tell.
#[derive(Debug, Default)]
pub struct Options<'a> {
    pub originals: Option<&'a Originals>,
    /// Show how texts differ.
    pub content: bool,
    /// List what is in data directories too, as added.
    pub data: bool,
}

#[derive(Debug, Default)]
pub struct Differences {
    /// By path.
    pub listed: Vec<Difference>,
    /// Differences beyond [`LISTED`].
    pub omitted: usize,
    /// What is beyond the bounds: some of it by name, and of how many places.
    pub not_walked: Vec<NotWalked>,
    pub not_walked_count: usize,
}

/// A part of the private directory that was not looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotWalked {
    /// Relative to the private directory, for people.
    pub path: String,
    pub why: Bound,
}

/// What is beyond it is not walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Bound {
    #[error("what is below is deeper than a path can be long")]
    Depth,
    #[error("more than {HELD_PATHS} directories or white-outs")]
    Number,
}

#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    #[error("{0} is no private directory of Strata")]
    NotPrivate(PathBuf),
    #[error("{path}: {errno}")]
    Read { path: PathBuf, errno: Errno },
    #[error(transparent)]
    Store(#[from] Box<StoreError>),
}

/// The differences of a private directory, by path.
///
/// # Errors
/// It is none, or cannot be read. What is beyond the bounds is no error: whoever makes
/// such a tree would hide all else by it.
pub fn diff(private: &Path, options: &Options<'_>) -> Result<Differences, DiffError> {
    walk::Walk::run(private, options)
}

/// A path for people: bytes that are not UTF-8 as U+FFFD, and nothing that a
/// terminal would obey.
pub fn shown(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let (plain, escaped) =
                if c.is_control() { (None, Some(c.escape_default())) } else { (Some(c), None) };
            plain.into_iter().chain(escaped.into_iter().flatten())
        })
        .collect()
}
