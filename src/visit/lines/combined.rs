//! The combined log format of Apache httpd, for GoAccess, AWStats and every other log analyser.
//!
//! Source: <https://httpd.apache.org/docs/2.4/mod/mod_log_config.html> ("Format Notes" for the escapes).

use super::escape::{hex_escape, push};
use crate::visit::{Text, Visit};

/// GoAccess reads 4,095 bytes at a time, and takes what stands behind them for an entry of its own. A line is
/// shorter, with its escapes and its line feed.
const LINE_MAX_BYTES: usize = 4094;
/// Path, query, referrer and user agent.
const VALUES: usize = 4;

/// Appends the line. Status and size are those of every recorded visit, the pixel's: 200 and 43. Of a line that is
/// too long, the longest values are cut.
pub(super) fn write(visit: &Visit<'_>, line: &mut Vec<u8>) {
    let from = line.len();
    let written = write_cut(visit, [usize::MAX; VALUES], line);
    let total = line.len() - from;
    if total > LINE_MAX_BYTES {
        line.truncate(from);
        let rest = total - written.iter().sum::<usize>();
        write_cut(visit, shares(written, LINE_MAX_BYTES - rest), line);
    }
}

/// Appends the line with at most so many bytes of each value, as it is written; returns how many each took.
fn write_cut(visit: &Visit<'_>, limits: [usize; VALUES], line: &mut Vec<u8>) -> [usize; VALUES] {
    let time = visit.received_at.strftime("%d/%b/%Y:%H:%M:%S +0000");
    push(line, format_args!("{} - - [{time}] \"GET ", visit.ip));
    // The target must stay one word, and its first question mark must start the query.
    let path = value(visit.path.as_ref(), b" ?", limits[0], line);
    let query = match &visit.query {
        None => 0,
        Some(query) => {
            line.push(b'?');
            value(Some(query), b" ", limits[1], line)
        }
    };
    line.extend_from_slice(b" HTTP/1.1\" 200 43 \"");
    let referrer = value(visit.referrer.as_ref(), b"", limits[2], line);
    line.extend_from_slice(b"\" \"");
    let user_agent = value(visit.user_agent.as_ref(), b"", limits[3], line);
    line.extend_from_slice(b"\"\n");
    [path, query, referrer, user_agent]
}

/// Shares `room` among values of these lengths: what one does not need is left to the longer ones.
fn shares(lengths: [usize; VALUES], mut room: usize) -> [usize; VALUES] {
    let mut by_length = [0, 1, 2, 3];
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
        if written == "-" {
            return None;
        }
        let mut bytes = Vec::new();
        let mut rest = written.bytes();
        while let Some(byte) = rest.next() {
            bytes.push(match (byte, byte == b'\\') {
                (_, true) => match rest.next().expect("an escape has a second byte") {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'v' => 0x0b,
                    b'x' => {
                        let digits = [rest.next().expect("digit"), rest.next().expect("digit")];
                        let digits = std::str::from_utf8(&digits).expect("ASCII");
                        u8::from_str_radix(digits, 16).expect("hexadecimal")
                    }
                    escaped => escaped,
                },
                (byte, false) => byte,
            });
        }
        Some(String::from_utf8(bytes).expect("the value was UTF-8"))
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
        write(&visit(&values), &mut line);
        let expected = concat!(
            "192.168.1.1 - - [19/Dec/2022:14:16:49 +0000] \"GET /track?x=1 HTTP/1.1\" 200 43 ",
            "\"https://google.com\" \"SomeUserAgent 1.2.3\"\n"
        );
        assert_eq!(String::from_utf8(line).expect("ASCII"), expected);
    }

    #[test]
    fn a_line_too_long_is_cut_where_it_is_longest_and_never_within_an_escape() {
        for (case, lengths, room, expected) in [
            ("all fit", [6, 0, 100, 50], 4000, [6, 0, 100, 50]),
            ("one too long", [6, 0, 5000, 50], 4000, [6, 0, 3944, 50]),
            ("two too long", [6, 100, 5000, 3000], 4000, [6, 100, 1947, 1947]),
            ("all too long", [8000; 4], 4003, [1000, 1001, 1001, 1001]),
        ] {
            assert_eq!(shares(lengths, room), expected, "{case}");
        }
        let long = |piece: &str| Some(piece.repeat(2048 / piece.len()));
        for (case, piece) in [("plain", "x"), ("quotes", "\""), ("controls", "\u{1}"), ("characters", "😀")]
        {
            let values = vec![long(piece), long(piece), None, Some("/track".into()), long(piece), None];
            let mut line = b"the line before\n".to_vec();
            let before = line.len();
            write(&visit(&values), &mut line);
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
            write(&visit, &mut line);
            let line = String::from_utf8(line).expect("the format is ASCII");
            prop_assert!(line.is_ascii());
            let parts = quoted(&line);
            prop_assert_eq!(parts.len(), 3);
            let words: Vec<_> = parts[0].split(' ').collect();
            prop_assert_eq!(words.len(), 3);
            let (path, query) = match words[1].split_once('?') {
                Some((path, query)) => (path, Some(query)),
                None => (words[1], None),
            };
            let owned = |text: &Option<Text<'_>>| text.as_ref().map(|t| t.as_str().to_string());
            prop_assert_eq!(read(path), owned(&visit.path));
            prop_assert_eq!(query.and_then(read), owned(&visit.query));
            prop_assert_eq!(read(&parts[1]), owned(&visit.referrer));
            prop_assert_eq!(read(&parts[2]), owned(&visit.user_agent));
        }
    }
}
