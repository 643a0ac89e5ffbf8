//! Where ended spans go, and which traces are made, as the settings that were taken last
//! say: the layer that makes spans stays the same from the start of the program to its end.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use opentelemetry::trace::{Link, SpanKind, TraceId, TraceState};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, Sampler, SamplingDecision, SamplingResult, ShouldSample, Span, SpanData,
    SpanProcessor,
};

use super::export::Losses;

#[derive(Debug, Clone, Default)]
pub(super) struct Switch(Arc<ArcSwapOption<Way>>);

/// One way for spans to go.
#[derive(Debug)]
pub(super) struct Way {
    processor: BatchSpanProcessor,
    sampler: Sampler,
    losses: Arc<Losses>,
}

impl Switch {
    /// Lets spans go another way, or none. Returns the former one.
    pub(super) fn turn(&self, to: Option<Way>) -> Option<Arc<Way>> {
        self.0.swap(to.map(Arc::new))
    }
}

impl Way {
    /// A way on which the part `sample` of all traces is made.
    pub(super) fn new(processor: BatchSpanProcessor, sample: f64, losses: Arc<Losses>) -> Self {
        // What belongs to a trace shares its fate.
        let root = Sampler::TraceIdRatioBased(sample);
        Way { processor, sampler: Sampler::ParentBased(Box::new(root)), losses }
    }

    /// Sends what waits, within a time.
    pub(super) fn flush(&self, within: Duration) {
        match self.processor.shutdown_with_timeout(within) {
            Ok(()) | Err(OTelSdkError::AlreadyShutdown) => {}
            Err(error) => tracing::warn!(%error, "not all traces were sent"),
        }
    }
}

impl SpanProcessor for Switch {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled()
            && let Some(way) = &*self.0.load()
            && way.losses.may_wait()
        {
            way.processor.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.load().as_ref().map_or(Ok(()), |way| way.processor.force_flush())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        let former = self.0.swap(None);
        former.map_or(Ok(()), |way| way.processor.shutdown_with_timeout(timeout))
    }

    /// Each way has its own.
    fn set_resource(&mut self, _resource: &Resource) {}
}

impl ShouldSample for Switch {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        match &*self.0.load() {
            Some(way) => way.sampler.should_sample(parent, trace, name, kind, attributes, links),
            None => SamplingResult {
                decision: SamplingDecision::Drop,
                attributes: Vec::new(),
                trace_state: TraceState::default(),
            },
        }
    }
}
