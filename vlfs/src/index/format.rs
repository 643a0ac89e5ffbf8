//! The layout of a sealed index, version 1. All numbers are little endian.
//!
//! ```text
//! 0      header, 4096 bytes: see below
//! 4096   the sections, each at a multiple of 64 bytes, in the order of `Section`
//! ```
//!
//! Header:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 16 | `strata-index`, NULs |
//! | 16 | 4 | version, 1 |
//! | 20 | 4 | feature flags, none known: a reader refuses a set bit |
//! | 24 | 8 | length of the file in bytes |
//! | 32 | 32 | key: what the index was made from (`cache.rs`); NULs when it is not cached |
//! | 64 | 32 | generation id, or NULs |
//! | 96 | 4 | bytes of a block |
//! | 100 | 4 | number of sections, 7 |
//! | 104 | 24 each | the sections: id `u32`, bytes of a record `u32`, offset `u64`, length `u64` |
//! | 4032 | 32 | blake3 of the section `checks` |
//! | 4064 | 32 | blake3 of the header's first 4064 bytes |
//!
//! Sections:
//!
//! - `layers`, 80 bytes a layer, topmost first: unit digest (32, NULs for a plain directory);
//!   first entry `u32`, number of entries `u32`, first digest `u32`, number of digests `u32`;
//!   offset in `strings` `u64`, length there `u64`; kind `u32` (0 software, 1 configuration,
//!   2 plain directory); 12 bytes unused.
//! - `nodes`, 32 bytes a path of any layer, the children of a directory side by side in byte
//!   order of their names, in breadth-first order; node 0 is the root: parent `u32`; first
//!   contribution `u32`, number of contributions `u32`; first child `u32`, number of children
//!   `u32`; number of children that are directories by their topmost contribution `u32`;
//!   offset of the name in `strings` `u32`, length `u16`, flags `u16` (see [`NodeRecord`]).
//! - `contributions`, 8 bytes: layer `u32`, entry of that layer `u32`; of a node topmost first.
//! - `entries`, 80 bytes an entry, layer by layer, each in canonical order (a directory before its
//!   content): identity `u64`, size `u64`, blocks `u64`; mtime `i64` and nanoseconds `u32`;
//!   uid `u32`, gid `u32`; name `u32`, its length `u16`; mode `u16`; kind `u32` (the
//!   order of [`EntryRecord::kind`]); two numbers `u32` of the kind: a digest and 0, a link target's
//!   offset and length, a device's major and minor; extended attributes `u32` (0: none, else
//!   one more than the offset of a `u32` length and the packed bytes); node `u32`; the entry
//!   after its subtree `u32`; the next name of the same object `u32` (a ring; itself when alone).
//!   Digests, strings and entries are counted within the layer.
//! - `digests`, 32 bytes: contents of regular files, layer by layer.
//! - `strings`: names, targets and extended attributes, layer by layer.
//! - `checks`, 16 bytes for each block of the bytes from 4096 to this section: the start of its blake3.

use std::ops::Range;

pub const MAGIC: &[u8; 16] = b"strata-index\0\0\0\0";
pub const VERSION: u32 = 1;
pub const HEADER_BYTES: usize = 4096;
/// What is checked at once: small enough to cost little at the first use.
pub const BLOCK_BYTES: usize = 16 << 10;
pub const CHECK_BYTES: usize = 16;
const ALIGNMENT: usize = 64;
const TABLE: usize = 104;
const TABLE_ENTRY: usize = 24;
const CHECKS_DIGEST: usize = 4032;
const HEADER_DIGEST: usize = 4064;

/// Digest bytes of a unit, all NUL for a plain directory.
pub type UnitDigest = [u8; 32];

/// The sections in their order in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    Layers,
    Nodes,
    Contributions,
    Entries,
    Digests,
    Strings,
    Checks,
}

impl Section {
    pub const ALL: [Section; 7] = [
        Section::Layers,
        Section::Nodes,
        Section::Contributions,
        Section::Entries,
        Section::Digests,
        Section::Strings,
        Section::Checks,
    ];

