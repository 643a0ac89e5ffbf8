//! Repositories of layer units (§5.4): staged aside, published whole.

mod index;
mod mirror;
mod remove;
mod signing;
mod staging;
mod withdrawal;

pub use index::IndexOptions;
pub(crate) use remove::{ASIDE, aside_of, discard};
pub use signing::{SignedFile, signed_database_name};
pub use staging::StagedUnit;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use strata_core::database::{Database, Unit, unit_digest};
use strata_core::database_text::DatabaseText;
use strata_core::generation::LayerSetEntry;
use strata_core::manifest::Manifest;
use strata_core::metadata::{LayerKind, Metadata};
use strata_core::names::{TEMPLATES_REPOSITORY, unit_directory};
use strata_core::whiteouts::{self, Whiteouts};
use strata_core::withdrawn::Withdrawn;
use strata_core::{Digest, LayerName, LayerVersion, RepositoryName, limits};

use crate::database_file;
use crate::error::{Context, StoreError};
use crate::read::{names_in, optional, read_limited};
use crate::store::{Store, StoreLock, lock};

/// Bytes of all scripts of one unit together.
const SCRIPTS_BYTES: usize = 64 << 20;

/// What publishing did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    pub digest: Digest,
    /// False where the same unit was there already.
    pub new: bool,
    /// Why nothing new may use it, where that is so: it was withdrawn before.
    pub withdrawn: Option<String>,
}

/// See [`Store::database_stamp`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatabaseStamp {
    inode: u64,
    changed: (i64, i64),
    bytes: u64,
}

/// A unit whose metadata, manifest and scripts agree with its digest.
#[derive(Debug)]
pub struct OpenedUnit {
    /// The unit's directory; the files are in its `filesystem`.
    pub path: PathBuf,
    pub metadata: Metadata,
    pub manifest: Manifest,
    /// All files below `scripts/` by their paths there.
    pub scripts: BTreeMap<String, Vec<u8>>,
}

/// Exclusive write access to one repository, with its database in memory.
/// [`RepositoryWriter::commit`] writes the database; units published before a
/// crash and not in it are found again by `strata repo index`.
#[derive(Debug)]
pub struct RepositoryWriter<'s> {
    store: &'s Store,
    repository: RepositoryName,
    database: Database,
    /// Added and not there yet.
    pending: Vec<Pending>,
    changed: bool,
    /// Of units that were here.
    withdrawn: Withdrawn,
    withdrawn_changed: bool,
    _lock: StoreLock,
}

/// A unit that is complete but for its name.
#[derive(Debug)]
struct Pending {
    staged: StagedUnit,
    path: PathBuf,
    unit: Unit,
}

impl Store {
    pub(crate) fn repository_path(&self, repository: &RepositoryName) -> PathBuf {
        self.root().join("repos").join(repository)
    }

    /// The directory of a unit.
    pub fn unit_path(
        &self,
        repository: &RepositoryName,
        layer: &LayerName,
        version: &LayerVersion,
    ) -> PathBuf {
        self.repository_path(repository).join(unit_directory(layer, version))
    }

