//! Reading a file through a mapping.
#![allow(unsafe_code, reason = "mmap has no safe form")]

use std::fs::File;
use std::os::fd::AsFd;

use anyhow::Result;
use rustix::mm::{MapFlags, ProtFlags};

/// Maps a file and reads one byte of each page. Returns their sum.
pub fn touch(file: &File) -> Result<u64> {
    let length = usize::try_from(file.metadata()?.len())?;
    let (read, private) = (ProtFlags::READ, MapFlags::PRIVATE);
    // SAFETY: the mapping is `length` readable bytes of a file that nobody
    // truncates meanwhile, it is only read, and it goes before this returns.
    unsafe {
        let address =
            rustix::mm::mmap(std::ptr::null_mut(), length, read, private, file.as_fd(), 0)?;
        let bytes = std::slice::from_raw_parts(address.cast::<u8>(), length);
        let sum = bytes.iter().step_by(4096).map(|byte| u64::from(*byte)).sum();
        rustix::mm::munmap(address, length)?;
        Ok(sum)
    }
}
