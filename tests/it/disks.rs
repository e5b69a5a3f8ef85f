//! Disks that run full, fail, go read-only or are touched by others: every 200 is in the output once.

use std::fs;
use std::process::Command;

use crate::Outcome;
use crate::support::faulty_disk::FaultyDisk;
use crate::support::fixtures::Embedded;
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
