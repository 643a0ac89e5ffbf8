//! From a name to a node: what a lookup finds, and what the kernel knows it as.
//!
//! A name is looked for in the private layer first, then in the union of the layers. What
//! is found gets the node that the kernel knows already, whichever of its names it was
//! found by, or a new one. Where the active set shows a node is remembered in the node,
//! until what directories are merged from changes.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FileType, Stat};

use super::node::{self, Node, Upper};
use super::{ActiveSet, Attr, Errno, Found, Result, Vfs, file_type};
use crate::{backing, private};

/// An object as a lookup finds it.
pub(super) enum Object {
    Private { stat: Stat, ino: u64 },
    Layer { at: u32 },
}

impl Vfs {
    /// Where the active set shows a node's object: by its names, from the root.
    pub(super) fn lower(&self, active: &Arc<ActiveSet>, node: &Node) -> Option<u32> {
        let epoch = self.epoch.load(Ordering::Acquire);
        if let Some(known) = node.known_lower(epoch) {
            return known;
        }
        let names = node.place.read().expect("no panic while held").names.clone();
        let at = names.iter().find_map(|(parent, name)| {
            let above = self.lower_directory(active, parent, epoch)?;
            lower_at(active, node, above, name)
        });
        node.note_lower(active, epoch, at);
        at
    }

    /// As [`Vfs::lower`], for a directory, which has one name at most. A list and no
    /// recursion: it may be deeper than any stack.
    fn lower_directory(
        &self,
        active: &Arc<ActiveSet>,
        directory: &Arc<Node>,
        epoch: u64,
    ) -> Option<u32> {
        let mut unknown = Vec::new();
        let mut node = directory.clone();
        let mut at = loop {
            if let Some(known) = node.known_lower(epoch) {
                break known;
            }
            match node.name() {
                Some((above, name)) => {
                    unknown.push((std::mem::replace(&mut node, above), name));
                }
                None => {
                    node.note_lower(active, epoch, None);
                    break None;
                }
            }
        };
        for (node, name) in unknown.iter().rev() {
            at = at.and_then(|above| lower_at(active, node, above, name));
            node.note_lower(active, epoch, at);
        }
        at
    }

    /// The set and node that show an object: the active one, or one that was
    /// swapped away a moment ago, for a request that began before.
    pub(super) fn lower_or_retired(
        &self,
        active: &Arc<ActiveSet>,
        node: &Node,
    ) -> Option<(Arc<ActiveSet>, u32)> {
        if let Some(at) = self.lower(active, node) {
            return Some((active.clone(), at));
        }
        node.name()?;
        let lower = node.lower.lock().expect("no panic while held");
        let (set, at) = lower.last.as_ref()?;
        Some((set.upgrade()?, *at))
    }

    /// As [`Vfs::lower_or_retired`]; for a file without a name, which only descriptors lead
    /// to, the set and node that showed it last.
    pub(super) fn original(
        &self,
        active: &Arc<ActiveSet>,
        node: &Node,
    ) -> Option<(Arc<ActiveSet>, u32)> {
        self.lower_or_retired(active, node).or_else(|| {
            let lower = node.lower.lock().expect("no panic while held");
            let (set, at) = lower.last.as_ref()?;
            Some((set.upgrade()?, *at))
        })
    }

