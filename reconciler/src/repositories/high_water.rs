//! The newest state of each signed repository that was ever accepted, in `state/trust/` of
//! the store and so outside of the repository: an older one is refused (`docs/formats.md`,
//! "High-water marks").

use std::io;

use serde::{Deserialize, Serialize};
use strata_core::{Digest, RepositoryName};
use strata_store::{Store, StoreError};

const DIRECTORY: &str = "trust";
const VERSION: u32 = 1;
const BYTES: usize = 4 << 10;

/// A document that was accepted: its version, and the digest of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    pub version: u32,
    pub digest: Digest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HighWater {
    version: u32,
    pub root: Mark,
    pub snapshot: Mark,
}

impl HighWater {
    pub fn new(root: Mark, snapshot: Mark) -> Self {
        HighWater { version: VERSION, root, snapshot }
    }

    /// The newer of each.
    fn raised_to(self, other: HighWater) -> HighWater {
        let newer = |a: Mark, b: Mark| if b.version > a.version { b } else { a };
        HighWater::new(newer(self.root, other.root), newer(self.snapshot, other.snapshot))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum HighWaterError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0} is damaged or of another version of Strata")]
    Damaged(String),
}

fn file(repository: &RepositoryName) -> String {
    format!("{DIRECTORY}/{repository}.json")
}

/// What was seen of a repository.
///
/// # Errors
/// The mark is there and cannot be read: that nothing was seen must not be concluded.
pub fn read(
    store: &Store,
    repository: &RepositoryName,
) -> Result<Option<HighWater>, HighWaterError> {
    let Some(text) = store.read_state(&file(repository), BYTES)? else { return Ok(None) };
    let mark = serde_json::from_slice::<HighWater>(&text).ok();
    let mark = mark.filter(|mark| mark.version == VERSION);
    let path = || store.state(&file(repository)).display().to_string();
    mark.map(Some).ok_or_else(|| HighWaterError::Damaged(path()))
}

/// Remembers a state that was accepted. Someone who may only read the store leaves that to
/// those who write it.
///
/// # Errors
/// It cannot be written.
pub fn raise(
    store: &Store,
    repository: &RepositoryName,
    seen: Option<HighWater>,
    accepted: HighWater,
) -> Result<(), HighWaterError> {
    if seen == Some(accepted) {
        return Ok(());
    }
    match write(store, repository, accepted) {
        Err(HighWaterError::Store(StoreError::Io { source, .. }))
            if matches!(
                source.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            tracing::debug!(%repository, "the high-water mark is left to those who may write it");
            Ok(())
        }
        other => other,
    }
}

fn write(
    store: &Store,
    repository: &RepositoryName,
    accepted: HighWater,
) -> Result<(), HighWaterError> {
    store.disk().create_directory(&store.state(DIRECTORY))?;
    let _lock = store.wait_lock(DIRECTORY)?;
    let before = read(store, repository)?;
    let after = before.map_or(accepted, |before| before.raised_to(accepted));
    if before == Some(after) {
        return Ok(());
    }
    let mut text = serde_json::to_vec(&after).expect("numbers and digests serialise");
    text.push(b'\n');
    // Readable for all who may read the repository: it is no secret.
    store.disk().write_file(&store.state(&file(repository)), &text, 0o644)?;
    Ok(())
}
