//! Proof of the order of steps, over the real recorder, output file and ledger: whatever call fails, wherever the
//! process or the power goes, and whatever others do to the file in between, each visit is written once.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;

use super::{LedgerFile, OutputFile, RemovedByNow, Right, Rotation, Verdict, read_ledger, verify};
use crate::disk::fake_folder::{Deed, FAULTS, FakeFolder, Fault, OUTPUT};
use crate::disk::folder::Folder;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::record::{
    DeadLetter, Delivered, FileRecord, Inbox, InboxError, RecordError, Recorder, VisitLogError,
};
use crate::stop::Stop;
use crate::visit::lines::LineFormat;
use crate::visit::wire::{Origin, Unreadable};

const LEDGER: &str = "visits.log.ledger";

struct FakeRight(FakeFolder);

impl Right for FakeRight {
    fn check(&self) -> Result<(), VisitLogError> {
        match self.0.disk().has_lock {
            true => Ok(()),
            false => Err(VisitLogError::LockLost { path: "fake".into() }),
        }
    }
}

/// What became of the messages.
#[derive(Default)]
struct Fortune {
    acknowledged: Vec<bool>,
    // By message: what of it was set aside, the number of a visit, or 0 for the whole.
    dead: BTreeMap<usize, BTreeSet<u64>>,
}

/// Delivers what is not acknowledged, two messages at a time, and ends the process when there is nothing left. Its
/// calls fail and die as the disk's do.
struct MemoryInbox<'a> {
    folder: FakeFolder,
    messages: &'a [(Result<Origin, Unreadable>, Vec<u8>)],
    fortune: &'a mut Fortune,
    delivered: Vec<usize>,
    batch: Vec<usize>,
}

fn lost(_: io::Error) -> InboxError {
    InboxError("lost".into())
}

impl Inbox for MemoryInbox<'_> {
    fn receive(&mut self, _: Duration) -> Result<Vec<Delivered>, InboxError> {
        let waiting = (0..self.messages.len()).filter(|n| !self.delivered.contains(n));
        self.batch = waiting.filter(|n| !self.fortune.acknowledged[*n]).take(2).collect();
        self.delivered.extend(&self.batch);
        self.folder.ask(|_| ()).map_err(lost)?;
        if self.batch.is_empty() {
            self.folder.disk().stop.set();
        }
        let message = |n: &usize| {
            let (origin, body) = self.messages[*n].clone();
            Delivered { origin, body }
        };
        Ok(self.batch.iter().map(message).collect())
    }
    fn acknowledge(&mut self, dead: &[DeadLetter<'_>]) -> Result<(), InboxError> {
        for letter in dead {
            let number = match &letter.origin {
                Some(Origin::Spool { first, .. }) if !letter.is_whole => *first,
                _ => 0,
            };
            let set_aside = self.fortune.dead.entry(self.batch[letter.place]).or_default();
            self.folder.ask(|_| set_aside.insert(number)).map_err(lost)?;
        }
        let (delivered, acknowledged) = (&self.delivered, &mut self.fortune.acknowledged);
        self.folder.ask(|_| delivered.iter().for_each(|n| acknowledged[*n] = true)).map_err(lost)
    }
    fn address(&self) -> &str {
        "memory"
    }
}

type Messages = Vec<(Result<Origin, Unreadable>, Vec<u8>)>;

fn spooled(first: u64, count: u64) -> (Result<Origin, Unreadable>, Vec<u8>) {
    let visit = "{\"received_at\":\"2022-12-19T14:16:49Z\",\"ip\":\"1.2.3.4\"}\n";
    let origin = Origin::Spool { producer: Uuid::nil(), first, count };
    (Ok(origin), visit.repeat(count as usize).into_bytes())
}

fn foreign(id: &str) -> (Result<Origin, Unreadable>, Vec<u8>) {
    (Ok(Origin::Foreign { message_id: Some(id.into()) }), spooled(1, 1).1)
}

fn messages() -> Messages {
    let unreadable = (foreign("b").0, b"hello".to_vec());
    let (origin, body) = spooled(9, 3);
    let bad_line = (origin, [b"x", &body[1..]].concat());
    let again = spooled(1, 3);
    vec![spooled(1, 3), foreign("a"), unreadable, spooled(2, 4), foreign("a"), again, bad_line]
}

/// What of them ends in the dead letters: a message as a whole, and one visit.
fn expected_dead() -> BTreeMap<usize, BTreeSet<u64>> {
    BTreeMap::from([(2, BTreeSet::from([0])), (6, BTreeSet::from([9]))])
}

/// A visit that is written before anything happens: in an output that is empty yet, nothing tells it from another.
fn first_message() -> Messages {
    vec![spooled(100, 1)]
}

fn expected() -> BTreeMap<String, usize> {
    ["1", "2", "3", "4", "5", "10", "11", "foreign"].into_iter().map(|name| (name.to_string(), 1)).collect()
}

