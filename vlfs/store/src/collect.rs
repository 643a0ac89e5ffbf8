//! What garbage collection needs of the store: leases, ages, and removal.
//!
//! Which things are garbage is decided by `strata_core::collect`. A pass of the
//! reconciler holds a [`Store::lease`] from the moment it looks at what is there
//! until its links are moved; a collector holds [`Store::collector_lock`] from the moment it
//! looks until everything it removes has lost its name. So neither sees what the
//! other is about to change. The locks are files' locks: they end with the process.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::FlockOperation;
use strata_core::{GenerationId, MacAddr};

use crate::error::{Context, StoreError};
use crate::read::names_in;
use crate::repository::{aside_of, discard};
use crate::store::{Store, StoreLock, lock};

/// The file whose lock leases and collectors hold.
const LOCK: &str = "collect.lock";
/// Between two looks at a lock that others hold.
const LOOK: Duration = Duration::from_millis(50);

impl Store {
    /// While it is held, nothing is collected. Waits for a collector that is at work.
    ///
    /// # Errors
    /// The lock's file cannot be opened.
    pub fn lease(&self) -> Result<StoreLock, StoreError> {
        lock(&self.state(LOCK), FlockOperation::LockShared)
    }

    /// Keeps all leases out. Waits at most `patience` for those that are held.
    ///
    /// # Errors
    /// [`StoreError::Locked`] where one is still held.
    pub fn collector_lock(&self, patience: Duration) -> Result<StoreLock, StoreError> {
        let until = Instant::now() + patience;
        loop {
            match lock(&self.state(LOCK), FlockOperation::NonBlockingLockExclusive) {
                Err(StoreError::Locked(_)) if Instant::now() < until => std::thread::sleep(LOOK),
                other => return other,
            }
        }
    }

    /// When a generation was sealed or last left by a ring, by the clock of the
    /// store's file system.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn generation_used_at(&self, id: &GenerationId) -> Result<SystemTime, StoreError> {
        let path = self.generation_path(id);
        std::fs::metadata(&path).and_then(|metadata| metadata.modified()).at("stat", &path)
    }

    /// Notes that a generation was in use until now.
    pub(crate) fn touch_generation(&self, id: &GenerationId) {
        let path = self.generation_path(id);
        let touched = std::fs::File::open(&path)
            .and_then(|directory| directory.set_modified(SystemTime::now()));
        match touched {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "its time of use is not noted");
            }
            Ok(()) | Err(_) => {}
        }
    }

    /// Takes a generation away; returns what [`Store::discard`] deletes.
    ///
    /// # Errors
    /// It cannot be renamed, and stands.
    pub fn remove_generation(&self, id: &GenerationId) -> Result<PathBuf, StoreError> {
        let aside = aside_of(&self.root().join("generations"));
        self.disk.set_aside(&self.generation_path(id), &aside)?;
        Ok(aside)
    }

    /// Deletes directories that were set aside.
    ///
    /// # Errors
    /// One cannot be deleted; it has no name that anybody reads.
    pub fn discard(&self, aside: &[PathBuf]) -> Result<(), StoreError> {
        aside.iter().try_for_each(|path| discard(path))
    }

    /// The VAs that have a report, readable or not.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn reporting_vas(&self) -> Result<Vec<MacAddr>, StoreError> {
        let names = names_in(&self.reports())?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }
}
