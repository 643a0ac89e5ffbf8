//! Signing a repository: its keys (a root), its database (a snapshot).
//!
//! A document that has too few signatures waits beside the one that counts, until the holders
//! of other keys have added theirs; then it takes effect by one rename. Whoever signs holds
//! the repository's lock, so that two at once follow each other. Stopped at any moment, the
//! documents that counted before count still. Private keys are read and never kept, printed
//! or logged.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ssh_key::{Algorithm, EcdsaCurve, HashAlg, LineEnding, PrivateKey, PublicKey};
use strata_core::remote::Credentials;
use strata_core::signed::{
    Envelope, Expiry, PublicKeyError, PublicKeyText, Role, RoleName, Root, SignedError, Snapshot,
};
use strata_core::{Digest, RepositoryName, limits};
use strata_store::{RepositoryWriter, SignedFile, Store, StoreError};

use super::high_water::{self, HighWaterError};
use super::secrets::{self, SecretError};
use super::signed::{ROOT_NAMESPACE, SNAPSHOT_NAMESPACE, public_key, signers};

/// Bytes of a file with a private key.
const KEY_FILE_BYTES: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    HighWater(#[from] HighWaterError),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {reason}")]
    KeyFile { path: PathBuf, reason: ssh_key::Error },
    #[error("{path}: {error}")]
    PublicKey { path: PathBuf, error: PublicKeyError },
    #[error(
        "the key {path} is of the type {kind}; repositories are signed with Ed25519 or ECDSA P-256"
    )]
    KeyKind { path: PathBuf, kind: String },
    #[error("{path} is a public key; what signs is the private one")]
    NotPrivate { path: PathBuf },
    #[error("{path} is no private key: it has more than {KEY_FILE_BYTES} bytes")]
    KeyFileSize { path: PathBuf },
    #[error("others than its owner can read the private key {path} (mode {mode:04o})")]
    KeyFileMode { path: PathBuf, mode: u32 },
    #[error("the private key {path} is encrypted, and no passphrase was named")]
    Encrypted { path: PathBuf },
    #[error("the passphrase {from} does not open the private key {path}")]
    WrongPassphrase { path: PathBuf, from: Credentials },
    #[error("the passphrase {0}")]
    Passphrase(#[from] SecretError),
    #[error("{what}: {error}")]
    Document { what: String, error: SignedError },
    #[error("the key {fingerprint} is not one of those that sign {what}")]
    Stranger { fingerprint: String, what: String },
    #[error("a signature cannot be made: {0}")]
    Sign(ssh_key::Error),
    #[error("the repository {0} has no keys yet")]
    NoRoot(RepositoryName),
    #[error("the repository {0} has no database: there is nothing to sign")]
    NoDatabase(RepositoryName),
    #[error("nothing of the repository {0} waits for signatures")]
    NothingPending(RepositoryName),
    #[error("the database was changed since the snapshot was made that waits for signatures")]
    PendingIsOld,
    #[error("{0} would have a version beyond {max}", max = limits::SIGNED_VERSION)]
    LastVersion(&'static str),
    #[error(transparent)]
    Role(SignedError),
}

impl SigningError {
    /// What an operator can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            SigningError::KeyFileMode { path, .. } => Some(format!("chmod 600 {}", path.display())),
            SigningError::Encrypted { .. } => Some(
                "say where it is: --passphrase env:NAME, or file:/PATH as systemd's credentials are"
                    .to_owned(),
            ),
            SigningError::WrongPassphrase { path, .. } => {
                Some(format!("try it by hand: ssh-keygen -y -f {}", path.display()))
            }
            SigningError::NoRoot(name) => Some(format!(
                "make them: strata repo key set {name} --root-key FILE.pub --database-key FILE.pub --key FILE"
            )),
            SigningError::Stranger { .. } => {
                Some("`strata repo key list` prints whose keys count".to_owned())
            }
            SigningError::PendingIsOld | SigningError::NothingPending(_) => {
                Some("begin with `strata repo sign` or `strata repo key set`".to_owned())
            }
            SigningError::NotPrivate { path } => {
                let private = path.with_extension("");
                Some(format!("name the private key, as in --key {}", private.display()))
            }
            SigningError::PublicKey { error: PublicKeyError::Private, .. } => None,
            SigningError::KeyFile { .. }
            | SigningError::PublicKey { .. }
            | SigningError::KeyKind { .. } => {
                Some("make a key: ssh-keygen -t ed25519 -N '' -f FILE".to_owned())
            }
            _ => None,
        }
    }
}

