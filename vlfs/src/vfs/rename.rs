//! Renaming, for files and for whole trees of the layers.
//!
//! What moves is private first: a directory of the layers is copied in place
//! with all below it, which nobody sees. Then its old path is hidden in the
//! layers, which nobody sees either, because the copy obscures it. Then one
//! rename in the private layer is the whole change, so a crash leaves the old
//! state or the new one.

use std::sync::Arc;

use rustix::fs::{FileType, RenameFlags};

use super::held::affordable;
use super::node::{self, Node, Upper};
use super::{ActiveSet, Errno, Object, Result, Vfs};
use crate::backing;
use crate::private::copy_up::Data;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Replace,
    NoReplace,
    Exchange,
}

/// What was copied of a tree, to be moved to its places.
#[derive(Default)]
struct Copies {
    /// Objects, and their names in `work/`.
    made: Vec<(Arc<Node>, Vec<u8>)>,
    seen: std::collections::BTreeSet<u64>,
    /// All nodes that were found, directories too.
    nodes: Vec<Arc<Node>>,
    /// Data was copied, which is not flushed yet.
    has_data: bool,
}

/// One end of a rename.
#[derive(Clone, Copy)]
struct End<'a> {
    parent: u64,
    name: &'a [u8],
}

impl Vfs {
    pub fn rename(
        &self,
        (parent, name): (u64, &[u8]),
        (new_parent, new_name): (u64, &[u8]),
        mode: Mode,
    ) -> Result<()> {
        let from = End { parent, name };
        let to = End { parent: new_parent, name: new_name };
        if new_name.len() > 255 {
            return Err(Errno::NAMETOOLONG);
        }
        loop {
            let source = self.end(from)?.ok_or(Errno::NOENT)?;
            let target = self.end(to)?;
            match (mode, &target) {
                (Mode::NoReplace, Some(_)) => return Err(Errno::EXIST),
                (Mode::Exchange, None) => return Err(Errno::NOENT),
                (Mode::Replace, Some(target)) if target.id == source.id => return Ok(()),
                _ => {}
            }
            // A rename that is refused copies nothing.
            if let (Some(target), Mode::Replace) = (&target, mode) {
                let _shared = self.shared();
                self.check_replaceable(&self.active(), &source, target)?;
            }
            let moved = |node: &Arc<Node>| self.make_private(node);
            moved(&source)?;
            match (&target, mode) {
                (Some(target), Mode::Exchange) => moved(target)?,
                (Some(target), _) if target.kind == FileType::Directory => {
                    drop(self.private_copy(target, Data::None)?);
                }
                _ => {}
            }
            let is_directory = |node: &Arc<Node>| node.kind == FileType::Directory;
            let trees = is_directory(&source) || target.as_ref().is_some_and(is_directory);
            let done = if trees {
                let _exclusive = self.namespace.write().expect("no panic while held");
                let done = self.rename_private(from, to, mode)?;
                self.epoch.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
                done
            } else {
                let _shared = self.shared();
                self.rename_private(from, to, mode)?
            };
            for node in target.iter().chain([&source]) {
                self.table.release(&node::current(node.clone()));
            }
            if done {
                return Ok(());
            }
        }
    }