/// How often each visit stands in these files, in lines that are whole.
fn count<'a>(files: impl IntoIterator<Item = &'a [u8]>) -> BTreeMap<String, usize> {
    let mut visits = BTreeMap::new();
    for content in files {
        for line in String::from_utf8_lossy(content).lines() {
            // A fragment, or somebody else's, which may even stand within a value of ours.
            let visit = serde_json::from_str::<serde_json::Value>(line);
            let Some(visit) = visit.ok().filter(|_| !line.contains("foreign ")) else { continue };
            let name = match visit["sequence"].as_u64() {
                Some(sequence) => sequence.to_string(),
                None => "foreign".into(),
            };
            *visits.entry(name).or_insert(0) += 1;
        }
    }
    visits
}

/// What one life goes through: faults and deeds by the number of the call, from its start on.
#[derive(Debug, Clone, Default)]
struct Fate {
    faults: Vec<(usize, Fault)>,
    deeds: Vec<(usize, Deed)>,
    // Whether a process that dies takes the power with it.
    loses_power: bool,
    // The formats of the processes, in turn.
    formats: Vec<LineFormat>,
    // Past how many bytes Pixel rotates the output.
    rotate_bytes: Option<u64>,
}

/// Records until every message is acknowledged, through as many connections and processes as it takes; returns what
/// went to the dead letters.
fn live(folder: &FakeFolder, messages: &Messages, fate: &Fate) -> BTreeMap<usize, BTreeSet<u64>> {
    let mut fortune = Fortune { acknowledged: vec![false; messages.len()], ..Fortune::default() };
    {
        let mut disk = folder.disk();
        (disk.faults, disk.deeds) = (fate.faults.clone(), fate.deeds.clone());
    }
    folder.start_again(false);
    for process in 0..8 {
        let format = fate.formats.get(process).or(fate.formats.last()).copied().unwrap_or(LineFormat::Ndjson);
        run(folder, messages, &mut fortune, format, fate.rotate_bytes);
        let is_over = {
            let disk = folder.disk();
            !disk.is_dead && disk.has_lock
        };
        if is_over && fortune.acknowledged.iter().all(|done| *done) {
            return fortune.dead;
        }
        let was_killed = folder.disk().is_dead;
        folder.start_again(fate.loses_power && was_killed);
    }
    panic!("eight processes did not get it done: {fate:?}");
}

/// One process.
fn run(
    folder: &FakeFolder,
    messages: &Messages,
    fortune: &mut Fortune,
    format: LineFormat,
    max_bytes: Option<u64>,
) {
    let stop: Stop = folder.disk().stop.clone();
    let ledger = loop {
        if stop.is_set() {
            return;
        }
        if let Ok(ledger) = LedgerFile::open(Box::new(folder.clone()), OsStr::new(LEDGER)) {
            break ledger;
        }
    };
    let mut ledger = ledger;
    let right = Box::new(FakeRight(folder.clone()));
    let rotation = Rotation { max_bytes, ..Rotation::default() };
    let mut output =
        OutputFile::new(Box::new(folder.clone()), OsStr::new(OUTPUT), right, format).rotating(rotation);
    let (metrics, health) = (Metrics::default(), Health::default());
    let mut recorder =
        Recorder { format, visit_log: &mut output, ledger: &mut ledger, metrics: &metrics, health: &health };
    let mut ended = recorder.prepare(&stop);
    while ended.is_ok() && !stop.is_set() {
        let (delivered, batch) = (Vec::new(), Vec::new());
        let mut inbox = MemoryInbox { folder: folder.clone(), messages, fortune, delivered, batch };
        ended = match recorder.run(&mut inbox, &stop) {
            // There is another connection.
            Err(RecordError::Inbox(_)) => Ok(()),
            ended => ended,
        };
    }
    match ended {
        Ok(()) | Err(RecordError::Fatal(_)) => {}
        Err(error) => panic!("{error}"),
    }
}

fn is_written_once(folder: &FakeFolder, case: &dyn std::fmt::Debug) {
    for outputs in [folder.outputs(), folder.durable_outputs()] {
        let mut found = count(outputs.iter().map(|(_, content)| &content[..]));
        found.remove("100");
        assert_eq!(found, expected(), "{case:?}: {}", shown(&outputs));
    }
}

fn shown(outputs: &[(String, Vec<u8>)]) -> String {
    let line = |line: &str| match line.rsplit_once("\"sequence\":") {
        Some((_, sequence)) if line.starts_with('{') => {
            format!(" {}", sequence.split([',', '}']).next().unwrap_or_default())
        }
        _ => format!(" [{} bytes]", line.len()),
    };
    let shown = outputs.iter().map(|(name, content)| {
        let lines: String = String::from_utf8_lossy(content).lines().map(line).collect();
        format!("\n{name}:{lines}")
    });
    shown.collect()
}

fn calls_of_a_life() -> usize {
    let folder = FakeFolder::default();
    live(&folder, &messages(), &Fate::default());
    is_written_once(&folder, &"nothing happens");
    let calls = folder.disk().calls;
    assert!(calls > 40, "{calls}");
    calls
}

