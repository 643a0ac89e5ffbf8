//! Scripts of layers, run in the VA around a swap (§5.1, §5.5).
//!
//! What is to be run is decided by `strata_core::scripts::plan` from two lists: what the
//! [`journal`] says is integrated, and the units of the generation that is to be served.
//! Boot, resume, a crash, a link that moved again and going back after a failure all
//! take this one road: compare, run what is missing, note it.
//!
//! - A script runs at most once for each coming or going of its unit. It is noted before
//!   it runs; one that was interrupted has run, and failed.
//! - Scripts run where a VA runs ([`place`]); where none does, they wait for it, and a swap
//!   does not wait for them. A mount that was given no place runs none.
//! - A change runs on a thread of its own: the thread that follows the link goes on to
//!   report, and threads that answer requests never wait for a script.
//! - After a failure the others run all the same, or the VA goes back to the generation
//!   it had, as the generation's policy says; a generation that was gone back from is
//!   tried again when the link names another one in between, or an operator asks.

mod change;
pub mod journal;
pub mod place;
pub mod run;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use strata_core::generation::Generation;
use strata_core::scripts::Script;
use strata_core::scripts::order::integration_order;
use strata_core::scripts::outcome::{
    REPORTED_FAILURES, REPORTED_OUTPUT_BYTES, ScriptFailure, ScriptsReport, ScriptsState, tail,
};
use strata_core::scripts::plan::{Plan, Unit, plan};
use strata_core::scripts::policy::{OnFailure, ScriptPolicy};
use strata_core::{Digest, GenerationId};
use strata_store::{Store, StoreError};

use crate::index::cache::Cache;
use crate::layer::LayerSet;
use crate::private::Private;
use crate::stop::Stop;
use crate::vfs::{SetInfo, SwapOutcome, Vfs};
use journal::{Direction, Journal, JournalError};
use run::Runner;

/// What keeps scripts from being run is looked at again this often.
const TRY_AGAIN: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum ScriptsError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("the journal of scripts cannot be written: {0}")]
    Write(rustix::io::Errno),
    #[error("scripts are running: try again when they have ended")]
    Busy,
    #[error("no script failed")]
    NothingFailed,
    #[error(
        "the VA went back to the layers of before: retry, or let the link name another generation"
    )]
    WentBack,
    #[error("the swap failed: {0}")]
    Swap(crate::vfs::SwapError),
    #[error("the thread that runs scripts cannot be started: {0}")]
    Thread(std::io::Error),
}

/// What the follower may do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    Free,
    /// Scripts run; the link is looked at again when they have ended.
    Busy,
    /// The VA went back from the generation, and why; this one is served instead.
    Held {
        why: String,
        back: GenerationId,
    },
    /// The swap that scripts had prepared failed.
    Failed(String),
}

/// What a mount says of its scripts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ScriptsStatus {
    pub state: ScriptsState,
    /// The script that runs, and its unit.
    pub running: Option<String>,
    /// Why nothing is run.
    pub error: Option<String>,
    /// Units with scripts, and how far they are integrated.
    pub units: Vec<strata_core::scripts::plan::Integrated>,
    /// The latest scripts that ended, oldest first.
    pub records: Vec<journal::Record>,
    pub refused: Option<journal::Refused>,
}

/// The scripts of one mount.
#[derive(Debug)]
pub struct Scripts {
    runner: Box<dyn Runner>,
    store: Store,
    cache: Cache,
    state: Mutex<State>,
    /// Held while a script is noted and runs: no other program takes over meanwhile.
    running: Mutex<()>,
    stop: Stop,
    /// Held while it is decided what is to be run.
    deciding: Mutex<()>,
    /// Which scripts the units of the last generation have, by their digests.
    known: Mutex<HashMap<Digest, BTreeSet<Script>>>,
}

#[derive(Debug)]
struct State {
    journal: Journal,
    /// Why there is no journal to rely on: nothing is run then.
    damaged: Option<String>,
    /// A generation whose scripts have all run.
    settled: Option<GenerationId>,
    /// Scripts are to be run for this one once the VA runs.
    waiting: Option<GenerationId>,
    /// What was served before a swap whose scripts are not settled.
    from: Option<GenerationId>,
    thread: Option<JoinHandle<()>>,
    /// Why the swap that scripts had prepared failed.
    swap_error: Option<String>,
    /// Why scripts cannot be run although the layers are served, and since when.
    settle_error: Option<(Instant, String)>,
}

