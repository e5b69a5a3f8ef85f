//! The spans of a visit's way, by OpenTelemetry's semantic conventions.

use std::cell::Cell;
use std::time::SystemTime;

use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, TraceState, Tracer,
};
use opentelemetry::{Context as Surroundings, KeyValue, Value};

use super::context::{Context, LINKS_MAX, state};
use super::tracer::TRACER;

thread_local! {
    /// What this thread works on.
    static CURRENT: Cell<Option<Context>> = const { Cell::new(None) };
}

/// A span that is sampled. It ends when it is dropped.
#[derive(Debug)]
pub struct Span {
    inner: opentelemetry_sdk::trace::Span,
    context: Context,
}

impl Span {
    /// By what others name it.
    pub fn context(&self) -> Context {
        self.context
    }

    /// Notes what is known of it.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.inner.set_attribute(KeyValue::new(key, value));
    }

    /// It did not do what it was to do.
    pub fn fail(&mut self, kind: &str) {
        self.set("error.type", kind.to_string());
        self.inner.set_status(Status::error(""));
    }

    /// A request has got an answer of this status, as in "200 OK".
    pub fn answered(&mut self, status: &str) {
        let code = status.split(' ').next().unwrap_or_default();
        self.set("http.response.status_code", code.parse().unwrap_or(0_i64));
        if code.starts_with('5') {
            self.fail(code);
        }
    }

    /// Adds a part of it that is over already.
    pub fn add(&self, name: &'static str, start: SystemTime, end: SystemTime, has_failed: bool) {
        let builder = SpanBuilder::from_name(name).with_start_time(start);
        if let Some(mut part) = begin(builder, Some(self.context.own())) {
            if has_failed {
                part.fail("_OTHER");
            }
            part.inner.end_with_timestamp(end);
        }
    }
}

/// What this thread works on, as long as this lives.
#[derive(Debug)]
pub struct Entered {
    // It ends with this.
    span: Option<Span>,
    before: Option<Context>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

/// The span that this thread works on.
pub fn current() -> Option<Context> {
    CURRENT.get()
}

/// This thread works on `span`. Parts of it, and lines of the log, know it by that.
pub fn enter(span: Option<Span>) -> Entered {
    let mut entered = within(span.as_ref().map(Span::context));
    entered.span = span;
    entered
}

/// This thread works on `context`, whose span is elsewhere.
pub fn within(context: Option<Context>) -> Entered {
    let before = CURRENT.replace(context.or(CURRENT.get()));
    Entered { span: None, before }
}

/// A part of what this thread works on; nothing where that is not traced.
pub fn step(name: &'static str) -> Entered {
    let parent = CURRENT.get();
    enter(parent.and_then(|parent| begin(SpanBuilder::from_name(name), Some(parent.own()))))
}

/// The span that a request says it belongs to.
#[derive(Debug)]
pub struct Caller {
    context: SpanContext,
    is_trusted: bool,
}

impl Caller {
    /// Of somebody who may say so, with what the `tracestate` headers have.
    pub fn trusted<'a>(context: Context, states: impl Iterator<Item = &'a str>) -> Self {
        Caller { context: context.remote(state(states)), is_trusted: true }
    }

    /// Of anybody.
    pub fn stranger(context: Context) -> Self {
        Caller { context: context.remote(TraceState::NONE), is_trusted: false }
    }
}

/// A request to the pixel at `route`, from when it was taken on, where it is to be sampled. What the client says it
/// belongs to is its parent where the client is trusted, else it is linked: a stranger is not to choose what is
/// sampled, nor to write into somebody's trace.
pub fn request(method: &'static str, route: &str, taken: SystemTime, caller: Option<Caller>) -> Option<Span> {
    TRACER.get()?;
    // Its name is made where it is sampled.
    let mut builder = SpanBuilder::from_name(method).with_kind(SpanKind::Server).with_start_time(taken);
    let mut parent = None;
    match caller {
        Some(caller) if caller.is_trusted => parent = Some(caller.context),
        Some(stranger) => builder = builder.with_links(vec![Link::with_context(stranger.context)]),
        None => {}
    }
    let mut span = begin(builder, parent)?;
    span.inner.update_name(format!("{method} {route}"));
    span.set("http.request.method", method);
    span.set("http.route", route.to_string());
    span.set("url.scheme", "http");
    Some(span)
}

/// A message of `count` visits on its way to `queue`, linked to the sampled `requests` in it; `None` where there are
/// none.
pub fn send<Requests: Iterator<Item = Context>>(
    queue: &str,
    routing_key: &'static str,
    count: u64,
    requests: impl FnOnce() -> Requests,
) -> Option<Span> {
    TRACER.get()?;
    let links = links(requests());
    if links.is_empty() {
        return None;
    }
    let builder =
        SpanBuilder::from_name(format!("send {queue}")).with_kind(SpanKind::Producer).with_links(links);
    let mut span = begin(builder, None)?;
    describe(&mut span, "send", "send", queue);
    span.set("messaging.rabbitmq.destination.routing_key", routing_key);
    span.set("messaging.batch.message_count", i64::try_from(count).unwrap_or(i64::MAX));
    Some(span)
}

/// A batch of `count` messages of `queue`, or of a spool where there is none, linked to the spans that they are of.
pub fn process<Sources: Iterator<Item = Context>>(
    queue: Option<&str>,
    count: usize,
    sources: impl FnOnce() -> Sources,
) -> Option<Span> {
    TRACER.get()?;
    let name = queue.map_or_else(|| "process visits".into(), |queue| format!("process {queue}"));
    let builder = SpanBuilder::from_name(name).with_kind(SpanKind::Consumer).with_links(links(sources()));
    let mut span = begin(builder, None)?;
    if let Some(queue) = queue {
        describe(&mut span, "process", "process", queue);
        span.set("messaging.batch.message_count", i64::try_from(count).unwrap_or(i64::MAX));
    }
    Some(span)
}

/// The part of a batch in which its messages are acknowledged to the broker.
pub fn settle(queue: &str) -> Entered {
    let Some(parent) = CURRENT.get() else { return enter(None) };
    let builder = SpanBuilder::from_name(format!("ack {queue}")).with_kind(SpanKind::Client);
    let mut span = begin(builder, Some(parent.own()));
    if let Some(span) = &mut span {
        describe(span, "ack", "settle", queue);
    }
    enter(span)
}

fn describe(span: &mut Span, operation: &'static str, kind: &'static str, queue: &str) {
    span.set("messaging.system", "rabbitmq");
    span.set("messaging.operation.name", operation);
    span.set("messaging.operation.type", kind);
    span.set("messaging.destination.name", queue.to_string());
}

fn links(contexts: impl IntoIterator<Item = Context>) -> Vec<Link> {
    let links = contexts.into_iter().take(LINKS_MAX);
    links.map(|context| Link::with_context(context.remote(TraceState::NONE))).collect()
}

/// Begins a span below a parent; `None` where it is not sampled.
fn begin(builder: SpanBuilder, parent: Option<SpanContext>) -> Option<Span> {
    let tracer = TRACER.get()?;
    let mut around = Surroundings::new();
    if let Some(parent) = parent {
        around = around.with_remote_span_context(parent);
    }
    let inner = tracer.spans.build_with_context(builder, &around);
    let context = Context::of(inner.span_context());
    inner.is_recording().then_some(Span { inner, context })
}
