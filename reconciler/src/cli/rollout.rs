//! `strata rollout`: how far rollouts are, and what operators say to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde::Serialize;
use strata_core::event::Event;
use strata_core::printable::{is_unprintable, printable};
use strata_core::rollout::policy::base_ring;
use strata_core::rollout::{Command, Order, RolloutState, Waiting, apply_command};
use strata_core::status::{Summary, SyncState};
use strata_core::{CompositionName, GenerationId, RingName};
use strata_store::{Store, StoreError};

use super::known;
use super::status::{ago, waiting_text};
use super::{Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_json, print_text};
use crate::fleet;
use crate::pass::LOCK;
use crate::repositories::mirrors::progress::{self, Mirroring};
use crate::rollout::request::{self, Ask, Request};
use crate::rollout::{RolloutFile, RolloutFileError, WaitingMoves, WaitingRemovals};

/// The version of the JSON form.
const VERSION: u32 = 1;
/// How long a command waits for a running reconciler to take its request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Show rollouts; pause, resume, abort and promote them
#[derive(Debug, Args)]
pub struct RolloutArgs {
    #[command(subcommand)]
    command: RolloutCommand,
}

#[derive(Debug, Subcommand)]
enum RolloutCommand {
    Status(StatusArgs),
    Pause(PauseArgs),
    Resume(ResumeArgs),
    Abort(AbortArgs),
    Promote(PromoteArgs),
    Confirm(ConfirmArgs),
}

/// Let removals go on that are more than one pass may do
#[derive(Debug, Args)]
#[command(after_help = "Example: strata rollout confirm 1f2e3d4c5b6a

`strata rollout status` names the removals that wait, and their token.")]
struct ConfirmArgs {
    /// What `strata rollout status` says.
    token: String,
    #[command(flatten)]
    store: StoreArgs,
}

/// Show how far every rollout is, ring by ring, and what it waits for
#[derive(Debug, Args)]
#[command(after_help = "Example: strata rollout status web-server --output json

It also shows VAs that wait to follow another template or ring, and repositories that layers are waited for from.

Exit status: 0 all targets are everywhere and no VA waits to be moved, 1 otherwise, 2 an error.")]
struct StatusArgs {
    /// Only this template.
    template: Option<CompositionName>,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Which rollout an order is for, and why.
#[derive(Debug, Args)]
struct OrderArgs {
    /// The template.
    template: Option<CompositionName>,
    /// All templates that the order makes sense for.
    #[arg(long, conflicts_with = "template")]
    all_templates: bool,
    /// Why, for the events and the status.
    #[arg(long, value_name = "TEXT", value_parser = given_reason)]
    reason: Option<String>,
    #[command(flatten)]
    store: StoreArgs,
}

/// A reason that says something.
pub(super) fn given_reason(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("the reason is empty; say why".to_owned()),
        reason => Ok(reason.to_owned()),
    }
}

/// Move no further ring until it is resumed
#[derive(Debug, Args)]
#[command(after_help = "Example: strata rollout pause web-server --reason 'load test'

Exit status: 0 taken; 1 not taken yet, as no reconciler runs or it is busy: it is kept for the next one; 2 an
error, or an order that makes no sense now.")]
struct PauseArgs {
    #[command(flatten)]
    order: OrderArgs,
}

/// Go on after a pause or a halt
#[derive(Debug, Args)]
#[command(after_help = "Example: strata rollout resume web-server

The rings that were moved have their deadline and soak time again.

Exit status: 0 taken; 1 not taken yet, as no reconciler runs or it is busy: it is kept for the next one; 2 an
error, or an order that makes no sense now.")]
struct ResumeArgs {
    #[command(flatten)]
    order: OrderArgs,
    /// Also roll out again what is quarantined.
    #[arg(long)]
    quarantined: bool,
}

/// Move the rings back to the last good generation and quarantine the commit
#[derive(Debug, Args)]
#[command(after_help = "Example: strata rollout abort web-server --reason 'customers complain'

Exit status: 0 taken; 1 not taken yet, as no reconciler runs or it is busy: it is kept for the next one; 2 an
error, or an order that makes no sense now.")]
struct AbortArgs {
    #[command(flatten)]
    order: OrderArgs,
}

/// Go on to the next ring, whatever is waited for
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata rollout promote web-server
  strata rollout promote web-server --all --override-window --reason 'security fix'

