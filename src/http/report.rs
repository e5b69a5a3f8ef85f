//! What a program says of itself as JSON: for its status page, and for `pixel status`.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::Serialize;

use crate::metrics::{Metrics, Role};
use crate::visit::Visit;

/// How a program stands.
pub trait Status: Send + Sync {
    /// Why it cannot do its job right now; empty when it can.
    fn problems(&self) -> Vec<String>;
    /// What `/readyz` says when there is no problem, in whole lines.
    fn state(&self) -> String;
    /// The file that it writes, where it is known.
    fn output(&self) -> Option<String> {
        None
    }
    /// Brings the gauges up to date that nobody sets as things happen.
    fn measure(&self, metrics: &Metrics);
}

/// What does not change while a program runs, as far as it has it.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Facts {
    /// Where the pixel is: `http://127.0.0.1:8080/track`.
    pub pixel: Option<String>,
    /// The brokers, without passwords.
    pub broker: Option<String>,
    /// The queue there.
    pub queue: Option<String>,
    /// The spool's folder.
    pub spool: Option<String>,
}

/// The state of one program at one moment. What it does not have, or what is not known, is null.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    program: &'static str,
    version: &'static str,
    /// Unix seconds.
    now: f64,
    /// Unix seconds.
    started_at: f64,
    is_ready: bool,
    /// What `/readyz` says, a line each.
    state: Vec<String>,
    #[serde(flatten)]
    facts: &'a Facts,
    /// The output file.
    output: Option<String>,
    totals: Totals,
    waiting: Waiting,
    broker_state: Option<BrokerState>,
    output_state: Option<OutputState>,
    /// Visits in each of the last seconds, oldest first: that came, and that went on (published, or written).
    per_second: PerSecond,
    /// Newest first. Null where the page was not asked for by address: see [`shows_visits`].
    last_visits: Option<Vec<serde_json::Value>>,
}

#[derive(Serialize)]
struct Totals {
    accepted: Option<u64>,
    refused: Option<u64>,
    published: Option<u64>,
    written: Option<u64>,
    duplicate: Option<u64>,
    dead_lettered_messages: Option<u64>,
    dead_lettered_visits: Option<u64>,
}

#[derive(Serialize)]
struct Waiting {
    spool_visits: Option<f64>,
    spool_bytes: Option<f64>,
    spool_max_bytes: Option<f64>,
    spool_oldest_age_s: Option<f64>,
    stranded_slots: Option<f64>,
    stranded_visits: Option<f64>,
    unconfirmed_visits: Option<f64>,
    queue_messages: Option<f64>,
    queue_oldest_age_s: Option<f64>,
    dead_messages: Option<f64>,
}

#[derive(Serialize)]
struct BrokerState {
    is_connected: bool,
    is_blocked: bool,
    reconnects: u64,
}

#[derive(Serialize)]
struct OutputState {
    /// Whether this process may write to it; null where nobody else ever does.
    is_active: Option<bool>,
    bytes: Option<f64>,
    ledger_bytes: Option<f64>,
    errors: u64,
    last_write_at: Option<f64>,
    newest_written_age_s: Option<f64>,
}

#[derive(Serialize)]
struct PerSecond {
    came: Vec<u64>,
    went: Vec<u64>,
}

/// The report, as JSON.
pub(super) fn report(metrics: &Metrics, status: &dyn Status, facts: &Facts, shows_visits: bool) -> String {
    status.measure(metrics);
    let role = metrics.role;
    let now = Timestamp::now().as_microsecond() as f64 / 1e6;
    let problems = status.problems();
    let is_ready = problems.is_empty();
    let state = if is_ready { status.state().lines().map(str::to_string).collect() } else { problems };
    let of = |is_own: bool, count: u64| is_own.then_some(count);
    let [came, went] = metrics.history.seconds();
    let report = Report {
        program: role.program(),
        version: env!("CARGO_PKG_VERSION"),
        now,
        started_at: metrics.process.started_at_s(),
        is_ready,
        state,
        facts,
        output: status.output(),
        totals: Totals {
            accepted: of(role.takes(), metrics.accepted.get()),
            refused: of(role.takes(), metrics.refused.get()),
            published: of(role == Role::Collector, metrics.published.get()),
            written: of(role.writes(), metrics.written.get()),
            duplicate: of(role.writes(), metrics.duplicate.get()),
            dead_lettered_messages: of(role.writes(), metrics.dead_lettered.get()),
            dead_lettered_visits: of(role.writes(), metrics.dead_lettered_visits.get()),
        },
        waiting: Waiting {
            spool_visits: metrics.spool_visits.get(),
            spool_bytes: metrics.spool_bytes.get(),
            spool_max_bytes: metrics.spool_max_bytes.get(),
            spool_oldest_age_s: metrics.spool_oldest_age.get(),
            stranded_slots: metrics.stranded_slots.get(),
            stranded_visits: metrics.stranded_visits.get(),
            unconfirmed_visits: metrics.relay_unconfirmed.get(),
            queue_messages: metrics.queue_messages.get(),
            queue_oldest_age_s: metrics.queue_oldest_age.get(),
            dead_messages: metrics.queue_dead_messages.get(),
        },
        broker_state: role.has_broker().then(|| BrokerState {
            is_connected: metrics.broker_connected.get() == Some(1.0),
            is_blocked: metrics.broker_blocked.get() == Some(1.0),
            reconnects: metrics.reconnects.get(),
        }),
        output_state: role.writes().then(|| OutputState {
            is_active: metrics.storage_active.get().map(|active| active == 1.0),
            bytes: metrics.output_bytes.get(),
            ledger_bytes: metrics.ledger_bytes.get(),
            errors: metrics.output_errors.get(),
            last_write_at: metrics.last_write.get(),
            newest_written_age_s: metrics.newest_written.get().map(|newest| (now - newest).max(0.0)),
        }),
        per_second: PerSecond { came, went },
        last_visits: shows_visits.then(|| last_visits(metrics)),
    };
    serde_json::to_string(&report).expect("it has no keys but texts")
}

fn last_visits(metrics: &Metrics) -> Vec<serde_json::Value> {
    let lines = metrics.recent.lines();
    // What cannot be read is among the dead letters.
    let visits = lines.iter().filter_map(|line| {
        let visit: Visit<'_> = serde_json::from_slice(line).ok()?;
        serde_json::to_value(&visit).ok()
    });
    visits.collect()
}

/// Whether visits may be shown to who asked for `host`: an address, localhost, or a name without a dot. A site that an
/// operator happens to look at could have its own name resolve to this machine (DNS rebinding), and read along.
pub(super) fn shows_visits(host: Option<&str>) -> bool {
    let Some(host) = host else { return true };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.parse::<IpAddr>().is_ok() || !name.is_empty() && !name.contains('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visits_are_shown_to_who_asks_by_address_or_local_name() {
        for (host, shown) in [
            (None, true),
            (Some("127.0.0.1:8081"), true),
            (Some("192.168.1.5"), true),
            (Some("[::1]:8081"), true),
            (Some("localhost:8081"), true),
            (Some("pixel"), true),
            (Some("evil.example.com"), false),
            (Some("evil.example.com:8081"), false),
            (Some("127.0.0.1.example.com"), false),
            (Some(""), false),
        ] {
            assert_eq!(shows_visits(host), shown, "{host:?}");
        }
    }
}
