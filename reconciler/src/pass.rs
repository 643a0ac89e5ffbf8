//! One reconcile pass: an ordered list of small steps and one summary.
//!
//! observe the head → admit it (history, signatures) → read it → check it whole → plan → seal → take the
//! next step of every rollout → link → note what was found. A commit is taken whole or
//! refused whole; what is refused moves nothing. Stopped anywhere, the next pass does
//! the rest. A pass that finds nothing to do writes nothing.
//!
//! Between passes [`Reconciler::step`] goes on with the rollouts of the last commit
//! that was taken.

mod admission;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use git2::Oid;
use serde::Serialize;
use strata_core::audit::Who;
use strata_core::check::check_desired;
use strata_core::desired::DesiredState;
use strata_core::diagnostic::Diagnostic;
use strata_core::event::EventRecord;
use strata_core::plan::{self, Action, DeclaredVa, Desired, Note, Observed, Plan};
use strata_core::rollout::Waiting;
use strata_core::source::SourceTree;
use strata_core::{CompositionName, RepositoryName, Severity};
use strata_machine::Programs;
use strata_store::{Store, StoreError, StoreLock};

use crate::apply::{self, ApplyError, Materials};
use crate::audit::{AuditError, AuditLog, passes};
use crate::commit_tree::{self, ReadError};
use crate::library::{self, Library, Stamps};
use crate::mirror::{Mirror, MirrorError};
use crate::probe::{CheckList, Prober};
use crate::repositories::{self, mirrors};
use crate::rollout::{RolloutError, RolloutFileError, Rollouts, Stepped, Taken};
use crate::source::Source;
use crate::state::{Fallback, Found, ReconcileState, RefusalReason, StateError, TestingState};
use crate::trust::{self, Checker, Trust, TrustError};

/// The name of the lock that makes a reconciler the only one of its store.
pub const LOCK: &str = "reconcile";

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Try again, each time after a longer wait.
    Retry,
    /// Nothing will get better by itself: an operator must act.
    Fatal,
}

#[derive(Debug, thiserror::Error)]
pub enum PassError {
    #[error("another reconciler works on this store{holder}")]
    Locked { holder: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    #[error("the commit {commit}: {source}")]
    Read { commit: String, source: ReadError },
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(transparent)]
    Trust(#[from] TrustError),
}

impl PassError {
    pub fn policy(&self) -> Policy {
        match self {
            PassError::Locked { .. } => Policy::Fatal,
            PassError::State(
                StateError::Damaged(_) | StateError::Version(_) | StateError::Commit,
            ) => Policy::Fatal,
            PassError::Rollout(RolloutError::File(
                RolloutFileError::Damaged(_) | RolloutFileError::Version(_),
            )) => Policy::Fatal,
            PassError::State(StateError::Store(_))
            | PassError::Rollout(_)
            | PassError::Audit(_)
            | PassError::Trust(_)
            | PassError::Store(_)
            | PassError::Mirror(_)
            | PassError::Read { .. }
            | PassError::Apply(_) => Policy::Retry,
        }
    }

    /// What an operator can do.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            PassError::Locked { .. } => Some("stop it first; one reconciler serves a whole store"),
            PassError::State(StateError::Damaged(_) | StateError::Commit) => Some(
                "the file guards against rewritten branches; remove it to take the branch as it is",
            ),
            PassError::Rollout(RolloutError::File(RolloutFileError::Damaged(_))) => {
                Some("restore it, or remove it: the links then tell how far rollouts are")
            }
            PassError::Mirror(MirrorError::Fetch { .. } | MirrorError::All(_)) => {
                Some("try by hand: git ls-remote SOURCE; what was applied before stays as it is")
            }
            PassError::Trust(TrustError::List { .. }) => {
                Some("the settings name it under [trust]; what was applied before stays as it is")
            }
            PassError::Trust(TrustError::Child(_)) => {
                Some("ssh-keygen (openssh-client) and gpgv check signatures; install them")
            }
            _ => None,
        }
    }
}

