//! What was configured by hand in one VA of a template, as a layer of the template (§4.2).

use std::collections::BTreeSet;

use strata_core::data_paths::DataPaths;
use strata_core::generation::LayerSetEntry;
use strata_core::metadata::Metadata;
use strata_core::whiteouts::Whiteouts;
use strata_core::{LayerName, LayerVersion, RepositoryName};
use strata_import::rooted::Rooted;
use strata_import::selection::{self, Selection};
use strata_import::tree::Selected;
use strata_import::{Imported, TreeLimits, sealing};
use strata_store::Store;

use super::BuildError;
use crate::private_view::PrivateView;

/// What becomes of the changes of a VA.
#[derive(Debug)]
pub struct Handmade {
    /// What the layer has: of the changes, and of its former version what is still there.
    pub selected: Vec<Selected>,
    pub hidden: Whiteouts,
    /// Changes that are every VA's own and not the template's.
    pub left_out: Vec<Vec<u8>>,
}

impl Handmade {
    /// Sorts the changes that `wanted` has a mind for. `former` is the layer that the
    /// result replaces.
    ///
    /// # Errors
    /// The former layer cannot be read, or the view cannot.
    pub fn of(
        store: &Store,
        seen: &PrivateView,
        former: Option<&LayerSetEntry>,
        data: &DataPaths,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Self, BuildError> {
        let mut paths: BTreeSet<Vec<u8>> =
            seen.changed.iter().filter(|path| wanted(path)).cloned().collect();
        let left_out = paths
            .iter()
            .filter(|path| sealing::fate(path, data) == sealing::Fate::LeftOut)
            .cloned()
            .collect();
        let is_kept = |path: &Vec<u8>| sealing::fate(path, data) != sealing::Fate::LeftOut;
        let mut gone: Vec<Vec<u8>> =
            seen.deleted.iter().filter(|path| wanted(path) && is_kept(path)).cloned().collect();
        if let Some(former) = former {
            let tree = Rooted::open(&seen.root)?;
            let manifest = store.manifest(&former.repository, &former.layer, &former.version)?;
            for entry in manifest.entries().iter().filter(|entry| !entry.path.is_empty()) {
                if tree.exists_plainly(as_path(&entry.path))? {
                    paths.insert(entry.path.clone());
                }
            }
            for path in store.whiteouts(former)?.iter() {
                if !tree.exists_plainly(as_path(path))? {
                    gone.push(path.to_vec());
                }
            }
        }
        let selected = sealing::select(paths, data);
        Ok(Handmade { selected, hidden: Whiteouts::new(gone), left_out })
    }

    pub fn is_empty(&self) -> bool {
        self.selected.is_empty() && self.hidden.is_empty()
    }

    /// Publishes them as a unit of `repository`.
    ///
    /// # Errors
    /// They cannot be read, or the unit not be written; the repository is as before.
    pub fn publish(
        &self,
        store: &Store,
        repository: &RepositoryName,
        metadata: Metadata,
        seen: &PrivateView,
    ) -> Result<Imported, BuildError> {
        let selection = Selection {
            root: &seen.root,
            selected: &self.selected,
            hidden: &self.hidden,
            records: &[],
        };
        let limits = TreeLimits::default();
        let (unit, gone) =
            selection::publish(store, repository, metadata, &selection, limits, &mut |_, _| ())?;
        if !gone.is_empty() {
            tracing::warn!(count = gone.len(), "paths were listed and are not there");
        }
        Ok(unit)
    }
}

/// The number after the highest that a layer has as a version in a repository.
///
/// # Errors
/// The repository cannot be read.
pub fn next_version(
    store: &Store,
    repository: &RepositoryName,
    layer: &LayerName,
) -> Result<LayerVersion, BuildError> {
    let (database, withdrawn) = match store.repositories()?.contains(repository) {
        true => (store.database(repository)?, store.withdrawn(repository)?),
        false => Default::default(),
    };
    let here = database.units().map(|unit| (&unit.metadata.layer, &unit.metadata.version));
    // One that was withdrawn would be so again, although it is another.
    let versions = here.chain(withdrawn.units()).filter(|(name, _)| *name == layer);
    let numbers = versions.filter_map(|(_, version)| version.as_str().parse::<u64>().ok());
    let next = numbers.max().unwrap_or(0).saturating_add(1);
    LayerVersion::new(next.to_string()).map_err(BuildError::Version)
}

fn as_path(path: &[u8]) -> &std::path::Path {
    use std::os::unix::ffi::OsStrExt;
    std::path::Path::new(std::ffi::OsStr::from_bytes(path))
}

#[cfg(test)]
mod tests {
    use strata_core::manifest::{Entry, Kind, Manifest, Timestamp};
    use strata_core::metadata::LayerKind;

    use super::*;

    #[test]
    fn no_version_is_given_twice() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::init(directory.path()).expect("a store");
        let (repository, layer) = ("main".parse().expect("valid"), "web".parse().expect("valid"));
        let next = || next_version(&store, &repository, &layer).expect("a version");
        assert_eq!(next().as_str(), "1");
        let root = Entry {
            path: Vec::new(),
            kind: Kind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            link_count: 1,
            xattrs: Default::default(),
        };
        let metadata = Metadata::new(layer.clone(), next(), LayerKind::Configuration);
        let key = (layer.clone(), next());
        let staged = store.stage_unit(&repository).expect("staged");
        let mut writer = store.write_repository(&repository).expect("a writer");
        writer
            .publish(staged, metadata, &Manifest::new(vec![root]).expect("valid"))
            .expect("published");
        writer.set_withdrawn(&key.0, &key.1, Some("a secret".to_owned())).expect("withdrawn");
        writer.commit().expect("written");
        assert_eq!(next().as_str(), "2");
        let mut writer = store.write_repository(&repository).expect("a writer");
        let aside = writer.remove(&[key].into()).expect("removed");
        drop(writer);
        store.discard(&aside).expect("deleted");
        assert_eq!(next().as_str(), "2", "the first is withdrawn whatever it holds");
    }
}