#[test]
fn whichever_call_fails_or_dies_each_visit_is_written_once() {
    for call in 1..=calls_of_a_life() {
        for fault in FAULTS {
            for loses_power in [false, true] {
                let fate = Fate { faults: vec![(call, fault)], loses_power, ..Fate::default() };
                let folder = FakeFolder::default();
                let dead = live(&folder, &messages(), &fate);
                is_written_once(&folder, &fate);
                assert_eq!(dead, expected_dead(), "{fate:?}");
            }
        }
    }
}

/// The second crash comes before what the first one left is claimed, while it is, and after.
#[test]
fn whichever_two_calls_fail_or_die_each_visit_is_written_once() {
    for (call, later, first, second) in pairs(calls_of_a_life()) {
        let faults = vec![(call, FAULTS[first]), (call + later, FAULTS[second])];
        let fate = Fate { faults, loses_power: (call + first) % 2 == 0, ..Fate::default() };
        let folder = FakeFolder::default();
        let dead = live(&folder, &messages(), &fate);
        is_written_once(&folder, &fate);
        assert_eq!(dead, expected_dead(), "{fate:?}");
    }
}

/// Pairs of calls not far apart, and for each call all faults, with each of which every other one comes in turn. All
/// of 49 combinations for each pair of calls take three minutes.
fn pairs(calls: usize) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let faults = FAULTS.len();
    (1..=calls).flat_map(move |call| {
        (1..=20).flat_map(move |later| {
            (0..faults).map(move |first| (call, later, first, (call + 3 * later + first) % faults))
        })
    })
}

/// The output is renamed, the new one made, and the ledger told: a crash between any two steps of it leaves each visit in
/// one of the files.
#[test]
fn an_output_that_pixel_rotates_holds_each_visit_in_one_of_the_files_whichever_calls_fail_or_die() {
    let folder = FakeFolder::default();
    let rotating = Fate { rotate_bytes: Some(1), ..Fate::default() };
    live(&folder, &messages(), &rotating);
    is_written_once(&folder, &"nothing happens");
    let outputs = folder.outputs();
    assert!(outputs.len() > 3, "{}", shown(&outputs));
    let is_own = |name: &str| super::names::is_own(OsStr::new(OUTPUT), OsStr::new(name));
    assert!(outputs.iter().all(|(name, _)| name == OUTPUT || is_own(name)));
    let calls = folder.disk().calls;
    for (call, later, first, second) in pairs(calls).filter(|(call, later, ..)| (call + later) % 13 == 0) {
        // The first half has one fault.
        let faults = [(call, FAULTS[first]), (call + later, FAULTS[second])];
        let faults = faults[..1 + later % 2].to_vec();
        let fate = Fate { faults, loses_power: (call + first) % 2 == 0, ..rotating.clone() };
        let folder = FakeFolder::default();
        let dead = live(&folder, &messages(), &fate);
        is_written_once(&folder, &fate);
        assert_eq!(dead, expected_dead(), "{fate:?}");
    }
}

/// What others do, right before any call, and what fails or dies thereafter. The output holds a visit before.
fn with_deeds(deeds: &[Deed], check: impl Fn(&FakeFolder, &Fate)) {
    let before = {
        let folder = FakeFolder::default();
        live(&folder, &first_message(), &Fate::default());
        folder.disk().calls
    };
    for deed in deeds {
        for (call, later, first, _) in
            pairs(calls_of_a_life()).filter(|(call, later, ..)| (call + later) % 2 == 0)
        {
            // The first of these is no fault at all.
            let faults = match first {
                0 => Vec::new(),
                first => vec![(before + call + later - 1, FAULTS[first])],
            };
            let deeds = vec![(before + call, *deed)];
            let fate = Fate { faults, deeds, loses_power: later % 3 == 0, ..Fate::default() };
            let folder = FakeFolder::default();
            live(&folder, &first_message(), &Fate::default());
            live(&folder, &messages(), &fate);
            check(&folder, &fate);
        }
    }
}

#[test]
fn what_others_append_between_any_two_calls_stays_and_parts_no_visit() {
    with_deeds(&[Deed::Append, Deed::AppendTorn], |folder, fate| {
        is_written_once(folder, fate);
        let outputs = folder.outputs();
        let all: String =
            outputs.iter().map(|(_, content)| String::from_utf8_lossy(content).into_owned()).collect();
        // Where there was a file yet to append to.
        let appended = usize::from(all.contains("foreign 1"));
        assert_eq!(all.matches("foreign 1").count(), appended, "{fate:?}: {}", shown(&outputs));
    });
}

#[test]
fn an_output_that_is_renamed_between_any_two_calls_holds_each_visit_in_one_of_the_files() {
    with_deeds(&[Deed::Rename], |folder, fate| is_written_once(folder, fate));
}

