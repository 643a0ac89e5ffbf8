//! `strata-vlfs scripts`: what layers' scripts did in the VA of a mount, and what to do
//! about those that failed.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::{Args, Subcommand};
use strata_core::scripts::outcome::{ScriptsState, printable};
use strata_core::scripts::plan::Stage;
use strata_vlfs::control::{self, Answer, Request, ScriptsAction};
use strata_vlfs::scripts::ScriptsStatus;
use strata_vlfs::scripts::journal::Record;

use super::query::{ask_status, print, print_json, socket};
use super::{DIFFERENT, Output, hinted};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata-vlfs scripts list /srv/strata/machines/web-03/run/root
  strata-vlfs scripts retry /srv/strata/machines/web-03/run/root

Exit status of `list`: 0 none failed, 1 some failed, 2 an error.")]
pub struct Scripts {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the scripts that ran, with what they printed.
    #[command(after_help = "Example: strata-vlfs scripts list /mnt --output json | jq .records")]
    List {
        /// Where the file system is mounted.
        mount_point: PathBuf,
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Run scripts again that failed, or try the generation again that was gone back from.
    #[command(after_help = "Example: strata-vlfs scripts retry /mnt

Installation scripts of layers that are there run again; those of layers that are gone cannot.")]
    Retry {
        /// Where the file system is mounted.
        mount_point: PathBuf,
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Take failures as they are: nothing runs, and the condition goes.
    #[command(after_help = "Example: strata-vlfs scripts accept /mnt")]
    Accept {
        /// Where the file system is mounted.
        mount_point: PathBuf,
        #[arg(long, value_enum, default_value = "text")]
        output: Output,
    },
}

impl Scripts {
    pub fn run(&self) -> anyhow::Result<u8> {
        match &self.command {
            Command::List { mount_point, output } => list(mount_point, *output),
            Command::Retry { mount_point, output } => {
                decide(mount_point, ScriptsAction::Retry, *output)
            }
            Command::Accept { mount_point, output } => {
                decide(mount_point, ScriptsAction::Accept, *output)
            }
        }
    }
}

fn list(mount_point: &Path, output: Output) -> anyhow::Result<u8> {
    let status = ask_status(mount_point)?;
    let scripts = status.scripts.ok_or_else(|| {
        let message = format!("no VA runs on {}, and no scripts are run", mount_point.display());
        hinted(message, "scripts run in VAs: start one with `strata va start`")
    })?;
    match output {
        Output::Json => print_json(&scripts)?,
        Output::Text => print(&list_text(&scripts))?,
    }
    let failed = scripts.error.is_some() || scripts.records.iter().any(|record| record.open);
    Ok(if failed { DIFFERENT } else { 0 })
}

fn list_text(scripts: &ScriptsStatus) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _infallible = writeln!(text, "{name:<15}{value}");
    };
    line("scripts", &state_text(scripts));
    if let Some(refused) = &scripts.refused {
        line("went back", &printable(&refused.why));
    }
    for unit in scripts.units.iter().filter(|unit| unit.stage != Stage::Installed) {
        let stage = match unit.stage {
            Stage::Arriving => "is to be installed",
            Stage::Installing => "is being installed",
            Stage::Installed => "is installed",
            Stage::Removing => "is being removed",
        };
        line("under way", &format!("{} {stage}", unit.unit));
    }
    for record in &scripts.records {
        let name = if record.open { "failed" } else { "ended" };
        line(name, &record_text(record));
        for output in record.output.lines() {
            line("", &format!("| {}", printable(output)));
        }
    }
    text
}

/// One script that ended, in one line.
fn record_text(record: &Record) -> String {
    let Record { unit, script, outcome, took_ms, .. } = record;
    format!("{unit} {script}: {outcome} ({took_ms} ms)")
}

/// What the mount does about scripts, in one line.
pub fn state_text(scripts: &ScriptsStatus) -> String {
    let state = match (scripts.state, &scripts.running) {
        (ScriptsState::Running, Some(running)) => format!("{running} runs"),
        (ScriptsState::Running, None) => "running".to_owned(),
        (ScriptsState::Idle, _) => "all have run".to_owned(),
        (ScriptsState::Waiting, _) => "wait for the VA to run".to_owned(),
        (ScriptsState::SwappedBack, _) => "one failed: swapped back".to_owned(),
        (ScriptsState::Damaged, _) => {
            "none run: their journal is damaged; without the file scripts.json of the private \
             directory, all installation scripts run at the next start"
                .to_owned()
        }
    };
    match &scripts.error {
        Some(error) => format!("{state}: {}", printable(error)),
        None => state,
    }
}

/// The lines of `status`.
pub fn status_lines(scripts: Option<&ScriptsStatus>, line: &mut impl FnMut(&str, &str)) {
    let Some(scripts) = scripts else {
        return line("scripts", "none run: no VA runs on this mount");
    };
    line("scripts", &state_text(scripts));
    for record in scripts.records.iter().filter(|record| record.open) {
        line("failed", &record_text(record));
        let lines: Vec<_> = record.output.lines().collect();
        for output in &lines[lines.len().saturating_sub(5)..] {
            line("", &format!("| {}", printable(output)));
        }
    }
}

fn decide(mount_point: &Path, action: ScriptsAction, output: Output) -> anyhow::Result<u8> {
    let answer = control::ask(&socket(mount_point)?, &Request::Scripts { action })?;
    let Answer::Scripts { what } = &answer else {
        return Err(anyhow!("unexpected answer {answer:?}"));
    };
    match output {
        Output::Json => print_json(&answer)?,
        Output::Text => print(&format!("{what}\n"))?,
    }
    Ok(0)
}
