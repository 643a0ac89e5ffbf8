//! Writing the audit log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use strata_core::Digest;
use strata_core::audit::{self, Beginning, Header, LineError, Record, VERSION, Who};
use strata_core::event::{Event, EventRecord};
use strata_store::{Store, StoreError, StoreLock};

use super::read::{self, Tail};
use super::{DIRECTORY, Mark, SEGMENT_BYTES, segment_name, segment_number};
use crate::secret::without_credentials;
use crate::state::milliseconds;

/// How long a writer waits for the others.
const PATIENCE: Duration = Duration::from_secs(10);
const LOCK: &str = "audit";
/// VAs that one record names; more make several records.
const VAS: usize = 10_000;
/// What is left of a text and of a list in a record that is too long.
const CLIPPED_BYTES: usize = 4 << 10;
const CLIPPED_VALUES: usize = 50;

#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("the audit log: {0}")]
    Store(#[from] StoreError),
    #[error("a record of the audit log: {0}")]
    Line(#[from] LineError),
}

/// Something to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub who: Who,
    pub event: EventRecord,
}

/// The log of one store. Several may be open at a time, in one process or many.
#[derive(Debug)]
pub struct AuditLog {
    store: Arc<Store>,
    host: String,
    segment_bytes: u64,
    /// Where this writer left the log.
    end: Mutex<Option<End>>,
    /// The number of a record that must be in the log; 0 where none is known.
    expected: AtomicU64,
}

/// The end of the log.
#[derive(Debug, Clone)]
struct End {
    segment: u64,
    bytes: u64,
    /// The number of the next record.
    next: u64,
    hash: Digest,
}

impl AuditLog {
    pub fn new(store: Arc<Store>) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let (end, expected) = (Mutex::new(None), AtomicU64::new(0));
        AuditLog { store, host, segment_bytes: SEGMENT_BYTES, end, expected }
    }

    /// The same with smaller segments, for tests.
    #[must_use]
    pub fn with_segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes;
        self
    }

    /// Says which record must be in the log: where it is not, what is written next begins
    /// with that.
    pub fn expect(&self, mark: Option<Mark>) {
        self.expected.store(mark.map_or(0, |mark| mark.seq), Ordering::Relaxed);
    }

    /// The last record that this writer wrote.
    pub fn mark(&self) -> Option<Mark> {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let end = end.as_ref().filter(|end| end.next > 1)?;
        Some(Mark { seq: end.next - 1, hash: end.hash })
    }

    /// Writes events on somebody's account. Returns once they are on disk; does nothing
    /// where there are none.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn tell(&self, who: &Who, events: &[EventRecord]) -> Result<(), AuditError> {
        self.append(events.iter().map(|event| Entry { who: who.clone(), event: event.clone() }))
    }

    /// Writes one event that happens now.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn note(&self, who: &Who, event: Event) -> Result<(), AuditError> {
        let at_ms = milliseconds(SystemTime::now());
        self.append([Entry { who: who.clone(), event: EventRecord::new(at_ms, event) }])
    }

    /// Writes records at the end of the log, with one sync for all.
    ///
    /// # Errors
    /// The log cannot be written, or another process holds it for long.
    pub fn append(&self, entries: impl IntoIterator<Item = Entry>) -> Result<(), AuditError> {
        let mut entries = entries.into_iter().flat_map(divide).peekable();
        if entries.peek().is_none() {
            return Ok(());
        }
        let mut kept = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let _lock: StoreLock = self.store.lock_within(LOCK, PATIENCE)?;
        let known = kept.take();
        let written = known.as_ref().map_or(0, |end| end.next - 1);
        let expected = self.expected.load(Ordering::Relaxed).max(written);
        let mut end = self.end(known)?;
        let lost = (end.next <= expected).then(|| lost(expected));
        let mut text = Vec::new();
        for Entry { mut who, event } in lost.into_iter().chain(entries) {
            if end.bytes + text.len() as u64 >= self.segment_bytes {
                self.flush(&mut end, &mut text)?;
                self.begin(&mut end, Beginning::Full)?;
            }
            let EventRecord { at_ms, event, by, .. } = event;
            who.operator = by.or(who.operator);
            let host = self.host.clone();
            let record = Record { version: VERSION, seq: end.next, at_ms, host, who, event };
            let (line, hash) = line(&end.hash, &record)?;
            text.extend_from_slice(&line);
            (end.next, end.hash) = (end.next + 1, hash);
        }
        self.flush(&mut end, &mut text)?;
        // Told once.
        self.expected.store(0, Ordering::Relaxed);
        *kept = Some(end);
        Ok(())
    }

    fn flush(&self, end: &mut End, text: &mut Vec<u8>) -> Result<(), AuditError> {
        let path = self.store.state(DIRECTORY).join(segment_name(end.segment));
        self.store.disk().append(&path, end.bytes, text)?;
        end.bytes += text.len() as u64;
        text.clear();
        Ok(())
    }

    /// Where the log ends, whoever wrote last. What a crash tore or somebody damaged
    /// is left where it is: a new segment follows it.
    fn end(&self, known: Option<End>) -> Result<End, AuditError> {
        let names = self.store.state_names(DIRECTORY)?;
        let last = names.iter().filter_map(|name| segment_number(name)).max();
        let Some(segment) = last else {
            self.store.disk().create_directory(&self.store.state(DIRECTORY))?;
            let mut end = End { segment: 0, bytes: 0, next: 1, hash: audit::origin() };
            self.begin(&mut end, Beginning::Nothing)?;
            return Ok(end);
        };
        let path = self.store.state(DIRECTORY).join(segment_name(segment));
        let bytes = read::length(&path)?;
        if let Some(end) = known
            && (end.segment, end.bytes) == (segment, bytes)
        {
            return Ok(end);
        }
        let Tail { hash, next, torn, fits } = read::tail(&path)?;
        let mut end = End { segment, bytes, next, hash };
        if let Some(torn) = torn {
            let (count, digest) = (torn.len() as u64, Digest::of(&torn));
            tracing::warn!(segment, bytes = count, "a crash tore the end of the audit log");
            self.begin(&mut end, Beginning::Torn { bytes: count, digest })?;
        } else if !fits {
            tracing::error!(segment, "the audit log was tampered with: strata audit verify");
            self.begin(&mut end, Beginning::Damage)?;
        }
        Ok(end)
    }

    /// Begins the next segment.
    fn begin(&self, end: &mut End, begins: Beginning) -> Result<(), AuditError> {
        let (segment, first, previous) = (end.segment + 1, end.next, end.hash);
        let at_ms = milliseconds(SystemTime::now());
        let header = Header { version: VERSION, segment, first, at_ms, previous, begins };
        let (line, hash) = audit::line(&previous, &header)?;
        let path = self.store.state(DIRECTORY).join(segment_name(segment));
        self.store.disk().write_file(&path, &line, 0o640)?;
        tracing::debug!(segment, %previous, "the audit log begins a segment");
        *end = End { segment, bytes: line.len() as u64, next: first, hash };
        Ok(())
    }
}

