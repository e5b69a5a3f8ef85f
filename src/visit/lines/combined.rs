//! The combined log format of Apache httpd, for GoAccess, AWStats and every other log analyser.
//!
//! Source: <https://httpd.apache.org/docs/2.4/mod/mod_log_config.html> ("Format Notes" for the escapes).

use super::escape::{hex_escape, push};
use crate::visit::{Text, Visit};

/// Appends the line. Status and size are those of every recorded visit, the pixel's: 200 and 43.
pub(super) fn write(visit: &Visit<'_>, line: &mut Vec<u8>) {
    let time = visit.received_at.strftime("%d/%b/%Y:%H:%M:%S +0000");
    push(line, format_args!("{} - - [{time}] \"GET ", visit.ip));
    // The target must stay one word, and its first question mark must start the query.
    value(visit.path.as_ref(), b" ?", line);
    if let Some(query) = &visit.query {
        line.push(b'?');
        value(Some(query), b" ", line);
    }
    line.extend_from_slice(b" HTTP/1.1\" 200 43 \"");
    value(visit.referrer.as_ref(), b"", line);
    line.extend_from_slice(b"\" \"");
    value(visit.user_agent.as_ref(), b"", line);
    line.extend_from_slice(b"\"\n");
}

/// Appends one value with httpd's escapes, and those bytes of it that are `reserved` as `\xhh`.
/// Absent is `-`, so a lone hyphen is written `\x2d`.
fn value(value: Option<&Text<'_>>, reserved: &[u8], line: &mut Vec<u8>) {
    let text = match value.map(Text::as_str) {
        None => return line.push(b'-'),
        Some("-") => return hex_escape(b'-', line),
        Some(text) => text,
    };
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
