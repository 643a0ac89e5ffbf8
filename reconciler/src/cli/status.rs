//! `strata status`: what every VA should run, runs, and why not.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use serde::Serialize;
use strata_core::printable::printable;
use strata_core::rollout::policy::DEFAULT_SILENT_DAYS;
use strata_core::status::{Age, Summary, SyncState, VaConditionReason, VaStatus};
use strata_core::{CompositionName, GenerationId, MacAddr, RingName, VaName};
use strata_store::Store;

use super::known;
use super::reconcile::fallback_text;
use super::view::{FormatArgs, Table, View, WatchArgs};
use super::{Failure, Outcome, StoreArgs};
use crate::fleet::{self, FleetError};
use crate::repositories::mirrors::progress::{self, Mirroring};
use crate::rollout::conditions::{self, Unfinished};
use crate::rollout::{RolloutFile, WaitingMoves};
use crate::state::{Condition, ReconcileState, Refusal, StateError, milliseconds};
use crate::telling::place::{self, Failing, Place};

/// The version of the JSON form.
const VERSION: u32 = 1;
/// VAs that the table shows unless told otherwise.
const ROWS: usize = 200;

/// Show which VAs serve what they should, and why the others do not
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata status --store /srv/strata
  strata status --template web-server --output json | jq .summary
  strata status --watch

Everything is read from the store; no daemon is asked.
Exit status: 0 no commit is refused, all VAs are in sync and no script of theirs failed, 1 otherwise, 2 an error.")]
pub struct StatusArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Only VAs of this template.
    #[arg(long, value_name = "NAME")]
    template: Option<CompositionName>,
    /// Only VAs of this ring.
    #[arg(long, value_name = "NAME")]
    ring: Option<RingName>,
    /// Show at most this many VAs, those that are not in sync first; 0 shows all
    /// [default: 200; as JSON: all].
    #[arg(long, value_name = "NUMBER")]
    limit: Option<usize>,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// Specified in `docs/formats.md`, "Status".
#[derive(Serialize)]
struct Report {
    version: u32,
    reconciler: Option<ReconcileState>,
    conditions: Vec<Condition>,
    summary: Summary,
    /// Links of VAs that cannot be followed; these VAs are not among `vas`.
    damage: Vec<String>,
    /// VAs that were not seen for longer than the policy's `silent-days`.
    silent: Vec<SilentVa>,
    rollouts: Vec<Unfinished>,
    /// Links of VAs that a commit gives to another template or ring, and that wait.
    moves_waiting: Vec<WaitingMoves>,
    /// Repositories that layers are waited for from.
    mirrors: Vec<Mirroring>,
    /// Whom the reconciler tells, and whether it can.
    telling: Vec<Receiver>,
    vas: Vec<VaStatus>,
    /// How many VAs the limit left out of `vas`.
    omitted: usize,
}

/// A receiver of notifications or of statuses of commits.
#[derive(Serialize)]
struct Receiver {
    receiver: String,
    delivered: u64,
    dropped: u64,
    dropped_why: Option<String>,
    /// `null` where the last delivery worked.
    failing: Option<Failing>,
}

fn receivers(store: &Store) -> Result<Vec<Receiver>, Failure> {
    let receiver = |(receiver, place): (String, Place)| {
        let Place { delivered, dropped, dropped_why, failing, .. } = place;
        Receiver { receiver, delivered, dropped, dropped_why, failing }
    };
    Ok(place::all(store)?.into_iter().map(receiver).collect())
}

/// A VA that was not seen for long.
#[derive(Serialize)]
struct SilentVa {
    name: Option<VaName>,
    mac: MacAddr,
    report_age_ms: u64,
}

/// VAs whose last report is older than so many days.
fn silent(vas: &[VaStatus], days: u32) -> Vec<SilentVa> {
    let limit_ms = u64::from(days) * 86_400_000;
    let aged = vas.iter().filter_map(|va| Some((va, va.report_age_ms.filter(|a| *a > limit_ms)?)));
    aged.map(|(va, report_age_ms)| SilentVa { name: va.name.clone(), mac: va.mac, report_age_ms })
        .collect()
}

/// # Errors
/// The store cannot be read.
pub fn run(args: &StatusArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    args.format.show(&args.watch, || look(args, &store))
}

