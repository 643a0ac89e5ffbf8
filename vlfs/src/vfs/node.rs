//! Nodes: the objects that the kernel knows by number, and the table of them.
//!
//! A node's number is a key of this table alone. What people see as `st_ino`
//! ([`Node::ino`]) is the object's identity, which two nodes share for a while
//! when a file is copied while the kernel reads the original through (see
//! `file.rs`, *successor*).

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use rustix::fs::FileType;

use super::file::{Backing, FileHandle};
use super::held::PrivateDirectory;
use super::{ActiveSet, Attr};

/// Number of the root node, as FUSE has it.
pub const ROOT_ID: u64 = 1;

/// Where the private layer holds an object.
#[derive(Debug, Clone)]
pub enum Upper {
    None,
    /// A file or link at the node's names; `inode` of the backing file system.
    File {
        inode: u64,
    },
    /// A directory. It stays after the directory is removed.
    Directory(Arc<PrivateDirectory>),
    /// A file whose last name is gone.
    Orphan(Arc<OwnedFd>),
}

/// Names of an object and its private copy, kept in step.
#[derive(Debug)]
pub struct Place {
    /// Known names: a directory has one, a file may have hard links.
    pub names: Vec<(Arc<Node>, Box<[u8]>)>,
    pub upper: Upper,
    /// Last attributes of an object of a layer whose last name is gone.
    pub removed: Option<Attr>,
}

/// Where the active set shows an object, as of an epoch.
#[derive(Debug, Default)]
pub struct Lower {
    pub epoch: u64,
    pub at: Option<u32>,
    /// The last set that showed it, while somebody keeps that set.
    pub last: Option<(Weak<ActiveSet>, u32)>,
}

/// What is open of a file.
#[derive(Debug, Default)]
pub struct Files {
    pub backing: Option<Arc<Backing>>,
    pub open: Vec<Weak<FileHandle>>,
    /// The node that stands for the private copy, when this one's open files
    /// still read the original.
    pub successor: Option<Arc<Node>>,
}

impl Files {
    pub fn is_open(&mut self) -> bool {
        self.open.retain(|handle| handle.strong_count() > 0);
        !self.open.is_empty()
    }
}

#[derive(Debug)]
pub struct Node {
    pub id: u64,
    pub ino: u64,
    pub kind: FileType,
    pub place: RwLock<Place>,
    pub lower: Mutex<Lower>,
    pub files: Mutex<Files>,
    /// Held while the object is copied to the private layer.
    pub copying: Mutex<()>,
    /// Set by a removal of the listing's validity: see `directory.rs`.
    pub listing_epoch: AtomicU64,
    /// A file that was made here and was never given an extended attribute.
    pub bare: AtomicBool,
    /// A private copy that a revert dropped: a name that still leads here is out of date.
    pub reverted: AtomicBool,
    /// Its place among the files that are kept open: see `kept.rs`.
    pub kept_turn: AtomicU64,
    /// A directory that hands nothing down, neither group nor ACL, as of this
    /// count of [`Vfs::directory_changes`](super::Vfs); 0 where that is not known.
    pub plain_at: AtomicU64,
    /// Private subdirectories that no layer has, as counted last: see `attr.rs`.
    pub counted: Mutex<Option<Counted>>,
    /// It was found at several names: see [`Table::linked`].
    has_links: AtomicBool,
    /// A flush of this private copy has seen to its names too: see `file.rs`.
    pub flushed: AtomicBool,
}

/// A count of subdirectories and what it was made from.
#[derive(Debug, Clone, Copy)]
pub struct Counted {
    pub epoch: u64,
    /// [`Vfs::directories_made`](super::Vfs) at that time.
    pub made: u64,
    pub own: u32,
}

impl Node {
    pub fn is_private(&self) -> bool {
        !matches!(self.place.read().expect("no panic while held").upper, Upper::None)
    }

    /// A name of the object; `None` once the last is gone, and for the root.
    pub fn name(&self) -> Option<(Arc<Node>, Box<[u8]>)> {
        self.place.read().expect("no panic while held").names.last().cloned()
    }

    pub fn successor(&self) -> Option<Arc<Node>> {
        self.files.lock().expect("no panic while held").successor.clone()
    }

