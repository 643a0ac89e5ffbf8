//! Names for open descriptors, for the system calls that take a path alone.
//!
//! Extended attributes of symbolic links and devices can only be reached by
//! path. A descriptor's name below `/proc/self/fd` is such a path and follows
//! no link of anybody's making. A daemon outlives the mount namespace that it
//! was started in, so [`pin`] keeps a working directory there.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

static PINNED: AtomicBool = AtomicBool::new(false);

/// Makes `/proc/self/fd` the process's working directory for good, so that
/// descriptors keep their names even when `/proc` is mounted elsewhere later.
///
/// # Errors
/// `/proc` is not mounted.
pub fn pin() -> Result<(), Errno> {
    rustix::process::chdir("/proc/self/fd")?;
    PINNED.store(true, Ordering::Release);
    Ok(())
}

/// A path that names the open descriptor itself.
pub fn path(fd: impl AsFd) -> String {
    let number = fd.as_fd().as_raw_fd();
    if PINNED.load(Ordering::Acquire) {
        format!("{number}")
    } else {
        format!("/proc/self/fd/{number}")
    }
}

/// A path that names `name` in the open directory.
pub fn path_in(directory: impl AsFd, name: &[u8]) -> Vec<u8> {
    let mut path = path(directory).into_bytes();
    path.push(b'/');
    path.extend_from_slice(name);
    path
}
