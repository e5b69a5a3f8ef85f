//! What was given for the settings, on the command line, in the environment and in a file, and what is wrong with it.
//!
//! Values are validated by hand and not by clap: so all that is wrong is said at once, an empty value counts as
//! absent, and a secret is never echoed.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

use super::config_file;
use super::process::Failure;
use super::settings::{CONFIG, Setting, unknown, unknown_in_file};

/// Adds groups of options to a command.
pub fn with_settings(command: Command, groups: &[&[&'static Setting]]) -> Command {
    let argument = |setting: &&'static Setting| {
        let argument = Arg::new(setting.flag)
            .long(setting.flag)
            .env(setting.variable)
            .hide_env_values(true)
            .default_value(setting.default)
            .hide_default_value(setting.default.is_empty())
            .value_name(setting.value)
            .help(setting.help);
        match setting.default {
            // By itself, the flag says that it is so.
            "false" => argument.num_args(0..=1).require_equals(true).default_missing_value("true"),
            _ => argument,
        }
    };
    let settings = groups.iter().flat_map(|group| group.iter());
    command.args(settings.map(argument)).arg(argument(&&CONFIG))
}

/// The command that says what counts, and why, and starts nothing.
pub fn check_command(groups: &[&[&'static Setting]]) -> Command {
    with_settings(Command::new("check"), groups)
        .about("Print every setting and where it is from, and name what is wrong; start nothing")
}

/// Does what [`check_command`] says, of the settings that `read` reads.
///
/// # Errors
/// As for [`Given::refuse_bad`].
pub fn check<T>(matches: &ArgMatches, read: impl FnOnce(&mut Given<'_>) -> T) -> Result<(), Failure> {
    let mut given = Given::new(matches);
    read(&mut given);
    given.show()
}

/// The value of a setting, unless it is a secret that somebody gave.
fn fit_to_show<'t>(setting: &Setting, text: &'t str, source: &Source) -> &'t str {
    if setting.is_secret && !matches!(source, Source::Default) { "***" } else { text }
}

/// Where a value comes from.
enum Source {
    Flag,
    Variable(String),
    File,
    Default,
}

/// The values that were given, and what is wrong with them.
pub struct Given<'a> {
    matches: &'a ArgMatches,
    // What the file of settings has, by variable.
    file: BTreeMap<String, String>,
    // What was read so far.
    read: Vec<(&'static Setting, String, Source)>,
    problems: Vec<String>,
}

impl<'a> Given<'a> {
    /// Nothing is wrong yet, but for what no program knows, and a file of settings that cannot be read.
    pub fn new(matches: &'a ArgMatches) -> Self {
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        let problems = names.filter_map(|name| unknown(&name)).collect();
        let mut given = Given { matches, file: BTreeMap::new(), read: Vec::new(), problems };
        let path = given.given(&CONFIG).map(|(path, _)| path);
        match path.as_deref().map_or(Ok(BTreeMap::new()), config_file::read) {
            Ok(file) => given.file = file,
            Err(problem) => given.note(&CONFIG, &problem),
        }
        let unknown: Vec<_> = given.file.keys().filter_map(|name| unknown_in_file(name)).collect();
        unknown.iter().for_each(|problem| given.note(&CONFIG, problem));
        given
    }

    /// What was given for a setting on the command line, or in the environment.
    fn given(&self, setting: &Setting) -> Option<(String, Source)> {
        let text = self.matches.get_one::<String>(setting.flag).filter(|text| !text.is_empty())?.clone();
        match self.matches.value_source(setting.flag)? {
            ValueSource::CommandLine => Some((text, Source::Flag)),
            ValueSource::EnvVariable => Some((text, Source::Variable(setting.variable.into()))),
            _ => None,
        }
    }

    /// The text that counts for a setting, and where it is from: the command line, the environment, the file of
    /// settings. Of a secret, each of the latter may name a file that has it. None where its default counts.
    fn text(&mut self, setting: &Setting) -> Option<(String, Source)> {
        let variable = format!("{}_FILE", setting.variable);
        let is_given = |text: &String| !text.is_empty();
        let mut given = self.given(setting);
        let path = std::env::var(&variable).ok().filter(is_given);
        let mut path = path.map(|path| (path, Source::Variable(variable.clone())));
        if given.is_none() && path.is_none() {
            let in_file =
                |name: &str| Some((self.file.get(name).filter(|text| is_given(text))?.clone(), Source::File));
            (given, path) = (in_file(setting.variable), in_file(&variable));
        }
        match (given, path.filter(|_| setting.is_secret)) {
            (Some(_), Some(_)) => {
                let problem = format!("{} and {variable} are given: one of them is enough", setting.variable);
                self.problems.push(problem);
                None
            }
            (given, None) => given,
            (None, Some((path, source))) => match fs::read_to_string(&path) {
                Ok(text) => Some((text.trim_end_matches(['\r', '\n']).into(), source)),
                Err(error) => {
                    self.problems.push(format!("{variable} is `{path}`: {error}"));
                    None
                }
            },
        }
    }

    /// Reads a setting. What is wrong with it is noted, and then its default is returned, which nobody uses:
    /// [`Given::refuse_bad`] comes first.
    pub(super) fn read<T, E: Display>(
        &mut self,
        setting: &'static Setting,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> T {
        let (text, source) = self.text(setting).unwrap_or((setting.default.into(), Source::Default));
        let outcome = read(&text);
        self.read.push((setting, text, source));
        outcome.unwrap_or_else(|problem| {
            self.note(setting, &problem);
            let default = read(setting.default);
            default.map_err(|error| error.to_string()).expect("a test reads every default")
        })
    }

    /// Reads a setting, and where nobody gave it, the variable `other`.
    pub(super) fn read_or<T, E: Display>(
        &mut self,
        setting: &'static Setting,
        other: &str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> T {
        let text = std::env::var(other).ok().filter(|text| !text.is_empty());
        let Some(text) = text.filter(|_| self.text(setting).is_none()) else {
            return self.read(setting, read);
        };
        match read(&text) {
            Ok(value) => {
                self.read.push((setting, text, Source::Variable(other.into())));
                value
            }
            Err(problem) => {
                self.problems.push(format!("{other} is `{text}`: {problem}"));
                self.read(setting, read)
            }
        }
    }

    /// Notes what is wrong with what others have named.
    pub(super) fn note_others(&mut self, problems: Vec<String>) {
        self.problems.extend(problems);
    }

    pub(super) fn note(&mut self, setting: &Setting, problem: &dyn Display) {
        let Setting { flag, variable, is_secret, .. } = setting;
        let read =
            self.read.iter().rev().find(|(read, ..)| read.flag == *flag).map(|(_, text, _)| text.clone());
        let value = read.or_else(|| self.given(setting).map(|(text, _)| text)).filter(|_| !is_secret);
        let shown = value.map(|value| format!(" is `{value}`")).unwrap_or_default();
        self.problems.push(format!("--{flag} ({variable}){shown}: {problem}"));
    }

    /// What counts for each setting, in a line for the log.
    pub fn effective(&self) -> String {
        let settings = self.read.iter().map(|(setting, text, source)| {
            let name = setting.variable.trim_start_matches("PIXEL_").to_lowercase();
            format!("{name}={}", fit_to_show(setting, text, source))
        });
        settings.collect::<Vec<_>>().join(" ")
    }

    /// Ends the reading by saying what counts for each setting, and why: for `check`.
    ///
    /// # Errors
    /// As for [`Given::refuse_bad`].
    #[expect(clippy::print_stdout, reason = "it is what was asked for")]
    fn show(self) -> Result<(), Failure> {
        for (setting, text, source) in &self.read {
            let text = fit_to_show(setting, text, source);
            let source = match source {
                Source::Flag => format!("--{}", setting.flag),
                Source::Variable(name) => name.clone(),
                Source::File => self.given(&CONFIG).map_or_else(String::new, |(path, _)| path),
                Source::Default => "default".into(),
            };
            println!("{} = {text}  # {source}", setting.variable);
        }
        self.refuse_bad()
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// Every problem in one text, where there is one.
    pub fn refuse_bad(self) -> Result<(), Failure> {
        match &self.problems[..] {
            [] => Ok(()),
            [problem] => Err(Failure::Settings(format!("bad setting {problem}"))),
            problems => Err(Failure::Settings(format!(
                "{} bad settings:\n  {}",
                problems.len(),
                problems.join("\n  ")
            ))),
        }
    }
}
