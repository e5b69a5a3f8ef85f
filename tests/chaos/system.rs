//! The whole system: programs that are started again when they end, brokers, load, and what was promised.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use amiquip::AmqpProperties;
use rustix::process::Signal;

use crate::Outcome;
use crate::support::admin::Admin;
use crate::support::broker::{Broker, Node};
use crate::support::faulty_disk::FaultyDisk;
use crate::support::launch::Launch;
use crate::support::load::{Load, next_number};
use crate::support::output::Output;
use crate::support::port::free_address;
use crate::support::program::{ADMIN, CONSUMING, Program};
use crate::support::proxy::Proxy;
use crate::support::stranger::Stranger;
use crate::support::wait::wait_until;
use crate::verdict::Verdict;

/// How long the system may take to work again after a fault, on a busy machine.
const RECOVERY_MAX: Duration = Duration::from_secs(180);
const QUEUE: &str = "chaos";
/// More than the output is likely to have when its inode number is stolen, or less.
const STRANGER_BYTES: usize = 100_000;

/// Which system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Embedded,
    Brokered,
    Cluster,
    /// Two queues, collectors that share a folder of slots, and one storage more than queues.
    Sharded,
    /// Storages with an output of their own each, of which one after the other takes the queue over.
    Moved,
}

/// A program that somebody looks after.
pub struct Slot {
    launch: Launch,
    program: Option<Program>,
    // What its earlier lives logged last.
    log: String,
}

impl Slot {
    fn new(launch: Launch) -> Slot {
        Slot { launch, program: None, log: String::new() }
    }

    /// Starts it, where it does not run.
    pub fn spawn(&mut self) -> Outcome {
        if self.program.as_mut().is_some_and(Program::runs) {
            return Ok(());
        }
        if let Some(ended) = self.program.take() {
            self.log = ended.log();
        }
        self.program = Some(self.launch.spawn()?);
        Ok(())
    }

    pub fn kill(&mut self) -> Outcome {
        match self.program.take() {
            Some(mut program) => {
                self.log = program.log();
                program.kill()
            }
            None => Ok(()),
        }
    }

    /// Ends it with SIGTERM; its exit status must be 0, unless it was ended by something else already.
    pub fn terminate(&mut self) -> Outcome {
        let Some(mut program) = self.program.take() else { return Ok(()) };
        if !program.runs() {
            self.log = program.log();
            return Ok(());
        }
        program.signal(Signal::TERM)?;
        let status = program.wait()?;
        self.log = program.log();
        // One that has just started may not listen for signals yet.
        if status == 0 || status == 128 + Signal::TERM.as_raw() && self.log.is_empty() {
            return Ok(());
        }
        Err(format!("it ended with {status} after SIGTERM:\n{}", self.log).into())
    }

    pub fn signal(&mut self, signal: Signal) {
        if let Some(program) = &self.program {
            // It may have ended already.
            let _ = program.signal(signal);
        }
    }

    fn log(&self) -> String {
        self.program.as_ref().map_or_else(|| self.log.clone(), Program::log)
    }
}

pub struct System {
    pub output: Output,
    pub faults: FaultyDisk,
    pub proxies: Vec<Proxy>,
    pub foreign_lines: usize,
    folder: tempfile::TempDir,
    broker: Option<Broker>,
    collector: Slot,
    // Has a slot beside the collector's.
    neighbour: Option<Slot>,
    writers: Vec<Slot>,
    // Those from which others have taken the queue over.
    former: Vec<Output>,
    mode: Mode,
    // Until the end.
    load: Option<Load>,
    rotated: Vec<PathBuf>,
    strangers: Vec<Stranger>,
    published: Vec<u64>,
}

