//! Regular files: opening, and the files below that serve them. Their data is in `io.rs`.
//!
//! Every open of a node shares one [`Backing`]: the open file below and, where data
//! goes through the kernel, the kernel's number for it. The kernel allows one backing
//! file a node at a time, and none beside files that are open through the daemon. So
//!
//! - small files of the layers go through the daemon: what has them open sees the
//!   copy when one is made, as on any file system, and the kernel keeps their pages;
//! - a larger one that is copied to the private layer while it is open through the
//!   kernel gets a *successor* node of the same `st_ino` for the copy; an `OPEN` of
//!   the old node answers `ESTALE`, and the kernel walks the path again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use rustix::fs::{FileType, Mode, OFlags};

use super::held::affordable;
use super::node::{Node, Upper};
use super::{ActiveSet, Caller, Errno, Found, Object, Passthrough, Result, Vfs};
use crate::backing;
use crate::layer::Layer;
use crate::private::ORIGIN_XATTR;
use crate::private::borrowed::{is_marked, origin_of};
use crate::private::copy_up::Data;
use crate::private::disk::Disk;
use crate::private::origin::Origin;
use crate::proc;
use crate::tree::PRIVATE_TAG;
use crate::verify::first_open::FirstOpen;

/// Files of the layers below this size in bytes go through the daemon: locks, logs,
/// settings, scripts, what is changed while others have it open. The VAs of a host share
/// the pages of larger ones alone.
const THROUGH_KERNEL_FROM: u64 = 64 << 10;

/// An open file below the union.
#[derive(Debug)]
pub struct Backing {
    fd: OwnedFd,
    /// The kernel's number, when data goes through the kernel.
    pub id: Option<i32>,
    /// The layer that the file belongs to; none for a private one.
    pub layer: Option<Arc<Layer>>,
    passthrough: Option<Arc<dyn Passthrough>>,
}

impl AsFd for Backing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        if let (Some(id), Some(passthrough)) = (self.id, &self.passthrough)
            && let Err(error) = passthrough.close(id)
        {
            tracing::debug!(%error, "the kernel no longer knew a backing file");
        }
    }
}

impl Backing {
    /// A file that a predecessor opened, and registered where it has an `id`.
    pub(super) fn adopt(
        fd: OwnedFd,
        id: Option<i32>,
        layer: Option<Arc<Layer>>,
        passthrough: Option<Arc<dyn Passthrough>>,
    ) -> Backing {
        Backing { fd, id, layer, passthrough }
    }
}

/// One open file of a process.
#[derive(Debug)]
pub struct FileHandle {
    pub node: Arc<Node>,
    backing: Mutex<Arc<Backing>>,
}

impl FileHandle {
    /// A handle that a predecessor gave out.
    pub(super) fn adopt(node: Arc<Node>, backing: Arc<Backing>) -> FileHandle {
        FileHandle { node, backing: Mutex::new(backing) }
    }

    pub fn file(&self) -> Arc<Backing> {
        self.backing.lock().expect("no panic while held").clone()
    }

    /// Data is that of another open file of the node from now on: its private copy's.
    pub(super) fn move_to(&self, backing: Arc<Backing>) {
        *self.backing.lock().expect("no panic while held") = backing;
    }

    /// Whether the handle's file is the private one of `node`.
    pub(super) fn writes_to(&self, node: &Arc<Node>) -> bool {
        self.node.id == node.id && self.file().layer.is_none()
    }
}

/// The answer to an open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    pub handle: u64,
    /// The kernel's number of the backing file, when data goes through the kernel.
    pub backing_id: Option<i32>,
    /// Whether the pages that the kernel has of the file, from opens through the daemon,
    /// are still its content.
    pub keep_cache: bool,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenMode {
    pub write: bool,
    pub truncate: bool,
    /// Truncation takes setuid and setgid away.
    pub kill_privileges: bool,
}

/// Takes setuid and setgid away.
pub(super) fn kill_privileges(disk: &Disk, file: impl AsFd) -> Result<()> {
    let mode = rustix::fs::fstat(&file)?.st_mode & 0o7777;
    let kept = unprivileged(mode);
    if kept == mode { Ok(()) } else { disk.chmod_open(&file, Mode::from_raw_mode(kept)) }
}

/// A mode without setuid and setgid. (The kernel leaves setgid to a member of the group
/// where no group may execute, where it means nothing.)
pub(super) fn unprivileged(mode: u32) -> u32 {
    mode & 0o1777
}

