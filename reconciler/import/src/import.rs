//! Many packages into one repository: converted in parallel, published in
//! groups that share one sync, each unit whole or not at all.
//!
//! The repository is locked while a group is published and no longer, so two
//! imports into one repository go side by side. What is killed leaves units in
//! the making, which the next writer removes; what was published stays.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use strata_core::digest::Digest;
use strata_core::manifest::Manifest;
use strata_core::metadata::Metadata;
use strata_core::names::{LayerName, RepositoryName};
use strata_core::version::LayerVersion;
use strata_store::{Published, RepositoryWriter, StagedUnit, Store, StoreError};

use crate::deb::{self, Converted, DebError};
use crate::rpm::header::LEAD_MAGIC;
use crate::rpm::owners::Owners;
use crate::rpm::{self, RpmError};
use crate::writer::TreeLimits;

/// Units that are published together, at most.
const GROUP_UNITS: usize = 64;
/// Bytes of files after which a group is published.
const GROUP_BYTES: u64 = 512 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("{package}: {source}")]
    Open { package: PathBuf, source: std::io::Error },
    #[error("{package}: {source}")]
    Convert { package: PathBuf, source: Box<ConvertError> },
    #[error("{package}: it holds {found}, and {expected} was announced")]
    Other { package: PathBuf, expected: String, found: String },
    #[error("{package}: {source}")]
    Store { package: PathBuf, source: StoreError },
    #[error("{package}: the others of its group could not be published: {reason}")]
    Group { package: PathBuf, reason: String },
}

impl ImportError {
    /// The same of a package that people know by another path than it was read by.
    #[must_use]
    pub fn known_as(mut self, path: &Path) -> Self {
        let (ImportError::Open { package, .. }
        | ImportError::Convert { package, .. }
        | ImportError::Other { package, .. }
        | ImportError::Store { package, .. }
        | ImportError::Group { package, .. }) = &mut self;
        path.clone_into(package);
        self
    }
}

/// Why a package cannot be made into a layer.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    #[error(transparent)]
    Deb(#[from] DebError),
    #[error(transparent)]
    Rpm(#[from] RpmError),
}

/// A package to import.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Package {
    pub path: PathBuf,
    /// What it must hold, where that is known.
    pub expected: Option<(LayerName, LayerVersion)>,
    /// Where it was published, where that is known.
    pub provenance: Provenance,
}

impl From<PathBuf> for Package {
    fn from(path: PathBuf) -> Self {
        Package { path, ..Package::default() }
    }
}

/// The archive that a package comes from, for its metadata.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Provenance {
    pub origin: Option<String>,
    pub archive: Option<String>,
}

/// What became of a package or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    pub layer: LayerName,
    pub version: LayerVersion,
    pub digest: Digest,
    /// False where the same unit was there already.
    pub new: bool,
    /// Paths of the layer, its root included.
    pub entries: usize,
    /// Bytes of its files.
    pub content_bytes: u64,
    /// Why nothing new may use it, where that is so: it was withdrawn before.
    pub withdrawn: Option<String>,
}

impl Imported {
    pub(crate) fn of(
        published: Published,
        layer: LayerName,
        version: LayerVersion,
        manifest: &Manifest,
    ) -> Self {
        let Published { digest, new, withdrawn } = published;
        let (entries, content_bytes) = (manifest.entries().len(), manifest.content_bytes());
        Imported { layer, version, digest, new, entries, content_bytes, withdrawn }
    }
}

/// How to import. `threads` convert at once; the caller's thread publishes.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    pub threads: NonZeroUsize,
    pub limits: TreeLimits,
    /// Owners by name, for RPM packages.
    pub owners: Owners,
}

impl Default for ImportOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        ImportOptions { threads, limits: TreeLimits::default(), owners: Owners::default() }
    }
}

type Staged = Result<(StagedUnit, Converted), ImportError>;

