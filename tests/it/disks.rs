//! Disks that run full, fail, go read-only or are touched by others: every 200 is in the output once.

use std::fs;
use std::process::Command;

use std::path::Path;

use pixel::queue::VisitStore;
use pixel::spool::{Spool, waiting};

use crate::Outcome;
use crate::support::admin::Admin;
use crate::support::broker::{Broker, NOWHERE};
use crate::support::client::get;
use crate::support::faulty_disk::FaultyDisk;
use crate::support::fixtures::{Brokered, Embedded, Services};
use crate::support::proxy::Proxy;
use crate::support::small_disk::SmallDisk;
use crate::support::wait::wait_until;

#[test]
fn a_full_output_disk_holds_everything_back_until_it_is_freed() -> Outcome {
    let Some(disk) = SmallDisk::mount("16m")? else { return Ok(()) };
    let mut system = Embedded::with(|launch| launch.with("output", disk.path().join("visits.log")))?;
    let load = system.load(4);
    for kills in [false, true] {
        load.wait_for(100)?;
        disk.fill()?;
        let admin = system.pixel.admin()?;
        wait_until("a full disk to be the reason", || {
            admin.readiness().is_ok_and(|(status, why)| status == 503 && why.contains("No space left"))
        })?;
        load.wait_for(100)?;
        if kills {
            system.pixel.kill()?;
            system.pixel.start_again()?;
            load.wait_for(100)?;
        }
        disk.free()?;
        system.pixel.admin()?.wait_until_ready()?;
    }
    load.wait_for(100)?;
    system.output.verify(&load.stop())?;
    let complaints = system.pixel.log().matches("ERROR").count();
    assert!(complaints <= 2, "{complaints} lines:\n{}", system.pixel.log());
    system.stop_and_audit()
}

/// The one segment that filled the disk was kept for its name when all of it was written: 503 for ever.
#[test]
fn a_full_spool_disk_answers_503_and_collects_again_when_there_is_room() -> Outcome {
    let Some(disk) = SmallDisk::mount("1m")? else { return Ok(()) };
    let system = Embedded::with(|launch| launch.with("spool-dir", disk.path()))?;
    system.visit(&[])?;
    system.output.wait_for_lines(1)?;
    for round in 0..2 {
        // A reader that holds the output holds the writer up, so the spool fills.
        let reader = system.output.hold_writer_up()?;
        let load = system.load(4);
        load.wait_for_refusals(20)?;
        drop(reader);
        load.wait_for(300)?;
        if round == 1 {
            // Full by what is not its own, so not even a small segment fits.
            disk.fill()?;
            load.wait_for_refusals(20)?;
            disk.free()?;
            load.wait_for(300)?;
        }
        system.output.verify(&load.stop())?;
    }
    system.stop_and_audit()
}

#[test]
fn a_read_only_output_holds_everything_back() -> Outcome {
    let mut system = Embedded::start()?;
    let output = system.output.clone();
    let load = system.load(4);
    load.wait_for(100)?;
    let chattr = |flag: &str| Command::new("chattr").arg(flag).arg(&output.path).output();
    if !chattr("+i")?.status.success() {
        println!("NOT TESTED: this user or file system knows no immutable files");
        return Ok(());
    }
    let unready = system.pixel.admin()?.wait_until_unready();
    let more = load.wait_for(100);
    system.pixel.kill()?;
    system.pixel.start_again()?;
    let after_a_kill = load.wait_for(100);
    assert!(chattr("-i")?.status.success());
    unready.and(more).and(after_a_kill)?;
    system.stop_and_verify(load)
}

#[test]
fn a_folder_that_is_renamed_away_holds_everything_back_until_it_is_back() -> Outcome {
    let launch = Embedded::launch()?;
    let (there, away) = (launch.folder().join("out"), launch.folder().join("away"));
    fs::create_dir(&there)?;
    let mut system = Embedded::of(&launch.with("output", there.join("visits.log")))?;
    let load = system.load(4);
    for kills in [false, true] {
        load.wait_for(100)?;
        fs::rename(&there, &away)?;
        system.pixel.admin()?.wait_until_unready()?;
        if kills {
            system.pixel.kill()?;
            system.pixel.start_again()?;
        }
        load.wait_for(100)?;
        assert!(system.pixel.runs() && !there.exists());
        fs::rename(&away, &there)?;
        system.pixel.admin()?.wait_until_ready()?;
    }
    load.wait_for(100)?;
    system.stop_and_verify(load)
}

