//! What operators see: metrics, the log, the alerts.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use pixel::queue::VisitStore;
use pixel::spool::Spool;
use serde_json::Value;

use crate::Outcome;
use crate::support::admin::Admin;
use crate::support::broker::{Broker, NOWHERE};
use crate::support::client::{Client, get};
use crate::support::fixtures::{Brokered, Embedded, Services, all_programs};
use crate::support::launch::Launch;
use crate::support::message::VISIT;
use crate::support::output::Output;
use crate::support::port::free_address;
use crate::support::program::STANDING_BY;
use crate::support::prometheus::{Prometheus, file};
use crate::support::wait::wait_until;

const OPEN_METRICS: &str = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";

fn text(admin: Admin, path: &str, headers: &[(&str, &str)]) -> Outcome<String> {
    Ok(String::from_utf8(get(admin.address, path, headers)?.body)?)
}

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics_of_any_program() -> Outcome {
    for (name, mut program) in all_programs()? {
        let metrics = text(program.admin()?, "/metrics", &[])?;
        let mut promtool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("promtool: {error}"))?;
        promtool.stdin.take().ok_or("no stdin")?.write_all(metrics.as_bytes())?;
        let output = promtool.wait_with_output()?;
        let said = String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?;
        assert!(output.status.success() && said.is_empty(), "{name}: {said}\n{metrics}");
    }
    Ok(())
}

#[test]
fn metrics_are_text_or_openmetrics_as_is_asked() -> Outcome {
    let mut system = Embedded::start()?;
    let admin = system.pixel.admin()?;
    for (accept, kind, has, has_not) in [
        (
            "*/*",
            "text/plain; version=0.0.4; charset=utf-8",
            "# TYPE pixel_visits_accepted_total counter",
            "# EOF",
        ),
        (
            OPEN_METRICS,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "# UNIT pixel_spool_bytes bytes",
            "# TYPE pixel_visits_accepted_total",
        ),
    ] {
        let answer = get(admin.address, "/metrics", &[("Accept", accept)])?;
        assert_eq!(answer.header("Content-Type"), Some(kind));
        let body = String::from_utf8(answer.body)?;
        assert!(body.contains(has) && !body.contains(has_not), "{accept}:\n{body}");
        assert_eq!(body.ends_with("# EOF\n"), accept == OPEN_METRICS);
        for name in ["process_cpu_seconds_total ", "process_open_fds ", "process_start_time_seconds "] {
            assert!(body.contains(name), "{name} is not in {body}");
        }
    }
    system.pixel.stop()
}

#[test]
fn accepted_visits_are_written_dead_lettered_or_waiting_and_nothing_else() -> Outcome {
    let launch = Embedded::launch()?;
    // Two visits that cannot be read, and one that can, as if an earlier Pixel had left them.
    Spool::open(&launch.folder().join("spool"), 1, 1 << 20)?
        .append(format!("no visit\n{VISIT}\n{{}}\n").as_bytes(), 3)?;
    let mut system = Embedded::of(&launch)?;
    let admin = system.pixel.admin()?;
    admin.wait_for_metric("pixel_spool_visits", |left| left == 0.0)?;
    let load = system.load(8);
    wait_until("some visits", || {
        admin.metric("pixel_visits_accepted_total").is_ok_and(|accepted| accepted > 500.0)
    })?;
    let promised = load.stop().promised.len();
    admin.wait_for_metric("pixel_spool_visits", |left| left == 0.0)?;
    let [accepted, written, dead, duplicate] = [
        "pixel_visits_accepted_total",
        "pixel_visits_written_total",
        "pixel_dead_lettered_visits_total",
        "pixel_visits_duplicate_total",
    ]
    .map(|name| admin.metric(name).unwrap_or(-1.0));
    assert!(accepted >= promised as f64, "{accepted} accepted, {promised} answered with 200");
    assert_eq!((accepted + 3.0, dead, duplicate), (written + dead, 2.0, 0.0));
    assert_eq!(system.output.lines().len() as f64, written);
    let responses = text(admin, "/metrics", &[])?;
    let line = responses.lines().find(|line| line.starts_with("pixel_http_responses_total{code=\"200\"} "));
    let answered: f64 = line.and_then(|line| line.rsplit(' ').next()).unwrap_or("0").parse()?;
    assert!((promised as f64..=accepted).contains(&answered), "{answered} of {accepted}");
    system.stop_and_audit()
}

