//! The file system proper: every operation as a plain function with an errno.
//!
//! No FUSE here: `fuse/` calls these functions, and so do the tests. A node is
//! looked up, then acted upon by number, as the FUSE protocol has it.
//!
//! Locks, in this order: `namespace`, a node's `copying`, a node's `place`, then
//! the short ones (`lower`, `files`, the table). `namespace` is held shared by
//! every operation on names, for a few system calls on metadata, and
//! exclusively by what moves whole trees: the rename of a directory, the pointer
//! exchange of a swap, a revert. No lock is held while file data is copied, read
//! or written, nor while the kernel is notified.
//!
//! The order of steps makes a crash harmless: (1) an object is copied to the
//! private layer in place, by one rename, which changes nothing that is seen;
//! (2) white-outs are written where a private object obscures the path already;
//! (3) one rename or unlink in the private layer is the change itself. Where
//! nothing obscures it, the lowest layer is hidden first and the top one last.

mod attr;
mod borrowed;
mod copy_up;
mod directory;
pub mod file;
pub mod handover;
mod held;
mod kept;
mod namespace;
pub mod node;
pub mod rename;
mod revert;
mod revert_tree;
mod swap;
mod xattr;

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock, RwLockReadGuard, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustix::fs::{FileType, Stat};
pub use rustix::io::Errno;

pub use attr::{Attr, SetAttr, SetTime};
pub use borrowed::SwapError;
pub use directory::{DirectoryHandle, Listed};
pub use file::{FileHandle, Opened};
pub use revert::Reverted;
pub use revert_tree::RevertedTree;
pub use swap::{SetInfo, SwapOutcome};

use crate::backing;
use crate::gauges::Longest;
use crate::index::overlay::Hiding;
use crate::layer::{Layer, LayerSet};
use crate::private::{self, Private};
use crate::tree::{self, Kind};
use crate::union::Union;
use crate::verify::first_open::FirstOpen;
use held::{Held, PrivateDirectory};
use kept::Kept;
use node::{Node, ROOT_ID, Table, Upper};

pub type Result<T> = std::result::Result<T, Errno>;

/// How long the kernel may keep a name or attributes without asking: a day.
/// Whatever changes them otherwise tells the kernel.
const LONG: Duration = Duration::from_secs(86_400);
/// How long a request that began before a swap may take to be answered with
/// the old set; for so long that set is kept.
pub const GRACE: Duration = Duration::from_millis(250);
/// Backing files kept open without a handle, most recent ones: opening a file of
/// a layer again then costs no system call but the kernel's own. At most a
/// quarter of the descriptors that the process may have.
const KEPT_BACKINGS: usize = 32_768;

/// One layer set with its merged index. Immutable but for hidden paths.
#[derive(Debug)]
pub struct ActiveSet {
    /// Topmost first.
    pub layers: Vec<Arc<Layer>>,
    pub union: Union,
    pub info: SetInfo,
}

impl ActiveSet {
    /// A layer set with what the private layer hides in it.
    pub fn build(
        set: LayerSet,
        hidden: &std::collections::BTreeMap<private::UnitKey, crate::whiteout::WhiteoutTree>,
        info: SetInfo,
    ) -> ActiveSet {
        let layers = set.layers.iter();
        let hiding = layers.map(|layer| Hiding {
            hidden: hidden.get(&layer.unit),
            hides_below: layer.hides_below.as_ref(),
        });
        let union = Union::build(set.index.clone(), &hiding.collect::<Vec<_>>());
        ActiveSet { layers: set.layers, union, info }
    }

    /// Why a name is not found: it is not there, or nobody can tell.
    fn missing(&self) -> Errno {
        if self.union.is_damaged() { Errno::IO } else { Errno::NOENT }
    }

    /// Answers were taken from the index: they hold only if it does.
    fn sound(&self) -> Result<()> {
        if self.union.is_damaged() { Err(Errno::IO) } else { Ok(()) }
    }

    /// The paths of layers that are plain directories.
    pub fn directories(&self) -> Vec<std::path::PathBuf> {
        let plain = self.layers.iter().filter(|layer| layer.digest.is_none());
        plain.map(|layer| layer.name.as_str().into()).collect()
    }

    /// The layers with their index, without what is hidden in them.
    pub fn set(&self) -> LayerSet {
        LayerSet { layers: self.layers.clone(), index: self.union.index().clone() }
    }
}

/// Who asks. `umask` applies to new objects.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub umask: u32,
}

/// The answer to a lookup and to everything that makes a name.
#[derive(Debug, Clone)]
pub struct Found {
    pub id: u64,
    pub attr: Attr,
    pub entry_valid: Duration,
    pub attr_valid: Duration,
}

