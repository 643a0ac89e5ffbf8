//! Layer units in the making: directories that no reader looks at, filled without the lock of
//! the repository, and removed by the next writer where their maker died.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FlockOperation;
use strata_core::RepositoryName;
use strata_core::manifest::Manifest;

use super::remove;
use crate::error::{Context, StoreError};
use crate::read::optional;
use crate::store::Store;

/// A layer unit in the making: a directory with `filesystem/` and `scripts/` to
/// fill. Dropped without being published, it is removed.
#[derive(Debug)]
pub struct StagedUnit {
    path: PathBuf,
    /// Its files share with other units already.
    shared: bool,
    /// Held locked, so that a sweep can tell the living from the dead.
    _lock: File,
}

impl StagedUnit {
    /// The directory of the unit in the making.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The root of its files.
    pub fn filesystem(&self) -> PathBuf {
        self.path.join("filesystem")
    }

    /// The directory of its scripts.
    pub fn scripts(&self) -> PathBuf {
        self.path.join("scripts")
    }
}

impl Drop for StagedUnit {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "a staged unit stays");
            }
        }
    }
}

impl Store {
    /// Shares the files of a unit in the making with those of other units. Publishing
    /// does it as well; done before, it needs no lock and many can do it at once.
    pub fn share_staged(&self, staged: &mut StagedUnit, manifest: &Manifest) {
        if !staged.shared {
            self.share(&staged.path, manifest);
            staged.shared = true;
        }
    }

    /// Starts a new unit of a repository. Several may be in the making at once.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn stage_unit(&self, repository: &RepositoryName) -> Result<StagedUnit, StoreError> {
        let parent = self.repository_path(repository);
        self.disk.create_directory(&parent)?;
        loop {
            if let Some(staged) = try_stage(&parent)? {
                return Ok(staged);
            }
        }
    }
}

/// Makes and locks a directory for a unit; `None` where a sweep took it in the
/// instant before it was locked.
fn try_stage(repository: &Path) -> Result<Option<StagedUnit>, StoreError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = repository.join(format!(".staging-{}-{number}", std::process::id()));
    match fs::create_dir(&path) {
        Ok(()) => {}
        // Left by a dead process of our number.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(None),
        Err(error) => return Err(error).at("create", &path),
    }
    let Some(directory) = optional(File::open(&path).at("open", &path))? else { return Ok(None) };
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error).at("lock", &path),
    }
    if !path.exists() {
        return Ok(None);
    }
    let staged = StagedUnit { path, shared: false, _lock: directory };
    for part in [staged.filesystem(), staged.scripts()] {
        fs::create_dir(&part).at("create", &part)?;
    }
    Ok(Some(staged))
}

/// Removes staged units whose makers are gone.
pub(super) fn sweep_staging(repository: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(repository).at("list", repository)? {
        let path = entry.at("list", repository)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(remove::ASIDE) {
            remove::discard(&path)?;
        }
        if !name.starts_with(".staging-") {
            continue;
        }
        // Its maker may be publishing or dropping it at this very moment.
        let Some(directory) = optional(File::open(&path).at("open", &path))? else { continue };
        if rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
            optional(fs::remove_dir_all(&path).at("remove", &path))?;
        }
    }
    Ok(())
}
