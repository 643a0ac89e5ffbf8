//! `strata repo publish` and `strata repo serve`: repositories for others to mirror.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use strata_core::RepositoryName;
use strata_core::names::TEMPLATES_REPOSITORY;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::super::{
    Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_bytes, print_json, progress,
    quantity,
};
use crate::repositories::publish::{self, PublishError};
use crate::repositories::remote::run;
use crate::repositories::serve::{self, Options};

/// Write a repository as plain files, for a web or FTP server or a bucket
///
/// The directory is the repository's alone, and can be mirrored while it is written; run it again after each change, and
/// copy it wherever it should be served: archives first, snapshot.toml last.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  strata repo sign main --key nightly\n  strata repo publish main /srv/www/layers/main --store /srv/strata"
)]
pub struct PublishArgs {
    /// The repository
    #[arg(value_name = "REPOSITORY")]
    repository: RepositoryName,
    /// Where to
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Archives made at once
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    threads: u8,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Serve repositories to other stores, read-only, over HTTP
///
/// Runs until it is ended. A mirror of it has the URL http://ADDRESS/REPOSITORY. There is no
/// encryption and no log-in: put a web server in front that has them where they are wanted.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  strata repo serve main --listen 10.0.0.1:8080 --store /srv/strata\n\nAnd where it is mirrored, in strata.toml:\n  [[repository]]\n  name = \"main\"\n  url = \"http://10.0.0.1:8080/main\"\n  keys = [\"ssh-ed25519 AAAA…\"]"
)]
pub struct ServeArgs {
    /// Only these repositories; without any, all but `templates`
    #[arg(value_name = "REPOSITORY")]
    repositories: Vec<RepositoryName>,
    /// Where to listen; port 0 takes any that is free
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where archives are kept; it can be emptied at any time
    #[arg(long, value_name = "DIR", default_value = "/var/cache/strata/archives")]
    cache: PathBuf,
    /// What the cache may hold, in MiB
    #[arg(long, value_name = "N", default_value_t = 20_480)]
    cache_mib: u64,
    /// Connections at once; more wait
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// How many seconds a connection may last
    #[arg(long, value_name = "S", default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..))]
    connection_time: u64,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Serialize)]
struct Serving {
    address: SocketAddr,
    repositories: BTreeSet<RepositoryName>,
}

pub fn publish(args: &PublishArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let bar = publish::Progress::default();
    let published = progress::with_bytes(&bar.total_bytes, &bar.done_bytes, || {
        let (repository, directory) = (&args.repository, &args.directory);
        publish::publish(&store, repository, directory, args.threads.into(), &bar)
    });
    let published = published.map_err(|error| match error {
        PublishError::Store(error) => Failure::from(error),
        error => {
            let failure = Failure::new(&error);
            match error {
                PublishError::NotSigned(name) => {
                    failure.hint(format!("strata repo sign {name} --key FILE"))
                }
                PublishError::InStore(_) | PublishError::OtherRepository { .. } => failure.hint(
                    "each repository has a directory of its own, outside of the store: name another one",
                ),
                PublishError::NotEmpty { directory, .. } => failure.hint(format!(
                    "name an empty directory; if a former version published {} there: echo {} > {}/repository",
                    args.repository,
                    args.repository,
                    directory.display()
                )),
                PublishError::Archive { .. } => failure
                    .hint(format!("find what is damaged: strata repo verify {}", args.repository)),
                _ => failure,
            }
        }
    })?;
    if args.output.output == OutputFormat::Json {
        print_json(&published)?;
        return Ok(Outcome::Done);
    }
    let signed = if published.signed { "signed" } else { "not signed" };
    let text = format!(
        "{}: {}, {} made, {signed}\n",
        published.repository,
        quantity(published.units, "unit"),
        quantity(published.archives, "archive")
    );
    print_bytes(text.as_bytes())?;
    Ok(Outcome::Done)
}

pub fn serve(args: &ServeArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let present = store.repositories()?;
    let repositories: BTreeSet<_> = match args.repositories.as_slice() {
        [] => present.into_iter().filter(|name| name.as_str() != TEMPLATES_REPOSITORY).collect(),
        named => {
            if let Some(unknown) = named.iter().find(|name| !present.contains(name)) {
                let failure = Failure::new(format!("the store has no repository {unknown}"));
                return Err(failure.hint("`strata repo list` prints the repositories"));
            }
            named.iter().cloned().collect()
        }
    };
    if repositories.is_empty() {
        return Err(Failure::new("the store has no repository to serve")
            .hint("import layers first: strata layer import --repo main FILE.deb …"));
    }
    let options = Options {
        repositories: repositories.clone(),
        cache: args.cache.clone(),
        cache_bytes: args.cache_mib.saturating_mul(1 << 20),
        connections: args.connections.into(),
        connection_age: Duration::from_secs(args.connection_time),
    };
    let served = run(async {
        let at = |error| {
            Failure::new(format!("listen on {}: {error}", args.listen))
                .hint("name a free address of this host: --listen ADDRESS:PORT")
        };
        let listener = TcpListener::bind(args.listen).await.map_err(at)?;
        let address = listener.local_addr().map_err(at)?;
        let serving = Serving { address, repositories };
        if args.output.output == OutputFormat::Json {
            print_json(&serving)?;
        } else {
            let names: Vec<_> = serving.repositories.iter().map(|name| name.as_str()).collect();
            print_bytes(format!("serving {} on http://{address}\n", names.join(", ")).as_bytes())?;
        }
        let failed = |error| Failure::new(format!("serve: {error}"));
        let mut terminated = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupted = signal(SignalKind::interrupt()).map_err(failed)?;
        let ended = async move {
            tokio::select! {
                _ = terminated.recv() => {}
                _ = interrupted.recv() => {}
            }
        };
        serve::serve(store, listener, options, ended)
            .await
            .map_err(|error| Failure::new(format!("{}: {error}", args.cache.display())))
    });
    served.map_err(|error| Failure::new(format!("start: {error}")))??;
    Ok(Outcome::Done)
}
