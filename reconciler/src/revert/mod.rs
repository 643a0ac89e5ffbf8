//! After an automatic rollback: a branch that reverts what failed, pushed to where the
//! commits come from, so that what is in git is again what runs (`[revert]` in the settings,
//! `docs/rollouts.md`).
//!
//! It follows the audit log as receivers of notifications do, from a place of its own
//! (`state/telling/revert.json`) and in a task of its own: no pass waits for it, a
//! restart loses nothing, and what fails is told and tried again. Nothing is forced: a branch that is there
//! and holds something else stays.

pub mod commit;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use git2::{Oid, Repository};
use strata_core::audit::Record;
use strata_core::event::{Event, EventRecord, short};
use strata_core::{CompositionName, GenerationId};
use strata_store::{Store, StoreError};

use self::commit::{CommitError, Failed, Made};
use crate::audit::{self, Reader};
use crate::child::{self, Bounds, ChildError};
use crate::git::{self, REMOTE};
use crate::mirror;
use crate::rollout::RolloutFile;
use crate::secret::SecretError;
use crate::service::Ears;
use crate::source::Remote;
use crate::state::milliseconds;
use crate::telling::place::{self, Place};
use crate::telling::{LOOK, OLDEST, pause};

/// Below the store's `state/`.
const CONFIGURATION: &str = "git-config-revert";
const DEADLINE: Duration = Duration::from_secs(120);
/// Bytes of one file that git writes while it pushes.
const PUSH_BYTES: u64 = 1 << 30;
const STORE_RETRY: Duration = Duration::from_secs(10);
/// Records that are looked at before the place is noted although nothing was to be done.
const NOTED: u32 = 2_000;

/// On whose name the commits are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Author {
    pub name: String,
    pub email: String,
}

/// `[revert]` of the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevertSettings {
    /// What the names of the branches begin with.
    pub branch_prefix: String,
    /// Without one, Strata on this host.
    pub author: Option<Author>,
    /// Without one, the first of the source.
    pub remote: Option<Remote>,
}

#[derive(Debug, thiserror::Error)]
pub enum RevertError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the audit log names no commit of {0} that was good before")]
    NoGood(CompositionName),
    #[error("{0:?} is no commit id")]
    NoCommit(String),
    #[error("the mirror: {0}")]
    Mirror(git2::Error),
    #[error(transparent)]
    Commit(#[from] CommitError),
    #[error("{remote}: {source}")]
    Secret { remote: String, source: SecretError },
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error("git could not push to {remote}: {message}")]
    Push { remote: String, message: String },
}

impl RevertError {
    /// Whether it may work later.
    fn may_pass(&self) -> bool {
        match self {
            RevertError::NoGood(_) | RevertError::NoCommit(_) => false,
            // The mirror may just be made anew.
            RevertError::Commit(CommitError::Git(_) | CommitError::Read { .. }) => true,
            RevertError::Commit(
                CommitError::NoWay(_) | CommitError::Conflict { .. } | CommitError::Nothing,
            ) => false,
            RevertError::Store(_)
            | RevertError::Mirror(_)
            | RevertError::Secret { .. }
            | RevertError::Child(_)
            | RevertError::Push { .. } => true,
        }
    }
}

/// A rollback, as the audit log tells it.
#[derive(Debug, Clone)]
struct RolledBack {
    record: Record,
    composition: CompositionName,
    generation: GenerationId,
    /// The quarantined commit.
    commit: String,
    branch: String,
}

/// What the work needs, on whatever thread it is done.
#[derive(Debug, Clone)]
struct Workshop {
    store: Arc<Store>,
    settings: RevertSettings,
    remote: Remote,
    cancelled: Arc<AtomicBool>,
}

/// Ends a push when the task ends.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Follows the audit log, for ever. `source` is the first remote of the source.
pub async fn run(store: Arc<Store>, ears: Ears, source: Remote, settings: RevertSettings) {
    let cancelled = Arc::new(AtomicBool::new(false));
    let _guard = CancelOnDrop(cancelled.clone());
    let remote = settings.remote.clone().unwrap_or(source);
    let workshop = Workshop { store, settings, remote, cancelled };
    loop {
        if let Err(error) = follow(&workshop, &ears).await {
            tracing::warn!(%error, "reverts: the store cannot be used; tried again");
        }
        tokio::time::sleep(STORE_RETRY).await;
    }
}

