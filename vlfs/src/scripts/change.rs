//! One change of the layers with its scripts, on a thread of its own.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use strata_core::GenerationId;
use strata_core::scripts::outcome::Outcome;
use strata_core::scripts::plan::{Integrated, Plan, Step, note};
use strata_core::scripts::policy::{OnFailure, ScriptPolicy};

use super::journal::{Direction, Running};
use super::run::{self, Order};
use super::{Job, Scripts, ScriptsError};
use crate::set;
use crate::vfs::Vfs;

/// Why a change does not go on for now; what has run is noted.
#[derive(Debug, thiserror::Error)]
enum Halt {
    #[error("the VA ended")]
    NoVa,
    #[error(transparent)]
    Failed(#[from] ScriptsError),
    #[error("the layers of before cannot be opened: {0}")]
    Open(#[from] set::SetError),
}

/// Whether a script failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Walked {
    Well,
    Failed,
}

/// The units once all steps of a plan are taken.
pub(super) fn integrated(plan: &Plan) -> Vec<Integrated> {
    let mut units = plan.units.clone();
    for step in plan.before.iter().chain(&plan.after) {
        note(&mut units, step);
    }
    units
}

impl Scripts {
    /// Runs a change to its end, or back.
    pub(super) fn change(self: &Arc<Self>, job: Job) {
        let (vfs, target) = (job.vfs.clone(), job.target);
        match self.try_change(job) {
            Ok(served) => {
                let mut state = self.state();
                (state.settled, state.from) = (Some(served), None);
            }
            Err(Halt::NoVa) => {
                tracing::info!(generation = %target.short(), "scripts wait for the VA");
                self.state().waiting = vfs.active().info.generation;
            }
            Err(error) if vfs.active().info.generation == Some(target) => {
                self.note_settle_error(error.to_string());
            }
            Err(error) => self.state().swap_error = Some(error.to_string()),
        }
    }

    fn try_change(self: &Arc<Self>, job: Job) -> Result<GenerationId, Halt> {
        let Job { vfs, target, set, plan, policy } = job;
        let may_go_back = policy.on_failure == OnFailure::SwapBack && self.way_back().is_some();
        let before = self.state().journal.failed_in_change().is_some();
        let mut walked = if before { Walked::Failed } else { Walked::Well };
        let stops = |walked| may_go_back && walked == Walked::Failed;
        if !stops(walked) {
            walked = self.walk(&vfs, &plan.before, target, policy, may_go_back)?;
        }
        if !stops(walked) {
            if let Some((set, info)) = set {
                let outcome = vfs.swap(set, info).map_err(ScriptsError::Swap)?;
                let (names, generation) = (outcome.names, target.short());
                tracing::info!(%generation, names, "swapped, scripts before it have run");
            }
            walked = self.walk(&vfs, &plan.after, target, policy, may_go_back)?;
        }
        if stops(walked) {
            return self.go_back(&vfs, target, policy);
        }
        self.complete(&vfs, target)?;
        Ok(target)
    }

    /// The generation to go back to.
    fn way_back(&self) -> Option<GenerationId> {
        let state = self.state();
        let change = state.journal.change.as_ref()?;
        (change.direction == Direction::Forward).then_some(change.from)?
    }

    /// Takes steps in their order. With `stop_at_failure`, the first that fails is the last.
    fn walk(
        &self,
        vfs: &Vfs,
        steps: &[Step],
        generation: GenerationId,
        policy: ScriptPolicy,
        stop_at_failure: bool,
    ) -> Result<Walked, Halt> {
        let mut walked = Walked::Well;
        for step in steps {
            if !step.runs {
                // On disk with the next one that runs; the plan finds it again.
                note(&mut self.state().journal.units, step);
                continue;
            }
            if self.take(vfs, step, generation, policy)? != Outcome::Succeeded {
                walked = Walked::Failed;
                if stop_at_failure {
                    break;
                }
            }
        }
        Ok(walked)
    }

