//! The two calls that register a file with the kernel for passthrough
//! (`Documentation/filesystems/fuse/fuse-passthrough.rst`).

use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

/// Takes a descriptor that a predecessor in this process left open (`takeover.rs`).
/// Its number comes from that predecessor's state, once each.
pub(crate) fn adopt(number: i32) -> OwnedFd {
    // SAFETY: the predecessor wrote the number of a descriptor of its own into the
    // state and was replaced; nobody else in this process knows it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Type of the ioctls of `/dev/fuse`.
const FUSE: u8 = 229;

/// `struct fuse_backing_map`.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

struct BackingOpen(BackingMap);

// SAFETY: the opcode is that of FUSE_DEV_IOC_BACKING_OPEN, whose argument is a
// `struct fuse_backing_map` that the kernel only reads; `BackingMap` has that
// layout and lives as long as `self`. The result is the call's return value.
unsafe impl Ioctl for BackingOpen {
    type Output = i32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::write::<BackingMap>(FUSE, 1)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i32> {
        Ok(out)
    }
}

struct BackingClose(u32);

// SAFETY: the opcode is that of FUSE_DEV_IOC_BACKING_CLOSE, whose argument is a
// `uint32_t` that the kernel only reads; it lives as long as `self`.
unsafe impl Ioctl for BackingClose {
    type Output = ();
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::write::<u32>(FUSE, 2)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// Registers `file` with the connection. Returns the kernel's number for it.
pub fn backing_open(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<i32, Errno> {
    let map = BackingMap { fd: file.as_fd().as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: see `BackingOpen`; any descriptor is acceptable, a wrong one is an error.
    unsafe { rustix::ioctl::ioctl(device, BackingOpen(map)) }
}

pub fn backing_close(device: BorrowedFd<'_>, id: i32) -> Result<(), Errno> {
    // SAFETY: see `BackingClose`.
    unsafe { rustix::ioctl::ioctl(device, BackingClose(id.cast_unsigned())) }
}
