//! Proof of the recorder's order of steps: whatever fails, and wherever the process or the power goes,
//! each visit is in the file once.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use uuid::Uuid;

use super::*;
use crate::disk::DiskFile;
use crate::disk::fake::FakeFile;
use crate::output::LedgerFile;
use crate::output::Tail;
use crate::record::{Mark, Written};

/// How the nth call of a port goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    FailsBefore,
    FailsAfter,
    DiesBefore,
    DiesAfter,
}

const FAULTS: [Fault; 4] = [Fault::FailsBefore, Fault::FailsAfter, Fault::DiesBefore, Fault::DiesAfter];

/// All that outlives a process, and the faults that are to come.
#[derive(Default)]
struct World {
    messages: Vec<Message>,
    output: Vec<u8>,
    ledger: Vec<Entry>,
    // The last entry was reported as failed, and stands there.
    is_ledger_torn: bool,
    calls: usize,
    faults: Vec<(usize, Fault)>,
    is_dead: bool,
}

struct Message {
    origin: Result<Origin, Unreadable>,
    body: Vec<u8>,
    acknowledged: bool,
    dead_letters: usize,
}

impl World {
    /// Lets one call happen as it is to: whether it takes effect, and whether it succeeds.
    fn call(&mut self, stop: &Stop) -> (bool, bool) {
        if self.is_dead {
            return (false, false);
        }
        self.calls += 1;
        let fault = self.faults.iter().find(|(call, _)| *call == self.calls).map(|(_, fault)| *fault);
        if matches!(fault, Some(Fault::DiesBefore | Fault::DiesAfter)) {
            self.is_dead = true;
            stop.set();
        }
        (matches!(fault, None | Some(Fault::FailsAfter | Fault::DiesAfter)), fault.is_none())
    }

    /// How often each visit stands in the output.
    fn visits(&self) -> BTreeMap<String, usize> {
        count(&self.output)
    }
}

fn count(output: &[u8]) -> BTreeMap<String, usize> {
    let mut visits = BTreeMap::new();
    for line in String::from_utf8_lossy(output).lines() {
        let visit: serde_json::Value = serde_json::from_str(line).expect("a whole line");
        let name = match visit["sequence"].as_u64() {
            Some(sequence) => sequence.to_string(),
            None => "foreign".into(),
        };
        *visits.entry(name).or_insert(0) += 1;
    }
    visits
}

fn refused() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

type Shared = Rc<RefCell<World>>;

struct MemoryInbox<'a> {
    world: Shared,
    stop: &'a Stop,
    // What this connection delivered, and of it the last batch.
    delivered: Vec<usize>,
    batch: Vec<usize>,
}

impl Inbox for MemoryInbox<'_> {
    fn receive(&mut self, _: Duration) -> Result<Vec<Delivered>, InboxError> {
        let mut world = self.world.borrow_mut();
        let (_, succeeds) = world.call(self.stop);
        let waiting = (0..world.messages.len()).filter(|n| !self.delivered.contains(n));
        self.batch = waiting.filter(|n| !world.messages[*n].acknowledged).take(2).collect();
        self.delivered.extend(&self.batch);
        if !succeeds {
            return Err(InboxError("lost".into()));
        }
        if self.batch.is_empty() {
            self.stop.set();
        }
        let message = |n: &usize| {
            let message = &world.messages[*n];
            Delivered { origin: message.origin.clone(), body: message.body.clone() }
        };
        Ok(self.batch.iter().map(message).collect())
    }

    fn acknowledge(&mut self, unreadable: &[usize]) -> Result<(), InboxError> {
        let mut world = self.world.borrow_mut();
        let (takes_effect, succeeds) = world.call(self.stop);
        if takes_effect {
            for place in unreadable {
                world.messages[self.batch[*place]].dead_letters += 1;
            }
            self.delivered.iter().for_each(|n| world.messages[*n].acknowledged = true);
        }
        succeeds.then_some(()).ok_or_else(|| InboxError("lost".into()))
    }

    fn address(&self) -> &str {
        "memory"
    }
}

struct MemoryLog<'a> {
    world: Shared,
    stop: &'a Stop,
    provisional_from: Option<usize>,
}

