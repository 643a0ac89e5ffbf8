//! A repository in the form in which others mirror it: a directory of plain files, for any
//! web server, FTP server or bucket (`docs/formats.md`, "Published repositories").
//!
//! Archives come first, then the databases, what names them last, each by rename: whoever
//! mirrors meanwhile sees the former state or the new one. What is there is not made again,
//! unless it is of another unit than the database lists.

mod place;

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use strata_core::database::Unit;
use strata_core::generation::LayerSetEntry;
use strata_core::names::unit_directory;
use strata_core::{Digest, RepositoryName, limits};
use strata_import::archive::{self, ArchiveError};
use strata_store::durable::Disk;
use strata_store::{SignedFile, Store, StoreError, signed_database_name};

use self::place::Place;
use super::signing::{self, SigningError};

#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Signing(#[from] SigningError),
    #[error("{unit}: {error}")]
    Archive { unit: String, error: ArchiveError },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("the repository {0} is a mirror that lacks layers: publish it where it comes from")]
    Mirror(RepositoryName),
    #[error("the repository {0} has no database")]
    NoDatabase(RepositoryName),
    #[error("the database that the snapshot of {0} names is not there: sign it anew")]
    NotSigned(RepositoryName),
    #[error("{0} is in the store itself; nothing was written")]
    InStore(PathBuf),
    #[error("{directory} has the repository {found:?}; nothing was written")]
    OtherRepository { directory: PathBuf, found: String },
    #[error(
        "{directory} is not empty and no publication of this repository: it has {name:?}; nothing was written"
    )]
    NotEmpty { directory: PathBuf, name: String },
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PublishedRepository {
    pub repository: RepositoryName,
    pub units: usize,
    /// Archives that were made; the others were there.
    pub archives: usize,
    pub signed: bool,
}

/// How far it is: for a progress bar.
#[derive(Debug, Default)]
pub struct Progress {
    pub total_bytes: AtomicU64,
    pub done_bytes: AtomicU64,
}

/// Writes a repository into `directory`, which is its alone ([`Place`]) and made where it is
/// not there.
///
/// # Errors
/// [`PublishError`]; what was published before is whole.
pub fn publish(
    store: &Store,
    repository: &RepositoryName,
    directory: &Path,
    threads: usize,
    progress: &Progress,
) -> Result<PublishedRepository, PublishError> {
    if store.is_mirror(repository)? {
        return Err(PublishError::Mirror(repository.clone()));
    }
    // Nothing is collected meanwhile.
    let _lease = store.lease()?;
    store.database(repository)?;
    let snapshot = signing::snapshot(store, repository)?;
    let bytes = match &snapshot {
        Some((snapshot, _)) => signed_database(store, repository, &snapshot.database)?,
        None => store
            .database_file(repository)?
            .ok_or_else(|| PublishError::NoDatabase(repository.clone()))?,
    };
    let database = store.parse_whole_database(repository, bytes.clone())?;
    let units: Vec<Unit> = database.into_units().collect();
    let disk = Disk::default();
    let _place = Place::take(store, repository, directory)?;
    let archives = pack_all(store, repository, &units, directory, threads, progress)?;
    if let Some((snapshot, envelope)) = &snapshot {
        let write = |name: &str, bytes: &[u8]| write(&disk, &directory.join(name), bytes);
        write(&signed_database_name(&snapshot.database), &bytes)?;
        let mut version = 1;
        while let Some(root) = store.signed_file(repository, SignedFile::Root(version))? {
            write(&SignedFile::Root(version).name(), &root)?;
            version += 1;
        }
        write(&SignedFile::Snapshot.name(), envelope.print().as_bytes())?;
    }
    write(&disk, &directory.join("database"), &bytes)?;
    let (repository, units, signed) = (repository.clone(), units.len(), snapshot.is_some());
    Ok(PublishedRepository { repository, units, archives, signed })
}

