//! A layer unit as one file, to be sent to another store: `UNIT.tar.zst`
//! (`docs/formats.md`, "Layer archive").
//!
//! The archive holds the unit's metadata, scripts and manifest, then the content of each
//! regular file, in the manifest's order. Everything else about files (owners, modes, times,
//! links, devices, extended attributes) is in the manifest alone. Guarantees of [`unpack`]:
//! nothing is written before metadata, scripts and manifest have the digest that the unit must
//! have; paths come from that manifest, never from the archive; each content is checked as it
//! is written; nothing is read beyond the sizes that the manifest names.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use strata_core::database::unit_digest;
use strata_core::generation::LayerSetEntry;
use strata_core::manifest::{Entry, Kind, Manifest, ManifestError};
use strata_core::metadata::{Metadata, MetadataError};
use strata_core::{Digest, Located, limits};
use strata_store::{OpenedUnit, StagedUnit, Store, StoreError};

use crate::member::{MemberError, member_path, shown};
use crate::tarball::{TarEntry, TarError, TarKind, TarReader};
use crate::writer::{Attributes, TreeLimits, TreeWriter, WriteError};

/// What an archive's name has after the name of the unit's directory.
pub const SUFFIX: &str = ".tar.zst";
/// zstd's own default: as fast as a gigabit network on one processor.
const LEVEL: i32 = 3;
/// Windows beyond this are refused (16 MiB; those of [`LEVEL`] have 2).
const WINDOW_LOG_MAX: u32 = 24;
const BUFFER_BYTES: usize = 128 << 10;

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("the file {path} of the unit is not what its manifest says: {problem}")]
    Content { path: String, problem: String },
    #[error("the archive cannot be written: {0}")]
    Write(io::Error),
    #[error("the archive cannot be read: {0}")]
    Read(io::Error),
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error("{expected} must come next in the archive; {found} does")]
    Order { expected: String, found: String },
    #[error("{name}: {size} bytes, the limit is {limit}")]
    TooLarge { name: String, size: u64, limit: u64 },
    #[error("the script {name:?}: {error}")]
    Script { name: String, error: MemberError },
    #[error("metadata:{0}")]
    Metadata(Located<MetadataError>),
    #[error("manifest:{0}")]
    Manifest(Located<ManifestError>),
    #[error("the archive holds a unit of the digest {found}, expected {expected}")]
    OtherUnit { expected: Digest, found: Digest },
    #[error("the archive holds files of {found} bytes, expected {expected}")]
    OtherSize { expected: u64, found: u64 },
    #[error(transparent)]
    Tree(#[from] WriteError),
    #[error("the tree that was written is not the one that the manifest describes")]
    OtherTree,
}

/// Writes the archive of a unit. The same unit gives the same bytes.
///
/// # Errors
/// The unit is missing or damaged, or `output` cannot be written.
pub fn pack(store: &Store, unit: &LayerSetEntry, output: impl Write) -> Result<(), ArchiveError> {
    let OpenedUnit { path, metadata, manifest, scripts } = store.open_unit(unit)?;
    let encoder = || -> io::Result<_> {
        let mut encoder = zstd::Encoder::new(output, LEVEL)?;
        encoder.include_checksum(true)?;
        Ok(encoder)
    };
    let mut archive = tar::Builder::new(encoder().map_err(ArchiveError::Write)?);
    append(&mut archive, "metadata", 0o644, metadata.print().as_bytes())?;
    for (name, content) in &scripts {
        let script = path.join("scripts").join(name);
        let is_executable = fs::metadata(&script)
            .map_err(|source| ArchiveError::Io { path: script, source })?
            .permissions()
            .mode()
            & 0o100
            != 0;
        let mode = if is_executable { 0o755 } else { 0o644 };
        append(&mut archive, format!("scripts/{name}"), mode, content)?;
    }
    append(&mut archive, "manifest", 0o644, manifest.print().as_bytes())?;
    let root = path.join("filesystem");
    let directory =
        File::open(&root).map_err(|source| ArchiveError::Io { path: root.clone(), source })?;
    for entry in manifest.entries() {
        let Kind::Regular { size, digest } = entry.kind else { continue };
        let file = open_beneath(&directory, &entry.path)
            .map_err(|source| ArchiveError::Io { path: root.join(os(&entry.path)), source })?;
        append_file(&mut archive, &entry.path, size, digest, file)?;
    }
    archive
        .into_inner()
        .and_then(zstd::Encoder::finish)
        .and_then(|mut output| output.flush())
        .map_err(ArchiveError::Write)
}

fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    name: impl AsRef<Path>,
    mode: u32,
    content: &[u8],
) -> Result<(), ArchiveError> {
    let mut header = header(content.len() as u64, mode);
    archive.append_data(&mut header, name, content).map_err(ArchiveError::Write)
}

