//! One reconcile pass: an ordered list of small steps and one summary.
//!
//! observe the head → admit it (history, signatures) → read it → check it whole → plan → seal → take the
//! next step of every rollout → link → note what was found. A commit is taken whole or
//! refused whole; what is refused moves nothing. Stopped anywhere, the next pass does
//! the rest. A pass that finds nothing to do writes nothing.
//!
//! Between passes [`Reconciler::step`] goes on with the rollouts of the last commit
//! that was taken.
//!
//! The steps are below, in the order in which they are taken: `admission` says which
//! commit it is, `judgement` what it says, `bring_in` makes the store say it, and
//! `report` is what came of it.

mod admission;
mod bring_in;
mod error;
mod judgement;
mod lock;
mod recovery;
mod report;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use git2::Oid;
use strata_core::audit::Who;
use strata_core::event::{Event, EventRecord};
use strata_machine::Programs;
use strata_store::{Store, StoreLock};

use crate::audit::{AuditLog, passes};
use crate::commit_tree;
use crate::library::Library;
use crate::mirror::{FetchLimits, Mirror};
use crate::probe::Prober;
use crate::repositories::mirrors;
use crate::rollout::{RolloutError, Rollouts};
use crate::source::Source;
use crate::state::{Found, ReconcileState, RefusalReason};
use crate::trust::{self, Checker, Trust};
use judgement::{Accepted, Checked, Verdict};
use report::lap;

pub use error::{PassError, Policy};
pub use lock::LOCK;
pub use report::{PassReport, PassResult, RolloutWaits, Timings};

/// How a pass works.
#[derive(Debug, Clone)]
pub struct Options {
    pub fetch_deadline: Duration,
    /// Bytes that one fetch may bring.
    pub fetch_bytes: u64,
    /// Take a branch that was rewritten.
    pub allow_rewrite: bool,
    /// Whose commits are believed; without it, everybody's who can push.
    pub trust: Option<Trust>,
    /// What health checks in VAs are run with.
    pub programs: Option<Programs>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            fetch_deadline: Duration::from_secs(120),
            fetch_bytes: 1 << 30,
            allow_rewrite: false,
            trust: None,
            programs: None,
        }
    }
}

impl Options {
    fn fetch_limits(&self) -> FetchLimits {
        FetchLimits { deadline: self.fetch_deadline, bytes: self.fetch_bytes }
    }
}

/// The reconciler of one store: owns its lock, its mirror and all its state.
#[derive(Debug)]
pub struct Reconciler {
    store: Arc<Store>,
    source: Source,
    options: Options,
    mirror: Mirror,
    trust: Option<Checker>,
    library: Library,
    mirrors: mirrors::Mirrors,
    checked: Option<Checked>,
    /// The last commit that was taken.
    accepted: Option<Arc<Accepted>>,
    /// Whether that was looked for in the mirror.
    recalled: bool,
    rollouts: Rollouts,
    checks: Prober,
    audit: Arc<AuditLog>,
    /// Whose commit the pass under way looks at.
    who: Who,
    /// The commit that was seen last.
    seen: Option<String>,
    state: ReconcileState,
    /// What there is to tell of a state that was gone. It is not on disk yet.
    rebuilt: Option<Event>,
    _lock: StoreLock,
}

