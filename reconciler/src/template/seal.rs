//! What a build changed, as a layer unit.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use strata_core::RepositoryName;
use strata_core::manifest::{Timestamp, parent_path};
use strata_core::metadata::Metadata;
use strata_core::whiteouts::Whiteouts;
use strata_import::rooted::Rooted;
use strata_import::selection::{self, Selection};
use strata_import::{Imported, TreeLimits, sealing};
use strata_store::Store;

use super::inputs::RECORD;
use super::sandbox::Changes;
use super::{BuildError, Inputs};

/// Publishes the changes as a unit of `repository`.
///
/// # Errors
/// They cannot be read, or the unit not be written.
pub fn seal(
    store: &Store,
    repository: &RepositoryName,
    metadata: Metadata,
    inputs: &Inputs,
    changes: &Changes,
    epoch: Timestamp,
) -> Result<Imported, BuildError> {
    let mut paths: BTreeSet<Vec<u8>> = changes.seen.changed.iter().cloned().collect();
    if let Some(former) = &inputs.former {
        // The result replaces the former one, so it has all of it that is still there.
        let manifest = store.manifest(&former.repository, &former.layer, &former.version)?;
        paths.extend(manifest.entries().iter().map(|entry| entry.path.clone()));
        paths.remove(b"".as_slice());
    }
    let selected = sealing::select(paths, &inputs.data);
    let hidden = hidden(store, inputs, &changes.seen.root)?;
    let selection = Selection {
        root: &changes.seen.root,
        selected: &selected,
        hidden: &hidden,
        records: &[(RECORD, inputs.print())],
    };
    let limits = TreeLimits::default();
    let (unit, gone) =
        selection::publish(store, repository, metadata, &selection, limits, &mut |_, found| {
            sealing::clamp(found, epoch);
        })?;
    if !gone.is_empty() {
        tracing::debug!(count = gone.len(), "paths of the former layer are gone");
    }
    Ok(unit)
}

/// What of the layers the build's tree does not show any more, as white-outs.
fn hidden(store: &Store, inputs: &Inputs, root: &Path) -> Result<Whiteouts, BuildError> {
    let tree = Rooted::open(root)?;
    let mut seen = BTreeSet::new();
    let mut gone: Vec<Vec<u8>> = Vec::new();
    for entry in &inputs.layers {
        let manifest = store.manifest(&entry.repository, &entry.layer, &entry.version)?;
        for entry in manifest.entries().iter().filter(|entry| !entry.path.is_empty()) {
            let path = &entry.path;
            let left_out = sealing::fate(path, &inputs.data) == sealing::Fate::LeftOut;
            // A directory precedes what is in it.
            let implied = parent_path(path).is_some_and(|above| gone_below(&gone, above));
            if !left_out
                && !implied
                && seen.insert(path.clone())
                && !tree.exists_plainly(Path::new(OsStr::from_bytes(path)))?
            {
                gone.push(path.clone());
            }
        }
    }
    Ok(Whiteouts::new(gone))
}

/// Whether `path` or a directory above it is the last that is gone.
fn gone_below(gone: &[Vec<u8>], path: &[u8]) -> bool {
    gone.last().is_some_and(|gone| {
        path.strip_prefix(gone.as_slice())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    })
}
