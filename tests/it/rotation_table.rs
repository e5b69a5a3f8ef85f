//! Every way of rotation that docs/FORMATS.md lists, each under load and with kills in between: how many visits were
//! promised, lost and doubled, and what the audit says. `make rotation-table` prints the table.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::Outcome;
use crate::support::faulty_disk::FaultyDisk;
use crate::support::fixtures::Embedded;
use crate::support::launch::Launch;
use crate::support::output::{Output, lines_of, numbers_of};
use crate::support::shell::shell;
use crate::support::wait::wait_until;

/// How often a file is rotated of each way, at least.
const ROTATIONS: usize = 6;
/// Before each of how many rotations the program is killed.
const KILL_EVERY: usize = 2;
/// How many times as fast the clock runs of those that rotate by the hour.
const CLOCK_RATE: u32 = 1_800;

/// What came of one way.
#[derive(Default)]
struct Row {
    promised: usize,
    removed: u64,
    lost: u64,
    doubled: usize,
    audit: String,
}

/// Rotates the output of a system, and returns when it has.
type Rotate<'a> = &'a dyn Fn(&mut Embedded, usize) -> Outcome;

fn run(launch: &Launch, rotate: Rotate<'_>) -> Outcome<Row> {
    let mut system = Embedded::of(launch)?;
    let output = system.output.clone();
    let load = system.load(4);
    for n in 1..=ROTATIONS {
        load.wait_for(60)?;
        if n % KILL_EVERY == 0 {
            system.pixel.kill()?;
            system.pixel.start_again()?;
        }
        // One that was just started has to have looked at what a crash left before others copy or remove the file.
        system.pixel.admin()?.wait_for_metric("pixel_visits_written_total", |count| count > 0.0)?;
        wait_until("the output", || output.path.exists())?;
        rotate(&mut system, n)?;
    }
    load.wait_for(60)?;
    let promised = load.stop().promised;
    // What waits in the spool is written, and what is rotated is as it is to be.
    system.pixel.stop()?;
    system.pixel.start_again()?;
    let admin = system.pixel.admin()?;
    admin.wait_for_metric("pixel_spool_visits", |waiting| waiting == 0.0)?;
    wait_until("compressed files", || {
        output
            .rotated()
            .is_ok_and(|files| !files.iter().any(|path| path.extension().is_some_and(|end| end == "tmp")))
    })?;
    system.pixel.stop()?;
    row(&output, &promised)
}

fn row(output: &Output, promised: &[u64]) -> Outcome<Row> {
    let (status, report) = output.audit()?;
    let files = report["files"].as_array().ok_or("no files")?;
    let removed = files.iter().filter(|file| file["state"] == "removed");
    let removed = removed.filter_map(|file| file["lines"].as_u64()).sum();
    let mut lines = output.lines_of_all()?;
    lines.extend(output.rotated()?.iter().flat_map(|path| lines_of(path)));
    let counts = numbers_of(&lines);
    let missing: BTreeSet<_> = promised.iter().filter(|number| !counts.contains_key(number)).collect();
    Ok(Row {
        promised: promised.len(),
        removed,
        lost: (missing.len() as u64).saturating_sub(removed),
        doubled: counts.values().filter(|count| **count > 1).count(),
        audit: if status == 0 { "proved".into() } else { format!("{status}: {report}") },
    })
}

/// Waits until Pixel itself has rotated so many files, those that it removed included.
fn by_pixel(system: &mut Embedded, count: usize) -> Outcome {
    let output = system.output.clone();
    wait_until("a rotation", || {
        let files = output.audit().ok().and_then(|(_, report)| report["files"].as_array().map(Vec::len));
        files.is_some_and(|files| files > count)
    })
}

/// Has a command rotate it in the folder of its files.
fn by_command(command: &str) -> impl Fn(&mut Embedded, usize) -> Outcome + '_ {
    move |system, n| {
        let folder = system.pixel.launch.folder();
        fs::write(folder.join("pixel.pid"), system.pixel.pid()?.as_raw_nonzero().to_string())?;
        shell(folder, command, &n.to_string())
    }
}

