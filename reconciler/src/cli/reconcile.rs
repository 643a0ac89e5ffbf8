//! `strata reconcile`: keep the store in line with a branch.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Args;
use strata_core::event::Event;
use strata_core::plan::Action;
use strata_core::printable::printable;
use strata_core::{CompositionName, GenerationId};

use super::output::print_bytes;
use super::{Failure, Outcome, OutputFormat, StoreArgs, print_text, quantity};
use crate::control::{self, ControlError};
use crate::mirror::MirrorError;
use crate::pass::{Options, PassError, PassReport, PassResult, Reconciler, RolloutWaits};
use crate::run::{self, Configuration, RunError, Schedule};
use crate::service::ReloadError;
use crate::settings::{Settings, SettingsError};
use crate::source::{Selector, Source, SourceError};
use crate::state::{Fallback, RefusalReason};
use crate::traces::{Traces, TracesError, spans};
use crate::triggers::TriggerError;

/// Branches that a hint names.
const BRANCHES: usize = 20;

/// Bring a branch's commits into the store, once or for ever.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  strata reconcile --store /srv/strata --source /srv/git/fleet.git\n  strata reconcile --source https://git.example.org/fleet.git --branch production --once\n  strata reconcile --source /srv/git/fleet.git --config /etc/strata/strata.toml\n  strata reconcile now --wait\n\nExit status with --once and with now --wait: 0 applied or nothing to do, 1 the commit was refused, 2 an error.\nWithout --once it runs until SIGTERM or SIGINT."
)]
pub struct ReconcileArgs {
    /// now: make the reconciler that runs on the store look at its source, instead of
    /// running one.
    #[arg(value_enum)]
    pub action: Option<Asked>,
    #[command(flatten)]
    store: StoreArgs,
    /// The GitOps repository: a path, or a URL (https://, ssh://, file://, user@host:path).
    #[arg(long, value_name = "URL-OR-PATH", required_unless_present_any = ["config", "action"], conflicts_with = "action")]
    source: Option<String>,
    /// The branch to follow [default: main].
    #[arg(long, value_name = "BRANCH", requires = "source")]
    branch: Option<String>,
    /// Run one pass and end.
    #[arg(long, conflicts_with = "action")]
    pub once: bool,
    /// With now: wait for the pass, and print what it found.
    #[arg(long, requires = "action")]
    wait: bool,
    /// Look at the source at least this often.
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    poll: u64,
    /// Do not use file events of a local source; poll only.
    #[arg(long)]
    no_events: bool,
    /// End a fetch that takes longer.
    #[arg(long, default_value_t = 120, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    fetch_deadline: u64,
    /// End a fetch that brings more.
    #[arg(long, default_value_t = 1_024, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    fetch_limit: u64,
    /// Take a branch whose history was rewritten.
    #[arg(long)]
    allow_rewrite: bool,
    /// Settings of this host: remotes, what of them is followed, whose commits are believed
    /// (docs/sources.md), where it listens, whom it tells and where traces go
    /// (docs/observability.md), whether rollbacks become branches (docs/rollouts.md). Drop-ins
    /// are in FILE.d/. All is read again on SIGHUP, and taken whole or not at all. --source is
    /// used in place of its [source].
    #[arg(long, value_name = "FILE")]
    config: Option<std::path::PathBuf>,
    /// How to print what was done: text, or one line of JSON a pass.
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: OutputFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Asked {
    Now,
}

/// # Errors
/// The source or the store cannot be used.
pub fn run(args: &ReconcileArgs, traces: &Traces) -> Result<Outcome, Failure> {
    if let Some(Asked::Now) = args.action {
        return now(args);
    }
    let store = Arc::new(args.store.open()?);
    let read = |file: &std::path::PathBuf| {
        let (settings, source_is_given) = (Settings::read(file)?, args.source.is_some());
        Ok::<_, SettingsError>(Configuration { file: file.clone(), settings, source_is_given })
    };
    let configuration = args.config.as_ref().map(read).transpose()?;
    let settings = configuration.as_ref().map(|configuration| &configuration.settings);
    let named = settings.and_then(|settings| settings.source.clone());
    if args.source.is_some() && named.is_some() {
        eprintln!(
            "note: --source is used in place of [source] of the settings, its keys and its tag too"
        );
    }
    let source = match (&args.source, named) {
        (Some(text), _) => Source::parse(text, args.branch.as_deref().unwrap_or("main"))?,
        (None, Some(source)) => source,
        (None, None) => {
            return Err(Failure::new("no source is named")
                .hint("give --source, or a [source] table in the settings"));
        }
    };
    let options = Options {
        fetch_deadline: Duration::from_secs(args.fetch_deadline),
        fetch_bytes: args.fetch_limit << 20,
        allow_rewrite: args.allow_rewrite,
        trust: settings.and_then(|settings| settings.trust.clone()),
        // Without them, only health checks in VAs fail, and say so.
        programs: super::va::programs().ok(),
        once: args.once,
    };
    let mut reconciler = Reconciler::open(store.clone(), source, options)?;
    if args.once {
        let settings = settings.and_then(|settings| settings.traces.as_ref());
        traces.take(Traces::prepare(settings, &store)?);
        let passed = once(&mut reconciler, args.output);
        traces.end();
        return passed;
    }
    let schedule = Schedule { poll: Duration::from_secs(args.poll), events: !args.no_events };
    let tell = |report: &PassReport| {
        if let Err(failure) = print(report, args.output) {
            failure.print();
        }
    };
    run::run(reconciler, schedule, configuration, traces, tell)?;
    Ok(Outcome::Done)
}

/// One pass. Where it brings no commit in, rollouts of the last one go on all the same.
fn once(reconciler: &mut Reconciler, output: OutputFormat) -> Result<Outcome, Failure> {
    let never = AtomicBool::new(false);
    let tell = |report: &PassReport| {
        report.events.iter().for_each(crate::rollout::log);
        print(report, output)
    };
    let span = spans::Pass::begin();
    let passed = reconciler.pass_in(&span, &never);
    if let Ok(report) = &passed {
        span.in_scope(|| tell(report))?;
    }
    drop(span);
    if !passed.as_ref().is_ok_and(|report| report.refusal.is_none()) {
        match reconciler.step(&never) {
            Ok(Some(stepped)) if stepped.news => stepped.trace.log().in_scope(|| tell(&stepped))?,
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "a step of the rollouts failed"),
        }
    }
    let report = passed.map_err(|error| pass_failure(error, reconciler.source()))?;
    Ok(match report.result {
        PassResult::Applied | PassResult::Unchanged => Outcome::Done,
        PassResult::Refused => Outcome::Difference,
    })
}