    /// Bytes of a record.
    pub fn record(self) -> usize {
        match self {
            Section::Layers => LayerRecord::BYTES,
            Section::Nodes => NodeRecord::BYTES,
            Section::Contributions => 8,
            Section::Entries => EntryRecord::BYTES,
            Section::Digests => 32,
            Section::Strings => 1,
            Section::Checks => CHECK_BYTES,
        }
    }
}

/// Why bytes are no index that this program can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("it is no index")]
    Magic,
    #[error("its version is {0}, this program knows {VERSION}")]
    Version(u32),
    #[error("it has features that this program does not know: {0:#x}")]
    Features(u32),
    #[error("it has {found} bytes, its header says {expected}")]
    Length { found: usize, expected: u64 },
    #[error("its header is damaged")]
    Header,
    #[error("its sections do not fit")]
    Sections,
    #[error("its checks are damaged")]
    Checks,
    #[error("it is of another layer set")]
    Key,
}

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub key: [u8; 32],
    pub generation: [u8; 32],
    sections: [Range<usize>; 7],
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_le_bytes(*b))
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

impl Header {
    /// Places sections of these lengths (in bytes, in order) one after the other.
    pub fn place(key: [u8; 32], generation: [u8; 32], lengths: [usize; 7]) -> Header {
        let mut at = HEADER_BYTES;
        let sections = lengths.map(|length| {
            let start = at.next_multiple_of(ALIGNMENT);
            at = start + length;
            start..at
        });
        Header { key, generation, sections }
    }

    pub fn section(&self, section: Section) -> Range<usize> {
        self.sections[section as usize].clone()
    }

    /// Bytes of the whole file.
    pub fn length(&self) -> usize {
        self.section(Section::Checks).end
    }

    /// Number of blocks that are checked.
    pub fn blocks(&self) -> usize {
        (self.section(Section::Checks).start - HEADER_BYTES).div_ceil(BLOCK_BYTES)
    }

    pub fn print(&self, checks: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        put(&mut bytes, 0, *MAGIC);
        put(&mut bytes, 16, VERSION.to_le_bytes());
        put(&mut bytes, 24, (self.length() as u64).to_le_bytes());
        put(&mut bytes, 32, self.key);
        put(&mut bytes, 64, self.generation);
        put(&mut bytes, 96, (BLOCK_BYTES as u32).to_le_bytes());
        put(&mut bytes, 100, (Section::ALL.len() as u32).to_le_bytes());
        for section in Section::ALL {
            let at = TABLE + section as usize * TABLE_ENTRY;
            let range = self.section(section);
            put(&mut bytes, at, (section as u32).to_le_bytes());
            put(&mut bytes, at + 4, (section.record() as u32).to_le_bytes());
            put(&mut bytes, at + 8, (range.start as u64).to_le_bytes());
            put(&mut bytes, at + 16, (range.len() as u64).to_le_bytes());
        }
        put(&mut bytes, CHECKS_DIGEST, *blake3::hash(checks).as_bytes());
        let digest = blake3::hash(&bytes[..HEADER_DIGEST]);
        put(&mut bytes, HEADER_DIGEST, *digest.as_bytes());
        bytes
    }

    /// Reads and checks the header of a whole file, and its section `checks`.
    ///
    /// # Errors
    /// It is of another kind or version, or damaged there.
    pub fn parse(file: &[u8]) -> Result<Header, FormatError> {
        let bytes = file.get(..HEADER_BYTES).ok_or(FormatError::Magic)?;
        if &bytes[..16] != MAGIC {
            return Err(FormatError::Magic);
        }
        match (u32_at(bytes, 16), u32_at(bytes, 20)) {
            (VERSION, 0) => {}
            (VERSION, features) => return Err(FormatError::Features(features)),
            (version, _) => return Err(FormatError::Version(version)),
        }
        let expected = u64_at(bytes, 24);
        if expected != file.len() as u64 {
            return Err(FormatError::Length { found: file.len(), expected });
        }
        if blake3::hash(&bytes[..HEADER_DIGEST]).as_bytes()[..] != bytes[HEADER_DIGEST..] {
            return Err(FormatError::Header);
        }
        let header = Self::sections_of(bytes).ok_or(FormatError::Sections)?;
        if header.length() != file.len() {
            return Err(FormatError::Sections);
        }
        let checks = &file[header.section(Section::Checks)];
        if blake3::hash(checks).as_bytes()[..] != bytes[CHECKS_DIGEST..HEADER_DIGEST] {
            return Err(FormatError::Checks);
        }
        Ok(header)
    }