/// What was written before a kill, the ledger knows; what is written since, the counter.
#[test]
fn the_counters_stay_exact_when_the_storage_is_killed_again_and_again() -> Outcome {
    let broker = Broker::shared()?;
    let mut system = Brokered::start(&broker.url(), "counted")?;
    let load = system.load(4);
    let mut before = 0.0;
    for _ in 0..4 {
        load.wait_for(300)?;
        system.storage.admin()?.wait_for_metric("pixel_visits_written_total", |written| written > 0.0)?;
        system.storage.kill()?;
        before = written_by_ledger(&system.output)?;
        load.wait_for(100)?;
        system.storage.start_again()?;
    }
    load.stop();
    let (http, storage) = (system.http.admin()?, system.storage.admin()?);
    let accepted = http.metric("pixel_visits_accepted_total")?;
    assert!(before > 0.0 && before < accepted, "{before} of {accepted} were written before the last kill");
    storage.wait_for_metric("pixel_visits_written_total", |since| before + since >= accepted)?;
    http.wait_for_metric("pixel_spool_visits", |waiting| waiting == 0.0)?;
    let [written, dead] = ["pixel_visits_written_total", "pixel_dead_lettered_visits_total"]
        .map(|name| storage.metric(name).unwrap_or(-1.0));
    assert_eq!((before + written, dead), (accepted, 0.0));
    assert_eq!(http.metric("pixel_visits_published_total")?, accepted);
    assert_eq!(system.output.lines().len() as f64, accepted);
    system.stop_and_audit()
}

/// How many visits the ledger has as written.
fn written_by_ledger(output: &Output) -> Outcome<f64> {
    let report = output.audit_finds_nothing()?;
    let producers = report["producers"].as_array().ok_or("no producers")?;
    Ok(producers.iter().filter_map(|producer| producer["written"].as_f64()).sum())
}

#[test]
fn with_the_storage_dead_the_queue_is_seen_and_the_newest_visit_s_age() -> Outcome {
    let broker = Broker::shared()?;
    let mut system = Brokered::start(&broker.url(), "seen")?;
    let (http, storage) = (system.http.admin()?, system.storage.admin()?);
    assert_eq!(storage.metric("pixel_storage_active")?, 1.0);
    assert_eq!(get(system.address, "/track", &[])?.status, 200);
    storage.wait_for_metric("pixel_visits_written_total", |written| written == 1.0)?;
    storage.wait_for_metric("pixel_queue_messages", |waiting| waiting == 0.0)?;
    assert!(storage.metric("pixel_output_last_write_timestamp_seconds")? > 1e9);
    assert!(storage.metric("pixel_output_bytes")? > 100.0 && storage.metric("pixel_ledger_bytes")? > 10.0);
    system.storage.kill()?;
    for visit in 0..3 {
        assert_eq!(get(system.address, "/track", &[])?.status, 200);
        http.wait_for_metric("pixel_visits_published_total", |published| published == f64::from(visit + 2))?;
    }
    http.wait_for_metric("pixel_queue_messages", |waiting| waiting == 3.0)?;
    assert_eq!(http.metric("pixel_queue_dead_messages")?, 0.0);
    assert_eq!(http.metric("pixel_relay_unconfirmed_visits")?, 0.0);
    system.storage.start_again()?;
    http.wait_for_metric("pixel_queue_messages", |waiting| waiting == 0.0)?;
    system.stop_and_audit()
}

