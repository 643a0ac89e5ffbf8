//! What the reconciler remembers of the source: `state/reconcile.json`
//! (`docs/formats.md`, "The reconciler's state").
//!
//! The file holds what cannot be observed in the store: the high-water commit,
//! below which a branch may not be rewritten, and why the last commit seen was
//! not applied. The mark is written before the first link moves for its commit: a
//! crash in between leaves no link that is ahead of it. A pass returns what it found; [`ReconcileState::after`] folds
//! that into the state, and the file is written only where the state differs.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use strata_store::{Store, StoreError};

/// The version of the format.
const VERSION: u32 = 1;
const FILE: &str = "reconcile.json";
/// The file's path in the store.
pub const PATH: &str = "state/reconcile.json";
const FILE_BYTES: usize = 1 << 20;
/// Problems of a refused commit that are kept; more are counted.
const PROBLEMS: usize = 200;

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("state/{FILE} cannot be read: {0}")]
    Damaged(serde_json::Error),
    #[error("state/{FILE} is of version {0}, this program reads version {VERSION}")]
    Version(u32),
    #[error("the commit that state/{FILE} says was applied is no commit id")]
    Commit,
}

/// A commit and when something was found about it, in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitRecord {
    pub commit: String,
    pub at_ms: u64,
}

/// Why a commit was not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalReason {
    /// The check found errors.
    Invalid,
    /// No definition at all: an accident, not a wish.
    Empty,
    /// The branch was rewritten.
    Rewritten,
    /// Something in the commit cannot be read or is beyond a limit.
    Unreadable,
    /// Layers that it names could not be mirrored yet; tried again.
    Mirror,
    /// A new commit is not signed by anybody who is listed.
    Untrusted,
}

impl RefusalReason {
    /// What an operator can do, where the message does not say it.
    pub fn hint(self) -> Option<&'static str> {
        match self {
            RefusalReason::Rewritten => Some(
                "reset the branch to what was applied, or, where it is meant, start the reconciler once with --allow-rewrite",
            ),
            RefusalReason::Untrusted => {
                Some("let a listed signer sign it, or list its signer first (docs/sources.md)")
            }
            RefusalReason::Invalid
            | RefusalReason::Empty
            | RefusalReason::Unreadable
            | RefusalReason::Mirror => None,
        }
    }
}

impl std::fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            RefusalReason::Invalid => "invalid",
            RefusalReason::Empty => "empty",
            RefusalReason::Rewritten => "rewritten",
            RefusalReason::Unreadable => "unreadable",
            RefusalReason::Mirror => "mirror",
            RefusalReason::Untrusted => "untrusted",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub commit: String,
    pub reason: RefusalReason,
    pub message: String,
    /// Each with file and line, as `strata check` prints them.
    pub problems: Vec<String>,
    pub at_ms: u64,
}

/// What could not be done: the source or the store could not be used, or settings could not
/// be taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub message: String,
    pub at_ms: u64,
}

/// A remote that is used because those before it failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    pub remote: String,
    /// Why those before it could not be used, each with its name.
    pub failures: Vec<String>,
    /// Whether it lacks the commit that was applied, which then stays.
    pub behind: bool,
}

/// A testing branch that chosen definitions are taken from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestingState {
    /// The commit of it that is used; null where that is none, as when it is merged.
    pub commit: Option<String>,
    /// Why its last commit is not.
    pub refused: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReconcileState {
    pub version: u32,
    /// Location and branch, without credentials.
    pub source: String,
    /// The last commit that was applied as a whole.
    pub applied: Option<CommitRecord>,
    /// The last commit that links were moved for, or may have been: the high-water
    /// mark. In a file of before, what was applied is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admitted: Option<CommitRecord>,
    pub refused: Option<Refusal>,
    pub failing: Option<Failure>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub testing: Option<TestingState>,
    /// Why the settings of this host, as they were last read anew, could not be taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<Failure>,
}

