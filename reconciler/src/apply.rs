//! Takes the actions of a plan: first layers and generations are sealed, then links are
//! made and moved, in order, each atomic in the store.
//!
//! Stopped anywhere, by a fault or a crash, it leaves a store from which
//! planning anew gives the rest.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use strata_core::generation::{Generation, LayerSetEntry};
use strata_core::manifest::{Entry, Kind};
use strata_core::plan::Action;
use strata_core::template_tree::TemplateTree;
use strata_core::{Digest, GenerationId, RepositoryName};
use strata_store::{Store, StoreError};

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the layer {layer} was sealed as {found}, its generation names {}", layer.digest)]
    SealedOther { layer: LayerSetEntry, found: Digest },
    #[error("the plan names {0}, which the commit does not hold")]
    Missing(String),
}

/// What the actions refer to.
#[derive(Debug, Clone, Default)]
pub struct Materials {
    pub generations: BTreeMap<GenerationId, Generation>,
    /// Configuration layers that come from the commit, by unit digest.
    pub trees: BTreeMap<Digest, TemplateTree>,
}

/// Takes all actions; `origin` is the commit they come from.
///
/// # Errors
/// The first action that failed; those before it stand.
pub fn apply(
    store: &Store,
    actions: &[Action],
    materials: &Materials,
    origin: &str,
) -> Result<(), ApplyError> {
    seal_layers(store, actions, materials)?;
    seal_generations(store, actions, materials, origin)?;
    let mut claimed = false;
    for action in actions {
        match action {
            Action::SealLayer { .. } | Action::SealGeneration { .. } => {}
            Action::MoveRing { composition, ring, from, to } => {
                store.move_ring(composition, ring, to)?;
                let from = from.map(|from| from.to_string());
                tracing::info!(%composition, %ring, from, generation = %to, "ring moved");
            }
            Action::LinkVa { name, mac, from: None, to } => {
                store.claim_va(*mac, to)?;
                claimed = true;
                tracing::info!(va = %name, %mac, composition = %to.composition(), "VA linked");
            }
            Action::LinkVa { name, mac, from: Some(_), to } => {
                store.move_va(*mac, to)?;
                tracing::info!(va = %name, %mac, composition = %to.composition(), "VA moved");
            }
        }
    }
    if claimed {
        store.sync()?;
    }
    Ok(())
}

/// Seals all configuration layers of the plan; their database is written once.
fn seal_layers(store: &Store, actions: &[Action], materials: &Materials) -> Result<(), ApplyError> {
    let layers: Vec<_> = actions
        .iter()
        .filter_map(|action| match action {
            Action::SealLayer { layer } => Some(layer),
            _ => None,
        })
        .collect();
    if layers.is_empty() {
        return Ok(());
    }
    let mut writer = store.write_repository(&RepositoryName::templates())?;
    for layer in layers {
        let tree = materials.trees.get(&layer.digest);
        let tree = tree.ok_or_else(|| ApplyError::Missing(layer.to_string()))?;
        let staged = store.stage_unit(&layer.repository)?;
        fill(&staged.filesystem(), tree)?;
        let published = writer.publish(staged, tree.unit().metadata.clone(), tree.manifest())?;
        if published.digest != layer.digest {
            let (layer, found) = (layer.clone(), published.digest);
            return Err(ApplyError::SealedOther { layer, found });
        }
        tracing::info!(%layer, "configuration layer sealed");
    }
    writer.commit()?;
    Ok(())
}

/// Seals all generations of the plan: nothing leads to one before all are there.
fn seal_generations(
    store: &Store,
    actions: &[Action],
    materials: &Materials,
    origin: &str,
) -> Result<(), ApplyError> {
    let mut sealed = Vec::new();
    for action in actions {
        let Action::SealGeneration { composition, generation } = action else { continue };
        let material = materials.generations.get(generation);
        sealed.push(material.ok_or_else(|| ApplyError::Missing(composition.to_string()))?);
    }
    store.seal_generations(sealed, origin)?;
    for action in actions {
        if let Action::SealGeneration { composition, generation } = action {
            tracing::info!(%composition, %generation, "generation sealed");
        }
    }
    Ok(())
}

/// Writes the files of a configuration layer below `root`, an empty directory.
fn fill(root: &Path, tree: &TemplateTree) -> Result<(), ApplyError> {
    // Parents come before their children; times of directories are set last.
    let entries = tree.manifest().entries();
    for entry in entries {
        write_entry(&place(root, entry), entry, tree)?;
    }
    for entry in entries.iter().rev() {
        set_times(&place(root, entry), entry)?;
    }
    Ok(())
}

fn place(root: &Path, entry: &Entry) -> PathBuf {
    match entry.path.as_slice() {
        [] => root.to_owned(),
        path => root.join(OsStr::from_bytes(path)),
    }
}

fn write_entry(path: &Path, entry: &Entry, tree: &TemplateTree) -> Result<(), ApplyError> {
    let at = |action| move |source| ApplyError::Io { action, path: path.to_owned(), source };
    match &entry.kind {
        Kind::Directory if entry.path.is_empty() => {}
        Kind::Directory => fs::create_dir(path).map_err(at("create"))?,
        Kind::Symlink { target } => {
            symlink(OsStr::from_bytes(target), path).map_err(at("link"))?;
        }
        _ => {
            let missing = || ApplyError::Missing(String::from_utf8_lossy(&entry.path).into_owned());
            let content = tree.contents().get(&entry.path).ok_or_else(missing)?;
            let mut options = fs::OpenOptions::new();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
                .map_err(at("create"))?;
            io::Write::write_all(&mut file, content).map_err(at("write"))?;
        }
    }
    change_owner(path, entry).map_err(at("change the owner of"))?;
    if !matches!(entry.kind, Kind::Symlink { .. }) {
        let permissions = fs::Permissions::from_mode(entry.mode);
        fs::set_permissions(path, permissions).map_err(at("change the mode of"))?;
    }
    Ok(())
}

/// The owner of a backing file is a courtesy to those who look into the store:
/// the VLFS answers from the manifest. So a reconciler without privileges may
/// leave its own.
fn change_owner(path: &Path, entry: &Entry) -> io::Result<()> {
    match lchown(path, Some(entry.uid), Some(entry.gid)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            tracing::debug!(path = %path.display(), %error, "the owner stays");
            Ok(())
        }
        other => other,
    }
}

fn set_times(path: &Path, entry: &Entry) -> Result<(), ApplyError> {
    let time =
        Timespec { tv_sec: entry.mtime.seconds, tv_nsec: i64::from(entry.mtime.nanoseconds) };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| {
        let (action, path) = ("set the times of", path.to_owned());
        ApplyError::Io { action, path, source: error.into() }
    })
}
