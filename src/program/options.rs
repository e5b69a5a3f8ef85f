//! The options of all programs: each a flag and an environment variable, checked before anything starts.

use std::fmt::Display;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::amqp::{AmqpUrl, QUEUE_NAME_MAX_BYTES};
use crate::http::DoorSettings;
use crate::visit::client_ip::TrustedProxies;
use crate::visit::lines::LineFormat;

/// The largest number of workers: each is a thread.
const WORKERS_MAX: u64 = 1024;
const TIMEOUT_MAX_MS: u64 = 3_600_000;

/// Settings that cannot be used, every one of them.
#[derive(Debug, Default)]
pub struct Problems(Vec<String>);

impl Problems {
    /// Reads a setting; what is wrong with it is noted. An empty one is as good as absent.
    fn read<T, E: Display>(
        &mut self,
        flag: &str,
        value: &str,
        default: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let value = if value.is_empty() { default } else { value };
        match read(value) {
            Ok(read) => Some(read),
            Err(error) => {
                let variable = flag.to_uppercase().replace('-', "_");
                let prefix = if flag == "rust-log" { "" } else { "PIXEL_" };
                // The value is left out where it may hold a password.
                let shown = if flag == "amqp-url" { String::new() } else { format!(" is `{value}`") };
                self.0.push(format!("--{flag} ({prefix}{variable}){shown}: {error}"));
                None
            }
        }
    }

    /// `settings`, or every problem in one text.
    ///
    /// # Errors
    /// The text, where there is a problem.
    pub fn unless_any<T>(self, settings: Option<T>) -> Result<T, String> {
        match settings {
            Some(settings) if self.0.is_empty() => Ok(settings),
            _ if self.0.len() == 1 => Err(format!("bad setting {}", self.0[0])),
            _ => Err(format!("{} bad settings:\n  {}", self.0.len(), self.0.join("\n  "))),
        }
    }
}

/// Where the log goes and how much of it.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// What is logged: error, warn, info, debug or trace; also by module, as in info,pixel::relay=debug
    #[arg(long, env = "RUST_LOG", default_value = "info", value_name = "FILTER", hide_env_values = true)]
    rust_log: String,
}

impl LogArgs {
    /// The filter.
    pub fn check(&self, problems: &mut Problems) -> Option<String> {
        problems.read("rust-log", &self.rust_log, "info", |filter| {
            for directive in filter.split('/').next().unwrap_or_default().split(',') {
                let level = directive.rsplit('=').next().unwrap_or_default().trim();
                let is_level = level.parse::<log::LevelFilter>().is_ok();
                // A bare word is a module, unless it was meant to be a level.
                if directive.contains('=') && !is_level {
                    return Err("expected a level such as info, or module=level".to_string());
                }
            }
            Ok(filter.to_string())
        })
    }
}

/// Where operators ask, for the programs that take visits.
#[derive(Debug, Args)]
pub struct AdminArgs {
    /// Address of /healthz, /readyz and /metrics; not for the public
    #[arg(long, env = "PIXEL_ADMIN_LISTEN", default_value = ADMIN, value_name = "ADDRESS:PORT", hide_env_values = true)]
    admin_listen: String,
}

const ADMIN: &str = "127.0.0.1:9100";

impl AdminArgs {
    /// The listener's settings.
    pub fn check(&self, problems: &mut Problems) -> Option<DoorSettings> {
        admin(problems, &self.admin_listen, ADMIN)
    }
}

/// Where operators ask, for pixel-storage.
#[derive(Debug, Args)]
pub struct StorageAdminArgs {
    /// Address of /healthz, /readyz and /metrics; not for the public
    #[arg(long, env = "PIXEL_ADMIN_LISTEN", default_value = STORAGE_ADMIN, value_name = "ADDRESS:PORT", hide_env_values = true)]
    admin_listen: String,
}

const STORAGE_ADMIN: &str = "127.0.0.1:9101";

impl StorageAdminArgs {
    /// The listener's settings.
    pub fn check(&self, problems: &mut Problems) -> Option<DoorSettings> {
        admin(problems, &self.admin_listen, STORAGE_ADMIN)
    }
}

