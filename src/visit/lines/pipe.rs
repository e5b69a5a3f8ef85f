//! `time|referrer|user agent|ip`: the format that Pixel's predecessor wrote, made unforgeable.

use std::borrow::Cow;

use super::escape::{hex_escape, push};
use super::read::{BadLine, ReadBack, hex_byte, value_of};
use crate::visit::{Text, Visit};

/// Appends the line: the time in UTC with seven fraction digits, referrer, user agent, address.
pub(super) fn write(visit: &Visit<'_>, line: &mut Vec<u8>) {
    push(line, format_args!("{:.7}|", visit.received_at));
    field(visit.referrer.as_ref(), line);
    line.push(b'|');
    field(visit.user_agent.as_ref(), line);
    push(line, format_args!("|{}\n", visit.ip));
}

/// Appends one value. Absent is `null`, so the word itself is written `\x6eull`; the separator, the
/// escape and control characters are `\xhh`, the code point of the character.
fn field(value: Option<&Text<'_>>, line: &mut Vec<u8>) {
    let text = match value.map(Text::as_str) {
        None => return line.extend_from_slice(b"null"),
        Some("null") => return line.extend_from_slice(br"\x6eull"),
        Some(text) => text,
    };
    if text.bytes().all(|byte| matches!(byte, b' '..=b'[' | b']'..=b'{' | b'}' | b'~')) {
        return line.extend_from_slice(text.as_bytes());
    }
    let mut plain_from = 0;
    for (at, character) in text.char_indices() {
        if matches!(character, '|' | '\\') || character.is_control() {
            line.extend_from_slice(&text.as_bytes()[plain_from..at]);
            // Every control character lies below U+00A0 (Unicode's category Cc).
            hex_escape(character as u8, line);
            plain_from = at + character.len_utf8();
        }
    }
    line.extend_from_slice(&text.as_bytes()[plain_from..]);
}

/// Reads what [`write()`] wrote.
pub(super) fn read(line: &str) -> Result<ReadBack<'_>, BadLine> {
    let fields: Vec<&str> = line.split('|').collect();
    let [time, referrer, user_agent, ip] = fields[..] else {
        return Err(BadLine::new(format_args!("it has {} fields, and not 4 between `|`", fields.len())));
    };
    let received_at = time.parse().map_err(|_| BadLine::new(format_args!("`{time}` is no time")))?;
    let mut visit =
        Visit::new(received_at, ip.parse().map_err(|_| BadLine::new(format_args!("`{ip}` is no address")))?);
    visit.referrer = read_field(referrer)?;
    visit.user_agent = read_field(user_agent)?;
    Ok(ReadBack { visit, number: None })
}

/// The inverse of [`field`].
fn read_field(field: &str) -> Result<Option<Text<'_>>, BadLine> {
    if field == "null" {
        return Ok(None);
    }
    if !field.contains('\\') {
        return value_of(Cow::Borrowed(field.as_bytes()));
    }
    let mut value = String::with_capacity(field.len());
    let mut rest = field;
    while let Some((plain, escaped)) = rest.split_once('\\') {
        value.push_str(plain);
        let digits = escaped.strip_prefix('x').map(str::as_bytes).unwrap_or_default();
        value.push(char::from(hex_byte(digits)?));
        rest = &escaped[3..];
    }
    value.push_str(rest);
    value_of(Cow::Owned(value.into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{any_values, visit};
    use super::*;
    use proptest::prelude::*;

    fn written(value: &str) -> String {
        let mut line = Vec::new();
        field(Text::new(value).as_ref(), &mut line);
        String::from_utf8(line).expect("UTF-8")
    }

    #[test]
    fn a_value_never_breaks_its_line() {
        for (case, value, expected) in [
            ("ordinary", "curl/8", "curl/8"),
            ("absent", "", "null"),
            ("newline", "a\nb", r"a\x0ab"),
            ("separator", "a|b", r"a\x7cb"),
            ("escape", r"a\b", r"a\x5cb"),
            ("delete", "a\x7fb", r"a\x7fb"),
            ("next line, a C1 control", "a\u{85}b", r"a\x85b"),
            ("the word null", "null", r"\x6eull"),
            ("a word with null in it", "nullable", "nullable"),
            ("beyond ASCII", "Žižkov 😀", "Žižkov 😀"),
        ] {
            assert_eq!(written(value), expected, "{case}");
        }
    }

    #[test]
    fn the_contract_s_example_is_written_to_the_letter() {
        let values = vec![Some("https://google.com".into()), Some("SomeUserAgent 1.2.3".into())];
        let values: Vec<_> = values.into_iter().chain([None, None, None, None]).collect();
        let mut line = Vec::new();
        write(&visit(&values), &mut line);
        let expected = "2022-12-19T14:16:49.9605280Z|https://google.com|SomeUserAgent 1.2.3|192.168.1.1\n";
        assert_eq!(String::from_utf8(line).expect("UTF-8"), expected);
    }

    proptest! {
        #[test]
        fn a_line_reads_back_to_its_values(values in any_values()) {
            let visit = visit(&values);
            let mut line = Vec::new();
            write(&visit, &mut line);
            let line = String::from_utf8(line).expect("UTF-8");
            let there = read(line.trim_end_matches('\n')).expect("it is a line");
            prop_assert_eq!(line.split('|').count(), 4);
            prop_assert_eq!(there.visit.received_at, visit.received_at);
            prop_assert_eq!(&there.visit.referrer, &visit.referrer);
            prop_assert_eq!(&there.visit.user_agent, &visit.user_agent);
        }
    }
}
