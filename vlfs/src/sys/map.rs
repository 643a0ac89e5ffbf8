//! A file read through memory: all processes that map it share its pages.

use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

/// A read-only mapping of a whole file.
#[derive(Debug)]
pub struct Map {
    address: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is read-only memory that belongs to this value alone, and is
// unmapped when it is dropped; nothing about it depends on the thread.
unsafe impl Send for Map {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Map {}

impl Map {
    /// Maps the first `length` bytes of `file`, which must hold as many.
    ///
    /// The caller vouches that nobody changes or shortens the file while it is
    /// mapped: Strata maps only files that it made itself, in a directory that
    /// is root's alone, and that are never written again once they have their name.
    ///
    /// # Errors
    /// `EINVAL` for no bytes at all; what `mmap(2)` answers.
    pub fn of(file: BorrowedFd<'_>, length: usize) -> Result<Map, Errno> {
        // SAFETY: the kernel chooses the address, so no memory in use is touched; a
        // shared read-only mapping of a descriptor has no other effect.
        let address = unsafe {
            let (read, shared) = (ProtFlags::READ, MapFlags::SHARED);
            rustix::mm::mmap(std::ptr::null_mut(), length, read, shared, file, 0)?
        };
        let address = NonNull::new(address.cast()).ok_or(Errno::NOMEM)?;
        Ok(Map { address, length })
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `address` is the start of a live, readable mapping of `length`
        // bytes; the file below it does not change (see `Map::of`).
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.length) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the range is this value's own mapping, and no borrow of it outlives it.
        let unmapped = unsafe { rustix::mm::munmap(self.address.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok(), "the range is a mapping");
    }
}
