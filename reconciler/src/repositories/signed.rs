//! Whether a repository is what the holders of its keys say it is.
//!
//! A [`Chain`] starts at the keys that the configuration pins, follows each change of keys
//! (signed by those of before and those of after), and ends at a snapshot, which names the
//! database. Refused are: signatures that are missing, of other keys or for another use;
//! documents of another repository; an older state than was seen before; a state that has
//! expired; a database that is not the one of the snapshot. Nothing is read from anywhere
//! here, and time is an argument: the files and the network use the same check.

use std::collections::BTreeSet;

use ssh_key::{PublicKey, SshSig};
use strata_core::signed::{
    Envelope, Expiry, PublicKeyText, Role, RoleName, Root, SignedError, Snapshot,
};
use strata_core::{Digest, RepositoryName, limits};

use super::high_water::{HighWater, Mark};

/// What a root's signatures are for (SSHSIG's namespace): no other signature of the same key
/// passes for one.
pub const ROOT_NAMESPACE: &str = "strata-root";
/// As [`ROOT_NAMESPACE`], of a snapshot's.
pub const SNAPSHOT_NAMESPACE: &str = "strata-snapshot";

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("{what}: {error}")]
    Document { what: String, error: SignedError },
    #[error("{what}: the key {key} cannot be used: {reason}")]
    Key { what: String, key: PublicKeyText, reason: ssh_key::Error },
    #[error("{what}: {valid} of {threshold} signatures are by keys of the role `{role}` of {by}")]
    TooFew { what: String, by: String, role: RoleName, valid: u32, threshold: u32 },
    #[error("it is not signed: there is no root-1.toml")]
    Unsigned,
    #[error("none of its {0} roots is signed by the keys that the configuration pins")]
    NoPinnedRoot(u32),
    #[error("it has a root and no snapshot: its database was never signed")]
    NoSnapshot,
    #[error("{what} is of the repository {found}")]
    OtherRepository { what: String, found: RepositoryName },
    #[error("root-{expected}.toml says that it is version {found}")]
    Version { expected: u32, found: u32 },
    #[error("its keys were changed more than {max} times", max = limits::ROOT_CHANGES)]
    Changes,
    #[error(
        "{what} has version {found}, version {seen} was seen before: an older state is offered"
    )]
    Rollback { what: &'static str, seen: u32, found: u32 },
    #[error("{what} version {version} is not the one that was seen before under that version")]
    Equivocation { what: &'static str, version: u32 },
    #[error("{what} expired at {at}: whoever offers it may be holding newer ones back")]
    Expired { what: &'static str, at: Expiry },
    #[error("the database that the snapshot names, {0}, is not there")]
    NoDatabase(Digest),
    #[error(
        "the database is not the one that the snapshot names: {found} ({found_bytes} bytes) instead of {expected} ({expected_bytes} bytes)"
    )]
    OtherDatabase { expected: Digest, found: Digest, expected_bytes: u64, found_bytes: u64 },
}

impl TrustError {
    /// What an operator can do.
    pub fn hint(&self, repository: &RepositoryName) -> String {
        match self {
            TrustError::Unsigned | TrustError::NoSnapshot => format!(
                "make its keys with `strata repo key set {repository}` and sign it with `strata repo sign {repository}`"
            ),
            TrustError::NoPinnedRoot(_) => {
                "compare `keys` in strata.toml with those that the repository's owner publishes"
                    .to_owned()
            }
            TrustError::Expired { .. } => {
                format!("its owner signs it anew: strata repo sign {repository} --key FILE")
            }
            TrustError::Rollback { .. } | TrustError::Equivocation { .. } => format!(
                "if its owner made it anew, remove state/trust/{repository}.json from the store"
            ),
            TrustError::NoDatabase(_) | TrustError::OtherDatabase { .. } => format!(
                "fetch or restore the whole repository, or sign what is there: strata repo sign {repository} --key FILE"
            ),
            TrustError::Document { .. }
            | TrustError::Key { .. }
            | TrustError::TooFew { .. }
            | TrustError::OtherRepository { .. }
            | TrustError::Version { .. }
            | TrustError::Changes => {
                "take nothing from it, and ask its owner what was published".to_owned()
            }
        }
    }
}

