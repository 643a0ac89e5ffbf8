//! The one place that changes a private directory.
//!
//! Every system call that changes something there is a counted step.
//! [`Disk::failing_at`] makes step *n* and all later ones fail, which leaves on
//! disk what a crash before that step would have left, as long as the backing
//! file system keeps the order of changes: tests cut every operation short at
//! each of its steps (`tests/vlfs/crash.rs`). [`Disk::refusing_at`] makes step *n* alone
//! fail, as on a disk that is full for a moment: what is refused must not have
//! happened. A wall test sees to it that no
//! other module changes anything there. Without a failure to play, a step is
//! one comparison.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    AtFlags, Dev, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;

use super::os;
use crate::descent::Descent;
use crate::{backing, proc};

/// The writer of a private directory; can be told to fail at a step.
#[derive(Debug, Default)]
pub struct Disk {
    fault: Option<Fault>,
}

#[derive(Debug)]
struct Fault {
    at: u64,
    /// All later steps fail as well.
    lasts: bool,
    errno: Errno,
    taken: AtomicU64,
}

impl Disk {
    /// A disk whose step `step` (from 0) and all later ones fail with `EIO`.
    pub fn failing_at(step: u64) -> Disk {
        Disk::faulty(Fault { at: step, lasts: true, errno: Errno::IO, taken: AtomicU64::new(0) })
    }

    /// A disk whose step `step` (from 0) fails with `ENOSPC`, and no other.
    pub fn refusing_at(step: u64) -> Disk {
        let taken = AtomicU64::new(0);
        Disk::faulty(Fault { at: step, lasts: false, errno: Errno::NOSPC, taken })
    }

    fn faulty(fault: Fault) -> Disk {
        Disk { fault: Some(fault) }
    }

    /// The steps taken or refused so far; 0 where none is to fail.
    pub fn steps(&self) -> u64 {
        self.fault.as_ref().map_or(0, |fault| fault.taken.load(Ordering::Relaxed))
    }

    fn step(&self) -> Result<(), Errno> {
        let Some(fault) = &self.fault else { return Ok(()) };
        let step = fault.taken.fetch_add(1, Ordering::Relaxed);
        let fails = step == fault.at || (fault.lasts && step > fault.at);
        if fails { Err(fault.errno) } else { Ok(()) }
    }

    /// Opens a file beneath `directory`, making it (`flags` say how).
    pub fn create(
        &self,
        directory: impl AsFd,
        name: &[u8],
        flags: OFlags,
        mode: Mode,
    ) -> Result<OwnedFd, Errno> {
        self.step()?;
        backing::open_beneath(directory, name, flags | OFlags::CREATE, mode)
    }

    /// A file without a name in an open directory.
    pub fn temporary(&self, directory: impl AsFd, mode: Mode) -> Result<OwnedFd, Errno> {
        self.step()?;
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        rustix::fs::openat(directory, ".", flags, mode)
    }