    /// The node at one end, if there is one.
    fn end(&self, end: End<'_>) -> Result<Option<Arc<Node>>> {
        let _shared = self.shared();
        let active = self.active();
        let parent = self.directory_node(end.parent)?;
        match self.find(&active, &parent, end.name) {
            Ok(object) => self.intern(&active, &parent, end.name, &object).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Copies an object to the private layer, a directory with all below it.
    fn make_private(&self, node: &Arc<Node>) -> Result<()> {
        drop(self.private_copy(node, Data::Attributes)?);
        if node.kind != FileType::Directory {
            return Ok(());
        }
        // Where data is copied all the same: all of it first, one flush, then the names.
        let mut copies = Copies::default();
        let copied = self.copy_tree(node, &mut copies);
        let flushed =
            copied.and_then(|()| if copies.has_data { self.private.sync() } else { Ok(()) });
        let mut result = flushed;
        for (node, work) in copies.made {
            if result.is_ok() {
                let _copying = node.copying.lock().expect("no panic while held");
                let private = node::current(node.clone()).is_private();
                result = if private { Ok(()) } else { self.commit_copy(&node, &work) };
            }
            // What was not moved to its place is not wanted.
            self.private.discard(&work);
        }
        for node in copies.nodes.iter().rev() {
            self.table.release(node);
        }
        result
    }

    /// A list and no recursion: a tree may be deeper than any stack.
    fn copy_tree(&self, top: &Arc<Node>, copies: &mut Copies) -> Result<()> {
        let mut pending = vec![top.clone()];
        while let Some(directory) = pending.pop() {
            for child in self.children_to_copy(&directory)? {
                copies.nodes.push(child.clone());
                if child.kind == FileType::Directory {
                    let _shared = self.shared();
                    self.private_directory(&self.active(), &child)?;
                    pending.push(child);
                } else if copies.seen.insert(child.id) {
                    let work = self.private.next_name();
                    copies.has_data |= self.copy_to_work(&child, &work, Data::Attributes, false)?;
                    copies.made.push((child, work));
                }
            }
        }
        Ok(())
    }

    /// What of a directory is to be copied, or may have something below it that is.
    fn children_to_copy(&self, directory: &Arc<Node>) -> Result<Vec<Arc<Node>>> {
        let _shared = self.shared();
        let active = self.active();
        let mut children = Vec::new();
        // Where no layer has the directory, all below it is private.
        if self.lower(&active, directory).is_none() {
            return Ok(children);
        }
        for listed in self.names(&active, directory)? {
            let object = self.find(&active, directory, &listed.name)?;
            let is_directory = listed.kind == FileType::Directory;
            if is_directory || matches!(object, Object::Layer { .. }) {
                children.push(self.intern(&active, directory, &listed.name, &object)?);
            }
        }
        Ok(children)
    }

    /// Whether nothing at or below a directory comes from a layer.
    fn is_all_private(&self, active: &Arc<ActiveSet>, node: &Arc<Node>) -> Result<bool> {
        let Some(at) = self.lower(active, node) else { return Ok(true) };
        let Some(top) = self.directory(node)? else { return Ok(false) };
        // By paths: a directory may have more of them in it than there are descriptors.
        let mut pending = vec![(at, Vec::new())];
        while let Some((at, path)) = pending.pop() {
            let directory = backing::open_directory(&*top, &path)?;
            for (child, entry) in active.union.children(at) {
                match backing::stat_at(&directory, entry.name) {
                    Err(Errno::NOENT) => return Ok(false),
                    Err(error) => return Err(error),
                    // A private object that is no directory obscures all below it.
                    Ok(stat)
                        if entry.is_directory()
                            && FileType::from_raw_mode(stat.st_mode) == FileType::Directory =>
                    {
                        let below = match &path[..] {
                            [] => entry.name.to_vec(),
                            path => [path, b"/", entry.name].concat(),
                        };
                        pending.push((child, below));
                    }
                    Ok(_) => {}
                }
            }
        }
        active.sound()?;
        Ok(true)
    }

    /// The rename itself, of private objects. `false`: something is not private
    /// any more or not yet, try again.
    fn rename_private(&self, from: End<'_>, to: End<'_>, mode: Mode) -> Result<bool> {
        let active = self.active();
        let parent = self.directory_node(from.parent)?;
        let new_parent = self.directory_node(to.parent)?;
        let ready = |node: &Arc<Node>| -> Result<bool> {
            Ok(node.is_private()
                && (node.kind != FileType::Directory || self.is_all_private(&active, node)?))
        };
        let found = self.find(&active, &parent, from.name)?;
        let source = self.intern(&active, &parent, from.name, &found)?;
        if !ready(&source)? {
            return Ok(false);
        }
        let target = match self.find(&active, &new_parent, to.name) {
            Ok(object) => Some(self.intern(&active, &new_parent, to.name, &object)?),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error),
        };
        match (&target, mode) {
            (Some(_), Mode::NoReplace) => return Err(Errno::EXIST),
            (None, Mode::Exchange) => return Err(Errno::NOENT),
            (Some(target), Mode::Exchange) if !ready(target)? => return Ok(false),
            (Some(target), Mode::Replace) => {
                self.check_replaceable(&active, &source, target)?;
                if target.kind == FileType::Directory && !target.is_private() {
                    return Ok(false);
                }
            }
            _ => {}
        }
        let directory = self.private_directory(&active, &parent)?;
        let new_directory = self.private_directory(&active, &new_parent)?;
        self.prepare_to_hide(&active, &new_parent, to.name)?;
        self.hide(&active, &parent, from.name)?;
        let over_directory = target.as_ref().is_some_and(|t| t.kind == FileType::Directory);
        if mode == Mode::Exchange || over_directory {
            self.hide(&active, &new_parent, to.name)?;
        }
        let orphan = match &target {
            Some(target) if mode != Mode::Exchange => {
                self.target_orphan(target, &new_parent, to)?
            }
            _ => None,
        };
        let flags =
            if mode == Mode::Exchange { RenameFlags::EXCHANGE } else { RenameFlags::empty() };
        let (old, new) = ((&directory, from.name), (&new_directory, to.name));
        let loses_its_name = target.as_ref().filter(|_| mode != Mode::Exchange && over_directory);
        if let Some(target) = loses_its_name {
            self.pin(target)?;
        }
        let renamed = {
            let _source = source.place.write().expect("no panic while held");
            self.private.disk.rename(old, new, flags)
        };
        if let (Err(_), Some(target)) = (&renamed, loses_its_name) {
            self.unpin(target);
        }
        renamed?;
        // That was it: from here on nothing may fail.
        if let Some((_, inode)) = orphan {
            self.owes_nothing(inode);
        }
        // The private file obscures what it replaced; that it did is noted for `diff`.
        if let Err(error) = self.hide(&active, &new_parent, to.name) {
            tracing::warn!(%error, "what a rename replaced has no white-out: `diff` does not show it");
        }
        self.move_names(
            (&parent, from.name),
            (&new_parent, to.name),
            &source,
            target,
            orphan.map(|(orphan, _)| orphan),
            mode,
        );
        Ok(true)
    }

    fn check_replaceable(
        &self,
        active: &Arc<ActiveSet>,
        source: &Arc<Node>,
        target: &Arc<Node>,
    ) -> Result<()> {
        match (source.kind == FileType::Directory, target.kind == FileType::Directory) {
            (true, false) => Err(Errno::NOTDIR),
            (false, true) => Err(Errno::ISDIR),
            (true, true) if !self.names(active, target)?.is_empty() => Err(Errno::NOTEMPTY),
            _ => Ok(()),
        }
    }

    /// Holds a private file that is about to lose its last name; with its inode number.
    fn target_orphan(
        &self,
        target: &Arc<Node>,
        parent: &Arc<Node>,
        to: End<'_>,
    ) -> Result<Option<(Upper, u64)>> {
        if target.kind == FileType::Directory {
            return Ok(None);
        }
        let Some((stat, _)) = self.private_stat(target)? else { return Ok(None) };
        if stat.st_nlink > 1 {
            return Ok(None);
        }
        let directory = self.directory(parent)?.ok_or(Errno::STALE)?;
        let flags = rustix::fs::OFlags::PATH;
        let fd = backing::open_beneath(&directory, to.name, flags, rustix::fs::Mode::empty())?;
        Ok(Some((Upper::Orphan(Arc::new(affordable(fd)?)), stat.st_ino)))
    }

    fn move_names(
        &self,
        (parent, name): (&Arc<Node>, &[u8]),
        (new_parent, new_name): (&Arc<Node>, &[u8]),
        source: &Arc<Node>,
        target: Option<Arc<Node>>,
        orphan: Option<Upper>,
        mode: Mode,
    ) {
        let rename = |node: &Arc<Node>, from: (&Arc<Node>, &[u8]), to: (&Arc<Node>, &[u8])| {
            let mut place = node.place.write().expect("no panic while held");
            place.names.retain(|(p, n)| p.id != from.0.id || **n != *from.1);
            place.names.push((to.0.clone(), to.1.into()));
            drop(place);
            node.unresolve();
        };
        let drop_name = |node: &Arc<Node>, at: (&Arc<Node>, &[u8])| {
            let mut place = node.place.write().expect("no panic while held");
            place.names.retain(|(p, n)| p.id != at.0.id || **n != *at.1);
        };
        self.table.remove_child(parent.id, name);
        if let Some(target) = &target {
            drop_name(target, (new_parent, new_name));
            self.table.remove_child(new_parent.id, new_name);
        }
        rename(source, (parent, name), (new_parent, new_name));
        self.table.set_child(new_parent.id, new_name, source);
        let Some(target) = target else { return };
        if mode == Mode::Exchange {
            let mut place = target.place.write().expect("no panic while held");
            place.names.push((parent.clone(), name.into()));
            drop(place);
            self.table.set_child(parent.id, name, &target);
        } else if let Some(orphan) = orphan {
            target.place.write().expect("no panic while held").upper = orphan;
        } else {
            self.note_replaced(&target);
        }
        target.unresolve();
    }

    /// A layer's file that was replaced keeps its attributes for who has it open.
    fn note_replaced(&self, target: &Arc<Node>) {
        let lower = target.lower.lock().expect("no panic while held");
        let last = lower.last.as_ref().and_then(|(set, at)| Some((set.upgrade()?, *at)));
        drop(lower);
        let Some((set, at)) = last else { return };
        let Some(entry) = set.union.entry(at) else { return };
        let mut place = target.place.write().expect("no panic while held");
        if place.names.is_empty() && matches!(place.upper, Upper::None) {
            place.removed = Some(super::Attr::of_entry(&entry, 0));
        }
    }
}