    /// The repositories of the store, `templates` included where it exists.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn repositories(&self) -> Result<Vec<RepositoryName>, StoreError> {
        let names = names_in(&self.root().join("repos"))?;
        Ok(names.into_iter().filter_map(|name| RepositoryName::new(name).ok()).collect())
    }

    /// [`Store::write_mirror`] of a mirror, [`Store::write_repository`] of any other repository.
    ///
    /// # Errors
    /// It cannot be made or read.
    pub fn write_either(
        &self,
        repository: &RepositoryName,
    ) -> Result<RepositoryWriter<'_>, StoreError> {
        match self.is_mirror(repository)? {
            true => self.write_mirror(repository),
            false => self.write_repository(repository),
        }
    }

    /// The directories of a repository that units have, or that pass for ones, sorted.
    ///
    /// # Errors
    /// The repository cannot be listed.
    pub fn unit_directories(&self, repository: &RepositoryName) -> Result<Vec<String>, StoreError> {
        let directory = self.repository_path(repository);
        let mut names = names_in(&directory).map_err(|error| error.of_repository(repository))?;
        names.retain(|name| directory.join(name).is_dir());
        Ok(names)
    }

    /// What tells one state of a repository's database from another without
    /// reading it; `None` where there is no database. Databases are replaced by
    /// rename, so another state is another inode.
    ///
    /// # Errors
    /// The database cannot be looked at.
    pub fn database_stamp(
        &self,
        repository: &RepositoryName,
    ) -> Result<Option<DatabaseStamp>, StoreError> {
        signing::stamp(&self.repository_path(repository).join("database"))
    }

    /// The database of a repository.
    ///
    /// # Errors
    /// There is no such repository, or its database is damaged.
    pub fn database(&self, repository: &RepositoryName) -> Result<Database, StoreError> {
        match self.database_bytes(repository)? {
            None => Ok(Database::default()),
            Some((path, text)) => {
                Database::parse(&text).map_err(|located| StoreError::Database { path, located })
            }
        }
    }

    /// The database of a repository for resolution: checked whole, and its units
    /// made when they are looked at.
    ///
    /// # Errors
    /// There is no such repository, or its database is damaged.
    pub fn database_text(&self, repository: &RepositoryName) -> Result<DatabaseText, StoreError> {
        match self.database_bytes(repository)? {
            None => Ok(DatabaseText::default()),
            Some((path, text)) => {
                database_file::check(text).map_err(|located| StoreError::Database { path, located })
            }
        }
    }

    /// The text of a database and where it was read; `None` where there is none.
    fn database_bytes(
        &self,
        repository: &RepositoryName,
    ) -> Result<Option<(PathBuf, Vec<u8>)>, StoreError> {
        let directory = self.repository_path(repository);
        if !directory.is_dir() {
            return Err(StoreError::NoRepository(repository.clone()));
        }
        let path = directory.join("database");
        let read = optional(read_limited(&path, limits::DATABASE_BYTES));
        match read.map_err(|error| error.of_repository(repository))? {
            None => Ok(None),
            Some(bytes) => {
                let text = database_file::decode(&path, bytes)?;
                Ok(Some((path, text)))
            }
        }
    }

    /// The manifest of a unit, as it stands on disk (its digest is not checked).
    ///
    /// # Errors
    /// There is no such unit, or its manifest is damaged.
    pub fn manifest(
        &self,
        repository: &RepositoryName,
        layer: &LayerName,
        version: &LayerVersion,
    ) -> Result<Manifest, StoreError> {
        read_manifest(&self.unit_path(repository, layer, version))
            .map_err(|error| error.of_repository(repository))
    }

    /// Opens a unit of a layer set and compares metadata, manifest and scripts
    /// with the digest of the set. Contents of files are not read.
    ///
    /// # Errors
    /// The unit is missing or damaged.
    pub fn open_unit(&self, entry: &LayerSetEntry) -> Result<OpenedUnit, StoreError> {
        let path = self.unit_path(&entry.repository, &entry.layer, &entry.version);
        let directory = fs::metadata(&path).at("open", &path);
        let directory = optional(directory).map_err(|e| e.of_repository(&entry.repository))?;
        if !directory.is_some_and(|metadata| metadata.is_dir()) {
            return Err(StoreError::NoUnit {
                repository: entry.repository.clone(),
                layer: entry.layer.clone(),
                version: entry.version.clone(),
            });
        }
        let read = read_unit(path).map_err(|error| error.of_repository(&entry.repository));
        let (opened, found) = read?;
        if found != entry.digest {
            let expected = entry.digest;
            return Err(StoreError::Damaged { path: opened.path, expected, found });
        }
        Ok(opened)
    }

    /// What a unit of a layer set hides in the layers below it; as it stands on disk
    /// ([`Store::open_unit`] compares it with the digest). Software layers hide nothing.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn whiteouts(&self, entry: &LayerSetEntry) -> Result<Whiteouts, StoreError> {
        if entry.kind != LayerKind::Configuration {
            return Ok(Whiteouts::default());
        }
        let unit = self.unit_path(&entry.repository, &entry.layer, &entry.version);
        let path = unit.join("scripts").join(whiteouts::FILE);
        match optional(read_limited(&path, whiteouts::FILE_BYTES))? {
            None => Ok(Whiteouts::default()),
            Some(text) => {
                Whiteouts::parse(&text).map_err(|located| StoreError::Whiteouts { path, located })
            }
        }
    }

    /// Takes exclusive write access to a repository, waiting for other writers;
    /// the repository is made where it does not exist. What killed writers left
    /// half-made is removed.
    ///
    /// # Errors
    /// It is a mirror, which only [`Store::write_mirror`] opens, or it cannot be made or read.
    pub fn write_repository(
        &self,
        repository: &RepositoryName,
    ) -> Result<RepositoryWriter<'_>, StoreError> {
        if self.is_mirror(repository)? {
            return Err(StoreError::Mirror(repository.clone()));
        }
        self.disk.create_directory(&self.repository_path(repository))?;
        self.open_writer(repository)
    }

    fn open_writer(&self, repository: &RepositoryName) -> Result<RepositoryWriter<'_>, StoreError> {
        let path = self.repository_path(repository);
        let lock = lock(&path.join(".lock"), FlockOperation::LockExclusive)?;
        staging::sweep_staging(&path)?;
        crate::temporary::sweep(&path)?;
        let database = self.database(repository)?;
        remove::finish_interrupted(self, &path, &database)?;
        Ok(RepositoryWriter {
            store: self,
            repository: repository.clone(),
            database,
            pending: Vec::new(),
            changed: false,
            withdrawn: withdrawal::read(&path)?,
            withdrawn_changed: false,
            _lock: lock,
        })
    }
}

