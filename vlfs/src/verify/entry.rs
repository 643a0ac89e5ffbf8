//! One path of a layer against its line of the manifest.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, StatxFlags};
use rustix::io::Errno;
use serde::Serialize;
use strata_core::Digest;
use strata_core::manifest::{Entry, Kind, Manifest, file_name, parent_path};

use super::Progress;
use crate::backing;

/// `STATX_ATTR_VERITY`: the kernel checks every read of the file against a sealed digest.
const VERITY: u64 = 0x0010_0000;
/// Names of one directory that are reported as extra; a flood is cut short.
const EXTRA_NAMES: usize = 1000;

/// What differs from the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Fault {
    /// The layer unit as a whole: missing, or its manifest, metadata or scripts damaged.
    Unit {
        error: String,
    },
    Missing,
    /// No line of the manifest names it.
    Extra,
    Type {
        expected: String,
        found: String,
    },
    /// Octal.
    Mode {
        expected: String,
        found: String,
    },
    /// `uid:gid`.
    Owner {
        expected: String,
        found: String,
    },
    Size {
        expected: u64,
        found: u64,
    },
    /// `seconds.nanoseconds`.
    Mtime {
        expected: String,
        found: String,
    },
    /// Bytes that are not UTF-8 shown as U+FFFD.
    Target {
        expected: String,
        found: String,
    },
    /// `major:minor`.
    Device {
        expected: String,
        found: String,
    },
    /// Names of the attributes that are missing, extra or of another value.
    Xattrs {
        names: Vec<String>,
    },
    /// blake3.
    Content {
        expected: Digest,
        found: Digest,
    },
    /// It is no longer the same file as the path that it is a hard link to.
    HardLink {
        target: String,
    },
    Unreadable {
        error: String,
    },
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut differs =
            |what: &str, expected: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
                write!(f, "{what} is {found}, expected {expected}")
            };
        match self {
            Fault::Type { expected, found } => differs("type", expected, found),
            Fault::Mode { expected, found } => differs("mode", expected, found),
            Fault::Owner { expected, found } => differs("owner", expected, found),
            Fault::Size { expected, found } => differs("size", expected, found),
            Fault::Mtime { expected, found } => differs("mtime", expected, found),
            Fault::Target { expected, found } => differs("target", expected, found),
            Fault::Device { expected, found } => differs("device", expected, found),
            Fault::Content { expected, found } => {
                differs("content", &expected.short(), &found.short())
            }
            Fault::Unit { error } => f.write_str(error),
            Fault::Missing => f.write_str("missing"),
            Fault::Extra => f.write_str("not in the manifest"),
            Fault::Xattrs { names } => {
                write!(f, "extended attributes differ: {}", names.join(", "))
            }
            Fault::HardLink { target } => write!(f, "no longer a hard link to {target}"),
            Fault::Unreadable { error } => write!(f, "cannot be read: {error}"),
        }
    }
}

/// A path with what is wrong there.
type Found = (Vec<u8>, Vec<Fault>);

/// What one thread keeps between paths.
pub struct Checker<'a> {
    progress: &'a Progress,
    buffer: Vec<u8>,
    /// The directory opened last: its layer and path.
    parent: Option<(u32, Vec<u8>, OwnedFd)>,
    pub sealed_files: usize,
}

impl<'a> Checker<'a> {
    pub fn new(progress: &'a Progress) -> Self {
        Checker { progress, buffer: vec![0; 256 << 10], parent: None, sealed_files: 0 }
    }

    /// Compares one path; of a directory, its names too. `layer` tells layers apart.
    pub fn check(
        &mut self,
        layer: u32,
        root: &OwnedFd,
        manifest: &Manifest,
        entry: &Entry,
    ) -> Vec<Found> {
        let mut found = Vec::new();
        let mut faults = Vec::new();
        if let Err(errno) = self.compare(layer, root, manifest, entry, &mut faults, &mut found) {
            faults = match errno {
                Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV => vec![Fault::Missing],
                other => vec![Fault::Unreadable { error: other.to_string() }],
            };
        }
        if !faults.is_empty() {
            found.push((entry.path.clone(), faults));
        }
        found
    }

    fn compare(
        &mut self,
        layer: u32,
        root: &OwnedFd,
        manifest: &Manifest,
        entry: &Entry,
        faults: &mut Vec<Fault>,
        extra: &mut Vec<Found>,
    ) -> Result<(), Errno> {
        let above = parent_path(&entry.path).unwrap_or(&[]);
        if !matches!(&self.parent, Some((l, path, _)) if *l == layer && *path == above) {
            self.parent = None;
            let directory = backing::open_directory(root, above)?;
            self.parent = Some((layer, above.to_vec(), directory));
        }
        let Some((_, _, parent)) = &self.parent else { return Err(Errno::NOENT) };
        let name = if entry.path.is_empty() { b"." } else { file_name(&entry.path) };
        let stat = backing::stat_at(parent, name)?;
        let described = described(manifest, entry).ok_or(Errno::INVAL)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != file_type(&described.kind) {
            let expected = kind_name(file_type(&described.kind)).to_owned();
            faults.push(Fault::Type { expected, found: kind_name(kind).to_owned() });
            return Ok(());
        }
        attributes(described, &stat, faults);
        let path = backing::path_of(parent, name);
        compare_xattrs(described, &path, faults)?;
        match &entry.kind {
            Kind::Directory => {
                let directory = backing::open_directory(parent, name)?;
                names(&directory, manifest, entry, extra)?;
            }
            Kind::Symlink { target } => {
                let found = backing::read_link(parent, name)?;
                if found != *target {
                    faults.push(Fault::Target { expected: lossy(target), found: lossy(&found) });
                }
            }
            Kind::HardLink { target } => {
                let (above, name) = backing::open_parent(root, target)?;
                let same = backing::stat_at(above, name)
                    .is_ok_and(|other| (other.st_dev, other.st_ino) == (stat.st_dev, stat.st_ino));
                if !same {
                    faults.push(Fault::HardLink { target: lossy(target) });
                }
            }
            Kind::Regular { size, digest } => {
                let found = u64::try_from(stat.st_size).unwrap_or(0);
                if found == *size {
                    let file = open_file(parent, name)?;
                    self.content(&file, digest, faults)?;
                } else {
                    faults.push(Fault::Size { expected: *size, found });
                }
            }
            Kind::CharacterDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                let (found_major, found_minor) =
                    (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
                if (found_major, found_minor) != (*major, *minor) {
                    let expected = format!("{major}:{minor}");
                    let found = format!("{found_major}:{found_minor}");
                    faults.push(Fault::Device { expected, found });
                }
            }
            Kind::Fifo | Kind::Socket => {}
        }
        Ok(())
    }