async fn follow(workshop: &Workshop, ears: &Ears) -> Result<(), StoreError> {
    let store = &workshop.store;
    let mut place = match Place::read(store, place::REVERT)? {
        Some(place) => place,
        None => {
            // Rollbacks from before it was wanted are somebody's work already.
            let place = Place::at(Reader::at_end(store.clone())?.position());
            place.write(store, place::REVERT)?;
            place
        }
    };
    let mut reader = Reader::new(store.clone(), place.position);
    let mut passed = 0;
    loop {
        let prefix = workshop.settings.branch_prefix.clone();
        let step = tokio::task::spawn_blocking(move || {
            let found = next(&mut reader, &prefix, &mut passed);
            (reader, passed, found)
        });
        let Ok((returned, count, found)) = step.await else { return Ok(()) };
        (reader, passed) = (returned, count);
        let found = found?;
        if let Some(found) = &found {
            insist(workshop, ears, &mut place, found).await?;
        } else if passed < NOTED {
            tokio::time::sleep(LOOK).await;
            continue;
        }
        (place.position, passed) = (reader.position(), 0);
        place.write(store, place::REVERT)?;
    }
}

/// The next rollback that nobody ordered.
fn next(
    reader: &mut Reader,
    prefix: &str,
    passed: &mut u32,
) -> Result<Option<RolledBack>, StoreError> {
    while let Some(record) = reader.next()? {
        let ordered = record.who.operator.is_some();
        if let Event::RolledBack { composition, generation, commit, .. } = &record.event
            && !ordered
        {
            let (composition, generation) = (composition.clone(), *generation);
            let (commit, branch) =
                (commit.clone(), format!("{prefix}{composition}-{}", short(commit)));
            return Ok(Some(RolledBack { record, composition, generation, commit, branch }));
        }
        *passed += 1;
        if *passed >= NOTED {
            return Ok(None);
        }
    }
    Ok(None)
}

/// Makes and pushes the branch, as often as it takes, until it is too old.
async fn insist(
    workshop: &Workshop,
    ears: &Ears,
    place: &mut Place,
    found: &RolledBack,
) -> Result<(), StoreError> {
    let RolledBack { record, composition, commit, branch, .. } = found;
    let mut attempts = 0;
    loop {
        let (shop, wanted) = (workshop.clone(), found.clone());
        let work = tokio::task::spawn_blocking(move || shop.push(&wanted, attempts > 0));
        let done = match work.await {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(branch, %error, "the work on a revert broke off");
                return Ok(());
            }
        };
        let now_ms = milliseconds(SystemTime::now());
        let old = now_ms.saturating_sub(record.at_ms) > OLDEST.as_millis() as u64;
        let (composition, commit, branch) = (composition.clone(), commit.clone(), branch.clone());
        match done {
            Ok(None) => {
                tracing::info!(branch, "another commit came meanwhile; no revert is pushed");
                place.failing = None;
                return Ok(());
            }
            Ok(Some(Made { reverted, .. })) => {
                place.delivered(None, now_ms);
                let remote = workshop.remote.to_string();
                let reverted = reverted.iter().map(Oid::to_string).collect();
                tell(ears, Event::RevertPushed { composition, commit, branch, remote, reverted })
                    .await;
                return Ok(());
            }
            Err(error) if old || !error.may_pass() => {
                let (message, given_up) = (error.to_string(), true);
                place.dropped(message.clone());
                tell(ears, Event::RevertFailed { composition, commit, branch, message, given_up })
                    .await;
                return Ok(());
            }
            Err(error) => {
                let message = error.to_string();
                let news = place.failing.as_ref().is_none_or(|failing| failing.message != message);
                attempts = place.failed(message.clone(), now_ms);
                // The place in the log stays where it was.
                place.write(&workshop.store, place::REVERT)?;
                if news {
                    let given_up = false;
                    tell(
                        ears,
                        Event::RevertFailed { composition, commit, branch, message, given_up },
                    )
                    .await;
                }
                tokio::time::sleep(pause(attempts, None)).await;
            }
        }
    }
}

