//! What every part counts. Plain handles, like the logger: whoever counts needs nothing else.

mod exposition;
mod history;
mod process;
mod reading;
mod recent;
mod responses;

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

pub use self::history::{History, KEPT_S};
use self::process::ProcessNumbers;
pub use self::reading::Reading;
use self::reading::{Readings, Shown};
pub use self::recent::{RECENT_MAX, Recent};
pub use self::responses::Responses;

/// How late visits reach the output, in seconds: a batch takes some 100 ms, a broker's restart some seconds, an outage
/// as long as it takes.
const AGE_BUCKETS_S: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0];

/// Whose numbers they are: each program shows those that it has to do with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `pixel`: takes visits and writes them.
    Embedded,
    /// pixel-http: takes visits and publishes them.
    Collector,
    /// pixel-storage: consumes visits and writes them.
    Storage,
}

impl Role {
    /// The program's name.
    pub fn program(self) -> &'static str {
        match self {
            Role::Embedded => "pixel",
            Role::Collector => "pixel-http",
            Role::Storage => "pixel-storage",
        }
    }

    /// Whether it takes visits.
    pub fn takes(self) -> bool {
        self != Role::Storage
    }

    /// Whether it writes them.
    pub fn writes(self) -> bool {
        self != Role::Collector
    }

    /// Whether it has a broker.
    pub fn has_broker(self) -> bool {
        self != Role::Embedded
    }
}

/// The numbers of one program.
pub struct Metrics {
    /// Whose they are.
    pub role: Role,
    /// Visits made durable in the spool.
    pub accepted: Counter,
    /// Visits answered with 503.
    pub refused: Counter,
    /// Visits that the broker confirmed.
    pub published: Counter,
    /// Visits durable in the output file.
    pub written: Counter,
    /// Visits delivered again and dropped.
    pub duplicate: Counter,
    /// Messages of which nothing could be read.
    pub dead_lettered: Counter,
    /// Visits that could not be read, of messages of which others could.
    pub dead_lettered_visits: Counter,
    /// Failures to open, write or sync output or ledger, tries again included.
    pub output_errors: Counter,
    /// Connections to the broker but the first.
    pub reconnects: Counter,
    /// Connections given up with something of theirs still held.
    pub abandoned_connections: Counter,
    /// Connections closed because their client did not read its answers.
    pub stalled_connections: Counter,
    /// Spans that the collector of traces took.
    pub spans_exported: Counter,
    /// Spans that it did not take, or not fast enough.
    pub spans_dropped: Counter,
    /// Answers of the public listener, by status.
    pub responses: Responses,
    /// Visits in the spool that are not confirmed.
    pub spool_visits: Reading,
    /// Bytes of journal in the spool.
    pub spool_bytes: Reading,
    /// The most that it may have, in bytes.
    pub spool_max_bytes: Reading,
    /// How old the oldest visit in it is, in seconds; 0 where it is empty.
    pub spool_oldest_age: Reading,
    /// Slots of the spool's folder that hold visits and that no process has, but who takes them over.
    pub stranded_slots: Reading,
    /// The visits in them.
    pub stranded_visits: Reading,
    /// 1 with a broker, else 0.
    pub broker_connected: Reading,
    /// 1 while the broker takes no messages, else 0.
    pub broker_blocked: Reading,
    /// Visits that were sent and are not confirmed.
    pub relay_unconfirmed: Reading,
    /// Messages that are ready in the queue; absent while that cannot be asked.
    pub queue_messages: Reading,
    /// Dead letters in the broker; absent while that cannot be asked.
    pub queue_dead_messages: Reading,
    /// When the oldest visit was received that is delivered and not acknowledged, in Unix seconds.
    pub oldest_delivered: Reading,
    /// The age of that visit, in seconds; 0 where nothing is delivered.
    pub queue_oldest_age: Reading,
    /// 1 while this process has the output, 0 while it stands by or cannot open it.
    pub storage_active: Reading,
    /// When visits were last made durable in the output, in Unix seconds; absent before the first.
    pub last_write: Reading,
    /// When the newest visit in the output was received, in Unix seconds; absent before the first.
    pub newest_written: Reading,
    /// How long the output file is, in bytes.
    pub output_bytes: Reading,
    /// How long its ledger is, in bytes.
    pub ledger_bytes: Reading,
    /// From taking a request to having answered it, in seconds.
    track_duration: HistogramWithExemplars<[(&'static str, String); 1]>,
    /// From a visit's `received_at` to its being durable in the output file, in seconds.
    pub age_at_write: Histogram,
    /// The last visits that came by, for the status page.
    pub recent: Recent,
    /// How many visits came and went in each of the last seconds, for the status page.
    pub history: History,
    /// The numbers of the process itself.
    pub process: ProcessNumbers,
    registry: Registry,
    // Their names are Prometheus' own, without our prefix.
    process_registry: Registry,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::of(Role::Embedded)
    }
}

impl Metrics {
    /// Those of a program that has just started.
    pub fn of(role: Role) -> Self {
        let process = ProcessNumbers::default();
        let mut process_registry = Registry::default();
        process_registry.register_collector(Box::new(process.clone()));
        let mut metrics = Metrics {
            role,
            accepted: Counter::default(),
            refused: Counter::default(),
            published: Counter::default(),
            written: Counter::default(),
            duplicate: Counter::default(),
            dead_lettered: Counter::default(),
            dead_lettered_visits: Counter::default(),
            output_errors: Counter::default(),
            reconnects: Counter::default(),
            abandoned_connections: Counter::default(),
            stalled_connections: Counter::default(),
            spans_exported: Counter::default(),
            spans_dropped: Counter::default(),
            responses: Responses::default(),
            spool_visits: Reading::default(),
            spool_bytes: Reading::default(),
            spool_max_bytes: Reading::default(),
            spool_oldest_age: Reading::default(),
            stranded_slots: Reading::default(),
            stranded_visits: Reading::default(),
            broker_connected: Reading::default(),
            broker_blocked: Reading::default(),
            relay_unconfirmed: Reading::default(),
            queue_messages: Reading::default(),
            queue_dead_messages: Reading::default(),
            oldest_delivered: Reading::default(),
            queue_oldest_age: Reading::default(),
            storage_active: Reading::default(),
            last_write: Reading::default(),
            newest_written: Reading::default(),
            output_bytes: Reading::default(),
            ledger_bytes: Reading::default(),
            track_duration: HistogramWithExemplars::new(exponential_buckets(0.0001, 2.0, 18)),
            age_at_write: Histogram::new(AGE_BUCKETS_S),
            recent: Recent::default(),
            history: History::default(),
            process,
            registry: Registry::with_prefix("pixel"),
            process_registry,
        };
        if role.has_broker() {
            metrics.broker_connected.set(0.0);
        }
        if role == Role::Collector {
            metrics.broker_blocked.set(0.0);
            metrics.relay_unconfirmed.set(0.0);
        }
        if role == Role::Storage {
            metrics.storage_active.set(0.0);
        }
        metrics.register_counters();
        metrics.register_rest();
        metrics
    }

