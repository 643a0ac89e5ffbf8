//! From the boot environment to the appliance.
//!
//! The VLFS daemon keeps the mount namespace that it was started in, with the store
//! and the disk. The appliance gets a copy of it, in which the VLFS is moved over
//! the root and the others are taken away: whatever it mounts, moves or unmounts,
//! the daemon does not see. (Its root would be moved onto its own mount by
//! pivot_root(2), and it would wait for itself.)

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::MountFlags;

use crate::boot::error::BootError;
use crate::boot::{mounts, places};
use crate::error::Context;
use crate::{root, system};

/// First programs that distributions have, in the order of the kernel's own search.
const INITS: [&str; 3] = ["/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd"];
/// Given to the appliance as they are.
const KERNEL_FILE_SYSTEMS: [&str; 3] = ["sys", "dev", "run"];

/// What an appliance is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum First {
    /// A program of its own that is the first process.
    Program(PathBuf),
    /// None: the services of its tree run below this program.
    Services,
}

/// Which `/proc` an appliance gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processes {
    /// That of the boot environment.
    Same,
    /// Its own, with its own process ids.
    Own,
}

/// Finds the first program of the appliance below `root`.
///
/// # Errors
/// The program that was named is not there.
pub fn first_program(root: &Path, named: Option<&Path>) -> Result<First, BootError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top =
        rustix::fs::open(root, flags, Mode::empty()).context("open", &root.to_string_lossy())?;
    match named {
        Some(named) if is_program(&top, named) => Ok(First::Program(named.to_owned())),
        Some(named) => Err(BootError::NoInit(named.to_owned())),
        None => {
            let found = INITS.iter().map(Path::new).find(|path| is_program(&top, path));
            Ok(found.map_or(First::Services, |path| First::Program(path.to_owned())))
        }
    }
}

/// Whether an executable file is there as the appliance will see it: its links lead
/// nowhere out of its tree.
fn is_program(root: &OwnedFd, path: &Path) -> bool {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
        .and_then(rustix::fs::fstat);
    found.is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_mode & 0o111 != 0
    })
}

/// Makes the VLFS at `root` the root of the caller, in a mount namespace of its own.
///
/// # Errors
/// A mount cannot be made or moved.
pub fn enter(root: &Path, processes: Processes) -> Result<(), BootError> {
    system::unshare_mounts().context("make", "the appliance's mount namespace")?;
    root::keep_mounts_private()?;
    let proc = root.join("proc");
    root::directory(&proc, 0o755)?;
    match processes {
        Processes::Same => rustix::mount::mount_move("/proc", &proc),
        Processes::Own => {
            let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            rustix::mount::mount("proc", &proc, "proc", safe, c"")
        }
    }
    .context("give the appliance", "/proc")?;
    for name in KERNEL_FILE_SYSTEMS {
        let target = root.join(name);
        root::directory(&target, 0o755)?;
        rustix::mount::mount_move(Path::new("/").join(name), &target)
            .context("give the appliance", name)?;
    }
    for place in [places::STORE, places::REPORTS, places::DISK] {
        mounts::take_away(place)?;
    }
    let subject = root.to_string_lossy();
    rustix::process::chdir(root).context("enter", &subject)?;
    rustix::mount::mount_move(".", "/").context("move over the root", &subject)?;
    rustix::process::chroot(".").context("make the root", &subject)?;
    rustix::process::chdir("/").context("enter", "/")?;
    Ok(())
}

/// Becomes the appliance's first program; returns only on failure.
pub fn become_program(program: &Path) -> BootError {
    let mut command = Command::new(program);
    command.env_clear().env("HOME", "/").env("TERM", "linux").env("PATH", crate::pid1::PATH);
    BootError::Start { program: program.to_owned(), source: command.exec() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn the_first_program_is_found_as_the_appliance_sees_it() {
        let root = std::env::temp_dir().join(format!("strata-init-first-{}", std::process::id()));
        for directory in ["sbin", "usr/lib/systemd", "opt"] {
            fs::create_dir_all(root.join(directory)).expect("made");
        }
        let program = |path: &str, mode| {
            fs::write(root.join(path), "").expect("written");
            fs::set_permissions(root.join(path), Permissions::from_mode(mode)).expect("set");
        };
        let first = |named: Option<&str>| first_program(&root, named.map(Path::new));
        assert_eq!(first(None).expect("found"), First::Services);
        // Outside of the tree there is such a program: it is none of the appliance's.
        symlink("/bin/sh", root.join("sbin/init")).expect("linked");
        assert_eq!(first(None).expect("found"), First::Services);
        program("usr/lib/systemd/systemd", 0o755);
        let systemd = First::Program("/usr/lib/systemd/systemd".into());
        assert_eq!(first(None).expect("found"), systemd);
        fs::remove_file(root.join("sbin/init")).expect("removed");
        symlink("/usr/lib/systemd/systemd", root.join("sbin/init")).expect("linked");
        assert_eq!(first(None).expect("found"), First::Program("/sbin/init".into()));
        program("opt/own", 0o755);
        assert_eq!(first(Some("/opt/own")).expect("found"), First::Program("/opt/own".into()));
        program("opt/text", 0o644);
        for absent in ["/opt/text", "/opt/none", "/opt"] {
            let error = first(Some(absent)).expect_err("no program");
            assert!(matches!(&error, BootError::NoInit(path) if path == Path::new(absent)));
        }
        fs::remove_dir_all(&root).expect("removed");
    }
}
