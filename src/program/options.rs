//! The options of all programs: one row each, checked before anything starts.
//!
//! They are validated by hand and not by clap: so all that is wrong is said at once, an empty value counts as
//! absent, and a secret is never echoed.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

use super::config_file;
use super::logger::{LogFormat, LogSettings};
use super::process::Failure;
use crate::amqp::{AmqpUrl, QUEUE_NAME_MAX_BYTES};
use crate::disk::sibling;
use crate::http::ListenerSettings;
use crate::visit::client_ip::TrustedProxies;
use crate::visit::lines::LineFormat;

/// One option: a flag, and the environment variable that counts where the flag is absent.
#[derive(Debug)]
pub struct Setting {
    /// Without its two dashes.
    flag: &'static str,
    variable: &'static str,
    default: &'static str,
    /// Whether its value is kept out of every message.
    is_secret: bool,
    /// What stands for the value in `--help`.
    value: &'static str,
    help: &'static str,
}

macro_rules! settings {
    ($($name:ident: $flag:literal $variable:literal $default:literal $secrecy:ident $value:literal $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $name: Setting = Setting {
                flag: $flag,
                variable: $variable,
                default: $default,
                is_secret: settings!($secrecy),
                value: $value,
                help: $help,
            };
        )*
        static ALL: &[&Setting] = &[$(&$name),*];
    };
    (secret) => { true };
    (public) => { false };
}

settings! {
    LISTEN: "listen" "PIXEL_LISTEN" "127.0.0.1:8080" public "ADDRESS:PORT"
        "Address of the pixel";
    PATH: "path" "PIXEL_PATH" "/track" public "PATH"
        "Where the pixel is, with and without .gif: another name, for visitors whose filters know this one";
    WORKERS: "workers" "PIXEL_WORKERS" "4" public "NUMBER"
        "Threads that handle requests: at most one per core, at least two";
    TRUSTED_PROXIES: "trusted-proxies" "PIXEL_TRUSTED_PROXIES" "" public "CIDRS"
        "Proxies whose X-Forwarded-For or Forwarded is believed, as in 10.0.0.0/8,127.0.0.1";
    READ_TIMEOUT_MS: "read-timeout-ms" "PIXEL_READ_TIMEOUT_MS" "10000" public "MS"
        "A connection that says nothing for this long is closed";
    WRITE_TIMEOUT_MS: "write-timeout-ms" "PIXEL_WRITE_TIMEOUT_MS" "10000" public "MS"
        "A client that takes nothing of its answers for this long is given up";
    SPOOL_DIR: "spool-dir" "PIXEL_SPOOL_DIR" "pixel-data/spool" public "FOLDER"
        "Folder of the visits that are not written yet; one for each process";
    SPOOL_MAX_BYTES: "spool-max-bytes" "PIXEL_SPOOL_MAX_BYTES" "1073741824" public "BYTES"
        "Past this, visits are answered with 503 until older ones are written";
    SPOOL_SLOTS: "spool-slots" "PIXEL_SPOOL_SLOTS" "1" public "NUMBER"
        "How many processes may share the folder; each takes a free subfolder 0, 1, …";
    AMQP_URL: "amqp-url" "PIXEL_AMQP_URL" "amqp://guest:guest@127.0.0.1:5672/%2f" secret "URLS"
        "The broker; a comma-separated list is a cluster, tried in turn. amqps:// is TLS";
    QUEUE: "queue" "PIXEL_QUEUE" "pixel.visits" public "QUEUE"
        "The queue, and the exchange of the same name; its dead letters are in QUEUE.dead";
    OUTPUT: "output" "PIXEL_OUTPUT" "pixel-data/visits.log" public "FILE"
        "The file that visits are appended to";
    STATE_DIR: "state-dir" "PIXEL_STATE_DIR" "" public "FOLDER"
        "Where the output's lock and ledger are, the same for all who write it; beside it unless set";
    FORMAT: "format" "PIXEL_FORMAT" "pipe" public "FORMAT"
        "How a visit is written: pipe, combined (Apache's) or ndjson";
    ADMIN_LISTEN: "admin-listen" "PIXEL_ADMIN_LISTEN" "127.0.0.1:8081" public "ADDRESS:PORT"
        "Address of /healthz, /readyz and /metrics; not for the public";
    STORAGE_ADMIN_LISTEN: "admin-listen" "PIXEL_ADMIN_LISTEN" "127.0.0.1:8082" public "ADDRESS:PORT"
        "Address of /healthz, /readyz and /metrics; not for the public";
    CONFIG: "config" "PIXEL_CONFIG" "" public "FILE"
        "A file of settings (TOML): these variables' names without PIXEL_, as in listen = \"0.0.0.0:8080\"";
    LOG: "log" "PIXEL_LOG" "info" public "FILTER"
        "What is logged: error, warn, info, debug or trace; also by module, as in info,pixel::relay=debug. Where it is \
         unset, RUST_LOG is read";
    LOG_FORMAT: "log-format" "PIXEL_LOG_FORMAT" "text" public "FORMAT"
        "How: text, json (an object a line), or journal (for systemd, which adds the time)";
}