fn look(args: &StatusArgs, store: &Store) -> Result<(Report, Outcome), Failure> {
    known::template_if_named(store, args.template.as_ref())?;
    known::ring_if_named(store, args.ring.as_ref())?;
    let reconciler = ReconcileState::read(store)?;
    let fleet::Fleet { mut vas, damage } = fleet::fleet(store)?;
    vas.retain(|va| {
        args.template.as_ref().is_none_or(|template| va.composition == *template)
            && args.ring.as_ref().is_none_or(|ring| va.ring.as_ref() == Some(ring))
    });
    let summary = Summary::of(&vas);
    let calm = vas.iter().all(|va| va.conditions.is_empty());
    let file = RolloutFile::read(store)?;
    let days = file.silent_days.unwrap_or(DEFAULT_SILENT_DAYS);
    let rollouts = conditions::unfinished(&file);
    let silent = silent(&vas, days);
    let limit = match (args.limit, args.format.is_data()) {
        (Some(0), _) | (None, true) => usize::MAX,
        (Some(limit), _) => limit,
        (None, false) => ROWS,
    };
    let omitted = vas.len().saturating_sub(limit);
    if omitted > 0 {
        vas.sort_by_key(|va| va.state == SyncState::InSync);
        vas.truncate(limit);
    }
    let conditions = reconciler.as_ref().map(ReconcileState::conditions);
    let conditions = conditions.map(|all| conditions::refine(all, &rollouts));
    let conditions = conditions.into_iter().flatten().collect();
    let report = Report {
        version: VERSION,
        reconciler,
        conditions,
        summary,
        damage,
        silent,
        rollouts,
        moves_waiting: file.moves_waiting,
        mirrors: progress::read(store)?,
        telling: receivers(store)?,
        vas,
        omitted,
    };
    let taken = report.reconciler.as_ref().is_none_or(|state| state.refused.is_none());
    let good = report.summary.all_in_sync() && report.damage.is_empty() && calm && taken;
    Ok((report, if good { Outcome::Done } else { Outcome::Difference }))
}

impl View for Report {
    fn table(&self) -> Table {
        table(&self.vas)
    }

    fn page(&self, wide: bool) -> String {
        text(self, wide)
    }
}

