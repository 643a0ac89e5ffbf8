//! The files by which a repository is signed (`docs/formats.md`, "Signed repositories").
//!
//! Each is put in place by one rename. A database that a snapshot names is kept under its
//! digest before the snapshot is there, so that a reader of any snapshot finds its database
//! whatever is published meanwhile.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use strata_core::database::Database;
use strata_core::database_text::DatabaseText;
use strata_core::{Digest, RepositoryName, limits};

use super::{DatabaseStamp, RepositoryWriter};
use crate::database_file;
use crate::error::{Context, StoreError};
use crate::read::{names_in, optional, read_limited};
use crate::store::Store;

/// Which document of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignedFile {
    Root(u32),
    Snapshot,
    /// Waits for more signatures.
    PendingRoot,
    PendingSnapshot,
}

impl SignedFile {
    /// Its name in the repository's directory.
    pub fn name(self) -> String {
        match self {
            SignedFile::Root(version) => format!("root-{version}.toml"),
            SignedFile::Snapshot => "snapshot.toml".to_owned(),
            SignedFile::PendingRoot => ".pending-root.toml".to_owned(),
            SignedFile::PendingSnapshot => ".pending-snapshot.toml".to_owned(),
        }
    }
}

/// The name under which a signed database is kept.
pub fn signed_database_name(digest: &Digest) -> String {
    format!("database-{digest}")
}

impl Store {
    /// A document of a repository; `None` where there is none.
    ///
    /// # Errors
    /// It cannot be read, or is larger than any such document.
    pub fn signed_file(
        &self,
        repository: &RepositoryName,
        file: SignedFile,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.repository_file(repository, &file.name(), limits::SIGNED_BYTES)
    }

    /// As [`Store::database_stamp`], of the snapshot.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn snapshot_stamp(
        &self,
        repository: &RepositoryName,
    ) -> Result<Option<DatabaseStamp>, StoreError> {
        stamp(&self.repository_path(repository).join(SignedFile::Snapshot.name()))
    }

    /// The bytes of a repository's database as they stand in the file, where there is one.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn database_file(
        &self,
        repository: &RepositoryName,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.repository_file(repository, "database", limits::DATABASE_BYTES)
    }

    /// As [`Store::database_file`], of the database that was signed with this digest; whether
    /// it still has it is for the caller to see.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn signed_database_file(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.repository_file(repository, &signed_database_name(digest), limits::DATABASE_BYTES)
    }

    /// As [`Store::database_text`], of bytes that were read before.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn parse_database(
        &self,
        repository: &RepositoryName,
        bytes: Vec<u8>,
    ) -> Result<DatabaseText, StoreError> {
        let path = self.repository_path(repository).join("database");
        let text = database_file::decode(&path, bytes)?;
        database_file::check(text).map_err(|located| StoreError::Database { path, located })
    }

    /// As [`Store::database`], of bytes that were read before.
    ///
    /// # Errors
    /// The database is damaged.
    pub fn parse_whole_database(
        &self,
        repository: &RepositoryName,
        bytes: Vec<u8>,
    ) -> Result<Database, StoreError> {
        let path = self.repository_path(repository).join("database");
        let text = database_file::decode(&path, bytes)?;
        Database::parse(&text).map_err(|located| StoreError::Database { path, located })
    }

    fn repository_file(
        &self,
        repository: &RepositoryName,
        name: &str,
        limit: usize,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.repository_path(repository).join(name);
        optional(read_limited(&path, limit)).map_err(|error| error.of_repository(repository))
    }
}

impl RepositoryWriter<'_> {
    /// Puts a document in its place.
    ///
    /// # Errors
    /// It cannot be written; what was there stands.
    pub fn write_signed(&self, file: SignedFile, bytes: &[u8]) -> Result<(), StoreError> {
        self.store.disk.write_file(&self.file(&file.name()), bytes, 0o644)
    }

    /// Takes away a document that waited for signatures.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove_pending(&self, file: SignedFile) -> Result<(), StoreError> {
        self.store.disk.remove_file(&self.file(&file.name()))
    }

    /// Keeps the database file as it is now under its digest.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep_database(&self, digest: &Digest, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.file(&signed_database_name(digest));
        if optional(read_limited(&path, limits::DATABASE_BYTES))?.is_some_and(|kept| kept == bytes)
        {
            return Ok(());
        }
        self.store.disk.write_file(&path, bytes, 0o644)
    }

    /// Removes the signed databases that are none of these.
    ///
    /// # Errors
    /// The repository cannot be listed, or one cannot be removed.
    pub fn keep_only_databases(&self, kept: &[Digest]) -> Result<(), StoreError> {
        let directory = self.file("");
        let kept: Vec<_> = kept.iter().map(signed_database_name).collect();
        for name in names_in(&directory)? {
            if name.starts_with("database-") && !kept.contains(&name) {
                let path = directory.join(&name);
                fs::remove_file(&path).at("remove", &path)?;
            }
        }
        Ok(())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.store.repository_path(&self.repository).join(name)
    }
}

/// What tells one state of a file from another.
pub(super) fn stamp(path: &Path) -> Result<Option<DatabaseStamp>, StoreError> {
    let metadata = optional(fs::metadata(path).at("stat", path))?;
    Ok(metadata.map(|metadata| DatabaseStamp {
        inode: metadata.ino(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
        bytes: metadata.len(),
    }))
}
