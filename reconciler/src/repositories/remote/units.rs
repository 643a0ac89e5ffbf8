//! Layers of a remote repository: fetched in parallel, resumed where they were cut off,
//! checked against the database's digest, and only then in the store.
//!
//! An archive on its way waits in `.fetch/` of the repository, which readers pass over. One
//! task publishes what others have unpacked, several units with one sync.

use std::fs;
use std::io::{self, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use strata_core::database::Unit;
use strata_core::names::unit_directory;
use strata_core::{LayerName, LayerVersion, RepositoryName, limits};
use strata_import::archive::{self, ArchiveError, Unpacked};
use strata_store::{StagedUnit, Store, StoreError};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::Options;
use super::storage::{Storage, StorageError};
use crate::transfer::PartialFile;

/// Units that are published together, at most.
const GROUP: usize = 64;
/// After so long, what is left of an archive is not taken up again.
const PART_AGE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("{what}: {error}")]
    Archive { what: String, error: Box<ArchiveError> },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path}: {source}")]
    Disk { path: PathBuf, source: std::io::Error },
    #[error("not there after {} s", .0.as_secs())]
    Deadline(Duration),
    #[error("they have {bytes} bytes, the limit is {limit}")]
    TooMuch { bytes: u64, limit: u64 },
    #[error("it could not be published: {0}")]
    Publish(String),
    #[error("a task ended before its time")]
    Stopped,
}

/// A layer that could not be brought.
#[derive(Debug)]
pub struct Failed {
    pub layer: LayerName,
    pub version: LayerVersion,
    pub error: FetchError,
}

/// What a call brought.
#[derive(Debug, Default)]
pub struct Mirrored {
    pub units: Vec<(LayerName, LayerVersion)>,
    pub failed: Vec<Failed>,
}

/// Whether a unit is in the store.
pub fn is_there(store: &Store, repository: &RepositoryName, unit: &Unit) -> bool {
    store.unit_path(repository, &unit.metadata.layer, &unit.metadata.version).is_dir()
}

/// Brings units into the store, those that are not there. What fails does not keep the others.
///
/// # Errors
/// Nothing was begun: they are too large, or the repository cannot be written.
pub async fn fetch(
    store: &Store,
    repository: &RepositoryName,
    units: Vec<Unit>,
    storage: &Storage,
    options: &Options,
) -> Result<Mirrored, FetchError> {
    let missing: Vec<_> =
        units.into_iter().filter(|unit| !is_there(store, repository, unit)).collect();
    let bytes = missing.iter().fold(0_u64, |sum, unit| sum.saturating_add(unit.content_bytes));
    if let Some(limit) = options.most_bytes.filter(|limit| bytes > *limit) {
        return Err(FetchError::TooMuch { bytes, limit });
    }
    let directory = store.fetch_directory(repository)?;
    forget_old(&directory)?;
    let store = Arc::new(Store::open(store.root())?);
    let slots = Arc::new(Semaphore::new(options.connections.max(1)));
    let deadline = tokio::time::Instant::now() + options.deadline;
    let (send, receive) = mpsc::channel(GROUP);
    let mut tasks = JoinSet::new();
    for unit in missing {
        let to = directory.join(format!(
            "{}{}",
            unit_directory(&unit.metadata.layer, &unit.metadata.version),
            archive::SUFFIX
        ));
        let (store, storage, slots) = (store.clone(), storage.clone(), slots.clone());
        let (repository, send, within) = (repository.clone(), send.clone(), options.deadline);
        tasks.spawn(async move {
            let _slot = slots.acquire().await;
            let fetched = tokio::time::timeout_at(
                deadline,
                fetch_one(&store, &repository, &unit, &storage, &to),
            );
            let fetched = fetched.await.unwrap_or(Err(FetchError::Deadline(within)));
            // The receiver is there as long as any task is.
            let _sent = send.send((unit, fetched)).await;
        });
    }
    drop(send);
    let mirrored = publish(store, repository, receive).await;
    while tasks.join_next().await.is_some() {}
    Ok(mirrored)
}

type Arrival = (Unit, Result<(StagedUnit, Unpacked), FetchError>);

/// Publishes what arrives, until nothing more does.
async fn publish(
    store: Arc<Store>,
    repository: &RepositoryName,
    mut arrivals: mpsc::Receiver<Arrival>,
) -> Mirrored {
    let mut mirrored = Mirrored::default();
    let mut group = Vec::new();
    while arrivals.recv_many(&mut group, GROUP).await > 0 {
        let mut ready = Vec::new();
        for (unit, fetched) in group.drain(..) {
            let (layer, version) = (unit.metadata.layer, unit.metadata.version);
            match fetched {
                Ok(unpacked) => ready.push((layer, version, unpacked)),
                Err(error) => mirrored.failed.push(Failed { layer, version, error }),
            }
        }
        if ready.is_empty() {
            continue;
        }
        let (store, repository) = (store.clone(), repository.clone());
        let published =
            tokio::task::spawn_blocking(move || publish_group(&store, &repository, ready));
        match published.await {
            Ok((units, failed)) => {
                mirrored.units.extend(units);
                mirrored.failed.extend(failed);
            }
            Err(error) => tracing::error!(%error, "layers were not published"),
        }
    }
    mirrored
}