/// How a pass works.
#[derive(Debug, Clone)]
pub struct Options {
    pub fetch_deadline: Duration,
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
            allow_rewrite: false,
            trust: None,
            programs: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PassResult {
    /// The store was changed.
    Applied,
    /// The store said what the commit says already.
    Unchanged,
    Refused,
}

/// What a pass found and did. The JSON form is specified in `docs/formats.md`.
#[derive(Debug, Clone, Serialize)]
pub struct PassReport {
    pub source: String,
    pub commit: String,
    /// The remote that was used because those before it failed.
    pub fallback: Option<Fallback>,
    /// The testing branch, where one is followed.
    pub testing: Option<TestingState>,
    /// Who signed the commit, where that was checked in this pass.
    pub signer: Option<String>,
    pub result: PassResult,
    pub refusal: Option<RefusalReason>,
    pub message: Option<String>,
    pub actions: Vec<Action>,
    pub notes: Vec<Note>,
    pub events: Vec<EventRecord>,
    /// What rollouts wait for.
    pub waiting: Vec<RolloutWaits>,
    pub diagnostics: Vec<Diagnostic>,
    /// `rename(2)` calls in the store.
    pub renames: u64,
    pub timings: Timings,
    /// False where an earlier pass of this process found just the same.
    #[serde(skip)]
    pub news: bool,
    /// When the commit was made, where it was seen for the first time.
    #[serde(skip)]
    pub committed_at_ms: Option<u64>,
    /// When rollouts have something to do, in milliseconds since 1970.
    #[serde(skip)]
    pub wake_at_ms: Option<u64>,
}

/// A rollout that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RolloutWaits {
    pub composition: CompositionName,
    pub waiting: Waiting,
}

impl PassReport {
    fn new(source: &Source, commit: String) -> Self {
        PassReport {
            source: source.to_string(),
            commit,
            fallback: None,
            testing: None,
            signer: None,
            result: PassResult::Refused,
            refusal: None,
            message: None,
            actions: Vec::new(),
            notes: Vec::new(),
            events: Vec::new(),
            waiting: Vec::new(),
            diagnostics: Vec::new(),
            renames: 0,
            timings: Timings::default(),
            news: false,
            committed_at_ms: None,
            wake_at_ms: None,
        }
    }

    /// Takes over what a step of the rollouts did.
    fn add(&mut self, stepped: Stepped) {
        self.news |= !stepped.actions.is_empty() || !stepped.events.is_empty();
        self.actions.extend(stepped.actions);
        self.events.extend(stepped.events);
        let waits = |(composition, waiting)| RolloutWaits { composition, waiting };
        self.waiting.extend(stepped.waiting.into_iter().map(waits));
        self.wake_at_ms = stepped.wake_at_ms;
    }
}

/// Milliseconds that the parts of a pass took.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Timings {
    pub fetch_ms: f64,
    pub check_ms: f64,
    pub plan_ms: f64,
    pub apply_ms: f64,
    pub total_ms: f64,
}

fn lap(since: &mut Instant) -> f64 {
    let elapsed = since.elapsed();
    *since = Instant::now();
    elapsed.as_secs_f64() * 1000.0
}

/// A commit that was read and checked against the repositories as they then were.
#[derive(Debug)]
struct Checked {
    commit: Oid,
    /// The testing commit that was looked at, and what came of it.
    seen: Option<Oid>,
    testing: Option<TestingState>,
    stamps: Stamps,
    configuration: strata_core::configuration::Configuration,
    diagnostics: Vec<Diagnostic>,
    verdict: Verdict,
}

#[derive(Debug)]
enum Verdict {
    Taken(Arc<Accepted>),
    Refused { reason: RefusalReason, message: String },
}

/// What a commit that was taken wants, and what it brings for it.
#[derive(Debug)]
struct Accepted {
    taken: Taken,
    materials: Materials,
    checks: Arc<CheckList>,
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
    _lock: StoreLock,
}

