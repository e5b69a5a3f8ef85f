//! What OpenTelemetry's standard variables say: where traces go, what is sampled, by what name.
//!
//! They are read where there is an endpoint, so that what is in the environment for other programs harms nobody. What
//! is wrong then is said at start, and what is not built in is refused: traces that silently go nowhere are worse
//! than none. Which ones nothing came of is said, too.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::Context as Surroundings;
use opentelemetry::KeyValue;
use opentelemetry::trace::{Link, SpanKind, TraceId};
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, SamplingResult, ShouldSample};
use percent_encoding::percent_decode_str;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use url::Url;

use super::address::Address;
use super::numbers::Numbers;

/// Where systems keep the authorities that they trust: Debian and Alpine, Fedora, openSUSE, BSD.
const SYSTEM_AUTHORITIES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// The most spans that wait, whatever is asked for: each may hold a hundred links.
const QUEUE_MAX: u64 = 65_536;
const MS_MAX: u64 = 600_000;
/// Those that the SDK reads by itself.
const OF_THE_SDK: [&str; 3] =
    ["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_SPAN_EVENT_COUNT_LIMIT", "OTEL_SPAN_LINK_COUNT_LIMIT"];

/// What is sent, and where it goes.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub(super) traces: Option<Traces>,
    /// Where the program's numbers go, if anywhere.
    pub numbers: Option<Numbers>,
    /// Whether somebody gave the service a name.
    pub(super) is_named: bool,
    /// Variables of the standard's that are set, while nothing here goes by them.
    pub(super) without_effect: Vec<String>,
}

/// Where traces go, and how.
#[derive(Debug, Clone)]
pub(super) struct Traces {
    pub(super) address: Address,
    pub(super) sampling: Sampling,
    pub(super) queue_max: usize,
    pub(super) batch_max: usize,
    pub(super) delay: Duration,
}

impl Settings {
    /// Reads them.
    ///
    /// # Errors
    /// All that is wrong, each with the variable.
    pub fn from_environment() -> Result<Settings, Vec<String>> {
        let given = std::env::vars_os().filter_map(|(name, value)| {
            Some((
                name.into_string().ok().filter(|name| name.starts_with("OTEL_"))?,
                value.into_string().ok()?,
            ))
        });
        Self::read(&given.collect())
    }

    fn read(given: &BTreeMap<String, String>) -> Result<Settings, Vec<String>> {
        let mut reading = Reading { given, asked: RefCell::default(), problems: Vec::new() };
        let mut settings = reading.settings();
        if settings.traces.is_some() || settings.numbers.is_some() {
            settings.without_effect = reading.without_effect();
        }
        // What counts for both signals is read for both.
        let mut said = BTreeSet::new();
        reading.problems.retain(|problem| said.insert(problem.clone()));
        if reading.problems.is_empty() { Ok(settings) } else { Err(reading.problems) }
    }
}

struct Reading<'a> {
    // The variables by their names.
    given: &'a BTreeMap<String, String>,
    // The names that were looked at.
    asked: RefCell<BTreeSet<String>>,
    problems: Vec<String>,
}

