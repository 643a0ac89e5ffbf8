//! Operators' commands in the audit log: before they change anything, and how they ended.
//!
//! Every command is in one of two lists; a test makes sure that a new one is put into
//! the right one. The reconciler tells what it does by itself; that somebody made it look at
//! its source (`strata reconcile now`) is told here.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::ArgMatches;
use strata_core::audit::Who;
use strata_core::event::Event;
use strata_store::Store;

use super::command_line::CommandLine;
use super::rollout::caller;
use super::{Failure, Outcome};
use crate::audit::{AuditError, AuditLog};

/// Commands that change a store.
const CHANGES: &[&str] = &[
    "boot build",
    "layer build",
    "layer from-private",
    "layer import",
    "layer restore",
    "layer seal",
    "layer withdraw",
    "repo cosign",
    "repo index",
    "repo key set",
    "repo mirror",
    "repo sign",
    "repo sync",
    "rollout abort",
    "rollout confirm",
    "rollout pause",
    "rollout promote",
    "rollout resume",
    "store dedup",
    "store gc",
    "template build",
    "template commit",
    "va clone",
    "va console",
    "va destroy",
    "va exec",
    "va pin",
    "va provision",
    "va rename",
    "va resume",
    "va start",
    "va stop",
    "va suspend",
    "va unpin",
];
/// Commands that change no store, or tell what they change by themselves; of `reconcile`,
/// `reconcile now` is told all the same.
#[cfg(test)]
const OTHERS: &[&str] = &[
    "audit list",
    "audit verify",
    "boot list",
    "boot serve",
    "check",
    "completions",
    "diff",
    "events",
    "get",
    "history",
    "init",
    "inventory export",
    "layer infer",
    "layer lint",
    "layer list",
    "layer show",
    "layer users",
    "man",
    "plan",
    "reconcile",
    "repo key list",
    "repo list",
    "repo publish",
    "repo serve",
    "repo verify",
    "resolve",
    "rollout status",
    "status",
    "store stats",
    "template create",
    "update",
    "va drift",
    "va explain",
    "va list",
    "va logs",
    "va status",
];

/// A command that is in the log as begun.
pub struct Begun {
    log: AuditLog,
    who: Who,
    command: CommandLine,
    at: Instant,
}

/// Notes a command that changes something, where it has a store. `matches` are those of the
/// arguments that were parsed for `command`.
///
/// # Errors
/// The log cannot be written: then nothing is to be done.
pub fn begin(command: &clap::Command, matches: &ArgMatches) -> Result<Option<Begun>, Failure> {
    let mut name = Vec::new();
    let mut inner = matches;
    while let Some((sub, below)) = inner.subcommand() {
        name.push(sub);
        inner = below;
    }
    if !is_told(&name.join(" "), inner) {
        return Ok(None);
    }
    let Ok(Some(store)) = inner.try_get_one::<PathBuf>("store") else { return Ok(None) };
    // The command itself says what is wrong with it.
    let Ok(store) = Store::open(store) else { return Ok(None) };
    let log = AuditLog::new(Arc::new(store));
    let who = Who { operator: Some(caller()), ..Who::default() };
    let command = CommandLine::of(command, matches);
    log.note(&who, Event::CommandBegun { command: command.text().to_owned() })?;
    Ok(Some(Begun { log, who, command, at: Instant::now() }))
}

/// Whether a command is one that is told. The reconciler tells what it does by itself,
/// but not who made it look.
fn is_told(name: &str, matches: &ArgMatches) -> bool {
    let asks = || matches.try_contains_id("action").unwrap_or(false);
    CHANGES.contains(&name) || (name == "reconcile" && asks())
}

impl Begun {
    /// Notes how it ended.
    ///
    /// # Errors
    /// The log cannot be written.
    pub fn end(self, result: &Result<Outcome, Failure>) -> Result<(), Failure> {
        let (status, message) = match result {
            Ok(Outcome::Done) => (0, None),
            Ok(Outcome::Difference) => (1, None),
            Err(failure) => (2, Some(self.command.clean(failure.message()))),
        };
        let took_ms = u64::try_from(self.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let command = self.command.text().to_owned();
        let event = Event::CommandEnded { command, status, message, took_ms };
        Ok(self.log.note(&self.who, event)?)
    }
}

impl From<AuditError> for Failure {
    fn from(error: AuditError) -> Self {
        Failure::new(&error).hint(
            "nothing is changed that cannot be told: make state/audit of the store writable, or free space",
        )
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    /// The names of all commands that have none below them.
    fn leaves(command: &clap::Command, above: &str, found: &mut Vec<String>) {
        for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
            let name = format!("{above} {}", below.get_name()).trim().to_owned();
            match below.get_subcommands().any(|below| below.get_name() != "help") {
                true => leaves(below, &name, found),
                false => found.push(name),
            }
        }
    }

    #[test]
    fn every_command_is_told_or_known_to_change_nothing() {
        let mut found = Vec::new();
        leaves(&Cli::command(), "", &mut found);
        found.sort();
        let mut known: Vec<_> = CHANGES.iter().chain(OTHERS).map(ToString::to_string).collect();
        known.sort();
        assert_eq!(found, known, "put a new command into one of the lists");
    }

    #[test]
    fn who_makes_the_reconciler_look_is_told() {
        let told = |words: &[&str]| {
            let matches = Cli::command().try_get_matches_from(words).expect("arguments of strata");
            let (name, inner) = matches.subcommand().expect("a command");
            is_told(name, inner)
        };
        assert!(told(&["strata", "reconcile", "now", "--store", "/s"]));
        assert!(!told(&["strata", "reconcile", "--source", "/s.git", "--once", "--store", "/s"]));
        assert!(!told(&["strata", "status", "--store", "/s"]));
    }
}
