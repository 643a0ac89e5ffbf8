//! What the operator of a management host sets for its reconciler, named by `strata
//! reconcile --config`: where commits come from and whose are believed (`docs/sources.md`),
//! where it listens, whom it tells and where traces go (`docs/observability.md`).
//!
//! It is not in the GitOps repository, as it says whom that is believed for.
//!
//! It is one file and the drop-ins beside it: of `/etc/strata/strata.toml` those are
//! `/etc/strata/strata.toml.d/*.toml`, in the order of their names. A later file adds
//! entries, changes members of an entry that it names, and replaces a table such as
//! `[source]` as a whole. All faults are found at once, with file and line.
//! Secrets are never in it: it names files or environment variables.

mod merge;
mod raw;
mod source;
mod traces;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use strata_core::CompositionName;
use strata_core::event::Importance;

use crate::revert::RevertSettings;
use crate::source::Source;
use crate::trust::Trust;
use crate::webhook::WebhookSettings;

pub use crate::secret::{SecretError, SecretReference as Secret};
pub use merge::checked_url;
pub use traces::TracesSettings;

/// Bytes of one file.
const FILE_BYTES: usize = 1 << 20;
/// Drop-ins of one file.
const DROP_INS: usize = 1_000;

/// What is wrong with a file, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}:{line}: {message}", file.display())]
pub struct Fault {
    pub file: PathBuf,
    /// From 1; 0 for the file as a whole.
    pub line: u32,
    pub message: String,
}

/// The configuration cannot be taken.
#[derive(Debug, thiserror::Error)]
pub struct SettingsError {
    pub faults: Vec<Fault>,
}

impl std::fmt::Display for SettingsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let faults: Vec<_> = self.faults.iter().map(ToString::to_string).collect();
        f.write_str(&faults.join("\n"))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Where commits come from, where the command line does not say.
    pub source: Option<Source>,
    /// Whose commits are believed; without it, everybody's who can push.
    pub trust: Option<Trust>,
    /// Where forges may say that there is something new.
    pub webhook: Option<WebhookSettings>,
    /// Where reverts of what was rolled back are pushed; without it, none are made.
    pub revert: Option<RevertSettings>,
    /// Where `/metrics`, `/healthz` and `/readyz` are.
    pub listen: Option<SocketAddr>,
    /// Where traces go; none are made without.
    pub traces: Option<TracesSettings>,
    pub commit_status: Vec<CommitStatus>,
    pub notify: Vec<Notify>,
}

/// Whose interface takes statuses of commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forge {
    GitHub,
    GitLab,
    /// Gitea and Forgejo.
    Gitea,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitStatus {
    pub name: String,
    pub forge: Forge,
    /// The base of its interface, as in `https://api.github.com`.
    pub api: String,
    /// `owner/name`
    pub repository: String,
    pub token: Secret,
    /// What the contexts begin with.
    pub context: String,
    /// Where people find more; `{commit}` stands for the commit.
    pub target_url: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notify {
    pub name: String,
    pub channel: Channel,
    pub importance: Importance,
    /// Only these kinds of events, whatever their importance; all where it is empty.
    pub events: Vec<String>,
    /// Only these templates, and what is about none.
    pub templates: Vec<CompositionName>,
    pub subject: Option<String>,
    pub text: Option<String>,
    /// The same is not told again for so long.
    pub quiet: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Channel {
    Webhook {
        url: String,
        secret: Option<Secret>,
    },
    /// The address is the secret.
    Slack {
        url: Secret,
    },
    Matrix {
        homeserver: String,
        room: String,
        token: Secret,
    },
    Email(Email),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// From the first byte.
    Tls,
    /// Asked for before anything is told.
    StartTls,
    /// Only to this host itself.
    None,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Email {
    pub server: String,
    pub port: u16,
    pub encryption: Encryption,
    pub from: String,
    pub to: Vec<String>,
    pub credentials: Option<(String, Secret)>,
}

impl Settings {
    /// Reads a file and its drop-ins.
    ///
    /// # Errors
    /// All faults of all files.
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let mut faults = Vec::new();
        let mut files = vec![path.to_owned()];
        match drop_ins(path) {
            Ok(more) => files.extend(more),
            Err(fault) => faults.push(fault),
        }
        let mut merged = merge::Merged::default();
        for file in files {
            match read(&file) {
                Ok(text) => merged.add(&file, &text, &mut faults),
                Err(fault) => faults.push(fault),
            }
        }
        merged.settings(faults)
    }

    /// Takes the text of the file `path`, without drop-ins.
    ///
    /// # Errors
    /// All its faults.
    pub fn parse(path: &Path, text: &str) -> Result<Self, SettingsError> {
        let (mut merged, mut faults) = (merge::Merged::default(), Vec::new());
        merged.add(path, text, &mut faults);
        merged.settings(faults)
    }
}

fn whole(file: &Path, message: impl std::fmt::Display) -> Fault {
    Fault { file: file.to_owned(), line: 0, message: message.to_string() }
}

fn read(file: &Path) -> Result<String, Fault> {
    // What is mounted into a service is often a link.
    let real = file.canonicalize().map_err(|error| whole(file, error))?;
    let bytes =
        strata_store::read_limited(&real, FILE_BYTES).map_err(|error| whole(file, error))?;
    String::from_utf8(bytes).map_err(|_| whole(file, "it is not UTF-8"))
}

/// The files beside a file that add to it, in order.
fn drop_ins(path: &Path) -> Result<Vec<PathBuf>, Fault> {
    let mut directory = path.as_os_str().to_owned();
    directory.push(".d");
    let directory = PathBuf::from(directory);
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(whole(&directory, error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(|error| whole(&directory, error))?.path();
        let hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if file.extension().is_some_and(|extension| extension == "toml") && !hidden {
            files.push(file);
        }
    }
    if files.len() > DROP_INS {
        return Err(whole(&directory, format!("it has more than {DROP_INS} files")));
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests;
