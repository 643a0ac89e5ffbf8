//! The layers of a generation against their manifests: nothing is believed but digests.
//!
//! Every path is compared in type, mode, owner, size, time, link target, device
//! number, extended attributes and content (blake3), and directories in their
//! names. All reads go through the descriptor of the layer's own directory and
//! follow no link (`backing`). A difference is a finding, not an error: a layer
//! that is missing or whose manifest is damaged is named, and the others are
//! checked all the same. Nothing is written.

mod entry;
pub mod first_open;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use serde::Serialize;
use strata_core::manifest::{Kind, Manifest};
use strata_core::{GenerationId, generation::LayerSetEntry};
use strata_store::{Store, StoreError};

use crate::backing;
pub use entry::Fault;

/// Differences that are listed; more are counted.
pub const LISTED: usize = 10_000;
/// Paths that a thread takes at a time.
const CHUNK: usize = 64;

/// Which paths are checked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sample {
    All,
    /// Each path with this probability, in hundredths.
    Percent(f64),
    /// So many paths of all layers together.
    Count(usize),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    pub sample: Sample,
    /// The same seed picks the same paths of the same generation.
    pub seed: u64,
    pub threads: usize,
}

/// How far it is: for a progress bar in another thread.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of content to read; 0 until the manifests are read.
    pub total_bytes: AtomicU64,
    pub done_bytes: AtomicU64,
    /// Set to end early; what was found so far is the outcome.
    pub cancelled: AtomicBool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// `repo/layer version`.
    pub layer: String,
    /// Relative to the layer's root; `None` for the layer unit as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The path as bytes, in hexadecimal, where `path` could not hold it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    pub faults: Vec<Fault>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    pub generation: GenerationId,
    pub layers: usize,
    /// Paths of all manifests that could be read.
    pub paths: usize,
    pub checked_paths: usize,
    /// Bytes of content that were read.
    pub checked_bytes: u64,
    /// Of the files checked, those that the kernel seals by fs-verity.
    pub fs_verity_files: usize,
    /// Present when not everything was checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// In the order of the generation, then of paths; at most [`LISTED`].
    pub differences: Vec<Difference>,
    /// Differences that are not listed.
    pub omitted: usize,
}

impl Outcome {
    pub fn is_clean(&self) -> bool {
        self.differences.is_empty()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("the generation {id}: {source}")]
    Generation { id: GenerationId, source: Box<StoreError> },
    #[error("no thread to verify with: {0}")]
    Thread(std::io::Error),
}

/// One layer, opened.
struct Opened {
    name: String,
    manifest: Manifest,
    root: OwnedFd,
}

/// Verifies the layers of a generation.
///
/// # Errors
/// The generation itself cannot be read. What is wrong with its layers is in the outcome.
pub fn verify(
    store: &Store,
    id: &GenerationId,
    options: &Options,
    progress: &Progress,
) -> Result<Outcome, VerifyError> {
    let generation = store
        .generation(id)
        .map_err(|source| VerifyError::Generation { id: *id, source: Box::new(source) })?;
    let mut layers = Vec::new();
    let mut found = Findings::default();
    for (number, entry) in generation.layers().iter().enumerate() {
        match open(store, entry) {
            Ok(opened) => layers.push((number, opened)),
            Err(fault) => found.add(number, None, &entry.to_string(), vec![fault]),
        }
    }
    let paths = layers.iter().map(|(_, layer)| layer.manifest.entries().len()).sum();
    let picked = pick(&layers, options);
    let content = |&(layer, entry): &(u32, u32)| match &layers[layer as usize].1.manifest.entries()
        [entry as usize]
        .kind
    {
        Kind::Regular { size, .. } => *size,
        _ => 0,
    };
    progress.total_bytes.store(picked.iter().map(content).sum(), Ordering::Relaxed);
    let found = Mutex::new(found);
    let verity = AtomicUsize::new(0);
    let checked = AtomicUsize::new(0);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut checker = entry::Checker::new(progress);
        loop {
            let start = next.fetch_add(CHUNK, Ordering::Relaxed);
            if start >= picked.len() || progress.cancelled.load(Ordering::Relaxed) {
                break;
            }
            for &(at, entry) in &picked[start..picked.len().min(start + CHUNK)] {
                let (number, layer) = &layers[at as usize];
                let entry = &layer.manifest.entries()[entry as usize];
                for (path, faults) in checker.check(at, &layer.root, &layer.manifest, entry) {
                    let mut found = found.lock().expect("no panic while held");
                    found.add(*number, Some(&path), &layer.name, faults);
                }
                checked.fetch_add(1, Ordering::Relaxed);
            }
        }
        verity.fetch_add(checker.sealed_files, Ordering::Relaxed);
    };
    std::thread::scope(|scope| {
        // This thread is one of them.
        for _ in 1..options.threads.max(1) {
            let spawned = std::thread::Builder::new().spawn_scoped(scope, work);
            spawned.map_err(VerifyError::Thread)?;
        }
        work();
        Ok(())
    })?;
    let (differences, omitted) = found.into_inner().expect("no panic while held").finish();
    Ok(Outcome {
        generation: *id,
        layers: generation.layers().len(),
        paths,
        checked_paths: checked.into_inner(),
        checked_bytes: progress.done_bytes.load(Ordering::Relaxed),
        fs_verity_files: verity.into_inner(),
        seed: (options.sample != Sample::All).then_some(options.seed),
        differences,
        omitted,
    })
}

