//! A place that a repository is read from: a web server, an FTP server, a bucket or a
//! directory, through OpenDAL. Nothing is written there.
//!
//! Every wait has an end, and nothing is taken beyond the limit that the caller names.
//! Credentials are read from where `strata.toml` says they are, and stand in no message.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt as _;
use hyper::{Request, Response, StatusCode};
use opendal::layers::TimeoutLayer;
use opendal::services::{Fs, Ftp, Http, S3};
use opendal::{
    Buffer, ErrorKind, HttpBody, HttpTransport, HttpTransporter, OperationContext, Operator,
};
use opendal_http_transport_reqwest::ReqwestTransport;
use rustls::CertificateError;
use strata_core::limits;
use strata_core::remote::{Location, Remote, Scheme};
use zeroize::Zeroizing;

use crate::repositories::secrets::{self, SecretError};
use crate::transfer::{ATTEMPTS, FIRST_PAUSE, Observer, Pace, PartialFile};

/// How long a request may take to be answered.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a server may say nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("the credentials {0}")]
    Credentials(SecretError),
    #[error("{location} cannot be used: {reason}")]
    Location { location: Location, reason: String },
    #[error("`ca-file` {path} cannot be used: {reason}")]
    Certificates { path: PathBuf, reason: String },
    #[error("{what}: the server's certificate is refused: {}", told(.error))]
    Untrusted { what: String, error: CertificateError },
    #[error("{what}: it is not there")]
    NotFound { what: String },
    #[error("{what}: access is denied")]
    Denied { what: String },
    #[error("{what}: {reason}")]
    Network { what: String, reason: String, passes: bool },
    #[error("{what}: it has more than {limit} bytes")]
    TooLarge { what: String, limit: u64 },
    #[error("{what}: {source}")]
    Disk { what: String, source: std::io::Error },
}

impl StorageError {
    /// Whether trying again may help.
    fn passes(&self) -> bool {
        match self {
            StorageError::Network { passes, .. } => *passes,
            StorageError::Credentials(_)
            | StorageError::Location { .. }
            | StorageError::Certificates { .. }
            | StorageError::Untrusted { .. }
            | StorageError::NotFound { .. }
            | StorageError::Denied { .. }
            | StorageError::TooLarge { .. }
            | StorageError::Disk { .. } => false,
        }
    }
}

/// See the module. Clones share connections and pace.
#[derive(Clone)]
pub struct Storage {
    operator: Operator,
    location: Location,
    /// Before every name, with a slash at its end.
    prefix: String,
    secrets: Vec<Zeroizing<String>>,
    pace: Pace,
    observer: Observer,
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Storage").field("location", &self.location).finish_non_exhaustive()
    }
}

