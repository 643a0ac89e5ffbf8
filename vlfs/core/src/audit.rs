//! The audit log's lines and their chain (`docs/formats.md`, "Audit log").
//!
//! A line is `HASH SPACE JSON`. HASH is the blake3 digest of the hash of the line
//! before, as 64 hexadecimal digits, and of the JSON: whoever changes, removes, adds or
//! moves a line must write anew all that follow. A segment begins with a header that
//! repeats the hash before it, so that a segment can be checked alone.
//!
//! What the chain cannot show: that its end was cut off, or that all of it was written
//! anew. For that, keep `strata audit verify`'s last hash elsewhere.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::event::Event;

/// The log's path in a store.
pub const PATH: &str = "state/audit";

/// The version of the format.
pub const VERSION: u32 = 1;
/// Bytes of one line.
pub const LINE_BYTES: usize = 1 << 20;

/// The hash before the first line of all.
pub fn origin() -> Digest {
    Digest::from_bytes([0; 32])
}

/// Why a segment begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "after", rename_all = "kebab-case")]
pub enum Beginning {
    /// There was none before.
    Nothing,
    /// The one before is full.
    Full,
    /// The one before ends in a part of a line, as a crash leaves it. It stays there.
    Torn { bytes: u64, digest: Digest },
    /// The last whole line of the one before does not fit the line before it.
    Damage,
}

/// The first line of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    pub version: u32,
    /// From 1.
    pub segment: u64,
    /// The number of the record that follows.
    pub first: u64,
    pub at_ms: u64,
    /// The hash of the last line of the segment before.
    pub previous: Digest,
    pub begins: Beginning,
}

/// On whose account something happens.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Who {
    /// The commit that wants it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The commit's author, as it names itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Who signed the commit, where that was proved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
    /// Who gave the order, as the command line knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
}

/// Something that happened, or is about to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub version: u32,
    /// From 1, without gaps.
    pub seq: u64,
    pub at_ms: u64,
    /// The host that wrote it.
    pub host: String,
    pub who: Who,
    #[serde(flatten)]
    pub event: Event,
}

/// Why a line is none of this chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    #[error("it is no line of an audit log")]
    Form,
    #[error("its content does not match its hash, or the line before it was changed or removed")]
    Chain,
    #[error("its content makes no sense: {0}")]
    Content(String),
    #[error("it is of version {0}, this program reads version {VERSION}")]
    Version(u32),
    #[error("it is longer than {LINE_BYTES} bytes")]
    TooLong,
}

/// The hash of a line.
pub fn link(previous: &Digest, json: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(previous.to_string().as_bytes());
    hasher.update(json);
    Digest::from_bytes(*hasher.finalize().as_bytes())
}

/// A line with its newline, and its hash.
///
/// # Errors
/// It would be longer than a reader takes.
pub fn line(previous: &Digest, content: &impl Serialize) -> Result<(Vec<u8>, Digest), LineError> {
    let json = serde_json::to_vec(content).map_err(|e| LineError::Content(e.to_string()))?;
    let hash = link(previous, &json);
    let mut line = hash.to_string().into_bytes();
    line.push(b' ');
    line.extend_from_slice(&json);
    line.push(b'\n');
    if line.len() > LINE_BYTES {
        return Err(LineError::TooLong);
    }
    Ok((line, hash))
}

/// The hash that a line claims, and its JSON. The line has no newline.
///
/// # Errors
/// It has not this form.
pub fn split(line: &[u8]) -> Result<(Digest, &[u8]), LineError> {
    let (hash, json) = line.split_at_checked(65).ok_or(LineError::Form)?;
    let hash = hash.strip_suffix(b" ").ok_or(LineError::Form)?;
    let hash = std::str::from_utf8(hash).map_err(|_| LineError::Form)?;
    Ok((hash.parse().map_err(|_| LineError::Form)?, json))
}

/// Checks that a line follows the one with the hash `previous`. Returns its hash and
/// its JSON.
///
/// # Errors
/// It does not.
pub fn follow<'l>(previous: &Digest, line: &'l [u8]) -> Result<(Digest, &'l [u8]), LineError> {
    let (hash, json) = split(line)?;
    match link(previous, json) == hash {
        true => Ok((hash, json)),
        false => Err(LineError::Chain),
    }
}

/// A header's content.
///
/// # Errors
/// It is none, or of another version.
pub fn header(json: &[u8]) -> Result<Header, LineError> {
    let header: Header = parse(json)?;
    match header.version {
        VERSION => Ok(header),
        version => Err(LineError::Version(version)),
    }
}

/// A record's content.
///
/// # Errors
/// It is none, or of another version.
pub fn record(json: &[u8]) -> Result<Record, LineError> {
    let record: Record = parse(json)?;
    match record.version {
        VERSION => Ok(record),
        version => Err(LineError::Version(version)),
    }
}

fn parse<'j, T: Deserialize<'j>>(json: &'j [u8]) -> Result<T, LineError> {
    serde_json::from_slice(json).map_err(|error| LineError::Content(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        let event = |n: u64| Event::VaSilent { mac: "02:00:00:00:00:01".parse().unwrap(), days: n };
        let record = |seq| Record {
            version: VERSION,
            seq,
            at_ms: 1_000 * seq,
            host: "here".to_owned(),
            who: Who { operator: Some("ann".to_owned()), ..Who::default() },
            event: event(seq),
        };
        (1..=3).map(record).collect()
    }

    #[test]
    fn golden() {
        let text = include_bytes!("../golden/audit.log");
        let mut lines = text.split(|b| *b == b'\n');
        let (mut hash, json) = follow(&origin(), lines.next().expect("a header")).expect("first");
        let head = header(json).expect("a header");
        assert_eq!((head.segment, head.first, &head.begins), (1, 1, &Beginning::Nothing));
        let mut again = line(&origin(), &head).expect("short").0;
        for expected in records() {
            let (next, json) = follow(&hash, lines.next().expect("a record")).expect("chained");
            assert_eq!(record(json).expect("a record"), expected);
            again.extend(line(&hash, &expected).expect("short").0);
            hash = next;
        }
        assert_eq!(String::from_utf8_lossy(&again), String::from_utf8_lossy(text));
    }

    #[test]
    fn every_changed_byte_is_seen() {
        let (first, hash) = line(&origin(), &records()[0]).expect("short");
        let (second, _) = line(&hash, &records()[1]).expect("short");
        let second = &second[..second.len() - 1];
        assert!(follow(&hash, second).is_ok());
        for at in 0..second.len() {
            let mut changed = second.to_vec();
            changed[at] ^= 1;
            assert!(follow(&hash, &changed).is_err(), "byte {at}");
        }
        assert_eq!(follow(&origin(), second), Err(LineError::Chain), "a line was removed");
        assert!(follow(&hash, &first[..first.len() - 1]).is_err(), "a line twice");
        assert_eq!(follow(&hash, &second[..40]), Err(LineError::Form));
    }

    #[test]
    fn what_no_reader_takes_is_not_written() {
        let long = Event::CommandBegun { command: "x".repeat(LINE_BYTES) };
        let record = Record { event: long, ..records().remove(0) };
        assert_eq!(line(&origin(), &record), Err(LineError::TooLong));
    }
}