impl System {
    pub fn start(mode: Mode) -> Outcome<System> {
        let folder = tempfile::tempdir()?;
        let faults = FaultyDisk::compile()?.ok_or("chaos needs a C compiler")?;
        let out = folder.path().join("out");
        fs::create_dir(&out)?;
        let output = Output::at(out.join("visits.log"));
        let broker = match mode {
            Mode::Embedded => None,
            Mode::Brokered | Mode::Sharded | Mode::Moved => Some(Broker::start()?),
            Mode::Cluster => Some(Broker::cluster(3)?),
        };
        let nodes = broker.iter().flat_map(|broker| &broker.nodes);
        let proxies: Vec<Proxy> = nodes.map(|node| Proxy::start(node.port)).collect();
        let urls: Vec<_> = proxies.iter().map(Proxy::url).collect();
        let address = free_address();
        let launch = |program| {
            let launch = Launch::new(program)?
                .with("output", &output.path)
                .with("format", "ndjson")
                .with("amqp-url", urls.join(","))
                .with("queue", QUEUE)
                .before(&faults.preload());
            Outcome::Ok(launch)
        };
        let (collector, writers) = match mode {
            Mode::Embedded => (launch("pixel")?, Vec::new()),
            Mode::Moved => (launch("pixel-http")?, vec![launch("pixel-storage")?]),
            Mode::Sharded => {
                let collector = launch("pixel-http")?.with("shards", "2").with("spool-slots", "2");
                let any = || Ok(launch("pixel-storage")?.with("shards", "2").with("shard", "auto"));
                let collector = collector.with("spool-dir", folder.path().join("slots"));
                (collector, (0..3).map(|_| any()).collect::<Outcome<_>>()?)
            }
            // The second stands by.
            _ => (launch("pixel-http")?, vec![launch("pixel-storage")?, launch("pixel-storage")?]),
        };
        let mut system = System {
            output,
            proxies,
            foreign_lines: 0,
            broker,
            neighbour: (mode == Mode::Sharded).then(|| Slot::new(collector.clone())),
            collector: Slot::new(collector.with("listen", address.to_string())),
            former: Vec::new(),
            mode,
            writers: writers.into_iter().map(Slot::new).collect(),
            load: Some(Load::paced(address, 6, Duration::from_millis(10))),
            rotated: Vec::new(),
            strangers: Vec::new(),
            published: Vec::new(),
            faults,
            folder,
        };
        system.spawn_all()?;
        system.comes_back()?;
        if let Some(broker) = &system.broker {
            let queues = if mode == Mode::Sharded { &["chaos.0", "chaos.1"][..] } else { &[QUEUE] };
            queues.iter().try_for_each(|queue| broker.wait_until_durable(queue))?;
        }
        Ok(system)
    }

