//! The scripts of layer units that VAs run (§5.1): directly below `scripts/`. What a
//! converted package keeps in `scripts/deb/` is not among them.

use std::collections::BTreeSet;

use strata_core::generation::LayerSetEntry;
use strata_core::limits;
use strata_core::metadata::Metadata;
use strata_core::scripts::Script;

use crate::error::StoreError;
use crate::read::{names_in, read_limited};
use crate::store::Store;

impl Store {
    /// The scripts that a unit has, by their names; none where it has no directory of them.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn scripts_of(&self, entry: &LayerSetEntry) -> Result<BTreeSet<Script>, StoreError> {
        let unit = self.unit_path(&entry.repository, &entry.layer, &entry.version);
        let names = names_in(&unit.join("scripts"))?;
        Ok(names.iter().filter_map(|name| Script::of_name(name)).collect())
    }

    /// The text of a unit's script, once metadata, manifest and scripts are what the
    /// unit's digest says. `None`: the unit has no such script.
    ///
    /// # Errors
    /// The unit is missing or damaged.
    pub fn script(
        &self,
        entry: &LayerSetEntry,
        script: Script,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let mut opened = self.open_unit(entry)?;
        Ok(opened.scripts.remove(script.name()))
    }

    /// The metadata of a unit, as they stand on disk (their digest is not checked).
    ///
    /// # Errors
    /// There is no such unit, or they are damaged.
    pub fn unit_metadata(&self, entry: &LayerSetEntry) -> Result<Metadata, StoreError> {
        let unit = self.unit_path(&entry.repository, &entry.layer, &entry.version);
        let path = unit.join("metadata");
        let text = read_limited(&path, limits::METADATA_BYTES)?;
        Metadata::parse(&text).map_err(|located| StoreError::Metadata { path, located })
    }
}
