//! The bare mirror of the source, `state/mirror.git` in the store.
//!
//! Fetching is done by a `git` child that can be killed ([`crate::child`]);
//! reading is done here by object id, without a work tree, so that nothing a
//! commit holds is ever written to disk under a name of its choosing. The child
//! sees no configuration but the file this module writes: no hooks, no
//! submodules, no tags, no automatic packing, every object checked.
//!
//! The mirror is a cache: thrown away, it is fetched again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use git2::{ErrorCode, Oid, Repository};
use strata_store::{Store, StoreError};

use crate::child::{self, Bounds, ChildError};
use crate::source::{ALLOWED_PROTOCOLS, Source};

/// Where a fetch puts the branch.
const HEAD: &str = "refs/strata/head";
/// The head for which the mirror was last made anew.
const REBUILT: &str = "refs/strata/rebuilt";
/// The name of the source in the mirror's configuration: URLs are no arguments.
const REMOTE: &str = "source";
const CONFIGURATION: &str = "git-config";
/// Bytes that one fetch may bring.
const FETCH_BYTES: u64 = 1 << 30;
/// Variables that reach git, besides those set here.
const ENVIRONMENT: [&str; 9] = [
    "PATH",
    "HOME",
    "SSH_AUTH_SOCK",
    "https_proxy",
    "HTTPS_PROXY",
    "no_proxy",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the mirror {path}: {source}")]
    Git { path: PathBuf, source: git2::Error },
    #[error("the mirror {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error("git could not fetch {origin}: {message}")]
    Fetch { origin: String, message: String },
}

/// How a new head relates to the last commit that was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advance {
    Same,
    FastForward,
    /// The former commit is not among the new one's ancestors.
    Rewritten,
    /// The former commit or a part of the history is not in the mirror.
    Unknown,
}

#[derive(Debug)]
pub struct Mirror {
    path: PathBuf,
    configuration: PathBuf,
    source: Source,
}

impl Mirror {
    /// Opens the mirror of a source, making it where it is missing.
    ///
    /// # Errors
    /// It cannot be made, or the configuration cannot be written.
    pub fn open(store: &Store, source: &Source) -> Result<Self, MirrorError> {
        let configuration = git_configuration(source);
        let present = store.read_state(CONFIGURATION, 1 << 16)?;
        if present.as_deref() != Some(configuration.as_bytes()) {
            store.write_state(CONFIGURATION, configuration.as_bytes())?;
        }
        let mirror = Mirror {
            path: store.state("mirror.git"),
            configuration: store.state(CONFIGURATION),
            source: source.clone(),
        };
        if mirror.repository().is_err() {
            mirror.make_empty()?;
        }
        Ok(mirror)
    }

    /// Throws the mirror away and fetches it again.
    ///
    /// # Errors
    /// As of [`Mirror::fetch`], or a directory cannot be removed or made.
    pub fn fetch_anew(
        &self,
        deadline: Duration,
        cancelled: &AtomicBool,
    ) -> Result<Oid, MirrorError> {
        self.make_empty()?;
        let head = self.fetch(deadline, cancelled)?;
        let repository = self.repository()?;
        repository.reference(REBUILT, head, true, "made anew").map_err(|error| self.git(error))?;
        Ok(head)
    }

    /// Whether the mirror was made anew for this head, so that what it lacks the
    /// source lacks as well.
    pub fn is_complete_for(&self, head: Oid) -> bool {
        self.repository()
            .and_then(|repository| {
                repository.refname_to_id(REBUILT).map_err(|error| self.git(error))
            })
            .is_ok_and(|rebuilt| rebuilt == head)
    }

