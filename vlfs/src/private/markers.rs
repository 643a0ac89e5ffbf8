//! White-out layers on disk: `whiteouts/<repo>/<unit>/<path>`, a plain file a hidden path.
//! They are names of few empty files; one that has a file of its own is as good.
//!
//! A marker has the very name that it hides, so names of 255 bytes work. What
//! hides a directory takes the place of the directory with deeper markers, in
//! one exchange.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;
use strata_core::manifest::Timestamp;

use super::{Private, UnitKey, WHITEOUTS};
use crate::backing;
use crate::descent::Descent;
use crate::whiteout::WhiteoutTree;

/// The file in `work/` that new markers are names of. Other names there are numbers.
const SEED: &[u8] = b"marker";

/// An open directory of markers, and what it is.
#[derive(Debug)]
pub struct Marked {
    unit: UnitKey,
    path: Vec<u8>,
    directory: OwnedFd,
}

/// Writes the marker of a path; one that exists is left. Returns when the markers in
/// its directory changed last; none where a directory above is hidden.
pub fn mark(private: &Private, unit: &UnitKey, path: &[u8]) -> Result<Option<Timestamp>, Errno> {
    let above = strata_core::manifest::parent_path(path).unwrap_or(&[]);
    // Held throughout: a marker of a directory takes the place of what was open.
    let mut last = private.last_marked.lock().expect("no panic while held");
    let name = strata_core::manifest::file_name(path);
    let marked = match last.take() {
        Some(marked) if marked.unit == *unit && marked.path == above => marked,
        _ => match open_marked(private, unit, above) {
            // A directory above is hidden: so is the path.
            Err(Errno::NOTDIR) => return Ok(None),
            other => other?,
        },
    };
    let place = mark_name(private, &marked.directory, name)?;
    let changed = changed(&marked.directory)?;
    if place == Place::Free {
        *last = Some(marked);
    }
    Ok(Some(changed))
}

/// Makes the directories that the marker of a path goes to.
pub fn prepare(private: &Private, unit: &UnitKey, path: &[u8]) -> Result<(), Errno> {
    let above = strata_core::manifest::parent_path(path).unwrap_or(&[]);
    let mut last = private.last_marked.lock().expect("no panic while held");
    if last.as_ref().is_some_and(|marked| marked.unit == *unit && marked.path == above) {
        return Ok(());
    }
    match open_marked(private, unit, above) {
        // A directory above is hidden: so is the path.
        Err(Errno::NOTDIR) => Ok(()),
        other => {
            *last = Some(other?);
            Ok(())
        }
    }
}

/// The time of the last change of a directory of markers: the disk keeps it.
fn changed(directory: &OwnedFd) -> Result<Timestamp, Errno> {
    let stat = rustix::fs::fstat(directory)?;
    Ok(backing::timestamp(stat.st_mtime, stat.st_mtime_nsec))
}

fn open_marked(private: &Private, unit: &UnitKey, path: &[u8]) -> Result<Marked, Errno> {
    let mut directory = make_directory(private, private.whiteouts(), unit.repository.as_bytes())?;
    directory = make_directory(private, &directory, unit.unit.as_bytes())?;
    for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
        directory = make_directory(private, &directory, name)?;
    }
    Ok(Marked { unit: unit.clone(), path: path.to_vec(), directory })
}

/// What a marker found at its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Free,
    Taken,
}

fn mark_name(private: &Private, directory: &OwnedFd, name: &[u8]) -> Result<Place, Errno> {
    match new_marker(private, directory, name) {
        Ok(()) => return Ok(Place::Free),
        Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let found = backing::stat_at(directory, name)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
        return Ok(Place::Taken);
    }
    let aside = private.next_name();
    new_marker(private, &private.work, &aside)?;
    let exchange = RenameFlags::EXCHANGE;
    let (from, to) = ((&private.work, &aside[..]), (directory, name));
    if let Err(error) = private.disk.rename(from, to, exchange) {
        private.discard(&aside);
        return Err(error);
    }
    // That was it: the deeper markers are of no use any more.
    private.discard(&aside);
    Ok(Place::Taken)
}