/// What signing came to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Signing {
    pub repository: RepositoryName,
    /// `root` or `database`.
    pub role: RoleName,
    pub version: u32,
    #[serde(serialize_with = "as_text")]
    pub expires: Expiry,
    /// Fingerprints of the keys that signed.
    pub signers: Vec<String>,
    /// Signatures that are missing; with none, the document counts.
    pub missing: u32,
}

fn as_text<S: serde::Serializer>(expiry: &Expiry, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(expiry)
}

/// Reads a private key in OpenSSH's format; an encrypted one is opened with the passphrase that
/// is kept there.
///
/// # Errors
/// It is none, others can read it, or the passphrase is missing or another.
pub fn read_private_key(
    path: &Path,
    passphrase: Option<&Credentials>,
) -> Result<PrivateKey, SigningError> {
    let at = |source| SigningError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(at)?;
    let mode = file.metadata().map_err(at)?.mode() & 0o777;
    let mut text = zeroize::Zeroizing::new(Vec::new());
    file.take(KEY_FILE_BYTES + 1).read_to_end(&mut text).map_err(at)?;
    if text.len() as u64 > KEY_FILE_BYTES {
        return Err(SigningError::KeyFileSize { path: path.to_owned() });
    }
    if std::str::from_utf8(&text).is_ok_and(|text| PublicKey::from_openssh(text).is_ok()) {
        return Err(SigningError::NotPrivate { path: path.to_owned() });
    }
    if mode & 0o077 != 0 {
        return Err(SigningError::KeyFileMode { path: path.to_owned(), mode });
    }
    let key = PrivateKey::from_openssh(text.as_slice())
        .map_err(|reason| SigningError::KeyFile { path: path.to_owned(), reason })?;
    if !key.is_encrypted() {
        return Ok(key);
    }
    let path = path.to_owned();
    let Some(from) = passphrase else { return Err(SigningError::Encrypted { path }) };
    let passphrase = secrets::read(from)?;
    key.decrypt(passphrase.as_bytes())
        .map_err(|_| SigningError::WrongPassphrase { path, from: from.clone() })
}

/// Reads a public key, as `ssh-keygen` writes it beside the private one.
///
/// # Errors
/// It is none, or of a type that signs no repository.
pub fn read_public_key(path: &Path) -> Result<PublicKeyText, SigningError> {
    let at = |source| SigningError::Io { path: path.to_owned(), source };
    let mut text = String::new();
    let file = File::open(path).map_err(at)?;
    file.take(limits::PUBLIC_KEY_BYTES as u64 + 1).read_to_string(&mut text).map_err(at)?;
    let key: PublicKeyText = text
        .trim_end()
        .parse()
        .map_err(|error| SigningError::PublicKey { path: path.to_owned(), error })?;
    let parsed = public_key(&key);
    let parsed =
        parsed.map_err(|reason| SigningError::KeyFile { path: path.to_owned(), reason })?;
    match parsed.algorithm() {
        Algorithm::Ed25519 | Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 } => Ok(key),
        other => Err(SigningError::KeyKind { path: path.to_owned(), kind: other.to_string() }),
    }
}

/// The last root of a repository, whoever signed it; `None` where it has none.
///
/// # Errors
/// It cannot be read.
pub fn last_root(
    store: &Store,
    repository: &RepositoryName,
) -> Result<Option<(Root, Envelope)>, SigningError> {
    let mut last = None;
    for version in 1..=limits::ROOT_CHANGES {
        match read(store, repository, SignedFile::Root(version))? {
            Some(envelope) => last = Some((parse_root(&envelope, version)?, envelope)),
            None => break,
        }
    }
    Ok(last)
}

/// The snapshot of a repository, whoever signed it.
///
/// # Errors
/// It cannot be read.
pub fn snapshot(
    store: &Store,
    repository: &RepositoryName,
) -> Result<Option<(Snapshot, Envelope)>, SigningError> {
    let Some(envelope) = read(store, repository, SignedFile::Snapshot)? else { return Ok(None) };
    Ok(Some((parse_snapshot(&envelope)?, envelope)))
}

