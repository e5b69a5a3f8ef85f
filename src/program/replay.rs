//! `replay`: dead letters are brought back through the ordinary way.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::options::{
    BROKER, BrokerSettings, Given, LOGS, OUTPUTS, OutputSettings, SPOOL, SpoolSettings, log_settings,
    with_settings,
};
use super::process::{Failure, Process};
use super::progress::{Progress, tell};
use super::writer::Writer;
use crate::amqp::Broker;
use crate::metrics::Role;
use crate::output::read_ledger;
use crate::record::{DeadFiles, Forecast, Written, read_dead_file};
use crate::spool::Spool;
use crate::stop::Stop;

const DRY_RUN: &str = "dry-run";

/// The subcommand of `pixel`: the letters of its spool.
pub fn replay_command() -> Command {
    with_dry_run(with_settings(Command::new("replay"), &[SPOOL, OUTPUTS, LOGS])).about(
        "While Pixel is stopped, write the dead letters of its spool that can be read by now, each once; the others \
         stay where they are",
    )
}

/// The subcommand of pixel-storage: the letters of the broker.
pub fn replay_broker_command() -> Command {
    with_dry_run(with_settings(Command::new("replay"), &[BROKER, LOGS])).about(
        "Publish the dead letters to the queue again, once each; what still cannot be read comes back to them",
    )
}

fn with_dry_run(command: Command) -> Command {
    let dry_run = Arg::new(DRY_RUN).long(DRY_RUN).action(ArgAction::SetTrue);
    command.arg(dry_run.help("Only say what would happen"))
}

/// Records what can be read of the spool's dead letters.
///
/// # Errors
/// Bad settings, who holds the spool, or what the system said. What was not done yet is done by the next try.
#[expect(clippy::print_stdout, reason = "the outcome is what it is asked for")]
pub fn replay(matches: &ArgMatches) -> Result<(), Failure> {
    let mut given = Given::new(matches);
    let spool = SpoolSettings::read(&mut given);
    let output = OutputSettings::read(&mut given);
    let log = log_settings(&mut given);
    given.refuse_bad()?;
    let paths = dead_files(&spool);
    let bytes = paths.iter().map(|path| fs::metadata(path).map_or(0, |metadata| metadata.len())).sum();
    if bytes == 0 {
        println!("no dead letters in `{}`", spool.folder.display());
        return Ok(());
    }
    let mut progress = Progress::new("bytes of dead letters", bytes);
    if matches.get_flag(DRY_RUN) {
        let mut forecast = Forecast::new(written(&output.ledger)?);
        for path in &paths {
            let read = read_dead_file(path, |batch| {
                forecast.add(batch);
                progress.advance(batch.iter().map(|message| message.body.len() as u64).sum());
            });
            read.map_err(|error| format!("failed to read `{}`: {error}", path.display()))?;
        }
        print!("{forecast}");
        return Ok(());
    }
    let mut process = Process::start(Role::Embedded, &log)?;
    let spools = paths.iter().filter_map(|path| path.parent());
    let spools: Result<Vec<Spool>, _> =
        spools.map(|folder| Spool::open(folder, 1, spool.max_bytes)).collect();
    let spools = spools.map_err(|error| Failure::Runtime(error.to_string()))?;
    let is_stdout = output.path.is_none();
    let writer = Writer::new(output, &process);
    let metrics = process.metrics.clone();
    let mut letters = DeadFiles::new(paths, move |bytes| progress.advance(bytes), process.stop.clone());
    process.part("replay", move || {
        let recorded = writer.run(|recorder, stop| {
            recorder.prepare(stop)?;
            recorder.run(&mut letters, stop)
        });
        drop(spools);
        recorded
    })?;
    process.complete()?;
    let outcome = format!(
        "{} visits written, {} repetitions dropped, {} dead letters still cannot be read",
        metrics.written.get(),
        metrics.duplicate.get(),
        metrics.dead_lettered.get() + metrics.dead_lettered_visits.get()
    );
    tell(&outcome, is_stdout);
    Ok(())
}

/// The files of dead letters that there are: one of each slot.
fn dead_files(spool: &SpoolSettings) -> Vec<PathBuf> {
    let folders = match spool.slots {
        1 => vec![spool.folder.clone()],
        slots => (0..slots).map(|slot| spool.folder.join(slot.to_string())).collect(),
    };
    folders.iter().map(|folder| dead_letters(folder)).filter(|path| path.exists()).collect()
}

/// The file of the dead letters of the spool in `folder`.
pub fn dead_letters(folder: &Path) -> PathBuf {
    folder.join("dead.ndjson")
}

fn written(ledger: &Path) -> Result<Written, Failure> {
    match read_ledger(ledger) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failure::Runtime(format!("failed to read the ledger `{}`: {error}", ledger.display())))
        }
        Err(_) => Ok(Written::default()),
        Ok(content) => Ok(content.written),
    }
}

/// Publishes the dead letters of the broker to its queue again.
///
/// # Errors
/// Bad settings, or what the broker said. What was not done yet is done by the next try.
pub fn replay_broker(matches: &ArgMatches) -> Result<(), Failure> {
    let mut given = Given::new(matches);
    let settings = BrokerSettings::read(&mut given);
    let log = log_settings(&mut given);
    given.refuse_bad()?;
    let mut process = Process::start(Role::Storage, &log)?;
    let is_dry = matches.get_flag(DRY_RUN);
    let stop = process.stop.clone();
    process.part("replay", move || {
        settings.all_shards().into_iter().try_for_each(|shard| {
            let queue = settings.queue_of(shard);
            let broker = settings.consuming(shard);
            replay_queue(broker, &queue, is_dry, &stop)
        })
    })?;
    process.complete()
}

#[expect(clippy::print_stdout, reason = "the outcome is what it is asked for")]
fn replay_queue(mut broker: Broker, queue: &str, is_dry: bool, stop: &Stop) -> Result<(), String> {
    let letters = broker.dead_letters().map_err(|error| error.to_string())?;
    let mut progress = Progress::new("dead letters", letters.count());
    if is_dry {
        let mut forecast = Forecast::default();
        letters.look(stop, |letter| {
            forecast.add(&[letter]);
            progress.advance(1);
        })?;
        print!("{forecast}");
    } else {
        let replayed = letters.replay(stop, || progress.advance(1))?;
        println!("{replayed} dead letters published to {queue} again");
    }
    Ok(())
}
