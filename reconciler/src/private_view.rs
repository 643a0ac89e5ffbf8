//! What a VA's private layer holds, seen from outside through `strata-vlfs`: the list of
//! differences, and a read-only view of the whole tree.
//!
//! The private directory may be a compromised VA's. Only `strata-vlfs` reads it, which
//! follows no link in it and bounds what it reads; this side walks the view, where files
//! have the content that the VA saw, whether it is private or a layer's.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use serde::Deserialize;
use strata_core::GenerationId;

/// Bytes of the list of differences.
const LIST_BYTES: u64 = 1 << 30;
/// Bytes that are kept of what a program says on its standard error.
const REASON_BYTES: u64 = 4 << 10;

#[derive(Debug, thiserror::Error)]
pub enum PrivateViewError {
    #[error("{program} {what}: {reason}")]
    Program { program: PathBuf, what: &'static str, reason: String },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
}

/// A view that is mounted until it is dropped.
#[derive(Debug)]
pub struct PrivateView {
    /// Where it is mounted.
    pub root: PathBuf,
    /// Paths at which something stands that is not as in the layers.
    pub changed: Vec<Vec<u8>>,
    /// Paths of the layers that were removed.
    pub deleted: Vec<Vec<u8>>,
}

/// A difference that `strata-vlfs diff` lists (`docs/semantics.md`, "Forensics").
#[derive(Debug, Deserialize)]
struct Listed {
    change: Change,
    path: String,
    path_hex: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Change {
    Added,
    Modified,
    Attributes,
    Deleted,
    Reverted,
    Orphaned,
}

impl Listed {
    fn path(self) -> Option<Vec<u8>> {
        let Some(digits) = self.path_hex else { return Some(self.path.into_bytes()) };
        let pairs = digits.as_bytes().chunks(2);
        let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        pairs.map(pair).collect()
    }
}

impl PrivateView {
    /// Lists what `private` holds against a generation of `store`, and mounts the view on
    /// the empty directory `root`. The VA must not be running.
    ///
    /// # Errors
    /// `strata-vlfs` refuses, or cannot be run.
    pub fn open(
        vlfs: &Path,
        store: &Path,
        private: &Path,
        generation: GenerationId,
        root: &Path,
    ) -> Result<Self, PrivateViewError> {
        let generation = generation.to_string();
        let command = |word: &str| {
            let mut command = Command::new(vlfs);
            command.arg(word).arg("--store").arg(store).args(["--generation", &generation]);
            command
        };
        let mut diff = command("diff");
        diff.args(["--output", "json"]).arg(private);
        let text = output(diff, "diff")?;
        let listed: Vec<Listed> = serde_json::from_slice(&text).map_err(|error| {
            let (program, reason) = (vlfs.to_owned(), error.to_string());
            PrivateViewError::Program { program, what: "diff", reason }
        })?;
        let (mut changed, mut deleted) = (Vec::new(), Vec::new());
        for difference in listed {
            let to = match difference.change {
                Change::Added | Change::Modified | Change::Attributes | Change::Orphaned => {
                    &mut changed
                }
                Change::Deleted => &mut deleted,
                Change::Reverted => continue,
            };
            to.extend(difference.path());
        }
        let mut mount = command("mount");
        mount.arg("--former").arg(private).arg(root);
        output(mount, "mount")?;
        Ok(PrivateView { root: root.to_owned(), changed, deleted })
    }
}

impl Drop for PrivateView {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.root) {
            tracing::warn!(root = %self.root.display(), %error, "a view stays mounted");
        }
    }
}

/// Takes a view away, if one is there.
///
/// # Errors
/// The kernel refuses.
pub fn unmount(root: &Path) -> Result<(), PrivateViewError> {
    match rustix::mount::unmount(root, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(errno) => Err(PrivateViewError::Io { path: root.to_owned(), source: errno.into() }),
    }
}

/// What a command of `strata-vlfs` prints; 1 is the exit status of differences.
fn output(mut command: Command, what: &'static str) -> Result<Vec<u8>, PrivateViewError> {
    let program = PathBuf::from(command.get_program());
    let failed =
        |reason: String| PrivateViewError::Program { program: program.clone(), what, reason };
    let lost = |error: std::io::Error| failed(error.to_string());
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(lost)?;
    let mut text = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(LIST_BYTES).read_to_end(&mut text).map_err(lost)?;
    }
    let mut reason = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(REASON_BYTES).read_to_end(&mut reason).map_err(lost)?;
    }
    match child.wait().map_err(lost)?.code() {
        Some(0 | 1) => Ok(text),
        _ => Err(failed(String::from_utf8_lossy(&reason).trim().to_owned())),
    }
}
