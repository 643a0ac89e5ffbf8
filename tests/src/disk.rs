//! The disk that what is compared is on: ext4 with a journal, as
//! appliances have it, or XFS, in a file below the scratch directory.
//!
//! What the scratch directory itself is on is the machine's affair. An ext4 without a
//! journal, for one, looks at every inode that was freed in the last minutes before it
//! makes a file (`recently_deleted` in fs/ext4/ialloc.c): after some tens of thousands of
//! removals a file takes ten times as long, and the order of the file systems decides
//! which is slow.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::commands::run;

const INODES: u32 = 2_000_000;
/// How long daemons may take to end, and between looks.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Ext4,
    /// Files can share blocks on it.
    Xfs,
}

/// A mounted disk; unmounted when it is dropped.
#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
}

impl Disk {
    /// Makes the disk's file in `directory`, and mounts it there. The file is sparse: it
    /// takes what is written, `bytes` at most.
    ///
    /// # Errors
    /// There is no loop device, or no such file system.
    pub fn make(directory: &Path, bytes: u64, format: Format) -> Result<Disk> {
        let (image, root) = (directory.join("disk.image"), directory.join("disk"));
        std::fs::File::create(&image)?.set_len(bytes)?;
        std::fs::create_dir(&root)?;
        let inodes = INODES.to_string();
        let (make, arguments) = match format {
            // Nothing is left to be initialised while something is measured.
            Format::Ext4 => {
                let now = "lazy_itable_init=0,lazy_journal_init=0";
                ("mkfs.ext4", vec!["-q", "-E", now, "-N", &inodes])
            }
            Format::Xfs => ("mkfs.xfs", vec!["-q", "-m", "reflink=1"]),
        };
        run(Command::new(make).args(arguments).arg(&image)).context(make)?;
        let mut attach = Command::new("losetup");
        // Past the memory of what is below, or files would be kept twice.
        attach.args(["--find", "--show", "--direct-io=on"]).arg(&image);
        let attached = attach.output().context("losetup")?;
        let said = String::from_utf8_lossy(&attached.stderr);
        ensure!(attached.status.success(), "no loop device: {said}\n  hint: modprobe loop");
        let device = String::from_utf8(attached.stdout)?.trim().to_owned();
        let mounted = run(Command::new("mount").arg(&device).arg(&root));
        // It goes with the mount, or at once if there is none.
        run(Command::new("losetup").args(["--detach", &device]))?;
        mounted?;
        Ok(Disk { root })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // One of the systems is mounted from a directory of ours.
        let _elsewhere = std::env::set_current_dir("/");
        // Daemons whose mounts are gone still close their files.
        let deadline = Instant::now() + PATIENCE;
        loop {
            match rustix::mount::unmount(&self.root, UnmountFlags::empty()) {
                Ok(()) => return,
                Err(Errno::BUSY) if Instant::now() < deadline => std::thread::sleep(PAUSE),
                Err(error) => {
                    eprintln!("warning: {} stays mounted: {error}", self.root.display());
                    return;
                }
            }
        }
    }
}
