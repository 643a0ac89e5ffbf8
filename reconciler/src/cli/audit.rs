//! `strata audit`: what happened, on whose account, and whether anybody changed it.

use std::fmt::Write as _;
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde::Serialize;
use strata_core::Digest;
use strata_core::audit::Record;

use super::events::{Filter, record_line};
use super::{
    Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_bytes, print_json, print_text,
};
use crate::audit::{self, Reader, Verified};
use crate::rollout::{FILE_PATH, RolloutFile};

/// The version of the JSON forms.
const VERSION: u32 = 1;

/// Show the audit log, and prove that nobody changed it
#[derive(Debug, Args)]
pub struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    List(ListArgs),
    Verify(VerifyArgs),
}

/// List who did what, to which VA or template, and how it ended
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata audit list --since 2h
  strata audit list --va web-03 --output json | jq '.records[].event'
  strata audit list --operator ann

Records are written before what they say is done; how it ended is a record of its own.")]
struct ListArgs {
    #[command(flatten)]
    filter: Filter,
    /// Only orders and commands of this operator.
    #[arg(long, value_name = "NAME")]
    operator: Option<String>,
    /// Show at most this many, the newest; 0 shows all.
    #[arg(long, default_value_t = 1_000, value_name = "NUMBER")]
    limit: usize,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Check the chain from the first record to the last, and name the first that is broken
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata audit verify
  strata audit verify --contains 1f2e…   # a hash that an earlier verify printed

The chain shows every change, removal and insertion. That its end was cut off or all of it was written anew
shows as far as state/rollout.json knows of it, which who can write the log can write, too: keep the printed
hash elsewhere and ask for it later.
Exit status: 0 whole, 1 broken or the hash is not there, 2 an error.")]
struct VerifyArgs {
    /// The hash of a line that must be in the log, as `verify` printed it.
    #[arg(long, value_name = "HASH")]
    contains: Option<Digest>,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Listed {
    version: u32,
    records: Vec<Record>,
    /// Older records that the limit left out.
    omitted: u64,
}

#[derive(Serialize)]
struct Report {
    version: u32,
    #[serde(flatten)]
    verified: Verified,
}

/// # Errors
/// The store or its log cannot be read.
pub fn run(args: &AuditArgs) -> Result<Outcome, Failure> {
    match &args.command {
        AuditCommand::List(args) => list(args),
        AuditCommand::Verify(args) => verify(args),
    }
}

fn list(args: &ListArgs) -> Result<Outcome, Failure> {
    let store = Arc::new(args.store.open()?);
    let chosen = args.filter.resolve(&store)?;
    let mut reader = Reader::since(store.clone(), chosen.since_ms)?;
    let mut records = std::collections::VecDeque::new();
    let mut omitted = 0;
    while let Some(record) = reader.next_with(|json| chosen.may_match(json))? {
        let by = args.operator.as_ref().is_none_or(|o| record.who.operator.as_ref() == Some(o));
        if !by || !chosen.matches(&record) {
            continue;
        }
        if args.limit > 0 && records.len() == args.limit {
            records.pop_front();
            omitted += 1;
        }
        records.push_back(record);
    }
    if records.is_empty() {
        args.filter.refuse_unknown(&store)?;
    }
    let records = Vec::from(records);
    match args.output.output {
        OutputFormat::Json => print_json(&Listed { version: VERSION, records, omitted })?,
        OutputFormat::Text => {
            let mut text = String::new();
            if omitted > 0 {
                let _infallible = writeln!(text, "({omitted} older ones: --limit 0 shows all)");
            }
            for record in &records {
                let _infallible = writeln!(text, "{}", record_line(record, true));
            }
            print_bytes(text.as_bytes())?;
        }
    }
    Ok(Outcome::Done)
}

fn verify(args: &VerifyArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let mark = RolloutFile::read(&store).map(|file| file.audited).unwrap_or_else(|error| {
        eprintln!("note: {error}: whether the log was cut off is not looked at");
        None
    });
    let verified = audit::verify_knowing(&store, args.contains, mark)?;
    let whole = verified.broken.is_none() && verified.missing.is_none();
    let good = whole && verified.contains != Some(false);
    match args.output.output {
        OutputFormat::Json => print_json(&Report { version: VERSION, verified })?,
        OutputFormat::Text => print_text(&text(&verified))?,
    }
    Ok(if good { Outcome::Done } else { Outcome::Difference })
}

fn text(verified: &Verified) -> String {
    let mut text = String::new();
    let count = super::quantity(verified.records, "record");
    let _infallible = match &verified.broken {
        Some(broken) => writeln!(
            text,
            "broken at record {}: {}:{}: {}; {count} before it are in order",
            broken.seq, broken.file, broken.line, broken.reason
        ),
        None => {
            let whole = if verified.missing.is_some() { "not whole" } else { "whole" };
            writeln!(text, "{whole}: {count} in {}", super::quantity(verified.segments, "segment"))
        }
    };
    if let Some(missing) = verified.missing {
        let _infallible = writeln!(
            text,
            "{FILE_PATH} knows of record {missing}, which is not in it: the log was removed, cut off or written anew"
        );
    }
    if let Some(first @ 2..) = verified.first {
        let _infallible =
            writeln!(text, "it begins at record {first}: older segments are not here");
    }
    if verified.torn_bytes > 0 {
        let _infallible =
            writeln!(text, "crashes tore {} bytes; the log tells where", verified.torn_bytes);
    }
    if verified.torn_end {
        text.push_str("the last line is not whole: a crash, or somebody is writing just now\n");
    }
    match verified.contains {
        Some(true) => text.push_str("the hash that was asked for is in it\n"),
        Some(false) => text.push_str("the hash that was asked for is not in it\n"),
        None => {}
    }
    if let (Some(last), Some(head)) = (verified.last, verified.head) {
        let _infallible = writeln!(text, "last record {last}, hash {head}");
    }
    text
}