/// Makes a marker: one more name of an empty file, because a file of its own
/// costs an inode and, on ext4 after many removals, a long search for one.
fn new_marker(private: &Private, directory: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    for _ in 0..3 {
        match private.disk.link((&private.work, SEED), (directory, name)) {
            Err(Errno::NOENT) => {}
            // It has as many names as the file system allows: the next one, then.
            Err(Errno::MLINK) => private.disk.unlink(&private.work, SEED)?,
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => break,
            other => return other,
        }
        match make_empty(private, &private.work, SEED) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    make_empty(private, directory, name)
}

fn make_empty(private: &Private, directory: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::EXCL;
    private.disk.create(directory, name, flags, Mode::from_raw_mode(0o600)).map(drop)
}

pub(super) fn make_directory(
    private: &Private,
    parent: impl AsFd,
    name: &[u8],
) -> Result<OwnedFd, Errno> {
    match backing::open_directory(&parent, name) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let times = times(&parent)?;
    match private.disk.make_directory(&parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => private.disk.set_times(&parent, b".", &times)?,
        Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    backing::open_directory(&parent, name)
}

/// The times of a directory of markers, to put back: they tell of markers alone, not of
/// the directories that lead to deeper ones.
fn times(directory: impl AsFd) -> Result<Timestamps, Errno> {
    let stat = rustix::fs::fstat(directory)?;
    let time = |tv_sec, nanoseconds: u64| Timespec { tv_sec, tv_nsec: nanoseconds.cast_signed() };
    Ok(Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    })
}

/// Removes the marker of a path, and directories that only led to it. Returns when the
/// markers in its directory changed last; that is now.
pub fn unmark(private: &Private, unit: &UnitKey, path: &[u8]) -> Result<Timestamp, Errno> {
    let repository = backing::open_directory(private.whiteouts(), unit.repository.as_bytes())?;
    let mut directories = vec![backing::open_directory(repository, unit.unit.as_bytes())?];
    let names: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
    for name in &names[..names.len() - 1] {
        let last = directories.last().expect("starts with one");
        directories.push(backing::open_directory(last, name)?);
    }
    let innermost = directories.pop().expect("starts with one");
    match private.disk.unlink(&innermost, names[names.len() - 1]) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    // The path is shown from now on, whatever fails.
    let changed = changed(&innermost)?;
    if let Err(error) = prune(private, directories.iter().zip(names).rev()) {
        tracing::warn!(%error, "directories that led to a white-out stay");
    }
    Ok(changed)
}

/// Removes directories that only led to a marker, the innermost first.
fn prune<'a>(
    private: &Private,
    levels: impl Iterator<Item = (&'a OwnedFd, &'a [u8])>,
) -> Result<(), Errno> {
    for (directory, name) in levels {
        let times = times(directory)?;
        match private.disk.remove_directory(directory, name) {
            Ok(()) => private.disk.set_times(directory, b".", &times)?,
            Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The white-outs of all units of a private directory.
pub fn load_all(private_root: &OwnedFd) -> Result<BTreeMap<UnitKey, WhiteoutTree>, Errno> {
    let mut units = BTreeMap::new();
    let whiteouts = match backing::open_directory(private_root, WHITEOUTS) {
        Err(Errno::NOENT) => return Ok(units),
        other => other?,
    };
    for repository in backing::list(&whiteouts)? {
        let directory = backing::open_directory(&whiteouts, &repository.name)?;
        for unit in backing::list(&directory)? {
            let text = |name: &[u8]| String::from_utf8(name.to_vec()).map_err(|_| Errno::ILSEQ);
            let key = UnitKey { repository: text(&repository.name)?, unit: text(&unit.name)? };
            let below = backing::open_directory(&directory, &unit.name)?;
            units.insert(key, load(below)?);
        }
    }
    Ok(units)
}

fn load(top: OwnedFd) -> Result<WhiteoutTree, Errno> {
    let mut tree = WhiteoutTree::default();
    let mut walk = Descent::new(top)?;
    let mut path = Vec::new();
    // Of the directory that the walk is in and those above it.
    let mut has_marker = vec![false];
    loop {
        if let Some(entry) = walk.next_name() {
            let length = path.len();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&entry.name);
            let found = backing::stat_at(walk.here(), &entry.name)?;
            if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
                walk.enter(&entry.name)?;
                has_marker.push(false);
                continue;
            }
            tree.hide(&path);
            path.truncate(length);
            if let Some(has_marker) = has_marker.last_mut() {
                *has_marker = true;
            }
            continue;
        }
        // What only leads to deeper markers lost no name itself.
        if has_marker.pop() == Some(true) {
            tree.date(&path, changed(walk.here())?);
        }
        let Some(left) = walk.leave()? else { return Ok(tree) };
        path.truncate(path.len().saturating_sub(left.len() + 1));
    }
}
