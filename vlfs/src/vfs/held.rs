//! Descriptors of private directories: those that were used lately are held.
//!
//! Whoever makes directories would otherwise take a descriptor of the daemon for each,
//! until none is left to read a file or to answer `status`. One that is not held is
//! opened again by the names above it, from the nearest directory that is, and must
//! have the number that it had. A directory that is about to lose its name is pinned.
//!
//! What requests leave behind, these and open files, stays below a reserve that is
//! kept for what is opened and closed within a request, for control and for swaps.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use rustix::process::Resource;

use super::node::{Node, Upper};
use super::{Errno, Result, Vfs};
use crate::backing;

/// Directories that are held at most; at most a quarter of the descriptors, too.
const MOST: u64 = 16_384;
/// The queue is swept after as many entries more as it had, and not before this many.
const FEWEST: usize = 256;
/// Descriptors that stay free of what requests leave behind; at most an eighth.
const RESERVE: u64 = 512;
/// Of a way that is longer, a directory half as far up is held too: who walks back up
/// a deep tree would otherwise walk all of it down again for each step.
const LONG_WAY: usize = 64;
/// Descriptors where the system sets no limit.
const UNLIMITED: u64 = 1 << 20;

/// The limit of descriptors as it is now: an operator may change it.
fn limit() -> u64 {
    rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(UNLIMITED)
}

/// Whether a descriptor may be kept beyond a request: the system gives the lowest
/// number that is free, so this one tells how many are taken.
fn is_affordable(descriptor: &OwnedFd) -> bool {
    let limit = limit();
    let reserve_from = limit - RESERVE.min(limit / 8);
    u64::try_from(descriptor.as_raw_fd()).is_ok_and(|number| number < reserve_from)
}

/// Lets a descriptor be kept beyond a request, or closes it.
///
/// # Errors
/// `EMFILE`: only the reserve is left.
pub(super) fn affordable(descriptor: OwnedFd) -> Result<OwnedFd> {
    if is_affordable(&descriptor) { Ok(descriptor) } else { Err(Errno::MFILE) }
}

/// A private directory, and its descriptor while that is held.
#[derive(Debug)]
pub struct PrivateDirectory {
    /// Of the backing file system.
    pub inode: u64,
    open: Mutex<Option<Arc<OwnedFd>>>,
    /// Since the queue looked last.
    used: AtomicBool,
    pinned: AtomicBool,
}

impl PrivateDirectory {
    /// One that is opened when it is used.
    pub fn closed(inode: u64) -> PrivateDirectory {
        PrivateDirectory {
            inode,
            open: Mutex::default(),
            used: AtomicBool::new(false),
            pinned: AtomicBool::new(false),
        }
    }

    /// One that stays open.
    pub fn pinned(inode: u64, descriptor: Arc<OwnedFd>) -> PrivateDirectory {
        PrivateDirectory {
            inode,
            open: Mutex::new(Some(descriptor)),
            used: AtomicBool::new(true),
            pinned: AtomicBool::new(true),
        }
    }

    /// The descriptor, where it is held.
    fn held(&self) -> Option<Arc<OwnedFd>> {
        let open = self.open.lock().expect("no panic while held").clone();
        if open.is_some() {
            self.used.store(true, Ordering::Relaxed);
        }
        open
    }

    /// The descriptor of one that has lost its name.
    pub fn pin_held(&self) -> Option<Arc<OwnedFd>> {
        if self.pinned.load(Ordering::Acquire) { self.held() } else { None }
    }

    fn close(&self) -> Option<Arc<OwnedFd>> {
        let mut open = self.open.lock().expect("no panic while held");
        if self.pinned.load(Ordering::Acquire) { None } else { open.take() }
    }
}

/// The directories that are held, in the order in which they were opened.
#[derive(Debug, Default)]
pub struct Held {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    entries: VecDeque<Weak<PrivateDirectory>>,
    /// Entries that are put in before those of directories that are gone are swept out:
    /// even a weak reference keeps memory.
    until_sweep: usize,
}

impl Held {
    /// Puts a directory in that was just opened, and lets go of what was not used lately.
    fn push(&self, directory: &Arc<PrivateDirectory>) {
        let most = usize::try_from(MOST.min(limit() / 4)).unwrap_or(usize::MAX);
        let mut closed = Vec::new();
        let mut queue = self.queue.lock().expect("no panic while held");
        queue.entries.push_back(Arc::downgrade(directory));
        if queue.until_sweep == 0 {
            queue.entries.retain(|entry| entry.strong_count() > 0);
            queue.until_sweep = queue.entries.len().max(FEWEST);
        }
        queue.until_sweep -= 1;
        while queue.entries.len() > most {
            let Some(oldest) = queue.entries.pop_front() else { break };
            let Some(oldest) = oldest.upgrade() else { continue };
            if oldest.used.swap(false, Ordering::Relaxed) {
                queue.entries.push_back(Arc::downgrade(&oldest));
            } else {
                closed.push(oldest.close());
            }
        }
        drop(queue);
        // Closing takes time, and nobody waits for it.
        drop(closed);
    }
}

