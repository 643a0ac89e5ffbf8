//! Writing a layer's files and describing them in the same pass.
//!
//! A [`TreeWriter`] takes entries in any order, writes them below a directory
//! that it holds open, and yields the manifest of what it wrote. Guarantees:
//! every file is created new (`O_EXCL`) in a directory that the writer itself
//! made or found to be a real one (`O_NOFOLLOW` at every step); a path whose
//! parent is no directory of this layer is refused; attributes of directories
//! are set last, so their times survive. Content is synced by the caller, once
//! a layer. A writer without a directory only records: that is how a tree is
//! scanned.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{self, AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use strata_core::digest::Digest;
use strata_core::limits;
use strata_core::manifest::{
    Entry, Kind, Manifest, ManifestError, Timestamp, file_name, parent_path, path_order,
};

use crate::member::shown;

/// Everything about a file but its type and content. `mode` is 07777 at most.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Bounds of one layer: `bytes` of all contents, holes included.
#[derive(Debug, Clone, Copy)]
pub struct TreeLimits {
    pub bytes: u64,
    pub entries: usize,
}

impl Default for TreeLimits {
    fn default() -> Self {
        TreeLimits { bytes: limits::LAYER_BYTES, entries: limits::LAYER_ENTRIES }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("cannot {action} {path}: {errno}")]
    Write { action: &'static str, path: String, errno: Errno },
    #[error("{path}: the content cannot be read: {source}")]
    Content { path: String, source: io::Error },
    #[error("{path}: {expected} bytes were announced, {found} came")]
    Length { path: String, expected: u64, found: u64 },
    #[error("{0} occurs twice")]
    Occurs(String),
    #[error("{path}: its parent {parent} is not a directory of this layer")]
    Parent { path: String, parent: String },
    #[error("{path} is a hard link to {target}, which is no earlier file of this layer")]
    HardLink { path: String, target: String },
    #[error("{path}: the layer holds more than {limit} bytes")]
    Bytes { path: String, limit: u64 },
    #[error("{path}: the layer holds more than {limit} entries")]
    Entries { path: String, limit: usize },
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// One inode; several paths may lead to it.
#[derive(Debug)]
struct Inode {
    kind: Kind,
    attributes: Attributes,
    /// A directory that no entry named so far.
    implicit: bool,
}

/// See the module.
pub struct TreeWriter {
    disk: Option<Disk>,
    paths: HashMap<Vec<u8>, usize>,
    inodes: Vec<Inode>,
    bytes: u64,
    limits: TreeLimits,
    buffer: Vec<u8>,
}

const BUFFER_BYTES: usize = 128 << 10;
/// The seconds since 1970 that ext4 keeps, of the years 1901 to 2446; XFS and Btrfs keep more.
const SECONDS: RangeInclusive<i64> = -(1 << 31)..=(1 << 34) - (1 << 31) - 1;

impl TreeWriter {
    /// A writer into the empty directory `root`.
    pub fn new(root: OwnedFd, limits: TreeLimits) -> Self {
        Self::with_disk(Some(Disk { root, open: Vec::new() }), limits)
    }

    /// A writer that writes nothing and only describes.
    pub fn recorder(limits: TreeLimits) -> Self {
        Self::with_disk(None, limits)
    }

    fn with_disk(disk: Option<Disk>, limits: TreeLimits) -> Self {
        let buffer = vec![0; BUFFER_BYTES];
        let paths = HashMap::new();
        TreeWriter { disk, paths, inodes: Vec::new(), bytes: 0, limits, buffer }
    }

    /// What stands at `path` so far.
    pub fn get(&self, path: &[u8]) -> Option<(&Kind, &Attributes)> {
        let inode = &self.inodes[*self.paths.get(path)?];
        Some((&inode.kind, &inode.attributes))
    }

    /// Whether two paths are names of one file.
    pub fn same_file(&self, path: &[u8], other: &[u8]) -> bool {
        matches!((self.paths.get(path), self.paths.get(other)), (Some(a), Some(b)) if a == b)
    }

    /// Whether `path` is a directory that no entry named: only its content did.
    pub fn is_implicit(&self, path: &[u8]) -> bool {
        self.paths.get(path).is_some_and(|index| self.inodes[*index].implicit)
    }

    /// Adds a directory, or gives one that is there these attributes.
    ///
    /// # Errors
    /// [`WriteError`], which names the path.
    pub fn directory(&mut self, path: &[u8], attributes: Attributes) -> Result<(), WriteError> {
        let attributes = self.storable(path, attributes);
        if let Some(index) = self.paths.get(path) {
            let inode = &mut self.inodes[*index];
            if inode.kind != Kind::Directory {
                return Err(WriteError::Occurs(shown(path)));
            }
            inode.attributes = attributes;
            inode.implicit = false;
            return Ok(());
        }
        self.prepare(path, attributes.mtime)?;
        self.make_directory(path, attributes, false)
    }

    /// Adds a regular file of exactly `size` bytes.
    ///
    /// # Errors
    /// [`WriteError`], which names the path.
    pub fn regular(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<(), WriteError> {
        self.vacant(path)?;
        let attributes = self.storable(path, attributes);
        self.prepare(path, attributes.mtime)?;
        self.account(path, size)?;
        let file = match &mut self.disk {
            Some(disk) => Some(disk.create(path)?),
            None => None,
        };
        let digest = stream(path, content, size, file.as_ref(), &mut self.buffer)?;
        if let Some(file) = file {
            apply(file.as_fd(), &attributes).map_err(|(action, errno)| WriteError::Write {
                action,
                path: shown(path),
                errno,
            })?;
        }
        self.insert(path, Kind::Regular { size, digest }, attributes, false);
        Ok(())
    }

    /// The digest of a content that is not to be written again.
    ///
    /// # Errors
    /// [`WriteError`], which names the path.
    pub fn digest_only(
        &mut self,
        path: &[u8],
        size: u64,
        content: &mut dyn Read,
    ) -> Result<Digest, WriteError> {
        self.account(path, size)?;
        stream(path, content, size, None, &mut self.buffer)
    }

    /// Adds a symbolic link, device, FIFO or socket.
    ///
    /// # Errors
    /// [`WriteError`], which names the path.
    pub fn node(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        kind: Kind,
    ) -> Result<(), WriteError> {
        self.vacant(path)?;
        let attributes = self.storable(path, attributes);
        self.prepare(path, attributes.mtime)?;
        if let Some(disk) = &mut self.disk {
            disk.node(path, &attributes, &kind)?;
        }
        self.insert(path, kind, attributes, false);
        Ok(())
    }

    /// Adds a further name of the earlier file at `target`.
    ///
    /// # Errors
    /// [`WriteError`], which names the path.
    pub fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), WriteError> {
        self.vacant(path)?;
        let index = match self.paths.get(target) {
            Some(index) if self.inodes[*index].kind != Kind::Directory => *index,
            _ => return Err(WriteError::HardLink { path: shown(path), target: shown(target) }),
        };
        let mtime = self.inodes[index].attributes.mtime;
        self.prepare(path, mtime)?;
        if let Some(disk) = &mut self.disk {
            disk.hard_link(path, target)?;
        }
        self.paths.insert(path.to_vec(), index);
        Ok(())
    }

    /// Sets the attributes of all directories, deepest first, and describes
    /// what was written.
    ///
    /// # Errors
    /// [`WriteError`], which names the path.
    pub fn finish(mut self) -> Result<Manifest, WriteError> {
        if self.paths.is_empty() {
            self.make_root(Timestamp::default());
        }
        let mut paths: Vec<(Vec<u8>, usize)> = self.paths.into_iter().collect();
        paths.sort_by(|a, b| path_order(&a.0, &b.0));
        if let Some(disk) = &mut self.disk {
            for (path, index) in paths.iter().rev() {
                let inode = &self.inodes[*index];
                if inode.kind == Kind::Directory {
                    disk.dress(path, &inode.attributes)?;
                }
            }
        }
        let mut counts = vec![0_u32; self.inodes.len()];
        for (_, index) in &paths {
            counts[*index] += 1;
        }
        let mut first: Vec<Option<&[u8]>> = vec![None; self.inodes.len()];
        let mut entries = Vec::with_capacity(paths.len());
        for (path, index) in &paths {
            let inode = &self.inodes[*index];
            let kind = match first[*index] {
                None => inode.kind.clone(),
                Some(target) => Kind::HardLink { target: target.to_vec() },
            };
            first[*index].get_or_insert(path);
            let Attributes { mode, uid, gid, mtime, xattrs } = inode.attributes.clone();
            let link_count = counts[*index];
            entries.push(Entry {
                path: path.clone(),
                kind,
                mode,
                uid,
                gid,
                mtime,
                link_count,
                xattrs,
            });
        }
        Ok(Manifest::new(entries)?)
    }

    /// What is written has a time that a disk keeps as it is: the nearest one, and told.
    /// What is only described has the one that was found.
    fn storable(&self, path: &[u8], mut attributes: Attributes) -> Attributes {
        let seconds = attributes.mtime.seconds;
        let kept = seconds.clamp(*SECONDS.start(), *SECONDS.end());
        if self.disk.is_some() && kept != seconds {
            tracing::warn!(file = shown(path), seconds, kept, "its time fits no file system");
            attributes.mtime = Timestamp { seconds: kept, nanoseconds: 0 };
        }
        attributes
    }

    fn vacant(&self, path: &[u8]) -> Result<(), WriteError> {
        match self.paths.contains_key(path) {
            true => Err(WriteError::Occurs(shown(path))),
            false => Ok(()),
        }
    }

    fn account(&mut self, path: &[u8], size: u64) -> Result<(), WriteError> {
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.bytes {
            return Err(WriteError::Bytes { path: shown(path), limit: self.limits.bytes });
        }
        Ok(())
    }

    /// Makes the directories above `path` that are not there yet: mode 0755,
    /// root's, and as old as the entry that needs them.
    fn prepare(&mut self, path: &[u8], mtime: Timestamp) -> Result<(), WriteError> {
        if self.paths.len() >= self.limits.entries {
            return Err(WriteError::Entries { path: shown(path), limit: self.limits.entries });
        }
        if path.is_empty() {
            return Ok(());
        }
        let mut missing = Vec::new();
        let mut above = parent_path(path);
        while let Some(parent) = above {
            match self.paths.get(parent) {
                Some(index) if self.inodes[*index].kind == Kind::Directory => break,
                Some(_) => {
                    return Err(WriteError::Parent { path: shown(path), parent: shown(parent) });
                }
                None => missing.push(parent.to_vec()),
            }
            above = parent_path(parent);
        }
        for parent in missing.iter().rev() {
            if parent.is_empty() {
                self.make_root(mtime);
            } else {
                let attributes = Attributes { mode: 0o755, mtime, ..Attributes::default() };
                self.make_directory(parent, attributes, true)?;
            }
        }
        Ok(())
    }

    fn make_root(&mut self, mtime: Timestamp) {
        let attributes = Attributes { mode: 0o755, mtime, ..Attributes::default() };
        self.insert(b"", Kind::Directory, attributes, true);
    }

    fn make_directory(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        implicit: bool,
    ) -> Result<(), WriteError> {
        if let (Some(disk), false) = (&mut self.disk, path.is_empty()) {
            disk.make_directory(path)?;
        }
        self.insert(path, Kind::Directory, attributes, implicit);
        Ok(())
    }

    fn insert(&mut self, path: &[u8], kind: Kind, attributes: Attributes, implicit: bool) {
        self.paths.insert(path.to_vec(), self.inodes.len());
        self.inodes.push(Inode { kind, attributes, implicit });
    }
}

/// Copies exactly `size` bytes, leaving holes for blocks of zeros, and hashes them.
fn stream(
    path: &[u8],
    content: &mut dyn Read,
    size: u64,
    file: Option<&OwnedFd>,
    buffer: &mut [u8],
) -> Result<Digest, WriteError> {
    let failed = |action| move |errno| WriteError::Write { action, path: shown(path), errno };
    let mut hasher = blake3::Hasher::new();
    let mut found = 0_u64;
    let mut hole = false;
    loop {
        let length = fill(content, buffer)
            .map_err(|source| WriteError::Content { path: shown(path), source })?;
        if length == 0 {
            break;
        }
        let block = &buffer[..length];
        found += length as u64;
        if found > size {
            break;
        }
        hasher.update(block);
        let Some(file) = file else { continue };
        hole = length == buffer.len() && block.iter().all(|byte| *byte == 0);
        if hole {
            let offset = i64::try_from(length).unwrap_or(i64::MAX);
            fs::seek(file, fs::SeekFrom::Current(offset)).map_err(failed("extend"))?;
        } else {
            write_all(file, block).map_err(failed("write"))?;
        }
    }
    if found != size {
        return Err(WriteError::Length { path: shown(path), expected: size, found });
    }
    if let (Some(file), true) = (file, hole) {
        fs::ftruncate(file, size).map_err(failed("extend"))?;
    }
    Ok(Digest::from_bytes(*hasher.finalize().as_bytes()))
}

fn fill(content: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match content.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(file, bytes))?;
        bytes = &bytes[written..];
    }
    Ok(())
}

