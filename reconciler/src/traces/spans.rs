//! The spans of traces: which there are, what they say, and what belongs to what.
//!
//! ```text
//! pass                      one a pass; what came of it, the commit
//! ├ fetch                   a look at the remotes
//! ├ trust                   the history, and the signatures of what is new
//! ├ read, mirror, check     only where the commit or a repository has changed
//! ├ plan
//! ├ apply
//! │ ├ seal
//! │ ├ rollout               only where links of rings move
//! │ │ └ template            one a template that moves, as far as CHILDREN go
//! │ └ link                  all declared VAs
//! ├ tell                    the audit log and the state, where there is news
//! └ verify                  one a ring that moved: until its VAs serve it
//! recall                    after a start: the commit that was taken last is read again
//! └ read, mirror, check
//! rollout                   the same between passes; linked to what took the commit
//! ```

use opentelemetry::trace::{SpanContext, Status, TraceContextExt};
use opentelemetry::{Context, Value};
use strata_core::{CompositionName, GenerationId, RingName};
use tracing::Span;
use tracing::field::{Empty, display};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Spans for templates, and for rings, that one pass or step has at most. Its own span says
/// how many there would have been.
pub const CHILDREN: usize = 64;

/// A span of a trace. Its level keeps it out of the log, where it would repeat what is said.
macro_rules! span {
    ($($span:tt)*) => {
        tracing::trace_span!(target: $crate::traces::TARGET, $($span)*)
    };
}
pub(crate) use span;

/// Does a step of a pass in its span, which says whether it failed.
pub fn step<T, E: std::fmt::Display>(
    span: &Span,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let done = span.in_scope(work);
    if let Err(error) = &done {
        span.set_status(Status::error(error.to_string()));
    }
    done
}

/// A place in a trace, for what follows from it later or elsewhere. None where no trace is
/// made.
#[derive(Debug, Clone, Default)]
pub struct Origin(Option<SpanContext>);

impl Origin {
    /// That of a span of a trace.
    pub fn of(span: &Span) -> Self {
        let context = span.context();
        let context = context.span().span_context().clone();
        Origin(Some(context).filter(SpanContext::is_sampled))
    }

    /// Takes another one where this is none.
    pub fn or(&mut self, other: Self) {
        if self.0.is_none() {
            *self = other;
        }
    }

    /// A span for the log alone, which has the ids of the trace.
    pub fn log(&self) -> Span {
        match &self.0 {
            None => Span::none(),
            Some(context) => tracing::info_span!(
                "trace",
                trace_id = %context.trace_id(),
                span_id = %context.span_id(),
            ),
        }
    }
}

/// A pass: its place in a trace, and what its lines in the log begin with.
#[derive(Debug, Clone)]
pub struct Pass {
    trace: Span,
    log: Span,
}

impl Default for Pass {
    fn default() -> Self {
        Self::begin()
    }
}

impl Pass {
    pub fn begin() -> Self {
        let trace = span!(parent: None, "pass", commit = Empty);
        let log = tracing::info_span!(
            target: "strata::pass",
            "pass",
            commit = Empty,
            trace_id = Empty,
            span_id = Empty
        );
        if let Origin(Some(context)) = Origin::of(&trace) {
            log.record("trace_id", display(context.trace_id()));
            log.record("span_id", display(context.span_id()));
        }
        Pass { trace, log }
    }

    /// Does a part of the pass, or of what follows from it at once.
    pub fn in_scope<T>(&self, work: impl FnOnce() -> T) -> T {
        self.trace.in_scope(|| self.log.in_scope(work))
    }

    pub fn origin(&self) -> Origin {
        Origin::of(&self.trace)
    }

    /// The commit that the pass looks at.
    pub fn is_of(&self, commit: &str) {
        self.trace.record("commit", commit);
        self.log.record("commit", display(commit));
    }

    pub fn set(&self, name: &'static str, value: impl Into<Value>) {
        self.trace.set_attribute(name, value);
    }

    pub fn failed(&self, error: &impl std::fmt::Display) {
        self.trace.set_status(Status::error(error.to_string()));
    }
}

/// The moves of links of `templates` templates, of which one or more of a pass or a
/// step. A step between passes names the pass that took the commit.
pub fn rollout(commit: Option<&str>, templates: usize, after: Option<&Origin>) -> Span {
    let span = span!("rollout", commit, templates);
    if let Some(Origin(Some(context))) = after {
        span.add_link(context.clone());
    }
    span
}

/// The moves of links of one template, the `number`th of a rollout.
pub fn template(number: usize, template: &CompositionName, moves: usize) -> Span {
    match number < CHILDREN {
        true => span!("template", %template, moves),
        false => Span::none(),
    }
}

/// The wait until all VAs of a ring serve what it was moved to, the `number`th of what follows
/// from `origin`.
pub fn verify(
    number: usize,
    origin: &Origin,
    (template, ring): (&CompositionName, &RingName),
    generation: GenerationId,
    vas: usize,
) -> Span {
    let Some(context) = origin.0.clone().filter(|_| number < CHILDREN) else {
        return Span::none();
    };
    let span = span!(
        parent: None, "verify", %template, %ring, %generation, vas, in_sync = Empty
    );
    let parent = Context::new().with_remote_span_context(context);
    if let Err(error) = span.set_parent(parent) {
        tracing::debug!(%error, "a span has no parent");
    }
    span
}
