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

use strata_core::RepositoryName;
use strata_store::Store;
use tokio::net::TcpListener;

use crate::http_server::{self, Limits};
use files::Files;

/// What the options do not say.
const LIMITS: Limits = Limits {
    connections: 0,
    connection_time: Duration::ZERO,
    header_time: Duration::from_secs(15),
    header_bytes: 16 << 10,
    headers: 100,
    body_bytes: 64 << 10,
    keep_alive: true,
    grace: Duration::from_secs(5),
};

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
    let limits = Limits {
        connections: options.connections,
        connection_time: options.connection_age,
        ..LIMITS
    };
    http_server::serve(listener, limits, Arc::new(Files::new(store, options)), ended).await;
    Ok(())
}
