//! The directory that is mounted is not the one that the kernel calls the root of the
//! connection, but a second number of it.
//!
//! The kernel makes the root's inode before it knows that the server has ACLs, and for good: it
//! never remembers the ACL of that inode (`ACL_DONT_CACHE`, `fuse_init_inode` in
//! fs/fuse/inode.c). Every path that a process other than root's walks from there would ask for
//! it, which is a request that is waited for. Directories that are looked up have no such fault.
//! So the root can be looked up in itself, once, before the mount is said to be ready; what was
//! found is mounted in the place of the root.

use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::vfs::ROOT_ID;

/// The root's number in the mount. The kernel's own is [`ROOT_ID`].
pub const MOUNTED: u64 = u64::MAX;
/// What it is looked up by.
pub const NAME: &str = ".strata-root";

/// Which of the two numbers the kernel is given.
#[derive(Debug, Default)]
pub struct RootNumber(AtomicU8);

const KERNELS_OWN: u8 = 0;
const OFFERED: u8 = 1;
const TAKEN: u8 = 2;

impl RootNumber {
    /// From now on the root can be looked up, once.
    pub fn offer(&self) {
        self.0.store(OFFERED, Ordering::Release);
    }

    /// Whether it was offered; it is the mounted one from now on.
    pub(super) fn take(&self) -> bool {
        self.0.compare_exchange(OFFERED, TAKEN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The kernel's own root is what is mounted after all.
    pub fn withdraw(&self) {
        self.0.store(KERNELS_OWN, Ordering::Release);
    }

    pub fn is_taken(&self) -> bool {
        self.0.load(Ordering::Acquire) == TAKEN
    }

    /// As it was with a predecessor.
    pub fn resume(&self, is_taken: bool) {
        self.0.store(if is_taken { TAKEN } else { KERNELS_OWN }, Ordering::Release);
    }

    /// The number that a node is told by.
    pub(super) fn number(&self, node: u64) -> u64 {
        if node == ROOT_ID && self.is_taken() { MOUNTED } else { node }
    }
}

/// The node that the kernel means by a number.
pub fn node(number: u64) -> u64 {
    if number == MOUNTED { ROOT_ID } else { number }
}

/// Puts what is looked up by [`NAME`] in the place of the mount that is on top of
/// `mount_point`. Somebody must be answering requests.
///
/// # Errors
/// `Ok(Err(_))`: the kernel cannot, and the mount stays as it was. `Err`: the mount is gone.
pub fn mount(mount_point: &Path) -> Result<Result<(), Errno>, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = match rustix::mount::open_tree(CWD, mount_point.join(NAME), flags) {
        Ok(tree) => tree,
        Err(error) => return Ok(Err(error)),
    };
    let lazily = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    if let Err(error) = rustix::mount::unmount(mount_point, lazily) {
        return Ok(Err(error));
    }
    let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", CWD, mount_point, empty).map(Ok)
}
