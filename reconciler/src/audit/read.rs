//! Reading the audit log, from any place on, also while it is written.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use strata_core::Digest;
use strata_core::audit::{self, Header, LINE_BYTES, Record};
use strata_store::{Store, StoreError};

use super::{DIRECTORY, segment_name, segment_number};

/// How much of a segment's end is read at first.
const NEAR_BYTES: u64 = 16 << 10;
/// Two lines and a torn one have room in this.
const FAR_BYTES: u64 = 3 * LINE_BYTES as u64;

/// A place between two records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    pub segment: u64,
    pub offset: u64,
}

/// The end of a segment.
#[derive(Debug)]
pub(super) struct Tail {
    /// What the last whole line says is its hash.
    pub hash: Digest,
    /// The number of the next record.
    pub next: u64,
    /// What stands after the last whole line.
    pub torn: Option<Vec<u8>>,
    /// Whether the last whole line follows the one before.
    pub fits: bool,
}

/// The numbers of all segments, in order.
///
/// # Errors
/// The directory cannot be listed.
pub(super) fn segments(store: &Store) -> Result<Vec<u64>, StoreError> {
    let names = store.state_names(DIRECTORY)?;
    let mut numbers: Vec<_> = names.iter().filter_map(|name| segment_number(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

pub(super) fn open(path: &Path) -> Result<File, StoreError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty());
    let file = File::from(file.map_err(|error| failed("open", path, error.into()))?);
    match file.metadata().map_err(|error| failed("stat", path, error))?.is_file() {
        true => Ok(file),
        false => Err(StoreError::NotRegular(path.to_owned())),
    }
}

pub(super) fn failed(action: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { action, path: path.to_owned(), source }
}

pub(super) fn length(path: &Path) -> Result<u64, StoreError> {
    let file = open(path)?;
    Ok(file.metadata().map_err(|error| failed("stat", path, error))?.len())
}

pub(super) fn tail(path: &Path) -> Result<Tail, StoreError> {
    let mut file = open(path)?;
    let bytes = file.metadata().map_err(|error| failed("stat", path, error))?.len();
    let mut last = |length: u64| -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(bytes.saturating_sub(length)))?;
        (&file).take(length.min(bytes)).read_to_end(&mut text)?;
        Ok(text)
    };
    // Nearly always the last lines are short and whole; for all else one looks further back.
    let near = tail_of(last(NEAR_BYTES).map_err(|error| failed("read", path, error))?);
    if near.fits {
        return Ok(near);
    }
    Ok(tail_of(last(FAR_BYTES).map_err(|error| failed("read", path, error))?))
}

/// What the end of a segment says; the first line may be cut off.
fn tail_of(mut text: Vec<u8>) -> Tail {
    let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let torn = text.split_off(whole);
    let torn = Some(torn).filter(|torn| !torn.is_empty());
    let lines: Vec<_> = text.split_inclusive(|b| *b == b'\n').collect();
    let lines: Vec<_> = lines.iter().map(|line| &line[..line.len() - 1]).collect();
    let Some(last) = lines.last() else {
        // A segment is put in place with its header: this is none of ours.
        return Tail { hash: Digest::of(&text), next: 1, torn, fits: false };
    };
    let stated = audit::split(last).map(|(hash, _)| hash);
    let before = match lines.len() {
        1 => audit::split(last).ok().and_then(|(_, json)| audit::header(json).ok()),
        _ => None,
    };
    let previous = match (before, lines.len()) {
        (Some(Header { previous, .. }), _) => Some(previous),
        (None, 1) => None,
        (None, count) => audit::split(lines[count - 2]).ok().map(|(hash, _)| hash),
    };
    let fits = previous.is_some_and(|previous| audit::follow(&previous, last).is_ok());
    let number = |line: &&[u8]| {
        let (_, json) = audit::split(line).ok()?;
        let record = audit::record(json).map(|record| record.seq + 1);
        record.or_else(|_| audit::header(json).map(|header| header.first)).ok()
    };
    let next = lines.iter().rev().zip(0..).find_map(|(line, after)| Some(number(line)? + after));
    let hash = stated.unwrap_or_else(|_| Digest::of(last));
    Tail { hash, next: next.unwrap_or(1), torn, fits }
}