impl Reconciler {
    /// Takes the store's lock, clears what a crashed predecessor left, and opens
    /// the mirror.
    ///
    /// # Errors
    /// Another reconciler holds the lock, or the store cannot be used.
    pub fn open(store: Arc<Store>, source: Source, options: Options) -> Result<Self, PassError> {
        let lock = match store.try_lock(LOCK) {
            Ok(lock) => lock,
            Err(StoreError::Locked(path)) => {
                let holder = lock_holder(&path);
                let holder = holder.map(|pid| format!(": process {pid}")).unwrap_or_default();
                return Err(PassError::Locked { holder });
            }
            Err(error) => return Err(error.into()),
        };
        let swept = store.sweep()?;
        if swept > 0 {
            tracing::info!(swept, "removed what a crashed writer left");
        }
        let name = source.to_string();
        let state = ReconcileState::read(&store)?;
        let mut state = state.unwrap_or_else(|| ReconcileState::new(name.clone()));
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
        let passed = self.run_steps(cancelled);
        let found = match &passed {
            Ok(report) => found(report),
            Err(error) => Found::Failed { message: error.to_string() },
        };
        let mut next = self.state.after(&found, now_ms());
        if let Ok(report) = &passed {
            next.fallback.clone_from(&report.fallback);
            if report.refusal.is_none() {
                next.testing.clone_from(&report.testing);
            }
        }
        let news = next != self.state;
        if news {
            let told = self.audit.tell(&self.who, &[passes::ended(&passed, now_ms())]);
            let written = told.map_err(PassError::from).and_then(|()| Ok(next.write(&self.store)?));
            match (&passed, written) {
                (_, Ok(())) => self.state = next,
                (Ok(_), Err(error)) => return Err(error),
                (Err(_), Err(error)) => tracing::error!(%error, "the state cannot be written"),
            }
        }
        passed.map(|report| PassReport { news: news || report.news, ..report })
    }

