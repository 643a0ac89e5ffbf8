//! What a source of apt says about trust: the options of one entry of a
//! `sources.list` line or a deb822 stanza (`sources.list(5)`).
//!
//! The sources themselves are listed by `apt-get indextargets`, which expands
//! them as apt does; it names the entry, and here are its options.

use strata_core::deb822::{self, StanzaError};
use strata_core::position::Located;

/// What an entry demands of the keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SignedBy {
    /// Nothing: any key that apt trusts.
    #[default]
    Anything,
    /// Only keys of these files, and of the named fingerprints if there are any.
    Keys { keyrings: Vec<String>, fingerprints: Vec<String> },
    /// The keys stand in the entry itself.
    Embedded(String),
}

/// The options of an entry that concern trust; `None` where it says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceOptions {
    pub signed_by: SignedBy,
    pub check_valid_until: Option<bool>,
    /// Seconds after its date that a release may be used.
    pub valid_until_max: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceOptionsError {
    #[error(transparent)]
    Stanza(#[from] Located<StanzaError>),
    #[error("it has no entry {0}")]
    NoEntry(usize),
    #[error("the option {0:?} is not `name=value`")]
    Option(String),
    #[error("Signed-By: {0:?} is neither a path nor a fingerprint nor a key")]
    SignedBy(String),
    #[error("{name}: {value:?} is neither yes nor no")]
    YesNo { name: String, value: String },
    #[error("{name}: {value:?} is no number of seconds")]
    Seconds { name: String, value: String },
}

impl SourceOptions {
    /// The options of the entry `number` of a file: a line of a `.list`, a stanza
    /// of a `.sources`, both from 1.
    ///
    /// # Errors
    /// There is no such entry, or an option is not understood.
    pub fn parse(text: &[u8], deb822: bool, number: usize) -> Result<Self, SourceOptionsError> {
        if deb822 { Self::of_stanza(text, number) } else { Self::of_line(text, number) }
    }

    fn of_stanza(text: &[u8], number: usize) -> Result<Self, SourceOptionsError> {
        let stanzas = deb822::parse(text)?;
        let stanza = number.checked_sub(1).and_then(|index| stanzas.get(index));
        let stanza = stanza.ok_or(SourceOptionsError::NoEntry(number))?;
        let mut options = SourceOptions::default();
        for field in &stanza.fields {
            options.set(field.name, field.value)?;
        }
        Ok(options)
    }

    fn of_line(text: &[u8], number: usize) -> Result<Self, SourceOptionsError> {
        let text = String::from_utf8_lossy(text);
        let line = number.checked_sub(1).and_then(|index| text.lines().nth(index));
        let line = line.ok_or(SourceOptionsError::NoEntry(number))?;
        let mut options = SourceOptions::default();
        let Some((_, rest)) = line.split_once('[') else { return Ok(options) };
        let (list, _) = rest.split_once(']').unwrap_or((rest, ""));
        for option in list.split_whitespace() {
            let (name, value) = option
                .split_once('=')
                .ok_or_else(|| SourceOptionsError::Option(option.chars().take(64).collect()))?;
            options.set(name.trim_end_matches(['+', '-']), value)?;
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), SourceOptionsError> {
        match name.to_ascii_lowercase().as_str() {
            "signed-by" => self.signed_by = signed_by(value)?,
            "check-valid-until" => self.check_valid_until = Some(yes_no(name, value)?),
            "valid-until-max" => {
                let bad = || {
                    let value = value.chars().take(64).collect();
                    SourceOptionsError::Seconds { name: name.to_owned(), value }
                };
                self.valid_until_max = Some(value.parse().map_err(|_| bad())?);
            }
            _ => {}
        }
        Ok(())
    }
}

fn signed_by(value: &str) -> Result<SignedBy, SourceOptionsError> {
    if value.contains("-----BEGIN") {
        // In a stanza an empty line is written as a dot.
        let lines = value.lines().map(|line| match line.trim() {
            "." => "",
            line => line,
        });
        return Ok(SignedBy::Embedded(lines.collect::<Vec<_>>().join("\n") + "\n"));
    }
    let (mut keyrings, mut fingerprints) = (Vec::new(), Vec::new());
    for part in value.split([',', ' ', '\n', '\t']).filter(|part| !part.is_empty()) {
        let digits = part.trim_end_matches('!');
        if part.starts_with('/') {
            keyrings.push(part.to_owned());
        } else if digits.len() >= 40 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            fingerprints.push(part.to_ascii_uppercase());
        } else {
            return Err(SourceOptionsError::SignedBy(part.chars().take(64).collect()));
        }
    }
    Ok(match (keyrings.is_empty(), fingerprints.is_empty()) {
        (true, true) => SignedBy::Anything,
        _ => SignedBy::Keys { keyrings, fingerprints },
    })
}

/// Yes and no as apt writes them.
///
/// # Errors
/// It is neither.
pub fn yes_no(name: &str, value: &str) -> Result<bool, SourceOptionsError> {
    match value.to_ascii_lowercase().as_str() {
        "yes" | "true" | "with" | "on" | "enable" | "1" => Ok(true),
        "no" | "false" | "without" | "off" | "disable" | "0" => Ok(false),
        _ => {
            let value = value.chars().take(64).collect();
            Err(SourceOptionsError::YesNo { name: name.to_owned(), value })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let list = b"# comment\ndeb [arch=amd64 signed-by=/k/a.gpg,/k/b.asc check-valid-until=no] copy:/a b main\ndeb copy:/a c main\n";
        let options = SourceOptions::parse(list, false, 2).expect("valid");
        let keyrings = vec!["/k/a.gpg".to_owned(), "/k/b.asc".to_owned()];
        assert_eq!(options.signed_by, SignedBy::Keys { keyrings, fingerprints: vec![] });
        assert_eq!(options.check_valid_until, Some(false));
        assert_eq!(SourceOptions::parse(list, false, 3), Ok(SourceOptions::default()));
        assert_eq!(SourceOptions::parse(list, false, 9), Err(SourceOptionsError::NoEntry(9)));
        let fingerprint = "4CB50190207B4758A3F73A796ED0E7B82643E131";
        let sources = format!(
            "Types: deb\n\nTypes: deb\nSigned-By: {fingerprint}!\nValid-Until-Max: 60\n\nTypes: deb\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n aGVs\n -----END PGP PUBLIC KEY BLOCK-----\n"
        );
        let options = SourceOptions::parse(sources.as_bytes(), true, 2).expect("valid");
        let fingerprints = vec![format!("{fingerprint}!")];
        assert_eq!(options.signed_by, SignedBy::Keys { keyrings: vec![], fingerprints });
        assert_eq!(options.valid_until_max, Some(60));
        let options = SourceOptions::parse(sources.as_bytes(), true, 3).expect("valid");
        let SignedBy::Embedded(key) = options.signed_by else { panic!("{options:?}") };
        assert_eq!(super::super::keyring::binary(key.as_bytes()), Ok(b"hel".to_vec()));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let list = |text: &str| SourceOptions::parse(text.as_bytes(), false, 1);
        assert!(matches!(list("deb [signed-by=me] x y"), Err(SourceOptionsError::SignedBy(_))));
        assert!(matches!(list("deb [x] x y"), Err(SourceOptionsError::Option(_))));
        assert!(matches!(
            list("deb [check-valid-until=perhaps] x y"),
            Err(SourceOptionsError::YesNo { .. })
        ));
    }
}
