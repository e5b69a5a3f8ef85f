//! The output file: the exact line of each format, and its life under those who rotate it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use rustix::process::Signal;

use crate::Outcome;
use crate::support::client::get;
use crate::support::fixtures::Embedded;
use crate::support::output::Output;
use crate::support::wait::wait_until;

const HEADERS: &[(&str, &str)] = &[("Referer", "https://google.com"), ("User-Agent", "SomeUserAgent 1.2.3")];

/// GoAccess reads 4,095 bytes at a time: what stood behind them on a line was an entry of its own, with a time, an
/// address and a target of the client's choice.
#[test]
fn goaccess_counts_the_visits_and_nothing_that_a_client_made_up() -> Outcome {
    let mut system = Embedded::with(|launch| launch.with("format", "combined"))?;
    let before = r#"127.0.0.1 - - [19/Dec/2022:14:16:49 +0000] "GET /track HTTP/1.1" 200 43 ""#.len();
    let forged = "6.6.6.6 - - [19/Dec/2022:14:16:49 +0000] xGET /forged HTTP/1.1\" 200 43 \"-\" \"x";
    // Controls take four bytes each, and the forged entry begins with the second reading.
    let room = 4095 - before - "\" \"".len();
    let referrer = "\x01".repeat(room / 4) + &"x".repeat(room % 4);
    for agent in [forged, "SomeUserAgent 1.2.3", forged] {
        system.visit(&[("Referer", &referrer), ("User-Agent", agent)])?;
    }
    system.output.wait_for_lines(3)?;
    system.pixel.stop()?;
    let counted = Command::new("goaccess")
        .args(["--log-format=COMBINED", "--no-global-config", "--output=report.json"])
        .arg(&system.output.path)
        .current_dir(system.output.folder()?)
        .output()
        .map_err(|error| format!("goaccess: {error}; tests/require-packages installs it"))?;
    let report = fs::read_to_string(system.output.folder()?.join("report.json"))?;
    let report: serde_json::Value = serde_json::from_str(&report)?;
    println!("{} {}", String::from_utf8_lossy(&counted.stderr), report["general"]);
    assert_eq!(
        (&report["general"]["total_requests"], &report["general"]["failed_requests"]),
        (&3.into(), &0.into())
    );
    let hosts: Vec<_> =
        report["hosts"]["data"].as_array().ok_or("no hosts")?.iter().map(|host| &host["data"]).collect();
    assert_eq!(hosts, ["127.0.0.1"]);
    Ok(())
}

#[test]
fn a_curl_becomes_the_contract_s_line() -> Outcome {
    let pipe = r"T|https://google.com|SomeUserAgent 1.2.3|127.0.0.1";
    for (format, expected) in [
        ("the default", pipe),
        ("pipe", pipe),
        (
            "combined",
            r#"127.0.0.1 - - [T] "GET /track?x=1 HTTP/1.1" 200 43 "https://google.com" "SomeUserAgent 1.2.3""#,
        ),
    ] {
        let option = if format == "the default" { "" } else { format };
        let mut system = Embedded::with(|launch| launch.with("format", option))?;
        assert_eq!(get(system.address, "/track?x=1", HEADERS)?.status, 200);
        let line = system.output.wait_for_lines(1)?.remove(0);
        system.pixel.stop()?;
        let time = match format {
            "combined" => line.split(['[', ']']).nth(1),
            _ => line.split('|').next(),
        };
        let time = time.ok_or("no time")?;
        assert_eq!(line.replacen(time, "T", 1), expected, "{format}");
        if format == "combined" {
            assert!(time.ends_with(" +0000") && time.len() == 26, "{time}");
        } else {
            let (_, fraction) = time.split_once('.').ok_or("no fraction")?;
            assert!(fraction.len() == 8 && fraction.ends_with('Z'), "{time} has seven digits and Z");
        }
    }
    Ok(())
}

#[test]
fn ndjson_has_every_field_and_the_visit_s_number() -> Outcome {
    let mut system = Embedded::start()?;
    let headers = [HEADERS, &[("Accept-Language", "cs"), ("DNT", "1"), ("Sec-GPC", "1")]].concat();
    get(system.address, "/track.gif?x=1", &headers)?;
    let visit = system.output.wait_for_visit(1)?;
    for (field, value) in [
        ("ip", "127.0.0.1"),
        ("referrer", "https://google.com"),
        ("user_agent", "SomeUserAgent 1.2.3"),
        ("host", "px.example.com"),
        ("path", "/track.gif"),
        ("query", "x=1"),
        ("accept_language", "cs"),
    ] {
        assert_eq!(visit[field], value, "{field}");
    }
    assert_eq!((&visit["dnt"], &visit["gpc"], &visit["sequence"]), (&true.into(), &true.into(), &1.into()));
    system.visit(&[])?;
    let bare = system.output.wait_for_visit(2)?;
    assert!(bare["referrer"].is_null() && bare["query"].is_null());
    assert_eq!((&bare["sequence"], &bare["producer"]), (&2.into(), &visit["producer"]));
    system.pixel.stop()?;
    let report = system.output.audit_finds_nothing()?;
    assert_eq!(report["producers"][0]["producer"], visit["producer"]);
    assert_eq!(report["producers"][0]["sequences"], serde_json::json!([[1, 2]]));
    Ok(())
}