fn append_file<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &[u8],
    size: u64,
    expected: Digest,
    file: File,
) -> Result<(), ArchiveError> {
    let mut content = Hashing { input: file.take(size), hasher: blake3::Hasher::new(), bytes: 0 };
    let name = [b"filesystem/", path].concat();
    let mut header = header(size, 0o644);
    archive.append_data(&mut header, os(&name), &mut content).map_err(ArchiveError::Write)?;
    let wrong = |problem| ArchiveError::Content { path: shown(path), problem };
    if content.bytes != size {
        return Err(wrong(format!("it has {} bytes, expected {size}", content.bytes)));
    }
    let found = Digest::from_bytes(*content.hasher.finalize().as_bytes());
    match found == expected {
        true => Ok(()),
        false => Err(wrong(format!("its digest is {found}, expected {expected}"))),
    }
}

/// A header that says nothing but the size, and whether a script can be run.
fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

struct Hashing<R> {
    input: R,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.input.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        self.bytes += length as u64;
        Ok(length)
    }
}

fn open_beneath(directory: &File, path: &[u8]) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file = rustix::fs::openat2(directory, os(path), flags, Mode::empty(), resolve)?;
    Ok(File::from(file))
}

/// What an archive held.
#[derive(Debug)]
pub struct Unpacked {
    pub metadata: Metadata,
    pub manifest: Manifest,
}

/// Writes the unit that an archive holds into `staged`, which is empty. Its files have
/// `content_bytes`: whoever asked for it has counted with them.
///
/// # Errors
/// The archive is cut short, damaged, or of another unit than `expected`; what was written
/// goes with `staged`.
pub fn unpack(
    input: impl Read,
    expected: Digest,
    content_bytes: u64,
    staged: &StagedUnit,
) -> Result<Unpacked, ArchiveError> {
    let mut archive = open(input)?;
    let described = describe(&mut archive)?;
    let found = described.digest();
    let Described { metadata, scripts, modes, manifest } = described;
    if found != expected {
        return Err(ArchiveError::OtherUnit { expected, found });
    }
    if manifest.content_bytes() != content_bytes {
        let (expected, found) = (content_bytes, manifest.content_bytes());
        return Err(ArchiveError::OtherSize { expected, found });
    }
    for (name, content) in &scripts {
        let mode =
            if modes.get(name).is_some_and(|mode| mode & 0o100 != 0) { 0o755 } else { 0o644 };
        write_script(&staged.scripts(), name, mode, content)?;
    }
    let root = staged.filesystem();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(&root, flags, Mode::empty())
        .map_err(|errno| ArchiveError::Io { path: root.clone(), source: errno.into() })?;
    let limits = TreeLimits { bytes: content_bytes, entries: manifest.entries().len().max(1) };
    let mut writer = TreeWriter::new(directory, limits);
    for entry in manifest.entries() {
        write_entry(&mut archive, &mut writer, entry)?;
    }
    if let Some(more) = archive.next_entry()? {
        let (expected, found) = ("the end".to_owned(), shown(&more.name));
        return Err(ArchiveError::Order { expected, found });
    }
    match writer.finish()? == manifest {
        true => Ok(Unpacked { metadata, manifest }),
        false => Err(ArchiveError::OtherTree),
    }
}

/// The digest of the unit that an archive says it holds; contents are not read.
///
/// # Errors
/// The archive is cut short or damaged before its contents.
pub fn digest(input: impl Read) -> Result<Digest, ArchiveError> {
    Ok(describe(&mut open(input)?)?.digest())
}

type Opened<R> = TarReader<zstd::Decoder<'static, BufReader<R>>>;

fn open<R: Read>(input: R) -> Result<Opened<R>, ArchiveError> {
    let input = BufReader::with_capacity(BUFFER_BYTES, input);
    let mut decoder = zstd::Decoder::with_buffer(input).map_err(ArchiveError::Read)?;
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(ArchiveError::Read)?;
    Ok(TarReader::new(decoder.single_frame()))
}

/// What comes before the contents.
struct Described {
    metadata: Metadata,
    scripts: BTreeMap<String, Vec<u8>>,
    modes: BTreeMap<String, u32>,
    manifest: Manifest,
}

impl Described {
    fn digest(&self) -> Digest {
        unit_digest(&self.metadata, &self.manifest.print(), &self.scripts)
    }
}

