//! `pixel report`: what GoAccess makes of the visits. Pages are the referrers, as every visit asks for the same pixel;
//! campaigns are the `utm_…` parameters of the query, or of the page.
//!
//! GoAccess is given one format whatever the files have, each visit on a line that it can read.

use std::cell::Cell;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command as Program, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Arg, ArgMatches, Command};
use rustix::pipe::fcntl_setpipe_size;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use url::Url;

use super::options::{Given, OUTPUTS, OutputSettings, with_settings};
use super::output_files::{FileToRead, opened_files_of};
use super::process::Failure;
use super::progress::Progress;
use super::tail::{EveryLine, POLL};
use super::visit_file::VisitFile;
use crate::visit::lines::{LineFormat, Numbered};
use crate::visit::{Text, Visit};

const GOACCESS: &str = "goaccess";
/// How many visits are read between two looks at how far it is.
const SHOW_EVERY: u64 = 4096;
/// Linux gives no larger pipe to who is not root (/proc/sys/fs/pipe-max-size).
const PIPE_BYTES: usize = 1 << 20;
/// How many lines that are no visits are named.
const NAMED_MAX: u64 = 5;

/// The subcommand.
pub fn report_command() -> Command {
    with_settings(Command::new("report"), &[OUTPUTS])
        .about(
            "Make a report of files of visits with GoAccess: pages from the referrers, campaigns from utm_ parameters. Any \
             format, gzip and zstd as they are",
        )
        .arg(
            Arg::new("report")
                .long("report")
                .value_name("FILE")
                .default_value("report.html")
                .value_parser(clap::value_parser!(PathBuf))
                .help("What to make: .html, .json or .csv"),
        )
        .arg(
            Arg::new("live")
                .long("live")
                .value_name("ADDRESS:PORT")
                .value_parser(clap::value_parser!(SocketAddr))
                .conflicts_with("files")
                .help(
                    "Go on with what is written, across rotations, until it is killed: browsers that have the report open \
                     hear of it from GoAccess at this address (WebSocket), which they reach by the report's own host name",
                ),
        )
        .arg(
            Arg::new("files")
                .value_name("FILE")
                .num_args(0..)
                .value_parser(clap::value_parser!(PathBuf))
                .help("The files; the output and what of it was rotated unless given"),
        )
}

/// Runs it.
///
/// # Errors
/// What cannot be read, how to get GoAccess where it is not there, or what it said.
#[expect(clippy::print_stdout, reason = "the outcome is what it is asked for")]
pub fn report(matches: &ArgMatches) -> Result<(), Failure> {
    let mut given = Given::new(matches);
    let output = OutputSettings::read(&mut given);
    given.refuse_bad()?;
    let live = matches.get_one::<SocketAddr>("live").copied();
    let named = matches.get_many("files").into_iter().flatten().cloned();
    let mut files: Vec<FileToRead> = named.map(FileToRead::named).collect();
    if files.is_empty() && live.is_none() {
        let path = output.file()?;
        let found = opened_files_of(path);
        let found = found.map_err(|error| format!("failed to look for `{}`: {error}", path.display()))?;
        files.extend(found.into_iter().map(|(_, file)| file));
        if files.is_empty() {
            return Err(format!("there is no `{}`: name a file of visits", path.display()).into());
        }
    }
    let target = matches.get_one::<PathBuf>("report").expect("it has a default");
    let ending = target.extension().and_then(|ending| ending.to_str());
    if !matches!(ending, Some("html" | "json" | "csv")) {
        let name = target.display();
        return Err(Failure::Settings(format!(
            "--report is `{name}`: expected a file that ends in .html, .json or .csv"
        )));
    }
    if let Some(address) = live {
        if ending != Some("html") {
            return Err(Failure::Settings(format!(
                "--report is `{}`: what is live is a page, and ends in .html",
                target.display()
            )));
        }
        println!("`{}` is live; its data comes from {address}", target.display());
        let options = [
            "--real-time-html".into(),
            format!("--addr={}", address.ip()),
            format!("--port={}", address.port()),
        ];
        let stop = Arc::new(AtomicBool::new(false));
        [SIGTERM, SIGINT]
            .into_iter()
            .try_for_each(|signal| flag::register(signal, stop.clone()).map(drop))?;
        let path = output.file()?;
        return make(target, &options, |goaccess, mut stdin| {
            // One of the usual size is slower, no more.
            let _ = fcntl_setpipe_size(&stdin, PIPE_BYTES);
            follow(path, &mut stdin, &stop, || goaccess.try_wait().map(|ended| ended.is_some()))
        });
    }
    let visits = make(target, &[], |_, goaccess| feed(&files, goaccess))?;
    println!("{visits} visits in `{}`", target.display());
    Ok(())
}

