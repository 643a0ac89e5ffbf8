//! What a private copy was made from, kept on the copy (`trusted.strata.origin`).
//!
//! Forensics need the private directory alone (§4.5): with this record a
//! changed file is told from one whose attributes changed, without the layers.
//! One line of text: `1 <repo>/<unit> <mode> <uid> <gid> <size> <seconds>.<nanoseconds>
//! <digest or -> <digest of the extended attributes> <path>`; the path is the rest of the line, as bytes.
//! A file with several names in its layer has a record of them (`trusted.strata.names`), of a bounded
//! size: `1`, and of each path the first digits of its digest.

use strata_core::Digest;
use strata_core::manifest::Timestamp;

use crate::tree::{Entry, Kind};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// `<repo>/<unit>`, as below `whiteouts/`.
    pub unit: String,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: Timestamp,
    /// Of the content, where the layer's manifest knows it; of a link's target.
    pub digest: Option<Digest>,
    pub xattrs: Digest,
    /// Path in the layer, relative to the root.
    pub path: Vec<u8>,
}

/// One digest for a set of extended attributes.
pub fn xattrs_digest<T: AsRef<[u8]>>(xattrs: impl IntoIterator<Item = (T, T)>) -> Digest {
    let mut bytes = Vec::new();
    for (name, value) in xattrs {
        for part in [name.as_ref(), value.as_ref()] {
            bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
            bytes.extend_from_slice(part);
        }
    }
    Digest::of(&bytes)
}

/// Digits of a name in a record of names.
const NAME_DIGITS: usize = 16;

fn name_digits(path: &[u8]) -> String {
    Digest::of(path).to_string()[..NAME_DIGITS].to_owned()
}

/// The record of the names that an original has.
pub fn print_names(paths: &[Vec<u8>]) -> Vec<u8> {
    let names = paths.iter().map(|path| format!(" {}", name_digits(path)));
    format!("1{}", names.collect::<String>()).into_bytes()
}

/// Whether a path is in a record of names.
pub fn is_named(record: &[u8], path: &[u8]) -> bool {
    let wanted = name_digits(path);
    let mut words = record.split(|b| *b == b' ');
    words.next() == Some(b"1") && words.any(|word| word == wanted.as_bytes())
}

impl Origin {
    pub fn of(unit: &super::UnitKey, entry: &Entry<'_>, path: &[u8]) -> Origin {
        let attributes = &entry.attributes;
        let digest = match entry.kind {
            Kind::Regular { digest } => digest,
            Kind::Symlink { target } => Some(Digest::of(target)),
            Kind::Directory { .. }
            | Kind::CharacterDevice
            | Kind::BlockDevice
            | Kind::Fifo
            | Kind::Socket => None,
        };
        Origin {
            unit: unit.to_string(),
            mode: attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            size: attributes.size,
            mtime: attributes.mtime,
            digest,
            xattrs: xattrs_digest(attributes.xattrs),
            path: path.to_vec(),
        }
    }

    /// The unit, for comparison with those of a set.
    pub fn unit_key(&self) -> Option<super::UnitKey> {
        let (repository, unit) = self.unit.split_once('/')?;
        Some(super::UnitKey::new(repository, unit))
    }

    pub fn print(&self) -> Vec<u8> {
        let digest = self.digest.map_or_else(|| "-".to_owned(), |digest| digest.to_string());
        let head = format!(
            "1 {} {:o} {} {} {} {}.{:09} {digest} {} ",
            self.unit,
            self.mode,
            self.uid,
            self.gid,
            self.size,
            self.mtime.seconds,
            self.mtime.nanoseconds,
            self.xattrs
        );
        let mut line = head.into_bytes();
        line.extend_from_slice(&self.path);
        line
    }

    /// `None` for a record that this program did not write.
    pub fn parse(line: &[u8]) -> Option<Origin> {
        let mut fields = line.splitn(10, |b| *b == b' ');
        let mut text = || std::str::from_utf8(fields.next()?).ok();
        if text()? != "1" {
            return None;
        }
        let unit = text()?.to_owned();
        let mode = u32::from_str_radix(text()?, 8).ok()?;
        let (uid, gid) = (text()?.parse().ok()?, text()?.parse().ok()?);
        let size = text()?.parse().ok()?;
        let (seconds, nanoseconds) = text()?.split_once('.')?;
        let mtime =
            Timestamp { seconds: seconds.parse().ok()?, nanoseconds: nanoseconds.parse().ok()? };
        let digest = match text()? {
            "-" => None,
            digest => Some(digest.parse().ok()?),
        };
        let xattrs = text()?.parse().ok()?;
        let path = fields.next()?.to_vec();
        Some(Origin { unit, mode, uid, gid, size, mtime, digest, xattrs, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_back() {
        let origin = Origin {
            unit: "main/bind9_1%3a9".into(),
            mode: 0o4755,
            uid: 1,
            gid: 2,
            size: 3,
            mtime: Timestamp { seconds: -5, nanoseconds: 7 },
            digest: Some(Digest::of(b"x")),
            xattrs: Digest::of(b""),
            path: b"a b\xff/c".to_vec(),
        };
        assert_eq!(Origin::parse(&origin.print()), Some(origin));
        assert_eq!(Origin::parse(b"2 x"), None);
    }

    #[test]
    fn names_are_found_in_their_record() {
        let record = print_names(&[b"a".to_vec(), b"b c\xff".to_vec()]);
        assert_eq!(record.len(), 1 + 2 * 17);
        assert!(is_named(&record, b"a") && is_named(&record, b"b c\xff"));
        assert!(!is_named(&record, b"b") && !is_named(&record, b"") && !is_named(b"2", b"2"));
    }
}
