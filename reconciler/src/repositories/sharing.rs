//! How much of a store is shared: layers between templates (the paper's Table 3), and
//! files between layers; and sharing the files of units that were published before.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use strata_core::collect::UnitKey;
use strata_core::database::Unit;
use strata_core::generation::LayerSetEntry;
use strata_core::manifest::Kind;
use strata_core::{CompositionName, Digest, RepositoryName};
use strata_store::{Shared, Store, StoreError};

/// One template: a column of Table 3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TemplateShare {
    pub template: CompositionName,
    /// Of the generations that its rings are on, together.
    pub layers: usize,
    pub bytes: u64,
    /// Of these, in layers that another template has as well.
    pub shared_bytes: u64,
    pub unique_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RepositorySize {
    pub repository: RepositoryName,
    pub units: usize,
    pub bytes: u64,
}

/// Files of all units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct FileShare {
    pub files: u64,
    pub bytes: u64,
    /// Of contents that differ.
    pub distinct_bytes: u64,
    /// What the disk holds, where files share an inode; blocks shared by reflink count
    /// each time.
    pub disk_bytes: u64,
    /// Files that have an inode in common with another unit's.
    pub linked_files: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stats {
    pub repositories: Vec<RepositorySize>,
    pub templates: Vec<TemplateShare>,
    pub files: FileShare,
    /// Units that could not be read.
    pub unreadable: Vec<String>,
}

/// How far it is: for a progress bar.
#[derive(Debug, Default)]
pub struct Progress {
    pub total_bytes: AtomicU64,
    pub done_bytes: AtomicU64,
}

fn all_units(
    store: &Store,
    only: Option<&RepositoryName>,
    progress: &Progress,
) -> Result<Vec<(RepositoryName, Vec<Unit>)>, StoreError> {
    let mut all = Vec::new();
    for repository in store.repositories()? {
        if only.is_none_or(|only| *only == repository) {
            let units = store.units_here(&repository)?;
            let bytes = units.iter().map(|unit| unit.content_bytes).sum();
            progress.total_bytes.fetch_add(bytes, Ordering::Relaxed);
            all.push((repository, units));
        }
    }
    Ok(all)
}

/// Measures a store.
///
/// # Errors
/// A database or a link cannot be read.
pub fn stats(store: &Store, progress: &Progress) -> Result<Stats, StoreError> {
    let all = all_units(store, None, progress)?;
    let mut unreadable = Vec::new();
    let mut files = FileShare::default();
    let (mut contents, mut inodes) = (HashSet::new(), HashSet::new());
    for (repository, units) in &all {
        for unit in units {
            let metadata = &unit.metadata;
            let path = store.unit_path(repository, &metadata.layer, &metadata.version);
            match store.manifest(repository, &metadata.layer, &metadata.version) {
                Ok(manifest) => {
                    for entry in manifest.entries() {
                        let Kind::Regular { size, digest } = &entry.kind else { continue };
                        files.files += 1;
                        files.bytes += size;
                        if contents.insert(*digest) {
                            files.distinct_bytes += size;
                        }
                    }
                    measure(&path.join("filesystem"), &mut inodes, &mut files);
                }
                Err(error) => unreadable.push(error.to_string()),
            }
            progress.done_bytes.fetch_add(unit.content_bytes, Ordering::Relaxed);
        }
    }
    let templates = templates(store, &all, &mut unreadable)?;
    let repositories = all
        .into_iter()
        .map(|(repository, units)| RepositorySize {
            repository,
            units: units.len(),
            bytes: units.iter().map(|unit| unit.content_bytes).sum(),
        })
        .collect();
    Ok(Stats { repositories, templates, files, unreadable })
}

/// Adds up the inodes below a directory; links are not followed.
fn measure(directory: &Path, inodes: &mut HashSet<(u64, u64)>, files: &mut FileShare) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.path().symlink_metadata() else { continue };
        if metadata.is_dir() {
            measure(&entry.path(), inodes, files);
        } else if inodes.insert((metadata.dev(), metadata.ino())) {
            files.disk_bytes += metadata.blocks() * 512;
        } else if metadata.is_file() {
            files.linked_files += 1;
        }
    }
}

fn templates(
    store: &Store,
    all: &[(RepositoryName, Vec<Unit>)],
    unreadable: &mut Vec<String>,
) -> Result<Vec<TemplateShare>, StoreError> {
    let mut sizes: BTreeMap<Digest, u64> = BTreeMap::new();
    for unit in all.iter().flat_map(|(_, units)| units) {
        sizes.insert(unit.digest, unit.content_bytes);
    }
    let mut layers: BTreeMap<CompositionName, BTreeSet<(UnitKey, Digest)>> = BTreeMap::new();
    for ((composition, _), id) in store.rings()? {
        match store.generation(&id) {
            Ok(generation) => layers
                .entry(composition)
                .or_default()
                .extend(generation.layers().iter().map(|l| (UnitKey::from(l), l.digest))),
            Err(error) => unreadable.push(error.to_string()),
        }
    }
    let mut users: BTreeMap<Digest, usize> = BTreeMap::new();
    for (_, digest) in layers.values().flatten() {
        *users.entry(*digest).or_default() += 1;
    }
    let size = |digest: &Digest| sizes.get(digest).copied().unwrap_or(0);
    let shares = layers.into_iter().map(|(template, layers)| {
        let bytes = layers.iter().map(|(_, digest)| size(digest)).sum();
        let shared = layers.iter().filter(|(_, digest)| users[digest] > 1);
        let shared_bytes = shared.map(|(_, digest)| size(digest)).sum();
        let layers = layers.len();
        TemplateShare { template, layers, bytes, shared_bytes, unique_bytes: bytes - shared_bytes }
    });
    Ok(shares.collect())
}

/// Shares the files of all units, or of one repository's, with one another. Nothing is
/// collected meanwhile. A unit that cannot be read is told and passed over.
///
/// # Errors
/// A database cannot be read.
pub fn share_all(
    store: &Store,
    only: Option<&RepositoryName>,
    progress: &Progress,
) -> Result<(Shared, Vec<String>), StoreError> {
    let _lease = store.lease()?;
    let (mut total, mut unreadable) = (Shared::default(), Vec::new());
    for (repository, units) in all_units(store, only, progress)? {
        for unit in units {
            let content_bytes = unit.content_bytes;
            let entry = LayerSetEntry {
                kind: unit.metadata.kind,
                repository: repository.clone(),
                layer: unit.metadata.layer,
                version: unit.metadata.version,
                digest: unit.digest,
            };
            match store.share_unit(&entry) {
                Ok(Shared { files, bytes }) => {
                    total.files += files;
                    total.bytes += bytes;
                }
                Err(error) => unreadable.push(error.to_string()),
            }
            progress.done_bytes.fetch_add(content_bytes, Ordering::Relaxed);
        }
    }
    store.sync()?;
    Ok((total, unreadable))
}
