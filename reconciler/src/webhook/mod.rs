//! Listens for the webhooks of a forge.
//!
//! A request that proves who sent it is a hint to look at the source, no more; nothing
//! in its body is read. It is answered at once, and however many come, one hint waits.
//! Before a request has proved anything it costs little: connections, their time, the
//! size of headers and bodies are bounded, and a body is never kept in memory.

mod signature;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::mpsc::{Sender, error::TrySendError};

pub use signature::{Forge, Refused, Verifier};

use crate::http_server::{Handler, Limits, TOO_LARGE};
use crate::secret::SecretReference;

/// The path that forges are told.
pub const PATH: &str = "/webhook";
/// Before a request has proved anything. What is larger is not taken; the poll floor
/// finds the commit.
pub const LIMITS: Limits = Limits {
    connections: 64,
    connection_time: Duration::from_secs(10),
    header_time: Duration::from_secs(5),
    header_bytes: 16 << 10,
    headers: 64,
    body_bytes: 4 << 20,
    keep_alive: false,
    grace: Duration::from_secs(2),
};
/// Deliveries that are remembered, to see one that comes again.
const DELIVERIES: usize = 1_024;
/// Refusals are told this often at most.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// Where to listen, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookSettings {
    pub listen: SocketAddr,
    pub forge: Forge,
    pub secret: SecretReference,
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    verifier: ArcSwap<Verifier>,
    hints: Sender<()>,
    deliveries: Mutex<VecDeque<String>>,
    refusals: Mutex<Refusals>,
}

#[derive(Debug, Default)]
struct Refusals {
    untold: u64,
    told: Option<Instant>,
}

/// What answers forges. Hints go to `hints`, which holds one.
#[derive(Debug, Clone)]
pub struct Webhooks(Arc<Shared>);

impl Webhooks {
    pub fn new(verifier: Verifier, hints: Sender<()>) -> Self {
        Webhooks(Arc::new(Shared {
            verifier: ArcSwap::from_pointee(verifier),
            hints,
            deliveries: Mutex::default(),
            refusals: Mutex::default(),
        }))
    }

    /// Believes whom another verifier believes, from the next request on.
    pub fn use_verifier(&self, verifier: Verifier) {
        self.0.verifier.store(Arc::new(verifier));
    }
}

impl Handler for Webhooks {
    type Body = Full<Bytes>;

    async fn answer(&self, request: Request<Limited<Incoming>>) -> Response<Full<Bytes>> {
        respond(request, &self.0).await
    }

    fn refused_body(&self) {
        self.0.refused(StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE);
    }
}

async fn respond(request: Request<Limited<Incoming>>, shared: &Shared) -> Response<Full<Bytes>> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::POST, PATH) => receive(request, shared).await,
        (_, PATH) => (StatusCode::METHOD_NOT_ALLOWED, "POST only"),
        _ => (StatusCode::NOT_FOUND, "webhooks come to /webhook"),
    };
    if status.is_client_error() {
        shared.refused(status, text);
    }
    let mut response = Response::new(Full::from(format!("{text}\n")));
    *response.status_mut() = status;
    response
}

async fn receive(
    request: Request<Limited<Incoming>>,
    shared: &Shared,
) -> (StatusCode, &'static str) {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let verifier = shared.verifier.load_full();
    let mut checking = match verifier.begin(request.headers(), since.as_secs()) {
        Ok(checking) => checking,
        Err(refused) => return refusal(refused),
    };
    let mut body = request.into_body();
    while checking.needs_body()
        && let Some(frame) = body.frame().await
    {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) if error.is::<LengthLimitError>() => {
                return (StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE);
            }
            Err(_) => return (StatusCode::BAD_REQUEST, "the body broke off"),
        };
        if let Some(piece) = frame.data_ref() {
            checking.update(piece);
        }
    }
    match checking.finish() {
        Ok(delivery) => shared.take(delivery),
        Err(refused) => refusal(refused),
    }
}

fn refusal(refused: Refused) -> (StatusCode, &'static str) {
    let text = match refused {
        Refused::Missing => "there is no signature or token",
        Refused::Wrong => "the signature or token is wrong",
        Refused::Old => "the request was signed too long ago, or a clock is wrong",
    };
    (StatusCode::UNAUTHORIZED, text)
}

impl Shared {
    /// Takes a request that has proved who sent it.
    fn take(&self, delivery: Option<String>) -> (StatusCode, &'static str) {
        if let Some(delivery) = delivery {
            let mut seen = self.deliveries.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.contains(&delivery) {
                return (StatusCode::OK, "this delivery came before");
            }
            if seen.len() == DELIVERIES {
                seen.pop_front();
            }
            seen.push_back(delivery);
        }
        match self.hints.try_send(()) {
            // One waiting hint is as good as many.
            Ok(()) | Err(TrySendError::Full(())) => (StatusCode::ACCEPTED, "accepted"),
            Err(TrySendError::Closed(())) => (StatusCode::SERVICE_UNAVAILABLE, "ending"),
        }
    }

    /// Tells of refusals, without letting a flood of them fill the log.
    fn refused(&self, status: StatusCode, why: &str) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.untold += 1;
        if refusals.told.is_none_or(|told| told.elapsed() >= TELL_AGAIN) {
            let count = std::mem::take(&mut refusals.untold);
            refusals.told = Some(Instant::now());
            tracing::warn!(count, status = status.as_u16(), why, "webhooks refused");
        }
    }
}
