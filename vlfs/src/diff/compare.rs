//! One private object against what it was made from.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use strata_core::manifest::file_name;
use strata_core::{Digest, limits};

use super::Change;
use super::originals::Originals;
use crate::backing;
use crate::private::NAMES_XATTR;
use crate::private::borrowed;
use crate::private::origin::{Origin, is_named, xattrs_digest};

/// A private object as it is found.
pub struct Object<'a> {
    pub directory: &'a OwnedFd,
    pub path: &'a [u8],
    pub stat: &'a Stat,
    /// What its record says that it was copied from.
    pub claimed: Option<Origin>,
    /// A unit whose white-out hides the path.
    pub hidden_in: Option<String>,
}

/// What an object is.
pub struct Compared {
    pub change: Change,
    /// Unit and path of the original.
    pub origin: Option<(String, Vec<u8>)>,
    pub obscures: Option<String>,
}

impl Compared {
    pub fn original(&self) -> Option<(&str, &[u8])> {
        self.origin.as_ref().map(|(unit, path)| (unit.as_str(), path.as_slice()))
    }
}

/// `None`: it is no difference, only a copy or a directory that leads to one.
pub fn compare(
    object: &Object<'_>,
    originals: Option<&Originals>,
) -> Result<Option<Compared>, Errno> {
    let is_directory = kind(object.stat) == FileType::Directory;
    let obscured = || originals.and_then(|originals| originals.unit_at(object.path));
    let Some(claimed) = &object.claimed else {
        let unit = object.hidden_in.clone().or_else(|| obscured().filter(|_| !is_directory));
        let change = if unit.is_some() { Change::Modified } else { Change::Added };
        let origin = unit.map(|unit| (unit, object.path.to_vec()));
        return Ok(Some(Compared { change, origin, obscures: None }));
    };
    let source = (claimed.unit.clone(), claimed.path.clone());
    let orphaned = originals.is_some_and(|originals| !originals.has_unit(&claimed.unit));
    // The manifest's word, where there is one, against the record's: who rules the
    // VA's disk may have forged that.
    let true_origin =
        originals.and_then(|originals| originals.origin(&claimed.unit, &claimed.path));
    let known = originals.is_some_and(|originals| originals.knows(&claimed.unit));
    if known && true_origin.is_none() {
        let unit = object.hidden_in.clone().or_else(obscured);
        let change = if unit.is_some() { Change::Modified } else { Change::Added };
        let origin = unit.map(|unit| (unit, object.path.to_vec()));
        return Ok(Some(Compared { change, origin, obscures: None }));
    }
    let origin = true_origin.as_ref().unwrap_or(claimed);
    let hides = originals.and_then(|originals| originals.hidden_by(object.path, &claimed.unit));
    let is_elsewhere = !is_name_of(claimed, object, originals)?;
    if is_elsewhere || (hides.is_some() && !orphaned && !is_directory) {
        let replaces = object.hidden_in.is_some() || obscured().is_some();
        let change = if replaces { Change::Modified } else { Change::Added };
        return Ok(Some(Compared { change, origin: Some(source), obscures: hides }));
    }
    let changed = changed(object, origin)?;
    if orphaned && !is_directory {
        let (change, origin) = (Change::Orphaned, Some(source));
        return Ok(Some(Compared { change, origin, obscures: obscured() }));
    }
    Ok(changed.map(|change| Compared { change, origin: Some(source), obscures: None }))
}

/// Whether the path of an object is one that its original has: hard links share one record,
/// with the path of one of them.
fn is_name_of(
    claimed: &Origin,
    object: &Object<'_>,
    originals: Option<&Originals>,
) -> Result<bool, Errno> {
    if claimed.path == object.path {
        return Ok(true);
    }
    let known = originals.and_then(|of| of.is_link(&claimed.unit, &claimed.path, object.path));
    if let Some(is_link) = known {
        return Ok(is_link);
    }
    let own = backing::path_of(object.directory, file_name(object.path));
    match backing::xattr(&own, NAMES_XATTR) {
        Ok(record) => Ok(is_named(&record, object.path)),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(error) => Err(error),
    }
}

fn changed(object: &Object<'_>, origin: &Origin) -> Result<Option<Change>, Errno> {
    let own = backing::path_of(object.directory, file_name(object.path));
    let mtime = backing::timestamp(object.stat.st_mtime, object.stat.st_mtime_nsec);
    let times_differ = mtime != origin.mtime;
    Ok(match content_differs(object, origin)? {
        Content::Differs => Some(Change::Modified),
        _ if attributes_differ(&own, object.stat, origin)? => Some(Change::Attributes),
        // A directory's time changes with its names, which are listed themselves.
        _ if kind(object.stat) == FileType::Directory || !times_differ => None,
        Content::Same => Some(Change::Reverted),
        Content::None => Some(Change::Attributes),
    })
}

/// Whether there is content to compare, and how it compares.
enum Content {
    None,
    Same,
    Differs,
}

fn content_differs(object: &Object<'_>, origin: &Origin) -> Result<Content, Errno> {
    let name = file_name(object.path);
    let of = |same: bool| if same { Content::Same } else { Content::Differs };
    match kind(object.stat) {
        FileType::RegularFile => {}
        FileType::Symlink => {
            let target = backing::read_link(object.directory, name)?;
            return Ok(of(origin.digest.is_none_or(|digest| digest == Digest::of(&target))));
        }
        _ => return Ok(Content::None),
    }
    // Its data is the layer's, and nobody wrote to it.
    if borrowed::mark(&backing::path_of(object.directory, name), object.stat)?.is_some() {
        return Ok(Content::None);
    }
    let size = u64::try_from(object.stat.st_size).unwrap_or(u64::MAX);
    // No layer has a larger file: a record that says so is forged.
    if size != origin.size || size > limits::LAYER_BYTES {
        return Ok(Content::Differs);
    }
    let mtime = backing::timestamp(object.stat.st_mtime, object.stat.st_mtime_nsec);
    match origin.digest {
        Some(digest) => Ok(of(file_digest(object.directory, name)? == digest)),
        // Of a plain directory that is not at hand: the time is all there is.
        None => Ok(of(mtime == origin.mtime)),
    }
}

fn file_digest(directory: &OwnedFd, name: &[u8]) -> Result<Digest, Errno> {
    let file = open_regular(directory, name)?;
    backing::digest(&file)
}

/// Opens a regular file and nothing else; does not wait for anybody.
pub fn open_regular(directory: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let file = backing::open_beneath(directory, name, flags, Mode::empty())?;
    match kind(&rustix::fs::fstat(&file)?) {
        FileType::RegularFile => Ok(file),
        _ => Err(Errno::IO),
    }
}

fn attributes_differ(path: &[u8], stat: &Stat, origin: &Origin) -> Result<bool, Errno> {
    let is_link = kind(stat) == FileType::Symlink;
    Ok((!is_link && stat.st_mode & 0o7777 != origin.mode)
        || (stat.st_uid, stat.st_gid) != (origin.uid, origin.gid)
        || xattrs_digest(&backing::xattrs(path)?) != origin.xattrs)
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}
