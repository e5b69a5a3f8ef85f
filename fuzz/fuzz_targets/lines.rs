//! Whatever a visit holds, each format makes one line of it: no value breaks it or forges a field.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pixel::visit::lines::{LineFormat, Numbered};
use pixel::visit::{Text, Visit};
use uuid::Uuid;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let mut values = text.split('\u{1e}').map(Some).chain(std::iter::repeat(None));
    let mut value = || values.next().flatten().and_then(Text::new);
    let visit = Visit {
        received_at: jiff::Timestamp::UNIX_EPOCH,
        ip: [192, 168, 1, 1].into(),
        referrer: value(),
        user_agent: value(),
        host: value(),
        path: value(),
        query: value(),
        accept_language: value(),
        dnt: data.len().is_multiple_of(2),
        gpc: data.len().is_multiple_of(3),
        method: value(),
        scheme: value(),
    };
    let numbered = Numbered { visit: &visit, number: Some((Uuid::nil(), 1)) };
    let line = |format: LineFormat| {
        let mut line = Vec::new();
        format.write(numbered, &mut line);
        let line = String::from_utf8(line).expect("UTF-8");
        let line = line.strip_suffix('\n').expect("a line feed at the end").to_string();
        assert!(!line.contains('\n'), "{format:?}");
        line
    };
    let pipe = line(LineFormat::Pipe);
    assert_eq!(pipe.split('|').count(), 4);
    assert!(!pipe.contains(char::is_control));
    let combined = line(LineFormat::Combined);
    assert!(combined.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    let unescaped = combined.replace(r"\\", "").replace("\\\"", "");
    assert_eq!(unescaped.matches('"').count(), 6, "{combined}");
    let ndjson = line(LineFormat::Ndjson);
    let read: Visit<'_> = serde_json::from_str(&ndjson).expect("JSON");
    assert_eq!(read, visit);
    for format in [LineFormat::Pipe, LineFormat::Combined, LineFormat::Vcombined, LineFormat::Ndjson] {
        format.read(line(format).as_bytes()).expect("what was written can be read");
        // Of any bytes at all it is known whether they are a line.
        let _ = format.read(data);
    }
});
