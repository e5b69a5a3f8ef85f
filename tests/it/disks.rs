//! Disks that run full, fail, go read-only or are touched by others: every 200 is in the output once.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::Outcome;
use crate::support::client::{get, ready};
use crate::support::faulty_disk::Faults;
use crate::support::load::Load;
use crate::support::output::{all_written_once, written};
use crate::support::output::{audit, lines, wait_for_lines};
use crate::support::program::{Launch, at_fixed_port};
use crate::support::small_disk::SmallDisk;
use crate::support::wait::wait_until;

/// `pixel` over a disk that fails when it is told to; `None` where there is no compiler for one.
fn over_faults(folder: &Path) -> Outcome<Option<(Faults, Launch)>> {
    let Some(faults) = Faults::new(folder)? else { return Ok(None) };
    let launch = Launch::new("pixel", folder).with("format", "ndjson").before(&faults.preload());
    Ok(Some((faults, launch)))
}

/// Ends the load; each promised visit is in `output` once, none that was refused, and the audit agrees.
fn verify(load: Load, output: &Path) -> Outcome {
    let refused = load.refused();
    let promised = load.stop();
    all_written_once(&promised, output)?;
    let written = written(output);
    let broken: Vec<_> = refused.iter().filter(|number| written.contains_key(number)).collect();
    assert!(broken.is_empty(), "answered with 503 and written: {broken:?}");
    let (status, report) = audit(output)?;
    assert_eq!(status, 0, "{report}");
    Ok(())
}

#[test]
fn a_full_output_disk_holds_everything_back_until_it_is_freed() -> Outcome {
    let folder = tempfile::tempdir()?;
    let Some(disk) = SmallDisk::mount(&folder.path().join("out"), "16m")? else { return Ok(()) };
    let output = disk.0.join("visits.log");
    let launch = Launch::new("pixel", folder.path()).with("output", &output).with("format", "ndjson");
    let (launch, address) = at_fixed_port(launch);
    let mut pixel = launch.start()?;
    let load = Load::start(&[address], 4);
    for kills in [false, true] {
        load.wait_for(100)?;
        disk.fill()?;
        let admin = pixel.admin()?;
        wait_until("an unready program", || {
            ready(admin).is_ok_and(|(status, why)| status == 503 && why.contains("No space left"))
        })?;
        load.wait_for(100)?;
        if kills {
            pixel.kill()?;
            pixel = launch.start()?;
            load.wait_for(100)?;
        }
        disk.free()?;
        let admin = pixel.admin()?;
        wait_until("a ready program", || ready(admin).is_ok_and(|(status, _)| status == 200))?;
    }
    load.wait_for(100)?;
    verify(load, &output)?;
    let complaints = pixel.log().matches("ERROR").count();
    assert!(complaints <= 2, "{complaints} lines:\n{}", pixel.log());
    pixel.stop()
}

/// The one segment that filled the disk was kept for its name when all of it was written: 503 for ever.
#[test]
fn a_full_spool_disk_answers_503_and_collects_again_when_there_is_room() -> Outcome {
    let folder = tempfile::tempdir()?;
    let Some(disk) = SmallDisk::mount(&folder.path().join("spool"), "1m")? else { return Ok(()) };
    let output = folder.path().join("visits.log");
    let (launch, address) = at_fixed_port(Launch::new("pixel", folder.path()).with("format", "ndjson"));
    let pixel = launch.start()?;
    assert_eq!(get(address, "/track?warm", &[])?.status, 200);
    wait_for_lines(&output, 1)?;
    for round in 0..2 {
        // A reader that holds the output holds the writer up, so the spool fills.
        let reader = File::open(&output)?;
        fs2::FileExt::lock_exclusive(&reader)?;
        let load = Load::start(&[address], 4);
        wait_until("an answer of 503", || load.refused().len() > 20)?;
        let promised = load.count();
        fs2::FileExt::unlock(&reader)?;
        wait_until("further visits", || load.count() > promised + 200)?;
        if round == 1 {
            // Full by what is not its own, so not even a small segment fits.
            disk.fill()?;
            let refused = load.refused().len();
            wait_until("an answer of 503", || load.refused().len() > refused + 20)?;
            disk.free()?;
            let promised = load.count();
            wait_until("further visits", || load.count() > promised + 200)?;
        }
        verify(load, &output)?;
    }
    pixel.stop()
}