impl MemoryLog<'_> {
    fn call(&self) -> (bool, Result<(), VisitLogError>) {
        let (takes_effect, succeeds) = self.world.borrow_mut().call(self.stop);
        let failed = || VisitLogError::Failed { path: "memory".into(), error: refused() };
        (takes_effect, succeeds.then_some(()).ok_or_else(failed))
    }
    fn end(&self) -> Mark {
        Mark { device: 1, inode: 1, length: self.world.borrow().output.len() as u64 }
    }
}

impl VisitLog for MemoryLog<'_> {
    fn check(&self) -> Result<(), VisitLogError> {
        self.call().1
    }
    fn begin(&mut self) -> Result<Mark, VisitLogError> {
        self.call().1.map(|()| self.end())
    }
    fn append(&mut self, lines: &[u8]) -> Result<Mark, VisitLogError> {
        let (takes_effect, outcome) = self.call();
        let kept = if takes_effect { lines } else { &lines[..lines.len() / 2] };
        // A dead process writes nothing more; one that dies in the middle leaves half.
        self.provisional_from = Some(self.world.borrow().output.len());
        self.world.borrow_mut().output.extend_from_slice(kept);
        outcome.map(|()| self.end())
    }
    fn settle(&mut self) {
        self.provisional_from = None;
    }
    fn retract(&mut self) -> Result<(), VisitLogError> {
        let (takes_effect, outcome) = self.call();
        if let Some(from) = self.provisional_from.filter(|_| takes_effect) {
            self.world.borrow_mut().output.truncate(from);
        }
        if outcome.is_ok() {
            self.provisional_from = None;
        }
        outcome
    }
}

struct MemoryLedger<'a> {
    world: Shared,
    stop: &'a Stop,
    written: Written,
}

impl Ledger for MemoryLedger<'_> {
    fn written(&self) -> &Written {
        &self.written
    }
    fn commit(&mut self, entry: &Entry) -> Result<(), LedgerError> {
        let mut world = self.world.borrow_mut();
        assert!(!world.is_ledger_torn, "a commit must follow a repair");
        let (takes_effect, succeeds) = world.call(self.stop);
        if takes_effect {
            world.ledger.push(entry.clone());
            world.is_ledger_torn = !succeeds;
        }
        if !succeeds {
            return Err(LedgerError { path: "memory".into(), error: refused() });
        }
        self.written.apply(entry);
        Ok(())
    }
    fn repair(&mut self) -> Result<(), LedgerError> {
        let mut world = self.world.borrow_mut();
        let (takes_effect, succeeds) = world.call(self.stop);
        if takes_effect && world.is_ledger_torn {
            world.ledger.pop();
            world.is_ledger_torn = false;
        }
        succeeds.then_some(()).ok_or_else(|| LedgerError { path: "memory".into(), error: refused() })
    }
}

fn spooled(first: u64, count: u64) -> (Result<Origin, Unreadable>, Vec<u8>) {
    let visit = "{\"received_at\":\"2022-12-19T14:16:49Z\",\"ip\":\"1.2.3.4\"}\n";
    let origin = Origin::Spool { producer: Uuid::nil(), first, count };
    (Ok(origin), visit.repeat(count as usize).into_bytes())
}

fn foreign(id: &str) -> (Result<Origin, Unreadable>, Vec<u8>) {
    (Ok(Origin::Foreign { message_id: Some(id.into()) }), spooled(1, 1).1)
}

fn messages() -> Vec<(Result<Origin, Unreadable>, Vec<u8>)> {
    let unreadable = (foreign("b").0, b"hello".to_vec());
    vec![spooled(1, 3), foreign("a"), unreadable, spooled(2, 4), foreign("a"), spooled(1, 3), spooled(9, 1)]
}

fn expected() -> BTreeMap<String, usize> {
    ["1", "2", "3", "4", "5", "9", "foreign"].into_iter().map(|name| (name.to_string(), 1)).collect()
}

