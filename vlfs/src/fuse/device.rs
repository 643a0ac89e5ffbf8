//! `/dev/fuse`: mounting, notifications, registered files.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::root;
use super::wire::Writer;
use crate::proc;
use crate::sys::ioctl;
use crate::vfs::{Notice, Passthrough, ROOT_ID};

/// Name of the file system type, as `/proc/mounts` shows it after `fuse.`.
const SUBTYPE: &str = "strata";
/// Bytes of an answer's header.
const HEADER: usize = 16;
/// Bytes of answers that are sent in one piece; the longest of most kinds have 160.
const SMALL: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("/dev/fuse cannot be opened: {0}")]
    Device(Errno),
    #[error("{path} is no mount point: {errno}")]
    MountPoint { path: PathBuf, errno: Errno },
    #[error("{path} cannot be mounted on: {errno}")]
    Mount { path: PathBuf, errno: Errno },
}

/// A connection to the kernel.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Device {
    /// Opens the device and mounts on `mount_point`. Until the first request is
    /// answered, whoever touches the mount waits.
    pub fn mount(
        mount_point: &Path,
        source: &str,
        read_only: bool,
    ) -> Result<Arc<Device>, MountError> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/dev/fuse", flags, Mode::empty()).map_err(MountError::Device)?;
        let path = mount_point.to_owned();
        let stat = rustix::fs::stat(mount_point)
            .map_err(|errno| MountError::MountPoint { path: path.clone(), errno })?;
        if stat.st_mode & 0o170_000 != 0o040_000 {
            return Err(MountError::MountPoint { path, errno: Errno::NOTDIR });
        }
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
            fd.as_raw_fd()
        );
        let data = CString::new(data).expect("no NUL in numbers");
        let mut flags = MountFlags::empty();
        if read_only {
            flags |= MountFlags::RDONLY;
        }
        let kind = format!("fuse.{SUBTYPE}");
        rustix::mount::mount(source, mount_point, kind.as_str(), flags, data.as_c_str())
            .map_err(|errno| MountError::Mount { path, errno })?;
        Device::of(fd).map_err(MountError::Device)
    }

    fn of(fd: OwnedFd) -> Result<Arc<Device>, Errno> {
        let device = Device { fd };
        device.set_waiting(false)?;
        Ok(Arc::new(device))
    }

    /// Whether reading waits for a request. It does not here: who reads decides how
    /// to (`waiting`). A program that takes over may count on it.
    ///
    /// # Errors
    /// It is not open.
    pub fn set_waiting(&self, waits: bool) -> Result<(), Errno> {
        let mut flags = rustix::fs::fcntl_getfl(&self.fd)?;
        flags.set(OFlags::NONBLOCK, !waits);
        rustix::fs::fcntl_setfl(&self.fd, flags)
    }

    /// Tells the kernel that something changed. What it does not know is no error.
    ///
    /// Must not be called while answering a request, nor with a lock held that
    /// answering one needs: the kernel waits for requests under way.
    pub fn notify(&self, notice: &Notice, expire_only: bool) -> Result<(), Errno> {
        const INVALIDATE_INODE: i32 = 2;
        const INVALIDATE_ENTRY: i32 = 3;
        const EXPIRE_ONLY: u32 = 1;
        // The root has two numbers, and either may be what the kernel knows it by.
        if let Notice::Expire { parent: ROOT_ID, name } = notice {
            let parent = root::MOUNTED;
            self.notify(&Notice::Expire { parent, name: name.clone() }, expire_only)?;
        } else if let Notice::Invalidate { node: ROOT_ID } = notice {
            self.notify(&Notice::Invalidate { node: root::MOUNTED }, expire_only)?;
        }
        let mut body = Writer::default();
        let code = match notice {
            Notice::Expire { parent, name } => {
                body.u64(*parent).u32(u32::try_from(name.len()).unwrap_or(u32::MAX));
                body.u32(if expire_only { EXPIRE_ONLY } else { 0 }).bytes(name).bytes(&[0]);
                INVALIDATE_ENTRY
            }
            Notice::Invalidate { node } => {
                body.u64(*node).u64(0).u64(0);
                INVALIDATE_INODE
            }
        };
        match self.send(0, code, body.as_bytes()) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    /// The device that a predecessor mounted with.
    ///
    /// # Errors
    /// It is not open.
    pub fn adopt(fd: OwnedFd) -> Result<Arc<Device>, Errno> {
        Device::of(fd)
    }

    /// Lets the kernel send again what was read and never answered.
    ///
    /// # Errors
    /// `EINVAL` before Linux 6.9.
    pub fn resend(&self) -> Result<(), Errno> {
        const RESEND: i32 = 7;
        self.send(0, RESEND, &[])
    }

    /// Sends one message: a reply (`unique` of the request, error negated) or a notification.
    pub fn send(&self, unique: u64, error: i32, body: &[u8]) -> Result<(), Errno> {
        let length = u32::try_from(HEADER + body.len()).map_err(|_| Errno::TOOBIG)?;
        let mut small = [0; SMALL];
        small[..4].copy_from_slice(&length.to_ne_bytes());
        small[4..8].copy_from_slice(&error.to_ne_bytes());
        small[8..HEADER].copy_from_slice(&unique.to_ne_bytes());
        // One piece costs the kernel less than two.
        if let Some(room) = small.get_mut(HEADER..HEADER + body.len()) {
            room.copy_from_slice(body);
            return again(|| rustix::io::write(&self.fd, &small[..HEADER + body.len()]));
        }
        let parts = [std::io::IoSlice::new(&small[..HEADER]), std::io::IoSlice::new(body)];
        again(|| rustix::io::writev(&self.fd, &parts))
    }
}

