//! A receiver of OpenTelemetry's: OTLP/HTTP over plain sockets, decoded by the standard's own types.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::metrics::v1::{metric::Data, number_data_point::Value as Number};
use prost::Message;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use super::Outcome;
use super::wait::wait_until;

/// How the receiver treats who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Takes everything.
    Takes,
    /// Takes all spans of a request but one, and says so.
    RejectsOne,
    /// Takes the connection, and says nothing.
    Silent,
    /// Answers with bytes that never end.
    Endless,
    /// Answers with what is no HTTP.
    Garbage,
    /// Refuses with 500.
    Refuses,
    /// Sends elsewhere.
    Redirects,
}

/// A span as it was received.
#[derive(Debug, Clone)]
pub struct Seen {
    pub service: String,
    pub name: String,
    /// 1 internal, 2 server, 3 client, 4 producer, 5 consumer.
    pub kind: i32,
    pub trace: String,
    pub span: String,
    /// Empty for a root.
    pub parent: String,
    /// The `tracestate` that it has.
    pub state: String,
    /// The spans that it is linked to.
    pub links: Vec<String>,
    pub attributes: BTreeMap<String, String>,
    pub start_ns: u64,
    pub end_ns: u64,
    pub has_failed: bool,
}

/// What a receiver has got.
#[derive(Default)]
struct Received {
    spans: Vec<Seen>,
    // Of each family the sum of its numbers, or of its histogram's.
    numbers: BTreeMap<String, f64>,
    // Everything, undecoded, and the heads that it came with.
    bytes: Vec<u8>,
}

/// A receiver that listens as long as the test runs.
pub struct Receiver {
    received: Arc<Mutex<Received>>,
    endpoint: String,
}

impl Receiver {
    pub fn start(manner: Manner) -> Outcome<Receiver> {
        Self::serve("http", move |stream, received| {
            let out = stream.try_clone()?;
            answer(BufReader::new(stream), out, manner, received)
        })
    }

    /// Starts one that is spoken with over TLS, is who `certificates` says, and wants to know who sends.
    pub fn start_with_tls(certificates: &Path) -> Outcome<Receiver> {
        let chain = |name: &str| -> Outcome<Vec<_>> {
            let read = CertificateDer::pem_file_iter(certificates.join(name))?;
            Ok(read.collect::<Result<_, _>>()?)
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(chain("ca.pem")?);
        let provider = Arc::new(ring::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients)
            .with_single_cert(
                chain("server.pem")?,
                PrivateKeyDer::from_pem_file(certificates.join("server.key"))?,
            )?;
        let config = Arc::new(config);
        Self::serve("https", move |stream, received| {
            let connection = ServerConnection::new(config.clone())?;
            let stream = Rc::new(RefCell::new(StreamOwned::new(connection, stream)));
            answer(BufReader::new(Shared(stream.clone())), Shared(stream), Manner::Takes, received)
        })
    }

    fn serve(
        scheme: &str,
        serve: impl Fn(TcpStream, &Mutex<Received>) -> Outcome + Send + Sync + 'static,
    ) -> Outcome<Receiver> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let received = Arc::<Mutex<Received>>::default();
        let (shared, serve) = (received.clone(), Arc::new(serve));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (received, serve) = (shared.clone(), serve.clone());
                // Whoever is cut off has no other use for the error.
                thread::spawn(move || drop(serve(stream, &received)));
            }
        });
        let host = if scheme == "https" { "localhost" } else { "127.0.0.1" };
        Ok(Receiver { received, endpoint: format!("{scheme}://{host}:{port}") })
    }

    /// Where spans are to be sent.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// The spans so far.
    pub fn spans(&self) -> Vec<Seen> {
        self.lock().spans.clone()
    }

    /// The numbers as they were sent last, by their names: of a histogram how many there are.
    pub fn numbers(&self) -> BTreeMap<String, f64> {
        self.lock().numbers.clone()
    }

    /// Whether `text` was among what came, whatever it belongs to.
    pub fn has_seen(&self, text: &str) -> bool {
        self.lock().bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }

    /// Waits until there are spans as wanted.
    pub fn wait_for(&self, what: &str, is_there: impl Fn(&[Seen]) -> bool) -> Outcome<Vec<Seen>> {
        wait_until(what, || is_there(&self.spans()))
            .map_err(|error| format!("{error}\n{}", tree(&self.spans())))?;
        Ok(self.spans())
    }

    /// Waits for a span of this name.
    pub fn wait_for_span(&self, name: &str) -> Outcome<Seen> {
        let spans = self.wait_for(name, |spans| spans.iter().any(|span| span.name == name))?;
        Ok(spans.into_iter().find(|span| span.name == name).ok_or("it was there")?)
    }

    fn lock(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream that is read and written by turns.
struct Shared<S>(Rc<RefCell<S>>);

impl<S: Read> Read for Shared<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.borrow_mut().read(buffer)
    }
}

impl<S: Write> Write for Shared<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.borrow_mut().flush()
    }
}