/// A root whose signatures were found good, or not yet: see [`Chain::offer`].
#[derive(Debug, Clone)]
struct Trusted {
    root: Root,
    digest: Digest,
}

/// The way from the pinned keys to the snapshot of today.
#[derive(Debug)]
pub struct Chain<'a> {
    repository: &'a RepositoryName,
    pinned: &'a Role,
    seen: Option<&'a HighWater>,
    trusted: Option<Trusted>,
    next: u32,
}

/// What the keys' holders say now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    pub root: Root,
    pub snapshot: Snapshot,
    /// What must be remembered.
    pub high_water: HighWater,
}

impl<'a> Chain<'a> {
    pub fn new(
        repository: &'a RepositoryName,
        pinned: &'a Role,
        seen: Option<&'a HighWater>,
    ) -> Self {
        Chain { repository, pinned, seen, trusted: None, next: 1 }
    }

    /// The version of the root that [`Chain::offer`] wants to see next.
    pub fn wants(&self) -> u32 {
        self.next
    }

    /// Takes the next root. One from before the pinned keys' time is passed over; from
    /// the first on that they signed, each must be signed by the keys of the one before.
    ///
    /// # Errors
    /// It is not what may follow.
    pub fn offer(&mut self, bytes: &[u8]) -> Result<(), TrustError> {
        if self.next > limits::ROOT_CHANGES {
            return Err(TrustError::Changes);
        }
        let what = format!("root-{}.toml", self.next);
        let document = |error| TrustError::Document { what: what.clone(), error };
        let envelope = Envelope::parse(bytes).map_err(document)?;
        let root = Root::parse(&envelope.text).map_err(document)?;
        if root.repository != *self.repository {
            return Err(TrustError::OtherRepository { what, found: root.repository });
        }
        if root.version != self.next {
            return Err(TrustError::Version { expected: self.next, found: root.version });
        }
        let signed = Signed { what: &what, namespace: ROOT_NAMESPACE, envelope: &envelope };
        match &self.trusted {
            Some(Trusted { root: before, .. }) => {
                let by = format!("root-{}.toml", before.version);
                signed.require(&before.root, RoleName::Root, &by)?;
            }
            None if signed.count(self.pinned)? < self.pinned.threshold.max(1) => {
                self.next += 1;
                return Ok(());
            }
            None => {}
        }
        signed.require(&root.root, RoleName::Root, &what)?;
        let digest = Digest::of(envelope.text.as_bytes());
        let seen = self.seen.map(|seen| seen.root);
        if seen.is_some_and(|seen| seen.version == root.version && seen.digest != digest) {
            return Err(TrustError::Equivocation { what: "the root", version: root.version });
        }
        self.trusted = Some(Trusted { root, digest });
        self.next += 1;
        Ok(())
    }

