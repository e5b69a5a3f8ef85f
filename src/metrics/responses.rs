//! Answers by status: a counter for each that Pixel gives, as looking one up would take a lock for each visit.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

/// Every status that there is.
const CODES: [&str; 9] = ["200", "204", "400", "404", "405", "413", "500", "501", "503"];

/// How many answers had which status. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Responses(Arc<[AtomicU64; CODES.len()]>);

impl Responses {
    /// Counts `count` answers whose status line begins with `status`.
    pub fn add(&self, status: &str, count: u64) {
        if let Some(place) = CODES.iter().position(|code| status.starts_with(code)) {
            self.0[place].fetch_add(count, Ordering::Relaxed);
        }
    }
}

impl Collector for Responses {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Answers of the public listener.";
        let mut family = encoder.encode_descriptor("http_responses", help, None, MetricType::Counter)?;
        for (code, count) in CODES.iter().zip(self.0.iter()) {
            let labels = [("code", *code)];
            ConstCounter::new(count.load(Ordering::Relaxed)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
