//! What `pixel audit` says: of files as they were written, and of files, and a ledger, that somebody tampered with.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::Outcome;
use crate::support::broker::Broker;
use crate::support::fixtures::{Embedded, Services};
use crate::support::launch::Launch;
use crate::support::message::{VISIT, numbered};
use crate::support::output::{Output, lines_of};
use crate::support::shell::shell;
use crate::support::wait::wait_until;

/// A folder with an output in it, by itself, so that it can be copied.
struct Folder {
    output: Output,
    _folder: tempfile::TempDir,
}

impl Folder {
    fn new() -> Outcome<Folder> {
        let folder = tempfile::tempdir()?;
        Ok(Folder { output: Output::at(folder.path().join("visits.log")), _folder: folder })
    }

    /// What `pixel` writes: a file for each of `files`, of so many visits, rotated by renaming to `.1` and so on, but
    /// for the last.
    fn written(files: &[usize]) -> Outcome<Folder> {
        let folder = Folder::new()?;
        let output = folder.output.clone();
        let mut system = Embedded::with(|launch| launch.with("output", &output.path))?;
        for (n, visits) in files.iter().enumerate() {
            // A line of some 600 bytes, so that several checksums stand for the larger files.
            let agent = format!("{n} ").repeat(150);
            for _ in 0..*visits {
                system.visit(&[("User-Agent", &agent)])?;
            }
            output.wait_for_lines(*visits)?;
            if n + 1 < files.len() {
                fs::rename(&output.path, output.beside(&format!(".{}", n + 1)))?;
                wait_until("a new file", || output.path.exists())?;
            }
        }
        system.pixel.stop()?;
        Ok(folder)
    }

    /// One that was rotated three times, two of the files compressed since.
    fn rotated() -> Outcome<Folder> {
        let folder = Self::written(&[400, 30, 200, 40])?;
        folder.run("gzip visits.log.2 && zstd -q --rm visits.log.3")?;
        Ok(folder)
    }

    fn copied(&self) -> Outcome<Folder> {
        let copy = Folder::new()?;
        let to = copy.path("")?;
        self.run(&format!("cp -a . '{}'", to.display()))?;
        Ok(copy)
    }

    /// The file whose name is the output's and `suffix`.
    fn path(&self, suffix: &str) -> Outcome<PathBuf> {
        match suffix {
            "" => Ok(self.output.folder()?.to_path_buf()),
            suffix => Ok(self.output.beside(suffix)),
        }
    }

    /// Runs a script of the shell in it.
    fn run(&self, script: &str) -> Outcome {
        shell(&self.path("")?, script, "")
    }

    /// The report that is for machines.
    fn report(&self, arguments: &[&str]) -> Outcome<(i32, serde_json::Value)> {
        let (status, said) = self.output.audit_says(&[&["--json"], arguments].concat())?;
        Ok((status, serde_json::from_str(&said).map_err(|error| format!("{error}: {said}"))?))
    }
}

/// Changes one byte.
fn flip(path: &Path, at: u64) -> Outcome {
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[byte[0] ^ 1], at)?)
}

/// The places at which the records of a journal start.
fn records(path: &Path) -> Outcome<Vec<u64>> {
    let bytes = fs::read(path)?;
    let (mut starts, mut at) = (Vec::new(), 0);
    while at + 8 <= bytes.len() {
        starts.push(at as u64);
        at += 8 + u32::from_le_bytes(bytes[at..at + 4].try_into()?) as usize;
    }
    Ok(starts)
}

