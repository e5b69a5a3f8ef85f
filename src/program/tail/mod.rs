//! `pixel tail`: visits as they are written, whoever rotates the output meanwhile.

mod chosen;
mod follow;
mod growing;
mod shown;

use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use clap::{Arg, ArgAction, ArgMatches, Command};
use jiff::Timestamp;

use self::chosen::Chosen;
use self::follow::Followed;
use self::shown::Shown;
use super::options::{Given, OUTPUTS, OutputSettings, with_settings};
use super::output_files::FileToRead;
use super::process::Failure;
use super::visit_file::VisitFile;
use crate::visit::lines::{LineFormat, ReadBack};

/// How often it is looked whether more was written.
pub(super) const POLL: Duration = Duration::from_millis(100);

/// The subcommand.
pub fn tail_command() -> Command {
    with_settings(Command::new("tail"), &[OUTPUTS])
        .about(
            "Show visits as they are written, across rotations, aligned and in colour on a terminal: first the last ten, or \
             those since a time",
        )
        .arg(
            Arg::new("since").long("since").value_name("TIME").help(
                "First those that were received since then: a time such as 2026-11-23T14:00:00Z, or how long ago as in 10m, \
                 2h, 1d; rotated and compressed files are read, too",
            ),
        )
        .arg(Arg::new("grep").long("grep").value_name("FIELD=REGEX").action(ArgAction::Append).help(
            "Only those whose field, such as referrer, user_agent, ip or query, matches; of several, all have to",
        ))
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("One JSON object a visit, as in ndjson"))
        .arg(
            Arg::new("no-follow")
                .long("no-follow")
                .action(ArgAction::SetTrue)
                .help("End when all that is there is shown"),
        )
}

/// Runs it, until it is killed or nobody reads any more.
///
/// # Errors
/// What it was told that it cannot do, or what the system said of the files.
pub fn tail(matches: &ArgMatches) -> Result<(), Failure> {
    let mut given = Given::new(matches);
    let output = OutputSettings::read(&mut given);
    given.refuse_bad()?;
    let since = matches.get_one::<String>("since").map(|text| since(text, Timestamp::now())).transpose();
    let since = since.map_err(Failure::Settings)?;
    let chosen = Chosen::read(matches.get_many("grep").into_iter().flatten()).map_err(Failure::Settings)?;
    let mut view = View { chosen, shown: Shown::on_stdout(matches.get_flag("json")), format: None };
    let path = output.file()?;
    match show(path, since, matches.get_flag("no-follow"), &mut view) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.map_err(|error| format!("failed to follow `{}`: {error}", path.display()).into()),
    }
}

fn show(path: &Path, since: Option<Timestamp>, ends: bool, view: &mut View) -> io::Result<()> {
    // What is there by now is read from the files first; what comes is read from where they end.
    let mut followed = Followed::start(path)?;
    match since {
        None => followed.last_lines().iter().try_for_each(|line| view.line(line))?,
        Some(since) => {
            let from = SystemTime::from(since);
            for (found, file) in followed.rotated() {
                if found.modified >= from {
                    since_in(&file, since, view)?;
                }
            }
            followed.rewind();
            followed.new_lines(&mut |line| view.line_since(line, since))?;
        }
    }
    view.shown.flush()?;
    if ends {
        return Ok(());
    }
    loop {
        std::thread::sleep(POLL);
        followed.new_lines(&mut |line| view.line(line))?;
        view.shown.flush()?;
    }
}

/// Every line of an output, from its first rotated file on.
pub(super) struct EveryLine {
    followed: Followed,
}

impl EveryLine {
    /// Those of the output at `path`, which need not be there yet.
    ///
    /// # Errors
    /// What the system said of the file.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let mut followed = Followed::start(path)?;
        followed.rewind();
        Ok(EveryLine { followed })
    }

    /// Tells `each` those that were not told before.
    ///
    /// # Errors
    /// What the system said of a file, and what `each` returns.
    pub(super) fn new_lines(&mut self, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        self.followed.rotated_before(each)?;
        self.followed.new_lines(each)
    }
}

