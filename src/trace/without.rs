//! Tracing in a build without the feature `otel`: there is none, and whoever asks for it is told how to get it.

use std::fmt;
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;

/// How many spans one is linked to: none.
pub const LINKS_MAX: usize = 0;
const ABSENT: &str = "this Pixel was built without OpenTelemetry, as `make run` builds it: `cargo build --release` has \
    it, and so have the package and the images; or unset it";
/// Those that ask for something to be sent.
const ENDPOINTS: [&str; 3] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
];

/// What is sent: nothing.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Nothing.
    pub numbers: Option<Numbers>,
}

impl Settings {
    /// Looks whether something is to be sent.
    ///
    /// # Errors
    /// That nothing can be, each with the variable that asks for it.
    pub fn from_environment() -> Result<Settings, Vec<String>> {
        Self::read(|name| std::env::var(name).ok())
    }

    fn read(given: impl Fn(&str) -> Option<String>) -> Result<Settings, Vec<String>> {
        if given("OTEL_SDK_DISABLED").is_some_and(|text| text.trim().eq_ignore_ascii_case("true")) {
            return Ok(Settings::default());
        }
        let asks = |name: &&str| given(name).is_some_and(|text| !text.trim().is_empty());
        let problems: Vec<_> =
            ENDPOINTS.into_iter().filter(asks).map(|name| format!("{name}: {ABSENT}")).collect();
        if problems.is_empty() { Ok(Settings::default()) } else { Err(problems) }
    }
}

/// Numbers on their way to a receiver: there are none.
#[derive(Debug, Clone)]
pub enum Numbers {}

impl Numbers {
    /// Cannot be called.
    pub fn run(&self, _: &'static str, _: impl Fn() -> String, _: impl Fn(Duration) -> bool) {
        match *self {}
    }
}

/// What became of spans: nothing.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Stays 0.
    pub exported: Counter,
    /// Stays 0.
    pub dropped: Counter,
}

/// A span as others name it: none is ever made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context(());

impl Context {
    /// Reads none.
    pub fn parse(_: &str) -> Option<Context> {
        None
    }

    /// Nothing.
    pub fn trace_id(&self) -> String {
        String::new()
    }
}

impl fmt::Display for Context {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

/// The span that a request says it belongs to.
#[derive(Debug)]
pub struct Caller(());

impl Caller {
    /// Of somebody who may say so.
    pub fn trusted<'a>(_: Context, _: impl Iterator<Item = &'a str>) -> Self {
        Caller(())
    }

    /// Of anybody.
    pub fn stranger(_: Context) -> Self {
        Caller(())
    }
}

/// A span: there is none.
#[derive(Debug)]
pub enum Span {}

impl Span {
    /// Cannot be called.
    pub fn context(&self) -> Context {
        match *self {}
    }

    /// Cannot be called.
    pub fn fail(&mut self, _: &str) {
        match *self {}
    }

    /// Cannot be called.
    pub fn answered(&mut self, _: &str) {
        match *self {}
    }

    /// Cannot be called.
    pub fn add(&self, _: &'static str, _: SystemTime, _: SystemTime, _: bool) {
        match *self {}
    }
}

/// What this thread works on.
#[derive(Debug)]
pub struct Entered(());

/// Users end a part by dropping it.
impl Drop for Entered {
    fn drop(&mut self) {}
}

/// Starts nothing.
///
/// # Errors
/// None.
pub fn start(_: &Settings, _: &'static str, _: Counts) -> Result<(), String> {
    Ok(())
}

/// Ends nothing.
pub fn finish() {}

/// Whether spans are made: they are not.
pub fn is_on() -> bool {
    false
}

/// The span that this thread works on: none.
pub fn current() -> Option<Context> {
    None
}

/// Marks nothing.
pub fn mark(_: &mut Vec<u8>, _: Context) {}

/// None.
pub fn marked(_: &[u8]) -> impl Iterator<Item = Context> {
    std::iter::empty()
}

/// Enters nothing.
pub fn enter(_: Option<Span>) -> Entered {
    Entered(())
}

/// Enters nothing.
pub fn within(_: Option<Context>) -> Entered {
    Entered(())
}

/// Enters nothing.
pub fn step(_: &'static str) -> Entered {
    Entered(())
}

/// Enters nothing.
pub fn settle(_: &str) -> Entered {
    Entered(())
}

/// Makes none.
pub fn request(_: &'static str, _: &str, _: SystemTime, _: Option<Caller>) -> Option<Span> {
    None
}

/// Makes none.
pub fn send<Requests: Iterator<Item = Context>>(
    _: &str,
    _: &'static str,
    _: u64,
    _: impl FnOnce() -> Requests,
) -> Option<Span> {
    None
}

/// Makes none.
pub fn process<Sources: Iterator<Item = Context>>(
    _: Option<&str>,
    _: usize,
    _: impl FnOnce() -> Sources,
) -> Option<Span> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(given: &[(&str, &str)]) -> Vec<String> {
        let find =
            |name: &str| given.iter().find(|(known, _)| *known == name).map(|(_, text)| text.to_string());
        Settings::read(find).err().unwrap_or_default()
    }

    #[test]
    fn an_endpoint_is_refused_and_nothing_else_is() {
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:4318");
        let said = problems(&[traces]);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: "), "{said:?}");
        assert!(said[0].contains("cargo build --release"), "{said:?}");
        let everything = ENDPOINTS.map(|name| (name, "http://127.0.0.1:4318"));
        assert_eq!(problems(&everything).len(), 3);

        assert_eq!(problems(&[traces, ("OTEL_SDK_DISABLED", "True")]), [""; 0]);
        assert_eq!(
            problems(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]),
            [""; 0],
            "an empty one counts as absent"
        );
        assert_eq!(problems(&[("OTEL_SERVICE_NAME", "shop"), ("OTEL_TRACES_SAMPLER", "always_on")]), [""; 0]);
    }
}
