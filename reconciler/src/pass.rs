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
//! **Invariant:** what waits for other hosts ([`Inspector`]) moves nothing in the store,
//! and what moves links ([`Keeper`]) waits for no other host. A commit is brought in
//! only after its high-water mark is durable.
//!
//! The steps are below, in the order in which they are taken: `admission` says which
//! commit it is, `judgement` what it says, `bring_in` makes the store say it, and
//! `report` is what came of it. `step` is what goes on between passes.

mod admission;
mod bring_in;
mod error;
mod judgement;
mod lock;
mod put_back;
mod recovery;
mod report;
mod step;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use git2::Oid;
use strata_core::audit::Who;
use strata_core::event::{Event, EventRecord};
use strata_machine::Programs;
use strata_store::{Store, StoreLock};
use tracing::field::{Empty, display};

use crate::audit::{AuditLog, passes};
use crate::commit_tree;
use crate::library::Library;
use crate::mirror::{FetchLimits, Fetched, Mirror};
use crate::probe::Prober;
use crate::repositories::mirrors;
use crate::rollout::Rollouts;
use crate::source::Source;
use crate::state::{Found, ReconcileState, StateError};
use crate::traces::spans::{self, Origin, span};
use crate::trust::{Checker, Trust};
use judgement::{Checked, Verdict};
use report::lap;

pub use error::{PassError, Policy};
pub use judgement::Accepted;
pub use lock::LOCK;
pub(crate) use put_back::tampered;
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
    /// The process ends after one pass, so what it asks for is waited for.
    pub once: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            fetch_deadline: Duration::from_secs(120),
            fetch_bytes: 1 << 30,
            allow_rewrite: false,
            trust: None,
            programs: None,
            once: false,
        }
    }
}

impl Options {
    fn fetch_limits(&self) -> FetchLimits {
        FetchLimits { deadline: self.fetch_deadline, bytes: self.fetch_bytes }
    }
}

/// What looks at commits: fetches them, reads them and judges them. It moves nothing
/// and may take its time, as other hosts may.
#[derive(Debug)]
pub struct Inspector {
    store: Arc<Store>,
    source: Source,
    options: Options,
    mirror: Mirror,
    trust: Option<Checker>,
    library: Library,
    mirrors: mirrors::Mirrors,
    checked: Option<Checked>,
    /// The commit that the mirror was last made anew for.
    rebuilt_for: Option<Oid>,
    /// Whose commit is looked at.
    who: Who,
    /// Its place in a trace.
    origin: Origin,
    /// The commit that was seen last.
    seen: Option<String>,
}

/// What keeps the store: it moves the links, and owns all that is remembered.
#[derive(Debug)]
pub struct Keeper {
    store: Arc<Store>,
    source: Source,
    /// The last commit that was taken.
    accepted: Option<Arc<Accepted>>,
    rollouts: Rollouts,
    checks: Prober,
    audit: Arc<AuditLog>,
    programs: Option<Programs>,
    hand_made: put_back::HandMade,
    state: ReconcileState,
    /// What there is to tell of a state that was gone. It is not on disk yet.
    rebuilt: Option<Event>,
    _lock: StoreLock,
}

/// What an inspection must know of former ones. It does not change while one is under
/// way: a commit is brought in after its inspection only.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// The high-water mark.
    mark: Option<Oid>,
    /// The testing commit that was used last.
    testing: Option<Oid>,
}

/// What was found of a commit.
#[derive(Debug)]
pub struct Inspection {
    report: PassReport,
    /// What is to be brought in; nothing where the commit was refused.
    accepted: Option<Arc<Accepted>>,
    /// What the check found is not collected before the links lead to it.
    lease: Option<StoreLock>,
    begun: Instant,
    since: Instant,
    renames: u64,
}

/// An inspection, or why there is none, on whose account, and the pass that it is of.
#[derive(Debug)]
pub struct Inspected {
    span: spans::Pass,
    who: Who,
    found: Result<Inspection, PassError>,
}