/// A change with all that it takes.
struct Job {
    vfs: Arc<Vfs>,
    target: GenerationId,
    /// What is to be swapped to; `None` where the layers are served already.
    set: Option<(LayerSet, SetInfo)>,
    plan: Plan,
    policy: ScriptPolicy,
}

/// The generation that is served in place of `desired`: the VA went back from it.
pub fn served_instead(private: &std::path::Path, desired: GenerationId) -> Option<GenerationId> {
    let root = crate::backing::open_root(private).ok()?;
    let refused = Journal::load(&root).ok()??.refused?;
    (refused.generation == desired).then_some(refused.back)
}

impl Scripts {
    pub fn open(runner: Box<dyn Runner>, store: Store, cache: Cache, private: &Private) -> Scripts {
        let (journal, damaged) = match Journal::load(private.root()) {
            Ok(journal) => (journal.unwrap_or_default(), None),
            Err(error) => {
                tracing::error!(%error, "no script is run: what has run cannot be told");
                (Journal::default(), Some(error.to_string()))
            }
        };
        let state = State {
            journal,
            damaged,
            settled: None,
            waiting: None,
            from: None,
            thread: None,
            swap_error: None,
            settle_error: None,
        };
        Scripts {
            runner,
            store,
            cache,
            state: Mutex::new(state),
            running: Mutex::new(()),
            stop: Stop::default(),
            deciding: Mutex::new(()),
            known: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// Looked at before the link is followed.
    pub fn turn(self: &Arc<Self>, vfs: &Arc<Vfs>, desired: GenerationId) -> Turn {
        let mut state = self.state();
        if state.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Turn::Busy;
        }
        if let Some(thread) = state.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that runs scripts panicked");
        }
        if let Some(error) = state.swap_error.take() {
            return Turn::Failed(error);
        }
        match &state.journal.refused {
            Some(refused) if refused.generation == desired => {
                Turn::Held { why: refused.why.clone(), back: refused.back }
            }
            Some(_) => {
                tracing::info!("the link names another generation than the one gone back from");
                state.journal.leave_refused();
                state.settled = None;
                if let Err(errno) = state.journal.save(vfs.private()) {
                    return Turn::Failed(ScriptsError::Write(errno).to_string());
                }
                Turn::Free
            }
            None => Turn::Free,
        }
    }

    /// Swaps to an opened set: at once where no script runs before it, and `None` where
    /// the swap follows on another thread.
    ///
    /// # Errors
    /// The swap is refused, or its scripts cannot be told.
    pub fn swap(
        self: &Arc<Self>,
        vfs: &Arc<Vfs>,
        set: LayerSet,
        info: SetInfo,
    ) -> Result<Option<SwapOutcome>, ScriptsError> {
        let _deciding = self.deciding.lock().expect("no panic while held");
        let (Some(target), served) = (info.generation, vfs.active().info.generation) else {
            return vfs.swap(set, info).map(Some).map_err(ScriptsError::Swap);
        };
        if self.state().damaged.is_some() {
            return vfs.swap(set, info).map(Some).map_err(ScriptsError::Swap);
        }
        let (plan, policy) = self.plan(target, served)?;
        if !plan.runs_before() || self.runner.first_process().is_none() {
            if plan.runs() && served != Some(target) {
                self.begin(vfs, served, target, &plan)?;
            }
            let outcome = vfs.swap(set, info).map_err(ScriptsError::Swap)?;
            let mut state = self.state();
            (state.from, state.settled) = (served, None);
            return Ok(Some(outcome));
        }
        self.begin(vfs, served, target, &plan)?;
        let set = Some((set, info));
        self.start(Job { vfs: vfs.clone(), target, set, plan, policy })?;
        Ok(None)
    }

    /// Runs what is missing for the generation that is served. Cheap where nothing is.
    pub fn settle(self: &Arc<Self>, vfs: &Arc<Vfs>, served: GenerationId) {
        {
            let state = self.state();
            let waits = state.waiting == Some(served) && self.runner.first_process().is_none();
            let tried = state.settle_error.as_ref();
            let tried = tried.is_some_and(|(at, _)| at.elapsed() < TRY_AGAIN);
            if state.settled == Some(served) || state.damaged.is_some() || waits || tried {
                return;
            }
        }
        let _deciding = self.deciding.lock().expect("no panic while held");
        match self.try_settle(vfs, served) {
            Ok(()) => self.state().settle_error = None,
            Err(error) => self.note_settle_error(error.to_string()),
        }
    }