Exit status: 0 taken; 1 not taken yet, as no reconciler runs or it is busy: it is kept for the next one; 2 an
error, or an order that makes no sense now.")]
struct PromoteArgs {
    #[command(flatten)]
    order: OrderArgs,
    /// To all rings that are left of the template.
    #[arg(long)]
    all: bool,
    /// Although windows are closed or a freeze is on; needs --reason.
    #[arg(long, requires = "reason")]
    override_window: bool,
}

/// # Errors
/// The store cannot be used, or the order makes no sense now.
pub fn run(args: &RolloutArgs) -> Result<Outcome, Failure> {
    match &args.command {
        RolloutCommand::Status(args) => status(args),
        RolloutCommand::Pause(args) => order(&args.order, Order::Pause),
        RolloutCommand::Resume(args) => {
            order(&args.order, Order::Resume { quarantined: args.quarantined })
        }
        RolloutCommand::Abort(args) => order(&args.order, Order::Abort),
        RolloutCommand::Promote(args) => {
            let PromoteArgs { all, override_window, .. } = *args;
            order(&args.order, Order::Promote { all, override_window })
        }
        RolloutCommand::Confirm(args) => confirm(args),
    }
}

/// Puts an order where the reconciler finds it, after a look whether it makes sense, and
/// says what came of it.
fn order(args: &OrderArgs, order: Order) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let reason = args.reason.clone().unwrap_or_default();
    let command = Command { order: order.clone(), reason: reason.clone() };
    let events = addressed(args, &command, &RolloutFile::read(&store)?)?;
    let composition = args.template.clone();
    let request = Request::new(caller(), reason, Ask::Rollout { composition, order });
    let outcome = submit(&store, &request)?;
    if outcome == Outcome::Difference {
        return Ok(outcome);
    }
    let file = RolloutFile::read(&store)?;
    let mut text = String::new();
    for (name, events) in events {
        for event in events {
            let line = event.to_string();
            let _infallible = writeln!(text, "{}", line.trim_end().trim_end_matches(':'));
        }
        // Taken, and yet nothing moves now.
        let closed =
            |waiting: &&Waiting| matches!(waiting, Waiting::Window { .. } | Waiting::Freeze { .. });
        let waiting = file.compositions.get(&name).and_then(|state| state.waiting.as_ref());
        if let Some(waiting) = waiting.filter(closed) {
            let _infallible = writeln!(text, "{name} waits: {}", printable(&waiting.to_string()));
        }
    }
    print_text(&text)?;
    Ok(outcome)
}

/// The templates that an order is for, the one that is named or all that it makes sense
/// for, with what it does to each.
fn addressed(
    args: &OrderArgs,
    command: &Command,
    file: &RolloutFile,
) -> Result<BTreeMap<CompositionName, Vec<Event>>, Failure> {
    let all: BTreeSet<_> = file.compositions.keys().cloned().collect();
    let wanted = match (&args.template, args.all_templates) {
        (Some(template), _) if all.contains(template) => BTreeSet::from([template.clone()]),
        (Some(template), _) => {
            return Err(Failure::new(format!("no commit brought a template {template}"))
                .hint(known::listed(&all)));
        }
        (None, true) => all,
        (None, false) => {
            return Err(Failure::new("the order names no template")
                .hint(format!("name one, or write --all-templates; {}", known::listed(&all))));
        }
    };
    let mut addressed = BTreeMap::new();
    let mut refused = None;
    for name in wanted {
        match apply_command(&name, &file.compositions[&name], command, 0) {
            Ok((_, events)) => {
                addressed.insert(name, events);
            }
            Err(error) => refused = Some(error.to_string()),
        }
    }
    match refused {
        Some(error) if addressed.is_empty() => {
            Err(Failure::new(error).hint("see: strata rollout status"))
        }
        None if addressed.is_empty() => Err(Failure::new("there are no rollouts")
            .hint(known::listed::<CompositionName>(&BTreeSet::new()))),
        Some(_) | None => Ok(addressed),
    }
}

fn confirm(args: &ConfirmArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let waiting = RolloutFile::read(&store)?.removals_waiting;
    if waiting.is_none_or(|waiting| waiting.token != args.token) {
        return Err(Failure::new(format!("no removals with the token {} wait", args.token))
            .hint("see `strata rollout status`; the token changes with what waits"));
    }
    let ask = Ask::ConfirmRemovals { token: args.token.clone() };
    let outcome = submit(&store, &Request::new(caller(), String::new(), ask))?;
    if outcome == Outcome::Done {
        print_text("the removals go on\n")?;
    }
    Ok(outcome)
}

