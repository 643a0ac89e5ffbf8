//! The manifest of a layer: every path with all its metadata (`docs/formats.md`, "Manifest").
//!
//! A header line, then one line a path in the field order and escapes of the
//! composefs dump format, with blake3 digests of contents. Paths are bytes,
//! relative to the layer's root (`""` is the root itself). The order is
//! canonical: by components, so that a directory is followed by its subtree.
//! [`Manifest::parse`] accepts canonical manifests only, so equal trees have
//! equal bytes and [`Digest::of`] them is the tree's identity.

mod line;

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::digest::Digest;
use crate::limits;
use crate::position::Located;
pub(crate) use line::{escape, unescape};
use line::{parse_entry, print_entry};

/// First line of every manifest: the format's name and version.
pub const HEADER: &str = "strata-manifest 1";

/// Seconds and nanoseconds since 1970, as `st_mtim`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Directory,
    /// `size` in bytes, `digest` of the content.
    Regular {
        size: u64,
        digest: Digest,
    },
    Symlink {
        target: Vec<u8>,
    },
    CharacterDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
    Socket,
    /// A further name of the entry at `target`, which comes earlier in the
    /// manifest and is no directory. All attributes are those of the target.
    HardLink {
        target: Vec<u8>,
    },
}

/// One path of a layer. `mode` holds the permission bits (07777) only;
/// `link_count` is 1 for directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    pub link_count: u32,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The entries of a layer in canonical order; the first is its root directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest has {0} bytes, the limit is {max}", max = limits::MANIFEST_BYTES)]
    TooLarge(usize),
    #[error(
        "the first line must be {HEADER:?}; this manifest is of another version or none at all"
    )]
    Header,
    #[error("the last line does not end in a newline: the manifest is cut short")]
    Truncated,
    #[error("field {0} is missing")]
    MissingField(&'static str),
    #[error("field {field}: {value:?} is not a valid value")]
    Field { field: &'static str, value: String },
    #[error(
        "field {0}: a backslash must be followed by n, r, t, a backslash or x and two lower-case hexadecimal digits, and only where an escape is needed"
    )]
    Escape(&'static str),
    #[error("the path {0:?} is no canonical absolute path below the root")]
    Path(String),
    #[error("the path {0:?} is longer than {max} bytes, or one of its names is longer than {component}", max = limits::PATH_BYTES, component = limits::COMPONENT_BYTES)]
    PathTooLong(String),
    #[error("the path {0:?} is not in canonical order: it repeats or precedes the line above")]
    Order(String),
    #[error("the first entry must be the root directory")]
    Root,
    #[error("the directory that holds {0:?} has no entry")]
    Parent(String),
    #[error("{path:?} is a hard link to {target:?}, which is no earlier file of this layer")]
    HardLinkTarget { path: String, target: String },
    #[error("an extended attribute's value has {0} bytes, the limit is {max}", max = limits::XATTR_BYTES)]
    XattrTooLarge(usize),
    #[error(
        "the line is not canonical: fields, attributes or spaces are not as they would be printed"
    )]
    NotCanonical,
}

/// The canonical order of paths: by components, a directory before its content.
pub fn path_order(a: &[u8], b: &[u8]) -> Ordering {
    let key = |byte: u8| if byte == b'/' { 0 } else { byte };
    let unlike = a.iter().zip(b).find(|(a, b)| a != b && key(**a) != key(**b));
    unlike.map_or_else(|| a.len().cmp(&b.len()), |(a, b)| key(*a).cmp(&key(*b)))
}

/// The directory part of a relative path; `None` for the root.
pub fn parent_path(path: &[u8]) -> Option<&[u8]> {
    if path.is_empty() {
        return None;
    }
    Some(path.iter().rposition(|b| *b == b'/').map_or(&[][..], |slash| &path[..slash]))
}

