//! Building a repository's database anew from what stands on disk.

use std::collections::BTreeSet;

use strata_core::database::{Database, Unit};
use strata_core::names::unit_directory;
use strata_core::{LayerName, LayerVersion};

use super::{OpenedUnit, RepositoryWriter, read_unit};
use crate::error::StoreError;
use crate::read::names_in;

/// What an index goes by besides the units.
#[derive(Debug, Default)]
pub struct IndexOptions {
    /// Units that were changed on purpose.
    pub accepted: BTreeSet<(LayerName, LayerVersion)>,
    /// A database of before, where the present one is not there.
    pub former: Option<Database>,
}

impl RepositoryWriter<'_> {
    /// Builds the database anew from the units' directories; what is withdrawn
    /// stays so. Returns the number of units.
    ///
    /// # Errors
    /// A unit is damaged, stands under a wrong name, or is another than it was and is not
    /// accepted; the old database stays.
    pub fn index(&mut self, options: &IndexOptions) -> Result<usize, StoreError> {
        let directory = self.store.repository_path(&self.repository);
        let former = options.former.as_ref().filter(|_| self.database.is_empty());
        let before = former.unwrap_or(&self.database);
        let (mut database, mut changed) = (Database::default(), Vec::new());
        for name in names_in(&directory)? {
            let path = directory.join(&name);
            if !path.is_dir() {
                continue;
            }
            let (unit, digest) = read_unit(path)?;
            let OpenedUnit { path, metadata, manifest, .. } = unit;
            let (layer, version) = (&metadata.layer, &metadata.version);
            if unit_directory(layer, version) != name {
                let found = format!("{layer} {version}");
                return Err(StoreError::Misplaced { path, found });
            }
            let known = before.get(layer, version);
            let key = (layer.clone(), version.clone());
            if known.is_some_and(|known| known.digest != digest) && !options.accepted.contains(&key)
            {
                changed.push(format!("{layer} {version}"));
            }
            let withdrawn = known.and_then(|known| known.withdrawn.as_deref());
            let withdrawn = withdrawn.or_else(|| self.withdrawn.reason(layer, version));
            let withdrawn = withdrawn.map(str::to_owned);
            let content_bytes = manifest.content_bytes();
            database.insert(Unit { metadata, digest, content_bytes, withdrawn });
        }
        if !changed.is_empty() {
            let repository = self.repository.clone();
            return Err(StoreError::UnitsChanged { repository, units: changed });
        }
        self.changed |= database != self.database;
        self.database = database;
        Ok(self.database.len())
    }
}
