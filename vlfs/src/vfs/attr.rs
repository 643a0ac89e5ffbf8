//! Attributes: showing and setting them.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::{FileType, Gid, Mode, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};
use strata_core::manifest::Timestamp;

use super::node::{Counted, Node, ROOT_ID, Upper};
use super::{ActiveSet, Errno, Result, Vfs};
use crate::backing;
use crate::private::disk::Disk;
use crate::tree::{self, Entry};

/// What `stat` shows. Size in bytes, `blocks` in 512-byte units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    pub ino: u64,
    pub kind: FileType,
    /// Permission bits, 07777.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub blocks: u64,
    pub device: (u32, u32),
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    Now,
    At(Timestamp),
}

/// What `setattr` changes.
#[derive(Debug, Clone, Copy, Default)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    /// The file handle that the size is set through.
    pub handle: Option<u64>,
    /// Setuid and setgid go, as by a write.
    pub kill_privileges: bool,
}

impl Attr {
    pub(super) fn of_stat(stat: &Stat, ino: u64) -> Attr {
        Attr {
            ino,
            kind: FileType::from_raw_mode(stat.st_mode),
            mode: stat.st_mode & 0o7777,
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
            device: (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
            atime: backing::timestamp(stat.st_atime, stat.st_atime_nsec),
            mtime: backing::timestamp(stat.st_mtime, stat.st_mtime_nsec),
            ctime: backing::timestamp(stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// A layer's object never changes: all its times are its `mtime`.
    pub(super) fn of_entry(entry: &Entry<'_>, nlink: u32) -> Attr {
        let attributes = &entry.attributes;
        Attr {
            ino: entry.identity,
            kind: super::file_type(&entry.kind),
            mode: attributes.mode,
            nlink,
            uid: attributes.uid,
            gid: attributes.gid,
            size: attributes.size,
            blocks: attributes.blocks,
            device: attributes.device,
            atime: attributes.mtime,
            mtime: attributes.mtime,
            ctime: attributes.mtime,
        }
    }
}

/// How to reach a private object by a system call.
pub(super) enum Reach {
    /// A name in a private directory.
    Name(Arc<std::os::fd::OwnedFd>, Box<[u8]>),
    /// An open descriptor, for what has no name (or is a directory).
    Open(Arc<std::os::fd::OwnedFd>),
}

impl Reach {
    pub(super) fn stat(&self) -> Result<Stat> {
        match self {
            Reach::Name(directory, name) => backing::stat_at(directory, name),
            Reach::Open(fd) => rustix::fs::fstat(fd),
        }
    }
}

impl Vfs {
    /// Gives a fresh private layer's root the attributes of the layers' root.
    pub(super) fn adopt_root_attributes(&self) -> Result<()> {
        let root = backing::path_of(&self.private.upper, b".");
        match backing::xattr(&root, crate::private::INO_XATTR) {
            Err(Errno::NODATA) => {}
            other => return other.map(drop),
        }
        let active = self.active();
        let (disk, upper) = (&self.private.disk, &self.private.upper);
        if let Some(top) = active.union.entry(crate::union::ROOT) {
            let attributes = &top.attributes;
            let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
            disk.chown(upper, b".", (Some(uid), Some(gid)))?;
            let mode = Mode::from_raw_mode(attributes.mode);
            disk.chmod(upper, b".", mode)?;
            for (key, value) in &attributes.xattrs {
                disk.set_xattr(&root, key, value, rustix::fs::XattrFlags::empty())?;
            }
            let mtime = times(None, Some(SetTime::At(attributes.mtime)));
            disk.set_times(upper, b".", &mtime)?;
        }
        let ino = format!("{:016x}", tree::ROOT_IDENTITY);
        let none = rustix::fs::XattrFlags::empty();
        disk.set_xattr(&root, crate::private::INO_XATTR, ino.as_bytes(), none)
    }

    /// Attributes, and how long the kernel may keep them.
    pub fn getattr(&self, id: u64) -> Result<(Attr, Duration)> {
        let asked = self.table.get(id).ok_or(Errno::STALE)?;
        let _shared = self.shared();
        let active = self.active();
        let replaced = asked.successor().is_some();
        let attr = self.attr_of(&active, &super::node::current(asked))?;
        Ok((attr, if replaced { Duration::ZERO } else { self.valid() }))
    }

    pub(super) fn attr_of(&self, active: &Arc<ActiveSet>, node: &Arc<Node>) -> Result<Attr> {
        if let Some((stat, _)) = self.private_stat(node)? {
            let mut attr = Attr::of_stat(&stat, node.ino);
            if node.kind == FileType::Directory {
                attr.nlink = self.directory_links(active, node, attr.nlink)?;
            }
            return Ok(attr);
        }
        if let Some((set, at)) = self.lower_or_retired(active, node) {
            let mut entry = set.union.entry(at).ok_or(Errno::IO)?;
            entry.attributes.mtime = self.dated(&set, at, &entry);
            let nlink = match node.kind {
                FileType::Directory => set.union.directory_links(at),
                _ => u32::try_from(self.shown_links(&set, at)?.len()).unwrap_or(u32::MAX).max(1),
            };
            return Ok(Attr { ino: node.ino, ..Attr::of_entry(&entry, nlink) });
        }
        if let Some(removed) = node.place.read().expect("no panic while held").removed {
            return Ok(removed);
        }
        // Gone from the name space: only who has it open still sees it.
        let files = node.files.lock().expect("no panic while held");
        let handle = files.open.iter().find_map(std::sync::Weak::upgrade).ok_or(Errno::STALE)?;
        drop(files);
        let stat = rustix::fs::fstat(handle.file().as_fd())?;
        Ok(Attr::of_stat(&stat, node.ino))
    }

    /// When an object of the layers changed: a directory by the names that were
    /// removed from it, too. The white-outs' own directories keep that time, and it goes
    /// with them.
    pub(super) fn dated(&self, set: &ActiveSet, at: u32, entry: &Entry<'_>) -> Timestamp {
        let own = entry.attributes.mtime;
        if !entry.is_directory() || !set.union.is_touched(at) {
            return own;
        }
        let path = set.union.path(at);
        let units = set.union.contributions(at).into_iter();
        let units = units.map(|contribution| &set.layers[contribution.layer as usize].unit);
        units.filter_map(|unit| self.private.changed(unit, &path)).fold(own, Ord::max)
    }

    /// Describes a private object. `None` for one of the layers.
    pub(super) fn private_stat(&self, node: &Arc<Node>) -> Result<Option<(Stat, Reach)>> {
        let place = node.place.read().expect("no panic while held");
        let Some(reach) = self.reach(&place.upper, &place.names)? else { return Ok(None) };
        let stat = self.private.described(reach.stat()?);
        if let Upper::File { inode } = place.upper
            && inode != stat.st_ino
        {
            tracing::error!(node = node.id, "a private file changed behind the mount");
            return Err(Errno::STALE);
        }
        Ok(Some((stat, reach)))
    }

    fn directory_links(
        &self,
        active: &Arc<ActiveSet>,
        node: &Arc<Node>,
        upper: u32,
    ) -> Result<u32> {
        let Some(at) = self.lower(active, node) else { return Ok(upper) };
        let lower = active.union.directory_links(at);
        if upper == 2 {
            return Ok(lower);
        }
        if upper > 2 && lower == 2 {
            return Ok(upper);
        }
        // Every change of a directory's names makes the kernel ask again: a
        // listing each time would make that quadratic.
        let epoch = self.epoch.load(Ordering::Acquire);
        let made = self.directories_made.load(Ordering::Acquire);
        let mut counted = node.counted.lock().expect("no panic while held");
        let own = match *counted {
            Some(last) if (last.epoch, last.made) == (epoch, made) => last.own,
            _ => self.own_directories(active, node, at)?,
        };
        *counted = Some(Counted { epoch, made, own });
        Ok(lower + own)
    }

    /// How many private subdirectories no layer has.
    fn own_directories(&self, active: &Arc<ActiveSet>, node: &Arc<Node>, at: u32) -> Result<u32> {
        let directory = self.directory(node)?.ok_or(Errno::STALE)?;
        let names = backing::list(&directory)?;
        let own = names.iter().filter(|entry| entry.kind == FileType::Directory).filter(|entry| {
            let below = active.union.child(at, &entry.name);
            !below
                .and_then(|below| active.union.entry(below))
                .is_some_and(|entry| entry.is_directory())
        });
        Ok(u32::try_from(own.count()).unwrap_or(0))
    }

    /// Changes attributes; copies the object to the private layer first.
    pub fn setattr(&self, id: u64, set: &SetAttr) -> Result<(Attr, Duration)> {
        let node = self.node(id)?;
        let data = match set.size {
            Some(0) => crate::private::copy_up::Data::None,
            Some(_) => crate::private::copy_up::Data::All,
            None => crate::private::copy_up::Data::Attributes,
        };
        let shared = self.private_copy(&node, data)?;
        // The copy may have moved the object to another node.
        let node = super::node::current(node);
        if let Some(size) = set.size {
            self.set_size(&node, size, set)?;
        }
        let applied = {
            let place = node.place.read().expect("no panic while held");
            let reach = self.reach(&place.upper, &place.names)?.ok_or(Errno::STALE)?;
            if let Upper::File { inode } = place.upper {
                self.private.note_times(inode, &times(set.atime, set.mtime));
            }
            let mut set = *set;
            if set.kill_privileges && set.size.is_none() && node.kind == FileType::RegularFile {
                set.mode = Some(super::file::unprivileged(reach.stat()?.st_mode));
            }
            apply(&self.private.disk, &reach, &set)
        };
        self.directory_changed(&node);
        applied?;
        let active = self.active();
        let attr = self.attr_of(&active, &node)?;
        drop(shared);
        let same = node.id == id || id == ROOT_ID;
        Ok((attr, if same { self.valid() } else { Duration::ZERO }))
    }

    /// How to reach what stands at `upper`, of a node with these names.
    pub(super) fn reach(
        &self,
        upper: &Upper,
        names: &[(Arc<Node>, Box<[u8]>)],
    ) -> Result<Option<Reach>> {
        match upper {
            Upper::None => Ok(None),
            Upper::Directory(directory) => {
                Ok(Some(Reach::Open(self.open_private(directory, names.last())?)))
            }
            Upper::Orphan(fd) => Ok(Some(Reach::Open(fd.clone()))),
            Upper::File { .. } => {
                let (parent, name) = names.last().ok_or(Errno::STALE)?;
                let directory = self.directory(parent)?.ok_or(Errno::STALE)?;
                Ok(Some(Reach::Name(directory, name.clone())))
            }
        }
    }

    fn set_size(&self, node: &Arc<Node>, size: u64, set: &SetAttr) -> Result<()> {
        let handle = set.handle.and_then(|handle| self.file(handle).ok());
        let handle = handle.filter(|handle| handle.writes_to(node));
        let file = match handle {
            Some(handle) => handle.file(),
            None => match self.writable_backing(&self.active(), node) {
                Err(Errno::STALE) if node.successor().is_some() => {
                    let node = super::node::current(node.clone());
                    self.writable_backing(&self.active(), &node)?
                }
                other => other?,
            },
        };
        self.private.disk.truncate(file.as_fd(), size)?;
        if set.kill_privileges {
            super::file::kill_privileges(&self.private.disk, &file)?;
        }
        Ok(())
    }
}

pub(super) fn apply(disk: &Disk, reach: &Reach, set: &SetAttr) -> Result<()> {
    let owner = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
    if owner != (None, None) {
        match reach {
            Reach::Name(directory, name) => {
                disk.chown(directory, name, owner)?;
            }
            Reach::Open(fd) => disk.chown_open(fd, owner)?,
        }
    }
    if let Some(mode) = set.mode {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        match reach {
            Reach::Name(directory, name) => {
                disk.chmod(directory, name, mode)?;
            }
            Reach::Open(fd) => disk.chmod_open(fd, mode)?,
        }
    }
    if set.atime.is_some() || set.mtime.is_some() {
        let times = times(set.atime, set.mtime);
        match reach {
            Reach::Name(directory, name) => {
                disk.set_times(directory, name, &times)?;
            }
            Reach::Open(fd) => disk.set_times_open(fd, &times)?,
        }
    }
    Ok(())
}

pub(super) fn times(atime: Option<SetTime>, mtime: Option<SetTime>) -> Timestamps {
    let time = |set| match set {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(SetTime::At(at)) => {
            Timespec { tv_sec: at.seconds, tv_nsec: i64::from(at.nanoseconds) }
        }
    };
    Timestamps { last_access: time(atime), last_modification: time(mtime) }
}