fn is_small(fd: impl AsFd) -> Result<bool> {
    Ok(rustix::fs::fstat(fd)?.st_size.cast_unsigned() < THROUGH_KERNEL_FROM)
}

impl Vfs {
    pub(crate) fn file(&self, handle: u64) -> Result<Arc<FileHandle>> {
        let files = self.files.read().expect("no panic while held");
        files.get(&handle).cloned().ok_or(Errno::BADF)
    }

    /// Opens a regular file. Opening for writing copies it to the private layer.
    ///
    /// # Errors
    /// `ESTALE` when the name must be looked up again.
    pub fn open(&self, id: u64, mode: OpenMode) -> Result<Opened> {
        if mode.truncate && !mode.write {
            self.refuse_executed(id)?;
        }
        let Some(first_open) = self.first_open.get() else { return self.open_now(id, mode) };
        loop {
            if !mode.truncate {
                self.check_content(first_open, id)?;
            }
            match self.open_now(id, mode) {
                // A swap came in between: it is another file now.
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
    }

    /// The kernel looks whether a file is executed before it lets anybody open it for writing.
    /// Where a file is truncated and opened for reading, it asks for the truncation first.
    fn refuse_executed(&self, id: u64) -> Result<()> {
        let ino = self.node(id)?.ino;
        let is_executed = self.number.get().is_some_and(|number| proc::executes(*number, ino));
        if is_executed { Err(Errno::TXTBSY) } else { Ok(()) }
    }

    /// Checks the content that a node's open would serve. No lock is held while it is read.
    fn check_content(&self, first_open: &FirstOpen, id: u64) -> Result<()> {
        let node = self.node(id)?;
        let found = {
            let _shared = self.shared();
            if node.is_private() { None } else { self.original(&self.active(), &node) }
        };
        if self.borrows(&node)? {
            return self.complete(&node, Data::All);
        }
        let Some((set, at)) = found else { return Ok(()) };
        let top = set.union.top(at).ok_or(Errno::STALE)?;
        let entry = set.union.entry(at).ok_or(Errno::IO)?;
        let layer = &set.layers[top.layer as usize];
        first_open.check(layer, &entry, top.entry, &set.union.path(at))
    }

    fn open_now(&self, id: u64, mode: OpenMode) -> Result<Opened> {
        let node = self.table.get(id).ok_or(Errno::STALE)?;
        if node.kind != FileType::RegularFile {
            return Err(Errno::NXIO);
        }
        let guard = if mode.write || mode.truncate {
            self.private_copy(&node, if mode.truncate { Data::None } else { Data::All })?
        } else {
            self.shared()
        };
        // The kernel may learn of a revert a moment later: what is written in
        // between must not go to the copy that was dropped.
        if node.successor().is_some() || node.reverted.load(Ordering::Acquire) {
            return Err(Errno::STALE);
        }
        let active = self.active();
        if mode.truncate {
            let backing = self.writable_backing(&active, &node)?;
            self.private.disk.truncate(&*backing, 0)?;
            if mode.kill_privileges {
                kill_privileges(&self.private.disk, &*backing)?;
            }
        }
        let opened = loop {
            let backing = if mode.write {
                self.writable_backing(&active, &node)?
            } else {
                self.backing(&active, &node)?
            };
            if let Some(opened) = self.add_handle(&node, backing) {
                break opened;
            }
        };
        drop(guard);
        Ok(opened)
    }

    /// `None`: meanwhile another file serves the node.
    fn add_handle(&self, node: &Arc<Node>, backing: Arc<Backing>) -> Option<Opened> {
        let backing_id = backing.id;
        let mut files = node.files.lock().expect("no panic while held");
        if !files.backing.as_ref().is_some_and(|now| Arc::ptr_eq(now, &backing)) {
            return None;
        }
        // A private file that nobody has open may have been written through the kernel.
        let keep_cache =
            backing.layer.is_some() || self.passthrough.get().is_none() || files.is_open();
        let handle = Arc::new(FileHandle { node: node.clone(), backing: Mutex::new(backing) });
        files.open.push(Arc::downgrade(&handle));
        drop(files);
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.files.write().expect("no panic while held").insert(number, handle);
        Some(Opened { handle: number, backing_id, keep_cache })
    }

    /// The open private file below a node whose data is its own.
    ///
    /// # Errors
    /// `ESTALE`: who reads the layer's file keeps the node, look the name up again.
    pub(super) fn writable_backing(
        &self,
        active: &Arc<ActiveSet>,
        node: &Arc<Node>,
    ) -> Result<Arc<Backing>> {
        loop {
            let backing = self.backing(active, node)?;
            if backing.layer.is_none() {
                return Ok(backing);
            }
            // It was opened for reading just before its data became its own.
            self.switch_to_copy(node);
            if node.successor().is_some() {
                return Err(Errno::STALE);
            }
        }
    }

    /// The open file below a node, shared by all its handles.
    pub(super) fn backing(
        &self,
        active: &Arc<ActiveSet>,
        node: &Arc<Node>,
    ) -> Result<Arc<Backing>> {
        match self.backing_now(active, node) {
            Err(Errno::MFILE) => {
                self.drop_kept(|_| false);
                self.backing_now(active, node)
            }
            other => other,
        }
    }

    fn backing_now(&self, active: &Arc<ActiveSet>, node: &Arc<Node>) -> Result<Arc<Backing>> {
        let mut files = node.files.lock().expect("no panic while held");
        if let Some(backing) = files.backing.clone() {
            if files.is_open() || self.still_serves(active, node, &backing) {
                return Ok(backing);
            }
            files.backing = None;
        }
        let (fd, layer) = self.open_below(active, node)?;
        let fd = affordable(fd)?;
        // Who has it open now has it through the daemon: else its backing file were here.
        let backing = if files.is_open() || (layer.is_some() && is_small(&fd)?) {
            Arc::new(Backing { fd, id: None, layer, passthrough: None })
        } else {
            self.register(fd, layer)
        };
        files.backing = Some(backing.clone());
        drop(files);
        self.keep(node);
        Ok(backing)
    }

    /// Offers an open file to the kernel.
    fn register(&self, fd: OwnedFd, layer: Option<Arc<Layer>>) -> Arc<Backing> {
        let passthrough = self.passthrough.get().cloned();
        let id = passthrough.as_ref().and_then(|passthrough| match passthrough.open(fd.as_fd()) {
            Ok(id) => Some(id),
            Err(error) => {
                tracing::debug!(%error, "the kernel does not take this file: data passes through the daemon");
                None
            }
        });
        Arc::new(Backing { fd, id, layer, passthrough })
    }

    /// Whether a private file is served through the daemon for the sake of those alone
    /// who had it open before it was copied.
    fn is_makeshift(&self, backing: &Backing) -> bool {
        backing.layer.is_none() && backing.id.is_none() && self.passthrough.get().is_some()
    }

    fn still_serves(&self, active: &Arc<ActiveSet>, node: &Arc<Node>, backing: &Backing) -> bool {
        match &backing.layer {
            None => node.is_private(),
            Some(_) if node.is_private() => self.borrows(node).unwrap_or(false),
            Some(layer) => {
                let at = self.lower(active, node);
                let top = at.and_then(|at| active.union.top(at));
                top.is_some_and(|top| Arc::ptr_eq(&active.layers[top.layer as usize], layer))
            }
        }
    }

    fn open_below(
        &self,
        active: &Arc<ActiveSet>,
        node: &Arc<Node>,
    ) -> Result<(OwnedFd, Option<Arc<Layer>>)> {
        let place = node.place.read().expect("no panic while held");
        let write = OFlags::RDWR | OFlags::NOATIME;
        match &place.upper {
            Upper::File { inode } => {
                let (parent, name) = place.names.last().ok_or(Errno::STALE)?;
                let directory = self.directory(parent)?.ok_or(Errno::STALE)?;
                if self.private.loans.find(*inode).is_some() {
                    let own = backing::path_of(&directory, name);
                    let origin = Origin::parse(&backing::xattr(&own, ORIGIN_XATTR)?);
                    let (fd, layer) = self.open_lender(active, &origin.ok_or(Errno::IO)?)?;
                    return Ok((fd, Some(layer)));
                }
                let fd = match backing::open_beneath(&directory, name, write, Mode::empty()) {
                    Err(Errno::ROFS | Errno::PERM | Errno::ACCESS | Errno::TXTBSY) => {
                        backing::open_beneath(&directory, name, OFlags::RDONLY, Mode::empty())?
                    }
                    other => other?,
                };
                if rustix::fs::fstat(&fd)?.st_ino == *inode {
                    return Ok((fd, None));
                }
                tracing::error!(node = node.id, "a private file changed behind the mount");
                Err(Errno::STALE)
            }
            Upper::Orphan(fd) => {
                if is_marked(&**fd)? {
                    let (fd, layer) = self.open_lender(active, &origin_of(&**fd)?)?;
                    return Ok((fd, Some(layer)));
                }
                let path = crate::proc::path(&**fd);
                Ok((rustix::fs::open(path, write | OFlags::CLOEXEC, Mode::empty())?, None))
            }
            Upper::Directory(_) => Err(Errno::ISDIR),
            Upper::None => {
                drop(place);
                let (set, at) = self.original(active, node).ok_or(Errno::STALE)?;
                let top = set.union.top(at).ok_or(Errno::STALE)?;
                let layer = set.layers[top.layer as usize].clone();
                if self.first_open.get().is_some_and(|first| !first.passed(&layer, top.entry)) {
                    return Err(Errno::AGAIN);
                }
                Ok((layer.open(&set.union.path(at))?, Some(layer)))
            }
        }
    }

    /// Keeps the backing file of a node open after its last handle, for the
    /// next open, as long as it is among the most recent ones.
    fn keep(&self, node: &Arc<Node>) {
        if let Some(node) = self.kept.push(node) {
            let mut files = node.files.lock().expect("no panic while held");
            if !files.is_open() {
                files.backing = None;
            }
        }
    }

    /// Lets go of kept backing files that `stays` refuses and nobody has open.
    pub(super) fn drop_kept(&self, stays: impl Fn(&Backing) -> bool) {
        for node in self.kept.nodes() {
            let mut files = node.files.lock().expect("no panic while held");
            if files.backing.as_ref().is_some_and(|backing| !stays(backing)) && !files.is_open() {
                files.backing = None;
            }
        }
    }

    /// Makes a regular file and opens it.
    ///
    /// # Errors
    /// `EEXIST`, and what the private layer's disk answers.
    pub fn create(
        &self,
        parent: u64,
        name: &[u8],
        mode: u32,
        caller: &Caller,
    ) -> Result<(Found, Opened)> {
        let _shared = self.shared();
        let active = self.active();
        let parent = self.directory_node(parent)?;
        let made = self.make_file(&active, &parent, name, mode, caller)?;
        let afforded = affordable(made).or_else(|_| {
            self.drop_kept(|_| false);
            let directory = self.directory(&parent)?.ok_or(Errno::STALE)?;
            let flags = OFlags::RDWR | OFlags::NOATIME;
            affordable(backing::open_beneath(&directory, name, flags, Mode::empty())?)
        });
        let fd = match afforded {
            Ok(fd) => fd,
            Err(error) => {
                // What cannot be opened is not made either.
                let directory = self.directory(&parent)?.ok_or(Errno::STALE)?;
                self.private.disk.unlink(&directory, name)?;
                return Err(error);
            }
        };
        let stat = rustix::fs::fstat(&fd)?;
        let object = Object::Private { stat, ino: PRIVATE_TAG | stat.st_ino };
        let node = self.intern(&active, &parent, name, &object)?;
        node.bare.store(true, Ordering::Release);
        // What made it serves it: opening it again would cost as much as making it.
        node.files.lock().expect("no panic while held").backing = Some(self.register(fd, None));
        self.keep(&node);
        let opened = self.open_found(&active, &node)?;
        let found = self.found(&active, node, &object)?;
        Ok((found, opened))
    }

    pub(super) fn open_found(&self, active: &Arc<ActiveSet>, node: &Arc<Node>) -> Result<Opened> {
        loop {
            let backing = self.backing(active, node)?;
            if let Some(opened) = self.add_handle(node, backing) {
                return Ok(opened);
            }
        }
    }

    pub fn release(&self, handle: u64) {
        let removed = self.files.write().expect("no panic while held").remove(&handle);
        let Some(removed) = removed else { return };
        let node = removed.node.clone();
        drop(removed);
        let mut files = node.files.lock().expect("no panic while held");
        if files.is_open() {
            return;
        }
        // What nothing can open again is let go with the last handle.
        let makeshift = files.backing.as_ref().is_some_and(|backing| self.is_makeshift(backing));
        if makeshift || files.successor.is_some() || node.name().is_none() {
            files.backing = None;
        }
    }

    /// Files that are registered with the kernel.
    pub fn backing_count(&self) -> usize {
        self.table.count_backings()
    }

    /// The layers of former sets that open files still hold, with the `st_ino` of
    /// each open file.
    pub fn held_layers(&self) -> Vec<(String, Vec<u64>)> {
        let active = self.active();
        let files = self.files.read().expect("no panic while held");
        let mut held: std::collections::BTreeMap<String, Vec<u64>> = Default::default();
        for handle in files.values() {
            if let Some(layer) = &handle.file().layer
                && !active.layers.iter().any(|current| Arc::ptr_eq(current, layer))
            {
                held.entry(layer.name.clone()).or_default().push(handle.node.ino);
            }
        }
        held.into_iter().collect()
    }
}