    fn content(
        &mut self,
        file: &OwnedFd,
        expected: &Digest,
        faults: &mut Vec<Fault>,
    ) -> Result<(), Errno> {
        let statx = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
        if statx.stx_attributes.bits() & VERITY != 0 {
            self.sealed_files += 1;
        }
        let mut hasher = blake3::Hasher::new();
        loop {
            match rustix::io::read(file, &mut self.buffer[..]) {
                Ok(0) => break,
                Ok(length) => {
                    hasher.update(&self.buffer[..length]);
                    self.progress.done_bytes.fetch_add(length as u64, Ordering::Relaxed);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
            if self.progress.cancelled.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
        let found = Digest::from_bytes(*hasher.finalize().as_bytes());
        if found != *expected {
            faults.push(Fault::Content { expected: *expected, found });
        }
        Ok(())
    }
}

/// Opens a regular file; what took its place since it was described is refused unread.
fn open_file(parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::NONBLOCK;
    let file = match backing::open_beneath(parent, name, flags, Mode::empty()) {
        // Neither the owner nor root: the time of access changes then.
        Err(Errno::PERM) => {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK;
            backing::open_beneath(parent, name, flags, Mode::empty())?
        }
        other => other?,
    };
    match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
        FileType::RegularFile => Ok(file),
        _ => Err(Errno::IO),
    }
}

/// The entry whose attributes a path has: a hard link's are those of its target.
fn described<'a>(manifest: &'a Manifest, entry: &'a Entry) -> Option<&'a Entry> {
    match &entry.kind {
        Kind::HardLink { target } => manifest.get(target),
        _ => Some(entry),
    }
}

fn attributes(entry: &Entry, stat: &Stat, faults: &mut Vec<Fault>) {
    let mode = stat.st_mode & 0o7777;
    let is_link = matches!(entry.kind, Kind::Symlink { .. });
    if !is_link && mode != entry.mode {
        let (expected, found) = (format!("{:o}", entry.mode), format!("{mode:o}"));
        faults.push(Fault::Mode { expected, found });
    }
    if (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid) {
        let expected = format!("{}:{}", entry.uid, entry.gid);
        let found = format!("{}:{}", stat.st_uid, stat.st_gid);
        faults.push(Fault::Owner { expected, found });
    }
    let mtime = backing::timestamp(stat.st_mtime, stat.st_mtime_nsec);
    if mtime != entry.mtime {
        let text = |time: strata_core::manifest::Timestamp| {
            format!("{}.{:09}", time.seconds, time.nanoseconds)
        };
        faults.push(Fault::Mtime { expected: text(entry.mtime), found: text(mtime) });
    }
}

fn compare_xattrs(entry: &Entry, path: &[u8], faults: &mut Vec<Fault>) -> Result<(), Errno> {
    let mut found = backing::xattrs(path)?;
    // No part of a layer: the host's policy labels files as it likes.
    found.remove(&b"security.selinux"[..]);
    if found == entry.xattrs {
        return Ok(());
    }
    let mut names: Vec<_> = found.keys().chain(entry.xattrs.keys()).collect();
    names.sort();
    names.dedup();
    names.retain(|name| found.get(*name) != entry.xattrs.get(*name));
    faults.push(Fault::Xattrs { names: names.into_iter().map(|name| lossy(name)).collect() });
    Ok(())
}

/// The names of a directory that no line of the manifest has.
fn names(
    directory: &OwnedFd,
    manifest: &Manifest,
    entry: &Entry,
    extra: &mut Vec<Found>,
) -> Result<(), Errno> {
    for name in backing::list(directory)? {
        let mut path = entry.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&name.name);
        if extra.len() < EXTRA_NAMES && manifest.get(&path).is_none() {
            extra.push((path, vec![Fault::Extra]));
        }
    }
    Ok(())
}

fn file_type(kind: &Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::Regular { .. } => FileType::RegularFile,
        Kind::Symlink { .. } => FileType::Symlink,
        Kind::CharacterDevice { .. } => FileType::CharacterDevice,
        Kind::BlockDevice { .. } => FileType::BlockDevice,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
        Kind::HardLink { .. } => FileType::Unknown,
    }
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symbolic link",
        FileType::Fifo => "FIFO",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Unknown => "unknown",
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
