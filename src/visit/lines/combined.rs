//! The combined log format of Apache httpd, for GoAccess, AWStats and every other log analyser.
//!
//! Source: <https://httpd.apache.org/docs/2.4/mod/mod_log_config.html> ("Format Notes" for the escapes).

use std::borrow::Cow;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;

use super::escape::{hex_escape, push};
use super::read::{BadLine, ReadBack, hex_byte, value_of};
use crate::visit::{Text, Visit};

/// GoAccess reads 4,095 bytes at a time, and takes what stands behind them for an entry of its own. A line is
/// shorter, with its escapes and its line feed.
const LINE_MAX_BYTES: usize = 4094;
/// Virtual host, method, path, query, referrer and user agent.
const VALUES: usize = 6;
/// What the method of a visit is whose method is not known.
const METHOD: &str = "GET";

/// What of the format has changed, or is a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looks {
    /// With the visit's method.
    Now,
    /// And with the virtual host and its port in front.
    WithHost,
    /// Each method is GET.
    Before,
}

/// Appends the line. Status and size are those of every recorded visit, the pixel's: 200 and 43. Of a line that is
/// too long, the longest values are cut.
pub(super) fn write(visit: &Visit<'_>, looks: Looks, line: &mut Vec<u8>) {
    let from = line.len();
    let written = write_cut(visit, looks, [usize::MAX; VALUES], line);
    let total = line.len() - from;
    if total > LINE_MAX_BYTES {
        line.truncate(from);
        let rest = total - written.iter().sum::<usize>();
        write_cut(visit, looks, shares(written, LINE_MAX_BYTES - rest), line);
    }
}

/// Appends the line with at most so many bytes of each value, as it is written; returns how many each took.
fn write_cut(
    visit: &Visit<'_>,
    looks: Looks,
    limits: [usize; VALUES],
    line: &mut Vec<u8>,
) -> [usize; VALUES] {
    let host = if looks == Looks::WithHost { host(visit, limits[0], line) } else { 0 };
    let time = visit.received_at.strftime("%d/%b/%Y:%H:%M:%S +0000");
    push(line, format_args!("{} - - [{time}] \"", visit.ip));
    let method = match &visit.method {
        Some(method) if looks != Looks::Before => value(Some(method), b" ", limits[1], line),
        _ => {
            line.extend_from_slice(METHOD.as_bytes());
            0
        }
    };
    line.push(b' ');
    // The target must stay one word, and its first question mark must start the query.
    let path = value(visit.path.as_ref(), b" ?", limits[2], line);
    let query = match &visit.query {
        None => 0,
        Some(query) => {
            line.push(b'?');
            value(Some(query), b" ", limits[3], line)
        }
    };
    line.extend_from_slice(b" HTTP/1.1\" 200 43 \"");
    let referrer = value(visit.referrer.as_ref(), b"", limits[4], line);
    line.extend_from_slice(b"\" \"");
    let user_agent = value(visit.user_agent.as_ref(), b"", limits[5], line);
    line.extend_from_slice(b"\"\n");
    [host, method, path, query, referrer, user_agent]
}

/// Appends `host:port `: the port that the client named, or the scheme's.
fn host(visit: &Visit<'_>, limit: usize, line: &mut Vec<u8>) -> usize {
    let text = visit.host.as_ref().map(Text::as_str);
    let port_at = text.and_then(|text| port_of(text).map(|port| text.len() - port.len() - 1));
    let name = port_at.and_then(|at| Text::new(text.map_or("", |text| &text[..at])));
    let port = port_at.and_then(|at| text.map(|text| &text[at + 1..]));
    let is_tls = visit.scheme.as_ref().is_some_and(|scheme| scheme.as_str() == "https");
    // The first colon ends the name.
    let written = value(if port.is_some() { name.as_ref() } else { visit.host.as_ref() }, b" :", limit, line);
    let port = port.unwrap_or(if is_tls { "443" } else { "80" });
    push(line, format_args!(":{port} "));
    written
}

/// The port that a host ends with, but for those that a reader would take for the scheme's.
fn port_of(host: &str) -> Option<&str> {
    let (name, port) = host.rsplit_once(':')?;
    let is_port = (1..=5).contains(&port.len()) && port.bytes().all(|digit| digit.is_ascii_digit());
    (is_port && !name.is_empty() && port != "80" && port != "443").then_some(port)
}

