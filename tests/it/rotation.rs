//! The output under those who rotate it, lock it, append to it, and take its name or its inode number: every 200 is in
//! one of its files once, and not a byte of others is changed.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::Outcome;
use crate::support::faulty_disk::FaultyDisk;
use crate::support::fixtures::Embedded;
use crate::support::launch::Launch;
use crate::support::load::Load;
use crate::support::output::{Output, each_is_there_once, lines_of};
use crate::support::shell::{Beside, shell};
use crate::support::small_disk::SmallDisk;
use crate::support::stranger::Stranger;
use crate::support::wait::wait_until;

/// The bytes of the file that was cut to 56.
const SYSLOG_BYTES: usize = 108_894;

/// A rotator took the advertised flock, compressed the file and removed it, while the writer waited for that flock:
/// 3,866 of 8,020 promised visits were then written to the file without a name, and the audit said "no gap".
#[test]
fn a_rotator_that_compresses_and_removes_under_the_flock_loses_nothing() -> Outcome {
    let system = Embedded::start()?;
    let output = system.output.clone();
    let load = system.load(8);
    for n in 1..=5 {
        load.wait_for(150)?;
        wait_until("the output", || output.path.exists())?;
        let script =
            r#"flock visits.log sh -c "gzip -c visits.log > visits.log.$0.gz && sleep 0.5 && rm visits.log""#;
        shell(output.folder()?, script, &n.to_string())?;
    }
    load.wait_for(150)?;
    system.stop_and_verify_all(load)
}

/// Waits until a writer that was just started has looked at what a crash left, and has written: a copy that is made
/// before is not promised to be recognised.
fn has_written(system: &mut Embedded) -> Outcome {
    system.pixel.admin()?.wait_for_metric("pixel_visits_written_total", |count| count > 0.0)
}

/// What a crash had left was once cut off from whichever file then had the output's inode number.
#[test]
fn rotated_under_load_and_killed_every_visit_is_in_one_of_the_files() -> Outcome {
    let mut system = Embedded::start()?;
    let output = system.output.clone();
    let load = system.load(8);
    for n in 0..12 {
        load.wait_for(60)?;
        wait_until("the output", || output.path.exists())?;
        let old = output.beside(&format!(".{n}"));
        if n % 3 == 2 {
            has_written(&mut system)?;
            // As logrotate's copytruncate, with the lock that keeps the writer out meanwhile.
            let _reader = output.hold_writer_up()?;
            fs::copy(&output.path, &old)?;
            OpenOptions::new().write(true).open(&output.path)?.set_len(0)?;
        } else {
            fs::rename(&output.path, &old)?;
        }
        if n % 2 == 1 {
            system.pixel.kill()?;
            system.pixel.start_again()?;
        }
    }
    load.wait_for(60)?;
    system.stop_and_verify_all(load)
}

/// The output was known by its inode number alone: when it was removed while Pixel was stopped and another program's
/// file got the number, the next start cut that file to the output's length, a syslog of 108,894 bytes to 56.
#[test]
fn another_program_s_file_with_the_output_s_inode_number_is_never_changed() -> Outcome {
    for (disk, is_ext4) in [("the folder of temporary files", false), ("ext4", true)] {
        for name in ["syslog", "visits.log.old", "visits.log"] {
            let mounted = if is_ext4 { SmallDisk::ext4(64 << 20)? } else { None };
            if is_ext4 && mounted.is_none() {
                return Ok(());
            }
            let launch = Embedded::launch()?;
            let launch = match &mounted {
                Some(disk) => launch.with("output", disk.path().join("visits.log")),
                None => launch,
            };
            inherits_the_inode(&launch, name).map_err(|error| format!("{name} on {disk}: {error}"))?;
        }
    }
    Ok(())
}