/// Gives a repository keys, or others than it has. The new root must be signed by the keys
/// of the present one and by its own.
///
/// # Errors
/// [`SigningError`]; the keys of before count.
pub fn set_keys(
    store: &Store,
    repository: &RepositoryName,
    (root, database): (Role, Role),
    expires: Expiry,
    keys: &[PrivateKey],
) -> Result<Signing, SigningError> {
    root.check(RoleName::Root).map_err(SigningError::Role)?;
    database.check(RoleName::Database).map_err(SigningError::Role)?;
    store.database(repository)?;
    let writer = store.write_repository(repository)?;
    let last = last_root(store, repository)?.map(|(root, _)| root);
    let version = last.as_ref().map_or(0, |last| last.version) + 1;
    if version > limits::ROOT_CHANGES {
        return Err(SigningError::LastVersion("the root"));
    }
    let new = Root { repository: repository.clone(), version, expires, root, database };
    let envelope = Envelope { text: new.print(), signatures: Vec::new() };
    finish_root(&writer, last.as_ref(), &new, envelope, keys)
}

/// Signs the database as it is now.
///
/// # Errors
/// [`SigningError`]; what was signed before counts.
pub fn sign(
    store: &Store,
    repository: &RepositoryName,
    expires: Expiry,
    keys: &[PrivateKey],
) -> Result<Signing, SigningError> {
    store.database(repository)?;
    let writer = store.write_repository(repository)?;
    let (root, _) =
        last_root(store, repository)?.ok_or_else(|| SigningError::NoRoot(repository.clone()))?;
    let bytes = store
        .database_file(repository)?
        .ok_or_else(|| SigningError::NoDatabase(repository.clone()))?;
    let before = snapshot(store, repository)?.map_or(0, |(snapshot, _)| snapshot.version);
    // A repository that was put back from a copy goes on where it was, or nobody would take it.
    let seen = high_water::read(store, repository)?.map_or(0, |seen| seen.snapshot.version);
    let version = before.max(seen) + 1;
    if version > limits::SIGNED_VERSION {
        return Err(SigningError::LastVersion("the snapshot"));
    }
    let new = Snapshot {
        repository: repository.clone(),
        version,
        expires,
        database: Digest::of(&bytes),
        database_bytes: bytes.len() as u64,
    };
    let envelope = Envelope { text: new.print(), signatures: Vec::new() };
    finish_snapshot(store, &writer, &root, &new, envelope, keys)
}

/// Adds signatures to what waits for them.
///
/// # Errors
/// [`SigningError`]; it waits on.
pub fn cosign(
    store: &Store,
    repository: &RepositoryName,
    keys: &[PrivateKey],
) -> Result<Signing, SigningError> {
    store.database(repository)?;
    let writer = store.write_repository(repository)?;
    let last = last_root(store, repository)?.map(|(root, _)| root);
    let next = last.as_ref().map_or(0, |last| last.version) + 1;
    if let Some(envelope) = read(store, repository, SignedFile::PendingRoot)? {
        let new = parse_root(&envelope, next)?;
        return finish_root(&writer, last.as_ref(), &new, envelope, keys);
    }
    let pending = read(store, repository, SignedFile::PendingSnapshot)?;
    let (Some(root), Some(envelope)) = (last, pending) else {
        return Err(SigningError::NothingPending(repository.clone()));
    };
    let new = parse_snapshot(&envelope)?;
    let before = snapshot(store, repository)?.map_or(0, |(snapshot, _)| snapshot.version);
    let bytes = store.database_file(repository)?.unwrap_or_default();
    if new.version <= before || Digest::of(&bytes) != new.database {
        return Err(SigningError::PendingIsOld);
    }
    finish_snapshot(store, &writer, &root, &new, envelope, keys)
}

fn finish_root(
    writer: &RepositoryWriter<'_>,
    before: Option<&Root>,
    new: &Root,
    mut envelope: Envelope,
    keys: &[PrivateKey],
) -> Result<Signing, SigningError> {
    let mut roles = vec![&new.root];
    roles.extend(before.map(|before| &before.root));
    let what = format!("root {} of {}", new.version, new.repository);
    add_signatures(&mut envelope, ROOT_NAMESPACE, &roles, keys, &what)?;
    let (signers, missing) = counted(&envelope, ROOT_NAMESPACE, &roles)?;
    let bytes = envelope.print();
    if missing == 0 {
        writer.write_signed(SignedFile::Root(new.version), bytes.as_bytes())?;
        writer.remove_pending(SignedFile::PendingRoot)?;
    } else {
        writer.write_signed(SignedFile::PendingRoot, bytes.as_bytes())?;
    }
    let (repository, version, expires) = (new.repository.clone(), new.version, new.expires);
    Ok(Signing { repository, role: RoleName::Root, version, expires, signers, missing })
}