#[test]
fn a_read_only_output_holds_everything_back() -> Outcome {
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("visits.log");
    let (launch, address) = at_fixed_port(Launch::new("pixel", folder.path()).with("format", "ndjson"));
    let mut pixel = launch.start()?;
    let load = Load::start(&[address], 4);
    load.wait_for(100)?;
    let chattr = |flag: &str| Command::new("chattr").arg(flag).arg(&output).output();
    if !chattr("+i")?.status.success() {
        println!("NOT TESTED: this user or file system knows no immutable files");
        return Ok(());
    }
    let admin = pixel.admin()?;
    let unready = wait_until("an unready program", || ready(admin).is_ok_and(|(status, _)| status == 503));
    let more = load.wait_for(100);
    pixel.kill()?;
    pixel = launch.start()?;
    let after_a_kill = load.wait_for(100);
    assert!(chattr("-i")?.status.success());
    unready.and(more).and(after_a_kill)?;
    verify(load, &output)?;
    pixel.stop()
}

#[test]
fn a_folder_that_is_renamed_away_holds_everything_back_until_it_is_back() -> Outcome {
    let folder = tempfile::tempdir()?;
    let (there, away) = (folder.path().join("out"), folder.path().join("away"));
    fs::create_dir(&there)?;
    let output = there.join("visits.log");
    let launch = Launch::new("pixel", folder.path()).with("output", &output).with("format", "ndjson");
    let (launch, address) = at_fixed_port(launch);
    let mut pixel = launch.start()?;
    let load = Load::start(&[address], 4);
    for kills in [false, true] {
        load.wait_for(100)?;
        fs::rename(&there, &away)?;
        let admin = pixel.admin()?;
        wait_until("an unready program", || ready(admin).is_ok_and(|(status, _)| status == 503))?;
        if kills {
            pixel.kill()?;
            pixel = launch.start()?;
        }
        load.wait_for(100)?;
        assert!(pixel.runs() && !there.exists());
        fs::rename(&away, &there)?;
        let admin = pixel.admin()?;
        wait_until("a ready program", || ready(admin).is_ok_and(|(status, _)| status == 200))?;
    }
    load.wait_for(100)?;
    verify(load, &output)?;
    pixel.stop()
}

#[test]
fn what_others_append_stays_and_a_torn_line_is_ended() -> Outcome {
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("visits.log");
    fs::write(&output, "older\ntorn")?;
    let (launch, address) = at_fixed_port(Launch::new("pixel", folder.path()));
    let pixel = launch.start()?;
    let others = |text: &str| OpenOptions::new().append(true).open(&output)?.write_all(text.as_bytes());
    let visit = |name: &str| -> Outcome {
        let count = lines(&output).len();
        assert_eq!(get(address, "/track", &[("User-Agent", name)])?.status, 200);
        wait_for_lines(&output, count + 1)?;
        // Once the writer lets others in, the line is committed.
        Ok(fs2::FileExt::lock_exclusive(&File::open(&output)?)?)
    };
    visit("one")?;
    others("foreign\nand torn")?;
    visit("two")?;
    pixel.kill()?;
    // Nobody knows whose this is, so it is kept apart.
    others("while stopped\n")?;
    let pixel = launch.start()?;
    wait_until("what nobody knows to be gone", || lines(&output).len() == 6)?;
    visit("three")?;
    pixel.stop()?;
    let found: Vec<String> = lines(&output)
        .iter()
        .map(|line| line.split('|').nth(2).map_or(line.clone(), str::to_string))
        .collect();
    assert_eq!(found, ["older", "torn", "one", "foreign", "and torn", "two", "three"]);
    let aside = fs::read_dir(folder.path())?.filter_map(|entry| Some(entry.ok()?.path()));
    let aside = aside.filter(|path| path.to_string_lossy().contains("unacknowledged")).collect::<Vec<_>>();
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert_eq!(fs::read_to_string(&aside[0])?, "while stopped\n");
    Ok(())
}

#[test]
fn a_ledger_that_is_deleted_is_written_anew() -> Outcome {
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("visits.log");
    let ledger = folder.path().join("visits.log.ledger");
    let (launch, address) = at_fixed_port(Launch::new("pixel", folder.path()).with("format", "ndjson"));
    let mut pixel = launch.start()?;
    wait_until("a ledger", || ledger.exists())?;
    fs::remove_file(&ledger)?;
    wait_until("a new ledger, without a visit", || ledger.exists())?;
    let load = Load::start(&[address], 4);
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
        pixel.kill()?;
        pixel = launch.start()?;
    }
    load.wait_for(100)?;
    verify(load, &output)?;
    pixel.stop()
}

