//! Each alert, made to fire by the fault that it is for, in a real Prometheus: those that `observe` has not got.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use amiquip::AmqpProperties;

use crate::Outcome;
use crate::support::broker::{Broker, NOWHERE};
use crate::support::client::{Client, get};
use crate::support::edge::{Edge, Kind};
use crate::support::fixtures::{Brokered, Embedded, Services};
use crate::support::names;
use crate::support::port::free_address;
use crate::support::prometheus::{Prometheus, file};
use crate::support::wait::wait_until;

#[test]
fn a_blocked_broker_and_a_message_that_cannot_be_read_are_alerts() -> Outcome {
    let broker = Broker::start()?;
    let mut system = Brokered::start(&broker.url(), "alerts")?;
    let prometheus = Prometheus::start(&[system.http.admin()?.address, system.storage.admin()?.address])?;
    assert_eq!(get(system.address, "/track", &[])?.status, 200);
    system.output.wait_for_lines(1)?;
    prometheus.is_quiet("PixelDeadLetters")?;
    broker.publish("alerts", b"no visit", AmqpProperties::default())?;
    prometheus.wait_for_alert("PixelDeadLetters")?;
    prometheus.is_quiet("PixelBrokerBlocked")?;
    broker.nodes[0].control(&["set_vm_memory_high_watermark", "0.000001"])?;
    assert_eq!(get(system.address, "/track", &[])?.status, 200);
    prometheus.wait_for_alert("PixelBrokerBlocked")?;
    broker.nodes[0].control(&["set_vm_memory_high_watermark", "0.4"])?;
    system.output.wait_for_lines(2)?;
    system.stop_and_audit()
}

#[test]
fn few_descriptors_and_an_output_that_is_gone_are_alerts() -> Outcome {
    let launch = Embedded::launch()?.before("ulimit -n 256").with("read-timeout-ms", "120000");
    let (there, away) = (launch.folder().join("out"), launch.folder().join("away"));
    fs::create_dir(&there)?;
    let mut system = Embedded::of(&launch.with("output", there.join("visits.log")))?;
    let prometheus = Prometheus::start(&[system.pixel.admin()?.address])?;
    prometheus.is_quiet("PixelFewDescriptorsLeft")?;
    let clients: Outcome<Vec<Client>> = (0..95).map(|_| Client::connect(system.address)).collect();
    prometheus.wait_for_alert("PixelFewDescriptorsLeft")?;
    drop(clients);
    prometheus.is_quiet("PixelOutputFails")?;
    fs::rename(&there, &away)?;
    system.visit(&[])?;
    prometheus.wait_for_alert("PixelOutputFails")?;
    fs::rename(&away, &there)?;
    system.output.wait_for_lines(1)?;
    system.stop_and_audit()
}

#[test]
fn visits_that_stay_away_and_a_program_that_starts_again_and_again_are_alerts() -> Outcome {
    let mut system = Embedded::with(|launch| launch.with("admin-listen", free_address().to_string()))?;
    let prometheus = Prometheus::start(&[system.pixel.admin()?.address])?;
    let load = system.load(2);
    let rate = "sum(increase(pixel_visits_accepted_total[4s]))";
    wait_until("visits", || prometheus.ask(rate).is_ok_and(|taken| taken.iter().any(|taken| *taken > 50.0)))?;
    prometheus.is_quiet("PixelTakesNothing")?;
    let promised = load.stop();
    prometheus.wait_for_alert("PixelTakesNothing")?;
    system.output.verify(&promised)?;
    prometheus.is_quiet("PixelStartsAgainAndAgain")?;
    let start = "process_start_time_seconds";
    let mut seen = prometheus.ask(start)?;
    for _ in 0..4 {
        system.pixel.kill()?;
        system.pixel.start_again()?;
        let before = std::mem::take(&mut seen);
        wait_until("the next start", || {
            seen = prometheus.ask(start).unwrap_or_default();
            !seen.is_empty() && seen != before
        })?;
    }
    prometheus.wait_for_alert("PixelStartsAgainAndAgain")?;
    system.stop_and_audit()
}

#[test]
fn visits_in_a_slot_that_no_process_has_are_an_alert() -> Outcome {
    let launch = Embedded::launch()?.with("spool-slots", "2");
    // Nobody writes it: the output's folder is away.
    let mut lost = Embedded::of(&launch.clone().with("output", launch.folder().join("away/visits.log")))?;
    lost.visit(&[])?;
    lost.pixel.kill()?;
    let slot = |number: &str| launch.folder().join("spool").join(number);
    fs::rename(slot("0"), slot("7"))?;
    let mut system = Embedded::of(&launch)?;
    let prometheus = Prometheus::start(&[system.pixel.admin()?.address])?;
    prometheus.wait_for_alert("PixelVisitsAreStranded")?;
    system.pixel.stop()
}

