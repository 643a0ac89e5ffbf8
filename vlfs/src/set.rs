//! Opening layer sets: the layers of a generation, or plain directories.
//!
//! A set is opened whole or refused whole, aside from the one that is served.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use strata_core::GenerationId;
use strata_core::generation::LayerSetEntry;
use strata_core::metadata::Metadata;
use strata_core::names::unit_directory;
use strata_core::shared_paths::may_obscure;
use strata_store::{Store, StoreError};

use crate::index::Index;
use crate::index::build::{self, BuildError, Input, Permits};
use crate::index::cache::Cache;
use crate::index::pack::{Packed, View};
use crate::layer::{Layer, LayerError, LayerSet, find_lenders};
use crate::private::UnitKey;
use crate::vfs::SetInfo;
use crate::whiteout::WhiteoutTree;

#[derive(Debug, thiserror::Error)]
pub enum SetError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the generation {id}: {source}")]
    Generation { id: GenerationId, source: StoreError },
    #[error("the files of {unit} cannot be opened at {path}: {errno}")]
    Files { unit: String, path: PathBuf, errno: Errno },
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error("the layer {0} is given twice")]
    Twice(PathBuf),
    #[error("the software layers {first} and {second} both have /{path}", path = path.display())]
    Overlap { first: String, second: String, path: PathBuf },
    #[error("the index of the layers is damaged")]
    Damaged,
    #[error("the index of the layer set cannot be made: {0}")]
    Index(BuildError),
}

/// Opens all layers of a generation, topmost first. Where `cache` has its index no
/// manifest is read: the layers must be there, with the manifests that the index was
/// made from by their size and times. Otherwise each is checked against the digest
/// that the generation names, and the index is made, from the parts that `known` has
/// and the manifests of the others.
///
/// # Errors
/// The generation or one of its layers is missing or damaged; software layers
/// share a path.
pub fn open_generation(
    store: &Store,
    id: &GenerationId,
    known: Option<&LayerSet>,
    cache: Option<&Cache>,
) -> Result<(LayerSet, SetInfo), SetError> {
    let generation =
        store.generation(id).map_err(|source| SetError::Generation { id: *id, source })?;
    let entries: Vec<_> = generation.layers().iter().rev().collect();
    let info = SetInfo {
        generation: Some(*id),
        composition: Some(generation.composition().to_string()),
        data: generation.data().clone(),
    };
    let known_by_unit = known.map(by_unit).unwrap_or_default();
    let mut layers = Vec::with_capacity(entries.len());
    let mut key = blake3::Hasher::new();
    key.update(b"strata-index\0").update(id.to_string().as_bytes());
    for entry in &entries {
        let path = store.unit_path(&entry.repository, &entry.layer, &entry.version);
        hash_stamp(&mut key, entry, &path);
        let unit = unit_key(entry);
        let same = |layer: &&Arc<Layer>| layer.digest == Some(entry.digest);
        let kept = known_by_unit.get(&unit).map(|(_, layer)| *layer).filter(same);
        layers.push(match kept {
            Some(layer) => layer.clone(),
            None => Arc::new(open_unit(store, id, entry, unit, &path)?),
        });
    }
    let key = *key.finalize().as_bytes();
    if let Some(index) = cache.and_then(|cache| cache.find(&key))
        && index.layer_count() == layers.len()
    {
        return Ok((LayerSet { layers, index: Arc::new(index) }, info));
    }
    let mut opened = Vec::with_capacity(layers.len());
    for (layer, entry) in layers.into_iter().zip(&entries) {
        let view = known.zip(known_by_unit.get(&layer.unit));
        let view = view
            .filter(|(_, (_, kept))| Arc::ptr_eq(kept, &layer))
            .and_then(|(known, (position, _))| known.index.layer(*position));
        let tree = match view {
            Some(view) => Tree::Known(view),
            None => Tree::Read(read_unit(store, id, entry)?),
        };
        opened.push((layer, tree));
    }
    let keep = cache.map(|cache| Keep { cache, key, generation: *id });
    let unit = |position: usize| Some((entries[position].digest, entries[position].kind));
    // Asked where layers share a path, which few do: their metadata is read then.
    let read: RefCell<HashMap<usize, Option<Metadata>>> = RefCell::default();
    let metadata = |position: usize| {
        let mut read = read.borrow_mut();
        let of = || Some(store.open_unit(entries[position]).ok()?.metadata);
        read.entry(position).or_insert_with(of).clone()
    };
    let permits = |upper: usize, lower: usize, path: &[u8]| {
        let both = metadata(upper).zip(metadata(lower));
        both.is_some_and(|(upper, lower)| may_obscure(&upper, &lower, path))
    };
    Ok((merge(opened, unit, &permits, keep.as_ref())?, info))
}

