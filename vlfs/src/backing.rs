//! Files below the union: opening, describing and reading them, symlink-safe.
//! Nothing here changes anything: that is what `private/disk.rs` does.
//!
//! Every open is relative to a descriptor that the daemon holds and never
//! leaves the tree below it: no symbolic link is followed, in any component.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use strata_core::manifest::Timestamp;

use crate::proc;

/// Attributes of Strata's own on private files; never shown.
pub const OWN_XATTRS: &[u8] = b"trusted.strata.";

/// Bytes of a path that one system call is asked to walk; a tree may be deeper.
const LONGEST_WALK: usize = 3500;

const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Opens `path` below `directory`; an empty path opens the directory itself.
pub fn open_beneath(
    directory: impl AsFd,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let mut above: Option<OwnedFd> = None;
    let mut path = path;
    while path.len() > LONGEST_WALK {
        let cut =
            path[..LONGEST_WALK].iter().rposition(|b| *b == b'/').ok_or(Errno::NAMETOOLONG)?;
        let from = above.as_ref().map_or(directory.as_fd(), AsFd::as_fd);
        above = Some(open_within(from, &path[..cut], WALK, Mode::empty())?);
        path = &path[cut + 1..];
    }
    let from = above.as_ref().map_or(directory.as_fd(), AsFd::as_fd);
    open_within(from, path, flags, mode)
}

fn open_within(
    directory: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    loop {
        match rustix::fs::openat2(directory, OsStr::from_bytes(path), flags, mode, BENEATH) {
            // A rename elsewhere raced with the check of `..`; the kernel asks to retry.
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// How a directory is opened for walking, not for reading.
const WALK: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// Opens a directory for walking, not for reading.
pub fn open_directory(directory: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    open_beneath(directory, path, WALK, Mode::empty())
}

/// Describes `name` in a directory, itself if it is a link.
pub fn stat_at(directory: impl AsFd, name: &[u8]) -> Result<Stat, Errno> {
    rustix::fs::statat(directory, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW)
}

/// One name of a directory.
#[derive(Debug)]
pub struct Name {
    pub name: Box<[u8]>,
    pub kind: FileType,
    pub inode: u64,
}

/// The names in a directory, without `.` and `..`, in no order.
pub fn list(directory: impl AsFd) -> Result<Vec<Name>, Errno> {
    let reader = open_beneath(directory, b"", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::new(reader)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(Name { name: name.into(), kind: entry.file_type(), inode: entry.ino() });
        }
    }
    Ok(names)
}

/// Target of the symbolic link `name`.
pub fn read_link(directory: impl AsFd, name: &[u8]) -> Result<Vec<u8>, Errno> {
    Ok(rustix::fs::readlinkat(directory, OsStr::from_bytes(name), Vec::new())?.into_bytes())
}

/// A timestamp as the system gives it. `nanoseconds` is below 10^9.
pub fn timestamp(seconds: i64, nanoseconds: u64) -> Timestamp {
    Timestamp { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap_or(0) }
}

/// All extended attributes of the file at `path` (see [`proc`]), Strata's own left out.
/// A file system without extended attributes has none.
pub fn xattrs(path: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Errno> {
    let mut found = BTreeMap::new();
    for name in xattr_names(path)? {
        if name.starts_with(OWN_XATTRS) {
            continue;
        }
        match xattr(path, &name) {
            Ok(value) => {
                found.insert(name, value);
            }
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

pub fn xattr_names(path: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
    let path = OsStr::from_bytes(path);
    let mut buffer = vec![0_u8; 1024];
    let length = loop {
        match rustix::fs::llistxattr(path, &mut buffer[..]) {
            Ok(length) => break length,
            Err(Errno::RANGE) => buffer.resize(64 << 10, 0),
            Err(Errno::NOTSUP) => break 0,
            Err(error) => return Err(error),
        }
    };
    let names = buffer[..length].split(|b| *b == 0).filter(|name| !name.is_empty());
    Ok(names.map(<[u8]>::to_vec).collect())
}

/// The value of one extended attribute of the file at `path`, a link itself.
pub fn xattr(path: &[u8], name: &[u8]) -> Result<Vec<u8>, Errno> {
    let (path, name) = (OsStr::from_bytes(path), OsStr::from_bytes(name));
    let mut buffer = vec![0_u8; 256];
    loop {
        match rustix::fs::lgetxattr(path, name, &mut buffer[..]) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 64 << 10 => buffer.resize(64 << 10, 0),
            Err(error) => return Err(error),
        }
    }
}

/// The path of `name` in `directory` for system calls that take a path alone.
pub fn path_of(directory: impl AsFd, name: &[u8]) -> Vec<u8> {
    proc::path_in(directory, name)
}

/// Opens the directory that holds `path`, and gives the last name.
pub fn open_parent(root: impl AsFd, path: &[u8]) -> Result<(OwnedFd, &[u8]), Errno> {
    let parent = strata_core::manifest::parent_path(path).unwrap_or(&[]);
    Ok((open_directory(root, parent)?, strata_core::manifest::file_name(path)))
}

/// blake3 of what is to be read from an open file's position to its end.
pub fn digest(file: impl AsFd) -> Result<strata_core::Digest, Errno> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match rustix::io::read(&file, &mut buffer[..]) {
            Ok(0) => return Ok(strata_core::Digest::from_bytes(*hasher.finalize().as_bytes())),
            Ok(length) => {
                hasher.update(&buffer[..length]);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Opens the directory `name` of a directory that the caller names by its path;
/// `name` itself is no link that is followed.
pub fn open_beneath_path(path: &std::path::Path, name: &[u8]) -> Result<OwnedFd, Errno> {
    open_directory(open_root(path)?, name)
}

/// Opens the root directory of a layer by its path, which may hold links: the
/// operator named it.
pub fn open_root(path: &std::path::Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}