#[test]
fn rotated_under_load_and_killed_every_visit_is_in_one_of_the_files() -> Outcome {
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("visits.log");
    let (launch, address) = at_fixed_port(Launch::new("pixel", folder.path()).with("format", "ndjson"));
    let mut pixel = launch.start()?;
    let load = Load::start(&[address], 8);
    let mut rotated = Vec::new();
    for n in 0..12 {
        load.wait_for(60)?;
        wait_until("the output", || output.exists())?;
        let old = folder.path().join(format!("visits.log.{n}"));
        if n % 3 == 2 {
            // As logrotate's copytruncate, with the lock that keeps the writer out meanwhile.
            let reader = File::open(&output)?;
            fs2::FileExt::lock_exclusive(&reader)?;
            fs::copy(&output, &old)?;
            OpenOptions::new().write(true).open(&output)?.set_len(0)?;
        } else {
            fs::rename(&output, &old)?;
        }
        rotated.push(old);
        if n % 2 == 1 {
            pixel.kill()?;
            pixel = launch.start()?;
        }
    }
    load.wait_for(60)?;
    let promised = load.stop();
    let all = folder.path().join("all");
    let gather = || -> Outcome {
        let mut gathered = File::create(&all)?;
        for path in rotated.iter().chain([&output]) {
            gathered.write_all(&fs::read(path)?)?;
        }
        Ok(())
    };
    wait_until("every promised visit", || {
        let counts = gather().map(|()| written(&all)).unwrap_or_default();
        promised.iter().all(|number| counts.contains_key(number))
    })?;
    all_written_once(&promised, &all)?;
    pixel.stop()?;
    assert_eq!(audit(&output)?.0, 0);
    Ok(())
}

/// What a start cuts off it keeps beside; on a full disk each try left another half of it.
#[test]
fn a_start_on_a_full_disk_leaves_no_halves_of_what_it_cuts_off() -> Outcome {
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("visits.log");
    let Some((faults, launch)) = over_faults(folder.path())? else { return Ok(()) };
    let (launch, address) = at_fixed_port(launch);
    let mut pixel = launch.start()?;
    let load = Load::start(&[address], 4);
    load.wait_for(60)?;
    let unready = |pixel: &mut crate::support::program::Program| -> Outcome {
        let admin = pixel.admin()?;
        wait_until("an unready program", || ready(admin).is_ok_and(|(status, _)| status == 503))
    };
    // Lines stand in the output, and the ledger does not know them.
    faults.begin("sync,truncate", "EIO", "visits.log")?;
    unready(&mut pixel)?;
    pixel.kill()?;
    faults.begin("write", "ENOSPC", "Z")?;
    pixel = launch.start()?;
    unready(&mut pixel)?;
    load.wait_for(300)?;
    let halves = fs::read_dir(folder.path())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().contains("unacknowledged"))
        .count();
    assert!(halves <= 1, "{halves} files");
    faults.end()?;
    load.wait_for(60)?;
    verify(load, &output)?;
    pixel.stop()
}

#[test]
fn a_disk_that_reports_errors_loses_and_repeats_nothing() -> Outcome {
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("visits.log");
    let Some((faults, launch)) = over_faults(folder.path())? else { return Ok(()) };
    let (launch, address) = at_fixed_port(launch);
    let mut pixel = launch.start()?;
    let load = Load::start(&[address], 4);
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
        faults.begin(operation, "EIO", file)?;
        let (refused, promised) = (load.refused().len(), load.count());
        if file.contains("visits") {
            let admin = pixel.admin()?;
            wait_until("an unready program", || ready(admin).is_ok_and(|(status, _)| status == 503))?;
            load.wait_for(30)?;
        } else {
            wait_until("an answer of 503", || load.refused().len() > refused + 5)?;
            assert!(load.count() < promised + 60, "{operation} of {file}: 200 without a disk");
        }
        if n % 2 == 1 {
            pixel.kill()?;
            faults.end()?;
            pixel = launch.start()?;
        }
        faults.end()?;
        let promised = load.count();
        wait_until(&format!("visits after {operation} of {file}"), || load.count() > promised + 30)?;
        assert!(pixel.runs(), "{operation} of {file} ended it:\n{}", pixel.log());
    }
    verify(load, &output)?;
    pixel.stop()
}
