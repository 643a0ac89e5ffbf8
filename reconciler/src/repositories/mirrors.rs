//! What a pass of the reconciler mirrors before it looks at a commit: the databases of remote
//! repositories, from time to time, and the layers that the commit names.
//!
//! A repository that cannot be reached is tried again after a pause of its own, which grows;
//! the others go on. A commit that needs nothing new from it is not held up: that is a
//! warning. One that does is refused for the time being.

pub mod progress;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use strata_core::configuration::{CONFIGURATION_FILE, Configuration, RepositoryConfiguration};
use strata_core::desired::DesiredState;
use strata_core::remote::Remote;
use strata_core::{Diagnostic, LayerName, LayerVersion, RepositoryName};
use strata_store::{Store, StoreError};

use super::now;
use super::remote::storage::Storage;
use super::remote::sync::{SyncError, sync};
use super::remote::units::{self, FetchError, Mirrored};
use super::remote::{Options, run};
use crate::state::milliseconds;
use progress::{MirroringState, Progress};

/// How old a repository's state may be.
const SYNC_INTERVAL: Duration = Duration::from_secs(5 * 60);
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);
/// How long a pass may fetch from one repository.
const DEADLINE: Duration = Duration::from_secs(10 * 60);
const CANCEL_POLL: Duration = Duration::from_millis(100);
/// What takes longer is told, this often.
const TELL: Duration = Duration::from_secs(2);

/// Units by repository.
pub type Wanted = BTreeMap<RepositoryName, BTreeSet<(LayerName, LayerVersion)>>;

#[derive(Debug, thiserror::Error)]
enum MirrorError {
    #[error(transparent)]
    Sync(#[from] SyncError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("{layer} {version}: {error}{}", and_more(.more))]
    Unit { layer: LayerName, version: LayerVersion, error: FetchError, more: usize },
    #[error("ended before it was done")]
    Cancelled,
    #[error("a fetch cannot be begun: {0}")]
    Start(std::io::Error),
}

fn and_more(count: &usize) -> String {
    match count {
        0 => String::new(),
        count => format!(", and {count} more"),
    }
}

#[derive(Debug)]
struct Attempts {
    remote: Remote,
    failures: u32,
    next: Instant,
    error: Option<(String, Option<String>)>,
}

/// When which repository is looked at.
#[derive(Debug, Default)]
pub struct Mirrors {
    attempts: BTreeMap<RepositoryName, Attempts>,
    progress: Progress,
}

/// What all LDFs name, by repository.
pub fn wanted(desired: &DesiredState) -> Wanted {
    let mut wanted = Wanted::new();
    for definition in desired.definitions.values() {
        let lines = definition.ldf.explicit().chain(definition.ldf.implicit());
        for (_, line) in lines {
            if let Some(version) = &line.version {
                let units = wanted.entry(line.repository.clone()).or_default();
                units.insert((line.layer.clone(), version.clone()));
            }
        }
    }
    wanted
}

impl Mirrors {
    /// Whether a repository is to be looked at although nothing else has changed.
    pub fn is_due(&self, configuration: &Configuration) -> bool {
        configuration.repositories.iter().any(|repository| {
            let Some(remote) = &repository.remote else { return false };
            let attempts = self.attempts.get(&repository.name);
            attempts.is_none_or(|a| a.remote != *remote || a.next <= Instant::now())
        })
    }

    /// Brings what is due and what is wanted. The faults are errors where something that is
    /// wanted is missing, else warnings.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn bring(
        &mut self,
        store: &Store,
        configuration: &Configuration,
        wanted: &Wanted,
        cancelled: &AtomicBool,
    ) -> Result<Vec<Diagnostic>, StoreError> {
        let mut faults = Vec::new();
        for repository in &configuration.repositories {
            let Some(remote) = &repository.remote else { continue };
            let none = BTreeSet::new();
            let units = wanted.get(&repository.name).unwrap_or(&none);
            self.bring_one(store, repository, remote, units, cancelled)?;
            let attempts = self.attempts.get(&repository.name);
            let Some((message, hint)) = attempts.and_then(|attempts| attempts.error.clone()) else {
                continue;
            };
            let name = &repository.name;
            let message = format!("the repository {name} could not be mirrored: {message}");
            let mut fault =
                Diagnostic::error(CONFIGURATION_FILE, repository.line, "mirror", message);
            fault.hint = hint;
            let is_complete = store.database_stamp(name)?.is_some()
                && missing(store, name, units).next().is_none();
            faults.push(if is_complete { fault.warning() } else { fault });
        }
        let is_remote = |repository: &&RepositoryConfiguration| repository.remote.is_some();
        let remote = || configuration.repositories.iter().filter(is_remote);
        self.progress.retain(|name| remote().any(|repository| repository.name == *name));
        self.progress.write(store);
        Ok(faults)
    }

