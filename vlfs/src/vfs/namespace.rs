//! Making and removing names.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FileType, Gid, Mode, OFlags, RenameFlags, Uid};

use super::held::affordable;
use super::node::{Node, Upper};
use super::{ActiveSet, Caller, Errno, Found, Object, Result, Vfs};
use crate::backing;
use crate::private::copy_up::Data;

const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// Attributes of an object that is to be made.
struct NewObject {
    mode: u32,
    owner: (Uid, Gid),
    /// The directory has one, which the new object inherits from.
    has_default_acl: bool,
}

impl Vfs {
    /// The private directory for a new name, which no layer shows. Whether a
    /// private object has it, the call that makes it says.
    fn place_for(
        &self,
        active: &Arc<ActiveSet>,
        parent: &Arc<Node>,
        name: &[u8],
    ) -> Result<Arc<OwnedFd>> {
        if parent.name().is_none() && parent.id != super::ROOT_ID {
            return Err(Errno::NOENT);
        }
        if name.len() > 255 {
            return Err(Errno::NAMETOOLONG);
        }
        if self.lower(active, parent).is_some_and(|at| active.union.child(at, name).is_some()) {
            return Err(Errno::EXIST);
        }
        active.sound()?;
        self.private_directory(active, parent)
    }

    /// The attributes of a new object (setgid directories pass their group on).
    fn attributes_for(
        &self,
        (parent, directory): (&Node, &OwnedFd),
        mode: u32,
        caller: &Caller,
        kind: FileType,
    ) -> Result<NewObject> {
        let owner = (Uid::from_raw(caller.uid), Gid::from_raw(caller.gid));
        // Taken before the directory is looked at: what changes it meanwhile counts on.
        let changes = self.directory_changes.load(Ordering::Acquire);
        if parent.plain_at.load(Ordering::Acquire) == changes {
            let mode = mode & 0o7777 & !caller.umask;
            return Ok(NewObject { mode, owner, has_default_acl: false });
        }
        let plain_at = &parent.plain_at;
        let parent = rustix::fs::fstat(directory)?;
        let inherits = parent.st_mode & 0o2000 != 0;
        let gid = if inherits { parent.st_gid } else { caller.gid };
        let mut mode = mode & 0o7777;
        // A default ACL takes the umask's place; the private disk applies it.
        let path = backing::path_of(directory, b".");
        let has_default_acl = match backing::xattr(&path, DEFAULT_ACL) {
            Ok(_) => true,
            Err(Errno::NODATA | Errno::NOTSUP) => false,
            Err(error) => return Err(error),
        };
        if !has_default_acl {
            mode &= !caller.umask;
        }
        if !inherits && !has_default_acl {
            plain_at.store(changes, Ordering::Release);
        }
        if inherits && kind == FileType::Directory {
            mode |= 0o2000;
        }
        let owner = (Uid::from_raw(caller.uid), Gid::from_raw(gid));
        Ok(NewObject { mode, owner, has_default_acl })
    }

    /// Makes an object with `make` and gives it its owner. One that is not
    /// root's is made in `work/` and renamed into place: no crash shows it as root's.
    fn make_owned<T>(
        &self,
        directory: &OwnedFd,
        name: &[u8],
        new: &NewObject,
        make: impl FnOnce(&OwnedFd, &[u8]) -> Result<T>,
    ) -> Result<T> {
        let (uid, gid) = new.owner;
        if (uid.as_raw(), gid.as_raw()) == (0, 0) && new.mode & 0o6000 == 0 {
            return make(directory, name);
        }
        if new.has_default_acl {
            // Only an object that is made in place inherits from it.
            let made = make(directory, name)?;
            self.own(directory, name, new)?;
            return Ok(made);
        }
        let (work, at) = (&self.private.work, self.private.next_name());
        let made = make(work, &at).and_then(|made| {
            self.own(work, &at, new)?;
            let (from, to) = ((work, &at[..]), (directory, name));
            self.private.disk.rename(from, to, RenameFlags::NOREPLACE)?;
            Ok(made)
        });
        if made.is_err() {
            self.private.discard(&at);
        }
        made
    }

