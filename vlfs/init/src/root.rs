//! The kernel's file systems below a root directory.
//!
//! Paths are joined to `root`, whose symbolic links are followed as the caller's
//! root has them: call it with `/` once the VA's tree is the root, or with a tree
//! that is trusted. Guarantees: no device of the host but the six harmless ones,
//! nothing in `/proc` or `/sys` through which the host could be changed. `/tmp`
//! is left to the layers: what an intruder leaves there belongs into the private
//! layer, where it is found (§4.5).

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{MountFlags, MountPropagationFlags};

use crate::error::{Context, InitError};

/// Name, major and minor number.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];
/// Through these the host could be changed.
const READ_ONLY: [&str; 5] = ["sys", "bus", "fs", "irq", "sysrq-trigger"];
/// These tell of the host.
const MASKED_FILES: [&str; 5] =
    ["proc/kcore", "proc/keys", "proc/timer_list", "proc/sched_debug", "proc/latency_stats"];
const MASKED_DIRECTORIES: [&str; 2] = ["proc/acpi", "sys/firmware"];

/// Keeps mounts made here from the rest of the host, and the host's from here.
///
/// # Errors
/// As mount(2).
pub fn keep_mounts_private() -> Result<(), InitError> {
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).context("make private the mount", "/")
}

/// Mounts `/proc`, `/sys`, `/dev` and `/run` below `root`.
///
/// # Errors
/// A mount point is missing and cannot be made, or a mount fails.
pub fn mount_kernel_file_systems(root: &Path) -> Result<(), InitError> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(root, "proc", "proc", safe, c"")?;
    mount(root, "sys", "sysfs", safe | MountFlags::RDONLY, c"")?;
    let dev = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount(root, "dev", "tmpfs", dev, c"mode=755,size=1m")?;
    fill_dev(root)?;
    mount(
        root,
        "dev/pts",
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"newinstance,ptmxmode=0666,mode=620,gid=5",
    )?;
    mount(root, "dev/shm", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=1777,size=25%")?;
    mount(root, "dev/mqueue", "mqueue", safe, c"")?;
    mount(root, "run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=755,size=25%")?;
    directory(&root.join("run/lock"), 0o1777)?;
    for name in READ_ONLY {
        read_only(&root.join("proc").join(name))?;
    }
    for name in MASKED_FILES {
        let path = root.join(name);
        if path.exists() {
            rustix::mount::mount_bind(root.join("dev/null"), &path)
                .context("mask", &path.to_string_lossy())?;
        }
    }
    for name in MASKED_DIRECTORIES {
        if root.join(name).is_dir() {
            mount(root, name, "tmpfs", safe | MountFlags::RDONLY, c"size=0")?;
        }
    }
    Ok(())
}

fn mount(
    root: &Path,
    name: &str,
    kind: &str,
    flags: MountFlags,
    options: &std::ffi::CStr,
) -> Result<(), InitError> {
    let path = root.join(name);
    directory(&path, 0o755)?;
    rustix::mount::mount(kind, &path, kind, flags, options)
        .context("mount", &format!("{kind} on {}", path.display()))
}

/// Makes sure that a directory is there.
///
/// # Errors
/// It is not there and cannot be made.
pub fn directory(path: &Path, mode: u32) -> Result<(), InitError> {
    if path.is_dir() {
        return Ok(());
    }
    let made = rustix::fs::mkdir(path, Mode::empty())
        .and_then(|()| rustix::fs::chmod(path, Mode::from_raw_mode(mode)));
    made.map_err(|error| InitError::MountPoint {
        path: path.display().to_string(),
        source: error.into(),
    })
}

fn fill_dev(root: &Path) -> Result<(), InitError> {
    let dev = root.join("dev");
    for (name, major, minor) in DEVICES {
        let path = dev.join(name);
        let device = rustix::fs::makedev(major, minor);
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, mode, device)
            .and_then(|()| rustix::fs::chmod(&path, mode))
            .context("make the device", &path.to_string_lossy())?;
    }
    for (name, target) in LINKS {
        let path: PathBuf = dev.join(name);
        std::os::unix::fs::symlink(target, &path).context("link", &path.to_string_lossy())?;
    }
    Ok(())
}

/// Makes what stands at `path`, if anything, read-only.
fn read_only(path: &Path) -> Result<(), InitError> {
    let subject = path.to_string_lossy();
    match rustix::mount::mount_bind_recursive(path, path).map_err(io::Error::from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result.context("bind", &subject)?,
    }
    let flags = MountFlags::BIND
        | MountFlags::RDONLY
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC;
    rustix::mount::mount_remount(path, flags, c"").context("make read-only", &subject)
}