fn text(report: &Report, wide: bool) -> String {
    let mut text = reconciler_text(report.reconciler.as_ref());
    for damage in &report.damage {
        let _infallible = writeln!(text, "damaged  {}", printable(damage));
    }
    for Unfinished { composition, phase, message } in &report.rollouts {
        let _infallible = writeln!(text, "rollout  {composition} {phase}: {}", printable(message));
    }
    text.push_str(&waiting_text(&report.moves_waiting, &report.mirrors));
    for Receiver { receiver, dropped, dropped_why, failing, .. } in &report.telling {
        if let Some(Failing { message, since_ms, .. }) = failing {
            let since = ago(*since_ms);
            let _infallible = writeln!(
                text,
                "telling  {receiver} has failed for {since}: {}",
                printable(message)
            );
        } else if *dropped > 0 {
            let why = dropped_why.as_deref().unwrap_or_default();
            let _infallible =
                writeln!(text, "telling  {receiver} lost {dropped}: {}", printable(why));
        }
    }
    if !report.silent.is_empty() {
        let name = |va: &SilentVa| {
            let name = va.name.as_ref().map_or_else(|| va.mac.to_string(), VaName::to_string);
            format!("{name} ({})", Age(va.report_age_ms))
        };
        let named: Vec<_> = report.silent.iter().take(20).map(name).collect();
        let more = report.silent.len().saturating_sub(named.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let _infallible = writeln!(text, "silent   {}{more}", named.join(", "));
    }
    let _infallible = writeln!(text, "{}", summary_text(&report.summary));
    if !report.vas.is_empty() {
        text.push('\n');
        text.push_str(&table(&report.vas).text(wide));
    }
    if report.omitted > 0 {
        let _infallible = writeln!(text, "and {} more (--limit 0 shows all)", report.omitted);
    }
    text
}

/// What the reconciler saw and did last.
pub(super) fn reconciler_text(state: Option<&ReconcileState>) -> String {
    let mut text = String::new();
    let Some(state) = state else {
        return "no reconciler has run on this store\n".to_owned();
    };
    let _infallible = writeln!(text, "source   {}", printable(&state.source));
    let _infallible = match &state.applied {
        Some(applied) => writeln!(text, "applied  {} {} ago", applied.commit, ago(applied.at_ms)),
        None => writeln!(text, "applied  no commit yet"),
    };
    if let Some(refused) = &state.refused {
        let Refusal { commit, reason, message, problems, at_ms } = refused;
        fact(&mut text, "refused", &format!("{commit} {} ago: {message}", ago(*at_ms)));
        problems.iter().for_each(|problem| fact(&mut text, "", problem));
        if let Some(hint) = reason.hint() {
            fact(&mut text, "", &format!("hint: {hint}"));
        }
    }
    if let Some(fallback) = &state.fallback {
        fact(&mut text, "remote", &fallback_text(fallback));
    }
    if let Some(testing) = &state.testing {
        let commit = testing.commit.as_deref().unwrap_or("nothing that is not merged");
        fact(&mut text, "testing", commit);
        if let Some(refused) = &testing.refused {
            fact(&mut text, "", &format!("not used: {refused}"));
        }
    }
    if let Some(failing) = &state.failing {
        fact(&mut text, "failing", &format!("{} ago: {}", ago(failing.at_ms), failing.message));
    }
    if let Some(refused) = &state.settings {
        let since = ago(refused.at_ms);
        fact(&mut text, "settings", &format!("not taken {since} ago:\n{}", refused.message));
    }
    text
}

/// Something that may have several lines: the others stand below the first.
fn fact(text: &mut String, label: &str, value: &str) {
    let mut label = label;
    for line in value.lines().filter(|line| !line.trim().is_empty()) {
        let _infallible = writeln!(text, "{label:<8} {}", printable(line));
        label = "";
    }
}

/// What VAs and commits wait for that no rollout shows.
pub(super) fn waiting_text(moves: &[WaitingMoves], mirrors: &[Mirroring]) -> String {
    let mut text = String::new();
    for moves in moves {
        let note = moves.note().to_string();
        let _infallible = writeln!(text, "moves    {}", printable(&note));
    }
    for mirror in mirrors {
        let line = mirror.text(milliseconds(SystemTime::now()));
        let _infallible = writeln!(text, "mirror   {}", printable(&line));
    }
    text
}

pub(super) fn ago(at_ms: u64) -> Age {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    Age(now_ms.saturating_sub(at_ms))
}

fn summary_text(summary: &Summary) -> String {
    let counts: Vec<_> = SyncState::ALL
        .into_iter()
        .filter(|state| summary.count(*state) > 0)
        .map(|state| format!("{} {state}", summary.count(state)))
        .collect();
    match counts.as_slice() {
        [] => "no VAs".to_owned(),
        counts => {
            let unit = if summary.total == 1 { "VA" } else { "VAs" };
            format!("{} {unit}: {}", summary.total, counts.join(", "))
        }
    }
}

fn table(vas: &[VaStatus]) -> Table {
    let short = |id: Option<GenerationId>| id.map_or_else(|| "-".to_owned(), |id| id.short());
    let mut table = Table::new(
        &["NAME", "MAC", "TEMPLATE", "RING", "RUNS", "STATE", "DESIRED", "ACTIVE", "WHY"],
        &["REPORTED"],
    );
    for va in vas {
        table.sparse_row([
            va.name.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            va.mac.to_string(),
            va.composition.to_string(),
            va.ring.as_ref().map_or_else(|| "(pinned)".to_owned(), ToString::to_string),
            va.run_state.map_or_else(|| "-".to_owned(), |state| state.to_string()),
            va.state.to_string(),
            short(va.desired),
            short(va.active),
            why(va),
            va.report_age_ms.map_or_else(|| "-".to_owned(), |age| format!("{} ago", Age(age))),
        ]);
    }
    table
}

/// Why a VA is in its state, and what an operator must look at besides.
fn why(va: &VaStatus) -> String {
    let conditions = va.conditions.iter().map(|condition| match condition.reason {
        // The reason says it already.
        VaConditionReason::SwappedBack if va.reason.is_some() => String::new(),
        _ => format!("script failed: {}", condition.message),
    });
    let reason = va.reason.as_ref().map(ToString::to_string);
    let parts: Vec<_> =
        reason.into_iter().chain(conditions).filter(|part| !part.is_empty()).collect();
    parts.join("; ")
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        Failure::new(&error)
            .hint("the file is the reconciler's own; restore it, or remove it and reconcile again")
    }
}

impl From<FleetError> for Failure {
    fn from(error: FleetError) -> Self {
        match error {
            FleetError::Store(error) => error.into(),
            FleetError::Machine(error) => Failure::new(error),
        }
    }
}
