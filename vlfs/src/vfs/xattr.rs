//! Extended attributes: of private objects, of the layers' objects, and the
//! file system's own at its root.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FileType, XattrFlags};

use super::attr::Reach;
use super::node::{self, Node, ROOT_ID};
use super::{Caller, Errno, Result, Vfs};
use crate::private::copy_up::Data;
use crate::private::disk::Disk;
use crate::{backing, proc};

/// Attributes of the root that answer what is mounted; never listed.
const ROOT_PREFIX: &[u8] = b"user.strata.";
/// Setting one of these on a directory, to a name in it, reverts that name.
const REVERT: [&[u8]; 2] = [b"trusted.strata.revert", b"user.strata.revert"];
/// The same for a name and all below it; for root.
const REVERT_TREE: &[u8] = b"trusted.strata.revert-tree";
/// Bytes of an attribute's value that the kernel passes on (`XATTR_SIZE_MAX`).
const VALUE_LIMIT: usize = 64 << 10;

impl Reach {
    fn get(&self, name: &[u8]) -> Result<Vec<u8>> {
        match self {
            Reach::Name(directory, own) => backing::xattr(&backing::path_of(directory, own), name),
            Reach::Open(fd) => {
                let mut buffer = vec![0; VALUE_LIMIT];
                let name = OsStr::from_bytes(name);
                let length = rustix::fs::getxattr(proc::path(fd), name, &mut buffer[..])?;
                buffer.truncate(length);
                Ok(buffer)
            }
        }
    }

    fn list(&self) -> Result<Vec<Vec<u8>>> {
        match self {
            Reach::Name(directory, own) => backing::xattr_names(&backing::path_of(directory, own)),
            Reach::Open(fd) => {
                let mut buffer = vec![0_u8; VALUE_LIMIT];
                let length = match rustix::fs::listxattr(proc::path(fd), &mut buffer[..]) {
                    Err(Errno::NOTSUP) => 0,
                    other => other?,
                };
                let names = buffer[..length].split(|b| *b == 0).filter(|name| !name.is_empty());
                Ok(names.map(<[u8]>::to_vec).collect())
            }
        }
    }

    fn set(&self, disk: &Disk, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        match self {
            Reach::Name(directory, own) => {
                disk.set_xattr(&backing::path_of(directory, own), name, value, flags)
            }
            Reach::Open(fd) => disk.set_xattr_open(fd, name, value, flags),
        }
    }

    fn remove(&self, disk: &Disk, name: &[u8]) -> Result<()> {
        match self {
            Reach::Name(directory, own) => {
                disk.remove_xattr(&backing::path_of(directory, own), name)
            }
            Reach::Open(fd) => disk.remove_xattr_open(fd, name),
        }
    }
}

impl Vfs {
    pub fn getxattr(&self, id: u64, name: &[u8]) -> Result<Vec<u8>> {
        if name.starts_with(backing::OWN_XATTRS) {
            return Err(Errno::NODATA);
        }
        let node = self.node(id)?;
        let _shared = self.shared();
        let active = self.active();
        if id == ROOT_ID && name.starts_with(ROOT_PREFIX) {
            let value = match &name[ROOT_PREFIX.len()..] {
                b"control" => self.control.get().map(|path| path.as_os_str().as_bytes().to_vec()),
                other => active.info.attribute(&active, other),
            };
            let value = value.ok_or(Errno::NODATA)?;
            return if value.len() > VALUE_LIMIT { Err(Errno::TOOBIG) } else { Ok(value) };
        }
        // The kernel asks before the first write of every file.
        if name == b"security.capability" && node.bare.load(Ordering::Acquire) {
            return Err(Errno::NODATA);
        }
        if let Some(reach) = self.reach_of(&node)? {
            return reach.get(name);
        }
        let (set, at) = self.original(&active, &node).ok_or(Errno::STALE)?;
        let entry = set.union.entry(at).ok_or(Errno::IO)?;
        entry.attributes.xattrs.get(name).map(<[u8]>::to_vec).ok_or(Errno::NODATA)
    }

