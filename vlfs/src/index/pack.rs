//! One layer's tree in the form of the index, before the layers are merged.
//!
//! Entries stand in canonical order (a directory before its content); entry 0 is
//! the root. No I/O.

use std::collections::{BTreeMap, HashMap};

use strata_core::Digest;
use strata_core::manifest::{self, Manifest, Timestamp};

use super::format::{EntryRecord, u32_at};
use crate::tree::{Attributes, Content, Entry, Kind, Xattrs, identity, pack_xattrs};

/// The three parts of a layer in the index.
#[derive(Debug, Clone, Default)]
pub struct Packed {
    pub entries: Vec<u8>,
    pub digests: Vec<u8>,
    pub strings: Vec<u8>,
}

/// The same, borrowed: from a [`Packed`] layer or from another index.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub entries: &'a [u8],
    pub digests: &'a [u8],
    pub strings: &'a [u8],
}

impl<'a> View<'a> {
    /// Number of entries.
    pub fn count(&self) -> usize {
        self.entries.len() / EntryRecord::BYTES
    }

    pub fn record(&self, entry: u32) -> Option<EntryRecord> {
        let start = (entry as usize).checked_mul(EntryRecord::BYTES)?;
        self.entries.get(start..start + EntryRecord::BYTES).map(EntryRecord::parse)
    }

    fn number(&self, entry: u32, at: usize) -> u32 {
        u32_at(self.entries, (entry as usize).saturating_mul(EntryRecord::BYTES) + at)
    }

    pub fn name(&self, entry: u32) -> &'a [u8] {
        let name = self.record(entry).and_then(|record| {
            let start = record.name as usize;
            self.strings.get(start..start + usize::from(record.name_length))
        });
        name.unwrap_or_default()
    }

    pub fn is_directory(&self, entry: u32) -> bool {
        self.record(entry).is_some_and(|record| record.kind == 0)
    }

    /// The children of a directory, in order of their names.
    pub fn children(&self, directory: u32) -> impl Iterator<Item = u32> + use<'a> {
        let view = *self;
        let end = view.number(directory, EntryRecord::SUBTREE_END).min(view.count() as u32);
        let mut at = directory + 1;
        std::iter::from_fn(move || {
            let child = (at < end).then_some(at)?;
            // Never back, whatever the bytes say.
            at = view.number(child, EntryRecord::SUBTREE_END).max(child + 1);
            Some(child)
        })
    }

    pub fn entry(&self, entry: u32) -> Option<Entry<'a>> {
        let view = *self;
        let strings =
            |offset: u32, length: u32| view.strings.get(offset as usize..)?.get(..length as usize);
        decode(&self.record(entry)?, entry, strings, |digest| {
            let bytes = view.digests.get(digest as usize * 32..)?.first_chunk()?;
            Some(Digest::from_bytes(*bytes))
        })
    }
}

/// Reads a record: `strings` gives bytes by offset and length, `digests` by number.
/// `None`: it points where nothing is.
pub fn decode<'a>(
    record: &EntryRecord,
    number: u32,
    strings: impl Fn(u32, u32) -> Option<&'a [u8]>,
    digests: impl FnOnce(u32) -> Option<Digest>,
) -> Option<Entry<'a>> {
    let mut device = (0, 0);
    let kind = match record.kind {
        0 => Kind::Directory,
        1 => Kind::Regular { digest: Some(digests(record.payload.0)?) },
        2 => Kind::Regular { digest: None },
        3 => Kind::Symlink { target: strings(record.payload.0, record.payload.1)? },
        4 | 5 => {
            device = record.payload;
            if record.kind == 4 { Kind::CharacterDevice } else { Kind::BlockDevice }
        }
        6 => Kind::Fifo,
        7 => Kind::Socket,
        _ => return None,
    };
    let xattrs = match record.xattrs.checked_sub(1) {
        None => Xattrs::default(),
        Some(offset) => {
            let length = u32_at(strings(offset, 4)?, 0);
            Xattrs(strings(offset.checked_add(4)?, length)?)
        }
    };
    Some(Entry {
        name: strings(record.name, record.name_length.into())?,
        kind,
        attributes: Attributes {
            mode: record.mode.into(),
            uid: record.uid,
            gid: record.gid,
            mtime: Timestamp { seconds: record.seconds, nanoseconds: record.nanoseconds },
            size: record.size,
            blocks: record.blocks,
            device,
            xattrs,
        },
        identity: record.identity,
        has_links: record.next_link != number,
    })
}