/// Handing files to the kernel, so that data does not pass through the daemon.
pub trait Passthrough: Send + Sync + std::fmt::Debug {
    /// Registers an open file. Returns the kernel's number for it.
    fn open(&self, file: BorrowedFd<'_>) -> Result<i32>;
    fn close(&self, backing_id: i32) -> Result<()>;
}

/// What the kernel should be told. Sent to a thread of its own (`notify.rs`).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Notice {
    /// A name must be looked up again at its next use; what is mounted there stays.
    Expire { parent: u64, name: Box<[u8]> },
    /// Attributes, pages and listings of a node are not to be trusted.
    Invalidate { node: u64 },
}

/// The way to the thread that notifies the kernel.
pub trait Notify: Send + Sync {
    /// Queues notices. Does not wait and does not call back.
    fn send(&self, notices: Vec<Notice>);
    /// Waits until the kernel has taken what was queued before. Never from a
    /// request, and never with a lock held: the kernel may wait for a request.
    fn flush(&self);
}

/// A mounted virtual layered file system.
pub struct Vfs {
    active: ArcSwap<ActiveSet>,
    /// Counts changes of what directories are merged from: swaps and directory renames.
    epoch: AtomicU64,
    /// Counts directories that were made, copied or removed in the private layer.
    directories_made: AtomicU64,
    /// Counts changes of directories' own attributes, from 1.
    directory_changes: AtomicU64,
    /// While set, the kernel is told to keep nothing: a swap is under way.
    unsettled: AtomicBool,
    table: Table,
    private: Private,
    namespace: RwLock<()>,
    swapping: Mutex<()>,
    passthrough: OnceLock<Arc<dyn Passthrough>>,
    notify: OnceLock<Box<dyn Notify>>,
    /// Path of the control socket, for who finds the mount and wants to talk.
    control: OnceLock<std::path::PathBuf>,
    /// Set where layers' files are checked at their first open.
    first_open: OnceLock<FirstOpen>,
    files: RwLock<HashMap<u64, Arc<FileHandle>>>,
    directories: RwLock<HashMap<u64, Arc<DirectoryHandle>>>,
    next_handle: AtomicU64,
    kept: Kept,
    held: Held,
    /// Sets that were swapped away, with their layers, for as long as requests
    /// that began before the swap may still be under way.
    retired: Mutex<Vec<(Instant, Arc<ActiveSet>)>>,
    /// Layers of former sets: alive while something holds them.
    unlinked: Mutex<Vec<Weak<Layer>>>,
    swaps: AtomicU64,
    /// Data directories are being mounted: the daemon must not be replaced.
    unfinished: AtomicBool,
    /// How long a swap kept names from being looked at.
    pub longest_exchange: Longest,
}

impl std::fmt::Debug for Vfs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vfs").field("private", &self.private.path()).finish_non_exhaustive()
    }
}

/// An object as a lookup finds it.
enum Object {
    Private { stat: Stat, ino: u64 },
    Layer { at: u32 },
}

impl Vfs {
    /// The file system of these layers (topmost first) and this private layer.
    /// White-outs of units that are not in the set are dropped: those units
    /// were swapped away while nothing was mounted (§5.5).
    pub fn new(private: Private, set: LayerSet, info: SetInfo) -> Result<Vfs> {
        let gone = private.forget_pairs(|unit| set.layers.iter().any(|layer| layer.unit == *unit));
        private.drop_pairs(&gone)?;
        let active = ActiveSet::build(set, &private.hidden(), info);
        let upper = backing::open_directory(&private.upper, b"")?;
        let inode = rustix::fs::fstat(&upper)?.st_ino;
        let upper = Arc::new(PrivateDirectory::pinned(inode, Arc::new(upper)));
        let root = Arc::new(Node::new(
            ROOT_ID,
            tree::ROOT_IDENTITY,
            FileType::Directory,
            Upper::Directory(upper),
        ));
        let vfs = Vfs {
            active: ArcSwap::from_pointee(active),
            epoch: AtomicU64::new(1),
            directories_made: AtomicU64::new(0),
            directory_changes: AtomicU64::new(1),
            unsettled: AtomicBool::new(false),
            table: Table::new(root),
            private,
            namespace: RwLock::new(()),
            swapping: Mutex::new(()),
            passthrough: OnceLock::new(),
            notify: OnceLock::new(),
            control: OnceLock::new(),
            first_open: OnceLock::new(),
            files: RwLock::default(),
            directories: RwLock::default(),
            next_handle: AtomicU64::new(1),
            kept: Kept::new(kept_limit()),
            held: Held::default(),
            retired: Mutex::default(),
            unlinked: Mutex::default(),
            swaps: AtomicU64::new(0),
            unfinished: AtomicBool::new(false),
            longest_exchange: Longest::default(),
        };
        vfs.adopt_root_attributes()?;
        Ok(vfs)
    }

    /// Lets file data go through the kernel from now on. Call before any open.
    pub fn set_passthrough(&self, passthrough: Arc<dyn Passthrough>) {
        let _kept_the_first = self.passthrough.set(passthrough);
    }

