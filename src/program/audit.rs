//! `pixel audit`: proves from the bytes what was written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Serialize;
use uuid::Uuid;

use super::options::{Given, OutputSettings};
use super::process::Failure;
use super::progress::bar;
use crate::disk::sibling;
use crate::limits::raise_open_files_max;
use crate::output::{FileAudit, LedgerContent, Verdict, read_ledger, verify};
use crate::record::{Audit, FileRecord, InSpool, Mark, Sequences, Written};
use crate::spool::{Waiting, waiting};

/// Everything that the audit found.
#[derive(Serialize)]
struct Report {
    /// Whether everything is proved that was to be.
    proved: bool,
    /// Whether files were left out.
    quick: bool,
    /// Why, where they were.
    #[serde(skip)]
    unread: &'static str,
    /// Whether the output was written before its ledger began, so that numbers before a producer's first prove nothing.
    began_late: bool,
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
            "Prove what was written: read the ledger, those of the output's shards, and every file that they name, \
             rotated and compressed ones included, and compare lengths, lines and checksums; per producer, name the visits that are written, waiting \
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
                .help(
                    "Files that were moved away from the output's folder. One that has a ledger beside it is an output \
                     by itself, as of storages on two machines: those are proved together",
                ),
        )
}

/// Runs it.
///
/// # Errors
/// [`Failure::Reported`] where something is not proved, [`Failure::Settings`] where something cannot be read.
#[expect(clippy::print_stdout, reason = "the report is what it is asked for")]
pub fn audit(matches: &ArgMatches) -> Result<(), Failure> {
    // Whatever may be one of the files is open at once.
    raise_open_files_max();
    let mut given = Given::new(matches);
    let output = OutputSettings::read(&mut given);
    given.refuse_bad()?;
    let is_stdout = output.path.is_none();
    let paths = |name: &str| -> Vec<PathBuf> {
        matches.get_many::<PathBuf>(name).into_iter().flatten().cloned().collect()
    };
    // First the spools: what they have passed on by now, a running Pixel has written when its ledger is read.
    let mut spools = BTreeMap::new();
    for folder in paths("spool-dir") {
        let found = waiting(&folder).map_err(|error| {
            Failure::Settings(format!("failed to read the spool `{}`: {error}", folder.display()))
        })?;
        spools.extend(found.into_iter().map(|spool| (spool.producer, in_spool(&spool))));
    }
    let mut elsewhere = BTreeMap::new();
    for path in paths("with") {
        let other = ledger_of(&path)?;
        let numbers = other.written.spools().iter().map(|(id, spooled)| (*id, spooled.written.clone()));
        add(&mut elsewhere, numbers);
    }
    let (others, moved): (Vec<PathBuf>, Vec<PathBuf>) =
        paths("files").into_iter().partition(|path| sibling(path, "ledger").is_file());
    let outputs = ledgers(output, &others)?;
    let written: Vec<&Written> = outputs.iter().map(|(_, ledger)| &ledger.written).collect();
    let numbers = Audit::of(&written, &spools, &elsewhere);
    // What standard output was given is not there to be read.
    let unread = if is_stdout { "standard output" } else { "--quick" };
    let quick = matches.get_flag("quick") || is_stdout;
    let mut files = Vec::new();
    for (output, ledger) in outputs.iter().filter(|_| !quick) {
        if ledger.lacking > 0 {
            return Err(Failure::Settings(format!(
                "`{}.files` lacks {} records of rotated files: those cannot be checked",
                output.ledger.display(),
                ledger.lacking
            )));
        }
        if let Some(path) = &output.path {
            files.extend(read_files(path, &moved, &output.ledger, ledger)?);
        }
    }
    let is_well = |file: &FileAudit| match file.verdict {
        Verdict::Verified | Verdict::Removed { .. } => true,
        Verdict::Missing => matches.get_flag("ignore-missing"),
        _ => false,
    };
    let unreadable = files.iter().find_map(|file| match &file.verdict {
        Verdict::Unreadable { error } => Some(format!("failed to read `{}`: {error}", file.path.display())),
        _ => None,
    });
    let proved = numbers.missing + numbers.twice == 0 && files.iter().all(is_well);
    let began_late = written.iter().any(|written| written.began_late());
    let report = Report { proved, quick, unread, began_late, files, numbers };
    if matches.get_flag("json") {
        println!("{}", serde_json::to_string(&report).map_err(|error| error.to_string())?);
    } else {
        print!("{report}");
    }
    match unreadable {
        Some(problem) => Err(Failure::Settings(problem)),
        None if proved => Ok(()),
        None => Err(Failure::Reported),
    }
}

