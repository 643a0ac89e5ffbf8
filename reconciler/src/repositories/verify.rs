//! A whole repository against its digests: database, metadata, manifests, scripts,
//! and every bit of every file.
//!
//! Each unit's tree is described anew and compared with its manifest, entry by entry.
//! A difference is a finding, never an error. Nothing is written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use serde::Serialize;
use strata_core::database::Unit;
use strata_core::generation::LayerSetEntry;
use strata_core::manifest::{Entry, Kind, Manifest};
use strata_core::names::unit_directory;
use strata_core::{Digest, RepositoryName};
use strata_import::{TreeLimits, tree};
use strata_store::{Store, StoreError};

/// Differences that are listed; more are counted.
pub const LISTED: usize = 10_000;

/// Which units are checked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sample {
    All,
    /// This share of the units, in hundredths.
    Percent(f64),
    Count(usize),
}

#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub sample: Sample,
    /// The same seed picks the same units.
    pub seed: u64,
    pub threads: usize,
}

/// What differs at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// `missing`, `extra`, `type`, `mode`, `owner`, `mtime`, `xattrs`, `content`, `target`,
    /// `device`, `links`, `unit`, `database` or `unreadable`.
    pub what: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.expected, &self.found) {
            (Some(expected), Some(found)) => {
                write!(f, "{} is {found}, expected {expected}", self.what)
            }
            (None, Some(found)) => write!(f, "{}: {found}", self.what),
            (_, None) => f.write_str(self.what),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// `layer version`, or the name of a directory that is no unit.
    pub unit: String,
    /// Relative to the layer's root; absent for the unit as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    pub faults: Vec<Fault>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    pub repository: RepositoryName,
    pub units: usize,
    pub checked_units: usize,
    pub checked_paths: usize,
    pub checked_bytes: u64,
    /// Present when not everything was checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// By unit and path; at most [`LISTED`].
    pub differences: Vec<Difference>,
    /// Differences that are not listed.
    pub omitted: usize,
}

/// How far it is: for a progress bar.
#[derive(Debug, Default)]
pub struct Progress {
    pub total_bytes: AtomicU64,
    pub done_bytes: AtomicU64,
}

/// Verifies a repository.
///
/// # Errors
/// The database cannot be read.
pub fn verify(
    store: &Store,
    repository: &RepositoryName,
    options: &Options,
    progress: &Progress,
) -> Result<Outcome, StoreError> {
    let database = store.database(repository)?;
    let mut differences = strangers(store, repository, database.units())?;
    let units = store.units_here(repository)?;
    let picked = pick(&units, options);
    let total = picked.iter().map(|unit| unit.content_bytes).sum();
    progress.total_bytes.store(total, Ordering::Relaxed);
    let (next, paths) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let found = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(unit) = picked.get(index) else { break };
                    let (count, differences) = verify_unit(store, repository, unit);
                    paths.fetch_add(count, Ordering::Relaxed);
                    progress.done_bytes.fetch_add(unit.content_bytes, Ordering::Relaxed);
                    if !differences.is_empty() {
                        found.lock().expect("no panic while held").insert(index, differences);
                    }
                }
            });
        }
    });
    differences.extend(found.into_inner().expect("no panic while held").into_values().flatten());
    let omitted = differences.len().saturating_sub(LISTED);
    differences.truncate(LISTED);
    Ok(Outcome {
        repository: repository.clone(),
        units: units.len(),
        checked_units: picked.len(),
        checked_paths: paths.into_inner(),
        checked_bytes: total,
        seed: (options.sample != Sample::All).then_some(options.seed),
        differences,
        omitted,
    })
}

/// Directories of the repository that its database does not list.
fn strangers<'u>(
    store: &Store,
    repository: &RepositoryName,
    units: impl Iterator<Item = &'u Unit>,
) -> Result<Vec<Difference>, StoreError> {
    let listed: BTreeSet<_> =
        units.map(|unit| unit_directory(&unit.metadata.layer, &unit.metadata.version)).collect();
    let names = store.unit_directories(repository)?.into_iter();
    let strange = names.filter(|name| !listed.contains(name));
    let is_mirror = store.is_mirror(repository)?;
    let directory = store.root().join("repos").join(repository);
    let why = |unit: &str| match directory.join(unit).join("metadata").is_file() {
        _ if is_mirror => {
            "its source lists it no more; `strata store gc` removes it when nothing needs it"
        }
        true => "it is not listed; `strata repo index` lists it",
        false => "it is no unit: move it out of the repository",
    };
    let fault = |unit: &str| vec![whole("database", why(unit).to_owned())];
    Ok(strange.map(|unit| Difference { faults: fault(&unit), unit, path: None }).collect())
}

fn whole(what: &'static str, found: String) -> Fault {
    Fault { what, expected: None, found: Some(found) }
}

fn pick<'u>(units: &'u [Unit], options: &Options) -> Vec<&'u Unit> {
    let score = |unit: &Unit| {
        let text = format!("{} {}", options.seed, unit.digest);
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&Digest::of(text.as_bytes()).as_bytes()[..8]);
        u64::from_le_bytes(bytes)
    };
    match options.sample {
        Sample::All => units.iter().collect(),
        Sample::Percent(percent) => {
            let below = percent / 100.0 * u64::MAX as f64;
            units.iter().filter(|unit| (score(unit) as f64) < below).collect()
        }
        Sample::Count(count) => {
            let mut scored: Vec<_> = units.iter().enumerate().map(|(n, u)| (score(u), n)).collect();
            scored.sort_unstable();
            let mut picked: Vec<_> = scored.into_iter().take(count).map(|(_, n)| n).collect();
            picked.sort_unstable();
            picked.into_iter().map(|n| &units[n]).collect()
        }
    }
}

