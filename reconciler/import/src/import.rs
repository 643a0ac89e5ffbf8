//! Many packages into one repository: converted in parallel, published one by
//! one, the database written once.

use std::fs::File;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use rustix::fs::{Mode, OFlags};
use strata_core::digest::Digest;
use strata_core::manifest::Manifest;
use strata_core::names::{LayerName, RepositoryName};
use strata_core::version::LayerVersion;
use strata_store::{RepositoryWriter, StagedUnit, Store, StoreError};

use crate::deb::{self, Converted, DebError};
use crate::writer::TreeLimits;

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("{package}: {source}")]
    Open { package: PathBuf, source: std::io::Error },
    #[error("{package}: {source}")]
    Convert { package: PathBuf, source: Box<DebError> },
    #[error("{package}: {source}")]
    Store { package: PathBuf, source: StoreError },
    #[error("{package}: the thread that converted it ended without a result")]
    Lost { package: PathBuf },
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
}

impl Imported {
    pub(crate) fn of(
        published: strata_store::Published,
        layer: LayerName,
        version: LayerVersion,
        manifest: &Manifest,
    ) -> Self {
        let strata_store::Published { digest, new } = published;
        let entries = manifest.entries().len();
        Imported { layer, version, digest, new, entries, content_bytes: manifest.content_bytes() }
    }
}

/// How to import. `threads` convert at once; the caller's thread publishes.
#[derive(Debug, Clone, Copy)]
pub struct ImportOptions {
    pub threads: NonZeroUsize,
    pub limits: TreeLimits,
}

impl Default for ImportOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        ImportOptions { threads, limits: TreeLimits::default() }
    }
}

type Staged = Result<(StagedUnit, Converted), ImportError>;

/// Imports packages into `repository`, which is made where it does not exist.
/// A package that fails leaves nothing and does not stop the others. `observe`
/// is called for each, as it is done, with its index in `packages`.
///
/// # Errors
/// The repository cannot be written; what was published before is kept, and is
/// found by the next import or `strata repo index`.
pub fn import_packages(
    store: &Store,
    repository: &RepositoryName,
    packages: &[PathBuf],
    options: ImportOptions,
    observe: &mut dyn FnMut(usize, Result<Imported, ImportError>),
) -> Result<(), StoreError> {
    let mut writer = store.write_repository(repository)?;
    let next = AtomicUsize::new(0);
    let threads = options.threads.get().min(packages.len());
    std::thread::scope(|scope| {
        // A bound: threads wait rather than fill the disk with staged units.
        let (sender, receiver) = sync_channel(threads.max(1));
        for _ in 0..threads {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(package) = packages.get(index) else { break };
                    let staged = stage(store, repository, package, options.limits);
                    if sender.send((index, staged)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        publish_all(&mut writer, packages, &receiver, observe);
    });
    writer.commit()?;
    Ok(())
}

fn publish_all(
    writer: &mut RepositoryWriter<'_>,
    packages: &[PathBuf],
    receiver: &Receiver<(usize, Staged)>,
    observe: &mut dyn FnMut(usize, Result<Imported, ImportError>),
) {
    let mut done = vec![false; packages.len()];
    for (index, staged) in receiver {
        done[index] = true;
        let package = &packages[index];
        let imported = staged.and_then(|(unit, converted)| {
            let Converted { metadata, manifest } = converted;
            let (layer, version) = (metadata.layer.clone(), metadata.version.clone());
            match writer.publish(unit, metadata, &manifest) {
                Ok(published) => Ok(Imported::of(published, layer, version, &manifest)),
                Err(source) => Err(ImportError::Store { package: package.clone(), source }),
            }
        });
        observe(index, imported);
    }
    for (index, package) in packages.iter().enumerate() {
        if !done[index] {
            observe(index, Err(ImportError::Lost { package: package.clone() }));
        }
    }
}

fn stage(store: &Store, repository: &RepositoryName, package: &Path, limits: TreeLimits) -> Staged {
    let open = |source| ImportError::Open { package: package.to_owned(), source };
    let file = File::open(package).map_err(open)?;
    if !file.metadata().map_err(open)?.is_file() {
        return Err(open(std::io::Error::other("it is no regular file")));
    }
    let failed = |source| ImportError::Store { package: package.to_owned(), source };
    let unit = store.stage_unit(repository).map_err(failed)?;
    let filesystem = open_directory(&unit.filesystem()).map_err(open)?;
    let converted = deb::convert(file, filesystem, &unit.scripts(), limits).map_err(|source| {
        ImportError::Convert { package: package.to_owned(), source: Box::new(source) }
    })?;
    Ok((unit, converted))
}

pub(crate) fn open_directory(path: &Path) -> std::io::Result<std::os::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}
