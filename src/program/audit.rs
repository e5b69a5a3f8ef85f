//! `pixel audit`: proves from the bytes what was written.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use uuid::Uuid;

use super::options::{Given, OutputSettings};
use super::process::Failure;
use crate::disk::sibling;
use crate::output::{FileAudit, LedgerContent, Verdict, bytes_to_read, read_ledger, verify};
use crate::record::{Audit, Sequences};
use crate::spool::waiting;

/// Everything that the audit found.
#[derive(Serialize)]
struct Report {
    /// Whether everything is proved that was to be.
    proved: bool,
    /// Whether files were left out.
    quick: bool,
    files: Vec<FileAudit>,
    #[serde(flatten)]
    numbers: Audit,
}

/// Adds what the subcommand takes beside the output.
pub fn with_arguments(command: Command) -> Command {
    let path = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help).value_parser(clap::value_parser!(PathBuf))
    };
    command
        .about(
            "Prove what was written: read the ledger and every file that it names, rotated and compressed ones \
             included, and compare lengths, lines and checksums; per producer, name the visits that are written, waiting \
             and missing. Exit status 0 proved, 1 not, 2 could not be read",
        )
        .arg(
            path("spool-dir", "FOLDER", "A spool: what waits in it is no gap").action(ArgAction::Append),
        )
        .arg(
            path("with", "LEDGER", "The ledger of another output of the same spools: what it has is no gap")
                .action(ArgAction::Append),
        )
        .arg(
            Arg::new("ignore-missing")
                .long("ignore-missing")
                .action(ArgAction::SetTrue)
                .help("Files that are gone prove nothing, and disprove nothing: for those that rotation has removed"),
        )
        .arg(
            Arg::new("quick")
                .long("quick")
                .action(ArgAction::SetTrue)
                .help("Read the ledger alone, no file"),
        )
        .arg(
            Arg::new("json").long("json").action(ArgAction::SetTrue).help("One JSON object, for machines"),
        )
        .arg(
            Arg::new("files")
                .value_name("FILE")
                .num_args(0..)
                .value_parser(clap::value_parser!(PathBuf))
                .help("Files that were moved away from the output's folder"),
        )
}

/// Runs it.
///
/// # Errors
/// [`Failure::Reported`] where something is not proved, [`Failure::Settings`] where something cannot be read.
#[expect(clippy::print_stdout, reason = "the report is what it is asked for")]
pub fn audit(matches: &ArgMatches) -> Result<(), Failure> {
    let mut given = Given::new(matches);
    let output = OutputSettings::read(&mut given);
    given.refuse_bad()?;
    let paths = |name: &str| -> Vec<PathBuf> {
        matches.get_many::<PathBuf>(name).into_iter().flatten().cloned().collect()
    };
    let ledger = ledger_of(&sibling(&output.path, "ledger"))?;
    let mut elsewhere = BTreeMap::new();
    for path in paths("with") {
        let other = ledger_of(&path)?;
        let numbers = other.written.spools().iter().map(|(id, spooled)| (*id, spooled.written.clone()));
        add(&mut elsewhere, numbers);
    }
    let mut waits = BTreeMap::new();
    for folder in paths("spool-dir") {
        let found = waiting(&folder).map_err(|error| {
            Failure::Settings(format!("failed to read the spool `{}`: {error}", folder.display()))
        })?;
        add(&mut waits, found.into_iter().map(|one| (one.producer, numbers_of(&one.sequences))));
    }
    let numbers = Audit::of(&ledger.written, &waits, &elsewhere);
    let quick = matches.get_flag("quick");
    if ledger.lacking > 0 && !quick {
        return Err(Failure::Settings(format!(
            "`{}.files` lacks {} records of rotated files: those cannot be checked",
            sibling(&output.path, "ledger").display(),
            ledger.lacking
        )));
    }
    let files = if quick { Vec::new() } else { read_files(&output.path, &paths("files"), &ledger)? };
    let is_well = |file: &FileAudit| match file.verdict {
        Verdict::Verified => true,
        Verdict::Missing => matches.get_flag("ignore-missing"),
        _ => false,
    };
    if let Some(FileAudit { path, verdict: Verdict::Unreadable { error }, .. }) =
        files.iter().find(|file| matches!(file.verdict, Verdict::Unreadable { .. }))
    {
        return Err(Failure::Settings(format!("failed to read `{}`: {error}", path.display())));
    }
    let report = Report { proved: numbers.missing == 0 && files.iter().all(is_well), quick, files, numbers };
    if matches.get_flag("json") {
        println!("{}", serde_json::to_string(&report).map_err(|error| error.to_string())?);
    } else {
        print!("{report}");
    }
    if report.proved { Ok(()) } else { Err(Failure::Reported) }
}

fn ledger_of(path: &Path) -> Result<LedgerContent, Failure> {
    read_ledger(path).map_err(|error| {
        Failure::Settings(format!("failed to read the ledger `{}`: {error}", path.display()))
    })
}

fn numbers_of(ranges: &[std::ops::RangeInclusive<u64>]) -> Sequences {
    let mut numbers = Sequences::default();
    ranges.iter().for_each(|range| numbers.insert(range.clone()));
    numbers
}

fn add(all: &mut BTreeMap<Uuid, Sequences>, new: impl Iterator<Item = (Uuid, Sequences)>) {
    for (producer, sequences) in new {
        let known = all.entry(producer).or_default();
        sequences.runs().for_each(|(first, last)| known.insert(first..=last));
    }
}

/// Reads every file, with a progress bar on a terminal.
fn read_files(output: &Path, others: &[PathBuf], ledger: &LedgerContent) -> Result<Vec<FileAudit>, Failure> {
    let records: Vec<_> = ledger.closed.iter().chain(ledger.written.files().values()).collect();
    let records: Vec<_> = records.into_iter().filter(|record| record.bytes() > 0).collect();
    let failed = |error: io::Error| {
        Failure::Settings(format!("failed to read what is beside `{}`: {error}", output.display()))
    };
    let bar = match io::stderr().is_terminal() {
        true => ProgressBar::new(bytes_to_read(output, others).map_err(failed)?),
        false => ProgressBar::hidden(),
    };
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let files = verify(output, others, &records, &|bytes| bar.inc(bytes)).map_err(failed);
    bar.finish_and_clear();
    files
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for file in &self.files {
            let mut verdict = match &file.verdict {
                Verdict::Verified if file.is_compressed => "compressed (verified)".to_string(),
                Verdict::Verified => "verified".to_string(),
                Verdict::Damaged { at } => format!("damaged at byte {at}"),
                Verdict::Shortened { length } => format!("shortened to {length} bytes"),
                Verdict::Missing => "missing".to_string(),
                Verdict::Unreadable { error } => error.clone(),
            };
            if file.foreign_bytes > 0 && file.verdict == Verdict::Verified {
                write!(verdict, ", {} foreign bytes", file.foreign_bytes)?;
            }
            let FileAudit { path, lines, bytes, .. } = file;
            writeln!(formatter, "{}: {verdict}; {lines} lines, {bytes} bytes of Pixel's", path.display())?;
        }
        write!(formatter, "{}", self.numbers)?;
        if self.quick {
            writeln!(formatter, "no file was read (--quick)")?;
        }
        match self.proved {
            _ if self.numbers.is_empty() => Ok(()),
            true if self.quick => Ok(()),
            true => writeln!(formatter, "proved"),
            false => writeln!(formatter, "not proved"),
        }
    }
}
