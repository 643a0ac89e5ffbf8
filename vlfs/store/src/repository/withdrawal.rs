//! Withdrawing layer units and restoring them.
//!
//! A unit that is here is marked in the database. What garbage collection takes is kept in the
//! file `withdrawn`, so that it is withdrawn still when it comes again. That file is written
//! before the database: cut short, a unit that goes is noted twice, and one that is restored
//! is withdrawn until it is restored again.

use std::collections::BTreeSet;
use std::path::Path;

use strata_core::withdrawn::{FILE_BYTES, Withdrawn, one_line};
use strata_core::{LayerName, LayerVersion, RepositoryName};

use super::RepositoryWriter;
use crate::error::StoreError;
use crate::read::{optional, read_limited};
use crate::store::Store;

const FILE: &str = "withdrawn";

impl RepositoryWriter<'_> {
    /// Withdraws a unit with a reason, or restores it with `None`. Returns
    /// whether that changed anything.
    ///
    /// # Errors
    /// There is no such unit, nor was there one that is withdrawn.
    pub fn set_withdrawn(
        &mut self,
        layer: &LayerName,
        version: &LayerVersion,
        reason: Option<String>,
    ) -> Result<bool, StoreError> {
        let reason = reason.map(|reason| one_line(&reason));
        let is_noted = self.withdrawn.reason(layer, version).is_some();
        let unit = self.database.get_mut(layer, version);
        if unit.is_none() && !is_noted {
            return Err(StoreError::NoUnit {
                repository: self.repository.clone(),
                layer: layer.clone(),
                version: version.clone(),
            });
        }
        let mut changed = false;
        if is_noted {
            changed = match &reason {
                Some(reason) => self.withdrawn.insert(layer.clone(), version.clone(), reason),
                None => self.withdrawn.remove(layer, version),
            };
            self.withdrawn_changed |= changed;
        }
        if let Some(unit) = unit
            && unit.withdrawn != reason
        {
            unit.withdrawn = reason;
            self.changed = true;
            changed = true;
        }
        Ok(changed)
    }

    /// Why a unit is withdrawn: one that is here, or one that was.
    pub(super) fn reason_withdrawn(
        &self,
        layer: &LayerName,
        version: &LayerVersion,
    ) -> Option<&str> {
        let marked = self.database.get(layer, version).and_then(|unit| unit.withdrawn.as_deref());
        marked.or_else(|| self.withdrawn.reason(layer, version))
    }

    /// Keeps on record which of the units that go are withdrawn.
    pub(super) fn note_withdrawn(
        &mut self,
        units: &BTreeSet<(LayerName, LayerVersion)>,
    ) -> Result<(), StoreError> {
        for (layer, version) in units {
            let unit = self.database.get(layer, version);
            if let Some(reason) = unit.and_then(|unit| unit.withdrawn.as_deref()) {
                self.withdrawn_changed |=
                    self.withdrawn.insert(layer.clone(), version.clone(), reason);
            }
        }
        self.write_withdrawn()
    }

    /// Writes what is on record, if that changed.
    pub(super) fn write_withdrawn(&mut self) -> Result<(), StoreError> {
        if self.withdrawn_changed {
            let path = self.store.repository_path(&self.repository).join(FILE);
            self.store.disk.write_file(&path, self.withdrawn.print().as_bytes(), 0o644)?;
            self.withdrawn_changed = false;
        }
        Ok(())
    }
}

impl Store {
    /// The units of a repository that are withdrawn and no longer here; those that are here
    /// are marked in its database.
    ///
    /// # Errors
    /// The record is damaged.
    pub fn withdrawn(&self, repository: &RepositoryName) -> Result<Withdrawn, StoreError> {
        read(&self.repository_path(repository)).map_err(|error| error.of_repository(repository))
    }
}

/// What is on record of a repository.
pub(super) fn read(repository: &Path) -> Result<Withdrawn, StoreError> {
    let path = repository.join(FILE);
    match optional(read_limited(&path, FILE_BYTES))? {
        None => Ok(Withdrawn::default()),
        Some(text) => {
            Withdrawn::parse(&text).map_err(|located| StoreError::Withdrawn { path, located })
        }
    }
}
