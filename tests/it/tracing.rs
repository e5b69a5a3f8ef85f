//! Spans as a receiver of OpenTelemetry gets them, and that nothing ever waits for it.

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use amiquip::{AmqpProperties, AmqpValue, FieldTable};
use serde_json::Value;

use crate::Outcome;
use crate::support::broker::{Broker, NOWHERE};
use crate::support::certificates;
use crate::support::client::{Client, get};
use crate::support::edge::{Edge, Kind};
use crate::support::fixtures::{Embedded, Services};
use crate::support::launch::Launch;
use crate::support::message::VISIT;
use crate::support::program::Program;
use crate::support::prometheus::file;
use crate::support::traces::{Manner, Receiver, Seen, tree};
use crate::support::wait::wait_until;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{SPAN}-{flags}")
}

/// The same program, whose spans go to `endpoint` soon.
fn traced(launch: Launch, endpoint: &str) -> Launch {
    launch.variable("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).variable("OTEL_BSP_SCHEDULE_DELAY", "50")
}

fn named<'a>(spans: &'a [Seen], name: &str) -> Vec<&'a Seen> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn attribute<'a>(span: &'a Seen, key: &str) -> &'a str {
    span.attributes.get(key).map_or("", String::as_str)
}

/// A tree without how long each span took.
fn shape(tree: &str) -> Vec<&str> {
    tree.lines().map(|line| line.rsplit_once(", ").map_or(line, |(shape, _)| shape)).collect()
}

/// Names of the threads of a program.
fn threads(program: &Program) -> Outcome<Vec<String>> {
    let tasks = fs::read_dir(format!("/proc/{}/task", program.pid()?.as_raw_nonzero()))?;
    Ok(tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("comm")).ok()).collect())
}

#[test]
fn a_visit_is_one_tree_from_its_request_through_the_broker_to_its_line() -> Outcome {
    let (broker, receiver) = (Broker::shared()?, Receiver::start(Manner::Takes)?);
    let services = Services::new(&broker.url(), "traced")?;
    let mut http = traced(services.http, &receiver.endpoint())
        .variable("OTEL_EXPORTER_OTLP_HEADERS", "x-key=let%20me%20in")
        .variable("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=a-test")
        .start()?;
    let mut storage = traced(services.storage, &receiver.endpoint()).start()?;
    let hostile =
        [("User-Agent", "sesame/1"), ("Referer", "http://sesame/"), ("X-Forwarded-For", "203.0.113.9")];
    assert_eq!(get(http.address()?, "/track.gif?sesame=1", &hostile)?.status, 200);
    receiver.wait_for_span("ack traced")?;
    let spans = receiver.wait_for("the request", |spans| spans.iter().any(|span| span.kind == 2))?;
    let shown = tree(&spans).replace("traced", "pixel.visits");
    println!("{shown}");
    let document = file("docs/OPERATIONS.md")?;
    let sample = document.split("```text\n").find(|part| part.starts_with("GET /track.gif ("));
    let sample = sample.and_then(|part| part.split("```").next()).ok_or("the document has no tree")?;
    assert_eq!(shape(&shown), shape(sample));
    let request = named(&spans, "GET /track.gif")[0];
    for (key, value) in [
        ("http.request.method", "GET"),
        ("http.route", "/track.gif"),
        ("http.response.status_code", "200"),
        ("url.scheme", "http"),
    ] {
        assert_eq!(attribute(request, key), value, "{request:?}");
    }
    let send = named(&spans, "send traced")[0];
    for (key, value) in [
        ("messaging.system", "rabbitmq"),
        ("messaging.destination.name", "traced"),
        ("messaging.rabbitmq.destination.routing_key", "visit"),
        ("messaging.batch.message_count", "1"),
        ("messaging.operation.type", "send"),
    ] {
        assert_eq!(attribute(send, key), value, "{send:?}");
    }
    let (process, ack) = (named(&spans, "process traced")[0], named(&spans, "ack traced")[0]);
    assert_eq!((send.kind, process.kind, ack.kind), (4, 5, 3));
    assert_eq!(attribute(ack, "messaging.operation.type"), "settle");
    for private in ["sesame", "203.0.113.9", "127.0.0.1:80"] {
        assert!(!receiver.has_seen(private), "{private} was sent");
    }
    assert!(receiver.has_seen("x-key: let me in") && receiver.has_seen("a-test"));
    http.stop()?;
    storage.stop()?;
    services.output.audit_finds_nothing().map(drop)
}

