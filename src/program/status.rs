//! When each program is ready, and what it says of itself.

use std::sync::Arc;
use std::time::Duration;

use crate::health::{Health, Part};
use crate::http::Status;
use crate::metrics::Metrics;
use crate::spool::Spool;

/// A visit that was refused longer ago than this is no reason any more to be unready: an unready collector gets
/// no requests, so it could never show that it has recovered.
const REFUSAL_AGE: Duration = Duration::from_secs(10);

/// The status of pixel-http: a broker that is away is a problem only when the spool is nearly full.
pub struct Collector {
    /// What is wrong with which part.
    pub health: Arc<Health>,
    /// Where visits wait.
    pub spool: Arc<Spool>,
}

impl Status for Collector {
    fn problems(&self) -> Vec<String> {
        self.health.lapse(Part::Spool, REFUSAL_AGE);
        // A broker that is away, or a spool that cannot be read, keeps it from its job only when the spool is nearly
        // full.
        let is_nearly_full = self.spool.bytes() >= self.spool.max_bytes() / 10 * 9;
        self.health.problems_but(if is_nearly_full { &[] } else { &[Part::Broker, Part::Backlog] })
    }

    fn state(&self) -> String {
        let waiting = self.health.all().into_iter();
        let waiting = waiting.map(|problem| format!("visits wait in the spool: {problem}\n"));
        std::iter::once("ready\n".to_string()).chain(waiting).collect()
    }

    fn measure(&self, metrics: &Metrics) {
        measure_spool(&self.spool, metrics);
    }
}

/// The status of pixel-storage: standing by is no problem.
pub struct Storage {
    /// What is wrong with which part.
    pub health: Arc<Health>,
}

impl Status for Storage {
    fn problems(&self) -> Vec<String> {
        // Standing by is its job.
        if self.health.stands_by() { Vec::new() } else { self.health.all() }
    }

    fn state(&self) -> String {
        if self.health.stands_by() {
            "standing by: another process writes\n".into()
        } else {
            "ready\n".into()
        }
    }

    fn measure(&self, _: &Metrics) {}
}

/// The status of `pixel`: standing by is a problem, as its output is to be its own.
pub struct Embedded {
    /// What is wrong with which part.
    pub health: Arc<Health>,
    /// Where visits wait.
    pub spool: Arc<Spool>,
}

impl Status for Embedded {
    fn problems(&self) -> Vec<String> {
        self.health.lapse(Part::Spool, REFUSAL_AGE);
        // With a spool of its own, nobody else should write its output.
        let held = self.health.stands_by().then(|| "another process writes to the output".to_string());
        held.into_iter().chain(self.health.all()).collect()
    }

    fn state(&self) -> String {
        "ready\n".into()
    }

    fn measure(&self, metrics: &Metrics) {
        measure_spool(&self.spool, metrics);
    }
}

fn measure_spool(spool: &Spool, metrics: &Metrics) {
    metrics.spool_visits.set(i64::try_from(spool.visits()).unwrap_or(i64::MAX));
    metrics.spool_bytes.set(i64::try_from(spool.bytes()).unwrap_or(i64::MAX));
}
