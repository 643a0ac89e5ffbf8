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
mod io;
mod kept;
mod lookup;
mod namespace;
pub mod node;
pub mod rename;
mod revert;
mod revert_tree;
mod swap;
mod xattr;

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock, RwLockReadGuard, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustix::fs::FileType;
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
use lookup::Object;
pub use node::ROOT_ID;
use node::{Node, Table, Upper};

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
    /// The mount's device number.
    number: OnceLock<(u32, u32)>,
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
            number: OnceLock::new(),
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

    /// Tells the device number of the mount.
    pub fn set_number(&self, number: (u32, u32)) {
        self.number.get_or_init(|| number);
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
