//! `strata rollout`: how far rollouts are, and what operators say to them.

mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use strata_core::CompositionName;
use strata_core::event::Event;
use strata_core::printable::{is_unprintable, printable};
use strata_core::rollout::{Command, Order, Waiting, apply_command};
use strata_store::{Store, StoreError};

use super::{Failure, Outcome, StoreArgs, known, print_text};
use crate::pass::LOCK;
use crate::rollout::request::{self, Ask, Request};
use crate::rollout::{RolloutFile, RolloutFileError};

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
    Status(status::StatusArgs),
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
        RolloutCommand::Status(args) => status::run(args),
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
        (Some(template), _) => {
            known::among(template, &all)?;
            BTreeSet::from([template.clone()])
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
        None if addressed.is_empty() => {
            Err(Failure::new("there are no rollouts").hint(known::NO_COMMIT))
        }
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

impl From<RolloutFileError> for Failure {
    fn from(error: RolloutFileError) -> Self {
        match error {
            RolloutFileError::Store(error) => error.into(),
            error => Failure::new(&error)
                .hint("restore it, or remove it: the links and the audit log then tell the rest"),
        }
    }
}
