//! Checking the chain of the audit log from its first line to its last.

use std::io::{BufRead, BufReader, Read};

use serde::Serialize;
use strata_core::Digest;
use strata_core::audit::{self, Beginning, Header, LINE_BYTES, LineError, Record};
use strata_store::{Store, StoreError};

use super::read::{failed, open, segments};
use super::{DIRECTORY, Mark, segment_name};

/// The first line that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// The file below the store.
    pub file: String,
    /// From 1.
    pub line: u64,
    /// The number that a record has or should have here.
    pub seq: u64,
    pub reason: String,
}

/// What the check found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Verified {
    pub segments: u64,
    /// Records that are in order.
    pub records: u64,
    /// The number of the first record; above 1 where older segments were moved away.
    pub first: Option<u64>,
    pub last: Option<u64>,
    /// The hash of the last line in order: kept elsewhere, it proves later that nothing
    /// up to it was changed.
    pub head: Option<Digest>,
    /// Bytes that crashes tore off, as the log itself tells.
    pub torn_bytes: u64,
    /// The last line is not whole: a crash, or a writer that is just at work.
    pub torn_end: bool,
    /// Whether the hash that was asked for is among the lines in order.
    pub contains: Option<bool>,
    /// The number of a record that was in the log, as is known from elsewhere, and is not:
    /// the log was removed, cut off or written anew.
    pub missing: Option<u64>,
    pub broken: Option<Broken>,
}

/// Where the check is.
struct Walk<'v> {
    visit: &'v mut dyn FnMut(&Record),
    hash: Digest,
    next: u64,
    torn: Vec<u8>,
    verified: Verified,
    wanted: Option<Digest>,
    /// What must be in the log and was not found yet.
    mark: Option<Mark>,
}

/// Checks the whole log. `wanted` is the hash of a line that should be in it.
///
/// # Errors
/// It cannot be read.
pub fn verify(store: &Store, wanted: Option<Digest>) -> Result<Verified, StoreError> {
    walk(store, (wanted, None), &mut |_| {})
}

/// The same, with what somebody else remembers of the log.
///
/// # Errors
/// It cannot be read.
pub fn verify_knowing(
    store: &Store,
    wanted: Option<Digest>,
    mark: Option<Mark>,
) -> Result<Verified, StoreError> {
    walk(store, (wanted, mark), &mut |_| {})
}

/// Reads all records in their order, and checks each before it is given: what follows the
/// first line that does not fit is not.
///
/// # Errors
/// The log cannot be read.
pub fn replay(store: &Store, visit: &mut dyn FnMut(&Record)) -> Result<Verified, StoreError> {
    walk(store, (None, None), visit)
}

fn walk(
    store: &Store,
    (wanted, mark): (Option<Digest>, Option<Mark>),
    visit: &mut dyn FnMut(&Record),
) -> Result<Verified, StoreError> {
    let verified = Verified { contains: wanted.map(|_| false), ..Verified::default() };
    let (hash, torn) = (audit::origin(), Vec::new());
    let mut walk = Walk { visit, hash, next: 1, torn, verified, wanted, mark };
    let mut expected = None;
    for number in segments(store)? {
        let name = segment_name(number);
        if let Some(expected) = expected.filter(|expected| *expected != number) {
            let missing = segment_name(expected);
            let reason = format!("the segment {missing} before it is not there");
            walk.broken(&name, 1, reason);
            return Ok(walk.verified);
        }
        if !walk.segment(store, &name, number)? {
            return Ok(walk.verified);
        }
        expected = Some(number + 1);
        walk.verified.segments += 1;
    }
    walk.verified.torn_end = !walk.torn.is_empty();
    // In segments that were moved away it is no longer to be seen.
    let moved_away = |seq: &u64| walk.verified.first.is_some_and(|first| first > *seq);
    walk.verified.missing = walk.mark.map(|mark| mark.seq).filter(|seq| !moved_away(seq));
    Ok(walk.verified)
}

impl Walk<'_> {
    /// Checks a segment; false where it is broken.
    fn segment(&mut self, store: &Store, name: &str, number: u64) -> Result<bool, StoreError> {
        let path = store.state(DIRECTORY).join(name);
        let mut file = BufReader::with_capacity(1 << 20, open(&path)?);
        let mut line = Vec::new();
        for count in 1.. {
            line.clear();
            let limited = (&mut file).take(LINE_BYTES as u64);
            let read = { limited }.read_until(b'\n', &mut line);
            if read.map_err(|error| failed("read", &path, error))? == 0 {
                return Ok(true);
            }
            if line.last() != Some(&b'\n') {
                if line.len() == LINE_BYTES {
                    self.broken(name, count, LineError::TooLong.to_string());
                    return Ok(false);
                }
                self.torn = std::mem::take(&mut line);
                return Ok(true);
            }
            line.pop();
            let checked = match count {
                1 => self.header(&line, number),
                _ => self.record(&line),
            };
            if let Err(reason) = checked {
                self.broken(name, count, reason);
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn header(&mut self, line: &[u8], number: u64) -> Result<(), String> {
        let (_, json) = audit::split(line).map_err(|error| error.to_string())?;
        let header: Header = audit::header(json).map_err(|error| error.to_string())?;
        if header.segment != number {
            return Err(format!("it says that it begins segment {}", header.segment));
        }
        let begun = self.verified.segments > 0;
        let damaged = header.begins == Beginning::Damage;
        if begun && damaged {
            return Err("the writer found the segment before it damaged".to_owned());
        }
        if begun && (header.previous != self.hash || header.first != self.next) {
            return Err("it does not follow the segment before it".to_owned());
        }
        let torn = std::mem::take(&mut self.torn);
        match header.begins {
            Beginning::Torn { bytes, digest }
                if begun && (bytes, digest) != (torn.len() as u64, Digest::of(&torn)) =>
            {
                return Err("what a crash left before it was changed since".to_owned());
            }
            Beginning::Torn { .. } if begun => {}
            _ if !torn.is_empty() => {
                return Err("the segment before it ends in a part of a line".to_owned());
            }
            _ => {}
        }
        self.verified.torn_bytes += torn.len() as u64;
        let (hash, _) = audit::follow(&header.previous, line).map_err(|error| error.to_string())?;
        self.next = header.first;
        self.stand(hash);
        Ok(())
    }

    fn record(&mut self, line: &[u8]) -> Result<(), String> {
        let (hash, json) = audit::follow(&self.hash, line).map_err(|error| error.to_string())?;
        let record = audit::record(json).map_err(|error| error.to_string())?;
        if record.seq != self.next {
            return Err(format!("it has the number {} and should have {}", record.seq, self.next));
        }
        self.next += 1;
        self.verified.records += 1;
        self.verified.first.get_or_insert(record.seq);
        self.verified.last = Some(record.seq);
        self.stand(hash);
        (self.visit)(&record);
        Ok(())
    }

    fn stand(&mut self, hash: Digest) {
        self.hash = hash;
        self.verified.head = Some(hash);
        self.mark = self.mark.filter(|mark| mark.hash != hash);
        if self.wanted == Some(hash) {
            self.verified.contains = Some(true);
        }
    }

    fn broken(&mut self, name: &str, line: u64, reason: String) {
        let file = format!("state/{DIRECTORY}/{name}");
        self.verified.broken = Some(Broken { file, line, seq: self.next, reason });
    }
}
