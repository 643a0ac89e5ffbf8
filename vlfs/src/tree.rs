//! The tree of one read-only layer, in memory: what every lookup is answered from.
//!
//! Built from a manifest or from a scan (`layer.rs`); this module does no I/O.
//! Entries stand in canonical order (a directory before its content); entry 0
//! is the root. Each object carries its *identity*, the `st_ino` that the
//! mounted file system shows: a hash of the first of its paths and of what
//! tells its content apart, so that it is the same after a remount and, for an
//! unchanged file, after a swap. Hard links inside the layer share it.

use std::collections::BTreeMap;

use strata_core::Digest;
use strata_core::manifest::{self, Manifest, Timestamp};

/// `st_ino` of the file system's root.
pub const ROOT_IDENTITY: u64 = 1;
/// Set in the `st_ino` of objects that exist in the private layer alone; never in a hash.
pub const PRIVATE_TAG: u64 = 1 << 62;

/// What an object is, with what only that kind has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Children by name, as indices of [`Tree::entries`].
    Directory {
        children: Vec<u32>,
    },
    /// `digest` is known for layers with a manifest.
    Regular {
        digest: Option<Digest>,
    },
    Symlink {
        target: Box<[u8]>,
    },
    CharacterDevice,
    BlockDevice,
    Fifo,
    Socket,
}

/// The attributes that an object shows. Sizes in bytes, `blocks` in 512-byte units.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attributes {
    /// Permission bits, 07777.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    pub size: u64,
    pub blocks: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// One name of a layer.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: Box<[u8]>,
    pub parent: u32,
    pub kind: Kind,
    pub attributes: Attributes,
    pub identity: u64,
    /// The entry of the first name of a hard-linked object; `None` when there is one name.
    pub link_group: Option<u32>,
}

impl Entry {
    pub fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory { .. })
    }
}

#[derive(Debug, Clone)]
pub struct Tree {
    entries: Vec<Entry>,
}

/// What tells the content of an object apart, for its identity.
pub enum Content<'a> {
    Digest(&'a Digest),
    /// Device and inode number of the file that backs it.
    Backing(u64, u64),
    None,
}

