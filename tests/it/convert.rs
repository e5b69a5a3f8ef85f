//! `pixel convert`: from each format to each, with nothing lost, and errors that name file and line.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use pixel::visit::lines::LineFormat;

use crate::Outcome;
use crate::support::launch::Launch;
use crate::support::shell::shell;
use crate::support::visits::{lines_as, varied};

const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/lint/bin/python");

/// Runs `pixel convert` in a folder: its exit status and what it says on stderr.
fn convert(launch: &Launch, arguments: &str) -> Outcome<(i32, String)> {
    let command =
        arguments.split(' ').fold(launch.clone().argument("convert"), |launch, word| launch.argument(word));
    let (status, _, said) = command.run()?;
    Ok((status, said))
}

fn converted(launch: &Launch, arguments: &str) -> Outcome<String> {
    match convert(launch, arguments)? {
        (0, said) => Ok(said),
        (status, said) => Err(format!("{arguments}: it ended with {status}: {said}").into()),
    }
}

fn write_compressed(path: &Path, lines: &[u8]) -> Outcome {
    let mut gzip = flate2::write::GzEncoder::new(fs::File::create(path)?, flate2::Compression::fast());
    gzip.write_all(lines)?;
    gzip.finish()?;
    Ok(())
}

#[test]
fn visits_are_converted_there_and_back_and_nothing_is_lost() -> Outcome {
    let launch = Launch::new("pixel")?;
    let path = |name: &str| launch.folder().join(name);
    let visits = varied(1_500);
    for (name, format) in [
        ("pipe", LineFormat::Pipe),
        ("combined", LineFormat::Combined),
        ("vcombined", LineFormat::Vcombined),
        ("ndjson", LineFormat::Ndjson),
    ] {
        let lines = lines_as(format, &visits);
        // Its name says nothing of its compression.
        write_compressed(&path("source"), &lines)?;
        for over in ["ndjson", "csv", "parquet"] {
            let there = format!("{name}.{over}");
            let said = converted(&launch, &format!("--from {name} --to {over} --output {there} source"))?;
            assert_eq!(said.trim(), "1500 visits converted", "{name} to {over}");
            let back = format!("{there}.back");
            converted(&launch, &format!("--from {over} --to {name} --output {back} {there}"))?;
            let back = fs::read(path(&back))?;
            // A value that was cut to make its line fit, and one that was not, are written the same.
            let different =
                back.split(|b| *b == b'\n').zip(lines.split(|b| *b == b'\n')).find(|(a, b)| a != b);
            let shown = different.map(|(a, b)| (String::from_utf8_lossy(a), String::from_utf8_lossy(b)));
            assert!(back == lines, "{name} over {over}: {shown:?}");
        }
    }
    Ok(())
}

#[test]
fn what_the_target_has_no_place_for_is_named() -> Outcome {
    let launch = Launch::new("pixel")?;
    let line = r#"{"received_at":"2026-11-23T14:00:00.5Z","ip":"::1","host":"h","gpc":true,"producer":"00000000-0000-0000-0000-000000000007","sequence":1}"#;
    fs::write(launch.folder().join("visits.ndjson"), format!("{line}\n{line}\n"))?;
    let said = converted(&launch, "--to pipe --output visits.log visits.ndjson")?;
    assert!(said.contains("no place for host (2), gpc (2), producer and sequence (2)"), "{said}");
    let said = converted(&launch, "--to vcombined --output visits.vhost visits.ndjson")?;
    assert!(
        said.contains("no place for gpc (2), producer and sequence (2), fractions of the second (2)"),
        "{said}"
    );
    Ok(())
}

#[test]
fn duckdb_reads_the_parquet_by_hour_and_counts_right() -> Outcome {
    let launch = Launch::new("pixel")?;
    let path = |name: &str| launch.folder().join(name);
    let visits = varied(5_000);
    fs::write(path("visits.log"), lines_as(LineFormat::Ndjson, &visits))?;
    converted(&launch, "--from ndjson --to parquet --by hour --output lake visits.log")?;
    let mut hours = std::collections::BTreeMap::new();
    for (visit, _) in &visits {
        *hours.entry(visit.received_at.strftime("%Y-%m-%d %H").to_string()).or_insert(0) += 1;
    }
    assert_eq!(hours.len(), 7);
    for hour in hours.keys() {
        let (day, hour) = hour.split_once(' ').ok_or("no hour")?;
        assert!(path(&format!("lake/dt={day}/hour={hour}/visits.parquet")).exists(), "{day} {hour}");
    }
    if !Command::new(PYTHON).args(["-c", "import duckdb"]).status().is_ok_and(|status| status.success()) {
        println!("NOT TESTED: DuckDB is not here; `tests/require-tools test` installs it");
        return Ok(());
    }
    let query = "import duckdb, sys\n\
         for row in duckdb.sql(sys.argv[1]).fetchall(): print('|'.join(map(str, row)))";
    let ask = |sql: &str| -> Outcome<String> {
        let answer = Command::new(PYTHON).args(["-c", query, sql]).current_dir(launch.folder()).output()?;
        let text = String::from_utf8_lossy(&answer.stderr).into_owned();
        if answer.status.success() { Ok(String::from_utf8(answer.stdout)?) } else { Err(text.into()) }
    };
    let from = "from read_parquet('lake/**/*.parquet', hive_partitioning = true)";
    let answer = ask(&format!(
        "set timezone = 'UTC'; select strftime(received_at, '%Y-%m-%d %H') h, count(*), \
         bool_and(strftime(received_at, '%H') = hour) {from} group by h order by h"
    ))?;
    let expected: Vec<String> = hours.iter().map(|(hour, count)| format!("{hour}|{count}|True")).collect();
    assert_eq!(answer.lines().collect::<Vec<_>>(), expected);
    let posts = visits
        .iter()
        .filter(|(visit, _)| visit.method.as_ref().is_some_and(|m| m.as_str() == "POST"))
        .count();
    let agents = visits.iter().filter(|(visit, _)| visit.user_agent.is_some()).count();
    let gpc = visits.iter().filter(|(visit, _)| visit.gpc).count();
    let answer = ask(&format!(
        "select count(*) filter (method = 'POST'), count(user_agent), count(*) filter (gpc), \
         count(distinct sequence), min(producer) {from}"
    ))?;
    assert_eq!(answer.trim(), format!("{posts}|{agents}|{gpc}|5000|{}", uuid::Uuid::from_u128(7)));
    Ok(())
}