    pub fn set_notify(&self, notify: Box<dyn Notify>) {
        let _kept_the_first = self.notify.set(notify);
    }

    pub fn set_control(&self, path: std::path::PathBuf) {
        let _kept_the_first = self.control.set(path);
    }

    /// Checks each layer file's content at its first open from now on.
    pub fn set_first_open(&self) {
        self.first_open.get_or_init(FirstOpen::default);
    }

    pub fn first_open(&self) -> Option<&FirstOpen> {
        self.first_open.get()
    }

    pub fn private(&self) -> &Private {
        &self.private
    }

    pub fn active(&self) -> Arc<ActiveSet> {
        self.active.load_full()
    }

    fn notify(&self, notices: Vec<Notice>) {
        if let Some(notify) = self.notify.get() {
            notify.send(notices);
        }
    }

    fn flush_notices(&self) {
        if let Some(notify) = self.notify.get() {
            notify.flush();
        }
    }

    fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.namespace.read().expect("no panic while held")
    }

    fn node(&self, id: u64) -> Result<Arc<Node>> {
        self.table.get(id).map(node::current).ok_or(Errno::STALE)
    }

    fn directory_node(&self, id: u64) -> Result<Arc<Node>> {
        let node = self.node(id)?;
        if node.kind == FileType::Directory { Ok(node) } else { Err(Errno::NOTDIR) }
    }

    /// Where the active set shows a node's object: by its names, from the root.
    fn lower(&self, active: &Arc<ActiveSet>, node: &Node) -> Option<u32> {
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
    fn lower_or_retired(
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
    fn original(&self, active: &Arc<ActiveSet>, node: &Node) -> Option<(Arc<ActiveSet>, u32)> {
        self.lower_or_retired(active, node).or_else(|| {
            let lower = node.lower.lock().expect("no panic while held");
            let (set, at) = lower.last.as_ref()?;
            Some((set.upgrade()?, *at))
        })
    }

    /// Finds a name in a directory: in the private layer first.
    fn find(&self, active: &Arc<ActiveSet>, parent: &Arc<Node>, name: &[u8]) -> Result<Object> {
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
    fn intern(
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
    fn replace_child(&self, parent: &Arc<Node>, name: &[u8], node: &Arc<Node>) {
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

    fn lookup_in(&self, active: &Arc<ActiveSet>, parent: &Arc<Node>, name: &[u8]) -> Result<Found> {
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
    fn found(&self, active: &Arc<ActiveSet>, node: Arc<Node>, object: &Object) -> Result<Found> {
        let attr = match object {
            Object::Private { stat, .. } if node.kind != FileType::Directory => {
                Attr::of_stat(stat, node.ino)
            }
            Object::Private { .. } | Object::Layer { .. } => self.attr_of(active, &node)?,
        };
        self.referenced(node, attr)
    }

    fn found_node(&self, active: &Arc<ActiveSet>, node: Arc<Node>) -> Result<Found> {
        let attr = self.attr_of(active, &node)?;
        self.referenced(node, attr)
    }

    fn referenced(&self, node: Arc<Node>, attr: Attr) -> Result<Found> {
        self.table.reference(&node);
        let valid = self.valid();
        Ok(Found { id: node.id, attr, entry_valid: valid, attr_valid: valid })
    }

    /// How long an answer given now may be kept.
    pub fn valid(&self) -> Duration {
        if self.unsettled.load(Ordering::Acquire) { Duration::ZERO } else { LONG }
    }

    /// The kernel gives references back.
    pub fn forget(&self, id: u64, count: u64) {
        self.table.forget(id, count);
    }

    /// Space of the private layer's disk.
    pub fn statfs(&self) -> Result<rustix::fs::StatVfs> {
        rustix::fs::fstatvfs(self.private.root())
    }

    /// Numbers for `status`: nodes the kernel knows, open files, open directories.
    pub fn counts(&self) -> (usize, usize, usize) {
        let files = self.files.read().expect("no panic while held").len();
        let directories = self.directories.read().expect("no panic while held").len();
        (self.table.count(), files, directories)
    }

    pub fn has_passthrough(&self) -> bool {
        self.passthrough.get().is_some()
    }

    /// Files that are kept open without a handle, at most.
    pub fn kept_limit(&self) -> usize {
        self.kept.limit()
    }

    pub fn swap_count(&self) -> u64 {
        self.swaps.load(Ordering::Relaxed)
    }
}

fn kept_limit() -> usize {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    descriptors.map_or(KEPT_BACKINGS, |limit| {
        KEPT_BACKINGS.min(usize::try_from(limit / 4).unwrap_or(KEPT_BACKINGS))
    })
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

fn file_type(kind: &Kind<'_>) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::Regular { .. } => FileType::RegularFile,
        Kind::Symlink { .. } => FileType::Symlink,
        Kind::CharacterDevice => FileType::CharacterDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
    }
}