    /// Where the active set shows the object, if it was looked for in this epoch.
    pub fn known_lower(&self, epoch: u64) -> Option<Option<u32>> {
        if self.id == ROOT_ID {
            return Some(Some(crate::union::ROOT));
        }
        let lower = self.lower.lock().expect("no panic while held");
        (lower.epoch == epoch).then_some(lower.at)
    }

    pub fn note_lower(&self, active: &Arc<ActiveSet>, epoch: u64, at: Option<u32>) {
        let mut lower = self.lower.lock().expect("no panic while held");
        lower.epoch = epoch;
        lower.at = at;
        if let Some(at) = at {
            lower.last = Some((Arc::downgrade(active), at));
        }
    }

    /// Forgets where the active set shows the object, so that it is looked for again.
    pub fn unresolve(&self) {
        self.lower.lock().expect("no panic while held").epoch = 0;
    }
}

/// The node that stands for an object now.
pub fn current(mut node: Arc<Node>) -> Arc<Node> {
    while let Some(next) = node.successor() {
        node = next;
    }
    node
}

#[derive(Debug, Default)]
struct Inner {
    nodes: HashMap<u64, (Arc<Node>, u64)>,
    children: HashMap<u64, HashMap<Box<[u8]>, Arc<Node>>>,
    /// Files with several names, by identity: a private copy may have that of the
    /// layers' file that it was made from, and both may have several.
    linked: HashMap<u64, Vec<Arc<Node>>>,
}

/// All nodes that the kernel holds, with the names they were found by.
#[derive(Debug)]
pub struct Table {
    inner: Mutex<Inner>,
    next: AtomicU64,
}

impl Table {
    pub fn new(root: Arc<Node>) -> Table {
        let mut inner = Inner::default();
        inner.nodes.insert(ROOT_ID, (root, 1));
        Table { inner: Mutex::new(inner), next: AtomicU64::new(ROOT_ID + 1) }
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while held")
    }

    pub fn new_node(&self, ino: u64, kind: FileType, upper: Upper) -> Arc<Node> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        Arc::new(Node::new(id, ino, kind, upper))
    }

    pub fn get(&self, id: u64) -> Option<Arc<Node>> {
        self.inner().nodes.get(&id).map(|(node, _)| node.clone())
    }

    pub fn child(&self, parent: u64, name: &[u8]) -> Option<Arc<Node>> {
        self.inner().children.get(&parent)?.get(name).cloned()
    }

    /// The known files of an identity that have several names.
    pub fn linked(&self, ino: u64) -> Vec<Arc<Node>> {
        self.inner().linked.get(&ino).cloned().unwrap_or_default()
    }

    pub fn set_linked(&self, node: &Arc<Node>) {
        self.inner().set_linked(node);
    }

    /// Notes that `node` was found at a name. Returns the node that had it before.
    pub fn set_child(&self, parent: u64, name: &[u8], node: &Arc<Node>) -> Option<Arc<Node>> {
        let mut inner = self.inner();
        let before = inner.children.entry(parent).or_default().insert(name.into(), node.clone());
        before.filter(|before| before.id != node.id)
    }

    pub fn remove_child(&self, parent: u64, name: &[u8]) -> Option<Arc<Node>> {
        let mut inner = self.inner();
        let children = inner.children.get_mut(&parent)?;
        let removed = children.remove(name);
        if children.is_empty() {
            inner.children.remove(&parent);
        }
        removed
    }

    /// Counts one reference that the kernel holds, or the node's predecessor.
    pub fn reference(&self, node: &Arc<Node>) {
        let mut inner = self.inner();
        let known = inner.nodes.entry(node.id).or_insert_with(|| (node.clone(), 0));
        known.1 += 1;
        if known.1 == 1 {
            // Between its lookup and now, the kernel may have forgotten it.
            inner.restore_names(node);
        }
    }

    /// Takes references back; with the last the node leaves the table, and its hold on
    /// its successor goes.
    pub fn forget(&self, id: u64, count: u64) {
        let mut next = Some((id, count));
        while let Some((id, count)) = next {
            next = self.forget_one(id, count).map(|successor| (successor.id, 1));
        }
    }

    /// The successor of a node that left.
    fn forget_one(&self, id: u64, count: u64) -> Option<Arc<Node>> {
        let mut inner = self.inner();
        let (node, references) = inner.nodes.get_mut(&id)?;
        *references = references.saturating_sub(count);
        if *references > 0 || id == ROOT_ID {
            return None;
        }
        let node = node.clone();
        inner.nodes.remove(&id);
        inner.drop_names(&node);
        drop(inner);
        let mut files = node.files.lock().expect("no panic while held");
        files.backing = None;
        files.successor.clone()
    }

    /// Drops the names of a node that the kernel holds no reference to.
    pub fn release(&self, node: &Arc<Node>) {
        let mut inner = self.inner();
        if !inner.nodes.contains_key(&node.id) {
            inner.drop_names(node);
        }
    }

    /// Number of nodes that the kernel holds.
    pub fn count(&self) -> usize {
        self.inner().nodes.len()
    }

    /// The nodes that the kernel knows below a directory, by name.
    pub fn children(&self, parent: u64) -> Vec<(Box<[u8]>, Arc<Node>)> {
        let inner = self.inner();
        let children = inner.children.get(&parent);
        children.into_iter().flatten().map(|(name, node)| (name.clone(), node.clone())).collect()
    }

    /// The nodes of private files that the kernel knows, by inode number.
    pub fn private_files(&self) -> HashMap<u64, Arc<Node>> {
        let nodes: Vec<_> = self.inner().nodes.values().map(|(node, _)| node.clone()).collect();
        let inode = |node: &Node| match node.place.read().expect("no panic while held").upper {
            Upper::File { inode } => Some(inode),
            Upper::None | Upper::Directory(_) | Upper::Orphan(_) => None,
        };
        nodes.into_iter().map(current).filter_map(|node| Some((inode(&node)?, node))).collect()
    }

    /// The node that the kernel knows at a path.
    pub fn find(&self, path: &[u8]) -> Option<Arc<Node>> {
        let inner = self.inner();
        let mut node = inner.nodes.get(&ROOT_ID)?.0.clone();
        if path.is_empty() {
            return Some(node);
        }
        for name in path.split(|b| *b == b'/') {
            node = inner.children.get(&node.id)?.get(name)?.clone();
        }
        Some(node)
    }
}

