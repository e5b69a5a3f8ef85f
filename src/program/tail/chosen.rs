//! Which visits are shown: those whose fields match.

use std::borrow::Cow;

use regex::Regex;

use crate::visit::Text;
use crate::visit::lines::ReadBack;

const FIELDS: [&str; 14] = [
    "received_at",
    "ip",
    "referrer",
    "user_agent",
    "host",
    "path",
    "query",
    "accept_language",
    "dnt",
    "gpc",
    "method",
    "scheme",
    "producer",
    "sequence",
];

/// What is asked of the visits.
pub(super) struct Chosen(Vec<(String, Regex)>);

impl Chosen {
    /// Reads `FIELD=REGEX` of each.
    ///
    /// # Errors
    /// Which is wrong, and why.
    pub(super) fn read<'a>(given: impl Iterator<Item = &'a String>) -> Result<Self, String> {
        let one = |text: &String| {
            let (field, pattern) =
                text.split_once('=').filter(|(field, _)| FIELDS.contains(field)).ok_or_else(|| {
                    format!("--grep is `{text}`: expected FIELD=REGEX, with a field of {}", FIELDS.join(", "))
                })?;
            let regex = Regex::new(pattern).map_err(|error| format!("--grep is `{text}`: {error}"))?;
            Ok((field.to_string(), regex))
        };
        given.map(one).collect::<Result<_, _>>().map(Chosen)
    }

    /// Whether a visit is one of them. An absent value is an empty one.
    pub(super) fn includes(&self, visit: &ReadBack<'_>) -> bool {
        self.0.iter().all(|(field, regex)| regex.is_match(&value(visit, field)))
    }
}

fn value<'v>(ReadBack { visit, number }: &'v ReadBack<'_>, field: &str) -> Cow<'v, str> {
    let text = |value: &'v Option<Text<'_>>| Cow::from(value.as_ref().map_or("", Text::as_str));
    match field {
        "received_at" => visit.received_at.to_string().into(),
        "ip" => visit.ip.to_string().into(),
        "referrer" => text(&visit.referrer),
        "user_agent" => text(&visit.user_agent),
        "host" => text(&visit.host),
        "path" => text(&visit.path),
        "query" => text(&visit.query),
        "accept_language" => text(&visit.accept_language),
        "dnt" => visit.dnt.to_string().into(),
        "gpc" => visit.gpc.to_string().into(),
        "method" => text(&visit.method),
        "scheme" => text(&visit.scheme),
        "producer" => number.map(|(producer, _)| producer.to_string()).unwrap_or_default().into(),
        _ => number.map(|(_, sequence)| sequence.to_string()).unwrap_or_default().into(),
    }
}