impl Reading<'_> {
    fn settings(&mut self) -> Settings {
        // An empty one counts as absent (the standard says so).
        let is_true = one_of(&[("true", true), ("false", false)]);
        if self.read("OTEL_SDK_DISABLED", false, |text| is_true(&text.to_ascii_lowercase())) {
            return Settings::default();
        }
        let traces = self.address("TRACES").map(|address| self.traces(address));
        let numbers = self.address("METRICS");
        let every =
            self.read_where(numbers.is_some(), "OTEL_METRIC_EXPORT_INTERVAL", 60_000, number(10, MS_MAX));
        self.pairs("OTEL_RESOURCE_ATTRIBUTES", traces.is_some() || numbers.is_some());
        let attributes = self.text("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
        let is_named = self.text("OTEL_SERVICE_NAME").is_some()
            || attributes.split(',').any(|pair| pair.trim().starts_with("service.name="));
        let every = Duration::from_millis(every);
        let numbers = numbers.map(|address| Numbers { address, every, is_named });
        Settings { traces, numbers, is_named, without_effect: Vec::new() }
    }

    /// Those that nobody looked at, but for those that ask for nothing.
    fn without_effect(&self) -> Vec<String> {
        let asked = self.asked.borrow();
        let is_ignored = |name: &str| !asked.contains(name) && !OF_THE_SDK.contains(&name);
        let asks = |text: &str| !["", "none"].contains(&text.trim());
        let ignored = self.given.iter().filter(|(name, text)| is_ignored(name) && asks(text));
        ignored.map(|(name, _)| name.clone()).collect()
    }

    fn traces(&mut self, address: Address) -> Traces {
        self.read("OTEL_PROPAGATORS", (), |text| {
            let known = ["tracecontext", "baggage"];
            let all_are = text.split(',').all(|name| known.contains(&name.trim()));
            all_are.then_some(()).ok_or("expected tracecontext, which is what is read and written")
        });
        let queue_max = self.read("OTEL_BSP_MAX_QUEUE_SIZE", 2_048, number(1, QUEUE_MAX));
        let batch_max = self.read("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512, number(1, QUEUE_MAX));
        let delay = self.read("OTEL_BSP_SCHEDULE_DELAY", 5_000, number(1, MS_MAX));
        Traces {
            address,
            sampling: self.sampling(),
            queue_max: usize::try_from(queue_max).unwrap_or(usize::MAX),
            batch_max: usize::try_from(batch_max.min(queue_max)).unwrap_or(usize::MAX),
            delay: Duration::from_millis(delay),
        }
    }

    fn text(&self, name: &str) -> Option<String> {
        self.asked.borrow_mut().insert(name.to_string());
        self.given.get(name).filter(|text| !text.trim().is_empty()).cloned()
    }

    fn read<T, E: Display>(&mut self, name: &str, absent: T, read: impl Fn(&str) -> Result<T, E>) -> T {
        let Some(text) = self.text(name) else { return absent };
        read(text.trim()).unwrap_or_else(|problem| {
            self.problems.push(format!("{name} is `{}`: {problem}", text.trim()));
            absent
        })
    }

    fn read_where<T, E: Display>(
        &mut self,
        is_wanted: bool,
        name: &str,
        absent: T,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> T {
        if is_wanted { self.read(name, absent, read) } else { absent }
    }

    /// Where a signal goes, `TRACES` or `METRICS`; `None` where it goes nowhere. Its own variables count before those of
    /// all signals.
    fn address(&mut self, signal: &str) -> Option<Address> {
        let [all, own] = ["OTEL_EXPORTER_OTLP_".into(), format!("OTEL_EXPORTER_OTLP_{signal}_")];
        let named = [format!("{own}ENDPOINT"), format!("{all}ENDPOINT")];
        let (name, endpoint) = named.into_iter().find_map(|name| Some((name.clone(), self.text(&name)?)))?;
        let is_wanted = one_of(&[("otlp", true), ("none", false)]);
        if !self.read(&format!("OTEL_{signal}_EXPORTER"), true, is_wanted) {
            return None;
        }
        let mut timeout_ms = 10_000;
        let mut headers = Vec::new();
        let mut is_compressed = false;
        let (mut authorities, mut chain, mut key) = (None, None, None);
        for start in [&all, &own] {
            self.read(&format!("{start}PROTOCOL"), (), one_of(&[("http/protobuf", ())]));
            let compressions = one_of(&[("gzip", true), ("none", false)]);
            is_compressed = self.read(&format!("{start}COMPRESSION"), is_compressed, compressions);
            timeout_ms = self.read(&format!("{start}TIMEOUT"), timeout_ms, number(1, MS_MAX));
            let given = self.pairs(&format!("{start}HEADERS"), true);
            if !given.is_empty() {
                headers = given;
            }
            authorities = self.file(format!("{start}CERTIFICATE")).or(authorities);
            chain = self.file(format!("{start}CLIENT_CERTIFICATE")).or(chain);
            key = self.file(format!("{start}CLIENT_KEY")).or(key);
        }
        let parsed = Url::parse(endpoint.trim()).ok();
        let parsed = parsed.filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
        let Some(mut shown) = parsed else {
            // It may hold a password.
            self.problems.push(format!("{name}: expected an address such as http://127.0.0.1:4318"));
            return None;
        };
        let mut url = shown.clone();
        if !name.starts_with(&own) {
            let path = format!("{}/v1/{}", url.path().trim_end_matches('/'), signal.to_lowercase());
            url.set_path(&path);
        }
        // Names and passwords are none of the log's.
        let _ = shown.set_username("").and_then(|()| shown.set_password(None));
        shown.set_query(None);
        let mut config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_millis(timeout_ms)))
            .http_status_as_error(false)
            .max_redirects(0)
            // A receiver that was started again would be met with a connection that it does not know.
            .max_idle_connections(0)
            .user_agent(concat!("pixel/", env!("CARGO_PKG_VERSION")))
            .proxy(None);
        if url.scheme() == "https" || authorities.is_some() || chain.is_some() || key.is_some() {
            let (roots, identity) = (self.made(roots(authorities, &name)), self.made(identity(chain, key)));
            if let (Some(roots), Some(identity)) = (roots, identity) {
                let tls = TlsConfig::builder()
                    .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
                    .root_certs(roots)
                    .client_cert(identity);
                config = config.tls_config(tls.build());
            }
        }
        let shown = shown.to_string().trim_end_matches('/').to_string();
        Some(Address { url: url.into(), shown, headers, is_compressed, agent: config.build().new_agent() })
    }

    /// The file that a variable names.
    fn file(&self, variable: String) -> Option<NamedFile> {
        self.text(&variable).map(|path| NamedFile { path: path.trim().into(), variable })
    }

    /// What could be made of what was read; else that is one more problem.
    fn made<T>(&mut self, made: Result<T, String>) -> Option<T> {
        made.map_err(|problem| self.problems.push(problem)).ok()
    }

    /// Reads a list of `key=value`, whose values may be secrets.
    fn pairs(&mut self, name: &str, is_wanted: bool) -> Vec<(String, String)> {
        let Some(text) = self.text(name).filter(|_| is_wanted) else { return Vec::new() };
        let is_key = |key: &str| {
            let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            !key.is_empty() && key.bytes().all(is_letter)
        };
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=')?;
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            let is_line = !value.chars().any(char::is_control);
            (is_key(key.trim()) && is_line).then(|| (key.trim().to_string(), value.into_owned()))
        };
        let given = text.split(',').filter(|pair| !pair.trim().is_empty());
        let pairs: Option<Vec<_>> = given.map(pair).collect();
        pairs.unwrap_or_else(|| {
            let problem = "expected key=value pairs with commas between them, values percent-encoded";
            self.problems.push(format!("{name}: {problem}"));
            Vec::new()
        })
    }

    fn sampling(&mut self) -> Sampling {
        let names = [
            ("always_on", Kind::On),
            ("always_off", Kind::Off),
            ("traceidratio", Kind::Ratio),
            ("parentbased_always_on", Kind::ParentOn),
            ("parentbased_always_off", Kind::ParentOff),
            ("parentbased_traceidratio", Kind::ParentRatio),
        ];
        let kind = self.read("OTEL_TRACES_SAMPLER", Kind::ParentOn, one_of(&names));
        let ratio = match kind {
            Kind::Ratio | Kind::ParentRatio => self.read("OTEL_TRACES_SAMPLER_ARG", 1.0, |text| {
                let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
                ratio.ok_or("expected a number from 0 to 1, as in 0.01 for one request of a hundred")
            }),
            _ => 1.0,
        };
        Sampling::new(kind, ratio)
    }
}