#[test]
fn what_others_append_stays_and_a_torn_line_is_ended() -> Outcome {
    let launch = Embedded::launch()?.with("format", "pipe");
    fs::write(launch.output().path, "older\ntorn")?;
    let mut system = Embedded::of(&launch)?;
    let output = system.output.clone();
    let visit = |system: &Embedded, name: &str| -> Outcome {
        let count = output.lines().len();
        system.visit(&[("User-Agent", name)])?;
        output.wait_for_lines(count + 1)?;
        // Once the writer lets others in, the line is committed.
        output.hold_writer_up().map(drop)
    };
    visit(&system, "one")?;
    output.append("foreign\nand torn")?;
    visit(&system, "two")?;
    system.pixel.kill()?;
    // It stands where a crash might have left a visit, and no visit is delivered that claims it.
    output.append("while stopped\nand torn then")?;
    system.pixel.start_again()?;
    visit(&system, "three")?;
    system.stop_and_audit()?;
    let lines = output.lines();
    let found: Vec<&str> = lines.iter().map(|line| line.split('|').nth(2).unwrap_or(line)).collect();
    let wanted =
        ["older", "torn", "one", "foreign", "and torn", "two", "while stopped", "and torn then", "three"];
    assert_eq!(found, wanted);
    assert_eq!(output.files()?, [output.path], "nothing is put aside");
    Ok(())
}

#[test]
fn a_ledger_that_is_deleted_is_written_anew() -> Outcome {
    let mut system = Embedded::start()?;
    let ledger = system.output.ledger();
    wait_until("a ledger", || ledger.exists())?;
    fs::remove_file(&ledger)?;
    wait_until("a new ledger, without a visit", || ledger.exists())?;
    let load = system.load(4);
    for deed in ["remove", "replace", "remove"] {
        load.wait_for(150)?;
        fs::remove_file(&ledger)?;
        if deed == "replace" {
            fs::write(&ledger, "not a ledger")?;
        }
        let before = load.count();
        wait_until("a new ledger", || {
            load.count() > before + 100 && fs::metadata(&ledger).is_ok_and(|found| found.len() > 100)
        })?;
        system.pixel.kill()?;
        system.pixel.start_again()?;
    }
    load.wait_for(100)?;
    system.stop_and_verify(load)
}

/// What a start cut off it once kept beside; on a full disk each try left another half of it.
#[test]
fn a_start_on_a_full_disk_waits_unready_and_goes_on() -> Outcome {
    let Some(disk) = SmallDisk::mount("16m")? else { return Ok(()) };
    let mut system = Embedded::with(|launch| launch.with("output", disk.path().join("visits.log")))?;
    let load = system.load(4);
    load.wait_for(60)?;
    system.pixel.kill()?;
    disk.fill()?;
    let beside = || -> Outcome<usize> { Ok(fs::read_dir(disk.path())?.count()) };
    let before = beside()?;
    system.pixel.start_again()?;
    let admin = system.pixel.admin()?;
    wait_until("a full disk to be the reason", || {
        admin.readiness().is_ok_and(|(status, why)| status == 503 && why.contains("No space left"))
    })?;
    load.wait_for(300)?;
    // The draft of a ledger, written over with each try.
    assert!(beside()? <= before + 1, "tries leave nothing behind");
    disk.free()?;
    admin.wait_until_ready()?;
    load.wait_for(60)?;
    system.stop_and_verify(load)
}

#[test]
fn a_disk_that_reports_errors_loses_and_repeats_nothing() -> Outcome {
    let Some(disk) = FaultyDisk::compile()? else { return Ok(()) };
    let mut system = Embedded::with(|launch| launch.before(&disk.preload()))?;
    let load = system.load(4);
    for (n, (operation, file)) in [
        ("write", "visits.log"),
        ("sync", "visits.log"),
        ("write,truncate", "visits.log"),
        ("write", "visits.log.ledger"),
        ("sync", "visits.log.ledger"),
        ("sync,truncate", "visits.log.ledger"),
        ("write", ".spool"),
        ("sync", ".spool"),
        ("write,sync,truncate", ".spool"),
        ("write,sync,truncate", ""),
    ]
    .into_iter()
    .enumerate()
    {
        load.wait_for(60)?;
        if operation.contains("write,") && !file.contains("visits") {
            // No append is then between its write and its sync: one whose sync fails, and that cannot be taken back
            // either, is answered with 503 and may be written all the same.
            disk.begin("write", "EIO", file)?;
            load.wait_for_refusals(1)?;
        }
        disk.begin(operation, "EIO", file)?;
        let promised = load.count();
        if file.contains("visits") {
            system.pixel.admin()?.wait_until_unready()?;
            load.wait_for(30)?;
        } else {
            load.wait_for_refusals(5)?;
            assert!(load.count() < promised + 60, "{operation} of {file}: 200 without a disk");
        }
        if n % 2 == 1 {
            system.pixel.kill()?;
            disk.end()?;
            system.pixel.start_again()?;
        }
        disk.end()?;
        load.wait_for(50).map_err(|error| format!("{error}, after {operation} of {file}"))?;
        assert!(system.pixel.runs(), "{operation} of {file} ended it:\n{}", system.pixel.log());
    }
    system.stop_and_verify(load)
}

