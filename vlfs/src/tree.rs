//! What stands at one path of a layer, as the index shows it; pure data.
//!
//! Each object carries its *identity*, the `st_ino` that the mounted file system
//! shows: a hash of the first of its paths and of what tells its content apart,
//! so that it is the same after a remount and, for an unchanged file, after a
//! swap. Hard links inside the layer share it.

use std::collections::BTreeMap;

use strata_core::Digest;
use strata_core::manifest::Timestamp;

/// `st_ino` of the file system's root.
pub const ROOT_IDENTITY: u64 = 1;
/// Set in the `st_ino` of objects that exist in the private layer alone; never in a hash.
pub const PRIVATE_TAG: u64 = 1 << 62;

/// What an object is, with what only that kind has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'a> {
    Directory,
    /// `digest` is known for layers with a manifest.
    Regular {
        digest: Option<Digest>,
    },
    Symlink {
        target: &'a [u8],
    },
    CharacterDevice,
    BlockDevice,
    Fifo,
    Socket,
}

/// The attributes that an object shows. Sizes in bytes, `blocks` in 512-byte units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes<'a> {
    /// Permission bits, 07777.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    pub size: u64,
    pub blocks: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    pub xattrs: Xattrs<'a>,
}

/// One name of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    pub name: &'a [u8],
    pub kind: Kind<'a>,
    pub attributes: Attributes<'a>,
    pub identity: u64,
    /// The object has further names in its layer.
    pub has_links: bool,
}

impl Entry<'_> {
    pub fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory)
    }
}

/// Extended attributes by name, in their packed form: for each, in byte order of
/// the names, the length of the name (`u16`) and of the value (`u32`), little
/// endian, then both. Bytes that are cut short end the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Xattrs<'a>(pub &'a [u8]);

impl<'a> Xattrs<'a> {
    pub fn get(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.into_iter().find_map(|(found, value)| (found == name).then_some(value))
    }

    pub fn names(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.into_iter().map(|(name, _)| name)
    }
}

impl<'a> IntoIterator for Xattrs<'a> {
    type Item = (&'a [u8], &'a [u8]);
    type IntoIter = XattrsIter<'a>;

    fn into_iter(self) -> XattrsIter<'a> {
        XattrsIter(self.0)
    }
}

impl<'a> IntoIterator for &Xattrs<'a> {
    type Item = (&'a [u8], &'a [u8]);
    type IntoIter = XattrsIter<'a>;

    fn into_iter(self) -> XattrsIter<'a> {
        XattrsIter(self.0)
    }
}

/// Yields name and value.
#[derive(Debug)]
pub struct XattrsIter<'a>(&'a [u8]);

impl<'a> Iterator for XattrsIter<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, rest) = self.0.split_first_chunk::<2>()?;
        let (value, rest) = rest.split_first_chunk::<4>()?;
        let (name, rest) = rest.split_at_checked(u16::from_le_bytes(*name).into())?;
        let value = usize::try_from(u32::from_le_bytes(*value)).ok()?;
        let (value, rest) = rest.split_at_checked(value)?;
        self.0 = rest;
        Some((name, value))
    }
}

/// Packs extended attributes; none pack to nothing. Names have under 2^16 bytes,
/// values under 2^32 (the kernel's limits are far below).
pub fn pack_xattrs(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<u8> {
    let mut packed = Vec::new();
    for (name, value) in xattrs {
        let lengths = (u16::try_from(name.len()), u32::try_from(value.len()));
        let (Ok(name_length), Ok(value_length)) = lengths else { continue };
        packed.extend_from_slice(&name_length.to_le_bytes());
        packed.extend_from_slice(&value_length.to_le_bytes());
        packed.extend_from_slice(name);
        packed.extend_from_slice(value);
    }
    packed
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_attributes_are_read_back_and_cut_ones_end() {
        let all: BTreeMap<_, _> = [
            (b"security.capability".to_vec(), vec![1, 0, 2]),
            (b"user.empty".to_vec(), Vec::new()),
        ]
        .into();
        let packed = pack_xattrs(&all);
        let read = Xattrs(&packed).into_iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
        assert_eq!(all, read);
        assert_eq!(Xattrs(&packed).get(b"user.empty"), Some(&b""[..]));
        assert_eq!(Xattrs(&packed).get(b"user.other"), None);
        for length in 0..packed.len() {
            assert!(Xattrs(&packed[..length]).into_iter().count() < 2);
        }
    }
}
