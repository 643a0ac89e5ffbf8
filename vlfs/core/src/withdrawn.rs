//! Which units of a repository stay withdrawn although garbage collection took them
//! (`docs/formats.md`, "Withdrawn units"). A unit that is there is marked in the database.

use std::collections::BTreeMap;

use crate::names::{LayerName, NameError};
use crate::position::Located;
use crate::version::{LayerVersion, VersionError};

const HEADER: &str = "strata-withdrawn 1";
/// Bytes of the file.
pub const FILE_BYTES: usize = 64 << 20;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WithdrawnError {
    #[error("the file has {0} bytes, the limit is {FILE_BYTES}")]
    TooLarge(usize),
    #[error("the first line must be `{HEADER}`")]
    Header,
    #[error("the text is not UTF-8")]
    Encoding,
    #[error("the last line has no end")]
    Unended,
    #[error("a line is a layer, a version and a reason, with one blank between each")]
    Form,
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Version(#[from] VersionError),
    #[error("units must be in the order of their names and versions, each once")]
    Order,
}

/// Why each of them was withdrawn.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Withdrawn(BTreeMap<(LayerName, LayerVersion), String>);

impl Withdrawn {
    /// Why a unit is withdrawn, where that is so.
    pub fn reason(&self, layer: &LayerName, version: &LayerVersion) -> Option<&str> {
        self.0.get(&(layer.clone(), version.clone())).map(String::as_str)
    }

    /// All of them, by name and version.
    pub fn units(&self) -> impl Iterator<Item = (&LayerName, &LayerVersion)> {
        self.0.keys().map(|(layer, version)| (layer, version))
    }

    /// Adds a unit, or gives it another reason. Returns whether that changed anything; a reason
    /// that says nothing withdraws nothing.
    pub fn insert(&mut self, layer: LayerName, version: LayerVersion, reason: &str) -> bool {
        let reason = one_line(reason);
        if reason.is_empty() {
            return false;
        }
        let key = (layer, version);
        let is_new = self.0.get(&key) != Some(&reason);
        self.0.insert(key, reason);
        is_new
    }

    /// Takes a unit out. Returns whether it was there.
    pub fn remove(&mut self, layer: &LayerName, version: &LayerVersion) -> bool {
        self.0.remove(&(layer.clone(), version.clone())).is_some()
    }

    /// The text of the file.
    pub fn print(&self) -> String {
        let mut text = format!("{HEADER}\n");
        for ((layer, version), reason) in &self.0 {
            text.push_str(&format!("{layer} {version} {reason}\n"));
        }
        text
    }

    /// # Errors
    /// Anything but canonical text, with its line.
    pub fn parse(text: &[u8]) -> Result<Self, Located<WithdrawnError>> {
        if text.len() > FILE_BYTES {
            return Err(Located::new(1, 1, WithdrawnError::TooLarge(text.len())));
        }
        let mut lines = text.split_inclusive(|byte| *byte == b'\n');
        if lines.next().and_then(|line| line.strip_suffix(b"\n")) != Some(HEADER.as_bytes()) {
            return Err(Located::new(1, 1, WithdrawnError::Header));
        }
        let mut units = BTreeMap::new();
        for (number, line) in (2..).zip(lines) {
            let (key, reason) =
                unit(line).map_err(|error: WithdrawnError| Located::new(number, 1, error))?;
            if units.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err(Located::new(number, 1, WithdrawnError::Order));
            }
            units.insert(key, reason);
        }
        Ok(Withdrawn(units))
    }
}

/// A reason as it is kept: one line, one blank between words.
pub fn one_line(reason: &str) -> String {
    reason.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn unit(line: &[u8]) -> Result<((LayerName, LayerVersion), String), WithdrawnError> {
    let line = line.strip_suffix(b"\n").ok_or(WithdrawnError::Unended)?;
    let line = std::str::from_utf8(line).map_err(|_| WithdrawnError::Encoding)?;
    let mut parts = line.splitn(3, ' ');
    let (Some(layer), Some(version), Some(reason)) = (parts.next(), parts.next(), parts.next())
    else {
        return Err(WithdrawnError::Form);
    };
    if reason.is_empty() || one_line(reason) != reason {
        return Err(WithdrawnError::Form);
    }
    Ok(((LayerName::new(layer)?, LayerVersion::new(version)?), reason.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOLDEN: &str = include_str!("../golden/withdrawn");

    fn unit(layer: &str, version: &str) -> (LayerName, LayerVersion) {
        (layer.parse().expect("a name"), version.parse().expect("a version"))
    }

    #[test]
    fn golden() {
        let withdrawn = Withdrawn::parse(GOLDEN.as_bytes()).expect("the golden file");
        assert_eq!(withdrawn.print(), GOLDEN);
        let (layer, version) = unit("openssl", "1:3.0.14-1");
        let reason = withdrawn.reason(&layer, &version);
        assert_eq!(reason, Some("a key was stolen, see the list of May"));
    }

    #[test]
    fn units_come_and_go() {
        let mut withdrawn = Withdrawn::default();
        let (layer, version) = unit("a", "1");
        assert!(!withdrawn.insert(layer.clone(), version.clone(), " \n"), "no reason");
        assert!(withdrawn.insert(layer.clone(), version.clone(), " CVE-1,\n see the list"));
        assert!(!withdrawn.insert(layer.clone(), version.clone(), "CVE-1, see the list"));
        assert_eq!(withdrawn.reason(&layer, &version), Some("CVE-1, see the list"));
        assert_eq!(Withdrawn::parse(withdrawn.print().as_bytes()), Ok(withdrawn.clone()));
        assert!(withdrawn.remove(&layer, &version) && !withdrawn.remove(&layer, &version));
        assert_eq!(withdrawn, Withdrawn::default());
    }

    #[test]
    fn faults_are_told_with_their_line() {
        for (text, line, error) in [
            ("", 1, WithdrawnError::Header),
            ("strata-withdrawn 2\n", 1, WithdrawnError::Header),
            ("strata-withdrawn 1\na 1 b", 2, WithdrawnError::Unended),
            ("strata-withdrawn 1\na 1\n", 2, WithdrawnError::Form),
            ("strata-withdrawn 1\na 1  b\n", 2, WithdrawnError::Form),
            ("strata-withdrawn 1\na 1 b \n", 2, WithdrawnError::Form),
            ("strata-withdrawn 1\na 2 b\na 1 b\n", 3, WithdrawnError::Order),
            ("strata-withdrawn 1\na 1 b\na 1 c\n", 3, WithdrawnError::Order),
        ] {
            let fault = Withdrawn::parse(text.as_bytes()).expect_err(text);
            assert_eq!((fault.line, fault.error), (line, error), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn mutations_never_panic(at in 0..GOLDEN.len(), byte: u8) {
            let mut text = GOLDEN.as_bytes().to_vec();
            text[at] = byte;
            if let Ok(withdrawn) = Withdrawn::parse(&text) {
                prop_assert_eq!(withdrawn.print().into_bytes(), text);
            }
        }
    }
}
