//! A layer from some paths of a tree: of what a private layer changed (§4.2).

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use strata_core::metadata::Metadata;
use strata_core::names::RepositoryName;
use strata_core::whiteouts::{self, Whiteouts};
use strata_store::{StagedUnit, Store};

use crate::build::BuildError;
use crate::import::{Imported, open_directory};
use crate::tree::{self, Selected};
use crate::writer::{Attributes, TreeLimits, TreeWriter};

/// What becomes a layer unit.
#[derive(Debug)]
pub struct Selection<'s> {
    /// The tree that the paths are in; no link of it is followed.
    pub root: &'s Path,
    pub selected: &'s [Selected],
    /// What the unit hides in the layers below it; for configuration layers only.
    pub hidden: &'s Whiteouts,
    /// Texts that are kept beside the unit's scripts, by name.
    pub records: &'s [(&'s str, String)],
}

/// Publishes the selected paths, and the directories above them, as a unit of
/// `repository`. Returns what became of it and the paths that are not in the tree.
///
/// # Errors
/// [`BuildError`]; the repository is as before.
pub fn publish(
    store: &Store,
    repository: &RepositoryName,
    metadata: Metadata,
    selection: &Selection<'_>,
    limits: TreeLimits,
    adjust: &mut dyn FnMut(&[u8], &mut Attributes),
) -> Result<(Imported, Vec<Vec<u8>>), BuildError> {
    let unit = store.stage_unit(repository)?;
    let filesystem = unit.filesystem();
    let at = |source| BuildError::Io { path: filesystem.clone(), source };
    let mut writer = TreeWriter::new(open_directory(&filesystem).map_err(at)?, limits);
    let Selection { root, selected, hidden, records } = selection;
    let mut plain = |path: &[u8], attributes: &mut Attributes| {
        // What a mount says of itself at its root.
        attributes.xattrs.retain(|name, _| !name.starts_with(b"user.strata."));
        adjust(path, attributes);
    };
    let missing = tree::copy_selected(root, selected, &mut writer, &mut plain)
        .map_err(|source| BuildError::Tree { root: root.to_path_buf(), source })?;
    let manifest = writer.finish()?;
    for (name, text) in *records {
        keep(&unit, name, text)?;
    }
    if !hidden.is_empty() {
        keep(&unit, whiteouts::FILE, &hidden.print())?;
    }
    let (layer, version) = (metadata.layer.clone(), metadata.version.clone());
    let mut writer = store.write_repository(repository)?;
    let published = writer.publish(unit, metadata, &manifest)?;
    writer.commit()?;
    Ok((Imported::of(published, layer, version, &manifest), missing))
}

fn keep(unit: &StagedUnit, name: &str, text: &str) -> Result<(), BuildError> {
    let path = unit.scripts().join(name);
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
    written.map_err(|source| BuildError::Io { path, source })
}