    pub fn listxattr(&self, id: u64) -> Result<Vec<Vec<u8>>> {
        let node = self.node(id)?;
        let _shared = self.shared();
        let active = self.active();
        let mut names = match self.reach_of(&node)? {
            Some(reach) => reach.list()?,
            None => {
                let (set, at) = self.original(&active, &node).ok_or(Errno::STALE)?;
                let entry = set.union.entry(at).ok_or(Errno::IO)?;
                entry.attributes.xattrs.names().map(<[u8]>::to_vec).collect()
            }
        };
        names.retain(|name| !name.starts_with(backing::OWN_XATTRS));
        Ok(names)
    }

    fn reach_of(&self, node: &Arc<Node>) -> Result<Option<Reach>> {
        let place = node.place.read().expect("no panic while held");
        self.reach(&place.upper, &place.names)
    }

    /// Sets an attribute; `flags` as `setxattr(2)`. `kill_setgid`: the attribute
    /// is an ACL that takes the setgid bit away.
    pub fn setxattr(
        &self,
        id: u64,
        name: &[u8],
        value: &[u8],
        flags: u32,
        kill_setgid: bool,
        caller: &Caller,
    ) -> Result<()> {
        if REVERT.contains(&name) {
            return self.revert_in(id, value, caller).map(drop);
        }
        if name == REVERT_TREE {
            return self.revert_tree_now(&self.path_below(id, value)?, caller).map(drop);
        }
        if name.starts_with(backing::OWN_XATTRS) || (id == ROOT_ID && name.starts_with(ROOT_PREFIX))
        {
            return Err(Errno::PERM);
        }
        let node = self.node(id)?;
        let _shared = self.private_copy(&node, Data::Attributes)?;
        let node = node::current(node);
        let reach = self.reach_of(&node)?.ok_or(Errno::STALE)?;
        node.bare.store(false, Ordering::Release);
        let flags = XattrFlags::from_bits_retain(flags);
        let mut done = reach.set(&self.private.disk, name, value, flags);
        if kill_setgid && done.is_ok() {
            let mode = reach.stat()?.st_mode & 0o7777;
            let set = super::SetAttr { mode: Some(mode & !0o2000), ..super::SetAttr::default() };
            done = super::attr::apply(&self.private.disk, &reach, &set);
        }
        self.directory_changed(&node);
        done
    }

    pub fn removexattr(&self, id: u64, name: &[u8]) -> Result<()> {
        if name.starts_with(backing::OWN_XATTRS) {
            return Err(Errno::NODATA);
        }
        let node = self.node(id)?;
        let _shared = self.private_copy(&node, Data::Attributes)?;
        let node = node::current(node);
        let removed = self.reach_of(&node)?.ok_or(Errno::STALE)?.remove(&self.private.disk, name);
        self.directory_changed(&node);
        removed
    }

    /// What a directory hands down to what is made in it may be another from now on.
    pub(super) fn directory_changed(&self, node: &Node) {
        if node.kind == FileType::Directory {
            self.directory_changes.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, id: u64) -> Result<Vec<u8>> {
        let node = self.node(id)?;
        let _shared = self.shared();
        match self.reach_of(&node)? {
            Some(Reach::Name(directory, name)) => return backing::read_link(&directory, &name),
            Some(Reach::Open(fd)) => {
                return Ok(rustix::fs::readlinkat(&fd, "", Vec::new())?.into_bytes());
            }
            None => {}
        }
        let (set, at) = self.original(&self.active(), &node).ok_or(Errno::STALE)?;
        match set.union.entry(at).ok_or(Errno::IO)?.kind {
            crate::tree::Kind::Symlink { target } => Ok(target.to_vec()),
            _ => Err(Errno::INVAL),
        }
    }
}
