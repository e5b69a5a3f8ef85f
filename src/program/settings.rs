//! The settings of all programs: one row each, from which flag, variable, default and help come.

/// One option: a flag, and the environment variable that counts where the flag is absent.
#[derive(Debug)]
pub struct Setting {
    /// Without its two dashes.
    pub(super) flag: &'static str,
    pub(super) variable: &'static str,
    pub(super) default: &'static str,
    /// Whether its value is kept out of every message.
    pub(super) is_secret: bool,
    /// What stands for the value in `--help`.
    pub(super) value: &'static str,
    pub(super) help: &'static str,
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
    PRIVACY_URL: "privacy-url" "PIXEL_PRIVACY_URL" "" public "URL"
        "Your text about privacy, which the page at / links to";
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
        "The broker; a comma-separated list is a cluster, tried in turn. amqps:// is TLS. PIXEL_AMQP_URL_FILE names a \
         file that has it";
    AMQP_CA_FILE: "amqp-ca-file" "PIXEL_AMQP_CA_FILE" "" public "FILE"
        "Authorities that amqps:// brokers are believed by (PEM); the system's unless set";
    AMQP_CERT_FILE: "amqp-cert-file" "PIXEL_AMQP_CERT_FILE" "" public "FILE"
        "Certificate to show to amqps:// brokers that ask for one (PEM, its chain behind it)";
    AMQP_KEY_FILE: "amqp-key-file" "PIXEL_AMQP_KEY_FILE" "" public "FILE"
        "The certificate's key (PEM)";
    QUEUE: "queue" "PIXEL_QUEUE" "pixel.visits" public "QUEUE"
        "The queue, and the exchange of the same name; its dead letters are in QUEUE.dead";
    SHARDS: "shards" "PIXEL_SHARDS" "1" public "NUMBER"
        "How many queues share the visits, QUEUE.0 and so on, each with a pixel-storage and an output of its own";
    SHARD: "shard" "PIXEL_SHARD" "0" public "NUMBER"
        "Of several shards, the one to write; auto takes the first that no other process writes";
    NO_DECLARE: "no-declare" "PIXEL_NO_DECLARE" "false" public "true|false"
        "Take exchanges and queues as they are: for a broker whose topology belongs to somebody else";
    MASSTRANSIT_EXCHANGE: "masstransit-exchange" "PIXEL_MASSTRANSIT_EXCHANGE" "" public "EXCHANGE"
        "Record what MassTransit publishes to this exchange of its RecordVisitCommand, too";
    TAKEOVER: "takeover" "PIXEL_TAKEOVER" "false" public "true|false"
        "Take the queue from the output of another machine, which ends then, or is gone for good; for one start";
    OUTPUT: "output" "PIXEL_OUTPUT" "pixel-data/visits.log" public "FILE"
        "The file that visits are appended to; - is standard output, for containers: a crash may print its last visits twice \
         there, and the audit can prove numbers alone";
    STATE_DIR: "state-dir" "PIXEL_STATE_DIR" "" public "FOLDER"
        "Where the output's lock and ledger are, the same for all who write it; beside it unless set, and for standard \
         output in pixel-data";
    FORMAT: "format" "PIXEL_FORMAT" "pipe" public "FORMAT"
        "How a visit is written: pipe, combined (Apache's), vcombined (the same with the virtual host in front) or ndjson";
    ROTATE_BYTES: "rotate-bytes" "PIXEL_ROTATE_BYTES" "0" public "BYTES"
        "Past this, the output gets a name of its own, as in visits-2026-11-23T14.log, and a new one is begun; 0 is never";
    ROTATE_AT: "rotate-at" "PIXEL_ROTATE_AT" "" public "TIMES"
        "When that happens: hourly, daily, or times of day in UTC such as 06:00,18:00; also without visits";
    COMPRESS: "compress" "PIXEL_COMPRESS" "" public "gzip|zstd"
        "Compress the files that Pixel has rotated: gzip or zstd; they stay as they are unless set";
    KEEP: "keep" "PIXEL_KEEP" "" public "LIMITS"
        "Of the files that Pixel has rotated, remove the oldest past an age, a size or a number, as in 90d, 10GiB, 30files, or \
         several of them with commas; all are kept unless set";
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

/// Of the public listener.
pub static HTTP: &[&Setting] =
    &[&LISTEN, &PATH, &PRIVACY_URL, &WORKERS, &TRUSTED_PROXIES, &READ_TIMEOUT_MS, &WRITE_TIMEOUT_MS];
/// Of the spool.
pub static SPOOL: &[&Setting] = &[&SPOOL_DIR, &SPOOL_MAX_BYTES, &SPOOL_SLOTS];
/// Of the broker.
pub static BROKER: &[&Setting] =
    &[&AMQP_URL, &AMQP_CA_FILE, &AMQP_CERT_FILE, &AMQP_KEY_FILE, &QUEUE, &SHARDS, &NO_DECLARE];
/// Of who takes visits from the broker.
pub static SHARD_CHOICE: &[&Setting] = &[&SHARD, &MASSTRANSIT_EXCHANGE, &TAKEOVER];
/// Of the output.
pub static OUTPUTS: &[&Setting] =
    &[&OUTPUT, &STATE_DIR, &FORMAT, &ROTATE_BYTES, &ROTATE_AT, &COMPRESS, &KEEP];
/// Of the admin listener of the programs that take visits.
pub static ADMIN: &[&Setting] = &[&ADMIN_LISTEN];
/// Of the admin listener of pixel-storage.
pub static STORAGE_ADMIN: &[&Setting] = &[&STORAGE_ADMIN_LISTEN];
/// Of the log.
pub static LOGS: &[&Setting] = &[&LOG, &LOG_FORMAT];

/// What Compose files and the edges read: not ours, and no mistake.
static OTHERS: &[&str] = &[
    "PIXEL_BIND",
    "PIXEL_CADDY_BUFFERING",
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

/// What is wrong with a variable's name: that it begins like ours, and is none.
pub(super) fn unknown(name: &str) -> Option<String> {
    let given = name.strip_prefix("PIXEL_").filter(|_| !is_setting(name) && !OTHERS.contains(&name))?;
    let meant = nearest(given).map(|meant| format!("; was {meant} meant?")).unwrap_or_default();
    Some(format!("{name}: there is no such variable{meant}"))
}

/// What is wrong with a name in the file of settings, which is given as its variable.
pub(super) fn unknown_in_file(name: &str) -> Option<String> {
    let key = |variable: &str| variable.trim_start_matches("PIXEL_").to_lowercase().replace('_', "-");
    if is_setting(name) && name != CONFIG.variable {
        return None;
    }
    let meant = nearest(name.trim_start_matches("PIXEL_")).filter(|meant| *meant != name);
    let meant = meant.map(|meant| format!("; was `{}` meant?", key(meant))).unwrap_or_default();
    Some(format!("there is no `{}` to be set in a file{meant}", key(name)))
}

fn is_setting(name: &str) -> bool {
    ALL.iter().any(|setting| {
        setting.variable == name || setting.is_secret && name.strip_suffix("_FILE") == Some(setting.variable)
    })
}

/// The variable that is most like `given`, a name without `PIXEL_`.
fn nearest(given: &str) -> Option<&'static str> {
    let own = ALL.iter().map(|setting| setting.variable);
    let alike = own.map(|own| (strsim::jaro_winkler(given, own.trim_start_matches("PIXEL_")), own));
    let nearest = alike.max_by(|one, other| one.0.total_cmp(&other.0));
    nearest.filter(|(alike, _)| *alike >= ALIKE_MIN).map(|(_, meant)| meant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

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
    fn what_a_file_cannot_set_is_named_as_it_is_written_there() {
        for known in ["PIXEL_OUTPUT", "PIXEL_AMQP_URL_FILE"] {
            assert_eq!(unknown_in_file(known), None);
        }
        for (name, said) in [
            ("PIXEL_SPOOL_DIRR", "there is no `spool-dirr` to be set in a file; was `spool-dir` meant?"),
            ("PIXEL_SITE", "there is no `site` to be set in a file"),
            ("PIXEL_CONFIG", "there is no `config` to be set in a file"),
        ] {
            let problem = unknown_in_file(name);
            assert!(problem.as_ref().is_some_and(|problem| problem.contains(said)), "{problem:?}");
        }
    }

    #[test]
    fn whatever_the_deployment_reads_is_no_mistake() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for file in [
            "docker-compose.yml",
            ".env.example",
            "Dockerfile",
            "deploy/Caddyfile",
            "deploy/caddy/docker-compose.yml",
            "deploy/edge.sh",
            "deploy/haproxy/docker-compose.yml",
            "deploy/haproxy/haproxy.cfg",
            "deploy/public.yml",
        ] {
            let text = fs::read_to_string(root.join(file)).expect("it is there");
            let words = text.split(|letter: char| !(letter.is_ascii_uppercase() || letter == '_'));
            for name in words.filter(|word| word.starts_with("PIXEL_")) {
                assert_eq!(unknown(name), None, "of {file}");
            }
        }
    }
}