fn wait_for_reason(admin: Admin, wanted: u16, reason: &str) -> Outcome {
    wait_until(reason, || {
        admin.readiness().is_ok_and(|(status, why)| status == wanted && why.contains(reason))
    })
    .map_err(|error| format!("{error}; it says {:?}", admin.readiness()).into())
}

/// `pixel` ended at the first reading, and no start came to an end: nothing was collected any more.
#[test]
fn a_sector_of_the_spool_that_cannot_be_read_keeps_pixel_from_no_visit() -> Outcome {
    let Some(disk) = FaultyDisk::compile()? else { return Ok(()) };
    let mut system = Embedded::with(|launch| launch.before(&disk.preload()))?;
    system.visit(&[])?;
    system.output.wait_for_lines(1)?;
    let load = system.load(4);
    // What is taken meanwhile waits in the spool, over the sector and behind it.
    let reader = system.output.hold_writer_up()?;
    load.wait_for(300)?;
    disk.hide(".spool", 3 * 4096)?;
    drop(reader);
    for starts in 0..3 {
        let admin = system.pixel.admin()?;
        wait_for_reason(admin, 503, "failed to read the spool: `")?;
        assert!(admin.metric("pixel_broker_connected").is_err(), "it has no broker");
        load.wait_for(100)?;
        let log = system.pixel.log();
        assert!(log.matches("failed to read the spool").count() <= 2, "it is said once, {starts}:\n{log}");
        system.pixel.kill()?;
        system.pixel.start_again()?;
    }
    load.wait_for(100)?;
    disk.end()?;
    system.pixel.admin()?.wait_until_ready()?;
    system.stop_and_verify(load)
}

/// A reading that failed cost the connection, and so the confirms of what could be read.
#[test]
fn a_spool_that_cannot_be_read_keeps_pixel_http_from_no_visit_and_costs_no_connection() -> Outcome {
    let Some(disk) = FaultyDisk::compile()? else { return Ok(()) };
    let proxy = Proxy::start(Broker::shared()?.nodes[0].port);
    proxy.refuse(true);
    let services = Services::new(&proxy.url(), "unreadable")?;
    let mut http = services.http.before(&disk.preload()).start()?;
    let storage = services.storage.spawn()?;
    let mut system = Brokered { address: http.address()?, http, storage, output: services.output };
    let load = system.load(4);
    load.wait_for(300)?;
    disk.hide(".spool", 3 * 4096)?;
    system.http.kill()?;
    system.http.start_again()?;
    load.wait_for(100)?;
    proxy.refuse(false);
    let admin = system.http.admin()?;
    wait_for_reason(admin, 200, "failed to read the spool: `")?;
    // What stands before the sector is confirmed, and forgotten.
    wait_until("what can be read", || system.output.lines().len() > 10)?;
    let connections = system.http.log().matches("connected to the broker").count();
    load.wait_for(100)?;
    wait_for_reason(admin, 200, "failed to read the spool: `")?;
    assert_eq!(admin.metric("pixel_broker_connected")?, 1.0);
    assert_eq!(system.http.log().matches("connected to the broker").count(), connections);
    disk.end()?;
    system.wait_until_well()?;
    load.wait_for(100)?;
    system.stop_and_verify(load)
}

/// Any failure of it ended `pixel`. And each new try delivered the whole batch again.
#[test]
fn dead_letters_that_cannot_be_written_are_waited_for() -> Outcome {
    let Some(disk) = FaultyDisk::compile()? else { return Ok(()) };
    let launch = Embedded::launch()?.before(&disk.preload());
    let folder = launch.folder().join("spool");
    let spool = Spool::open(&folder, 1, 64 << 20)?;
    let visit = r#"{"received_at":"2022-12-19T14:16:49Z","ip":"1.2.3.4"}"#;
    spool.append(format!("{visit}\nhello\n{visit}\n").as_bytes(), 3)?;
    drop(spool);
    let letters = folder.join("dead.ndjson");
    disk.begin("write", "ENOSPC", "dead.ndjson")?;
    let mut system = Embedded::of(&launch)?;
    let admin = system.pixel.admin()?;
    // Its name is not durable before its folder is synced.
    for (operation, error, file) in
        [("write", "ENOSPC", "dead.ndjson"), ("sync", "EIO", "dead.ndjson"), ("sync", "EIO", "/spool")]
    {
        disk.begin(operation, error, file)?;
        let said = if error == "EIO" { "Input/output error" } else { "No space left" };
        wait_for_reason(admin, 503, &format!("{}`: {said}", letters.display()))?;
        system.visit(&[])?;
        assert!(admin.metric("pixel_spool_visits")? >= 3.0, "{operation} of {file}: forgotten too early");
    }
    assert_eq!(admin.metric("pixel_visits_duplicate_total")?, 0.0, "nothing is delivered again");
    let log = system.pixel.log();
    assert!(log.matches("dead.ndjson").count() <= 3, "each reason is said once:\n{log}");
    disk.end()?;
    admin.wait_until_ready()?;
    assert_eq!(system.output.wait_for_lines(5)?.len(), 5);
    assert!(fs::read_to_string(&letters)?.contains("hello"));
    assert!(system.pixel.runs());
    system.stop_and_audit()
}