/// What somebody takes away is gone, and nothing else is; what was not acknowledged then is written anew.
#[test]
fn an_output_that_is_removed_or_cut_off_between_any_two_calls_loses_what_was_in_it_and_nothing_else() {
    with_deeds(&[Deed::Remove, Deed::Truncate], |folder, fate| {
        let outputs = folder.outputs();
        let left = count(outputs.iter().map(|(_, content)| &content[..]));
        let gone = count([&folder.disk().gone[..]]);
        for name in expected().keys() {
            let (left, gone) = (left.get(name).copied().unwrap_or(0), gone.get(name).copied().unwrap_or(0));
            // One that dies between a truncation and its commit leaves a file that nothing tells is the output.
            let may_be_twice = fate.deeds[0].1 == Deed::Truncate && left == 2;
            let is_well = left == 1 || left == 0 && gone > 0 || may_be_twice && has_died(fate);
            assert!(is_well, "{name} {fate:?}: {}", shown(&outputs));
        }
    });
}

fn has_died(fate: &Fate) -> bool {
    fate.faults
        .iter()
        .any(|(_, fault)| matches!(fault, Fault::DiesBefore | Fault::DiesAfter | Fault::DiesHalfway))
}

/// A writer that was paused while its lock file was removed writes, commits and acknowledges nothing more.
#[test]
fn a_writer_whose_lock_is_taken_before_any_call_leaves_the_rest_to_its_successor() {
    with_deeds(&[Deed::TakeLock], |folder, fate| is_written_once(folder, fate));
}

/// In the format `pipe` two visits of the same instant are the same line.
#[test]
fn visits_that_are_the_same_line_are_each_written_once() {
    let messages = vec![spooled(1, 4), spooled(5, 2), spooled(3, 3)];
    for (call, later, first, second) in pairs(100).filter(|(call, later, ..)| (call + later) % 3 == 0) {
        let faults = vec![(call, FAULTS[first]), (call + later, FAULTS[second])];
        let formats = vec![LineFormat::Pipe];
        let fate = Fate { faults, loses_power: later % 2 == 0, formats, ..Fate::default() };
        let folder = FakeFolder::default();
        live(&folder, &messages, &fate);
        for outputs in [folder.outputs(), folder.durable_outputs()] {
            let (_, content) = &outputs[0];
            let text = String::from_utf8_lossy(content);
            let lines = text.lines().filter(|line| *line == "2022-12-19T14:16:49.0000000Z|null|null|1.2.3.4");
            assert_eq!(lines.count(), 6, "{fate:?}: {text}");
        }
    }
}

/// What a crash left in one format is recognised when the next process writes another.
#[test]
fn a_change_of_format_between_crashes_repeats_nothing() {
    use LineFormat::{Combined, Ndjson, Pipe};
    let messages = vec![spooled(1, 3), spooled(4, 2)];
    for (call, later, first, second) in pairs(80).filter(|(call, later, ..)| (call + later) % 3 == 0) {
        let faults = vec![(call, FAULTS[first]), (call + later, FAULTS[second])];
        let formats = vec![Pipe, Combined, Ndjson];
        let fate = Fate { faults, loses_power: later % 2 == 0, formats, ..Fate::default() };
        let folder = FakeFolder::default();
        live(&folder, &messages, &fate);
        let outputs = folder.outputs();
        let text: String =
            outputs.iter().map(|(_, content)| String::from_utf8_lossy(content).into_owned()).collect();
        let is_whole = |line: &&str| {
            *line == "2022-12-19T14:16:49.0000000Z|null|null|1.2.3.4"
                || line.ends_with("\"GET - HTTP/1.1\" 200 43 \"-\" \"-\"")
                || line.starts_with('{') && line.ends_with('}')
        };
        assert_eq!(text.lines().filter(is_whole).count(), 5, "{fate:?}:\n{text}");
    }
}

/// Another program's file had got the inode number of the output that was removed: it was cut to the old length.
#[test]
fn nothing_that_pixel_did_not_write_is_ever_changed_or_shortened() {
    for stranger in [&b"somebody else's log\n"[..], b"", b"no line feed at its end"] {
        let folder = FakeFolder::default();
        live(&folder, &messages(), &Fate::default());
        let written = folder.content(OUTPUT).expect("the output");
        // At the output's name, and beside it, before a start.
        folder.put(OUTPUT, stranger);
        folder.put("visits.log.1", &written);
        folder.put("visits.log.other", stranger);
        live(&folder, &vec![spooled(20, 2)], &Fate::default());
        let now = folder.content(OUTPUT).expect("the output");
        assert!(now.starts_with(stranger) && now.len() > stranger.len());
        assert_eq!(folder.content("visits.log.1").expect("it is there"), written);
        assert_eq!(folder.content("visits.log.other").expect("it is there"), stranger);
    }
}