#[test]
fn no_header_breaks_a_line_or_forges_a_field() -> Outcome {
    let mut system = Embedded::with(|launch| launch.with("format", "pipe"))?;
    let agents = [
        (r"a\x7cb", "a|b"),
        (r"a\x5cb", r"a\b"),
        (r"a\x09b\x1b[0m", "a\tb\x1b[0m"),
        (r"a\x0d2022-12-19T14:16:49.9605280Z\x7cx", "a\r2022-12-19T14:16:49.9605280Z|x"),
        (r"a\x00b\x0ac", "a\0b\nc"),
        (r"\x6eull", "null"),
    ];
    for (n, (written, agent)) in agents.into_iter().enumerate() {
        system.visit(&[("User-Agent", agent)])?;
        let lines = system.output.wait_for_lines(n + 1)?;
        assert_eq!(lines[n].split('|').nth(2), Some(written), "{agent:?}: {lines:?}");
    }
    let lines = system.output.lines();
    assert!(
        lines.len() == agents.len() && lines.iter().all(|line| line.split('|').count() == 4),
        "{lines:?}"
    );
    system.pixel.stop()
}

#[test]
fn an_output_that_nobody_names_is_in_a_folder_that_is_made() -> Outcome {
    let launch = Embedded::launch()?.with("output", "").with("format", "pipe");
    let output = Output::at(launch.folder().join("pixel-data/visits.log"));
    let mut system = Embedded::of(&launch)?;
    system.visit(&[])?;
    output.wait_for_lines(1)?;
    system.pixel.stop()
}

#[test]
fn lock_and_ledger_may_be_in_a_folder_of_their_own() -> Outcome {
    let launch = Embedded::launch()?;
    let (state, spool) = (launch.folder().join("state"), launch.folder().join("spool"));
    fs::create_dir(&state)?;
    let launch = launch.with("state-dir", &state);
    let mut system = Embedded::of(&launch)?;
    system.visit(&[])?;
    system.output.wait_for_lines(1)?;
    system.pixel.stop()?;
    let names: std::collections::BTreeSet<_> =
        fs::read_dir(&state)?.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<_, _>>()?;
    assert!(names.iter().eq(["visits.log.ledger", "visits.log.lock"]), "{names:?}");
    assert!(!system.output.ledger().exists());
    let state = state.to_string_lossy().into_owned();
    let arguments = ["--state-dir", &state, "--spool-dir", &spool.to_string_lossy()];
    let (status, text) = system.output.audit_says(&arguments)?;
    assert!(status == 0 && text.contains("1 written"), "{text}");
    assert_eq!(system.output.audit_says(&[])?.0, 2, "there is no ledger beside it");
    Ok(())
}

#[test]
fn the_output_may_be_renamed_removed_and_truncated() -> Outcome {
    let mut system = Embedded::with(|launch| launch.with("format", "pipe"))?;
    let output = system.output.clone();
    let admin = system.pixel.admin()?;
    let visit = |name: &str| system.visit(&[("User-Agent", name)]);
    visit("one")?;
    output.wait_for_lines(1)?;
    assert_eq!(fs::metadata(&output.path)?.permissions().mode() & 0o777, 0o640);

    let rotated = Output::at(output.beside(".1"));
    fs::rename(&output.path, &rotated.path)?;
    wait_until("a new file at once, without a visit", || output.path.exists())?;
    visit("two")?;
    assert!(output.wait_for_lines(1)?[0].contains("|two|"));
    // A line that is removed before it is committed is written again.
    admin.wait_for_metric("pixel_visits_written_total", |count| count == 2.0)?;
    fs::remove_file(&output.path)?;
    visit("three")?;
    assert!(output.wait_for_lines(1)?[0].contains("|three|"));
    // As logrotate's copytruncate, but under the lock: a line that is cut off before it is committed is written again.
    let file = fs::OpenOptions::new().write(true).open(&output.path)?;
    fs2::FileExt::lock_exclusive(&file)?;
    file.set_len(0)?;
    drop(file);
    visit("four")?;
    assert!(output.wait_for_lines(1)?[0].contains("|four|"));
    system.pixel.signal(Signal::HUP)?;
    visit("five")?;
    assert!(output.wait_for_lines(2)?[1].contains("|five|"));
    assert!(rotated.lines()[0].contains("|one|"));
    system.pixel.stop()
}