/// Stops Pixel in order, has the file `name` take over the output's inode number, and writes, also across a kill.
fn inherits_the_inode(launch: &Launch, name: &str) -> Outcome {
    let mut system = Embedded::of(launch)?;
    let output = system.output.clone();
    system.visit(&[])?;
    output.wait_for_lines(1)?;
    system.pixel.stop()?;
    let inode = fs::metadata(&output.path)?.ino();
    fs::remove_file(&output.path)?;
    let Some(stranger) = Stranger::with_inode(inode, &output.folder()?.join(name), SYSLOG_BYTES)? else {
        println!("NOT TESTED: no new file got the inode number of `{}`", output.path.display());
        return Ok(());
    };
    system.pixel.start_again()?;
    system.pixel.admin()?.wait_until_ready()?;
    stranger.is_unchanged()?;
    let load = system.load(4);
    load.wait_for(50)?;
    system.pixel.kill()?;
    system.pixel.start_again()?;
    load.wait_for(50)?;
    each_is_there_once(&load.stop().promised, &|| Ok(output.lines()))?;
    system.pixel.stop()?;
    stranger.is_unchanged()?;
    let (status, report) = output.audit()?;
    assert_eq!((status, &report["missing"]), (1, &0.into()), "one file was removed: {report}");
    Ok(())
}

/// A link was followed, so that whoever could create the output's name had Pixel write to any file.
#[test]
fn a_symbolic_link_in_the_output_s_place_is_never_followed() -> Outcome {
    let mut system = Embedded::start()?;
    let output = system.output.clone();
    let target = output.folder()?.join("syslog");
    fs::write(&target, "somebody else's\n")?;
    let load = system.load(2);
    load.wait_for(50)?;
    // Both at once, as the writer makes a new file where it finds none.
    let rotated = output.beside(".1");
    symlink(&target, &rotated)?;
    renameat_with(CWD, &rotated, CWD, &output.path, RenameFlags::EXCHANGE)?;
    let admin = system.pixel.admin()?;
    wait_until("a program that refuses the link", || {
        admin.readiness().is_ok_and(|(status, why)| status == 503 && why.contains("symbolic link"))
    })?;
    load.wait_for(50)?;
    system.pixel.kill()?;
    for program in ["pixel", "pixel-storage"] {
        let (status, _, stderr) = Launch::new(program)?.with("output", &output.path).run()?;
        let named = stderr.contains("--output (PIXEL_OUTPUT)") && stderr.contains("it is a symbolic link");
        assert!(status == 2 && named, "{program} ended with {status}: {stderr}");
    }
    fs::remove_file(&output.path)?;
    system.pixel.start_again()?;
    load.wait_for(50)?;
    assert_eq!(fs::read_to_string(target)?, "somebody else's\n");
    system.stop_and_verify_all(load)
}

/// A write or a sync that failed was taken back up to five seconds later by cutting the file off where it had ended
/// before: with it went whatever others had appended meanwhile.
#[test]
fn what_others_append_stays_also_where_a_write_or_a_sync_of_ours_failed() -> Outcome {
    let Some(disk) = FaultyDisk::compile()? else { return Ok(()) };
    for (operation, file) in [
        ("write", "visits.log"),
        ("sync", "visits.log"),
        ("write,sync,truncate", "visits.log"),
        ("write", "visits.log.ledger"),
        ("sync,truncate", "visits.log.ledger"),
    ] {
        for kills in [false, true] {
            let mut system = Embedded::with(|launch| launch.before(&disk.preload()))?;
            let output = system.output.clone();
            let load = system.load(4);
            let foreign: Vec<String> = (0..6).map(|n| format!("a line {n} of others\n")).collect();
            load.wait_for(50)?;
            output.append(&foreign[0])?;
            disk.begin(operation, "EIO", file)?;
            system.pixel.admin()?.wait_until_unready()?;
            output.append(&foreign[1])?;
            load.wait_for(50)?;
            output.append(&foreign[2])?;
            if kills {
                system.pixel.kill()?;
                output.append(&foreign[3])?;
                system.pixel.start_again()?;
                system.pixel.admin()?.wait_until_unready()?;
            }
            disk.end()?;
            system.pixel.admin()?.wait_until_ready()?;
            output.append(&foreign[4])?;
            load.wait_for(50)?;
            output.append(&foreign[5])?;
            let case = format!("{operation} of {file}, killed: {kills}");
            let promised = load.stop().promised;
            each_is_there_once(&promised, &|| Ok(output.lines()))
                .map_err(|error| format!("{case}: {error}"))?;
            let text = fs::read_to_string(&output.path)?;
            for (n, line) in foreign.iter().enumerate() {
                let count = text.matches(line.as_str()).count();
                assert_eq!(count, usize::from(n != 3 || kills), "{case}: `{line}`");
            }
            let audited = system.stop_and_audit();
            audited.map_err(|error| format!("{case}: {error}"))?;
        }
    }
    Ok(())
}

