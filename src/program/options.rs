//! The settings as the programs' parts take them, read and checked before anything starts.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

pub use super::given::{Given, check, check_command, with_settings};
use super::logger::{LogFormat, LogSettings};
use super::process::Failure;
pub use super::settings::*;
use crate::amqp::{AmqpUrl, Broker, QUEUE_NAME_MAX_BYTES, Tls, queue_of};
use crate::disk::{folder_of, sibling};
use crate::http::ListenerSettings;
use crate::output::{Aftercare, Compression, Keep, Rotation, TimesOfDay};
use crate::queue::Shard;
use crate::trace;
use crate::visit::client_ip::TrustedProxies;
use crate::visit::lines::LineFormat;

/// The largest number of workers: each is a thread.
const WORKERS_MAX: u64 = 1024;
const TIMEOUT_MAX_MS: u64 = 3_600_000;
const SLOTS_MAX: u64 = 1024;
const SHARDS_MAX: u64 = 64;
/// What a shard's number adds to the name of a queue: `.63`.
const SHARD_SUFFIX_BYTES: usize = 3;
/// The name of standard output.
const STDOUT: &str = "-";
/// How long the admin listener waits for its clients.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The public listener, whom it believes, and where the pixel is.
#[derive(Debug)]
pub struct HttpSettings {
    /// Its address, timeouts and workers, as many of them as [`HttpSettings::read`] lets it have.
    pub listener: ListenerSettings,
    /// Proxies whose X-Forwarded-For and Forwarded headers are trusted.
    pub proxies: TrustedProxies,
    /// The pixel's path, from a slash on; with `.gif` behind it, it is the pixel, too.
    pub path: String,
    /// Where the operator's text about privacy is; empty where there is none.
    pub privacy: String,
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
            privacy: given.read(&PRIVACY_URL, web_address),
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
    /// How those that are `amqps://` are spoken with; there where one is.
    pub tls: Option<Tls>,
    /// The queue's name, at most [`QUEUE_NAME_MAX_BYTES`] long with a shard's number; also the exchange's.
    pub queue: String,
    /// How many queues share the visits.
    pub shards: u32,
    /// Whether exchanges and queues are declared.
    pub declares: bool,
}

impl BrokerSettings {
    /// Reads [`BROKER`].
    pub fn read(given: &mut Given<'_>) -> Self {
        let shards = u32::try_from(given.read(&SHARDS, number(1, SHARDS_MAX))).unwrap_or(u32::MAX);
        let max_bytes = QUEUE_NAME_MAX_BYTES - if shards > 1 { SHARD_SUFFIX_BYTES } else { 0 };
        let queue = |name: &str| {
            // RabbitMQ reserves names that start so.
            if name.starts_with("amq.") || name.len() > max_bytes {
                return Err(format!("expected up to {max_bytes} bytes that do not start with amq."));
            }
            Ok(name.to_string())
        };
        let queue = given.read(&QUEUE, queue);
        let declares = !given.read(&NO_DECLARE, is_true);
        let urls = given.read(&AMQP_URL, AmqpUrl::list);
        let tls = tls(given, urls.iter().any(AmqpUrl::is_tls));
        BrokerSettings { urls, tls, queue, shards, declares }
    }

    /// Its shards: `None` alone where there is one queue for all.
    pub fn all_shards(&self) -> Vec<Shard> {
        if self.shards == 1 { vec![None] } else { (0..self.shards).map(Some).collect() }
    }

    /// Reads whether [`SHARD_CHOICE`] lets an output take the queue from another.
    pub fn read_takeover(given: &mut Given<'_>) -> bool {
        given.read(&TAKEOVER, is_true)
    }

    /// Reads the exchange of [`SHARD_CHOICE`] that MassTransit publishes to; `None` where there is none.
    pub fn read_masstransit(given: &mut Given<'_>) -> Option<String> {
        let exchange = given.read(&MASSTRANSIT_EXCHANGE, |name| match name.len() {
            0..=255 if !name.starts_with("amq.") => Ok(name.to_string()),
            _ => Err("expected up to 255 bytes that do not start with amq."),
        });
        Some(exchange).filter(|exchange| !exchange.is_empty())
    }

    /// The way to its queue of `shard`, to consume.
    pub fn consuming(&self, shard: Shard) -> Broker {
        Broker::new(self.urls.clone(), self.tls.clone(), self.queue_of(shard)).declaring(self.declares)
    }

    /// The way to its queues of `shards`, to publish.
    pub fn publishing(&self, shards: &[Shard]) -> Broker {
        Broker::new(self.urls.clone(), self.tls.clone(), self.queue.clone())
            .sharded(shards)
            .declaring(self.declares)
    }