/// Debian's logrotate as other daemons have it, which needs the flock where it compresses or cuts a file that a batch may
/// be on its way to; others' own scripts; and Pixel itself.
#[test]
fn whichever_way_it_is_rotated_no_visit_is_lost_or_doubled() -> Outcome {
    let mut rows: Vec<(String, Outcome<Row>)> = Vec::new();
    let by_bytes = || -> Outcome<Launch> { Ok(Embedded::launch()?.with("rotate-bytes", "8000")) };
    for (options, launch) in [
        ("", by_bytes()?),
        (", `PIXEL_COMPRESS=zstd`", by_bytes()?.with("compress", "zstd")),
        (", `PIXEL_COMPRESS=gzip`", by_bytes()?.with("compress", "gzip")),
        (
            ", `PIXEL_COMPRESS=zstd`, `PIXEL_KEEP=2files`",
            by_bytes()?.with("compress", "zstd").with("keep", "2files"),
        ),
    ] {
        rows.push((format!("Pixel: `PIXEL_ROTATE_BYTES=8000`{options}"), run(&launch, &by_pixel)));
    }
    if let Some(clock) = FaultyDisk::compile()? {
        for (options, compress) in [("", ""), (", `PIXEL_COMPRESS=gzip`", "gzip")] {
            let launch = Embedded::launch()?.with("rotate-at", "hourly").with("compress", compress);
            let launch = launch.before(&clock.preload_with_fast_clock(CLOCK_RATE)?);
            rows.push((format!("Pixel: `PIXEL_ROTATE_AT=hourly`{options}"), run(&launch, &by_pixel)));
        }
    }
    let gzip = "flock visits.log sh -c 'gzip -c visits.log > visits.log.$0.gz && rm visits.log' \"$0\"";
    rows.push((
        "`flock visits.log sh -c 'gzip -c …; rm …'`".into(),
        run(&Embedded::launch()?, &by_command(gzip)),
    ));
    let has_logrotate = Command::new("logrotate").arg("--version").output().is_ok();
    if !has_logrotate {
        println!("NOT TESTED: logrotate is not here; tests/require-packages installs it");
    }
    for (directives, command) in [
        ("create 0640", "logrotate"),
        ("nocreate", "logrotate"),
        ("create 0640; postrotate kill -HUP", "logrotate"),
        ("create 0640; compress; delaycompress", "logrotate"),
        ("nocreate; compress", "flock visits.log logrotate"),
        ("copytruncate", "flock visits.log logrotate"),
        ("copytruncate; compress", "flock visits.log logrotate"),
    ] {
        if !has_logrotate {
            break;
        }
        let launch = Embedded::launch()?;
        let postrotate = "postrotate\nkill -HUP $(cat pixel.pid)\nendscript";
        let lines = directives.replace("postrotate kill -HUP", postrotate).replace("; ", "\n");
        let path = launch.output().path;
        let config = format!("{} {{\nrotate 20\n{lines}\n}}\n", path.display());
        fs::write(launch.folder().join("logrotate.conf"), config)?;
        let script = format!("{command} --force --state logrotate.state logrotate.conf");
        rows.push((format!("`{command}`: `{directives}`"), run(&launch, &by_command(&script))));
    }
    println!(
        "| way | visits | removed by `PIXEL_KEEP` | lost | doubled | `pixel audit` |\n| --- | ---: | ---: | ---: | ---: | --- |"
    );
    let mut bad = Vec::new();
    for (way, row) in rows {
        let row = row.unwrap_or_else(|error| Row { audit: format!("not run: {error}"), ..Row::default() });
        let Row { promised, removed, lost, doubled, audit } = &row;
        println!("| {way} | {promised} | {removed} | {lost} | {doubled} | {audit} |");
        if *promised == 0 || *lost > 0 || *doubled > 0 || audit != "proved" {
            bad.push(way);
        }
    }
    assert!(bad.is_empty(), "{bad:?}");
    Ok(())
}
