//! Copy-up: an object of a layer moves to the private layer, whole or not at all (§5.5).
//!
//! Nothing that is seen changes by it: content, attributes and `st_ino` stay.
//! Data is copied without any lock that another file needs.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLockReadGuard};

use rustix::fs::{FileType, Mode, OFlags, RenameFlags};

use super::held::affordable;
use super::node::{Node, Upper};
use super::{ActiveSet, Errno, Notice, Result, Vfs};
use crate::backing;
use crate::private::copy_up::{Copied, Data, copy};
use crate::private::journal::Step;
use crate::private::origin::Origin;
use crate::private::{UPPER, WORK};

/// A name that a node was found by, in its directory.
type KnownName = (Arc<Node>, Box<[u8]>);

impl Vfs {
    /// Makes sure that a node's object is private, and keeps it so while the guard lives.
    pub(super) fn private_copy(
        &self,
        node: &Arc<Node>,
        data: Data,
    ) -> Result<RwLockReadGuard<'_, ()>> {
        loop {
            let shared = self.shared();
            let now = super::node::current(node.clone());
            let private = now.is_private();
            let complete = data == Data::Attributes || !self.borrows(&now)?;
            if private && complete {
                return Ok(shared);
            }
            drop(shared);
            if private { self.complete(&now, data)? } else { self.copy_up(node, data)? }
        }
    }

    fn copy_up(&self, node: &Arc<Node>, data: Data) -> Result<()> {
        if node.kind == FileType::Directory {
            let _shared = self.shared();
            return self.private_directory(&self.active(), node).map(drop);
        }
        let _copying = node.copying.lock().expect("no panic while held");
        if super::node::current(node.clone()).is_private() {
            return Ok(());
        }
        let work = self.private.next_name();
        self.copy_to_work(node, &work, data, true)?;
        let committed = self.commit_copy(node, &work);
        if committed.is_err() {
            self.private.discard(&work);
        }
        committed
    }

    /// Copies a node's object to `work/<name>`. No lock is held while data moves.
    /// Returns whether it has data that is to be flushed, if `flush` did not.
    pub(super) fn copy_to_work(
        &self,
        node: &Arc<Node>,
        work: &[u8],
        data: Data,
        flush: bool,
    ) -> Result<bool> {
        let (set, at) = {
            let _shared = self.shared();
            let active = self.active();
            self.original(&active, node).ok_or(Errno::STALE)?
        };
        let top = set.union.top(at).ok_or(Errno::STALE)?;
        let layer = &set.layers[top.layer as usize];
        let entry = set.union.entry(at).ok_or(Errno::IO)?;
        let path = set.union.path(at);
        let origin = Origin::of(&layer.unit, &entry, &path);
        let regular = node.kind == FileType::RegularFile;
        // Who wants content checked at the first open wants no data left for later.
        let data = match (self.first_open(), data) {
            (Some(_), Data::Attributes) if regular => Data::All,
            _ => data,
        };
        let names = set.union.links(at).into_iter().map(|at| set.union.path(at));
        let names: Vec<_> = names.collect();
        let (entry, origin, names) = (&entry, &origin, &names[..]);
        let (source, name) = (None, work);
        let wanted = Copied { name, entry, source, origin, names, data: Data::All, flush };
        let mut made = Err(Errno::AGAIN);
        if data != Data::All {
            made = copy(&self.private, &Copied { data, ..wanted });
        }
        if made != Err(Errno::AGAIN) {
            return made.map(|()| false);
        }
        let mut source = None;
        if regular {
            if let Some(first_open) = self.first_open() {
                first_open.check(layer, entry, top.entry, &path)?;
            }
            source = Some(layer.open(&path)?);
        }
        copy(&self.private, &Copied { source: source.as_ref(), ..wanted })?;
        Ok(regular && !flush)
    }

    /// Moves a finished copy to its names. The node's `copying` lock is held.
    pub(super) fn commit_copy(&self, node: &Arc<Node>, work: &[u8]) -> Result<()> {
        let shared = self.shared();
        let active = self.active();
        let inode = backing::stat_at(&self.private.work, work)?.st_ino;
        if node.name().is_none() {
            return self.commit_orphan(node, work);
        }
        let at = self.lower(&active, node).filter(|at| !active.union.is_hidden(*at));
        let links = self.shown_links(&active, at.ok_or(Errno::STALE)?)?;
        if links.len() > 1 {
            drop(shared);
            return self.commit_linked(node, work);
        }
        let (shown, stale) = self.names_of(&active, node, &links);
        let (parent, name) = shown.last().ok_or(Errno::STALE)?;
        let directory = self.private_directory(&active, parent)?;
        let mut place = node.place.write().expect("no panic while held");
        if !is_among(&(parent.clone(), name.clone()), &place.names) {
            return Err(Errno::STALE);
        }
        let times = kept_times(&directory)?;
        let from = &self.private.work;
        let (from, to) = ((from, work), (&directory, &name[..]));
        match self.private.disk.rename(from, to, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => return Err(Errno::STALE),
            other => other?,
        }
        // That was it: from here on nothing may fail.
        place.upper = Upper::File { inode };
        place.names.retain(|name| !is_among(name, &stale));
        drop(place);
        self.put_times_back(&directory, &times);
        self.drop_children(node, &stale);
        self.switch_to_copy(node);
        Ok(())
    }

    /// The object has no name any more: its copy gets none either.
    fn commit_orphan(&self, node: &Arc<Node>, work: &[u8]) -> Result<()> {
        let fd = backing::open_beneath(&self.private.work, work, OFlags::PATH, Mode::empty())
            .and_then(affordable)?;
        self.private.disk.unlink(&self.private.work, work)?;
        node.place.write().expect("no panic while held").upper = Upper::Orphan(Arc::new(fd));
        self.switch_to_copy(node);
        Ok(())
    }

    /// All names of a hard-linked object that are shown follow its copy, in one journaled
    /// change. Those that private objects obscure stay theirs.
    fn commit_linked(&self, node: &Arc<Node>, work: &[u8]) -> Result<()> {
        let _exclusive = self.namespace.write().expect("no panic while held");
        let active = self.active();
        let at = self.lower(&active, node).ok_or(Errno::STALE)?;
        let inode = backing::stat_at(&self.private.work, work)?.st_ino;
        let links = self.shown_links(&active, at)?;
        let (_, stale) = self.names_of(&active, node, &links);
        let mut kept = Vec::new();
        for at in &links {
            let directory = self.private_path(&active, active.union.parent(*at))?;
            kept.push((kept_times(&directory)?, directory));
        }
        let in_upper = |at: &u32| [UPPER, b"/", &active.union.path(*at)[..]].concat();
        let (first, others) = links.split_first().ok_or(Errno::STALE)?;
        let from = [WORK, b"/", work].concat();
        let mut steps = vec![Step::Rename { from, to: in_upper(first) }];
        let link = |at: &u32| Step::Link { from: in_upper(first), to: in_upper(at) };
        steps.extend(others.iter().map(link));
        match self.private.transact(&steps) {
            // Somebody changed the private directory behind the mount.
            Err(Errno::EXIST) => return Err(Errno::STALE),
            other => other?,
        }
        // That was it: from here on nothing may fail.
        let mut place = node.place.write().expect("no panic while held");
        place.upper = Upper::File { inode };
        place.names.retain(|name| !is_among(name, &stale));
        drop(place);
        for (times, directory) in &kept {
            self.put_times_back(directory, times);
        }
        self.drop_children(node, &stale);
        self.switch_to_copy(node);
        self.table.set_linked(&super::node::current(node.clone()));
        Ok(())
    }

    /// The names of a layers' object that are shown: those that no private object
    /// obscures, at the name itself or on the way to it. (Of an object without hard
    /// links, its name.)
    pub(super) fn shown_links(&self, set: &ActiveSet, at: u32) -> Result<Vec<u32>> {
        let links = set.union.links(at);
        if links.len() < 2 {
            return Ok(links);
        }
        let mut shown = Vec::new();
        for link in links {
            let path = set.union.path(link);
            match backing::open_beneath(&self.private.upper, &path, OFlags::PATH, Mode::empty()) {
                Err(Errno::NOENT) => shown.push(link),
                Ok(_) | Err(Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(shown)
    }

    /// The known names of a node that show one of these nodes of the union, and those
    /// that do not: they are out of date since a swap.
    fn names_of(
        &self,
        active: &Arc<ActiveSet>,
        node: &Arc<Node>,
        shown: &[u32],
    ) -> (Vec<KnownName>, Vec<KnownName>) {
        let names = node.place.read().expect("no panic while held").names.clone();
        names.into_iter().partition(|(parent, name)| {
            let above = self.lower(active, parent);
            let at = above.and_then(|above| active.union.child(above, name));
            at.is_some_and(|at| shown.contains(&at))
        })
    }

    /// Names that lead to a node no more.
    fn drop_children(&self, node: &Arc<Node>, names: &[KnownName]) {
        for (parent, name) in names {
            if self.table.child(parent.id, name).is_some_and(|known| known.id == node.id) {
                self.table.remove_child(parent.id, name);
            }
        }
    }

    /// A copy was moved into a directory, which does not date it.
    fn put_times_back(&self, directory: &OwnedFd, times: &rustix::fs::Timestamps) {
        if let Err(error) = self.private.disk.set_times(directory, b".", times) {
            tracing::warn!(%error, "a directory is dated by a copy that was made in it");
        }
    }

    /// From now on a node's operations act on the private copy. A copy that borrows its
    /// data changes nothing for who has the file open. Once it has its own, files that
    /// are open through the kernel keep the original: then a successor takes over.
    pub(super) fn switch_to_copy(&self, node: &Arc<Node>) {
        node.flushed.store(false, Ordering::Release);
        if self.borrows(node).unwrap_or(false) {
            return;
        }
        let mut files = node.files.lock().expect("no panic while held");
        let through_kernel =
            files.is_open() && files.backing.as_ref().is_some_and(|backing| backing.id.is_some());
        if !through_kernel {
            files.backing = None;
            return;
        }
        let mut place = node.place.write().expect("no panic while held");
        let successor = self.table.new_node(node.ino, node.kind, place.upper.clone());
        let names = std::mem::take(&mut place.names);
        place.upper = Upper::None;
        drop(place);
        successor.place.write().expect("no panic while held").names.clone_from(&names);
        files.successor = Some(successor.clone());
        // While the kernel knows the old node, the copy must be found by its names: they may
        // be removed, and others given its place.
        self.table.reference(&successor);
        drop(files);
        let mut notices = vec![Notice::Invalidate { node: node.id }];
        for (parent, name) in names {
            self.table.set_child(parent.id, &name, &successor);
            notices.push(Notice::Expire { parent: parent.id, name });
        }
        self.notify(notices);
    }

    /// The private directory of a directory node; makes it, and those above it.
    pub(super) fn private_directory(
        &self,
        active: &Arc<ActiveSet>,
        node: &Arc<Node>,
    ) -> Result<Arc<OwnedFd>> {
        let mut missing = Vec::new();
        let mut node = node.clone();
        let mut directory = loop {
            if let Some(directory) = self.directory(&node)? {
                break directory;
            }
            let (parent, name) = node.name().ok_or(Errno::STALE)?;
            missing.push((std::mem::replace(&mut node, parent), name));
        };
        for (node, name) in missing.iter().rev() {
            directory = self.private_directory_in(active, &directory, node, name)?;
        }
        Ok(directory)
    }

    fn private_directory_in(
        &self,
        active: &Arc<ActiveSet>,
        above: &OwnedFd,
        node: &Node,
        name: &[u8],
    ) -> Result<Arc<OwnedFd>> {
        let _copying = node.copying.lock().expect("no panic while held");
        if let Some(directory) = self.directory(node)? {
            return Ok(directory);
        }
        let at = self.lower(active, node).ok_or(Errno::STALE)?;
        let made = Arc::new(self.copy_directory(active, at, above, name)?);
        let directory = self.new_directory(&made)?;
        node.place.write().expect("no panic while held").upper = Upper::Directory(directory);
        Ok(made)
    }

    /// Makes the private directory of a union node in `above`, or finds it made.
    fn copy_directory(
        &self,
        active: &Arc<ActiveSet>,
        at: u32,
        above: &OwnedFd,
        name: &[u8],
    ) -> Result<OwnedFd> {
        let top = active.union.top(at).ok_or(Errno::STALE)?;
        let layer = &active.layers[top.layer as usize];
        let mut entry = active.union.entry(at).ok_or(Errno::IO)?;
        let origin = Origin::of(&layer.unit, &entry, &active.union.path(at));
        entry.attributes.mtime = self.dated(active, at, &entry);
        let work = self.private.next_name();
        let (entry, origin) = (&entry, &origin);
        let (source, names, data, flush) = (None, &[][..], Data::None, false);
        copy(&self.private, &Copied { name: &work, entry, source, origin, names, data, flush })?;
        let times = kept_times(above)?;
        let from = &self.private.work;
        let disk = &self.private.disk;
        match disk.rename((from, &work[..]), (above, name), RenameFlags::NOREPLACE) {
            Ok(()) => {
                self.directories_made.fetch_add(1, Ordering::AcqRel);
                self.put_times_back(above, &times);
            }
            Err(Errno::EXIST) => disk.remove_tree(from, &work)?,
            Err(error) => {
                self.private.discard(&work);
                return Err(error);
            }
        }
        backing::open_directory(above, name)
    }

    /// The private directory at a union node, by path; nodes the kernel knows on
    /// the way are told. The namespace is held exclusively.
    fn private_path(&self, active: &Arc<ActiveSet>, at: u32) -> Result<Arc<OwnedFd>> {
        let mut missing = Vec::new();
        let mut at = at;
        let mut directory = loop {
            let path = active.union.path(at);
            if let Some(node) = self.table.find(&path) {
                break self.private_directory(active, &node)?;
            }
            missing.push((at, path));
            at = active.union.parent(at);
        };
        for (at, path) in missing.iter().rev() {
            let name = strata_core::manifest::file_name(path);
            directory = match backing::open_directory(&directory, name) {
                Err(Errno::NOENT) => Arc::new(self.copy_directory(active, *at, &directory, name)?),
                other => Arc::new(other?),
            };
        }
        Ok(directory)
    }
}

fn is_among((parent, name): &KnownName, names: &[KnownName]) -> bool {
    names.iter().any(|(p, n)| p.id == parent.id && n == name)
}

/// The times of a directory, to put back after a copy was moved into it.
fn kept_times(directory: &OwnedFd) -> Result<rustix::fs::Timestamps> {
    let stat = rustix::fs::fstat(directory)?;
    let time = |seconds, nanoseconds| super::SetTime::At(backing::timestamp(seconds, nanoseconds));
    Ok(super::attr::times(
        Some(time(stat.st_atime, stat.st_atime_nsec)),
        Some(time(stat.st_mtime, stat.st_mtime_nsec)),
    ))
}
