//! A signed repository of the store: its documents read from its directory, checked, and
//! compared with what was seen before.

use strata_core::RepositoryName;
use strata_core::database_text::DatabaseText;
use strata_core::signed::Role;
use strata_store::{SignedFile, Store, StoreError};

use super::high_water::{self, HighWaterError};
use super::signed::{Accepted, Chain, TrustError};

/// Why a repository is not used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    HighWater(#[from] HighWaterError),
}

/// A database whose signatures are good.
#[derive(Debug)]
pub struct SignedDatabase {
    pub database: DatabaseText,
    pub accepted: Accepted,
    /// The repository holds another database by now, which is not signed.
    pub has_changed: bool,
}

/// What the keys' holders say of a repository; remembered as seen. `now` is in seconds
/// since 1970.
///
/// # Errors
/// [`LoadError`]
pub fn accept(
    store: &Store,
    repository: &RepositoryName,
    pinned: &Role,
    now: i64,
) -> Result<Accepted, LoadError> {
    let seen = high_water::read(store, repository)?;
    let mut chain = Chain::new(repository, pinned, seen.as_ref());
    while let Some(root) = store.signed_file(repository, SignedFile::Root(chain.wants()))? {
        chain.offer(&root)?;
    }
    let snapshot = store.signed_file(repository, SignedFile::Snapshot)?;
    let accepted = chain.finish(snapshot.as_deref(), now)?;
    high_water::raise(store, repository, seen, accepted.high_water)?;
    Ok(accepted)
}

/// Reads the database that was signed.
///
/// # Errors
/// [`LoadError`]
pub fn load(
    store: &Store,
    repository: &RepositoryName,
    pinned: &Role,
    now: i64,
) -> Result<SignedDatabase, LoadError> {
    if !store.repositories()?.contains(repository) {
        return Err(StoreError::NoRepository(repository.clone()).into());
    }
    let accepted = accept(store, repository, pinned, now)?;
    let present = store.database_file(repository)?;
    let signed = present.filter(|bytes| accepted.check_database(bytes).is_ok());
    let has_changed = signed.is_none();
    let bytes = match signed {
        Some(bytes) => bytes,
        None => {
            let digest = accepted.snapshot.database;
            let kept = store.signed_database_file(repository, &digest)?;
            let kept = kept.ok_or(TrustError::NoDatabase(digest))?;
            accepted.check_database(&kept)?;
            kept
        }
    };
    let database = store.parse_database(repository, bytes)?;
    Ok(SignedDatabase { database, accepted, has_changed })
}
