//! What the holders of a repository's keys say of it (`docs/formats.md`, "Signed
//! repositories"), after The Update Framework (TUF) 1.0.
//!
//! Two documents, each a TOML text followed by its SSH signatures: a *root* says whose keys
//! count, a *snapshot* says which database is the repository's. This module reads and prints
//! them. Whether a signature is good is not decided here: this crate uses no cryptography but
//! blake3.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::limits;
use crate::names::RepositoryName;

/// First line of a root's text.
pub const ROOT_HEADER: &str = "# strata-root 1\n";
/// First line of a snapshot's text.
pub const SNAPSHOT_HEADER: &str = "# strata-snapshot 1\n";
const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----\n";
const END: &str = "-----END SSH SIGNATURE-----\n";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignedError {
    #[error("it has {0} bytes, the limit is {max}", max = limits::SIGNED_BYTES)]
    TooLarge(usize),
    #[error("it is not UTF-8")]
    Encoding,
    #[error("its first line must be {0:?}: it is of another version or something else")]
    Header(&'static str),
    #[error("{0}")]
    Toml(String),
    #[error("after the text stand signatures only, each between its BEGIN and END line")]
    Signatures,
    #[error("it has more than {max} signatures", max = limits::SIGNATURES)]
    ManySignatures,
    #[error("its version must be from 1 to {max}", max = limits::SIGNED_VERSION)]
    Version,
    #[error("the role `{0}` has no key, or more than {max}", max = limits::ROLE_KEYS)]
    Keys(RoleName),
    #[error("the role `{0}` has one key twice: {1}")]
    KeyTwice(RoleName, PublicKeyText),
    #[error("the threshold of the role `{role}` is {threshold}; it has {keys} keys")]
    Threshold { role: RoleName, threshold: u32, keys: usize },
    #[error("{0:?} is no time such as 2026-12-31T00:00:00Z")]
    Time(String),
    #[error(transparent)]
    Key(#[from] PublicKeyError),
}

/// Which keys: those that may change the keys, or those that name the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoleName {
    Root,
    Database,
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RoleName::Root => "root",
            RoleName::Database => "database",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    #[error("this begins as a private key does; name the public key: the file that ends in .pub")]
    Private,
    /// The text itself is not told: it may be another secret.
    #[error("no public key as OpenSSH writes them: a type such as ssh-ed25519, a space, base64")]
    Form,
}

/// A public key as OpenSSH writes it, without its comment: `ssh-ed25519 AAAA…`. Only the
/// form is checked here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKeyText(String);

impl PublicKeyText {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PublicKeyText {
    type Err = PublicKeyError;

    fn from_str(text: &str) -> Result<Self, PublicKeyError> {
        if text.trim_start().starts_with("-----BEGIN") {
            return Err(PublicKeyError::Private);
        }
        if text.len() > limits::PUBLIC_KEY_BYTES || text.contains(['\n', '\r', '\0']) {
            return Err(PublicKeyError::Form);
        }
        let mut words = text.split(' ').filter(|word| !word.is_empty());
        let (Some(kind), Some(key)) = (words.next(), words.next()) else {
            return Err(PublicKeyError::Form);
        };
        let kind_ok = |byte: u8| byte.is_ascii_alphanumeric() || b"-@.".contains(&byte);
        let key_ok = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
        if !kind.bytes().all(kind_ok) || !key.bytes().all(key_ok) {
            return Err(PublicKeyError::Form);
        }
        Ok(PublicKeyText(format!("{kind} {key}")))
    }
}

impl TryFrom<String> for PublicKeyText {
    type Error = PublicKeyError;
    fn try_from(text: String) -> Result<Self, PublicKeyError> {
        text.parse()
    }
}

impl From<PublicKeyText> for String {
    fn from(key: PublicKeyText) -> String {
        key.0
    }
}

impl fmt::Display for PublicKeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// So many of these keys must sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    pub threshold: u32,
    pub keys: Vec<PublicKeyText>,
}

impl Role {
    /// # Errors
    /// No keys or too many, one of them twice, or a threshold that cannot be met.
    pub fn check(&self, name: RoleName) -> Result<(), SignedError> {
        if self.keys.is_empty() || self.keys.len() > limits::ROLE_KEYS {
            return Err(SignedError::Keys(name));
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = self.keys.iter().find(|key| !seen.insert(*key)) {
            return Err(SignedError::KeyTwice(name, twice.clone()));
        }
        let (threshold, keys) = (self.threshold, self.keys.len());
        if threshold == 0 || threshold as usize > keys {
            return Err(SignedError::Threshold { role: name, threshold, keys });
        }
        Ok(())
    }
}

/// Whose keys count for a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    pub repository: RepositoryName,
    pub version: u32,
    pub expires: Expiry,
    /// They sign the next root.
    pub root: Role,
    /// They sign snapshots.
    pub database: Role,
}

/// Which database is the repository's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    pub repository: RepositoryName,
    pub version: u32,
    pub expires: Expiry,
    /// Of the file `database`, as it is stored and sent.
    pub database: Digest,
    pub database_bytes: u64,
}

