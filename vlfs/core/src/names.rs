//! Names of things, parsed once and then trusted.
//!
//! A name that was constructed is safe as one path component and as one word
//! of every text format of Strata. Directory names of layer units escape what
//! a file system or the `_` separator cannot carry: see [`unit_directory`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::version::LayerVersion;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("the {kind} name is empty")]
    Empty { kind: &'static str },
    #[error("the {kind} name has {length} bytes, the limit is {}", limits::NAME_BYTES)]
    TooLong { kind: &'static str, length: usize },
    #[error("the {kind} name {name:?} may not contain {character:?}; allowed: {allowed}")]
    Character { kind: &'static str, name: String, character: char, allowed: &'static str },
    #[error("the {kind} name {name:?} must start with a letter or a digit")]
    Start { kind: &'static str, name: String },
    #[error(
        "{0:?} is no MAC address; write six pairs of hexadecimal digits, as in 52:54:00:12:34:56"
    )]
    MacAddress(String),
    #[error("{0:?} is no unicast MAC address: the lowest bit of its first byte is set")]
    Multicast(String),
}

const ALLOWED: &str = "letters, digits and + - . _";

/// [`ALLOWED`] by byte: names are checked by the hundred thousand.
const ALLOWED_BYTES: [bool; 256] = {
    let mut allowed = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        let is = byte as u8;
        allowed[byte] = is.is_ascii_alphanumeric() || matches!(is, b'+' | b'-' | b'.' | b'_');
        byte += 1;
    }
    allowed
};

fn check(kind: &'static str, name: &str) -> Result<(), NameError> {
    let byte_allowed = |b: u8| ALLOWED_BYTES[usize::from(b)];
    let start = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if start && name.len() <= limits::NAME_BYTES && name.bytes().all(byte_allowed) {
        return Ok(());
    }
    if name.is_empty() {
        return Err(NameError::Empty { kind });
    }
    if name.len() > limits::NAME_BYTES {
        return Err(NameError::TooLong { kind, length: name.len() });
    }
    let allowed = |c: &char| c.is_ascii() && byte_allowed(*c as u8);
    if let Some(character) = name.chars().find(|c| !allowed(c)) {
        return Err(NameError::Character {
            kind,
            name: name.chars().take(64).collect(),
            character,
            allowed: ALLOWED,
        });
    }
    Err(NameError::Start { kind, name: name.to_owned() })
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
                let name = name.into();
                check($kind, &name)?;
                Ok(Self(name))
            }
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $type {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }
        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                Self::new(name)
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl AsRef<std::path::Path> for $type {
            fn as_ref(&self) -> &std::path::Path {
                std::path::Path::new(&self.0)
            }
        }
    };
}

name!(
    /// A layer: the set of layer units of one name (§5.2).
    LayerName,
    "layer"
);
name!(
    /// A repository of layers, as `strata.toml` and every LDF line name it.
    RepositoryName,
    "repository"
);
name!(
    /// Something that is composed: a template (`templates/<name>.ldf`) or a
    /// VA's own definition (`appliances/<name>.ldf`). One name space.
    CompositionName,
    "template"
);
name!(
    /// A rollout cohort.
    RingName,
    "ring"
);
name!(
    /// A virtual appliance, as people call it.
    VaName,
    "VA"
);

/// Bytes of a host name (gethostname(2)).
const HOSTNAME_BYTES: usize = 64;

impl VaName {
    /// The name where it can be the name of a host too.
    pub fn hostname(&self) -> Option<&str> {
        (self.0.len() <= HOSTNAME_BYTES && !self.0.contains('+')).then_some(&self.0)
    }
}

/// A name hashes as its text, so that text finds it.
impl std::borrow::Borrow<str> for LayerName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl LayerName {
    /// Checks a name without copying it.
    pub(crate) fn check(name: &str) -> Result<(), NameError> {
        check("layer", name)
    }

    /// A name of a text that [`LayerName::check`] has passed.
    pub(crate) fn of_checked(name: &str) -> Self {
        debug_assert_eq!(Self::check(name), Ok(()));
        LayerName(name.to_owned())
    }
}

impl CompositionName {
    /// The name of the configuration layer that is sealed from the
    /// composition's tree in git.
    pub fn layer_name(&self) -> LayerName {
        LayerName(self.0.clone())
    }
}

/// The repository of configuration layers sealed from git trees. Reserved: no
/// operator's repository may have this name.
pub const TEMPLATES_REPOSITORY: &str = "templates";

impl RepositoryName {
    /// The reserved repository of configuration layers that come from git.
    pub fn templates() -> Self {
        Self(TEMPLATES_REPOSITORY.to_owned())
    }
}

