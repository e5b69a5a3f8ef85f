//! When each program is ready, and what it says of itself.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;

use super::options::shown;
use crate::health::{Health, Part};
use crate::http::Status;
use crate::metrics::{Metrics, Reading};
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
    /// What is written to.
    pub files: OutputFiles,
}

impl Status for Storage {
    fn output(&self) -> Option<String> {
        self.files.name()
    }

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

    fn measure(&self, metrics: &Metrics) {
        self.files.measure(metrics);
        metrics.queue_oldest_age.set(metrics.oldest_delivered.get().map_or(0.0, seconds_since));
    }
}

/// The status of `pixel`: standing by is a problem, as its output is to be its own.
pub struct Embedded {
    /// What is wrong with which part.
    pub health: Arc<Health>,
    /// Where visits wait.
    pub spool: Arc<Spool>,
    /// What is written to.
    pub files: OutputFiles,
}

impl Status for Embedded {
    fn output(&self) -> Option<String> {
        self.files.name()
    }

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
        self.files.measure(metrics);
    }
}

fn measure_spool(spool: &Spool, metrics: &Metrics) {
    metrics.spool_visits.set(spool.visits() as f64);
    metrics.spool_bytes.set(spool.bytes() as f64);
    metrics.spool_max_bytes.set(spool.max_bytes() as f64);
    let oldest = spool.oldest_received_at().map(|time| time.as_microsecond() as f64 / 1e6);
    match oldest.map(seconds_since) {
        Some(age) => metrics.spool_oldest_age.set(age),
        None if spool.visits() == 0 => metrics.spool_oldest_age.set(0.0),
        // The disk does not give it out.
        None => metrics.spool_oldest_age.clear(),
    }
}

/// How many seconds ago it was, in Unix seconds.
fn seconds_since(time: f64) -> f64 {
    (Timestamp::now().as_microsecond() as f64 / 1e6 - time).max(0.0)
}

/// The outputs that may be written, each with its ledger, and which of them is.
#[derive(Debug, Clone)]
pub struct OutputFiles {
    pub(super) files: Vec<(Option<PathBuf>, PathBuf)>,
    pub(super) active: Arc<OnceLock<usize>>,
}

impl OutputFiles {
    /// The one that is written, or will be; `None` while it may be any of several.
    fn one(&self) -> Option<&(Option<PathBuf>, PathBuf)> {
        match self.files.as_slice() {
            [only] => Some(only),
            several => several.get(*self.active.get()?),
        }
    }

    fn name(&self) -> Option<String> {
        self.one().map(|(path, _)| shown(path.as_deref()))
    }

    fn measure(&self, metrics: &Metrics) {
        let measure = |path: &PathBuf, reading: &Reading| match fs::metadata(path) {
            Ok(metadata) => reading.set(metadata.len() as f64),
            Err(_) => reading.clear(),
        };
        if let Some((path, ledger)) = self.one() {
            path.iter().for_each(|path| measure(path, &metrics.output_bytes));
            measure(ledger, &metrics.ledger_bytes);
        }
    }
}
