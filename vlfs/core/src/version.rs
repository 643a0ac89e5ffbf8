//! Versions of layer units, ordered as Debian orders them.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    #[error("the version is empty")]
    Empty,
    #[error("the version has {0} bytes, the limit is {max}", max = limits::VERSION_BYTES)]
    TooLong(usize),
    #[error(
        "the version {version:?} may not contain {character:?}; allowed: letters, digits and . + - ~ :"
    )]
    Character { version: String, character: char },
    #[error("{0:?} is no version: write [epoch:]upstream[-revision], as in 1:2.3-4")]
    Malformed(String),
}

/// The version of a layer unit: the text as written, ordered by Debian's rules
/// (the `debversion` crate). Two spellings that Debian holds equal (`1.0` and
/// `1.00`) name different units: they differ here and are ordered by spelling.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerVersion {
    text: String,
    parsed: debversion::Version,
}

impl LayerVersion {
    pub fn new(text: impl Into<String>) -> Result<Self, VersionError> {
        let text = text.into();
        if text.is_empty() {
            return Err(VersionError::Empty);
        }
        if text.len() > limits::VERSION_BYTES {
            return Err(VersionError::TooLong(text.len()));
        }
        let allowed =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-' | '~' | ':');
        if let Some(character) = text.chars().find(|c| !allowed(*c)) {
            return Err(VersionError::Character { version: text, character });
        }
        let epoch_is_number = |(epoch, _): (&str, &str)| {
            !epoch.is_empty() && epoch.bytes().all(|b| b.is_ascii_digit())
        };
        if text.starts_with(['.', '-', '+']) || !text.split_once(':').is_none_or(epoch_is_number) {
            return Err(VersionError::Malformed(text));
        }
        let parsed = text.parse().map_err(|_| VersionError::Malformed(text.clone()))?;
        Ok(LayerVersion { text, parsed })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Debian's order alone, in which `1.0` equals `1.00`: for dependencies.
    pub fn debian_cmp(&self, other: &Self) -> Ordering {
        self.parsed.cmp(&other.parsed)
    }
}

impl PartialEq for LayerVersion {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for LayerVersion {}

impl Hash for LayerVersion {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl PartialOrd for LayerVersion {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for LayerVersion {
    fn cmp(&self, other: &Self) -> Ordering {
        self.debian_cmp(other).then_with(|| self.text.cmp(&other.text))
    }
}

impl FromStr for LayerVersion {
    type Err = VersionError;
    fn from_str(text: &str) -> Result<Self, VersionError> {
        Self::new(text)
    }
}

impl TryFrom<String> for LayerVersion {
    type Error = VersionError;
    fn try_from(text: String) -> Result<Self, VersionError> {
        Self::new(text)
    }
}

impl From<LayerVersion> for String {
    fn from(version: LayerVersion) -> String {
        version.text
    }
}

impl fmt::Display for LayerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> LayerVersion {
        LayerVersion::new(text).expect("valid version")
    }

    #[test]
    fn debian_order() {
        let ascending =
            ["1.0~rc1-1", "1.0-1", "1.0-1+b1", "1.0+dfsg-1", "1.2-1", "1.10-1", "1:0.1-1", "2:0~"];
        for pair in ascending.windows(2) {
            assert!(version(pair[0]) < version(pair[1]), "{pair:?}");
        }
    }

    #[test]
    fn equal_in_debian_is_not_the_same_unit() {
        assert_eq!(version("1.0").debian_cmp(&version("1.00")), Ordering::Equal);
        assert_ne!(version("1.0"), version("1.00"));
        assert_ne!(version("1.0").cmp(&version("1.00")), Ordering::Equal);
    }

    #[test]
    fn paper_versions() {
        // Figure 2: the versions of the paper's MySQL template.
        for text in ["5.0.51a-3", "1", "4.2.52-18", "0.5.28.6", "3a8.1.2-0.20040524cvs-4"] {
            assert_eq!(version(text).to_string(), text);
        }
    }

    #[test]
    fn refused() {
        for bad in ["", "1 0", "1/2", "a:1", "1_2", "-1", ":1", "1.0\n"] {
            assert!(LayerVersion::new(bad).is_err(), "{bad:?}");
        }
    }
}