fn open(store: &Store, entry: &LayerSetEntry) -> Result<Opened, Fault> {
    let unit = store.open_unit(entry).map_err(|error| Fault::Unit { error: error.to_string() })?;
    let root = backing::open_beneath_path(&unit.path, b"filesystem")
        .map_err(|errno| Fault::Unit { error: format!("its files cannot be opened: {errno}") })?;
    Ok(Opened { name: entry.to_string(), manifest: unit.manifest, root })
}

/// The paths to check, as (index in `layers`, entry), in order.
fn pick(layers: &[(usize, Opened)], options: &Options) -> Vec<(u32, u32)> {
    let small = |n: usize| u32::try_from(n).expect("limits are far below 2^32");
    let all = layers.iter().enumerate().flat_map(|(at, (_, layer))| {
        (0..layer.manifest.entries().len()).map(move |entry| (small(at), small(entry)))
    });
    let score = |&(at, entry): &(u32, u32)| {
        let layer = &layers[at as usize].1;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&options.seed.to_le_bytes()).update(layer.name.as_bytes()).update(b"\0");
        hasher.update(&layer.manifest.entries()[entry as usize].path);
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(bytes)
    };
    match options.sample {
        Sample::All => all.collect(),
        Sample::Percent(percent) => {
            let below = percent / 100.0 * u64::MAX as f64;
            all.filter(|path| (score(path) as f64) < below).collect()
        }
        Sample::Count(count) => {
            let mut scored: Vec<_> = all.map(|path| (score(&path), path)).collect();
            scored.sort_unstable();
            scored.truncate(count);
            let mut picked: Vec<_> = scored.into_iter().map(|(_, path)| path).collect();
            picked.sort_unstable();
            picked
        }
    }
}

/// What was found, in order, with a bound: the first by layer and path are kept.
#[derive(Default)]
struct Findings {
    listed: BTreeMap<(usize, Option<Vec<u8>>), Difference>,
    omitted: usize,
}

impl Findings {
    fn add(&mut self, number: usize, path: Option<&[u8]>, layer: &str, faults: Vec<Fault>) {
        let text = path.map(|path| String::from_utf8_lossy(path).into_owned());
        let path_hex = path
            .filter(|path| std::str::from_utf8(path).is_err())
            .map(|path| path.iter().map(|byte| format!("{byte:02x}")).collect());
        let difference = Difference { layer: layer.to_owned(), path: text, path_hex, faults };
        self.listed.insert((number, path.map(<[u8]>::to_vec)), difference);
        if self.listed.len() > LISTED {
            self.listed.pop_last();
            self.omitted += 1;
        }
    }

    fn finish(self) -> (Vec<Difference>, usize) {
        (self.listed.into_values().collect(), self.omitted)
    }
}
