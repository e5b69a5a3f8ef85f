//! Answers as bytes: rendered once, written raw. tiny_http's own responses allocate every header.

use std::cell::RefCell;
use std::io::Write;

use jiff::Timestamp;
use tiny_http::{HTTPVersion, Method, Request};

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

/// An answer, without what depends on the request.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    status: &'static str,
    headers: &'static str,
    body: &'static [u8],
}

/// 200 with the GIF.
pub const PIXEL: Answer =
    Answer { status: "200 OK", headers: concat!("Content-Type: image/gif\r\n", pixel_headers!()), body: GIF };

/// 204: recorded, for `navigator.sendBeacon`.
pub const RECORDED: Answer = Answer { status: "204 No Content", headers: pixel_headers!(), body: b"" };

/// 204 for a CORS preflight (Fetch standard, section 3.2).
pub const PREFLIGHT: Answer = Answer {
    status: "204 No Content",
    headers: "Allow: GET, HEAD, POST, OPTIONS\r\n\
              Access-Control-Allow-Origin: *\r\n\
              Access-Control-Allow-Methods: GET, HEAD, POST, OPTIONS\r\n\
              Access-Control-Allow-Headers: *\r\n\
              Access-Control-Max-Age: 86400\r\n",
    body: b"",
};

/// 503 with the GIF: the visit is not recorded, and the page that shows the pixel looks as ever.
pub const UNAVAILABLE: Answer = Answer {
    status: "503 Service Unavailable",
    headers: concat!("Content-Type: image/gif\r\nRetry-After: 5\r\n", pixel_headers!()),
    body: GIF,
};

/// 405 for the pixel.
pub const PIXEL_METHODS: Answer =
    Answer { status: "405 Method Not Allowed", headers: "Allow: GET, HEAD, POST, OPTIONS\r\n", body: b"" };

/// 405 for everything else.
pub const PAGE_METHODS: Answer =
    Answer { status: "405 Method Not Allowed", headers: "Allow: GET, HEAD\r\n", body: b"" };

/// 404.
pub const NOT_FOUND: Answer =
    Answer { status: "404 Not Found", headers: "Content-Type: text/plain\r\n", body: b"not found\n" };

/// 400: where the request ends cannot be told for sure (RFC 9112, section 6.3).
pub const BAD_FRAMING: Answer = Answer {
    status: "400 Bad Request",
    headers: "Connection: close\r\nContent-Type: text/plain\r\n",
    body: b"the length of the body is unclear\n",
};

/// 413: the body is larger than what is read of one.
pub const TOO_LARGE: Answer = Answer {
    status: "413 Content Too Large",
    headers: "Connection: close\r\nContent-Type: text/plain\r\n",
    body: b"at most 64 KiB of body is read\n",
};

impl Answer {
    /// An answer with a body of its own.
    pub const fn new(status: &'static str, headers: &'static str, body: &'static [u8]) -> Self {
        Answer { status, headers, body }
    }

    /// The bytes for `request`; `closing` tells a client that would go on to use another connection.
    pub fn bytes(&self, request: &Request, closing: bool) -> Vec<u8> {
        let connection = match keep_alive(request) {
            _ if self.headers.starts_with("Connection: close") => "",
            Some(true) if closing => "Connection: close\r\n",
            Some(true) if *request.http_version() == HTTPVersion(1, 0) => "Connection: keep-alive\r\n",
            Some(true) => "",
            _ => "Connection: close\r\n",
        };
        let body = if *request.method() == Method::Head { &b""[..] } else { self.body };
        self.render(connection, body)
    }

    /// The bytes for a client whose request is given up.
    pub fn last_bytes(&self) -> Vec<u8> {
        self.render("", self.body)
    }

    fn render(&self, connection: &str, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(640 + body.len());
        with_date(|date| {
            for part in ["HTTP/1.1 ", self.status, "\r\nDate: ", date, "\r\n", connection, self.headers] {
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

/// A dynamic answer, always in full: for the admin listener.
pub fn text(request: &Request, status: &str, content_type: &str, body: &str) -> Vec<u8> {
    let connection = if keep_alive(request) == Some(true) { "" } else { "Connection: close\r\n" };
    let head = format!(
        "HTTP/1.1 {status}\r\n{connection}Content-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let body = if *request.method() == Method::Head { "" } else { body };
    [head.as_bytes(), body.as_bytes()].concat()
}

/// Whether tiny_http will go on with the connection, by its own rule: it looks at the first
/// `Connection` header only. `None` where it hands the connection over (`upgrade`).
fn keep_alive(request: &Request) -> Option<bool> {
    let is_1_0 = *request.http_version() == HTTPVersion(1, 0);
    let Some(value) = header(request, "Connection") else { return Some(!is_1_0) };
    if contains_ignore_case(value, "close") {
        Some(false)
    } else if contains_ignore_case(value, "upgrade") {
        None
    } else {
        Some(!is_1_0 || contains_ignore_case(value, "keep-alive"))
    }
}

/// Whether `option` stands anywhere in `value`, in capitals or not: what tiny_http looks for.
pub fn contains_ignore_case(value: &str, option: &str) -> bool {
    value.as_bytes().windows(option.len()).any(|part| part.eq_ignore_ascii_case(option.as_bytes()))
}

/// The first value of a header.
pub fn header<'r>(request: &'r Request, name: &'static str) -> Option<&'r str> {
    let found = request.headers().iter().find(|header| header.field.equiv(name));
    found.map(|header| header.value.as_str())
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