/// Says that the log was removed, or its end cut off.
fn lost(expected: u64) -> Entry {
    let doubt = format!("record {expected} was in it and is not: what it told is not known");
    let (file, kept) = (audit::PATH.to_owned(), Vec::new());
    let event = Event::StateRebuilt { file, kept, doubt: Some(doubt) };
    tracing::error!(record = expected, "the audit log was removed or cut off");
    let event = EventRecord::new(milliseconds(SystemTime::now()), event);
    Entry { who: Who::default(), event }
}

/// The line of a record. Whoever made the event, no credentials of a URL get into the log.
fn line(previous: &Digest, record: &Record) -> Result<(Vec<u8>, Digest), LineError> {
    let mut value = match audit::line(previous, record) {
        Ok(line) if !has_url(&line.0) => return Ok(line),
        Err(LineError::TooLong) => clipped(record),
        line => {
            line?;
            serde_json::to_value(record).map_err(|e| LineError::Content(e.to_string()))?
        }
    };
    each_text(&mut value, &|text: &mut String| {
        if text.contains("://") {
            *text = without_credentials(text);
        }
    });
    audit::line(previous, &value)
}

/// Whether there is a URL in the line with more than a host and a path.
fn has_url(line: &[u8]) -> bool {
    let at = line.windows(3).position(|window| window == b"://");
    at.is_some_and(|at| line[at..].iter().any(|byte| matches!(byte, b'@' | b'?')))
}

fn each_text(value: &mut serde_json::Value, change: &dyn Fn(&mut String)) {
    match value {
        serde_json::Value::String(text) => change(text),
        serde_json::Value::Array(values) => values.iter_mut().for_each(|v| each_text(v, change)),
        serde_json::Value::Object(members) => {
            members.values_mut().for_each(|value| each_text(value, change));
        }
        _ => {}
    }
}

/// A record with long texts and lists cut short: what is too much to keep must not
/// keep everything else from happening.
fn clipped(record: &Record) -> serde_json::Value {
    fn clip(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(text) if text.len() > CLIPPED_BYTES => {
                *text = text.chars().take(CLIPPED_BYTES).chain(['…']).collect();
            }
            serde_json::Value::Array(values) => {
                values.truncate(CLIPPED_VALUES);
                values.iter_mut().for_each(clip);
            }
            serde_json::Value::Object(members) => members.values_mut().for_each(clip),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(record).unwrap_or_default();
    clip(&mut value);
    value
}

/// Makes several records of one that would be too long.
fn divide(entry: Entry) -> Vec<Entry> {
    let Event::BatchMoved { composition, ring, to, vas } = &entry.event.event else {
        return vec![entry];
    };
    let part = |vas: &[strata_core::MacAddr]| {
        let (composition, ring, to) = (composition.clone(), ring.clone(), *to);
        let event = Event::BatchMoved { composition, ring, to, vas: vas.to_vec() };
        let event = EventRecord { event, ..entry.event.clone() };
        Entry { who: entry.who.clone(), event }
    };
    match vas.len() {
        ..=VAS => vec![entry],
        _ => vas.chunks(VAS).map(part).collect(),
    }
}
