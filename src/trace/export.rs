//! Spans on their way to the collector: a bounded queue, a thread, an HTTP client that gives up in time.
//!
//! The queue and the thread are the SDK's. It tells nobody what it drops, so what goes in and comes out is counted
//! here, and nothing is handed to it that it would drop.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::Context as Surroundings;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor,
};
use prometheus_client::metrics::counter::Counter;
use prost::Message;

use super::complaint::Complaint;
use super::settings::Traces;

/// The most that is read of a collector's answer, in bytes: it says how many spans it rejects, and why.
const ANSWER_MAX_BYTES: u64 = 64 << 10;

/// What became of spans.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Taken by the collector.
    pub exported: Counter,
    /// Dropped, as the collector did not take them, or not fast enough.
    pub dropped: Counter,
}

/// Where ended spans go.
///
/// # Errors
/// Why none can be sent.
pub(super) fn processor(traces: &Traces, counts: Counts) -> Result<Counting, String> {
    let last = Arc::new(Last::default());
    let client = Client { agent: traces.address.agent.clone(), last: last.clone() };
    // What the SDK reads of the environment by itself, it reads by other rules.
    let exporter = OtlpExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_endpoint(traces.address.url.clone())
        .with_headers(traces.address.headers.iter().cloned().collect())
        .build()
        // It may say the whole address, with a password in it.
        .map_err(|error| error.to_string().replace(&traces.address.url, &traces.address.shown))?;
    let queued = Arc::new(AtomicUsize::new(0));
    let exporter = CountingExporter {
        exporter,
        queued: queued.clone(),
        last,
        counts: counts.clone(),
        complaint: Complaint::default(),
        shown: traces.address.shown.clone(),
    };
    let config = BatchConfigBuilder::default()
        .with_max_queue_size(traces.queue_max)
        .with_max_export_batch_size(traces.batch_max)
        .with_scheduled_delay(traces.delay)
        .build();
    let batches = BatchSpanProcessor::builder(exporter).with_batch_config(config).build();
    Ok(Counting { batches, queued, queue_max: traces.queue_max, dropped: counts.dropped })
}

/// The SDK's processor, with nothing handed to it that it would drop.
#[derive(Debug)]
pub(super) struct Counting {
    batches: BatchSpanProcessor,
    // Those that the exporter has not taken yet.
    queued: Arc<AtomicUsize>,
    queue_max: usize,
    dropped: Counter,
}

impl SpanProcessor for Counting {
    fn on_start(&self, span: &mut Span, around: &Surroundings) {
        self.batches.on_start(span, around);
    }

    fn on_end(&self, span: SpanData) {
        if self.queued.fetch_add(1, Ordering::Relaxed) < self.queue_max {
            self.batches.on_end(span);
        } else {
            self.queued.fetch_sub(1, Ordering::Relaxed);
            self.dropped.inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// How the last request ended, as far as the OTLP exporter does not tell.
#[derive(Debug, Default)]
struct Last {
    // The spans that the collector did not take.
    rejected: AtomicU64,
    // Why there was no answer: the exporter says "network error" of everything.
    trouble: Mutex<Option<String>>,
}

impl Last {
    fn trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The OTLP exporter, with what becomes of its spans counted, and said in the log.
#[derive(Debug)]
struct CountingExporter {
    exporter: OtlpExporter,
    queued: Arc<AtomicUsize>,
    last: Arc<Last>,
    counts: Counts,
    complaint: Complaint,
    shown: String,
}

impl CountingExporter {
    fn note(&self, outcome: &OTelSdkResult) {
        match outcome {
            Ok(()) if self.complaint.is_over() => log::info!("{} takes traces again", self.shown),
            Err(error) if self.complaint.is_due() => {
                let reason = self.last.trouble().take().unwrap_or_else(|| error.to_string());
                log::warn!(
                    "failed to send traces to {}: {reason}; visits go on, spans are dropped",
                    self.shown
                );
            }
            _ => {}
        }
    }
}

impl SpanExporter for CountingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len() as u64;
        self.queued.fetch_sub(batch.len(), Ordering::Relaxed);
        let outcome = self.exporter.export(batch).await;
        let rejected = self.last.rejected.swap(0, Ordering::Relaxed);
        let dropped = if outcome.is_ok() { rejected.min(count) } else { count };
        self.counts.dropped.inc_by(dropped);
        self.counts.exported.inc_by(count - dropped);
        self.note(&outcome);
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Sends requests, one at a time, on the thread that asks: the one of the exports.
struct Client {
    agent: ureq::Agent,
    last: Arc<Last>,
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Client")
    }
}

impl Client {
    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ureq::Error> {
        let (head, body) = request.into_parts();
        let (head, mut body) = self.agent.run(Request::from_parts(head, &body[..]))?.into_parts();
        let body = body.with_config().limit(ANSWER_MAX_BYTES).read_to_vec()?;
        // OTLP: it may take the rest. What is no such answer says nothing.
        let answer = ExportTraceServiceResponse::decode(&body[..]).unwrap_or_default();
        let rejected = answer.partial_success.map_or(0, |partly| partly.rejected_spans);
        self.last.rejected.store(u64::try_from(rejected).unwrap_or(0), Ordering::Relaxed);
        Ok(Response::from_parts(head, body.into()))
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = self.send(request);
        *self.last.trouble() = sent.as_ref().err().map(ToString::to_string);
        Ok(sent?)
    }
}
