//! Listing directories.
//!
//! A listing is a snapshot: one layer set, taken when the reader is at the
//! start, so no listing mixes two sets.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use rustix::fs::FileType;

use super::node::{Node, Upper};
use super::{ActiveSet, Errno, Found, Result, Vfs, file_type};
use crate::{backing, private, tree};

/// Directories of up to this many names may be kept by the kernel: a reader
/// gets them in one piece, so that a swap cannot come between two pieces.
const CACHED_NAMES: usize = 256;

/// One name of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub name: Box<[u8]>,
    pub ino: u64,
    pub kind: FileType,
}

/// An open directory.
#[derive(Debug)]
pub struct DirectoryHandle {
    pub node: Arc<Node>,
    listing: Mutex<Option<Arc<Vec<Listed>>>>,
}

impl DirectoryHandle {
    /// A handle that a predecessor gave out.
    pub(super) fn adopt(node: Arc<Node>, listing: Option<Vec<Listed>>) -> DirectoryHandle {
        DirectoryHandle { node, listing: Mutex::new(listing.map(Arc::new)) }
    }

    /// The listing that its reader goes on with.
    pub(super) fn listing_now(&self) -> Option<Arc<Vec<Listed>>> {
        self.listing.lock().expect("no panic while held").clone()
    }
}

/// The answer to opening a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenedDirectory {
    pub handle: u64,
    /// The kernel may keep the listing.
    pub cache: bool,
    /// What the kernel kept is still right.
    pub keep: bool,
}

impl Vfs {
    pub fn opendir(&self, id: u64) -> Result<OpenedDirectory> {
        let _shared = self.shared();
        let active = self.active();
        let node = self.directory_node(id)?;
        let names = self.count_names(&active, &node)?;
        let epoch = self.epoch.load(Ordering::Acquire);
        let before = node.listing_epoch.swap(epoch, Ordering::AcqRel);
        let settled = !self.unsettled.load(Ordering::Acquire);
        let cache = settled && names <= CACHED_NAMES;
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let open = DirectoryHandle { node, listing: Mutex::new(None) };
        self.directories.write().expect("no panic while held").insert(handle, Arc::new(open));
        Ok(OpenedDirectory { handle, cache, keep: cache && before == epoch })
    }

    /// At least as many names as the directory has; more than can be kept are not
    /// counted. It is listed only once the kernel asks, and mostly it does not,
    /// because it kept the listing.
    fn count_names(&self, active: &Arc<ActiveSet>, node: &Arc<Node>) -> Result<usize> {
        let (at, directory) = (self.lower(active, node), self.directory(node)?);
        if at.is_none() && directory.is_none() && node.name().is_some() {
            return Err(Errno::STALE);
        }
        let own = directory.map_or(Ok(0), |directory| Ok(backing::list(&directory)?.len()))?;
        let lower = at.map_or(0, |at| active.union.children(at).take(CACHED_NAMES).count());
        Ok(2 + own + lower)
    }

    pub fn releasedir(&self, handle: u64) {
        self.directories.write().expect("no panic while held").remove(&handle);
    }

    /// The listing of an open directory, `.` and `..` first. `offset` 0 takes a new snapshot.
    pub fn listing(&self, handle: u64, offset: u64) -> Result<Arc<Vec<Listed>>> {
        let open = {
            let directories = self.directories.read().expect("no panic while held");
            directories.get(&handle).cloned().ok_or(Errno::BADF)?
        };
        let kept = {
            let mut listing = open.listing.lock().expect("no panic while held");
            if offset == 0 { listing.take() } else { listing.clone() }
        };
        if let Some(kept) = kept.filter(|_| offset > 0) {
            return Ok(kept);
        }
        let _shared = self.shared();
        let fresh = Arc::new(self.list_node(&self.active(), &open.node)?);
        *open.listing.lock().expect("no panic while held") = Some(fresh.clone());
        Ok(fresh)
    }

    /// Looks up a name of a listing, for `READDIRPLUS`. `None`: it is gone by now.
    pub fn lookup_listed(&self, handle: u64, name: &[u8]) -> Option<Found> {
        let node = {
            let directories = self.directories.read().expect("no panic while held");
            directories.get(&handle)?.node.clone()
        };
        let _shared = self.shared();
        self.lookup_in(&self.active(), &node, name).ok()
    }

    fn list_node(&self, active: &Arc<ActiveSet>, node: &Arc<Node>) -> Result<Vec<Listed>> {
        let parent_ino = node.name().map_or(tree::ROOT_IDENTITY, |(parent, _)| parent.ino);
        let dot = |name: &[u8], ino| Listed { name: name.into(), ino, kind: FileType::Directory };
        let mut listing = vec![dot(b".", node.ino), dot(b"..", parent_ino)];
        listing.extend(self.names(active, node)?);
        Ok(listing)
    }

    /// The names in a directory, the private layer's before the layers'.
    pub(super) fn names(&self, active: &Arc<ActiveSet>, node: &Arc<Node>) -> Result<Vec<Listed>> {
        let at = self.lower(active, node);
        let directory = self.directory(node)?;
        if at.is_none() && directory.is_none() && node.name().is_some() {
            return Err(Errno::STALE);
        }
        let mut own = match &directory {
            Some(directory) => backing::list(directory)?,
            None => Vec::new(),
        };
        own.sort_by(|a, b| a.name.cmp(&b.name));
        let mut names = Vec::new();
        if let Some(at) = at {
            for (_, entry) in active.union.children(at) {
                if own.binary_search_by(|own| (*own.name).cmp(entry.name)).is_err() {
                    let kind = file_type(&entry.kind);
                    names.push(Listed { name: entry.name.into(), ino: entry.identity, kind });
                }
            }
        }
        active.sound()?;
        if let Some(directory) = &directory {
            for entry in own {
                let ino = self.listed_ino(node, directory, &entry)?;
                names.push(Listed { name: entry.name, ino, kind: entry.kind });
            }
        }
        Ok(names)
    }

    fn listed_ino(
        &self,
        node: &Arc<Node>,
        directory: &std::os::fd::OwnedFd,
        entry: &backing::Name,
    ) -> Result<u64> {
        if let Some(known) = self.table.child(node.id, &entry.name) {
            let place = known.place.read().expect("no panic while held");
            if matches!(place.upper, Upper::File { inode } if inode == entry.inode)
                || (matches!(place.upper, Upper::Directory(_)) && entry.kind == known.kind)
            {
                return Ok(known.ino);
            }
        }
        private::kept_number(directory, &entry.name, entry.inode)
    }

    pub fn fsyncdir(&self, handle: u64) -> Result<()> {
        let node = {
            let directories = self.directories.read().expect("no panic while held");
            directories.get(&handle).cloned().ok_or(Errno::BADF)?.node.clone()
        };
        // Its names may live in the private directory and in several white-out layers.
        let lives = node.is_private() || {
            let _shared = self.shared();
            let active = self.active();
            self.lower(&active, &node).is_some_and(|at| active.union.is_touched(at))
        };
        if lives { self.private.sync() } else { Ok(()) }
    }
}
