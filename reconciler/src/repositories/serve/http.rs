//! Requests and answers (RFC 9110): GET and HEAD, single ranges, entity tags.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    HeaderMap, IF_NONE_MATCH, IF_RANGE, RANGE,
};
use hyper::{Method, Request, Response, StatusCode};

use super::files::{FileError, Files, Found};
use crate::http_server::Handler;

/// What is read and sent at once.
const CHUNK_BYTES: u64 = 256 << 10;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

impl Handler for Arc<Files> {
    type Body = Body;

    async fn answer(&self, request: Request<Limited<Incoming>>) -> Response<Body> {
        answer(self.clone(), request).await
    }
}

async fn answer(files: Arc<Files>, request: Request<Limited<Incoming>>) -> Response<Body> {
    let (method, headers) = (request.method().clone(), request.headers().clone());
    if method != Method::GET && method != Method::HEAD {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED);
        refused.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    let Some((repository, name)) = split(request.uri().path()) else {
        return plain(StatusCode::NOT_FOUND);
    };
    let what = format!("{repository}/{name}");
    let found = tokio::task::spawn_blocking(move || files.find(&repository, &name)).await;
    let answer = match found {
        Ok(Ok(found)) => send(found, &headers, method == Method::HEAD),
        Ok(Err(FileError::NotFound)) => plain(StatusCode::NOT_FOUND),
        Ok(Err(error)) => {
            tracing::error!(%what, %error, "a file cannot be sent");
            plain(StatusCode::INTERNAL_SERVER_ERROR)
        }
        Err(error) => {
            tracing::error!(%what, %error, "a file cannot be sent");
            plain(StatusCode::INTERNAL_SERVER_ERROR)
        }
    };
    tracing::debug!(%what, status = answer.status().as_u16(), "answered");
    answer
}

/// `/repository/name`, decoded; `None` for anything else.
fn split(path: &str) -> Option<(String, String)> {
    let (repository, name) = path.strip_prefix('/')?.split_once('/')?;
    let decode = |text: &str| {
        percent_encoding::percent_decode_str(text).decode_utf8().ok().map(|text| text.into_owned())
    };
    Some((decode(repository)?, decode(name)?))
}

fn plain(status: StatusCode) -> Response<Body> {
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

fn send(found: Found, headers: &HeaderMap, is_head: bool) -> Response<Body> {
    let text =
        |name| headers.get(name).and_then(|value: &hyper::header::HeaderValue| value.to_str().ok());
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
            false => answer.body(content(found.file, from, length)),
        }
    };
    built.unwrap_or_else(|error| {
        tracing::error!(%error, "an answer cannot be made");
        plain(StatusCode::INTERNAL_SERVER_ERROR)
    })
}

/// A stretch of a file, read as the client takes it.
fn content(file: File, from: u64, length: u64) -> Body {
    let file = Arc::new(file);
    let chunks = stream::try_unfold((from, length), move |(at, left)| {
        let file = file.clone();
        async move {
            if left == 0 {
                return Ok(None);
            }
            let wanted = left.min(CHUNK_BYTES);
            let read = tokio::task::spawn_blocking(move || {
                let mut chunk = vec![0; wanted as usize];
                file.read_exact_at(&mut chunk, at).map(|()| chunk)
            });
            let chunk = read.await.map_err(std::io::Error::other)??;
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
    fn only_a_repository_and_a_name_are_paths() {
        assert_eq!(split("/main/database"), Some(("main".to_owned(), "database".to_owned())));
        let escaped = split("/main/app_1%253a2.tar.zst");
        assert_eq!(escaped, Some(("main".to_owned(), "app_1%3a2.tar.zst".to_owned())));
        for path in ["/", "/main", "main/database", "/%ff/database"] {
            assert_eq!(split(path), None, "{path}");
        }
    }
}
