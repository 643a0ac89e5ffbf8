//! An RPM package as a layer unit (`docs/formats.md`, "Conversion of .rpm").
//!
//! The header says everything about the files but their content, which comes from
//! the payload; the header itself and the scriptlets are kept in `scripts/rpm/`
//! for rpm's own tools: [`package`] reads them back, [`plan`] says which scriptlets run in
//! which order, [`register`] gives rpm's database its packages. Where the package carries
//! digests of its header and its
//! payload, both must hold. Nothing a package says is trusted: see
//! [`crate::writer`] and [`crate::placing`].

pub mod capability;
pub mod cpio;
pub mod header;
pub mod owners;
pub mod package;
pub mod plan;
pub mod register;
pub mod relations;

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use sha2::Digest as _;
use strata_core::limits;
use strata_core::manifest::Timestamp;
use strata_core::metadata::{LayerKind, Metadata, System};
use strata_core::names::{LayerName, NameError};
use strata_core::relation::Relation;

use crate::ar::read_block;
use crate::compression::Compression;
use crate::deb::Converted;
use crate::member::shown;
use crate::placing::{EntryError, Placing};
use crate::tarball::{TarEntry, TarKind};
use crate::writer::{TreeLimits, TreeWriter, WriteError};
use cpio::{CpioError, CpioReader, Member};
use header::{Header, HeaderError};
use owners::Owners;
use relations::{Raw, RelationError};

/// Where a unit keeps its package's header and scriptlets, below `scripts/`.
pub const CONTROL_DIRECTORY: &str = "rpm";
const GHOST: u64 = 1 << 6;

/// Tags of the header (rpm's `rpmtag.h`).
mod tag {
    pub const HEADER_SHA256: u32 = 273;
    pub const NAME: u32 = 1000;
    pub const VERSION: u32 = 1001;
    pub const RELEASE: u32 = 1002;
    pub const EPOCH: u32 = 1003;
    pub const SUMMARY: u32 = 1004;
    pub const VENDOR: u32 = 1011;
    pub const GROUP: u32 = 1016;
    pub const ARCHITECTURE: u32 = 1022;
    pub const FILE_SIZES: u32 = 1028;
    pub const FILE_MODES: u32 = 1030;
    pub const FILE_RDEVS: u32 = 1033;
    pub const FILE_MTIMES: u32 = 1034;
    pub const FILE_LINKS: u32 = 1036;
    pub const FILE_FLAGS: u32 = 1037;
    pub const FILE_USERS: u32 = 1039;
    pub const FILE_GROUPS: u32 = 1040;
    pub const SOURCE_RPM: u32 = 1044;
    pub const FILE_DEVICES: u32 = 1095;
    pub const FILE_INODES: u32 = 1096;
    pub const DIR_INDEXES: u32 = 1116;
    pub const BASENAMES: u32 = 1117;
    pub const DIRNAMES: u32 = 1118;
    pub const PAYLOAD_COMPRESSOR: u32 = 1125;
    pub const LONG_FILE_SIZES: u32 = 5008;
    pub const FILE_CAPABILITIES: u32 = 5010;
    pub const PAYLOAD_SHA256: u32 = 5092;
    /// Names, flags and versions of each kind of relation.
    pub const PROVIDES: [u32; 3] = [1047, 1112, 1113];
    pub const REQUIRES: [u32; 3] = [1049, 1048, 1050];
    pub const CONFLICTS: [u32; 3] = [1054, 1053, 1055];
    pub const OBSOLETES: [u32; 3] = [1090, 1114, 1115];
    /// Scriptlets: where each goes, its text and its interpreter.
    pub const SCRIPTLETS: [(&str, u32, u32); 6] = [
        ("pre-transaction", 1151, 1153),
        ("pre-install", 1023, 1085),
        ("post-install", 1024, 1086),
        ("pre-remove", 1025, 1087),
        ("post-remove", 1026, 1088),
        ("post-transaction", 1152, 1154),
    ];
    /// Triggers by package, by file, and by file once a transaction: texts and
    /// interpreters, the number of the text that each condition runs, and the
    /// conditions' names, flags and versions.
    pub const TRIGGERS: [(&str, u32, u32, u32, [u32; 3]); 3] = [
        ("trigger", 1065, 1092, 1069, [1066, 1068, 1067]),
        ("file-trigger", 5066, 5067, 5070, [5069, 5072, 5071]),
        ("transaction-file-trigger", 5076, 5077, 5080, [5079, 5082, 5081]),
    ];
    /// Priorities of each kind's scripts.
    pub const TRIGGER_PRIORITIES: [Option<u32>; 3] = [None, Some(5084), Some(5085)];
}

