//! What Pixel does with files that it rotated: `PIXEL_COMPRESS` and `PIXEL_KEEP`, under load, kills, full disks and
//! those who read them.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Outcome;
use crate::support::faulty_disk::FaultyDisk;
use crate::support::fixtures::Embedded;
use crate::support::launch::Launch;
use crate::support::load::Load;
use crate::support::output::{Output, each_is_there_once, lines_of};
use crate::support::wait::wait_until;

/// How a process ends by SIGKILL.
const KILLED: i32 = 128 + 9;
/// Root may open whatever it likes, unless it has to do without that.
const WITHOUT_ROOTS_RIGHTS: &str =
    "{ [ $(id -u) != 0 ] || exec setpriv --bounding-set=-dac_override,-dac_read_search \"$0\" \"$@\"; }";

fn of_kind(output: &Output, ending: &str) -> Outcome<Vec<PathBuf>> {
    let ends = |path: &PathBuf| path.to_string_lossy().ends_with(ending);
    Ok(output.rotated()?.into_iter().filter(ends).collect())
}

fn wait_for_kind(output: &Output, ending: &str, count: usize) -> Outcome {
    wait_until(&format!("{count} files that end in {ending}"), || {
        of_kind(output, ending).is_ok_and(|files| files.len() >= count)
    })
}

/// Each step by which a file is compressed, with a SIGKILL in its place: whatever is left, the next start goes on, and
/// each visit is in one of the files.
#[test]
fn killed_at_any_step_of_compressing_each_visit_is_in_one_file() -> Outcome {
    let Some(disk) = FaultyDisk::compile()? else { return Ok(()) };
    for (method, ending) in [("zstd", ".zst"), ("gzip", ".gz")] {
        for (step, of) in [
            ("write", ".tmp"),
            ("sync", ".tmp"),
            ("rename", ".tmp"),
            ("moved", ".tmp"),
            ("unlink", ".log"),
            ("gone", ".log"),
        ] {
            let case = format!("{method}, {step} of {of}");
            let mut system = Embedded::with(|launch| {
                launch.with("rotate-bytes", "8000").with("compress", method).before(&disk.preload())
            })?;
            let output = system.output.clone();
            disk.begin(step, "SIGKILL", of)?;
            let load = system.load(4);
            assert_eq!(system.pixel.wait()?, KILLED, "{case}");
            disk.end()?;
            let left = output.rotated()?;
            let count =
                |ending: &str| left.iter().filter(|path| path.to_string_lossy().ends_with(ending)).count();
            let expected = match step {
                "write" | "sync" | "rename" => (1, 0),
                _ => (0, 1),
            };
            assert_eq!((count(".tmp"), count(ending)), expected, "{case}: {left:?}");
            // A reader between the two finds each visit once, too.
            let lines = tail(&output)?;
            system.pixel.start_again()?;
            load.wait_for(100)?;
            let promised = load.stop().promised;
            wait_until("plain files and drafts to be gone", || {
                of_kind(&output, ".log").is_ok_and(|files| files.is_empty())
                    && of_kind(&output, ".tmp").is_ok_and(|files| files.is_empty())
            })
            .map_err(|error| format!("{case}: {error}; {:?}", output.rotated()))?;
            each_is_there_once(&promised, &|| output.lines_with_rotated())
                .map_err(|error| format!("{case}: {error}"))?;
            each_is_there_once(&[], &|| Ok(lines.clone()))
                .map_err(|error| format!("{case}: tail: {error}"))?;
            println!("{case}: {} visits in {} files", promised.len(), output.rotated()?.len() + 1);
            system.stop_and_audit().map_err(|error| format!("{case}: {error}"))?;
        }
    }
    Ok(())
}

/// What `pixel tail` shows of all of an output's files.
fn tail(output: &Output) -> Outcome<Vec<String>> {
    let launch = Launch::new("pixel")?.argument("tail").argument("--json").argument("--no-follow");
    let launch = launch.argument("--since").argument("1d").with("output", &output.path);
    let (status, stdout, stderr) = launch.run()?;
    assert_eq!(status, 0, "{stderr}");
    Ok(stdout.lines().map(str::to_string).collect())
}