/// Tries again what a signal came in between.
fn again(mut write: impl FnMut() -> Result<usize, Errno>) -> Result<(), Errno> {
    loop {
        match write() {
            Err(Errno::INTR) => {}
            other => return other.map(drop),
        }
    }
}

impl Passthrough for Device {
    fn open(&self, file: BorrowedFd<'_>) -> Result<i32, Errno> {
        ioctl::backing_open(self.fd.as_fd(), file)
    }

    fn close(&self, backing_id: i32) -> Result<(), Errno> {
        ioctl::backing_close(self.fd.as_fd(), backing_id)
    }
}

/// Takes the mount away from `mount_point`; `detach` even while it is in use.
pub fn unmount(mount_point: &Path, detach: bool) -> Result<(), Errno> {
    let mut flags = UnmountFlags::NOFOLLOW;
    if detach {
        flags |= UnmountFlags::DETACH;
    }
    rustix::mount::unmount(mount_point, flags)
}

/// Why a mount was not taken away.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    #[error("it is not on top at {0}: another is mounted over it, or it was moved")]
    Covered(PathBuf),
    #[error("{0}")]
    Refused(Errno),
}

/// [`unmount`] of the mount with this device number, where it is on top.
///
/// # Errors
/// Another mount is there now, and stays.
pub fn unmount_own(
    mount_point: &Path,
    number: (u32, u32),
    detach: bool,
) -> Result<(), UnmountError> {
    if device_number(mount_point) != Some(number) {
        return Err(UnmountError::Covered(mount_point.to_owned()));
    }
    unmount(mount_point, detach).map_err(UnmountError::Refused)
}

/// Major and minor number of the mount of Strata that is on top at `mount_point`, read
/// from the mount table so that the mount itself is not touched. `None` where nothing
/// is mounted, or another file system.
pub fn device_number(mount_point: &Path) -> Option<(u32, u32)> {
    let table = std::fs::read(proc::own("mountinfo")).ok()?;
    number_in(&table, mount_point)
}

fn number_in(table: &[u8], mount_point: &Path) -> Option<(u32, u32)> {
    let wanted = escape(mount_point.as_os_str());
    let field = |line: &[u8], at| line.split(|b| *b == b' ').nth(at).map(<[u8]>::to_vec);
    let lines = table.split(|b| *b == b'\n');
    let here: Vec<_> = lines.filter(|line| field(line, 4).as_ref() == Some(&wanted)).collect();
    // What is mounted over another has that as its parent.
    let is_covered = |line: &[u8]| here.iter().any(|over| field(over, 1) == field(line, 0));
    let line = here.iter().rfind(|line| !is_covered(line))?;
    // Optional fields end with a lone hyphen; the type is next.
    let mut fields = line.split(|b| *b == b' ').skip_while(|field| *field != b"-");
    if fields.nth(1) != Some(b"fuse.strata") {
        return None;
    }
    let field = std::str::from_utf8(line.split(|b| *b == b' ').nth(2)?).ok()?;
    let (major, minor) = field.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A path as the mount table writes it.
fn escape(path: &OsStr) -> Vec<u8> {
    let mut escaped = Vec::new();
    for byte in path.as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => {
                escaped.extend_from_slice(format!("\\{byte:03o}").as_bytes());
            }
            other => escaped.push(*other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mount that was moved over a newer one stands before it in the table.
    #[test]
    fn the_mount_on_top_counts_whatever_its_place_in_the_table() {
        let table = b"25 1 8:1 / / rw - ext4 /dev/a rw
            31 40 0:31 / /m\\040n rw shared:5 - tmpfs tmpfs rw
            40 25 0:52 / /m\\040n rw - fuse.strata strata rw
            41 25 0:53 / /o rw master:1 - fuse.strata strata rw";
        let table: Vec<_> = table.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).collect();
        let table = table.join(&b'\n');
        assert_eq!(number_in(&table, Path::new("/m n")), None, "it is covered");
        assert_eq!(number_in(&table, Path::new("/o")), Some((0, 53)));
        assert_eq!(number_in(&table, Path::new("/")), None);
        assert_eq!(number_in(&table, Path::new("/none")), None);
    }
}