#[derive(Debug, thiserror::Error)]
pub enum RpmError {
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error("it is a source package; layers are made of binary ones")]
    Source,
    #[error("the SHA-256 of {part} is {found}, the package says {expected}")]
    Digest { part: &'static str, expected: String, found: String },
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Relation(#[from] RelationError),
    #[error(
        "the payload's compression {0:?} is not supported; known are gzip, bzip2, xz, lzma, zstd and none"
    )]
    Compression(String),
    #[error("the lists of files have different lengths")]
    Lengths,
    #[error("the payload: {0}")]
    Cpio(#[from] CpioError),
    #[error("the payload: {0}")]
    Payload(io::Error),
    #[error("the payload holds {0}, which is no file of the header")]
    Unknown(String),
    #[error("the payload holds {0} twice")]
    Twice(String),
    #[error("the payload ends before {0}")]
    Missing(String),
    #[error("{entry}: the file capabilities {text:?} are not understood")]
    Capabilities { entry: String, text: String },
    #[error("{entry}: a file of the type {kind:o} cannot be part of a layer")]
    Type { entry: String, kind: u64 },
    #[error("{entry}: {source}")]
    Entry { entry: String, source: EntryError },
    #[error("the scripts cannot be written: {0}")]
    Scripts(io::Error),
    #[error("the layer cannot be finished: {0}")]
    Finish(WriteError),
}

/// Converts the package `input` into the empty directories `filesystem` and
/// `scripts`. After an error they hold parts and are to be removed.
///
/// # Errors
/// [`RpmError`], which names the entry.
pub fn convert(
    mut input: impl Read + Send,
    filesystem: OwnedFd,
    scripts: &Path,
    limits: TreeLimits,
    owners: &Owners,
) -> Result<Converted, RpmError> {
    let (signature, header) = header::read(&mut input)?;
    check_digest("its header", signature.text(tag::HEADER_SHA256)?, || {
        sha2::Sha256::digest(&header.bytes).into()
    })?;
    if !header.has(tag::SOURCE_RPM) {
        return Err(RpmError::Source);
    }
    let files = files(&header, owners)?;
    let metadata = metadata(&header, &files)?;
    write_scripts(&header, scripts)?;
    let mut start = [0; 2];
    let length = read_block(&mut input, &mut start).map_err(RpmError::Payload)?;
    let compression = compression(header.text(tag::PAYLOAD_COMPRESSOR)?, start)?;
    let input = start[..length].chain(input);
    let mut hashed = Hashed { input, hasher: sha2::Sha256::new() };
    let mut placing = Placing::new(TreeWriter::new(filesystem, limits));
    let plain = compression.reader(&mut hashed).map_err(RpmError::Payload)?;
    unpack(CpioReader::new(plain), &files, &mut placing)?;
    // What follows the end mark is no file, but part of what was digested.
    io::copy(&mut hashed, &mut io::sink()).map_err(RpmError::Payload)?;
    check_digest("its payload", header.text(tag::PAYLOAD_SHA256)?, || {
        hashed.hasher.finalize().into()
    })?;
    let manifest = placing.finish().map_err(RpmError::Finish)?;
    Ok(Converted { metadata, manifest })
}

