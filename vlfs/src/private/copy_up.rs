//! The copy of a layer's object into `work/`, complete with all its attributes.
//!
//! Data by reflink where the disk can, else by `copy_file_range`, holes kept.
//! Nothing here makes the copy visible.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Gid, Mode, OFlags, SeekFrom, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::disk::Disk;
use super::origin::Origin;
use super::{INO_XATTR, NAMES_XATTR, ORIGIN_XATTR, Private};
use crate::tree::{Entry, Kind};
use crate::{backing, interrupt};

/// How much of a regular file's data is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    All,
    /// Not now: it stays the layer's until somebody writes (see [`super::borrowed`]).
    Attributes,
    /// It is about to be truncated to nothing.
    None,
}

/// A copy that is to be made.
#[derive(Debug, Clone, Copy)]
pub struct Copied<'a> {
    /// Its name in `work/`.
    pub name: &'a [u8],
    pub entry: &'a Entry<'a>,
    /// The open file of a regular one whose data is wanted.
    pub source: Option<&'a OwnedFd>,
    pub origin: &'a Origin,
    /// The original's names, if it has several.
    pub names: &'a [Vec<u8>],
    pub data: Data,
    /// Wait until the data is on the disk.
    pub flush: bool,
}

/// Makes a copy.
///
/// # Errors
/// The private layer's disk fails or is full; nothing of the copy is left then.
/// `EAGAIN`: the data cannot stay the layer's; copy it as well. `EINTR`: the thread's
/// request was given up.
pub fn copy(private: &Private, wanted: &Copied<'_>) -> Result<(), Errno> {
    let copied = copy_whole(private, wanted);
    if copied.is_err() {
        private.discard(wanted.name);
    }
    copied
}

fn copy_whole(private: &Private, wanted: &Copied<'_>) -> Result<(), Errno> {
    let Copied { name, entry, source, origin, names, data, flush } = *wanted;
    let (disk, work) = (&private.disk, &private.work);
    let attributes = &entry.attributes;
    let mode = Mode::from_raw_mode(0o600);
    let mut file = None;
    let borrows = data == Data::Attributes
        && attributes.size > 0
        && matches!(entry.kind, Kind::Regular { .. });
    match &entry.kind {
        Kind::Directory { .. } => disk.make_directory(work, name, Mode::from_raw_mode(0o700))?,
        Kind::Regular { .. } => {
            let target = disk.create(work, name, OFlags::RDWR | OFlags::EXCL, mode)?;
            match data {
                Data::All => copy_data(disk, source.ok_or(Errno::IO)?, &target)?,
                Data::Attributes => disk.truncate(&target, attributes.size)?,
                Data::None => {}
            }
            file = Some(target);
        }
        Kind::Symlink { target } => disk.symlink(target, work, name)?,
        Kind::CharacterDevice => make_node(private, name, FileType::CharacterDevice, entry)?,
        Kind::BlockDevice => make_node(private, name, FileType::BlockDevice, entry)?,
        Kind::Fifo => make_node(private, name, FileType::Fifo, entry)?,
        Kind::Socket => make_node(private, name, FileType::Socket, entry)?,
    }
    let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    disk.chown(work, name, (Some(uid), Some(gid)))?;
    if !matches!(entry.kind, Kind::Symlink { .. }) {
        let mode = Mode::from_raw_mode(attributes.mode);
        disk.chmod(work, name, mode)?;
    }
    let path = backing::path_of(work, name);
    for (key, value) in &attributes.xattrs {
        match disk.set_xattr(&path, key, value, XattrFlags::empty()) {
            Err(Errno::NOTSUP) => {
                let key = String::from_utf8_lossy(key);
                tracing::warn!(attribute = %key, "the private layer's disk cannot hold it");
            }
            other => other?,
        }
    }
    let ino = format!("{:016x}", entry.identity);
    disk.set_xattr(&path, INO_XATTR, ino.as_bytes(), XattrFlags::empty())?;
    match disk.set_xattr(&path, ORIGIN_XATTR, &origin.print(), XattrFlags::empty()) {
        Err(Errno::NOSPC | Errno::RANGE | Errno::TOOBIG) if borrows => return Err(Errno::AGAIN),
        // A very long path may not fit; `diff` then compares with the mount.
        Err(Errno::NOSPC | Errno::RANGE | Errno::TOOBIG) => {
            tracing::debug!("the record of origin does not fit on the private copy");
        }
        other => other?,
    }
    if names.len() > 1 {
        let record = super::origin::print_names(names);
        match disk.set_xattr(&path, NAMES_XATTR, &record, XattrFlags::empty()) {
            Err(Errno::NOSPC | Errno::RANGE | Errno::TOOBIG) => {
                tracing::debug!("the record of names does not fit on the private copy");
            }
            other => other?,
        }
    }
    if borrows {
        let unit = origin.unit_key().ok_or(Errno::IO)?;
        private.lend(name, &unit, attributes.blocks)?;
    }
    set_mtime(private, name, entry)?;
    match file {
        Some(file) if flush && attributes.size > 0 && data == Data::All => disk.sync_data(&file),
        _ => Ok(()),
    }
}