/// What the table holds, for a successor.
pub struct Dump {
    /// With the kernel's references.
    pub nodes: Vec<(Arc<Node>, u64)>,
    pub children: Vec<(u64, Box<[u8]>, Arc<Node>)>,
    pub linked: Vec<Arc<Node>>,
    pub next: u64,
}

impl Table {
    pub fn dump(&self) -> Dump {
        let inner = self.inner();
        let children = inner.children.iter().flat_map(|(parent, children)| {
            children.iter().map(|(name, node)| (*parent, name.clone(), node.clone()))
        });
        Dump {
            nodes: inner.nodes.values().cloned().collect(),
            children: children.collect(),
            linked: inner.linked.values().flatten().cloned().collect(),
            next: self.next.load(Ordering::Relaxed),
        }
    }

    /// Files that the kernel reads and writes itself.
    pub fn count_backings(&self) -> usize {
        let nodes: Vec<_> = self.inner().nodes.values().map(|(node, _)| node.clone()).collect();
        let registered = |node: &&Arc<Node>| {
            let files = node.files.lock().expect("no panic while held");
            files.backing.as_ref().is_some_and(|backing| backing.id.is_some())
        };
        nodes.iter().filter(registered).count()
    }

    /// Puts a node in with as many references as the kernel holds.
    pub fn insert(&self, node: &Arc<Node>, references: u64) {
        self.inner().nodes.insert(node.id, (node.clone(), references));
    }

    /// The next new node gets this number.
    pub fn continue_from(&self, next: u64) {
        self.next.store(next, Ordering::Relaxed);
    }
}

impl Inner {
    fn set_linked(&mut self, node: &Arc<Node>) {
        node.has_links.store(true, Ordering::Release);
        let linked = self.linked.entry(node.ino).or_default();
        if linked.iter().all(|known| known.id != node.id) {
            linked.push(node.clone());
        }
    }

    /// Takes [`Inner::drop_names`] back. A name that another node has by now stays that one's.
    fn restore_names(&mut self, node: &Arc<Node>) {
        let names = node.place.read().expect("no panic while held").names.clone();
        for (parent, name) in names {
            let children = self.children.entry(parent.id).or_default();
            children.entry(name).or_insert_with(|| node.clone());
        }
        if node.has_links.load(Ordering::Acquire) {
            self.set_linked(node);
        }
    }

