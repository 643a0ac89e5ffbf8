//! Traces of what the reconciler does, sent by OTLP over HTTP where the settings say so
//! (`docs/observability.md`, "Traces").
//!
//! A pass is a trace, and each of its steps a span ([`spans`]). They are made with
//! `tracing`, so a step knows nothing of OpenTelemetry; one layer takes those of [`TARGET`]
//! and no others, so a library's spans and log lines never become a part of a trace.
//!
//! **Invariant:** nothing here holds up a pass. A span that has ended goes into a queue of
//! bounded length, from which a thread sends; what does not fit is dropped.
//!
//! **Invariant:** a pass has at most [`spans::CHILDREN`] spans for templates, and one
//! for each other step, however many VAs there are.

mod export;
pub mod spans;
mod switch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use strata_store::Store;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::registry::LookupSpan;

use crate::settings::TracesSettings;
use export::Losses;
use switch::{Switch, Way};

/// The target of all spans that are parts of traces, and of nothing else.
pub const TARGET: &str = "strata::traces";
/// Spans that may wait to be sent.
const QUEUE: usize = 2_048;
/// A span waits so long for others to be sent with.
const GATHER: Duration = Duration::from_secs(2);
/// What still waits at the end is sent within this time, or never.
const FLUSH: Duration = Duration::from_secs(3);

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    #[error("[traces]: no HTTP client: {0}")]
    Client(#[from] reqwest::Error),
    #[error("[traces]: no thread to send from: {0}")]
    Thread(#[from] std::io::Error),
    #[error("[traces]: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Whether and where traces go. There is one in a program, as there is one log.
#[derive(Debug, Clone, Default)]
pub struct Traces {
    on: Arc<AtomicBool>,
    switch: Switch,
}

/// What can send traces as some settings say, not yet used.
#[derive(Debug)]
pub struct Prepared(Option<Way>);

impl Traces {
    /// The layer that makes traces of spans. It is to be a part of the program's
    /// subscriber from the start; until settings are taken it does nothing.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let provider = SdkTracerProvider::builder()
            .with_sampler(self.switch.clone())
            .with_span_processor(self.switch.clone())
            .build();
        let on = self.on.clone();
        let wanted = move |metadata: &tracing::Metadata<'_>| {
            metadata.is_span() && metadata.target() == TARGET && on.load(Ordering::Relaxed)
        };
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("strata"))
            // A span's parent is the one that it was made in, on whichever thread.
            .with_context_activation(false)
            .with_tracked_inactivity(false)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_filter(FilterFn::new(wanted).with_max_level_hint(LevelFilter::TRACE))
    }

    /// Makes ready what the settings say, so that it can be taken without a fault.
    ///
    /// # Errors
    /// It cannot be done on this host.
    pub fn prepare(
        settings: Option<&TracesSettings>,
        store: &Store,
    ) -> Result<Prepared, TracesError> {
        let Some(settings) = settings else { return Ok(Prepared(None)) };
        let losses = Arc::<Losses>::default();
        let exporter = export::exporter(settings, resource(settings, store), losses.clone())?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(QUEUE / 4)
            .with_scheduled_delay(GATHER)
            .build();
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        Ok(Prepared(Some(Way::new(processor, settings.sample, losses))))
    }

    /// Sends to where other settings say from now on; what waits is still sent to where
    /// the former ones said.
    pub fn take(&self, prepared: Prepared) {
        let on = prepared.0.is_some();
        let former = self.switch.turn(prepared.0);
        if self.on.swap(on, Ordering::Relaxed) != on {
            // Whether a span is made is remembered where it is made.
            tracing::callsite::rebuild_interest_cache();
        }
        if let Some(former) = former {
            let name = "traces-flush".to_owned();
            let ended = std::thread::Builder::new().name(name).spawn(move || former.flush(FLUSH));
            if let Err(error) = ended {
                tracing::warn!(%error, "traces that wait to be sent are lost");
            }
        }
    }

    /// Sends what waits, for a few seconds at most, and makes no more traces.
    pub fn end(&self) {
        self.on.store(false, Ordering::Relaxed);
        if let Some(former) = self.switch.turn(None) {
            former.flush(FLUSH);
        }
    }
}

/// What the traces are of.
fn resource(settings: &TracesSettings, store: &Store) -> Resource {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let instance = match &settings.instance {
        Some(instance) => instance.clone(),
        // Several reconcilers of one host have stores of their own.
        None => format!("{host}:{}", store.root().display()),
    };
    let given = settings.attributes.iter();
    let given = given.map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
    Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", instance),
            KeyValue::new("host.name", host),
        ])
        .with_attributes(given)
        .with_service_name(settings.service_name.clone())
        .build()
}