/// Submits a request and waits until a reconciler that runs has taken it; a difference
/// where none did.
pub(super) fn submit(store: &Store, request: &Request) -> Result<Outcome, Failure> {
    let name = request.submit(store)?;
    if !reconciler_runs(store)? {
        eprintln!("note: no reconciler runs; the next one takes this");
        return Ok(Outcome::Difference);
    }
    let end = Instant::now() + PATIENCE;
    while request::is_waiting(store, &name) {
        if Instant::now() > end {
            eprintln!("note: the reconciler has not taken this yet; it stays in state/requests");
            return Ok(Outcome::Difference);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(Outcome::Done)
}

/// Whether a reconciler runs on the store.
pub(super) fn reconciler_runs(store: &Store) -> Result<bool, Failure> {
    match store.try_lock(LOCK) {
        Ok(_free) => Ok(false),
        Err(StoreError::Locked(_)) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Who calls, as well as the environment tells.
pub(super) fn caller() -> String {
    let named =
        ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|key| std::env::var(key).ok());
    let name = named.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
    name.chars().filter(|c| !is_unprintable(*c)).take(64).collect()
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

fn status(args: &StatusArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    known::template_if_named(&store, args.template.as_ref())?;
    let file = RolloutFile::read(&store)?;
    let mut wanted = file.compositions;
    wanted.retain(|name, _| args.template.as_ref().is_none_or(|only| only == name));
    let rollouts = rollouts(&store, wanted)?;
    let removals_waiting = file.removals_waiting;
    let mut moves_waiting = file.moves_waiting;
    moves_waiting.retain(|moves| args.template.as_ref().is_none_or(|t| *t == moves.composition));
    let done = rollouts.iter().all(|rollout| rollout.phase == "done")
        && moves_waiting.is_empty()
        && removals_waiting.is_none();
    let mirrors = progress::read(&store)?;
    let report = Report { version: VERSION, rollouts, moves_waiting, mirrors, removals_waiting };
    match args.output.output {
        OutputFormat::Json => print_json(&report)?,
        OutputFormat::Text => print_text(&text(&report))?,
    }
    Ok(if done { Outcome::Done } else { Outcome::Difference })
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

fn text(report: &Report) -> String {
    let mut text = String::new();
    if report.rollouts.is_empty() {
        text.push_str("no rollouts yet\n");
    }
    if let Some(WaitingRemovals { token, count, limit, first }) = &report.removals_waiting {
        let _infallible = writeln!(
            text,
            "{count} removals wait, {limit} a pass are allowed: strata rollout confirm {token}"
        );
        for removal in first {
            let _infallible = writeln!(text, "  {}", printable(removal));
        }
    }
    text.push_str(&waiting_text(&report.moves_waiting, &report.mirrors));
    for Rollout { composition, phase, state, vas } in &report.rollouts {
        let commit = strata_core::event::short(&state.commit);
        let begun = ago(state.begun_at_ms);
        let target = state.target.short();
        let _infallible =
            writeln!(text, "{composition}  {phase}  {target} from {commit}, {begun} ago");
        for line in remarks(state) {
            let _infallible = writeln!(text, "  {}", printable(&line));
        }
        for (ring, at) in &state.rings {
            let step = serde_json::to_value(at.step).unwrap_or_default();
            let step = step.as_str().unwrap_or_default().to_owned();
            let summary = vas.get(ring).copied().unwrap_or_default();
            let id: GenerationId = at.at;
            let _infallible = writeln!(
                text,
                "  {:<16} {:<12} {step:<8} {}",
                ring.as_str(),
                id.short(),
                counts(&summary)
            );
        }
    }
    text
}

/// Why it is as it is.
fn remarks(state: &RolloutState) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(quarantine) = &state.quarantined {
        let commit = strata_core::event::short(&quarantine.commit);
        lines.push(format!(
            "quarantined {commit} {} ago: {}",
            ago(quarantine.at_ms),
            quarantine.reason
        ));
    }
    if let Some(halt) = &state.halted {
        lines.push(format!("halted {} ago: {}", ago(halt.at_ms), halt.reason));
        // A commit that mends the check makes no other generation.
        lines.push("another generation lets it go on, or: strata rollout resume".to_owned());
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

impl From<RolloutFileError> for Failure {
    fn from(error: RolloutFileError) -> Self {
        match error {
            RolloutFileError::Store(error) => error.into(),
            error => Failure::new(&error)
                .hint("restore it, or remove it: the links and the audit log then tell the rest"),
        }
    }
}