    fn sections_of(bytes: &[u8]) -> Option<Header> {
        let mut lengths = [0; 7];
        for section in Section::ALL {
            let at = TABLE + section as usize * TABLE_ENTRY;
            let length = usize::try_from(u64_at(bytes, at + 16)).ok()?;
            let known = u32_at(bytes, at) == section as u32
                && u32_at(bytes, at + 4) == section.record() as u32
                && u64_at(bytes, at + 16) <= u64_at(bytes, 24)
                && length % section.record() == 0;
            if !known {
                return None;
            }
            lengths[section as usize] = length;
        }
        let (mut key, mut generation) = ([0; 32], [0; 32]);
        key.copy_from_slice(&bytes[32..64]);
        generation.copy_from_slice(&bytes[64..96]);
        let header = Header::place(key, generation, lengths);
        let placed = |section| {
            let at = TABLE + section as usize * TABLE_ENTRY;
            u64_at(bytes, at + 8) == header.section(section).start as u64
        };
        let whole = u32_at(bytes, 96) as usize == BLOCK_BYTES
            && Section::ALL.into_iter().all(placed)
            && header.section(Section::Checks).len() == header.blocks() * CHECK_BYTES;
        whole.then_some(header)
    }
}

/// One layer of the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerRecord {
    pub digest: UnitDigest,
    pub first_entry: u32,
    pub entries: u32,
    pub first_digest: u32,
    pub digests: u32,
    pub strings: u64,
    pub strings_length: u64,
    pub kind: u32,
}

impl LayerRecord {
    pub const BYTES: usize = 80;

    pub fn print(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        put(&mut bytes, 0, self.digest);
        put(&mut bytes, 32, self.first_entry.to_le_bytes());
        put(&mut bytes, 36, self.entries.to_le_bytes());
        put(&mut bytes, 40, self.first_digest.to_le_bytes());
        put(&mut bytes, 44, self.digests.to_le_bytes());
        put(&mut bytes, 48, self.strings.to_le_bytes());
        put(&mut bytes, 56, self.strings_length.to_le_bytes());
        put(&mut bytes, 64, self.kind.to_le_bytes());
        bytes
    }

    pub fn parse(bytes: &[u8]) -> LayerRecord {
        let mut digest = [0; 32];
        digest.copy_from_slice(&bytes[..32]);
        LayerRecord {
            digest,
            first_entry: u32_at(bytes, 32),
            entries: u32_at(bytes, 36),
            first_digest: u32_at(bytes, 40),
            digests: u32_at(bytes, 44),
            strings: u64_at(bytes, 48),
            strings_length: u64_at(bytes, 56),
            kind: u32_at(bytes, 64),
        }
    }
}

/// A path of any layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeRecord {
    pub parent: u32,
    pub first_contribution: u32,
    pub contributions: u32,
    pub first_child: u32,
    pub children: u32,
    pub directories: u32,
    /// Offset in the whole section `strings`.
    pub name: u32,
    pub name_length: u16,
    pub flags: u16,
}

impl NodeRecord {
    pub const BYTES: usize = 32;
    /// Flag: something that is no directory stands above a directory here.
    pub const OBSCURES: u16 = 1;
    /// Flag: a node below has [`NodeRecord::OBSCURES`].
    pub const OBSCURES_BELOW: u16 = 2;

    pub fn print(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        put(&mut bytes, 0, self.parent.to_le_bytes());
        put(&mut bytes, 4, self.first_contribution.to_le_bytes());
        put(&mut bytes, 8, self.contributions.to_le_bytes());
        put(&mut bytes, 12, self.first_child.to_le_bytes());
        put(&mut bytes, 16, self.children.to_le_bytes());
        put(&mut bytes, 20, self.directories.to_le_bytes());
        put(&mut bytes, 24, self.name.to_le_bytes());
        put(&mut bytes, 28, self.name_length.to_le_bytes());
        put(&mut bytes, 30, self.flags.to_le_bytes());
        bytes
    }