    /// Reads the shard of [`SHARD_CHOICE`]: those of its shards that may be written, of which the first free one is.
    pub fn read_choice(&self, given: &mut Given<'_>) -> Vec<Shard> {
        let max = u64::from(self.shards) - 1;
        let choice = given.read(&SHARD, |text| match text {
            "auto" => Ok(None),
            one => number(0, max)(one)
                .map(Some)
                .map_err(|_| format!("expected auto, or a number from 0 to {max}")),
        });
        match choice {
            Some(one) if self.shards > 1 => vec![u32::try_from(one).ok()],
            _ => self.all_shards(),
        }
    }

    /// The name of the queue of a shard.
    pub fn queue_of(&self, shard: Shard) -> String {
        queue_of(&self.queue, shard)
    }

    /// The nodes, fit to be shown.
    pub fn nodes(&self) -> String {
        self.urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// Reads what TLS needs. Files that are named are read where nothing is to be spoken over TLS, too: they are meant.
fn tls(given: &mut Given<'_>, is_wanted: bool) -> Option<Tls> {
    let files = [&AMQP_CA_FILE, &AMQP_CERT_FILE, &AMQP_KEY_FILE].map(|setting| given.read(setting, path));
    let [authorities, chain, key] =
        files.each_ref().map(|file| Some(&**file).filter(|file| !file.as_os_str().is_empty()));
    let identity = match (chain, key) {
        (Some(chain), Some(key)) => Some((chain, key)),
        (None, None) => None,
        (Some(_), None) => {
            given.note(&AMQP_KEY_FILE, &"the key of PIXEL_AMQP_CERT_FILE is missing");
            return None;
        }
        (None, Some(_)) => {
            given.note(&AMQP_CERT_FILE, &"the certificate of PIXEL_AMQP_KEY_FILE is missing");
            return None;
        }
    };
    if !is_wanted && authorities.is_none() && identity.is_none() {
        return None;
    }
    // Each by itself, so that the one that is of no use is named.
    let noted = |given: &mut Given<'_>, setting, made: Result<Tls, String>| {
        made.map_err(|problem| given.note(setting, &problem)).ok()
    };
    noted(given, &AMQP_CA_FILE, Tls::new(authorities, None))?;
    noted(given, &AMQP_CERT_FILE, Tls::new(authorities, identity))
}

/// What visits are written to, and how.
#[derive(Debug, Clone)]
pub struct OutputSettings {
    /// A regular file, or one that is not there yet; `None` for standard output.
    pub path: Option<PathBuf>,
    /// The file that who writes it holds locked.
    pub lock: PathBuf,
    /// The file that says what is written.
    pub ledger: PathBuf,
    /// How a visit is written to it.
    pub format: LineFormat,
    /// When Pixel rotates it.
    pub rotation: Rotation,
    /// What becomes of files that Pixel rotated.
    pub aftercare: Aftercare,
    /// Whether it is where visits are written if nobody says where: its folder is made then.
    pub is_default: bool,
}

impl OutputSettings {
    /// Reads [`OUTPUTS`].
    pub fn read(given: &mut Given<'_>) -> Self {
        let output = given.read(&OUTPUT, path);
        let is_stdout = output == Path::new(STDOUT);
        // A link is not followed later on, either: what it names may be another program's.
        match output.symlink_metadata() {
            _ if is_stdout => {}
            Ok(found) if found.is_symlink() => {
                given.note(
                    &OUTPUT,
                    &"it is a symbolic link, and those are not followed: name the file itself",
                );
            }
            Ok(found) if !found.is_file() => given.note(&OUTPUT, &"it is there, and is no regular file"),
            _ => {}
        }
        let beside =
            if is_stdout { Path::new(OUTPUT.default).with_file_name("stdout") } else { output.clone() };
        let state = match given.read(&STATE_DIR, path) {
            unset if unset.as_os_str().is_empty() => beside,
            folder => folder.join(beside.file_name().unwrap_or_default()),
        };
        let rotation = Rotation {
            max_bytes: Some(given.read(&ROTATE_BYTES, number(0, u64::MAX))).filter(|max| *max > 0),
            at: given.read(&ROTATE_AT, TimesOfDay::from_str),
        };
        if is_stdout && rotation != Rotation::default() {
            given.note(&OUTPUT, &"standard output is not rotated: leave --rotate-bytes and --rotate-at away");
        }
        let compression = |text: &str| Some(text).filter(|text| !text.is_empty()).map(str::parse).transpose();
        let aftercare = Aftercare {
            compression: given.read::<Option<Compression>, _>(&COMPRESS, compression),
            keep: given.read(&KEEP, Keep::from_str),
        };
        if rotation == Rotation::default() {
            let needs = "it is for files that Pixel rotates: set PIXEL_ROTATE_AT or PIXEL_ROTATE_BYTES, too";
            if aftercare.compression.is_some() {
                given.note(&COMPRESS, &needs);
            }
            if aftercare.keep != Keep::default() {
                given.note(&KEEP, &needs);
            }
        }
        OutputSettings {
            lock: sibling(&state, "lock"),
            ledger: sibling(&state, "ledger"),
            is_default: output == Path::new(OUTPUT.default),
            path: Some(output).filter(|_| !is_stdout),
            format: given.read(&FORMAT, LineFormat::from_str),
            rotation,
            aftercare,
        }
    }