/// Has GoAccess make the report of what `feed` writes to it; returns what that does.
fn make<T>(
    target: &Path,
    options: &[String],
    feed: impl FnOnce(&mut Child, ChildStdin) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut goaccess = Program::new(GOACCESS);
    goaccess.args([
        "-",
        "--log-format=VCOMBINED",
        "--no-global-config",
        "--no-progress",
        "--agent-list",
        "--output",
    ]);
    goaccess.arg(target).args(options).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = goaccess.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            "GoAccess is not here, which makes the report: `apt-get install goaccess` on Debian and \
                                Ubuntu, `brew install goaccess`, or https://goaccess.io/download"
                .to_string()
        }
        _ => format!("failed to start {GOACCESS}: {error}"),
    })?;
    let stdin = child.stdin.take().expect("it was piped");
    let fed = feed(&mut child, stdin);
    // Of a live report it goes on by itself.
    let is_told = !options.is_empty() && child.try_wait()?.is_none();
    if is_told {
        kill_process(Pid::from_child(&child), Signal::TERM).map_err(io::Error::from)?;
    }
    let ended = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&ended.stderr).trim().to_string();
    // It may be told before it listens to that, and then ends by it.
    let is_well = ended.status.success() || is_told && ended.status.signal() == Some(SIGTERM);
    match fed {
        fed if is_well => fed,
        // What it says tells more than that it does not listen.
        _ => Err(format!("{GOACCESS} ended with {}: {said}", ended.status).into()),
    }
}

/// Writes every visit as a line for GoAccess; returns how many they are.
fn feed(files: &[FileToRead], goaccess: impl Write) -> Result<u64, Failure> {
    let sizes = files.iter().map(|file| file.path.metadata().map_or(0, |metadata| metadata.len()));
    let mut progress = Progress::new("bytes", sizes.sum());
    let mut goaccess = BufWriter::new(goaccess);
    let read = Rc::new(Cell::new(0));
    let (mut visits, mut bad, mut shown, mut line) = (0_u64, 0_u64, 0, Vec::new());
    for file in files {
        let lines = file.lines(&read).map_err(|problem| problem.to_string())?;
        let mut file = VisitFile::of_lines(&file.path, lines);
        loop {
            match file.next_visit() {
                Ok(None) => break,
                Ok(Some(there)) => {
                    write_page(&there.visit, &mut line, &mut goaccess).map_err(failed)?;
                    visits += 1;
                }
                Err(problem) if problem.line.is_none() => return Err(problem.to_string().into()),
                Err(problem) => {
                    bad += 1;
                    if bad <= NAMED_MAX {
                        eprintln!("left out: {problem}");
                    }
                }
            }
            if visits.is_multiple_of(SHOW_EVERY) {
                progress.advance(read.get() - shown);
                shown = read.get();
            }
        }
    }
    goaccess.flush().map_err(failed)?;
    drop(progress);
    if bad > NAMED_MAX {
        eprintln!("left out: {} more lines that are no visits", bad - NAMED_MAX);
    }
    Ok(visits)
}

