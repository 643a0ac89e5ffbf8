//! Files from archives: in parallel, resumed where they were cut off, tried again
//! with growing pauses, within a deadline, a rate and their announced size.
//!
//! A file appears under its name only once it has the size and digest that a
//! signed index names. What has come so far waits beside it, in `….part`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{StatusCode, Url};
use strata_import::apt::Sha256;
use strata_import::apt::auth::{Login, Logins};
use strata_import::apt::release::IndexFile;
use tokio::sync::Semaphore;

use super::Configuration;
use crate::transfer::{ATTEMPTS, FIRST_PAUSE, Observer, Pace, PartialFile};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a server may say nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// How files are fetched.
#[derive(Debug, Clone, Copy)]
pub struct FetchLimits {
    /// Files fetched at once.
    pub connections: usize,
    /// Bytes a second, all files together.
    pub rate: Option<u64>,
    /// For one file, all attempts together.
    pub deadline: Duration,
}

/// A file to fetch.
#[derive(Debug, Clone)]
pub struct Order {
    pub url: Url,
    pub to: PathBuf,
    /// What it must be; without it the file is fetched anew each time.
    pub expected: Option<IndexFile>,
    /// The most bytes that are taken where nothing is expected.
    pub max_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("the network client cannot be made: {0}")]
    Client(String),
    #[error(
        "{url}: sources of the kind `{scheme}:` are not supported; http, https, file and copy are"
    )]
    Scheme { url: String, scheme: String },
    #[error("{url}: it is not there")]
    NotFound { url: String },
    #[error("{url}: the server answers {status}")]
    Status { url: String, status: StatusCode },
    #[error("{url}: {reason}")]
    Network { url: String, reason: String },
    #[error("{url}: {found} bytes came, {expected} were announced")]
    Length { url: String, expected: u64, found: u64 },
    #[error("{url}: it has more than {limit} bytes")]
    TooLarge { url: String, limit: u64 },
    #[error("{url}: its SHA-256 is {found}, the signed index says {expected}")]
    Digest { url: String, expected: Sha256, found: Sha256, resumed: bool },
    #[error("{url}: not there after {} s", deadline.as_secs())]
    Deadline { url: String, deadline: Duration },
    #[error("{path}: {source}")]
    Disk { path: PathBuf, source: std::io::Error },
}

impl FetchError {
    /// Whether trying again may help.
    fn passes(&self) -> bool {
        match self {
            FetchError::Network { .. } | FetchError::Length { .. } => true,
            FetchError::Digest { resumed, .. } => *resumed,
            FetchError::Status { status, .. } => {
                status.is_server_error()
                    || matches!(
                        *status,
                        StatusCode::REQUEST_TIMEOUT
                            | StatusCode::TOO_MANY_REQUESTS
                            | StatusCode::RANGE_NOT_SATISFIABLE
                    )
            }
            FetchError::Client(_)
            | FetchError::Scheme { .. }
            | FetchError::NotFound { .. }
            | FetchError::TooLarge { .. }
            | FetchError::Deadline { .. }
            | FetchError::Disk { .. } => false,
        }
    }
}

/// Fetches files. Clones share connections and limits.
#[derive(Clone)]
pub struct Fetcher {
    client: reqwest::Client,
    logins: Arc<Logins>,
    limits: FetchLimits,
    slots: Arc<Semaphore>,
    pace: Pace,
    observer: Observer,
}

impl Fetcher {
    /// # Errors
    /// The client cannot be made, as of a proxy that is no URL.
    pub fn new(
        configuration: &Configuration,
        logins: Logins,
        limits: FetchLimits,
        observer: Observer,
    ) -> Result<Self, FetchError> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("strata/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT);
        if configuration.has_proxy() {
            let configuration = configuration.clone();
            builder = builder.proxy(reqwest::Proxy::custom(move |url| {
                let proxy = configuration.proxy(url.scheme(), url.host_str()?)?;
                Url::parse(proxy).ok()
            }));
        }
        let client = builder.build().map_err(|error| FetchError::Client(error.to_string()))?;
        let slots = Arc::new(Semaphore::new(limits.connections.max(1)));
        let pace = Pace::new(limits.rate);
        Ok(Fetcher { client, logins: Arc::new(logins), limits, slots, pace, observer })
    }

