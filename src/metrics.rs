//! What every part counts. Plain handles, like the logger: whoever counts needs nothing else.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The numbers of one program.
pub struct Metrics {
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
    /// Connections given up with something of theirs still held.
    pub abandoned_connections: Counter,
    /// Connections closed because their client did not read its answers.
    pub stalled_connections: Counter,
    /// Visits in the spool that are not confirmed.
    pub spool_visits: Gauge,
    /// Bytes of journal in the spool.
    pub spool_bytes: Gauge,
    /// Slots of the spool's folder that hold visits and that no process has, but who takes them over.
    pub stranded_slots: Gauge,
    /// The visits in them.
    pub stranded_visits: Gauge,
    /// 1 with a broker, else 0.
    pub broker_connected: Gauge,
    /// From taking a request to having answered it, in seconds.
    pub track_duration: Histogram,
    /// From a visit's `received_at` to its being durable in the output file, in seconds.
    pub age_at_write: Histogram,
    registry: Registry,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Metrics {
            accepted: Counter::default(),
            refused: Counter::default(),
            published: Counter::default(),
            written: Counter::default(),
            duplicate: Counter::default(),
            dead_lettered: Counter::default(),
            dead_lettered_visits: Counter::default(),
            abandoned_connections: Counter::default(),
            stalled_connections: Counter::default(),
            spool_visits: Gauge::default(),
            spool_bytes: Gauge::default(),
            stranded_slots: Gauge::default(),
            stranded_visits: Gauge::default(),
            broker_connected: Gauge::default(),
            track_duration: Histogram::new(exponential_buckets(0.0001, 2.0, 18)),
            age_at_write: Histogram::new(exponential_buckets(0.001, 4.0, 14)),
            registry: Registry::with_prefix("pixel"),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let counters: [(&str, &str, &Counter<u64, AtomicU64>); 9] = [
            ("visits_accepted", "Visits made durable and answered", &self.accepted),
            ("visits_refused", "Visits answered with 503", &self.refused),
            ("visits_published", "Visits confirmed by the broker", &self.published),
            ("visits_written", "Visits durable in the output file", &self.written),
            ("visits_duplicate", "Visits delivered again and dropped", &self.duplicate),
            ("messages_dead_lettered", "Messages that could not be read", &self.dead_lettered),
            ("dead_lettered_visits", "Visits that alone could not be read", &self.dead_lettered_visits),
            ("http_abandoned_connections", "Connections given up and not freed", &self.abandoned_connections),
            ("http_stalled_connections", "Connections whose client did not read", &self.stalled_connections),
        ];
        for (name, help, counter) in counters {
            self.registry.register(name, help, counter.clone());
        }
        for (name, help, gauge) in [
            ("spool_visits", "Visits in the spool", &self.spool_visits),
            ("spool_bytes", "Bytes in the spool", &self.spool_bytes),
            ("spool_stranded_slots", "Slots with visits that no process has", &self.stranded_slots),
            ("spool_stranded_visits", "Visits in slots that no process has", &self.stranded_visits),
            ("broker_connected", "1 with a broker, else 0", &self.broker_connected),
        ] {
            self.registry.register(name, help, gauge.clone());
        }
        for (name, help, histogram) in [
            ("track_duration_seconds", "From taking a request to its answer", &self.track_duration),
            (
                "visit_age_at_write_seconds",
                "From received_at to durable in the output file",
                &self.age_at_write,
            ),
        ] {
            self.registry.register(name, help, histogram.clone());
        }
    }

    /// The numbers as OpenMetrics text, which Prometheus reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("writing to a string cannot fail");
        text
    }
}
