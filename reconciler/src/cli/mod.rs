//! The command line: arguments in, text or JSON out, and an exit status.
//!
//! Data goes to stdout, everything else to stderr. A command returns what it
//! found ([`Outcome`]) or why it failed ([`Failure`], with a hint); only
//! [`main`] turns that into an exit status. A new command is a module here, a
//! variant of [`Command`] and an arm of [`run`].

mod audit;
mod audited;
mod boot;
mod check;
mod command_line;
mod diff;
mod events;
mod explain;
mod failure;
mod get;
mod history;
mod init;
mod inventory;
mod known;
mod layer;
mod man;
mod output;
mod plan;
mod progress;
mod reconcile;
mod repo;
mod resolve;
mod resolve_question;
mod rollout;
mod status;
mod store;
mod template;
mod update;
mod va;
mod view;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use tracing_subscriber::Layer as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::traces::Traces;

pub use failure::{Failure, Outcome, is_of_configuration, refuse_faulty_configuration};
pub use output::{OutputArgs, OutputFormat, print_bytes, print_json, print_text, quantity};

/// Keeps a fleet of virtual appliances in line with layer definition files in git.
#[derive(Debug, Parser)]
#[command(name = "strata", version, arg_required_else_help = true)]
pub struct Cli {
    /// Log filter for stderr, as in `info` or `strata=debug` [default: warn; of the
    /// reconciler: info].
    #[arg(long, global = true, env = "STRATA_LOG", value_name = "FILTER")]
    log: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Audit(audit::AuditArgs),
    Boot(boot::BootArgs),
    Check(check::CheckArgs),
    Completions(CompletionsArgs),
    Diff(diff::DiffArgs),
    Events(events::EventsArgs),
    Get(get::GetArgs),
    History(history::HistoryArgs),
    Init(init::InitArgs),
    Inventory(inventory::InventoryArgs),
    Layer(layer::LayerArgs),
    Man(man::ManArgs),
    Plan(plan::PlanArgs),
    Reconcile(reconcile::ReconcileArgs),
    Repo(repo::RepoArgs),
    Status(status::StatusArgs),
    Resolve(resolve::ResolveArgs),
    Template(template::TemplateArgs),
    Update(update::UpdateArgs),
    Store(store::StoreCommandArgs),
    Rollout(rollout::RolloutArgs),
    Va(va::VaArgs),
}

/// Print a completion script for a shell.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  strata completions bash > /etc/bash_completion.d/strata")]
struct CompletionsArgs {
    shell: Shell,
}

/// Where the store is, for every command that needs one.
#[derive(Debug, Args)]
pub struct StoreArgs {
    /// The store.
    #[arg(long, env = "STRATA_STORE", value_name = "STORE")]
    pub store: std::path::PathBuf,
}

impl StoreArgs {
    /// Opens the store.
    ///
    /// # Errors
    /// There is none; the hint says how to make one.
    pub fn open(&self) -> Result<strata_store::Store, Failure> {
        Ok(strata_store::Store::open(&self.store)?)
    }
}

/// Parses the arguments, runs the command and gives its exit status: 0 done
/// or no difference, 1 a difference or a failed check, 2 an error.
pub fn main() -> ExitCode {
    let mut command = Cli::command();
    let matches = command.get_matches_mut();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let default = match &cli.command {
        Command::Reconcile(args) if !args.once && args.action.is_none() => "info",
        _ => "warn",
    };
    choose_cryptography();
    let traces = match start_log(cli.log.as_deref().unwrap_or(default)) {
        Ok(traces) => traces,
        Err(failure) => {
            failure.print();
            return ExitCode::from(2);
        }
    };
    match run_told(&command, &matches, cli.command, &traces) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Difference) => ExitCode::from(1),
        Err(failure) => {
            failure.print();
            ExitCode::from(2)
        }
    }
}

/// Two libraries bring TLS cryptography of their own, and where there are two, rustls
/// takes neither by itself: a client that asks for the default one would panic.
fn choose_cryptography() {
    let chosen = rustls::crypto::aws_lc_rs::default_provider().install_default();
    debug_assert!(chosen.is_ok(), "nobody chose before");
}

/// Runs the command, and tells the audit log where it changes something.
fn run_told(
    arguments: &clap::Command,
    matches: &clap::ArgMatches,
    command: Command,
    traces: &Traces,
) -> Result<Outcome, Failure> {
    let begun = audited::begin(arguments, matches)?;
    let result = run(command, traces);
    if let Some(begun) = begun
        && let Err(failure) = begun.end(&result)
    {
        // What was done is done; that it began is in the log.
        failure.print();
    }
    result
}

fn run(command: Command, traces: &Traces) -> Result<Outcome, Failure> {
    match command {
        Command::Audit(args) => audit::run(&args),
        Command::Boot(args) => boot::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Reconcile(args) => reconcile::run(&args, traces),
        Command::Completions(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Cli::command(), "strata", &mut script);
            print_bytes(&script)?;
            Ok(Outcome::Done)
        }
        Command::Diff(args) => diff::run(&args),
        Command::Events(args) => events::run(&args),
        Command::Get(args) => get::run(&args),
        Command::History(args) => history::run(&args),
        Command::Init(args) => init::run(&args),
        Command::Inventory(args) => inventory::run(&args),
        Command::Layer(args) => layer::run(args),
        Command::Man(args) => man::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Repo(args) => repo::run(&args),
        Command::Resolve(args) => resolve::run(&args),
        Command::Template(args) => template::run(&args),
        Command::Update(args) => update::run(&args),
        Command::Store(args) => store::run(&args),
        Command::Rollout(args) => rollout::run(&args),
        Command::Va(args) => va::run(&args),
    }
}

/// Starts the log, and makes ready for traces, which only a reconciler's settings ask for.
fn start_log(filter: &str) -> Result<Traces, Failure> {
    let filter = tracing_subscriber::EnvFilter::builder().parse(filter).map_err(|error| {
        Failure::new(format!("the log filter {filter:?}: {error}"))
            .hint("write a level (error, warn, info, debug) or target=level, with commas")
    })?;
    let log = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would end the program: the log's disk may be full.
        .log_internal_errors(false);
    let traces = Traces::default();
    tracing_subscriber::registry().with(traces.layer()).with(log.with_filter(filter)).init();
    Ok(traces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_well_formed_and_have_examples() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        command.build();
        let mut open: Vec<_> =
            command.get_subcommands().filter(|c| c.get_name() != "help").collect();
        while let Some(command) = open.pop() {
            let below: Vec<_> =
                command.get_subcommands().filter(|c| c.get_name() != "help").collect();
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name} says what it does");
            if below.is_empty() {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Example"), "{name} has an example");
            }
            open.extend(below);
        }
    }
}