impl RepositoryWriter<'_> {
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Publishes a staged unit: its directory appears whole under its name.
    /// Publishing the same content again changes nothing.
    ///
    /// # Errors
    /// The unit is there with other content, or cannot be written.
    pub fn publish(
        &mut self,
        staged: StagedUnit,
        metadata: Metadata,
        manifest: &Manifest,
    ) -> Result<Published, StoreError> {
        let published = self.add(staged, metadata, manifest)?;
        self.flush()?;
        Ok(published)
    }

    /// As [`RepositoryWriter::publish`], but the unit appears with the next
    /// [`RepositoryWriter::flush`], so that many share one sync.
    ///
    /// # Errors
    /// As [`RepositoryWriter::publish`]; those added before are not affected.
    pub fn add(
        &mut self,
        mut staged: StagedUnit,
        metadata: Metadata,
        manifest: &Manifest,
    ) -> Result<Published, StoreError> {
        let scripts = read_scripts(&staged.scripts())?;
        let text = manifest.print();
        let digest = unit_digest(&metadata, &text, &scripts);
        let unit_path = self.store.unit_path(&self.repository, &metadata.layer, &metadata.version);
        let pending = self.pending.iter().find(|pending| pending.path == unit_path);
        let present = match pending {
            Some(pending) => Some(pending.unit.digest),
            None => match optional(fs::symlink_metadata(&unit_path).at("stat", &unit_path))? {
                Some(_) => Some(read_unit(unit_path.clone())?.1),
                None => None,
            },
        };
        if let Some(present) = present.filter(|present| *present != digest) {
            return Err(StoreError::UnitDiffers {
                repository: self.repository.clone(),
                layer: metadata.layer,
                version: metadata.version,
                present,
                new: digest,
            });
        }
        let withdrawn = self.reason_withdrawn(&metadata.layer, &metadata.version);
        let withdrawn = withdrawn.map(str::to_owned);
        let published = Published { digest, new: present.is_none(), withdrawn: withdrawn.clone() };
        let content_bytes = manifest.content_bytes();
        let unit = Unit { metadata, digest, content_bytes, withdrawn };
        if present.is_some() {
            self.enter(unit);
            return Ok(published);
        }
        if scripts.is_empty() {
            fs::remove_dir_all(staged.scripts()).at("remove", &staged.scripts())?;
        }
        self.store.share_staged(&mut staged, manifest);
        // The sync of the whole directory comes with the flush.
        let disk = &self.store.disk;
        let metadata = unit.metadata.print();
        disk.create_file(&staged.path().join("metadata"), metadata.as_bytes(), 0o444)?;
        disk.create_file(&staged.path().join("manifest"), text.as_bytes(), 0o444)?;
        self.pending.push(Pending { staged, path: unit_path, unit });
        Ok(published)
    }

    /// Makes the units that were added appear, each whole.
    ///
    /// # Errors
    /// A step failed. The units that appeared stay and are found by the next
    /// writer that adds them, or by `strata repo index`; the others are removed.
    pub fn flush(&mut self) -> Result<(), StoreError> {
        let pending = std::mem::take(&mut self.pending);
        let places: Vec<_> =
            pending.iter().map(|unit| (unit.staged.path(), unit.path.as_path())).collect();
        self.store.disk.publish_directories(&places)?;
        for Pending { unit, .. } in pending {
            self.enter(unit);
        }
        Ok(())
    }

    /// Enters a unit into the database, unless it stands there already.
    fn enter(&mut self, unit: Unit) {
        let (layer, version) = (&unit.metadata.layer, &unit.metadata.version);
        if self.database.get(layer, version).is_none_or(|known| known.digest != unit.digest) {
            self.database.insert(unit);
            self.changed = true;
        }
    }

    /// Flushes, and writes what is withdrawn and the database, if anything changed. Returns
    /// whether it did.
    ///
    /// # Errors
    /// It cannot be written; the old one stands.
    pub fn commit(mut self) -> Result<bool, StoreError> {
        self.flush()?;
        let changed = self.changed || self.withdrawn_changed;
        self.write_withdrawn()?;
        if self.changed {
            let path = self.store.repository_path(&self.repository).join("database");
            let bytes = database_file::encode(&path, self.database.print().as_bytes())?;
            self.store.disk.write_file(&path, &bytes, 0o644)?;
        }
        Ok(changed)
    }
}