    fn own(&self, directory: &OwnedFd, name: &[u8], new: &NewObject) -> Result<()> {
        let disk = &self.private.disk;
        disk.chown(directory, name, (Some(new.owner.0), Some(new.owner.1)))?;
        if new.mode & 0o7000 != 0 {
            // A change of owner took these bits away.
            let now = backing::stat_at(directory, name)?.st_mode & 0o777;
            disk.chmod(directory, name, Mode::from_raw_mode(new.mode & 0o7000 | now))?;
        }
        Ok(())
    }

    pub(super) fn make_file(
        &self,
        active: &Arc<ActiveSet>,
        parent: &Arc<Node>,
        name: &[u8],
        mode: u32,
        caller: &Caller,
    ) -> Result<OwnedFd> {
        let directory = self.place_for(active, parent, name)?;
        let new = self.attributes_for((parent, &directory), mode, caller, FileType::RegularFile)?;
        let mode = Mode::from_raw_mode(new.mode);
        self.make_owned(&directory, name, &new, |directory, name| {
            let flags = OFlags::RDWR | OFlags::EXCL | OFlags::NOATIME;
            self.private.disk.create(directory, name, flags, mode)
        })
    }

    fn made(&self, active: &Arc<ActiveSet>, parent: &Arc<Node>, name: &[u8]) -> Result<Found> {
        let object = self.find(active, parent, name)?;
        let node = self.intern(active, parent, name, &object)?;
        self.found(active, node, &object)
    }

    /// Makes a file, FIFO, socket or device. `mode` has the type's bits.
    pub fn mknod(
        &self,
        parent: u64,
        name: &[u8],
        mode: u32,
        device: (u32, u32),
        caller: &Caller,
    ) -> Result<Found> {
        let _shared = self.shared();
        let active = self.active();
        let parent = self.directory_node(parent)?;
        let kind = FileType::from_raw_mode(mode);
        if kind == FileType::RegularFile {
            self.make_file(&active, &parent, name, mode, caller)?;
            return self.made(&active, &parent, name);
        }
        let directory = self.place_for(&active, &parent, name)?;
        let new = self.attributes_for((&parent, &directory), mode, caller, kind)?;
        let device = rustix::fs::makedev(device.0, device.1);
        let mode = Mode::from_raw_mode(new.mode);
        self.make_owned(&directory, name, &new, |directory, name| {
            self.private.disk.make_node(directory, name, kind, mode, device)
        })?;
        self.made(&active, &parent, name)
    }

    pub fn mkdir(&self, parent: u64, name: &[u8], mode: u32, caller: &Caller) -> Result<Found> {
        let _shared = self.shared();
        let active = self.active();
        let parent = self.directory_node(parent)?;
        let directory = self.place_for(&active, &parent, name)?;
        let new = self.attributes_for((&parent, &directory), mode, caller, FileType::Directory)?;
        let mode = Mode::from_raw_mode(new.mode & 0o1777);
        self.make_owned(&directory, name, &new, |directory, name| {
            self.private.disk.make_directory(directory, name, mode)
        })?;
        self.directories_made.fetch_add(1, Ordering::AcqRel);
        self.made(&active, &parent, name)
    }

    pub fn symlink(
        &self,
        parent: u64,
        name: &[u8],
        target: &[u8],
        caller: &Caller,
    ) -> Result<Found> {
        let _shared = self.shared();
        let active = self.active();
        let parent = self.directory_node(parent)?;
        let directory = self.place_for(&active, &parent, name)?;
        let new = self.attributes_for((&parent, &directory), 0o777, caller, FileType::Symlink)?;
        let new = NewObject { mode: 0, ..new };
        self.make_owned(&directory, name, &new, |directory, name| {
            self.private.disk.symlink(target, directory, name)
        })?;
        self.made(&active, &parent, name)
    }