    fn register_counters(&mut self) {
        let role = self.role;
        let (takes, writes) = (role.takes(), role.writes());
        for (is_own, name, help, counter) in [
            (takes, "visits_accepted", "Visits made durable in the spool, and answered so", &self.accepted),
            (takes, "visits_refused", "Visits answered with 503", &self.refused),
            (role == Role::Collector, "visits_published", "Visits confirmed by the broker", &self.published),
            (writes, "visits_written", "Visits durable in the output file", &self.written),
            (writes, "visits_duplicate", "Visits delivered again and dropped", &self.duplicate),
            (
                writes,
                "messages_dead_lettered",
                "Messages of which nothing could be read, set aside whole",
                &self.dead_lettered,
            ),
            (
                writes,
                "dead_lettered_visits",
                "Visits that could not be read, set aside alone",
                &self.dead_lettered_visits,
            ),
            (
                writes,
                "output_errors",
                "Failures to open, write or sync output or ledger, tries again included",
                &self.output_errors,
            ),
            (
                role.has_broker(),
                "broker_reconnects",
                "Connections to the broker but the first",
                &self.reconnects,
            ),
            (true, "trace_spans_exported", "Spans that the collector of traces took", &self.spans_exported),
            (
                true,
                "trace_spans_dropped",
                "Spans that the collector of traces did not take, or not fast enough",
                &self.spans_dropped,
            ),
            (
                true,
                "http_abandoned_connections",
                "Connections given up and not freed",
                &self.abandoned_connections,
            ),
            (
                true,
                "http_stalled_connections",
                "Connections whose client did not read",
                &self.stalled_connections,
            ),
        ] {
            if is_own {
                self.registry.register(name, help, counter.clone());
            }
        }
    }