impl Packed {
    pub fn view(&self) -> View<'_> {
        View { entries: &self.entries, digests: &self.digests, strings: &self.strings }
    }

    /// The tree that a manifest describes. Sizes of 512-byte blocks are
    /// rounded up from the size: a manifest does not know holes.
    pub fn from_manifest(manifest: &Manifest) -> Packed {
        let mut packer = Packer::default();
        let mut linked: HashMap<&[u8], u32> = HashMap::new();
        for entry in manifest.entries() {
            let xattrs = pack_xattrs(&entry.xattrs);
            let mut attributes = Attributes {
                mode: entry.mode,
                uid: entry.uid,
                gid: entry.gid,
                mtime: entry.mtime,
                xattrs: Xattrs(&xattrs),
                ..Attributes::default()
            };
            let mut content = None;
            let kind = match &entry.kind {
                manifest::Kind::Directory => {
                    (attributes.size, attributes.blocks) = (4096, 8);
                    Kind::Directory
                }
                manifest::Kind::Regular { size, digest } => {
                    (attributes.size, attributes.blocks) = (*size, size.div_ceil(512));
                    content = Some(*digest);
                    Kind::Regular { digest: content }
                }
                manifest::Kind::Symlink { target } => {
                    attributes.size = target.len() as u64;
                    content = Some(Digest::of(target));
                    Kind::Symlink { target }
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
                    // A manifest that was parsed has the first name before the others.
                    if let Some(first) = linked.get(target.as_slice()) {
                        packer.push_link(&entry.path, *first);
                    }
                    continue;
                }
            };
            let content = content.as_ref().map_or(Content::None, Content::Digest);
            let index = packer.push(&entry.path, &kind, &attributes, &content);
            if entry.link_count > 1 {
                linked.insert(&entry.path, index);
            }
        }
        packer.finish()
    }
}

/// Adds entries in canonical order.
#[derive(Debug, Default)]
pub struct Packer {
    packed: Packed,
    count: u32,
    /// The open directories, root first: their paths and entries.
    open: Vec<(Vec<u8>, u32)>,
    /// Packed attributes that were stored already, and where.
    xattrs: BTreeMap<Vec<u8>, u32>,
}

impl Packer {
    /// Appends the object at `path` (relative, `""` is the root). Returns its entry.
    ///
    /// The caller keeps canonical order and gives every directory before its content.
    pub fn push(
        &mut self,
        path: &[u8],
        kind: &Kind<'_>,
        attributes: &Attributes<'_>,
        content: &Content<'_>,
    ) -> u32 {
        let (kind, payload) = match kind {
            Kind::Directory => (0, (0, 0)),
            Kind::Regular { digest: Some(digest) } => {
                let number = (self.packed.digests.len() / 32) as u32;
                self.packed.digests.extend_from_slice(digest.as_bytes());
                (1, (number, 0))
            }
            Kind::Regular { digest: None } => (2, (0, 0)),
            Kind::Symlink { target } => (3, (self.string(target), target.len() as u32)),
            Kind::CharacterDevice => (4, attributes.device),
            Kind::BlockDevice => (5, attributes.device),
            Kind::Fifo => (6, (0, 0)),
            Kind::Socket => (7, (0, 0)),
        };
        let record = EntryRecord {
            identity: identity(path, content),
            size: attributes.size,
            blocks: attributes.blocks,
            seconds: attributes.mtime.seconds,
            nanoseconds: attributes.mtime.nanoseconds,
            uid: attributes.uid,
            gid: attributes.gid,
            mode: (attributes.mode & 0o7777) as u16,
            kind,
            payload,
            xattrs: self.attributes(attributes.xattrs.0),
            next_link: self.count,
            ..EntryRecord::default()
        };
        self.append(path, record)
    }

