//! Data directories: paths of a VA that live on the private disk and are mounted
//! straight through, past the union (§6.4).
//!
//! ```text
//! PRIVATE/data/<name>/        one directory a path; the name is the path, escaped
//! ```
//!
//! At its first use a directory is filled with what the union shows at its path
//! then ([`fill`]), aside and flushed, and appears by one rename: a crash leaves it
//! complete or absent. From then on it is the VA's, through every swap, restart and
//! reset; nothing here ever removes one.
//!
//! The directories above and at the path become private, so that no swap can take
//! away what the mount stands on. Who mounts is a program of its own ([`binding`]):
//! a daemon that walks its own mount could wait for itself.
//!
//! What is mounted is decided at the start. A swap that declares a path leaves it
//! *pending* until the next start: processes hold files of the union open there, and
//! a mount under their hands would part them from those who come later.

pub mod binding;
mod fill;

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use strata_core::data_paths::{DataPath, DataPaths, DataPathsError};

use crate::backing;
use crate::private::{Private, WORK};
use crate::vfs::node::ROOT_ID;
use crate::vfs::{Caller, SetAttr, Vfs};

/// The directory of all data directories in a private directory.
pub const DATA: &[u8] = b"data";

#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("the data directory {path}: {at} is no directory in this file system")]
    NoDirectory { path: DataPath, at: String },
    #[error("the data directory {path}: {what}: {errno}")]
    Io { path: DataPath, what: &'static str, errno: Errno },
    #[error("the data directory {path} cannot be filled: /{at}: {errno}")]
    Fill { path: DataPath, at: String, errno: Errno },
    #[error("the data directories cannot be mounted: {0}")]
    Binding(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataState {
    /// Mounted on its path.
    Mounted,
    /// Declared since the start; mounted at the next one.
    Pending,
    /// No longer declared; mounted until the end of this run.
    Ending,
}

/// A data directory of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataStatus {
    pub path: String,
    pub state: DataState,
}

/// What is mounted compared with what the active set wants.
pub fn states(mounted: &DataPaths, wanted: &DataPaths) -> Vec<DataStatus> {
    let ours = mounted.iter().map(|path| {
        let state = if wanted.contains(path) { DataState::Mounted } else { DataState::Ending };
        DataStatus { path: path.to_string(), state }
    });
    let missing = wanted.iter().filter(|path| !mounted.contains(path));
    let missing =
        missing.map(|path| DataStatus { path: path.to_string(), state: DataState::Pending });
    let mut all: Vec<_> = ours.chain(missing).collect();
    all.sort_by(|a, b| a.path.cmp(&b.path));
    all
}

/// Data directories of two sources.
///
/// # Errors
/// One lies in another.
pub fn together(a: &DataPaths, b: &DataPaths) -> Result<DataPaths, DataPathsError> {
    DataPaths::new(a.iter().chain(b.iter()).cloned().collect())
}

/// The data directories that a private directory has, declared or not.
///
/// # Errors
/// They cannot be listed.
pub fn present(private: &OwnedFd) -> Result<Vec<DataPath>, Errno> {
    let directory = match backing::open_directory(private, DATA) {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        other => other?,
    };
    let names = backing::list(&directory)?.into_iter();
    let names = names.filter(|entry| entry.kind == FileType::Directory);
    let mut paths: Vec<_> =
        names.filter_map(|entry| DataPath::of_directory_name(&entry.name)).collect();
    paths.sort();
    Ok(paths)
}

/// Makes every data directory that is missing, and the directories they are to be
/// mounted on. Before the first request, or from a thread that answers none.
///
/// # Errors
/// One cannot be made: nothing half-made is left, those before it stay.
pub fn prepare(vfs: &Vfs, paths: &DataPaths) -> Result<(), DataError> {
    for path in paths.iter() {
        let node = mount_point(vfs, path)?;
        let made = make(vfs, path, node);
        vfs.forget(node, 1);
        if made? {
            tracing::info!(%path, "data directory made");
        }
    }
    Ok(())
}

/// Makes the path a private directory, with all above it. Returns its node, with
/// one reference to give back.
fn mount_point(vfs: &Vfs, path: &DataPath) -> Result<u64, DataError> {
    let error = |what| move |errno| DataError::Io { path: path.clone(), what, errno };
    let root = Caller { uid: 0, gid: 0, umask: 0 };
    let mut at = ROOT_ID;
    for prefix in path.prefixes() {
        let name = prefix.rsplit('/').next().unwrap_or_default().as_bytes();
        let found = match vfs.lookup(at, name) {
            Err(Errno::NOENT) => vfs
                .mkdir(at, name, 0o755, &root)
                .map_err(error("its mount point cannot be made"))?,
            found => found.map_err(error("its mount point cannot be looked up"))?,
        };
        if at != ROOT_ID {
            vfs.forget(at, 1);
        }
        at = found.id;
        if found.attr.kind != FileType::Directory {
            vfs.forget(at, 1);
            return Err(DataError::NoDirectory { path: path.clone(), at: format!("/{prefix}") });
        }
        // Setting what it has copies it to the private layer and changes nothing.
        let same = SetAttr { mode: Some(found.attr.mode), ..SetAttr::default() };
        vfs.setattr(at, &same).map_err(error("its mount point cannot be made private"))?;
    }
    Ok(at)
}

/// Fills the directory and gives it its name. Returns whether it was missing.
fn make(vfs: &Vfs, path: &DataPath, node: u64) -> Result<bool, DataError> {
    let private = vfs.private();
    let error = |what| move |errno| DataError::Io { path: path.clone(), what, errno };
    let directory = directory_of(private).map_err(error("`data` cannot be made"))?;
    let name = path.directory_name();
    match backing::stat_at(&directory, name.as_bytes()) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
            return Ok(false);
        }
        Ok(_) => return Err(error("its place holds something else")(Errno::NOTDIR)),
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(error("cannot be looked at")(errno)),
    }
    let work = private.next_name();
    let made = fill::fill(vfs, node, &work)
        .map_err(|(at, errno)| DataError::Fill { path: path.clone(), at, errno })
        .and_then(|()| publish(private, &work, &directory, &name).map_err(error("cannot be kept")));
    if made.is_err() {
        private.discard(&work);
    }
    made.map(|()| true)
}

fn directory_of(private: &Private) -> Result<OwnedFd, Errno> {
    match private.disk().make_directory(private.root(), DATA, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => backing::open_directory(private.root(), DATA),
        Err(errno) => Err(errno),
    }
}

/// Content first, then the name: both on the disk.
fn publish(private: &Private, work: &[u8], directory: &OwnedFd, name: &str) -> Result<(), Errno> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
    let disk = private.disk();
    disk.sync_file_system(&backing::open_beneath(private.root(), WORK, flags, Mode::empty())?)?;
    let flag = RenameFlags::NOREPLACE;
    disk.rename((&private.work, work), (directory, name.as_bytes()), flag)?;
    disk.sync(&backing::open_beneath(private.root(), DATA, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(texts: &[&str]) -> DataPaths {
        let paths = texts.iter().map(|text| DataPath::new(text).expect("a path")).collect();
        DataPaths::new(paths).expect("none nested")
    }

    #[test]
    fn what_a_swap_declares_or_drops_waits_for_the_next_start() {
        let states = states(&paths(&["/a", "/b"]), &paths(&["/b", "/c"]));
        let found: Vec<_> =
            states.iter().map(|status| (status.path.as_str(), status.state)).collect();
        let expected =
            [("/a", DataState::Ending), ("/b", DataState::Mounted), ("/c", DataState::Pending)];
        assert_eq!(found, expected);
    }
}