    fn register_rest(&mut self) {
        let labels =
            vec![("program", self.role.program().to_string()), ("version", env!("CARGO_PKG_VERSION").into())];
        self.registry.register("build", "The program and its version", Info::new(labels));
        if self.role.takes() {
            self.registry.register_with_unit(
                "track_duration",
                "From taking a request to its answer",
                Unit::Seconds,
                self.track_duration.clone(),
            );
            self.registry.register_collector(Box::new(self.responses.clone()));
        }
        if self.role.writes() {
            self.registry.register_with_unit(
                "visit_age_at_write",
                "From received_at to durable in the output file",
                Unit::Seconds,
                self.age_at_write.clone(),
            );
        }
        self.registry.register_collector(Box::new(Readings(vec![
            Shown::plain("spool_visits", "Visits in the spool", &self.spool_visits),
            Shown::bytes("spool", "What the visits in the spool take", &self.spool_bytes),
            Shown::bytes("spool_max", "Past this, visits are refused", &self.spool_max_bytes),
            Shown::seconds(
                "spool_oldest_age",
                "Age of the oldest visit in the spool, 0 where it is empty",
                &self.spool_oldest_age,
            ),
            Shown::plain(
                "spool_stranded_slots",
                "Slots with visits that no process has",
                &self.stranded_slots,
            ),
            Shown::plain(
                "spool_stranded_visits",
                "Visits in slots that no process has",
                &self.stranded_visits,
            ),
            Shown::plain("broker_connected", "1 with a broker, else 0", &self.broker_connected),
            Shown::plain("broker_blocked", "1 while the broker takes no messages", &self.broker_blocked),
            Shown::plain(
                "relay_unconfirmed_visits",
                "Visits sent to the broker and not confirmed",
                &self.relay_unconfirmed,
            ),
            Shown::plain(
                "queue_messages",
                "Messages ready in the queue, without those that are delivered; absent while nobody answers",
                &self.queue_messages,
            ),
            Shown::plain(
                "queue_dead_messages",
                "Dead letters in the broker; absent while nobody answers",
                &self.queue_dead_messages,
            ),
            Shown::seconds(
                "queue_oldest_age",
                "Age of the oldest visit that is delivered and not acknowledged, 0 where there is none",
                &self.queue_oldest_age,
            ),
            Shown::plain(
                "storage_active",
                "1 while this process has the output, 0 while it stands by or cannot open it",
                &self.storage_active,
            ),
            Shown::seconds(
                "output_last_write_timestamp",
                "When visits were last made durable in the output",
                &self.last_write,
            ),
            Shown::bytes("output", "How long the output file is", &self.output_bytes),
            Shown::bytes("ledger", "How long its ledger is", &self.ledger_bytes),
        ])));
    }

    /// Notes how long a visit took, and by which trace it can be looked at, where it is traced.
    pub fn track(&self, duration: Duration, trace_id: Option<String>) {
        self.track_duration.observe(duration.as_secs_f64(), trace_id.map(|id| [("trace_id", id)]), None);
    }

    /// For work beside the program's own: the visits that it publishes count as the program's, and nothing else is
    /// shown.
    pub fn aside(&self) -> Metrics {
        Metrics { published: self.published.clone(), ..Metrics::of(self.role) }
    }

    /// The numbers as OpenMetrics text.
    pub fn open_metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode_registry(&mut text, &self.registry)
            .and_then(|()| prometheus_client::encoding::text::encode(&mut text, &self.process_registry))
            .expect("writing to a string cannot fail");
        text
    }

    /// The same in Prometheus' text format 0.0.4.
    pub fn text(&self) -> String {
        exposition::plain(&self.open_metrics())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_shows_its_own() {
        for (role, own, foreign) in [
            (
                Role::Embedded,
                [
                    "pixel_visits_accepted_total 0",
                    "pixel_visits_written_total 0",
                    "pixel_http_responses_total{",
                ],
                ["pixel_broker_", "pixel_visits_published", "pixel_queue_", "pixel_storage_"],
            ),
            (
                Role::Collector,
                ["pixel_visits_published_total 0", "pixel_broker_blocked 0", "pixel_broker_connected 0"],
                ["pixel_visits_written", "pixel_output_", "pixel_storage_", "age_at_write"],
            ),
            (
                Role::Storage,
                ["pixel_visits_written_total 0", "pixel_storage_active 0", "pixel_broker_connected 0"],
                ["pixel_visits_accepted", "pixel_spool_", "pixel_relay_", "track_duration"],
            ),
        ] {
            let text = Metrics::of(role).text();
            for name in own {
                assert!(text.contains(name), "{role:?} has no {name}:\n{text}");
            }
            for name in foreign {
                assert!(!text.contains(name), "{role:?} has {name}:\n{text}");
            }
            let build = format!("pixel_build_info{{program=\"{}\",version=", role.program());
            assert!(text.contains(&build) && text.contains("process_resident_memory_bytes"), "{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let metrics = Metrics::of(Role::Storage);
        metrics.queue_messages.set(3.0);
        assert!(metrics.text().contains("pixel_queue_messages 3"));
        metrics.queue_messages.clear();
        assert!(!metrics.text().contains("pixel_queue_messages"), "{}", metrics.text());
    }
}
