//! HTTP servers: one loop that accepts, limits that hold before a handler sees anything, and
//! an end that lets what is being answered finish.
//!
//! How many connections there are, how long one may last, how long its headers may take, how
//! large headers and bodies are: all of it is bounded. Clients beyond the limit wait in the
//! kernel's queue. A body that is announced to be too large is refused unread, and one that
//! turns out to be breaks off ([`Limited`]). HTTP/1 only; there is no encryption and
//! no log-in, both are for a proxy in front.

pub mod files;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{Either, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

/// The wait after a connection that could not be accepted: too many open files, as a rule,
/// and others have to end first.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);
/// What is said of a body that is too large.
pub const TOO_LARGE: &str = "the body is too large";

/// What a client may have.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// How long a connection may last.
    pub connection_time: Duration,
    /// How long the headers of a request may take.
    pub header_time: Duration,
    /// Bytes of the headers of a request.
    pub header_bytes: usize,
    /// Lines of headers.
    pub headers: usize,
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Whether one connection may bring several requests.
    pub keep_alive: bool,
    /// What is being answered at the end has so long.
    pub grace: Duration,
}

/// What answers requests.
pub trait Handler: Clone + Send + Sync + 'static {
    type Body: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + 'static;

    fn answer(
        &self,
        request: Request<Limited<Incoming>>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;

    /// A body was announced that is too large, and was refused.
    fn refused_body(&self) {}
}

/// Serves until `ended` is done, and then until what is being answered is.
pub async fn serve(
    listener: TcpListener,
    limits: Limits,
    handler: impl Handler,
    ended: impl Future<Output = ()>,
) {
    let room = Arc::new(Semaphore::new(limits.connections.max(1)));
    let (end, ending) = watch::channel(());
    let mut connections = JoinSet::new();
    tokio::pin!(ended);
    loop {
        let accepted = async {
            let permit = room.clone().acquire_owned().await.expect("never closed");
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut ended => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, peer)) => {
                let (handler, ending) = (handler.clone(), ending.clone());
                connections.spawn(async move {
                    connection(stream, peer, limits, handler, ending).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
    drop((listener, end));
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.grace, all).await.is_err() {
        tracing::debug!("a connection was cut off at the end");
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    limits: Limits,
    handler: impl Handler,
    mut ending: watch::Receiver<()>,
) {
    let service = service_fn(|request| {
        let handler = handler.clone();
        async move { Ok::<_, Infallible>(answer(request, limits.body_bytes, &handler).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_time)
        .max_buf_size(limits.header_bytes)
        .max_headers(limits.headers)
        .keep_alive(limits.keep_alive)
        .serve_connection(TokioIo::new(stream), service);
    let served = async {
        tokio::pin!(connection);
        tokio::select! {
            served = connection.as_mut() => served,
            // An error is the end as well.
            _ = ending.changed() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    match tokio::time::timeout(limits.connection_time, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%peer, %error, "a connection broke off"),
        Err(_) => tracing::debug!(%peer, "a connection lasted too long"),
    }
}

async fn answer<H: Handler>(
    request: Request<Incoming>,
    body_bytes: usize,
    handler: &H,
) -> Response<Either<H::Body, Full<Bytes>>> {
    if request.body().size_hint().lower() > body_bytes as u64 {
        handler.refused_body();
        let mut response = Response::new(Either::Right(Full::from(format!("{TOO_LARGE}\n"))));
        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        return response;
    }
    let request = request.map(|body| Limited::new(body, body_bytes));
    handler.answer(request).await.map(Either::Left)
}

/// A server in a task of its own. Dropped, it takes no more connections and ends once what is
/// being answered is.
#[derive(Debug)]
pub struct Server {
    end: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    pub fn start(listener: TcpListener, limits: Limits, handler: impl Handler) -> Self {
        let (end, ended) = oneshot::channel();
        let task = tokio::spawn(serve(listener, limits, handler, async {
            // The sender is dropped, which is an error.
            let _dropped = ended.await;
        }));
        Server { end, task }
    }

    /// Ends it, and waits for that.
    pub async fn stop(self) {
        drop(self.end);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "a server broke off");
        }
    }
}

#[cfg(test)]
mod tests;