#[test]
fn many_visits_are_few_spans_behind_the_spool() -> Outcome {
    let (broker, receiver) = (Broker::shared()?, Receiver::start(Manner::Takes)?);
    let services = Services::new(&broker.url(), "traced-many")?;
    let mut http = traced(services.http, &receiver.endpoint()).start()?;
    let mut storage = traced(services.storage, &receiver.endpoint()).start()?;
    let mut client = Client::connect(http.address()?)?;
    for _ in 0..300 {
        assert_eq!(client.ask("GET", "/track", &[])?.status, 200);
    }
    storage.admin()?.wait_for_metric("pixel_visits_written_total", |written| written == 300.0)?;
    http.stop()?;
    storage.stop()?;
    let spans = receiver.wait_for("all requests", |spans| named(spans, "GET /track").len() == 300)?;
    let of_storage = spans.iter().filter(|span| span.service == "pixel-storage").count();
    let (sent, processed) = (named(&spans, "send traced-many"), named(&spans, "process traced-many"));
    println!("{} messages, {} batches, {of_storage} spans of pixel-storage", sent.len(), processed.len());
    assert!(sent.len() < 200 && of_storage <= 5 * processed.len(), "{}", tree(&spans));
    let linked: usize = sent.iter().map(|span| span.links.len()).sum();
    let fits = sent.iter().all(|span| span.links.len() < 128);
    assert!(linked == 300 || !fits, "{linked} requests are linked");
    services.output.audit_finds_nothing().map(drop)
}

#[test]
fn the_context_of_a_visit_survives_the_spool_and_a_restart() -> Outcome {
    let (broker, receiver) = (Broker::shared()?, Receiver::start(Manner::Takes)?);
    let services = Services::new(&broker.url(), "traced-later")?;
    let launch = traced(services.http, &receiver.endpoint());
    let mut http = launch.clone().with("amqp-url", NOWHERE).start()?;
    assert_eq!(get(http.address()?, "/track", &[])?.status, 200);
    let request = receiver.wait_for_span("GET /track")?;
    http.kill()?;
    let mut http = launch.start()?;
    let mut storage = traced(services.storage, &receiver.endpoint()).start()?;
    let process = receiver.wait_for_span("process traced-later")?;
    let send = receiver.wait_for_span("send traced-later")?;
    println!("{}", tree(&receiver.spans()));
    assert_eq!((&send.links, &process.links), (&vec![request.span], &vec![send.span]));
    http.stop()?;
    storage.stop()?;
    services.output.audit_finds_nothing().map(drop)
}

#[test]
fn pixel_has_the_same_spans_without_a_broker_and_a_line_of_its_log_names_the_trace() -> Outcome {
    let receiver = Receiver::start(Manner::Takes)?;
    let mut system = Embedded::with(|launch| {
        traced(launch, &receiver.endpoint())
            .with("spool-max-bytes", "1000")
            .variable("OTEL_SERVICE_NAME", "mine")
    })?;
    system.visit(&[])?;
    receiver.wait_for_span("ack")?;
    let spans = receiver.wait_for("the request", |spans| spans.iter().any(|span| span.kind == 2))?;
    let shown = tree(&spans);
    println!("{shown}");
    let names: Vec<&str> = shown.lines().map(|line| line.split(" (").next().unwrap_or_default()).collect();
    let expected = [
        "GET /track",
        "  append to the spool",
        "  ⇠ process visits",
        "    append",
        "    sync",
        "    ledger",
        "    ack",
    ];
    assert_eq!(names, expected);
    assert!(spans.iter().all(|span| span.service == "mine"));
    let openmetrics = [("Accept", "application/openmetrics-text;version=1.0.0")];
    let admin = system.pixel.admin()?;
    let metrics = String::from_utf8(get(admin.address, "/metrics", &openmetrics)?.body)?;
    let trace = &named(&spans, "GET /track")[0].trace;
    assert!(metrics.contains(&format!("# {{trace_id=\"{trace}\"}}")), "{metrics}");
    let text = String::from_utf8(get(admin.address, "/metrics", &[])?.body)?;
    assert!(!text.contains("trace_id"), "{text}");
    // More than the spool takes.
    assert_eq!(get(system.address, &format!("/track?{}", "x".repeat(2000)), &[])?.status, 503);
    let line = system.pixel.wait_for_log("visits are answered with 503")?;
    let refused = receiver.wait_for("the refused request", |spans| {
        spans.iter().any(|span| span.has_failed && span.kind == 2)
    })?;
    let refused = refused.iter().find(|span| span.has_failed && span.kind == 2).ok_or("it was there")?;
    assert_eq!(attribute(refused, "error.type"), "503");
    assert!(line.contains(&format!("pixel::http::track trace={}]", refused.trace)), "{line}");
    let lines = fs::read_to_string(&system.output.path)?;
    assert!(!lines.contains("traceparent"), "{lines}");
    system.stop_and_audit()
}