fn admin(problems: &mut Problems, listen: &str, default: &str) -> Option<DoorSettings> {
    let listen = problems.read("admin-listen", listen, default, address)?;
    let patience = Duration::from_secs(10);
    Some(DoorSettings { name: "admin", listen, workers: 1, read_timeout: patience, write_timeout: patience })
}

/// How visits are taken.
#[derive(Debug, Args)]
pub struct HttpArgs {
    /// Address of the pixel
    #[arg(long, env = "PIXEL_LISTEN", default_value = LISTEN, value_name = "ADDRESS:PORT", hide_env_values = true)]
    listen: String,
    /// Threads that handle requests; no more are started than there are cores, but two
    #[arg(long, env = "PIXEL_WORKERS", default_value = WORKERS, value_name = "NUMBER", hide_env_values = true)]
    workers: String,
    /// Proxies whose X-Forwarded-For or Forwarded is believed, as in 10.0.0.0/8,127.0.0.1
    #[arg(
        long,
        env = "PIXEL_TRUSTED_PROXIES",
        default_value = "",
        value_name = "CIDRS",
        hide_env_values = true
    )]
    trusted_proxies: String,
    /// A connection that says nothing for this long is closed
    #[arg(long, env = "PIXEL_READ_TIMEOUT_MS", default_value = TIMEOUT_MS, value_name = "MS", hide_env_values = true)]
    read_timeout_ms: String,
    /// A client that takes nothing of its answers for this long is given up
    #[arg(long, env = "PIXEL_WRITE_TIMEOUT_MS", default_value = TIMEOUT_MS, value_name = "MS", hide_env_values = true)]
    write_timeout_ms: String,
}

const LISTEN: &str = "127.0.0.1:8080";
const WORKERS: &str = "4";
const TIMEOUT_MS: &str = "10000";

impl HttpArgs {
    /// The listener's settings and the proxies that are trusted.
    pub fn check(&self, problems: &mut Problems) -> Option<(DoorSettings, TrustedProxies)> {
        let timeout = |text: &str| number(text, 100, TIMEOUT_MAX_MS).map(Duration::from_millis);
        let listen = problems.read("listen", &self.listen, LISTEN, address);
        let workers = problems.read("workers", &self.workers, WORKERS, |text| number(text, 1, WORKERS_MAX));
        let proxies = problems.read("trusted-proxies", &self.trusted_proxies, "", str::parse);
        let read_timeout = problems.read("read-timeout-ms", &self.read_timeout_ms, TIMEOUT_MS, timeout);
        let write_timeout = problems.read("write-timeout-ms", &self.write_timeout_ms, TIMEOUT_MS, timeout);
        let door = DoorSettings {
            name: "http",
            listen: listen?,
            workers: usize::try_from(workers?).ok()?,
            read_timeout: read_timeout?,
            write_timeout: write_timeout?,
        };
        Some((door, proxies?))
    }
}

/// Where visits are kept until they are written.
#[derive(Debug, Args)]
pub struct SpoolArgs {
    /// Folder of the visits that are not written yet; one for each process
    #[arg(long, env = "PIXEL_SPOOL_DIR", default_value = SPOOL_DIR, value_name = "FOLDER", hide_env_values = true)]
    spool_dir: String,
    /// Past this, visits are answered with 503 until older ones are written
    #[arg(long, env = "PIXEL_SPOOL_MAX_BYTES", default_value = SPOOL_MAX, value_name = "BYTES", hide_env_values = true)]
    spool_max_bytes: String,
    /// With more than 1, the spool is the first free one of the subfolders 0, 1, … of the folder
    #[arg(
        long,
        env = "PIXEL_SPOOL_SLOTS",
        default_value = "1",
        value_name = "NUMBER",
        hide_env_values = true
    )]
    spool_slots: String,
}

const SPOOL_DIR: &str = "pixel-data/spool";
const SPOOL_MAX: &str = "1073741824";

