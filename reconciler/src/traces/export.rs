//! Sends spans by OTLP over HTTP, from the thread on which batches are gathered.
//!
//! A collector that cannot be reached is told once, and once more when it can be reached
//! again. Headers are read when they are used, as all secrets are, and no message shows them.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as Export};
use prost::Message as _;
use reqwest::header::{HeaderName, HeaderValue};
use strata_core::printable::printable;
use tokio::runtime::Runtime;

use super::{QUEUE, TracesError};
use crate::secret::SecretReference;
use crate::settings::TracesSettings;

/// A batch is given up after this time, repetitions included.
const WHOLE: Duration = Duration::from_secs(10);
/// Of what a collector answers, so much is kept.
const ANSWER_BYTES: usize = 64 << 10;

/// What sends to where the settings say.
///
/// # Errors
/// There is no thread to be had, or the certificates of the system cannot be used.
pub(super) fn exporter(
    settings: &TracesSettings,
    resource: Resource,
    losses: Arc<Losses>,
) -> Result<Exporter, TracesError> {
    let last = Arc::new(Mutex::new(None));
    let client = Client {
        client: crate::telling::http_client()?,
        runtime: Some(tokio::runtime::Builder::new_current_thread().enable_all().build()?),
        headers: settings.headers.clone(),
        last: last.clone(),
    };
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_endpoint(settings.endpoint.clone())
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(WHOLE)
        .build()?;
    exporter.set_resource(&resource);
    Ok(Exporter { exporter, last, losses })
}

/// How many spans wait, and how many were lost since one was sent. Losses are told when they
/// begin and when they end.
#[derive(Debug, Default)]
pub(super) struct Losses {
    waiting: AtomicUsize,
    lost: AtomicU64,
}

impl Losses {
    /// Whether one more span may wait. One that may not is lost.
    pub(super) fn may_wait(&self) -> bool {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        if before < QUEUE {
            return true;
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.lose(1, "too many spans wait to be sent");
        false
    }

    fn lose(&self, count: u64, why: &str) {
        if self.lost.fetch_add(count, Ordering::Relaxed) == 0 {
            tracing::warn!(why, "traces cannot be sent, and are lost until they can");
        }
    }

    fn sent(&self) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::info!(lost, "traces are sent again");
        }
    }
}

/// Sends, and tells how that went.
#[derive(Debug)]
pub(super) struct Exporter {
    exporter: SpanExporter,
    /// Why the last request failed.
    last: Arc<Mutex<Option<String>>>,
    losses: Arc<Losses>,
}

impl Export for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        self.losses.waiting.fetch_sub(count, Ordering::Relaxed);
        let sent = self.exporter.export(batch).await;
        let why = self.last.lock().unwrap_or_else(PoisonError::into_inner).take();
        match why.or_else(|| sent.as_ref().err().map(ToString::to_string)) {
            None => self.losses.sent(),
            Some(why) => self.losses.lose(count as u64, &why),
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// A client with a runtime of its own: it is asked on a thread that has none, also
/// while the main loop ends.
struct Client {
    client: reqwest::Client,
    /// Always there; taken when it ends.
    runtime: Option<Runtime>,
    headers: Vec<(HeaderName, SecretReference)>,
    last: Arc<Mutex<Option<String>>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Which waits for nothing, so that it may happen anywhere.
            runtime.shutdown_background();
        }
    }
}

#[async_trait]
impl HttpClient for Client {
    /// Blocks: the thread that asks has nothing else to do.
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = self.send(request);
        let why = match &sent {
            Ok(answer) if answer.status().is_success() => refused(answer.body()),
            Ok(answer) => Some(format!("the collector answered {}", answer.status())),
            Err(error) => Some(error.to_string()),
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = why;
        sent
    }
}

impl Client {
    fn send(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        for (name, reference) in &self.headers {
            let mut value = HeaderValue::from_str(reference.read()?.expose())
                .map_err(|_| format!("the value of the header {name} is none"))?;
            value.set_sensitive(true);
            request.headers_mut().insert(name.clone(), value);
        }
        let mut request: reqwest::Request = request.try_into()?;
        *request.timeout_mut() = Some(WHOLE);
        let runtime = self.runtime.as_ref().ok_or("it has ended")?;
        runtime.block_on(self.exchange(request))
    }

    async fn exchange(&self, request: reqwest::Request) -> Result<Response<Bytes>, HttpError> {
        let mut answer = self.client.execute(request).await.map_err(cause)?;
        let mut response = Response::builder().status(answer.status());
        if let Some(headers) = response.headers_mut() {
            *headers = std::mem::take(answer.headers_mut());
        }
        let mut body = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(cause)? {
            body.extend_from_slice(&part);
            if body.len() > ANSWER_BYTES {
                return Err("the collector's answer is too large".into());
            }
        }
        Ok(response.body(Bytes::from(body))?)
    }
}

/// What a collector that took a request did not take of it.
fn refused(answer: &[u8]) -> Option<String> {
    // One that answers something else has taken it.
    let answer = ExportTraceServiceResponse::decode(answer).ok()?;
    let partial = answer.partial_success.filter(|partial| partial.rejected_spans > 0)?;
    let said: String = partial.error_message.chars().take(200).collect();
    let said = printable(&said);
    Some(format!("the collector refused {} spans: {said}", partial.rejected_spans))
}

/// What an error comes from, without the address.
fn cause(error: reqwest::Error) -> HttpError {
    crate::telling::cause(error).into()
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;

    use super::*;

    #[test]
    fn no_more_spans_wait_than_may() {
        let losses = Losses::default();
        let waiting = (0..QUEUE + 5).filter(|_| losses.may_wait()).count();
        assert_eq!((waiting, losses.lost.load(Ordering::Relaxed)), (QUEUE, 5));
        losses.waiting.fetch_sub(1, Ordering::Relaxed);
        assert!(losses.may_wait() && !losses.may_wait());
        losses.sent();
        assert_eq!(losses.lost.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_a_collector_refuses_is_no_success() {
        let answer = |rejected_spans| {
            let error_message = "too\nmany".to_owned();
            let partial = ExportTracePartialSuccess { rejected_spans, error_message };
            let answer = ExportTraceServiceResponse { partial_success: Some(partial) };
            refused(&answer.encode_to_vec())
        };
        assert_eq!(answer(0), None);
        assert_eq!(answer(3).as_deref(), Some("the collector refused 3 spans: too\\nmany"));
        assert_eq!(refused(b""), None);
        assert_eq!(refused(b"ok"), None);
    }
}
