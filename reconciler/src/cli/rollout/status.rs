//! `strata rollout status`: how far rollouts are, ring by ring, and what they wait for.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::Args;
use serde::Serialize;
use strata_core::event::short;
use strata_core::printable::printable;
use strata_core::rollout::RolloutState;
use strata_core::rollout::policy::base_ring;
use strata_core::status::{Summary, SyncState};
use strata_core::{CompositionName, RingName};
use strata_store::Store;

use crate::cli::status::{ago, waiting_text};
use crate::cli::view::{FormatArgs, View, WatchArgs};
use crate::cli::{Failure, Outcome, StoreArgs, known};
use crate::fleet;
use crate::repositories::mirrors::progress::{self, Mirroring};
use crate::rollout::{RolloutFile, WaitingMoves, WaitingRemovals};

/// The version of the JSON form.
const VERSION: u32 = 1;

/// Show how far every rollout is, ring by ring, and what it waits for
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata rollout status --watch
  strata rollout status web-server --output json | jq '.rollouts[].waiting'

It also shows VAs that wait to follow another template or ring, and repositories that layers are waited for from.
A wide table has where rings go back to, and since when they are where they are.

Exit status: 0 all targets are everywhere and no VA waits to be moved, 1 otherwise, 2 an error.")]
pub(super) struct StatusArgs {
    /// Only this template.
    template: Option<CompositionName>,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// Specified in `docs/formats.md`, "Rollout status".
#[derive(Serialize)]
struct Report {
    version: u32,
    rollouts: Vec<Rollout>,
    /// Links of VAs that a commit gives to another template or ring, and that wait.
    moves_waiting: Vec<WaitingMoves>,
    /// Repositories that layers of a commit are waited for from.
    mirrors: Vec<Mirroring>,
    removals_waiting: Option<WaitingRemovals>,
}

#[derive(Serialize)]
struct Rollout {
    composition: CompositionName,
    phase: &'static str,
    #[serde(flatten)]
    state: RolloutState,
    /// The VAs of each ring, by state.
    vas: BTreeMap<RingName, Summary>,
}

/// # Errors
/// The store cannot be read, or knows no such template.
pub(super) fn run(args: &StatusArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    args.format.show(&args.watch, || look(&store, args.template.as_ref()))
}

fn look(store: &Store, only: Option<&CompositionName>) -> Result<(Report, Outcome), Failure> {
    known::template_if_named(store, only)?;
    let mut file = RolloutFile::read(store)?;
    file.compositions.retain(|name, _| only.is_none_or(|only| only == name));
    file.moves_waiting.retain(|moves| only.is_none_or(|only| *only == moves.composition));
    let report = Report {
        version: VERSION,
        rollouts: rollouts(store, file.compositions)?,
        moves_waiting: file.moves_waiting,
        mirrors: progress::read(store)?,
        removals_waiting: file.removals_waiting,
    };
    let done = report.rollouts.iter().all(|rollout| rollout.phase == "done")
        && report.moves_waiting.is_empty()
        && report.removals_waiting.is_none();
    Ok((report, if done { Outcome::Done } else { Outcome::Difference }))
}

/// Rollouts with the VAs of their rings.
fn rollouts(
    store: &Store,
    states: BTreeMap<CompositionName, RolloutState>,
) -> Result<Vec<Rollout>, Failure> {
    let mut vas: BTreeMap<(CompositionName, RingName), Summary> = BTreeMap::new();
    for va in fleet::fleet(store)?.vas {
        if let Some(ring) = &va.ring {
            let key = (va.composition.clone(), base_ring(ring).0);
            vas.entry(key).or_default().add(va.state);
        }
    }
    let rollout = |(composition, state): (CompositionName, RolloutState)| {
        let count = |ring: &RingName| {
            vas.get(&(composition.clone(), ring.clone())).copied().unwrap_or_default()
        };
        let vas = state.rings.keys().map(|ring| (ring.clone(), count(ring))).collect();
        Rollout { phase: state.phase(), composition, state, vas }
    };
    Ok(states.into_iter().map(rollout).collect())
}

impl View for Report {
    fn page(&self, wide: bool) -> String {
        let mut text = String::new();
        if self.rollouts.is_empty() {
            text.push_str("no rollouts yet\n");
        }
        if let Some(WaitingRemovals { token, count, limit, first }) = &self.removals_waiting {
            let _infallible = writeln!(
                text,
                "{count} removals wait, {limit} a pass are allowed: strata rollout confirm {token}"
            );
            for removal in first {
                let _infallible = writeln!(text, "  {}", printable(removal));
            }
        }
        text.push_str(&waiting_text(&self.moves_waiting, &self.mirrors));
        for rollout in &self.rollouts {
            rollout.write(wide, &mut text);
        }
        text
    }
}

impl Rollout {
    fn write(&self, wide: bool, text: &mut String) {
        let Rollout { composition, phase, state, vas } = self;
        let (commit, begun) = (short(&state.commit), ago(state.begun_at_ms));
        let target = state.target.short();
        let _infallible =
            writeln!(text, "{composition}  {phase}  {target} from {commit}, {begun} ago");
        for line in remarks(composition, state) {
            let _infallible = writeln!(text, "  {}", printable(&line));
        }
        for (ring, at) in &state.rings {
            let step = serde_json::to_value(at.step).unwrap_or_default();
            let step = step.as_str().unwrap_or_default().to_owned();
            let counts = counts(&vas.get(ring).copied().unwrap_or_default());
            let id = at.at.short();
            let _infallible = write!(text, "  {:<16} {id:<12} {step:<8} ", ring.as_str());
            if wide {
                let good = at.good.map_or_else(|| "-".to_owned(), |good| good.short());
                let since = ago(at.since_ms).to_string();
                let _infallible = write!(text, "good {good:<12} since {since:<9} ");
            }
            let _infallible = writeln!(text, "{counts}");
        }
    }
}

/// Why it is as it is, and what lets it go on.
fn remarks(composition: &CompositionName, state: &RolloutState) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(quarantine) = &state.quarantined {
        let (commit, since) = (short(&quarantine.commit), ago(quarantine.at_ms));
        lines.push(format!("quarantined {commit} {since} ago: {}", quarantine.reason));
        lines.push(format!(
            "it waits for a commit that changes what {composition} is made of, or: strata rollout resume {composition} --quarantined"
        ));
    }
    if let Some(halt) = &state.halted {
        let of = match short(&halt.commit) {
            "" => String::new(),
            commit => format!(" {commit}"),
        };
        lines.push(format!("halted{of} {} ago: {}", ago(halt.at_ms), halt.reason));
        lines.push(format!(
            "it waits for a commit that changes what {composition} is made of or its health checks, or: strata rollout resume {composition}"
        ));
    }
    if let Some(pause) = &state.paused {
        lines.push(format!("paused {} ago: {}", ago(pause.at_ms), pause.reason));
    }
    if let Some(waiting) = &state.waiting {
        lines.push(format!("waits: {waiting}"));
    }
    lines
}

fn counts(summary: &Summary) -> String {
    let counts = SyncState::ALL.into_iter().filter(|state| summary.count(*state) > 0);
    let counts: Vec<_> = counts.map(|state| format!("{} {state}", summary.count(state))).collect();
    if counts.is_empty() { "no VAs".to_owned() } else { counts.join(", ") }
}