/// A foreign file beside a mark of length 0 was taken for the output.
#[test]
fn an_empty_output_is_recognised_by_its_name_alone() {
    let folder = FakeFolder::default();
    live(&folder, &Vec::new(), &Fate::default());
    folder.put("visits.log.1", &messages_as_lines());
    live(&folder, &messages(), &Fate::default());
    let (name, content) = &folder.outputs()[0];
    assert_eq!((&name[..], count([&content[..]])), (OUTPUT, expected()), "nothing is claimed of the other");
}

/// Nothing stood before the first batch of a file that it could be known by: where a crash left that batch and the file
/// was renamed before the next start, it was written again.
#[test]
fn the_first_batch_of_a_file_is_claimed_whatever_its_name_is_by_now() {
    let folder = FakeFolder::default();
    live(&folder, &Vec::new(), &Fate::default());
    let output = folder.open(OsStr::new(OUTPUT), false).expect("it was marked");
    output.append(&messages_as_lines()).1.expect("the disk works");
    output.sync().expect("the disk works");
    folder.rename(OsStr::new(OUTPUT), OsStr::new("visits.log.1")).expect("the disk works");
    folder.sync().expect("the disk works");
    live(&folder, &messages(), &Fate::default());
    is_written_once(&folder, &"renamed");
    live(&folder, &vec![spooled(100, 1)], &Fate::default());
    is_written_once(&folder, &"renamed, and gone on with");
}

fn messages_as_lines() -> Vec<u8> {
    let folder = FakeFolder::default();
    live(&folder, &messages(), &Fate::default());
    folder.content(OUTPUT).expect("the output")
}

/// An output of which an earlier Pixel committed the first three visits, under the name `name` by now.
fn of_format_1(name: &str, written: &[u8]) -> FakeFolder {
    let first_three: usize = written.split_inclusive(|byte| *byte == b'\n').take(3).map(<[u8]>::len).sum();
    let folder = FakeFolder::default();
    folder.put(name, written);
    // As an earlier Pixel wrote it: one entry, whose mark names the file by its inode, the fake disk's first.
    let entry = format!(
        r#"{{"output":{{"device":1,"inode":0,"length":{first_three}}},"spools":{{"{}":{{"written":[[1,3]],"duplicates":0}}}},"foreign":0,"foreign_duplicates":0}}"#,
        Uuid::nil()
    );
    let length = (entry.len() as u32).to_le_bytes();
    let crc = crc32fast::hash(&[&length[..], entry.as_bytes()].concat()).to_le_bytes();
    folder.put(LEDGER, &[&length[..], &crc, entry.as_bytes()].concat());
    folder
}

/// What stands behind the mark of a ledger of format 1 was cut off; now it is claimed.
#[test]
fn a_ledger_of_format_1_is_read_and_what_stands_behind_its_mark_is_claimed() {
    let written = messages_as_lines();
    let folder = of_format_1(OUTPUT, &written);
    live(&folder, &messages(), &Fate::default());
    assert_eq!(folder.content(OUTPUT).expect("the output"), written, "nothing is added and nothing cut off");
    let ledger = folder.content(LEDGER).expect("the ledger");
    assert!(ledger[8..].starts_with(b"\"pixel ledger 2\""), "it is of today's format now");
}

/// The file that was renamed since and the new one got the same number, and so one record for both.
#[test]
fn a_file_of_a_ledger_of_format_1_that_was_renamed_has_a_record_of_its_own() {
    let written = messages_as_lines();
    let folder = of_format_1("visits.log.1", &written);
    live(&folder, &messages(), &Fate::default());
    live(&folder, &vec![spooled(100, 2)], &Fate::default());
    assert_eq!(folder.content("visits.log.1").expect("it is there"), written, "all of it was claimed");
    let (_, records) = records(&folder, true).expect("a ledger");
    let known: Vec<_> = records.iter().map(|record| (&record.name[..], record.lines)).collect();
    assert_eq!(known, [("visits.log.1", 5), (OUTPUT, 2)], "what this Pixel committed");
}

/// An entry of an earlier Pixel is an object: what this one begins with is none, so it refuses and changes nothing.
#[test]
fn an_earlier_pixel_refuses_this_ledger_and_a_newer_one_is_refused() {
    #[derive(serde::Deserialize)]
    struct EntryOfFormat1 {
        #[serde(default)]
        #[expect(dead_code, reason = "only parsed")]
        foreign: u64,
    }
    let folder = FakeFolder::default();
    live(&folder, &messages(), &Fate::default());
    let ledger = folder.content(LEDGER).expect("the ledger");
    let length = u32::from_le_bytes([ledger[0], ledger[1], ledger[2], ledger[3]]) as usize;
    assert!(serde_json::from_slice::<EntryOfFormat1>(&ledger[8..8 + length]).is_err());
    let newer = b"\"pixel ledger 3\"";
    let head = (newer.len() as u32).to_le_bytes();
    let crc = crc32fast::hash(&[&head[..], newer].concat()).to_le_bytes();
    let newer = [&head[..], &crc, newer].concat();
    folder.put(LEDGER, &newer);
    let opened = LedgerFile::open(Box::new(folder.clone()), OsStr::new(LEDGER));
    let error = opened.err().expect("it is refused").to_string();
    assert!(error.contains("pixel ledger 3"), "{error}");
    assert_eq!(folder.content(LEDGER), Some(newer));
}