/// What [`HttpSettings`] is made of.
pub static HTTP: &[&Setting] =
    &[&LISTEN, &PATH, &WORKERS, &TRUSTED_PROXIES, &READ_TIMEOUT_MS, &WRITE_TIMEOUT_MS];
/// What [`SpoolSettings`] is made of.
pub static SPOOL: &[&Setting] = &[&SPOOL_DIR, &SPOOL_MAX_BYTES, &SPOOL_SLOTS];
/// What [`BrokerSettings`] is made of.
pub static BROKER: &[&Setting] = &[&AMQP_URL, &QUEUE];
/// What [`OutputSettings`] is made of.
pub static OUTPUTS: &[&Setting] = &[&OUTPUT, &STATE_DIR, &FORMAT];
/// The admin listener of the programs that take visits.
pub static ADMIN: &[&Setting] = &[&ADMIN_LISTEN];
/// The admin listener of pixel-storage.
pub static STORAGE_ADMIN: &[&Setting] = &[&STORAGE_ADMIN_LISTEN];
/// What [`log_settings`] reads.
pub static LOGS: &[&Setting] = &[&LOG, &LOG_FORMAT];

/// What Compose files and the edges read: not ours, and no mistake.
static OTHERS: &[&str] = &[
    "PIXEL_BIND",
    "PIXEL_CERTIFICATES",
    "PIXEL_DISCOVERY",
    "PIXEL_EDGE_CONNECTIONS_MAX",
    "PIXEL_EDGE_LISTEN",
    "PIXEL_EDGE_METRICS_LISTEN",
    "PIXEL_EDGE_RATE_MAX",
    "PIXEL_EDGE_TLS_LISTEN",
    "PIXEL_EDGE_TRUSTED_PROXIES",
    "PIXEL_GID",
    "PIXEL_IMAGES",
    "PIXEL_PUBLISH",
    "PIXEL_SITE",
    "PIXEL_TAG",
    "PIXEL_UID",
    "PIXEL_UPSTREAM",
    "PIXEL_UPSTREAM_NAME",
    "PIXEL_UPSTREAM_PORT",
    "PIXEL_VISITS",
];
/// How alike a name must be to be the one that was meant (Jaro-Winkler, from 0 to 1).
const ALIKE_MIN: f64 = 0.8;