/// Shows what was received since then of a file that was rotated.
fn since_in(file: &FileToRead, since: Timestamp, view: &mut View) -> io::Result<()> {
    // One that is gone by now was compressed, or removed.
    let Ok(lines) = file.lines(&Rc::default()) else { return Ok(()) };
    let mut file = VisitFile::of_lines(&file.path, lines);
    loop {
        match file.next_visit() {
            Ok(Some(visit)) if visit.visit.received_at >= since => view.visit(&visit)?,
            Ok(Some(_)) => {}
            Ok(None) => return Ok(()),
            Err(problem) if problem.line.is_some() => {}
            Err(problem) => {
                let _ = writeln!(io::stderr(), "left out: {problem}");
                return Ok(());
            }
        }
    }
}

/// What is shown, and how.
struct View {
    chosen: Chosen,
    shown: Shown,
    format: Option<LineFormat>,
}

impl View {
    /// Shows a line; one that is no visit is somebody else's.
    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        self.line_since(line, Timestamp::MIN)
    }

    fn line_since(&mut self, line: &[u8], since: Timestamp) -> io::Result<()> {
        // Its format may be another from here on.
        let is_it = |format: &LineFormat| format.read(line).is_ok();
        self.format = self.format.filter(is_it).or_else(|| LineFormat::of_line(line)).or(self.format);
        match self.format.map(|format| format.read(line)) {
            Some(Ok(visit)) if visit.visit.received_at >= since => self.visit(&visit),
            _ => Ok(()),
        }
    }

    fn visit(&mut self, visit: &ReadBack<'_>) -> io::Result<()> {
        match self.chosen.includes(visit) {
            true => self.shown.show(visit),
            false => Ok(()),
        }
    }
}

/// Reads a time, or how long before `now`.
fn since(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let expected = || {
        format!(
            "--since is `{text}`: expected a time such as 2026-11-23T14:00:00Z, or how long ago as in 30s, 10m, 2h, 1d"
        )
    };
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let number = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let seconds = match &text[number.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(expected()),
    };
    let ago = number.parse::<u32>().ok().map(|number| Duration::from_secs(u64::from(number) * seconds));
    ago.and_then(|ago| now.checked_sub(ago).ok()).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    /// They were opened by name when their turn came, so that one was missed and another shown twice.
    #[test]
    fn rotated_files_whose_names_shift_while_they_are_read_are_each_read_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("visits.log");
        let number = |number: u32| folder.path().join(format!("visits.log.{number}"));
        for (age_s, path, line) in [(300, &number(2), "1\n"), (200, &number(1), "2\n"), (100, &path, "3\n")] {
            fs::write(path, line).expect("there is room");
            let file = File::options().write(true).open(path).expect("it is there");
            file.set_modified(SystemTime::now() - Duration::from_secs(age_s)).expect("it has a time");
        }
        let mut lines = EveryLine::of(&path).expect("it is there");
        let mut seen = Vec::new();
        for _ in 0..2 {
            let each = &mut |line: &[u8]| {
                if seen.is_empty() {
                    fs::rename(number(2), number(3))?;
                    fs::rename(number(1), number(2))?;
                    fs::rename(&path, number(1))?;
                    fs::write(&path, "4\n")?;
                }
                seen.push(String::from_utf8_lossy(line).trim_end().to_string());
                Ok(())
            };
            lines.new_lines(each).expect("it can be read");
        }
        assert_eq!(seen, ["1", "2", "3", "4"]);
    }

    #[test]
    fn a_time_is_one_or_how_long_ago() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().expect("a time");
        for (text, expected) in [
            ("2026-11-23T14:00:00Z", Some("2026-11-23T14:00:00Z")),
            ("2026-11-23T14:00:00+02:00", Some("2026-11-23T12:00:00Z")),
            ("90s", Some("2026-11-24T11:58:30Z")),
            ("10m", Some("2026-11-24T11:50:00Z")),
            ("2h", Some("2026-11-24T10:00:00Z")),
            ("1d", Some("2026-11-23T12:00:00Z")),
            ("yesterday", None),
            ("10", None),
            ("m", None),
            ("-1h", None),
            ("4294967295d", None),
        ] {
            let expected = expected.map(|time| time.parse().expect("a time"));
            assert_eq!(since(text, now).ok(), expected, "{text}");
        }
    }
}