/// The output with its ledger, and its shards that have one; the same of `others`. Where nobody says what the output
/// is, they are all.
fn ledgers(
    output: OutputSettings,
    others: &[PathBuf],
) -> Result<Vec<(OutputSettings, LedgerContent)>, Failure> {
    let others = others.iter().map(|path| output.beside(path));
    let own = Some(output.clone()).filter(|output| others.len() == 0 || !output.is_default);
    let mut outputs: Vec<OutputSettings> = Vec::new();
    for output in own.into_iter().chain(others) {
        // A folder that cannot be read is told by the ledger in it.
        let shards = output.shards().unwrap_or_default();
        if shards.is_empty() || output.ledger.exists() {
            outputs.push(output);
        }
        outputs.extend(shards);
    }
    // The same one may be named twice.
    let mut known = BTreeSet::new();
    outputs.retain(|output| known.insert(output.ledger.canonicalize().unwrap_or(output.ledger.clone())));
    outputs.into_iter().map(|output| ledger_of(&output.ledger).map(|ledger| (output, ledger))).collect()
}

fn ledger_of(path: &Path) -> Result<LedgerContent, Failure> {
    read_ledger(path).map_err(|error| {
        Failure::Settings(format!("failed to read the ledger `{}`: {error}", path.display()))
    })
}

fn in_spool(spool: &Waiting) -> InSpool {
    let mut waiting = Sequences::default();
    spool.sequences.iter().for_each(|range| waiting.insert(range.clone()));
    InSpool { waiting, last: spool.next - 1 }
}

fn add(all: &mut BTreeMap<Uuid, Sequences>, new: impl Iterator<Item = (Uuid, Sequences)>) {
    for (producer, sequences) in new {
        let known = all.entry(producer).or_default();
        sequences.runs().for_each(|(first, last)| known.insert(first..=last));
    }
}

/// Reads every file of the ledger at `path`, with a progress bar on a terminal.
fn read_files(
    output: &Path,
    others: &[PathBuf],
    path: &Path,
    ledger: &LedgerContent,
) -> Result<Vec<FileAudit>, Failure> {
    let records = ledger.closed.iter().chain(ledger.written.files().values());
    let records: Vec<_> = records.filter(|record| record.bytes() > 0).collect();
    let bar = bar("bytes", 0);
    let may_repeat = |record: &FileRecord, at: u64| !may_be_on_its_way(&ledger.written, record.id, at);
    let show = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let files = verify(output, others, &records, &|| ledger.removed_by_now(path), &may_repeat, &show);
    bar.finish_and_clear();
    files.map_err(|error| {
        Failure::Settings(format!("failed to read what is beside `{}`: {error}", output.display()))
    })
}

/// Whether a line at this place may be one of a batch that is not committed, and the same as another visit's: times in
/// the combined log format are whole seconds.
fn may_be_on_its_way(written: &Written, file: u64, at: u64) -> bool {
    let is_behind = |mark: &Mark| mark.file == file && mark.format.has_whole_seconds() && at >= mark.length;
    written.mark().is_some_and(is_behind) || written.claims().iter().any(|claims| is_behind(&claims.mark))
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (removed, files): (Vec<&FileAudit>, Vec<_>) =
            self.files.iter().partition(|file| matches!(file.verdict, Verdict::Removed { .. }));
        if !removed.is_empty() {
            let lines = counted(removed.iter().map(|file| file.lines).sum(), "line");
            let files = counted(removed.len() as u64, "file");
            writeln!(formatter, "{files} removed as PIXEL_KEEP has it; {lines} of Pixel's")?;
        }
        for file in files {
            let mut verdict = match &file.verdict {
                Verdict::Verified if file.is_compressed => "compressed (verified)".to_string(),
                Verdict::Verified => "verified".to_string(),
                Verdict::Damaged { at } => format!("damaged at byte {at}"),
                Verdict::Shortened { length } => format!("shortened to {}", counted(*length, "byte")),
                Verdict::Repeated { at, copies } => {
                    format!("repeated at byte {at}, {} of Pixel's twice", counted(*copies, "line"))
                }
                Verdict::Missing => "missing".to_string(),
                Verdict::Removed { at } => format!("removed at {at}"),
                Verdict::Unreadable { error } => format!("unreadable ({error})"),
            };
            if file.foreign_bytes > 0 && file.verdict == Verdict::Verified {
                write!(verdict, ", {}", counted(file.foreign_bytes, "foreign byte"))?;
            }
            let (lines, bytes) = (counted(file.lines, "line"), counted(file.bytes, "byte"));
            writeln!(formatter, "{}: {verdict}; {lines}, {bytes} of Pixel's", file.path.display())?;
        }
        if self.began_late {
            writeln!(
                formatter,
                "the output was older than its ledger: of visits before a producer's first, nothing is known"
            )?;
        }
        write!(formatter, "{}", self.numbers)?;
        if self.quick {
            writeln!(formatter, "no file was read ({})", self.unread)?;
        }
        match self.proved {
            _ if self.numbers.is_empty() => Ok(()),
            true if self.quick => Ok(()),
            true => writeln!(formatter, "proved"),
            false => writeln!(formatter, "not proved"),
        }
    }
}
