//! What is known of units beside their databases.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::digest::Digest;
use crate::generation::LayerSetEntry;
use crate::inventory::Inventory;
use crate::manifest::{Manifest, ManifestError};
use crate::position::Located;
use crate::shared_paths::ManifestSource;

/// Where a preview learns what units bring: the store, or an inventory.
pub trait UnitSource: ManifestSource {
    /// Names of the scripts that VAs run around a swap, in their order; `None`
    /// where that is not known.
    fn scripts(&self, entry: &LayerSetEntry) -> Option<Vec<String>>;
    /// Whether the unit's files are in the store.
    fn is_present(&self, entry: &LayerSetEntry) -> bool;
}

/// The units that an inventory tells about; a clone shares them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KnownUnits {
    units: Arc<BTreeMap<Digest, KnownUnit>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct KnownUnit {
    manifest: Option<Arc<Manifest>>,
    scripts: Vec<String>,
}

impl KnownUnits {
    /// Reads the manifests of an inventory.
    ///
    /// # Errors
    /// The unit of the first manifest that is none, and its fault.
    pub fn of(inventory: &Inventory) -> Result<Self, (Digest, Located<ManifestError>)> {
        let mut units = BTreeMap::new();
        for (digest, content) in &inventory.units {
            let manifest = match &content.manifest {
                None => None,
                Some(text) => {
                    let parsed = Manifest::parse(text.as_bytes()).map_err(|error| (*digest, error));
                    Some(Arc::new(parsed?))
                }
            };
            units.insert(*digest, KnownUnit { manifest, scripts: content.scripts.clone() });
        }
        Ok(KnownUnits { units: Arc::new(units) })
    }
}

impl ManifestSource for KnownUnits {
    fn manifest(&self, entry: &LayerSetEntry) -> Option<Arc<Manifest>> {
        self.units.get(&entry.digest)?.manifest.clone()
    }
}

impl UnitSource for KnownUnits {
    fn scripts(&self, entry: &LayerSetEntry) -> Option<Vec<String>> {
        self.units.get(&entry.digest).map(|unit| unit.scripts.clone())
    }

    fn is_present(&self, entry: &LayerSetEntry) -> bool {
        self.units.contains_key(&entry.digest)
    }
}
