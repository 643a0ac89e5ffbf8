//! The mounts of the boot environment: the kernel's, the host's shares, the disk.

use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::boot::error::BootError;
use crate::boot::options::Share;
use crate::boot::places;

/// Bytes of one message of 9p: fewer and larger ones cost less.
const NINE_PEA_OPTIONS: &std::ffi::CStr = c"trans=virtio,version=9p2000.L,msize=524288";

/// Mounts `/proc`, `/sys`, `/dev` and `/run` of the boot environment, which the
/// appliance is given later.
///
/// # Errors
/// A mount fails.
pub fn kernel_file_systems() -> Result<(), BootError> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for (kind, target, flags, options) in [
        ("proc", "/proc", safe, c""),
        ("sysfs", "/sys", safe, c""),
        ("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=755"),
        ("tmpfs", "/run", MountFlags::NOSUID | MountFlags::NODEV, c"mode=755,size=20%"),
    ] {
        make(target)?;
        rustix::mount::mount(kind, target, kind, flags, options)
            .map_err(|errno| failed(format!("{kind} on {target}"), errno, ""))?;
    }
    Ok(())
}

/// Mounts a directory of the host.
///
/// # Errors
/// The machine does not show it, or the kernel lacks its file system.
pub fn share(share: &Share, target: &str, writable: bool) -> Result<(), BootError> {
    let (kind, tag, options) = match share {
        Share::Virtiofs { tag } => ("virtiofs", tag, c""),
        Share::NinePea { tag } => ("9p", tag, NINE_PEA_OPTIONS),
    };
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    if !writable {
        flags |= MountFlags::RDONLY;
    }
    make(target)?;
    rustix::mount::mount(tag.as_str(), target, kind, flags, options).map_err(|errno| {
        let hint = match errno {
            Errno::NODEV => "\n  hint: this kernel has no such file system; build the boot environment from another one",
            Errno::NOENT | Errno::INVAL => "\n  hint: the machine shows no directory under this tag",
            _ => "",
        };
        failed(format!("the share {kind}:{tag}"), errno, hint)
    })
}

/// Mounts the private disk.
///
/// # Errors
/// The file system is damaged, or the kernel lacks ext4.
pub fn disk(name: &str) -> Result<(), BootError> {
    let device = Path::new("/dev").join(name);
    make(places::DISK)?;
    // Not noexec and not nosuid: data directories are parts of it.
    rustix::mount::mount(&device, places::DISK, "ext4", MountFlags::NOATIME, c"").map_err(|errno| {
        let hint = match errno {
            Errno::NODEV => {
                "\n  hint: this kernel has no ext4; build the boot environment from another one"
            }
            Errno::UCLEAN | Errno::BADMSG => "\n  hint: check it on the host: e2fsck -f IMAGE",
            _ => "",
        };
        failed(format!("the disk {name}"), errno, hint)
    })
}

/// Takes a mount away, if there is one.
pub fn take_away(target: &str) -> Result<(), BootError> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(errno) => Err(failed(format!("nothing on {target} any more"), errno, "")),
    }
}

fn make(directory: &str) -> Result<(), BootError> {
    std::fs::create_dir_all(directory).map_err(|source| BootError::Mount {
        what: directory.to_owned(),
        source,
        hint: "",
    })
}

fn failed(what: String, errno: Errno, hint: &'static str) -> BootError {
    BootError::Mount { what, source: errno.into(), hint }
}