/// Under load and kills: those that are kept have each visit once, and what is gone is what the audit says is removed.
#[test]
fn the_audit_tells_what_was_removed_from_what_is_lost() -> Outcome {
    let mut system = Embedded::with(|launch| {
        launch.with("rotate-bytes", "8000").with("compress", "zstd").with("keep", "3files")
    })?;
    let output = system.output.clone();
    let load = system.load(8);
    for removed in [1, 20, 40] {
        wait_until("files to be removed", || {
            removed_lines(&output).is_ok_and(|(files, _)| files >= removed)
        })?;
        system.pixel.kill()?;
        system.pixel.start_again()?;
    }
    let promised = load.stop().promised;
    system.pixel.stop()?;
    // One more start, as what it removes may not have been reached by the one before.
    system.pixel.start_again()?;
    wait_until("three to be kept", || output.rotated().is_ok_and(|files| files.len() == 3))?;
    system.pixel.stop()?;
    let (files, lines) = removed_lines(&output)?;
    let kept = output.lines_with_rotated()?;
    each_is_there_once(&[], &|| Ok(kept.clone()))?;
    assert!(kept.len() as u64 + lines >= promised.len() as u64, "{} kept, {lines} removed", kept.len());
    println!("{} promised: {} kept, {lines} removed in {files} files", promised.len(), kept.len());
    let (status, said) = output.audit_says(&[])?;
    let told = format!("{files} files removed as PIXEL_KEEP has it; {lines} lines of Pixel's");
    assert!(status == 0 && said.contains(&told), "{status}: {said}");
    // Whoever else removes one has it missed.
    fs::remove_file(&output.rotated()?[0])?;
    let (status, said) = output.audit_says(&[])?;
    assert!(status == 1 && said.contains(": missing;"), "{status}: {said}");
    Ok(())
}

/// How many files the audit says were removed, and how many lines they had.
fn removed_lines(output: &Output) -> Outcome<(usize, u64)> {
    let (_, report) = output.audit()?;
    let files = report["files"].as_array().ok_or("no files")?;
    let removed: Vec<_> = files.iter().filter(|file| file["state"] == "removed").collect();
    Ok((removed.len(), removed.iter().filter_map(|file| file["lines"].as_u64()).sum()))
}

/// A crash between the note and the removal leaves the file: the next start removes it.
#[test]
fn killed_between_the_note_and_the_removal_the_next_start_removes() -> Outcome {
    let Some(disk) = FaultyDisk::compile()? else { return Ok(()) };
    let mut system = Embedded::with(|launch| {
        launch.with("rotate-bytes", "8000").with("keep", "1files").before(&disk.preload())
    })?;
    let output = system.output.clone();
    disk.begin("unlink", "SIGKILL", ".log")?;
    let load = system.load(4);
    assert_eq!(system.pixel.wait()?, KILLED);
    disk.end()?;
    let left = output.rotated()?;
    assert!(left.len() >= 2, "{left:?}");
    output.audit_finds_nothing()?;
    load.stop();
    system.pixel.start_again()?;
    wait_until("the noted files to be removed", || !left[0].exists())?;
    system.stop_and_audit()
}

/// A line that nobody has claimed yet stands behind a crash's mark: its file waits, plain and kept, until two starts have
/// found nothing delivered for it.
#[test]
fn a_file_with_open_claims_is_neither_compressed_nor_removed() -> Outcome {
    let launch = Embedded::launch()?;
    let rotating = launch.clone().with("rotate-bytes", "200").with("compress", "zstd").with("keep", "1files");
    let mut system = Embedded::of(&launch)?;
    let output = system.output.clone();
    system.visit(&[])?;
    // Committed, too: else the next start claims it, and is no idle one.
    system.pixel.admin()?.wait_for_metric("pixel_visits_written_total", |count| count > 0.0)?;
    system.pixel.kill()?;
    output.append("a line of others\n")?;
    let mut system = Embedded::of(&rotating)?;
    for n in 1..=3 {
        system.visit(&[])?;
        wait_until("another file", || output.rotated().is_ok_and(|files| files.len() >= n.min(2)))?;
        let written = move |count| count >= n as f64;
        system.pixel.admin()?.wait_for_metric("pixel_visits_written_total", written)?;
    }
    wait_for_kind(&output, ".zst", 1)?;
    let of_others = |path: &PathBuf| lines_of(path).contains(&"a line of others".to_string());
    let first = output.rotated()?.into_iter().find(of_others).ok_or("it was removed")?;
    assert!(first.to_string_lossy().ends_with(".log"), "{first:?}");
    for _ in 0..2 {
        system.pixel.stop()?;
        system.pixel.start_again()?;
        system.visit(&[])?;
        system.pixel.admin()?.wait_for_metric("pixel_visits_written_total", |count| count > 0.0)?;
    }
    wait_until("the first one to be removed", || !first.exists())?;
    system.stop_and_audit()
}