    /// Brings a file to its place, unless it is there.
    ///
    /// # Errors
    /// [`FetchError`], after all attempts.
    pub async fn fetch(&self, order: &Order) -> Result<(), FetchError> {
        let slot = self.slots.acquire().await;
        let deadline = self.limits.deadline;
        let fetched = tokio::time::timeout(deadline, self.persist(order)).await;
        drop(slot);
        fetched.unwrap_or_else(|_| Err(FetchError::Deadline { url: shown(&order.url), deadline }))
    }

    async fn persist(&self, order: &Order) -> Result<(), FetchError> {
        if let Some(expected) = order.expected
            && examine(&order.to).await?.is_some_and(|found| found == expected)
        {
            (self.observer)(expected.bytes);
            return Ok(());
        }
        let mut part = PartialFile::open(&order.to).map_err(|source| disk(&order.to, source))?;
        let mut failures = 0;
        loop {
            let before = part.length();
            let error = match self.attempt(order, &mut part).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            failures = if part.length() > before { 1 } else { failures + 1 };
            if !error.passes() || failures >= ATTEMPTS {
                return Err(error);
            }
            let pause = FIRST_PAUSE * 2_u32.pow(failures - 1);
            tracing::debug!(%error, pause_ms = pause.as_millis(), "a fetch is tried again");
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(&self, order: &Order, part: &mut PartialFile) -> Result<(), FetchError> {
        let resumed = match order.expected {
            Some(expected) if part.length() <= expected.bytes => part.length() > 0,
            _ => {
                part.cut().map_err(|source| disk(part.path(), source))?;
                false
            }
        };
        match order.url.scheme() {
            "http" | "https" => self.download(order, part).await?,
            "file" | "copy" => {
                part.cut().map_err(|source| disk(part.path(), source))?;
                copy(order, part).await?;
                (self.observer)(part.length());
            }
            other => {
                let scheme = other.to_owned();
                return Err(FetchError::Scheme { url: shown(&order.url), scheme });
            }
        }
        if let Some(expected) = order.expected {
            if part.length() != expected.bytes {
                let url = shown(&order.url);
                let found = part.length();
                return Err(FetchError::Length { url, expected: expected.bytes, found });
            }
            let found = examine(part.path()).await?.map(|found| found.sha256);
            if let Some(found) = found.filter(|found| *found != expected.sha256) {
                part.cut().map_err(|source| disk(part.path(), source))?;
                let (url, expected) = (shown(&order.url), expected.sha256);
                return Err(FetchError::Digest { url, expected, found, resumed });
            }
        }
        std::fs::rename(part.path(), &order.to).map_err(|source| disk(&order.to, source))
    }

    /// Who to be at an address that does not say so itself. Other hosts, to which a server
    /// may lead, are told nothing.
    fn login(&self, url: &Url) -> Option<&Login> {
        let is_named = !url.username().is_empty() || url.password().is_some();
        let host = url.host_str().filter(|_| !is_named)?;
        self.logins.find(url.scheme(), host, url.port(), url.path())
    }

    async fn download(&self, order: &Order, part: &mut PartialFile) -> Result<(), FetchError> {
        let url = || shown(&order.url);
        if order.expected.is_some_and(|expected| expected.bytes == part.length()) {
            return Ok(());
        }
        let mut request = self.client.get(order.url.clone());
        if let Some(login) = self.login(&order.url) {
            request = request.basic_auth(&*login.name, Some(&*login.password));
        }
        if part.length() > 0 {
            request = request.header(RANGE, format!("bytes={}-", part.length()));
        }
        let network =
            |error: reqwest::Error| FetchError::Network { url: url(), reason: why(error) };
        let mut response = request.send().await.map_err(network)?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let starts = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
                let wanted = format!("bytes {}-", part.length());
                if !starts.is_some_and(|range| range.starts_with(&wanted)) {
                    part.cut().map_err(|source| disk(part.path(), source))?;
                    let reason = "the server sent another range than asked for".to_owned();
                    return Err(FetchError::Network { url: url(), reason });
                }
            }
            StatusCode::OK => part.cut().map_err(|source| disk(part.path(), source))?,
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                return Err(FetchError::NotFound { url: url() });
            }
            status => {
                if status == StatusCode::RANGE_NOT_SATISFIABLE {
                    part.cut().map_err(|source| disk(part.path(), source))?;
                }
                return Err(FetchError::Status { url: url(), status });
            }
        }
        let limit = order.expected.map_or(order.max_bytes, |expected| expected.bytes);
        while let Some(chunk) = response.chunk().await.map_err(network)? {
            if part.length() + chunk.len() as u64 > limit {
                part.cut().map_err(|source| disk(part.path(), source))?;
                return Err(FetchError::TooLarge { url: url(), limit });
            }
            // Into the page cache: as short as any other step of this task.
            part.append(&chunk).map_err(|source| disk(part.path(), source))?;
            (self.observer)(chunk.len() as u64);
            self.pace.keep(chunk.len() as u64).await;
        }
        Ok(())
    }
}