/// Records until every message is acknowledged, through as many connections and processes as it takes.
/// With `keeps_torn` a ledger entry that was reported as failed survives its process.
fn live(faults: &[(usize, Fault)], keeps_torn: bool) -> World {
    let shared = Shared::default();
    shared.borrow_mut().faults = faults.to_vec();
    shared.borrow_mut().messages = messages()
        .into_iter()
        .map(|(origin, body)| Message { origin, body, acknowledged: false, dead_letters: 0 })
        .collect();
    let (metrics, health) = (Metrics::default(), Health::default());
    for _process in 0..4 {
        let stop = Stop::default();
        let mut written = Written::default();
        {
            let mut world = shared.borrow_mut();
            world.is_dead = false;
            if std::mem::take(&mut world.is_ledger_torn) && !keeps_torn {
                world.ledger.pop();
            }
            world.ledger.iter().for_each(|entry| written.apply(entry));
            if let Some(mark) = written.output() {
                world.output.truncate(mark.length as usize);
            }
        }
        let mut visit_log = MemoryLog { world: shared.clone(), stop: &stop, provisional_from: None };
        let mut ledger = MemoryLedger { world: shared.clone(), stop: &stop, written };
        let mut recorder = Recorder {
            format: LineFormat::Ndjson,
            visit_log: &mut visit_log,
            ledger: &mut ledger,
            metrics: &metrics,
            health: &health,
        };
        recorder.prepare(&stop).expect("the lock is not lost");
        while !stop.is_set() {
            let mut inbox =
                MemoryInbox { world: shared.clone(), stop: &stop, delivered: Vec::new(), batch: Vec::new() };
            match recorder.run(&mut inbox, &stop) {
                Ok(()) | Err(RecordError::Inbox(_)) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        if !shared.borrow().is_dead {
            break;
        }
    }
    Rc::into_inner(shared).expect("the ports are gone").into_inner()
}

#[test]
fn whichever_calls_fail_or_die_each_visit_is_written_once() {
    let calls = live(&[], false).calls;
    assert!(calls > 20, "{calls}");
    let singles = (1..=calls + 4).flat_map(|call| FAULTS.map(|fault| vec![(call, fault)]));
    let pairs = (1..=calls).flat_map(|call| {
        (1..=12).flat_map(move |later| {
            FAULTS
                .into_iter()
                .flat_map(move |first| FAULTS.map(|second| vec![(call, first), (call + later, second)]))
        })
    });
    for faults in singles.chain(pairs) {
        for keeps_torn in [false, true] {
            let world = live(&faults, keeps_torn);
            assert_eq!(world.visits(), expected(), "{faults:?} {keeps_torn}");
            assert!(world.messages.iter().all(|message| message.acknowledged), "{faults:?}");
            for (n, message) in world.messages.iter().enumerate() {
                assert_eq!(message.dead_letters, usize::from(n == 2), "{faults:?}: message {n}");
            }
        }
    }
}

/// A visit log over a fake disk, as [`crate::output::file::OutputFile`] is over a real one.
struct DiskLog(Tail);

impl DiskLog {
    /// As the first opening after a start does, what is behind the mark is cut off.
    fn open(disk: &FakeFile, mark: Option<Mark>) -> Self {
        let len = disk.len().expect("it has a length");
        if let Some(mark) = mark.filter(|mark| mark.length < len) {
            disk.set_len(mark.length).and_then(|()| disk.sync()).expect("the disk works");
        }
        DiskLog(Tail::new(Box::new(disk.clone())))
    }
}

fn failed(error: io::Error) -> VisitLogError {
    VisitLogError::Failed { path: "fake".into(), error }
}

fn mark(length: u64) -> Mark {
    Mark { device: 1, inode: 1, length }
}

impl VisitLog for DiskLog {
    fn check(&self) -> Result<(), VisitLogError> {
        Ok(())
    }
    fn begin(&mut self) -> Result<Mark, VisitLogError> {
        self.0.len().map(mark).map_err(failed)
    }
    fn append(&mut self, lines: &[u8]) -> Result<Mark, VisitLogError> {
        self.0.append(lines).map(mark).map_err(failed)
    }
    fn settle(&mut self) {
        self.0.settle();
    }
    fn retract(&mut self) -> Result<(), VisitLogError> {
        self.0.retract().map_err(failed)
    }
}

/// Records `batches` as far as the disks let it, each tried twice; returns which are acknowledged.
fn record(output: &FakeFile, ledger: &FakeFile, batches: &[Delivered], then: impl Fn()) -> Vec<bool> {
    let (metrics, health) = (Metrics::default(), Health::default());
    let opened = LedgerFile::over(PathBuf::from("fake"), Arc::new(ledger.clone()));
    let Ok(mut ledger) = opened else { return vec![false; batches.len()] };
    let mut visit_log = DiskLog::open(output, ledger.written().output());
    let mut recorder = Recorder {
        format: LineFormat::Ndjson,
        visit_log: &mut visit_log,
        ledger: &mut ledger,
        metrics: &metrics,
        health: &health,
    };
    let mut is_broken = false;
    let mut acknowledged = Vec::new();
    for batch in batches {
        let plan = recorder.plan(std::slice::from_ref(batch));
        let mut attempt = || recorder.write(&plan).is_ok();
        // One that fails twice is held for ever, and nothing behind it is taken.
        let mut is_written = !is_broken && (attempt() || attempt());
        if !is_broken && !is_written {
            then();
            is_written = attempt();
        }
        is_broken |= !is_written;
        acknowledged.push(is_written);
    }
    acknowledged
}

fn batches() -> Vec<Delivered> {
    let readable = messages().into_iter().filter(|(_, body)| body != b"hello");
    readable.map(|(origin, body)| Delivered { origin, body }).collect()
}

#[test]
fn whatever_the_disks_lose_each_visit_is_written_once() {
    let mut crashes = 0;
    for (output_operations, ledger_operations) in
        (0..16).map(|n| (n, u64::MAX)).chain((0..16).map(|n| (u64::MAX, n))).chain((0..16).map(|n| (n, n)))
    {
        let (output, ledger) = (FakeFile::default(), FakeFile::default());
        output.fail_after(output_operations);
        ledger.fail_after(ledger_operations);
        let acknowledged = record(&output, &ledger, &batches(), || ());
        let unacknowledged = || {
            let all = batches().into_iter().zip(&acknowledged);
            all.filter(|(_, acknowledged)| !**acknowledged).map(|(batch, _)| batch).collect::<Vec<_>>()
        };
        let case = format!("{output_operations} {ledger_operations}");
        let rest_is_written_once = |output: FakeFile, ledger: FakeFile, case: &str| {
            for again in [unacknowledged(), batches()] {
                let (output, ledger) = (output.kill(), ledger.kill());
                let recorded = record(&output, &ledger, &again, || ());
                assert!(recorded.iter().all(|written| *written), "{case}");
                assert_eq!(count(&output.crash(0).live()), expected(), "{case}");
                let written = crate::output::LedgerFile::over("fake".into(), Arc::new(ledger.crash(0)));
                let length = written.expect("a ledger").written().output().map(|mark| mark.length);
                assert_eq!(length, Some(output.live().len() as u64), "{case}");
            }
        };
        rest_is_written_once(output.kill(), ledger.kill(), &format!("{case} killed"));
        for kept_output in output.durable_len()..=output.live().len().max(output.durable_len()) {
            for kept_ledger in ledger.durable_len()..=ledger.live().len().max(ledger.durable_len()) {
                crashes += 1;
                let case = format!("{case}: {kept_output} bytes, {kept_ledger} of the ledger");
                rest_is_written_once(output.crash(kept_output), ledger.crash(kept_ledger), &case);
            }
        }
        // Killed first, and then the power goes before anything was synced again.
        rest_is_written_once(output.kill().crash(0), ledger.kill(), &format!("{case} output behind"));
    }
    assert!(crashes > 1000, "{crashes}");
}

#[test]
fn a_disk_that_heals_goes_on_where_it_failed() {
    for operations in 0..30 {
        let (output, ledger) = (FakeFile::default(), FakeFile::default());
        output.fail_after(operations);
        ledger.fail_after(operations);
        let heal = || {
            output.heal();
            ledger.heal();
        };
        let opened = record(&output, &ledger, &batches(), heal);
        if opened.contains(&false) {
            // Not even the ledger could be opened.
            heal();
            record(&output, &ledger, &batches(), || ());
        }
        assert_eq!(count(&output.crash(0).live()), expected(), "{operations}");
    }
}