impl Storage {
    /// # Errors
    /// The credentials cannot be read, or the location cannot be used.
    pub fn open(remote: &Remote, pace: Pace, observer: Observer) -> Result<Self, StorageError> {
        let location = remote.location.clone();
        // `USER:PASSWORD`, or a token; for S3 `ACCESS-KEY-ID:SECRET-ACCESS-KEY`.
        let secret = remote.credentials.as_ref().map(secrets::read).transpose();
        let secret = secret.map_err(StorageError::Credentials)?;
        let (user, password) = match secret.as_ref().map(|secret| secret.split_once(':')) {
            Some(Some((user, password))) => (user, password),
            Some(None) => ("", secret.as_ref().map_or("", |secret| secret.as_str())),
            None => ("", ""),
        };
        let operator = operator(remote, user, password).map_err(|error| {
            let reason = redacted(why(&error), &[password]);
            StorageError::Location { location: location.clone(), reason }
        })?;
        let timeouts =
            TimeoutLayer::new().with_timeout(ANSWER_TIMEOUT).with_io_timeout(READ_TIMEOUT);
        let prefix = match location.path() {
            "" => String::new(),
            path => format!("{path}/"),
        };
        let secrets = vec![Zeroizing::new(user.to_owned()), Zeroizing::new(password.to_owned())];
        // A client of its own: connections must not outlive the runtime that they are of.
        let mut client = reqwest::Client::builder()
            .user_agent(concat!("strata/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(ANSWER_TIMEOUT)
            // No redirection leads away from it.
            .https_only(location.scheme() == Scheme::Https);
        if let Some(certificates) = &remote.certificates {
            client = client.tls_certs_only(read_certificates(certificates.path())?);
        }
        let client = client.build();
        let client = client.map_err(|error| StorageError::Location {
            location: location.clone(),
            reason: error.to_string(),
        })?;
        let transport = ReqwestTransport::new(client);
        let transport = match location.scheme() {
            Scheme::Http | Scheme::Https => HttpTransporter::new(WebServer(transport)),
            // The errors of S3 are documents that its service reads.
            _ => HttpTransporter::new(transport),
        };
        let context = OperationContext::new().with_http_transport(transport);
        let operator = operator.with_context(context).layer(timeouts);
        Ok(Storage { operator, location, prefix, secrets, pace, observer })
    }

    pub fn location(&self) -> &Location {
        &self.location
    }

    /// A small file, whole; `None` where it is not there.
    ///
    /// # Errors
    /// [`StorageError`], after all attempts.
    pub async fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, StorageError> {
        let mut failures = 0;
        loop {
            let mut bytes = Vec::new();
            let mut take = |chunk: &[u8]| {
                bytes.extend_from_slice(chunk);
                Ok(())
            };
            let read = self.stream(name, 0, limit, &mut take).await;
            let error = match read {
                Ok(()) => return Ok(Some(bytes)),
                Err(StorageError::NotFound { .. }) => return Ok(None),
                Err(error) => error,
            };
            failures += 1;
            pause(error, failures).await?;
        }
    }

    /// Brings what is missing of a file, which ends where the server says that it ends.
    ///
    /// # Errors
    /// [`StorageError`], after all attempts without progress; what has come stays.
    pub async fn fetch(
        &self,
        name: &str,
        part: &mut PartialFile,
        limit: u64,
    ) -> Result<(), StorageError> {
        let mut failures = 0;
        loop {
            let before = part.length();
            let fetched = self.stream(name, before, limit, &mut |chunk| part.append(chunk)).await;
            let error = match fetched {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            failures = if part.length() > before { 1 } else { failures + 1 };
            pause(error, failures).await?;
        }
    }

    /// Hands on what comes of a file from an offset on.
    async fn stream(
        &self,
        name: &str,
        from: u64,
        limit: u64,
        take: &mut (dyn FnMut(&[u8]) -> std::io::Result<()> + Send),
    ) -> Result<(), StorageError> {
        let path = format!("{}{name}", self.prefix);
        let reader = self.operator.reader(&path).await.map_err(|error| self.error(name, &error))?;
        let stream = match from {
            0 => reader.into_stream(..).await,
            from => reader.into_stream(from..).await,
        };
        let mut stream = stream.map_err(|error| self.error(name, &error))?;
        let mut length = from;
        while let Some(buffer) = stream.next().await {
            let buffer = match buffer {
                Ok(buffer) => buffer,
                // All of it has come already.
                Err(error) if from > 0 && error.kind() == ErrorKind::RangeNotSatisfied => {
                    return Ok(());
                }
                Err(error) => return Err(self.error(name, &error)),
            };
            length += buffer.len() as u64;
            if length > limit {
                return Err(StorageError::TooLarge { what: self.what(name), limit });
            }
            let bytes = buffer.len() as u64;
            for chunk in buffer {
                // Into the page cache: as short as any other step of this task.
                take(&chunk)
                    .map_err(|source| StorageError::Disk { what: self.what(name), source })?;
            }
            (self.observer)(bytes);
            self.pace.keep(bytes).await;
        }
        Ok(())
    }

    /// A file as messages name it.
    pub fn what(&self, name: &str) -> String {
        match self.location.path() {
            "" => format!("{}/{name}", self.location.to_string().trim_end_matches('/')),
            _ => format!("{}/{name}", self.location),
        }
    }

    fn error(&self, name: &str, error: &opendal::Error) -> StorageError {
        let what = self.what(name);
        if let Some(error) = untrusted(error) {
            return StorageError::Untrusted { what, error };
        }
        match error.kind() {
            ErrorKind::NotFound => StorageError::NotFound { what },
            ErrorKind::PermissionDenied => StorageError::Denied { what },
            kind => {
                let secrets: Vec<_> = self.secrets.iter().map(|secret| secret.as_str()).collect();
                let reason = redacted(why(error), &secrets);
                let passes = error.is_temporary()
                    || matches!(kind, ErrorKind::Unexpected | ErrorKind::RateLimited);
                StorageError::Network { what, reason, passes }
            }
        }
    }
}

/// Makes plain errors of a web server's answers, which are pages for people.
#[derive(Debug)]
struct WebServer(ReqwestTransport);

impl HttpTransport for WebServer {
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        let response = self.0.fetch(request).await?;
        let status = response.status();
        let kind = match status {
            StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE => return Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::PermissionDenied,
            StatusCode::TOO_MANY_REQUESTS => ErrorKind::RateLimited,
            _ if status.is_success() => return Ok(response),
            _ => ErrorKind::Unexpected,
        };
        Err(opendal::Error::new(kind, format!("the server answers {status}")))
    }
}

/// Waits before the next attempt, or gives the error back.
async fn pause(error: StorageError, failures: u32) -> Result<(), StorageError> {
    if !error.passes() || failures >= ATTEMPTS {
        return Err(error);
    }
    let pause = FIRST_PAUSE * 2_u32.pow(failures - 1);
    tracing::debug!(%error, pause_ms = pause.as_millis(), "a fetch is tried again");
    tokio::time::sleep(pause).await;
    Ok(())
}

fn operator(remote: &Remote, user: &str, password: &str) -> opendal::Result<Operator> {
    let location = &remote.location;
    let authority = location.authority();
    match location.scheme() {
        Scheme::Http | Scheme::Https => {
            let scheme = if location.scheme() == Scheme::Http { "http" } else { "https" };
            let mut builder = Http::default().endpoint(&format!("{scheme}://{authority}"));
            if !user.is_empty() {
                builder = builder.username(user).password(password);
            } else if !password.is_empty() {
                builder = builder.token(password);
            }
            Operator::new(builder)
        }
        Scheme::Ftp => {
            let (user, password) = match user {
                "" => ("anonymous", "strata@"),
                user => (user, password),
            };
            let endpoint = format!("ftp://{authority}");
            // The server's own root: any other OpenDAL would make where it is missing.
            let builder = Ftp::default().endpoint(&endpoint).root("/").user(user);
            Operator::new(builder.password(password))
        }
        Scheme::S3 => {
            let region = remote.region.as_deref().unwrap_or("us-east-1");
            let mut builder = S3::default()
                .bucket(authority)
                .region(region)
                .disable_config_load()
                .disable_ec2_metadata();
            if let Some(endpoint) = &remote.endpoint {
                builder = builder.endpoint(&endpoint.to_string());
            }
            builder = match user {
                "" => builder.skip_signature(),
                user => builder.access_key_id(user).secret_access_key(password),
            };
            Operator::new(builder)
        }
        Scheme::Directory => Operator::new(Fs::default().root("/")),
    }
}

/// The certificates of a file, one at least.
fn read_certificates(path: &Path) -> Result<Vec<reqwest::Certificate>, StorageError> {
    let refuse = |reason| StorageError::Certificates { path: path.to_owned(), reason };
    let mut text = Vec::new();
    // A link is as good as the file: where it is, the operator says.
    let opened = std::fs::File::open(path);
    let read = opened
        .and_then(|file| file.take(limits::CERTIFICATES_BYTES as u64 + 1).read_to_end(&mut text));
    read.map_err(|error| refuse(error.to_string()))?;
    if text.len() > limits::CERTIFICATES_BYTES {
        return Err(refuse(format!("it has more than {} bytes", limits::CERTIFICATES_BYTES)));
    }
    let certificates = reqwest::Certificate::from_pem_bundle(&text)
        .map_err(|error| refuse(format!("a certificate in it is damaged: {error}")))?;
    match certificates.is_empty() {
        true => Err(refuse("there is no certificate in PEM in it".to_owned())),
        false => Ok(certificates),
    }
}

fn told(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => "no authority that is trusted has signed it".to_owned(),
        other => other.to_string(),
    }
}

/// What TLS has against a server's certificate, where that is the reason. Between it and
/// OpenDAL's error are those of several libraries, which hand it on as what it is.
fn untrusted(error: &opendal::Error) -> Option<CertificateError> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidCertificate(reason)) = error.downcast_ref() {
            return Some(reason.clone());
        }
        // The source of an error of input and output is that of the one that it holds.
        let held = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match held {
            Some(held) => Some(held),
            None => error.source(),
        };
    }
    None
}

/// The innermost reason.
fn why(error: &opendal::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let text = innermost.to_string();
    // What OpenDAL itself says comes with its context, of which the last part tells why.
    let text = text.rsplit(" => ").next().unwrap_or(&text);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn redacted(mut text: String, secrets: &[&str]) -> String {
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "…");
    }
    text
}