#[test]
fn a_stranger_s_traceparent_is_a_link_and_a_trusted_proxy_s_the_parent() -> Outcome {
    for (case, proxies, header, is_sampled) in [
        ("a stranger's", "", traceparent("01"), true),
        ("a stranger's that is not sampled", "", traceparent("00"), true),
        ("a proxy's", "127.0.0.1", traceparent("01"), true),
        ("a proxy's that is not sampled", "127.0.0.1", traceparent("00"), false),
        ("none", "127.0.0.1", "00-0-0-01".into(), true),
    ] {
        let receiver = Receiver::start(Manner::Takes)?;
        let mut system =
            Embedded::with(|launch| traced(launch, &receiver.endpoint()).with("trusted-proxies", proxies))?;
        let states = [("tracestate", "rojo=00f067aa0ba902b7"), ("tracestate", "congo=t61rcWkgMzE")];
        system.visit(&[("traceparent", &header), states[0], states[1]])?;
        system.output.wait_for_lines(1)?;
        system.pixel.stop()?;
        let spans = receiver.spans();
        let requests = named(&spans, "GET /track");
        assert_eq!(requests.len(), usize::from(is_sampled), "{case}: {}", tree(&spans));
        let Some(request) = requests.first() else { continue };
        let is_parent = case == "a proxy's";
        assert_eq!((request.trace == TRACE, request.parent == SPAN), (is_parent, is_parent), "{case}");
        let kept = if is_parent { "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE" } else { "" };
        assert_eq!(request.state, kept, "{case}");
        let is_linked = case.starts_with("a stranger");
        assert_eq!(request.links.contains(&SPAN.to_string()), is_linked, "{case}");
    }
    Ok(())
}