/// Writes a segment of one visit, as a killed process has left it.
fn write_segment(folder: &Path, sequence: u64) -> Outcome {
    let line = format!(r#"{{"received_at":"2022-12-19T14:16:49Z","ip":"1.2.3.4","query":"n={sequence}"}}"#);
    let mut payload = sequence.to_le_bytes().to_vec();
    payload.extend_from_slice(&1u32.to_le_bytes());
    payload.extend_from_slice(format!("{line}\n").as_bytes());
    let mut record = u32::try_from(payload.len())?.to_le_bytes().to_vec();
    let crc = crc32fast::hash(&[&record[..], &payload].concat());
    record.extend_from_slice(&crc.to_le_bytes());
    record.extend_from_slice(&payload);
    Ok(fs::write(folder.join(format!("{sequence:020}.spool")), record)?)
}

/// Each segment held a descriptor for life: the collector could not start, and so not drain them either.
#[test]
fn a_backlog_of_10_000_segments_is_drained_with_256_descriptors() -> Outcome {
    let launch = Embedded::launch()?.before("ulimit -n 256");
    let folder = launch.folder().join("spool");
    fs::create_dir(&folder)?;
    fs::write(folder.join("producer"), "6ba7b810-9dad-41d1-80b4-00c04fd430c8\n")?;
    (1..=10_000).try_for_each(|sequence| write_segment(&folder, sequence))?;
    let system = Embedded::of(&launch)?;
    system.visit(&[])?;
    let lines = system.output.wait_for_lines(10_001)?;
    let numbers: Vec<u64> = lines
        .iter()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).map(|visit| visit["sequence"].as_u64()))
        .collect::<Result<Option<_>, _>>()?
        .ok_or("a visit without a number")?;
    assert_eq!(numbers, (1..=10_001).collect::<Vec<_>>());
    wait_until("one segment", || count_segments(&folder).is_ok_and(|count| count == 1))?;
    system.stop_and_audit()
}

fn count_segments(folder: &Path) -> Outcome<usize> {
    let names = fs::read_dir(folder)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| name.ends_with(".spool")).count())
}

/// Each start made a segment of its own, 8 MiB of the disk.
#[test]
fn starts_during_an_outage_go_on_with_one_segment() -> Outcome {
    let launch = Services::new(NOWHERE, "outage")?.http;
    let folder = launch.folder().join("spool");
    let mut http = launch.start()?;
    for n in 1..=12 {
        assert_eq!(get(http.address()?, "/track", &[])?.status, 200);
        if n % 2 == 0 { http.kill() } else { http.stop() }?;
        assert_eq!(count_segments(&folder)?, 1);
        assert_eq!(waiting(&folder)?.remove(0).sequences, [1..=n]);
        http.start_again()?;
    }
    http.stop()
}

/// Where two machines may have the lock, and a sync means nothing, nobody was told.
#[test]
fn a_file_system_whose_locks_and_syncs_are_not_to_be_trusted_is_told_at_start() -> Outcome {
    let folder = tempfile::tempdir()?;
    let Some(disk) = SmallDisk::fuse(folder.path())? else { return Ok(()) };
    let launch = Embedded::launch()?;
    let output = disk.path().join("visits.log");
    for (launch, told) in [
        (launch.clone().with("output", &output), disk.path()),
        (launch.clone().with("spool-dir", disk.path().join("spool")), &*disk.path().join("spool")),
        (launch.clone().with("state-dir", disk.path()), disk.path()),
    ] {
        let mut pixel = launch.start()?;
        let said = pixel.wait_for_log("is on FUSE")?;
        assert!(said.contains(&format!("`{}`", told.display())), "{said}");
        pixel.stop()?;
    }
    let mut pixel = launch.start()?;
    assert!(!pixel.log().contains("FUSE"), "{}", pixel.log());
    pixel.stop()
}
