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

/// [`pin`] for a program whose predecessor in this process was pinned already:
/// `/proc` may be mounted elsewhere by now.
///
/// # Errors
/// It was not, and `/proc` is not mounted.
pub fn pin_again() -> Result<(), Errno> {
    /// `f_type` of procfs.
    const PROC: rustix::fs::FsWord = 0x9fa0;
    if rustix::fs::statfs(".").is_ok_and(|stat| stat.f_type == PROC) {
        PINNED.store(true, Ordering::Release);
        return Ok(());
    }
    pin()
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

/// The directory of a process below `/proc`.
pub fn process(pid: i32) -> std::path::PathBuf {
    let proc = if PINNED.load(Ordering::Acquire) { "../.." } else { "/proc" };
    std::path::Path::new(proc).join(pid.to_string())
}

/// A path that names `name` in the open directory.
pub fn path_in(directory: impl AsFd, name: &[u8]) -> Vec<u8> {
    let mut path = path(directory).into_bytes();
    path.push(b'/');
    path.extend_from_slice(name);
    path
}
