//! What the private layer holds against the layers, from outside (§4.5).
//!
//! Needs the private directory alone, another machine's too: copies carry what
//! they were made from, and white-outs say what was hidden. Nothing is written.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use serde::Serialize;
use strata_core::Digest;

use crate::backing;
use crate::private::origin::{Origin, xattrs_digest};
use crate::private::{self, ORIGIN_XATTR, UPPER, UnitKey, markers};
use crate::whiteout::WhiteoutTree;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    Added,
    Modified,
    /// Mode, owner, extended attributes or time; the content is the original's.
    Attributes,
    Deleted,
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
}

#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    #[error("{0} is no private directory of Strata")]
    NotPrivate(PathBuf),
    #[error("{path}: {errno}")]
    Read { path: PathBuf, errno: Errno },
}

/// The differences of a private directory, by path.
pub fn diff(private: &Path) -> Result<Vec<Difference>, DiffError> {
    let error = |errno| DiffError::Read { path: private.to_owned(), errno };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(private, flags, Mode::empty()).map_err(error)?;
    if !private::is_private_directory(&root).map_err(error)? {
        return Err(DiffError::NotPrivate(private.to_owned()));
    }
    let mut walk = Walk {
        private,
        hidden: markers::load_all(&root).map_err(error)?,
        found: BTreeMap::new(),
        replaced: WhiteoutTree::default(),
    };
    let upper = backing::open_directory(&root, UPPER).map_err(error)?;
    walk.directory(&upper, &mut Vec::new())?;
    walk.deleted();
    Ok(walk.found.into_values().collect())
}

struct Walk<'a> {
    private: &'a Path,
    hidden: BTreeMap<UnitKey, WhiteoutTree>,
    found: BTreeMap<Vec<u8>, Difference>,
    /// Hidden paths at which a private object stands.
    replaced: WhiteoutTree,
}

impl Walk<'_> {
    fn directory(&mut self, directory: &OwnedFd, path: &mut Vec<u8>) -> Result<(), DiffError> {
        let error = |path: &[u8], errno| DiffError::Read {
            path: self.private.join(String::from_utf8_lossy(path).as_ref()),
            errno,
        };
        let names = backing::list(directory).map_err(|errno| error(path, errno))?;
        for entry in names {
            let length = path.len();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&entry.name);
            let compared =
                self.compare(directory, &entry.name, path).map_err(|errno| error(path, errno))?;
            if let Some(difference) = compared {
                self.found.insert(path.clone(), difference);
            }
            if entry.kind == FileType::Directory {
                let below = backing::open_directory(directory, &entry.name)
                    .map_err(|errno| error(path, errno))?;
                self.directory(&below, path)?;
            }
            path.truncate(length);
        }
        Ok(())
    }

    fn compare(
        &mut self,
        directory: &OwnedFd,
        name: &[u8],
        path: &[u8],
    ) -> Result<Option<Difference>, Errno> {
        let own = backing::path_of(directory, name);
        let stat = backing::stat_at(directory, name)?;
        let origin = match backing::xattr(&own, ORIGIN_XATTR) {
            Ok(record) => Origin::parse(&record),
            Err(Errno::NODATA | Errno::NOTSUP) => None,
            Err(error) => return Err(error),
        };
        let hidden_in = self.hidden.iter().find(|(_, tree)| is_hidden(tree, path));
        let hidden_in = hidden_in.map(|(unit, _)| unit.to_string());
        if hidden_in.is_some() {
            self.replaced.hide(path);
        }
        let Some(origin) = origin else {
            let change = if hidden_in.is_some() { Change::Modified } else { Change::Added };
            return Ok(Some(difference(change, path, hidden_in, None)));
        };
        // Hard links share one record, with the path of one of them.
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let shared = !is_directory && stat.st_nlink > 1;
        if origin.path != path && !shared {
            let from = String::from_utf8_lossy(&origin.path).into_owned();
            let unit = Some(origin.unit);
            return Ok(Some(difference(Change::Added, path, unit, Some(from))));
        }
        let change = if content_differs(directory, name, &stat, &origin)? {
            Change::Modified
        } else if attributes_differ(&own, &stat, &origin)? {
            Change::Attributes
        } else {
            return Ok(None);
        };
        Ok(Some(difference(change, path, Some(origin.unit), None)))
    }

    fn deleted(&mut self) {
        for (unit, tree) in &self.hidden {
            for path in tree.paths() {
                if !is_hidden(&self.replaced, &path) {
                    let unit = Some(unit.to_string());
                    self.found
                        .entry(path.clone())
                        .or_insert_with(|| difference(Change::Deleted, &path, unit, None));
                }
            }
        }
    }
}

fn is_hidden(tree: &WhiteoutTree, path: &[u8]) -> bool {
    let mut at = tree;
    for name in path.split(|b| *b == b'/') {
        match at.child(name) {
            Some(child) => at = child,
            None => return false,
        }
    }
    at.is_hidden()
}

fn difference(
    change: Change,
    path: &[u8],
    unit: Option<String>,
    moved_from: Option<String>,
) -> Difference {
    let text = String::from_utf8_lossy(path).into_owned();
    let path_hex =
        (text.as_bytes() != path).then(|| path.iter().map(|byte| format!("{byte:02x}")).collect());
    Difference { change, path: text, path_hex, unit, moved_from }
}

fn content_differs(
    directory: &OwnedFd,
    name: &[u8],
    stat: &Stat,
    origin: &Origin,
) -> Result<bool, Errno> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Symlink => {
            let target = backing::read_link(directory, name)?;
            return Ok(origin.digest.is_some_and(|digest| digest != Digest::of(&target)));
        }
        _ => return Ok(false),
    }
    if u64::try_from(stat.st_size).unwrap_or(0) != origin.size {
        return Ok(true);
    }
    let mtime = backing::timestamp(stat.st_mtime, stat.st_mtime_nsec);
    match origin.digest {
        // Unread where nobody wrote: a write changes the time.
        _ if mtime == origin.mtime => Ok(false),
        None => Ok(true),
        Some(digest) => Ok(file_digest(directory, name)? != digest),
    }
}

fn file_digest(directory: &OwnedFd, name: &[u8]) -> Result<Digest, Errno> {
    let fd = backing::open_beneath(directory, name, OFlags::RDONLY, Mode::empty())?;
    backing::digest(fd)
}

fn attributes_differ(path: &[u8], stat: &Stat, origin: &Origin) -> Result<bool, Errno> {
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    let mtime = backing::timestamp(stat.st_mtime, stat.st_mtime_nsec);
    Ok((!is_link && stat.st_mode & 0o7777 != origin.mode)
        || (stat.st_uid, stat.st_gid) != (origin.uid, origin.gid)
        // A directory's time changes with its names, which are listed themselves.
        || (!is_directory && mtime != origin.mtime)
        || xattrs_digest(&backing::xattrs(path)?) != origin.xattrs)
}