/// Where a package names none, its payload is gzip's or, as gzip's tools take it,
/// not compressed at all.
fn compression(named: Option<String>, start: [u8; 2]) -> Result<Compression, RpmError> {
    match named {
        None if start == [0x1f, 0x8b] => Ok(Compression::Gzip),
        None => Ok(Compression::None),
        Some(name) => Compression::from_name(&name)
            .ok_or_else(|| RpmError::Compression(name.chars().take(32).collect())),
    }
}

fn check_digest(
    part: &'static str,
    expected: Option<String>,
    found: impl FnOnce() -> [u8; 32],
) -> Result<(), RpmError> {
    let Some(expected) = expected else { return Ok(()) };
    let found: String = found().iter().map(|byte| format!("{byte:02x}")).collect();
    match found == expected.to_ascii_lowercase() {
        true => Ok(()),
        false => Err(RpmError::Digest { part, expected, found }),
    }
}

struct Hashed<R> {
    input: R,
    hasher: sha2::Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.input.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        Ok(length)
    }
}

/// A file of the header.
struct FileEntry {
    /// As a tar archive would have it; hard links are told by `inode`.
    entry: TarEntry,
    /// Not in the payload: made when the package is used.
    ghost: bool,
    inode: (u64, u64),
}

fn files(header: &Header, owners: &Owners) -> Result<Vec<FileEntry>, RpmError> {
    let names = header.byte_strings(tag::BASENAMES)?;
    let directories = header.byte_strings(tag::DIRNAMES)?;
    let numbers = |tag| match header.numbers(tag) {
        Ok(list) if list.len() == names.len() => Ok(list),
        Ok(_) => Err(RpmError::Lengths),
        Err(error) => Err(error.into()),
    };
    let texts = |tag| match header.byte_strings(tag) {
        Ok(list) if list.len() == names.len() => Ok(list),
        Ok(_) => Err(RpmError::Lengths),
        Err(error) => Err(RpmError::from(error)),
    };
    let wide = header.has(tag::LONG_FILE_SIZES);
    let sizes = numbers(if wide { tag::LONG_FILE_SIZES } else { tag::FILE_SIZES })?;
    let (modes, rdevs) = (numbers(tag::FILE_MODES)?, numbers(tag::FILE_RDEVS)?);
    let (mtimes, flags) = (numbers(tag::FILE_MTIMES)?, numbers(tag::FILE_FLAGS)?);
    let (devices, inodes) = (numbers(tag::FILE_DEVICES)?, numbers(tag::FILE_INODES)?);
    let (links, indexes) = (texts(tag::FILE_LINKS)?, numbers(tag::DIR_INDEXES)?);
    let (users, groups) = (texts(tag::FILE_USERS)?, texts(tag::FILE_GROUPS)?);
    let capabilities = header.texts(tag::FILE_CAPABILITIES)?;
    let mut files = Vec::with_capacity(names.len());
    for at in 0..names.len() {
        let directory = usize::try_from(indexes[at]).ok().and_then(|index| directories.get(index));
        let directory = directory.ok_or(RpmError::Lengths)?;
        let name = [b".".as_slice(), directory, &names[at]].concat();
        let kind = kind(modes[at])
            .ok_or_else(|| RpmError::Type { entry: shown(&name), kind: modes[at] & 0o170_000 })?;
        let mut mode = (modes[at] & 0o7777) as u32;
        let (uid, gid) = owner(&name, &users[at], &groups[at], owners, &mut mode);
        let text = capabilities.get(at).map_or("", String::as_str);
        let xattrs = match capability::attribute(text) {
            None => {
                return Err(RpmError::Capabilities { entry: shown(&name), text: text.to_owned() });
            }
            Some(value) if value.is_empty() => BTreeMap::new(),
            Some(value) => BTreeMap::from([(b"security.capability".to_vec(), value)]),
        };
        let mtime = Timestamp { seconds: mtimes[at] as i64, nanoseconds: 0 };
        let size = if kind == TarKind::Regular { sizes[at] } else { 0 };
        let (major, minor) = ((rdevs[at] >> 8 & 0xff) as u32, (rdevs[at] & 0xff) as u32);
        let link = links[at].clone();
        let entry =
            TarEntry { name, kind, link, size, mode, uid, gid, mtime, major, minor, xattrs };
        let (ghost, inode) = (flags[at] & GHOST != 0, (devices[at], inodes[at]));
        files.push(FileEntry { entry, ghost, inode });
    }
    Ok(files)
}

