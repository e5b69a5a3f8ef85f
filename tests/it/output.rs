//! `pixel` by itself: the exact line in the file, the formats, and the life of the output file.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;

use crate::Outcome;
use crate::support::client::get;
use crate::support::output::{audit, lines, wait_for_lines};
use crate::support::program::Launch;
use crate::support::wait::wait_until;

const HEADERS: &[(&str, &str)] = &[("Referer", "https://google.com"), ("User-Agent", "SomeUserAgent 1.2.3")];

#[test]
fn a_curl_becomes_the_contract_s_line() -> Outcome {
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("visits.log");
    for (format, expected) in [
        ("pipe", r"T|https://google.com|SomeUserAgent 1.2.3|127.0.0.1"),
        (
            "combined",
            r#"127.0.0.1 - - [T] "GET /track?x=1 HTTP/1.1" 200 43 "https://google.com" "SomeUserAgent 1.2.3""#,
        ),
    ] {
        fs::remove_file(&output).ok();
        let mut pixel = Launch::new("pixel", folder.path()).with("format", format).start()?;
        assert_eq!(get(pixel.address()?, "/track?x=1", HEADERS)?.status, 200);
        let line = wait_for_lines(&output, 1)?.remove(0);
        pixel.stop()?;
        let time = match format {
            "pipe" => line.split('|').next(),
            _ => line.split(['[', ']']).nth(1),
        };
        let time = time.ok_or("no time")?;
        assert_eq!(line.replacen(time, "T", 1), expected);
        if format == "pipe" {
            let (_, fraction) = time.split_once('.').ok_or("no fraction")?;
            assert!(fraction.len() == 8 && fraction.ends_with('Z'), "{time} has seven digits and Z");
        } else {
            assert!(time.ends_with(" +0000") && time.len() == 26, "{time}");
        }
    }
    Ok(())
}

#[test]
fn ndjson_has_every_field_and_the_visit_s_number() -> Outcome {
    let folder = tempfile::tempdir()?;
    let mut pixel = Launch::new("pixel", folder.path()).with("format", "ndjson").start()?;
    let headers = [HEADERS, &[("Accept-Language", "cs"), ("DNT", "1"), ("Sec-GPC", "1")]].concat();
    get(pixel.address()?, "/track.gif?x=1", &headers)?;
    get(pixel.address()?, "/track", &[])?;
    let lines = wait_for_lines(&folder.path().join("visits.log"), 2)?;
    let visit: serde_json::Value = serde_json::from_str(&lines[0])?;
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
    let bare: serde_json::Value = serde_json::from_str(&lines[1])?;
    assert!(bare["referrer"].is_null() && bare["query"].is_null());
    assert_eq!((&bare["sequence"], &bare["producer"]), (&2.into(), &visit["producer"]));
    pixel.stop()?;
    let (status, report) = audit(&folder.path().join("visits.log"))?;
    assert_eq!((status, &report["producers"][0]["producer"]), (0, &visit["producer"]));
    assert_eq!(report["producers"][0]["sequences"], serde_json::json!([[1, 2]]));
    Ok(())
}

#[test]
fn no_header_breaks_a_line_or_forges_a_field() -> Outcome {
    let folder = tempfile::tempdir()?;
    let mut pixel = Launch::new("pixel", folder.path()).start()?;
    for (written, agent) in [
        (r"a\x7cb", "a|b"),
        (r"a\x5cb", r"a\b"),
        (r"a\x09b\x1b[0m", "a\tb\x1b[0m"),
        (r"a\x0d2022-12-19T14:16:49.9605280Z\x7cx", "a\r2022-12-19T14:16:49.9605280Z|x"),
        (r"a\x00b\x0ac", "a\0b\nc"),
        (r"\x6eull", "null"),
    ] {
        get(pixel.address()?, "/track", &[("User-Agent", agent)])?;
        let count = lines(&folder.path().join("visits.log")).len();
        let lines = wait_for_lines(&folder.path().join("visits.log"), count.max(1))?;
        wait_until(&format!("{agent:?} as {written}"), || {
            let last =
                crate::support::output::lines(&folder.path().join("visits.log")).pop().unwrap_or_default();
            last.split('|').nth(2) == Some(written)
        })
        .map_err(|error| format!("{error}: {lines:?}"))?;
    }
    assert!(lines(&folder.path().join("visits.log")).iter().all(|line| line.split('|').count() == 4));
    pixel.stop()
}

#[test]
fn the_output_may_be_renamed_removed_and_truncated() -> Outcome {
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("visits.log");
    let mut pixel = Launch::new("pixel", folder.path()).start()?;
    let address = pixel.address()?;
    let visit = |name: &str| {
        get(address, "/track", &[("User-Agent", name)]).map(|answer| assert_eq!(answer.status, 200))
    };
    visit("one")?;
    wait_for_lines(&output, 1)?;
    assert_eq!(fs::metadata(&output)?.permissions().mode() & 0o777, 0o640);

    fs::rename(&output, folder.path().join("visits.log.1"))?;
    wait_until("a new file at once, without a visit", || output.exists())?;
    visit("two")?;
    assert!(wait_for_lines(&output, 1)?[0].contains("|two|"));
    fs::remove_file(&output)?;
    visit("three")?;
    assert!(wait_for_lines(&output, 1)?[0].contains("|three|"));
    // logrotate's copytruncate
    fs::OpenOptions::new().write(true).open(&output)?.set_len(0)?;
    visit("four")?;
    assert!(wait_for_lines(&output, 1)?[0].contains("|four|"));
    pixel.signal(Signal::HUP)?;
    visit("five")?;
    assert!(wait_for_lines(&output, 2)?[1].contains("|five|"));
    assert!(lines(&folder.path().join("visits.log.1"))[0].contains("|one|"));
    pixel.stop()
}

#[test]
fn a_second_process_on_one_spool_is_refused_by_the_holder_s_file() -> Outcome {
    let folder = tempfile::tempdir()?;
    let launch = Launch::new("pixel", folder.path());
    let first = launch.start()?;
    let (status, _, stderr) = launch.output()?;
    assert_eq!(status, 1, "{stderr}");
    let lock = folder.path().join("spool/lock");
    assert!(
        stderr.contains(&lock.display().to_string()) && stderr.contains(&first.pid()?.to_string()),
        "{stderr}"
    );
    first.stop()
}

#[test]
fn slots_let_processes_share_a_folder() -> Outcome {
    let folder = tempfile::tempdir()?;
    let launch = Launch::new("pixel-http", folder.path())
        .with("spool-slots", "2")
        .with("amqp-url", "amqp://127.0.0.1:1");
    let (first, second) = (launch.start()?, launch.start()?);
    assert!(folder.path().join("spool/0/lock").exists() && folder.path().join("spool/1/lock").exists());
    let (status, _, stderr) = launch.output()?;
    assert!(status == 1 && stderr.contains("spool/1/lock"), "{status} {stderr}");
    first.stop()?;
    second.stop()
}