/// Imports packages into `repository`, which is made where it does not exist.
/// Packages may still be on their way: `packages` is asked for the next one when
/// a thread is free. A package that fails leaves nothing and does not stop the
/// others. `observe` is called for each, once it is published, with its number.
///
/// # Errors
/// The repository cannot be made.
pub fn import_packages(
    store: &Store,
    repository: &RepositoryName,
    packages: impl Iterator<Item = Package> + Send,
    options: &ImportOptions,
    observe: &mut dyn FnMut(usize, Result<Imported, ImportError>),
) -> Result<(), StoreError> {
    // Made even if nothing comes, and freed of what killed imports left.
    store.write_repository(repository)?.commit()?;
    let packages = Mutex::new(packages.enumerate());
    std::thread::scope(|scope| {
        // A bound: threads wait rather than fill the disk with staged units.
        let (sender, receiver) = sync_channel(options.threads.get());
        for _ in 0..options.threads.get() {
            let (sender, packages) = (sender.clone(), &packages);
            scope.spawn(move || {
                loop {
                    let next = packages.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((index, package)) = next else { break };
                    let staged = stage(store, repository, &package, options);
                    if sender.send((index, package, staged)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        publish_groups(store, repository, &receiver, observe);
    });
    Ok(())
}

/// A unit that waits for the rest of its group.
struct Waiting {
    index: usize,
    package: Package,
    unit: StagedUnit,
    converted: Converted,
}

fn publish_groups(
    store: &Store,
    repository: &RepositoryName,
    receiver: &Receiver<(usize, Package, Staged)>,
    observe: &mut dyn FnMut(usize, Result<Imported, ImportError>),
) {
    let mut group = Vec::new();
    let mut bytes = 0;
    for (index, package, staged) in receiver {
        match staged {
            Err(error) => observe(index, Err(error)),
            Ok((unit, converted)) => {
                bytes += converted.manifest.content_bytes();
                group.push(Waiting { index, package, unit, converted });
            }
        }
        if group.len() >= GROUP_UNITS || bytes >= GROUP_BYTES {
            publish_group(store, repository, std::mem::take(&mut group), observe);
            bytes = 0;
        }
    }
    publish_group(store, repository, group, observe);
}

fn publish_group(
    store: &Store,
    repository: &RepositoryName,
    group: Vec<Waiting>,
    observe: &mut dyn FnMut(usize, Result<Imported, ImportError>),
) {
    if group.is_empty() {
        return;
    }
    let packages: Vec<_> =
        group.iter().map(|waiting| (waiting.index, waiting.package.path.clone())).collect();
    let published = store.write_repository(repository).and_then(|mut writer| {
        let results: Vec<_> =
            group.into_iter().map(|waiting| add_unit(&mut writer, waiting)).collect();
        writer.commit()?;
        Ok(results)
    });
    match published {
        Ok(results) => results.into_iter().for_each(|(index, result)| observe(index, result)),
        Err(error) => {
            let reason = error.to_string();
            for (index, package) in packages {
                observe(index, Err(ImportError::Group { package, reason: reason.clone() }));
            }
        }
    }
}

fn add_unit(
    writer: &mut RepositoryWriter<'_>,
    waiting: Waiting,
) -> (usize, Result<Imported, ImportError>) {
    let Waiting { index, package, unit, converted } = waiting;
    let Converted { mut metadata, manifest } = converted;
    let (layer, version) = (metadata.layer.clone(), metadata.version.clone());
    if let Some(known) = writer.database().get(&layer, &version) {
        keep_provenance(&mut metadata, &known.metadata);
    }
    let result = match writer.add(unit, metadata, &manifest) {
        Ok(published) => Ok(Imported::of(published, layer, version, &manifest)),
        Err(source) => Err(ImportError::Store { package: package.path, source }),
    };
    (index, result)
}

/// The same package may come from a file and from an archive, or from one
/// archive today and from another tomorrow. It is the same unit, and says what it
/// said first.
fn keep_provenance(metadata: &mut Metadata, known: &Metadata) {
    metadata.origin.clone_from(&known.origin);
    metadata.archive.clone_from(&known.archive);
    metadata.system = known.system;
    metadata.diverts.clone_from(&known.diverts);
}

fn stage(
    store: &Store,
    repository: &RepositoryName,
    package: &Package,
    options: &ImportOptions,
) -> Staged {
    let path = &package.path;
    let open = |source| ImportError::Open { package: path.clone(), source };
    let file = File::open(path).map_err(open)?;
    if !file.metadata().map_err(open)?.is_file() {
        return Err(open(std::io::Error::other("it is no regular file")));
    }
    let failed = |source| ImportError::Store { package: path.clone(), source };
    let mut unit = store.stage_unit(repository).map_err(failed)?;
    let filesystem = open_directory(&unit.filesystem()).map_err(open)?;
    let mut converted = convert(file, filesystem, &unit.scripts(), options).map_err(|source| {
        ImportError::Convert { package: path.clone(), source: Box::new(source) }
    })?;
    let metadata = &mut converted.metadata;
    if let Some((layer, version)) = &package.expected
        && (layer, version) != (&metadata.layer, &metadata.version)
    {
        let expected = format!("{layer} {version}");
        let found = format!("{} {}", metadata.layer, metadata.version);
        return Err(ImportError::Other { package: path.clone(), expected, found });
    }
    let Provenance { origin, archive } = &package.provenance;
    metadata.origin = metadata.origin.take().or_else(|| origin.clone());
    metadata.archive.clone_from(archive);
    store.share_staged(&mut unit, &converted.manifest);
    Ok((unit, converted))
}

/// Converts a package, of which its first bytes tell the kind.
fn convert(
    file: File,
    filesystem: OwnedFd,
    scripts: &Path,
    options: &ImportOptions,
) -> Result<Converted, ConvertError> {
    let mut magic = [0; 4];
    let rpm = file.read_exact_at(&mut magic, 0).is_ok() && magic == LEAD_MAGIC;
    let limits = options.limits;
    Ok(match rpm {
        true => rpm::convert(file, filesystem, scripts, limits, &options.owners)?,
        false => deb::convert(file, filesystem, scripts, limits)?,
    })
}

pub(crate) fn open_directory(path: &Path) -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}