/// A process that ends with the test.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The edge's certificate is one for two days, which blackbox_exporter sees from outside.
#[test]
fn a_certificate_at_the_edge_that_ends_soon_is_an_alert() -> Outcome {
    let mut system = Embedded::start()?;
    let edge = Edge::start_with_tls(Kind::Haproxy, system.address)?;
    let exporter = free_address();
    let settings = edge.folder().join("blackbox.yml");
    // Who signed it is known to nobody.
    fs::write(
        &settings,
        "modules: {http_2xx: {prober: http, http: {tls_config: {insecure_skip_verify: true}}}}",
    )?;
    let process = Command::new("prometheus-blackbox-exporter")
        .arg(format!("--config.file={}", settings.display()))
        .arg(format!("--web.listen-address={exporter}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| {
            format!("prometheus-blackbox-exporter: {error}; tests/require-packages installs it")
        })?;
    let _exporter = Ending(process);
    let target = format!("https://localhost:{}/robots.txt", edge.address.port());
    let job = format!(
        "  - job_name: edge\n    metrics_path: /probe\n    params: {{module: [http_2xx], target: ['{target}']}}\n    \
         static_configs:\n      - targets: ['{exporter}']\n"
    );
    let prometheus = Prometheus::start_with(&[system.pixel.admin()?.address], &job)?;
    prometheus.wait_for_alert("PixelCertificateEnds")?;
    let ends = prometheus.ask("(probe_ssl_earliest_cert_expiry - time()) / 86400")?;
    assert!(matches!(ends[..], [days] if days > 1.0 && days < 2.1), "{ends:?}");
    assert_eq!(prometheus.ask("probe_success")?, [1.0]);
    system.pixel.stop()
}

/// What the containers' Prometheus reads, side by side as there.
fn settings_of_observe() -> Outcome<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    for (path, name) in [
        ("deploy/observe/prometheus.yml", "prometheus.yml"),
        ("deploy/prometheus/pixel.rules.yml", "pixel.rules.yml"),
    ] {
        fs::write(folder.path().join(name), file(path)?)?;
    }
    Ok(folder)
}

/// The containers' ports, on loopback addresses that this test has to itself.
#[test]
fn what_make_up_observes_with_finds_every_collector_and_the_storage_by_name() -> Outcome {
    let net = u8::try_from(std::process::id() % 250)? + 1;
    let at = move |host| Ipv4Addr::new(127, 77, net, host);
    let folder = settings_of_observe()?;
    let addresses = move |name: &str| if name == "pixel-http" { vec![at(2), at(3)] } else { vec![at(4)] };
    let starter = names::serve(at(1), &["pixel-http", "pixel-storage"], addresses, folder.path())?;
    let services = [Services::new(NOWHERE, "nobody")?, Services::new(NOWHERE, "nobody")?];
    let _one = services[0].http.clone().with("admin-listen", format!("{}:8081", at(2))).start()?;
    let _other = services[1].http.clone().with("admin-listen", format!("{}:8081", at(3))).start()?;
    let _storage = services[0].storage.clone().with("admin-listen", format!("{}:8082", at(4))).spawn()?;
    let prometheus = Prometheus::serve(folder, &starter)?;
    for (query, count) in [
        ("count(pixel_build_info{job='pixel',program='pixel-http'})", 2.0),
        ("count(pixel_build_info{job='pixel',program='pixel-storage'})", 1.0),
        ("sum(up{job='pixel'})", 3.0),
    ] {
        wait_until(query, || prometheus.ask(query).is_ok_and(|found| found == [count]))?;
    }
    Ok(())
}

/// Everything that the containers bring fits together, as far as it can be seen without them.
#[test]
fn what_make_up_observes_with_is_read_by_a_real_prometheus_and_names_one_another() -> Outcome {
    let folder = settings_of_observe()?;
    let check =
        Command::new("promtool").args(["check", "config", "prometheus.yml"]).current_dir(&folder).output()?;
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    let prometheus = Prometheus::serve(folder, &[])?;
    let mut rules = 0;
    wait_until("the rules", || {
        let answer = prometheus.get("/api/v1/rules").unwrap_or_default();
        rules = answer["data"]["groups"][0]["rules"].as_array().map_or(0, Vec::len);
        rules > 0
    })?;
    assert_eq!(rules, file("deploy/prometheus/pixel.rules.yml")?.matches("- alert: ").count());
    let jobs = prometheus.get("/api/v1/status/config")?["data"]["yaml"].to_string();
    assert!(jobs.contains("pixel-storage") && jobs.contains("8082") && jobs.contains("8404"), "{jobs}");

    let compose = file("deploy/observe/docker-compose.yml")?;
    let sources = file("deploy/grafana/provisioning/datasources/pixel.yml")?;
    let dashboards = file("deploy/grafana/provisioning/dashboards/pixel.yml")?;
    for (case, is_so) in [
        ("the source of the dashboard is there", sources.contains("type: prometheus\n")),
        (
            "exemplars lead to the other source",
            sources.contains("datasourceUid: jaeger}") && sources.contains("uid: jaeger\n"),
        ),
        (
            "Prometheus's name and port",
            compose.contains("\n  prometheus:\n") && sources.contains("http://prometheus:9090\n"),
        ),
        (
            "Jaeger's name and port",
            compose.contains("\n  jaeger:\n") && sources.contains("http://jaeger:16686\n"),
        ),
        (
            "the folder of the dashboard",
            dashboards.contains("path: /var/lib/grafana-pixel\n")
                && compose.contains("/var/lib/grafana-pixel/pixel.json:ro"),
        ),
        ("exemplars are kept", compose.contains("--enable-feature=exemplar-storage")),
    ] {
        assert!(is_so, "{case}");
    }
    for mounted in compose.lines().filter_map(|line| line.trim().strip_prefix("- ./")?.split(':').next()) {
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(mounted).exists(), "{mounted}");
    }
    Ok(())
}