    pub fn make_directory(
        &self,
        directory: impl AsFd,
        name: &[u8],
        mode: Mode,
    ) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::mkdirat(directory, os(name), mode)
    }

    pub fn make_node(
        &self,
        directory: impl AsFd,
        name: &[u8],
        kind: FileType,
        mode: Mode,
        device: Dev,
    ) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::mknodat(directory, os(name), kind, mode, device)
    }

    pub fn symlink(&self, target: &[u8], directory: impl AsFd, name: &[u8]) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::symlinkat(os(target), directory, os(name))
    }

    pub fn link(
        &self,
        (from, name): (impl AsFd, &[u8]),
        (to, new_name): (impl AsFd, &[u8]),
    ) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::linkat(from, os(name), to, os(new_name), AtFlags::empty())
    }

    /// Gives an open file that may have no name a name.
    pub fn link_open(
        &self,
        file: impl AsFd,
        directory: impl AsFd,
        name: &[u8],
    ) -> Result<(), Errno> {
        self.step()?;
        let path = proc::path(&file);
        let flags = AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(rustix::fs::CWD, path, directory, os(name), flags)
    }

    pub fn rename(
        &self,
        (from, name): (impl AsFd, &[u8]),
        (to, new_name): (impl AsFd, &[u8]),
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::renameat_with(from, os(name), to, os(new_name), flags)
    }

    pub fn unlink(&self, directory: impl AsFd, name: &[u8]) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::unlinkat(directory, os(name), AtFlags::empty())
    }

    pub fn remove_directory(&self, directory: impl AsFd, name: &[u8]) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::unlinkat(directory, os(name), AtFlags::REMOVEDIR)
    }

    /// Removes `name` with all below it. What is already gone is no error.
    pub fn remove_tree(&self, directory: impl AsFd, name: &[u8]) -> Result<(), Errno> {
        match self.unlink(&directory, name) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error),
        }
        let inside = match backing::open_directory(&directory, name) {
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        let gone = |removed| match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        };
        let mut walk = Descent::new(inside)?;
        loop {
            if let Some(entry) = walk.next_name() {
                match self.unlink(walk.here(), &entry.name) {
                    Err(Errno::ISDIR) => walk.enter(&entry.name)?,
                    other => gone(other)?,
                }
            } else if let Some(emptied) = walk.leave()? {
                gone(self.remove_directory(walk.here(), &emptied))?;
            } else {
                return gone(self.remove_directory(&directory, name));
            }
        }
    }

    /// Changes the owner of `name` itself, also if it is a link.
    pub fn chown(
        &self,
        directory: impl AsFd,
        name: &[u8],
        (uid, gid): (Option<Uid>, Option<Gid>),
    ) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::chownat(directory, os(name), uid, gid, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Changes the owner of an open object.
    pub fn chown_open(
        &self,
        file: impl AsFd,
        (uid, gid): (Option<Uid>, Option<Gid>),
    ) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::chownat(file, "", uid, gid, AtFlags::EMPTY_PATH)
    }

    /// Changes the mode of `name`, which is no link.
    pub fn chmod(&self, directory: impl AsFd, name: &[u8], mode: Mode) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::chmodat(directory, os(name), mode, AtFlags::empty())
    }

    /// Changes the mode of an open object, also one opened for walking only.
    pub fn chmod_open(&self, file: impl AsFd, mode: Mode) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::chmod(proc::path(&file), mode)
    }

    /// Changes the times of `name` itself, also if it is a link.
    pub fn set_times(
        &self,
        directory: impl AsFd,
        name: &[u8],
        times: &Timestamps,
    ) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::utimensat(directory, os(name), times, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Changes the times of an open object.
    pub fn set_times_open(&self, file: impl AsFd, times: &Timestamps) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::utimensat(file, "", times, AtFlags::EMPTY_PATH)
    }

    /// Sets an extended attribute of the file at `path` (see [`proc`]), a link itself.
    pub fn set_xattr(
        &self,
        path: &[u8],
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::lsetxattr(OsStr::from_bytes(path), OsStr::from_bytes(name), value, flags)
    }

    /// Sets an extended attribute of an open object.
    pub fn set_xattr_open(
        &self,
        file: impl AsFd,
        name: &[u8],
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::setxattr(proc::path(&file), os(name), value, flags)
    }

    /// Removes an extended attribute of the file at `path`, a link itself.
    pub fn remove_xattr(&self, path: &[u8], name: &[u8]) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::lremovexattr(OsStr::from_bytes(path), os(name))
    }

    /// Removes an extended attribute of an open object.
    pub fn remove_xattr_open(&self, file: impl AsFd, name: &[u8]) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::removexattr(proc::path(&file), os(name))
    }

    pub fn truncate(&self, file: impl AsFd, size: u64) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::ftruncate(file, size)
    }

    pub fn allocate(
        &self,
        file: impl AsFd,
        mode: FallocateFlags,
        offset: u64,
        length: u64,
    ) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::fallocate(file, mode, offset, length)
    }

    pub fn write(&self, file: impl AsFd, data: &[u8]) -> Result<usize, Errno> {
        self.step()?;
        rustix::io::write(file, data)
    }

    pub fn write_at(&self, file: impl AsFd, data: &[u8], offset: u64) -> Result<usize, Errno> {
        self.step()?;
        rustix::io::pwrite(file, data, offset)
    }

    /// Lets `target` share all data of `source`, where the disk can.
    pub fn clone(&self, source: impl AsFd, target: impl AsFd) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::ioctl_ficlone(target, source)
    }

    pub fn copy_range(
        &self,
        (source, from): (impl AsFd, &mut u64),
        (target, to): (impl AsFd, &mut u64),
        length: usize,
    ) -> Result<usize, Errno> {
        self.step()?;
        rustix::fs::copy_file_range(source, Some(from), target, Some(to), length)
    }

    /// Waits until a file's data is on the disk.
    pub fn sync_data(&self, file: impl AsFd) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::fdatasync(file)
    }

    /// Waits until a file or directory is on the disk.
    pub fn sync(&self, file: impl AsFd) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::fsync(file)
    }

    /// Waits until everything of the file system of `file` is on the disk.
    pub fn sync_file_system(&self, file: impl AsFd) -> Result<(), Errno> {
        self.step()?;
        rustix::fs::syncfs(file)
    }
}
