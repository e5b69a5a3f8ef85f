//! `pixel convert`: visits from one format to another, as a stream, with nothing lost that the target has a place for,
//! and a word about what it has none for.

mod columns;
mod csv;
mod file_format;
mod folders;
mod parquet;
mod sink;
mod sinks;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use clap::{Arg, ArgAction, ArgMatches, Command};

use self::csv::CsvFile;
use self::file_format::{Field, FileFormat};
use self::folders::{By, Files};
use self::parquet::ParquetFile;
use self::sink::Sink;
use self::sinks::sink;
use super::process::Failure;
use super::progress::Progress;
use super::visit_file::{FileProblem, STDIN, VisitFile};
use crate::visit::lines::{Numbered, ReadBack};

/// How many visits are read between two looks at how far it is.
const SHOW_EVERY: u64 = 4096;

/// The subcommand.
pub fn convert_command() -> Command {
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("convert")
        .about(
            "Convert files of visits: pipe, combined, vcombined, ndjson, csv and parquet, in either direction; gzip and \
             zstd are read as they are. What the target has no place for is named on stderr",
        )
        .arg(option("from", "FORMAT", "What the files are; unless given, what their first line is"))
        .arg(option("to", "FORMAT", "What to make of them").required(true))
        .arg(
            option("output", "PATH", "The file to make, or the folder for --by; standard output unless given")
                .value_parser(clap::value_parser!(PathBuf)),
        )
        .arg(option("by", "PERIOD", "A file for each day or hour of UTC, as in dt=2026-11-23/hour=14/visits.parquet"))
        .arg(
            Arg::new("skip-bad")
                .long("skip-bad")
                .action(ArgAction::SetTrue)
                .help("Leave lines out that are no visits, and name each on stderr, instead of ending at the first"),
        )
        .arg(
            Arg::new("files")
                .value_name("FILE")
                .num_args(0..)
                .value_parser(clap::value_parser!(PathBuf))
                .help("The files, in their order; standard input unless given, or for -"),
        )
}

/// What is to be done.
struct Job {
    from: Option<FileFormat>,
    to: FileFormat,
    by: By,
    output: Option<PathBuf>,
    files: Vec<PathBuf>,
    skips_bad: bool,
}

impl Job {
    fn read(matches: &ArgMatches) -> Result<Self, String> {
        let text = |name: &str| matches.get_one::<String>(name).map(String::as_str);
        let format = |name: &str| {
            let format = text(name).map(|text| text.parse::<FileFormat>().map_err(|why| (text, why)));
            format.transpose().map_err(|(text, why)| format!("--{name} is `{text}`: {why}"))
        };
        let by = match text("by") {
            None => By::All,
            Some("day") => By::Day,
            Some("hour") => By::Hour,
            Some(other) => return Err(format!("--by is `{other}`: expected day or hour")),
        };
        let mut files: Vec<PathBuf> = matches.get_many("files").into_iter().flatten().cloned().collect();
        if files.is_empty() {
            files.push(STDIN.into());
        }
        let output = matches.get_one::<PathBuf>("output").filter(|path| *path != Path::new(STDIN)).cloned();
        if by != By::All && output.is_none() {
            return Err("--by makes many files: name their folder with --output".into());
        }
        let to = format("to")?.ok_or("--to FORMAT is missing")?;
        Ok(Job { from: format("from")?, to, by, output, files, skips_bad: matches.get_flag("skip-bad") })
    }
}

/// Runs it.
///
/// # Errors
/// [`Failure::Settings`] for what it cannot be told, [`Failure::Runtime`] with the file and the line that is no visit, or
/// what the system said. No file has its name then that is not whole.
pub fn convert(matches: &ArgMatches) -> Result<(), Failure> {
    let job = Job::read(matches).map_err(Failure::Settings)?;
    let mut target = Target::open(&job)?;
    let mut tally = Tally { job: &job, visits: 0, bad: 0, lost: BTreeMap::new() };
    let sizes = job.files.iter().map(|path| fs::metadata(path).map_or(0, |metadata| metadata.len()));
    let mut progress = Progress::new("bytes", sizes.sum());
    let read = Rc::new(Cell::new(0));
    let mut shown = 0;
    for path in &job.files {
        let mut source = Source::open(path, job.from, &read)?;
        loop {
            let is_more = source.each(&mut |read_back| target.add(tally.note(read_back.numbered())));
            match is_more {
                Ok(true) => {}
                Ok(false) => break,
                Err(Stopped::Target(problem)) => return Err(problem.into()),
                Err(Stopped::Source(problem)) => tally.bad(problem)?,
            }
            if tally.visits.is_multiple_of(SHOW_EVERY) && job.files != [PathBuf::from(STDIN)] {
                progress.advance(read.get() - shown);
                shown = read.get();
            }
        }
    }
    target.finish()?;
    drop(progress);
    tally.show();
    Ok(())
}