#[test]
fn a_stranger_cannot_have_itself_sampled() -> Outcome {
    let receiver = Receiver::start(Manner::Takes)?;
    let mut system = Embedded::with(|launch| {
        traced(launch, &receiver.endpoint())
            .variable("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
            .variable("OTEL_TRACES_SAMPLER_ARG", "0")
    })?;
    system.visit(&[("traceparent", &traceparent("01"))])?;
    system.output.wait_for_lines(1)?;
    system.pixel.stop()?;
    assert_eq!(tree(&receiver.spans()), "");
    Ok(())
}

#[test]
fn messages_of_others_are_linked_by_their_own_headers() -> Outcome {
    let (broker, receiver) = (Broker::shared()?, Receiver::start(Manner::Takes)?);
    let services = Services::new(&broker.url(), "traced-others")?;
    let mut storage = traced(services.storage, &receiver.endpoint())
        .variable("OTEL_TRACES_SAMPLER", "parentbased_always_off")
        .start()?;
    for (header, value) in [
        ("MT-Activity-Id", traceparent("01")),
        ("traceparent", traceparent("01")),
        ("traceparent", "nonsense".into()),
    ] {
        let mut headers = FieldTable::new();
        headers.insert(header.into(), AmqpValue::LongString(value.clone()));
        let before = named(&receiver.spans(), "process traced-others").len();
        broker.publish("traced-others", VISIT.as_bytes(), AmqpProperties::default().with_headers(headers))?;
        if value == "nonsense" {
            continue;
        }
        let is_there = |spans: &[Seen]| named(spans, "process traced-others").len() > before;
        let spans = receiver.wait_for(header, is_there)?;
        assert_eq!(named(&spans, "process traced-others")[before].links, [SPAN], "{header}");
    }
    services.output.wait_for_lines(3)?;
    storage.stop()?;
    assert_eq!(named(&receiver.spans(), "process traced-others").len(), 2, "nothing sampled, no span");
    Ok(())
}

#[test]
fn a_receiver_that_is_dead_slow_or_hostile_delays_and_loses_no_visit() -> Outcome {
    const TIMEOUT: Duration = Duration::from_millis(400);
    let dead = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut endpoints = vec![("dead", format!("http://{dead}"), None)];
    for manner in [Manner::Silent, Manner::Endless, Manner::Garbage, Manner::Refuses, Manner::Redirects] {
        let receiver = Receiver::start(manner)?;
        endpoints.push(("it listens", receiver.endpoint(), Some((manner, receiver))));
    }
    for (case, endpoint, receiver) in endpoints {
        let case = receiver.map_or(case.to_string(), |(manner, _)| format!("{manner:?}"));
        let mut system = Embedded::with(|launch| {
            traced(launch, &endpoint)
                .variable("OTEL_EXPORTER_OTLP_TIMEOUT", &TIMEOUT.as_millis().to_string())
                .variable("OTEL_BSP_MAX_QUEUE_SIZE", "64")
                .variable("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
        })?;
        let load = system.load(4);
        let admin = system.pixel.admin()?;
        admin.wait_for_metric("pixel_trace_spans_dropped_total", |dropped| dropped > 100.0)?;
        let mut took = Vec::new();
        for _ in 0..21 {
            let started = Instant::now();
            system.visit(&[])?;
            took.push(started.elapsed());
        }
        took.sort_unstable();
        // One may wait for the disk; not half of them so long as for the receiver.
        let median = took[took.len() / 2];
        assert!(median < TIMEOUT, "{case}: half of the visits took {median:?} and more");
        assert_eq!(admin.metric("pixel_trace_spans_exported_total")?, 0.0, "{case}");
        let said = system.pixel.wait_for_log("failed to send traces to http://127.0.0.1:")?;
        let promised = load.stop();
        // Of each visit two spans, but for those that wait or are on their way.
        let spans = 2.0 * admin.metric("pixel_visits_accepted_total")?;
        admin.wait_for_metric("pixel_trace_spans_dropped_total", |dropped| dropped >= spans - 64.0 - 16.0)?;
        let started = Instant::now();
        system.output.verify(&promised)?;
        system.pixel.stop()?;
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "{case}: it took {:?} to end",
            started.elapsed()
        );
        let log = system.pixel.log();
        assert_eq!(log.matches("failed to send traces").count(), 1, "{log}");
        println!("{case}: {} visits, half of them within {median:?}; {said}", promised.promised.len());
        system.output.audit_finds_nothing()?;
    }
    Ok(())
}

/// The SDK read the environment once more, by rules of its own: without the headers, and to another path.
#[test]
fn spans_go_where_the_numbers_go_with_the_same_headers() -> Outcome {
    let receiver = Receiver::start(Manner::Takes)?;
    let system = Embedded::with(|launch| {
        traced(launch, &format!(" {}/?key=x", receiver.endpoint()))
            .variable("OTEL_EXPORTER_OTLP_HEADERS", "x-token=of-all")
            .variable("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "")
    })?;
    system.visit(&[])?;
    wait_until("its spans", || receiver.has_seen("POST /v1/traces?key=x "))?;
    assert!(receiver.has_seen("x-token: of-all"), "the header is lacking");
    system.stop_and_audit()
}

#[test]
fn spans_that_a_receiver_took_and_did_not_take_are_counted_exactly() -> Outcome {
    let receiver = Receiver::start(Manner::Takes)?;
    let mut system = Embedded::with(|launch| traced(launch, &receiver.endpoint()))?;
    for _ in 0..10 {
        system.visit(&[])?;
    }
    system.output.wait_for_lines(10)?;
    let admin = system.pixel.admin()?;
    let exported = || admin.metric("pixel_trace_spans_exported_total").unwrap_or(-1.0);
    wait_until("every span", || {
        let seen = receiver.spans();
        named(&seen, "GET /track").len() == 10
            && !named(&seen, "ack").is_empty()
            && exported() == seen.len() as f64
    })?;
    assert_eq!(admin.metric("pixel_trace_spans_dropped_total")?, 0.0);
    system.stop_and_audit()?;

    let receiver = Receiver::start(Manner::RejectsOne)?;
    let mut system = Embedded::with(|launch| {
        // All at once, or in two where the machine is slow.
        traced(launch, &receiver.endpoint()).variable("OTEL_BSP_SCHEDULE_DELAY", "3000")
    })?;
    system.visit(&[])?;
    let admin = system.pixel.admin()?;
    let count = |of: &str| admin.metric(&format!("pixel_trace_spans_{of}_total")).unwrap_or(-1.0);
    wait_until("every span", || count("dropped") + count("exported") == 7.0)?;
    assert!((1.0..=2.0).contains(&count("dropped")), "{} of them are dropped", count("dropped"));
    system.stop_and_audit()
}

#[test]
fn every_number_of_the_metrics_page_is_sent_too_by_the_same_name() -> Outcome {
    let receiver = Receiver::start(Manner::Takes)?;
    let mut system = Embedded::with(|launch| {
        launch
            .variable("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", &format!("{}/v1/metrics", receiver.endpoint()))
            .variable("OTEL_EXPORTER_OTLP_HEADERS", "x-key=let%20me%20in")
            .variable("OTEL_METRIC_EXPORT_INTERVAL", "100")
    })?;
    for _ in 0..3 {
        system.visit(&[])?;
    }
    for (name, value) in [
        ("pixel_visits_accepted", 3.0),
        ("pixel_visits_written", 3.0),
        ("pixel_track_duration_seconds", 3.0),
        ("pixel_spool_visits", 0.0),
        ("pixel_build_info", 1.0),
    ] {
        wait_until(name, || receiver.numbers().get(name) == Some(&value))
            .map_err(|error| format!("{error}: {:?}", receiver.numbers()))?;
    }
    let openmetrics = [("Accept", "application/openmetrics-text;version=1.0.0")];
    let page = String::from_utf8(get(system.pixel.admin()?.address, "/metrics", &openmetrics)?.body)?;
    let families = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let missing: Vec<_> = families
        .map(|(name, kind)| if kind == "info" { format!("{name}_info") } else { name.into() })
        .filter(|name| !receiver.numbers().contains_key(name))
        .collect();
    assert!(missing.is_empty() && receiver.numbers().len() > 20, "{missing:?}");
    assert!(receiver.spans().is_empty() && receiver.has_seen("x-key: let me in"));
    system.stop_and_audit()
}

#[test]
fn over_tls_spans_and_numbers_go_to_who_is_believed_and_wants_to_know_us_and_to_nobody_else() -> Outcome {
    let folder = tempfile::tempdir()?;
    certificates::make(folder.path())?;
    let receiver = Receiver::start_with_tls(folder.path())?;
    let file = |name: &str| folder.path().join(name).display().to_string();
    let sending = |endpoint: &str, authorities: &str, is_known: bool| {
        Embedded::with(|launch| {
            let launch = traced(launch, endpoint)
                .variable("OTEL_EXPORTER_OTLP_CERTIFICATE", &file(authorities))
                .variable("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
                .variable("OTEL_METRIC_EXPORT_INTERVAL", "100");
            if !is_known {
                return launch;
            }
            launch
                .variable("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", &file("client.pem"))
                .variable("OTEL_EXPORTER_OTLP_CLIENT_KEY", &file("client.key"))
        })
    };
    let by_address = receiver.endpoint().replace("localhost", "127.0.0.1");
    for (case, endpoint, authorities, is_known, said) in [
        ("another authority", &receiver.endpoint(), "other.pem", true, "UnknownIssuer"),
        ("another name", &by_address, "ca.pem", true, "not valid for name"),
        // Who is refused after the handshake may hear of it, or find the connection closed.
        ("nobody known", &receiver.endpoint(), "ca.pem", false, ""),
    ] {
        let mut system = sending(endpoint, authorities, is_known)?;
        system.visit(&[])?;
        for what in ["traces", "metrics"] {
            let line = system.pixel.wait_for_log(&format!("failed to send {what} to {endpoint}"))?;
            assert!(line.contains(said), "{case}: {line}");
        }
        system.stop_and_audit()?;
    }
    assert!(receiver.spans().is_empty() && receiver.numbers().is_empty());

    let system = sending(&receiver.endpoint(), "ca.pem", true)?;
    system.visit(&[])?;
    receiver.wait_for_span("ack")?;
    wait_until("the numbers", || receiver.numbers().get("pixel_visits_written") == Some(&1.0))?;
    assert!(!system.pixel.log().contains("failed to send"), "{}", system.pixel.log());
    system.stop_and_audit()
}

#[test]
fn a_variable_that_nothing_goes_by_is_named() -> Outcome {
    let receiver = Receiver::start(Manner::Takes)?;
    let mut system =
        Embedded::with(|launch| traced(launch, &receiver.endpoint()).variable("OTEL_LOGS_EXPORTER", "otlp"))?;
    let log = system.pixel.log();
    assert!(log.contains("WARN ") && log.contains("nothing goes by OTEL_LOGS_EXPORTER: "), "{log}");
    system.pixel.stop()
}

#[test]
fn without_an_endpoint_nothing_is_started_and_nothing_is_added_to_a_visit() -> Outcome {
    let services = Services::new(NOWHERE, "nobody")?;
    let launch = services.http.variable("OTEL_TRACES_SAMPLER", "always_on");
    let mut http = launch.start()?;
    let is_of_traces = |name: &String| name.starts_with("OpenTelemetry") || name.starts_with("otlp");
    let found: Vec<_> = threads(&http)?.into_iter().filter(is_of_traces).collect();
    assert!(found.is_empty(), "{found:?}");
    assert_eq!(get(http.address()?, "/track", &[("traceparent", &traceparent("01"))])?.status, 200);
    assert!(!http.log().contains("traces"), "{}", http.log());
    http.stop()?;
    for entry in fs::read_dir(launch.folder().join("spool"))? {
        let bytes = fs::read(entry?.path())?;
        assert!(!bytes.windows(11).any(|window| window == b"traceparent"));
    }
    // The other way round, so that the look at the threads is known to find it.
    let receiver = Receiver::start(Manner::Takes)?;
    let http = traced(launch.clone(), &receiver.endpoint()).start()?;
    assert!(threads(&http)?.iter().any(is_of_traces), "{:?}", threads(&http)?);
    Ok(())
}

#[test]
fn bad_variables_of_opentelemetry_s_are_refused_together_with_ours() -> Outcome {
    let launch = Launch::new("pixel")?
        .with("workers", "none")
        .variable("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
        .variable("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        .variable("OTEL_TRACES_SAMPLER", "sometimes");
    for launch in [launch.clone(), launch.argument("check")] {
        let (status, _, stderr) = launch.run()?;
        assert_eq!(status, 2, "{stderr}");
        for said in [
            "3 bad settings",
            "PIXEL_WORKERS",
            "OTEL_EXPORTER_OTLP_PROTOCOL is `grpc`: expected http/protobuf",
            "OTEL_TRACES_SAMPLER is `sometimes`: expected always_on",
        ] {
            assert!(stderr.contains(said), "{said} is not in {stderr}");
        }
    }
    Ok(())
}

#[test]
fn each_line_of_the_log_has_its_component() -> Outcome {
    let mut pixel = Launch::new("pixel")?.with("log-format", "json").start()?;
    pixel.stop()?;
    let first: Value = serde_json::from_str(pixel.log().lines().next().unwrap_or_default())?;
    assert_eq!((&first["component"], &first["trace_id"]), (&"pixel::program::process".into(), &Value::Null));
    let mut storage = Services::new(NOWHERE, "nobody")?.storage.spawn()?;
    storage.wait_for_log("writing to")?;
    storage.stop()?;
    for line in storage.log().lines() {
        let head = line.split("] ").next().unwrap_or_default();
        assert!(head.starts_with('[') && head.contains(" pixel"), "{line}");
    }
    Ok(())
}

/// Behind the edge everybody comes from an address that is believed.
#[test]
fn no_edge_hands_a_stranger_s_traceparent_on() -> Outcome {
    for kind in Kind::all() {
        let receiver = Receiver::start(Manner::Takes)?;
        let mut system = Embedded::with(|launch| {
            traced(launch, &receiver.endpoint()).with("trusted-proxies", "127.0.0.1")
        })?;
        let edge = Edge::start(kind, system.address)?;
        assert_eq!(get(edge.address, "/track", &[("traceparent", &traceparent("01"))])?.status, 200);
        let request = receiver.wait_for_span("GET /track")?;
        assert!(request.trace != TRACE && request.links.is_empty(), "{kind:?}: {request:?}");
        system.pixel.stop()?;
    }
    Ok(())
}
