//! Opening layer sets: the layers of a generation, or plain directories.
//!
//! A set is opened whole or refused whole, aside from the one that is served.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use strata_core::GenerationId;
use strata_core::names::unit_directory;
use strata_store::{Store, StoreError};

use crate::layer::{Layer, LayerError, find_lenders};
use crate::private::UnitKey;
use crate::tree::Tree;
use crate::vfs::SetInfo;

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
}

/// Opens all layers of a generation, topmost first, each checked against the
/// digest that the generation names. Layers in `known` are taken as they are.
///
/// # Errors
/// The generation or one of its layers is missing or damaged.
pub fn open_generation(
    store: &Store,
    id: &GenerationId,
    known: &[Arc<Layer>],
) -> Result<(Vec<Arc<Layer>>, SetInfo), SetError> {
    let generation =
        store.generation(id).map_err(|source| SetError::Generation { id: *id, source })?;
    let mut layers = Vec::new();
    for entry in generation.layers().iter().rev() {
        let directory = unit_directory(&entry.layer, &entry.version);
        let unit = UnitKey::new(entry.repository.as_str(), &directory);
        let same = |layer: &&Arc<Layer>| layer.unit == unit && layer.digest == Some(entry.digest);
        if let Some(layer) = known.iter().find(same) {
            layers.push(layer.clone());
            continue;
        }
        let opened =
            store.open_unit(entry).map_err(|source| SetError::Generation { id: *id, source })?;
        let path = opened.path.join("filesystem");
        let root = crate::backing::open_root(&path).map_err(|errno| SetError::Files {
            unit: entry.to_string(),
            path,
            errno,
        })?;
        let tree = Tree::from_manifest(&opened.manifest);
        layers.push(Arc::new(Layer::unit(entry.to_string(), unit, entry.digest, tree, root)));
    }
    let info =
        SetInfo { generation: Some(*id), composition: Some(generation.composition().to_string()) };
    Ok((layers, info))
}

/// Opens plain directories as layers, topmost first. A directory in `known` is
/// taken as it was read then: layers do not change.
///
/// # Errors
/// One cannot be read, or stands twice.
pub fn open_directories(
    directories: &[PathBuf],
    known: &[Arc<Layer>],
) -> Result<Vec<Arc<Layer>>, SetError> {
    let mut layers: Vec<Arc<Layer>> = Vec::new();
    for directory in directories {
        let unit = plain_unit(directory)?;
        let layer = match known.iter().find(|layer| layer.unit == unit) {
            Some(layer) => layer.clone(),
            None => Arc::new(Layer::scan(directory)?),
        };
        if layers.iter().any(|above| above.unit == layer.unit) {
            return Err(SetError::Twice(directory.clone()));
        }
        layers.push(layer);
    }
    find_lenders(&layers)?;
    Ok(layers)
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