/// A disk that has no room for the compressed file, or cannot sync it: the plain one stays, that is said, and once the disk
/// works it is done.
#[test]
fn where_the_compressed_file_cannot_be_written_the_plain_one_stays_until_it_can() -> Outcome {
    let Some(faults) = FaultyDisk::compile()? else { return Ok(()) };
    for (operation, error, said) in
        [("write", "ENOSPC", "No space left"), ("sync", "EIO", "Input/output error")]
    {
        let mut system = Embedded::with(|launch| {
            launch.with("rotate-bytes", "8000").with("compress", "zstd").before(&faults.preload())
        })?;
        let output = system.output.clone();
        faults.begin(operation, error, ".tmp")?;
        let load = Load::paced(system.address, 2, Duration::from_millis(5));
        let line = system.pixel.wait_for_log("failed to compress `")?;
        assert!(line.contains(said) && line.contains("it stays as it is, trying again"), "{line}");
        load.wait_for(50)?;
        let left = output.rotated()?;
        assert!(left.iter().all(|path| !path.to_string_lossy().ends_with(".zst")), "{left:?}");
        assert!(!of_kind(&output, ".log")?.is_empty(), "{left:?}");
        faults.end()?;
        wait_for_kind(&output, ".zst", 2)?;
        let promised = load.stop().promised;
        wait_until("each visit once", || {
            each_is_there_once(&promised, &|| output.lines_with_rotated()).is_ok()
        })?;
        system.stop_and_audit()?;
    }
    Ok(())
}

/// One that only another user may read, as root's compressed copy, ended the compression and removal of all.
#[test]
fn a_rotated_file_that_may_not_be_opened_is_named_and_the_others_are_looked_after() -> Outcome {
    let launch = Embedded::launch()?.with("rotate-bytes", "1");
    let mut system = Embedded::of(&launch)?;
    let output = system.output.clone();
    for n in 1..=4 {
        system.visit(&[])?;
        wait_until("the visit", || output.lines_with_rotated().is_ok_and(|lines| lines.len() == n))?;
    }
    wait_for_kind(&output, ".log", 3)?;
    system.pixel.stop()?;
    let rotated = output.rotated()?;
    fs::set_permissions(&rotated[1], fs::Permissions::from_mode(0o000))?;
    let launch = launch.with("compress", "zstd").before(WITHOUT_ROOTS_RIGHTS);
    let mut system = Embedded::of(&launch)?;
    system.pixel.wait_for_log(&format!("failed to look after `{}`", rotated[1].display()))?;
    wait_for_kind(&output, ".zst", 2)?;
    fs::set_permissions(&rotated[1], fs::Permissions::from_mode(0o640))?;
    system.pixel.stop()?;
    system.pixel.start_again()?;
    wait_for_kind(&output, ".zst", 3)?;
    system.stop_and_audit()
}

/// A thread looked for files each second where nothing was to become of them.
#[test]
fn nobody_looks_after_rotated_files_unless_told_to() -> Outcome {
    let is_looking = |system: &Embedded| -> Outcome<bool> {
        for thread in fs::read_dir(format!("/proc/{}/task", system.pixel.pid()?))? {
            // One may have ended meanwhile.
            let name = fs::read_to_string(thread?.path().join("comm")).unwrap_or_default();
            if name.trim_end() == "rotated files" {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let launch = Embedded::launch()?.with("rotate-bytes", "8000");
    let mut system = Embedded::of(&launch)?;
    system.visit(&[])?;
    system.output.wait_for_lines(1)?;
    assert!(!is_looking(&system)?);
    system.pixel.stop()?;
    let system = Embedded::of(&launch.with("keep", "30d"))?;
    // A thread takes its name as it starts.
    wait_until("somebody to look after them", || is_looking(&system).unwrap_or(false))
}

/// Somebody who reads a rotated file under its flock is not disturbed, and a compressed file of somebody else's is not
/// replaced.
#[test]
fn a_file_that_is_locked_or_compressed_by_others_waits() -> Outcome {
    let launch = Embedded::launch()?.with("rotate-bytes", "1");
    let mut system = Embedded::of(&launch)?;
    let output = system.output.clone();
    for n in 1..=3 {
        system.visit(&[])?;
        wait_until("the visit", || output.lines_with_rotated().is_ok_and(|lines| lines.len() == n))?;
    }
    wait_for_kind(&output, ".log", 2)?;
    system.pixel.stop()?;
    let rotated = output.rotated()?;
    let reader = File::open(&rotated[0])?;
    fs2::FileExt::lock_shared(&reader)?;
    let compressed = |path: &Path| PathBuf::from(format!("{}.zst", path.display()));
    fs::write(compressed(&rotated[1]), "somebody else's")?;
    let mut system = Embedded::of(&launch.with("compress", "zstd"))?;
    let said = system.pixel.wait_for_log("failed to compress `")?;
    assert!(said.contains("is there and holds something else"), "{said}");
    assert!(rotated[0].exists() && !compressed(&rotated[0]).exists() && rotated[1].exists());
    assert_eq!(fs::read(compressed(&rotated[1]))?, b"somebody else's");
    drop(reader);
    fs::remove_file(compressed(&rotated[1]))?;
    system.pixel.stop()?;
    system.pixel.start_again()?;
    wait_until("both to be compressed", || rotated.iter().all(|path| !path.exists()))?;
    system.stop_and_audit()
}