/// A message without what it measured: two attempts that fail alike differ in how long
/// they took and how many bytes had come. Numbers before a unit become `N`.
pub fn gist(message: &str) -> String {
    const UNITS: [&str; 12] = [
        "ms",
        "millisecond",
        "milliseconds",
        "s",
        "sec",
        "second",
        "seconds",
        "byte",
        "bytes",
        "B",
        "KiB",
        "MiB",
    ];
    let mut gist = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, from) = rest.split_at(at);
        gist.push_str(before);
        let end = from.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(from.len());
        let (number, after) = from.split_at(end);
        let unit = after.strip_prefix(' ').unwrap_or(after);
        let unit = unit.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
        let stands_alone = !before.ends_with(|c: char| c.is_alphanumeric());
        let is_measured = stands_alone && UNITS.contains(&unit);
        gist.push_str(if is_measured { "N" } else { number });
        rest = after;
    }
    gist + rest
}

impl Fallback {
    /// Whether the same remotes fail in the same way.
    fn is_like(&self, other: &Fallback) -> bool {
        let gists =
            |fallback: &Fallback| fallback.failures.iter().map(|f| gist(f)).collect::<Vec<_>>();
        (&self.remote, self.behind) == (&other.remote, other.behind) && gists(self) == gists(other)
    }
}

/// What a pass found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Applied { commit: String },
    Refused { commit: String, reason: RefusalReason, message: String, problems: Vec<String> },
    Failed { message: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ConditionKind {
    /// The store says what the last commit seen says.
    Ready,
    /// Something is tried again without anybody's doing.
    Reconciling,
    /// Nothing will change without a new commit.
    Stalled,
    /// The settings of this host count as they were last read.
    Configured,
}

/// A statement about the reconciler, in the form of the field's other tools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: ConditionKind,
    pub status: bool,
    pub reason: String,
    pub message: String,
    /// The commit that the branch was last seen on.
    pub observed_commit: Option<String>,
}