/// With each start it was allowed to grow to four times what it had grown to.
#[test]
fn the_ledger_does_not_grow_with_starts() {
    let folder = FakeFolder::default();
    for start in 0..100 {
        let batches: Messages = (0..40).map(|batch| spooled(1 + 40 * start + batch, 1)).collect();
        live(&folder, &batches, &Fate::default());
    }
    let length = folder.content(LEDGER).expect("the ledger").len();
    assert!(length < 50_000, "{length} bytes after 100 starts and 4,000 batches");
}

/// As `live`, with faults and deeds of each process, counted from its start.
fn live_by_process(folder: &FakeFolder, messages: &Messages, fates: &[Fate]) -> Result<(), String> {
    let mut fortune = Fortune { acknowledged: vec![false; messages.len()], ..Fortune::default() };
    folder.start_again(false);
    for process in 0..12 {
        let fate = fates.get(process).cloned().unwrap_or_default();
        {
            let mut disk = folder.disk();
            let base = disk.calls;
            disk.faults = fate.faults.iter().map(|(call, fault)| (base + call, *fault)).collect();
            disk.deeds = fate.deeds.iter().map(|(call, deed)| (base + call, *deed)).collect();
        }
        run(folder, messages, &mut fortune, LineFormat::Ndjson, None);
        let is_over = {
            let disk = folder.disk();
            !disk.is_dead && disk.has_lock
        };
        if is_over && fortune.acknowledged.iter().all(|done| *done) {
            return Ok(());
        }
        let was_killed = folder.disk().is_dead;
        folder.start_again(fate.loses_power && was_killed);
    }
    Err(format!("twelve processes: {fates:?}"))
}

/// Each visit once, in what a reader sees and in what a power cut would leave.
fn once(folder: &FakeFolder) -> Result<(), String> {
    for outputs in [folder.outputs(), folder.durable_outputs()] {
        let mut found = count(outputs.iter().map(|(_, content)| &content[..]));
        found.remove("100");
        if found != expected() {
            return Err(format!("{found:?}: {}", shown(&outputs)));
        }
    }
    Ok(())
}

/// The files on a real disk, as a reader sees them or as a power cut would leave them, and what the ledger says of each.
fn records(folder: &FakeFolder, is_durable: bool) -> Result<(tempfile::TempDir, Vec<FileRecord>), String> {
    let real = tempfile::tempdir().expect("a folder");
    for (name, content) in folder.files(is_durable) {
        std::fs::write(real.path().join(name), content).expect("the disk works");
    }
    let ledger = read_ledger(&real.path().join(LEDGER)).map_err(|error| error.to_string())?;
    if ledger.lacking > 0 {
        return Err(format!("{} closed files are not listed", ledger.lacking));
    }
    let mut records = ledger.closed;
    records.extend(ledger.written.files().values().cloned());
    records.retain(|record| record.bytes() > 0);
    Ok((real, records))
}

/// Every file is as the ledger says: each byte, and how many lines.
fn proved(folder: &FakeFolder) -> Result<(), String> {
    for is_durable in [false, true] {
        let shown = || format!("durable: {is_durable}{}", shown(&folder.outputs()));
        let (real, records) = records(folder, is_durable).map_err(|error| format!("{error}; {}", shown()))?;
        let records: Vec<&FileRecord> = records.iter().collect();
        let none = || Ok(RemovedByNow::default());
        let found = verify(&real.path().join(OUTPUT), &[], &records, &none, &|_, _| true, &|_, _| ())
            .expect("the disk works");
        for (file, record) in found.iter().zip(records) {
            let content = std::fs::read(&file.path).unwrap_or_default();
            let lines: usize = count([&content[..]]).into_values().sum();
            if file.verdict != Verdict::Verified || file.lines != lines as u64 {
                return Err(format!("{lines} lines, {file:?}, {record:?}; {}", shown()));
            }
        }
    }
    Ok(())
}