    /// Notes a step, runs its script, notes how it ended.
    fn take(
        &self,
        vfs: &Vfs,
        step: &Step,
        generation: GenerationId,
        policy: ScriptPolicy,
    ) -> Result<Outcome, Halt> {
        // The text first: what is not there or damaged has nothing to be interrupted.
        let text = self.store.script(&step.unit, step.script);
        let _running = self.running.lock().expect("no panic while held");
        let init = self.runner.first_process().filter(|_| !self.stop.is_stopped());
        let init = init.ok_or(Halt::NoVa)?;
        let at_ms = now_ms();
        let running = Running { unit: step.unit.clone(), script: step.script, at_ms };
        {
            let mut state = self.state();
            note(&mut state.journal.units, step);
            state.journal.running = Some(running.clone());
            state.journal.save(vfs.private()).map_err(ScriptsError::Write)?;
        }
        tracing::info!(unit = %step.unit, script = %step.script, "a script runs");
        let ended = match &text {
            Ok(Some(text)) => {
                let limit = Duration::from_secs(policy.time_limit_s.into());
                let order = order(step, generation, vfs, text, limit);
                self.runner.run(init, &order, &self.stop)
            }
            Ok(None) => not_run("its unit in the store has no such script any more"),
            Err(error) => not_run(&error.to_string()),
        };
        let took_ms = u64::try_from(ended.took.as_millis()).unwrap_or(u64::MAX);
        if ended.outcome == Outcome::Succeeded {
            tracing::info!(unit = %step.unit, script = %step.script, took_ms, "a script ended");
        } else {
            let (unit, script, outcome) = (&step.unit, step.script, ended.outcome);
            tracing::error!(%unit, %script, %outcome, took_ms, output = ended.output, "a script failed");
        }
        let mut state = self.state();
        state.journal.running = None;
        state.journal.end(running, ended.outcome, ended.output, took_ms);
        state.journal.save(vfs.private()).map_err(ScriptsError::Write)?;
        drop(state);
        if ended.outcome == Outcome::Interrupted {
            return Err(Halt::NoVa);
        }
        Ok(ended.outcome)
    }

    /// To the layers of before, with the scripts that this takes; whether they fail
    /// or not, it goes no other way.
    fn go_back(
        self: &Arc<Self>,
        vfs: &Arc<Vfs>,
        refused: GenerationId,
        policy: ScriptPolicy,
    ) -> Result<GenerationId, Halt> {
        let Some(back) = self.way_back() else { return Ok(refused) };
        let known = vfs.active().set();
        let (set, info) =
            set::open_generation(&self.store, &back, Some(&known), Some(&self.cache))?;
        let served = vfs.active().info.generation;
        {
            let mut state = self.state();
            let failure = state.journal.failed_in_change().map(|record| record.failure());
            let why = failure.map(|failure| failure.to_string()).unwrap_or_default();
            let why = format!("{why}; swapped back to {}", back.short());
            tracing::error!(generation = %refused.short(), back = %back.short(), why, "swapped back");
            state.journal.refused =
                Some(super::journal::Refused { generation: refused, back, why });
            state.journal.begin(Some(refused), back, Direction::Back);
            state.journal.save(vfs.private()).map_err(ScriptsError::Write)?;
        }
        let (plan, _) = self.plan(back, Some(refused))?;
        self.state().journal.units.clone_from(&plan.units);
        self.walk(vfs, &plan.before, back, policy, false)?;
        if served != Some(back) {
            vfs.swap(set, info).map_err(ScriptsError::Swap)?;
        }
        self.walk(vfs, &plan.after, back, policy, false)?;
        self.complete(vfs, back)?;
        Ok(back)
    }

    fn complete(&self, vfs: &Vfs, generation: GenerationId) -> Result<(), Halt> {
        let mut state = self.state();
        state.journal.complete(generation);
        Ok(state.journal.save(vfs.private()).map_err(ScriptsError::Write)?)
    }
}

fn not_run(why: &str) -> run::Ended {
    let (outcome, output) = (Outcome::NotRun, why.to_owned());
    run::Ended { outcome, output, took: Duration::ZERO }
}

/// What a script is told: the arguments `EVENT VERSION [OTHER]`, and the environment.
fn order<'a>(
    step: &Step,
    generation: GenerationId,
    vfs: &Vfs,
    text: &'a [u8],
    limit: Duration,
) -> Order<'a> {
    use strata_core::scripts::Script;
    let (unit, event) = (&step.unit, step.event().name());
    let mut arguments = vec![event.to_owned(), unit.version.to_string()];
    arguments.extend(step.other.as_ref().map(ToString::to_string));
    let mut environment = vec![
        ("STRATA_EVENT", event.to_owned()),
        ("STRATA_SCRIPT", step.script.to_string()),
        ("STRATA_LAYER", format!("{}/{}", unit.repository, unit.layer)),
        ("STRATA_VERSION", unit.version.to_string()),
        ("STRATA_GENERATION", generation.to_string()),
    ];
    if let Some(other) = &step.other {
        let name = match step.script {
            Script::PreInstall | Script::PostInstall => "STRATA_OLD_VERSION",
            Script::PreRemove | Script::PostRemove => "STRATA_NEW_VERSION",
        };
        environment.push((name, other.to_string()));
    }
    if let Some(composition) = &vfs.active().info.composition {
        environment.push(("STRATA_COMPOSITION", composition.clone()));
    }
    Order { arguments, environment, text, limit }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
