//! `strata history`: which generations a template or a VA had, from whom, and how it went.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use strata_core::event::short;
use strata_core::history::{Entry, History, Subject};
use strata_core::links::VaTarget;
use strata_core::rollout::policy::base_ring;
use strata_core::status::Age;
use strata_core::{CompositionName, MacAddr};
use strata_store::Store;

use super::known;
use super::view::{FormatArgs, Table, View, WatchArgs};
use super::{Failure, Outcome, StoreArgs};
use crate::audit::{Position, Reader};
use crate::rollout::pins;
use crate::state::time_text as time;

/// The version of the JSON form.
const VERSION: u32 = 1;

/// Show which generations a template or a VA had: since when, from which commit, how it went
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata history web-server
  strata history --va web-03 --output wide
  strata history web-server --output json | jq '.entries[] | select(.outcome == \"rolled-back\") | .commit'

It is read from the audit log; what was before the log begins is not known. A VA's history is that of the ring
that it follows now, of its batches and of its pins.")]
pub struct HistoryArgs {
    /// The template.
    #[arg(required_unless_present = "va", conflicts_with = "va")]
    template: Option<CompositionName>,
    /// A VA, by name or MAC address.
    #[arg(long, value_name = "VA")]
    va: Option<String>,
    /// Show at most this many, the newest; 0 shows all.
    #[arg(long, default_value_t = 50, value_name = "NUMBER")]
    limit: usize,
    #[command(flatten)]
    watch: WatchArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// Specified in `docs/schemas/history-1.json`.
#[derive(Serialize)]
struct Report {
    version: u32,
    template: Option<CompositionName>,
    mac: Option<MacAddr>,
    /// Oldest first.
    entries: Vec<Entry>,
    /// Older ones that the limit left out.
    omitted: usize,
}

impl View for Report {
    fn table(&self) -> Table {
        let mut table = Table::new(
            &["SINCE", "GENERATION", "COMMIT", "BY", "WAY", "OUTCOME", "TOOK"],
            &["SIGNER", "REASON"],
        );
        for entry in &self.entries {
            let took = entry.ended_at_ms.map(|end| end.saturating_sub(entry.at_ms));
            table.row([
                time(entry.at_ms),
                entry.generation.short(),
                entry.commit.as_deref().map(short).unwrap_or_default().to_owned(),
                entry.operator.clone().or_else(|| entry.author.clone()).unwrap_or_default(),
                entry.way.as_str().to_owned(),
                entry.outcome.as_str().to_owned(),
                took.map(|ms| took_text(Duration::from_millis(ms))).unwrap_or_default(),
                entry.signer.clone().unwrap_or_default(),
                entry.reason.clone().unwrap_or_default(),
            ]);
        }
        table
    }

    fn below(&self) -> String {
        match self.omitted {
            0 => String::new(),
            omitted => format!("and {omitted} older ones (--limit 0 shows all)\n"),
        }
    }

    fn nothing(&self) -> &'static str {
        "the audit log tells nothing of it"
    }
}

fn took_text(took: Duration) -> String {
    match took.as_millis() {
        millis @ ..10_000 => format!("{millis} ms"),
        millis => Age(u64::try_from(millis).unwrap_or(u64::MAX)).to_string(),
    }
}

/// # Errors
/// The store knows no such template or VA, or its log cannot be read.
pub fn run(args: &HistoryArgs) -> Result<Outcome, Failure> {
    let store = Arc::new(args.store.open()?);
    args.format.show(&args.watch, || Ok((look(args, &store)?, Outcome::Done)))
}

fn look(args: &HistoryArgs, store: &Arc<Store>) -> Result<Report, Failure> {
    let (subject, mac) = subject(args, store)?;
    let wanted = |json: &[u8]| match &subject {
        Subject::Template(name) => contains(json, name.as_str()),
        Subject::Va { mac, ring } => {
            let ring = ring.as_ref();
            contains(json, &mac.to_string())
                || ring.is_some_and(|(composition, _)| contains(json, composition.as_str()))
        }
    };
    let mut history = History::new(subject.clone());
    let mut reader = Reader::new(store.clone(), Position::default());
    while let Some(record) = reader.next_with(wanted)? {
        history.take(&record);
    }
    let all = history.entries();
    if all.is_empty() {
        // One that is gone still has its history.
        known::template_if_named(store, args.template.as_ref())?;
    }
    let limit = if args.limit == 0 { usize::MAX } else { args.limit };
    let omitted = all.len().saturating_sub(limit);
    let (template, entries) = (args.template.clone(), all[omitted..].to_vec());
    Ok(Report { version: VERSION, template, mac, entries, omitted })
}

fn contains(json: &[u8], text: &str) -> bool {
    json.windows(text.len()).any(|window| window == text.as_bytes())
}

fn subject(args: &HistoryArgs, store: &Store) -> Result<(Subject, Option<MacAddr>), Failure> {
    let Some(va) = &args.va else {
        let template = args.template.clone().expect("clap asks for one of them");
        return Ok((Subject::Template(template), None));
    };
    let (_, mac) = known::va(store, va)?;
    let ring = match store.va_target(mac)? {
        Some(VaTarget::Ring { composition, ring }) => Some((composition, base_ring(&ring).0)),
        Some(VaTarget::Pinned { .. }) => {
            pins::read(store, mac)?.map(|pin| (pin.composition, pin.ring))
        }
        None => None,
    };
    Ok((Subject::Va { mac, ring }, Some(mac)))
}