/// Takes requests until the other side has had enough.
fn answer(
    mut input: impl BufRead,
    mut out: impl Write,
    manner: Manner,
    received: &Mutex<Received>,
) -> Outcome {
    loop {
        let (mut head, mut length) = (String::new(), 0);
        while input.read_line(&mut head)? > 2 && !head.ends_with("\r\n\r\n") {
            let line = head.lines().last().unwrap_or_default().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        if head.is_empty() {
            return Ok(());
        }
        let mut body = vec![0; length];
        input.read_exact(&mut body)?;
        if head.to_ascii_lowercase().contains("\r\ncontent-encoding: gzip\r\n") {
            let compressed = std::mem::take(&mut body);
            GzDecoder::new(&compressed[..]).read_to_end(&mut body)?;
        }
        let answer: &[u8] = match manner {
            Manner::Takes => {
                let mut received = received.lock().unwrap_or_else(PoisonError::into_inner);
                received.bytes.extend_from_slice(head.as_bytes());
                received.bytes.extend_from_slice(&body);
                if head.starts_with("POST /v1/traces ") {
                    received.spans.extend(spans(&ExportTraceServiceRequest::decode(&body[..])?));
                }
                if head.starts_with("POST /v1/metrics ") {
                    received.numbers = numbers(&ExportMetricsServiceRequest::decode(&body[..])?);
                }
                b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n"
            }
            // `partial_success` with one of `rejected_spans`.
            Manner::RejectsOne => b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\x0a\x02\x08\x01",
            Manner::Silent => {
                // Until the other side hangs up.
                input.read_to_end(&mut body)?;
                return Ok(());
            }
            Manner::Endless => {
                out.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
                loop {
                    out.write_all(&[b'x'; 1024])?;
                }
            }
            Manner::Garbage => b"\x00\xff\x16 no HTTP at all \r\n\r\n\x80",
            Manner::Refuses => b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 3\r\n\r\nno\n",
            Manner::Redirects => {
                b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /v1/traces\r\nContent-Length: 0\r\n\r\n"
            }
        };
        out.write_all(answer)?;
        if manner == Manner::Garbage {
            return Ok(());
        }
    }
}

fn spans(request: &ExportTraceServiceRequest) -> Vec<Seen> {
    let mut seen = Vec::new();
    for of_resource in &request.resource_spans {
        let own = of_resource.resource.as_ref().map(|resource| pairs(&resource.attributes));
        let service = own.and_then(|mut own| own.remove("service.name")).unwrap_or_default();
        for span in of_resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
            seen.push(Seen {
                service: service.clone(),
                name: span.name.clone(),
                kind: span.kind,
                trace: hex(&span.trace_id),
                span: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                state: span.trace_state.clone(),
                links: span.links.iter().map(|link| hex(&link.span_id)).collect(),
                attributes: pairs(&span.attributes),
                start_ns: span.start_time_unix_nano,
                end_ns: span.end_time_unix_nano,
                has_failed: span.status.as_ref().is_some_and(|status| status.code == 2),
            });
        }
    }
    seen
}

fn numbers(request: &ExportMetricsServiceRequest) -> BTreeMap<String, f64> {
    let scopes = request.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
    let value = |number: &Option<Number>| match number {
        Some(Number::AsDouble(value)) => *value,
        _ => f64::NAN,
    };
    let metrics = scopes.flat_map(|scope| &scope.metrics).map(|metric| {
        let number = match &metric.data {
            Some(Data::Gauge(gauge)) => gauge.data_points.iter().map(|point| value(&point.value)).sum(),
            Some(Data::Sum(sum)) => sum.data_points.iter().map(|point| value(&point.value)).sum(),
            Some(Data::Histogram(all)) => all.data_points.iter().map(|point| point.count as f64).sum(),
            _ => f64::NAN,
        };
        (metric.name.clone(), number)
    });
    metrics.collect()
}

fn pairs(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let value = |pair: &KeyValue| Some(text(pair.value.as_ref()?.value.as_ref()?));
    attributes.iter().filter_map(|pair| Some((pair.key.clone(), value(pair)?))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The spans as a tree: below each its parts, and then the spans that are linked to it, after an arrow.
pub fn tree(spans: &[Seen]) -> String {
    let mut text = String::new();
    let mut spans: Vec<&Seen> = spans.iter().collect();
    spans.sort_by_key(|span| span.start_ns);
    let is_below =
        |span: &Seen| spans.iter().any(|other| other.span == span.parent || span.links.contains(&other.span));
    for root in spans.iter().filter(|span| !is_below(span)) {
        show(root, &spans, 0, "", &mut text);
    }
    text
}

fn show(span: &Seen, all: &[&Seen], depth: usize, arrow: &str, text: &mut String) {
    let Seen { name, service, start_ns, end_ns, .. } = span;
    let indent = "  ".repeat(depth);
    let ms = end_ns.saturating_sub(*start_ns) as f64 / 1e6;
    writeln!(text, "{indent}{arrow}{name} ({service}, {ms:.1} ms)").expect("writing to memory cannot fail");
    for part in all.iter().filter(|other| other.parent == span.span) {
        show(part, all, depth + 1, "", text);
    }
    for linked in all.iter().filter(|other| other.links.contains(&span.span)) {
        show(linked, all, depth + 1, "⇠ ", text);
    }
}
