//! The admin listener: `/healthz`, `/readyz` and `/metrics`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tiny_http::{Method, Request};

use super::answer::text;
use super::listener::body::{discard, framing};
use super::listener::reachable;
use super::listener::server::Handler;
use super::listener::slow_clients::SlowLane;
use super::listener::turns::Taken;
use crate::metrics::Metrics;

const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// The handler of the admin listener.
pub struct Admin {
    /// What is shown as `/metrics`.
    pub metrics: &'static Metrics,
    /// Brings the gauges up to date.
    pub refresh: Box<dyn Fn(&Metrics) + Send + Sync>,
    /// Why the program cannot do its job right now; empty when it can.
    pub problems: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// What `/readyz` says when there is no problem, a line.
    pub state: Box<dyn Fn() -> String + Send + Sync>,
}

impl Admin {
    fn bytes(&self, request: &Request) -> Vec<u8> {
        const PLAIN: &str = "text/plain; charset=utf-8";
        if !matches!(request.method(), Method::Get | Method::Head) {
            return text(request, "405 Method Not Allowed\r\nAllow: GET, HEAD", PLAIN, "only GET and HEAD\n");
        }
        match request.url().split('?').next().unwrap_or_default() {
            "/healthz" => text(request, "200 OK", PLAIN, "ok\n"),
            "/readyz" => match (self.problems)() {
                problems if problems.is_empty() => text(request, "200 OK", PLAIN, &(self.state)()),
                problems => text(request, "503 Service Unavailable", PLAIN, &(problems.join("\n") + "\n")),
            },
            "/metrics" => {
                (self.refresh)(self.metrics);
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                text(request, "200 OK", kind, &self.metrics.text())
            }
            _ => text(request, "404 Not Found", PLAIN, "there are /healthz, /readyz and /metrics\n"),
        }
    }
}

impl Handler for Admin {
    type Group = Vec<Taken>;

    fn commit(
        &'static self,
        requests: Vec<Taken>,
        _: &'static SlowLane,
        _: &'static AtomicBool,
    ) -> Self::Group {
        requests
    }

    fn answer(&self, group: Self::Group, _: Instant, slow: &SlowLane, _: bool) {
        for request in group {
            if framing(&request).is_pending {
                // Nobody has a body for this listener, and dropping one may end the process.
                discard(request.into_parts().0, self.metrics);
                continue;
            }
            let bytes = self.bytes(&request);
            slow.answer(request, bytes, self.metrics);
        }
    }
}

/// Asks the `/readyz` of the program whose admin listener is at `address`: for a container's health check.
///
/// # Errors
/// Why it is not ready, or that nobody answers.
pub fn ask_ready(address: SocketAddr) -> Result<String, String> {
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
