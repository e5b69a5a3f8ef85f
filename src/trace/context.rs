//! A span as others name it (W3C Trace Context), and how a visit takes it along.

use std::fmt;
use std::io::Write;

use memchr::memmem;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// How many spans one is linked to at most: the standard's default.
pub const LINKS_MAX: usize = 128;
/// A `traceparent` of version 00.
const TRACEPARENT_BYTES: usize = 55;
/// What of a `tracestate` is to be kept at least, in bytes (W3C Trace Context, 3.3.1.5).
const TRACESTATE_MAX_BYTES: usize = 512;
/// What a marked line has before the context. No value of a visit can hold it, as JSON escapes its quotes.
const MARK: &[u8] = b",\"traceparent\":\"";

/// A span of this process or of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    trace: TraceId,
    span: SpanId,
    is_sampled: bool,
}

impl Context {
    /// Reads a `traceparent`; `None` where it is none. What a later version adds behind is not read.
    pub fn parse(text: &str) -> Option<Context> {
        let (head, more) = text.trim_ascii().split_at_checked(TRACEPARENT_BYTES)?;
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let is_dash = |at: usize| [2, 35, 52].contains(&at);
        let is_formed = |(at, byte): (usize, u8)| if is_dash(at) { byte == b'-' } else { is_hex(byte) };
        let is_known = head.starts_with("00") && more.is_empty();
        let is_later = !head.starts_with("00") && !head.starts_with("ff");
        if !head.bytes().enumerate().all(is_formed)
            || !(is_known || is_later && (more.is_empty() || more.starts_with('-')))
        {
            return None;
        }
        let trace = TraceId::from_hex(&head[3..35]).ok()?;
        let span = SpanId::from_hex(&head[36..52]).ok()?;
        let flags = u8::from_str_radix(&head[53..], 16).ok()?;
        let is_valid = trace != TraceId::INVALID && span != SpanId::INVALID;
        is_valid.then_some(Context { trace, span, is_sampled: flags & 1 == 1 })
    }

    /// The id of its trace, 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        self.trace.to_string()
    }

    pub(super) fn of(context: &SpanContext) -> Self {
        Context { trace: context.trace_id(), span: context.span_id(), is_sampled: context.is_sampled() }
    }

    /// As a span of this process.
    pub(super) fn own(self) -> SpanContext {
        self.to_span_context(false, TraceState::NONE)
    }

    /// As a span of another process.
    pub(super) fn remote(self, state: TraceState) -> SpanContext {
        self.to_span_context(true, state)
    }

    fn to_span_context(self, is_remote: bool, state: TraceState) -> SpanContext {
        let flags = if self.is_sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
        SpanContext::new(self.trace, self.span, flags, is_remote, state)
    }
}

/// Reads the `tracestate` headers of a request: what tracers on its way have noted for themselves. What is none, or is
/// longer than it has to be kept, is as none.
pub(super) fn state<'a>(headers: impl Iterator<Item = &'a str>) -> TraceState {
    let whole = headers.collect::<Vec<_>>().join(",");
    let kept = Some(whole).filter(|whole| whole.len() <= TRACESTATE_MAX_BYTES);
    kept.and_then(|whole| whole.parse().ok()).unwrap_or(TraceState::NONE)
}

/// As a `traceparent`.
impl fmt::Display for Context {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.is_sampled))
    }
}

/// Marks the visit that `lines` ends with as one of the span `context`: its line is an object of JSON, and gets one
/// more field.
pub fn mark(lines: &mut Vec<u8>, context: Context) {
    debug_assert!(lines.ends_with(b"}\n"), "a visit is an object on a line");
    lines.truncate(lines.len() - 2);
    lines.extend_from_slice(MARK);
    write!(lines, "{context}\"}}").expect("writing to memory cannot fail");
    lines.push(b'\n');
}

/// The spans of the visits that are marked, in their order.
pub fn marked(lines: &[u8]) -> impl Iterator<Item = Context> {
    memmem::find_iter(lines, MARK).filter_map(|at| {
        let text = lines.get(at + MARK.len()..at + MARK.len() + TRACEPARENT_BYTES)?;
        Context::parse(std::str::from_utf8(text).ok()?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_as_the_recommendation_says_and_written_the_same() {
        let context = Context::parse(EXAMPLE).expect("it is the recommendation's");
        assert_eq!((context.to_string().as_str(), context.is_sampled), (EXAMPLE, true));
        for (case, text, is_read) in [
            ("not sampled", EXAMPLE.replace("-01", "-00"), true),
            ("an unknown flag", EXAMPLE.replace("-01", "-03"), true),
            ("a later version", EXAMPLE.replace("00-4", "cc-4"), true),
            ("a later version with more", EXAMPLE.replace("00-4", "cc-4") + "-more", true),
            ("a later version that goes on", EXAMPLE.replace("00-4", "cc-4") + "more", false),
            ("version 00 with more", format!("{EXAMPLE}-more"), false),
            ("version ff", EXAMPLE.replace("00-4", "ff-4"), false),
            ("upper case", EXAMPLE.to_uppercase(), false),
            ("no trace", EXAMPLE.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)), false),
            ("no span", EXAMPLE.replace("00f067aa0ba902b7", &"0".repeat(16)), false),
            ("too short", EXAMPLE[..54].into(), false),
            ("not ASCII", "é".repeat(40), false),
            ("empty", String::new(), false),
            ("an older .NET's", "|7f3a.1.".into(), false),
        ] {
            assert_eq!(Context::parse(&text).is_some(), is_read, "{case}");
        }
    }

    #[test]
    fn a_tracestate_is_kept_whole_or_not_at_all() {
        let long = format!("a={}", "x".repeat(TRACESTATE_MAX_BYTES));
        for (case, headers, kept) in [
            (
                "one",
                &["rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"][..],
                "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
            ),
            ("two headers", &["a=1", "b=2"], "a=1,b=2"),
            ("none", &[], ""),
            ("no list", &["nonsense"], ""),
            ("too long", &[&long], ""),
        ] {
            assert_eq!(state(headers.iter().copied()).header(), kept, "{case}");
        }
    }

    #[test]
    fn a_visit_takes_its_span_along_and_no_value_passes_for_one() {
        let context = Context::parse(EXAMPLE).expect("it is one");
        let hostile = serde_json::json!({ "a": format!(",\"traceparent\":\"{EXAMPLE}\"") });
        let mut lines = format!("{hostile}\n{{\"b\":1}}\n").into_bytes();
        assert_eq!(marked(&lines).count(), 0);
        mark(&mut lines, context);
        lines.extend_from_slice(b"{\"c\":2}\n");
        assert_eq!(marked(&lines).collect::<Vec<_>>(), [context]);
        let text = String::from_utf8(lines).expect("JSON is UTF-8");
        let marked: serde_json::Value =
            serde_json::from_str(text.lines().nth(1).expect("three lines")).expect("an object");
        assert_eq!(marked, serde_json::json!({ "b": 1, "traceparent": EXAMPLE }));
    }
}