type Ready = (LayerName, LayerVersion, (StagedUnit, Unpacked));

fn publish_group(
    store: &Store,
    repository: &RepositoryName,
    ready: Vec<Ready>,
) -> (Vec<(LayerName, LayerVersion)>, Vec<Failed>) {
    let names: Vec<_> = ready.iter().map(|(l, v, _)| (l.clone(), v.clone())).collect();
    let publish = || -> Result<Vec<Failed>, StoreError> {
        let mut failed = Vec::new();
        let mut writer = store.write_mirror(repository)?;
        for (layer, version, (staged, unpacked)) in ready {
            let Unpacked { metadata, manifest } = unpacked;
            if let Err(error) = writer.add(staged, metadata, &manifest) {
                failed.push(Failed { layer, version, error: error.into() });
            }
        }
        writer.flush()?;
        Ok(failed)
    };
    match publish() {
        Ok(failed) => {
            let is_failed = |(layer, version): &(LayerName, LayerVersion)| {
                failed.iter().any(|f| f.layer == *layer && f.version == *version)
            };
            (names.into_iter().filter(|unit| !is_failed(unit)).collect(), failed)
        }
        Err(error) => {
            let reason = error.to_string();
            let failed = names.into_iter().map(|(layer, version)| Failed {
                layer,
                version,
                error: FetchError::Publish(reason.clone()),
            });
            (Vec::new(), failed.collect())
        }
    }
}

/// Fetches and unpacks one unit. An archive that is not whole is resumed once, one that was
/// resumed and is wrong is fetched anew once: it may be another one by now.
async fn fetch_one(
    store: &Arc<Store>,
    repository: &RepositoryName,
    unit: &Unit,
    storage: &Storage,
    to: &Path,
) -> Result<(StagedUnit, Unpacked), FetchError> {
    let disk = |source: io::Error| FetchError::Disk { path: to.to_owned(), source };
    let name = to.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut part = PartialFile::open(to).map_err(disk)?;
    let limit = archive_limit(unit);
    let (mut was_resumed, mut was_cut) = (false, false);
    loop {
        let from = part.length();
        storage.fetch(&name, &mut part, limit).await?;
        // By its handle: another process may have finished it and taken its name away.
        let mut file = part.handle().map_err(disk)?;
        file.seek(SeekFrom::Start(0)).map_err(disk)?;
        let (place, name_of, digest) = (store.clone(), repository.clone(), unit.digest);
        let content_bytes = unit.content_bytes;
        let unpacked = tokio::task::spawn_blocking(move || {
            let mut staged = place.stage_unit(&name_of)?;
            let unpacked = archive::unpack(file, digest, content_bytes, &staged);
            if let Ok(unpacked) = &unpacked {
                place.share_staged(&mut staged, &unpacked.manifest);
            }
            Ok::<_, FetchError>(unpacked.map(|unpacked| (staged, unpacked)))
        });
        let error = match unpacked.await.map_err(|_| FetchError::Stopped)?? {
            Ok(arrived) => match fs::remove_file(part.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(disk(error));
                }
                _ => return Ok(arrived),
            },
            Err(error) => error,
        };
        let what = storage.what(&name);
        if from > 0 && !was_cut {
            tracing::debug!(%what, %error, "an archive is fetched anew");
            part.cut().map_err(disk)?;
            was_cut = true;
        } else if from == 0 && !was_resumed {
            tracing::debug!(%what, %error, "the rest of an archive is asked for");
            was_resumed = true;
            was_cut = true;
        } else {
            part.cut().map_err(disk)?;
            return Err(FetchError::Archive { what, error: Box::new(error) });
        }
    }
}

/// What an archive may have at most: its content as it is, and what describes it.
fn archive_limit(unit: &Unit) -> u64 {
    let described = limits::MANIFEST_BYTES as u64 + limits::CONTROL_BYTES + (1 << 20);
    unit.content_bytes.saturating_add(unit.content_bytes / 64).saturating_add(described)
}

/// Removes archives that nobody took up for long.
fn forget_old(directory: &Path) -> Result<(), FetchError> {
    let at = |source| FetchError::Disk { path: directory.to_owned(), source };
    for entry in fs::read_dir(directory).map_err(at)? {
        let entry = entry.map_err(at)?;
        let changed = entry.metadata().and_then(|metadata| metadata.modified()).map_err(at)?;
        if SystemTime::now().duration_since(changed).is_ok_and(|age| age > PART_AGE) {
            fs::remove_file(entry.path()).map_err(at)?;
        }
    }
    Ok(())
}