/// The identity of the object whose first path is `path`.
pub fn identity(path: &[u8], content: &Content<'_>) -> u64 {
    if path.is_empty() {
        return ROOT_IDENTITY;
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(path);
    match content {
        Content::Digest(digest) => {
            hasher.update(b"\0digest\0").update(digest.as_bytes());
        }
        Content::Backing(device, inode) => {
            hasher.update(b"\0backing\0");
            hasher.update(&device.to_le_bytes()).update(&inode.to_le_bytes());
        }
        Content::None => {}
    }
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    let hash = u64::from_le_bytes(bytes) & (PRIVATE_TAG - 1);
    hash.max(ROOT_IDENTITY + 1)
}

/// Adds entries in canonical order.
pub struct TreeBuilder {
    entries: Vec<Entry>,
    /// The open directories, root first: their paths' lengths and entries.
    open: Vec<(Vec<u8>, u32)>,
}

impl TreeBuilder {
    pub fn new() -> Self {
        TreeBuilder { entries: Vec::new(), open: Vec::new() }
    }

    /// Appends the object at `path` (relative, `""` is the root). Returns its entry.
    ///
    /// The caller keeps canonical order and gives every directory before its content.
    pub fn push(
        &mut self,
        path: &[u8],
        kind: Kind,
        attributes: Attributes,
        content: &Content<'_>,
        link_group: Option<u32>,
    ) -> u32 {
        let index = u32::try_from(self.entries.len()).expect("a layer has under 2^32 paths");
        let parent_path = manifest::parent_path(path);
        let mut parent = 0;
        if let Some(parent_path) = parent_path {
            while self.open.last().is_some_and(|(open, _)| open != parent_path) {
                self.open.pop();
            }
            parent = self.open.last().map_or(0, |(_, entry)| *entry);
            if let Some(Entry { kind: Kind::Directory { children }, .. }) =
                self.entries.get_mut(parent as usize)
            {
                children.push(index);
            }
        }
        let identity = match link_group {
            Some(first) if first != index => self.entries[first as usize].identity,
            _ => identity(path, content),
        };
        if matches!(kind, Kind::Directory { .. }) {
            self.open.push((path.to_vec(), index));
        }
        let name = manifest::file_name(path).into();
        self.entries.push(Entry { name, parent, kind, attributes, identity, link_group });
        index
    }

    /// Makes `first` the head of a link group, when a second name of it turns up.
    pub fn join_group(&mut self, first: u32) {
        self.entries[first as usize].link_group = Some(first);
    }

    pub fn entry(&self, index: u32) -> &Entry {
        &self.entries[index as usize]
    }

    pub fn finish(self) -> Tree {
        Tree { entries: self.entries }
    }
}

impl Default for TreeBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// The tree that a manifest describes. Sizes of 512-byte blocks are
    /// rounded up from the size: a manifest does not know holes.
    pub fn from_manifest(manifest: &Manifest) -> Tree {
        let mut builder = TreeBuilder::new();
        let mut linked: BTreeMap<&[u8], u32> = BTreeMap::new();
        for entry in manifest.entries() {
            let mut attributes = Attributes {
                mode: entry.mode,
                uid: entry.uid,
                gid: entry.gid,
                mtime: entry.mtime,
                xattrs: entry.xattrs.clone(),
                ..Attributes::default()
            };
            let mut digest = None;
            let mut group = None;
            let kind = match &entry.kind {
                manifest::Kind::Directory => {
                    attributes.size = 4096;
                    attributes.blocks = 8;
                    Kind::Directory { children: Vec::new() }
                }
                manifest::Kind::Regular { size, digest: content } => {
                    attributes.size = *size;
                    attributes.blocks = size.div_ceil(512);
                    digest = Some(*content);
                    Kind::Regular { digest }
                }
                manifest::Kind::Symlink { target } => {
                    attributes.size = target.len() as u64;
                    Kind::Symlink { target: target.as_slice().into() }
                }
                manifest::Kind::CharacterDevice { major, minor } => {
                    attributes.device = (*major, *minor);
                    Kind::CharacterDevice
                }
                manifest::Kind::BlockDevice { major, minor } => {
                    attributes.device = (*major, *minor);
                    Kind::BlockDevice
                }
                manifest::Kind::Fifo => Kind::Fifo,
                manifest::Kind::Socket => Kind::Socket,
                manifest::Kind::HardLink { target } => {
                    let Some(first) = linked.get(target.as_slice()) else { continue };
                    group = Some(*first);
                    builder.join_group(*first);
                    attributes = builder.entry(*first).attributes.clone();
                    builder.entry(*first).kind.clone()
                }
            };
            let target = match (&digest, &kind) {
                (Some(digest), _) => Some(*digest),
                (None, Kind::Symlink { target }) => Some(Digest::of(target)),
                _ => None,
            };
            let content = target.as_ref().map_or(Content::None, Content::Digest);
            let index = builder.push(&entry.path, kind, attributes, &content, group);
            if entry.link_count > 1 && group.is_none() {
                linked.insert(&entry.path, index);
            }
        }
        builder.finish()
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn entry(&self, index: u32) -> &Entry {
        &self.entries[index as usize]
    }

    pub fn children(&self, index: u32) -> &[u32] {
        match &self.entry(index).kind {
            Kind::Directory { children } => children,
            _ => &[],
        }
    }

    /// The child of a directory by name.
    pub fn child(&self, directory: u32, name: &[u8]) -> Option<u32> {
        let children = self.children(directory);
        let at = children.binary_search_by(|child| (*self.entry(*child).name).cmp(name)).ok()?;
        Some(children[at])
    }

    /// The entry at a path relative to the root.
    pub fn find(&self, path: &[u8]) -> Option<u32> {
        if path.is_empty() {
            return Some(0);
        }
        path.split(|b| *b == b'/').try_fold(0, |entry, name| self.child(entry, name))
    }

    /// The path of an entry, relative to the root.
    pub fn path(&self, index: u32) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = index;
        while at != 0 {
            names.push(&*self.entry(at).name);
            at = self.entry(at).parent;
        }
        names.reverse();
        names.join(&b'/')
    }
}
