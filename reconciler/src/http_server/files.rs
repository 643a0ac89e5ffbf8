//! Files as answers (RFC 9110): single ranges, entity tags, chunk by chunk as the client takes
//! them, no faster than a [`Pace`] allows.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::Frame;
use hyper::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    HeaderMap, HeaderValue, IF_NONE_MATCH, IF_RANGE, RANGE,
};
use hyper::{Method, Response, StatusCode};
use tokio::time::Instant;

/// What is read and sent at once.
const CHUNK_BYTES: u64 = 256 << 10;

pub type FileBody = UnsyncBoxBody<Bytes, io::Error>;

/// A file to send.
#[derive(Debug)]
pub struct SentFile {
    pub file: File,
    pub length: u64,
    pub etag: String,
    /// Its name will never stand for another content.
    pub is_immutable: bool,
}

/// Opens a regular file; anything else of that name, a link too, is not found or an error.
///
/// # Errors
/// As open(2).
pub fn open_regular(path: &Path) -> io::Result<(File, Metadata)> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    match metadata.is_file() {
        true => Ok((file, metadata)),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

/// What all answers of a server together may take of the network.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: u64,
    /// When all that was let go so far has had its time.
    free: Mutex<Instant>,
}

impl Pace {
    pub fn new(bytes_per_second: u64) -> Self {
        Pace { bytes_per_second: bytes_per_second.max(1), free: Mutex::new(Instant::now()) }
    }

    /// When the next `bytes` may be sent; each call is for bytes of its own.
    fn slot(&self, bytes: u64, now: Instant) -> Instant {
        let time = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = (*free).max(now);
        *free = slot + time;
        slot
    }
}

/// The refusal of every method but GET and HEAD, which only read.
pub fn refused_method(method: &Method) -> Option<Response<FileBody>> {
    if method == Method::GET || method == Method::HEAD {
        return None;
    }
    let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED);
    refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    Some(refused)
}

/// An answer without a body.
pub fn plain(status: StatusCode) -> Response<FileBody> {
    let empty = Empty::new().map_err(|never| match never {}).boxed_unsync();
    let mut answer = Response::new(empty);
    *answer.status_mut() = status;
    answer
}

/// What of a file is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    Part { from: u64, length: u64 },
    Unsatisfiable,
}

/// One range; several, or what is no range of bytes, is answered with the whole file.
fn wanted(range: &str, length: u64) -> Wanted {
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|r| r.trim().split_once('-'))
    else {
        return Wanted::All;
    };
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok());
    let (first, last): (Option<u64>, Option<u64>) = match (first, last) {
        ("", "") => return Wanted::All,
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) => (first, last),
            _ => return Wanted::All,
        },
    };
    match (first, last) {
        (Some(from), _) if from >= length => Wanted::Unsatisfiable,
        (Some(from), Some(last)) if last < from => Wanted::All,
        (Some(from), last) => {
            let end = last.map_or(length, |last| last.saturating_add(1).min(length));
            Wanted::Part { from, length: end - from }
        }
        (None, Some(0)) => Wanted::Unsatisfiable,
        (None, Some(_)) if length == 0 => Wanted::Unsatisfiable,
        (None, Some(last)) => {
            let from = length.saturating_sub(last);
            Wanted::Part { from, length: length - from }
        }
        (None, None) => Wanted::All,
    }
}