/// The reconciler of one store, as a whole: one thing after the other.
#[derive(Debug)]
pub struct Reconciler {
    inspector: Inspector,
    keeper: Keeper,
    /// Whether the last commit was looked for since the last pass.
    recalled: bool,
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
        let (state, rebuilt) = match ReconcileState::read(&store)? {
            Some(state) => (state, None),
            None => {
                let (state, rebuilt) = recovery::state(&store)?;
                (ReconcileState { source: name, ..state }, rebuilt)
            }
        };
        let mirror = Mirror::open(&store, &source)?;
        let audit = Arc::new(AuditLog::new(store.clone()));
        let mut keeper = Keeper {
            store: store.clone(),
            source: source.clone(),
            accepted: None,
            rollouts: Rollouts::open(store.clone(), audit.clone(), options.once)?,
            checks: Prober::new(store.clone(), options.programs.clone()),
            audit,
            programs: options.programs.clone(),
            hand_made: put_back::HandMade::default(),
            state,
            rebuilt,
            _lock: lock,
        };
        keeper.known()?;
        keeper.note_settings(None);
        let inspector = Inspector {
            store,
            source,
            trust: options.trust.clone().map(Checker::new),
            options,
            mirror,
            library: Library::default(),
            mirrors: mirrors::Mirrors::default(),
            checked: None,
            rebuilt_for: None,
            who: Who::default(),
            origin: Origin::default(),
            seen: keeper.state.observed_commit().map(str::to_owned),
        };
        Ok(Reconciler { inspector, keeper, recalled: false })
    }

    /// Where commits come from.
    pub fn source(&self) -> &Source {
        self.keeper.source()
    }

    /// Its two halves, for one who lets them work beside one another.
    pub fn into_parts(self) -> (Inspector, Keeper) {
        (self.inspector, self.keeper)
    }

    /// Runs one pass and notes what it found.
    ///
    /// # Errors
    /// The source or the store cannot be used. What stood in the store stands.
    pub fn pass(&mut self, cancelled: &AtomicBool) -> Result<PassReport, PassError> {
        self.pass_in(&spans::Pass::begin(), cancelled)
    }

    /// The same in the span of a pass that has begun, for those who go on in it.
    ///
    /// # Errors
    /// As of [`Reconciler::pass`].
    pub fn pass_in(
        &mut self,
        span: &spans::Pass,
        cancelled: &AtomicBool,
    ) -> Result<PassReport, PassError> {
        self.recalled = false;
        let inspected = self.inspector.inspect(span.clone(), &self.keeper.known()?, cancelled);
        let passed = self.keeper.take(inspected, cancelled);
        if passed.as_ref().is_ok_and(|report| report.news) {
            self.inspector.tidy(cancelled);
        }
        passed
    }

    /// Goes on with the rollouts, without a look at the source. `None` where no
    /// commit was ever taken.
    ///
    /// # Errors
    /// The store cannot be used.
    pub fn step(&mut self, cancelled: &AtomicBool) -> Result<Option<PassReport>, PassError> {
        if self.keeper.lacks_commit() && !std::mem::replace(&mut self.recalled, true) {
            match self.inspector.recall(&self.keeper.known()?, cancelled) {
                Ok(Some(accepted)) => self.keeper.accept(accepted),
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "the last commit cannot be read"),
            }
        }
        self.keeper.step(cancelled)
    }

    /// Whether an operator asks for something.
    pub fn is_asked(&self) -> bool {
        self.keeper.is_asked()
    }
}

impl Inspected {
    /// The pass that it is of, for those who go on in it.
    pub fn span(&self) -> &spans::Pass {
        &self.span
    }
}

impl Inspector {
    /// Begins a pass: looks at the head, which commit it is, whether it may be brought in,
    /// what it says.
    pub fn inspect(
        &mut self,
        span: spans::Pass,
        known: &Known,
        cancelled: &AtomicBool,
    ) -> Inspected {
        self.who = Who::default();
        self.origin = span.origin();
        let found = span.in_scope(|| self.look(&span, known, cancelled));
        Inspected { span, who: self.who.clone(), found }
    }