    /// Takes the snapshot, after all roots that there are; `now` in seconds since 1970.
    ///
    /// # Errors
    /// The repository is not to be trusted as it is.
    pub fn finish(self, snapshot: Option<&[u8]>, now: i64) -> Result<Accepted, TrustError> {
        let Chain { repository, seen, trusted, next, .. } = self;
        let Some(Trusted { root, digest: root_digest }) = trusted else {
            return Err(match next {
                1 => TrustError::Unsigned,
                _ => TrustError::NoPinnedRoot(next - 1),
            });
        };
        let high = seen.map_or(0, |seen| seen.root.version);
        if root.version < high {
            let found = root.version;
            return Err(TrustError::Rollback { what: "the root", seen: high, found });
        }
        if root.expires.seconds() <= now {
            return Err(TrustError::Expired { what: "the root", at: root.expires });
        }
        let what = "snapshot.toml".to_owned();
        let document = |error| TrustError::Document { what: "snapshot.toml".to_owned(), error };
        let envelope =
            Envelope::parse(snapshot.ok_or(TrustError::NoSnapshot)?).map_err(document)?;
        let snapshot = Snapshot::parse(&envelope.text).map_err(document)?;
        if snapshot.repository != *repository {
            return Err(TrustError::OtherRepository { what, found: snapshot.repository });
        }
        let signed = Signed { what: &what, namespace: SNAPSHOT_NAMESPACE, envelope: &envelope };
        signed.require(
            &root.database,
            RoleName::Database,
            &format!("root-{}.toml", root.version),
        )?;
        let digest = Digest::of(envelope.text.as_bytes());
        let version = snapshot.version;
        match seen.map(|seen| seen.snapshot) {
            Some(seen) if version < seen.version => {
                let (what, seen) = ("the snapshot", seen.version);
                return Err(TrustError::Rollback { what, seen, found: version });
            }
            Some(seen) if version == seen.version && digest != seen.digest => {
                return Err(TrustError::Equivocation { what: "the snapshot", version });
            }
            _ => {}
        }
        if snapshot.expires.seconds() <= now {
            return Err(TrustError::Expired { what: "the snapshot", at: snapshot.expires });
        }
        let root_mark = Mark { version: root.version, digest: root_digest };
        let high_water = HighWater::new(root_mark, Mark { version, digest });
        Ok(Accepted { root, snapshot, high_water })
    }
}

impl Accepted {
    /// Whether these bytes are the database that was signed.
    ///
    /// # Errors
    /// [`TrustError::OtherDatabase`].
    pub fn check_database(&self, bytes: &[u8]) -> Result<(), TrustError> {
        let (expected, expected_bytes) = (self.snapshot.database, self.snapshot.database_bytes);
        let (found, found_bytes) = (Digest::of(bytes), bytes.len() as u64);
        if (found, found_bytes) == (expected, expected_bytes) {
            return Ok(());
        }
        Err(TrustError::OtherDatabase { expected, found, expected_bytes, found_bytes })
    }

    /// When it must be signed anew, in seconds since 1970.
    pub fn expires(&self) -> i64 {
        self.root.expires.min(self.snapshot.expires).seconds()
    }
}

/// A document and what its signatures must be for.
struct Signed<'a> {
    what: &'a str,
    namespace: &'a str,
    envelope: &'a Envelope,
}

impl Signed<'_> {
    fn require(&self, role: &Role, name: RoleName, by: &str) -> Result<(), TrustError> {
        let valid = self.count(role)?;
        if valid >= role.threshold {
            return Ok(());
        }
        let (what, by, threshold) = (self.what.to_owned(), by.to_owned(), role.threshold);
        Err(TrustError::TooFew { what, by, role: name, valid, threshold })
    }

    /// How many keys of a role signed; each counts once, however often it did.
    fn count(&self, role: &Role) -> Result<u32, TrustError> {
        let keys = role.keys.iter().map(|text| {
            public_key(text).map_err(|reason| {
                let (what, key) = (self.what.to_owned(), text.clone());
                TrustError::Key { what, key, reason }
            })
        });
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        Ok(signers(self.envelope, self.namespace, &keys).len() as u32)
    }
}

/// Which of these keys signed a document, by their place.
pub fn signers(envelope: &Envelope, namespace: &str, keys: &[PublicKey]) -> BTreeSet<usize> {
    let mut signers = BTreeSet::new();
    for signature in &envelope.signatures {
        // One that cannot be read is none; others may be enough.
        let Ok(signature) = SshSig::from_pem(signature) else { continue };
        let signer = keys.iter().position(|key| key.key_data() == signature.public_key());
        let Some(signer) = signer else { continue };
        if keys[signer].verify(namespace, envelope.text.as_bytes(), &signature).is_ok() {
            signers.insert(signer);
        }
    }
    signers
}

/// # Errors
/// The key is of a kind that is not supported, or damaged.
pub fn public_key(text: &PublicKeyText) -> Result<PublicKey, ssh_key::Error> {
    PublicKey::from_openssh(text.as_str())
}

#[cfg(test)]
mod tests;