/// Copies a local file of at most the size that is allowed.
async fn copy(order: &Order, part: &mut PartialFile) -> Result<(), FetchError> {
    let url = shown(&order.url);
    let local = Url::parse(&format!("file:{}", order.url.path()))
        .ok()
        .and_then(|url| url.to_file_path().ok())
        .ok_or_else(|| FetchError::NotFound { url: url.clone() })?;
    let mut file = part.handle().map_err(|source| disk(part.path(), source))?;
    let limit = order.expected.map_or(order.max_bytes, |expected| expected.bytes);
    let copied = tokio::task::spawn_blocking(move || {
        let mut from = std::io::Read::take(File::open(&local)?, limit + 1);
        std::io::copy(&mut from, &mut file)
    });
    match copied.await {
        Ok(Ok(bytes)) if bytes > limit => Err(FetchError::TooLarge { url, limit }),
        Ok(Ok(bytes)) => {
            part.written(bytes);
            Ok(())
        }
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(FetchError::NotFound { url })
        }
        Ok(Err(source)) => Err(disk(part.path(), source)),
        Err(_) => Err(FetchError::Client("a copy did not end".to_owned())),
    }
}

/// Size and digest of a file; `None` where there is none.
async fn examine(path: &Path) -> Result<Option<IndexFile>, FetchError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(disk(path, source)),
    };
    match tokio::task::spawn_blocking(move || Sha256::of_reader(file)).await {
        Ok(Ok((sha256, bytes))) => Ok(Some(IndexFile { sha256, bytes })),
        Ok(Err(source)) => Err(disk(path, source)),
        Err(_) => Err(FetchError::Client("a digest was not computed".to_owned())),
    }
}

fn disk(path: &Path, source: std::io::Error) -> FetchError {
    FetchError::Disk { path: path.to_owned(), source }
}

/// A URL without the credentials that it may hold.
pub fn shown(url: &Url) -> String {
    let mut url = url.clone();
    if !url.username().is_empty() || url.password().is_some() {
        // Only URLs that cannot have credentials refuse this.
        let _has_none = url.set_username("").and_then(|()| url.set_password(None));
    }
    url.into()
}

/// The innermost reason, without the URL.
fn why(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut innermost: &dyn std::error::Error = &error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    match error.is_timeout() {
        true => "the server did not answer in time".to_owned(),
        false => innermost.to_string(),
    }
}
