//! What a remote repository holds: its documents and its database.
//!
//! Everything is fetched and checked before anything is written; the documents then go into
//! the store in an order in which each state between is one that readers accept. Stopped at
//! any moment, the mirror is as it was or as it should be. The high-water mark is raised last.

use strata_core::configuration::RepositoryConfiguration;
use strata_core::database::{Database, Unit};
use strata_core::remote::Location;
use strata_core::signed::Role;
use strata_core::{LayerName, LayerVersion, RepositoryName, limits};
use strata_store::{SignedFile, Store, StoreError, signed_database_name};

use super::storage::{Storage, StorageError};
use super::units::is_there;
use crate::repositories::high_water::{self, HighWaterError};
use crate::repositories::signed::{Accepted, Chain, TrustError};

#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("{location} is refused: {error}")]
    Trust { location: Location, error: TrustError },
    #[error("{0}: there is no database, so it is no repository")]
    NoDatabase(String),
    #[error(
        "{location} is refused: {layer} {version} is another unit than the one that is here{}, and a unit never changes",
        and_more(.more)
    )]
    Changed { location: Location, layer: LayerName, version: LayerVersion, more: usize },
    #[error(transparent)]
    HighWater(#[from] HighWaterError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("it is not there after {0} s")]
    Deadline(u64),
    #[error("a fetch cannot be begun: {0}")]
    Start(std::io::Error),
}

impl SyncError {
    /// What an operator can do.
    pub fn hint(&self, repository: &RepositoryName) -> Option<String> {
        match self {
            SyncError::Trust { error, .. } => Some(error.hint(repository)),
            SyncError::Storage(StorageError::Credentials(_)) => {
                Some("put USER:PASSWORD there, readable for Strata alone".to_owned())
            }
            SyncError::Storage(StorageError::Untrusted { .. }) => Some(
                "where it is of an authority of your own: `ca-file = \"/PATH.pem\"` in strata.toml"
                    .to_owned(),
            ),
            SyncError::Storage(StorageError::Certificates { .. }) => {
                Some("put the authority's certificates there, in PEM".to_owned())
            }
            SyncError::Storage(StorageError::Denied { .. }) => Some(
                "say with `credentials` in strata.toml where a name and password are".to_owned(),
            ),
            SyncError::Changed { layer, version, .. } => Some(format!(
                "its owner gives another content another version; or see who uses it here (strata layer users {repository}/{layer} {version}): once nobody does, `strata store gc --apply` takes it and the other one can come"
            )),
            SyncError::NoDatabase(_) => {
                Some("`url` must lead to the directory that holds `database`".to_owned())
            }
            _ => None,
        }
    }
}

fn and_more(count: &usize) -> String {
    match count {
        0 => String::new(),
        count => format!(" (and {count} more)"),
    }
}

/// What a sync found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Synced {
    pub units: usize,
    /// The store knew another state before.
    pub changed: bool,
    /// Present where the repository is signed.
    pub accepted: Option<Accepted>,
}

/// Brings what a repository holds into the store. `now` is in seconds since 1970.
///
/// # Errors
/// [`SyncError`]; the store is as before.
pub async fn sync(
    store: &Store,
    repository: &RepositoryConfiguration,
    storage: &Storage,
    now: i64,
) -> Result<Synced, SyncError> {
    let name = &repository.name;
    match &repository.trust {
        Some(pinned) => signed(store, name, pinned, storage, now).await,
        None => unsigned(store, name, storage).await,
    }
}

async fn unsigned(
    store: &Store,
    name: &RepositoryName,
    storage: &Storage,
) -> Result<Synced, SyncError> {
    let bytes = storage.read("database", limits::DATABASE_BYTES as u64).await?;
    let bytes = bytes.ok_or_else(|| SyncError::NoDatabase(storage.what("")))?;
    let changed = store.database_file(name)?.as_deref() != Some(bytes.as_slice());
    let units = match changed {
        true => check_units(store, name, storage, &bytes)?,
        false => store.parse_database(name, bytes.clone())?.len(),
    };
    let writer = store.write_mirror(name)?;
    if changed {
        writer.replace_database(&bytes)?;
    }
    Ok(Synced { units, changed, accepted: None })
}

