//! The reconciler's HTTP listeners: limits that hold before a handler sees anything.
//!
//! A client gets ten seconds for its headers and thirty for all, 16 KiB of headers and
//! 64 KiB of body; at most 64 are served at a time, the others wait in the kernel's
//! queue. Nothing here reads the store on a runtime thread.

pub mod health;
pub mod metrics;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const CONNECTIONS: usize = 64;
const HEADERS: Duration = Duration::from_secs(10);
const WHOLE: Duration = Duration::from_secs(30);
const HEADER_BYTES: usize = 16 << 10;
const BODY_BYTES: usize = 64 << 10;

/// Listens on an address.
///
/// # Errors
/// It is taken, or not this host's.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves for ever; connections end with it.
pub async fn serve(listener: TcpListener, router: Router) {
    let router = router.layer(DefaultBodyLimit::max(BODY_BYTES));
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let permit = room.clone().acquire_owned().await.expect("never closed");
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many open files, as a rule: others have to end first.
                tracing::warn!(%error, "a connection cannot be taken");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let _permit = permit;
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(HEADER_BYTES);
            http.keep_alive(false);
            let served = http.serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(WHOLE, served).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a connection ended early"),
                Err(_) => tracing::debug!("a client took too long"),
            }
        });
    }
}