/// Writes to the audit log, off this thread.
async fn tell(ears: &Ears, event: Event) {
    crate::rollout::log(&EventRecord::new(milliseconds(SystemTime::now()), event.clone()));
    let ears = ears.clone();
    let told = tokio::task::spawn_blocking(move || ears.found(std::iter::once(event)));
    if let Err(error) = told.await {
        tracing::error!(%error, "what came of a revert is not in the audit log");
    }
}

impl Workshop {
    /// Makes the commits and pushes them. `None` where they are no longer wanted: with
    /// `again`, another commit may have come.
    fn push(&self, found: &RolledBack, again: bool) -> Result<Option<Made>, RevertError> {
        if again && self.is_superseded(found) {
            return Ok(None);
        }
        let directory = self.store.state(mirror::DIRECTORY);
        let repository = Repository::open_bare(&directory).map_err(RevertError::Mirror)?;
        let made = commit::make(&repository, &self.failed(found)?, &self.author())?;
        let configuration = self.configuration()?;
        let (remote, shown) = (&self.remote, self.remote.to_string());
        let secret = |source| RevertError::Secret { remote: shown.clone(), source };
        let mut command = git::command(&directory, &configuration, remote).map_err(secret)?;
        command.args(["push", "--quiet", "--no-verify", "--no-signed", "--recurse-submodules=no"]);
        command.args(["--", REMOTE, &format!("{}:refs/heads/{}", made.head, found.branch)]);
        let bounds =
            Bounds { deadline: DEADLINE, file_bytes: PUSH_BYTES, cancelled: &self.cancelled };
        let ended = child::run(&mut command, bounds)?;
        if ended.status.success() {
            return Ok(Some(made));
        }
        let message = remote.redact(String::from_utf8_lossy(&ended.stderr).trim());
        let message = if message.is_empty() { ended.status.to_string() } else { message };
        Err(RevertError::Push { remote: shown, message })
    }

    fn is_superseded(&self, found: &RolledBack) -> bool {
        let file = RolloutFile::read(&self.store);
        let state = file.ok().and_then(|mut file| file.compositions.remove(&found.composition));
        state.is_some_and(|state| state.target != found.generation)
    }

    /// What the audit log and the store tell of a rollback.
    fn failed(&self, found: &RolledBack) -> Result<Failed, RevertError> {
        let mut good = None;
        audit::replay(&self.store, &mut |record: &Record| {
            if let Event::RolloutDone { composition, commit, .. } = &record.event
                && *composition == found.composition
                && record.seq < found.record.seq
            {
                good = Some(commit.clone());
            }
        })?;
        let good = good.ok_or_else(|| RevertError::NoGood(found.composition.clone()))?;
        let id =
            |text: &str| Oid::from_str(text).map_err(|_| RevertError::NoCommit(text.to_owned()));
        let Event::RolledBack { ring, reason, unhealthy, .. } = &found.record.event else {
            return Err(RevertError::NoGood(found.composition.clone()));
        };
        // Names are for people: without them the addresses do.
        let names = crate::fleet::machines(&self.store).unwrap_or_else(|error| {
            tracing::warn!(%error, "the names of VAs are not known");
            Default::default()
        });
        let named = unhealthy.iter().map(|va| {
            let name = names.get(&va.mac).map(|view| view.name.clone());
            (name, va.mac, va.reason.clone())
        });
        Ok(Failed {
            composition: found.composition.clone(),
            ring: ring.clone(),
            bad: id(&found.commit)?,
            good: id(&good)?,
            reason: reason.clone(),
            unhealthy: named.collect(),
            at_ms: found.record.at_ms,
        })
    }

    fn author(&self) -> Author {
        self.settings.author.clone().unwrap_or_else(|| {
            let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
            let host = if host.is_empty() { "localhost".to_owned() } else { host };
            Author { name: "Strata".to_owned(), email: format!("strata@{host}") }
        })
    }

    fn configuration(&self) -> Result<PathBuf, StoreError> {
        let text = git::configuration(std::slice::from_ref(&self.remote));
        let present = self.store.read_state(CONFIGURATION, 1 << 16)?;
        if present.as_deref() != Some(text.as_bytes()) {
            self.store.write_state(CONFIGURATION, text.as_bytes())?;
        }
        Ok(self.store.state(CONFIGURATION))
    }
}