/// A failed pass; where a source on this host has no such branch, with those that it has.
fn pass_failure(error: PassError, source: &Source) -> Failure {
    let hint = match &error {
        PassError::Mirror(MirrorError::Fetch { .. } | MirrorError::All(_)) => branches(source),
        _ => None,
    };
    match hint {
        Some(hint) => Failure::new(&error).hint(hint),
        None => error.into(),
    }
}

/// The branches of a source on this host, where the one that is followed is not there.
fn branches(source: &Source) -> Option<String> {
    let Selector::Branch(wanted) = source.selector() else { return None };
    let repository = git2::Repository::open(source.local_path()?).ok()?;
    let mut names = Vec::new();
    for branch in repository.branches(Some(git2::BranchType::Local)).ok()? {
        names.push(String::from_utf8_lossy(branch.ok()?.0.name_bytes().ok()?).into_owned());
    }
    if names.contains(wanted) {
        return None;
    }
    names.truncate(BRANCHES);
    Some(match names.as_slice() {
        [] => "the source has no branch yet: commit and push one".to_owned(),
        names => format!("name one of its branches with --branch: {}", names.join(", ")),
    })
}

/// Asks the reconciler that runs on the store for a pass.
fn now(args: &ReconcileArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let Some(report) = control::reconcile_now(&store, args.wait)? else {
        return Ok(Outcome::Done);
    };
    let text = |key: &str| report[key].as_str().unwrap_or_default();
    match args.output {
        OutputFormat::Json => super::print_json(&report)?,
        OutputFormat::Text => {
            let commit = text("commit");
            let commit = commit.get(..12).unwrap_or(commit);
            let reason = serde_json::from_value::<RefusalReason>(report["refusal"].clone());
            let hint = reason.ok().and_then(RefusalReason::hint);
            let hint = hint.map(|hint| format!("hint: {hint}\n")).unwrap_or_default();
            let line = match (text("result"), report["message"].as_str()) {
                (_, Some(message)) => {
                    format!("{commit} refused: {message}; nothing was moved\n{hint}")
                }
                ("unchanged", None) => format!("{commit} nothing to do\n"),
                (result, None) => format!("{commit} {result}\n"),
            };
            print_text(&line)?;
        }
    }
    Ok(match text("result") {
        "refused" => Outcome::Difference,
        _ => Outcome::Done,
    })
}

fn print(report: &PassReport, output: OutputFormat) -> Result<(), Failure> {
    let text = match output {
        OutputFormat::Text => return print_text(&text(report)),
        OutputFormat::Json => {
            let mut text = serde_json::to_string(report)
                .map_err(|error| Failure::new(format!("write JSON: {error}")))?;
            text.push('\n');
            text
        }
    };
    print_bytes(text.as_bytes())
}