/// Reads what [`write()`] wrote, `with_host` or without.
pub(super) fn read(line: &str, with_host: bool) -> Result<ReadBack<'_>, BadLine> {
    let is_not = |what: &str| BadLine::new(format_args!("it has no {what} where the combined format has it"));
    let (front, line) = match with_host {
        false => (None, line),
        true => line.split_once(' ').map(|(host, rest)| (Some(host), rest)).ok_or_else(|| is_not("host"))?,
    };
    let (ip, rest) = line.split_once(" - - [").ok_or_else(|| is_not("address"))?;
    let (time, rest) = rest.split_once("] \"").ok_or_else(|| is_not("time"))?;
    let (request, rest) = rest.split_once(" HTTP/1.1\" 200 43 \"").ok_or_else(|| is_not("request"))?;
    let rest = rest.strip_suffix('"').ok_or_else(|| is_not("end"))?;
    let (referrer, user_agent) = rest.split_once("\" \"").ok_or_else(|| is_not("referrer"))?;
    let (method, target) = request.split_once(' ').ok_or_else(|| is_not("method"))?;
    let mut visit = Visit::new(
        read_time(time)?,
        ip.parse().map_err(|_| BadLine::new(format_args!("`{ip}` is no address")))?,
    );
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    visit.method = read_value(method)?;
    visit.path = read_value(path)?;
    visit.query = query.map(read_value).transpose()?.flatten();
    visit.referrer = read_value(referrer)?;
    visit.user_agent = read_value(user_agent)?;
    if let Some(front) = front {
        let (host, port) = front.rsplit_once(':').ok_or_else(|| is_not("port"))?;
        let host = read_value(host)?;
        visit.host = match port {
            "80" | "443" => host,
            port => Text::owned(&format!("{}:{port}", host.as_ref().map_or("", Text::as_str))),
        };
        let scheme = if port == "443" { Some("https") } else { None };
        visit.scheme = scheme.and_then(Text::new);
    }
    Ok(ReadBack { visit, number: None })
}

/// Reads a time as in `19/Dec/2022:14:16:49 +0000`.
fn read_time(time: &str) -> Result<Timestamp, BadLine> {
    let utc = time.strip_suffix(" +0000");
    let civil = utc.and_then(|utc| DateTime::strptime("%d/%b/%Y:%H:%M:%S", utc).ok());
    let time_at = civil.and_then(|civil| Offset::UTC.to_timestamp(civil).ok());
    time_at
        .ok_or_else(|| BadLine::new(format_args!("`{time}` is no time such as 19/Dec/2022:14:16:49 +0000")))
}

/// The inverse of [`value`].
fn read_value(written: &str) -> Result<Option<Text<'_>>, BadLine> {
    if written == "-" {
        return Ok(None);
    }
    if !written.contains('\\') {
        return value_of(Cow::Borrowed(written.as_bytes()));
    }
    let mut bytes = Vec::with_capacity(written.len());
    let mut rest = written.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let (&escaped, behind) = rest.split_first().ok_or_else(|| BadLine::new("a value ends in `\\`"))?;
        rest = behind;
        bytes.push(match escaped {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'b' => 0x08,
            b'v' => 0x0b,
            b'x' => {
                let byte = hex_byte(rest)?;
                rest = &rest[2..];
                byte
            }
            b'"' | b'\\' => escaped,
            other => return Err(BadLine::new(format_args!("`\\{}` is no escape", char::from(other)))),
        });
    }
    value_of(Cow::Owned(bytes))
}

/// Shares `room` among values of these lengths: what one does not need is left to the longer ones.
fn shares(lengths: [usize; VALUES], mut room: usize) -> [usize; VALUES] {
    let mut by_length = [0, 1, 2, 3, 4, 5];
    by_length.sort_by_key(|&n| lengths[n]);
    let mut shares = [0; VALUES];
    for (done, n) in by_length.into_iter().enumerate() {
        shares[n] = lengths[n].min(room / (VALUES - done));
        room -= shares[n];
    }
    shares
}

/// Appends one value with httpd's escapes, and those bytes of it that are `reserved` as `\xhh`; at most `limit`
/// bytes of that, cut on a character boundary. Returns how many. Absent is `-`, so a lone hyphen is written `\x2d`.
fn value(value: Option<&Text<'_>>, reserved: &[u8], limit: usize, line: &mut Vec<u8>) -> usize {
    let from = line.len();
    match value.map(Text::as_str) {
        None => line.push(b'-'),
        Some("-") => hex_escape(b'-', line),
        Some(text) => {
            escape(text, reserved, line);
            if line.len() - from > limit {
                line.truncate(from);
                let mut end = from;
                for (at, character) in text.char_indices() {
                    escape(&text[at..at + character.len_utf8()], reserved, line);
                    if line.len() - from > limit {
                        break;
                    }
                    end = line.len();
                }
                line.truncate(end);
            }
        }
    }
    line.len() - from
}