/// The answer to a GET or HEAD with these headers.
pub fn send(
    found: SentFile,
    headers: &HeaderMap,
    is_head: bool,
    pace: Option<&Arc<Pace>>,
) -> Response<FileBody> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let is_same = |tags: &str| {
        let tag = |tag: &str| tag.trim().trim_start_matches("W/") == found.etag;
        tags.trim() == "*" || tags.split(',').any(tag)
    };
    let is_current = text(IF_RANGE).is_none_or(|tag| tag.trim() == found.etag);
    let range = text(RANGE).filter(|_| is_current && !is_head);
    let range = range.map_or(Wanted::All, |range| wanted(range, found.length));
    let cache = match found.is_immutable {
        true => "public, max-age=31536000, immutable",
        false => "no-cache",
    };
    let answer = Response::builder()
        .header(ETAG, &found.etag)
        .header(CACHE_CONTROL, cache)
        .header(ACCEPT_RANGES, "bytes");
    let built = if text(IF_NONE_MATCH).is_some_and(is_same) {
        answer.status(StatusCode::NOT_MODIFIED).body(plain(StatusCode::OK).into_body())
    } else {
        let answer = answer.header(CONTENT_TYPE, "application/octet-stream");
        let (from, length, answer) = match range {
            Wanted::Unsatisfiable => {
                let of = format!("bytes */{}", found.length);
                let answer = answer.status(StatusCode::RANGE_NOT_SATISFIABLE);
                (0, 0, answer.header(CONTENT_RANGE, of))
            }
            Wanted::All => (0, found.length, answer),
            Wanted::Part { from, length } => {
                let of = format!("bytes {from}-{}/{}", from + length - 1, found.length);
                (from, length, answer.status(StatusCode::PARTIAL_CONTENT).header(CONTENT_RANGE, of))
            }
        };
        let answer = answer.header(CONTENT_LENGTH, length);
        match is_head {
            true => answer.body(plain(StatusCode::OK).into_body()),
            false => answer.body(content(found.file, from, length, pace.cloned())),
        }
    };
    built.unwrap_or_else(|error| {
        tracing::error!(%error, "an answer cannot be made");
        plain(StatusCode::INTERNAL_SERVER_ERROR)
    })
}

/// A stretch of a file, read as the client takes it.
fn content(file: File, from: u64, length: u64, pace: Option<Arc<Pace>>) -> FileBody {
    let file = Arc::new(file);
    let chunks = stream::try_unfold((from, length), move |(at, left)| {
        let (file, pace) = (file.clone(), pace.clone());
        async move {
            if left == 0 {
                return Ok(None);
            }
            let wanted = left.min(CHUNK_BYTES);
            if let Some(pace) = pace {
                tokio::time::sleep_until(pace.slot(wanted, Instant::now())).await;
            }
            let read = tokio::task::spawn_blocking(move || {
                let mut chunk = vec![0; wanted as usize];
                file.read_exact_at(&mut chunk, at).map(|()| chunk)
            });
            let chunk = read.await.map_err(io::Error::other)??;
            Ok(Some((Frame::data(Bytes::from(chunk)), (at + wanted, left - wanted))))
        }
    });
    StreamBody::new(chunks).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let part = |from, length| Wanted::Part { from, length };
        let cases = [
            ("bytes=0-", part(0, 10)),
            ("bytes=3-", part(3, 7)),
            ("bytes=3-5", part(3, 3)),
            ("bytes=3-99999999999999999999", part(3, 7)),
            ("bytes=3-99", part(3, 7)),
            ("bytes=-4", part(6, 4)),
            ("bytes=-40", part(0, 10)),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=10-", Wanted::Unsatisfiable),
            ("bytes=5-3", Wanted::All),
            ("bytes=0-1,3-4", Wanted::All),
            ("bytes=-", Wanted::All),
            ("bytes=a-b", Wanted::All),
            ("lines=0-", Wanted::All),
        ];
        for (range, expected) in cases {
            assert_eq!(wanted(range, 10), expected, "{range}");
        }
        assert_eq!(wanted("bytes=0-", 0), Wanted::Unsatisfiable);
    }

    #[test]
    fn all_answers_share_one_pace() {
        let pace = Pace::new(1000);
        let now = Instant::now();
        assert!(pace.slot(500, now) <= now + Duration::from_millis(1), "the first goes at once");
        let second = pace.slot(500, now);
        let third = pace.slot(1, now);
        assert_eq!(second - now, Duration::from_millis(500));
        assert_eq!(third - now, Duration::from_secs(1));
        // What was not used is not saved up.
        let later = now + Duration::from_secs(60);
        assert_eq!(pace.slot(1000, later), later);
        assert_eq!(pace.slot(1, later), later + Duration::from_secs(1));
    }
}