/// What may happen to a process, at any of its calls: so many faults, and deeds of these.
fn fates(faults: usize, deeds: &'static [Deed]) -> impl Strategy<Value = Vec<Fate>> {
    let fault = (1..120usize, proptest::sample::select(&FAULTS[..]));
    let deed = (1..120usize, proptest::sample::select(deeds));
    let several = (vec(fault, 0..=faults), vec(deed, 0..8), any::<bool>());
    let fate = several.prop_map(|(faults, deeds, loses_power)| Fate {
        faults,
        deeds,
        loses_power,
        ..Fate::default()
    });
    vec(fate, 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    /// Whatever befalls it, what the ledger says of each file is so.
    #[test]
    fn after_any_life_every_visit_is_there_once_and_every_file_is_proved(
        counts in vec(1..6u64, 1..12),
        fates in fates(2, &[Deed::Append, Deed::AppendTorn, Deed::Rename]),
    ) {
        let mut messages = Messages::new();
        let mut next = 1;
        for count in counts {
            messages.push(spooled(next, count));
            next += count;
        }
        let folder = FakeFolder::default();
        let outcome = live_by_process(&folder, &messages, &fates);
        prop_assert_eq!(outcome.and_then(|()| proved(&folder)), Ok(()));
        let all: BTreeMap<_, _> = (1..next).map(|number| (number.to_string(), 1)).collect();
        for outputs in [folder.outputs(), folder.durable_outputs()] {
            let found = count(outputs.iter().map(|(_, content)| &content[..]));
            prop_assert!(found == all, "{:?}: {}", found, shown(&outputs));
        }
    }

    /// Also where the file is copied and cut off without its flock, as long as no process dies in between, and as it
    /// holds what the ledger knows: in a copy of its first batch alone, nothing is known by which to find that.
    #[test]
    fn after_any_life_without_a_crash_a_file_that_was_cut_off_and_its_copy_are_proved(
        mut fates in fates(0, &[Deed::Append, Deed::AppendTorn]),
        call in 1..120usize,
    ) {
        let folder = FakeFolder::default();
        live(&folder, &first_message(), &Fate::default());
        fates[0].deeds.push((call, Deed::CopyTruncate));
        let outcome = live_by_process(&folder, &messages(), &fates);
        prop_assert_eq!(outcome.and_then(|()| once(&folder)).and_then(|()| proved(&folder)), Ok(()));
    }
}

/// Copied and cut off by somebody who does not take the flock, within a batch, the file and its copy had one record, and
/// the audit said "damaged" though every visit was there.
#[test]
fn an_output_that_is_copied_and_cut_off_between_any_two_calls_is_proved_and_so_is_the_copy() {
    for call in 1..=calls_of_a_life() {
        let fates = [Fate { deeds: vec![(call, Deed::CopyTruncate)], ..Fate::default() }];
        let folder = FakeFolder::default();
        live(&folder, &first_message(), &Fate::default());
        let outcome = live_by_process(&folder, &messages(), &fates);
        assert_eq!(
            outcome.and_then(|()| once(&folder)).and_then(|()| proved(&folder)),
            Ok(()),
            "call {call}"
        );
    }
}

/// What others append between two batches parts them in the ledger: it grew with each, and was written anew as long.
#[test]
fn a_file_to_which_others_append_all_the_time_keeps_its_record_short() {
    let folder = FakeFolder::default();
    for life in 0..2 {
        let messages: Messages = (0..60).map(|n| spooled(1 + 60 * life + n, 1)).collect();
        let deeds = (0..2_000).step_by(5).map(|call| (call, Deed::Append)).collect();
        live_by_process(&folder, &messages, &[Fate { deeds, ..Fate::default() }]).expect("it ends");
    }
    assert_eq!(proved(&folder), Ok(()));
    let (_, records) = records(&folder, true).expect("a ledger");
    let (lines, stretches) = (records[0].lines, records[0].stretches.len());
    assert!((lines, records.len()) == (120, 1) && (20..30).contains(&stretches), "{lines}, {stretches}");
}

/// The list of closed files was not synced into its folder any more once that had failed, and a power cut took it.
#[test]
fn the_list_of_closed_files_is_durable_whichever_call_fails() {
    for call in 1..=60 {
        for fault in [Fault::FailsBefore, Fault::FailsAfter] {
            let fates =
                [Fate { deeds: vec![(1, Deed::Rename)], faults: vec![(call, fault)], ..Fate::default() }];
            let folder = FakeFolder::default();
            live(&folder, &first_message(), &Fate::default());
            let outcome = live_by_process(&folder, &messages(), &fates).and_then(|()| proved(&folder));
            assert_eq!(outcome, Ok(()), "call {call}: {fault:?}");
        }
    }
}

/// The audit took a list that was created, and could not be written to, for a damaged one.
#[test]
fn a_list_of_closed_files_that_cannot_be_begun_is_none() {
    let folder = FakeFolder::default();
    live(&folder, &first_message(), &Fate::default());
    folder.disk().full = Some("visits.log.ledger.files");
    let fates = [Fate { deeds: vec![(1, Deed::Rename)], ..Fate::default() }];
    let outcome = live_by_process(&folder, &messages(), &fates).and_then(|()| proved(&folder));
    assert_eq!(outcome, Ok(()), "both files are in the ledger");
    folder.disk().full = None;
    live(&folder, &vec![spooled(20, 1)], &Fate::default());
    assert_eq!(proved(&folder), Ok(()), "and one of them in the list");
}

/// It numbered files from 1 again: the records of those before were overwritten, and the newest were taken for the oldest.
#[test]
fn a_ledger_that_is_begun_beside_the_lists_of_one_before_numbers_files_on() {
    let rotating = Fate { rotate_bytes: Some(1), ..Fate::default() };
    let folder = FakeFolder::default();
    live(&folder, &messages(), &rotating);
    let (_, before) = records(&folder, true).expect("a ledger");
    let bereft = FakeFolder::default();
    let rest = folder.files(true).into_iter().filter(|(name, _)| name != LEDGER);
    rest.for_each(|(name, content)| bereft.put(&name, &content));
    let later = (20..24).map(|number| spooled(number, 1)).collect();
    live(&bereft, &later, &rotating);
    let (_, after) = records(&bereft, true).expect("a ledger");
    assert!(before.len() > 2 && before.iter().all(|record| after.contains(record)), "{before:?}\n{after:?}");
    assert!(after.len() > before.len() && after.is_sorted_by_key(|record| record.id), "{after:?}");
    // Of the new ones none may be lacking all the same.
    bereft.put(&format!("{LEDGER}.files"), &folder.content(&format!("{LEDGER}.files")).expect("a list"));
    let lacking = records(&bereft, true).expect_err("records are lacking");
    assert!(lacking.contains("are not listed"), "{lacking}");
}

/// Lines that were claimed for a batch stayed claimed when a later read failed, and the next try appended them.
#[test]
fn a_call_that_fails_while_lines_are_claimed_repeats_nothing() {
    for kill in (2..=60).step_by(3) {
        for call in 1..=90 {
            let fates = [
                Fate { faults: vec![(kill, Fault::DiesAfter)], ..Fate::default() },
                Fate { faults: vec![(call, Fault::FailsBefore)], ..Fate::default() },
            ];
            let folder = FakeFolder::default();
            let outcome = live_by_process(&folder, &messages(), &fates).and_then(|()| once(&folder));
            assert_eq!(outcome, Ok(()), "killed after call {kill}, then call {call} fails");
        }
    }
}

/// From the first byte of a batch on, the file was kept locked until the ledger's disk had room again: also from those
/// who would have made some.
#[test]
fn while_the_ledger_has_no_room_others_get_the_flock() {
    let folder = FakeFolder::default();
    live(&folder, &first_message(), &Fate::default());
    let writer = {
        let folder = folder.clone();
        folder.disk().full = Some(LEDGER);
        std::thread::spawn(move || live_by_process(&folder, &messages(), &[]))
    };
    let output = folder.open(OsStr::new(OUTPUT), false).expect("it was written to");
    // Twice, as the writer may not have begun yet.
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(300));
        let until = Instant::now() + Duration::from_secs(5);
        while !output.try_lock().expect("the disk works") {
            assert!(Instant::now() < until, "the writer keeps it locked");
        }
        output.unlock();
    }
    folder.disk().full = None;
    assert_eq!(writer.join().expect("it does not panic").and_then(|()| once(&folder)), Ok(()));
}