fn kind(mode: u64) -> Option<TarKind> {
    Some(match mode & 0o170_000 {
        0o040_000 => TarKind::Directory,
        0o100_000 => TarKind::Regular,
        0o120_000 => TarKind::Symlink,
        0o020_000 => TarKind::CharacterDevice,
        0o060_000 => TarKind::BlockDevice,
        0o010_000 => TarKind::Fifo,
        _ => return None,
    })
}

/// The numbers of an owner. As with rpm itself, who is not known is root, and such
/// a file runs as nobody else.
fn owner(name: &[u8], user: &[u8], group: &[u8], owners: &Owners, mode: &mut u32) -> (u32, u32) {
    let (user, group) = (String::from_utf8_lossy(user), String::from_utf8_lossy(group));
    let (uid, gid) = (owners.user(&user), owners.group(&group));
    if uid.is_none() || gid.is_none() {
        tracing::warn!(file = shown(name), %user, %group, "its owner is not known; it is root's");
    }
    if uid.is_none() {
        *mode &= !0o4000;
    }
    if gid.is_none() {
        *mode &= !0o2000;
    }
    (uid.unwrap_or(0), gid.unwrap_or(0))
}

/// Writes all files of the payload.
fn unpack(
    mut cpio: CpioReader<impl Read>,
    files: &[FileEntry],
    placing: &mut Placing,
) -> Result<(), RpmError> {
    let by_name: HashMap<&[u8], usize> =
        files.iter().enumerate().map(|(at, file)| (plain(&file.entry.name), at)).collect();
    let mut names_of: BTreeMap<(u64, u64), usize> = BTreeMap::new();
    for file in files.iter().filter(|file| !file.ghost && file.entry.kind == TarKind::Regular) {
        *names_of.entry(file.inode).or_default() += 1;
    }
    // Names of a file whose content comes with the last of them, or its first place.
    let mut waiting: BTreeMap<(u64, u64), Vec<usize>> = BTreeMap::new();
    let mut written: BTreeMap<(u64, u64), usize> = BTreeMap::new();
    let mut seen = vec![false; files.len()];
    while let Some(member) = cpio.next_member()? {
        let (at, bytes) = match &member {
            Member::Named { name, bytes } => (by_name.get(plain(name)).copied(), Some(*bytes)),
            Member::Numbered(at) => (Some(*at).filter(|at| *at < files.len()), None),
        };
        let at = at.ok_or_else(|| {
            RpmError::Unknown(match &member {
                Member::Named { name, .. } => shown(name),
                Member::Numbered(at) => format!("the file number {at}"),
            })
        })?;
        let FileEntry { entry, inode, .. } = &files[at];
        if std::mem::replace(&mut seen[at], true) {
            return Err(RpmError::Twice(shown(&entry.name)));
        }
        let names = names_of.get(inode).copied().unwrap_or(0);
        let linked = entry.kind == TarKind::Regular && names > 1;
        let others = waiting.get(inode).map_or(0, Vec::len);
        let bytes = bytes.unwrap_or_else(|| {
            // The stripped form has content with the last name only.
            let own = !linked || others + 1 == names;
            let bytes = if own { content_bytes(entry) } else { 0 };
            cpio.announce(bytes);
            bytes
        });
        let failed = |at: usize| {
            move |source| RpmError::Entry { entry: shown(&files[at].entry.name), source }
        };
        if let Some(first) = written.get(inode).filter(|_| linked) {
            placing.add(&link(&files[at], &files[*first]), &mut io::empty()).map_err(failed(at))?;
        } else if linked && bytes == 0 && others + 1 < names {
            waiting.entry(*inode).or_default().push(at);
        } else {
            placing.add(entry, &mut cpio.content()).map_err(failed(at))?;
            if linked {
                written.insert(*inode, at);
                for other in waiting.remove(inode).unwrap_or_default() {
                    let link = link(&files[other], &files[at]);
                    placing.add(&link, &mut io::empty()).map_err(failed(other))?;
                }
            }
        }
    }
    let missing = files.iter().zip(&seen).find(|(file, seen)| !file.ghost && !**seen);
    let unlinked = waiting.into_values().flatten().next().map(|at| &files[at]);
    match missing.map(|(file, _)| file).or(unlinked) {
        Some(file) => Err(RpmError::Missing(shown(&file.entry.name))),
        None => Ok(()),
    }
}