fn one_of<T: Copy>(known: &[(&str, T)]) -> impl Fn(&str) -> Result<T, String> {
    move |text| {
        let found = known.iter().find(|(name, _)| *name == text);
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        found.map(|(_, value)| *value).ok_or_else(|| format!("expected {}", names.join(", ")))
    }
}

fn number(min: u64, max: u64) -> impl Fn(&str) -> Result<u64, String> {
    move |text| {
        let number = text.parse().ok().filter(|number| (min..=max).contains(number));
        number.ok_or_else(|| format!("expected a whole number from {min} to {max}"))
    }
}

/// A file, and the variable that named it.
struct NamedFile {
    variable: String,
    path: PathBuf,
}

impl NamedFile {
    /// What is in it, each item of PEM that is wanted.
    fn items<T>(&self, what: &str, wanted: impl Fn(PemItem<'static>) -> Option<T>) -> Result<Vec<T>, String> {
        let (variable, path) = (&self.variable, self.path.display());
        let pem = std::fs::read(&self.path)
            .map_err(|error| format!("{variable}: failed to read `{path}`: {error}"))?;
        let items: Vec<T> = parse_pem(&pem).filter_map(|item| wanted(item.ok()?)).collect();
        if items.is_empty() { Err(format!("{variable}: there is no {what} in `{path}`")) } else { Ok(items) }
    }

    fn certificates(&self) -> Result<Vec<Certificate<'static>>, String> {
        self.items("certificate", |item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
    }

    fn key(&self) -> Result<PrivateKey<'static>, String> {
        let keys = self.items("private key", |item| match item {
            PemItem::PrivateKey(key) => Some(key),
            _ => None,
        })?;
        Ok(keys.into_iter().next().expect("it is not empty"))
    }
}

