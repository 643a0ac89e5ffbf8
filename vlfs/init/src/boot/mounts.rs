//! The mounts of the boot environment: the kernel's, the host's shares, the disk.

use std::net::Ipv4Addr;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::boot::error::BootError;
use crate::boot::options::Share;
use crate::boot::{network, places};

/// What the kernel has no module for.
const NO_FILE_SYSTEM: &str =
    "\n  hint: this kernel has no such file system; build the boot environment from another one";
/// Tried one after the other.
const NFS_VERSIONS: [&str; 2] = ["vers=4.1", "vers=3"];
/// Of the store. It is only read and what is in it is replaced, never changed: files are not asked
/// about at each opening. Directories are after a second, as links in them are followed. A machine
/// whose server is away stands still until it is back (`hard`); with errors in the files of its
/// programs it would break.
const NFS_STORE: &str = "hard,nocto,acregmin=60,acregmax=600,acdirmin=1,acdirmax=1";
/// Of reports: they can be written again, and must not hold up the file system that writes them.
const NFS_REPORTS: &str = "soft,timeo=50,retrans=2";
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

/// Mounts a directory of the host, or of a file server.
///
/// # Errors
/// The machine does not show it, the server does not answer or refuses, or the kernel lacks the
/// file system.
pub fn share(share: &Share, target: &str, writable: bool) -> Result<(), BootError> {
    let (kind, tag, options) = match share {
        Share::Virtiofs { tag } => ("virtiofs", tag, c""),
        Share::NinePea { tag } => ("9p", tag, NINE_PEA_OPTIONS),
        Share::Nfs { server, path } => return nfs(*server, path, target, writable),
    };
    make(target)?;
    rustix::mount::mount(tag.as_str(), target, kind, flags(writable), options).map_err(|errno| {
        let hint = match errno {
            Errno::NODEV => NO_FILE_SYSTEM,
            Errno::NOENT | Errno::INVAL => {
                "\n  hint: the machine shows no directory under this tag"
            }
            _ => "",
        };
        failed(format!("the share {kind}:{tag}"), errno, hint)
    })
}

fn flags(writable: bool) -> MountFlags {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    if writable { flags } else { flags | MountFlags::RDONLY }
}

/// Mounts by the kernel alone: what mount.nfs would find out is said.
fn nfs(server: Ipv4Addr, path: &str, target: &str, writable: bool) -> Result<(), BootError> {
    network::ask(server)?;
    make(target)?;
    let source = format!("{server}:{path}");
    let kept = if writable { NFS_REPORTS } else { NFS_STORE };
    let mut result = Err(Errno::PROTONOSUPPORT);
    for version in NFS_VERSIONS {
        let options = format!("{version},proto=tcp,addr={server},{kept}");
        let options = match version.starts_with("vers=3") {
            true => format!("{options},nolock,mountproto=tcp,mountaddr={server}"),
            false => options,
        };
        let options = std::ffi::CString::new(options).unwrap_or_default();
        result = rustix::mount::mount(&source, target, "nfs", flags(writable), options.as_c_str());
        if result != Err(Errno::PROTONOSUPPORT) {
            break;
        }
    }
    result.map_err(|errno| {
        let hint = match errno {
            Errno::NODEV => NO_FILE_SYSTEM,
            Errno::NOENT => {
                "\n  hint: the server has no such directory among those that it exports"
            }
            Errno::ACCESS | Errno::PERM => {
                "\n  hint: the server must export it to this machine's address"
            }
            Errno::PROTONOSUPPORT => {
                "\n  hint: the server must speak NFS of version 4.1 or 3, over TCP"
            }
            _ => "",
        };
        failed(format!("the share nfs:{source}"), errno, hint)
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