/// The layers of a set with their positions.
fn by_unit(known: &LayerSet) -> HashMap<UnitKey, (u32, &Arc<Layer>)> {
    known.layers.iter().zip(0..).map(|(layer, at)| (layer.unit.clone(), (at, layer))).collect()
}

/// What tells that a unit's description was not replaced since it was read.
fn hash_stamp(key: &mut blake3::Hasher, entry: &LayerSetEntry, unit: &Path) {
    key.update(entry.digest.as_bytes());
    for name in ["manifest", "metadata"] {
        // What is missing is told when it is opened.
        let Ok(found) = rustix::fs::stat(unit.join(name)) else { continue };
        key.update(&found.st_size.to_le_bytes()).update(&found.st_ino.to_le_bytes());
        key.update(&found.st_mtime.to_le_bytes()).update(&found.st_mtime_nsec.to_le_bytes());
        key.update(&found.st_ctime.to_le_bytes()).update(&found.st_ctime_nsec.to_le_bytes());
    }
}

fn unit_key(entry: &LayerSetEntry) -> UnitKey {
    UnitKey::new(entry.repository.as_str(), &unit_directory(&entry.layer, &entry.version))
}

/// Opens the files of a unit at `path`; its description is not read.
fn open_unit(
    store: &Store,
    id: &GenerationId,
    entry: &LayerSetEntry,
    unit: UnitKey,
    path: &Path,
) -> Result<Layer, SetError> {
    let path = path.join("filesystem");
    match crate::backing::open_root(&path) {
        Ok(root) => {
            let hides = store
                .whiteouts(entry)
                .map_err(|source| SetError::Generation { id: *id, source })?;
            let mut layer = Layer::unit(entry.to_string(), unit, entry.digest, root);
            layer.hides_below = (!hides.is_empty()).then(|| {
                let mut tree = WhiteoutTree::default();
                hides.iter().for_each(|path| tree.hide(path));
                tree
            });
            Ok(layer)
        }
        Err(errno) => {
            // The store says best what is wrong with a unit that is not whole.
            read_unit(store, id, entry)?;
            Err(SetError::Files { unit: entry.to_string(), path, errno })
        }
    }
}

/// Reads the manifest of a unit, checked against the generation's digest.
fn read_unit(store: &Store, id: &GenerationId, entry: &LayerSetEntry) -> Result<Packed, SetError> {
    let opened =
        store.open_unit(entry).map_err(|source| SetError::Generation { id: *id, source })?;
    Ok(Packed::from_manifest(&opened.manifest))
}