/// Linux leaves the position where it was when the sync that `chattr +S` asks for fails, and the bytes are there.
#[test]
fn a_write_that_arrived_though_it_failed_and_moved_nothing_is_not_repeated() {
    for call in 1..=120 {
        for fault in [Fault::FailsAfter, Fault::FailsHalfway] {
            let fates = [Fate { faults: vec![(call, fault)], ..Fate::default() }];
            let folder = FakeFolder::default();
            folder.disk().is_sync_mount = true;
            let outcome = live_by_process(&folder, &messages(), &fates).and_then(|()| once(&folder));
            assert_eq!(outcome, Ok(()), "{fates:?}");
        }
    }
}

/// A rotated file that could not be opened for an instant was taken for none, and its lines were written again.
#[test]
fn a_rotated_file_that_cannot_be_opened_for_an_instant_is_found_all_the_same() {
    for kill in [50, 52, 54, 56] {
        for call in 1..=60 {
            let fates = [
                Fate { faults: vec![(kill, Fault::DiesAfter)], ..Fate::default() },
                Fate {
                    faults: vec![(call, Fault::FailsBefore)],
                    deeds: vec![(1, Deed::Rename)],
                    ..Fate::default()
                },
            ];
            let folder = FakeFolder::default();
            live(&folder, &first_message(), &Fate::default());
            let outcome = live_by_process(&folder, &messages(), &fates).and_then(|()| once(&folder));
            assert_eq!(outcome, Ok(()), "killed after call {kill}, renamed, then call {call} fails");
        }
    }
}

/// The batch went on in the new file, which was neither locked nor compared.
#[test]
fn an_output_that_is_removed_within_a_batch_is_compared_anew_whatever_fails_then() {
    for call in 1..=100 {
        for later in 8..=30 {
            let fates = [Fate {
                deeds: vec![(call, Deed::Remove)],
                faults: vec![(call + later, Fault::FailsBefore)],
                ..Fate::default()
            }];
            let folder = FakeFolder::default();
            live(&folder, &first_message(), &Fate::default());
            let outcome = live_by_process(&folder, &messages(), &fates);
            assert_eq!(outcome, Ok(()), "removed before call {call}, call {} fails", call + later);
        }
    }
}
