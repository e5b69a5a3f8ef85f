//! The log: lines on stderr, for people, for machines, or for systemd's journal.

use std::io::{self, Write};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use env_logger::fmt::Formatter;
use jiff::Timestamp;
use log::{Level, LevelFilter, Record};
use serde_json::json;

use crate::trace;

static IS_FOR_MACHINES: AtomicBool = AtomicBool::new(false);

/// What is logged, and how.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// In env_logger's words.
    pub(super) filter: String,
    pub(super) format: LogFormat,
    pub(super) traces: trace::Settings,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogFormat {
    /// `[time level component] message`, with `trace=` and an id behind the component where there is one.
    Text,
    /// One JSON object a line: `time`, `level`, `component`, `message`, and `trace_id` where there is one.
    Json,
    /// `<priority>[component] message`, as journald reads it (sd-daemon(3)); it knows the time itself.
    Journal,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            "journal" => Ok(LogFormat::Journal),
            _ => Err("expected text, json or journal"),
        }
    }
}

/// Starts the log. tiny_http and amiquip are heard only where the filter names them: what they report as errors, Pixel
/// handles and words itself.
pub(super) fn start(settings: &LogSettings) {
    let mut builder = env_logger::Builder::new();
    for library in ["tiny_http", "amiquip"] {
        builder.filter_module(library, LevelFilter::Off);
    }
    builder.parse_filters(&settings.filter);
    match settings.format {
        LogFormat::Text => builder.format(text),
        LogFormat::Json => builder.format(json),
        LogFormat::Journal => builder.format(journal),
    };
    builder.init();
    IS_FOR_MACHINES.store(settings.format != LogFormat::Text, Ordering::Relaxed);
}

/// Whether a machine reads the log, so that nothing else is to be among its lines.
pub(super) fn is_for_machines() -> bool {
    IS_FOR_MACHINES.load(Ordering::Relaxed)
}

fn text(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let (time, level, component) = (Timestamp::now(), record.level(), record.target());
    writeln!(out, "[{time:.3} {level:<5} {component}{}] {}", traced(), record.args())
}

/// The trace that a line belongs to, where there is one, as it stands behind the component.
fn traced() -> String {
    trace::current().map(|span| format!(" trace={}", span.trace_id())).unwrap_or_default()
}

fn json(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let mut line = json!({
        "time": format!("{:.3}", Timestamp::now()),
        "level": record.level().as_str().to_lowercase(),
        "component": record.target(),
        "message": record.args().to_string(),
    });
    if let Some(span) = trace::current() {
        line["trace_id"] = span.trace_id().into();
    }
    writeln!(out, "{line}")
}

fn journal(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let head = format!("<{}>[{}{}]", priority(record.level()), record.target(), traced());
    // Each line has its own.
    record.args().to_string().lines().try_for_each(|line| writeln!(out, "{head} {line}"))
}

/// The level in syslog's numbers (RFC 5424, section 6.2.1).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}