/// Milliseconds since 1970.
pub fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970 as a time in UTC, to the second.
pub fn time_text(at_ms: u64) -> String {
    let at = i64::try_from(at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let at = at.map(|at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    at.unwrap_or_else(|| "-".to_owned())
}

impl ReconcileState {
    pub fn new(source: String) -> Self {
        ReconcileState {
            version: VERSION,
            source,
            applied: None,
            admitted: None,
            refused: None,
            failing: None,
            fallback: None,
            testing: None,
            settings: None,
        }
    }

    /// The state after the settings were read anew, for a source as they now say:
    /// `refused` where they could not be taken.
    #[must_use]
    pub fn after_settings(&self, source: String, refused: Option<String>, at_ms: u64) -> Self {
        let known = self.settings.as_ref();
        let settings = refused.map(|message| match known {
            Some(known) if known.message == message => known.clone(),
            _ => Failure { message, at_ms },
        });
        ReconcileState { source, settings, ..self.clone() }
    }

    /// Reads the state; `None` before the first pass.
    ///
    /// # Errors
    /// The file is damaged. It is not passed over: it guards against rewritten
    /// branches.
    pub fn read(store: &Store) -> Result<Option<Self>, StateError> {
        let Some(text) = store.read_state(FILE, FILE_BYTES)? else { return Ok(None) };
        let state: ReconcileState = serde_json::from_slice(&text).map_err(StateError::Damaged)?;
        match state.version {
            VERSION => Ok(Some(state)),
            version => Err(StateError::Version(version)),
        }
    }

    /// Writes the state.
    ///
    /// # Errors
    /// It cannot be written; the old one stands.
    pub fn write(&self, store: &Store) -> Result<(), StateError> {
        let mut text = serde_json::to_vec_pretty(self).map_err(StateError::Damaged)?;
        text.push(b'\n');
        Ok(store.write_state(FILE, &text)?)
    }

    /// The state once links may be moved for a commit.
    #[must_use]
    pub fn admit(&self, commit: &str, at_ms: u64) -> Self {
        let mut next = self.clone();
        if self.admitted.as_ref().is_none_or(|admitted| admitted.commit != commit) {
            next.admitted = Some(CommitRecord { commit: commit.to_owned(), at_ms });
        }
        next
    }

    /// The commit below which no branch may go back.
    pub fn mark(&self) -> Option<&CommitRecord> {
        self.admitted.as_ref().or(self.applied.as_ref())
    }

    /// The state after a pass; equal to this one where the pass found nothing new.
    #[must_use]
    pub fn after(&self, found: &Found, at_ms: u64) -> Self {
        let mut next = self.clone();
        match found {
            Found::Applied { commit } => {
                next = next.admit(commit, at_ms);
                if self.applied.as_ref().is_none_or(|applied| applied.commit != *commit) {
                    next.applied = Some(CommitRecord { commit: commit.clone(), at_ms });
                }
                (next.refused, next.failing) = (None, None);
            }
            Found::Refused { commit, reason, message, problems } => {
                let mut refusal = Refusal {
                    commit: commit.clone(),
                    reason: *reason,
                    message: message.clone(),
                    problems: problems.iter().take(PROBLEMS).cloned().collect(),
                    at_ms,
                };
                if let Some(more @ 1..) = problems.len().checked_sub(PROBLEMS) {
                    refusal.problems.push(format!("and {more} more"));
                }
                if let Some(before) = &self.refused {
                    let same = Refusal { at_ms: before.at_ms, ..refusal.clone() };
                    if same == *before {
                        refusal.at_ms = before.at_ms;
                    }
                }
                (next.refused, next.failing) = (Some(refusal), None);
            }
            Found::Failed { message } => {
                let same = |failing: &Failure| gist(&failing.message) == gist(message);
                if !self.failing.as_ref().is_some_and(same) {
                    next.failing = Some(Failure { message: message.clone(), at_ms });
                }
            }
        }
        next
    }

    /// Takes the remote that a pass used; the one of before where it is used for the
    /// same reasons.
    pub fn take_fallback(&mut self, found: Option<&Fallback>) {
        let same = |(before, found): (&Fallback, &Fallback)| before.is_like(found);
        if !self.fallback.as_ref().zip(found).is_some_and(same) {
            self.fallback = found.cloned();
        }
    }

    /// Whether what a pass found is to be told, where this state followed `before`:
    /// another commit, an end of a refusal, another refusal, another failure. That
    /// another remote is used, or one works again, brings no commit.
    pub fn is_news(&self, before: &Self, found: &Found) -> bool {
        match found {
            Found::Applied { .. } => self.applied != before.applied || before.refused.is_some(),
            Found::Refused { .. } => self.refused != before.refused,
            Found::Failed { .. } => self.failing != before.failing,
        }
    }

    /// The failure of `before` that this state, which followed it, has no more.
    pub fn ended_failure<'b>(&self, before: &'b Self) -> Option<&'b Failure> {
        before.failing.as_ref().filter(|_| self.failing.is_none())
    }

    /// The commit that the branch was last seen on.
    pub fn observed_commit(&self) -> Option<&str> {
        let refused = self.refused.as_ref().map(|refusal| refusal.commit.as_str());
        refused.or(self.mark().map(|mark| mark.commit.as_str()))
    }

    /// The conditions Ready, Reconciling, Stalled and Configured.
    pub fn conditions(&self) -> [Condition; 4] {
        let observed = self.observed_commit();
        let condition = |kind, status, reason: &str, message: &str| Condition {
            kind,
            status,
            reason: reason.to_owned(),
            message: message.to_owned(),
            observed_commit: observed.map(str::to_owned),
        };
        let (failing, refused) = (self.failing.as_ref(), self.refused.as_ref());
        let ready = match (failing, refused, &self.applied) {
            (Some(failing), _, _) => (false, "Failing", failing.message.as_str()),
            (None, Some(refused), _) => (false, "Refused", refused.message.as_str()),
            (None, None, Some(applied)) => (true, "Applied", applied.commit.as_str()),
            (None, None, None) => (false, "NoCommit", "no commit was applied yet"),
        };
        let (waiting, refused) = match refused {
            Some(refused) if refused.reason == RefusalReason::Mirror => (Some(refused), None),
            refused => (None, refused),
        };
        let reconciling = match (failing, waiting) {
            (Some(failing), _) => (true, "Retrying", failing.message.as_str()),
            (None, Some(waiting)) => (true, "Mirroring", waiting.message.as_str()),
            (None, None) => (false, "Idle", ""),
        };
        let stalled = match refused {
            Some(refused) => (true, "Refused", refused.message.as_str()),
            None => (false, "NotStalled", ""),
        };
        let configured = match &self.settings {
            Some(refused) => (false, "SettingsRefused", refused.message.as_str()),
            None => (true, "SettingsTaken", ""),
        };
        [
            condition(ConditionKind::Ready, ready.0, ready.1, ready.2),
            condition(ConditionKind::Reconciling, reconciling.0, reconciling.1, reconciling.2),
            condition(ConditionKind::Stalled, stalled.0, stalled.1, stalled.2),
            condition(ConditionKind::Configured, configured.0, configured.1, configured.2),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(commit: &str) -> Found {
        Found::Applied { commit: commit.to_owned() }
    }

    fn refused(commit: &str, problems: usize) -> Found {
        Found::Refused {
            commit: commit.to_owned(),
            reason: RefusalReason::Invalid,
            message: "2 problems".to_owned(),
            problems: vec!["web.ldf:1".to_owned(); problems],
        }
    }

    fn failed() -> Found {
        Found::Failed { message: "no route".to_owned() }
    }

    /// Ready, Reconciling, Stalled.
    fn ready(state: &ReconcileState) -> [bool; 3] {
        let [ready, reconciling, stalled, _] = state.conditions();
        [ready.status, reconciling.status, stalled.status]
    }

    #[test]
    fn the_fold() {
        let new = ReconcileState::new("/srv/fleet#main".to_owned());
        assert_eq!(ready(&new), [false, false, false]);
        let a = new.after(&applied("a"), 1);
        assert_eq!(ready(&a), [true, false, false]);
        let bad = a.after(&refused("b", 2), 2);
        assert_eq!(bad.applied, a.applied);
        assert_eq!(ready(&bad), [false, false, true]);
        let cut_off = bad.after(&failed(), 3);
        assert_eq!(ready(&cut_off), [false, true, true]);
        assert_eq!(cut_off.after(&applied("c"), 4).refused, None);
    }

    /// Links may be ahead of what was applied as a whole, never of the mark.
    #[test]
    fn the_mark_is_what_links_were_moved_for() {
        let a = ReconcileState::new(String::new()).after(&applied("a"), 1);
        assert_eq!(a.mark().expect("a mark").commit, "a");
        let moved = a.admit("b", 2).after(&failed(), 3);
        assert_eq!(moved.mark().expect("a mark").commit, "b");
        assert_eq!(moved.applied, a.applied);
        assert_eq!(moved.admit("b", 4), moved);
        let of_before = ReconcileState { admitted: None, ..a.clone() };
        assert_eq!(of_before.mark(), a.applied.as_ref());
    }

    #[test]
    fn a_failure_ends_with_the_pass_that_works() {
        let new = ReconcileState::new(String::new());
        let failing = new.after(&failed(), 1);
        let again = failing.after(&failed(), 2);
        assert_eq!((failing.ended_failure(&new), again.ended_failure(&failing)), (None, None));
        for found in [applied("a"), refused("a", 2)] {
            let works = again.after(&found, 3);
            let ended = works.ended_failure(&again).expect("it ended");
            assert_eq!((ended.message.as_str(), ended.at_ms), ("no route", 1));
            assert_eq!(works.after(&found, 4).ended_failure(&works), None);
        }
    }

    #[test]
    fn what_cannot_be_mirrored_yet_is_no_standstill() {
        let message = "main could not be mirrored".to_owned();
        let (commit, reason, problems) = ("b".to_owned(), RefusalReason::Mirror, Vec::new());
        let found = Found::Refused { commit, reason, message, problems };
        let state = ReconcileState::new(String::new()).after(&applied("a"), 1).after(&found, 2);
        assert_eq!(ready(&state), [false, true, false]);
    }

    #[test]
    fn settings_that_were_refused_show_until_others_are_taken() {
        let configured = |state: &ReconcileState| {
            let [.., configured] = state.conditions();
            (configured.status, configured.message)
        };
        let new = ReconcileState::new("/a#main".to_owned());
        assert_eq!(configured(&new), (true, String::new()));
        let why = || Some("strata.toml:3: no".to_owned());
        let refused = new.after_settings("/a#main".to_owned(), why(), 7);
        assert_eq!(configured(&refused), (false, "strata.toml:3: no".to_owned()));
        assert_eq!(refused.after_settings("/a#main".to_owned(), why(), 9), refused);
        // Passes go on, and change nothing about it.
        assert_eq!(ready(&refused.after(&applied("a"), 8)), [true, false, false]);
        assert!(!configured(&refused.after(&applied("a"), 8)).0);
        let taken = refused.after_settings("/b#main".to_owned(), None, 9);
        assert_eq!((configured(&taken).0, taken.source.as_str()), (true, "/b#main"));
    }

    #[test]
    fn finding_the_same_again_changes_nothing() {
        let mut state = ReconcileState::new(String::new());
        for found in [applied("a"), refused("b", 300), failed()] {
            state = state.after(&found, 1);
            assert_eq!(state.after(&found, 2), state);
        }
        let problems = &state.refused.expect("refused").problems;
        assert_eq!((problems.len(), problems[PROBLEMS].as_str()), (201, "and 100 more"));
    }

    #[test]
    fn the_same_failure_is_the_same_however_long_it_took() {
        let failed = |host: &str, ms: u32, bytes: u32| Found::Failed {
            message: format!(
                "fatal: Failed to connect to {host} port 443 after {ms} ms: {bytes} bytes; 10.1s"
            ),
        };
        let first = ReconcileState::new(String::new()).after(&failed("git1.example.org", 3, 17), 1);
        let again = first.after(&failed("git1.example.org", 191, 4096), 2);
        assert_eq!(first, again);
        assert!(!again.is_news(&first, &failed("git1.example.org", 191, 4096)));
        let other = first.after(&failed("git2.example.org", 3, 17), 3);
        assert!(other.is_news(&first, &failed("git2.example.org", 3, 17)));
        assert_eq!(gist("HTTP 503 of h2s, port 443, 20s"), "HTTP 503 of h2s, port 443, Ns");
        assert_ne!(gist("the status is 401"), gist("the status is 503"));
    }

    #[test]
    fn another_remote_brings_no_commit() {
        let fallback = |ms: u32| Fallback {
            remote: "/srv/b".to_owned(),
            failures: vec![format!("/srv/a: no route after {ms} ms")],
            behind: false,
        };
        let before = ReconcileState::new(String::new()).after(&applied("a"), 1);
        let mut next = before.after(&applied("a"), 2);
        next.take_fallback(Some(&fallback(7)));
        assert_ne!(next, before);
        assert!(!next.is_news(&before, &applied("a")), "a was applied before");
        let mut later = next.after(&applied("a"), 3);
        later.take_fallback(Some(&fallback(90)));
        assert_eq!(later, next);
        let refusal = next.after(&refused("b", 1), 4);
        assert!(refusal.is_news(&next, &refused("b", 1)));
        assert!(refusal.after(&applied("a"), 5).is_news(&refusal, &applied("a")), "b is withdrawn");
        assert!(next.after(&applied("c"), 6).is_news(&next, &applied("c")));
    }

    #[test]
    fn it_reads_back_and_damage_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::init(directory.path()).expect("a store");
        assert_eq!(ReconcileState::read(&store).expect("readable"), None);
        let state = ReconcileState::new("s#main".to_owned()).after(&refused("b", 2), 7);
        state.write(&store).expect("written");
        assert_eq!(ReconcileState::read(&store).expect("readable"), Some(state));
        store.write_state(FILE, b"{\"version\":1}").expect("written");
        assert!(matches!(ReconcileState::read(&store), Err(StateError::Damaged(_))));
    }
}
