//! What the operator of a management host sets for its reconciler: one TOML file,
//! named by `strata reconcile --config` (`docs/sources.md`).
//!
//! It is not in the GitOps repository, as it says whom that is believed for. Secrets
//! are never in it: it names the file or the environment variable that holds one.

mod source;

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::source::Source;
use crate::trust::Trust;
use crate::webhook::WebhookSettings;
use source::{SourceTable, TrustTable, WebhookTable};

const SETTINGS_BYTES: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
#[error("the settings {path}: {message}")]
pub struct SettingsError {
    pub path: PathBuf,
    pub message: String,
}

/// The file as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    source: Option<SourceTable>,
    trust: Option<TrustTable>,
    webhook: Option<WebhookTable>,
}

/// The settings, checked.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub source: Option<Source>,
    pub trust: Option<Trust>,
    pub webhook: Option<WebhookSettings>,
}

impl Settings {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, or something in it is not as it should be.
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let unreadable = |message: String| SettingsError { path: path.to_owned(), message };
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
        let wrong = |message: String| SettingsError { path: path.to_owned(), message };
        let file: File =
            toml::from_str(text).map_err(|error| wrong(error.to_string().trim_end().to_owned()))?;
        Ok(Settings {
            source: file.source.map(SourceTable::check).transpose().map_err(wrong)?,
            trust: file.trust.map(TrustTable::check).transpose().map_err(wrong)?,
            webhook: file.webhook.map(WebhookTable::check).transpose().map_err(wrong)?,
        })
    }
}

#[cfg(test)]
mod tests;
