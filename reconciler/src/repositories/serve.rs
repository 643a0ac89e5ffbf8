//! A read-only web server of repositories, enough for another Strata to mirror from.
//!
//! Only names that a published repository has are looked up, each in a list: no path is made
//! of what a client says. GET and HEAD, single ranges, entity tags. Archives are made when
//! they are first asked for, and kept in a cache that can be emptied at any time. Connections,
//! their age, headers and archives in the making have limits. There is no encryption and no
//! log-in: stand behind a web server that has both where they are wanted.

mod files;
mod http;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use strata_core::RepositoryName;
use strata_store::Store;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use files::Files;

/// How long a client may take for its request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
const HEADER_BYTES: usize = 16 << 10;

#[derive(Debug, Clone)]
pub struct Options {
    /// The repositories to serve.
    pub repositories: BTreeSet<RepositoryName>,
    /// Where archives are kept.
    pub cache: PathBuf,
    pub cache_bytes: u64,
    /// Connections at once; more wait.
    pub connections: usize,
    /// How long a connection may last.
    pub connection_age: Duration,
}

/// Serves until `ended` is done.
///
/// # Errors
/// The cache cannot be made.
pub async fn serve(
    store: Store,
    listener: TcpListener,
    options: Options,
    ended: impl Future<Output = ()>,
) -> std::io::Result<()> {
    std::fs::create_dir_all(&options.cache)?;
    let slots = Arc::new(Semaphore::new(options.connections.max(1)));
    let age = options.connection_age;
    let files = Arc::new(Files::new(store, options));
    tokio::pin!(ended);
    loop {
        let slot = slots.clone().acquire_owned().await;
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut ended => return Ok(()),
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many open files, or a client that is gone already.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let files = files.clone();
        tokio::spawn(async move {
            let _slot = slot;
            let service = service_fn(move |request| http::answer(files.clone(), request));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(HEADER_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(age, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%peer, %error, "a connection broke off"),
                Err(_) => tracing::debug!(%peer, "a connection lasted too long"),
            }
        });
    }
}
