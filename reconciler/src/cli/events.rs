//! `strata events`: what happens to the fleet, as it happens.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use serde::Serialize;
use strata_core::audit::Record;
use strata_core::event::{Event, Importance, short};
use strata_core::printable::printable;
use strata_core::{CompositionName, MacAddr, RingName, VaName};
use strata_store::Store;

use super::known;
use super::output::print_live;
use super::view::{FormatArgs, Table, View};
use super::{Failure, Outcome, StoreArgs};
use crate::audit::Reader;
use crate::state::{milliseconds, time_text as time};

/// The version of the JSON form.
const VERSION: u32 = 1;
/// How often the log is looked at with `--watch`.
const LOOK: Duration = Duration::from_millis(250);
/// How far back it looks where nothing is said.
const RECENT_MS: u64 = 24 * 3_600_000;

/// Show what happened to the fleet, and go on with what happens
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata events
  strata events --since 7d --template web-server --importance warning
  strata events --watch --output json | jq .event

They are read from the audit log; `strata audit list` shows on whose account. With --watch each is one line,
in JSON one object a line.")]
pub struct EventsArgs {
    #[command(flatten)]
    filter: Filter,
    /// Go on with what happens until interrupted.
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// How much an event must matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    Info,
    Warning,
    Error,
}

impl From<Level> for Importance {
    fn from(level: Level) -> Self {
        match level {
            Level::Info => Importance::Info,
            Level::Warning => Importance::Warning,
            Level::Error => Importance::Error,
        }
    }
}

/// Which records are wanted.
#[derive(Debug, Args)]
pub struct Filter {
    /// From then on: a span back as in 90s, 2h or 3d, or a time as in 2026-01-31T08:00:00Z
    /// [default: 24h].
    #[arg(long, value_name = "SPAN-OR-TIME")]
    since: Option<String>,
    /// Only what is about this template.
    #[arg(long, value_name = "NAME")]
    template: Option<CompositionName>,
    /// Only what is about this ring.
    #[arg(long, value_name = "NAME")]
    ring: Option<RingName>,
    /// Only what is about this VA itself, by name or MAC address.
    #[arg(long, value_name = "VA")]
    va: Option<String>,
    /// Only this kind, as in ring-moved; may be repeated.
    #[arg(long, value_name = "KIND", value_parser = PossibleValuesParser::new(Event::KINDS), hide_possible_values = true)]
    kind: Vec<String>,
    /// Only what matters at least so much.
    #[arg(long, value_enum, default_value = "info", value_name = "LEVEL")]
    importance: Level,
}

/// The filter with everything looked up.
#[derive(Debug)]
pub struct Chosen {
    pub since_ms: u64,
    template: Option<CompositionName>,
    ring: Option<RingName>,
    va: Option<(Option<VaName>, MacAddr)>,
    kind: Vec<String>,
    importance: Importance,
}

impl Filter {
    /// # Errors
    /// The time or the VA cannot be made out.
    pub fn resolve(&self, store: &Store) -> Result<Chosen, Failure> {
        Ok(Chosen {
            since_ms: since(self.since.as_deref())?,
            template: self.template.clone(),
            ring: self.ring.clone(),
            va: self.va.as_deref().map(|va| known::va(store, va)).transpose()?,
            kind: self.kind.clone(),
            importance: self.importance.into(),
        })
    }

    /// Fails where a template or ring is named that is not there. Only for who found nothing:
    /// one that is gone still has its events.
    ///
    /// # Errors
    /// There is none, or the store cannot be read.
    pub fn refuse_unknown(&self, store: &Store) -> Result<(), Failure> {
        known::template_if_named(store, self.template.as_ref())?;
        known::ring_if_named(store, self.ring.as_ref())
    }
}

impl Chosen {
    /// Whether a record with this JSON may be wanted, without reading it.
    pub fn may_match(&self, json: &[u8]) -> bool {
        let Some((name, mac)) = &self.va else { return true };
        let has = |text: &str| memchr_find(json, text.as_bytes());
        has(&mac.to_string()) || name.as_ref().is_some_and(|name| has(name.as_str()))
    }

    pub fn matches(&self, record: &Record) -> bool {
        let event = &record.event;
        let named = |va: &(Option<VaName>, MacAddr)| {
            event.names_va(va.1) || va.0.as_ref().is_some_and(|name| commands(event, name))
        };
        record.at_ms >= self.since_ms
            && event.importance() >= self.importance
            && self.template.as_ref().is_none_or(|wanted| event.composition() == Some(wanted))
            && self.ring.as_ref().is_none_or(|wanted| event.ring() == Some(wanted))
            && self.va.as_ref().is_none_or(named)
            && (self.kind.is_empty() || self.kind.iter().any(|kind| kind == event.kind()))
    }
}

