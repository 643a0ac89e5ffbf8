//! The bare mirror of the source, `state/mirror.git` in the store.
//!
//! Fetching is done by a `git` child that can be killed ([`crate::child`]);
//! reading is done here by object id, without a work tree, so that nothing a
//! commit holds is ever written to disk under a name of its choosing. What the child sees
//! is in [`crate::git`].
//!
//! The remotes of a source are asked in their order, and the first that answers is
//! used. One that failed is left alone for a while, longer each time, as long as
//! another answers.
//!
//! The mirror is a cache: thrown away, it is fetched again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use git2::{ErrorCode, Oid, Repository};
use strata_store::{Store, StoreError};

use crate::child::{self, Bounds, ChildError};
use crate::git::{self, REMOTE};
use crate::secret::SecretError;
use crate::source::{self, Ambiguous, Remote, Selector, Source};

/// Where a fetch puts what is followed.
const HEAD: &str = "refs/strata/head";
/// The head for which the mirror was last made anew.
const REBUILT: &str = "refs/strata/rebuilt";
/// Where tags and branches are put if there is a choice among them.
const TAGS: &str = "refs/strata/tags/";
const TESTING: &str = "refs/strata/testing/";
const HEADS: &str = "refs/strata/heads/";
/// The mirror's own configuration, which is put back where it is another one.
const OWN_CONFIGURATION: &str =
    "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n";
/// How long a remote that failed is left alone, the first time and at most.
const FIRST_REST: Duration = Duration::from_secs(5);
const LONGEST_REST: Duration = Duration::from_secs(300);
const CONFIGURATION: &str = "git-config";
/// The name of the mirror below the store's `state/`.
pub const DIRECTORY: &str = "mirror.git";
/// What one fetch may take.
#[derive(Debug, Clone, Copy)]
pub struct FetchLimits {
    pub deadline: Duration,
    /// Bytes that it brings.
    pub bytes: u64,
}

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
    #[error("{origin} would bring more than {limit} bytes in one fetch, which was cut off")]
    TooLarge { origin: String, limit: u64 },
    #[error("{origin}: {source}")]
    Secret { origin: String, source: SecretError },
    #[error("{origin} has no {selector}")]
    Missing { origin: String, selector: String },
    #[error("{origin} has the tags {} and {}, which are one version and two commits", tags.0, tags.1)]
    Ambiguous { origin: String, tags: Ambiguous },
    #[error("no remote could be fetched: {}", .0.join("; "))]
    All(Vec<String>),
}

impl MirrorError {
    /// Whether the mirror itself is broken, or gone; not what the system refused for the moment.
    fn is_damage(&self) -> bool {
        let MirrorError::Git { source, .. } = self else { return false };
        source.code() == ErrorCode::NotFound || source.class() != git2::ErrorClass::Os
    }
}

/// What a fetch brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    pub commit: Oid,
    /// The name and the object of the tag that leads to the commit, where tags are
    /// followed.
    pub tag: Option<(String, Oid)>,
    /// The number of the remote that was used.
    pub remote: usize,
    /// Why those before it were not, each with its name.
    pub failures: Vec<String>,
}

/// A remote's last failures.
#[derive(Debug, Clone, Default)]
struct Rest {
    failures: u32,
    until: Option<Instant>,
    message: String,
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
    rests: Vec<Rest>,
}

impl Mirror {
    /// Opens the mirror of a source, making it where it is missing.
    ///
    /// # Errors
    /// It cannot be made, or the configuration cannot be written.
    pub fn open(store: &Store, source: &Source) -> Result<Self, MirrorError> {
        let configuration = git::configuration(source.remotes());
        let present = store.read_state(CONFIGURATION, 1 << 16)?;
        if present.as_deref() != Some(configuration.as_bytes()) {
            store.write_state(CONFIGURATION, configuration.as_bytes())?;
        }
        let mirror = Mirror {
            path: store.state(DIRECTORY),
            configuration: store.state(CONFIGURATION),
            source: source.clone(),
            rests: vec![Rest::default(); source.remotes().len()],
        };
        if mirror.repository().is_err() {
            mirror.make_empty()?;
        }
        let own = mirror.path.join("config");
        if fs::read(&own).ok().as_deref() != Some(OWN_CONFIGURATION.as_bytes()) {
            fs::write(&own, OWN_CONFIGURATION).map_err(|error| mirror.io(error))?;
        }
        Ok(mirror)
    }

