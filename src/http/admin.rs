//! The admin listener: the status page and its JSON, `/healthz`, `/readyz` and `/metrics`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use tiny_http::Method;
use uuid::Uuid;

use super::answer::{Answer, PAGE_METHODS};
use super::listener::{Handler, Request, reachable};
use super::report::{Facts, Status, report, shows_visits};
use crate::metrics::Metrics;

const ASK_TIMEOUT: Duration = Duration::from_secs(3);

const PLAIN: &str = "Content-Type: text/plain; charset=utf-8\r\n";
const ALIVE: Answer = Answer::new("200 OK", PLAIN, b"ok\n");
const READY: Answer = Answer::new("200 OK", PLAIN, b"");
const UNREADY: Answer = Answer::new("503 Service Unavailable", PLAIN, b"");
const OPEN_METRICS: &str = "application/openmetrics-text";
const OPEN_METRICS_NUMBERS: Answer = Answer::new(
    "200 OK",
    "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\nVary: Accept\r\n",
    b"",
);
const NUMBERS: Answer =
    Answer::new("200 OK", "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\nVary: Accept\r\n", b"");
const JSON: Answer = Answer::new(
    "200 OK",
    "Content-Type: application/json\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n",
    b"",
);
const ELSEWHERE: Answer =
    Answer::new("404 Not Found", PLAIN, b"there are /, /status.json, /healthz, /readyz and /metrics\n");
/// What stands for the number that marks the page's own style and script.
const NONCE: &str = "NONCE";
const PAGE_BODY: &str = include_str!("status.html");
/// Nothing but what the page itself brings is run, loaded or asked, and nobody may frame it.
const PAGE_HEADERS: &str = "Content-Type: text/html; charset=utf-8\r\n\
     Content-Security-Policy: default-src 'none'; style-src 'nonce-NONCE'; script-src 'nonce-NONCE'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'\r\n\
     Cache-Control: no-store\r\nReferrer-Policy: no-referrer\r\nX-Content-Type-Options: nosniff\r\n\
     Cross-Origin-Resource-Policy: same-origin\r\nX-Robots-Tag: noindex\r\n";

/// The handler of the admin listener.
pub(crate) struct Admin {
    /// What is shown as `/metrics`.
    pub metrics: Arc<Metrics>,
    /// What is shown as `/readyz`.
    pub status: Box<dyn Status>,
    /// What the status page says beside it.
    pub facts: Facts,
}

impl Handler for Admin {
    fn handle(&self, requests: &[&Request]) -> Vec<Answer> {
        requests.iter().map(|request| self.answer(request)).collect()
    }
}

impl Admin {
    /// What `/metrics` shows, as OpenMetrics text.
    pub(crate) fn numbers(&self) -> String {
        self.status.measure(&self.metrics);
        self.metrics.open_metrics()
    }

    fn answer(&self, request: &Request) -> Answer {
        if !matches!(request.method(), Method::Get | Method::Head) {
            return PAGE_METHODS;
        }
        match request.target().split('?').next().unwrap_or_default() {
            "/healthz" => ALIVE,
            "/readyz" => match self.status.problems() {
                problems if problems.is_empty() => READY.with_body(self.status.state()),
                problems => UNREADY.with_body(problems.join("\n") + "\n"),
            },
            "/metrics" => {
                self.status.measure(&self.metrics);
                match header(request, "Accept").is_some_and(|accepted| accepted.contains(OPEN_METRICS)) {
                    true => OPEN_METRICS_NUMBERS.with_body(self.metrics.open_metrics()),
                    false => NUMBERS.with_body(self.metrics.text()),
                }
            }
            "/" => page(),
            "/status.json" => {
                let shows_visits = shows_visits(header(request, "Host"));
                JSON.with_body(report(&self.metrics, &*self.status, &self.facts, shows_visits))
            }
            _ => ELSEWHERE,
        }
    }
}

/// The status page, with a number that nobody can foresee.
fn page() -> Answer {
    let nonce = Uuid::new_v4().simple().to_string();
    let headers = PAGE_HEADERS.replace(NONCE, &nonce);
    Answer::new("200 OK", "", b"").with_headers(headers).with_body(PAGE_BODY.replace(NONCE, &nonce))
}

fn header<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    request.headers().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// Asks the `/readyz` of the program whose admin listener is at `address`: for a container's health check.
///
/// # Errors
/// Why it is not ready, or that nobody answers.
pub(crate) fn ask_ready(address: SocketAddr) -> Result<String, String> {
    ask(address, "/readyz")
}

/// Asks the program whose admin listener is at `address` for its `/status.json`.
///
/// # Errors
/// What it said instead, or that nobody answers.
pub(crate) fn ask_status(address: SocketAddr) -> Result<String, String> {
    ask(address, "/status.json")
}

/// The body of an answer of 200; else what was said, or that nobody answers.
fn ask(address: SocketAddr, path: &str) -> Result<String, String> {
    let address = reachable(address);
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&address, ASK_TIMEOUT)?;
        stream.set_read_timeout(Some(ASK_TIMEOUT))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    let answer = ask().map_err(|error| format!("no answer from http://{address}{path}: {error}"))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim().to_string();
    if answer.starts_with("HTTP/1.1 200 ") { Ok(body) } else { Err(body) }
}