/// The largest number of workers: each is a thread.
const WORKERS_MAX: u64 = 1024;
const TIMEOUT_MAX_MS: u64 = 3_600_000;
const SLOTS_MAX: u64 = 1024;
/// How long the admin listener waits for its clients.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Adds groups of options to a command.
pub fn with_settings(command: Command, groups: &[&[&'static Setting]]) -> Command {
    let argument = |setting: &&'static Setting| {
        Arg::new(setting.flag)
            .long(setting.flag)
            .env(setting.variable)
            .hide_env_values(true)
            .default_value(setting.default)
            .value_name(setting.value)
            .help(setting.help)
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
        let unknown = given.file.keys().filter_map(|name| unknown(name));
        given.problems.extend(unknown.collect::<Vec<_>>());
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

    /// The text that counts for a setting, and where it is from: the command line, the environment (of a secret, maybe
    /// the file that `<variable>_FILE` names), the file of settings. None where its default counts.
    fn text(&mut self, setting: &Setting) -> Option<(String, Source)> {
        let given = self.given(setting);
        let variable = format!("{}_FILE", setting.variable);
        let path = std::env::var_os(&variable).filter(|path| setting.is_secret && !path.is_empty());
        match (given, path) {
            (Some(_), Some(_)) => {
                let problem = format!("{} and {variable} are given: one of them is enough", setting.variable);
                self.problems.push(problem);
                None
            }
            (Some(given), None) => Some(given),
            (None, Some(path)) => match fs::read_to_string(&path) {
                Ok(text) => Some((text.trim_end_matches(['\r', '\n']).into(), Source::Variable(variable))),
                Err(error) => {
                    self.problems.push(format!("{variable} is `{}`: {error}", path.display()));
                    None
                }
            },
            (None, None) => {
                let text = self.file.get(setting.variable).filter(|text| !text.is_empty())?;
                Some((text.clone(), Source::File))
            }
        }
    }

    /// Reads a setting. What is wrong with it is noted, and then its default is returned, which nobody uses:
    /// [`Given::refuse_bad`] comes first.
    fn read<T, E: Display>(&mut self, setting: &'static Setting, read: impl Fn(&str) -> Result<T, E>) -> T {
        let (text, source) = self.text(setting).unwrap_or((setting.default.into(), Source::Default));
        let outcome = read(&text);
        self.read.push((setting, text, source));
        outcome.unwrap_or_else(|problem| {
            self.note(setting, &problem);
            let default = read(setting.default);
            default.map_err(|error| error.to_string()).expect("a test reads every default")
        })
    }

    fn note(&mut self, setting: &Setting, problem: &dyn Display) {
        let Setting { flag, variable, is_secret, .. } = setting;
        let read =
            self.read.iter().rev().find(|(read, ..)| read.flag == *flag).map(|(_, text, _)| text.clone());
        let value = read.or_else(|| self.given(setting).map(|(text, _)| text)).filter(|_| !is_secret);
        let shown = value.map(|value| format!(" is `{value}`")).unwrap_or_default();
        self.problems.push(format!("--{flag} ({variable}){shown}: {problem}"));
    }

    /// Ends the reading by saying what counts for each setting, and why: for `check`.
    ///
    /// # Errors
    /// As for [`Given::refuse_bad`].
    #[expect(clippy::print_stdout, reason = "it is what was asked for")]
    fn show(self) -> Result<(), Failure> {
        for (setting, text, source) in &self.read {
            let text = if setting.is_secret && !matches!(source, Source::Default) { "***" } else { text };
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

/// What is wrong with a variable's name: that it begins like ours, and is none.
fn unknown(name: &str) -> Option<String> {
    let is_file =
        |setting: &&&Setting| setting.is_secret && name.strip_suffix("_FILE") == Some(setting.variable);
    let is_known = ALL.iter().any(|setting| setting.variable == name)
        || ALL.iter().any(|setting| is_file(&setting))
        || OTHERS.contains(&name);
    let given = name.strip_prefix("PIXEL_").filter(|_| !is_known)?;
    let own = ALL.iter().map(|setting| setting.variable);
    let alike = own.map(|own| (strsim::jaro_winkler(given, own.trim_start_matches("PIXEL_")), own));
    let nearest = alike.max_by(|one, other| one.0.total_cmp(&other.0));
    let meant = nearest.filter(|(alike, _)| *alike >= ALIKE_MIN);
    let meant = meant.map(|(_, meant)| format!("; was {meant} meant?")).unwrap_or_default();
    Some(format!("{name}: there is no such variable{meant}"))
}

/// The public listener, whom it believes, and where the pixel is.
#[derive(Debug)]
pub struct HttpSettings {
    /// Its address, timeouts and workers, as many of them as [`HttpSettings::read`] lets it have.
    pub listener: ListenerSettings,
    /// Proxies whose X-Forwarded-For and Forwarded headers are trusted.
    pub proxies: TrustedProxies,
    /// The pixel's path, from a slash on; with `.gif` behind it, it is the pixel, too.
    pub path: String,
}

impl HttpSettings {
    /// Reads [`HTTP`]. Workers wait for nothing but the disk, and in turns: more of them than cores only make
    /// for smaller groups (two cores, three noisy rounds: two workers took 3 % fewer, 17 % and 46 % more visits
    /// than four).
    pub fn read(given: &mut Given<'_>) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
        let workers = given.read(&WORKERS, number(1, WORKERS_MAX));
        let timeout = |text: &str| number(100, TIMEOUT_MAX_MS)(text).map(Duration::from_millis);
        HttpSettings {
            listener: ListenerSettings {
                name: "http",
                listen: given.read(&LISTEN, address),
                workers: usize::try_from(workers).unwrap_or(usize::MAX).min(cores),
                read_timeout: given.read(&READ_TIMEOUT_MS, timeout),
                write_timeout: given.read(&WRITE_TIMEOUT_MS, timeout),
            },
            proxies: given.read(&TRUSTED_PROXIES, TrustedProxies::from_str),
            path: given.read(&PATH, pixel_path),
        }
    }
}

/// Where visits wait, and how many of them may.
#[derive(Debug)]
pub struct SpoolSettings {
    /// Its folder, or the folder of its slots.
    pub folder: PathBuf,
    /// The most that the journals of waiting visits may take, in bytes.
    pub max_bytes: u64,
    /// How many numbered spools share the folder; 1 for a folder of its own.
    pub slots: u32,
}

impl SpoolSettings {
    /// Reads [`SPOOL`].
    pub fn read(given: &mut Given<'_>) -> Self {
        let slots = given.read(&SPOOL_SLOTS, number(1, SLOTS_MAX));
        SpoolSettings {
            folder: given.read(&SPOOL_DIR, path),
            max_bytes: given.read(&SPOOL_MAX_BYTES, number(1, u64::MAX / 2)),
            slots: u32::try_from(slots).unwrap_or(u32::MAX),
        }
    }
}

/// A broker and a queue.
#[derive(Debug)]
pub struct BrokerSettings {
    /// The cluster's nodes, at least one.
    pub urls: Vec<AmqpUrl>,
    /// The queue's name, at most [`QUEUE_NAME_MAX_BYTES`] long; also the exchange's.
    pub queue: String,
}

impl BrokerSettings {
    /// Reads [`BROKER`].
    pub fn read(given: &mut Given<'_>) -> Self {
        let queue = |name: &str| {
            // RabbitMQ reserves names that start so.
            if name.starts_with("amq.") || name.len() > QUEUE_NAME_MAX_BYTES {
                return Err(format!(
                    "expected up to {QUEUE_NAME_MAX_BYTES} bytes that do not start with amq."
                ));
            }
            Ok(name.to_string())
        };
        BrokerSettings { urls: given.read(&AMQP_URL, AmqpUrl::list), queue: given.read(&QUEUE, queue) }
    }

    /// The nodes, fit to be shown.
    pub fn nodes(&self) -> String {
        self.urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// The file that visits are written to, and how.
#[derive(Debug)]
pub struct OutputSettings {
    /// A regular file, or one that is not there yet.
    pub path: PathBuf,
    /// The file that who writes it holds locked.
    pub lock: PathBuf,
    /// The file that says what is written.
    pub ledger: PathBuf,
    /// How a visit is written to it.
    pub format: LineFormat,
}

impl OutputSettings {
    /// Reads [`OUTPUTS`].
    pub fn read(given: &mut Given<'_>) -> Self {
        let output = given.read(&OUTPUT, path);
        // A link is not followed later on, either: what it names may be another program's.
        match output.symlink_metadata() {
            Ok(found) if found.is_symlink() => {
                given.note(
                    &OUTPUT,
                    &"it is a symbolic link, and those are not followed: name the file itself",
                );
            }
            Ok(found) if !found.is_file() => given.note(&OUTPUT, &"it is there, and is no regular file"),
            _ => {}
        }
        let state = match given.read(&STATE_DIR, path) {
            beside if beside.as_os_str().is_empty() => output.clone(),
            folder => folder.join(output.file_name().unwrap_or_default()),
        };
        OutputSettings {
            lock: sibling(&state, "lock"),
            ledger: sibling(&state, "ledger"),
            path: output,
            format: given.read(&FORMAT, LineFormat::from_str),
        }
    }

    /// Whether it is the one that is written to where none is named.
    pub fn is_default(&self) -> bool {
        self.path == Path::new(OUTPUT.default)
    }
}

/// The admin listener.
#[derive(Debug)]
pub struct AdminSettings {
    /// Its address, and how long it waits for its clients.
    pub(super) listener: ListenerSettings,
}

impl AdminSettings {
    /// Reads `setting`, which is [`ADMIN_LISTEN`] or [`STORAGE_ADMIN_LISTEN`].
    pub fn read(given: &mut Given<'_>, setting: &'static Setting) -> Self {
        let listener = ListenerSettings {
            name: "admin",
            listen: given.read(setting, address),
            workers: 1,
            read_timeout: ADMIN_TIMEOUT,
            write_timeout: ADMIN_TIMEOUT,
        };
        AdminSettings { listener }
    }
}

/// Reads [`LOGS`].
pub fn log_settings(given: &mut Given<'_>) -> LogSettings {
    LogSettings { filter: log_filter(given), format: given.read(&LOG_FORMAT, LogFormat::from_str) }
}

/// Reads [`LOG`], or where that is unset `RUST_LOG`.
fn log_filter(given: &mut Given<'_>) -> String {
    let general = std::env::var("RUST_LOG").ok().filter(|general| !general.is_empty());
    let Some(general) = general.filter(|_| given.text(&LOG).is_none()) else {
        return given.read(&LOG, filter);
    };
    if let Err(problem) = filter(&general) {
        given.problems.push(format!("RUST_LOG is `{general}`: {problem}"));
    }
    given.read.push((&LOG, general.clone(), Source::Variable("RUST_LOG".into())));
    general
}

fn filter(text: &str) -> Result<String, &'static str> {
    for directive in text.split('/').next().unwrap_or_default().split(',') {
        let (module, level) = directive.rsplit_once('=').unwrap_or(("", directive));
        let is_level = level.trim().parse::<log::LevelFilter>().is_ok();
        // A bare word is a module of env_logger's, too; but one such as `warning` was meant to be a level.
        let is_module = module.is_empty() && directive.contains("::");
        if !is_level && !is_module {
            return Err("expected a level (error, warn, info, debug, trace, off), or module=level");
        }
    }
    Ok(text.to_string())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let expected = "expected ADDRESS:PORT such as 127.0.0.1:8080 or [::]:8080";
    text.parse().or_else(|_| {
        let mut found = text.to_socket_addrs().map_err(|_| expected.to_string())?;
        found.next().ok_or_else(|| expected.to_string())
    })
}

fn pixel_path(text: &str) -> Result<String, &'static str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    let is_taken = ["/", "/robots.txt", "/favicon.ico"].contains(&text);
    if !text.starts_with('/') || !text.bytes().all(is_plain) || is_taken {
        return Err(
            "expected a path such as /track, of letters, digits and -._~, that is not another page's",
        );
    }
    Ok(text.to_string())
}

fn number(min: u64, max: u64) -> impl Fn(&str) -> Result<u64, String> {
    move |text| {
        let number = text.parse().ok().filter(|number| (min..=max).contains(number));
        number.ok_or_else(|| format!("expected a whole number from {min} to {max}"))
    }
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.contains('\0') || text == "/" {
        return Err("expected a path".into());
    }
    Ok(PathBuf::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_of(given: &mut Given<'_>) {
        HttpSettings::read(given);
        SpoolSettings::read(given);
        BrokerSettings::read(given);
        OutputSettings::read(given);
        AdminSettings::read(given, &ADMIN_LISTEN);
        log_settings(given);
    }

    fn command() -> Command {
        with_settings(Command::new("pixel"), &[HTTP, SPOOL, BROKER, OUTPUTS, ADMIN, LOGS])
    }

    #[test]
    fn every_default_can_be_read() {
        let matches = command().get_matches_from(["pixel"]);
        let mut given = Given::new(&matches);
        all_of(&mut given);
        AdminSettings::read(&mut given, &STORAGE_ADMIN_LISTEN);
        // Whatever stands at the default output on this machine.
        given.problems.retain(|problem| !problem.starts_with("--output"));
        assert!(given.refuse_bad().is_ok());
    }

    #[test]
    fn every_variable_is_the_flag_s_name() {
        for Setting { flag, variable, .. } in ALL {
            let name = flag.to_uppercase().replace('-', "_");
            assert_eq!(*variable, format!("PIXEL_{name}"), "{flag}");
        }
    }

    #[test]
    fn a_variable_that_no_program_knows_is_named_and_the_one_that_was_meant() {
        for known in ["PIXEL_OUTPUT", "PIXEL_AMQP_URL_FILE", "PIXEL_SITE", "OUTPUT", "PIXELS"] {
            assert_eq!(unknown(known), None);
        }
        for (name, said) in [
            ("PIXEL_OUTPTU", "PIXEL_OUTPTU: there is no such variable; was PIXEL_OUTPUT meant?"),
            ("PIXEL_TRUSTED_PROXY", "was PIXEL_TRUSTED_PROXIES meant?"),
            ("PIXEL_OUTPUT_FILE", "PIXEL_OUTPUT_FILE: there is no such variable"),
        ] {
            assert!(unknown(name).is_some_and(|problem| problem.contains(said)), "{:?}", unknown(name));
        }
        assert_eq!(unknown("PIXEL_XYZ"), Some("PIXEL_XYZ: there is no such variable".into()));
    }

    #[test]
    fn whatever_the_deployment_reads_is_no_mistake() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let files = ["docker-compose.yml", ".env.example", "deploy/Caddyfile", "deploy/haproxy/haproxy.cfg"];
        for file in
            files.into_iter().chain(["deploy/haproxy/docker-compose.yml", "deploy/edge.sh", "Dockerfile"])
        {
            let text = fs::read_to_string(root.join(file)).expect("it is there");
            let words = text.split(|letter: char| !(letter.is_ascii_uppercase() || letter == '_'));
            for name in words.filter(|word| word.starts_with("PIXEL_")) {
                assert_eq!(unknown(name), None, "of {file}");
            }
        }
    }

    #[test]
    fn a_filter_of_the_log_that_would_silence_it_is_refused() {
        for good in ["info", "OFF", "warn,pixel::relay=debug", "pixel=trace", "pixel::relay", "info/visit"] {
            assert_eq!(filter(good).as_deref(), Ok(good));
        }
        for bad in ["warning", "info,verbose", "pixel=loud", "pixel"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_path_of_the_pixel_is_one_that_can_be_asked_for() {
        for good in ["/track", "/p", "/a/b-c.d", "/t~x"] {
            assert_eq!(pixel_path(good).as_deref(), Ok(good));
        }
        for bad in ["track", "/", "/robots.txt", "/favicon.ico", "/a?b", "/a b", "/ü", ""] {
            assert!(pixel_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_empty_value_is_an_absent_one_and_a_secret_is_never_shown() {
        let arguments = ["pixel", "--listen=", "--workers=", "--amqp-url=sesame", "--queue=amq.x"];
        let matches = command().get_matches_from(arguments);
        let mut given = Given::new(&matches);
        all_of(&mut given);
        let Err(Failure::Settings(problems)) = given.refuse_bad() else { panic!("two are bad") };
        assert!(problems.starts_with("2 bad settings") && !problems.contains("sesame"), "{problems}");
        assert!(problems.contains("--queue (PIXEL_QUEUE) is `amq.x`"), "{problems}");
    }
}