/// Why there is no next visit.
enum Stopped {
    Source(FileProblem),
    Target(String),
}

/// A file that is read.
enum Source {
    Lines(VisitFile),
    Csv(CsvFile),
    Parquet(ParquetFile),
}

impl Source {
    fn open(path: &Path, format: Option<FileFormat>, read: &Rc<Cell<u64>>) -> Result<Self, Failure> {
        let opened = match format.or_else(|| by_name(path)) {
            None => VisitFile::open(path, None, read).map(Source::Lines),
            Some(FileFormat::Lines(format)) => VisitFile::open(path, Some(format), read).map(Source::Lines),
            Some(FileFormat::Csv) => CsvFile::open(path, read).map(Source::Csv),
            Some(FileFormat::Parquet) => ParquetFile::open(path, read).map(Source::Parquet),
        };
        opened.map_err(|problem| Failure::Runtime(problem.to_string()))
    }

    /// Tells `each` the next visit; `false` where there is none.
    fn each(&mut self, each: &mut dyn FnMut(&ReadBack<'_>) -> Result<(), String>) -> Result<bool, Stopped> {
        let next = match self {
            Source::Lines(file) => file.next_visit(),
            Source::Csv(file) => file.next_visit(),
            Source::Parquet(file) => file.next_visit(),
        };
        match next.map_err(Stopped::Source)? {
            Some(visit) => each(&visit).map(|()| true).map_err(Stopped::Target),
            None => Ok(false),
        }
    }
}

/// What has no lines of Pixel's is known by its name.
fn by_name(path: &Path) -> Option<FileFormat> {
    let name = path.to_string_lossy();
    let plain = name.strip_suffix(".gz").or(name.strip_suffix(".zst")).unwrap_or(&name);
    match plain.rsplit('.').next() {
        Some("csv") => Some(FileFormat::Csv),
        Some("parquet") => Some(FileFormat::Parquet),
        _ => None,
    }
}

/// Where the visits go.
enum Target {
    Stream(Box<dyn Sink>),
    Files(Box<Files>),
}

impl Target {
    fn open(job: &Job) -> Result<Self, Failure> {
        let Some(path) = &job.output else {
            if job.to == FileFormat::Parquet && io::stdout().is_terminal() {
                return Err(Failure::Settings(
                    "Parquet is nothing for a terminal: name a file with --output".into(),
                ));
            }
            let sink = sink(job.to, Box::new(io::stdout()));
            return Ok(Target::Stream(sink.map_err(|error| Failure::Runtime(error.to_string()))?));
        };
        Ok(Target::Files(Box::new(Files::new(path, job.by, job.to))))
    }

    fn add(&mut self, visit: Numbered<'_>) -> Result<(), String> {
        match self {
            Target::Stream(sink) => sink.add(visit).map_err(to_stdout),
            Target::Files(files) => files.add(visit),
        }
    }

    fn finish(self) -> Result<(), Failure> {
        match self {
            Target::Stream(sink) => sink.finish().and_then(|()| io::stdout().flush()).map_err(to_stdout)?,
            Target::Files(files) => drop(files.finish()?),
        }
        Ok(())
    }
}

fn to_stdout(error: io::Error) -> String {
    format!("failed to write to standard output: {error}")
}

/// What was done, and what was lost.
struct Tally<'a> {
    job: &'a Job,
    visits: u64,
    bad: u64,
    lost: BTreeMap<Field, u64>,
}

impl Tally<'_> {
    fn note<'v>(&mut self, visit: Numbered<'v>) -> Numbered<'v> {
        self.visits += 1;
        for field in self.job.to.lacks().iter().filter(|field| field.is_in(visit)) {
            *self.lost.entry(*field).or_default() += 1;
        }
        visit
    }

    fn bad(&mut self, problem: FileProblem) -> Result<(), Failure> {
        // Behind what is wrong with the file as a whole there is no next line.
        if !self.job.skips_bad || problem.line.is_none() {
            return Err(Failure::Runtime(problem.to_string()));
        }
        self.bad += 1;
        eprintln!("{problem}");
        Ok(())
    }

    fn show(&self) {
        let lost: Vec<String> =
            self.lost.iter().map(|(field, count)| format!("{} ({count})", field.name())).collect();
        let (visits, bad) = (self.visits, self.bad);
        eprint!("{visits} visits converted");
        if bad > 0 {
            eprint!(", {bad} bad lines left out");
        }
        if !lost.is_empty() {
            eprint!("; the target has no place for {}", lost.join(", "));
        }
        eprintln!();
    }
}