fn make_node(
    private: &Private,
    name: &[u8],
    kind: FileType,
    entry: &Entry<'_>,
) -> Result<(), Errno> {
    let (major, minor) = entry.attributes.device;
    let device = rustix::fs::makedev(major, minor);
    private.disk.make_node(&private.work, name, kind, Mode::from_raw_mode(0o600), device)
}

fn set_mtime(private: &Private, name: &[u8], entry: &Entry<'_>) -> Result<(), Errno> {
    let mtime = entry.attributes.mtime;
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: i64::from(mtime.nanoseconds) };
    let times = Timestamps { last_access: time, last_modification: time };
    private.disk.set_times(&private.work, name, &times)
}

/// Copies all data, holes as holes. Both descriptors' offsets move. `EINTR` where the
/// thread's request is given up.
pub fn copy_data(disk: &Disk, source: &OwnedFd, target: &OwnedFd) -> Result<(), Errno> {
    if disk.clone(source, target).is_ok() {
        return Ok(());
    }
    let stat = rustix::fs::fstat(source)?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    disk.truncate(target, size)?;
    let mut position = 0;
    while position < size {
        let start = match rustix::fs::seek(source, SeekFrom::Data(position)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => position,
            Err(error) => return Err(error),
        };
        let end = match rustix::fs::seek(source, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            Err(Errno::INVAL | Errno::NXIO) => size,
            Err(error) => return Err(error),
        };
        copy_range(disk, source, target, start, end)?;
        position = end.max(start + 1);
    }
    Ok(())
}

fn copy_range(
    disk: &Disk,
    source: &OwnedFd,
    target: &OwnedFd,
    start: u64,
    end: u64,
) -> Result<(), Errno> {
    let (mut from, mut to) = (start, start);
    while from < end {
        interrupt::check()?;
        let length = usize::try_from(end - from).unwrap_or(usize::MAX).min(interrupt::STEP);
        match disk.copy_range((source, &mut from), (target, &mut to), length) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                return copy_by_hand(disk, source, target, from, end);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn copy_by_hand(
    disk: &Disk,
    source: &OwnedFd,
    target: &OwnedFd,
    start: u64,
    end: u64,
) -> Result<(), Errno> {
    let mut buffer = vec![0; 256 << 10];
    let mut position = start;
    while position < end {
        interrupt::check()?;
        let wanted = usize::try_from(end - position).unwrap_or(usize::MAX).min(buffer.len());
        let read = rustix::io::pread(source, &mut buffer[..wanted], position)?;
        if read == 0 {
            break;
        }
        let mut written = 0;
        while written < read {
            written += disk.write_at(target, &buffer[written..read], position + written as u64)?;
        }
        position += read as u64;
    }
    Ok(())
}
