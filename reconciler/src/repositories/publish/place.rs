//! The directory that a repository is published in: it is that repository's alone.
//!
//! A file in it names the repository. A directory without one is taken where it is empty, or
//! where the snapshot in it is the repository's; nothing is ever written among files of others.
//! One publication at a time writes there, so that what dead ones left can be removed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use strata_core::signed::{Envelope, Snapshot};
use strata_core::{RepositoryName, limits};
use strata_store::durable::Disk;
use strata_store::{SignedFile, Store};

use super::PublishError;

/// The file that names the repository.
pub const MARK: &str = "repository";
const LOCK: &str = ".lock";
/// What names of files in the making begin with.
const NEW: &str = ".new-";

/// A directory that is written to until this is dropped.
#[derive(Debug)]
pub struct Place {
    _lock: File,
}

impl Place {
    /// Takes a directory for a repository, waiting for others that write to it; it is made
    /// where it is not there.
    ///
    /// # Errors
    /// It is in the store, another repository's or somebody else's; it is as it was.
    pub fn take(
        store: &Store,
        repository: &RepositoryName,
        directory: &Path,
    ) -> Result<Self, PublishError> {
        let at = |source| io_error(directory, source);
        let root = store.root().canonicalize().map_err(|e| io_error(store.root(), e))?;
        if real(directory).map_err(at)?.starts_with(root) {
            return Err(PublishError::InStore(directory.to_owned()));
        }
        refuse_others(repository, directory)?;
        let disk = Disk::default();
        disk.create_directory(directory)?;
        let path = directory.join(LOCK);
        let lock = File::options().write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(|error| io_error(&path, error))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)
            .map_err(|errno| io_error(&path, errno.into()))?;
        if !refuse_others(repository, directory)? {
            disk.write_file(&directory.join(MARK), format!("{repository}\n").as_bytes(), 0o644)?;
        }
        for entry in fs::read_dir(directory).map_err(at)? {
            let entry = entry.map_err(at)?;
            if entry.file_name().as_encoded_bytes().starts_with(NEW.as_bytes()) {
                let path = entry.path();
                fs::remove_file(&path).map_err(|error| io_error(&path, error))?;
            }
        }
        Ok(Place { _lock: lock })
    }
}

/// Whether the directory is marked as the repository's; else it may be marked.
fn refuse_others(repository: &RepositoryName, directory: &Path) -> Result<bool, PublishError> {
    let other = |found: &str| {
        let (directory, found) = (directory.to_owned(), found.chars().take(256).collect());
        Err(PublishError::OtherRepository { directory, found })
    };
    if let Some(mark) = read(&directory.join(MARK), 1 << 10)? {
        let mark = String::from_utf8_lossy(&mark);
        return if mark.trim_end() == repository.as_str() {
            Ok(true)
        } else {
            other(mark.trim_end())
        };
    }
    // A former version left no mark.
    let snapshot = read(&directory.join(SignedFile::Snapshot.name()), limits::SIGNED_BYTES)?;
    let envelope = snapshot.and_then(|bytes| Envelope::parse(&bytes).ok());
    if let Some(snapshot) = envelope.and_then(|envelope| Snapshot::parse(&envelope.text).ok()) {
        let is_own = snapshot.repository == *repository;
        return if is_own { Ok(false) } else { other(snapshot.repository.as_str()) };
    }
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        entries => entries.map_err(|error| io_error(directory, error))?,
    };
    for entry in entries {
        let name = entry.map_err(|error| io_error(directory, error))?.file_name();
        let is_ours = name == LOCK || name.as_encoded_bytes().starts_with(NEW.as_bytes());
        // An empty disk of its own has one.
        if !is_ours && name != "lost+found" {
            let (directory, name) = (directory.to_owned(), name.to_string_lossy().into_owned());
            return Err(PublishError::NotEmpty { directory, name });
        }
    }
    Ok(false)
}

fn read(path: &Path, limit: usize) -> Result<Option<Vec<u8>>, PublishError> {
    if matches!(fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound) {
        return Ok(None);
    }
    Ok(Some(strata_store::read_limited(path, limit)?))
}

/// A path without links, of which the end need not be there.
fn real(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    for above in path.ancestors() {
        match above.canonicalize() {
            Ok(real) => {
                let rest = path.strip_prefix(above).unwrap_or(Path::new(""));
                return Ok(real.join(rest));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(path)
}

fn io_error(path: &Path, source: io::Error) -> PublishError {
    PublishError::Io { path: path.to_owned(), source }
}