/// Opens plain directories as layers, topmost first. A directory of `known` is
/// taken as it was read then: layers do not change.
///
/// # Errors
/// One cannot be read, or stands twice.
pub fn open_directories(
    directories: &[PathBuf],
    known: Option<&LayerSet>,
) -> Result<LayerSet, SetError> {
    let mut opened: Vec<(Arc<Layer>, Tree<'_>)> = Vec::new();
    for directory in directories {
        let unit = plain_unit(directory)?;
        if opened.iter().any(|(above, _)| above.unit == unit) {
            return Err(SetError::Twice(directory.clone()));
        }
        opened.push(match known.and_then(|known| known.find(|layer| layer.unit == unit)) {
            Some((layer, view)) => (layer, Tree::Known(view)),
            None => {
                let (layer, packed) = Layer::scan(directory)?;
                (Arc::new(layer), Tree::Read(packed))
            }
        });
    }
    let set = merge(opened, |_| None, &|_, _, _| false, None)?;
    find_lenders(&set.layers)?;
    Ok(set)
}

/// A former private directory over other layers (§4.2), which are taken as they are.
///
/// # Errors
/// The directory cannot be read; the other set's index is damaged.
pub fn open_former(former: &Path, below: &LayerSet) -> Result<LayerSet, SetError> {
    let (layer, packed) = Layer::scan(former)?;
    let mut opened = vec![(Arc::new(layer), Tree::Read(packed))];
    for (position, layer) in (0..).zip(&below.layers) {
        let view = below.index.layer(position).ok_or(SetError::Damaged)?;
        opened.push((layer.clone(), Tree::Known(view)));
    }
    let unit = |position: usize| {
        position.checked_sub(1).and_then(|below_it| below.index.unit(u32::try_from(below_it).ok()?))
    };
    // The set below was made by this rule already.
    merge(opened, unit, &|_, _, _| true, None)
}

/// Opens the files of a unit that is in no set; the store is not asked whether
/// they are what they were. `None`: it is not in the store.
pub fn unit_root(store: &Store, unit: &UnitKey) -> Option<std::os::fd::OwnedFd> {
    let repositories = crate::backing::open_root(&store.root().join("repos")).ok()?;
    let path = format!("{}/{}/filesystem", unit.repository, unit.unit);
    crate::backing::open_directory(repositories, path.as_bytes()).ok()
}

fn plain_unit(directory: &Path) -> Result<UnitKey, LayerError> {
    let stat = rustix::fs::stat(directory)
        .map_err(|errno| LayerError::Open { path: directory.to_owned(), errno })?;
    Ok(UnitKey::plain(directory, stat.st_dev, stat.st_ino))
}

/// Where a layer's tree comes from.
enum Tree<'a> {
    Read(Packed),
    /// From the index of another set.
    Known(View<'a>),
}

/// Where a merged index is to be kept.
struct Keep<'a> {
    cache: &'a Cache,
    key: [u8; 32],
    generation: GenerationId,
}

/// Merges opened layers: into the cache, or else in memory.
fn merge(
    opened: Vec<(Arc<Layer>, Tree<'_>)>,
    unit: impl Fn(usize) -> Option<(strata_core::Digest, strata_core::metadata::LayerKind)>,
    permits: Permits<'_>,
    keep: Option<&Keep<'_>>,
) -> Result<LayerSet, SetError> {
    let inputs: Vec<_> = opened
        .iter()
        .enumerate()
        .map(|(position, (_, tree))| Input {
            view: match tree {
                Tree::Read(packed) => packed.view(),
                Tree::Known(view) => *view,
            },
            unit: unit(position),
        })
        .collect();
    let merged = build::merge_where(&inputs, permits).map_err(|error| refused(error, &opened))?;
    let kept =
        keep.and_then(|keep| keep.cache.keep(&keep.key, *keep.generation.as_bytes(), &merged));
    let index = match kept {
        Some(index) => index,
        None => Index::of_merged(&merged).map_err(SetError::Index)?,
    };
    drop(merged);
    let layers = opened.into_iter().map(|(layer, _)| layer).collect();
    Ok(LayerSet { layers, index: Arc::new(index) })
}

fn refused(error: BuildError, opened: &[(Arc<Layer>, Tree<'_>)]) -> SetError {
    use std::os::unix::ffi::OsStringExt as _;
    match error {
        BuildError::Overlap { first, second, path } => SetError::Overlap {
            first: opened[first].0.name.clone(),
            second: opened[second].0.name.clone(),
            path: std::ffi::OsString::from_vec(path).into(),
        },
        other => SetError::Index(other),
    }
}
