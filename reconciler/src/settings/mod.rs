//! What the operator of a management host sets for its reconciler: one TOML file,
//! named by `strata reconcile --config` (`docs/sources.md`).
//!
//! It is not in the GitOps repository, as it says whom that is believed for. Secrets
//! are never in it: it names the file or the environment variable that holds one.

use std::path::{Path, PathBuf};

use git2::Oid;
use serde::Deserialize;

use crate::trust::{SignerLists, Trust};

const SETTINGS_BYTES: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("the settings {path}: {why}")]
    Read { path: PathBuf, why: String },
    #[error("the settings {path}: {message}")]
    Syntax { path: PathBuf, message: String },
    #[error("the settings {path}: {key}: {why}")]
    Value { path: PathBuf, key: &'static str, why: String },
}

/// The file as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    trust: Option<TrustTable>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct TrustTable {
    #[serde(default)]
    signers: Place,
    ssh: Option<String>,
    ssh_revoked: Option<String>,
    openpgp: Option<String>,
    anchor: Option<String>,
}

/// Where the lists of signers are.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Place {
    /// Files of this host.
    #[default]
    Files,
    /// Files of the last trusted commit.
    Commit,
}

/// The settings, checked.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub trust: Option<Trust>,
}

impl Settings {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, or something in it is not as it should be.
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let unreadable = |why: String| SettingsError::Read { path: path.to_owned(), why };
        let real = path.canonicalize().map_err(|error| unreadable(error.to_string()))?;
        let bytes = strata_store::read_limited(&real, SETTINGS_BYTES)
            .map_err(|error| unreadable(error.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|error| unreadable(error.to_string()))?;
        Self::parse(path, &text)
    }

    /// Reads the text of the file `path`.
    ///
    /// # Errors
    /// Something in it is not as it should be.
    pub fn parse(path: &Path, text: &str) -> Result<Self, SettingsError> {
        let file: File = toml::from_str(text).map_err(|error| SettingsError::Syntax {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        let at = At { path };
        Ok(Settings { trust: file.trust.map(|table| at.trust(table)).transpose()? })
    }
}

/// Makes errors that name the file.
#[derive(Clone, Copy)]
struct At<'p> {
    path: &'p Path,
}

impl At<'_> {
    fn wrong(self, key: &'static str, why: impl ToString) -> SettingsError {
        SettingsError::Value { path: self.path.to_owned(), key, why: why.to_string() }
    }

    fn trust(self, table: TrustTable) -> Result<Trust, SettingsError> {
        let TrustTable { signers, ssh, ssh_revoked, openpgp, anchor } = table;
        if ssh.is_none() && openpgp.is_none() {
            return Err(self.wrong("trust", "name a list of signers with `ssh` or `openpgp`"));
        }
        let anchor = anchor.map(|text| self.commit("trust.anchor", &text)).transpose()?;
        let lists = match signers {
            Place::Files => SignerLists::Files {
                ssh: self.path_of("trust.ssh", ssh)?,
                ssh_revoked: self.path_of("trust.ssh-revoked", ssh_revoked)?,
                openpgp: self.path_of("trust.openpgp", openpgp)?,
            },
            Place::Commit if anchor.is_none() => {
                let why = "with the signers in commits the first commit to believe must be named";
                return Err(self.wrong("trust.anchor", why));
            }
            Place::Commit => SignerLists::Commit {
                ssh: self.path_in_commit("trust.ssh", ssh)?,
                ssh_revoked: self.path_in_commit("trust.ssh-revoked", ssh_revoked)?,
                openpgp: self.path_in_commit("trust.openpgp", openpgp)?,
            },
        };
        Ok(Trust { lists, anchor })
    }

    /// A path of this host. It is absolute: a service has no directory to start from.
    fn path_of(
        self,
        key: &'static str,
        text: Option<String>,
    ) -> Result<Option<PathBuf>, SettingsError> {
        let Some(path) = text.map(PathBuf::from) else { return Ok(None) };
        match path.is_absolute() {
            true => Ok(Some(path)),
            false => Err(self.wrong(key, format!("{} is no absolute path", path.display()))),
        }
    }

    fn path_in_commit(
        self,
        key: &'static str,
        text: Option<String>,
    ) -> Result<Option<String>, SettingsError> {
        let plain = |text: &str| {
            text.split('/').all(|part| !matches!(part, "" | "." | "..")) && !text.contains('\0')
        };
        match text {
            Some(text) if !plain(&text) => {
                Err(self.wrong(key, format!("{text:?} is no path in a commit")))
            }
            text => Ok(text),
        }
    }

    fn commit(self, key: &'static str, text: &str) -> Result<Oid, SettingsError> {
        let whole = text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = Oid::from_str(text).ok().filter(|_| whole);
        id.ok_or_else(|| self.wrong(key, format!("{text:?} is no commit id of 40 digits")))
    }
}

#[cfg(test)]
mod tests;
