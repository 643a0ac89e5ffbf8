//! The store's repositories as `strata-core` wants them: a universe of units
//! to compose from, and manifests to compare.

pub mod collect;
pub mod sharing;
pub mod users;
pub mod verify;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use strata_core::configuration::{CONFIGURATION_FILE, Configuration};
use strata_core::database::Database;
use strata_core::generation::LayerSetEntry;
use strata_core::inventory::Inventory;
use strata_core::manifest::Manifest;
use strata_core::shared_paths::ManifestSource;
use strata_core::universe::Universe;
use strata_core::{Diagnostic, Digest};
use strata_store::{Store, StoreError};

/// Loads the databases of all configured repositories. One that cannot be read
/// is reported at its line and is empty in the universe.
pub fn load_universe(store: &Store, configuration: &Configuration) -> (Universe, Vec<Diagnostic>) {
    let mut databases = Vec::new();
    let mut diagnostics = Vec::new();
    for repository in &configuration.repositories {
        match store.database_text(&repository.name) {
            Ok(database) => {
                databases.push((repository.name.clone(), repository.priority, database));
            }
            Err(error) => {
                let missing = matches!(error, StoreError::NoRepository(_));
                let fault = Diagnostic::error(
                    CONFIGURATION_FILE,
                    repository.line,
                    if missing { "no-repository" } else { "repository" },
                    error.to_string(),
                );
                diagnostics.push(if missing {
                    fault.hint(format!(
                        "import layers into it: strata layer import --repo {} FILE.deb …",
                        repository.name
                    ))
                } else {
                    fault.hint(format!("run `strata repo index {}`", repository.name))
                });
            }
        }
    }
    let mut universe = Universe::from_texts(databases);
    universe.configure(configuration);
    filter(&mut universe, configuration);
    (universe, diagnostics)
}

/// Leaves out what the repositories' rules do not want.
fn filter(universe: &mut Universe, configuration: &Configuration) {
    if configuration.repositories.iter().all(|repository| repository.filter.is_empty()) {
        return;
    }
    universe.filter(|universe, id| {
        let repository = configuration.repository(universe.repository(id))?;
        match repository.filter.is_empty() {
            true => None,
            false => repository.filter.reason(universe.unit(id)),
        }
    });
}

/// As [`load_universe`], from an inventory.
pub fn inventory_universe(
    inventory: &Inventory,
    configuration: &Configuration,
) -> (Universe, Vec<Diagnostic>) {
    let mut databases = Vec::new();
    let mut diagnostics = Vec::new();
    for repository in &configuration.repositories {
        let mut fault = |code, message| {
            let (file, line) = (CONFIGURATION_FILE, repository.line);
            let fault = Diagnostic::error(file, line, code, message);
            diagnostics.push(fault.hint("export the inventory anew: strata inventory export"));
        };
        let name = &repository.name;
        match inventory.repositories.get(name) {
            None => fault("no-repository", format!("the inventory has no repository {name}")),
            Some(text) => match Database::parse(text.as_bytes()) {
                Ok(database) => databases.push((name.clone(), repository.priority, database)),
                Err(error) => fault("repository", format!("{name} in the inventory: {error}")),
            },
        }
    }
    let mut universe = Universe::new(databases);
    universe.configure(configuration);
    filter(&mut universe, configuration);
    (universe, diagnostics)
}

/// Manifests out of the store, each read once. They are taken as they stand on
/// disk: whether a unit has its digest is checked where it is used.
#[derive(Debug)]
pub struct StoreManifests<'s> {
    store: &'s Store,
    read: Mutex<HashMap<Digest, Arc<Manifest>>>,
}

impl<'s> StoreManifests<'s> {
    pub fn new(store: &'s Store) -> Self {
        StoreManifests { store, read: Mutex::default() }
    }
}

impl ManifestSource for StoreManifests<'_> {
    fn manifest(&self, entry: &LayerSetEntry) -> Option<Arc<Manifest>> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(manifest) = read.get(&entry.digest) {
            return Some(manifest.clone());
        }
        match self.store.manifest(&entry.repository, &entry.layer, &entry.version) {
            Ok(manifest) => {
                let manifest = Arc::new(manifest);
                read.insert(entry.digest, manifest.clone());
                Some(manifest)
            }
            Err(error) => {
                tracing::warn!(unit = %entry, %error, "manifest not readable");
                None
            }
        }
    }
}
