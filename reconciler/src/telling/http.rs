//! Requests to receivers: deadlines, no redirects, and the waits that they ask for.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, StatusCode};

use super::Delivery;

const CONNECT: Duration = Duration::from_secs(10);
const WHOLE: Duration = Duration::from_secs(30);
/// Of what a receiver answers, so much is looked at.
const ANSWER_BYTES: usize = 4 << 10;
/// The longest wait that a receiver may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(3_600);

/// # Errors
/// The system's certificates cannot be used.
pub fn client() -> reqwest::Result<Client> {
    Client::builder()
        .user_agent(concat!("strata/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .timeout(WHOLE)
        // A token is for the host that it was given for.
        .redirect(reqwest::redirect::Policy::none())
        .build()
}

/// What an error comes from in the end. The address may be a secret, and is left out.
pub fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let causes = std::iter::successors(std::error::Error::source(&error), |e| e.source());
    causes.last().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// Sends a request and judges the answer.
pub async fn send(request: RequestBuilder) -> Delivery {
    let mut answer = match request.send().await {
        Ok(answer) => answer,
        Err(error) => return Delivery::Later { why: cause(error), after: None },
    };
    let status = answer.status();
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let asked = asked_wait(answer.headers(), now_s);
    if status.is_success() {
        return Delivery::Done { pause: asked };
    }
    let mut said = Vec::new();
    while let Ok(Some(part)) = answer.chunk().await {
        said.extend_from_slice(&part);
        if said.len() >= ANSWER_BYTES {
            said.truncate(ANSWER_BYTES);
            break;
        }
    }
    judge(status, asked, &String::from_utf8_lossy(&said))
}

/// What a status that is no success means.
fn judge(status: StatusCode, asked: Option<Duration>, said: &str) -> Delivery {
    let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
    let why = match said.is_empty() {
        true => format!("it answered {status}"),
        false => format!("it answered {status}: {said}"),
    };
    match status {
        // The receiver, its address or its secret can be mended.
        _ if status.is_server_error() || status.is_redirection() => {
            Delivery::Later { why, after: asked }
        }
        StatusCode::UNAUTHORIZED
        | StatusCode::FORBIDDEN
        | StatusCode::NOT_FOUND
        | StatusCode::GONE
        | StatusCode::REQUEST_TIMEOUT
        | StatusCode::TOO_EARLY
        | StatusCode::TOO_MANY_REQUESTS => Delivery::Later { why, after: asked },
        _ => Delivery::Refused { why },
    }
}

/// How long the receiver wants to be left alone: `Retry-After` in seconds, or the
/// limit that is used up, as GitHub, GitLab and Gitea say it.
fn asked_wait(headers: &HeaderMap, now_s: u64) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
    let after = number(RETRY_AFTER.as_str());
    let used_up = ["x-ratelimit", "ratelimit"].into_iter().find_map(|prefix| {
        let left = number(&format!("{prefix}-remaining"))?;
        let reset = number(&format!("{prefix}-reset"))?;
        (left == 0).then(|| reset.saturating_sub(now_s))
    });
    let seconds = after.or(used_up)?;
    (seconds > 0).then(|| Duration::from_secs(seconds).min(LONGEST_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (reqwest::header::HeaderName::from_static(name), value.parse().expect("valid"))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn waits_are_as_long_as_asked_for_within_reason() {
        let wait = |pairs: &[_]| asked_wait(&headers(pairs), 1_000).map(|wait| wait.as_secs());
        assert_eq!(wait(&[]), None);
        assert_eq!(wait(&[("retry-after", "7")]), Some(7));
        assert_eq!(wait(&[("retry-after", "999999999999")]), Some(3_600));
        assert_eq!(wait(&[("retry-after", "soon")]), None);
        assert_eq!(
            wait(&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1060")]),
            Some(60)
        );
        assert_eq!(wait(&[("x-ratelimit-remaining", "1"), ("x-ratelimit-reset", "1060")]), None);
        assert_eq!(wait(&[("ratelimit-remaining", "0"), ("ratelimit-reset", "900")]), None);
    }

    #[test]
    fn what_can_be_mended_is_tried_again() {
        for status in [401, 403, 404, 408, 429, 500, 503, 302] {
            let status = StatusCode::from_u16(status).expect("valid");
            assert!(matches!(judge(status, None, ""), Delivery::Later { .. }), "{status}");
        }
        for status in [400, 413, 422] {
            let status = StatusCode::from_u16(status).expect("valid");
            assert!(matches!(judge(status, None, ""), Delivery::Refused { .. }), "{status}");
        }
    }
}