    /// Appends a further name of the object whose first name is `first`.
    pub fn push_link(&mut self, path: &[u8], first: u32) -> u32 {
        let entry = self.count;
        let Some(object) = self.packed.view().record(first) else { return first };
        self.patch(first, EntryRecord::NEXT_LINK, entry);
        self.append(path, object)
    }

    fn append(&mut self, path: &[u8], record: EntryRecord) -> u32 {
        let entry = self.count;
        if let Some(parent) = manifest::parent_path(path) {
            while self.open.last().is_some_and(|(open, _)| open != parent) {
                self.close();
            }
        }
        if record.kind == 0 {
            self.open.push((path.to_vec(), entry));
        }
        let name = manifest::file_name(path);
        let record = EntryRecord {
            name: self.string(name),
            name_length: name.len() as u16,
            subtree_end: entry + 1,
            ..record
        };
        self.packed.entries.extend_from_slice(&record.print());
        self.count += 1;
        entry
    }

    fn close(&mut self) {
        if let Some((_, directory)) = self.open.pop() {
            self.patch(directory, EntryRecord::SUBTREE_END, self.count);
        }
    }

    fn patch(&mut self, entry: u32, at: usize, value: u32) {
        let start = entry as usize * EntryRecord::BYTES + at;
        self.packed.entries[start..start + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn string(&mut self, bytes: &[u8]) -> u32 {
        let offset = self.packed.strings.len() as u32;
        self.packed.strings.extend_from_slice(bytes);
        offset
    }

    fn attributes(&mut self, packed: &[u8]) -> u32 {
        if packed.is_empty() {
            return 0;
        }
        if let Some(known) = self.xattrs.get(packed) {
            return *known;
        }
        let offset = self.string(&(packed.len() as u32).to_le_bytes());
        self.string(packed);
        self.xattrs.insert(packed.to_vec(), offset + 1);
        offset + 1
    }

    pub fn finish(mut self) -> Packed {
        while !self.open.is_empty() {
            self.close();
        }
        self.packed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_golden_manifest_is_read_back_entry_by_entry() {
        let text = include_bytes!("../../core/golden/manifest");
        let manifest = Manifest::parse(text).expect("golden");
        let packed = Packed::from_manifest(&manifest);
        let view = packed.view();
        assert_eq!(view.count(), manifest.entries().len());
        for (number, entry) in (0..).zip(manifest.entries()) {
            let found = view.entry(number).expect("an entry");
            assert_eq!(found.name, manifest::file_name(&entry.path));
            let linked = entry.link_count > 1;
            assert_eq!(found.has_links, linked, "{:?}", entry.path);
            if !matches!(entry.kind, manifest::Kind::HardLink { .. }) {
                assert_eq!(
                    (found.attributes.mode, found.attributes.mtime),
                    (entry.mode, entry.mtime)
                );
                assert_eq!(found.attributes.xattrs.0, pack_xattrs(&entry.xattrs));
            }
        }
        let names = |directory| -> Vec<&[u8]> {
            view.children(directory).map(|child| view.name(child)).collect()
        };
        assert_eq!(names(0), [&b"-"[..], b"dev", b"usr"]);
        let usr = view.children(0).nth(2).expect("three");
        assert_eq!(names(usr), [&b"bin"[..], b"bin-x", "\u{e9}".as_bytes()]);
        let bin = view.children(usr).next().expect("bin");
        let perl = view.children(bin).next().expect("perl");
        assert_eq!(view.record(perl).map(|r| r.next_link), Some(perl + 1));
        assert_eq!(view.record(perl + 1).map(|r| r.next_link), Some(perl), "a ring");
        assert_eq!(
            view.record(perl).map(|r| r.identity),
            view.record(perl + 1).map(|r| r.identity)
        );
    }
}