fn text(report: &PassReport) -> String {
    let mut text = String::new();
    for diagnostic in &report.diagnostics {
        let _infallible = writeln!(text, "{diagnostic}");
    }
    let commit = report.commit.get(..12).unwrap_or(&report.commit);
    if let Some(message) = &report.message {
        let _infallible =
            writeln!(text, "{commit} refused: {}; nothing was moved", printable(message));
        if let Some(hint) = report.refusal.and_then(RefusalReason::hint) {
            let _infallible = writeln!(text, "hint: {hint}");
        }
        return text;
    }
    if let Some(fallback) = &report.fallback {
        let _infallible = writeln!(text, "note: {}", printable(&fallback_text(fallback)));
    }
    for change in changes(&report.actions) {
        let _infallible = writeln!(text, "{change}");
    }
    for note in &report.notes {
        let _infallible = writeln!(text, "note: {}", printable(&note.to_string()));
    }
    for record in report.events.iter().filter(|record| is_told(&record.event)) {
        let _infallible = writeln!(text, "{}", record.event);
    }
    for RolloutWaits { composition, waiting } in &report.waiting {
        let waiting = waiting.to_string();
        let _infallible = writeln!(text, "{composition} waits: {}", printable(&waiting));
    }
    let took = report.timings.total_ms;
    let _infallible = match report.result {
        PassResult::Unchanged => writeln!(text, "{commit} nothing to do ({took:.0} ms)"),
        PassResult::Applied | PassResult::Refused => {
            let rings = count(report, |action| matches!(action, Action::MoveRing { .. }));
            let sealed = count(report, |action| matches!(action, Action::SealGeneration { .. }));
            writeln!(
                text,
                "{commit} applied: {} sealed, {} moved, {} ({took:.0} ms)",
                quantity(sealed, "generation"),
                quantity(rings, "ring link"),
                quantity(report.renames, "rename")
            )
        }
    };
    text
}

/// What there is to say of a remote that had to be used.
pub fn fallback_text(fallback: &Fallback) -> String {
    let Fallback { remote, failures, behind } = fallback;
    let behind = if *behind { ", which is behind what was applied" } else { "" };
    format!("{remote} is used{behind}: {}", failures.join("; "))
}

/// Whether the actions do not say it already.
fn is_told(event: &Event) -> bool {
    !matches!(
        event,
        Event::RingMoved { .. } | Event::RolloutStarted { .. } | Event::RolloutDone { .. }
    )
}

fn count(report: &PassReport, which: impl Fn(&Action) -> bool) -> u64 {
    report.actions.iter().filter(|action| which(action)).count() as u64
}

/// One line a layer, composition or VA; a composition's rings stand together.
fn changes(actions: &[Action]) -> Vec<String> {
    type Move = (CompositionName, Option<GenerationId>, GenerationId);
    let mut moves: Vec<(Move, Vec<String>)> = Vec::new();
    let mut lines = Vec::new();
    for action in actions {
        match action {
            Action::SealLayer { layer } => lines.push(format!("configuration layer {layer}")),
            Action::SealGeneration { .. } => {}
            Action::MoveRing { composition, ring, from, to } => {
                let key = (composition.clone(), *from, *to);
                match moves.iter_mut().find(|(found, _)| *found == key) {
                    Some((_, rings)) => rings.push(ring.to_string()),
                    None => moves.push((key, vec![ring.to_string()])),
                }
            }
            Action::LinkVa { name, mac, to, .. } => {
                lines.push(format!("{name} ({mac}) follows {}", to.composition()));
            }
        }
    }
    let moves = moves.into_iter().map(|((composition, from, to), rings)| {
        let from = from.map_or_else(|| "new".to_owned(), |from| from.short());
        format!("{composition}: {from} → {} in {}", to.short(), rings.join(", "))
    });
    moves.chain(lines).collect()
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        let hint = match &error {
            SourceError::Protocol(_) => {
                "git:// and http:// do not prove who answers; use https:// or ssh://"
            }
            SourceError::Branch(_) => "name the branch without refs/heads/",
            SourceError::Tag(_) => "name the tag without refs/tags/",
            SourceError::Password(_) | SourceError::Credentials(_) => {
                "name a file that holds it: token-file in the settings (docs/sources.md)"
            }
            _ => "write a path, or a URL as in https://git.example.org/fleet.git",
        };
        Failure::new(&error).hint(hint)
    }
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Failure::new(error)
            .hint("docs/sources.md and docs/observability.md list the keys of the settings")
    }
}

impl From<TracesError> for Failure {
    fn from(error: TracesError) -> Self {
        Failure::new(error)
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        let failure = Failure::new(&error);
        match error {
            ControlError::NotRunning(_) => {
                failure.hint("start one: strata reconcile --source …; or run one pass: --once")
            }
            ControlError::Socket { .. } | ControlError::Answer(_) | ControlError::Failed(_) => {
                failure
            }
        }
    }
}

impl From<PassError> for Failure {
    fn from(error: PassError) -> Self {
        let failure = Failure::new(&error);
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Pass(error) => error.into(),
            RunError::Service(ReloadError::Listen { .. })
            | RunError::Trigger(TriggerError::Listen { .. }) => {
                Failure::new(error).hint("choose another address, or end who listens there")
            }
            RunError::Start(_)
            | RunError::Service(_)
            | RunError::Trigger(_)
            | RunError::Join(_) => Failure::new(error),
        }
    }
}
