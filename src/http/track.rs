//! The public endpoints: a group of requests becomes one durable append, and then each has its answer.

use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;
use tiny_http::Method;

use super::answer::{
    Answer, NOT_FOUND, PAGE_METHODS, PIXEL, PIXEL_METHODS, RECORDED, UNAVAILABLE, preflight,
};
use super::listener::{Handler, Request};
use super::page::Page;
use crate::health::{Health, Part};
use crate::metrics::Metrics;
use crate::queue::VisitStore;
use crate::trace::{self, Caller, Context, Span};
use crate::visit::client_ip::TrustedProxies;
use crate::visit::request::{Target, visit};
use crate::visit::wire::encode;

/// What a visit takes as JSON, more or less.
const TYPICAL_BYTES: usize = 256;

const ROBOTS: Answer = Answer::new("200 OK", "Content-Type: text/plain\r\n", b"User-agent: *\nDisallow: /\n");
/// Browsers ask for an icon, and there is none.
const NO_ICON: Answer = Answer::new("204 No Content", "Cache-Control: max-age=86400\r\n", b"");

/// Where the pixel is, and the page that says so.
pub(crate) struct Pixel {
    paths: [String; 2],
    page: Page,
}

impl Pixel {
    /// The pixel at `path`, and at `path` with `.gif` behind it.
    pub(crate) fn at(path: String, page: Page) -> Self {
        Pixel { page, paths: [format!("{path}.gif"), path] }
    }

    fn route(&self, target: &Target<'_>, method: &Method) -> Route {
        use Route::{Other, Page, Preflight, Visit};
        let is_pixel = self.paths.iter().any(|path| path == target.path);
        match (target.path, method) {
            (_, Method::Get) if is_pixel => Visit(PIXEL),
            (_, Method::Post) if is_pixel => Visit(RECORDED),
            (_, Method::Head) if is_pixel => Other(PIXEL),
            (_, Method::Options) if is_pixel => Preflight,
            _ if is_pixel => Other(PIXEL_METHODS),
            ("/", Method::Get | Method::Head) => Page,
            ("/robots.txt", Method::Get | Method::Head) => Other(ROBOTS),
            ("/favicon.ico", Method::Get | Method::Head) => Other(NO_ICON),
            ("/" | "/robots.txt" | "/favicon.ico", _) => Other(PAGE_METHODS),
            _ => Other(NOT_FOUND),
        }
    }
}

/// The handler of the public listener.
pub(crate) struct Track {
    /// Where visits become durable.
    pub store: Arc<dyn VisitStore>,
    /// Proxies whose X-Forwarded-For and Forwarded headers are trusted.
    pub proxies: TrustedProxies,
    /// Where the pixel is.
    pub pixel: Pixel,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where a store that refuses is shown.
    pub health: Arc<Health>,
}

impl Handler for Track {
    fn handle(&self, requests: &[&Request]) -> Vec<Answer> {
        let (mut lines, mut visits) = (Vec::with_capacity(requests.len() * TYPICAL_BYTES), 0);
        // Of those that are traced, with their places.
        let mut spans = Vec::new();
        let mut answers: Vec<Answer> = requests
            .iter()
            .enumerate()
            .map(|(place, request)| {
                let target = Target::parse(request.target());
                match self.pixel.route(&target, request.method()) {
                    Route::Visit(answer) => {
                        let peer = request.peer().ip();
                        let (now, method) = (Timestamp::now(), request.method().as_str());
                        let visit = visit(now, peer, &self.proxies, method, target, request.headers());
                        encode(&visit, &mut lines);
                        visits += 1;
                        if let Some(span) = self.span(request, target.path) {
                            trace::mark(&mut lines, span.context());
                            spans.push((place, span));
                        }
                        answer.for_visit()
                    }
                    Route::Preflight => preflight(header(request, "Origin")),
                    Route::Page => self.pixel.page.answer(header(request, "Host")),
                    Route::Other(answer) => answer,
                }
            })
            .collect();
        if visits > 0 && !self.keep(&lines, visits, &spans) {
            let refused = answers.iter_mut().filter(|answer| answer.is_visit());
            refused.for_each(|answer| *answer = UNAVAILABLE.for_visit());
        }
        for (place, mut span) in spans {
            span.answered(answers[place].status());
            answers[place] = answers[place].clone().traced(span);
        }
        answers
    }

    fn answered(&self, status: &'static str) {
        self.metrics.responses.add(status, 1);
    }
}

impl Track {
    /// The span of a visit, where it is traced.
    fn span(&self, request: &Request, path: &str) -> Option<Span> {
        if !trace::is_on() {
            return None;
        }
        let route = self.pixel.paths.iter().find(|known| *known == path)?;
        let mut callers = headers(request, "traceparent");
        let caller = callers.next().filter(|_| callers.next().is_none()).and_then(Context::parse);
        let caller = caller.map(|context| match self.proxies.trusts(request.peer().ip()) {
            true => Caller::trusted(context, headers(request, "tracestate")),
            false => Caller::stranger(context),
        });
        let method = if *request.method() == Method::Post { "POST" } else { "GET" };
        trace::request(method, route, SystemTime::now(), caller)
    }

    /// Makes `count` visits durable, some of which are traced; returns whether they are.
    fn keep(&self, lines: &[u8], count: u32, spans: &[(usize, Span)]) -> bool {
        // What is said in the log meanwhile is of one of them.
        let _within = trace::within(spans.first().map(|(_, span)| span.context()));
        let start = SystemTime::now();
        let appended = self.store.append(lines, count);
        for (_, span) in spans {
            span.add("append to the spool", start, SystemTime::now(), appended.is_err());
        }
        match appended {
            Ok(()) => {
                self.metrics.accepted.inc_by(count.into());
                self.metrics.recent.note(lines);
                if self.health.well(Part::Spool).is_some() {
                    log::info!("visits are taken again");
                }
                true
            }
            Err(error) => {
                self.metrics.refused.inc_by(count.into());
                let problem = error.to_string();
                if let Some(lasting) = self.health.ill(Part::Spool, &problem) {
                    log::error!("{problem}{lasting}; visits are answered with 503 until it works again");
                }
                false
            }
        }
    }
}

/// What a request is to the pixel.
enum Route {
    /// To be recorded, then answered so.
    Visit(Answer),
    /// A browser asks before it posts from another site.
    Preflight,
    /// Somebody looks what this is.
    Page,
    /// To be answered so.
    Other(Answer),
}

fn headers<'a>(request: &'a Request, name: &str) -> impl Iterator<Item = &'a str> {
    let is_it = move |field: &str| field.eq_ignore_ascii_case(name);
    request.headers().filter(move |(field, _)| is_it(field)).map(|(_, value)| value)
}

fn header<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    headers(request, name).next()
}
