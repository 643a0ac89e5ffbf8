//! Mounting data directories on a mounted file system, from a process of its own.
//!
//! Walking to the mount point asks the daemon. A daemon's own thread that waits for
//! such an answer keeps the connection open while the daemon is killed, and both wait
//! for ever; another process just gets an error.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags};
use strata_core::data_paths::{DataPath, DataPaths};

use super::{DATA, DataError};
use crate::backing;

/// The hidden command of this program that mounts.
pub const COMMAND: &str = "bind-data";

/// What is to be mounted where.
#[derive(Debug, Clone)]
pub struct Binding {
    pub private: PathBuf,
    pub mount_point: PathBuf,
    pub paths: DataPaths,
    pub read_only: bool,
}

impl Binding {
    /// Mounts all of them, in another process.
    ///
    /// # Errors
    /// One cannot be mounted; those before it are.
    pub fn run(&self) -> Result<(), DataError> {
        if self.paths.is_empty() {
            return Ok(());
        }
        let failed = |reason: String| DataError::Binding(reason);
        let mut command = Command::new("/proc/self/exe");
        command.arg(COMMAND).arg("--private").arg(&self.private).arg(&self.mount_point);
        if self.read_only {
            command.arg("--read-only");
        }
        command.args(self.paths.iter().map(ToString::to_string));
        command.stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/");
        let output = command.output().map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(failed(reason.strip_prefix("error: ").unwrap_or(&reason).to_owned()))
    }
}

/// Mounts data directories of `private` on their paths below `mount_point`, with the
/// options of the private disk's mount. No symbolic link is followed.
///
/// # Errors
/// The first that cannot be mounted.
pub fn bind(
    private: &Path,
    mount_point: &Path,
    paths: &[DataPath],
    read_only: bool,
) -> Result<(), DataError> {
    let open = |path: &Path| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty())
            .map_err(|errno| DataError::Binding(format!("{}: {errno}", path.display())))
    };
    let (private, root) = (open(private)?, open(mount_point)?);
    for path in paths {
        bind_one(&private, &root, path).map_err(|errno| DataError::Io {
            path: path.clone(),
            what: "cannot be mounted",
            errno,
        })?;
        if read_only {
            let flags = MountFlags::BIND | MountFlags::RDONLY;
            rustix::mount::mount_remount(mount_point.join(path.relative()), flags, c"").map_err(
                |errno| DataError::Io {
                    path: path.clone(),
                    what: "cannot be made read-only",
                    errno,
                },
            )?;
        }
    }
    Ok(())
}

fn bind_one(private: &OwnedFd, root: &OwnedFd, path: &DataPath) -> Result<(), Errno> {
    let from = [DATA, b"/", path.directory_name().as_bytes()].concat();
    let source = backing::open_directory(private, &from)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(&source, "", flags)?;
    let target = backing::open_directory(root, path.relative().as_bytes())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", &target, "", flags)
}