/// Each try to write to a full disk was taken back by cutting the file off again, so that `tail -F` began anew: 14,696
/// lines for 3,000 visits, and "file truncated" eight times.
#[test]
fn tail_shows_each_line_once_while_the_disk_is_full() -> Outcome {
    let Some(disk) = SmallDisk::mount("16m")? else { return Ok(()) };
    let mut system = Embedded::with(|launch| launch.with("output", disk.path().join("visits.log")))?;
    let output = system.output.clone();
    wait_until("the output", || output.path.exists())?;
    let seen = Output::at(system.pixel.launch.folder().join("seen"));
    let said = system.pixel.launch.folder().join("said");
    let mut tail = Command::new("tail");
    tail.args(["-F", "-n", "+1"]).arg(&output.path);
    let _tail = Beside::start(tail.stdout(File::create(&seen.path)?).stderr(File::create(&said)?))?;
    let load = Load::paced(system.address, 4, Duration::from_millis(10));
    for _ in 0..2 {
        load.wait_for(150)?;
        disk.fill()?;
        system.pixel.admin()?.wait_until_unready()?;
        std::thread::sleep(Duration::from_secs(5));
        disk.free()?;
        system.pixel.admin()?.wait_until_ready()?;
    }
    load.wait_for(150)?;
    let promised = load.stop().promised;
    output.has_each_once(&promised)?;
    wait_until("tail to have shown all", || seen.lines().len() >= output.lines().len())?;
    seen.has_each_once(&promised)?;
    assert_eq!(fs::read_to_string(&said)?, "", "what tail complains of");
    system.stop_and_audit()
}

/// A reader that sat on the output's flock held every visit back for as long as it liked, and nothing said who it was.
#[test]
fn a_reader_that_sits_on_the_flock_is_named_and_waited_for() -> Outcome {
    let mut system = Embedded::start()?;
    let output = system.output.clone();
    let load = Load::paced(system.address, 4, Duration::from_millis(5));
    load.wait_for(50)?;
    for at_a_start in [false, true] {
        if at_a_start {
            system.pixel.stop()?;
        }
        let mut flock = Command::new("flock");
        let reader = Beside::start(flock.arg(&output.path).args(["sleep", "8"]).stdout(Stdio::null()))?;
        wait_until("the reader's lock", || {
            let file = File::open(&output.path);
            file.is_ok_and(|file| fs2::FileExt::try_lock_shared(&file).is_err())
        })?;
        let lines = output.lines().len();
        if at_a_start {
            system.pixel.spawn_again()?;
        }
        let named = format!("process {} (flock)", reader.0.id());
        let admin = system.pixel.admin()?;
        let mut last = String::new();
        wait_until("the reader to be named", || {
            last = admin
                .readiness()
                .map_or_else(|error| error.to_string(), |(status, why)| format!("{status} {why}"));
            last.starts_with("503") && last.contains(&named)
        })
        .map_err(|error| format!("{error}: {named}; /readyz says {last}"))?;
        system.pixel.wait_for_log(&named)?;
        load.wait_for(20)?;
        assert_eq!(output.lines().len(), lines, "nothing is written under somebody else's lock");
        admin.wait_until_ready()?;
        wait_until("the visits that waited", || output.lines().len() > lines)?;
    }
    load.wait_for(50)?;
    system.stop_and_verify(load)
}

/// NFSv4 refuses an exclusive flock to a descriptor that only reads (EBADF): where the output was there already, as at
/// every second start, the storage did not come up.
#[test]
fn a_file_system_that_wants_a_writing_descriptor_for_the_flock_is_written_to() -> Outcome {
    let Some(disk) = FaultyDisk::compile()? else { return Ok(()) };
    let mut system = Embedded::with(|launch| launch.before(&disk.preload_over_nfs_locks()))?;
    for n in 1..=3 {
        system.pixel.admin()?.wait_until_ready()?;
        system.visit(&[])?;
        system.output.wait_for_lines(n)?;
        system.pixel.stop()?;
        system.pixel.start_again()?;
    }
    assert!(!system.pixel.log().contains("ERROR"), "{}", system.pixel.log());
    system.stop_and_audit()
}

