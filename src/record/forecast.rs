//! What would become of messages, without anything being done to them.

use std::collections::BTreeMap;
use std::fmt;

use super::plan::Plan;
use super::ports::Delivered;
use super::state::Written;
use crate::visit::lines::LineFormat;

/// How many reasons are told apart.
const REASONS_MAX: usize = 20;
/// How many of what cannot be read are shown.
const EXAMPLES_MAX: usize = 5;

/// Counts what a recorder would do.
#[derive(Debug, Default)]
pub struct Forecast {
    written: Written,
    new: u64,
    duplicates: u64,
    dead: BTreeMap<String, u64>,
    examples: Vec<String>,
}

impl Forecast {
    /// Where `written` is written already.
    pub fn new(written: Written) -> Self {
        Forecast { written, ..Forecast::default() }
    }

    /// Adds what would become of `batch`.
    pub fn add(&mut self, batch: &[Delivered]) {
        let plan = Plan::of(batch, LineFormat::Pipe, Vec::new(), &self.written);
        self.written.apply(&plan.entry);
        self.new += plan.times.len() as u64;
        self.duplicates += plan.entry.duplicates();
        for letter in plan.dead {
            if self.examples.len() < EXAMPLES_MAX {
                self.examples.push(letter.to_string());
            }
            // Where in its line it is wrong differs from letter to letter.
            let reason = letter.reason.0.split(" at line ").next().unwrap_or_default();
            let is_room = self.dead.len() < REASONS_MAX || self.dead.contains_key(reason);
            *self.dead.entry(if is_room { reason } else { "another reason" }.to_string()).or_default() += 1;
        }
    }
}

impl fmt::Display for Forecast {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{} visits can be read", self.new)?;
        if self.duplicates > 0 {
            writeln!(formatter, "{} visits are repetitions", self.duplicates)?;
        }
        writeln!(formatter, "{} dead letters still cannot be read", self.dead.values().sum::<u64>())?;
        for (reason, count) in &self.dead {
            writeln!(formatter, "  {count}: {reason}")?;
        }
        if !self.examples.is_empty() {
            writeln!(formatter, "the first of them:")?;
        }
        self.examples.iter().try_for_each(|example| writeln!(formatter, "  {example}"))
    }
}
