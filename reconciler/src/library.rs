//! The store's repositories in memory, between passes.
//!
//! A pass costs what changed: databases are read again only when they were
//! replaced, manifests (which never change) only once as long as they are used.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use strata_core::configuration::{Configuration, Pin, RepositoryConfiguration};
use strata_core::filter::Filter;
use strata_core::generation::LayerSetEntry;
use strata_core::manifest::Manifest;
use strata_core::shared_paths::ManifestSource;
use strata_core::signed::Role;
use strata_core::universe::Universe;
use strata_core::{Diagnostic, Digest, RepositoryName};
use strata_store::{DatabaseStamp, Store, StoreError};

use crate::repositories::{Loaded, load, now};

/// Which databases were looked at, in which state.
pub type Stamps = BTreeMap<RepositoryName, Stamp>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    priority: u32,
    filter: Filter,
    trust: Option<Role>,
    /// Where the repository is declared.
    line: u32,
    database: Option<DatabaseStamp>,
    snapshot: Option<DatabaseStamp>,
}

#[derive(Debug, Default)]
pub struct Library {
    stamps: Stamps,
    /// The architecture and the pins that the universe was made with.
    preferences: (Option<String>, Vec<Pin>),
    universe: Universe,
    /// What is wrong with the databases; placed where the repositories are
    /// declared, which is why the line is part of [`Stamps`].
    faults: Vec<Diagnostic>,
    /// When a signature expires and all must be looked at again, in seconds since 1970.
    expires: Option<i64>,
    manifests: RefCell<HashMap<Digest, Held>>,
}

#[derive(Debug)]
struct Held {
    manifest: Arc<Manifest>,
    used: bool,
}

impl Library {
    /// Brings the universe up to date with the databases of the configured
    /// repositories. Returns the state they are in, and what is wrong with them.
    ///
    /// # Errors
    /// A database cannot be looked at.
    pub fn refresh(
        &mut self,
        store: &Store,
        configuration: &Configuration,
    ) -> Result<(Stamps, Vec<Diagnostic>), StoreError> {
        let stamps = stamps(store, configuration)?;
        let preferences = (configuration.architecture.clone(), configuration.pins.clone());
        let now = now();
        let has_changed = stamps != self.stamps || preferences != self.preferences;
        if has_changed || self.is_expired(now) {
            let Loaded { universe, faults, expires } = load(store, configuration, now);
            (self.universe, self.faults) = (universe, faults);
            self.expires = expires;
            self.stamps = stamps.clone();
            self.preferences = preferences;
        }
        Ok((stamps, self.faults.clone()))
    }

    /// Whether a signature that was good has expired since. `now` in seconds since 1970.
    pub fn is_expired(&self, now: i64) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    pub fn universe(&self) -> &Universe {
        &self.universe
    }

    /// Manifests for one check; those that it did not ask for are forgotten with
    /// [`Library::forget_unused`].
    pub fn manifests<'a>(&'a self, store: &'a Store) -> StoredManifests<'a> {
        StoredManifests { store, held: &self.manifests }
    }

    pub fn forget_unused(&mut self) {
        self.manifests.get_mut().retain(|_, held| std::mem::take(&mut held.used));
    }
}

/// The state of the configured repositories' databases.
///
/// # Errors
/// A database cannot be looked at.
pub fn stamps(store: &Store, configuration: &Configuration) -> Result<Stamps, StoreError> {
    let mut stamps = Stamps::new();
    for repository in &configuration.repositories {
        let RepositoryConfiguration { name, priority, filter, trust, line, .. } =
            repository.clone();
        let database = store.database_stamp(&name)?;
        let snapshot = match trust {
            Some(_) => store.snapshot_stamp(&name)?,
            None => None,
        };
        stamps.insert(name, Stamp { priority, filter, trust, line, database, snapshot });
    }
    Ok(stamps)
}

#[derive(Debug)]
pub struct StoredManifests<'a> {
    store: &'a Store,
    held: &'a RefCell<HashMap<Digest, Held>>,
}

impl ManifestSource for StoredManifests<'_> {
    fn manifest(&self, entry: &LayerSetEntry) -> Option<Arc<Manifest>> {
        if let Some(held) = self.held.borrow_mut().get_mut(&entry.digest) {
            held.used = true;
            return Some(held.manifest.clone());
        }
        match self.store.manifest(&entry.repository, &entry.layer, &entry.version) {
            Ok(manifest) => {
                let manifest = Arc::new(manifest);
                let held = Held { manifest: manifest.clone(), used: true };
                self.held.borrow_mut().insert(entry.digest, held);
                Some(manifest)
            }
            Err(error) => {
                tracing::warn!(layer = %entry, %error, "a manifest cannot be read");
                None
            }
        }
    }
}
