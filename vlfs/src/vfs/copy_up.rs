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
            match self.lower_or_retired(&active, node) {
                Some(found) => found,
                None => {
                    let lower = node.lower.lock().expect("no panic while held");
                    let (set, at) = lower.last.as_ref().ok_or(Errno::STALE)?;
                    (set.upgrade().ok_or(Errno::STALE)?, *at)
                }
            }
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
        let (entry, origin) = (&entry, &origin);
        let wanted = Copied { name: work, entry, source: None, origin, data: Data::All, flush };
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
        let at = self.lower(&active, node).filter(|at| !active.union.is_hidden(*at));
        if at.is_some_and(|at| active.union.links(at).len() > 1) {
            drop(shared);
            return self.commit_linked(node, work);
        }
        let inode = backing::stat_at(&self.private.work, work)?.st_ino;
        let Some((parent, name)) = node.name() else { return self.commit_orphan(node, work) };
        if at.is_none() {
            return Err(Errno::STALE);
        }
        let directory = self.private_directory(&active, &parent)?;
        let mut place = node.place.write().expect("no panic while held");
        if !place.names.iter().any(|(p, n)| p.id == parent.id && **n == *name) {
            return Err(Errno::STALE);
        }
        let times = kept_times(&directory)?;
        let from = &self.private.work;
        let (from, to) = ((from, work), (&directory, &name[..]));
        match self.private.disk.rename(from, to, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => return Err(Errno::STALE),
            other => other?,
        }
        self.private.disk.set_times(&directory, b".", &times)?;
        place.upper = Upper::File { inode };
        drop(place);
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

    /// All names of a hard-linked object follow its copy, in one journaled change.
    fn commit_linked(&self, node: &Arc<Node>, work: &[u8]) -> Result<()> {
        let _exclusive = self.namespace.write().expect("no panic while held");
        let active = self.active();
        let at = self.lower(&active, node).ok_or(Errno::STALE)?;
        let inode = backing::stat_at(&self.private.work, work)?.st_ino;
        let paths: Vec<_> =
            active.union.links(at).into_iter().map(|at| (at, active.union.path(at))).collect();
        let mut kept = Vec::new();
        for (at, _) in &paths {
            let directory = self.private_path(&active, active.union.parent(*at))?;
            kept.push((kept_times(&directory)?, directory));
        }
        let in_upper = |path: &[u8]| [UPPER, b"/", path].concat();
        let (first, others) = paths.split_first().ok_or(Errno::STALE)?;
        let from = [WORK, b"/", work].concat();
        let mut steps = vec![Step::Rename { from, to: in_upper(&first.1) }];
        let link = |path: &[u8]| Step::Link { from: in_upper(&first.1), to: in_upper(path) };
        steps.extend(others.iter().map(|(_, path)| link(path)));
        self.private.transact(&steps)?;
        for (times, directory) in &kept {
            self.private.disk.set_times(directory, b".", times)?;
        }
        node.place.write().expect("no panic while held").upper = Upper::File { inode };
        self.switch_to_copy(node);
        self.table.set_linked(&super::node::current(node.clone()));
        Ok(())
    }

    /// From now on a node's operations act on the private copy. Files that are
    /// open through the kernel keep the original: then a successor takes over.
    pub(super) fn switch_to_copy(&self, node: &Arc<Node>) {
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
        drop(files);
        let mut notices = Vec::new();
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
        let (source, data, flush) = (None, Data::None, false);
        copy(&self.private, &Copied { name: &work, entry, source, origin, data, flush })?;
        let times = kept_times(above)?;
        let from = &self.private.work;
        let disk = &self.private.disk;
        match disk.rename((from, &work[..]), (above, name), RenameFlags::NOREPLACE) {
            Ok(()) => {
                self.directories_made.fetch_add(1, Ordering::AcqRel);
                disk.set_times(above, b".", &times)?;
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

/// The times of a directory, to put back after a copy was moved into it.
fn kept_times(directory: &OwnedFd) -> Result<rustix::fs::Timestamps> {
    let stat = rustix::fs::fstat(directory)?;
    let time = |seconds, nanoseconds| super::SetTime::At(backing::timestamp(seconds, nanoseconds));
    Ok(super::attr::times(
        Some(time(stat.st_atime, stat.st_atime_nsec)),
        Some(time(stat.st_mtime, stat.st_mtime_nsec)),
    ))
}
