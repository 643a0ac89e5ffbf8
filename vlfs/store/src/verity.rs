//! fs-verity (`Documentation/filesystems/fsverity.rst`): a sealed file can never be
//! written again, and the kernel checks each block of it when it is read.
#![allow(unsafe_code, reason = "the call has no safe form")]

use std::ffi::c_void;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};

/// `FS_VERITY_HASH_ALG_SHA256`.
const SHA256: u32 = 1;
const BLOCK_BYTES: u32 = 4096;

/// `struct fsverity_enable_arg`: no salt and no signature.
#[repr(C)]
#[derive(Default)]
struct EnableArgument {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    reserved: u32,
    signature: u64,
    more_reserved: [u64; 11],
}

struct Enable(EnableArgument);

// SAFETY: the opcode is that of FS_IOC_ENABLE_VERITY, whose argument is a `struct
// fsverity_enable_arg` that the kernel only reads; `EnableArgument` has that layout, points
// to nothing, and lives as long as `self`.
unsafe impl Ioctl for Enable {
    type Output = ();
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::write::<EnableArgument>(b'f', 133)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// Seals a file that is open for reading, and by nobody for writing.
///
/// # Errors
/// `EEXIST`: it is sealed; `ENOTTY` and `EOPNOTSUPP`: the kernel or the file system has
/// no fs-verity.
pub fn enable(file: impl AsFd) -> Result<(), Errno> {
    let argument = EnableArgument {
        version: 1,
        hash_algorithm: SHA256,
        block_size: BLOCK_BYTES,
        ..EnableArgument::default()
    };
    // SAFETY: see `Enable`; any descriptor is acceptable, a wrong one is an error.
    unsafe { rustix::ioctl::ioctl(file, Enable(argument)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_argument_is_the_kernels() {
        assert_eq!(size_of::<EnableArgument>(), 128);
        assert_eq!(Enable(EnableArgument::default()).opcode(), 0x4080_6685);
    }
}
