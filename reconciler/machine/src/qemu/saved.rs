//! The saved state of a machine that is suspended to disk.
//!
//! ```text
//! machines/<name>/suspended/hardware.json   what it is resumed on
//! machines/<name>/suspended/state           QEMU's own
//! machines/<name>/suspended.new/            being written: worth nothing
//! machines/<name>/suspended.old/            being removed: worth nothing
//! ```
//!
//! **Invariant: where there is a saved state, no machine has run since it was made.** It
//! gets its name by one rename(2) before the machine that it was made of ends, and loses
//! it by another before the machine that was made of it runs.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use strata_store::Store;

use crate::error::{Context, MachineError};
use crate::qemu::hardware::Hardware;
use crate::registry::remove_tree;

const SAVED: &str = "suspended";
const NEW: &str = "suspended.new";
const OLD: &str = "suspended.old";
const STATE: &str = "state";

/// Whether the VA that has this directory is suspended to disk.
pub fn exists(directory: &Path) -> bool {
    directory.join(SAVED).is_dir()
}

/// Where the state is, as seen below `directory`.
pub fn state(directory: &Path) -> PathBuf {
    directory.join(SAVED).join(STATE)
}

/// Where a state is written, as seen below `directory`.
pub fn new_state(directory: &Path) -> PathBuf {
    directory.join(NEW).join(STATE)
}

/// Makes the place for a new state, which nobody but root can read.
///
/// # Errors
/// It cannot be made.
pub fn begin(directory: &Path) -> Result<(), MachineError> {
    sweep(directory)?;
    let new = directory.join(NEW);
    fs::DirBuilder::new().mode(0o700).create(&new).at("create", &new)
}

/// Makes the new state the VA's, durably.
///
/// # Errors
/// It cannot be written; the VA has none then.
pub fn complete(
    store: &Store,
    directory: &Path,
    mut hardware: Hardware,
) -> Result<(), MachineError> {
    let state = new_state(directory);
    let file = File::open(&state).at("open", &state)?;
    file.sync_all().at("sync", &state)?;
    hardware.state_bytes = Some(file.metadata().at("stat", &state)?.len());
    let new = directory.join(NEW);
    hardware.write(store, &new)?;
    store.disk().sync_directory(&new)?;
    fs::rename(&new, directory.join(SAVED)).at("rename", &new)?;
    Ok(store.disk().sync_directory(directory)?)
}

/// What the saved machine is resumed on.
///
/// # Errors
/// The saved state is damaged.
pub fn hardware(directory: &Path) -> Result<Hardware, MachineError> {
    let hardware = Hardware::read(&directory.join(SAVED))?;
    let state = state(directory);
    let found = fs::metadata(&state).at("stat", &state)?.len();
    match hardware.state_bytes {
        Some(bytes) if bytes == found => Ok(hardware),
        wanted => Err(MachineError::CutState { path: state, wanted, found }),
    }
}

/// Takes the saved state away, durably: from now on the machine may run.
///
/// # Errors
/// It cannot be taken away.
pub fn consume(store: &Store, directory: &Path) -> Result<(), MachineError> {
    let (saved, old) = (directory.join(SAVED), directory.join(OLD));
    remove_tree(&old)?;
    match fs::rename(&saved, &old) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result.at("rename", &saved)?,
    }
    store.disk().sync_directory(directory)?;
    remove_tree(&old)
}

/// Removes what was not finished.
///
/// # Errors
/// It cannot be removed.
pub fn sweep(directory: &Path) -> Result<(), MachineError> {
    remove_tree(&directory.join(NEW))?;
    remove_tree(&directory.join(OLD))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::accelerator::Accelerator;
    use crate::qemu::shares::Transport;

    #[test]
    fn a_state_is_there_whole_or_not_at_all() {
        let scratch = tempfile::tempdir().expect("a directory");
        let store = Store::init(&scratch.path().join("store")).expect("a store");
        let directory = scratch.path().join("web");
        fs::create_dir(&directory).expect("made");
        let hardware = || Hardware::new(Accelerator::Software, Transport::Virtiofs, "x".to_owned());
        begin(&directory).expect("begun");
        fs::write(new_state(&directory), "half").expect("written");
        assert!(!exists(&directory));
        // Whoever wrote it has died.
        begin(&directory).expect("begun again");
        assert!(!new_state(&directory).exists());
        fs::write(new_state(&directory), "whole").expect("written");
        complete(&store, &directory, hardware()).expect("complete");
        assert!(exists(&directory) && !directory.join(NEW).exists());
        let read = super::hardware(&directory).expect("whole");
        assert_eq!(read, Hardware { state_bytes: Some(5), ..hardware() });

        fs::write(state(&directory), "who").expect("cut off");
        let cut = super::hardware(&directory).expect_err("cut off").to_string();
        assert!(cut.contains("has 3 bytes") && cut.contains("5"), "{cut}");
        consume(&store, &directory).expect("gone");
        assert!(!exists(&directory));
        consume(&store, &directory).expect("gone already");
        assert_eq!(fs::read_dir(&directory).expect("listed").count(), 0);
    }
}