    /// Said once, tried again for as long as it lasts.
    fn note_settle_error(&self, error: String) {
        let mut state = self.state();
        if state.settle_error.as_ref().is_none_or(|(_, told)| *told != error) {
            tracing::error!(error, "scripts cannot be run");
        }
        state.settle_error = Some((Instant::now(), error));
    }

    fn try_settle(
        self: &Arc<Self>,
        vfs: &Arc<Vfs>,
        served: GenerationId,
    ) -> Result<(), ScriptsError> {
        let from = self.state().from.filter(|from| *from != served);
        let (plan, policy) = self.plan(served, from)?;
        let must_go_back = self.must_go_back(served, policy);
        if plan.runs() || must_go_back {
            if self.runner.first_process().is_none() {
                self.state().waiting = Some(served);
                return Ok(());
            }
            self.begin(vfs, from, served, &plan)?;
            let job = Job { vfs: vfs.clone(), target: served, set: None, plan, policy };
            return self.start(job);
        }
        // Nothing to run: only to be noted, if at all.
        let mut state = self.state();
        let former = state.journal.clone();
        state.journal.units = change::integrated(&plan);
        state.journal.complete(served);
        let worth = !state.journal.units.is_empty()
            || !former.units.is_empty()
            || !former.records.is_empty()
            || policy.on_failure == OnFailure::SwapBack;
        if worth && state.journal != former {
            state.journal.save(vfs.private()).map_err(ScriptsError::Write)?;
        }
        (state.settled, state.waiting, state.from) = (Some(served), None, None);
        Ok(())
    }

    /// A change that failed before a crash, and whose failure means going back.
    fn must_go_back(&self, served: GenerationId, policy: ScriptPolicy) -> bool {
        let state = self.state();
        state.journal.change.as_ref().is_some_and(|change| {
            change.to == served && change.direction == Direction::Forward && change.from.is_some()
        }) && policy.on_failure == OnFailure::SwapBack
            && state.journal.failed_in_change().is_some()
    }

    /// Notes that a change begins, unless it goes on.
    fn begin(
        &self,
        vfs: &Vfs,
        from: Option<GenerationId>,
        to: GenerationId,
        plan: &Plan,
    ) -> Result<(), ScriptsError> {
        let mut state = self.state();
        let goes_on = state.journal.change.as_ref().is_some_and(|change| change.to == to);
        if !goes_on {
            let from = from.or(state.journal.generation).filter(|from| *from != to);
            state.journal.begin(from, to, Direction::Forward);
        }
        state.journal.units.clone_from(&plan.units);
        (state.waiting, state.settled) = (None, None);
        state.journal.save(vfs.private()).map_err(ScriptsError::Write)
    }

    /// What is to be run for a generation, and how.
    fn plan(
        &self,
        target: GenerationId,
        served: Option<GenerationId>,
    ) -> Result<(Plan, ScriptPolicy), ScriptsError> {
        let generation = self.store.generation(&target)?;
        let units = self.units(&generation)?;
        let served = match served.filter(|served| *served != target) {
            Some(served) => self.store.generation(&served).map_or_else(
                |error| {
                    // Only the versions of layers without scripts come from there.
                    tracing::debug!(%error, "the generation of before is not in the store");
                    Vec::new()
                },
                |generation| generation.layers().to_vec(),
            ),
            None => Vec::new(),
        };
        let plan = plan(&self.state().journal.units, &units, &served);
        Ok((plan, *generation.scripts()))
    }

    /// The units of a generation with their scripts, in the order of their integration.
    fn units(&self, generation: &Generation) -> Result<Vec<Unit>, ScriptsError> {
        let mut units = Vec::with_capacity(generation.layers().len());
        let mut known = self.known.lock().expect("no panic while held");
        let mut scripts_of = HashMap::with_capacity(units.capacity());
        for entry in generation.layers() {
            let scripts = match known.remove(&entry.digest) {
                Some(scripts) => scripts,
                None => self.store.scripts_of(entry)?,
            };
            scripts_of.insert(entry.digest, scripts.clone());
            units.push(Unit { entry: entry.clone(), scripts });
        }
        *known = scripts_of;
        drop(known);
        if units.iter().filter(|unit| !unit.scripts.is_empty()).count() < 2 {
            return Ok(units);
        }
        let metadata: Vec<_> = units
            .iter()
            .map(|unit| self.store.unit_metadata(&unit.entry))
            .collect::<Result<_, _>>()?;
        let order = integration_order(&metadata.iter().collect::<Vec<_>>());
        Ok(order.into_iter().map(|at| units[at].clone()).collect())
    }

