//! The sealed index of one layer set: its merged directory tree (§5.5), as one run
//! of bytes that is never changed.
//!
//! For a generation it is a file that all VAs of a host map and share (`cache.rs`); for
//! plain directories the same bytes in memory. It knows every path of every
//! layer, and nothing of any VA: what a VA hides is its own (`overlay.rs`).
//!
//! Bytes from a file are trusted no further than they can be checked: the header
//! at once, everything else a block at a time when it is first read, and every
//! number before it is followed. What does not hold makes the index *damaged*:
//! it answers nothing any more, and its user must give it up.

pub mod build;
pub mod cache;
pub mod format;
pub mod overlay;
pub mod pack;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use strata_core::Digest;
use strata_core::metadata::LayerKind;

use crate::sys::map::Map;
use crate::tree::Entry;
use build::{BuildError, Input, Merged};
use format::{
    BLOCK_BYTES, CHECK_BYTES, EntryRecord, FormatError, HEADER_BYTES, Header, LayerRecord,
    NodeRecord, Section, u32_at,
};
use pack::View;

/// Index of the root node.
pub const ROOT: u32 = 0;

/// An entry of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contribution {
    /// Position in the layer set, 0 is the topmost.
    pub layer: u32,
    /// Entry of that layer, in canonical order.
    pub entry: u32,
}

#[derive(Debug)]
enum Bytes {
    /// Made by this process.
    Owned(Vec<u8>),
    /// A file, held by a shared lock so that nobody prunes it.
    Mapped { map: Map, path: PathBuf, _lock: OwnedFd },
}

/// A sealed index.
#[derive(Debug)]
pub struct Index {
    bytes: Bytes,
    header: Header,
    layers: Vec<LayerRecord>,
    nodes: u32,
    /// One bit a block that was checked; none for bytes of our own.
    checked: Vec<AtomicU64>,
    damaged: AtomicBool,
}

