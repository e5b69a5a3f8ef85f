//! The log: lines on stderr, for people, for machines, or for systemd's journal.

use std::io::{self, Write};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

use env_logger::fmt::Formatter;
use jiff::Timestamp;
use log::{Level, LevelFilter, Record};
use serde_json::json;

static IS_FOR_MACHINES: AtomicBool = AtomicBool::new(false);

/// What is logged, and how.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// In env_logger's words.
    pub(super) filter: String,
    pub(super) format: LogFormat,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogFormat {
    /// `[time level] message`.
    Text,
    /// One JSON object a line: `time`, `level`, `component`, `message`.
    Json,
    /// `<priority>message`, as journald reads it (sd-daemon(3)); it knows the time itself.
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
    builder.parse_filters(&settings.filter).format_target(false).format_timestamp_millis();
    match settings.format {
        LogFormat::Text => &mut builder,
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

fn json(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let line = json!({
        "time": format!("{:.3}", Timestamp::now()),
        "level": record.level().as_str().to_lowercase(),
        "component": record.target(),
        "message": record.args().to_string(),
    });
    writeln!(out, "{line}")
}

fn journal(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let priority = priority(record.level());
    // Each line has its own.
    record.args().to_string().lines().try_for_each(|line| writeln!(out, "<{priority}>{line}"))
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