/// Refuses the name that is reserved for layers that come from git.
///
/// # Errors
/// [`StoreError::ReservedRepository`].
pub fn refuse_reserved(repository: &RepositoryName) -> Result<(), StoreError> {
    match repository.as_str() {
        TEMPLATES_REPOSITORY => Err(StoreError::ReservedRepository),
        _ => Ok(()),
    }
}

fn read_manifest(unit: &Path) -> Result<Manifest, StoreError> {
    let path = unit.join("manifest");
    let text = read_limited(&path, limits::MANIFEST_BYTES)?;
    Manifest::parse(&text).map_err(|located| StoreError::Manifest { path, located })
}

/// Reads a unit and computes its digest.
fn read_unit(path: PathBuf) -> Result<(OpenedUnit, Digest), StoreError> {
    let metadata_path = path.join("metadata");
    let text = read_limited(&metadata_path, limits::METADATA_BYTES)?;
    let metadata = Metadata::parse(&text)
        .map_err(|located| StoreError::Metadata { path: metadata_path, located })?;
    let manifest = read_manifest(&path)?;
    let scripts = read_scripts(&path.join("scripts"))?;
    let digest = unit_digest(&metadata, &manifest.print(), &scripts);
    Ok((OpenedUnit { path, metadata, manifest, scripts }, digest))
}

/// All files below `scripts/` by relative path; symbolic links are refused.
fn read_scripts(directory: &Path) -> Result<BTreeMap<String, Vec<u8>>, StoreError> {
    let mut scripts = BTreeMap::new();
    let mut pending = vec![(directory.to_owned(), String::new())];
    let mut left = SCRIPTS_BYTES;
    while let Some((directory, prefix)) = pending.pop() {
        for name in names_in(&directory)? {
            let path = directory.join(&name);
            let relative = format!("{prefix}{name}");
            if fs::symlink_metadata(&path).at("stat", &path)?.is_dir() {
                pending.push((path, format!("{relative}/")));
            } else {
                let content = read_limited(&path, left)?;
                left -= content.len();
                scripts.insert(relative, content);
            }
        }
    }
    Ok(scripts)
}