    /// Gives an object another name; one of a layer is copied first.
    pub fn link(&self, id: u64, parent: u64, name: &[u8]) -> Result<Found> {
        let node = self.node(id)?;
        if node.kind == FileType::Directory {
            return Err(Errno::PERM);
        }
        let _shared = self.private_copy(&node, Data::Attributes)?;
        let node = super::node::current(node);
        let active = self.active();
        let parent = self.directory_node(parent)?;
        let directory = self.place_for(&active, &parent, name)?;
        let mut place = node.place.write().expect("no panic while held");
        match (&place.upper, place.names.last()) {
            (Upper::File { .. }, Some((above, own))) => {
                let above = self.directory(above)?.ok_or(Errno::STALE)?;
                self.private.disk.link((&above, &own[..]), (&directory, name))?;
            }
            // Made without a name (O_TMPFILE): this is its first.
            (Upper::Orphan(fd), _) => {
                self.private.disk.link_open(&**fd, &directory, name)?;
                let inode = rustix::fs::fstat(fd)?.st_ino;
                place.upper = Upper::File { inode };
            }
            (Upper::None | Upper::Directory(_) | Upper::File { .. }, _) => {
                return Err(Errno::STALE);
            }
        }
        place.names.push((parent.clone(), name.into()));
        drop(place);
        self.table.set_linked(&node);
        self.replace_child(&parent, name, &node);
        self.found_node(&active, node)
    }

    /// Hides what the layers show at a name of a directory: a white-out for
    /// every unit that contributes there, the lowest first.
    pub(super) fn hide(
        &self,
        active: &Arc<ActiveSet>,
        parent: &Arc<Node>,
        name: &[u8],
    ) -> Result<()> {
        let Some(above) = self.lower(active, parent) else { return active.sound() };
        let Some(at) = active.union.child(above, name) else { return active.sound() };
        let path = active.union.path(at);
        active.sound()?;
        for contribution in active.union.contributions(at).into_iter().rev() {
            let layer = &active.layers[contribution.layer as usize];
            self.private.hide(&layer.unit, &path)?;
        }
        active.union.hide(at);
        Ok(())
    }

    /// Makes room for the white-outs of a name, which [`Vfs::hide`] writes later.
    pub(super) fn prepare_to_hide(
        &self,
        active: &Arc<ActiveSet>,
        parent: &Arc<Node>,
        name: &[u8],
    ) -> Result<()> {
        let above = self.lower(active, parent);
        let Some(at) = above.and_then(|above| active.union.child(above, name)) else {
            return active.sound();
        };
        let path = active.union.path(at);
        for contribution in active.union.contributions(at) {
            let layer = &active.layers[contribution.layer as usize];
            self.private.prepare_to_hide(&layer.unit, &path)?;
        }
        active.sound()
    }

    /// Removes a name that is no directory.
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Result<()> {
        let _shared = self.shared();
        let active = self.active();
        let parent = self.directory_node(parent)?;
        let object = self.find(&active, &parent, name)?;
        let node = self.intern(&active, &parent, name, &object)?;
        if node.kind == FileType::Directory {
            return Err(Errno::ISDIR);
        }
        // A private file's last name leaves the file to who has it open; of
        // everything else the last attributes are kept.
        let (orphan, attr) = match &object {
            Object::Private { stat, .. } if stat.st_nlink == 1 => {
                (Some(self.open_orphan(&node, &parent, name)?), None)
            }
            Object::Private { .. } | Object::Layer { .. } => {
                (None, Some(self.attr_of(&active, &node)?))
            }
        };
        self.date_removal(&parent, &object)?;
        let mut place = node.place.write().expect("no panic while held");
        self.hide(&active, &parent, name)?;
        if let Object::Private { stat, .. } = object {
            let directory = self.directory(&parent)?.ok_or(Errno::STALE)?;
            self.private.disk.unlink(&directory, name)?;
            if orphan.is_some() {
                self.owes_nothing(stat.st_ino);
            }
        }
        place.names.retain(|(p, n)| p.id != parent.id || **n != *name);
        if let Some(orphan) = orphan {
            place.upper = Upper::Orphan(Arc::new(orphan));
        } else if place.names.is_empty() {
            let last =
                |attr: super::Attr| super::Attr { nlink: attr.nlink.saturating_sub(1), ..attr };
            place.removed = attr.map(last);
        }
        drop(place);
        node.unresolve();
        self.table.remove_child(parent.id, name);
        Ok(())
    }