    /// Throws the mirror away and fetches it again.
    ///
    /// # Errors
    /// As of [`Mirror::fetch`], or a directory cannot be removed or made.
    pub fn fetch_anew(
        &mut self,
        limits: FetchLimits,
        cancelled: &AtomicBool,
    ) -> Result<Fetched, MirrorError> {
        self.make_empty()?;
        let fetched = self.fetch(limits, cancelled)?;
        self.set_reference(REBUILT, fetched.commit)?;
        Ok(fetched)
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
        let removed = match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                fs::remove_file(&self.path)
            }
            removed => removed,
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.io(error)),
            _ => {}
        }
        let mut options = git2::RepositoryInitOptions::new();
        options.bare(true).external_template(false);
        Repository::init_opts(&self.path, &options).map_err(|error| self.git(error))?;
        fs::write(self.path.join("config"), OWN_CONFIGURATION).map_err(|error| self.io(error))
    }

    /// The mirror's objects, as they are now.
    ///
    /// # Errors
    /// The mirror is damaged or gone.
    pub fn repository(&self) -> Result<Repository, MirrorError> {
        Repository::open_bare(&self.path).map_err(|error| self.git(error))
    }

    /// What the last fetch left at its reference: a commit, or a tag.
    fn head(&self) -> Result<Option<Oid>, MirrorError> {
        let repository = self.repository()?;
        // Without this one git does not take it for a repository.
        repository.find_reference("HEAD").map_err(|error| self.git(error))?;
        match repository.refname_to_id(HEAD) {
            Ok(id) => Ok(Some(id)),
            Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(self.git(error)),
        }
    }

    /// The commit that an object is, or leads to as a tag.
    fn commit_of(&self, id: Oid) -> Result<Oid, MirrorError> {
        let repository = self.repository()?;
        let object = repository.find_object(id, None).map_err(|error| self.git(error))?;
        Ok(object.peel_to_commit().map_err(|error| self.git(error))?.id())
    }

    /// What a source on this host has at its reference, without starting git; `None`
    /// where only a fetch can tell.
    fn peek(&self) -> Option<Oid> {
        let reference = self.source.selector().reference()?;
        let repository = Repository::open(self.source.local_path()?).ok()?;
        if let Some(testing) = self.source.testing() {
            let theirs = repository.refname_to_id(&format!("refs/heads/{}", testing.branch()));
            if self.testing().ok()? != theirs.ok() {
                return None;
            }
        }
        repository.refname_to_id(&reference).ok()
    }

    /// The commit of the testing branch, where the source has one.
    ///
    /// # Errors
    /// The mirror is damaged.
    pub fn testing(&self) -> Result<Option<Oid>, MirrorError> {
        let Some(testing) = self.source.testing() else { return Ok(None) };
        match self.repository()?.refname_to_id(&format!("{TESTING}{}", testing.branch())) {
            Ok(id) => Ok(Some(id)),
            Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(self.git(error)),
        }
    }

    /// Brings what is followed into the mirror, unless it is known to be there already.
    ///
    /// # Errors
    /// No remote could be fetched, or git was ended because `cancelled` was set.
    pub fn fetch(
        &mut self,
        limits: FetchLimits,
        cancelled: &AtomicBool,
    ) -> Result<Fetched, MirrorError> {
        let damage = match self.head() {
            Ok(head) => head.and_then(|head| self.commit_of(head).err()),
            Err(error) if error.is_damage() => Some(error),
            Err(error) => return Err(error),
        };
        if let Some(error) = damage {
            tracing::warn!(%error, "the mirror is damaged and made anew");
            self.make_empty()?;
        }
        if let Some(peeked) = self.peek()
            && self.head()? == Some(peeked)
        {
            return self.fetched(0);
        }
        if let Selector::Commit(id) = *self.source.selector()
            && self.source.testing().is_none()
            && self.repository()?.find_commit(id).is_ok()
        {
            self.set_reference(HEAD, id)?;
            return self.fetched(0);
        }
        let rested = |rest: &Rest| rest.until.is_none_or(|until| until <= Instant::now());
        let any = self.rests.iter().any(rested);
        let turn: Vec<_> =
            (0..self.rests.len()).filter(|index| !any || rested(&self.rests[*index])).collect();
        let mut last = None;
        for index in turn {
            match self.fetch_from(index, limits, cancelled) {
                Ok(()) => {
                    self.rests[index] = Rest::default();
                    return self.fetched(index);
                }
                Err(error @ MirrorError::Child(ChildError::Cancelled { .. })) => return Err(error),
                Err(error) => {
                    self.rest(index, &error);
                    last = Some(error);
                }
            }
        }
        match (last, self.rests.len()) {
            (Some(error), 1) => Err(error),
            _ => {
                let messages = self.rests.iter().filter(|rest| rest.failures > 0);
                Err(MirrorError::All(messages.map(|rest| rest.message.clone()).collect()))
            }
        }
    }

    /// Notes that a remote failed.
    fn rest(&mut self, index: usize, error: &MirrorError) {
        let remote = self.source.remotes()[index].to_string();
        let rest = &mut self.rests[index];
        let wait = FIRST_REST.saturating_mul(1 << rest.failures.min(16)).min(LONGEST_REST);
        rest.failures = rest.failures.saturating_add(1);
        rest.until = Some(Instant::now() + wait);
        rest.message = match error.to_string() {
            message if message.contains(&remote) => message,
            message => format!("{remote}: {message}"),
        };
    }

    /// What the mirror holds after the remote `remote` was fetched.
    fn fetched(&self, remote: usize) -> Result<Fetched, MirrorError> {
        let missing = || MirrorError::Fetch {
            origin: self.source.remotes()[remote].to_string(),
            message: "git reported success and brought no commit".to_owned(),
        };
        let head = self.head()?.ok_or_else(missing)?;
        let commit = self.commit_of(head).map_err(|_| missing())?;
        let tag = match self.source.selector() {
            Selector::Tag(name) => Some((name.clone(), head)),
            Selector::Range(_) => self.highest_tag(remote)?,
            Selector::Branch(_) | Selector::Commit(_) => None,
        };
        let failed = self.rests[..remote].iter().filter(|rest| rest.failures > 0);
        let failures = failed.map(|rest| rest.message.clone()).collect();
        Ok(Fetched { commit, tag, remote, failures })
    }

    fn fetch_from(
        &self,
        index: usize,
        limits: FetchLimits,
        cancelled: &AtomicBool,
    ) -> Result<(), MirrorError> {
        let remote = &self.source.remotes()[index];
        let selector = self.source.selector();
        let missing =
            || MirrorError::Missing { origin: remote.to_string(), selector: selector.to_string() };
        let bring = |what: String| self.run_git(remote, &what, limits, cancelled);
        match selector {
            Selector::Branch(name) => bring(format!("+refs/heads/{name}:{HEAD}")),
            Selector::Tag(name) => bring(format!("+refs/tags/{name}:{HEAD}")),
            Selector::Range(_) => {
                bring(format!("+refs/tags/*:{TAGS}*"))?;
                let (_, object) = self.highest_tag(index)?.ok_or_else(missing)?;
                self.set_reference(HEAD, object)
            }
            Selector::Commit(id) => {
                // Servers may refuse to send a commit that is no reference's.
                match bring(format!("+{id}:{HEAD}")) {
                    Err(MirrorError::Fetch { .. }) => bring(format!("+refs/heads/*:{HEADS}*"))?,
                    ended => ended?,
                }
                self.repository()?.find_commit(*id).map_err(|_| missing())?;
                self.set_reference(HEAD, *id)
            }
        }
    }

    /// The highest tag of the range that is followed, among those that were fetched.
    fn highest_tag(&self, remote: usize) -> Result<Option<(String, Oid)>, MirrorError> {
        let Selector::Range(range) = self.source.selector() else { return Ok(None) };
        let repository = self.repository()?;
        let git = |error| self.git(error);
        let mut tags = Vec::new();
        for reference in repository.references_glob(&format!("{TAGS}*")).map_err(git)? {
            let reference = reference.map_err(git)?;
            let name = reference.name().ok().and_then(|name| name.strip_prefix(TAGS));
            let (Some(name), Some(object)) = (name, reference.target()) else { continue };
            let Ok(commit) = reference.peel_to_commit() else { continue };
            tags.push((name.to_owned(), (commit.id(), object)));
        }
        tags.sort();
        let commits = tags.iter().map(|(name, (commit, _))| (name.clone(), *commit));
        let chosen = source::highest(range, commits).map_err(|tags| MirrorError::Ambiguous {
            origin: self.source.remotes()[remote].to_string(),
            tags,
        })?;
        let Some((chosen, _)) = chosen else { return Ok(None) };
        Ok(tags.into_iter().find(|(name, _)| *name == chosen).map(|(name, (_, id))| (name, id)))
    }

    fn run_git(
        &self,
        remote: &Remote,
        what: &str,
        limits: FetchLimits,
        cancelled: &AtomicBool,
    ) -> Result<(), MirrorError> {
        self.remove_leftovers()?;
        let mut command = self.command(remote)?;
        command.args(["fetch", "--quiet", "--no-write-fetch-head", "--no-auto-maintenance"]);
        command.args(["--no-tags", "--no-recurse-submodules", "--force", "--prune"]);
        command.args(["--", REMOTE, what]);
        if let Some(testing) = self.source.testing() {
            // The pattern makes a branch that is not there no error.
            let branch = testing.branch();
            command.arg(format!("+refs/heads/{branch}*:{TESTING}{branch}*"));
        }
        let FetchLimits { deadline, bytes } = limits;
        let bounds = Bounds { deadline, file_bytes: bytes, cancelled };
        let ended = child::run(&mut command, bounds)?;
        if ended.status.success() {
            return Ok(());
        }
        let origin = remote.to_string();
        if self.largest_leftover()? >= bytes {
            self.remove_leftovers()?;
            return Err(MirrorError::TooLarge { origin, limit: bytes });
        }
        let message = remote.redact(String::from_utf8_lossy(&ended.stderr).trim());
        let message = if message.is_empty() { ended.status.to_string() } else { message };
        Err(MirrorError::Fetch { origin, message })
    }

    fn set_reference(&self, name: &str, id: Oid) -> Result<(), MirrorError> {
        let repository = self.repository()?;
        if repository.refname_to_id(name).is_ok_and(|found| found == id) {
            return Ok(());
        }
        let set = repository.reference(name, id, true, "followed");
        set.map(drop).map_err(|error| self.git(error))
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

    fn command(&self, remote: &Remote) -> Result<Command, MirrorError> {
        git::command(&self.path, &self.configuration, remote)
            .map_err(|source| MirrorError::Secret { origin: remote.to_string(), source })
    }

    /// Removes what a killed fetch left. Only the holder of the reconciler's lock comes here.
    fn remove_leftovers(&self) -> Result<(), MirrorError> {
        for path in self.leftovers()? {
            tracing::debug!(path = %path.display(), "removing what a killed fetch left");
            fs::remove_file(&path).map_err(|error| self.io(error))?;
        }
        Ok(())
    }

    /// Bytes of the largest file that a killed fetch left.
    fn largest_leftover(&self) -> Result<u64, MirrorError> {
        let sizes = self.leftovers()?.into_iter().map(|path| fs::metadata(path).map(|m| m.len()));
        let sizes: Result<Vec<_>, _> = sizes.collect();
        Ok(sizes.map_err(|error| self.io(error))?.into_iter().max().unwrap_or(0))
    }

    /// What a killed fetch left: its temporary packs, and the lock on the reference that
    /// would refuse every later one.
    fn leftovers(&self) -> Result<Vec<PathBuf>, MirrorError> {
        let leftover = |name: &str| name.starts_with("tmp_") || name.ends_with(".lock");
        let mut found = Vec::new();
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
                    found.push(path);
                }
            }
        }
        Ok(found)
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
