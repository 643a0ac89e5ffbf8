//! Repositories that are mirrored from somewhere else: their database says what there is,
//! their units come when they are wanted. Only the mirroring writes them.

use std::fs;
use std::path::PathBuf;

use strata_core::RepositoryName;
use strata_core::database::Unit;
use strata_core::metadata::Metadata;

use super::RepositoryWriter;
use crate::error::{Context, StoreError};
use crate::read::{names_in, optional, read_limited};
use crate::store::Store;

/// The file that says so, with its text.
const MARK: &str = "mirror";
const MARK_TEXT: &[u8] = b"strata-mirror 1\n";
/// Where archives wait that are on their way.
const FETCH: &str = ".fetch";

impl Store {
    /// Whether a repository is mirrored from somewhere else.
    ///
    /// # Errors
    /// That cannot be read.
    pub fn is_mirror(&self, repository: &RepositoryName) -> Result<bool, StoreError> {
        let path = self.repository_path(repository).join(MARK);
        let mark = optional(read_limited(&path, 1 << 10));
        Ok(mark.map_err(|error| error.of_repository(repository))?.is_some())
    }

    /// The units of a repository that are to be here: of a mirror, those that came; of any
    /// other repository all that its database lists.
    ///
    /// # Errors
    /// As of [`Store::database`].
    pub fn units_here(&self, repository: &RepositoryName) -> Result<Vec<Unit>, StoreError> {
        let is_mirror = self.is_mirror(repository)?;
        let is_here = |unit: &Unit| {
            let Metadata { layer, version, .. } = &unit.metadata;
            !is_mirror || self.unit_path(repository, layer, version).is_dir()
        };
        Ok(self.database(repository)?.into_units().filter(is_here).collect())
    }

    /// As [`Store::write_repository`], of a mirror, which is made where there is no repository.
    ///
    /// # Errors
    /// There is a repository of that name which is no mirror, or it cannot be written.
    pub fn write_mirror(
        &self,
        repository: &RepositoryName,
    ) -> Result<RepositoryWriter<'_>, StoreError> {
        let directory = self.repository_path(repository);
        if !self.is_mirror(repository)? {
            // Names that start with a dot are nobody's yet. Another process may have made it a
            // mirror since the first look.
            let is_used = directory.is_dir() && !names_in(&directory)?.is_empty();
            if is_used && !self.is_mirror(repository)? {
                return Err(StoreError::NoMirror(repository.clone()));
            }
            self.disk.create_directory(&directory)?;
            self.disk.write_file(&directory.join(MARK), MARK_TEXT, 0o644)?;
        }
        self.open_writer(repository)
    }

    /// Where archives of a mirror wait that are on their way; made where it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn fetch_directory(&self, repository: &RepositoryName) -> Result<PathBuf, StoreError> {
        let path = self.repository_path(repository).join(FETCH);
        fs::create_dir_all(&path).at("create", &path)?;
        Ok(path)
    }
}

impl RepositoryWriter<'_> {
    /// Puts a database in the place of the one that is there.
    ///
    /// # Errors
    /// It cannot be written; the old one stands.
    pub fn replace_database(self, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.store.repository_path(&self.repository).join("database");
        self.store.disk.write_file(&path, bytes, 0o644)
    }
}
