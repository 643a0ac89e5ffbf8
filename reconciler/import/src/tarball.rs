//! A tar archive read as a stream, strictly.
//!
//! Headers are decoded by the `tar` crate; the loop is our own, because the
//! crate's reads extension headers of any size into memory, splits PAX records
//! at newlines and takes a cut archive for a whole one. Understood: V7, ustar,
//! PAX and GNU headers, long names and links, GNU sparse files. Whatever would
//! change a file and is not understood is refused, never passed over.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};

use strata_core::limits;
use strata_core::manifest::Timestamp;
use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use crate::ar::read_block;
use crate::member::shown;

const BLOCK_BYTES: usize = 512;
/// What may follow the end mark: the padding of a large record size.
const TRAILING_BYTES: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("the archive is cut short {0}")]
    Truncated(&'static str),
    #[error("more than {TRAILING_BYTES} bytes follow the end of the archive")]
    Trailing,
    #[error("the header of {name} is damaged: {problem}")]
    Header { name: String, problem: &'static str },
    #[error("an extension header has {0} bytes, the limit is {max}", max = limits::TAR_EXTENSION_BYTES)]
    Extension(u64),
    #[error("{name}: {feature} are not supported")]
    Unsupported { name: String, feature: String },
    #[error("{name}: entries of type {kind:?} belong in no package")]
    Type { name: String, kind: char },
    #[error("the archive cannot be read: {0}")]
    Io(#[from] io::Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TarKind {
    Directory,
    Regular,
    Symlink,
    HardLink,
    CharacterDevice,
    BlockDevice,
    Fifo,
}

/// One entry. `size` is that of the file, holes included, in bytes; `mode` is
/// 07777 at most; `link` is a link's target as written.
#[derive(Debug, Clone)]
pub struct TarEntry {
    pub name: Vec<u8>,
    pub kind: TarKind,
    pub link: Vec<u8>,
    pub size: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    pub major: u32,
    pub minor: u32,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A stretch of data in a file, in bytes.
#[derive(Debug, Clone, Copy)]
struct Segment {
    offset: u64,
    length: u64,
}

/// Reads entries in order; the content of the latest is read from [`TarReader::content`].
pub struct TarReader<R> {
    input: R,
    /// Bytes of the current entry left in the archive, padding included.
    remaining: u64,
    segments: VecDeque<Segment>,
    /// Where the reader of the content stands in the file, and the file's size.
    offset: u64,
    size: u64,
}

/// What extension headers say about the entry that follows.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    any: bool,
}

impl<R: Read> TarReader<R> {
    pub fn new(input: R) -> Self {
        TarReader { input, remaining: 0, segments: VecDeque::new(), offset: 0, size: 0 }
    }

    /// The next entry; what is left of the current one is skipped. At the end
    /// of the archive the rest of the input is read, so that a checksum behind
    /// it is verified.
    ///
    /// # Errors
    /// [`TarError`].
    pub fn next_entry(&mut self) -> Result<Option<TarEntry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip()?;
            let mut header = Header::new_old();
            match read_block(&mut self.input, header.as_mut_bytes())? {
                BLOCK_BYTES => {}
                0 => return Err(TarError::Truncated("before its end mark")),
                _ => return Err(TarError::Truncated("in a header")),
            }
            if header.as_bytes().iter().all(|byte| *byte == 0) {
                if extensions.any {
                    return Err(TarError::Truncated("after an extension header"));
                }
                return self.end().map(|()| None);
            }
            check_sum(&header)?;
            match header.entry_type() {
                EntryType::GNULongName => {
                    let name = self.extension(&header)?;
                    once(&mut extensions.name, c_string(name), &header)?;
                }
                EntryType::GNULongLink => {
                    let link = self.extension(&header)?;
                    once(&mut extensions.link, c_string(link), &header)?;
                }
                EntryType::XHeader => {
                    let text = self.extension(&header)?;
                    extensions.records.extend(pax_records(&text, &header)?);
                }
                EntryType::XGlobalHeader => {
                    let text = self.extension(&header)?;
                    let records = pax_records(&text, &header)?;
                    if let Some(key) = records.keys().find(|key| *key != b"comment") {
                        let feature = format!("global PAX records ({})", shown(key));
                        return Err(TarError::Unsupported { name: name_of(&header), feature });
                    }
                    continue;
                }
                _ => return self.entry(&header, extensions).map(Some),
            }
            extensions.any = true;
        }
    }

    /// The content of the latest entry, holes as zeros.
    pub fn content(&mut self) -> TarContent<'_, R> {
        TarContent { reader: self }
    }

    fn skip(&mut self) -> Result<(), TarError> {
        let skipped = io::copy(&mut (&mut self.input).take(self.remaining), &mut io::sink())?;
        if skipped != self.remaining {
            return Err(TarError::Truncated("in a file's content"));
        }
        self.remaining = 0;
        self.segments.clear();
        (self.offset, self.size) = (0, 0);
        Ok(())
    }

    fn end(&mut self) -> Result<(), TarError> {
        let mut rest = (&mut self.input).take(TRAILING_BYTES + 1);
        match io::copy(&mut rest, &mut io::sink())? {
            length if length > TRAILING_BYTES => Err(TarError::Trailing),
            _ => Ok(()),
        }
    }

    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let size = number(header.entry_size(), header, "its size is no number")?;
        if size > limits::TAR_EXTENSION_BYTES {
            return Err(TarError::Extension(size));
        }
        let mut content = Vec::new();
        (&mut self.input).take(size).read_to_end(&mut content)?;
        if content.len() as u64 != size {
            return Err(TarError::Truncated("in an extension header"));
        }
        self.remaining = padding(size);
        Ok(content)
    }

    fn entry(&mut self, header: &Header, extensions: Extensions) -> Result<TarEntry, TarError> {
        let Extensions { name, link, mut records, .. } = extensions;
        let name = records.remove(&b"path"[..]).or(name);
        let name = name.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = records.remove(&b"linkpath"[..]).or(link).unwrap_or_else(|| {
            header.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default()
        });
        let kind = kind(header, &name)?;
        let damaged = |problem| TarError::Header { name: shown(&name), problem };
        let mut entry = TarEntry {
            kind,
            link,
            size: header.entry_size().map_err(|_| damaged("its size is no number"))?,
            mode: header.mode().map_err(|_| damaged("its mode is no number"))? & 0o7777,
            uid: owner(header.uid()).ok_or(damaged("its owner is no user id"))?,
            gid: owner(header.gid()).ok_or(damaged("its group is no group id"))?,
            mtime: Timestamp {
                // Times before 1970 are two's complement in base 256.
                seconds: header.mtime().map_err(|_| damaged("its time is no number"))? as i64,
                nanoseconds: 0,
            },
            major: 0,
            minor: 0,
            xattrs: BTreeMap::new(),
            name: Vec::new(),
        };
        if matches!(kind, TarKind::CharacterDevice | TarKind::BlockDevice) {
            let device = |number: io::Result<Option<u32>>| number.ok().flatten();
            let problem = || damaged("its device number is no number");
            entry.major = device(header.device_major()).ok_or_else(problem)?;
            entry.minor = device(header.device_minor()).ok_or_else(problem)?;
        }
        apply_records(&mut entry, records, &name)?;
        if kind != TarKind::Regular && entry.size != 0 {
            return Err(damaged("it is no file, and yet has content"));
        }
        let stored = entry.size;
        self.remaining = stored.checked_add(padding(stored)).ok_or(damaged("its size"))?;
        if header.entry_type() == EntryType::GNUSparse {
            entry.size = self.sparse(header, stored).map_err(|problem| match problem {
                SparseProblem::Damaged(problem) => damaged(problem),
                SparseProblem::Io(error) => error.into(),
            })?;
        } else {
            self.segments.push_back(Segment { offset: 0, length: stored });
        }
        self.size = entry.size;
        entry.name = name;
        Ok(entry)
    }

    /// Reads the map of a sparse file; the size of the file with its holes.
    fn sparse(&mut self, header: &Header, stored: u64) -> Result<u64, SparseProblem> {
        let gnu =
            header.as_gnu().ok_or(SparseProblem::Damaged("a sparse file of another format"))?;
        let size = gnu.real_size().map_err(|_| SparseProblem::Damaged("its size is no number"))?;
        for segment in &gnu.sparse {
            self.segment(segment)?;
        }
        let mut extended = gnu.is_extended();
        while extended {
            let mut block = GnuExtSparseHeader::new();
            if read_block(&mut self.input, block.as_mut_bytes())? != BLOCK_BYTES {
                return Err(SparseProblem::Damaged("its map of holes is cut short"));
            }
            for segment in &block.sparse {
                self.segment(segment)?;
            }
            extended = block.is_extended();
        }
        let data: u64 = self.segments.iter().map(|segment| segment.length).sum();
        let end = self.segments.back().map_or(0, |segment| segment.offset + segment.length);
        if data != stored || end > size {
            return Err(SparseProblem::Damaged("its map of holes does not fit its size"));
        }
        Ok(size)
    }

    fn segment(&mut self, segment: &GnuSparseHeader) -> Result<(), SparseProblem> {
        if segment.is_empty() {
            return Ok(());
        }
        let damaged = SparseProblem::Damaged;
        let offset = segment.offset().map_err(|_| damaged("its map of holes is no number"))?;
        let length = segment.length().map_err(|_| damaged("its map of holes is no number"))?;
        let before = self.segments.back().map_or(0, |last| last.offset + last.length);
        if offset < before || offset.checked_add(length).is_none_or(|end| end > i64::MAX as u64) {
            return Err(damaged("its map of holes is out of order"));
        }
        if self.segments.len() >= limits::SPARSE_SEGMENTS {
            return Err(damaged("its map of holes is too long"));
        }
        self.segments.push_back(Segment { offset, length });
        Ok(())
    }
}

