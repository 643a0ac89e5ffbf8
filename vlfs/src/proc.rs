//! Names for open descriptors, for the system calls that take a path alone.
//!
//! Extended attributes of symbolic links and devices can only be reached by
//! path. A descriptor's name below `/proc/self/fd` is such a path and follows
//! no link of anybody's making. A daemon outlives the mount namespace that it
//! was started in, so [`pin`] keeps a working directory there.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

static PINNED: AtomicBool = AtomicBool::new(false);
/// The root directory, held open.
static ROOT: OnceLock<OwnedFd> = OnceLock::new();

/// Makes `/proc/self/fd` the process's working directory for good, so that
/// descriptors keep their names even when `/proc` is mounted elsewhere later.
///
/// # Errors
/// `/proc` is not mounted.
pub fn pin() -> Result<(), Errno> {
    hold_root()?;
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
    hold_root()?;
    if rustix::fs::statfs(".").is_ok_and(|stat| stat.f_type == PROC) {
        PINNED.store(true, Ordering::Release);
        return Ok(());
    }
    pin()
}

fn hold_root() -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/", flags, Mode::empty())?;
    let _kept_the_first = ROOT.set(root);
    Ok(())
}

/// A file of this process's own below `/proc`.
pub fn own(name: &str) -> std::path::PathBuf {
    let own = if PINNED.load(Ordering::Acquire) { ".." } else { "/proc/self" };
    std::path::Path::new(own).join(name)
}

/// `/proc` itself.
pub fn all() -> &'static std::path::Path {
    std::path::Path::new(if PINNED.load(Ordering::Acquire) { "../.." } else { "/proc" })
}

/// Whether a process executes the file `ino` of the mount `number`, as far as this daemon's
/// `/proc` shows processes. No request comes of it: what the kernel knows of a file is enough.
pub fn executes(number: (u32, u32), ino: u64) -> bool {
    let is_file = |program: &std::path::Path| {
        let found = rustix::fs::statx(CWD, program, AtFlags::STATX_DONT_SYNC, StatxFlags::INO);
        found.is_ok_and(|found| {
            (found.stx_dev_major, found.stx_dev_minor, found.stx_ino) == (number.0, number.1, ino)
        })
    };
    let processes = std::fs::read_dir(all()).into_iter().flatten().flatten();
    processes.into_iter().any(|process| {
        let is_process = process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
        is_process && is_file(&process.path().join("exe"))
    })
}

/// Goes back to the root directory of the first [`pin`]: `pivot_root` gives every
/// process of the mount namespace the new root, which may be this daemon's own mount.
///
/// # Errors
/// As chroot(2).
pub fn keep_root() -> Result<(), Errno> {
    let Some(root) = ROOT.get() else { return Ok(()) };
    let (own, now) = (rustix::fs::fstat(root)?, rustix::fs::stat("/")?);
    if (own.st_dev, own.st_ino) == (now.st_dev, now.st_ino) {
        return Ok(());
    }
    rustix::process::chroot(path(root))?;
    tracing::info!("the mount namespace has another root now: this process keeps its own");
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