/// Nothing stood before the first batch of a file that it could be known by: where a kill left that batch uncommitted and
/// the file was rotated before the next start, its visits were written again.
#[test]
fn the_first_batch_of_a_file_that_is_renamed_after_a_kill_is_written_once() -> Outcome {
    let Some(disk) = FaultyDisk::compile()? else { return Ok(()) };
    let mut system = Embedded::with(|launch| launch.before(&disk.preload()))?;
    let output = system.output.clone();
    system.visit(&[])?;
    output.wait_for_lines(1)?;
    // Once the writer lets others in, the line is committed.
    drop(output.hold_writer_up()?);
    fs::rename(&output.path, output.beside(".1"))?;
    wait_until("a new file", || output.path.exists())?;
    disk.begin("sync", "EIO", "visits.log")?;
    system.visit(&[])?;
    output.wait_for_lines(1)?;
    system.pixel.admin()?.wait_until_unready()?;
    system.pixel.kill()?;
    fs::rename(&output.path, output.beside(".2"))?;
    disk.end()?;
    system.pixel.start_again()?;
    system.visit(&[])?;
    output.wait_for_lines(1)?;
    let numbers: Vec<u64> = output.lines_of_all()?.iter().filter_map(|line| sequence(line)).collect();
    assert_eq!(numbers, [3, 1, 2], "each in a file of its own");
    system.stop_and_audit()
}

fn sequence(line: &str) -> Option<u64> {
    serde_json::from_str::<serde_json::Value>(line).ok()?["sequence"].as_u64()
}

/// Pixel's own rotation, by size, killed at any instant: each visit is in one of the files, and the audit proves it.
#[test]
fn rotated_by_pixel_under_load_and_killed_every_visit_is_in_one_of_the_files() -> Outcome {
    let mut system = Embedded::with(|launch| launch.with("rotate-bytes", "8000"))?;
    let output = system.output.clone();
    let load = system.load(8);
    for n in 1..=5 {
        wait_until("another file", || output.rotated().is_ok_and(|files| files.len() >= n))?;
        system.pixel.kill()?;
        system.pixel.start_again()?;
    }
    load.wait_for(100)?;
    let promised = load.stop().promised;
    each_is_there_once(&promised, &|| output.lines_with_rotated())?;
    let rotated = output.rotated()?;
    assert!(rotated.len() >= 5, "{rotated:?}");
    let report = output.audit_finds_nothing()?;
    let files = report["files"].as_array().ok_or("no files")?;
    assert!(files.len() >= rotated.len(), "{report}");
    println!("{} visits in {} files, each once", promised.len(), rotated.len() + 1);
    fs::remove_file(&rotated[1])?;
    let (status, report) = output.audit()?;
    assert_eq!((status, &report["proved"]), (1, &false.into()), "a file was taken away: {report}");
    Ok(())
}

/// A file that was begun before the hour is rotated also where no visit comes.
#[test]
fn the_output_is_rotated_at_its_time_without_a_visit() -> Outcome {
    let launch = Embedded::launch()?.with("format", "pipe");
    let mut system = Embedded::of(&launch)?;
    let output = system.output.clone();
    // Somebody's line of long ago: the file was begun then.
    output.append("2026-01-01T05:30:00.0000000Z|null|others|::1\n")?;
    system.visit(&[])?;
    output.wait_for_lines(2)?;
    system.pixel.stop()?;
    let _pixel = launch.with("rotate-at", "hourly").start()?;
    let rotated = output.folder()?.join("visits-2026-01-01T05.log");
    wait_until("the output to be rotated", || rotated.exists() && output.path.exists())?;
    assert_eq!(lines_of(&rotated).len(), 2);
    output.audit_finds_nothing().map(drop)
}

/// `--format` was changed, and a file began with lines of one format and went on with another's.
#[test]
fn another_format_begins_a_new_file() -> Outcome {
    let launch = Embedded::launch()?.with("format", "pipe");
    let mut system = Embedded::of(&launch)?;
    let output = system.output.clone();
    system.visit(&[])?;
    output.wait_for_lines(1)?;
    let before = output.lines();
    system.pixel.stop()?;
    let system = Embedded::of(&launch.with("format", "combined"))?;
    system.visit(&[])?;
    wait_until("another file", || output.rotated().is_ok_and(|files| files.len() == 1))?;
    let after = output.wait_for_lines(1)?;
    assert!(after.len() == 1 && after[0].contains("\"GET /track HTTP/1.1\""), "{after:?}");
    let rotated = output.rotated()?;
    assert_eq!((rotated.len(), lines_of(&rotated[0])), (1, before));
    system.stop_and_audit()
}