enum SparseProblem {
    Damaged(&'static str),
    Io(io::Error),
}

impl From<io::Error> for SparseProblem {
    fn from(error: io::Error) -> Self {
        SparseProblem::Io(error)
    }
}

/// See [`TarReader::content`].
pub struct TarContent<'a, R> {
    reader: &'a mut TarReader<R>,
}

impl<R: Read> Read for TarContent<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let TarReader { input, remaining, segments, offset, size } = &mut *self.reader;
        while segments.front().is_some_and(|segment| segment.length == 0) {
            segments.pop_front();
        }
        let hole_end = segments.front().map_or(*size, |segment| segment.offset);
        let room = |bytes: u64| buffer.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
        if *offset < hole_end {
            let length = room(hole_end - *offset);
            buffer[..length].fill(0);
            *offset += length as u64;
            return Ok(length);
        }
        let Some(segment) = segments.front_mut() else { return Ok(0) };
        let length = room(segment.length);
        if length == 0 {
            return Ok(0);
        }
        let read = input.read(&mut buffer[..length])?;
        if read == 0 {
            let message = "the archive is cut short";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        *offset += read as u64;
        *remaining -= read as u64;
        segment.offset += read as u64;
        segment.length -= read as u64;
        Ok(read)
    }
}

fn name_of(header: &Header) -> String {
    shown(&header.path_bytes())
}