    pub fn program(&mut self, number: usize) -> &mut Slot {
        let mut all: Vec<&mut Slot> = self.all().collect();
        let place = number % all.len();
        all.swap_remove(place)
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Slot> {
        std::iter::once(&mut self.collector).chain(&mut self.neighbour).chain(&mut self.writers)
    }

    pub fn kill_all(&mut self) -> Outcome {
        self.all().try_for_each(Slot::kill)
    }

    pub fn spawn_all(&mut self) -> Outcome {
        self.all().try_for_each(Slot::spawn)
    }

    pub fn signal_all(&mut self, signal: Signal) {
        self.all().for_each(|slot| slot.signal(signal));
    }

    pub fn node(&mut self, number: usize) -> &mut Node {
        let nodes = &mut self.broker.as_mut().expect("only a system with a broker has its faults").nodes;
        let place = number % nodes.len();
        &mut nodes[place]
    }

    pub fn folder(&self) -> &Path {
        self.output.path.parent().expect("the output is in a folder")
    }

    pub fn away(&self) -> PathBuf {
        self.folder.path().join("away")
    }

    /// Puts what the output holds elsewhere: to a file whose name ends with `end`. `put` returns whether it did.
    pub fn rotate(&mut self, end: &str, put: impl FnOnce(&Output, &Path) -> Outcome<bool>) -> Outcome {
        let old = self.output.beside(&format!(".{}{end}", self.rotated.len()));
        if self.output.path.exists() && put(&self.output, &old)? {
            self.rotated.push(old);
        }
        Ok(())
    }

    /// Ends the writers in order, rotates the output by a copy, and has another program's file get its inode number.
    pub fn have_inode_stolen(&mut self, beside: bool) -> Outcome {
        let writers = match self.writers.is_empty() {
            true => std::slice::from_mut(&mut self.collector),
            false => &mut self.writers,
        };
        for writer in writers {
            // One that is paused would not end.
            writer.signal(Signal::CONT);
            writer.terminate()?;
        }
        if !self.output.path.exists() {
            return Ok(());
        }
        let inode = fs::metadata(&self.output.path)?.ino();
        self.rotate("", |output, old| {
            fs::copy(&output.path, old)?;
            fs::remove_file(&output.path)?;
            Ok(true)
        })?;
        let name = format!(".stranger-{}", self.strangers.len());
        let path = if beside { self.output.beside(&name) } else { self.folder().join(name) };
        self.strangers.extend(Stranger::with_inode(inode, &path, STRANGER_BYTES)?);
        Ok(())
    }

    /// Kills the collector, whose visits wait for its neighbour to find them.
    pub fn strand(&mut self) -> Outcome {
        self.collector.kill()
    }

    /// Has a storage with another output take the queue over from one that is killed, or paused, and must end then.
    pub fn take_over(&mut self, is_paused: bool) -> Outcome {
        let folder = self.folder.path().join(format!("out{}", self.former.len() + 1));
        fs::create_dir(&folder)?;
        let output = Output::at(folder.join("visits.log"));
        let launch = self.writers[0].launch.clone().with("output", &output.path);
        match is_paused {
            true => self.writers[0].signal(Signal::STOP),
            false => self.writers[0].kill()?,
        }
        let mut new = Slot::new(launch.clone().with("takeover", "1"));
        new.spawn()?;
        if let Some(program) = &mut new.program {
            program.wait_for_log(CONSUMING)?;
        }
        new.launch = launch;
        let mut old = std::mem::replace(&mut self.writers[0], new);
        self.former.push(std::mem::replace(&mut self.output, output));
        old.signal(Signal::CONT);
        match old.program.as_mut().map(Program::wait).transpose()? {
            Some(0) => Err("it ended as if nothing had been taken from it".into()),
            _ => Ok(()),
        }
    }

    /// Runs `pixel audit` over all outputs that there were.
    fn audit(&self, arguments: &[&str]) -> Outcome<(i32, String)> {
        let former: Vec<_> = self.former.iter().map(|output| output.path.to_string_lossy()).collect();
        let arguments: Vec<&str> =
            arguments.iter().copied().chain(former.iter().map(|path| &**path)).collect();
        self.output.audit_says(&arguments)
    }

    /// The files that each visit is to be in once.
    fn files(&self) -> Outcome<Vec<PathBuf>> {
        let shards = (0..2).map(|n| self.output.path.with_file_name(format!("visits.{n}.log")));
        match self.mode {
            Mode::Sharded => Ok(shards.collect()),
            Mode::Moved => {
                // What was written and not acknowledged before a takeover is in two: as one, each once.
                let merged = self.folder.path().join("merged.log");
                let _ = fs::remove_file(&merged);
                let mut merge = Launch::new("pixel")?.argument("merge").argument("--into");
                for path in [&merged].into_iter().chain(self.outputs().map(|output| &output.path)) {
                    merge = merge.argument(&path.to_string_lossy());
                }
                match merge.run()? {
                    (0, ..) => Ok(vec![merged]),
                    (status, _, said) => Err(format!("the merge ended with {status}: {said}").into()),
                }
            }
            _ => Ok(self.rotated.iter().chain([&self.output.path]).cloned().collect()),
        }
    }

    /// Those that there were, and the one there is.
    fn outputs(&self) -> impl Iterator<Item = &Output> {
        self.former.iter().chain([&self.output]).filter(|output| output.path.exists())
    }

    /// Removes the ledger while its writer runs, and waits until it is there again.
    pub fn remove_ledger(&mut self) -> Outcome {
        self.spawn_all()?;
        // One that is paused would not write.
        self.signal_all(Signal::CONT);
        let ledger = self.output.ledger();
        let before = self.written()?;
        wait_until("a writer at work", || self.written().is_ok_and(|now| now > before))?;
        fs::remove_file(&ledger)?;
        wait_until("the ledger", || fs::metadata(&ledger).is_ok_and(|found| found.len() > 0))
    }

    /// Pauses the writer and removes its lock: whoever stands by takes over, and the paused one, woken up,
    /// must end without having written.
    pub fn remove_lock_of_paused(&mut self) -> Outcome {
        let active = self.writers.iter_mut().find(|slot| slot.log().contains(CONSUMING));
        let Some(program) = active.and_then(|slot| slot.program.as_mut()) else { return Ok(()) };
        // It may end at any time by itself.
        let _ = program.signal(Signal::STOP);
        let _ = fs::remove_file(self.output.beside(".lock"));
        std::thread::sleep(Duration::from_millis(1500));
        let _ = program.signal(Signal::CONT);
        program.wait().map(|_| ())
    }

    /// Publishes a visit as another client does, twice.
    pub fn publish(&mut self, properties: AmqpProperties) -> Outcome {
        let number = next_number();
        let visit = format!(
            r#"{{"received_at":"2022-12-19T14:16:49Z","ip":"192.168.1.1","path":"/track","query":"n={number}"}}"#
        );
        let broker = self.broker.as_ref().ok_or("no broker")?;
        for _ in 0..2 {
            let named = properties.clone().with_message_id(number.to_string()).with_delivery_mode(2);
            broker.publish(QUEUE, visit.as_bytes(), named)?;
        }
        self.published.push(number);
        Ok(())
    }

    /// How many visits were answered with 200, or confirmed to another client.
    pub fn accepted(&self) -> usize {
        self.load.as_ref().map_or(0, Load::count) + self.published.len()
    }

    /// How many visits the ledger knows.
    pub fn written(&self) -> Outcome<usize> {
        let report: serde_json::Value = serde_json::from_str(&self.audit(&["--json", "--quick"])?.1)?;
        let spooled = report["producers"].as_array().into_iter().flatten();
        let spooled = spooled.filter_map(|producer| producer["written"].as_u64()).sum::<u64>();
        Ok((spooled + report["foreign"]["written"].as_u64().unwrap_or(0)) as usize)
    }

    /// Starts again what has ended, as a supervisor does, and waits until visits are taken and written.
    pub fn comes_back(&mut self) -> Outcome {
        let until = Instant::now() + RECOVERY_MAX;
        let (accepted, mut written) = (self.accepted(), None);
        loop {
            self.spawn_all()?;
            std::thread::sleep(Duration::from_millis(200));
            if let Ok(now) = self.written() {
                let before = *written.get_or_insert(now);
                if now > before && self.accepted() > accepted + 20 && self.is_ready() {
                    return Ok(());
                }
            }
            if Instant::now() > until {
                return Err(format!("not well again after {} s", RECOVERY_MAX.as_secs()).into());
            }
        }
    }

    fn is_ready(&mut self) -> bool {
        self.all().all(|slot| {
            let Some(program) = &mut slot.program else { return false };
            program.runs()
                && program.log().contains(ADMIN)
                && program.admin().and_then(Admin::readiness).is_ok_and(|(status, _)| status == 200)
        })
    }

    pub fn logs(&mut self) -> String {
        self.all().map(|slot| format!("---\n{}\n", slot.log())).collect()
    }

    /// Ends the load, waits until all is written, ends the programs, and compares.
    pub fn end(mut self) -> Outcome<Verdict> {
        self.faults.end()?;
        self.spawn_all()?;
        let answers = self.load.take().ok_or("no load")?.stop();
        let refused: BTreeSet<u64> = answers.refused.into_iter().collect();
        let mut promised: BTreeSet<u64> = answers.promised.into_iter().collect();
        promised.extend(&self.published);
        let until = Instant::now() + RECOVERY_MAX;
        loop {
            let verdict = Verdict::of(&promised, &refused, &self.files()?)?;
            let drained = self.broker.is_none()
                || self.collector.program.as_mut().is_some_and(|program| {
                    program
                        .admin()
                        .and_then(|admin| admin.metric("pixel_spool_visits"))
                        .is_ok_and(|n| n == 0.0)
                });
            if verdict.lost.is_empty() && drained || Instant::now() > until {
                break;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        self.all().try_for_each(Slot::terminate)?;
        let mut verdict = Verdict::of(&promised, &refused, &self.files()?)?;
        verdict.foreign_lines_lost = self.foreign_lines - verdict.foreign_lines();
        let changes = self.strangers.iter().filter_map(|stranger| stranger.is_unchanged().err());
        verdict.strangers_changed = changes.map(|error| error.to_string()).collect();
        verdict.strangers = self.strangers.len();
        let (status, report) = self.audit(&[])?;
        verdict.audited =
            report.matches(": verified").count() + report.matches(": compressed (verified)").count();
        // What is in two outputs is no loss.
        let is_whole = |line: &str| !line.contains(" of Pixel's") || line.contains("verified");
        let is_well = self.mode == Mode::Moved && report.contains("no gap") && report.lines().all(is_whole);
        if status != 0 && !is_well {
            verdict.audit = Some(format!("exit status {status}: {report}"));
        }
        Ok(verdict)
    }
}