async fn signed(
    store: &Store,
    name: &RepositoryName,
    pinned: &Role,
    storage: &Storage,
    now: i64,
) -> Result<Synced, SyncError> {
    let refused = |error| SyncError::Trust { location: storage.location().clone(), error };
    let seen = high_water::read(store, name)?;
    let mut chain = Chain::new(name, pinned, seen.as_ref());
    while let Some(root) = store.signed_file(name, SignedFile::Root(chain.wants()))? {
        chain.offer(&root).map_err(refused)?;
    }
    let limit = limits::SIGNED_BYTES as u64;
    let mut roots = Vec::new();
    loop {
        let file = SignedFile::Root(chain.wants());
        let Some(root) = storage.read(&file.name(), limit).await? else { break };
        chain.offer(&root).map_err(refused)?;
        roots.push((file, root));
    }
    let snapshot = storage.read(&SignedFile::Snapshot.name(), limit).await?;
    let accepted = chain.finish(snapshot.as_deref(), now).map_err(refused)?;
    let present = store.database_file(name)?;
    let is_new = present.as_ref().is_none_or(|bytes| accepted.check_database(bytes).is_err());
    let database = match present {
        Some(bytes) if !is_new => bytes,
        _ => fetch_database(storage, &accepted, refused).await?,
    };
    let units = match is_new {
        true => check_units(store, name, storage, &database)?,
        false => store.parse_database(name, database.clone())?.len(),
    };
    let before = store.signed_file(name, SignedFile::Snapshot)?;
    let changed = is_new || before != snapshot || !roots.is_empty();
    if changed {
        let writer = store.write_mirror(name)?;
        for (file, root) in &roots {
            writer.write_signed(*file, root)?;
        }
        // The database by its digest, the snapshot that names it, the database by its name:
        // whoever reads between two of them finds a snapshot with its database.
        writer.keep_database(&accepted.snapshot.database, &database)?;
        writer.write_signed(SignedFile::Snapshot, &snapshot.unwrap_or_default())?;
        writer.keep_only_databases(&[accepted.snapshot.database])?;
        writer.replace_database(&database)?;
    }
    high_water::raise(store, name, seen, accepted.high_water)?;
    Ok(Synced { units, changed, accepted: Some(accepted) })
}

/// Refuses a database that lists another unit under the name and version of one that is here:
/// generations and VAs name that one. Returns how many units it lists.
fn check_units(
    store: &Store,
    name: &RepositoryName,
    storage: &Storage,
    bytes: &[u8],
) -> Result<usize, SyncError> {
    let new = store.parse_whole_database(name, bytes.to_vec())?;
    let former = match store.database(name) {
        Err(StoreError::NoRepository(_)) => Database::default(),
        database => database?,
    };
    let is_other = |unit: &&Unit| {
        let known = new.get(&unit.metadata.layer, &unit.metadata.version);
        known.is_some_and(|known| known.digest != unit.digest) && is_there(store, name, unit)
    };
    let mut others = former.units().filter(is_other);
    match others.next() {
        None => Ok(new.len()),
        Some(Unit { metadata, .. }) => Err(SyncError::Changed {
            location: storage.location().clone(),
            layer: metadata.layer.clone(),
            version: metadata.version.clone(),
            more: others.count(),
        }),
    }
}

/// The database that the snapshot names: by its digest, or by the name that an owner gives it
/// who publishes by other means.
async fn fetch_database(
    storage: &Storage,
    accepted: &Accepted,
    refused: impl Fn(TrustError) -> SyncError,
) -> Result<Vec<u8>, SyncError> {
    let (digest, limit) = (accepted.snapshot.database, accepted.snapshot.database_bytes);
    let limit = limit.min(limits::DATABASE_BYTES as u64);
    let bytes = match storage.read(&signed_database_name(&digest), limit).await? {
        Some(bytes) => bytes,
        None => match storage.read("database", limit).await? {
            Some(bytes) => bytes,
            None => return Err(refused(TrustError::NoDatabase(digest))),
        },
    };
    accepted.check_database(&bytes).map_err(refused)?;
    Ok(bytes)
}