fn number<T>(value: io::Result<T>, header: &Header, problem: &'static str) -> Result<T, TarError> {
    value.map_err(|_| TarError::Header { name: name_of(header), problem })
}

fn owner(id: io::Result<u64>) -> Option<u32> {
    // The largest id means "leave it" to chown(2).
    id.ok().and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX)
}

fn padding(size: u64) -> u64 {
    let block = BLOCK_BYTES as u64;
    (block - size % block) % block
}

fn c_string(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

fn once(slot: &mut Option<Vec<u8>>, value: Vec<u8>, header: &Header) -> Result<(), TarError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => {
            Err(TarError::Header { name: name_of(header), problem: "two long names in a row" })
        }
    }
}

fn check_sum(header: &Header) -> Result<(), TarError> {
    let stored = number(header.cksum(), header, "its checksum is no number")?;
    let bytes = header.as_bytes().iter().enumerate();
    let byte =
        |(at, byte): (usize, &u8)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) };
    match bytes.map(byte).sum::<u32>() == stored {
        true => Ok(()),
        false => Err(TarError::Header { name: name_of(header), problem: "its checksum is wrong" }),
    }
}

fn kind(header: &Header, name: &[u8]) -> Result<TarKind, TarError> {
    Ok(match header.entry_type() {
        // V7 marks a directory by the end of its name alone.
        EntryType::Regular | EntryType::Continuous if name.ends_with(b"/") => TarKind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => TarKind::Regular,
        EntryType::Directory => TarKind::Directory,
        EntryType::Symlink => TarKind::Symlink,
        EntryType::Link => TarKind::HardLink,
        EntryType::Char => TarKind::CharacterDevice,
        EntryType::Block => TarKind::BlockDevice,
        EntryType::Fifo => TarKind::Fifo,
        other => {
            return Err(TarError::Type { name: shown(name), kind: char::from(other.as_byte()) });
        }
    })
}