    /// A white-out is written elsewhere: the disk dates no private directory for it.
    /// One that is the layers' shows the white-outs' own time (see [`Vfs::dated`]).
    fn date_removal(&self, parent: &Arc<Node>, object: &Object) -> Result<()> {
        match (object, self.directory(parent)?) {
            (Object::Layer { .. }, Some(directory)) => {
                let now = super::attr::times(None, Some(super::SetTime::Now));
                self.private.disk.set_times_open(&*directory, &now)
            }
            (Object::Layer { .. } | Object::Private { .. }, _) => Ok(()),
        }
    }

    /// Holds a private file whose name is about to go.
    fn open_orphan(&self, node: &Node, parent: &Arc<Node>, name: &[u8]) -> Result<OwnedFd> {
        {
            let files = node.files.lock().expect("no panic while held");
            let open = files.backing.as_ref().filter(|backing| backing.layer.is_none());
            if let Some(backing) = open {
                return rustix::io::fcntl_dupfd_cloexec(&**backing, 0).and_then(affordable);
            }
        }
        let directory = self.directory(parent)?.ok_or(Errno::STALE)?;
        backing::open_beneath(&directory, name, OFlags::PATH, Mode::empty()).and_then(affordable)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: u64, name: &[u8]) -> Result<()> {
        let _shared = self.shared();
        let active = self.active();
        let parent = self.directory_node(parent)?;
        let object = self.find(&active, &parent, name)?;
        let node = self.intern(&active, &parent, name, &object)?;
        if node.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        if !self.names(&active, &node)?.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        let attr = self.attr_of(&active, &node)?;
        self.pin(&node)?;
        let removed = self.remove_directory(&active, &parent, name, &object);
        removed.inspect_err(|_| self.unpin(&node))?;
        self.directories_made.fetch_add(1, Ordering::AcqRel);
        self.forget_directory(&parent, name, &node, attr);
        Ok(())
    }

    fn remove_directory(
        &self,
        active: &Arc<ActiveSet>,
        parent: &Arc<Node>,
        name: &[u8],
        object: &Object,
    ) -> Result<()> {
        self.date_removal(parent, object)?;
        self.hide(active, parent, name)?;
        match object {
            Object::Private { .. } => {
                let directory = self.directory(parent)?.ok_or(Errno::STALE)?;
                self.private.disk.remove_directory(&directory, name)
            }
            Object::Layer { .. } => Ok(()),
        }
    }

    /// The directory node has no name any more.
    pub(super) fn forget_directory(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        node: &Arc<Node>,
        attr: super::Attr,
    ) {
        let mut place = node.place.write().expect("no panic while held");
        place.names.clear();
        if matches!(place.upper, Upper::None) {
            place.removed = Some(super::Attr { nlink: 0, ..attr });
        }
        drop(place);
        node.unresolve();
        self.table.remove_child(parent.id, name);
    }

    /// A file without a name, open for reading and writing (`O_TMPFILE`).
    pub fn tmpfile(
        &self,
        parent: u64,
        mode: u32,
        caller: &Caller,
    ) -> Result<(Found, super::Opened)> {
        let _shared = self.shared();
        let active = self.active();
        let parent = self.directory_node(parent)?;
        let directory = self.private_directory(&active, &parent)?;
        let kind = FileType::RegularFile;
        let new = self.attributes_for((&parent, &directory), mode, caller, kind)?;
        let mode = Mode::from_raw_mode(new.mode);
        let inside = backing::open_beneath(
            &directory,
            b"",
            OFlags::RDONLY | OFlags::DIRECTORY,
            Mode::empty(),
        )?;
        let disk = &self.private.disk;
        let fd = disk.temporary(&inside, mode)?;
        disk.chown_open(&fd, (Some(new.owner.0), Some(new.owner.1)))?;
        // The other bits are as a default ACL has left them.
        let now = rustix::fs::fstat(&fd)?.st_mode & 0o777;
        disk.chmod_open(&fd, Mode::from_raw_mode(new.mode & 0o7000 | now))?;
        let inode = rustix::fs::fstat(fd.as_fd())?.st_ino;
        let upper = Upper::Orphan(Arc::new(affordable(fd)?));
        let node = self.table.new_node(crate::tree::PRIVATE_TAG | inode, kind, upper);
        let found = self.found_node(&active, node.clone())?;
        let opened = self.open_found(&active, &node)?;
        Ok((found, opened))
    }
}