    fn bring_one(
        &mut self,
        store: &Store,
        repository: &RepositoryConfiguration,
        remote: &Remote,
        units: &BTreeSet<(LayerName, LayerVersion)>,
        cancelled: &AtomicBool,
    ) -> Result<(), StoreError> {
        let name = &repository.name;
        let fresh =
            || Attempts { remote: remote.clone(), failures: 0, next: Instant::now(), error: None };
        let attempts = self.attempts.entry(name.clone()).or_insert_with(fresh);
        if attempts.remote != *remote {
            *attempts = fresh();
        }
        let is_due = attempts.next <= Instant::now();
        if attempts.failures > 0 && !is_due {
            return Ok(());
        }
        let missing: BTreeSet<_> = missing(store, name, units).cloned().collect();
        let is_unknown = !missing.is_empty() && {
            let database = match store.database(name) {
                Err(StoreError::NoRepository(_)) => Default::default(),
                database => database?,
            };
            missing.iter().any(|(layer, version)| database.get(layer, version).is_none())
        };
        let is_due = is_due || is_unknown;
        if !is_due && missing.is_empty() {
            return Ok(());
        }
        let progress = &mut self.progress;
        let mirrored = mirror(store, repository, remote, &missing, is_due, cancelled, progress);
        match mirrored {
            Ok(brought) => {
                progress.clear(name);
                if brought > 0 {
                    tracing::info!(repository = %name, units = brought, "layers mirrored");
                }
                attempts.failures = 0;
                attempts.error = None;
                if is_due {
                    attempts.next = Instant::now() + SYNC_INTERVAL;
                }
            }
            Err(error) => {
                let pause = FIRST_PAUSE * 2_u32.saturating_pow(attempts.failures.min(16));
                let pause = pause.min(LONGEST_PAUSE);
                attempts.failures += 1;
                attempts.next = Instant::now() + pause;
                tracing::warn!(repository = %name, %error, retry_s = pause.as_secs(), "not mirrored");
                let (failures, message) = (attempts.failures, error.to_string());
                let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                let retry_at_ms = milliseconds(SystemTime::now()).saturating_add(pause_ms);
                progress.set(name, MirroringState::Failing { failures, message, retry_at_ms });
                let hint = match &error {
                    MirrorError::Sync(error) => error.hint(name),
                    _ => None,
                };
                attempts.error = Some((error.to_string(), hint));
            }
        }
        Ok(())
    }
}

fn missing<'u>(
    store: &'u Store,
    repository: &'u RepositoryName,
    units: &'u BTreeSet<(LayerName, LayerVersion)>,
) -> impl Iterator<Item = &'u (LayerName, LayerVersion)> {
    units.iter().filter(|(layer, version)| !store.unit_path(repository, layer, version).is_dir())
}

/// Brings a repository's state, where it is due, and units of it. What the database does not
/// know is for the check of the commit to name. Returns how many units came. What takes long
/// is told.
fn mirror(
    store: &Store,
    repository: &RepositoryConfiguration,
    remote: &Remote,
    wanted: &BTreeSet<(LayerName, LayerVersion)>,
    is_due: bool,
    cancelled: &AtomicBool,
    progress: &mut Progress,
) -> Result<usize, MirrorError> {
    let (came, bytes) = (Arc::new(AtomicU64::new(0)), Cell::new(None));
    let count = came.clone();
    let options = Options {
        deadline: DEADLINE,
        observer: Arc::new(move |bytes| {
            count.fetch_add(bytes, Ordering::Relaxed);
        }),
        ..Options::default()
    };
    let name = &repository.name;
    let fetch = async {
        let storage = Storage::open(remote, options.pace.clone(), options.observer.clone())
            .map_err(SyncError::from)?;
        if is_due {
            let synced = tokio::time::timeout(DEADLINE, sync(store, repository, &storage, now()));
            let deadline = |_| SyncError::Deadline(DEADLINE.as_secs());
            synced.await.map_err(deadline)??;
        }
        if wanted.is_empty() {
            return Ok(0);
        }
        let database = store.database(name).map_err(SyncError::from)?;
        let known =
            |(layer, version): &(LayerName, LayerVersion)| database.get(layer, version).cloned();
        let units: Vec<_> = wanted.iter().filter_map(known).collect();
        let sizes = units.iter().map(|unit| unit.content_bytes);
        bytes.set(Some(sizes.fold(0, u64::saturating_add)));
        let Mirrored { units, failed } =
            units::fetch(store, name, units, &storage, &options).await?;
        let more = failed.len().saturating_sub(1);
        match failed.into_iter().next() {
            None => Ok(units.len()),
            Some(units::Failed { layer, version, error }) => {
                Err(MirrorError::Unit { layer, version, error, more })
            }
        }
    };
    let until_cancelled = async {
        let mut told = Instant::now();
        while !cancelled.load(Ordering::Relaxed) {
            tokio::time::sleep(CANCEL_POLL).await;
            if told.elapsed() < TELL {
                continue;
            }
            let (units, gone) = (wanted.len(), missing(store, name, wanted).count());
            progress.set(
                name,
                MirroringState::Fetching {
                    units: units as u64,
                    units_there: units.saturating_sub(gone) as u64,
                    bytes: bytes.get(),
                    bytes_came: came.load(Ordering::Relaxed),
                    as_of_ms: milliseconds(SystemTime::now()),
                },
            );
            progress.write(store);
            told = Instant::now();
        }
    };
    let done = run(async {
        tokio::select! {
            fetched = fetch => fetched,
            () = until_cancelled => Err(MirrorError::Cancelled),
        }
    });
    done.map_err(MirrorError::Start)?
}

#[cfg(test)]
mod tests;