/// Splits PAX records, `<length> <key>=<value>\n` (POSIX `pax`, "Extended Header").
fn pax_records(text: &[u8], header: &Header) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, TarError> {
    let damaged = || TarError::Header { name: name_of(header), problem: "its PAX records" };
    let mut records = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let space = rest.iter().position(|byte| *byte == b' ').ok_or_else(damaged)?;
        let digits = std::str::from_utf8(&rest[..space]).map_err(|_| damaged())?;
        let length: usize = digits.parse().map_err(|_| damaged())?;
        if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
            return Err(damaged());
        }
        let record = &rest[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(damaged)?;
        records.insert(record[..equals].to_vec(), record[equals + 1..].to_vec());
        rest = &rest[length..];
    }
    Ok(records)
}

/// Applies PAX records; those that describe the source file and not its copy
/// (access times, names of owners, comments) carry nothing into a layer.
fn apply_records(
    entry: &mut TarEntry,
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    name: &[u8],
) -> Result<(), TarError> {
    let damaged = |problem| TarError::Header { name: shown(name), problem };
    for (key, value) in records {
        let text = || std::str::from_utf8(&value).unwrap_or("");
        let id = |problem| {
            let id = text().parse().ok().filter(|id| *id != u32::MAX);
            id.ok_or(TarError::Header { name: shown(name), problem })
        };
        match key.as_slice() {
            b"size" => {
                entry.size = text().parse().map_err(|_| damaged("its PAX size is no number"))?;
            }
            b"uid" => entry.uid = id("its PAX uid is no user id")?,
            b"gid" => entry.gid = id("its PAX gid is no group id")?,
            b"mtime" => {
                entry.mtime = pax_time(text()).ok_or(damaged("its PAX mtime is no number"))?;
            }
            sparse if sparse.starts_with(b"GNU.sparse.") => {
                let feature = "sparse files in PAX format".to_owned();
                return Err(TarError::Unsupported { name: shown(name), feature });
            }
            acl if acl.starts_with(b"SCHILY.acl.") || acl == b"SCHILY.fflags" => {
                let feature = format!("PAX records {}", shown(acl));
                return Err(TarError::Unsupported { name: shown(name), feature });
            }
            other => {
                let Some(attribute) = other.strip_prefix(b"SCHILY.xattr.") else { continue };
                if value.len() > limits::XATTR_BYTES {
                    return Err(damaged("an extended attribute is too large"));
                }
                if attribute.is_empty() || attribute.len() > 255 || attribute.contains(&0) {
                    return Err(damaged("the name of an extended attribute"));
                }
                entry.xattrs.insert(attribute.to_vec(), value);
            }
        }
    }
    Ok(())
}

/// Decimal seconds with an optional fraction, rounded down to nanoseconds.
fn pax_time(text: &str) -> Option<Timestamp> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: u32 = format!("{fraction:0<9.9}").parse().ok()?;
    if negative && nanoseconds > 0 {
        let nanoseconds = 1_000_000_000 - nanoseconds;
        return Some(Timestamp { seconds: seconds.checked_sub(1)?, nanoseconds });
    }
    Some(Timestamp { seconds, nanoseconds })
}

#[cfg(test)]
mod tests;