/// The audit compared numbers alone: a file could lose, repeat or change any line, and be gone, and it said "no gap".
#[test]
fn every_deed_of_others_on_files_and_ledger_is_told() -> Outcome {
    type Deed = (&'static str, &'static str, &'static [&'static str], i32, &'static [&'static str]);
    let deeds: &[Deed] = &[
        (
            "none",
            "true",
            &[],
            0,
            &[
                "visits.log: verified; 40 lines",
                "visits.log.1: verified; 400 lines",
                "visits.log.2.gz: compressed (verified); 30 lines",
                "visits.log.3.zst: compressed (verified); 200 lines",
                "670 written",
                "no gap\nproved",
            ],
        ),
        (
            "a byte changed",
            "printf X | dd of=visits.log.1 bs=1 seek=100000 conv=notrunc status=none",
            &[],
            1,
            // Which block of 64 KiB.
            &["visits.log.1: damaged at byte 65536", "not proved"],
        ),
        (
            "a line deleted",
            "sed -i 200d visits.log.1",
            &[],
            1,
            &["visits.log.1: damaged at byte", "not proved"],
        ),
        ("a line of a small file deleted", "sed -i 20d visits.log", &[], 1, &["visits.log: ", "not proved"]),
        (
            "the last line deleted",
            "sed -i '$d' visits.log.1",
            &[],
            1,
            &["visits.log.1: shortened to", "not proved"],
        ),
        (
            "a line doubled",
            "sed -i 20p visits.log.1",
            &[],
            1,
            &["visits.log.1: damaged at byte 0", "not proved"],
        ),
        (
            "a line of a small file doubled",
            "sed -i 20p visits.log",
            &[],
            1,
            &["visits.log: damaged", "not proved"],
        ),
        ("two lines swapped", "sed -i '20{h;d};21G' visits.log", &[], 1, &["visits.log: damaged at byte 0"]),
        (
            "cut short",
            "truncate -s 100000 visits.log.1",
            &[],
            1,
            &["visits.log.1: shortened to 100000 bytes"],
        ),
        ("emptied", "truncate -s 0 visits.log", &[], 1, &["visits.log: missing", "not proved"]),
        ("removed", "rm visits.log.1", &[], 1, &["visits.log.1: missing; 400 lines", "not proved"]),
        ("removed, and that is known", "rm visits.log.1", &["--ignore-missing"], 0, &["missing", "proved"]),
        ("moved away", "mkdir away && mv visits.log.1 away", &[], 1, &["missing", "not proved"]),
        (
            "moved away, and named",
            "mkdir away && mv visits.log.1 away/old",
            &["away/old"],
            0,
            &["away/old: verified; 400 lines", "proved"],
        ),
        (
            "names shifted",
            "mv visits.log.3.zst visits.log.4.zst && mv visits.log.1 visits.log.3 && mv visits.log visits.log.1",
            &[],
            0,
            &[
                "visits.log.4.zst: compressed",
                "visits.log.3: verified; 400",
                "visits.log.1: verified; 40 lines",
            ],
        ),
        (
            "a line appended again",
            "sed -n 5p visits.log.1 >> visits.log && echo others >> visits.log",
            &[],
            1,
            &["visits.log: repeated at byte", ", 1 line of Pixel's twice; 40 lines", "no gap\nnot proved"],
        ),
        (
            "a whole file appended to a compressed one",
            "(zstd -dcq visits.log.3.zst; cat visits.log) | zstd -q > visits.log.4.zst && rm visits.log.3.zst",
            &[],
            1,
            &[
                "visits.log.4.zst: repeated at byte",
                ", 40 lines of Pixel's twice; 200 lines",
                "visits.log: verified",
            ],
        ),
        (
            "a file copied beside",
            "cp visits.log.1 visits.log.9",
            &[],
            0,
            &["visits.log.1: verified", "\nproved"],
        ),
        (
            "a stranger's file beside, and one removed that is known",
            "rm visits.log.2.gz && echo notes | gzip > visits.log.notes.gz && seq 9999 > visits.log.eu",
            &["--ignore-missing"],
            0,
            &["visits.log: verified", "visits.log.2: missing; 30 lines", "\nproved"],
        ),
        ("a named file that is not there", "true", &["absent"], 2, &["absent` is no file"]),
        (
            "others appended",
            "echo others >> visits.log.1",
            &[],
            0,
            &["visits.log.1: verified, 7 foreign bytes", "\nproved"],
        ),
        (
            "a compressed file cut short",
            "truncate -s -20 visits.log.3.zst",
            &[],
            2,
            &["visits.log.3.zst: unreadable (", "visits.log.1: verified; 400 lines", "no gap\nnot proved"],
        ),
        (
            "a compressed file changed",
            "printf XXXX | dd of=visits.log.2.gz bs=1 seek=120 conv=notrunc status=none",
            &[],
            2,
            &["visits.log.2.gz: unreadable (", "visits.log.3.zst: compressed (verified)"],
        ),
        (
            "a line of a compressed file changed",
            "gunzip visits.log.2.gz && sed -i 7s/Agent/agent/I\\;7s/[0-9]/X/g visits.log.2 && gzip visits.log.2",
            &[],
            1,
            &["visits.log.2.gz: damaged at byte 0", "not proved"],
        ),
        (
            "files gone, and not asked for",
            "rm visits.log*[!r]",
            &["--quick"],
            0,
            &["no file was read (--quick)"],
        ),
        ("no ledger", "rm visits.log.ledger", &[], 2, &["failed to read the ledger"]),
        ("an empty ledger", ": > visits.log.ledger", &[], 2, &["failed to read the ledger"]),
        ("another ledger", "echo no ledger > visits.log.ledger", &[], 2, &["failed to read the ledger"]),
        ("no list of rotated files", "rm -f visits.log.ledger.files", &[], 2, &["visits.log.ledger.files"]),
        ("a ledger cut short", "truncate -s -5 visits.log.ledger", &[], 2, &["failed to read the ledger"]),
    ];
    let written = Folder::rotated()?;
    let mut wrong = Vec::new();
    for (deed, script, arguments, expected, said) in deeds {
        let folder = written.copied()?;
        folder.run(script)?;
        let base = folder.path("")?;
        let arguments: Vec<String> = arguments
            .iter()
            .map(|one| match one.starts_with('-') {
                true => one.to_string(),
                false => base.join(one).display().to_string(),
            })
            .collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (status, text) = folder.output.audit_says(&arguments)?;
        let absent: Vec<_> = said.iter().filter(|said| !text.contains(**said)).collect();
        if status != *expected || !absent.is_empty() {
            wrong.push(format!("{deed}: status {status}, not {expected}; without {absent:?}:\n{text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// A checksum in the middle that did not fit ended the ledger there, and all behind it was said not to be.
#[test]
fn a_ledger_with_any_byte_changed_is_an_error_and_never_a_pass() -> Outcome {
    let written = Folder::rotated()?;
    for name in [".ledger", ".ledger.files"] {
        let original = written.path(name)?;
        let starts = records(&original)?;
        let length = fs::metadata(&original)?.len();
        let (middle, last) = (starts[starts.len() / 2], starts[starts.len() - 1]);
        // Of records in the middle and at the end: length, checksum, content.
        for at in [
            9,
            middle,
            middle + 2,
            middle + 4,
            middle + 20,
            last,
            last + 1,
            last + 2,
            last + 3,
            last + 5,
            length - 1,
        ] {
            let folder = written.copied()?;
            flip(&folder.path(name)?, at)?;
            let (status, text) = folder.output.audit_says(&[])?;
            assert_eq!(status, 2, "byte {at} of {length} of {name}: {text}");
            assert!(text.contains("damaged") || text.contains("cannot be read"), "{text}");
        }
    }
    Ok(())
}

#[test]
fn the_audit_s_json_says_all_of_it() -> Outcome {
    let folder = Folder::rotated()?;
    let (status, report) = folder.report(&[])?;
    assert_eq!((status, &report["proved"], &report["quick"]), (0, &true.into(), &false.into()), "{report}");
    assert_eq!((&report["missing"], &report["foreign"]["written"]), (&0.into(), &0.into()));
    let producers = report["producers"].as_array().ok_or("no producers")?;
    let [producer] = &producers[..] else { return Err(format!("one spool: {report}").into()) };
    assert_eq!((&producer["written"], &producer["gaps"]), (&670.into(), &serde_json::json!([])));
    assert_eq!(producer["sequences"], serde_json::json!([[1, 670]]));
    let files = report["files"].as_array().ok_or("no files")?;
    let states: Vec<_> = files.iter().map(|file| (&file["state"], file["is_compressed"] == true)).collect();
    let verified = "verified".into();
    assert_eq!(states, [(&verified, false), (&verified, true), (&verified, true), (&verified, false)]);
    assert_eq!(files.iter().filter_map(|file| file["lines"].as_u64()).sum::<u64>(), 670);

    folder.run("rm visits.log.2.gz && truncate -s 1000 visits.log.1")?;
    let (status, report) = folder.report(&[])?;
    assert_eq!((status, &report["proved"]), (1, &false.into()), "{report}");
    let states: Vec<_> =
        report["files"].as_array().into_iter().flatten().map(|file| &file["state"]).collect();
    assert_eq!(states, ["shortened", "missing", "verified", "verified"]);
    let (status, report) = folder.report(&["--quick"])?;
    assert_eq!((status, &report["quick"], &report["files"]), (0, &true.into(), &serde_json::json!([])));
    Ok(())
}

#[test]
fn where_nothing_is_written_yet_the_audit_says_that() -> Outcome {
    let mut system = Embedded::start()?;
    system.pixel.admin()?.wait_until_ready()?;
    wait_until("a ledger", || system.output.ledger().exists())?;
    for _ in 0..2 {
        let (status, text) = system.output.audit_says(&[])?;
        assert_eq!((status, text.as_str()), (0, "nothing written yet\n"));
        system.pixel.stop()?;
        system.pixel.start_again()?;
    }
    Ok(())
}

/// Numbers before the first that was written were never asked for: visits 1 to 4 could be lost unseen.
#[test]
fn a_producer_s_numbers_begin_with_1_unless_its_ledger_began_late() -> Outcome {
    let broker = Broker::shared()?;
    for (queue, began_late) in [("from-1", false), ("from-5", true)] {
        let services = Services::new(&broker.url(), queue)?;
        if began_late {
            fs::write(&services.output.path, "written before the ledger began\n")?;
        }
        let mut storage = services.storage.start()?;
        broker.publish(queue, VISIT.as_bytes(), numbered(0, 5, 1))?;
        broker.publish(queue, VISIT.as_bytes(), numbered(0, 8, 1))?;
        services.output.wait_for_lines(2 + usize::from(began_late))?;
        storage.stop()?;
        let (status, text) = services.output.audit_says(&[])?;
        let (gaps, missing) = if began_late { ("gaps 6-7\n", 2) } else { ("gaps 1-4, 6-7\n", 6) };
        assert_eq!(status, 1, "{text}");
        let said = text.contains(gaps) && text.contains(&format!("{missing} visits are missing\nnot proved"));
        assert!(said, "{text}");
    }
    Ok(())
}

#[test]
fn a_ledger_that_was_removed_begins_anew_without_a_gap() -> Outcome {
    let mut system = Embedded::start()?;
    for n in 1..=3 {
        system.visit(&[])?;
        system.output.wait_for_lines(n)?;
    }
    system.pixel.stop()?;
    fs::remove_file(system.output.ledger())?;
    system.pixel.start_again()?;
    system.visit(&[])?;
    system.output.wait_for_lines(4)?;
    system.pixel.stop()?;
    let (status, text) = system.output.audit_says(&[])?;
    assert!(status == 0 && text.contains("1 written") && text.contains("foreign bytes"), "{status}: {text}");
    assert!(text.contains("older than its ledger") && text.contains("; 1 line, "), "{text}");
    Ok(())
}

/// A spool that the ledger had not met was not asked for, and what came behind the last written visit neither.
#[test]
fn a_spool_s_visits_that_no_ledger_has_are_missing() -> Outcome {
    let launch = Embedded::launch()?;
    let (spool, other) = (launch.folder().join("spool"), Output::at(launch.folder().join("other.log")));
    let mut system = Embedded::of(&launch)?;
    (0..3).try_for_each(|_| system.visit(&[]))?;
    system.output.wait_for_lines(3)?;
    system.pixel.stop()?;
    let spool = spool.to_string_lossy();
    let (status, text) = system.output.audit_says(&["--spool-dir", &spool])?;
    assert!(status == 0 && text.contains("3 written"), "{text}");

    let mut system = Embedded::of(&launch.clone().with("output", &other.path))?;
    (0..2).try_for_each(|_| system.visit(&[]))?;
    other.wait_for_lines(2)?;
    system.pixel.stop()?;
    let first = Embedded::of(&launch)?;
    let output = first.output.clone();
    drop(first);
    let (status, text) = output.audit_says(&["--spool-dir", &spool])?;
    assert!(status == 1 && text.contains("gaps 4-5"), "{text}");
    assert!(text.contains("2 visits are missing") && text.contains("with the broker"), "{text}");
    let ledger = other.ledger();
    let (status, text) = output.audit_says(&["--spool-dir", &spool, "--with", &ledger.to_string_lossy()])?;
    assert!(status == 0 && text.contains("2 in another ledger"), "{text}");
    Ok(())
}

/// A spool whose output was changed looked like one that had lost all of its earlier visits.
#[test]
fn visits_in_another_output_of_the_same_spool_are_told_from_lost_ones() -> Outcome {
    let launch = Embedded::launch()?;
    let (a, b) = (Output::at(launch.folder().join("a.log")), Output::at(launch.folder().join("b.log")));
    for (output, visits) in [(&a, 3), (&b, 2)] {
        let mut system = Embedded::of(&launch.clone().with("output", &output.path))?;
        (0..visits).try_for_each(|_| system.visit(&[]))?;
        output.wait_for_lines(visits)?;
        system.pixel.stop()?;
    }
    let (status, text) = b.audit_says(&[])?;
    assert!(status == 1 && text.contains("gaps 1-3") && text.contains("3 visits are missing"), "{text}");
    let ledger = a.ledger();
    let (status, text) = b.audit_says(&["--with", &ledger.to_string_lossy()])?;
    assert!(status == 0 && text.contains("3 in another ledger") && text.ends_with("proved\n"), "{text}");
    assert_eq!(a.audit_says(&[])?.0, 0, "it has the first numbers");
    let (status, text) = b.audit_says(&["--with", "absent"])?;
    assert!(status == 2 && text.contains("failed to read the ledger `absent`"), "{text}");
    Ok(())
}

#[test]
fn pixel_storage_audits_as_well() -> Outcome {
    let folder = Folder::written(&[3, 2])?;
    let audit = Launch::new("pixel-storage")?.argument("audit").with("output", &folder.output.path);
    let (status, said, _) = audit.run()?;
    assert!(status == 0 && said.contains("visits.log.1: verified") && said.ends_with("proved\n"), "{said}");
    folder.run("sed -i 1d visits.log.1")?;
    let (status, said, _) = audit.run()?;
    assert!(status == 1 && said.ends_with("not proved\n"), "{said}");
    Ok(())
}

/// A month of files, the older ones compressed as logrotate does, and one line in one of them changed by hand.
#[test]
fn one_line_changed_in_a_month_of_files_is_found() -> Outcome {
    let folder = Folder::written(&[120; 31])?;
    folder.run("for n in 1 2 3 4 5 6; do gzip visits.log.$n; done")?;
    let (status, text) = folder.output.audit_says(&[])?;
    assert_eq!((status, text.matches("verified").count()), (0, 31), "{text}");
    let lines = lines_of(&folder.path(".17")?);
    folder.run("sed -i '60s/\"ip\":\"127.0.0.1\"/\"ip\":\"127.0.0.2\"/' visits.log.17")?;
    let changed = lines_of(&folder.path(".17")?);
    assert_eq!(lines.iter().zip(&changed).filter(|(before, after)| before != after).count(), 1);
    let (status, text) = folder.output.audit_says(&[])?;
    println!("{text}");
    assert_eq!((status, text.matches("verified").count()), (1, 30), "{text}");
    assert!(
        text.contains("visits.log.17: damaged at byte") && text.ends_with("no gap\nnot proved\n"),
        "{text}"
    );
    Ok(())
}

/// All that may be one of the files is open at once: past some thousand rotated ones the audit ended with status 2.
#[test]
fn an_output_of_more_files_than_may_be_open_unless_asked_is_proved() -> Outcome {
    let mut system = Embedded::with(|launch| launch.with("rotate-bytes", "1"))?;
    let output = system.output.clone();
    for n in 1..=50 {
        system.visit(&[])?;
        wait_until("another file", || output.rotated().is_ok_and(|files| files.len() >= n - 1))?;
    }
    system.pixel.stop()?;
    let audit = Launch::new("pixel")?.before("ulimit -Sn 32").with("output", &output.path).argument("audit");
    let (status, stdout, stderr) = audit.run()?;
    assert!(status == 0 && stdout.contains("proved"), "{status}: {stderr}");
    Ok(())
}

/// The audit ended at the first such file, and said nothing of the others.
#[test]
fn a_rotated_file_that_may_not_be_opened_is_named_and_the_others_are_reported_on() -> Outcome {
    let folder = Folder::rotated()?;
    folder.run("chmod 000 visits.log.1")?;
    // Root may open whatever it likes, unless it has to do without that.
    let without =
        "{ [ $(id -u) != 0 ] || exec setpriv --bounding-set=-dac_override,-dac_read_search \"$0\" \"$@\"; }";
    let audit = Launch::new("pixel")?.before(without).with("output", &folder.output.path).argument("audit");
    let (status, stdout, stderr) = audit.run()?;
    for said in [
        "visits.log.1: unreadable (Permission denied",
        "visits.log: verified",
        "visits.log.2.gz: compressed (verified)",
        "visits.log.3.zst: compressed (verified)",
        "not proved",
    ] {
        assert!(stdout.contains(said), "{said}: {stdout}{stderr}");
    }
    assert!(status == 2 && stderr.contains("visits.log.1`: Permission denied"), "{status}: {stderr}");
    Ok(())
}
