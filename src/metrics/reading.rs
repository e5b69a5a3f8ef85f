//! A gauge that is shown only while its value is known.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// A number that goes up and down, or is not known. Clones share it.
#[derive(Debug, Clone)]
pub struct Reading(Arc<AtomicU64>);

impl Default for Reading {
    fn default() -> Self {
        // A number that is none stands for one that is not known.
        Reading(Arc::new(AtomicU64::new(f64::NAN.to_bits())))
    }
}

impl Reading {
    /// It is this.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    /// It is not known any more.
    pub fn clear(&self) {
        self.set(f64::NAN);
    }

    /// What it is, where that is known.
    pub fn get(&self) -> Option<f64> {
        Some(f64::from_bits(self.0.load(Ordering::Relaxed))).filter(|value| !value.is_nan())
    }
}

/// A reading with its name.
#[derive(Debug)]
pub(super) struct Shown {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    reading: Reading,
}

impl Shown {
    /// A number of what its name says.
    pub(super) fn plain(name: &'static str, help: &'static str, reading: &Reading) -> Self {
        Shown { name, help, unit: None, reading: reading.clone() }
    }

    /// Bytes, which its name is given.
    pub(super) fn bytes(name: &'static str, help: &'static str, reading: &Reading) -> Self {
        Shown { unit: Some(Unit::Bytes), ..Self::plain(name, help, reading) }
    }

    /// Seconds, which its name is given.
    pub(super) fn seconds(name: &'static str, help: &'static str, reading: &Reading) -> Self {
        Shown { unit: Some(Unit::Seconds), ..Self::plain(name, help, reading) }
    }
}

/// Readings, to be shown.
#[derive(Debug)]
pub(super) struct Readings(pub Vec<Shown>);

impl Collector for Readings {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for Shown { name, help, unit, reading } in &self.0 {
            if let Some(value) = reading.get() {
                let gauge = ConstGauge::new(value);
                let help = format!("{help}.");
                gauge.encode(encoder.encode_descriptor(
                    name,
                    &help,
                    unit.as_ref(),
                    gauge.metric_type(),
                )?)?;
            }
        }
        Ok(())
    }
}
