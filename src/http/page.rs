//! The page at `/`: what this is, and the line to paste, with the host that it was asked at.

use uuid::Uuid;

use super::answer::Answer;
use crate::visit::lines::LineFormat;

const BODY: &str = include_str!("page.html");
/// What stands in its place for a number that nobody can foresee.
const NONCE: &str = "NONCE";
const HEADERS: &str = "Content-Type: text/html; charset=utf-8\r\n\
     Content-Security-Policy: default-src 'none'; style-src 'nonce-NONCE'; script-src 'nonce-NONCE'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n\
     Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nX-Robots-Tag: noindex\r\n";
/// A name of the DNS, its port, and what an address of IPv6 has around it.
const HOST_MAX_BYTES: usize = 262;

/// The page of one pixel.
pub(crate) struct Page {
    body: String,
}

impl Page {
    /// Of the pixel at `path`, whose visits are written in `format`, where this program knows. The text about privacy
    /// is at `privacy`; empty where there is none.
    pub(crate) fn of(path: &str, format: Option<LineFormat>, privacy: &str) -> Self {
        let example =
            format!("Anything behind a question mark is recorded, too: <code>{path}?campaign=spring</code>");
        let query = match format {
            Some(LineFormat::Pipe) => {
                "The lines of the format <code>pipe</code>, which is in use here, leave out what stands behind a \
                 question mark: for campaigns, choose <code>combined</code> or <code>ndjson</code>."
                    .to_string()
            }
            Some(_) => format!("{example}."),
            None => format!("{example}; lines of the format <code>pipe</code> leave it out."),
        };
        let privacy = match privacy {
            "" => String::new(),
            url => format!(" <a href=\"{}\">Privacy</a>", escaped(url)),
        };
        let body = BODY.replace("/track", path).replace("QUERY", &query).replace("PRIVACY", &privacy);
        Page { body }
    }

    /// The page as it is asked for at `host`.
    pub(crate) fn answer(&self, host: Option<&str>) -> Answer {
        let nonce = Uuid::new_v4().simple().to_string();
        let body = self.body.replace(NONCE, &nonce);
        let body = body.replace("ORIGIN", &origin(host));
        Answer::new("200 OK", "", b"").with_headers(HEADERS.replace(NONCE, &nonce)).with_body(body)
    }
}

/// The origin to show for a host. Behind the edge, which is what the public should see, it is https.
fn origin(host: Option<&str>) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
    let is_host = |host: &&str| (1..=HOST_MAX_BYTES).contains(&host.len()) && host.bytes().all(is_plain);
    let Some(host) = host.filter(is_host) else { return "https://THIS-HOST".into() };
    let is_this_machine = ["localhost", "127.", "[::1]"].iter().any(|own| host.starts_with(own));
    format!("{}://{host}", if is_this_machine { "http" } else { "https" })
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_shown_and_nothing_else_that_calls_itself_one() {
        for (host, shown) in [
            (Some("px.example.com"), "https://px.example.com"),
            (Some("px.example.com:8443"), "https://px.example.com:8443"),
            (Some("127.0.0.1:8080"), "http://127.0.0.1:8080"),
            (Some("[::1]:8080"), "http://[::1]:8080"),
            (Some("x\"><script>"), "https://THIS-HOST"),
            (Some(""), "https://THIS-HOST"),
            (None, "https://THIS-HOST"),
        ] {
            assert_eq!(origin(host), shown, "{host:?}");
        }
    }
}
