//! Answers as bytes: rendered once, written raw. tiny_http's own responses allocate every header.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io::Write;
use std::sync::Arc;

use jiff::Timestamp;

use crate::trace::{Context, Span};

/// The transparent 1x1 GIF that nginx's `empty_gif` serves.
const GIF: &[u8; 43] =
    b"GIF89a\x01\x00\x01\x00\x80\x01\x00\x00\x00\x00\xff\xff\xff\x21\xf9\x04\x01\x00\x00\x01\x00\
\x2c\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02\x4c\x01\x00\x3b";

/// What every answer of the pixel says beside its type.
macro_rules! pixel_headers {
    () => {
        "Cache-Control: no-store, no-cache, must-revalidate, max-age=0, private\r\n\
         Pragma: no-cache\r\n\
         Expires: 0\r\n\
         Access-Control-Allow-Origin: *\r\n\
         Cross-Origin-Resource-Policy: cross-origin\r\n\
         Timing-Allow-Origin: *\r\n\
         X-Content-Type-Options: nosniff\r\n"
    };
}

/// What tiny_http does with the connection after the answer (T11 of the listener).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Persistence {
    /// It goes on, as HTTP/1.1 does by itself.
    KeepAlive,
    /// It goes on because the client asked for it with HTTP/1.0.
    KeepAliveAsked,
    /// It closes.
    Close,
}

/// An answer, without what depends on the request.
#[derive(Debug, Clone)]
pub struct Answer {
    status: &'static str,
    headers: Cow<'static, str>,
    body: Cow<'static, [u8]>,
    is_visit: bool,
    // It ends with the answer.
    span: Option<Arc<Span>>,
}

/// 200 with the GIF.
pub(super) const PIXEL: Answer =
    Answer::new("200 OK", concat!("Content-Type: image/gif\r\n", pixel_headers!()), GIF);

/// 204: recorded, for `navigator.sendBeacon`.
pub(super) const RECORDED: Answer = Answer::new("204 No Content", pixel_headers!(), b"");

/// What every answer to a CORS preflight says.
macro_rules! preflight_headers {
    () => {
        "Allow: GET, HEAD, POST, OPTIONS\r\n\
         Access-Control-Allow-Methods: GET, HEAD, POST, OPTIONS\r\n\
         Access-Control-Allow-Headers: Content-Type, *\r\n\
         Access-Control-Max-Age: 86400\r\n\
         Vary: Origin\r\n"
    };
}

/// 204 for a CORS preflight of a page of no known origin.
const PREFLIGHT: Answer =
    Answer::new("204 No Content", concat!("Access-Control-Allow-Origin: *\r\n", preflight_headers!()), b"");

/// 204 for a CORS preflight (Fetch standard, section 3.2): where cookies would go with the request, as with a
/// beacon of JSON, a browser takes no wildcard for its page's origin, nor for the header `Content-Type`.
pub(super) fn preflight(origin: Option<&str>) -> Answer {
    // Heads may hold bare line feeds: what is no origin is not repeated.
    match origin.filter(|origin| !origin.is_empty() && origin.bytes().all(|byte| byte.is_ascii_graphic())) {
        None => PREFLIGHT,
        Some(origin) => Answer {
            headers: Cow::Owned(format!(
                "Access-Control-Allow-Origin: {origin}\r\nAccess-Control-Allow-Credentials: true\r\n{}",
                preflight_headers!()
            )),
            ..PREFLIGHT
        },
    }
}

/// 503 with the GIF: the visit is not recorded, and the page that shows the pixel looks as ever.
pub(super) const UNAVAILABLE: Answer = Answer::new(
    "503 Service Unavailable",
    concat!("Content-Type: image/gif\r\nRetry-After: 5\r\n", pixel_headers!()),
    GIF,
);

/// 503 with the GIF: as many bodies are being read as may be.
pub(super) const BUSY: Answer = Answer::new(
    "503 Service Unavailable",
    concat!("Connection: close\r\nContent-Type: image/gif\r\nRetry-After: 5\r\n", pixel_headers!()),
    GIF,
);

/// 405 for the pixel.
pub(super) const PIXEL_METHODS: Answer =
    Answer::new("405 Method Not Allowed", "Allow: GET, HEAD, POST, OPTIONS\r\n", b"");

/// 405 for everything else.
pub(super) const PAGE_METHODS: Answer = Answer::new("405 Method Not Allowed", "Allow: GET, HEAD\r\n", b"");

/// 404.
pub(super) const NOT_FOUND: Answer =
    Answer::new("404 Not Found", "Content-Type: text/plain\r\n", b"not found\n");