/// Writes every visit of the output at `path`, and each that comes, as a line for GoAccess until the word to stop is
/// given. GoAccess, of which `has_ended` tells, is to run for so long.
///
/// About once a second GoAccess takes what is in the pipe, and takes a part of a line for a whole one: so the pipe is made as
/// large as anybody may, and each line is written in one go, as it is shorter than PIPE_BUF.
fn follow(
    path: &Path,
    goaccess: &mut impl Write,
    stop: &AtomicBool,
    mut has_ended: impl FnMut() -> io::Result<bool>,
) -> Result<(), Failure> {
    let (mut format, mut line) = (None::<LineFormat>, Vec::new());
    let mut lines = EveryLine::of(path)?;
    while !stop.load(Ordering::Relaxed) {
        let read = lines.new_lines(&mut |written| {
            // What was rotated may be much.
            if stop.load(Ordering::Relaxed) {
                return Err(ErrorKind::Interrupted.into());
            }
            // Its format may be another from here on; a line that is no visit is somebody else's.
            format =
                format.filter(|format| format.read(written).is_ok()).or_else(|| LineFormat::of_line(written));
            match format.map(|format| format.read(written)) {
                Some(Ok(there)) => write_page(&there.visit, &mut line, goaccess),
                _ => Ok(()),
            }
        });
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        read?;
        if has_ended()? {
            return Err(Failure::Runtime(format!("{GOACCESS} has ended")));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Writes a visit as a line for GoAccess.
fn write_page(visit: &Visit<'_>, line: &mut Vec<u8>, goaccess: &mut impl Write) -> io::Result<()> {
    line.clear();
    let visit = as_page(visit);
    LineFormat::Vcombined.write(Numbered { visit: &visit, number: None }, line);
    goaccess.write_all(line)
}

fn failed(error: io::Error) -> Failure {
    Failure::Runtime(format!("failed to write to {GOACCESS}: {error}"))
}

/// The visit of a page, as a web server would have logged it: its host, its path, and as referrer the campaign.
fn as_page(visit: &Visit<'_>) -> Visit<'static> {
    let page = visit.referrer.as_ref().and_then(|text| Url::parse(text.as_str()).ok()).filter(Url::has_host);
    let mut as_page = Visit::new(visit.received_at, visit.ip);
    let owned = |text: &Option<Text<'_>>| text.as_ref().and_then(|text| Text::owned(text.as_str()));
    as_page.user_agent = owned(&visit.user_agent);
    match &page {
        Some(page) => {
            as_page.host = page.host_str().and_then(Text::owned);
            as_page.path = Text::owned(page.path());
            as_page.scheme = Text::owned(page.scheme());
        }
        None => {
            as_page.host = owned(&visit.host);
            as_page.path = owned(&visit.path).or(Text::new("/"));
        }
    }
    let queries = [visit.query.as_ref().map(Text::as_str), page.as_ref().and_then(Url::query)];
    as_page.referrer = queries.into_iter().flatten().find_map(campaign);
    as_page
}

/// The campaign of a query, as a referrer whose site is the source: `campaign://mail/autumn`.
fn campaign(query: &str) -> Option<Text<'static>> {
    let value = |wanted: &str| {
        let mut pairs = url::form_urlencoded::parse(query.as_bytes());
        pairs.find(|(name, value)| name == wanted && !value.is_empty()).map(|(_, value)| value.into_owned())
    };
    let (campaign, source) = (value("utm_campaign"), value("utm_source"));
    if campaign.is_none() && source.is_none() {
        return None;
    }
    let source = source.unwrap_or_else(|| "unknown".into());
    Text::owned(&format!("campaign://{source}/{}", campaign.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Takes lines, and tells after the first one that it is enough.
    struct Stopping<'a>(&'a AtomicBool, usize);

    impl Write for Stopping<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.store(true, Ordering::Relaxed);
            self.1 += 1;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Calls a function before the first line is taken.
    struct Shifting<F>(Option<F>, Vec<u8>);

    impl<F: FnOnce()> Write for Shifting<F> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.take().into_iter().for_each(|shift| shift());
            self.1.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// They were opened by name when their turn came, so that one was missed and another counted twice.
    #[test]
    fn files_whose_names_shift_while_they_are_read_are_each_read_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("visits.log");
        let number = |number: u32| folder.path().join(format!("visits.log.{number}"));
        for (path, agent) in [(&number(2), "oldest"), (&number(1), "older"), (&path, "newest")] {
            let line = format!("2026-11-23T10:00:00.0000000Z|null|{agent}|1.1.1.1\n");
            fs::write(path, line.repeat(500)).expect("there is room");
        }
        let files: Vec<FileToRead> = opened_files_of(&path)
            .expect("the folder can be read")
            .into_iter()
            .map(|(_, file)| file)
            .collect();
        let shift = || {
            fs::rename(number(2), number(3)).expect("it is there");
            fs::rename(number(1), number(2)).expect("it is there");
            fs::rename(&path, number(1)).expect("it is there");
        };
        let mut goaccess = Shifting(Some(shift), Vec::new());
        assert_eq!(feed(&files, &mut goaccess).map_err(|error| format!("{error:?}")), Ok(1500));
        let written = String::from_utf8(goaccess.1).expect("text");
        for agent in ["oldest", "older", "newest"] {
            assert_eq!(written.matches(&format!("\"{agent}\"")).count(), 500, "{agent}");
        }
    }

    /// It was not heard before all of them were read.
    #[test]
    fn the_word_to_stop_is_heard_while_rotated_files_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("visits.log");
        for name in ["visits.log", "visits.log.1", "visits.log.2"] {
            let line = "2026-11-23T10:00:00.0000000Z|null|curl/8|1.1.1.1\n";
            fs::write(folder.path().join(name), line.repeat(3)).expect("there is room");
        }
        let stop = AtomicBool::new(false);
        let mut goaccess = Stopping(&stop, 0);
        follow(&path, &mut goaccess, &stop, || Ok(false)).expect("it was told to stop");
        assert_eq!(goaccess.1, 1);
    }

    #[test]
    fn a_visit_is_one_of_the_page_that_shows_the_pixel() {
        let line = |referrer: Option<&'static str>, query: Option<&'static str>| {
            let mut visit = Visit::new(jiff::Timestamp::UNIX_EPOCH, [1, 2, 3, 4].into());
            visit.host = Text::new("px.example.com");
            visit.path = Text::new("/track");
            visit.referrer = referrer.and_then(Text::new);
            visit.query = query.and_then(Text::new);
            let mut line = Vec::new();
            let visit = as_page(&visit);
            LineFormat::Vcombined.write(Numbered { visit: &visit, number: None }, &mut line);
            let line = String::from_utf8(line).expect("ASCII");
            let words: Vec<&str> = line.split(' ').collect();
            [words[0], words[7], words[11]].join(" ")
        };
        for (referrer, query, expected) in [
            (None, None, r#"px.example.com:80 /track "-""#),
            (Some("https://example.com/a/b?c=d#e"), None, r#"example.com:443 /a/b "-""#),
            (Some("no URL"), Some("x=1"), r#"px.example.com:80 /track "-""#),
            (
                Some("https://example.com"),
                Some("utm_campaign=autumn&utm_source=mail"),
                r#"example.com:443 / "campaign://mail/autumn""#,
            ),
            (Some("http://example.com/?utm_source=ad"), Some("x"), r#"example.com:80 / "campaign://ad/""#),
            (None, Some("utm_campaign=a"), r#"px.example.com:80 /track "campaign://unknown/a""#),
        ] {
            assert_eq!(line(referrer, query), expected, "{referrer:?} {query:?}");
        }
    }
}