/// Bytes that the payload has of an entry: a link's are its target.
fn content_bytes(entry: &TarEntry) -> u64 {
    match entry.kind {
        TarKind::Regular => entry.size,
        TarKind::Symlink => entry.link.len() as u64,
        _ => 0,
    }
}

fn link(file: &FileEntry, first: &FileEntry) -> TarEntry {
    let (kind, link) = (TarKind::HardLink, first.entry.name.clone());
    TarEntry { kind, link, size: 0, ..file.entry.clone() }
}

/// A name without what archives put before it.
fn plain(name: &[u8]) -> &[u8] {
    let name = name.strip_prefix(b".").unwrap_or(name);
    name.strip_prefix(b"/").unwrap_or(name)
}

/// The lists of a kind of relation.
fn relation_lists(
    header: &Header,
    tags: [u32; 3],
) -> Result<Vec<(String, u64, String)>, HeaderError> {
    let (names, flags, versions) =
        (header.texts(tags[0])?, header.numbers(tags[1])?, header.texts(tags[2])?);
    if names.len() != flags.len() || names.len() != versions.len() {
        return Err(HeaderError::Damaged("the header", "lists of relations differ in length"));
    }
    let all = names.into_iter().zip(flags).zip(versions);
    Ok(all.map(|((name, flags), version)| (name, flags, version)).collect())
}

fn metadata(header: &Header, files: &[FileEntry]) -> Result<Metadata, RpmError> {
    let required = |tag| header.text(tag)?.ok_or(RpmError::from(HeaderError::Missing(tag)));
    let name = required(tag::NAME)?;
    let epoch = header.numbers(tag::EPOCH)?.first().copied().unwrap_or(0);
    let text = format!("{}-{}", required(tag::VERSION)?, required(tag::RELEASE)?);
    let version = relations::version(epoch, &text)?;
    let mut metadata = Metadata::new(LayerName::new(name.as_str())?, version, LayerKind::Software);
    let line = |tag| {
        let first = header.text(tag).map(|text| text.unwrap_or_default());
        let first = first.map(|text| text.lines().next().unwrap_or("").trim().to_owned());
        first.map(|line| Some(line).filter(|line| !line.is_empty()))
    };
    metadata.architecture =
        line(tag::ARCHITECTURE)?.map(|name| if name == "noarch" { "all".to_owned() } else { name });
    metadata.system = Some(System::Rpm);
    metadata.section = line(tag::GROUP)?.filter(|group| group != "Unspecified");
    metadata.origin = line(tag::VENDOR)?;
    metadata.description = line(tag::SUMMARY)?;
    let lists = |tags| relation_lists(header, tags);
    fn raw(list: &[(String, u64, String)]) -> Vec<Raw<'_>> {
        list.iter().map(|(name, flags, version)| Raw { name, flags: *flags, version }).collect()
    }
    metadata.depends = relations::requires(&raw(&lists(tag::REQUIRES)?))?;
    metadata.provides = relations::provides(&raw(&lists(tag::PROVIDES)?), &name)?;
    metadata.conflicts = relations::excludes(&raw(&lists(tag::CONFLICTS)?))?;
    metadata.replaces = relations::excludes(&raw(&lists(tag::OBSOLETES)?))?;
    metadata.replaces.retain(|relation| relation.name != metadata.layer);
    // What obsoletes another takes its place: both at once are never wanted.
    let obsoletes = metadata.replaces.clone();
    metadata.conflicts.extend(obsoletes);
    metadata.conflicts.sort();
    metadata.conflicts.dedup();
    for file in files.iter().filter(|file| file.entry.kind != TarKind::Directory) {
        metadata.provides.extend(provided_path(plain(&file.entry.name)));
    }
    metadata.provides.sort();
    metadata.provides.dedup();
    Ok(metadata)
}