/// The authorities in a file, else the system's, where `variable` named an address that needs them.
fn roots(authorities: Option<NamedFile>, variable: &str) -> Result<RootCerts, String> {
    let system = || {
        let path = SYSTEM_AUTHORITIES.iter().map(PathBuf::from).find(|path| path.exists())?;
        Some(NamedFile { variable: variable.into(), path })
    };
    let file = authorities.or_else(system);
    let file =
        file.ok_or_else(|| format!("{variable}: there is no file of authorities on this system: name one"))?;
    Ok(RootCerts::Specific(Arc::new(file.certificates()?)))
}

/// What is shown to a receiver that wants to know who sends: a chain of certificates with its key.
fn identity(chain: Option<NamedFile>, key: Option<NamedFile>) -> Result<Option<ClientCert>, String> {
    match (chain, key) {
        (None, None) => Ok(None),
        (Some(chain), Some(key)) => Ok(Some(ClientCert::new_with_certs(&chain.certificates()?, key.key()?))),
        (Some(NamedFile { variable, .. }), None) => {
            Err(format!("{variable}: its key is missing, in a file that …CLIENT_KEY names"))
        }
        (None, Some(NamedFile { variable, .. })) => {
            Err(format!("{variable}: its certificate is missing, in a file that …CLIENT_CERTIFICATE names"))
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    On,
    Off,
    Ratio,
    ParentOn,
    ParentOff,
    ParentRatio,
}

/// Which spans are made. Requests by the standard's sampler; messages and batches where something in them is sampled,
/// and those without anything in them by that sampler, too; a part where the whole is.
#[derive(Debug, Clone)]
pub(super) struct Sampling {
    kind: Kind,
    ratio: f64,
    of_requests: Sampler,
}

impl Sampling {
    fn new(kind: Kind, ratio: f64) -> Self {
        let own = match kind {
            Kind::On | Kind::ParentOn => Sampler::AlwaysOn,
            Kind::Off | Kind::ParentOff => Sampler::AlwaysOff,
            Kind::Ratio | Kind::ParentRatio => Sampler::TraceIdRatioBased(ratio),
        };
        let of_requests = match kind {
            Kind::On | Kind::Off | Kind::Ratio => own,
            Kind::ParentOn | Kind::ParentOff | Kind::ParentRatio => Sampler::ParentBased(Box::new(own)),
        };
        Sampling { kind, ratio, of_requests }
    }
}

impl fmt::Display for Sampling {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::On => formatter.write_str("always"),
            Kind::Off => formatter.write_str("never"),
            Kind::Ratio => write!(formatter, "at {}", self.ratio),
            Kind::ParentOn => formatter.write_str("always, or as a trusted proxy says"),
            Kind::ParentOff => formatter.write_str("as a trusted proxy says"),
            Kind::ParentRatio => write!(formatter, "at {}, or as a trusted proxy says", self.ratio),
        }
    }
}

impl ShouldSample for Sampling {
    fn should_sample(
        &self,
        parent: Option<&Surroundings>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let is_linked = || links.iter().any(|link| link.span_context.is_sampled());
        let is_sampled = match kind {
            SpanKind::Internal | SpanKind::Client => true,
            SpanKind::Producer | SpanKind::Consumer => self.kind != Kind::Off && is_linked(),
            // Whose links are strangers'.
            SpanKind::Server => false,
        };
        let sampled = self.of_requests.should_sample(parent, trace, name, kind, attributes, links);
        let decision = if is_sampled { SamplingDecision::RecordAndSample } else { sampled.decision };
        SamplingResult { decision, ..sampled }
    }
}

#[cfg(test)]
mod tests {
    use super::super::export::{Counts, processor};
    use super::*;

    const ENDPOINT: (&str, &str) =
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:sesame@127.0.0.1:4318/?key=sesame");

    fn read(given: &[(&str, &str)]) -> Result<Settings, String> {
        let given = given.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Settings::read(&given.collect()).map_err(|problems| problems.join("\n"))
    }

