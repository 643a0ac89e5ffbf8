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
//! The mirror is a cache: where it is found damaged, it is fetched again beside the old one,
//! which is replaced once that has succeeded.

mod care;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use git2::{Commit, ErrorCode, Oid, Repository, Tag};
use strata_core::printable::printable_lines;
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
    #[error("{origin}: {selector} leads to no commit")]
    NoCommit { origin: String, selector: String },
    #[error("no remote could be fetched: {}", .0.join("; "))]
    All(Vec<String>),
    #[error("the mirror {path} is damaged: {message}")]
    Damaged { path: PathBuf, message: String },
}

impl MirrorError {
    /// Whether it is the mirror that fails, and no remote.
    fn is_of_the_mirror(&self) -> bool {
        match self {
            MirrorError::Git { .. } | MirrorError::Io { .. } | MirrorError::Damaged { .. } => true,
            MirrorError::Store(_)
            | MirrorError::Child(_)
            | MirrorError::Fetch { .. }
            | MirrorError::TooLarge { .. }
            | MirrorError::Secret { .. }
            | MirrorError::Missing { .. }
            | MirrorError::Ambiguous { .. }
            | MirrorError::NoCommit { .. }
            | MirrorError::All(_) => false,
        }
    }

    /// Whether the mirror itself is broken, or gone; not what the system refused for the moment.
    fn is_damage(&self) -> bool {
        match self {
            MirrorError::Damaged { .. } => true,
            MirrorError::Git { source, .. } => {
                source.code() == ErrorCode::NotFound || source.class() != git2::ErrorClass::Os
            }
            MirrorError::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
            }
            _ => false,
        }
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
    /// It was found damaged, and could not be fetched anew yet.
    damaged: bool,
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
            damaged: false,
        };
        mirror.finish_replacement()?;
        if mirror.repository().is_err() {
            mirror.make_empty()?;
        }
        let own = mirror.path.join("config");
        if fs::read(&own).ok().as_deref() != Some(OWN_CONFIGURATION.as_bytes()) {
            fs::write(&own, OWN_CONFIGURATION).map_err(|error| mirror.io(error))?;
        }
        Ok(mirror)
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

    /// The commit that an object is, or leads to as a tag; `None` where that is something
    /// else.
    fn commit_of(&self, id: Oid) -> Result<Option<Oid>, MirrorError> {
        let repository = self.repository()?;
        let mut object = repository.find_object(id, None).map_err(|error| self.git(error))?;
        while let Some(target) = object.as_tag().map(Tag::target) {
            object = target.map_err(|error| self.git(error))?;
        }
        Ok(object.as_commit().map(Commit::id))
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

    /// Brings what is followed into the mirror, unless it is known to be there already. A
    /// mirror that fails is made anew, once.
    ///
    /// # Errors
    /// No remote could be fetched, or git was ended because `cancelled` was set.
    pub fn fetch(
        &mut self,
        limits: FetchLimits,
        cancelled: &AtomicBool,
    ) -> Result<Fetched, MirrorError> {
        if self.damaged {
            return self.fetch_anew(limits, cancelled);
        }
        match self.fetch_here(limits, cancelled) {
            Err(error) if error.is_damage() => {
                self.damaged = true;
                tracing::warn!(%error, "the mirror is damaged and made anew");
                self.fetch_anew(limits, cancelled)
            }
            ended => ended,
        }
    }

    fn fetch_here(
        &mut self,
        limits: FetchLimits,
        cancelled: &AtomicBool,
    ) -> Result<Fetched, MirrorError> {
        if let Some(head) = self.head()? {
            self.commit_of(head)?;
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
                Err(error) if error.is_of_the_mirror() => return Err(error),
                Err(error) => {
                    // Git does not say whose fault it is. The mirror is not looked at each time
                    // that a remote is out of reach.
                    let turn = (self.rests[index].failures + 1).is_power_of_two();
                    if turn && matches!(error, MirrorError::Fetch { .. }) {
                        self.refuse_damage(limits, cancelled)?;
                    }
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
        let commit = self.commit_of(head)?.ok_or_else(|| MirrorError::NoCommit {
            origin: self.source.remotes()[remote].to_string(),
            selector: self.source.selector().to_string(),
        })?;
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
        let message = printable_lines(&message).into_owned();
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