    fn look(
        &mut self,
        span: &spans::Pass,
        known: &Known,
        cancelled: &AtomicBool,
    ) -> Result<Inspection, PassError> {
        let begun = Instant::now();
        let mut since = begun;
        let renames = self.store.writes().renames;
        let fetched = self.fetch(cancelled)?;
        let (commit, fallback) = self.choose(known, &fetched)?;
        span.is_of(&commit.to_string());
        self.who = self.who(commit)?;
        let mut report = PassReport::new(&self.source, commit.to_string());
        report.trace = self.origin.clone();
        report.fallback = fallback;
        if self.seen.replace(commit.to_string()).is_none_or(|seen| seen != report.commit) {
            report.committed_at_ms = commit_tree::committed_at(&self.mirror.repository()?, commit);
        }
        report.timings.fetch_ms = lap(&mut since);
        let inspection = |report, accepted, lease, since| Inspection {
            report,
            accepted,
            lease,
            begun,
            since,
            renames,
        };
        let tag = fetched.tag.as_ref();
        let may_follow = spans::step(&span!("trust"), || {
            self.may_follow(known, (commit, tag), &mut report, cancelled)
        })?;
        if !may_follow {
            return Ok(inspection(report, None, None, since));
        }
        let lease = self.store.lease()?;
        self.check(known, commit, cancelled)?;
        report.timings.check_ms = lap(&mut since);
        let checked = self.checked.as_ref().expect("just checked");
        report.testing.clone_from(&checked.testing);
        report.diagnostics.clone_from(&checked.diagnostics);
        let accepted = match &checked.verdict {
            Verdict::Refused { reason, message } => {
                report.refuse(*reason, message.clone());
                None
            }
            Verdict::Taken(accepted) => Some(accepted.clone()),
        };
        Ok(inspection(report, accepted, Some(lease), since))
    }

    /// Brings what is followed into the mirror.
    fn fetch(&mut self, cancelled: &AtomicBool) -> Result<Fetched, PassError> {
        let span = span!("fetch", remote = Empty);
        let limits = self.options.fetch_limits();
        let fetched = spans::step(&span, || self.mirror.fetch(limits, cancelled))?;
        span.record("remote", display(&self.source.remotes()[fetched.remote]));
        Ok(fetched)
    }

    /// Looks at another source and believes other signers from the next inspection on.
    ///
    /// # Errors
    /// The mirror cannot be made ready. Then all stays as it was.
    pub fn reconfigure(&mut self, source: Source, trust: Option<Trust>) -> Result<(), PassError> {
        if source != self.source {
            self.mirror = Mirror::open(&self.store, &source)?;
            self.source = source;
            self.rebuilt_for = None;
        }
        if trust != self.options.trust {
            self.trust = trust.clone().map(Checker::new);
            self.options.trust = trust;
        }
        self.checked = None;
        Ok(())
    }

    /// Tidies the mirror up, where it is time to: after a pass, which waits for nothing.
    pub fn tidy(&mut self, cancelled: &AtomicBool) {
        self.mirror.tidy(self.options.fetch_limits(), cancelled);
    }

