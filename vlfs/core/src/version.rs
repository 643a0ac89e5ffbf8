//! Versions of layer units, ordered as Debian orders them.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits;

mod rpm_order;

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

/// The version of a layer unit: the text as written, ordered by Debian's rules.
/// Two spellings that Debian holds equal (`1.0` and `1.00`) name different
/// units: they differ here and are ordered by spelling.
///
/// The order is our own, as a whole distribution is compared without copying
/// one version; `ci/proof versions` holds it against dpkg's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerVersion(Box<str>);

/// The largest epoch that dpkg takes.
const EPOCH_MAX: u32 = i32::MAX as u32;

/// The bytes of versions; versions are checked by the hundred thousand.
const ALLOWED_BYTES: [bool; 256] = {
    let mut allowed = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        let is = byte as u8;
        allowed[byte] = is.is_ascii_alphanumeric()
            || matches!(is, b'.' | b'+' | b'-' | b'~' | b':' | b'_' | b'^');
        byte += 1;
    }
    allowed
};

/// Checks a version without copying it.
pub(crate) fn check(text: &str) -> Result<(), VersionError> {
    if text.is_empty() {
        return Err(VersionError::Empty);
    }
    if text.len() > limits::VERSION_BYTES {
        return Err(VersionError::TooLong(text.len()));
    }
    let allowed = |b: u8| ALLOWED_BYTES[usize::from(b)];
    if !text.bytes().all(allowed) {
        let version = text.to_owned();
        let character = text.chars().find(|c| !c.is_ascii() || !allowed(*c as u8));
        return Err(VersionError::Character { version, character: character.unwrap_or_default() });
    }
    if let Some(found) = rpm_order::check(text) {
        return found.then_some(()).ok_or_else(|| VersionError::Malformed(text.to_owned()));
    }
    let (epoch, upstream, revision) = parts(text);
    let starts_badly = text.starts_with(['.', '-', '+']);
    let bad_epoch = text.contains(':') && epoch.parse::<u32>().map_or(true, |e| e > EPOCH_MAX);
    let bad_revision =
        revision.is_some_and(|revision| revision.is_empty() || revision.contains(':'));
    if starts_badly || bad_epoch || upstream.is_empty() || bad_revision {
        return Err(VersionError::Malformed(text.to_owned()));
    }
    Ok(())
}

/// Epoch (empty where there is none), upstream version and revision.
fn parts(text: &str) -> (&str, &str, Option<&str>) {
    let (epoch, rest) = text.split_once(':').unwrap_or(("", text));
    match rest.rsplit_once('-') {
        Some((upstream, revision)) => (epoch, upstream, Some(revision)),
        None => (epoch, rest, None),
    }
}

/// The order of two checked versions: Debian's (Debian Policy 5.6.12), or rpm's
/// where both are an RPM package's ([`rpm_order`]). Of two systems, which never
/// meet in one composition, Debian's come first.
pub(crate) fn debian_cmp(a: &str, b: &str) -> Ordering {
    if a == b {
        return Ordering::Equal;
    }
    match (a.contains('_'), b.contains('_')) {
        (false, false) => {}
        (true, true) => return rpm_order::compare(a, b),
        (a_is_rpm, b_is_rpm) => return a_is_rpm.cmp(&b_is_rpm),
    }
    let (a_epoch, a_upstream, a_revision) = parts(a);
    let (b_epoch, b_upstream, b_revision) = parts(b);
    compare_numbers(&mut a_epoch.as_bytes(), &mut b_epoch.as_bytes())
        .then_with(|| compare_part(a_upstream.as_bytes(), b_upstream.as_bytes()))
        // A missing revision counts as 0.
        .then_with(|| {
            compare_part(a_revision.unwrap_or("").as_bytes(), b_revision.unwrap_or("").as_bytes())
        })
}

/// Text and numbers in turn: of text, `~` comes before the end, letters before
/// everything else; numbers are compared by value.
fn compare_part(mut a: &[u8], mut b: &[u8]) -> Ordering {
    let weight = |byte: Option<&u8>| match byte {
        Some(b'~') => -1,
        None | Some(b'0'..=b'9') => 0,
        Some(letter) if letter.is_ascii_alphabetic() => i32::from(*letter),
        Some(other) => i32::from(*other) + 256,
    };
    let in_text = |part: &[u8]| part.first().is_some_and(|byte| !byte.is_ascii_digit());
    while !a.is_empty() || !b.is_empty() {
        while in_text(a) || in_text(b) {
            match weight(a.first()).cmp(&weight(b.first())) {
                Ordering::Equal => (a, b) = (&a[1..], &b[1..]),
                unequal => return unequal,
            }
        }
        match compare_numbers(&mut a, &mut b) {
            Ordering::Equal => {}
            unequal => return unequal,
        }
    }
    Ordering::Equal
}

/// Takes the digits at the start of both and compares them as numbers.
fn compare_numbers(a: &mut &[u8], b: &mut &[u8]) -> Ordering {
    fn take<'a>(from: &mut &'a [u8]) -> &'a [u8] {
        let end = from.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(from.len());
        let (digits, rest) = from.split_at(end);
        *from = rest;
        let zeros = digits.iter().take_while(|byte| **byte == b'0').count();
        &digits[zeros..]
    }
    let (a, b) = (take(a), take(b));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

impl LayerVersion {
    pub fn new(text: impl Into<String>) -> Result<Self, VersionError> {
        let text = text.into();
        check(&text)?;
        Ok(LayerVersion(text.into_boxed_str()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A version of a text that [`check`] has passed.
    pub(crate) fn of_checked(text: &str) -> Self {
        debug_assert_eq!(check(text), Ok(()));
        LayerVersion(text.into())
    }

    /// Debian's order alone, in which `1.0` equals `1.00`: for dependencies.
    pub fn debian_cmp(&self, other: &Self) -> Ordering {
        debian_cmp(&self.0, &other.0)
    }
}

impl PartialOrd for LayerVersion {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for LayerVersion {
    fn cmp(&self, other: &Self) -> Ordering {
        self.debian_cmp(other).then_with(|| self.0.cmp(&other.0))
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
        version.0.into()
    }
}

impl fmt::Display for LayerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
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
        let equal = [("0:1", "1"), ("1-0", "1"), ("1.", "1.0"), ("1a00", "1a"), ("1-00", "1-0")];
        for (a, b) in equal {
            assert_eq!(version(a).debian_cmp(&version(b)), Ordering::Equal, "{a} {b}");
        }
        let large = version("1.99999999999999999999999999")
            .debian_cmp(&version("1.100000000000000000000000000"));
        assert_eq!(large, Ordering::Less);
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
        let bad = [
            "",
            "1 0",
            "1/2",
            "a:1",
            "1_2_3",
            "-1",
            ":1",
            "1.0\n",
            "1:",
            "1-",
            "1-2:3",
            "2147483648:1",
        ];
        for bad in bad {
            assert!(LayerVersion::new(bad).is_err(), "{bad:?}");
        }
    }
}