/// The name that a file is depended on by, where packages depend on files: programs
/// and what is in /etc, the paths that rpm's own repositories list.
fn provided_path(path: &[u8]) -> Option<Relation> {
    let path = std::str::from_utf8(path).ok()?;
    let listed = path.starts_with("etc/") || path.contains("bin/") || path == "usr/lib/sendmail";
    let name = relations::name(&format!("/{path}")).ok().filter(|_| listed)?;
    Some(Relation::any_version(name))
}

/// Keeps the header and, as files that can be read and run, the scriptlets.
fn write_scripts(header: &Header, scripts: &Path) -> Result<(), RpmError> {
    let directory = scripts.join(CONTROL_DIRECTORY);
    std::fs::DirBuilder::new().mode(0o755).create(&directory).map_err(RpmError::Scripts)?;
    let mut left = limits::CONTROL_BYTES;
    let mut write = |name: &str, content: &[u8], mode| {
        left = left
            .checked_sub(content.len() as u64)
            .ok_or_else(|| RpmError::Scripts(io::Error::other("they are too large")))?;
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(directory.join(name))
            .and_then(|mut file| file.write_all(content))
            .map_err(RpmError::Scripts)
    };
    write("header", &header.bytes, 0o644)?;
    for (name, script, program) in tag::SCRIPTLETS {
        let interpreter = header.texts(program)?;
        let text = header.byte_strings(script)?.into_iter().next();
        if text.is_some() || !interpreter.is_empty() {
            let text = text.unwrap_or_default();
            write(name, &runnable(&interpreter, &text), 0o755)?;
        }
    }
    for (kind, scripts, programs, indexes, conditions) in tag::TRIGGERS {
        let programs = header.texts(programs)?;
        for (number, text) in header.byte_strings(scripts)?.iter().enumerate() {
            let program = programs.get(number).cloned().into_iter().collect::<Vec<_>>();
            write(&format!("{kind}-{number}"), &runnable(&program, text), 0o755)?;
        }
        let indexes = header.numbers(indexes)?;
        let conditions = relation_lists(header, conditions)?;
        let lines = indexes.iter().zip(&conditions).map(|(number, (name, flags, version))| {
            format!("{number} {flags:#x} {name} {version}").trim_end().to_owned() + "\n"
        });
        let list: String = lines.collect();
        if !list.is_empty() {
            write(&format!("{kind}s"), list.as_bytes(), 0o644)?;
        }
    }
    Ok(())
}

/// A scriptlet with its interpreter in the first line.
fn runnable(interpreter: &[String], text: &[u8]) -> Vec<u8> {
    let program = match interpreter {
        [] => "/bin/sh".to_owned(),
        words => words.join(" "),
    };
    [format!("#!{program}\n").as_bytes(), text, b"\n"].concat()
}
