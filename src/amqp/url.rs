//! A broker's address, whose password stays in it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use amiquip::{Auth, ConnectionOptions};
use percent_encoding::percent_decode_str;
use url::Url;

/// A silent broker is noticed after twice this, in seconds.
const HEARTBEAT_S: u16 = 5;
/// How long the broker may take to accept a connection, and then to say hello.
const CONNECTION_TIMEOUT_MS: u64 = 3000;

/// An `amqp://` or `amqps://` URL. Shown, it has `***` for its password.
#[derive(Clone, PartialEq, Eq)]
pub struct AmqpUrl(Url);

impl AmqpUrl {
    /// The host's name or address.
    pub fn host(&self) -> &str {
        // An IPv6 address stands in brackets, which name resolution does not take.
        self.0.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
    }

    /// The port; AMQP's own where none is given.
    pub fn port(&self) -> u16 {
        self.0.port().unwrap_or(if self.is_tls() { 5671 } else { 5672 })
    }

    /// How long the broker may take to accept a connection.
    pub fn connection_timeout(&self) -> Duration {
        Duration::from_millis(self.parameter("connection_timeout").unwrap_or(CONNECTION_TIMEOUT_MS))
    }

    /// How to log in, and what to ask for.
    pub fn options(&self) -> ConnectionOptions<Auth> {
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let external = self.0.query_pairs().any(|(name, _)| name == "auth_mechanism");
        let auth = match (self.0.username(), self.0.password()) {
            _ if external => Auth::External,
            ("", None) => Auth::default(),
            (username, password) => {
                Auth::Plain { username: decode(username), password: decode(password.unwrap_or_default()) }
            }
        };
        let vhost = match self.0.path().trim_start_matches('/') {
            "" => "/".into(),
            vhost => decode(vhost),
        };
        ConnectionOptions::default()
            .auth(auth)
            .virtual_host(vhost)
            .heartbeat(self.parameter("heartbeat").unwrap_or(HEARTBEAT_S))
            .channel_max(self.parameter("channel_max").unwrap_or(0))
            .connection_timeout(Some(self.connection_timeout()))
    }

    fn parameter<T: FromStr>(&self, name: &str) -> Option<T> {
        self.0.query_pairs().find_map(|(given, value)| (given == name).then(|| value.parse().ok())?)
    }

    /// Whether it is `amqps://`, AMQP over TLS.
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
        let url = Url::parse(text).map_err(|error| format!("{error}; {expected}"))?;
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
    fn an_address_is_taken_apart() {
        for (text, host, port, vhost) in [
            ("amqp://h", "h", 5672, "/"),
            ("amqps://h/", "h", 5671, "/"),
            ("amqp://u:p@[::1]:1/%2fa", "::1", 1, "/a"),
        ] {
            let url: AmqpUrl = text.parse().expect(text);
            assert_eq!((url.host(), url.port()), (host, port), "{text}");
            let options = url.options().auth(Auth::default());
            let expected = ConnectionOptions::default().virtual_host(vhost).heartbeat(HEARTBEAT_S);
            assert_eq!(options, expected.connection_timeout(Some(url.connection_timeout())), "{text}");
        }
    }

    #[test]
    fn the_password_is_never_shown() {
        let url: AmqpUrl = "amqp://guest:sesame@127.0.0.1:5672/%2f?heartbeat=9".parse().expect("a URL");
        assert_eq!(url.to_string(), "amqp://guest:***@127.0.0.1:5672/%2f");
        assert_eq!(format!("{url:?}"), url.to_string());
        let plain = Auth::Plain { username: "guest".into(), password: "sesame".into() };
        let expected = ConnectionOptions::default().auth(plain).heartbeat(9);
        assert_eq!(url.options(), expected.connection_timeout(Some(Duration::from_secs(3))));
        for bad in ["amqp://u:sesame@h:99999", "sesame", "http://u:sesame@h", "amqp://u:sesame@h/a/b"] {
            let refused = AmqpUrl::list(bad).expect_err(bad);
            assert!(!refused.contains("sesame"), "{refused}");
        }
        assert!(AmqpUrl::list("").is_err());
        assert!(AmqpUrl::list("amqp://h?heartbeat=x").is_err());
        assert_eq!(AmqpUrl::list("amqp://a, amqps://b:5671/v").expect("two").len(), 2);
    }
}