impl Reconciler {
    /// Takes the store's lock, clears what a crashed predecessor left, and opens
    /// the mirror.
    ///
    /// # Errors
    /// Another reconciler holds the lock, or the store cannot be used.
    pub fn open(store: Arc<Store>, source: Source, options: Options) -> Result<Self, PassError> {
        let lock = lock::take(&store)?;
        let swept = store.sweep()?;
        if swept > 0 {
            tracing::info!(swept, "removed what a crashed writer left");
        }
        let name = source.to_string();
        let (mut state, rebuilt) = match ReconcileState::read(&store)? {
            Some(state) => (state, None),
            None => recovery::state(&store)?,
        };
        state.source = name;
        let mirror = Mirror::open(&store, &source)?;
        let audit = Arc::new(AuditLog::new(store.clone()));
        let rollouts = Rollouts::open(store.clone(), audit.clone())?;
        let checks = Prober::new(store.clone(), options.programs.clone());
        Ok(Reconciler {
            store,
            source,
            trust: options.trust.clone().map(Checker::new),
            options,
            mirror,
            library: Library::default(),
            mirrors: mirrors::Mirrors::default(),
            checked: None,
            accepted: None,
            recalled: false,
            rollouts,
            checks,
            audit,
            who: Who::default(),
            seen: state.observed_commit().map(str::to_owned),
            state,
            rebuilt,
            _lock: lock,
        })
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    pub fn audit(&self) -> &Arc<AuditLog> {
        &self.audit
    }

    /// Runs one pass and notes what it found.
    ///
    /// # Errors
    /// The source or the store cannot be used. What stood in the store stands.
    pub fn pass(&mut self, cancelled: &AtomicBool) -> Result<PassReport, PassError> {
        if let Some(event) = &self.rebuilt {
            let record = EventRecord::new(now_ms(), event.clone());
            self.audit.tell(&Who::default(), std::slice::from_ref(&record))?;
            crate::rollout::log(&record);
        }
        let passed = self.run_steps(cancelled);
        let found = match &passed {
            Ok(report) => report.found(),
            Err(error) => Found::Failed { message: error.to_string() },
        };
        let mut next = self.state.after(&found, now_ms());
        if let Ok(report) = &passed {
            next.take_fallback(report.fallback.as_ref());
            if report.refusal.is_none() {
                next.testing.clone_from(&report.testing);
            }
        }
        let news = next != self.state || self.rebuilt.is_some();
        if news {
            let ended = next.is_news(&self.state, &found).then(|| passes::ended(&passed, now_ms()));
            let told = self.audit.tell(&self.who, ended.as_slice());
            let written = told.map_err(PassError::from).and_then(|()| Ok(next.write(&self.store)?));
            match (&passed, written) {
                (_, Ok(())) => (self.state, self.rebuilt) = (next, None),
                (Ok(_), Err(error)) => return Err(error),
                (Err(_), Err(error)) => tracing::error!(%error, "the state cannot be written"),
            }
        }
        if news {
            self.mirror.tidy(self.options.fetch_limits(), cancelled);
        }
        passed.map(|report| PassReport { news: news || report.news, ..report })
    }

    fn run_steps(&mut self, cancelled: &AtomicBool) -> Result<PassReport, PassError> {
        let begun = Instant::now();
        let mut since = begun;
        let before = self.store.writes();
        self.who = Who::default();
        let fetched = self.mirror.fetch(self.options.fetch_limits(), cancelled)?;
        let (commit, fallback) = self.choose(&fetched)?;
        self.who = self.who(commit)?;
        let mut report = PassReport::new(&self.source, commit.to_string());
        report.fallback = fallback;
        if self.seen.replace(commit.to_string()).is_none_or(|seen| seen != report.commit) {
            report.committed_at_ms = commit_tree::committed_at(&self.mirror.repository()?, commit);
        }
        report.timings.fetch_ms = lap(&mut since);
        let _span = tracing::info_span!("pass", %commit).entered();
        if let Some(message) = self.rewritten(commit, cancelled)? {
            report.refuse(RefusalReason::Rewritten, message);
            return Ok(report);
        }
        match self.trusted(commit, fetched.tag.as_ref(), cancelled)? {
            trust::Verdict::Trusted { signer } => {
                report.signer.clone_from(&signer);
                self.who.signer = signer;
            }
            trust::Verdict::Untrusted { message } => {
                report.refuse(RefusalReason::Untrusted, message);
                return Ok(report);
            }
        }
        // What the check finds is not collected before the links lead to it.
        let _lease = self.store.lease()?;
        self.check(commit, cancelled)?;
        report.timings.check_ms = lap(&mut since);
        let checked = self.checked.as_ref().expect("just checked");
        report.testing.clone_from(&checked.testing);
        report.diagnostics.clone_from(&checked.diagnostics);
        match &checked.verdict {
            Verdict::Refused { reason, message } => report.refuse(*reason, message.clone()),
            Verdict::Taken(accepted) => {
                let accepted = accepted.clone();
                self.accepted = Some(accepted.clone());
                self.bring_in(&accepted, &mut report, &mut since)?;
            }
        }
        report.renames = self.store.writes().renames - before.renames;
        report.timings.total_ms = begun.elapsed().as_secs_f64() * 1000.0;
        Ok(report)
    }

    /// Goes on with the rollouts, without a look at the source. `None` where no
    /// commit was ever taken.
    ///
    /// # Errors
    /// The store cannot be used.
    pub fn step(&mut self, cancelled: &AtomicBool) -> Result<Option<PassReport>, PassError> {
        let Some(accepted) = self.accepted(cancelled)? else { return Ok(None) };
        let begun = Instant::now();
        let before = self.store.writes();
        self.checks.use_list(&accepted.checks);
        let mut report = PassReport::new(&self.source, accepted.taken.commit.clone());
        let mut stepped = self.rollouts.step(&accepted.taken, false, &mut self.checks, now_ms())?;
        let failed = stepped.failed.take();
        report.add(stepped);
        report.result = match report.actions.is_empty() {
            true => PassResult::Unchanged,
            false => PassResult::Applied,
        };
        report.renames = self.store.writes().renames - before.renames;
        report.timings.total_ms = begun.elapsed().as_secs_f64() * 1000.0;
        failed.map_or(Ok(Some(report)), |error| Err(RolloutError::from(error).into()))
    }

    /// The longest that one fetch takes: every remote may be asked, for a single commit
    /// each a second time; the mirror is looked at then, and all of it may be fetched anew.
    pub fn longest_fetch(&self) -> Duration {
        let turns = self.source.remotes().len().saturating_mul(4).saturating_add(1);
        self.options.fetch_deadline.saturating_mul(u32::try_from(turns).unwrap_or(u32::MAX))
    }

    /// The programs that VAs are made of, where they are there.
    pub fn programs(&self) -> Option<&Programs> {
        self.options.programs.as_ref()
    }

    /// Whether an operator asks for something.
    pub fn is_asked(&self) -> bool {
        crate::rollout::request::names(&self.store).is_ok_and(|names| !names.is_empty())
    }

    /// On whose account a commit is brought in.
    fn who(&self, commit: Oid) -> Result<Who, PassError> {
        let author = commit_tree::author(&self.mirror.repository()?, commit);
        let commit = Some(commit.to_string());
        let proved = self.who.commit == commit;
        let signer = self.who.signer.clone().filter(|_| proved);
        Ok(Who { commit, author, signer, ..Who::default() })
    }
}

fn now_ms() -> u64 {
    crate::state::milliseconds(SystemTime::now())
}
