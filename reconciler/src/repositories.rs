//! The store's repositories as `strata-core` wants them: a universe of units
//! to compose from, and manifests to compare.

pub mod collect;
pub mod high_water;
pub mod local;
pub mod mirrors;
pub mod publish;
pub mod remote;
pub mod secrets;
pub mod serve;
pub mod sharing;
pub mod signed;
pub mod signing;
pub mod users;
pub mod verify;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::SystemTime;

use strata_core::configuration::{CONFIGURATION_FILE, Configuration, RepositoryConfiguration};
use strata_core::database::Database;
use strata_core::generation::LayerSetEntry;
use strata_core::inventory::Inventory;
use strata_core::manifest::Manifest;
use strata_core::shared_paths::ManifestSource;
use strata_core::universe::Universe;
use strata_core::{Diagnostic, Digest};
use strata_store::{Store, StoreError};

use local::LoadError;

/// Fewer manifests are read before threads have begun.
const THREAD_AT_LEAST: usize = 16;

/// The databases of all configured repositories, and what is wrong with them.
#[derive(Debug, Default)]
pub struct Loaded {
    pub universe: Universe,
    pub faults: Vec<Diagnostic>,
    /// When the first signature expires, in seconds since 1970.
    pub expires: Option<i64>,
}

/// As [`load`], without when it expires.
pub fn load_universe(store: &Store, configuration: &Configuration) -> (Universe, Vec<Diagnostic>) {
    let Loaded { universe, faults, .. } = load(store, configuration, now());
    (universe, faults)
}

/// Seconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Loads the databases of all configured repositories, those with keys after their
/// signatures were checked. One that cannot be read or trusted is reported at its line and
/// is empty in the universe. `now` is in seconds since 1970.
pub fn load(store: &Store, configuration: &Configuration, now: i64) -> Loaded {
    let mut databases = Vec::new();
    let mut loaded = Loaded::default();
    for repository in &configuration.repositories {
        let name = &repository.name;
        let database = match &repository.trust {
            None => store.database_text(name).map_err(LoadError::from),
            Some(pinned) => local::load(store, name, pinned, now).map(|signed| {
                let expires = signed.accepted.expires();
                let first = loaded.expires.map_or(expires, |first| first.min(expires));
                loaded.expires = Some(first);
                loaded.faults.extend(signed.has_changed.then(|| {
                    let message = format!("the repository {name} was changed since it was signed");
                    let at = (CONFIGURATION_FILE, repository.line);
                    Diagnostic::error(at.0, at.1, "not-signed-yet", message).warning().hint(format!(
                        "what was signed is used; sign the change: strata repo sign {name} --key FILE"
                    ))
                }));
                signed.database
            }),
        };
        match database {
            Ok(database) => databases.push((name.clone(), repository.priority, database)),
            Err(error) => loaded.faults.push(load_fault(repository, &error)),
        }
    }
    loaded.universe = Universe::from_texts(databases);
    loaded.universe.configure(configuration);
    filter(&mut loaded.universe, configuration);
    loaded
}

fn load_fault(repository: &RepositoryConfiguration, error: &LoadError) -> Diagnostic {
    let name = &repository.name;
    let (code, hint) = match error {
        LoadError::Store(StoreError::NoRepository(_)) if repository.remote.is_some() => {
            ("no-repository", "fetch what it holds: strata repo sync DIR".to_owned())
        }
        LoadError::Store(StoreError::NoRepository(_)) => (
            "no-repository",
            format!("import layers into it: strata layer import --repo {name} FILE.deb …"),
        ),
        LoadError::Store(_) => ("repository", format!("run `strata repo index {name}`")),
        LoadError::Trust(error) => ("untrusted", error.hint(name)),
        LoadError::HighWater(_) => (
            "high-water-mark",
            "restore it; removed, an older state of the repository would be taken once".to_owned(),
        ),
    };
    let message = match error {
        LoadError::Trust(error) => format!("the repository {name} is refused: {error}"),
        other => other.to_string(),
    };
    Diagnostic::error(CONFIGURATION_FILE, repository.line, code, message).hint(hint)
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

    fn read(&self, entry: &LayerSetEntry) -> Result<Arc<Manifest>, StoreError> {
        if let Some(manifest) = self.held().get(&entry.digest) {
            return Ok(manifest.clone());
        }
        let read = self.store.manifest(&entry.repository, &entry.layer, &entry.version);
        let manifest = Arc::new(read?);
        self.held().insert(entry.digest, manifest.clone());
        Ok(manifest)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Manifest>>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ManifestSource for StoreManifests<'_> {
    fn manifest(&self, entry: &LayerSetEntry) -> Option<Arc<Manifest>> {
        match self.read(entry) {
            Ok(manifest) => Some(manifest),
            Err(error) => {
                tracing::warn!(unit = %entry, %error, "manifest not readable");
                None
            }
        }
    }

    fn prepare(&self, entries: &[LayerSetEntry]) {
        let missing: Vec<_> = {
            let held = self.held();
            entries.iter().filter(|entry| !held.contains_key(&entry.digest)).collect()
        };
        let threads = thread::available_parallelism().map_or(1, usize::from);
        if threads == 1 || missing.len() < THREAD_AT_LEAST {
            return;
        }
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(entry) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let _told_when_it_is_asked_for = self.read(entry);
                    }
                });
            }
        });
    }
}