impl Index {
    /// Merges layers (topmost first) in memory.
    ///
    /// # Errors
    /// Software layers share a path; the set is too large.
    pub fn build(layers: &[Input<'_>]) -> Result<Index, BuildError> {
        Self::of_merged(&build::merge(layers)?)
    }

    /// An index in memory.
    ///
    /// # Errors
    /// None that memory could give; a sink's.
    pub fn of_merged(merged: &Merged<'_>) -> Result<Index, BuildError> {
        let header = merged.header([0; 32], [0; 32]);
        let mut bytes = Vec::with_capacity(header.length());
        bytes.resize(HEADER_BYTES, 0);
        let head = merged.write(&header, &mut bytes)?;
        bytes[..HEADER_BYTES].copy_from_slice(&head);
        Ok(Self::of(Bytes::Owned(bytes), header))
    }

    /// The index in a mapped file.
    ///
    /// # Errors
    /// It is none, of another version, or its header is damaged.
    pub fn mapped(map: Map, path: PathBuf, lock: OwnedFd) -> Result<Index, FormatError> {
        let header = Header::parse(&map)?;
        let index = Self::of(Bytes::Mapped { map, path, _lock: lock }, header);
        let known = index.layers.iter().all(|layer| index.holds(layer));
        if known && !index.is_damaged() { Ok(index) } else { Err(FormatError::Sections) }
    }

    fn of(bytes: Bytes, header: Header) -> Index {
        let words = match bytes {
            Bytes::Owned(_) => 0,
            Bytes::Mapped { .. } => header.blocks().div_ceil(64),
        };
        let nodes = header.section(Section::Nodes).len() / NodeRecord::BYTES;
        let mut index = Index {
            bytes,
            layers: Vec::new(),
            nodes: u32::try_from(nodes).unwrap_or(u32::MAX),
            checked: std::iter::repeat_with(AtomicU64::default).take(words).collect(),
            damaged: AtomicBool::new(false),
            header,
        };
        let range = index.header.section(Section::Layers);
        let records = index.read(range.start, range.len()).unwrap_or_default();
        index.layers = records.chunks_exact(LayerRecord::BYTES).map(LayerRecord::parse).collect();
        index
    }

    /// Whether a layer's parts lie within their sections.
    fn holds(&self, layer: &LayerRecord) -> bool {
        let within = |first: u64, count: u64, section: Section| {
            let records = (self.header.section(section).len() / section.record()) as u64;
            first.checked_add(count).is_some_and(|end| end <= records)
        };
        within(layer.first_entry.into(), layer.entries.into(), Section::Entries)
            && within(layer.first_digest.into(), layer.digests.into(), Section::Digests)
            && within(layer.strings, layer.strings_length, Section::Strings)
    }

    pub fn key(&self) -> [u8; 32] {
        self.header.key
    }

    /// Bytes of the index, and whether they are a file's, shared with others.
    pub fn size(&self) -> (usize, bool) {
        (self.header.length(), matches!(self.bytes, Bytes::Mapped { .. }))
    }

    /// The cached file, if it is one.
    pub fn path(&self) -> Option<&std::path::Path> {
        match &self.bytes {
            Bytes::Mapped { path, .. } => Some(path),
            Bytes::Owned(_) => None,
        }
    }

    /// Something was read that does not hold: answers are not to be trusted any more.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }

    fn damage(&self) {
        if !self.damaged.swap(true, Ordering::AcqRel) {
            tracing::error!(path = ?self.path(), "the index of the layer set is damaged");
            // The next mount makes it anew; what is mapped here stays.
            if let Some(path) = self.path()
                && let Err(error) = std::fs::remove_file(path)
            {
                tracing::warn!(%error, "the damaged index stays");
            }
        }
    }

    /// Bytes of the file, checked.
    fn read(&self, start: usize, length: usize) -> Option<&[u8]> {
        let bytes: &[u8] = match &self.bytes {
            Bytes::Owned(bytes) => bytes,
            Bytes::Mapped { map, .. } => map,
        };
        let found = start.checked_add(length).and_then(|end| bytes.get(start..end));
        let sound =
            found.is_some() && (length == 0 || self.check(bytes, start, start + length - 1));
        if !sound {
            self.damage();
        }
        found.filter(|_| sound)
    }

    /// Checks the blocks from the one of byte `first` to the one of byte `last`.
    fn check(&self, bytes: &[u8], first: usize, last: usize) -> bool {
        if self.checked.is_empty() || first < HEADER_BYTES {
            return true;
        }
        let end = self.header.section(Section::Checks).start;
        let block = |at: usize| (at - HEADER_BYTES) / BLOCK_BYTES;
        (block(first)..=block(last)).all(|block| {
            let (word, bit) = (&self.checked[block / 64], 1 << (block % 64));
            if word.load(Ordering::Relaxed) & bit != 0 {
                return true;
            }
            let start = HEADER_BYTES + block * BLOCK_BYTES;
            let found = build::check(&bytes[start..end.min(start + BLOCK_BYTES)]);
            let sound = bytes[end + block * CHECK_BYTES..].starts_with(&found);
            if sound {
                word.fetch_or(bit, Ordering::Relaxed);
            }
            sound
        })
    }

    /// Record number `number` of a section.
    fn record(&self, section: Section, number: u32) -> Option<&[u8]> {
        let range = self.header.section(section);
        let bytes = section.record();
        let start = (number as usize).checked_mul(bytes)?.checked_add(range.start)?;
        if start.checked_add(bytes).is_none_or(|end| end > range.end) {
            self.damage();
            return None;
        }
        self.read(start, bytes)
    }

    fn string(&self, start: u64, length: u32) -> Option<&[u8]> {
        let range = self.header.section(Section::Strings);
        let start = usize::try_from(start).ok()?.checked_add(range.start)?;
        if start.checked_add(length as usize).is_none_or(|end| end > range.end) {
            self.damage();
            return None;
        }
        self.read(start, length as usize)
    }

    /// Number of paths in all layers together.
    pub fn node_count(&self) -> u32 {
        self.nodes
    }

    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// Number of paths of one layer.
    pub fn paths_of(&self, layer: u32) -> usize {
        self.layers.get(layer as usize).map_or(0, |layer| layer.entries as usize)
    }

    /// Digest and kind of a layer unit; `None` for a plain directory.
    pub fn unit(&self, layer: u32) -> Option<(Digest, LayerKind)> {
        let record = self.layers.get(layer as usize)?;
        let kind = match record.kind {
            0 => LayerKind::Software,
            1 => LayerKind::Configuration,
            _ => return None,
        };
        Some((Digest::from_bytes(record.digest), kind))
    }

    /// A layer's part, to merge it into another index.
    pub fn layer(&self, layer: u32) -> Option<View<'_>> {
        let record = self.layers.get(layer as usize)?;
        let part = |section: Section, first: u64, count: u64| {
            let start = usize::try_from(first).ok()?.checked_mul(section.record())?;
            let length = usize::try_from(count).ok()?.checked_mul(section.record())?;
            self.read(self.header.section(section).start.checked_add(start)?, length)
        };
        Some(View {
            entries: part(Section::Entries, record.first_entry.into(), record.entries.into())?,
            digests: part(Section::Digests, record.first_digest.into(), record.digests.into())?,
            strings: part(Section::Strings, record.strings, record.strings_length)?,
        })
    }

    /// A node; one without children or contributions where the index is damaged.
    pub fn node(&self, node: u32) -> NodeRecord {
        self.record(Section::Nodes, node).map(NodeRecord::parse).unwrap_or_default()
    }

