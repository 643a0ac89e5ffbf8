//! The store as an inventory, and as the source of what a plan asks of units.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use strata_core::generation::LayerSetEntry;
use strata_core::inventory::{Inventory, InventoryError, UnitContent, VERSION, VaGroup};
use strata_core::limits;
use strata_core::manifest::Manifest;
use strata_core::preview::UnitSource;
use strata_core::shared_paths::ManifestSource;
use strata_core::universe::Universe;
use strata_machine::{MachineError, without_batch};
use strata_store::{Store, StoreError, VaTarget};

use crate::fleet;
use crate::repositories::StoreManifests;
use crate::state::{ReconcileState, StateError};

/// The scripts of a unit, in the order in which VAs run them.
const SCRIPTS: [&str; 4] = ["pre-remove", "post-remove", "pre-install", "post-install"];
/// How a zstd frame begins.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    State(#[from] StateError),
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("read {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Format { path: PathBuf, source: InventoryError },
}

/// The numbers of VAs by composition, ring and run state.
///
/// # Errors
/// The links or the machines cannot be read.
pub fn va_groups(store: &Store) -> Result<Vec<VaGroup>, ExportError> {
    let machines = fleet::machines(store)?;
    let mut groups = BTreeMap::new();
    for (mac, target) in store.va_links()?.targets {
        let run_state = machines.get(&mac).and_then(|machine| machine.run_state);
        let (composition, ring, pinned) = match without_batch(target) {
            VaTarget::Ring { composition, ring } => (composition, Some(ring), None),
            VaTarget::Pinned { composition, generation } => (composition, None, Some(generation)),
        };
        *groups.entry((composition, ring, pinned, run_state)).or_default() += 1;
    }
    let group = |((composition, ring, pinned, run_state), count)| VaGroup {
        composition,
        ring,
        pinned,
        run_state,
        count,
    };
    Ok(groups.into_iter().map(group).collect())
}

/// Takes the inventory of a store. `told` is called with each unit of the `total`
/// that was read.
///
/// # Errors
/// The store cannot be read. A unit whose manifest is damaged is told in the log
/// and left without one.
pub fn export(
    store: &Store,
    manifests: bool,
    mut told: impl FnMut(usize, usize),
) -> Result<Inventory, ExportError> {
    let mut repositories = BTreeMap::new();
    let mut databases = Vec::new();
    for name in store.repositories()? {
        let database = store.database(&name)?;
        repositories.insert(name.clone(), database.print());
        databases.push((name, 0, database));
    }
    let universe = Universe::new(databases);
    let mut units = BTreeMap::new();
    for (done, id) in universe.ids().enumerate() {
        told(done, universe.len());
        let entry = universe.entry(id);
        let path = store.unit_path(&entry.repository, &entry.layer, &entry.version);
        if !path.is_dir() {
            continue;
        }
        let manifest = if manifests { manifest_text(store, &entry) } else { None };
        units.insert(entry.digest, UnitContent { manifest, scripts: script_names(&path) });
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let applied = ReconcileState::read(store)?.and_then(|state| state.applied);
    Ok(Inventory {
        version: VERSION,
        exported_at_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        commit: applied.map(|applied| applied.commit),
        vas: va_groups(store)?,
        repositories,
        units,
    })
}

fn manifest_text(store: &Store, entry: &LayerSetEntry) -> Option<String> {
    match store.manifest(&entry.repository, &entry.layer, &entry.version) {
        Ok(manifest) => Some(manifest.print()),
        Err(error) => {
            tracing::warn!(unit = %entry, %error, "left without a manifest");
            None
        }
    }
}

fn script_names(unit: &Path) -> Vec<String> {
    let there = |name: &&&str| unit.join("scripts").join(name).is_file();
    SCRIPTS.iter().filter(there).map(|name| (*name).to_owned()).collect()
}

/// Reads an inventory from a file, compressed with zstd or not.
///
/// # Errors
/// The file cannot be read, is too large or is no inventory.
pub fn read(path: &Path) -> Result<Inventory, ReadError> {
    let io = |source| ReadError::Io { path: path.to_owned(), source };
    let format = |source| ReadError::Format { path: path.to_owned(), source };
    let limit = limits::INVENTORY_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(io)?.take(limit).read_to_end(&mut bytes).map_err(io)?;
    if bytes.starts_with(&ZSTD_MAGIC) {
        let mut plain = Vec::new();
        let decoder = zstd::Decoder::new(bytes.as_slice()).map_err(io)?;
        decoder.take(limit).read_to_end(&mut plain).map_err(io)?;
        bytes = plain;
    }
    Inventory::parse(&bytes).map_err(format)
}

/// What a plan asks of units, out of the store.
#[derive(Debug)]
pub struct StoreUnits<'s> {
    store: &'s Store,
    manifests: StoreManifests<'s>,
}

impl<'s> StoreUnits<'s> {
    pub fn new(store: &'s Store) -> Self {
        StoreUnits { store, manifests: StoreManifests::new(store) }
    }

    fn path(&self, entry: &LayerSetEntry) -> PathBuf {
        self.store.unit_path(&entry.repository, &entry.layer, &entry.version)
    }
}

impl ManifestSource for StoreUnits<'_> {
    fn manifest(&self, entry: &LayerSetEntry) -> Option<Arc<Manifest>> {
        self.is_present(entry).then(|| self.manifests.manifest(entry)).flatten()
    }
}

impl UnitSource for StoreUnits<'_> {
    fn scripts(&self, entry: &LayerSetEntry) -> Option<Vec<String>> {
        self.is_present(entry).then(|| script_names(&self.path(entry)))
    }

    fn is_present(&self, entry: &LayerSetEntry) -> bool {
        self.path(entry).is_dir()
    }
}
