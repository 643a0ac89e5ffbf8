//! Listens for the webhooks of a forge.
//!
//! A request that proves who sent it is a hint to look at the source, no more; nothing
//! in its body is read. It is answered at once, and however many come, one hint waits.
//! Before a request has proved anything it costs little: connections, their time, the
//! size of headers and bodies are bounded, and a body is never kept in memory.

mod signature;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{Sender, error::TrySendError};

pub use signature::{Forge, Refused, Verifier};

use crate::secret::SecretReference;

/// The path that forges are told.
pub const PATH: &str = "/webhook";
/// Bytes of a body. What is larger is not taken; the poll floor finds the commit.
pub const BODY_BYTES: u64 = 4 << 20;
/// Connections at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 64;
/// The time that a connection has from its first byte to its last.
const CONNECTION_TIME: Duration = Duration::from_secs(10);
const HEADER_TIME: Duration = Duration::from_secs(5);
const HEADER_BYTES: usize = 16 << 10;
const HEADERS: usize = 64;
/// Deliveries that are remembered, to see one that comes again.
const DELIVERIES: usize = 1_024;
/// Refusals are told this often at most.
const TELL_AGAIN: Duration = Duration::from_secs(60);
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Where to listen, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookSettings {
    pub listen: SocketAddr,
    pub forge: Forge,
    pub secret: SecretReference,
}

/// What all connections share.
struct Shared {
    verifier: Verifier,
    hints: Sender<()>,
    deliveries: Mutex<VecDeque<String>>,
    refusals: Mutex<Refusals>,
}

#[derive(Default)]
struct Refusals {
    untold: u64,
    told: Option<Instant>,
}

/// Serves until it is dropped. Hints go to `hints`, which holds one.
pub async fn serve(listener: TcpListener, verifier: Verifier, hints: Sender<()>) {
    let shared = Arc::new(Shared {
        verifier,
        hints,
        deliveries: Mutex::default(),
        refusals: Mutex::default(),
    });
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = permits.clone().acquire_owned().await.expect("never closed");
        match listener.accept().await {
            Ok((stream, peer)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    connection(stream, peer, shared).await;
                    drop(permit);
                });
            }
            Err(error) => {
                // As when descriptors run out: that passes.
                tracing::warn!(%error, "a webhook's connection could not be accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>) {
    let service = service_fn(|request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(respond(request, &shared).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(HEADER_BYTES)
        .max_headers(HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIME, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%peer, %error, "a webhook's connection broke off"),
        Err(_) => tracing::debug!(%peer, "a webhook's connection took too long"),
    }
}

async fn respond(request: Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
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

async fn receive(request: Request<Incoming>, shared: &Shared) -> (StatusCode, &'static str) {
    const TOO_LARGE: (StatusCode, &str) = (StatusCode::PAYLOAD_TOO_LARGE, "the body is too large");
    if request.body().size_hint().lower() > BODY_BYTES {
        return TOO_LARGE;
    }
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut checking = match shared.verifier.begin(request.headers(), since.as_secs()) {
        Ok(checking) => checking,
        Err(refused) => return refusal(refused),
    };
    let mut body = request.into_body();
    let mut length = 0;
    while checking.needs_body()
        && let Some(frame) = body.frame().await
    {
        let Ok(frame) = frame else { return (StatusCode::BAD_REQUEST, "the body broke off") };
        let Some(piece) = frame.data_ref() else { continue };
        length += piece.len() as u64;
        if length > BODY_BYTES {
            return TOO_LARGE;
        }
        checking.update(piece);
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