    fn drop_names(&mut self, node: &Arc<Node>) {
        let names = node.place.read().expect("no panic while held").names.clone();
        for (parent, name) in &names {
            if let Some(children) = self.children.get_mut(&parent.id) {
                if children.get(&**name).is_some_and(|found| found.id == node.id) {
                    children.remove(&**name);
                }
                if children.is_empty() {
                    self.children.remove(&parent.id);
                }
            }
        }
        if let Some(linked) = self.linked.get_mut(&node.ino) {
            linked.retain(|found| found.id != node.id);
            if linked.is_empty() {
                self.linked.remove(&node.ino);
            }
        }
    }
}

impl Node {
    pub fn new(id: u64, ino: u64, kind: FileType, upper: Upper) -> Node {
        Node {
            id,
            ino,
            kind,
            place: RwLock::new(Place { names: Vec::new(), upper, removed: None }),
            lower: Mutex::default(),
            files: Mutex::default(),
            copying: Mutex::new(()),
            listing_epoch: AtomicU64::new(0),
            bare: AtomicBool::new(false),
            reverted: AtomicBool::new(false),
            kept_turn: AtomicU64::new(0),
            plain_at: AtomicU64::new(0),
            counted: Mutex::default(),
            has_links: AtomicBool::new(false),
            flushed: AtomicBool::new(false),
        }
    }
}

/// A node keeps those above it, however many: they go one after the other.
impl Drop for Node {
    fn drop(&mut self) {
        let mut pending = self.take_nodes();
        while let Some(node) = pending.pop() {
            if let Some(mut node) = Arc::into_inner(node) {
                pending.extend(node.take_nodes());
            }
        }
    }
}

impl Node {
    fn take_nodes(&mut self) -> Vec<Arc<Node>> {
        let place = self.place.get_mut().unwrap_or_else(PoisonError::into_inner);
        let files = self.files.get_mut().unwrap_or_else(PoisonError::into_inner);
        let above = std::mem::take(&mut place.names).into_iter().map(|(parent, _)| parent);
        above.chain(files.successor.take()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_hold_each_other_deeper_than_a_stack_go() {
        let mut above = Arc::new(Node::new(ROOT_ID, 1, FileType::Directory, Upper::None));
        let top = Arc::downgrade(&above);
        for id in 2..200_000 {
            let node = Node::new(id, id, FileType::Directory, Upper::None);
            node.place.write().expect("no panic").names.push((above, b"d".as_slice().into()));
            above = Arc::new(node);
        }
        drop(above);
        assert_eq!(top.strong_count(), 0);
    }

    fn node(table: &Table, ino: u64, kind: FileType, parent: &Arc<Node>, name: &[u8]) -> Arc<Node> {
        let node = table.new_node(ino, kind, Upper::None);
        node.place.write().expect("no panic").names.push((parent.clone(), name.into()));
        table.set_child(parent.id, name, &node);
        node
    }

    fn table() -> (Table, Arc<Node>) {
        let root = Arc::new(Node::new(ROOT_ID, 1, FileType::Directory, Upper::None));
        (Table::new(root.clone()), root)
    }

    /// A lookup finds a node, the kernel gives its last reference back, and then the
    /// lookup is answered: swaps must still find the directory by its path.
    #[test]
    fn a_node_that_was_forgotten_while_it_was_looked_up_is_found_again() {
        let (table, root) = table();
        let directory = node(&table, 2, FileType::Directory, &root, b"d");
        table.reference(&directory);
        let file = node(&table, 3, FileType::RegularFile, &directory, b"f");
        table.set_linked(&file);
        table.reference(&file);
        for known in [&file, &directory] {
            table.forget(known.id, 1);
        }
        assert!(table.find(b"d").is_none() && table.linked(3).is_empty());
        for known in [&directory, &file] {
            table.reference(known);
        }
        assert_eq!(table.find(b"d/f").map(|found| found.id), Some(file.id));
        assert_eq!(table.linked(3).len(), 1);
    }

    #[test]
    fn a_name_that_another_node_has_by_now_stays_its_own() {
        let (table, root) = table();
        let first = node(&table, 2, FileType::RegularFile, &root, b"f");
        table.reference(&first);
        table.forget(first.id, 1);
        let second = node(&table, 3, FileType::RegularFile, &root, b"f");
        table.reference(&second);
        table.reference(&first);
        assert_eq!(table.find(b"f").map(|found| found.id), Some(second.id));
    }
}