    fn start(self: &Arc<Self>, job: Job) -> Result<(), ScriptsError> {
        let shared = self.clone();
        let body = move || shared.change(job);
        let builder = std::thread::Builder::new().name("scripts".to_owned());
        self.state().thread = Some(builder.spawn(body).map_err(ScriptsError::Thread)?);
        Ok(())
    }

    /// Ends a script that runs and waits for the change's thread.
    pub fn end(&self) {
        self.stop.stop();
        let thread = self.state().thread.take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that runs scripts panicked");
        }
    }

    /// Keeps scripts from starting while the guard lives; `None` while one runs.
    pub fn hold(&self) -> Option<MutexGuard<'_, ()>> {
        self.running.try_lock().ok()
    }

    /// Lets what failed run again. Returns what is done, for people.
    ///
    /// # Errors
    /// Nothing failed, or scripts run.
    pub fn retry(&self, private: &Private) -> Result<String, ScriptsError> {
        let _deciding = self.deciding.lock().expect("no panic while held");
        let mut state = self.at_rest()?;
        if state.journal.failures().next().is_none() && state.journal.refused.is_none() {
            return Err(ScriptsError::NothingFailed);
        }
        let (again, went_back) = state.journal.retry();
        state.settled = None;
        state.journal.save(private).map_err(ScriptsError::Write)?;
        Ok(match (went_back, again) {
            (true, _) => "the generation that was gone back from is tried again".to_owned(),
            (false, 0) => "nothing can be run again: what failed removed its layer".to_owned(),
            (false, 1) => "1 script runs again".to_owned(),
            (false, again) => format!("{again} scripts run again"),
        })
    }

    /// Takes failures as they are: the condition goes, nothing runs.
    ///
    /// # Errors
    /// Nothing failed, the VA went back because of it, or scripts run.
    pub fn accept(&self, private: &Private) -> Result<String, ScriptsError> {
        let _deciding = self.deciding.lock().expect("no panic while held");
        let mut state = self.at_rest()?;
        if state.journal.refused.is_some() {
            return Err(ScriptsError::WentBack);
        }
        match state.journal.accept() {
            0 => Err(ScriptsError::NothingFailed),
            count => {
                state.journal.save(private).map_err(ScriptsError::Write)?;
                let failures = if count == 1 { "failure" } else { "failures" };
                Ok(format!("{count} {failures} accepted"))
            }
        }
    }

    fn at_rest(&self) -> Result<MutexGuard<'_, State>, ScriptsError> {
        let state = self.state();
        match state.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            true => Err(ScriptsError::Busy),
            false => Ok(state),
        }
    }

    fn word(&self, state: &State) -> ScriptsState {
        if state.damaged.is_some() {
            ScriptsState::Damaged
        } else if state.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            ScriptsState::Running
        } else if state.journal.refused.is_some() && state.settled.is_some() {
            ScriptsState::SwappedBack
        } else if state.settled.is_none() {
            ScriptsState::Waiting
        } else {
            ScriptsState::Idle
        }
    }

    pub fn status(&self) -> ScriptsStatus {
        let state = self.state();
        let journal = &state.journal;
        let running = journal.running.as_ref();
        ScriptsStatus {
            state: self.word(&state),
            running: running.map(|running| format!("{} {}", running.unit, running.script)),
            error: state.damaged.clone().or_else(|| Some(state.settle_error.clone()?.1)),
            units: journal.units.clone(),
            records: journal.records.clone(),
            refused: journal.refused.clone(),
        }
    }

    /// What the report says; `None` where there is nothing to say.
    pub fn report(&self) -> Option<ScriptsReport> {
        let state = self.state();
        let word = self.word(&state);
        let all: Vec<_> = state.journal.failures().map(journal::Record::failure).collect();
        if all.is_empty() && word == ScriptsState::Idle {
            return None;
        }
        let failure_count = u32::try_from(all.len()).unwrap_or(u32::MAX);
        let latest = all.into_iter().rev().take(REPORTED_FAILURES).map(|failure| {
            let output = tail(&failure.output, REPORTED_OUTPUT_BYTES).to_owned();
            ScriptFailure { output, ..failure }
        });
        let mut failures: Vec<_> = latest.collect();
        failures.reverse();
        Some(ScriptsReport { state: word, failures, failure_count })
    }
}