/// The number of paths that were compared, and what is wrong with a unit.
fn verify_unit(
    store: &Store,
    repository: &RepositoryName,
    unit: &Unit,
) -> (usize, Vec<Difference>) {
    let metadata = &unit.metadata;
    let name = format!("{} {}", metadata.layer, metadata.version);
    let alone =
        |fault| (0, vec![Difference { unit: name.clone(), path: None, faults: vec![fault] }]);
    let entry = LayerSetEntry {
        kind: metadata.kind,
        repository: repository.clone(),
        layer: metadata.layer.clone(),
        version: metadata.version.clone(),
        digest: unit.digest,
    };
    let opened = match store.open_unit(&entry) {
        Ok(opened) => opened,
        Err(error) => return alone(whole("unit", error.to_string())),
    };
    let mut faults = Vec::new();
    if opened.metadata != *metadata {
        faults.push(whole("database", "its stanza says other than the unit's metadata".to_owned()));
    }
    if opened.manifest.content_bytes() != unit.content_bytes {
        let (expected, found) = (opened.manifest.content_bytes(), unit.content_bytes);
        faults.push(fault("database", &expected, &found));
    }
    let found = match tree::scan(&opened.path.join("filesystem"), TreeLimits::default()) {
        Ok(found) => found,
        Err(error) => return alone(whole("unreadable", error.to_string())),
    };
    let mut differences = Vec::new();
    if !faults.is_empty() {
        differences.push(Difference { unit: name.clone(), path: None, faults });
    }
    differences.extend(compare(&opened.manifest, &found).into_iter().map(|(path, faults)| {
        let path = Some(String::from_utf8_lossy(&path).into_owned());
        Difference { unit: name.clone(), path, faults }
    }));
    (opened.manifest.entries().len(), differences)
}

fn fault(what: &'static str, expected: &impl ToString, found: &impl ToString) -> Fault {
    Fault { what, expected: Some(expected.to_string()), found: Some(found.to_string()) }
}

/// What two descriptions of one tree differ in, by path.
fn compare(expected: &Manifest, found: &Manifest) -> BTreeMap<Vec<u8>, Vec<Fault>> {
    let mut differences = BTreeMap::new();
    if expected == found {
        return differences;
    }
    let bare = |what| vec![Fault { what, expected: None, found: None }];
    for entry in expected.entries() {
        match found.get(&entry.path) {
            None => {
                differences.insert(entry.path.clone(), bare("missing"));
            }
            Some(other) => {
                let faults = compare_entries(entry, other);
                if !faults.is_empty() {
                    differences.insert(entry.path.clone(), faults);
                }
            }
        }
    }
    for entry in found.entries().iter().filter(|entry| expected.get(&entry.path).is_none()) {
        differences.insert(entry.path.clone(), bare("extra"));
    }
    differences
}

fn compare_entries(expected: &Entry, found: &Entry) -> Vec<Fault> {
    let mut faults = Vec::new();
    if expected.kind != found.kind {
        faults.push(compare_kinds(&expected.kind, &found.kind));
    }
    let is_link = matches!(expected.kind, Kind::Symlink { .. });
    if !is_link && expected.mode != found.mode {
        faults.push(fault("mode", &format!("{:o}", expected.mode), &format!("{:o}", found.mode)));
    }
    let owner = |entry: &Entry| format!("{}:{}", entry.uid, entry.gid);
    if owner(expected) != owner(found) {
        faults.push(fault("owner", &owner(expected), &owner(found)));
    }
    let time = |entry: &Entry| format!("{}.{:09}", entry.mtime.seconds, entry.mtime.nanoseconds);
    if expected.mtime != found.mtime {
        faults.push(fault("mtime", &time(expected), &time(found)));
    }
    if expected.link_count != found.link_count {
        faults.push(fault("links", &expected.link_count, &found.link_count));
    }
    if expected.xattrs != found.xattrs {
        let names = expected.xattrs.keys().chain(found.xattrs.keys());
        let differ = names.filter(|name| expected.xattrs.get(*name) != found.xattrs.get(*name));
        let names: BTreeSet<_> = differ.map(|name| String::from_utf8_lossy(name)).collect();
        let names: Vec<_> = names.into_iter().collect();
        faults.push(whole("xattrs", names.join(", ")));
    }
    faults
}

fn compare_kinds(expected: &Kind, found: &Kind) -> Fault {
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match (expected, found) {
        (Kind::Regular { digest, .. }, Kind::Regular { digest: other, .. }) => {
            fault("content", digest, other)
        }
        (Kind::Symlink { target }, Kind::Symlink { target: other }) => {
            fault("target", &lossy(target), &lossy(other))
        }
        (Kind::HardLink { target }, Kind::HardLink { target: other }) => {
            fault("links", &lossy(target), &lossy(other))
        }
        (Kind::CharacterDevice { major, minor }, Kind::CharacterDevice { major: a, minor: b })
        | (Kind::BlockDevice { major, minor }, Kind::BlockDevice { major: a, minor: b }) => {
            fault("device", &format!("{major}:{minor}"), &format!("{a}:{b}"))
        }
        _ => fault("type", &kind_name(expected), &kind_name(found)),
    }
}

fn kind_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Directory => "directory",
        Kind::Regular { .. } => "file",
        Kind::Symlink { .. } => "symbolic link",
        Kind::HardLink { .. } => "hard link",
        Kind::CharacterDevice { .. } => "character device",
        Kind::BlockDevice { .. } => "block device",
        Kind::Fifo => "FIFO",
        Kind::Socket => "socket",
    }
}
