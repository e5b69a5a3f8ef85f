//! `status`: what the status page shows, on a terminal.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::Value;

use super::options::{AdminSettings, Given, Setting, with_settings};
use super::process::Failure;
use crate::health::{counted, in_words};
use crate::http::ask_status;

const JSON: &str = "json";
const WATCH: &str = "watch";
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// Clears a terminal and begins at its top (ECMA-48: ED, CUP).
const CLEAR: &str = "\x1b[2J\x1b[H";
/// How much of a value from a visitor is shown.
const VALUE_MAX_CHARS: usize = 60;

/// The subcommand of a program whose admin listener is where `admin` says.
pub fn status_command(admin: &[&'static Setting]) -> Command {
    let flag = |name, help| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    with_settings(Command::new("status"), &[admin])
        .about("Ask the running program how it is: what its status page shows; exit status 1 when nobody answers")
        .arg(flag(JSON, "One JSON object, for machines; with --watch one a line"))
        .arg(flag(WATCH, "Again every two seconds"))
}

/// Asks, and prints what was answered.
///
/// # Errors
/// Bad settings, or that nobody answers.
#[expect(clippy::print_stdout, reason = "the answer is what it is asked for")]
pub fn status(matches: &ArgMatches, setting: &'static Setting) -> Result<(), Failure> {
    let mut given = Given::new(matches);
    let admin = AdminSettings::read(&mut given, setting);
    given.refuse_bad()?;
    let ask = || shown(admin.listener.listen, matches.get_flag(JSON));
    if !matches.get_flag(WATCH) {
        println!("{}", ask()?);
        return Ok(());
    }
    loop {
        // What does not answer now may do so in two seconds: that is what is watched.
        let text = ask().unwrap_or_else(|problem| problem);
        let clear = if io::stdout().is_terminal() { CLEAR } else { "" };
        let shown = writeln!(io::stdout(), "{clear}{text}").and_then(|()| io::stdout().flush());
        if shown.is_err() {
            // Nobody reads any more.
            return Ok(());
        }
        std::thread::sleep(WATCH_EVERY);
    }
}

fn shown(address: SocketAddr, is_json: bool) -> Result<String, String> {
    let answer = ask_status(address)?;
    if is_json {
        return Ok(answer);
    }
    let status = serde_json::from_str(&answer).map_err(|error| format!("no status came: {error}"))?;
    Ok(as_text(&status).trim_end().to_string())
}

/// The status in lines.
fn as_text(status: &Value) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        writeln!(text, "{name:<22}{value}").expect("writing to a string cannot fail");
    };
    let word = |name: &str| status[name].as_str().unwrap_or_default().to_string();
    let since = seconds(&Value::from(number(&status["now"]) - number(&status["started_at"])));
    line(&word("program"), format!("{}, for {since}", word("version")));
    let state: Vec<&str> =
        status["state"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    line("state", state.join("; "));
    let totals = &status["totals"];
    let is_collector = totals["published"].is_u64();
    let goes = if is_collector { "published" } else { "written" };
    for (name, key) in [("came a second", "came"), (&*format!("{goes} a second"), "went")] {
        let seconds = &status["per_second"][key];
        let last = seconds.as_array().and_then(|all| all.last()).map_or(0.0, number);
        let most = seconds.as_array().into_iter().flatten().map(number).fold(0.0, f64::max);
        if key == "went" || totals["accepted"].is_u64() {
            line(name, format!("{}, at most {}", whole(last), whole(most)));
        }
    }
    for (name, key) in [
        ("taken", "accepted"),
        ("refused", "refused"),
        ("published", "published"),
        ("written", "written"),
        ("repetitions dropped", "duplicate"),
        ("dead messages", "dead_lettered_messages"),
        ("dead visits", "dead_lettered_visits"),
    ] {
        if let Some(total) = totals[key].as_u64() {
            line(name, counted(total));
        }
    }
    let waiting = &status["waiting"];
    for (name, key) in [
        ("in the spool", "spool_visits"),
        ("sent, not confirmed", "unconfirmed_visits"),
        ("messages in the queue", "queue_messages"),
        ("dead letters", "dead_messages"),
    ] {
        if !waiting[key].is_null() {
            line(name, whole(number(&waiting[key])));
        }
    }
    if !waiting["spool_bytes"].is_null() {
        let (bytes, most) = (number(&waiting["spool_bytes"]), number(&waiting["spool_max_bytes"]));
        line(
            "spool",
            format!(
                "{} of {} bytes, oldest {} old",
                whole(bytes),
                whole(most),
                seconds(&waiting["spool_oldest_age_s"])
            ),
        );
    }
    let stranded = number(&waiting["stranded_visits"]);
    if stranded > 0.0 {
        let slots = whole(number(&waiting["stranded_slots"]));
        line("stranded", format!("{} visits, in slots that no process has: {slots}", whole(stranded)));
    }
    let broker = &status["broker_state"];
    if broker.is_object() {
        let state = match (broker["is_connected"] == true, broker["is_blocked"] == true) {
            (false, _) => "not connected",
            (true, true) => "connected, takes no messages",
            (true, false) => "connected",
        };
        line("broker", format!("{state}, {} reconnects: {}", broker["reconnects"], word("broker")));
    }
    let output = &status["output_state"];
    if output.is_object() {
        let bytes = if output["bytes"].is_null() {
            "no file".into()
        } else {
            whole(number(&output["bytes"])) + " bytes"
        };
        let newest = match output["newest_written_age_s"].is_null() {
            true => "nothing written yet".into(),
            false => format!("newest visit {} old", seconds(&output["newest_written_age_s"])),
        };
        line("output", format!("{}, {bytes}, {newest}", word("output")));
    }
    let visits = status["last_visits"].as_array().map_or(&[][..], Vec::as_slice);
    if !visits.is_empty() {
        line("last visits", String::new());
    }
    for visit in visits {
        let value = |key: &str| harmless(visit[key].as_str().unwrap_or("–"));
        let (at, ip) = (value("received_at"), value("ip"));
        line("", format!("{at}  {ip}  {}  {}", value("referrer"), value("user_agent")));
    }
    text
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

fn whole(number: f64) -> String {
    counted(number.max(0.0) as u64)
}

fn seconds(value: &Value) -> String {
    in_words(Duration::from_secs_f64(number(value).clamp(0.0, 1e12)))
}

/// A visitor's value as a terminal may have it: it cannot move the cursor, and is not endless.
fn harmless(value: &str) -> String {
    let mut shown: String = value
        .chars()
        .take(VALUE_MAX_CHARS)
        .map(|c| if c.is_control() || is_invisible(c) { '\u{fffd}' } else { c })
        .collect();
    if value.chars().nth(VALUE_MAX_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

/// Characters that change the direction of those around them, or have no width.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_visitors_send_does_nothing_to_a_terminal() {
        for (value, shown) in [
            ("curl/8", "curl/8".to_string()),
            ("\x1b[2J\x07x\u{9b}1m", "\u{fffd}[2J\u{fffd}x\u{fffd}1m".into()),
            ("a\u{202e}b\nc", "a\u{fffd}b\u{fffd}c".into()),
            (&"x".repeat(61), "x".repeat(60) + "…"),
        ] {
            assert_eq!(harmless(value), shown);
        }
    }
}