/// The last component of a relative path; empty for the root.
pub fn file_name(path: &[u8]) -> &[u8] {
    path.iter().rposition(|b| *b == b'/').map_or(path, |slash| &path[slash + 1..])
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Checks a relative path: no empty, `.` or `..` component, no NUL, within the limits.
fn check_path(path: &[u8]) -> Result<(), ManifestError> {
    if path.is_empty() {
        return Ok(());
    }
    let mut components = path.split(|b| *b == b'/');
    if path.contains(&0) || components.any(|c| matches!(c, b"" | b"." | b"..")) {
        return Err(ManifestError::Path(lossy(path)));
    }
    let mut components = path.split(|b| *b == b'/');
    if path.len() > limits::PATH_BYTES || components.any(|c| c.len() > limits::COMPONENT_BYTES) {
        return Err(ManifestError::PathTooLong(lossy(&path[..path.len().min(128)])));
    }
    Ok(())
}

/// The rules that span entries, checked one entry at a time in order.
#[derive(Default)]
struct Structure {
    /// The directories from the root to the latest entry.
    open: Vec<Vec<u8>>,
    last: Option<Vec<u8>>,
    /// Entries of several links, which a hard link may name.
    files: std::collections::HashSet<Vec<u8>>,
}

impl Structure {
    fn admit(&mut self, entry: &Entry) -> Result<(), ManifestError> {
        check_path(&entry.path)?;
        match &self.last {
            None if entry.path.is_empty() && entry.kind == Kind::Directory => {}
            None => return Err(ManifestError::Root),
            Some(last) if path_order(last, &entry.path) != Ordering::Less => {
                return Err(ManifestError::Order(lossy(&entry.path)));
            }
            Some(_) => {}
        }
        if let Some(parent) = parent_path(&entry.path) {
            while self.open.last().is_some_and(|open| open != parent) {
                self.open.pop();
            }
            if self.open.is_empty() {
                return Err(ManifestError::Parent(lossy(&entry.path)));
            }
        }
        match &entry.kind {
            Kind::Directory => self.open.push(entry.path.clone()),
            Kind::HardLink { target } if !self.files.contains(target) => {
                return Err(ManifestError::HardLinkTarget {
                    path: lossy(&entry.path),
                    target: lossy(target),
                });
            }
            Kind::HardLink { .. } => {}
            _ if entry.link_count > 1 => {
                self.files.insert(entry.path.clone());
            }
            _ => {}
        }
        self.last.get_or_insert_default().clone_from(&entry.path);
        Ok(())
    }
}

impl Manifest {
    /// A manifest of these entries, in any order.
    ///
    /// # Errors
    /// The first entry that breaks a structural rule, with its path.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, ManifestError> {
        entries.sort_by(|a, b| path_order(&a.path, &b.path));
        let mut structure = Structure::default();
        for entry in &entries {
            structure.admit(entry)?;
        }
        if entries.is_empty() {
            return Err(ManifestError::Root);
        }
        Ok(Manifest { entries })
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry at `path`, by binary search.
    pub fn get(&self, path: &[u8]) -> Option<&Entry> {
        let at = self.entries.binary_search_by(|entry| path_order(&entry.path, path)).ok()?;
        Some(&self.entries[at])
    }

    /// Sum of the sizes of regular files, hard links counted once, in bytes.
    pub fn content_bytes(&self) -> u64 {
        let size = |entry: &Entry| match entry.kind {
            Kind::Regular { size, .. } => size,
            _ => 0,
        };
        self.entries.iter().map(size).fold(0, u64::saturating_add)
    }

    /// The canonical text.
    pub fn print(&self) -> String {
        let mut text = String::with_capacity(64 + self.entries.len() * 160);
        text.push_str(HEADER);
        text.push('\n');
        for entry in &self.entries {
            print_entry(&mut text, entry);
        }
        text
    }

    /// Parses the canonical text.
    ///
    /// # Errors
    /// The first fault, with line and column.
    pub fn parse(text: &[u8]) -> Result<Self, Located<ManifestError>> {
        if text.len() > limits::MANIFEST_BYTES {
            return Err(Located::new(1, 1, ManifestError::TooLarge(text.len())));
        }
        let rest = text
            .strip_prefix(HEADER.as_bytes())
            .and_then(|rest| rest.strip_prefix(b"\n"))
            .ok_or(Located::new(1, 1, ManifestError::Header))?;
        let mut entries = Vec::new();
        let mut structure = Structure::default();
        let mut printed = String::new();
        let mut lines = rest.split(|b| *b == b'\n').enumerate().peekable();
        while let Some((index, line)) = lines.next() {
            let number = index + 2;
            if lines.peek().is_none() {
                if !line.is_empty() {
                    return Err(Located::new(number, line.len(), ManifestError::Truncated));
                }
                break;
            }
            let entry =
                parse_entry(line).map_err(|(column, error)| Located::new(number, column, error))?;
            structure.admit(&entry).map_err(|error| Located::new(number, 1, error))?;
            printed.clear();
            print_entry(&mut printed, &entry);
            if printed.as_bytes().strip_suffix(b"\n") != Some(line) {
                return Err(Located::new(number, 1, ManifestError::NotCanonical));
            }
            entries.push(entry);
        }
        if entries.is_empty() {
            return Err(Located::new(2, 1, ManifestError::Root));
        }
        Ok(Manifest { entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(path: &str, kind: Kind) -> Entry {
        Entry {
            path: path.into(),
            kind,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Timestamp { seconds: -1, nanoseconds: 5 },
            link_count: 1,
            xattrs: BTreeMap::new(),
        }
    }

    fn file(path: &str) -> Entry {
        entry(path, Kind::Regular { size: 3, digest: Digest::of(b"abc") })
    }

    /// The golden file of `docs/formats.md`: every kind, escapes, attributes.
    fn sample() -> Manifest {
        let mut linked = file("usr/bin/perl");
        linked.link_count = 2;
        linked.mode = 0o4755;
        let capability = (b"security.capability".to_vec(), vec![1, 0, 0, 2, b'=']);
        linked.xattrs.extend([capability]);
        let mut alias = entry("usr/bin/perl5", Kind::HardLink { target: b"usr/bin/perl".to_vec() });
        alias.mode = 0o4755;
        alias.link_count = 2;
        Manifest::new(vec![
            entry("", Kind::Directory),
            entry("usr", Kind::Directory),
            alias,
            entry("usr/bin", Kind::Directory),
            linked,
            entry("usr/bin-x", Kind::Symlink { target: b"a b\\\n".to_vec() }),
            entry("usr/\u{e9}", Kind::Fifo),
            entry("-", Kind::Symlink { target: b"-".to_vec() }),
            entry("dev", Kind::Directory),
            entry("dev/null", Kind::CharacterDevice { major: 1, minor: 3 }),
            entry("dev/vda", Kind::BlockDevice { major: 252, minor: 0 }),
            entry("dev/log", Kind::Socket),
        ])
        .expect("a valid tree")
    }

    #[test]
    fn golden() {
        let text = sample().print();
        assert_eq!(text, include_str!("../golden/manifest"));
        assert_eq!(Manifest::parse(text.as_bytes()), Ok(sample()));
    }

    #[test]
    fn faults_are_located() {
        let text = sample().print();
        let fault = |from: &str, to: &str| {
            assert!(text.contains(from), "{from}");
            Manifest::parse(text.replacen(from, to, 1).as_bytes()).expect_err("a fault")
        };
        assert_eq!(fault("manifest 1", "manifest 2").error, ManifestError::Header);
        assert!(matches!(fault("/dev/log ", "/../log ").error, ManifestError::Path(_)));
        assert!(matches!(fault("/dev/log ", "/dev/zzz ").error, ManifestError::Order(_)));
        assert!(matches!(fault("/dev/null", "/etc/null").error, ManifestError::Parent(_)));
        assert!(matches!(
            fault(" /usr/bin/perl ", " /etc/passwd ").error,
            ManifestError::HardLinkTarget { .. }
        ));
        assert_eq!(fault(" 1:3 ", " 1:x ").column, 25);
        let cut = Manifest::parse(&text.as_bytes()[..text.len() - 3]).expect_err("cut");
        assert_eq!(cut.error, ManifestError::Truncated);
    }

    #[test]
    fn the_order_follows_components() {
        assert_eq!(path_order(b"usr/bin/x", b"usr/bin-x"), Ordering::Less);
        assert_eq!(path_order(b"", b"a"), Ordering::Less);
        assert_eq!(path_order(b"a", b"a"), Ordering::Equal);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut text = format!("{HEADER}\n").into_bytes();
            text.extend(bytes);
            let _checked = Manifest::parse(&text);
        }

        #[test]
        fn mutations_never_panic_and_accepted_text_is_canonical(at in 0..2000usize, byte: u8) {
            let mut text = sample().print().into_bytes();
            let at = at % text.len();
            text[at] = byte;
            if let Ok(manifest) = Manifest::parse(&text) {
                prop_assert_eq!(manifest.print().into_bytes(), text);
            }
        }

        #[test]
        fn any_name_and_target_survives(name in "[^/\0]{1,40}", target in proptest::collection::vec(1u8.., 1..60)) {
            prop_assume!(name != "." && name != "..");
            let manifest = Manifest::new(vec![
                entry("", Kind::Directory),
                entry(&name, Kind::Symlink { target }),
            ]).expect("valid");
            prop_assert_eq!(Manifest::parse(manifest.print().as_bytes()), Ok(manifest));
        }
    }
}