    /// Its file, for who reads it.
    ///
    /// # Errors
    /// That there is none to be read.
    pub fn file(&self) -> Result<&Path, Failure> {
        let file = self.path.as_deref();
        file.ok_or_else(|| {
            Failure::Settings("what standard output was given is not there to be read: name a file".into())
        })
    }

    /// Another output, whose state is beside it.
    pub fn beside(&self, path: &Path) -> OutputSettings {
        let (lock, ledger) = (sibling(path, "lock"), sibling(path, "ledger"));
        OutputSettings { path: Some(path.into()), lock, ledger, is_default: false, ..self.clone() }
    }

    /// Its path in the folder of its state, absolute: what its ledger's and its lock's are made of.
    pub fn state_path(&self) -> PathBuf {
        let path = self.ledger.with_extension("");
        std::path::absolute(&path).unwrap_or(path)
    }

    /// The output of a shard: `visits.2.log` where this one is `visits.log`.
    pub fn of_shard(&self, shard: Shard) -> OutputSettings {
        let Some(shard) = shard else { return self.clone() };
        let path = self.path.as_deref().map(|path| numbered(path, shard));
        let name = path.as_deref().and_then(Path::file_name).map(PathBuf::from);
        let name = name.unwrap_or_else(|| format!("stdout.{shard}").into());
        let state = self.ledger.with_file_name(name);
        OutputSettings {
            lock: sibling(&state, "lock"),
            ledger: sibling(&state, "ledger"),
            path,
            ..self.clone()
        }
    }

    /// Its name, fit to be shown.
    pub fn shown(&self) -> String {
        shown(self.path.as_deref())
    }

    /// The outputs of shards that have a ledger, in the order of their numbers.
    ///
    /// # Errors
    /// What the system said to the ledgers' folder.
    pub fn shards(&self) -> io::Result<Vec<OutputSettings>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(folder_of(&self.ledger))? {
            let name = entry?.file_name();
            let digits = name.to_str().into_iter().flat_map(|name| name.split('.'));
            for shard in digits.filter_map(|part| part.parse::<u32>().ok()) {
                let output = self.of_shard(Some(shard));
                if output.ledger.file_name() == Some(&name) {
                    found.insert(shard, output);
                }
            }
        }
        Ok(found.into_values().collect())
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

/// The name of an output, or of standard output, fit to be shown.
pub(super) fn shown(path: Option<&Path>) -> String {
    path.map_or("standard output".into(), |path| path.display().to_string())
}

/// `path` with a number before its extension, or at its end.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_os_string();
    name.push(format!(".{number}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// Reads [`LOGS`]: the filter is in env_logger's words. OpenTelemetry's variables are read with them, by their own
/// names.
pub fn log_settings(given: &mut Given<'_>) -> LogSettings {
    let traces = trace::Settings::from_environment().unwrap_or_else(|problems| {
        given.note_others(problems);
        trace::Settings::default()
    });
    LogSettings {
        filter: given.read_or(&LOG, "RUST_LOG", filter),
        format: given.read(&LOG_FORMAT, LogFormat::from_str),
        traces,
    }
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

fn is_true(text: &str) -> Result<bool, &'static str> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("expected true or false"),
    }
}

fn web_address(text: &str) -> Result<String, &'static str> {
    let is_web = || url::Url::parse(text).is_ok_and(|url| ["http", "https"].contains(&url.scheme()));
    match text.is_empty() || is_web() {
        true => Ok(text.to_string()),
        false => Err("expected an address such as https://example.com/privacy"),
    }
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
    use clap::Command;

    use crate::program::process::Failure;

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
        assert!(given.refuse_bad().is_ok());
    }

    #[test]
    fn a_shard_s_output_has_its_number_before_the_extension() {
        for (path, expected) in
            [("d/visits.log", "d/visits.2.log"), ("visits", "visits.2"), ("/a.b/.x", "/a.b/.x.2")]
        {
            assert_eq!(numbered(Path::new(path), 2), Path::new(expected));
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
