//! The data of open files that goes through the daemon: reading, writing, flushing.
//!
//! Which file below serves a handle is `file.rs`'s; here its bytes are moved.

use std::io::IoSliceMut;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::ReadWriteFlags;

use super::file::{Backing, FileHandle, kill_privileges};
use super::node::{Node, Upper};
use super::{Errno, Result, Vfs};
use crate::backing;
use crate::tree::PRIVATE_TAG;

impl Vfs {
    /// Reads up to `buffer.len()` bytes. Only for handles whose data passes through here.
    pub fn read(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let handle = self.file(handle)?;
        let file = self.latest(&handle)?;
        let mut read = 0;
        while read < buffer.len() {
            match rustix::io::pread(&*file, &mut buffer[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(length) => read += length,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    /// Reads what is in memory, without waiting for a disk: how many bytes, and whether
    /// that is all. Where the disk's file system cannot tell, it is nothing.
    pub fn read_in_memory(
        &self,
        handle: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(usize, bool)> {
        let handle = self.file(handle)?;
        let file = self.latest(&handle)?;
        let mut read = 0;
        while read < buffer.len() {
            let mut rest = [IoSliceMut::new(&mut buffer[read..])];
            let (at, flags) = (offset + read as u64, ReadWriteFlags::NOWAIT);
            match rustix::io::preadv2(&*file, &mut rest, at, flags) {
                Ok(0) => break,
                Ok(length) => read += length,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok((read, false)),
                Err(error) => return Err(error),
            }
        }
        Ok((read, true))
    }

    /// The handle's file, or the private copy that was made since it was opened.
    fn latest(&self, handle: &Arc<FileHandle>) -> Result<Arc<Backing>> {
        let file = handle.file();
        if file.layer.is_none() || !handle.node.is_private() || file.id.is_some() {
            return Ok(file);
        }
        let _shared = self.shared();
        let newer = self.backing(&self.active(), &handle.node)?;
        if newer.id.is_some() {
            return Ok(file);
        }
        handle.move_to(newer.clone());
        Ok(newer)
    }

    /// Writes all of `data`.
    pub fn write(&self, handle: u64, offset: u64, data: &[u8], kill: bool) -> Result<usize> {
        let handle = self.file(handle)?;
        let file = handle.file();
        if file.layer.is_some() {
            return Err(Errno::BADF);
        }
        let mut written = 0;
        while written < data.len() {
            match self.private.disk.write_at(&*file, &data[written..], offset + written as u64) {
                Ok(length) => written += length,
                Err(Errno::INTR) => {}
                Err(_) if written > 0 => break,
                Err(error) => return Err(error),
            }
        }
        if kill {
            kill_privileges(&self.private.disk, &*file)?;
        }
        Ok(written)
    }

    /// Flushes a file, and the names of a copy: to its users they are as old as the
    /// original's. A flush of data alone need not write names, so the first one of a
    /// copy flushes all; the disk's file system writes what came before with it.
    pub fn fsync(&self, handle: u64, data_only: bool) -> Result<()> {
        let handle = self.file(handle)?;
        let file = handle.file();
        let disk = &self.private.disk;
        let node = super::node::current(handle.node.clone());
        if file.layer.is_some() {
            // Nothing but attributes can have changed, and they are the copy's.
            let _shared = self.shared();
            return match self.open_copy(&node)? {
                Some(copy) => disk.sync(&copy),
                None => Ok(()),
            };
        }
        let is_copy = node.ino & PRIVATE_TAG == 0;
        if data_only && (!is_copy || node.flushed.load(Ordering::Acquire)) {
            return disk.sync_data(&*file);
        }
        disk.sync(&*file)?;
        node.flushed.store(true, Ordering::Release);
        Ok(())
    }

    /// Opens the private copy of a node's object for flushing, if it has one with a name.
    fn open_copy(&self, node: &Arc<Node>) -> Result<Option<OwnedFd>> {
        let place = node.place.read().expect("no panic while held");
        let Upper::File { .. } = &place.upper else { return Ok(None) };
        let (parent, name) = place.names.last().ok_or(Errno::STALE)?;
        let directory = self.directory(parent)?.ok_or(Errno::STALE)?;
        let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::NONBLOCK;
        backing::open_beneath(&directory, name, flags, Mode::empty()).map(Some)
    }

    pub fn fallocate(&self, handle: u64, mode: u32, offset: u64, length: u64) -> Result<()> {
        let file = self.file(handle)?.file();
        if file.layer.is_some() {
            return Err(Errno::BADF);
        }
        let mode = FallocateFlags::from_bits_retain(mode);
        self.private.disk.allocate(&*file, mode, offset, length)
    }

    /// `SEEK_DATA` and `SEEK_HOLE`.
    pub fn seek(&self, handle: u64, from: SeekFrom) -> Result<u64> {
        let handle = self.file(handle)?;
        rustix::fs::seek(&*self.latest(&handle)?, from)
    }

    pub fn copy_range(
        &self,
        (source, mut from): (u64, u64),
        (target, mut to): (u64, u64),
        length: usize,
    ) -> Result<usize> {
        let (source, target) = (self.file(source)?, self.file(target)?);
        let (source, target) = (self.latest(&source)?, target.file());
        if target.layer.is_some() {
            return Err(Errno::BADF);
        }
        self.private.disk.copy_range((&*source, &mut from), (&*target, &mut to), length)
    }
}
