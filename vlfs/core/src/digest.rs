//! blake3 digests, the identity of content.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A blake3 digest: 32 bytes, printed as 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no digest: write 64 lower-case hexadecimal digits")]
pub struct DigestError(String);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Digest(*blake3::hash(bytes).as_bytes())
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Digest(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Checks the text of a digest without reading it.
    pub(crate) fn check(text: &str) -> Result<(), DigestError> {
        let hex = |b: u8| b.is_ascii_digit() | (b'a'..=b'f').contains(&b);
        let all = |text: &str| text.bytes().fold(true, |all, b| all & hex(b));
        if text.len() == 64 && all(text) {
            return Ok(());
        }
        Err(DigestError(text.chars().take(80).collect()))
    }

    /// Appends what [`Display`](fmt::Display) writes, without its machinery.
    pub(crate) fn print(&self, text: &mut String) {
        text.push_str(&blake3::Hash::from_bytes(self.0).to_hex());
    }

    /// The first 12 hexadecimal digits, for people; never for comparing.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(12);
        text
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        Digest::check(text)?;
        let hash = blake3::Hash::from_hex(text).map_err(|_| DigestError(text.to_owned()))?;
        Ok(Digest(*hash.as_bytes()))
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

/// The identity of a generation: the digest of its flattened LDF and of its
/// layers' digests (`docs/formats.md`, "Generation").
pub type GenerationId = Digest;
