//! One line of a manifest: an entry's fields, in the order and with the escapes of the
//! composefs dump format.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Entry, Kind, ManifestError, Timestamp, lossy};
use crate::digest::Digest;
use crate::limits;

const S_IFMT: u32 = 0o170_000;
const S_IFSOCK: u32 = 0o140_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFREG: u32 = 0o100_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFIFO: u32 = 0o010_000;

pub(super) fn print_entry(text: &mut String, entry: &Entry) {
    let (type_bits, size, rdev, payload, digest): (u32, u64, (u32, u32), Option<&[u8]>, _) =
        match &entry.kind {
            Kind::Directory => (S_IFDIR, 0, (0, 0), None, None),
            Kind::Regular { size, digest } => (S_IFREG, *size, (0, 0), None, Some(digest)),
            Kind::Symlink { target } => (S_IFLNK, target.len() as u64, (0, 0), Some(target), None),
            Kind::CharacterDevice { major, minor } => (S_IFCHR, 0, (*major, *minor), None, None),
            Kind::BlockDevice { major, minor } => (S_IFBLK, 0, (*major, *minor), None, None),
            Kind::Fifo => (S_IFIFO, 0, (0, 0), None, None),
            Kind::Socket => (S_IFSOCK, 0, (0, 0), None, None),
            Kind::HardLink { target } => (S_IFREG, 0, (0, 0), Some(target), None),
        };
    text.push('/');
    escape(text, &entry.path, false);
    let hard_link = matches!(entry.kind, Kind::HardLink { .. });
    let mut decimal = itoa::Buffer::new();
    text.push(' ');
    text.push_str(decimal.format(size));
    text.push_str(if hard_link { " @" } else { " " });
    let _infallible = write!(text, "{:o}", type_bits | entry.mode);
    for number in [entry.link_count, entry.uid, entry.gid] {
        text.push(' ');
        text.push_str(decimal.format(number));
    }
    text.push(' ');
    text.push_str(decimal.format(rdev.0));
    text.push(':');
    text.push_str(decimal.format(rdev.1));
    text.push(' ');
    text.push_str(decimal.format(entry.mtime.seconds));
    text.push('.');
    let nanoseconds = decimal.format(entry.mtime.nanoseconds);
    text.push_str("000000000".get(nanoseconds.len()..).unwrap_or_default());
    text.push_str(nanoseconds);
    text.push(' ');
    match payload {
        None => text.push('-'),
        Some(payload) => {
            if hard_link {
                text.push('/');
            }
            escape(text, payload, false);
        }
    }
    text.push_str(" - ");
    match digest {
        None => text.push('-'),
        Some(digest) => digest.print(text),
    }
    for (key, value) in &entry.xattrs {
        text.push(' ');
        escape(text, key, true);
        text.push('=');
        escape(text, value, true);
    }
    text.push('\n');
}

/// Escapes as composefs does: control and non-ASCII bytes, space, backslash,
/// and `=` where `equals` says so; a lone `-` so that it does not read as absent.
pub(crate) fn escape(text: &mut String, bytes: &[u8], equals: bool) {
    if bytes == b"-" {
        text.push_str("\\x2d");
        return;
    }
    let is_plain =
        |byte: &u8| matches!(byte, 0x21..=0x7e) && *byte != b'\\' && !(equals && *byte == b'=');
    if bytes.iter().all(is_plain)
        && let Ok(plain) = std::str::from_utf8(bytes)
    {
        text.push_str(plain);
        return;
    }
    for byte in bytes {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b'\t' => text.push_str("\\t"),
            b'=' if equals => text.push_str("\\x3d"),
            0x21..=0x7e => text.push(char::from(*byte)),
            other => {
                let _infallible = write!(text, "\\x{other:02x}");
            }
        }
    }
}

pub(crate) fn unescape(bytes: &[u8], field: &'static str) -> Result<Vec<u8>, ManifestError> {
    if !bytes.contains(&b'\\') {
        return Ok(bytes.to_vec());
    }
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'\\' {
            plain.push(*first);
            continue;
        }
        let (kind, tail) = rest.split_first().ok_or(ManifestError::Escape(field))?;
        rest = tail;
        plain.push(match kind {
            b'\\' => b'\\',
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'x' => {
                let (digits, tail) =
                    rest.split_at_checked(2).ok_or(ManifestError::Escape(field))?;
                rest = tail;
                let digits =
                    std::str::from_utf8(digits).map_err(|_| ManifestError::Escape(field))?;
                u8::from_str_radix(digits, 16).map_err(|_| ManifestError::Escape(field))?
            }
            _ => return Err(ManifestError::Escape(field)),
        });
    }
    Ok(plain)
}

/// The fields of one line with their columns.
struct Fields<'a> {
    line: &'a [u8],
    at: usize,
}

type FieldError = (usize, ManifestError);

impl<'a> Fields<'a> {
    fn next(&mut self, name: &'static str) -> Result<(usize, &'a [u8]), FieldError> {
        self.optional().ok_or((self.line.len() + 1, ManifestError::MissingField(name)))
    }