impl Vfs {
    /// The private directory of a directory node; none where it has none.
    ///
    /// # Errors
    /// `ESTALE`: it is gone, or another stands at its name.
    pub(super) fn directory(&self, node: &Node) -> Result<Option<Arc<OwnedFd>>> {
        let place = node.place.read().expect("no panic while held");
        let Upper::Directory(directory) = &place.upper else { return Ok(None) };
        if let Some(held) = directory.held() {
            return Ok(Some(held));
        }
        let (directory, name) = (directory.clone(), place.names.last().cloned());
        drop(place);
        self.open_private(&directory, name.as_ref()).map(Some)
    }

    /// The descriptor of a private directory that has this name.
    pub(super) fn open_private(
        &self,
        directory: &Arc<PrivateDirectory>,
        name: Option<&(Arc<Node>, Box<[u8]>)>,
    ) -> Result<Arc<OwnedFd>> {
        if let Some(held) = directory.held() {
            return Ok(held);
        }
        let (mut above, name) = name.cloned().ok_or(Errno::STALE)?;
        // From this one up to the nearest that is held, without that.
        let mut closed = vec![(directory.clone(), name)];
        let mut from = loop {
            let (entry, next) = {
                let place = above.place.read().expect("no panic while held");
                let Upper::Directory(found) = &place.upper else { return Err(Errno::STALE) };
                if let Some(held) = found.held() {
                    break held;
                }
                let (next, name) = place.names.last().cloned().ok_or(Errno::STALE)?;
                ((found.clone(), name), next)
            };
            closed.push(entry);
            above = next;
        };
        if closed.len() > LONG_WAY {
            let upper = closed.split_off(LONG_WAY / 2);
            from = self.open_down(&from, &upper)?;
        }
        self.open_down(&from, &closed)
    }

    /// Opens and holds the first of directories that lie in each other, the last in `from`.
    fn open_down(
        &self,
        from: &OwnedFd,
        closed: &[(Arc<PrivateDirectory>, Box<[u8]>)],
    ) -> Result<Arc<OwnedFd>> {
        let (directory, _) = closed.first().ok_or(Errno::STALE)?;
        let names: Vec<&[u8]> = closed.iter().rev().map(|(_, name)| &**name).collect();
        let opened = match backing::open_directory(from, &names.join(&b'/')) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(Errno::STALE),
            other => other?,
        };
        if rustix::fs::fstat(&opened)?.st_ino != directory.inode {
            let inode = directory.inode;
            tracing::error!(inode, "a private directory changed behind the mount");
            return Err(Errno::STALE);
        }
        Ok(self.hold(directory, Arc::new(opened)))
    }

    /// A private directory that was just opened.
    pub(super) fn new_directory(&self, descriptor: &Arc<OwnedFd>) -> Result<Arc<PrivateDirectory>> {
        let inode = rustix::fs::fstat(descriptor)?.st_ino;
        let directory = Arc::new(PrivateDirectory::closed(inode));
        self.hold(&directory, descriptor.clone());
        Ok(directory)
    }

    /// Holds a directory's descriptor, unless only the reserve is left: then it is the
    /// caller's alone.
    fn hold(&self, directory: &Arc<PrivateDirectory>, descriptor: Arc<OwnedFd>) -> Arc<OwnedFd> {
        if !is_affordable(&descriptor) {
            return descriptor;
        }
        {
            let mut open = directory.open.lock().expect("no panic while held");
            if let Some(held) = &*open {
                return held.clone();
            }
            *open = Some(descriptor.clone());
        }
        self.held.push(directory);
        descriptor
    }

    /// Keeps a directory open that is about to lose its name.
    ///
    /// # Errors
    /// As [`Vfs::directory`]; `EMFILE` where only the reserve is left.
    pub(super) fn pin(&self, node: &Node) -> Result<()> {
        let Some(descriptor) = self.directory(node)? else { return Ok(()) };
        let place = node.place.read().expect("no panic while held");
        let Upper::Directory(directory) = &place.upper else { return Ok(()) };
        let mut open = directory.open.lock().expect("no panic while held");
        if open.is_none() {
            if !is_affordable(&descriptor) {
                return Err(Errno::MFILE);
            }
            *open = Some(descriptor);
        }
        directory.pinned.store(true, Ordering::Release);
        Ok(())
    }

    /// It keeps its name after all.
    pub(super) fn unpin(&self, node: &Node) {
        let place = node.place.read().expect("no panic while held");
        if let Upper::Directory(directory) = &place.upper {
            directory.pinned.store(false, Ordering::Release);
            self.held.push(directory);
        }
    }
}