/// Reads records one after the other. At the end of the log [`Reader::next`] gives
/// `None`, and goes on when more was written.
///
/// It does not check the chain: see [`super::verify`]. Lines that are no records are
/// passed over and told.
#[derive(Debug)]
pub struct Reader {
    store: Arc<Store>,
    position: Position,
    file: Option<BufReader<File>>,
}

impl Reader {
    pub fn new(store: Arc<Store>, position: Position) -> Self {
        Reader { store, position, file: None }
    }

    /// From the segment on that was begun last before a time.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn since(store: Arc<Store>, at_ms: u64) -> Result<Self, StoreError> {
        let mut segment = 0;
        for number in segments(&store)?.into_iter().rev() {
            segment = number;
            let path = store.state(DIRECTORY).join(segment_name(number));
            let mut line = Vec::new();
            BufReader::new(open(&path)?)
                .take(LINE_BYTES as u64)
                .read_until(b'\n', &mut line)
                .map_err(|error| failed("read", &path, error))?;
            let header =
                audit::split(line.trim_ascii_end()).and_then(|(_, json)| audit::header(json));
            if header.is_ok_and(|header| header.at_ms <= at_ms) {
                break;
            }
        }
        Ok(Reader::new(store, Position { segment, offset: 0 }))
    }

    /// At the end of what is there now.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn at_end(store: Arc<Store>) -> Result<Self, StoreError> {
        let segment = segments(&store)?.last().copied().unwrap_or(0);
        let path = store.state(DIRECTORY).join(segment_name(segment));
        let offset = if segment == 0 { 0 } else { length(&path)? };
        Ok(Reader::new(store, Position { segment, offset }))
    }

    /// After the last record that was given.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Goes back to a place where it was.
    pub fn go_back(&mut self, position: Position) {
        (self.position, self.file) = (position, None);
    }

    /// The next record, whoever it is about.
    ///
    /// # Errors
    /// The log cannot be read.
    #[expect(clippy::should_implement_trait, reason = "the end is not final")]
    pub fn next(&mut self) -> Result<Option<Record>, StoreError> {
        self.next_with(|_| true)
    }

    /// The next record whose JSON `wanted` agrees to; the others cost little.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn next_with(
        &mut self,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<Record>, StoreError> {
        let mut line = Vec::new();
        loop {
            if self.file.is_none() && !self.open()? {
                return Ok(None);
            }
            let path = self.store.state(DIRECTORY).join(segment_name(self.position.segment));
            let file = self.file.as_mut().expect("just opened");
            line.clear();
            let read = file.take(LINE_BYTES as u64).read_until(b'\n', &mut line);
            let read = read.map_err(|error| failed("read", &path, error))? as u64;
            if line.last() != Some(&b'\n') && read < LINE_BYTES as u64 {
                // Not written yet, or torn by a crash: then the next segment goes on.
                self.file = None;
                if !self.advance()? {
                    return Ok(None);
                }
                continue;
            }
            self.position.offset += read;
            let content = audit::split(line.trim_ascii_end()).map(|(_, json)| json);
            match content {
                Ok(json) if json.starts_with(b"{\"version\":1,\"segment\":") => {}
                Ok(json) if !wanted(json) => {}
                content => match content.and_then(audit::record) {
                    Ok(record) => return Ok(Some(record)),
                    Err(error) => {
                        let Position { segment, offset } = self.position;
                        tracing::warn!(segment, offset, %error, "a line of the audit log is passed over");
                    }
                },
            }
        }
    }

    /// Opens the segment of the position, or the first one after it.
    fn open(&mut self) -> Result<bool, StoreError> {
        let all = segments(&self.store)?;
        let Some(segment) = all.into_iter().find(|number| *number >= self.position.segment) else {
            return Ok(false);
        };
        if segment != self.position.segment {
            self.position = Position { segment, offset: 0 };
        }
        let path = self.store.state(DIRECTORY).join(segment_name(segment));
        let mut file = open(&path)?;
        file.seek(SeekFrom::Start(self.position.offset))
            .map_err(|error| failed("read", &path, error))?;
        self.file = Some(BufReader::with_capacity(64 << 10, file));
        Ok(true)
    }

    /// Goes on to the next segment, where there is one.
    fn advance(&mut self) -> Result<bool, StoreError> {
        let all = segments(&self.store)?;
        match all.into_iter().find(|number| *number > self.position.segment) {
            Some(segment) => {
                self.position = Position { segment, offset: 0 };
                Ok(true)
            }
            None => Ok(false),
        }
    }
}
