//! Which layers of the store have a library or a path.
//!
//! Of each layer its newest unit counts that is on the disk and not withdrawn, of several
//! repositories the one that is named first. Configuration layers count for nothing: they
//! are made of what software layers have.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use strata_core::manifest::Manifest;
use strata_core::metadata::{LayerKind, Metadata};
use strata_core::names::{LayerName, RepositoryName};
use strata_store::{Store, StoreError, read_limited};

use super::symbols;
use crate::deb::CONTROL_DIRECTORY;

/// Bytes of one `symbols` or `shlibs` file (that of Qt's libraries has 3 MB).
const CONTROL_FILE_BYTES: usize = 64 << 20;

/// A layer that others may need.
#[derive(Debug)]
pub struct Provider {
    pub repository: RepositoryName,
    pub metadata: Metadata,
    directory: PathBuf,
    symbols: String,
    shlibs: String,
    manifest: OnceCell<Manifest>,
}

impl Provider {
    /// Its `symbols` file; empty where it has none.
    pub fn symbols(&self) -> &str {
        &self.symbols
    }

    /// Its `shlibs` file; empty where it has none.
    pub fn shlibs(&self) -> &str {
        &self.shlibs
    }
}

/// See the module.
#[derive(Debug)]
pub struct Providers<'s> {
    store: &'s Store,
    providers: Vec<Provider>,
    /// By the name of a library, those that say something of it.
    libraries: HashMap<String, Vec<usize>>,
    /// By path, the first that has it; read when it is asked for.
    paths: OnceCell<HashMap<Vec<u8>, usize>>,
}

impl<'s> Providers<'s> {
    /// Looks at the repositories, in this order, without the layer `own`.
    ///
    /// # Errors
    /// A repository or what a unit says of its libraries cannot be read.
    pub fn load(
        store: &'s Store,
        repositories: &[RepositoryName],
        own: Option<&LayerName>,
    ) -> Result<Self, StoreError> {
        let mut providers = Vec::new();
        let mut seen: BTreeSet<LayerName> = own.cloned().into_iter().collect();
        for repository in repositories {
            for metadata in newest(store, repository)? {
                if !seen.insert(metadata.layer.clone()) {
                    continue;
                }
                let directory = store.unit_path(repository, &metadata.layer, &metadata.version);
                let control = directory.join("scripts").join(CONTROL_DIRECTORY);
                let read = |name: &str| -> Result<String, StoreError> {
                    match read_limited(&control.join(name), CONTROL_FILE_BYTES) {
                        Err(StoreError::Io { source, .. })
                            if source.kind() == std::io::ErrorKind::NotFound =>
                        {
                            Ok(String::new())
                        }
                        bytes => Ok(String::from_utf8_lossy(&bytes?).into_owned()),
                    }
                };
                let (symbols, shlibs) = (read("symbols")?, read("shlibs")?);
                let (repository, manifest) = (repository.clone(), OnceCell::new());
                providers.push(Provider {
                    repository,
                    metadata,
                    directory,
                    symbols,
                    shlibs,
                    manifest,
                });
            }
        }
        let libraries = by_library(&providers);
        Ok(Providers { store, providers, libraries, paths: OnceCell::new() })
    }

    /// How many layers there are.
    pub fn len(&self) -> usize {
        self.providers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.providers.is_empty()
    }

    pub fn all(&self) -> &[Provider] {
        &self.providers
    }

    /// Those whose control files speak of a library.
    pub fn of_library(&self, soname: &str) -> Vec<&Provider> {
        let exact = self.libraries.get(soname).into_iter().flatten();
        let listed = symbols::split_soname(soname).map(|(name, version)| key(name, version));
        let listed = listed.and_then(|key| self.libraries.get(&key)).into_iter().flatten();
        let found: BTreeSet<usize> = exact.chain(listed).copied().collect();
        found.into_iter().map(|at| &self.providers[at]).collect()
    }

    /// The layer that has anything at a path, at its place on a merged system.
    ///
    /// # Errors
    /// A manifest cannot be read.
    pub fn of_path(&self, path: &[u8]) -> Result<Option<&Provider>, StoreError> {
        let paths = match self.paths.get() {
            Some(paths) => paths,
            None => {
                let mut paths = HashMap::new();
                for (at, provider) in self.providers.iter().enumerate() {
                    for entry in self.manifest(provider)?.entries() {
                        paths.entry(entry.path.clone()).or_insert(at);
                    }
                }
                self.paths.get_or_init(|| paths)
            }
        };
        Ok(paths.get(path).map(|at| &self.providers[*at]))
    }

    /// The manifest of a layer, read once.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn manifest<'p>(&self, provider: &'p Provider) -> Result<&'p Manifest, StoreError> {
        if let Some(manifest) = provider.manifest.get() {
            return Ok(manifest);
        }
        let Metadata { layer, version, .. } = &provider.metadata;
        let manifest = self.store.manifest(&provider.repository, layer, version)?;
        Ok(provider.manifest.get_or_init(|| manifest))
    }

    /// Where the files of a layer are.
    pub fn files(&self, provider: &Provider) -> PathBuf {
        provider.directory.join("filesystem")
    }
}

/// The newest usable unit of each software layer of a repository whose files are here.
fn newest(store: &Store, repository: &RepositoryName) -> Result<Vec<Metadata>, StoreError> {
    let here: BTreeSet<String> = store.unit_directories(repository)?.into_iter().collect();
    let mut newest: BTreeMap<LayerName, Metadata> = BTreeMap::new();
    for unit in store.database(repository)?.into_units() {
        let metadata = unit.metadata;
        let directory = strata_core::names::unit_directory(&metadata.layer, &metadata.version);
        if unit.withdrawn.is_some()
            || metadata.kind != LayerKind::Software
            || !here.contains(&directory)
        {
            continue;
        }
        // Units come in the order of their versions.
        newest.insert(metadata.layer.clone(), metadata);
    }
    Ok(newest.into_values().collect())
}

/// What a line of `shlibs` is found by; no library has such a name.
fn key(name: &str, version: &str) -> String {
    format!("{name}\0{version}")
}

fn by_library(providers: &[Provider]) -> HashMap<String, Vec<usize>> {
    let mut libraries: HashMap<String, Vec<usize>> = HashMap::new();
    for (at, provider) in providers.iter().enumerate() {
        for soname in symbols::sonames(&provider.symbols) {
            libraries.entry(soname.to_owned()).or_default().push(at);
        }
        for (name, version) in symbols::shlibs_names(&provider.shlibs) {
            libraries.entry(key(name, version)).or_default().push(at);
        }
    }
    libraries
}