    fn run_steps(&mut self, cancelled: &AtomicBool) -> Result<PassReport, PassError> {
        let begun = Instant::now();
        let mut since = begun;
        let before = self.store.writes();
        self.who = Who::default();
        let fetched = self.mirror.fetch(self.options.fetch_deadline, cancelled)?;
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
            report.refusal = Some(RefusalReason::Rewritten);
            report.message = Some(message);
            return Ok(report);
        }
        match self.trusted(commit, fetched.tag.as_ref(), cancelled)? {
            trust::Verdict::Trusted { signer } => {
                report.signer.clone_from(&signer);
                self.who.signer = signer;
            }
            trust::Verdict::Untrusted { message } => {
                report.refusal = Some(RefusalReason::Untrusted);
                report.message = Some(message);
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
            Verdict::Refused { reason, message } => {
                report.refusal = Some(*reason);
                report.message = Some(message.clone());
            }
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

    /// Makes the store say what a commit says, as far as its rollouts are.
    fn bring_in(
        &mut self,
        accepted: &Accepted,
        report: &mut PassReport,
        since: &mut Instant,
    ) -> Result<(), PassError> {
        let Accepted { taken, materials, checks } = accepted;
        self.checks.use_list(checks);
        let observed = observe(&self.store, &taken.desired)?;
        let Plan { actions, notes } = plan::plan(&taken.desired, &observed);
        report.timings.plan_ms = lap(since);
        // Nothing is linked before its ring has a generation.
        let is_link = |action: &Action| matches!(action, Action::LinkVa { .. });
        let (links, seals): (Vec<_>, Vec<_>) = actions.into_iter().partition(is_link);
        apply::apply(&self.store, &seals, materials, &taken.commit)?;
        let mut stepped = self.rollouts.step(taken, true, &mut self.checks, now_ms())?;
        let failed = stepped.failed.take();
        report.actions = seals;
        report.add(stepped);
        self.audit.tell(&taken.who, &passes::links(&links, now_ms()))?;
        apply::apply(&self.store, &links, materials, &taken.commit)?;
        report.actions.extend(links);
        report.timings.apply_ms = lap(since);
        report.notes = notes;
        report.result = match report.actions.is_empty() {
            true => PassResult::Unchanged,
            false => PassResult::Applied,
        };
        report.news |= !report.actions.is_empty();
        failed.map_or(Ok(()), |error| Err(RolloutError::from(error).into()))
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
    /// each a second time.
    pub fn longest_fetch(&self) -> Duration {
        let turns = self.source.remotes().len().saturating_mul(2);
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

    /// The last commit that was taken; after a restart it is read from the mirror,
    /// as the head may be one that was refused.
    fn accepted(&mut self, cancelled: &AtomicBool) -> Result<Option<Arc<Accepted>>, PassError> {
        if self.accepted.is_none()
            && !std::mem::replace(&mut self.recalled, true)
            && let Some(applied) = &self.state.applied
        {
            let commit = Oid::from_str(&applied.commit).map_err(|_| StateError::Commit)?;
            if let Verdict::Taken(accepted) =
                self.judge(commit, self.former_testing(), cancelled)?.verdict
            {
                self.accepted = Some(accepted);
            }
        }
        Ok(self.accepted.clone())
    }

    /// Reads and checks the commit, unless that was done and nothing it depends
    /// on has changed since.
    fn check(&mut self, commit: Oid, cancelled: &AtomicBool) -> Result<(), PassError> {
        let seen = self.testing_head(commit)?;
        if let Some(checked) = &self.checked
            && checked.commit == commit
            && checked.seen == seen
            && !self.library.is_expired(repositories::now())
            && !self.mirrors.is_due(&checked.configuration)
            && library::stamps(&self.store, &checked.configuration)? == checked.stamps
        {
            return Ok(());
        }
        self.checked = None;
        let (testing, checked) = self.judge_with_testing(commit, seen, cancelled)?;
        self.checked = Some(Checked { seen, testing, ..checked });
        Ok(())
    }

    /// On whose account a commit is brought in.
    fn who(&self, commit: Oid) -> Result<Who, PassError> {
        let author = commit_tree::author(&self.mirror.repository()?, commit);
        let commit = Some(commit.to_string());
        let proved = self.who.commit == commit;
        let signer = self.who.signer.clone().filter(|_| proved);
        Ok(Who { commit, author, signer, ..Who::default() })
    }

    /// Reads and checks a commit, with the chosen definitions of `testing`.
    fn judge(
        &mut self,
        commit: Oid,
        testing: Option<Oid>,
        cancelled: &AtomicBool,
    ) -> Result<Checked, PassError> {
        let read = self.read(commit, cancelled).and_then(|mut tree| {
            let (Some(id), Some(testing)) = (testing, self.source.testing().cloned()) else {
                return Ok(tree);
            };
            let other = self.read(id, cancelled)?;
            for path in testing.definitions() {
                tree.take_definition(&other, path).map_err(|source| PassError::Read {
                    commit: id.to_string(),
                    source: source.into(),
                })?;
            }
            Ok(tree)
        });
        let tree = match read {
            Ok(tree) => tree,
            Err(PassError::Read { source, .. }) => return Ok(unreadable(commit, &source)),
            Err(error) => return Err(error),
        };
        let (desired, mut diagnostics) = DesiredState::read(&tree);
        drop(tree);
        let configuration = desired.configuration.clone();
        let wanted = mirrors::wanted(&desired);
        let unmirrored = self.mirrors.bring(&self.store, &configuration, &wanted, cancelled)?;
        let not_mirrored = unmirrored.iter().find(|fault| fault.severity == Severity::Error);
        let not_mirrored = not_mirrored.map(|fault| fault.message.clone());
        diagnostics.extend(unmirrored);
        let (stamps, faults) = self.library.refresh(&self.store, &configuration)?;
        diagnostics.extend(faults);
        let empty = desired.definitions.is_empty();
        let manifests = self.library.manifests(&self.store);
        let result = check_desired(desired, diagnostics, self.library.universe(), &manifests);
        self.library.forget_unused();
        let verdict = if empty {
            let reason = RefusalReason::Empty;
            let message = "the commit holds no layer definition file at all".to_owned();
            Verdict::Refused { reason, message }
        } else if result.accepted() {
            let (desired, materials) = desired_and_materials(&result);
            let policy = configuration.rollout.clone();
            let checks = Arc::new(check_list(&result.desired));
            let who = self.who(commit)?;
            let taken = Taken { commit: commit.to_string(), who, desired, policy };
            Verdict::Taken(Arc::new(Accepted { taken, materials, checks }))
        } else if let Some(message) = not_mirrored {
            Verdict::Refused { reason: RefusalReason::Mirror, message }
        } else {
            let error = |found: &&Diagnostic| found.severity == Severity::Error;
            let count = result.diagnostics.iter().filter(error).count();
            let message = match count {
                1 => "the commit has 1 error".to_owned(),
                _ => format!("the commit has {count} errors"),
            };
            Verdict::Refused { reason: RefusalReason::Invalid, message }
        };
        let diagnostics = result.diagnostics;
        let (seen, testing) = (None, None);
        Ok(Checked { commit, seen, testing, stamps, configuration, diagnostics, verdict })
    }

    /// Reads the commit; where an object is missing or damaged, once more from a
    /// mirror that was made anew.
    fn read(&mut self, commit: Oid, cancelled: &AtomicBool) -> Result<SourceTree, PassError> {
        let read = |mirror: &Mirror| -> Result<SourceTree, PassError> {
            let repository = mirror.repository()?;
            commit_tree::read(&repository, commit)
                .map_err(|source| PassError::Read { commit: commit.to_string(), source })
        };
        match read(&self.mirror) {
            Err(PassError::Read { source, .. })
                if source.is_damage() && !self.mirror.is_complete_for(commit) =>
            {
                tracing::warn!(error = %source, "the mirror is damaged and made anew");
                self.mirror.fetch_anew(self.options.fetch_deadline, cancelled)?;
                read(&self.mirror)
            }
            other => other,
        }
    }
}

fn unreadable(commit: Oid, error: &ReadError) -> Checked {
    Checked {
        commit,
        seen: None,
        testing: None,
        stamps: Stamps::new(),
        configuration: strata_core::configuration::Configuration::default(),
        diagnostics: Vec::new(),
        verdict: Verdict::Refused { reason: RefusalReason::Unreadable, message: error.to_string() },
    }
}

fn found(report: &PassReport) -> Found {
    let commit = report.commit.clone();
    match report.refusal {
        None => Found::Applied { commit },
        Some(reason) => Found::Refused {
            commit,
            reason,
            message: report.message.clone().unwrap_or_default(),
            problems: report.diagnostics.iter().map(Diagnostic::to_string).collect(),
        },
    }
}

fn desired_and_materials(result: &strata_core::check::CheckResult) -> (Desired, Materials) {
    let mut materials = Materials::default();
    let mut desired =
        Desired { rings: result.desired.configuration.rings.clone(), ..Desired::default() };
    for (name, generation) in &result.compositions {
        let id = generation.id();
        desired.compositions.insert(name.clone(), id);
        materials.generations.insert(id, generation.clone());
    }
    for definition in result.desired.definitions.values() {
        if let Some(tree) = &definition.tree {
            desired.layers.push(tree.entry());
            materials.trees.insert(tree.unit().digest, tree.clone());
        }
    }
    for (name, declared) in &result.desired.appliances {
        let va = DeclaredVa {
            name: name.clone(),
            composition: declared.composition.clone(),
            ring: declared.ring.clone(),
        };
        desired.appliances.insert(declared.mac, va);
    }
    (desired, materials)
}

fn check_list(desired: &DesiredState) -> CheckList {
    let mut list = CheckList { checks: desired.health_checks(), ..CheckList::default() };
    for (name, declared) in &desired.appliances {
        let mut labels = declared.labels.clone();
        labels.insert("name".to_owned(), name.to_string());
        list.labels.insert(declared.mac, labels);
    }
    list
}

/// Looks at all that the desired state names, and at every ring.
fn observe(store: &Store, desired: &Desired) -> Result<Observed, PassError> {
    let mut observed = Observed { rings: store.rings()?, ..Observed::default() };
    if !desired.layers.is_empty() {
        let templates = match store.database(&RepositoryName::templates()) {
            Ok(database) => database,
            Err(StoreError::NoRepository(_)) => Default::default(),
            Err(error) => return Err(error.into()),
        };
        for unit in templates.units() {
            let metadata = &unit.metadata;
            observed.layers.insert((metadata.layer.clone(), metadata.version.clone()));
        }
    }
    let ids = desired.compositions.values();
    observed.generations.extend(ids.filter(|id| store.has_generation(id)));
    for mac in desired.appliances.keys() {
        match store.va_target(*mac) {
            Ok(Some(target)) => {
                observed.va_links.insert(*mac, target);
            }
            Ok(None) => {}
            Err(error) if error.is_foreign_link() => {
                observed.foreign_va_links.insert(*mac);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(observed)
}

/// The process that holds a file lock, as the kernel lists it.
fn lock_holder(path: &std::path::Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let inode = format!(":{}", std::fs::metadata(path).ok()?.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let line = locks.lines().find(|line| {
        let held = !line.contains("->");
        held && line.split_whitespace().any(|word| word.ends_with(&inode))
    })?;
    line.split_whitespace().nth(4)?.parse().ok()
}

fn now_ms() -> u64 {
    crate::state::milliseconds(SystemTime::now())
}
