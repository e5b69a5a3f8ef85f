//! The public endpoints: a group of requests becomes one durable append, then each is answered.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use jiff::Timestamp;
use tiny_http::{Method, Request};

use super::answer::{
    Answer, BAD_FRAMING, NOT_FOUND, PAGE_METHODS, PIXEL, PIXEL_METHODS, PREFLIGHT, RECORDED, UNAVAILABLE,
};
use super::listener::body::{Bodies, Framing, framing};
use super::listener::server::Handler;
use super::listener::slow_clients::SlowLane;
use super::listener::turns::Taken;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::visit::client_ip::TrustedProxies;
use crate::visit::request::{Target, VisitStore, visit};
use crate::visit::wire::encode;

/// The name under which the listener reports a store that refuses.
pub const STORE: &str = "spool";

const PAGE_BODY: &str = include_str!("page.html");
const PAGE: Answer = Answer::new(
    "200 OK",
    "Content-Type: text/html; charset=utf-8\r\n\
     Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n\
     X-Content-Type-Options: nosniff\r\nX-Robots-Tag: noindex\r\n",
    PAGE_BODY.as_bytes(),
);
const ROBOTS: Answer = Answer::new("200 OK", "Content-Type: text/plain\r\n", b"User-agent: *\nDisallow: /\n");

/// What a request is to the pixel.
#[derive(Clone, Copy)]
pub enum Kind {
    /// To be recorded, then answered so.
    Visit(Answer),
    /// To be answered so.
    Other(Answer),
}

/// The handler of the public listener.
pub struct Track {
    /// Where visits become durable.
    pub store: &'static dyn VisitStore,
    /// Whose word on the client's address is believed.
    pub proxies: TrustedProxies,
    /// What is counted.
    pub metrics: &'static Metrics,
    /// Where a store that refuses is shown.
    pub health: &'static Health,
    bodies: Bodies,
}

impl Track {
    /// A handler that keeps visits in `store`.
    pub fn new(
        store: &'static dyn VisitStore,
        proxies: TrustedProxies,
        metrics: &'static Metrics,
        health: &'static Health,
    ) -> Self {
        Track { store, proxies, metrics, health, bodies: Bodies::default() }
    }

    /// Appends the line of a visit.
    fn encode(&self, request: &Request, lines: &mut Vec<u8>) {
        let peer = request.remote_addr().map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.ip());
        let headers =
            request.headers().iter().map(|header| (header.field.as_str().as_str(), header.value.as_str()));
        let target = Target::parse(request.url());
        encode(&visit(Timestamp::now(), peer, &self.proxies, target, headers), lines);
    }

    /// Makes `count` visits durable.
    fn keep(&self, lines: &[u8], count: u32) -> bool {
        match self.store.append(lines, count) {
            Ok(()) => {
                self.metrics.accepted.inc_by(count.into());
                if self.health.well(STORE) {
                    log::info!("visits are taken again");
                }
                true
            }
            Err(error) => {
                self.metrics.refused.inc_by(count.into());
                let problem = error.to_string();
                if self.health.ill(STORE, &problem) {
                    log::error!("{problem}; visits are answered with 503 until it works again");
                }
                false
            }
        }
    }

    /// Answers one request whose body is there by now.
    fn handle_one(&self, request: Taken, slow: &SlowLane, closing: bool) {
        let taken = Instant::now();
        let mut kind = kind(&request, framing(&request));
        if let Kind::Visit(_) = kind {
            let mut lines = Vec::new();
            self.encode(&request, &mut lines);
            if !self.keep(&lines, 1) {
                kind = Kind::Visit(UNAVAILABLE);
            }
        }
        self.answer_one(request, kind, taken, slow, closing);
    }

    fn answer_one(&self, request: Taken, kind: Kind, taken: Instant, slow: &SlowLane, closing: bool) {
        let (Kind::Visit(answer) | Kind::Other(answer)) = kind;
        let bytes = answer.bytes(&request, closing);
        slow.answer(request, bytes, self.metrics);
        if let Kind::Visit(_) = kind {
            self.metrics.track_duration.observe(taken.elapsed().as_secs_f64());
        }
    }
}

impl Handler for Track {
    type Group = Vec<(Taken, Kind)>;

    fn commit(
        &'static self,
        requests: Vec<Taken>,
        slow: &'static SlowLane,
        stopping: &'static AtomicBool,
    ) -> Self::Group {
        let (mut lines, mut count) = (Vec::with_capacity(requests.len() * 256), 0);
        let mut group = Vec::with_capacity(requests.len());
        for request in requests {
            let framing = framing(&request);
            if framing.is_pending {
                self.bodies.take(request, framing.length, self.metrics, move |request| {
                    self.handle_one(request, slow, stopping.load(Ordering::Relaxed));
                });
                continue;
            }
            let kind = kind(&request, framing);
            if let Kind::Visit(_) = kind {
                self.encode(&request, &mut lines);
                count += 1;
            }
            group.push((request, kind));
        }
        let kept = count == 0 || self.keep(&lines, count);
        group
            .into_iter()
            .map(|(request, kind)| match kind {
                Kind::Visit(_) if !kept => (request, Kind::Visit(UNAVAILABLE)),
                kind => (request, kind),
            })
            .collect()
    }

    fn answer(&self, group: Self::Group, taken: Instant, slow: &SlowLane, closing: bool) {
        for (request, kind) in group {
            self.answer_one(request, kind, taken, slow, closing);
        }
    }
}

fn kind(request: &Request, framing: Framing) -> Kind {
    use Kind::{Other, Visit};
    if framing.is_unclear {
        return Other(BAD_FRAMING);
    }
    match (Target::parse(request.url()).path, request.method()) {
        ("/track" | "/track.gif", Method::Get) => Visit(PIXEL),
        ("/track" | "/track.gif", Method::Post) => Visit(RECORDED),
        ("/track" | "/track.gif", Method::Head) => Other(PIXEL),
        ("/track" | "/track.gif", Method::Options) => Other(PREFLIGHT),
        ("/track" | "/track.gif", _) => Other(PIXEL_METHODS),
        ("/", Method::Get | Method::Head) => Other(PAGE),
        ("/robots.txt", Method::Get | Method::Head) => Other(ROBOTS),
        ("/" | "/robots.txt", _) => Other(PAGE_METHODS),
        _ => Other(NOT_FOUND),
    }
}
