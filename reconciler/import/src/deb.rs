//! A Debian package as a layer unit (§5.3; `docs/formats.md`, "Conversion of .deb").
//!
//! The package's files go below `filesystem/` as dpkg would unpack them on a
//! system with a merged /usr; its control files go to `scripts/deb/`, where the
//! distribution's own tools find them when the scripts are run later. Nothing
//! a package says is trusted: see [`crate::writer`] and [`crate::tarball`].

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use strata_core::limits;
use strata_core::manifest::Manifest;
use strata_core::metadata::Metadata;
use strata_core::position::Located;

use crate::ar::{ArError, ArReader};
use crate::compression::Compression;
use crate::control::{self, ControlError};
use crate::diverts;
use crate::member::{member_path, shown};
use crate::placing::{EntryError, Placing};
use crate::tarball::{TarEntry, TarError, TarKind, TarReader};
use crate::writer::{TreeLimits, TreeWriter, WriteError};

/// Where a unit keeps its package's control files, below `scripts/`.
pub const CONTROL_DIRECTORY: &str = "deb";

#[derive(Debug, thiserror::Error)]
pub enum DebError {
    #[error(transparent)]
    Ar(#[from] ArError),
    #[error("the package holds {found:?} where deb(5) wants {expected}")]
    Member { expected: &'static str, found: String },
    #[error("the package ends before its {0}")]
    Missing(&'static str),
    #[error("the package's format is {0:?}; only 2.x is known")]
    Format(String),
    #[error("{0}: the compression is not supported; known are gz, xz, lzma, zst and none")]
    Compression(String),
    #[error("{member}: {source}")]
    Tar { member: String, source: TarError },
    #[error("control:{0}")]
    Control(#[from] Located<ControlError>),
    #[error("{member}: {entry}: {source}")]
    Entry { member: String, entry: String, source: EntryError },
    #[error("the layer cannot be finished: {0}")]
    Finish(WriteError),
}

/// What a package was made into; the files are on disk.
#[derive(Debug)]
pub struct Converted {
    pub metadata: Metadata,
    pub manifest: Manifest,
}

/// Converts the package `input` into the empty directories `filesystem` and
/// `scripts`. After an error they hold parts and are to be removed.
///
/// # Errors
/// [`DebError`], which names the entry.
pub fn convert(
    input: impl Read + Send,
    filesystem: OwnedFd,
    scripts: &Path,
    limits: TreeLimits,
) -> Result<Converted, DebError> {
    let mut ar = ArReader::new(input)?;
    check_format(&mut ar)?;
    let (member, compression) = next_archive(&mut ar, "control.tar")?;
    let control = unpack_control(&mut ar, &member, compression, scripts)?;
    let mut metadata = control::metadata(&control.control)?;
    metadata.diverts = diverts::of_scripts(&control.scripts);
    let (member, compression) = next_archive(&mut ar, "data.tar")?;
    let mut data = Placing::new(TreeWriter::new(filesystem, limits));
    let mut tar = open(&mut ar, &member, compression)?;
    let broken = |source| DebError::Tar { member: member.clone(), source };
    while let Some(entry) = tar.next_entry().map_err(broken)? {
        data.add(&entry, &mut tar.content()).map_err(|source| DebError::Entry {
            member: member.clone(),
            entry: shown(&entry.name),
            source,
        })?;
    }
    if metadata.layer.as_str() == "base-files" {
        data.merge_links(metadata.architecture.as_deref()).map_err(DebError::Finish)?;
    }
    let manifest = data.finish().map_err(DebError::Finish)?;
    Ok(Converted { metadata, manifest })
}

pub(crate) fn check_format<R: Read>(ar: &mut ArReader<R>) -> Result<(), DebError> {
    let first = ar.next_member()?.ok_or(DebError::Missing("debian-binary"))?;
    if first.name != "debian-binary" {
        return Err(DebError::Member { expected: "debian-binary", found: first.name });
    }
    let mut format = Vec::new();
    ar.content().take(64).read_to_end(&mut format).map_err(ArError::from)?;
    match format.strip_prefix(b"2.") {
        Some(minor) if minor.first().is_some_and(u8::is_ascii_digit) => Ok(()),
        _ => Err(DebError::Format(shown(&format))),
    }
}

/// Goes to the member `prefix` + suffix; those that start with `_` are passed
/// over, as deb(5) lays down.
pub(crate) fn next_archive<R: Read>(
    ar: &mut ArReader<R>,
    prefix: &'static str,
) -> Result<(String, Compression), DebError> {
    loop {
        let member = ar.next_member()?.ok_or(DebError::Missing(prefix))?;
        if member.name.starts_with('_') {
            continue;
        }
        let Some(suffix) = member.name.strip_prefix(prefix) else {
            return Err(DebError::Member { expected: prefix, found: member.name });
        };
        return match Compression::from_suffix(suffix) {
            Some(compression) => Ok((member.name, compression)),
            None => Err(DebError::Compression(member.name)),
        };
    }
}

/// A reader of the archive that [`next_archive`] went to.
pub(crate) fn open<'a, R: Read + Send>(
    ar: &'a mut ArReader<R>,
    member: &str,
    compression: Compression,
) -> Result<TarReader<Box<dyn Read + Send + 'a>>, DebError> {
    let plain = compression
        .reader(ar.content())
        .map_err(|error| DebError::Tar { member: member.to_owned(), source: error.into() })?;
    Ok(TarReader::new(plain))
}

/// What is looked at of the control files.
struct Control {
    control: Vec<u8>,
    /// The scripts that run when a package is installed.
    scripts: Vec<Vec<u8>>,
}

/// Writes the control files.
fn unpack_control<R: Read + Send>(
    ar: &mut ArReader<R>,
    member: &str,
    compression: Compression,
    scripts: &Path,
) -> Result<Control, DebError> {
    let mut tar = open(ar, member, compression)?;
    let directory = scripts.join(CONTROL_DIRECTORY);
    let broken = |source| DebError::Tar { member: member.to_owned(), source };
    let failed = |entry: &[u8], source| {
        let (member, entry) = (member.to_owned(), shown(entry));
        DebError::Entry { member, entry, source }
    };
    std::fs::DirBuilder::new()
        .mode(0o755)
        .create(&directory)
        .map_err(|error| failed(b"./", error.into()))?;
    let mut control = None;
    let mut scripts = Vec::new();
    let mut left = limits::CONTROL_BYTES;
    while let Some(entry) = tar.next_entry().map_err(broken)? {
        let written = control_file(&entry, &mut tar.content(), &directory, &mut left);
        let written = written.map_err(|source| failed(&entry.name, source))?;
        let Some((name, content)) = written else { continue };
        match name.as_str() {
            "control" => control = Some(content),
            "preinst" | "postinst" => scripts.push(content),
            _ => {}
        }
    }
    let control = control.ok_or(DebError::Missing("control file"))?;
    Ok(Control { control, scripts })
}

/// Writes one control file; `left` is how many bytes may still come. Scripts
/// are made executable whatever the archive says, as dpkg does.
fn control_file(
    entry: &TarEntry,
    content: &mut dyn Read,
    directory: &Path,
    left: &mut u64,
) -> Result<Option<(String, Vec<u8>)>, EntryError> {
    let path = member_path(&entry.name)?;
    if path.is_empty() && entry.kind == TarKind::Directory {
        return Ok(None);
    }
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._+-".contains(byte);
    let named = path.first().is_some_and(u8::is_ascii_alphanumeric) && path.iter().all(plain);
    if entry.kind != TarKind::Regular || !named {
        return Err(EntryError::Control);
    }
    let name = String::from_utf8(path).map_err(|_| EntryError::Control)?;
    *left = left.checked_sub(entry.size).ok_or(EntryError::ControlBytes)?;
    let mut bytes = Vec::new();
    content.read_to_end(&mut bytes)?;
    let script = matches!(name.as_str(), "preinst" | "postinst" | "prerm" | "postrm" | "config");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(if script { 0o755 } else { 0o644 })
        .open(directory.join(&name))?;
    io::Write::write_all(&mut file, &bytes)?;
    Ok(Some((name, bytes)))
}