#[test]
fn more_hours_than_files_may_be_open_are_all_there() -> Outcome {
    let launch = Launch::new("pixel")?;
    let path = |name: &str| launch.folder().join(name);
    let line =
        |n: u64| format!("2026-11-{:02}T{:02}:00:00.0000000Z|null|{n}|::1\n", 1 + n % 40 / 24, n % 40 % 24);
    let lines: String = (0..120).map(line).collect();
    fs::write(path("visits.log"), &lines)?;
    converted(&launch, "--to pipe --by hour --output hours visits.log")?;
    let script = "cat $(find hours -name '*.log') | sort > all && sort visits.log | diff - all";
    shell(launch.folder(), script, "")?;
    assert!(path("hours/dt=2026-11-01/hour=00/visits-2.log").exists());
    Ok(())
}

#[test]
fn a_line_that_is_no_visit_is_named_with_its_file_and_nothing_half_is_left() -> Outcome {
    let launch = Launch::new("pixel")?;
    let path = |name: &str| launch.folder().join(name);
    let good = "2026-11-23T14:00:00.0000000Z|null|curl/8|::1\n";
    fs::write(path("good.log"), good)?;
    fs::write(path("bad.log"), format!("{good}{good}torn|\n{good}"))?;
    fs::write(
        path("bad.csv"),
        "received_at,ip,sequence\n2026-11-23T14:00:00Z,::1,1\n2026-11-23T14:00:00Z,::1,x\n",
    )?;
    write_compressed(&path("torn.gz"), &good.repeat(2000).into_bytes())?;
    let torn = fs::read(path("torn.gz"))?;
    fs::write(path("torn.gz"), &torn[..torn.len() / 2])?;
    for (arguments, status, said) in [
        ("--to ndjson --output out good.log bad.log", 1, "bad.log:3: it has 2 fields, and not 4"),
        ("--to ndjson --output out --by day bad.log", 1, "bad.log:3: it has 2 fields"),
        ("--from combined --to csv --output out good.log", 1, "good.log:1: it has no address"),
        ("--to csv --output out bad.csv", 1, "bad.csv:3: `x` of sequence is no number"),
        ("--to csv --output out torn.gz", 1, "failed to read `torn.gz`: "),
        ("--to csv --output out absent.log", 1, "failed to read `absent.log`: No such file"),
        ("--from parquet --to csv --output out good.log", 1, "failed to read `good.log`: "),
        ("--from parquet --to csv --output out -", 1, "Parquet is read from its end: name a file"),
        ("--to csv --output good.log bad.log", 1, "`good.log` is there already: remove it, or name another"),
        ("--to csv --by day good.log", 2, "name their folder with --output"),
        ("--to csv --by week --output out good.log", 2, "--by is `week`: expected day or hour"),
        ("--to xml good.log", 2, "--to is `xml`: expected pipe, combined, vcombined, ndjson, csv or parquet"),
    ] {
        let (ended, told) = convert(&launch, arguments)?;
        assert!(ended == status && told.contains(said), "{arguments}: {ended}, {told}");
        let left = files_below(launch.folder())?;
        assert_eq!(left, ["bad.csv", "bad.log", "good.log", "torn.gz"], "{arguments}");
    }
    let (status, told) = convert(&launch, "--to ndjson --skip-bad --output out bad.log")?;
    assert_eq!(status, 0);
    assert!(
        told.contains("bad.log:3: it has 2") && told.contains("3 visits converted, 1 bad lines left out"),
        "{told}"
    );
    Ok(())
}

/// The files below a folder, by their names.
fn files_below(folder: &Path) -> Outcome<Vec<String>> {
    let mut names = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => folders.push(entry.path()),
                false => names.push(entry.file_name().to_string_lossy().into_owned()),
            }
        }
    }
    names.sort();
    Ok(names)
}
