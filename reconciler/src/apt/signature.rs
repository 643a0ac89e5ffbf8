//! Who signed a release: `gpgv` checks, with the keys that apt trusts for it.
//!
//! Of a signed text only what `gpgv` gives back as signed is used. One good
//! signature by an allowed key is enough, as archives are signed by an old and
//! a new key while keys change; a bad one is never overlooked.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use strata_core::limits;
use strata_import::apt::keyring;
use strata_import::apt::release::RELEASE_BYTES;
use strata_import::apt::sources::SignedBy;
use strata_store::read_limited;

use super::{AptError, Configuration};
use crate::{child, gpgv};

const GPGV_DEADLINE: Duration = Duration::from_secs(60);

/// A release with its signature.
#[derive(Debug, Clone, Copy)]
pub enum Signed<'a> {
    /// `InRelease`: text and signature in one.
    Inline(&'a Path),
    /// `Release` and `Release.gpg`.
    Detached { text: &'a Path, signature: &'a Path },
}

/// The text that an allowed key has signed. `name` is for messages.
///
/// # Errors
/// No such key has, a signature is bad, or `gpgv` cannot be run.
pub fn signed_text(
    name: &str,
    signed: Signed<'_>,
    signed_by: &SignedBy,
    configuration: &Configuration,
) -> Result<Vec<u8>, AptError> {
    let directory = tempfile::tempdir()
        .map_err(|source| AptError::Read { path: std::env::temp_dir(), source })?;
    let (keyrings, fingerprints) = keys(signed_by, configuration, directory.path())?;
    if keyrings.is_empty() {
        return Err(AptError::NoKeys { name: name.to_owned() });
    }
    let mut command = Command::new("gpgv");
    command.args(gpgv::ARGUMENTS).arg("--homedir");
    command.arg(directory.path()).env("LC_ALL", "C");
    for keyring in &keyrings {
        command.arg("--keyring").arg(keyring);
    }
    let output = directory.path().join("signed");
    let text = match signed {
        Signed::Inline(file) => {
            command.arg("--output").arg(&output).arg(file);
            output.as_path()
        }
        Signed::Detached { text, signature } => {
            command.arg(signature).arg(text);
            text
        }
    };
    let never = AtomicBool::new(false);
    let bounds = child::Bounds {
        deadline: GPGV_DEADLINE,
        file_bytes: RELEASE_BYTES as u64,
        cancelled: &never,
    };
    let ended = child::run(&mut command, bounds).map_err(|source| AptError::Gpgv { source })?;
    judge(name, &String::from_utf8_lossy(&ended.stderr), &fingerprints)?;
    read_limited(text, RELEASE_BYTES)
        .map_err(|source| AptError::NotSigned { name: name.to_owned(), why: source.to_string() })
}

fn judge(name: &str, said: &str, fingerprints: &[String]) -> Result<(), AptError> {
    let named = |key: &str, primary: &str| allowed(key, primary, fingerprints);
    gpgv::judge(said, named, "one that Signed-By names")
        .map(drop)
        .map_err(|why| AptError::NotSigned { name: name.to_owned(), why })
}

/// Whether Signed-By lets a key sign. `FINGERPRINT!` means that very (sub)key.
fn allowed(fingerprint: &str, primary: &str, fingerprints: &[String]) -> bool {
    fingerprints.is_empty()
        || fingerprints.iter().any(|named| match named.strip_suffix('!') {
            Some(exactly) => exactly == fingerprint,
            None => named == fingerprint || named == primary,
        })
}