    fn make_empty(&self) -> Result<(), MirrorError> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.io(error)),
            _ => {}
        }
        let mut options = git2::RepositoryInitOptions::new();
        options.bare(true).external_template(false);
        Repository::init_opts(&self.path, &options).map_err(|error| self.git(error))?;
        Ok(())
    }

    /// The mirror's objects, as they are now.
    ///
    /// # Errors
    /// The mirror is damaged or gone.
    pub fn repository(&self) -> Result<Repository, MirrorError> {
        Repository::open_bare(&self.path).map_err(|error| self.git(error))
    }

    /// The commit that the last fetch brought.
    ///
    /// # Errors
    /// The mirror is damaged.
    pub fn head(&self) -> Result<Option<Oid>, MirrorError> {
        match self.repository()?.refname_to_id(HEAD) {
            Ok(id) => Ok(Some(id)),
            Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(self.git(error)),
        }
    }

    /// The branch's commit in a source on this host, without starting git;
    /// `None` where only a fetch can tell.
    pub fn peek(&self) -> Option<Oid> {
        let repository = Repository::open(self.source.local_path()?).ok()?;
        let id = repository.refname_to_id(&self.source.reference()).ok()?;
        Some(id)
    }

    /// Brings the branch into the mirror, unless it is known to be there already.
    ///
    /// # Errors
    /// Git failed, or was ended at the deadline or because `cancelled` was set.
    pub fn fetch(&self, deadline: Duration, cancelled: &AtomicBool) -> Result<Oid, MirrorError> {
        if let Some(peeked) = self.peek()
            && self.head()? == Some(peeked)
        {
            return Ok(peeked);
        }
        self.remove_leftovers()?;
        let mut command = self.command();
        command.args(["fetch", "--quiet", "--no-write-fetch-head", "--no-auto-maintenance"]);
        command.args(["--no-tags", "--no-recurse-submodules", "--force", "--", REMOTE]);
        command.arg(format!("{}:{HEAD}", self.source.reference()));
        let bounds = Bounds { deadline, file_bytes: FETCH_BYTES, cancelled };
        let ended = child::run(&mut command, bounds)?;
        if !ended.status.success() {
            let message = self.source.redact(String::from_utf8_lossy(&ended.stderr).trim());
            let message = if message.is_empty() { ended.status.to_string() } else { message };
            return Err(MirrorError::Fetch { origin: self.source.to_string(), message });
        }
        self.head()?.ok_or_else(|| MirrorError::Fetch {
            origin: self.source.to_string(),
            message: "git reported success and brought no commit".to_owned(),
        })
    }

    /// How `new` relates to the commit `old`.
    ///
    /// # Errors
    /// The mirror cannot be opened.
    pub fn advance(&self, old: Oid, new: Oid) -> Result<Advance, MirrorError> {
        if old == new {
            return Ok(Advance::Same);
        }
        let repository = self.repository()?;
        if repository.find_commit(old).is_err() {
            return Ok(Advance::Unknown);
        }
        match repository.graph_descendant_of(new, old) {
            Ok(true) => Ok(Advance::FastForward),
            Ok(false) => Ok(Advance::Rewritten),
            Err(error) => {
                tracing::warn!(%error, "the mirror's history cannot be read");
                Ok(Advance::Unknown)
            }
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new("git");
        command.env_clear();
        for name in ENVIRONMENT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .env("LC_ALL", "C")
            .env("GIT_DIR", &self.path)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", &self.configuration)
            .env("GIT_ALLOW_PROTOCOL", ALLOWED_PROTOCOLS)
            .env("GIT_PROTOCOL_FROM_USER", "0")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "/bin/false")
            .env("SSH_ASKPASS", "/bin/false")
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("GIT_SSH_COMMAND", "ssh -oBatchMode=yes -oStrictHostKeyChecking=yes");
        command.current_dir(&self.path);
        command
    }

    /// Removes what a killed fetch left: its temporary packs, and the lock on
    /// the reference that would refuse every later one. Only the holder of the
    /// reconciler's lock comes here.
    fn remove_leftovers(&self) -> Result<(), MirrorError> {
        let leftover = |name: &str| name.starts_with("tmp_") || name.ends_with(".lock");
        for directory in ["refs/strata", "objects/pack", ""] {
            let directory = self.path.join(directory);
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(self.io(error)),
            };
            for entry in entries {
                let path = entry.map_err(|error| self.io(error))?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if leftover(&name) && path.is_file() {
                    tracing::debug!(path = %path.display(), "removing what a killed fetch left");
                    fs::remove_file(&path).map_err(|error| self.io(error))?;
                }
            }
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn git(&self, source: git2::Error) -> MirrorError {
        MirrorError::Git { path: self.path.clone(), source }
    }

    fn io(&self, source: io::Error) -> MirrorError {
        MirrorError::Io { path: self.path.clone(), source }
    }
}

/// All configuration that git sees besides the mirror's own.
fn git_configuration(source: &Source) -> String {
    let mut text = String::from(
        "[core]\n\thooksPath = /dev/null\n\tfsmonitor = false\n\
         [transfer]\n\tfsckObjects = true\n\
         [fetch]\n\tunpackLimit = 1\n\twriteCommitGraph = false\n\trecurseSubmodules = false\n\
         [gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n\
         [http]\n\tfollowRedirects = false\n\
         [credential]\n\thelper =\n",
    );
    let quoted = quote(source.location());
    if let Some(path) = source.local_path() {
        // The operator named this repository, so whoever owns it is trusted with
        // the commits; git would otherwise read only this user's repositories.
        let git_directory = quote(&format!("{}/.git", path.display()));
        text.push_str(&format!("[safe]\n\tdirectory = {quoted}\n\tdirectory = {git_directory}\n"));
    }
    text.push_str(&format!("[remote \"{REMOTE}\"]\n\turl = {quoted}\n\ttagOpt = --no-tags\n"));
    text
}

fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