    /// What the SDK says of an address that it cannot use has all of it.
    #[test]
    fn a_password_in_an_address_is_not_said_whatever_is_wrong_with_it() {
        let endpoint = format!("http://user:sesame@127.0.0.1:4318/{}", "a".repeat(1 << 16));
        let traces = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]).expect("it is one").traces;
        let said = processor(&traces.expect("there is an endpoint"), Counts::default());
        let said = said.map(drop).expect_err("it is too long");
        assert!(said.contains("http://127.0.0.1:4318/aaa") && !said.contains("sesame"), "{}", &said[..100]);
    }

    #[test]
    fn without_an_endpoint_or_when_disabled_nothing_is_read_and_nothing_is_traced() {
        for given in [
            &[][..],
            &[("OTEL_TRACES_SAMPLER", "sometimes"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")],
            &[ENDPOINT, ("OTEL_SDK_DISABLED", "true")],
            &[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none"), ("OTEL_METRICS_EXPORTER", "none")],
        ] {
            let settings = read(given).expect("nothing is wrong");
            assert!(settings.traces.is_none() && settings.numbers.is_none(), "{given:?}");
        }
    }

    #[test]
    fn each_signal_has_its_own_address_or_that_of_all() {
        let own = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://other:4318/in");
        let settings =
            read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4318/otlp/"), own]).expect("all is well");
        let urls = (settings.traces.map(|it| it.address.url), settings.numbers.map(|it| it.address.url));
        assert_eq!(
            urls,
            (Some("http://all:4318/otlp/v1/traces".into()), Some("http://other:4318/in".into()))
        );
        let settings = read(&[own]).expect("all is well");
        assert!(settings.traces.is_none() && settings.numbers.is_some());
    }

    #[test]
    fn variables_that_nothing_goes_by_are_named() {
        let logs = ("OTEL_LOGS_EXPORTER", "otlp");
        for (given, named) in [
            (
                &[ENDPOINT, logs, ("OTEL_BSP_EXPORT_TIMEOUT", "1")][..],
                "OTEL_BSP_EXPORT_TIMEOUT OTEL_LOGS_EXPORTER",
            ),
            (&[ENDPOINT, ("OTEL_TRACES_SAMPLER_ARG", "0.01")], "OTEL_TRACES_SAMPLER_ARG"),
            (&[ENDPOINT, ("OTEL_LOGS_EXPORTER", "none"), ("OTEL_SPAN_LINK_COUNT_LIMIT", "9")], ""),
            (&[ENDPOINT, ("OTEL_SERVICE_NAME", "mine"), ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "9")], ""),
            (&[logs], ""),
        ] {
            let settings = read(given).expect("nothing is wrong");
            assert_eq!(settings.without_effect.join(" "), named, "{given:?}");
        }
    }

    #[test]
    fn an_address_is_shown_without_its_secrets() {
        let traces = read(&[ENDPOINT]).expect("all is well").traces.expect("an endpoint");
        assert_eq!(traces.address.shown, "http://127.0.0.1:4318");
        assert_eq!(traces.sampling.to_string(), "always, or as a trusted proxy says");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_variable_and_what_is_expected() {
        for (name, value, said) in [
            ("OTEL_SDK_DISABLED", "yes", "OTEL_SDK_DISABLED is `yes`: expected true, false"),
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                "localhost:4318",
                "expected an address such as http://127.0.0.1:4318",
            ),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://a:1", "expected an address"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "sesame", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: expected"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "is `grpc`: expected http/protobuf"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "is `zstd`: expected gzip, none"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0", "expected a whole number from 1 to 600000"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere", "failed to read `/nowhere`"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/dev/null", "there is no certificate in `/dev/null`"),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/dev/null", "its key is missing"),
            ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/dev/null", "its certificate is missing"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "sesame", "OTEL_EXPORTER_OTLP_HEADERS: expected key=value"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a b=sesame", "OTEL_EXPORTER_OTLP_HEADERS: expected key=value"),
            ("OTEL_RESOURCE_ATTRIBUTES", "env", "OTEL_RESOURCE_ATTRIBUTES: expected key=value"),
            ("OTEL_TRACES_EXPORTER", "console", "is `console`: expected otlp, none"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "0", "expected a whole number from 10 to 600000"),
            (
                "OTEL_TRACES_SAMPLER",
                "sometimes",
                "is `sometimes`: expected always_on, always_off, traceidratio",
            ),
            ("OTEL_PROPAGATORS", "b3", "is `b3`: expected tracecontext"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "many", "is `many`: expected a whole number from 1 to 65536"),
            ("OTEL_BSP_SCHEDULE_DELAY", "-1", "is `-1`: expected a whole number"),
        ] {
            let refused = read(&[ENDPOINT, (name, value)]).expect_err(name);
            assert!(refused.contains(said) && refused.contains(name), "{name}={value}: {refused}");
            assert!(!refused.contains("sesame"), "{refused}");
        }
        for ratio in ["1.5", "-0.1", "NaN", "one"] {
            let given =
                [ENDPOINT, ("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", ratio)];
            let refused = read(&given).expect_err(ratio);
            assert!(refused.contains("expected a number from 0 to 1"), "{refused}");
        }
        let several = read(&[ENDPOINT, ("OTEL_PROPAGATORS", "b3"), ("OTEL_TRACES_SAMPLER", "x")]);
        assert_eq!(several.expect_err("two are bad").lines().count(), 2);
    }
}