#[test]
fn the_oldest_visit_that_waits_ages() -> Outcome {
    let services = Services::new(NOWHERE, "nobody")?;
    let mut http = services.http.start()?;
    let admin = http.admin()?;
    assert_eq!(admin.metric("pixel_spool_oldest_age_seconds")?, 0.0);
    assert_eq!(get(http.address()?, "/track", &[])?.status, 200);
    admin.wait_for_metric("pixel_spool_oldest_age_seconds", |age| age > 0.5)?;
    assert_eq!(admin.metric("pixel_spool_max_bytes")?, f64::from(1 << 30));
    http.stop()
}

#[test]
fn the_log_begins_with_the_settings_and_ends_with_what_stays() -> Outcome {
    let services = Services::new("amqp://operator:sesame@127.0.0.1:1/%2f", "nobody")?;
    let mut http = services.http.start()?;
    assert_eq!(get(http.address()?, "/track", &[])?.status, 200);
    http.stop()?;
    let log = http.log();
    let first = log.lines().next().unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    assert!(first.contains(&format!("pixel-http {version} starts as process ")), "{first}");
    assert!(first.contains(" amqp_url=*** ") && first.contains(" queue=nobody "), "{first}");
    assert!(!log.contains("sesame"), "{log}");
    let last = log.lines().last().unwrap_or_default();
    let stays = "pixel-http stops, 1 taken, 0 published; 1 visits stay in the spool for the next start";
    assert!(last.ends_with(stays), "{last}");
    Ok(())
}

#[test]
fn a_broker_that_is_back_is_said_with_how_long_it_was_away_and_what_waits() -> Outcome {
    let mut broker = Broker::start()?;
    let services = Services::new(&broker.url(), "away")?;
    let mut http = services.http.start()?;
    http.wait_for_log("connected to the broker at")?;
    broker.nodes[0].kill()?;
    http.wait_for_log("lost the broker")?;
    for _ in 0..3 {
        assert_eq!(get(http.address()?, "/track", &[])?.status, 200);
    }
    broker.nodes[0].start()?;
    let line = http.wait_for_log(" again after ")?;
    assert!(line.contains("connected to the broker at ") && line.ends_with(" s, 3 visits waiting"), "{line}");
    http.admin()?.wait_for_metric("pixel_broker_reconnects_total", |count| count == 1.0)?;
    http.stop()
}

#[test]
fn what_ends_a_program_is_an_object_where_the_log_is_for_machines() -> Outcome {
    let address = free_address().to_string();
    let _taken = std::net::TcpListener::bind(&address)?;
    let (status, _, stderr) =
        Launch::new("pixel")?.with("listen", &address).with("log-format", "json").run()?;
    let last: Value = serde_json::from_str(stderr.lines().last().unwrap_or_default())?;
    assert_eq!((status, &last["level"]), (1, &"error".into()), "{stderr}");
    assert!(last["message"].as_str().is_some_and(|said| said.contains("failed to listen on")), "{last}");
    Ok(())
}

#[test]
fn each_alert_fires_by_what_it_is_for_and_has_a_paragraph() -> Outcome {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    for arguments in [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "pixel.rules.yml"],
        ["test", "rules", "pixel.rules.test.yml"],
    ] {
        let output = Command::new("promtool").args(arguments).current_dir(&folder).output()?;
        let said = String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?;
        assert!(output.status.success(), "{arguments:?}: {said}");
    }
    let (rules, tests) =
        (file("deploy/prometheus/pixel.rules.yml")?, file("deploy/prometheus/pixel.rules.test.yml")?);
    let document = file("docs/OPERATIONS.md")?;
    let faults = file("tests/it/observe.rs")? + &file("tests/it/alerts.rs")?;
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 15);
    for alert in alerts {
        assert!(document.contains(&format!("**{alert}")), "{alert} has no paragraph");
        assert!(tests.contains(&format!("alertname: {alert}\n        exp_alerts:")), "{alert} has no test");
        assert!(faults.contains(&format!("\"{alert}\"")), "no real fault fires {alert}");
    }
    Ok(())
}

