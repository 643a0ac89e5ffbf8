//! Which file a request is for.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use strata_core::generation::LayerSetEntry;
use strata_core::{Digest, RepositoryName};
use strata_import::archive;
use strata_store::{DatabaseStamp, SignedFile, Store, StoreError, signed_database_name};

use super::Options;
use crate::http_server::files::{SentFile, open_regular};
use crate::repositories::publish::{self, PublishError, archive_name, entry};

/// Archives that are made at once.
const PACKING: usize = 2;

#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("there is no such file")]
    NotFound,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
}

/// The units of a repository by the names of their archives, of one state of its database.
type Archives = Arc<HashMap<String, LayerSetEntry>>;

#[derive(Debug)]
pub(super) struct Files {
    store: Store,
    options: Options,
    archives: Mutex<HashMap<RepositoryName, (DatabaseStamp, Archives)>>,
    packing: [Mutex<()>; PACKING],
}

impl Files {
    pub(super) fn new(store: Store, options: Options) -> Self {
        let packing = std::array::from_fn(|_| Mutex::new(()));
        Files { store, options, archives: Mutex::default(), packing }
    }

    /// The file of a repository's that has this name. Blocks while an archive is made.
    pub(super) fn find(&self, repository: &str, name: &str) -> Result<SentFile, FileError> {
        let repository =
            self.options.repositories.iter().find(|known| known.as_str() == repository);
        let repository = repository.ok_or(FileError::NotFound)?;
        if name.ends_with(archive::SUFFIX) {
            let archives = self.archives(repository)?;
            let unit = archives.get(name).ok_or(FileError::NotFound)?;
            return self.archive(unit);
        }
        let is_immutable = match name {
            "database" | "snapshot.toml" => false,
            _ => is_root(name) || is_signed_database(name),
        };
        if !is_immutable && !matches!(name, "database" | "snapshot.toml") {
            return Err(FileError::NotFound);
        }
        let path = self.store.root().join("repos").join(repository).join(name);
        let (file, metadata) = open(&path)?;
        let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
        let etag =
            format!("\"{:x}-{seconds:x}.{nanoseconds:x}-{:x}\"", metadata.ino(), metadata.len());
        Ok(SentFile { file, length: metadata.len(), etag, is_immutable })
    }

    fn archives(&self, repository: &RepositoryName) -> Result<Archives, FileError> {
        let stamp = self.store.database_stamp(repository)?.ok_or(FileError::NotFound)?;
        let known = |archives: &HashMap<RepositoryName, (DatabaseStamp, Archives)>| {
            let (of, archives) = archives.get(repository)?;
            (*of == stamp).then(|| archives.clone())
        };
        if let Some(archives) = known(&self.archives.lock().unwrap_or_else(PoisonError::into_inner))
        {
            return Ok(archives);
        }
        let units = self.store.database(repository)?.into_units();
        let archives: HashMap<_, _> =
            units.map(|unit| (archive_name(&unit), entry(repository, &unit))).collect();
        let archives = Arc::new(archives);
        let mut all = self.archives.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(repository.clone(), (stamp, archives.clone()));
        Ok(archives)
    }

    /// A unit's archive out of the cache, made where it is not there.
    fn archive(&self, unit: &LayerSetEntry) -> Result<SentFile, FileError> {
        let path = self.options.cache.join(format!("{}{}", unit.digest, archive::SUFFIX));
        let opened = match open(&path) {
            Err(FileError::NotFound) => {
                // Units of one digest wait for each other.
                let slot = usize::from(unit.digest.as_bytes()[0]) % PACKING;
                let _slot = self.packing[slot].lock().unwrap_or_else(PoisonError::into_inner);
                match open(&path) {
                    Err(FileError::NotFound) => {
                        match publish::pack_to(&self.store, unit, &path) {
                            // A mirror has not every layer that its database lists.
                            Err(PublishError::Archive {
                                error: archive::ArchiveError::Store(StoreError::NoUnit { .. }),
                                ..
                            }) => return Err(FileError::NotFound),
                            packed => packed?,
                        }
                        self.make_room(&path);
                        open(&path)
                    }
                    opened => opened,
                }
            }
            opened => opened,
        };
        let (file, metadata) = opened?;
        let etag = format!("\"{}-{:x}\"", unit.digest, metadata.len());
        Ok(SentFile { file, length: metadata.len(), etag, is_immutable: true })
    }

    /// Removes the oldest archives beyond the cache's size, but not `kept`.
    fn make_room(&self, kept: &Path) {
        let Ok(entries) = fs::read_dir(&self.options.cache) else { return };
        let mut archives: Vec<_> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let metadata = entry.metadata().ok()?;
                let is_archive = entry.file_name().to_string_lossy().ends_with(archive::SUFFIX);
                is_archive.then(|| (metadata.mtime(), metadata.len(), entry.path()))
            })
            .collect();
        archives.sort();
        let mut total: u64 = archives.iter().map(|(_, length, _)| length).sum();
        for (_, length, path) in archives {
            if total <= self.options.cache_bytes {
                break;
            }
            if path != kept {
                match fs::remove_file(&path) {
                    Ok(()) => total -= length,
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "an archive stays");
                    }
                }
            }
        }
    }
}

fn is_root(name: &str) -> bool {
    let version = name.strip_prefix("root-").and_then(|rest| rest.strip_suffix(".toml"));
    let version = version.and_then(|version| version.parse::<u32>().ok());
    version.is_some_and(|version| SignedFile::Root(version).name() == name)
}

fn is_signed_database(name: &str) -> bool {
    let digest = name.strip_prefix("database-").and_then(|digest| digest.parse::<Digest>().ok());
    digest.is_some_and(|digest| signed_database_name(&digest) == name)
}

fn open(path: &Path) -> Result<(File, fs::Metadata), FileError> {
    open_regular(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => FileError::NotFound,
        _ => FileError::Io { path: path.to_owned(), source },
    })
}
