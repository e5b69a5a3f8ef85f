//! A broker's address, whose password stays in it.

use std::fmt;
use std::str::FromStr;

use url::Url;

/// A silent broker is noticed after twice this, in seconds.
const HEARTBEAT_S: &str = "5";
/// amiquip has no timeout of its own for a listener that says nothing.
const CONNECTION_TIMEOUT_MS: &str = "3000";

/// An `amqp://` or `amqps://` URL. Shown, it has `***` for its password.
#[derive(Clone, PartialEq, Eq)]
pub struct AmqpUrl(Url);

impl AmqpUrl {
    /// The whole URL, for the one who connects.
    pub fn secret(&self) -> &str {
        self.0.as_str()
    }

    /// Whether it is `amqps://`.
    pub fn is_tls(&self) -> bool {
        self.0.scheme() == "amqps"
    }

    /// Reads a comma-separated list, at least one.
    ///
    /// # Errors
    /// What is wrong with which entry; no password is in it.
    pub fn list(list: &str) -> Result<Vec<Self>, String> {
        list.split(',').map(|entry| entry.trim().parse()).collect()
    }
}

impl FromStr for AmqpUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected amqp://user:password@host:5672/vhost";
        // The error must not repeat what may hold a password.
        let mut url = Url::parse(text).map_err(|error| format!("{error}; {expected}"))?;
        if !matches!(url.scheme(), "amqp" | "amqps") || url.host_str().unwrap_or_default().is_empty() {
            return Err(expected.into());
        }
        if url.path_segments().is_some_and(|segments| segments.count() > 1) {
            return Err("the vhost is one path segment: write / within it as %2f".into());
        }
        for (name, value) in url.query_pairs() {
            let number = || value.parse::<u32>().is_ok_and(|number| number > 0);
            let known = match &*name {
                "heartbeat" | "channel_max" => number() && value.parse::<u16>().is_ok(),
                "connection_timeout" => number(),
                "auth_mechanism" => value == "external",
                _ => false,
            };
            if !known {
                return Err(format!(
                    "`{name}={value}`: expected heartbeat (s), connection_timeout (ms), channel_max or auth_mechanism=external"
                ));
            }
        }
        for (name, default) in [("heartbeat", HEARTBEAT_S), ("connection_timeout", CONNECTION_TIMEOUT_MS)] {
            if !url.query_pairs().any(|(given, _)| given == name) {
                url.query_pairs_mut().append_pair(name, default);
            }
        }
        Ok(AmqpUrl(url))
    }
}

impl fmt::Display for AmqpUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.clone();
        shown.set_query(None);
        if shown.password().is_some() && shown.set_password(Some("***")).is_err() {
            return formatter.write_str("(a URL that cannot be shown)");
        }
        formatter.write_str(shown.as_str())
    }
}

impl fmt::Debug for AmqpUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_never_shown() {
        let url: AmqpUrl = "amqp://guest:sesame@127.0.0.1:5672/%2f?heartbeat=9".parse().expect("a URL");
        assert_eq!(url.to_string(), "amqp://guest:***@127.0.0.1:5672/%2f");
        assert_eq!(format!("{url:?}"), url.to_string());
        assert!(url.secret().contains("sesame") && url.secret().contains("heartbeat=9"));
        assert!(url.secret().contains("connection_timeout=3000"));
        for bad in ["amqp://u:sesame@h:99999", "sesame", "http://u:sesame@h", "amqp://u:sesame@h/a/b"] {
            let refused = AmqpUrl::list(bad).expect_err(bad);
            assert!(!refused.contains("sesame"), "{refused}");
        }
        assert!(AmqpUrl::list("").is_err());
        assert!(AmqpUrl::list("amqp://h?heartbeat=x").is_err());
        assert_eq!(AmqpUrl::list("amqp://a, amqps://b:5671/v").expect("two").len(), 2);
    }
}