/// Until when a document counts, to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Expiry {
    seconds: i64,
}

impl Expiry {
    /// Seconds since 1970; `None` for what lies beyond the calendar.
    pub fn at(seconds: i64) -> Option<Self> {
        Timestamp::from_second(seconds).ok().map(|_| Expiry { seconds })
    }

    pub fn seconds(self) -> i64 {
        self.seconds
    }
}

impl TryFrom<String> for Expiry {
    type Error = SignedError;
    fn try_from(text: String) -> Result<Self, SignedError> {
        let refuse = || SignedError::Time(text.chars().take(40).collect());
        let parsed = text.parse::<Timestamp>().map_err(|_| refuse())?;
        let expiry = Expiry { seconds: parsed.as_second() };
        // One way to write a time, so that a document has one text.
        if expiry.to_string() == text { Ok(expiry) } else { Err(refuse()) }
    }
}

impl From<Expiry> for String {
    fn from(expiry: Expiry) -> String {
        expiry.to_string()
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = Timestamp::from_second(self.seconds).unwrap_or(Timestamp::MAX);
        f.pad(&time.to_string())
    }
}

impl Root {
    /// The text that is signed.
    pub fn print(&self) -> String {
        let body = toml::to_string(self).expect("names, numbers and texts are TOML");
        format!("{ROOT_HEADER}{body}")
    }

    /// Reads the text of a root.
    ///
    /// # Errors
    /// [`SignedError`].
    pub fn parse(text: &str) -> Result<Self, SignedError> {
        let root: Root = parse(text, ROOT_HEADER)?;
        check_version(root.version)?;
        root.root.check(RoleName::Root)?;
        root.database.check(RoleName::Database)?;
        Ok(root)
    }
}

impl Snapshot {
    /// The text that is signed.
    pub fn print(&self) -> String {
        let body = toml::to_string(self).expect("names, numbers and texts are TOML");
        format!("{SNAPSHOT_HEADER}{body}")
    }

    /// Reads the text of a snapshot.
    ///
    /// # Errors
    /// [`SignedError`].
    pub fn parse(text: &str) -> Result<Self, SignedError> {
        let snapshot: Snapshot = parse(text, SNAPSHOT_HEADER)?;
        check_version(snapshot.version)?;
        Ok(snapshot)
    }
}

fn parse<T: serde::de::DeserializeOwned>(
    text: &str,
    header: &'static str,
) -> Result<T, SignedError> {
    let body = text.strip_prefix(header).ok_or(SignedError::Header(header.trim_end()))?;
    toml::from_str(body).map_err(|error| SignedError::Toml(error.message().to_owned()))
}

fn check_version(version: u32) -> Result<(), SignedError> {
    match version {
        1..=limits::SIGNED_VERSION => Ok(()),
        _ => Err(SignedError::Version),
    }
}

/// A document and its signatures, as they stand in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// What the signatures are of.
    pub text: String,
    /// Armoured SSH signatures.
    pub signatures: Vec<String>,
}

impl Envelope {
    /// Takes text and signatures apart.
    ///
    /// # Errors
    /// [`SignedError`]; what the text says is not looked at.
    pub fn parse(bytes: &[u8]) -> Result<Self, SignedError> {
        if bytes.len() > limits::SIGNED_BYTES {
            return Err(SignedError::TooLarge(bytes.len()));
        }
        let whole = std::str::from_utf8(bytes).map_err(|_| SignedError::Encoding)?;
        let at = match whole.starts_with(BEGIN) {
            true => 0,
            false => whole.find(&format!("\n{BEGIN}")).map_or(whole.len(), |at| at + 1),
        };
        let (text, mut rest) = whole.split_at(at);
        let mut signatures = Vec::new();
        while !rest.is_empty() {
            if signatures.len() == limits::SIGNATURES {
                return Err(SignedError::ManySignatures);
            }
            if !rest.starts_with(BEGIN) {
                return Err(SignedError::Signatures);
            }
            let end = rest.find(END).ok_or(SignedError::Signatures)? + END.len();
            let (signature, after) = rest.split_at(end);
            signatures.push(signature.to_owned());
            rest = after;
        }
        Ok(Envelope { text: text.to_owned(), signatures })
    }

    /// The file.
    pub fn print(&self) -> String {
        let mut file = self.text.clone();
        for signature in &self.signatures {
            file.push_str(signature);
        }
        file
    }
}

#[cfg(test)]
mod tests;
