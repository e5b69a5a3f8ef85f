//! The admin listener: `/healthz`, `/readyz` and `/metrics`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use tiny_http::Method;

use super::answer::{Answer, PAGE_METHODS};
use super::listener::{Handler, Request, reachable};
use crate::metrics::Metrics;

const ASK_TIMEOUT: Duration = Duration::from_secs(3);

const PLAIN: &str = "Content-Type: text/plain; charset=utf-8\r\n";
const ALIVE: Answer = Answer::new("200 OK", PLAIN, b"ok\n");
const READY: Answer = Answer::new("200 OK", PLAIN, b"");
const UNREADY: Answer = Answer::new("503 Service Unavailable", PLAIN, b"");
const NUMBERS: Answer = Answer::new(
    "200 OK",
    "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n",
    b"",
);
const ELSEWHERE: Answer = Answer::new("404 Not Found", PLAIN, b"there are /healthz, /readyz and /metrics\n");

/// How a program stands.
pub trait Status: Send + Sync {
    /// Why it cannot do its job right now; empty when it can.
    fn problems(&self) -> Vec<String>;
    /// What `/readyz` says when there is no problem, in whole lines.
    fn state(&self) -> String;
    /// Brings the gauges up to date that nobody sets as things happen.
    fn measure(&self, metrics: &Metrics);
}

/// The handler of the admin listener.
pub(crate) struct Admin {
    /// What is shown as `/metrics`.
    pub metrics: Arc<Metrics>,
    /// What is shown as `/readyz`.
    pub status: Box<dyn Status>,
}

impl Handler for Admin {
    fn handle(&self, requests: &[&Request]) -> Vec<Answer> {
        requests.iter().map(|request| self.answer(request)).collect()
    }
}

impl Admin {
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
                NUMBERS.with_body(self.metrics.text())
            }
            _ => ELSEWHERE,
        }
    }
}

/// Asks the `/readyz` of the program whose admin listener is at `address`: for a container's health check.
///
/// # Errors
/// Why it is not ready, or that nobody answers.
pub(crate) fn ask_ready(address: SocketAddr) -> Result<String, String> {
    let address = reachable(address);
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&address, ASK_TIMEOUT)?;
        stream.set_read_timeout(Some(ASK_TIMEOUT))?;
        stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    let answer = ask().map_err(|error| format!("no answer from http://{address}/readyz: {error}"))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim().to_string();
    if answer.starts_with("HTTP/1.1 200 ") { Ok(body) } else { Err(body) }
}
