//! The lock that makes a reconciler the only one of its store.

use std::path::Path;

use strata_store::{Store, StoreError, StoreLock};

use super::PassError;

/// Its name.
pub const LOCK: &str = "reconcile";

/// Takes it for as long as what is returned lives. A store whose `state/` was lost gets
/// an empty one: what was in it is made anew, and told of.
///
/// # Errors
/// Another reconciler holds it, or the store cannot be used.
pub(super) fn take(store: &Store) -> Result<StoreLock, PassError> {
    store.disk().create_directory(&store.state(""))?;
    match store.try_lock(LOCK) {
        Ok(lock) => Ok(lock),
        Err(StoreError::Locked(path)) => {
            let holder = holder(&path);
            let holder = holder.map(|pid| format!(": process {pid}")).unwrap_or_default();
            Err(PassError::Locked { holder })
        }
        Err(error) => Err(error.into()),
    }
}

/// The process that holds a file lock, as the kernel lists it.
fn holder(path: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let inode = format!(":{}", std::fs::metadata(path).ok()?.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let line = locks.lines().find(|line| {
        let held = !line.contains("->");
        held && line.split_whitespace().any(|word| word.ends_with(&inode))
    })?;
    line.split_whitespace().nth(4)?.parse().ok()
}
