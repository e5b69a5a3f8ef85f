//! A visit: what is known about one request of the pixel.

pub mod client_ip;
pub mod lines;
pub mod request;
pub mod wire;

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest value that is kept of any header, in bytes.
pub const VALUE_MAX_BYTES: usize = 2048;

/// A value as it was collected: never empty, at most [`VALUE_MAX_BYTES`] long, of any characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Text<'a>(Cow<'a, str>);

impl<'a> Text<'a> {
    /// Keeps what fits of `value`, cut on a character boundary. An empty value is an absent one.
    pub fn new(value: &'a str) -> Option<Self> {
        let kept = &value[..value.floor_char_boundary(VALUE_MAX_BYTES)];
        (!kept.is_empty()).then_some(Text(Cow::Borrowed(kept)))
    }

    /// The value, of 1 to [`VALUE_MAX_BYTES`] bytes.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As [`Text::new`], of a value that does not last.
    pub fn owned(value: &str) -> Option<Text<'static>> {
        Text::new(value).map(|text| Text(Cow::Owned(text.0.into_owned())))
    }
}

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// One request of the pixel, with all that is recorded of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visit<'a> {
    /// When the request arrived; written with six fraction digits.
    #[serde(serialize_with = "microseconds")]
    pub received_at: Timestamp,
    /// The client's address; an IPv4-mapped IPv6 address is an IPv4 address.
    #[serde(deserialize_with = "canonical")]
    pub ip: IpAddr,
    /// The page that shows the pixel: the header `Referer`, or else `Referrer`.
    #[serde(borrow, default, deserialize_with = "text")]
    pub referrer: Option<Text<'a>>,
    /// The client's program: the header `User-Agent`.
    #[serde(borrow, default, deserialize_with = "text")]
    pub user_agent: Option<Text<'a>>,
    /// The host that the client asked for: of an absolute target, or else the header `Host`.
    #[serde(borrow, default, deserialize_with = "text")]
    pub host: Option<Text<'a>>,
    /// The path of the pixel.
    #[serde(borrow, default, deserialize_with = "text")]
    pub path: Option<Text<'a>>,
    /// The query string, without its question mark.
    #[serde(borrow, default, deserialize_with = "text")]
    pub query: Option<Text<'a>>,
    /// The languages that the client prefers: the header `Accept-Language`.
    #[serde(borrow, default, deserialize_with = "text")]
    pub accept_language: Option<Text<'a>>,
    /// Whether the client sent `DNT: 1`.
    #[serde(default)]
    pub dnt: bool,
    /// Whether the client sent `Sec-GPC: 1` (Global Privacy Control).
    #[serde(default)]
    pub gpc: bool,
    /// The method of the request; absent where it is not known.
    #[serde(borrow, default, deserialize_with = "text", skip_serializing_if = "Option::is_none")]
    pub method: Option<Text<'a>>,
    /// `http` or `https`, as the client asked for it, where that is known.
    #[serde(borrow, default, deserialize_with = "text", skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Text<'a>>,
}

impl Visit<'_> {
    /// A visit of which only time and address are known.
    pub fn new(received_at: Timestamp, ip: IpAddr) -> Self {
        Visit {
            received_at,
            ip: ip.to_canonical(),
            referrer: None,
            user_agent: None,
            host: None,
            path: None,
            query: None,
            accept_language: None,
            dnt: false,
            gpc: false,
            method: None,
            scheme: None,
        }
    }
}

fn microseconds<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.6}"))
}

fn canonical<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpAddr, D::Error> {
    IpAddr::deserialize(deserializer).map(|ip| ip.to_canonical())
}

/// Borrows the value from the input where it holds no escapes; `null` and `""` are absent.
fn text<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Text<'a>>, D::Error> {
    struct Visitor;

    impl<'de> de::Visitor<'de> for Visitor {
        type Value = Option<Text<'de>>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a string or null")
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
        fn visit_none<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
        fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Self::Value, D::Error> {
            inner.deserialize_str(self)
        }
        fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
            Ok(Text::new(value))
        }
        fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
            Ok(Text::owned(value))
        }
    }

    deserializer.deserialize_option(Visitor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_cut_at_2048_bytes_on_a_character_boundary() {
        for (case, value, kept) in [
            ("short", "x".repeat(7), 7),
            ("exact", "x".repeat(2048), 2048),
            ("long", "x".repeat(2049), 2048),
            ("two-byte character across the cut", format!("{}é", "x".repeat(2047)), 2047),
            ("four-byte character across the cut", format!("{}😀", "x".repeat(2045)), 2045),
        ] {
            let text = Text::new(&value).expect(case);
            assert_eq!(text.as_str().len(), kept, "{case}");
        }
        assert_eq!(Text::new(""), None);
    }
}
