//! Garbage collection of a store: looks, decides with `strata_core::collect`, removes.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use strata_core::collect::{
    Collection, Garbage, Observed, ObservedGeneration, ObservedUnit, Policy, Root, UnitKey, collect,
};
use strata_core::links::VaTarget;
use strata_core::metadata::Metadata;
use strata_core::names::{TEMPLATES_REPOSITORY, parse_unit_directory, unit_directory};
use strata_core::{GenerationId, LayerName, LayerVersion, RepositoryName};
use strata_machine::Machines;
use strata_store::{Store, StoreError};

use crate::fleet::FleetError;
use crate::rollout::RolloutFile;

/// How long a collection waits for a pass of the reconciler to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// What would be removed now. Nothing is written.
///
/// # Errors
/// The store cannot be read.
pub fn plan(store: &Store, policy: &Policy) -> Result<Collection, FleetError> {
    Ok(collect(&observe(store)?, policy))
}

/// Removes what is garbage, and returns what that was. No pass of the reconciler
/// runs between the look and the moment at which everything has lost its name;
/// deleting comes after that.
///
/// # Errors
/// The store cannot be read or written; each thing is there whole or not at all.
pub fn apply(store: &Store, policy: &Policy) -> Result<Collection, FleetError> {
    let mut aside = Vec::new();
    let lock = store.collector_lock(PATIENCE)?;
    let collection = plan(store, policy)?;
    // Generations first: none may be left that lacks a layer.
    for id in &collection.generations {
        aside.push(store.remove_generation(id)?);
        tracing::info!(generation = %id, "generation removed");
    }
    let mut units: BTreeMap<&RepositoryName, BTreeSet<_>> = BTreeMap::new();
    for unit in &collection.units {
        let key = (unit.key.layer.clone(), unit.key.version.clone());
        units.entry(&unit.key.repository).or_default().insert(key);
    }
    for (repository, units) in units {
        aside.extend(store.write_either(repository)?.remove(&units)?);
        tracing::info!(%repository, units = units.len(), "layer units removed");
    }
    drop(lock);
    store.discard(&aside)?;
    Ok(collection)
}

fn observe(store: &Store) -> Result<Observed, FleetError> {
    let mut observed = Observed::default();
    let now = SystemTime::now();
    for id in store.generations()? {
        let composed = match store.generation(&id) {
            Ok(generation) => {
                let layers = generation.layers().iter().map(UnitKey::from).collect();
                Some((generation.composition().clone(), layers))
            }
            Err(error) => {
                tracing::warn!(generation = %id, %error, "a generation cannot be read");
                None
            }
        };
        let age_ms = age_ms(now, store.generation_used_at(&id)?);
        observed.generations.insert(id, ObservedGeneration { composed, age_ms });
    }
    observe_roots(store, &mut observed)?;
    for repository in store.repositories()? {
        observe_repository(store, &repository, now, &mut observed)?;
    }
    observed.borrowed = borrowed(store, &observed)?;
    Ok(observed)
}

fn observe_roots(store: &Store, observed: &mut Observed) -> Result<(), StoreError> {
    let mut root = |id: GenerationId, root| {
        observed.roots.entry(id).or_default().insert(root);
    };
    for ((composition, ring), id) in store.rings()? {
        root(id, Root::Ring { composition, ring });
    }
    match RolloutFile::read(store) {
        Ok(file) => {
            for (composition, state) in file.compositions {
                let rings =
                    state.rings.values().flat_map(|ring| ring.good.into_iter().chain([ring.at]));
                for id in rings.chain([state.target]) {
                    root(id, Root::Rollout { composition: composition.clone() });
                }
            }
        }
        Err(error) => observed
            .unsure
            .push(format!("rollouts could lead to any generation, so every one stays: {error}")),
    }
    let links = store.va_links()?;
    for (mac, target) in links.targets {
        if let VaTarget::Pinned { generation, .. } = target {
            root(generation, Root::Pin { mac });
        }
    }
    for mac in store.reporting_vas()? {
        match store.report(mac) {
            Ok(Some(report)) => {
                for id in report.generation.into_iter().chain(report.desired) {
                    root(id, Root::Report { mac });
                }
            }
            Ok(None) => {}
            Err(error) => observed.unsure.push(format!(
                "the report of {mac} could name any generation, so every one stays: {error}"
            )),
        }
    }
    for foreign in links.foreign {
        observed
            .unsure
            .push(format!("{foreign}; it could mean any generation, so every one stays"));
    }
    Ok(())
}

