//! The tracer of this process: started once, ended with it.

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use super::export::{Counts, processor};
use super::resource::resource;
use super::settings::Settings;

/// How long a program that ends waits for its last spans to be sent.
const LAST_SPANS_MAX: Duration = Duration::from_secs(2);

pub(super) static TRACER: OnceLock<Tracer> = OnceLock::new();

/// What makes spans, and what sends them.
pub(super) struct Tracer {
    pub(super) spans: SdkTracer,
    provider: SdkTracerProvider,
}

/// Starts tracing, as the environment says; does nothing where it names no endpoint. Once for each process.
///
/// # Errors
/// Why spans cannot be sent.
pub fn start(settings: &Settings, program: &'static str, counts: Counts) -> Result<(), String> {
    if !settings.without_effect.is_empty() {
        let names = settings.without_effect.join(", ");
        log::warn!("nothing goes by {names}: those that count are in docs/OPERATIONS.md, under Traces");
    }
    let Some(traces) = &settings.traces else { return Ok(()) };
    let resource = resource(program, settings.is_named);
    let provider = SdkTracerProvider::builder()
        .with_sampler(traces.sampling.clone())
        .with_span_processor(processor(traces, counts)?)
        .with_resource(resource)
        .build();
    let spans = provider.tracer("pixel");
    if TRACER.set(Tracer { spans, provider }).is_ok() {
        log::info!("sending traces to {}, sampled {}", traces.address.shown, traces.sampling);
    }
    Ok(())
}

/// Sends what spans are left, but does not wait for that for long.
pub fn finish() {
    if let Some(tracer) = TRACER.get() {
        // Who could not be sent to has been said in the log.
        let _ = tracer.provider.shutdown_with_timeout(LAST_SPANS_MAX);
    }
}

/// Whether spans are made.
pub fn is_on() -> bool {
    TRACER.get().is_some()
}