    pub fn parse(bytes: &[u8]) -> NodeRecord {
        NodeRecord {
            parent: u32_at(bytes, 0),
            first_contribution: u32_at(bytes, 4),
            contributions: u32_at(bytes, 8),
            first_child: u32_at(bytes, 12),
            children: u32_at(bytes, 16),
            directories: u32_at(bytes, 20),
            name: u32_at(bytes, 24),
            name_length: u16_at(bytes, 28),
            flags: u16_at(bytes, 30),
        }
    }
}

/// A path of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EntryRecord {
    pub identity: u64,
    pub size: u64,
    pub blocks: u64,
    pub seconds: i64,
    pub nanoseconds: u32,
    pub uid: u32,
    pub gid: u32,
    pub name: u32,
    pub name_length: u16,
    pub mode: u16,
    /// 0 directory, 1 regular file with a digest, 2 without, 3 symbolic link,
    /// 4 character device, 5 block device, 6 FIFO, 7 socket.
    pub kind: u32,
    pub payload: (u32, u32),
    /// 0, or one more than the offset of the packed attributes.
    pub xattrs: u32,
    pub node: u32,
    pub subtree_end: u32,
    pub next_link: u32,
}

impl EntryRecord {
    pub const BYTES: usize = 80;
    /// Where [`EntryRecord::node`] stands in a record.
    pub const NODE: usize = 68;
    /// Where [`EntryRecord::subtree_end`] stands.
    pub const SUBTREE_END: usize = 72;
    /// Where [`EntryRecord::next_link`] stands.
    pub const NEXT_LINK: usize = 76;

    pub fn print(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        put(&mut bytes, 0, self.identity.to_le_bytes());
        put(&mut bytes, 8, self.size.to_le_bytes());
        put(&mut bytes, 16, self.blocks.to_le_bytes());
        put(&mut bytes, 24, self.seconds.to_le_bytes());
        put(&mut bytes, 32, self.nanoseconds.to_le_bytes());
        put(&mut bytes, 36, self.uid.to_le_bytes());
        put(&mut bytes, 40, self.gid.to_le_bytes());
        put(&mut bytes, 44, self.name.to_le_bytes());
        put(&mut bytes, 48, self.name_length.to_le_bytes());
        put(&mut bytes, 50, self.mode.to_le_bytes());
        put(&mut bytes, 52, self.kind.to_le_bytes());
        put(&mut bytes, 56, self.payload.0.to_le_bytes());
        put(&mut bytes, 60, self.payload.1.to_le_bytes());
        put(&mut bytes, 64, self.xattrs.to_le_bytes());
        put(&mut bytes, Self::NODE, self.node.to_le_bytes());
        put(&mut bytes, Self::SUBTREE_END, self.subtree_end.to_le_bytes());
        put(&mut bytes, Self::NEXT_LINK, self.next_link.to_le_bytes());
        bytes
    }

    pub fn parse(bytes: &[u8]) -> EntryRecord {
        EntryRecord {
            identity: u64_at(bytes, 0),
            size: u64_at(bytes, 8),
            blocks: u64_at(bytes, 16),
            seconds: u64_at(bytes, 24).cast_signed(),
            nanoseconds: u32_at(bytes, 32),
            uid: u32_at(bytes, 36),
            gid: u32_at(bytes, 40),
            name: u32_at(bytes, 44),
            name_length: u16_at(bytes, 48),
            mode: u16_at(bytes, 50),
            kind: u32_at(bytes, 52),
            payload: (u32_at(bytes, 56), u32_at(bytes, 60)),
            xattrs: u32_at(bytes, 64),
            node: u32_at(bytes, Self::NODE),
            subtree_end: u32_at(bytes, Self::SUBTREE_END),
            next_link: u32_at(bytes, Self::NEXT_LINK),
        }
    }
}
