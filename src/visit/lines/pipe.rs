//! `time|referrer|user agent|ip`: the format that Pixel's predecessor wrote, made unforgeable.

use super::escape::{hex_escape, push};
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

    /// The inverse of `field`, as a reader of the file would write it.
    fn read(field: &str) -> Option<String> {
        if field == "null" {
            return None;
        }
        let mut value = String::new();
        let mut rest = field;
        while let Some(at) = rest.find(r"\x") {
            value.push_str(&rest[..at]);
            let code = u8::from_str_radix(&rest[at + 2..at + 4], 16).expect("two digits");
            value.push(char::from(code));
            rest = &rest[at + 4..];
        }
        value.push_str(rest);
        Some(value)
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
            let fields: Vec<_> = line.trim_end_matches('\n').split('|').collect();
            prop_assert_eq!(fields.len(), 4);
            let owned = |text: &Option<Text<'_>>| text.as_ref().map(|t| t.as_str().to_string());
            prop_assert_eq!(read(fields[1]), owned(&visit.referrer));
            prop_assert_eq!(read(fields[2]), owned(&visit.user_agent));
        }
    }
}