/// 400: where the request ends cannot be told for sure (RFC 9112, section 6.3).
pub(super) const BAD_FRAMING: Answer = Answer::new(
    "400 Bad Request",
    "Connection: close\r\nContent-Type: text/plain\r\n",
    b"the length of the body is unclear\n",
);

/// 400: whose request it is cannot be told (RFC 9112, section 3.2).
pub(super) const BAD_HOST: Answer = Answer::new(
    "400 Bad Request",
    "Connection: close\r\nContent-Type: text/plain\r\n",
    b"exactly one Host is expected\n",
);

/// 501: the body is not chunked, but something else (RFC 9112, section 6.1).
pub(super) const UNKNOWN_CODING: Answer = Answer::new(
    "501 Not Implemented",
    "Connection: close\r\nContent-Type: text/plain\r\n",
    b"the only transfer coding is chunked\n",
);

/// 500: what was asked for may have been done or not.
pub(super) const FAILED: Answer = Answer::new(
    "500 Internal Server Error",
    "Connection: close\r\nContent-Type: text/plain\r\n",
    b"this should not have happened\n",
);

/// 413: the body is larger than what is read of one.
pub(super) const TOO_LARGE: Answer = Answer::new(
    "413 Content Too Large",
    "Connection: close\r\nContent-Type: text/plain\r\n",
    b"at most 64 KiB of body is read\n",
);

impl Answer {
    /// An answer with this status ("200 OK"), these headers, each with its line end, and this body. Date,
    /// length and what becomes of the connection are added.
    pub const fn new(status: &'static str, headers: &'static str, body: &'static [u8]) -> Self {
        let (headers, body) = (Cow::Borrowed(headers), Cow::Borrowed(body));
        Answer { status, headers, body, is_visit: false, span: None }
    }

    /// The same with a body of its own.
    pub fn with_body(self, body: String) -> Self {
        Answer { body: Cow::Owned(body.into_bytes()), ..self }
    }

    /// The same with headers of its own, each with its line end.
    pub fn with_headers(self, headers: String) -> Self {
        Answer { headers: Cow::Owned(headers), ..self }
    }

    /// Its status: "200 OK".
    pub fn status(&self) -> &'static str {
        self.status
    }

    /// The same, to a visit: the time that it took is measured.
    pub fn for_visit(self) -> Self {
        Answer { is_visit: true, ..self }
    }

    /// Whether it is the answer to a visit.
    pub fn is_visit(&self) -> bool {
        self.is_visit
    }

    /// The same, whose request is traced: the span ends when it is written.
    pub(super) fn traced(self, span: Span) -> Self {
        Answer { span: Some(Arc::new(span)), ..self }
    }

    /// The span of its request, where that is traced.
    pub(super) fn context(&self) -> Option<Context> {
        self.span.as_ref().map(|span| span.context())
    }

    /// The bytes for a connection that is kept so; `is_closing` tells a client that would go on to use another.
    pub(super) fn bytes(&self, persistence: Persistence, is_head: bool, is_closing: bool) -> Vec<u8> {
        let connection = match persistence {
            _ if self.headers.starts_with("Connection: close") => "",
            Persistence::KeepAlive if !is_closing => "",
            Persistence::KeepAliveAsked if !is_closing => "Connection: keep-alive\r\n",
            _ => "Connection: close\r\n",
        };
        let body = if is_head { &b""[..] } else { &self.body };
        self.render(connection, body)
    }

    /// The bytes for a client whose request is given up.
    pub(super) fn last_bytes(&self) -> Vec<u8> {
        self.render("", &self.body)
    }

    fn render(&self, connection: &str, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(640 + body.len());
        with_date(|date| {
            for part in ["HTTP/1.1 ", self.status, "\r\nDate: ", date, "\r\n", connection, &self.headers] {
                bytes.extend_from_slice(part.as_bytes());
            }
        });
        // RFC 9110, section 8.6: no length with 204; with HEAD, the one that GET would have.
        if self.status != "204 No Content" {
            write!(bytes, "Content-Length: {}\r\n", self.body.len()).expect("writing to memory cannot fail");
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body);
        bytes
    }
}

/// Calls `use_date` with the present time as an IMF-fixdate (RFC 9110, section 5.6.7), which is made
/// once a second.
fn with_date<T>(use_date: impl FnOnce(&str) -> T) -> T {
    thread_local! {
        static DATE: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
    }
    let now = Timestamp::now();
    DATE.with_borrow_mut(|(second, date)| {
        if *second != now.as_second() {
            *second = now.as_second();
            *date = now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        }
        use_date(date)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pixel_is_the_contract_s() {
        let hex: String = GIF.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "47494638396101000100800100000000ffffff21f90401000001002c00000000010001000002024c01003b"
        );
    }
}