fn describe<R: Read>(archive: &mut TarReader<R>) -> Result<Described, ArchiveError> {
    let entry = expect(archive, "metadata")?;
    if entry.name != b"metadata" {
        return Err(out_of_order("metadata", &entry));
    }
    let text = content(archive, &entry, limits::METADATA_BYTES as u64)?;
    let metadata = Metadata::parse(&text).map_err(ArchiveError::Metadata)?;
    let (mut scripts, mut modes) = (BTreeMap::new(), BTreeMap::new());
    let mut left = limits::CONTROL_BYTES;
    let manifest = loop {
        let entry = expect(archive, "a script or the manifest")?;
        if entry.name == b"manifest" {
            break content(archive, &entry, limits::MANIFEST_BYTES as u64)?;
        }
        let name = script_name(&entry)?;
        let is_next = scripts.last_key_value().is_none_or(|(last, _): (&String, _)| *last < name);
        if !is_next {
            return Err(out_of_order("a later script", &entry));
        }
        let text = content(archive, &entry, left)?;
        left -= text.len() as u64;
        modes.insert(name.clone(), entry.mode);
        scripts.insert(name, text);
    };
    let manifest = Manifest::parse(&manifest).map_err(ArchiveError::Manifest)?;
    Ok(Described { metadata, scripts, modes, manifest })
}

/// The path of a script below `scripts/`, in the one form that it can have.
fn script_name(entry: &TarEntry) -> Result<String, ArchiveError> {
    let path = member_path(&entry.name)
        .map_err(|error| ArchiveError::Script { name: shown(&entry.name), error })?;
    let name = path.strip_prefix(b"scripts/").filter(|_| path == entry.name);
    let name = name.and_then(|name| std::str::from_utf8(name).ok());
    // The store's readers pass over names that begin with a dot.
    let name = name.filter(|name| name.split('/').all(|part| !part.starts_with('.')));
    name.map(str::to_owned).ok_or_else(|| out_of_order("a script or the manifest", entry))
}

fn expect<R: Read>(archive: &mut TarReader<R>, what: &str) -> Result<TarEntry, ArchiveError> {
    let entry = archive.next_entry()?.ok_or_else(|| ArchiveError::Order {
        expected: what.to_owned(),
        found: "the end".to_owned(),
    })?;
    match entry.kind {
        TarKind::Regular => Ok(entry),
        _ => Err(out_of_order(what, &entry)),
    }
}

fn out_of_order(expected: &str, entry: &TarEntry) -> ArchiveError {
    ArchiveError::Order { expected: expected.to_owned(), found: shown(&entry.name) }
}

fn content<R: Read>(
    archive: &mut TarReader<R>,
    entry: &TarEntry,
    limit: u64,
) -> Result<Vec<u8>, ArchiveError> {
    if entry.size > limit {
        let (name, size) = (shown(&entry.name), entry.size);
        return Err(ArchiveError::TooLarge { name, size, limit });
    }
    let mut content = Vec::new();
    archive.content().read_to_end(&mut content).map_err(ArchiveError::Read)?;
    Ok(content)
}

fn write_script(
    directory: &Path,
    name: &str,
    mode: u32,
    content: &[u8],
) -> Result<(), ArchiveError> {
    let path = directory.join(name);
    let at = |source| ArchiveError::Io { path: path.clone(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(at)?;
    }
    let mut options = File::options();
    let mut file = options.write(true).create_new(true).mode(mode).open(&path).map_err(at)?;
    file.write_all(content).map_err(at)
}

fn write_entry<R: Read>(
    archive: &mut TarReader<R>,
    writer: &mut TreeWriter,
    entry: &Entry,
) -> Result<(), ArchiveError> {
    let Entry { mode, uid, gid, mtime, .. } = *entry;
    let attributes = Attributes { mode, uid, gid, mtime, xattrs: entry.xattrs.clone() };
    let path = entry.path.as_slice();
    match &entry.kind {
        Kind::Directory => writer.directory(path, attributes)?,
        Kind::HardLink { target } => writer.hard_link(path, target)?,
        Kind::Regular { size, digest } => {
            let what = format!("the content of {}", shown(path));
            let member = expect(archive, &what)?;
            if member.name.strip_prefix(b"filesystem/") != Some(path) {
                return Err(out_of_order(&what, &member));
            }
            let wrong = |problem| ArchiveError::Content { path: shown(path), problem };
            if member.size != *size {
                return Err(wrong(format!("it has {} bytes, expected {size}", member.size)));
            }
            writer.regular(path, attributes, *size, &mut archive.content())?;
            match writer.get(path) {
                Some((Kind::Regular { digest: found, .. }, _)) if found == digest => {}
                _ => return Err(wrong(format!("its digest is not {digest}"))),
            }
        }
        kind => writer.node(path, attributes, kind.clone())?,
    }
    Ok(())
}

fn os(path: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(path))
}

#[cfg(test)]
mod tests;