/// Binary keyrings for gpgv, and the fingerprints that are allowed (all where
/// there are none).
fn keys(
    signed_by: &SignedBy,
    configuration: &Configuration,
    scratch: &Path,
) -> Result<(Vec<PathBuf>, Vec<String>), AptError> {
    let mut sources: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    let mut allowed = Vec::new();
    match signed_by {
        SignedBy::Embedded(key) => sources.push(("Signed-By".into(), key.clone().into_bytes())),
        SignedBy::Keys { keyrings, fingerprints } => {
            allowed.clone_from(fingerprints);
            for keyring in keyrings {
                sources.push(read_keyring(Path::new(keyring))?);
            }
            if keyrings.is_empty() {
                sources = trusted(configuration)?;
            }
        }
        SignedBy::Anything => sources = trusted(configuration)?,
    }
    let mut keyrings = Vec::new();
    for (number, (path, bytes)) in sources.into_iter().enumerate() {
        let binary = keyring::binary(&bytes)
            .map_err(|source| AptError::Keyring { path: path.clone(), source })?;
        let copy = scratch.join(format!("{number}.gpg"));
        std::fs::write(&copy, binary)
            .map_err(|source| AptError::Read { path: copy.clone(), source })?;
        keyrings.push(copy);
    }
    Ok((keyrings, allowed))
}

/// The keyrings that apt trusts for every source without a Signed-By of its own.
fn trusted(configuration: &Configuration) -> Result<Vec<(PathBuf, Vec<u8>)>, AptError> {
    let mut keyrings = Vec::new();
    if let Some(path) = configuration.path("Dir::Etc::Trusted").filter(|path| path.exists()) {
        keyrings.push(read_keyring(&path)?);
    }
    let Some(parts) = configuration.path("Dir::Etc::TrustedParts").filter(|path| path.is_dir())
    else {
        return Ok(keyrings);
    };
    let read = |source| AptError::Read { path: parts.clone(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&parts).map_err(read)? {
        names.push(entry.map_err(read)?.path());
    }
    names.sort();
    let keys = |path: &PathBuf| path.extension().is_some_and(|e| e == "gpg" || e == "asc");
    for path in names.iter().filter(|path| keys(path)) {
        keyrings.push(read_keyring(path)?);
    }
    Ok(keyrings)
}

fn read_keyring(path: &Path) -> Result<(PathBuf, Vec<u8>), AptError> {
    let bytes = read_limited(path, limits::CONFIGURATION_BYTES)
        .map_err(|source| AptError::NoKeyring { path: path.to_owned(), why: source.to_string() })?;
    Ok((path.to_owned(), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "4CB50190207B4758A3F73A796ED0E7B82643E131";
    const PRIMARY: &str = "1F89983E0081FDE018F3CC9673A4F27B8DD47936";

    fn verdict(lines: &[&str], fingerprints: &[&str]) -> Result<(), String> {
        let said: String = lines.iter().map(|line| format!("[GNUPG:] {line}\n")).collect();
        let fingerprints: Vec<_> = fingerprints.iter().map(|f| (*f).to_owned()).collect();
        judge("x", &said, &fingerprints).map_err(|error| error.to_string())
    }

    fn valid() -> String {
        format!("VALIDSIG {KEY} 2026-01-01 1 0 4 0 1 8 01 {PRIMARY}")
    }

    #[test]
    fn one_good_signature_by_an_allowed_key_is_enough() {
        let valid = valid();
        let good = ["NEWSIG", "NO_PUBKEY 1", "NEWSIG", "GOODSIG 6ED0 A", &valid];
        assert_eq!(verdict(&good, &[]), Ok(()));
        assert_eq!(verdict(&good, &[PRIMARY]), Ok(()));
        assert_eq!(verdict(&good, &[&format!("{KEY}!")]), Ok(()));
        assert!(verdict(&good, &[&format!("{PRIMARY}!")]).is_err());
        let other = verdict(&good, &["0000"]).expect_err("another key");
        assert!(other.contains("not one that Signed-By names"), "{other}");
    }

    #[test]
    fn anything_else_is_refused() {
        let valid = valid();
        for (lines, why) in [
            (vec!["NEWSIG", "GOODSIG 6ED0 A", &valid, "NEWSIG", "BADSIG 1 A"], "is bad"),
            (vec!["NEWSIG", "EXPKEYSIG 6ED0 A", &valid], "has expired"),
            (vec!["NEWSIG", "REVKEYSIG 6ED0 A", &valid], "was revoked"),
            (vec!["NEWSIG", "GOODSIG 6ED0 A", "NEWSIG", &valid], "no signature"),
            (vec!["NODATA 1"], "no signature"),
        ] {
            let error = verdict(&lines, &[]).expect_err(why);
            assert!(error.contains(why), "{error}");
        }
    }
}