fn finish_snapshot(
    store: &Store,
    writer: &RepositoryWriter<'_>,
    root: &Root,
    new: &Snapshot,
    mut envelope: Envelope,
    keys: &[PrivateKey],
) -> Result<Signing, SigningError> {
    let roles = [&root.database];
    let what = format!("the database of {}", new.repository);
    add_signatures(&mut envelope, SNAPSHOT_NAMESPACE, &roles, keys, &what)?;
    let (signers, missing) = counted(&envelope, SNAPSHOT_NAMESPACE, &roles)?;
    let text = envelope.print();
    if missing == 0 {
        let repository = &new.repository;
        let bytes = store.database_file(repository)?;
        let bytes = bytes.ok_or_else(|| SigningError::NoDatabase(repository.clone()))?;
        writer.keep_database(&new.database, &bytes)?;
        let before = snapshot(store, repository)?.map(|(snapshot, _)| snapshot.database);
        writer.write_signed(SignedFile::Snapshot, text.as_bytes())?;
        writer.remove_pending(SignedFile::PendingSnapshot)?;
        // Who has just read the former snapshot finds its database still.
        let kept: Vec<_> = before.into_iter().chain([new.database]).collect();
        writer.keep_only_databases(&kept)?;
    } else {
        writer.write_signed(SignedFile::PendingSnapshot, text.as_bytes())?;
    }
    let (repository, version, expires) = (new.repository.clone(), new.version, new.expires);
    Ok(Signing { repository, role: RoleName::Database, version, expires, signers, missing })
}

fn add_signatures(
    envelope: &mut Envelope,
    namespace: &str,
    roles: &[&Role],
    keys: &[PrivateKey],
    what: &str,
) -> Result<(), SigningError> {
    let allowed = keys_of(roles)?;
    for key in keys {
        let public = key.public_key();
        let place = allowed.iter().position(|allowed| allowed.key_data() == public.key_data());
        let Some(place) = place else {
            let fingerprint = public.fingerprint(HashAlg::Sha256).to_string();
            return Err(SigningError::Stranger { fingerprint, what: what.to_owned() });
        };
        if signers(envelope, namespace, &allowed).contains(&place) {
            continue;
        }
        let signature = key
            .sign(namespace, HashAlg::Sha512, envelope.text.as_bytes())
            .and_then(|signature| signature.to_pem(LineEnding::LF))
            .map_err(SigningError::Sign)?;
        let end = if signature.ends_with('\n') { "" } else { "\n" };
        envelope.signatures.push(format!("{signature}{end}"));
    }
    Ok(())
}

/// Who signed, and how many signatures the roles lack, the one that lacks most.
fn counted(
    envelope: &Envelope,
    namespace: &str,
    roles: &[&Role],
) -> Result<(Vec<String>, u32), SigningError> {
    let all = keys_of(roles)?;
    let signed = signers(envelope, namespace, &all);
    let names = signed.into_iter().map(|at| all[at].fingerprint(HashAlg::Sha256).to_string());
    let mut missing = 0;
    for role in roles {
        let valid = signers(envelope, namespace, &keys_of(&[role])?).len() as u32;
        missing = missing.max(role.threshold.saturating_sub(valid));
    }
    Ok((names.collect(), missing))
}

fn keys_of(roles: &[&Role]) -> Result<Vec<PublicKey>, SigningError> {
    let mut texts: Vec<_> = roles.iter().flat_map(|role| &role.keys).collect();
    texts.sort();
    texts.dedup();
    texts.into_iter().map(|text| public_key(text).map_err(SigningError::Sign)).collect()
}

fn read(
    store: &Store,
    repository: &RepositoryName,
    file: SignedFile,
) -> Result<Option<Envelope>, SigningError> {
    let Some(bytes) = store.signed_file(repository, file)? else { return Ok(None) };
    let document = |error| SigningError::Document { what: file.name(), error };
    Envelope::parse(&bytes).map(Some).map_err(document)
}

fn parse_root(envelope: &Envelope, version: u32) -> Result<Root, SigningError> {
    let what = || SignedFile::Root(version).name();
    let root = Root::parse(&envelope.text);
    let root = root.map_err(|error| SigningError::Document { what: what(), error })?;
    match root.version == version {
        true => Ok(root),
        false => Err(SigningError::Document { what: what(), error: SignedError::Version }),
    }
}

fn parse_snapshot(envelope: &Envelope) -> Result<Snapshot, SigningError> {
    let what = || SignedFile::Snapshot.name();
    Snapshot::parse(&envelope.text).map_err(|error| SigningError::Document { what: what(), error })
}