/// A spool's settings.
#[derive(Debug)]
pub struct SpoolSettings {
    /// Its folder.
    pub folder: PathBuf,
    /// Its cap in bytes.
    pub max_bytes: u64,
    /// How many numbered spools share the folder; 1 for a folder of its own.
    pub slots: u32,
}

impl SpoolArgs {
    /// The spool's settings.
    pub fn check(&self, problems: &mut Problems) -> Option<SpoolSettings> {
        let folder = problems.read("spool-dir", &self.spool_dir, SPOOL_DIR, path);
        let max_bytes = problems
            .read("spool-max-bytes", &self.spool_max_bytes, SPOOL_MAX, |text| number(text, 1, u64::MAX / 2));
        let slots = problems.read("spool-slots", &self.spool_slots, "1", |text| number(text, 1, 1024));
        Some(SpoolSettings { folder: folder?, max_bytes: max_bytes?, slots: u32::try_from(slots?).ok()? })
    }
}

/// Which broker and queue.
#[derive(Debug, Args)]
pub struct BrokerArgs {
    /// The broker; a comma-separated list is a cluster, tried in turn. amqps:// is TLS
    #[arg(long, env = "PIXEL_AMQP_URL", default_value = AMQP_URL, value_name = "URLS", hide_env_values = true)]
    amqp_url: String,
    /// The queue, and the exchange of the same name; its dead letters are in QUEUE.dead
    #[arg(long, env = "PIXEL_QUEUE", default_value = QUEUE, value_name = "QUEUE", hide_env_values = true)]
    queue: String,
}

const AMQP_URL: &str = "amqp://guest:guest@127.0.0.1:5672/%2f";
const QUEUE: &str = "pixel.visits";

impl BrokerArgs {
    /// The cluster's nodes and the queue's name.
    pub fn check(&self, problems: &mut Problems) -> Option<(Vec<AmqpUrl>, String)> {
        let urls = problems.read("amqp-url", &self.amqp_url, AMQP_URL, AmqpUrl::list);
        let queue = problems.read("queue", &self.queue, QUEUE, |name| {
            // RabbitMQ reserves names that start so.
            if name.starts_with("amq.") || name.len() > QUEUE_NAME_MAX_BYTES {
                return Err(format!(
                    "expected up to {QUEUE_NAME_MAX_BYTES} bytes that do not start with amq."
                ));
            }
            Ok(name.to_string())
        });
        Some((urls?, queue?))
    }
}

/// Where visits are written.
#[derive(Debug, Args)]
pub struct OutputArgs {
    /// The file that visits are appended to; its lock and its ledger are beside it
    #[arg(long, env = "PIXEL_OUTPUT", default_value = OUTPUT, value_name = "FILE", hide_env_values = true)]
    output: String,
    /// How a visit is written: pipe, combined (Apache's) or ndjson
    #[arg(long, env = "PIXEL_FORMAT", default_value = FORMAT, value_name = "FORMAT", hide_env_values = true)]
    format: String,
}

const OUTPUT: &str = "/tmp/visits.log";
const FORMAT: &str = "pipe";

impl OutputArgs {
    /// The output's path and format.
    pub fn check(&self, problems: &mut Problems) -> Option<(PathBuf, LineFormat)> {
        let output = problems.read("output", &self.output, OUTPUT, |text| {
            let path = path(text)?;
            match path.metadata() {
                Ok(metadata) if !metadata.is_file() => Err("it is there, and is no regular file".to_string()),
                _ => Ok(path),
            }
        });
        let format = problems.read("format", &self.format, FORMAT, str::parse);
        Some((output?, format?))
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let expected = "expected ADDRESS:PORT such as 127.0.0.1:8080 or [::]:8080";
    text.parse().or_else(|_| {
        let mut found = text.to_socket_addrs().map_err(|_| expected.to_string())?;
        found.next().ok_or_else(|| expected.to_string())
    })
}

fn number(text: &str, min: u64, max: u64) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| format!("expected a whole number from {min} to {max}"))
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.contains('\0') || text.ends_with('/') && text.len() == 1 {
        return Err("expected a path".into());
    }
    Ok(PathBuf::from(text))
}