    /// The contributions of a node, topmost first, whatever hides them.
    pub fn contributions(&self, node: &NodeRecord) -> Contributions<'_> {
        let range = self.header.section(Section::Contributions);
        let bytes = Section::Contributions.record();
        let start = (node.first_contribution as usize).saturating_mul(bytes) + range.start;
        let length = (node.contributions as usize).saturating_mul(bytes);
        if start.checked_add(length).is_none_or(|end| end > range.end) {
            self.damage();
            return Contributions::Sealed(&[]);
        }
        Contributions::Sealed(self.read(start, length).unwrap_or_default())
    }

    fn entry_record(&self, of: Contribution) -> Option<(&LayerRecord, EntryRecord)> {
        let layer = self.layers.get(of.layer as usize).filter(|layer| of.entry < layer.entries);
        let Some(layer) = layer else {
            self.damage();
            return None;
        };
        let record = self.record(Section::Entries, layer.first_entry.checked_add(of.entry)?)?;
        Some((layer, EntryRecord::parse(record)))
    }

    /// What stands at an entry; `None` where the index is damaged.
    pub fn entry(&self, of: Contribution) -> Option<Entry<'_>> {
        let (layer, record) = self.entry_record(of)?;
        let strings = |offset: u32, length| self.string(layer.strings + u64::from(offset), length);
        let digests = |number: u32| {
            let bytes = self.record(Section::Digests, layer.first_digest.checked_add(number)?)?;
            Some(Digest::from_bytes(*bytes.first_chunk()?))
        };
        let entry = pack::decode(&record, of.entry, strings, digests);
        if entry.is_none() {
            self.damage();
        }
        entry
    }

    pub fn is_directory(&self, of: Contribution) -> bool {
        self.entry_record(of).is_some_and(|(_, record)| record.kind == 0)
    }

    /// The entries and nodes of all names of an object, this one first.
    pub fn links(&self, of: Contribution) -> Vec<(Contribution, u32)> {
        let mut links = Vec::new();
        let mut at = of;
        while let Some((layer, record)) = self.entry_record(at) {
            links.push((at, record.node));
            at.entry = record.next_link;
            if at == of {
                break;
            }
            if links.len() > layer.entries as usize {
                self.damage();
                break;
            }
        }
        links
    }

    /// The name of a node.
    pub fn name(&self, node: &NodeRecord) -> &[u8] {
        self.string(node.name.into(), node.name_length.into()).unwrap_or_default()
    }

    /// The child of a node by name, whatever hides it.
    pub fn child(&self, node: &NodeRecord, name: &[u8]) -> Option<u32> {
        let (mut low, mut high) =
            (node.first_child, node.first_child.saturating_add(node.children));
        while low < high {
            let middle = low + (high - low) / 2;
            let found = self.record(Section::Nodes, middle)?;
            // The name alone: most of what is read here is passed over.
            let length = u32_at(found, 28) & 0xffff;
            match self.string(u32_at(found, 24).into(), length)?.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(middle),
            }
        }
        None
    }

    /// The node at a path (relative, `""` is the root), whatever hides it.
    pub fn find(&self, path: &[u8]) -> Option<u32> {
        if path.is_empty() {
            return Some(ROOT);
        }
        path.split(|b| *b == b'/').try_fold(ROOT, |node, name| self.child(&self.node(node), name))
    }

    /// The path of a node, relative to the root.
    pub fn path_of(&self, mut node: u32) -> Vec<u8> {
        let mut names = Vec::new();
        while node != ROOT && names.len() <= PATH_DEPTH {
            let record = self.node(node);
            names.push(self.name(&record));
            node = record.parent;
        }
        names.reverse();
        names.join(&b'/')
    }
}

/// No path has more components; a bound for damaged parents.
const PATH_DEPTH: usize = strata_core::limits::PATH_BYTES;

/// Contributions of a node, topmost first.
#[derive(Debug, Clone, Copy)]
pub enum Contributions<'a> {
    Sealed(&'a [u8]),
    Listed(&'a [Contribution]),
}

impl Contributions<'_> {
    pub fn len(&self) -> usize {
        match self {
            Contributions::Sealed(bytes) => bytes.len() / 8,
            Contributions::Listed(listed) => listed.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, at: usize) -> Option<Contribution> {
        match self {
            Contributions::Sealed(bytes) if at < bytes.len() / 8 => Some(Contribution {
                layer: u32_at(bytes, at * 8),
                entry: u32_at(bytes, at * 8 + 4),
            }),
            Contributions::Sealed(_) => None,
            Contributions::Listed(listed) => listed.get(at).copied(),
        }
    }
}

impl<'a> IntoIterator for Contributions<'a> {
    type Item = Contribution;
    type IntoIter = ContributionsIter<'a>;

    fn into_iter(self) -> ContributionsIter<'a> {
        ContributionsIter { of: self, range: 0..self.len() }
    }
}

/// Yields contributions, from either end.
#[derive(Debug)]
pub struct ContributionsIter<'a> {
    of: Contributions<'a>,
    range: std::ops::Range<usize>,
}

impl Iterator for ContributionsIter<'_> {
    type Item = Contribution;

    fn next(&mut self) -> Option<Contribution> {
        self.of.get(self.range.next()?)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.range.size_hint()
    }
}

impl DoubleEndedIterator for ContributionsIter<'_> {
    fn next_back(&mut self) -> Option<Contribution> {
        self.of.get(self.range.next_back()?)
    }
}

impl ExactSizeIterator for ContributionsIter<'_> {}