fn escape(text: &str, reserved: &[u8], line: &mut Vec<u8>) {
    for &byte in text.as_bytes() {
        match byte {
            b'"' | b'\\' => line.extend_from_slice(&[b'\\', byte]),
            b'\n' => line.extend_from_slice(br"\n"),
            b'\r' => line.extend_from_slice(br"\r"),
            b'\t' => line.extend_from_slice(br"\t"),
            0x08 => line.extend_from_slice(br"\b"),
            0x0b => line.extend_from_slice(br"\v"),
            b' '..=b'~' if !reserved.contains(&byte) => line.push(byte),
            _ => hex_escape(byte, line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{any_values, visit};
    use super::*;
    use proptest::prelude::*;

    /// The inverse of `value`.
    fn read(written: &str) -> Option<String> {
        read_value(written).expect("it is a value").map(|text| text.as_str().to_string())
    }

    /// The quoted parts of a line, by the rule that every log analyser uses.
    fn quoted(line: &str) -> Vec<String> {
        let mut parts = Vec::new();
        let mut part: Option<String> = None;
        let mut characters = line.chars();
        while let Some(character) = characters.next() {
            match (&mut part, character) {
                (None, '"') => part = Some(String::new()),
                (Some(_), '"') => parts.extend(part.take()),
                (Some(text), '\\') => {
                    text.push('\\');
                    text.extend(characters.next());
                }
                (Some(text), other) => text.push(other),
                (None, _) => {}
            }
        }
        parts
    }

    #[test]
    fn the_contract_s_example_is_written_to_the_letter() {
        let values = [
            Some("https://google.com"),
            Some("SomeUserAgent 1.2.3"),
            None,
            Some("/track"),
            Some("x=1"),
            None,
        ];
        let values: Vec<_> = values.map(|value| value.map(str::to_string)).into();
        let mut line = Vec::new();
        write(&visit(&values), Looks::Now, &mut line);
        let expected = concat!(
            "192.168.1.1 - - [19/Dec/2022:14:16:49 +0000] \"GET /track?x=1 HTTP/1.1\" 200 43 ",
            "\"https://google.com\" \"SomeUserAgent 1.2.3\"\n"
        );
        assert_eq!(String::from_utf8(line).expect("ASCII"), expected);
    }

    #[test]
    fn a_line_too_long_is_cut_where_it_is_longest_and_never_within_an_escape() {
        for (case, lengths, room, expected) in [
            ("all fit", [0, 0, 6, 0, 100, 50], 4000, [0, 0, 6, 0, 100, 50]),
            ("one too long", [0, 0, 6, 0, 5000, 50], 4000, [0, 0, 6, 0, 3944, 50]),
            ("two too long", [0, 0, 6, 100, 5000, 3000], 4000, [0, 0, 6, 100, 1947, 1947]),
            ("all too long", [8000; 6], 6003, [1000, 1000, 1000, 1001, 1001, 1001]),
        ] {
            assert_eq!(shares(lengths, room), expected, "{case}");
        }
        let long = |piece: &str| Some(piece.repeat(2048 / piece.len()));
        for (case, piece) in [("plain", "x"), ("quotes", "\""), ("controls", "\u{1}"), ("characters", "😀")]
        {
            let values = vec![long(piece), long(piece), None, Some("/track".into()), long(piece), None];
            let mut line = b"the line before\n".to_vec();
            let before = line.len();
            write(&visit(&values), Looks::Now, &mut line);
            let line = String::from_utf8(line.split_off(before)).expect("ASCII");
            assert!((LINE_MAX_BYTES - 60..=LINE_MAX_BYTES).contains(&line.len()), "{case}: {}", line.len());
            for part in &quoted(&line)[1..] {
                let kept = read(part).expect("it is there");
                assert!(kept.len() >= 249 && long(piece).is_some_and(|all| all.starts_with(&kept)), "{case}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_line_reads_back_to_its_values(values in any_values()) {
            let visit = visit(&values);
            let mut line = Vec::new();
            write(&visit, Looks::Now, &mut line);
            let line = String::from_utf8(line).expect("the format is ASCII");
            prop_assert!(line.is_ascii());
            let parts = quoted(&line);
            prop_assert_eq!(parts.len(), 3);
            let words: Vec<_> = parts[0].split(' ').collect();
            prop_assert_eq!(words.len(), 3);
            for (looks, with_host) in [(Looks::Now, false), (Looks::WithHost, true)] {
                let mut line = Vec::new();
                write(&visit, looks, &mut line);
                let line = String::from_utf8(line).expect("the format is ASCII");
                let there = super::read(line.trim_end_matches('\n'), with_host).expect("it is a line").visit;
                prop_assert_eq!(&there.path, &visit.path);
                prop_assert_eq!(&there.query, &visit.query);
                prop_assert_eq!(&there.referrer, &visit.referrer);
                prop_assert_eq!(&there.user_agent, &visit.user_agent);
                prop_assert_eq!(there.method, visit.method.clone().or(Text::new(METHOD)));
                prop_assert!(!with_host || there.host == visit.host);
            }
        }
    }
}