fn signed_database(
    store: &Store,
    repository: &RepositoryName,
    digest: &Digest,
) -> Result<Vec<u8>, PublishError> {
    let is_it = |bytes: &Vec<u8>| Digest::of(bytes) == *digest;
    if let Some(bytes) = store.database_file(repository)?.filter(is_it) {
        return Ok(bytes);
    }
    let kept = store.signed_database_file(repository, digest)?.filter(is_it);
    kept.ok_or_else(|| PublishError::NotSigned(repository.clone()))
}

fn write(disk: &Disk, path: &Path, bytes: &[u8]) -> Result<(), PublishError> {
    let present = strata_store::read_limited(path, limits::DATABASE_BYTES);
    if present.is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    Ok(disk.write_file(path, bytes, 0o644)?)
}

fn pack_all(
    store: &Store,
    repository: &RepositoryName,
    units: &[Unit],
    directory: &Path,
    threads: usize,
    progress: &Progress,
) -> Result<usize, PublishError> {
    let published = published(store, repository, directory);
    let wanted: Vec<_> = units
        .iter()
        .map(|unit| (unit, directory.join(archive_name(unit))))
        .filter(|(unit, path)| !(path.is_file() && (published(unit) || is_of(path, unit))))
        .collect();
    let total = wanted.iter().map(|(unit, _)| unit.content_bytes).sum();
    progress.total_bytes.store(total, Ordering::Relaxed);
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some((unit, path)) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = pack_to(store, &entry(repository, unit), path) {
                        failed.lock().expect("no panic while held").get_or_insert(error);
                        next.store(wanted.len(), Ordering::Relaxed);
                    }
                    progress.done_bytes.fetch_add(unit.content_bytes, Ordering::Relaxed);
                }
            });
        }
    });
    match failed.into_inner().expect("no panic while held") {
        None => Ok(wanted.len()),
        Some(error) => Err(error),
    }
}

/// Whether the last publication into the directory listed a unit as it is now.
fn published(
    store: &Store,
    repository: &RepositoryName,
    directory: &Path,
) -> impl Fn(&Unit) -> bool + use<> {
    let bytes = strata_store::read_limited(&directory.join("database"), limits::DATABASE_BYTES);
    let database = bytes.and_then(|bytes| store.parse_whole_database(repository, bytes));
    // Where there is none, the archives themselves tell.
    let database = database.unwrap_or_default();
    move |unit| {
        let known = database.get(&unit.metadata.layer, &unit.metadata.version);
        known.is_some_and(|known| known.digest == unit.digest)
    }
}

/// Whether an archive is of a unit, and not of a former one of its name and version.
fn is_of(path: &Path, unit: &Unit) -> bool {
    let file = File::open(path);
    file.is_ok_and(|file| archive::digest(file).is_ok_and(|digest| digest == unit.digest))
}

/// The name of a unit's archive.
pub fn archive_name(unit: &Unit) -> String {
    let directory = unit_directory(&unit.metadata.layer, &unit.metadata.version);
    format!("{directory}{}", archive::SUFFIX)
}

/// A unit as the archive wants it.
pub fn entry(repository: &RepositoryName, unit: &Unit) -> LayerSetEntry {
    LayerSetEntry {
        kind: unit.metadata.kind,
        repository: repository.clone(),
        layer: unit.metadata.layer.clone(),
        version: unit.metadata.version.clone(),
        digest: unit.digest,
    }
}

/// Makes an archive, which appears whole.
///
/// # Errors
/// The unit is damaged, or the file cannot be written.
pub fn pack_to(store: &Store, unit: &LayerSetEntry, path: &Path) -> Result<(), PublishError> {
    let at = |source| PublishError::Io { path: path.to_owned(), source };
    let directory = path.parent().unwrap_or(Path::new("/"));
    let temporary = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(directory)
        .map_err(at)?;
    let mut output = BufWriter::with_capacity(128 << 10, temporary);
    archive::pack(store, unit, &mut output)
        .map_err(|error| PublishError::Archive { unit: unit.to_string(), error })?;
    let temporary = output.into_inner().map_err(|error| at(error.into_error()))?;
    temporary.as_file().sync_all().map_err(at)?;
    temporary.persist(path).map_err(|error| at(error.error))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(at)
}