fn timestamps(mtime: Timestamp) -> Timestamps {
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn owner(attributes: &Attributes) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)))
}

/// Owner, mode, attributes, times of an open file, in the order in which one
/// does not undo another (a change of owner drops setuid and capabilities).
fn apply(file: BorrowedFd<'_>, attributes: &Attributes) -> Result<(), (&'static str, Errno)> {
    let (uid, gid) = owner(attributes);
    fs::fchown(file, uid, gid).map_err(|errno| ("set the owner of", errno))?;
    let mode = Mode::from_raw_mode(attributes.mode & 0o7777);
    fs::fchmod(file, mode).map_err(|errno| ("set the mode of", errno))?;
    for (name, value) in &attributes.xattrs {
        let flags = fs::XattrFlags::empty();
        fs::fsetxattr(file, OsStr::from_bytes(name), value, flags)
            .map_err(|errno| ("set an extended attribute of", errno))?;
    }
    fs::futimens(file, &timestamps(attributes.mtime)).map_err(|errno| ("set the time of", errno))
}

/// The directory written to, and the directories on the way to the latest entry.
struct Disk {
    root: OwnedFd,
    open: Vec<(Vec<u8>, OwnedFd)>,
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Disk {
    /// The directory at `path`, opened one component at a time.
    fn enter(&mut self, path: &[u8]) -> Result<BorrowedFd<'_>, WriteError> {
        while self.open.last().is_some_and(|(open, _)| !is_prefix(open, path)) {
            self.open.pop();
        }
        let mut at = self.open.last().map_or(0, |(open, _)| open.len());
        while at < path.len() {
            let start = if at == 0 { 0 } else { at + 1 };
            let length = path[start..].iter().position(|byte| *byte == b'/');
            at = length.map_or(path.len(), |length| start + length);
            let here = self.open.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd());
            let name = OsStr::from_bytes(&path[start..at]);
            let next = fs::openat(here, name, DIRECTORY, Mode::empty())
                .map_err(|errno| failed("enter", &path[..at], errno))?;
            self.open.push((path[..at].to_vec(), next));
        }
        Ok(self.open.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd()))
    }

    /// The directory that holds `path`, and the name in it.
    fn parent<'d, 'p>(
        &'d mut self,
        path: &'p [u8],
    ) -> Result<(BorrowedFd<'d>, &'p OsStr), WriteError> {
        let parent = self.enter(parent_path(path).unwrap_or(b""))?;
        Ok((parent, OsStr::from_bytes(file_name(path))))
    }

    fn make_directory(&mut self, path: &[u8]) -> Result<(), WriteError> {
        let (parent, name) = self.parent(path)?;
        fs::mkdirat(parent, name, Mode::RWXU)
            .map_err(|errno| failed("make the directory", path, errno))
    }

    fn create(&mut self, path: &[u8]) -> Result<OwnedFd, WriteError> {
        let (parent, name) = self.parent(path)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| failed("create", path, errno))
    }

    fn node(
        &mut self,
        path: &[u8],
        attributes: &Attributes,
        kind: &Kind,
    ) -> Result<(), WriteError> {
        let (parent, name) = self.parent(path)?;
        let (file_type, device) = match kind {
            Kind::Symlink { target } => {
                fs::symlinkat(OsStr::from_bytes(target), parent, name)
                    .map_err(|errno| failed("create the link", path, errno))?;
                return dress_node(parent, name, path, attributes, true);
            }
            Kind::CharacterDevice { major, minor } => {
                (fs::FileType::CharacterDevice, fs::makedev(*major, *minor))
            }
            Kind::BlockDevice { major, minor } => {
                (fs::FileType::BlockDevice, fs::makedev(*major, *minor))
            }
            Kind::Fifo => (fs::FileType::Fifo, 0),
            Kind::Socket => (fs::FileType::Socket, 0),
            Kind::Directory | Kind::Regular { .. } | Kind::HardLink { .. } => {
                return Err(failed("create the node", path, Errno::INVAL));
            }
        };
        fs::mknodat(parent, name, file_type, Mode::RUSR | Mode::WUSR, device)
            .map_err(|errno| failed("create the node", path, errno))?;
        dress_node(parent, name, path, attributes, false)
    }

    fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), WriteError> {
        let (from, from_name) = self.parent(target)?;
        let from = from.try_clone_to_owned().map_err(|error| {
            failed("enter", target, Errno::from_io_error(&error).unwrap_or(Errno::IO))
        })?;
        let (parent, name) = self.parent(path)?;
        fs::linkat(&from, from_name, parent, name, AtFlags::empty())
            .map_err(|errno| failed("link", path, errno))
    }

    /// Sets the final attributes of a directory.
    fn dress(&mut self, path: &[u8], attributes: &Attributes) -> Result<(), WriteError> {
        let directory = self.enter(path)?;
        apply(directory, attributes).map_err(|(action, errno)| failed(action, path, errno))
    }
}

fn failed(action: &'static str, path: &[u8], errno: Errno) -> WriteError {
    let path = if path.is_empty() { "/".to_owned() } else { shown(path) };
    WriteError::Write { action, path, errno }
}

fn is_prefix(directory: &[u8], path: &[u8]) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Attributes of what cannot be opened: links, devices, FIFOs, sockets.
fn dress_node(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    path: &[u8],
    attributes: &Attributes,
    symlink: bool,
) -> Result<(), WriteError> {
    let fail = |action| move |errno| failed(action, path, errno);
    let (uid, gid) = owner(attributes);
    fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(fail("set the owner of"))?;
    if !symlink {
        // The node is ours and new; no link can stand in its place.
        let mode = Mode::from_raw_mode(attributes.mode & 0o7777);
        fs::chmodat(parent, name, mode, AtFlags::empty()).map_err(fail("set the mode of"))?;
    }
    for (key, value) in &attributes.xattrs {
        let node = crate::tree::node_path(parent, name);
        fs::lsetxattr(&node, OsStr::from_bytes(key), value, fs::XattrFlags::empty())
            .map_err(fail("set an extended attribute of"))?;
    }
    fs::utimensat(parent, name, &timestamps(attributes.mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(fail("set the time of"))
}