fn memchr_find(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted)
}

/// Whether the event is a command that names the VA.
fn commands(event: &Event, name: &VaName) -> bool {
    match event {
        Event::CommandBegun { command } | Event::CommandEnded { command, .. } => {
            command.split(' ').any(|word| word == name.as_str())
        }
        _ => false,
    }
}

fn since(text: Option<&str>) -> Result<u64, Failure> {
    let now_ms = milliseconds(SystemTime::now());
    let Some(text) = text else { return Ok(now_ms.saturating_sub(RECENT_MS)) };
    if let Ok(span) = text.parse::<strata_core::rollout::policy::Span>() {
        return Ok(now_ms.saturating_sub(span.ms));
    }
    let time: jiff::Timestamp = text.parse().map_err(|error| {
        Failure::new(format!("{text:?} is neither a span nor a time: {error}"))
            .hint("write 90s, 2h or 3d, or 2026-01-31T08:00:00Z")
    })?;
    Ok(u64::try_from(time.as_millisecond()).unwrap_or(0))
}

/// A record for people: when, what, and on whose account.
pub fn record_line(record: &Record, with_who: bool) -> String {
    let mut line = format!("{}  {:<16} {}", time(record.at_ms), record.event.kind(), record.event);
    if with_who {
        let who = &record.who;
        let by = match (&who.operator, &who.author, &who.commit) {
            (Some(operator), _, _) => format!("  [{operator}]"),
            (None, Some(author), Some(commit)) => format!("  [{author}, {}]", short(commit)),
            (None, _, Some(commit)) => format!("  [{}]", short(commit)),
            (None, ..) => String::new(),
        };
        line.push_str(&by);
    }
    if let Some(signer) = record.who.signer.as_ref().filter(|_| with_who) {
        line.push_str(&format!(" signed by {signer}"));
    }
    printable(&line).into_owned()
}

/// Specified in `docs/schemas/events-1.json`.
#[derive(Serialize)]
struct Report {
    version: u32,
    events: Vec<Record>,
}

impl View for Report {
    fn table(&self) -> Table {
        let mut table =
            Table::new(&["TIME", "IMPORTANCE", "KIND", "WHAT"], &["BY", "COMMIT", "SEQ", "HOST"]);
        for record in &self.events {
            let who = &record.who;
            table.row([
                time(record.at_ms),
                importance(&record.event).to_owned(),
                record.event.kind().to_owned(),
                record.event.to_string(),
                who.operator.clone().or_else(|| who.author.clone()).unwrap_or_default(),
                who.commit.as_deref().map(short).unwrap_or_default().to_owned(),
                record.seq.to_string(),
                record.host.clone(),
            ]);
        }
        table
    }

    fn nothing(&self) -> &'static str {
        "no events; --since 30d looks further back"
    }
}

fn importance(event: &Event) -> &'static str {
    match event.importance() {
        Importance::Info => "info",
        Importance::Warning => "warning",
        Importance::Error => "error",
    }
}

/// # Errors
/// The log cannot be read.
pub fn run(args: &EventsArgs) -> Result<Outcome, Failure> {
    let store = Arc::new(args.store.open()?);
    let chosen = args.filter.resolve(&store)?;
    let mut reader = Reader::since(store.clone(), chosen.since_ms)?;
    let next = |reader: &mut Reader| -> Result<Option<Record>, Failure> {
        while let Some(record) = reader.next_with(|json| chosen.may_match(json))? {
            if chosen.matches(&record) {
                return Ok(Some(record));
            }
        }
        Ok(None)
    };
    if !args.watch {
        let mut events = Vec::new();
        while let Some(record) = next(&mut reader)? {
            events.push(record);
        }
        if events.is_empty() {
            args.filter.refuse_unknown(&store)?;
        }
        args.format.print(&Report { version: VERSION, events })?;
        return Ok(Outcome::Done);
    }
    let mut waits = false;
    loop {
        while let Some(record) = next(&mut reader)? {
            waits = true;
            let line = match args.format.is_data() {
                true => serde_json::to_string(&record).map_err(Failure::new)?,
                false => record_line(&record, args.format.is_wide()),
            };
            if !print_live(format!("{line}\n").as_bytes())? {
                return Ok(Outcome::Done);
            }
        }
        if !std::mem::replace(&mut waits, true)
            && let Err(unknown) = args.filter.refuse_unknown(&store)
        {
            // It may be there yet.
            eprintln!("note: {}", printable(unknown.message()));
        }
        std::thread::sleep(LOOK);
    }
}
