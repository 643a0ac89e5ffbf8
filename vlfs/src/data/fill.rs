//! Copying a part of the union, once, to the private disk: names, contents, owners,
//! modes, times, extended attributes, hard links among the copies, holes as holes.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use strata_core::manifest::{Timestamp, file_name, parent_path};

use crate::backing;
use crate::private::copy_up::copy_data;
use crate::vfs::file::OpenMode;
use crate::vfs::{Attr, Found, Vfs};

/// Where copying failed: the path below the copied directory.
type Failure = (String, Errno);

/// Copies the directory `node` to `work/<name>`. Nothing is flushed yet.
///
/// # Errors
/// An object cannot be read or written; what was copied stays in `work/`.
pub fn fill(vfs: &Vfs, node: u64, name: &[u8]) -> Result<(), Failure> {
    let top = |errno| (String::new(), errno);
    let work = &vfs.private().work;
    vfs.private().disk().make_directory(work, name, Mode::from_raw_mode(0o700)).map_err(top)?;
    let root = backing::open_directory(work, name).map_err(top)?;
    let mut copy = Copy { vfs, root, linked: HashMap::new(), directories: Vec::new() };
    let copied = copy.tree(node);
    for (_, id) in &copy.directories {
        vfs.forget(*id, 1);
    }
    copied
}

struct Copy<'a> {
    vfs: &'a Vfs,
    root: OwnedFd,
    /// The copy of each object with several names, by `st_ino`.
    linked: HashMap<u64, Vec<u8>>,
    /// Directories below the root, parents first, each with a reference to its node.
    directories: Vec<(Vec<u8>, u64)>,
}

impl Copy<'_> {
    /// A list and no recursion: a private layer may be deeper than any stack.
    fn tree(&mut self, node: u64) -> Result<(), Failure> {
        self.directory(node, b"")?;
        let mut next = 0;
        while let Some((path, id)) = self.directories.get(next).cloned() {
            self.directory(id, &path)?;
            next += 1;
        }
        // From below: filling a directory changes its times, and a default ACL set
        // before would be inherited.
        let below = self.directories.iter().rev();
        for (path, id) in below.map(|(path, id)| (path.as_slice(), *id)).chain([(&b""[..], node)]) {
            let described = self.vfs.getattr(id).map_err(|errno| failure(path, errno))?;
            self.attributes(id, &described.0, path).map_err(|errno| failure(path, errno))?;
        }
        Ok(())
    }

    fn directory(&mut self, node: u64, path: &[u8]) -> Result<(), Failure> {
        let here = |errno| failure(path, errno);
        let opened = self.vfs.opendir(node).map_err(here)?;
        let listing = self.vfs.listing(opened.handle, 0);
        self.vfs.releasedir(opened.handle);
        for listed in listing.map_err(here)?.iter() {
            if matches!(&*listed.name, b"." | b"..") {
                continue;
            }
            let mut child = path.to_vec();
            if !path.is_empty() {
                child.push(b'/');
            }
            child.extend_from_slice(&listed.name);
            let found = match self.vfs.lookup(node, &listed.name) {
                // Removed since the listing.
                Err(Errno::NOENT) => continue,
                found => found.map_err(|errno| failure(&child, errno))?,
            };
            let copied = self.object(&found, &child);
            if copied.is_ok() && found.attr.kind == FileType::Directory {
                self.directories.push((child.clone(), found.id));
            } else {
                self.vfs.forget(found.id, 1);
            }
            copied.map_err(|errno| failure(&child, errno))?;
        }
        Ok(())
    }

    /// Copies one object; a directory without its content and attributes.
    fn object(&mut self, found: &Found, path: &[u8]) -> Result<(), Errno> {
        let attr = &found.attr;
        let above = backing::open_directory(&self.root, parent_path(path).unwrap_or(b""))?;
        let (name, disk) = (file_name(path), self.vfs.private().disk());
        if attr.nlink > 1 && attr.kind != FileType::Directory {
            if let Some(first) = self.linked.get(&attr.ino) {
                let (directory, first) = backing::open_parent(&self.root, first)?;
                return disk.link((&directory, first), (&above, name));
            }
            self.linked.insert(attr.ino, path.to_vec());
        }
        let device = rustix::fs::makedev(attr.device.0, attr.device.1);
        let private = Mode::from_raw_mode(0o600);
        match attr.kind {
            FileType::Directory => {
                return disk.make_directory(&above, name, Mode::from_raw_mode(0o700));
            }
            FileType::RegularFile => self.content(found.id, &above, name)?,
            FileType::Symlink => {
                disk.symlink(&self.vfs.readlink(found.id)?, &above, name)?;
            }
            kind => disk.make_node(&above, name, kind, private, device)?,
        }
        self.attributes(found.id, attr, path)
    }

    fn content(&self, id: u64, above: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
        let opened = self.vfs.open(id, OpenMode::default())?;
        let copied = self.vfs.file(opened.handle).and_then(|handle| {
            let source = rustix::io::dup(handle.file().as_fd())?;
            let (flags, mode) = (OFlags::RDWR | OFlags::EXCL, Mode::from_raw_mode(0o600));
            let disk = self.vfs.private().disk();
            let target = disk.create(above, name, flags, mode)?;
            copy_data(disk, &source, &target)
        });
        self.vfs.release(opened.handle);
        copied
    }

    fn attributes(&self, id: u64, attr: &Attr, path: &[u8]) -> Result<(), Errno> {
        let (above, name) = match path {
            [] => (rustix::io::dup(&self.root)?, &b"."[..]),
            _ => backing::open_parent(&self.root, path)?,
        };
        let disk = self.vfs.private().disk();
        let owner = (Some(Uid::from_raw(attr.uid)), Some(Gid::from_raw(attr.gid)));
        disk.chown(&above, name, owner)?;
        if attr.kind != FileType::Symlink {
            disk.chmod(&above, name, Mode::from_raw_mode(attr.mode))?;
        }
        let own = backing::path_of(&above, name);
        for key in self.vfs.listxattr(id)? {
            let value = self.vfs.getxattr(id, &key)?;
            match disk.set_xattr(&own, &key, &value, XattrFlags::empty()) {
                Err(Errno::NOTSUP) => {
                    let key = String::from_utf8_lossy(&key);
                    tracing::warn!(attribute = %key, "the private disk cannot hold it");
                }
                set => set?,
            }
        }
        let time = |time: Timestamp| Timespec {
            tv_sec: time.seconds,
            tv_nsec: i64::from(time.nanoseconds),
        };
        let times =
            Timestamps { last_access: time(attr.atime), last_modification: time(attr.mtime) };
        disk.set_times(&above, name, &times)
    }
}

fn failure(path: &[u8], errno: Errno) -> Failure {
    (String::from_utf8_lossy(path).into_owned(), errno)
}