fn observe_repository(
    store: &Store,
    repository: &RepositoryName,
    now: SystemTime,
    observed: &mut Observed,
) -> Result<(), StoreError> {
    let is_mirror = store.is_mirror(repository)?;
    let recoverable = match repository.as_str() {
        TEMPLATES_REPOSITORY => Some(Garbage::FromGit),
        _ => is_mirror.then_some(Garbage::Mirrored),
    };
    let mut listed = BTreeSet::new();
    let mut add = |layer: LayerName, version: LayerVersion, unit: Option<(bool, u64)>| {
        let path = store.unit_path(repository, &layer, &version);
        let Ok(metadata) = std::fs::symlink_metadata(&path) else {
            // Listed and not there: nothing to remove.
            return;
        };
        // The time at which the unit got its name: files keep their own times.
        let named = UNIX_EPOCH + Duration::from_secs(u64::try_from(metadata.ctime()).unwrap_or(0));
        let (withdrawn, content_bytes) = unit.unwrap_or_else(|| {
            let manifest = store.manifest(repository, &layer, &version);
            (false, manifest.map_or(0, |manifest| manifest.content_bytes()))
        });
        observed.units.push(ObservedUnit {
            key: UnitKey { repository: repository.clone(), layer, version },
            age_ms: age_ms(now, named),
            withdrawn,
            content_bytes,
            recoverable: if unit.is_some() { recoverable } else { Some(Garbage::Unlisted) },
        });
    };
    for unit in store.database(repository)?.into_units() {
        let Metadata { layer, version, .. } = unit.metadata;
        if is_mirror {
            listed.insert(unit_directory(&layer, &version));
        }
        add(layer, version, Some((unit.withdrawn.is_some(), unit.content_bytes)));
    }
    // What a mirror has and its source lists no more; elsewhere `strata repo index` lists it.
    let directories = if is_mirror { store.unit_directories(repository)? } else { Vec::new() };
    for name in directories.into_iter().filter(|name| !listed.contains(name)) {
        if let Some((layer, version)) = parse_unit_directory(&name) {
            add(layer, version, None);
        }
    }
    Ok(())
}

/// Units that the private files of VAs on this store still have their data from. A
/// VA's reports keep them as well; but a private directory may outlive its reports.
fn borrowed(store: &Store, observed: &Observed) -> Result<BTreeSet<UnitKey>, FleetError> {
    let mut named = BTreeSet::new();
    let machines = Machines::open(store)?;
    for name in machines.names()? {
        let directory = machines.directory(&name);
        let private = match machines.record(&name) {
            Ok(record) => record.private_in(&directory),
            Err(error) => {
                tracing::warn!(va = %name, %error, "its private directory is taken for the usual one");
                directory.join("private")
            }
        };
        for private in std::iter::once(private.clone()).chain(below(&private.join("former"))) {
            for repository in below(&private.join("borrowed")) {
                let units = below(&repository);
                named.extend(units.iter().map(|unit| (last(&repository), last(unit))));
            }
        }
    }
    let directory = |key: &UnitKey| unit_directory(&key.layer, &key.version);
    let is_named = |key: &&UnitKey| named.contains(&(key.repository.to_string(), directory(key)));
    Ok(observed.units.iter().map(|unit| &unit.key).filter(is_named).cloned().collect())
}

fn last(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What a directory holds; nothing where it is not there.
fn below(path: &Path) -> Vec<PathBuf> {
    match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => Vec::new(),
    }
}

/// Milliseconds from `then` to `now`; 0 where `then` lies ahead.
fn age_ms(now: SystemTime, then: SystemTime) -> u64 {
    let age = now.duration_since(then).unwrap_or_default();
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}