    /// Finds a name in a directory: in the private layer first.
    pub(super) fn find(
        &self,
        active: &Arc<ActiveSet>,
        parent: &Arc<Node>,
        name: &[u8],
    ) -> Result<Object> {
        if name.len() > 255 {
            return Err(Errno::NAMETOOLONG);
        }
        if let Some(directory) = self.directory(parent)? {
            match backing::stat_at(&directory, name) {
                Ok(stat) => {
                    let stat = self.private.described(stat);
                    let ino = self.private_ino(parent, &directory, name, &stat)?;
                    return Ok(Object::Private { stat, ino });
                }
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        let at = self.lower(active, parent).and_then(|at| active.union.child(at, name));
        match at {
            // What is found may be hidden, if a damaged index could not say so.
            Some(at) => active.sound().map(|()| Object::Layer { at }),
            None => Err(active.missing()),
        }
    }

    /// `st_ino` of a private object: what its copy kept, or its own number, tagged.
    fn private_ino(
        &self,
        parent: &Arc<Node>,
        directory: &OwnedFd,
        name: &[u8],
        stat: &Stat,
    ) -> Result<u64> {
        if let Some(known) = self.table.child(parent.id, name) {
            let place = known.place.read().expect("no panic while held");
            match &place.upper {
                Upper::File { inode } if *inode == stat.st_ino => return Ok(known.ino),
                Upper::Directory(_) if known.kind == FileType::from_raw_mode(stat.st_mode) => {
                    return Ok(known.ino);
                }
                Upper::File { .. } | Upper::Directory(_) | Upper::None | Upper::Orphan(_) => {}
            }
        }
        private::kept_number(directory, name, stat.st_ino)
    }

    /// The node of an object found at a name; makes one when the kernel knows none.
    pub(super) fn intern(
        &self,
        active: &Arc<ActiveSet>,
        parent: &Arc<Node>,
        name: &[u8],
        object: &Object,
    ) -> Result<Arc<Node>> {
        let (ino, kind, several) = match object {
            Object::Private { stat, ino } => {
                let kind = FileType::from_raw_mode(stat.st_mode);
                (*ino, kind, kind != FileType::Directory && stat.st_nlink > 1)
            }
            Object::Layer { at } => {
                let entry = active.union.entry(*at).ok_or(Errno::IO)?;
                (entry.identity, file_type(&entry.kind), entry.has_links)
            }
        };
        let fits = |node: &Arc<Node>| {
            if node.kind != kind || node.ino != ino {
                return false;
            }
            if kind == FileType::Directory {
                return true;
            }
            let place = node.place.read().expect("no panic while held");
            match (&place.upper, object) {
                (Upper::File { inode }, Object::Private { stat, .. }) => *inode == stat.st_ino,
                // Or it was copied while this lookup was under way.
                (Upper::None | Upper::File { .. }, Object::Layer { .. }) => true,
                (Upper::None | Upper::Orphan(_) | Upper::Directory(_), _) => false,
            }
        };
        if let Some(known) = self.table.child(parent.id, name).map(node::current)
            && fits(&known)
        {
            self.adopt_directory(&known, parent, name, object)?;
            return Ok(known);
        }
        // A private copy may have the number of a layer's object: it was made from it
        // when another of its names was obscured, or that one was reverted.
        let is_same = |node: &Arc<Node>| {
            fits(node) && (matches!(object, Object::Private { .. }) || !node.is_private())
        };
        let known = if several { self.table.linked(ino) } else { Vec::new() };
        let node = match known.into_iter().map(node::current).find(is_same) {
            Some(node) => node,
            None => self.make_node(parent, name, object, ino, kind)?,
        };
        {
            let mut place = node.place.write().expect("no panic while held");
            let is_name = |(p, n): &(Arc<Node>, Box<[u8]>)| p.id == parent.id && **n == *name;
            if !place.names.iter().any(is_name) {
                place.names.push((parent.clone(), name.into()));
            }
            place.removed = None;
        }
        node.unresolve();
        if several {
            self.table.set_linked(&node);
        }
        self.replace_child(parent, name, &node);
        Ok(node)
    }

    /// A directory that the kernel knows became private while it was looked up.
    fn adopt_directory(
        &self,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        name: &[u8],
        object: &Object,
    ) -> Result<()> {
        let found = matches!(object, Object::Private { .. });
        if node.kind != FileType::Directory || !found || node.is_private() {
            return Ok(());
        }
        let above = self.directory(parent)?.ok_or(Errno::STALE)?;
        let directory = self.new_directory(&Arc::new(backing::open_directory(&above, name)?))?;
        let mut place = node.place.write().expect("no panic while held");
        if matches!(place.upper, Upper::None) {
            place.upper = Upper::Directory(directory);
        }
        Ok(())
    }

    fn make_node(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        object: &Object,
        ino: u64,
        kind: FileType,
    ) -> Result<Arc<Node>> {
        let upper = match object {
            Object::Layer { .. } => Upper::None,
            Object::Private { .. } if kind == FileType::Directory => {
                let above = self.directory(parent)?.ok_or(Errno::STALE)?;
                Upper::Directory(
                    self.new_directory(&Arc::new(backing::open_directory(&above, name)?))?,
                )
            }
            Object::Private { stat, .. } => Upper::File { inode: stat.st_ino },
        };
        Ok(self.table.new_node(ino, kind, upper))
    }

    /// Gives a name to a node; the node that had it loses it.
    pub(super) fn replace_child(&self, parent: &Arc<Node>, name: &[u8], node: &Arc<Node>) {
        if let Some(before) = self.table.set_child(parent.id, name, node) {
            let mut place = before.place.write().expect("no panic while held");
            place.names.retain(|(p, n)| p.id != parent.id || **n != *name);
            drop(place);
            before.unresolve();
        }
    }

    /// Looks a name up, and counts one reference of the kernel's.
    ///
    /// # Errors
    /// `ENOENT`, and `ESTALE` for a directory that is no longer there.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Found> {
        let _shared = self.shared();
        let active = self.active();
        let parent = self.directory_node(parent)?;
        self.lookup_in(&active, &parent, name)
    }

    pub(super) fn lookup_in(
        &self,
        active: &Arc<ActiveSet>,
        parent: &Arc<Node>,
        name: &[u8],
    ) -> Result<Found> {
        if name == b"." {
            return self.found_node(active, parent.clone());
        }
        if name == b".." {
            let above = parent.name().map_or_else(|| parent.clone(), |(above, _)| above);
            return self.found_node(active, above);
        }
        let object = self.find(active, parent, name)?;
        let node = self.intern(active, parent, name, &object)?;
        self.found(active, node, &object)
    }

    /// The answer for a node, and one reference of the kernel's.
    pub(super) fn found(
        &self,
        active: &Arc<ActiveSet>,
        node: Arc<Node>,
        object: &Object,
    ) -> Result<Found> {
        let attr = match object {
            Object::Private { stat, .. } if node.kind != FileType::Directory => {
                Attr::of_stat(stat, node.ino)
            }
            Object::Private { .. } | Object::Layer { .. } => self.attr_of(active, &node)?,
        };
        self.referenced(node, attr)
    }

    pub(super) fn found_node(&self, active: &Arc<ActiveSet>, node: Arc<Node>) -> Result<Found> {
        let attr = self.attr_of(active, &node)?;
        self.referenced(node, attr)
    }

    fn referenced(&self, node: Arc<Node>, attr: Attr) -> Result<Found> {
        self.table.reference(&node);
        let valid = self.valid();
        Ok(Found { id: node.id, attr, entry_valid: valid, attr_valid: valid })
    }
}

/// The union node of an object at a name of the directory `above`, if it is that object.
fn lower_at(active: &ActiveSet, node: &Node, above: u32, name: &[u8]) -> Option<u32> {
    let at = active.union.child(above, name)?;
    let entry = active.union.entry(at)?;
    let same = match node.kind {
        FileType::Directory => entry.is_directory(),
        _ => entry.identity == node.ino && file_type(&entry.kind) == node.kind,
    };
    same.then_some(at)
}