    fn optional(&mut self) -> Option<(usize, &'a [u8])> {
        if self.at > self.line.len() {
            return None;
        }
        let start = self.at;
        let rest = &self.line[start..];
        let length = rest.iter().position(|b| *b == b' ').unwrap_or(rest.len());
        self.at = start + length + 1;
        Some((start + 1, &rest[..length]))
    }

    fn number<T: std::str::FromStr>(&mut self, name: &'static str) -> Result<T, FieldError> {
        let (column, field) = self.next(name)?;
        number(field, name).map_err(|error| (column, error))
    }
}

fn invalid(field: &'static str, value: &[u8]) -> ManifestError {
    ManifestError::Field { field, value: lossy(&value[..value.len().min(64)]) }
}

fn number<T: std::str::FromStr>(value: &[u8], field: &'static str) -> Result<T, ManifestError> {
    let text = std::str::from_utf8(value).map_err(|_| invalid(field, value))?;
    text.parse().map_err(|_| invalid(field, value))
}

fn absolute(field: &[u8], name: &'static str) -> Result<Vec<u8>, ManifestError> {
    match field.strip_prefix(b"/") {
        Some(rest) => unescape(rest, name),
        None => Err(ManifestError::Path(lossy(&unescape(field, name)?))),
    }
}

pub(super) fn parse_entry(line: &[u8]) -> Result<Entry, FieldError> {
    let mut fields = Fields { line, at: 0 };
    let (column, path) = fields.next("path")?;
    let path = absolute(path, "path").map_err(|error| (column, error))?;
    let size: u64 = fields.number("size")?;
    let (mode_column, mode_field) = fields.next("mode")?;
    let (hard_link, mode_digits) = match mode_field.split_first() {
        Some((b'@', digits)) => (true, digits),
        _ => (false, mode_field),
    };
    let mode = std::str::from_utf8(mode_digits)
        .ok()
        .and_then(|digits| u32::from_str_radix(digits, 8).ok())
        .ok_or_else(|| (mode_column, invalid("mode", mode_field)))?;
    let link_count = fields.number("nlink")?;
    let uid = fields.number("uid")?;
    let gid = fields.number("gid")?;
    let (rdev_column, rdev) = fields.next("rdev")?;
    let (major, minor) = parse_pair(rdev, b':', "rdev").map_err(|e| (rdev_column, e))?;
    let (mtime_column, mtime) = fields.next("mtime")?;
    let (seconds, nanoseconds) = parse_pair(mtime, b'.', "mtime").map_err(|e| (mtime_column, e))?;
    let (payload_column, payload) = fields.next("payload")?;
    let (content_column, content) = fields.next("content")?;
    if content != b"-" {
        return Err((content_column, invalid("content", content)));
    }
    let (digest_column, digest) = fields.next("digest")?;
    let target = || unescape(payload, "payload").map_err(|error| (payload_column, error));
    let kind = match (hard_link, mode & S_IFMT) {
        (true, S_IFREG) => Kind::HardLink {
            target: absolute(payload, "payload").map_err(|error| (payload_column, error))?,
        },
        (false, S_IFDIR) => Kind::Directory,
        (false, S_IFREG) => {
            let digest: Digest = number(digest, "digest").map_err(|e| (digest_column, e))?;
            Kind::Regular { size, digest }
        }
        (false, S_IFLNK) => Kind::Symlink { target: target()? },
        (false, S_IFCHR) => Kind::CharacterDevice { major, minor },
        (false, S_IFBLK) => Kind::BlockDevice { major, minor },
        (false, S_IFIFO) => Kind::Fifo,
        (false, S_IFSOCK) => Kind::Socket,
        _ => return Err((mode_column, invalid("mode", mode_field))),
    };
    let mut xattrs = BTreeMap::new();
    while let Some((column, field)) = fields.optional() {
        let equals = field
            .iter()
            .position(|b| *b == b'=')
            .ok_or_else(|| (column, invalid("xattr", field)))?;
        let key = unescape(&field[..equals], "xattr").map_err(|error| (column, error))?;
        let value = unescape(&field[equals + 1..], "xattr").map_err(|error| (column, error))?;
        if value.len() > limits::XATTR_BYTES {
            return Err((column, ManifestError::XattrTooLarge(value.len())));
        }
        if key.is_empty() || key.len() > limits::COMPONENT_BYTES || key.contains(&0) {
            return Err((column, invalid("xattr", &key)));
        }
        xattrs.insert(key, value);
    }
    let mtime = Timestamp { seconds, nanoseconds };
    Ok(Entry { path, kind, mode: mode & 0o7777, uid, gid, mtime, link_count, xattrs })
}

fn parse_pair<A: std::str::FromStr, B: std::str::FromStr>(
    field: &[u8],
    separator: u8,
    name: &'static str,
) -> Result<(A, B), ManifestError> {
    let at = field.iter().position(|b| *b == separator).ok_or_else(|| invalid(name, field))?;
    Ok((number(&field[..at], name)?, number(&field[at + 1..], name)?))
}