/// A VA's network identity: 48 bits, printed in lower case with colons (§4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// A locally administered unicast address from 46 arbitrary bits.
    pub fn locally_administered(bits: [u8; 6]) -> Self {
        let mut octets = bits;
        octets[0] = (octets[0] & 0b1111_1100) | 0b0000_0010;
        MacAddr(octets)
    }

    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddr {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let error = || NameError::MacAddress(text.chars().take(64).collect());
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().ok_or_else(error)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(error());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() {
            return Err(error());
        }
        if octets[0] & 1 == 1 {
            return Err(NameError::Multicast(text.to_owned()));
        }
        Ok(MacAddr(octets))
    }
}

impl TryFrom<String> for MacAddr {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> String {
        mac.to_string()
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        f.pad(&format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"))
    }
}

/// The directory of a layer unit below its repository: `<layer>_<version>`
/// (§5.1), with `%`, `_` (in the name), `:` and `/` written as `%xx`.
pub fn unit_directory(name: &LayerName, version: &LayerVersion) -> String {
    let mut directory = escape(name.as_str(), true);
    directory.push('_');
    directory.push_str(&escape(version.as_str(), false));
    directory
}

/// The layer and version that a directory of a unit is named by; `None` where it is no such name.
pub fn parse_unit_directory(directory: &str) -> Option<(LayerName, LayerVersion)> {
    let (name, version) = directory.split_once('_')?;
    let name = LayerName::new(unescape(name)?).ok()?;
    let version = LayerVersion::new(unescape(version)?).ok()?;
    (unit_directory(&name, &version) == directory).then_some((name, version))
}

fn unescape(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut plain = parts.next()?.to_owned();
    for part in parts {
        let byte = u8::from_str_radix(part.get(..2)?, 16).ok()?;
        plain.push(char::from(byte));
        plain.push_str(&part[2..]);
    }
    Some(plain)
}

fn escape(text: &str, separator: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '%' | ':' | '/' => escaped.push_str(&format!("%{:02x}", u32::from(c))),
            '_' if separator => escaped.push_str("%5f"),
            _ => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_refuse_what_a_path_component_cannot_be() {
        for bad in ["", ".", "..", ".hidden", "-flag", "a/b", "a b", "a\0b", "ä", "a\nb"] {
            assert!(LayerName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["libc6", "g++-12", "libstdc++6", "a.b", "PyYAML", "X11_utils", "0ad"] {
            assert!(LayerName::new(good).is_ok(), "{good:?}");
        }
        assert!(LayerName::new("x".repeat(201)).is_err());
    }

    #[test]
    fn not_every_name_of_a_va_is_one_of_a_host() {
        let hostname = |name: &str| VaName::new(name).expect("valid").hostname().is_some();
        assert!(hostname("web-03.example_1") && hostname(&"x".repeat(64)));
        assert!(!hostname("web+3") && !hostname(&"x".repeat(65)));
    }

    #[test]
    fn unit_directories_are_injective() {
        let directory = |n: &str, v: &str| {
            unit_directory(
                &LayerName::new(n).expect("valid name"),
                &LayerVersion::new(v).expect("valid version"),
            )
        };
        assert_eq!(directory("mysql-server", "5.0.51a-3"), "mysql-server_5.0.51a-3");
        assert_eq!(directory("bind9", "1:9.18.1-1"), "bind9_1%3a9.18.1-1");
        assert_eq!(directory("a_b", "1"), "a%5fb_1");
        for (name, version) in [("bind9", "1:9.18.1-1"), ("a_b", "1"), ("rpm", "1:2.0~rc1_3.fc40")]
        {
            let found = parse_unit_directory(&directory(name, version)).expect("its own name");
            assert_eq!((found.0.as_str(), found.1.as_str()), (name, version));
        }
        for bad in ["", "a", "_1", "a_", "a%5_1", "a%zz_1", "a%61_1", "a_1%3A2", ".a_1", "a%2_1"] {
            assert_eq!(parse_unit_directory(bad), None, "{bad}");
        }
    }

    #[test]
    fn mac_addresses() {
        let mac: MacAddr = "52-54-00-AB-cd-01".parse().expect("valid MAC");
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:01");
        for bad in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:01:02",
            "5:2:5:4:0:0",
            "01:00:5e:00:00:01",
            "+2:54:00:ab:cd:01",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad:?}");
        }
        assert!(MacAddr::locally_administered([0xff; 6]).to_string().parse::<MacAddr>().is_ok());
    }
}