#[test]
fn a_real_prometheus_answers_the_operators_questions_and_fires_when_the_storage_dies() -> Outcome {
    let broker = Broker::shared()?;
    let mut system = Brokered::start(&broker.url(), "prometheus")?;
    let load = system.load(4);
    let prometheus = Prometheus::start(&[system.http.admin()?.address, system.storage.admin()?.address])?;
    let has = |query: &str, is_right: &dyn Fn(f64) -> bool| {
        wait_until(query, || {
            prometheus.ask(query).is_ok_and(|values| values.iter().any(|value| is_right(*value)))
        })
        .map_err(|error| format!("{error}; it is {:?}", prometheus.ask(query)).into()) as Outcome
    };
    has("sum(rate(pixel_visits_written_total[5m]))", &|rate| rate > 1.0)?;
    // Every question of the table, and everything that the dashboard asks, has an answer.
    let document = file("docs/OPERATIONS.md")?;
    let table = document.split("| question | PromQL |").nth(1).ok_or("no table")?;
    let rows = table.lines().skip(2).take_while(|line| line.starts_with("| "));
    let questions =
        rows.flat_map(|row| row.split('`').skip(1).step_by(2).map(str::to_string).collect::<Vec<_>>());
    let dashboard: Value = serde_json::from_str(&file("deploy/grafana/pixel.json")?)?;
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let asked = targets.filter_map(|target| target["expr"].as_str().map(str::to_string));
    let queries: Vec<String> = questions.filter(|query| query.contains('(')).chain(asked).collect();
    assert!(queries.len() > 30, "{queries:?}");
    for query in &queries {
        has(query, &|_| true)?;
    }
    let answers: Vec<_> = queries.iter().map(|query| (query, prometheus.ask(query))).collect();
    println!("{answers:#?}");

    system.storage.kill()?;
    prometheus.wait_for_alert("PixelNobodyWrites")?;
    prometheus.wait_for_alert("PixelDown")?;
    system.storage.start_again()?;
    wait_until("the end of the alert", || {
        prometheus.ask("ALERTS{alertname=\"PixelNobodyWrites\"}").is_ok_and(|alerts| alerts.is_empty())
    })?;
    system.stop_and_verify(load)
}

#[test]
fn alerts_fire_by_their_faults_where_no_broker_is_and_a_storage_only_stands_by() -> Outcome {
    let services = Services::new(NOWHERE, "nobody")?;
    let mut http = services.http.with("spool-max-bytes", "65536").start()?;
    let mut writes = services.storage.spawn()?;
    writes.wait_for_log("writing to")?;
    let mut stands_by = services.storage.spawn()?;
    stands_by.wait_for_log(STANDING_BY)?;
    let prometheus = Prometheus::start(&[http.admin()?.address, stands_by.admin()?.address])?;
    let sees = |query: &str| {
        wait_until(query, || {
            prometheus.ask(query).is_ok_and(|values| values.iter().any(|value| *value > 0.0))
        })
    };
    sees("sum(up) == 2")?;
    let mut client = Client::connect(http.address()?)?;
    let headers = [("User-Agent", &*"x".repeat(2000))];
    let mut visit = || -> Outcome<u16> { Ok(client.ask("GET", "/track", &headers)?.status) };
    // A spool that fills, is nearly full, and is.
    for _ in 0..5 {
        assert_eq!(visit()?, 200);
    }
    sees("pixel_spool_bytes > 6553")?;
    while visit()? == 200 {}
    for alert in [
        "PixelRefusesVisits",
        "PixelSpoolNearlyFull",
        "PixelSpoolFills",
        "PixelBrokerAway",
        "PixelNoActiveStorage",
        "PixelVisitsAreLate",
    ] {
        prometheus.wait_for_alert(alert)?;
    }
    drop(writes);
    // The other one takes over.
    wait_until("the end of the alert", || {
        prometheus.ask("ALERTS{alertname=\"PixelNoActiveStorage\"}").is_ok_and(|alerts| alerts.is_empty())
    })?;
    http.stop()
}