    /// The longest that one fetch takes: every remote may be asked, for a single commit
    /// each a second time; the mirror is looked at then, and all of it may be fetched anew.
    pub fn longest_fetch(&self) -> Duration {
        let turns = self.source.remotes().len().saturating_mul(4).saturating_add(1);
        self.options.fetch_deadline.saturating_mul(u32::try_from(turns).unwrap_or(u32::MAX))
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

impl Keeper {
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    pub fn audit(&self) -> &Arc<AuditLog> {
        &self.audit
    }

    /// What is brought in comes from another source from now on. What was applied stays
    /// the mark behind which nothing goes.
    pub fn follow(&mut self, source: Source) {
        self.source = source;
    }

    /// Notes that the settings were taken, or why they were not.
    pub fn note_settings(&mut self, refused: Option<String>) {
        let next = self.state.after_settings(self.source.to_string(), refused, now_ms());
        if next == self.state {
            return;
        }
        // A state that was made anew is told of before it is written, by the next pass.
        if self.rebuilt.is_none()
            && let Err(error) = next.write(&self.store)
        {
            tracing::error!(%error, "it cannot be noted whether the settings were taken");
        }
        self.state = next;
    }

    /// The programs that VAs are made of, where they are there.
    pub fn programs(&self) -> Option<&Programs> {
        self.programs.as_ref()
    }

    /// Whether an operator asks for something.
    pub fn is_asked(&self) -> bool {
        crate::rollout::request::names(&self.store).is_ok_and(|names| !names.is_empty())
    }

    /// What the next inspection must know.
    ///
    /// # Errors
    /// The state names no commit where it should.
    pub fn known(&self) -> Result<Known, PassError> {
        let mark = self.state.mark().map(|mark| Oid::from_str(&mark.commit)).transpose();
        let testing = self.state.testing.as_ref().and_then(|testing| testing.commit.as_ref());
        Ok(Known {
            mark: mark.map_err(|_| StateError::Commit)?,
            testing: testing.and_then(|commit| Oid::from_str(commit).ok()),
        })
    }

    /// Whether a commit was taken once, and what it says is not known to this process.
    pub fn lacks_commit(&self) -> bool {
        self.accepted.is_none() && self.state.mark().is_some()
    }

    /// Goes by a commit that was taken before.
    pub fn accept(&mut self, accepted: Arc<Accepted>) {
        self.checks.use_list(&accepted.checks);
        self.accepted = Some(accepted);
    }

    /// Brings in what was inspected, and notes what was found.
    ///
    /// # Errors
    /// Those of the inspection, or the store cannot be used. What stood in the store
    /// stands.
    pub fn take(
        &mut self,
        inspected: Inspected,
        cancelled: &AtomicBool,
    ) -> Result<PassReport, PassError> {
        let Inspected { span, who, found } = inspected;
        span.in_scope(|| {
            self.tell_rebuilt()?;
            let passed = found.and_then(|inspection| self.finish(inspection, cancelled));
            let passed = self.note(&who, passed);
            report::trace(&passed, &span);
            passed
        })
    }

    /// Tells of a state that was gone, until what was made of it is on disk.
    fn tell_rebuilt(&self) -> Result<(), PassError> {
        if let Some(event) = &self.rebuilt {
            let record = EventRecord::new(now_ms(), event.clone());
            self.audit.tell(&Who::default(), std::slice::from_ref(&record))?;
            crate::rollout::log(&record);
        }
        Ok(())
    }

    /// Makes durable what a pass found, where that is new.
    fn note(
        &mut self,
        who: &Who,
        mut passed: Result<PassReport, PassError>,
    ) -> Result<PassReport, PassError> {
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
            let ended = next.ended_failure(&self.state);
            let recovered = ended.map(|failure| passes::recovered(failure, now_ms()));
            let written = spans::step(&span!("tell"), || {
                let ended =
                    next.is_news(&self.state, &found).then(|| passes::ended(&passed, now_ms()));
                let told: Vec<_> = recovered.iter().cloned().chain(ended).collect();
                self.audit.tell(who, &told)?;
                next.write(&self.store).map_err(PassError::from)
            });
            if let Ok(report) = &mut passed {
                report.events.extend(recovered);
            }
            match (&passed, written) {
                (_, Ok(())) => (self.state, self.rebuilt) = (next, None),
                (Ok(_), Err(error)) => return Err(error),
                (Err(_), Err(error)) => tracing::error!(%error, "the state cannot be written"),
            }
        }
        passed.map(|report| PassReport { news: news || report.news, ..report })
    }

    fn finish(
        &mut self,
        inspection: Inspection,
        cancelled: &AtomicBool,
    ) -> Result<PassReport, PassError> {
        let Inspection { mut report, accepted, lease, begun, mut since, renames } = inspection;
        if let Some(accepted) = accepted {
            self.bring_in(&accepted, &mut report, &mut since, cancelled)?;
        }
        drop(lease);
        report.renames = self.store.writes().renames - renames;
        report.timings.total_ms = begun.elapsed().as_secs_f64() * 1000.0;
        Ok(report)
    }
}

fn now_ms() -> u64 {
    crate::state::milliseconds(SystemTime::now())
}
