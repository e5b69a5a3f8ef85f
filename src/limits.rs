//! What this process may use and how much of it it does: descriptors, threads, memory.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

/// tiny_http bounds nothing of what it keeps for clients that send faster than requests can be dropped, or
/// for a head without an end. Past this the program starts again: some ten thousand honest connections fit.
const MEMORY_MAX_BYTES: u64 = 1 << 30;
/// Connections that are given up cost a thread and two descriptors each; past this many, or past an eighth
/// of the descriptors, the program starts again.
const ABANDONED_MAX: u64 = 512;
/// An eighth of the descriptors, but not less and not more, is room for a few connections.
const SPARE_FILES_MIN: u64 = 4;
const SPARE_FILES_MAX: u64 = 256;

/// Why this process should finish what it accepted and start again; `None` while nothing speaks for it.
/// `abandoned` is how many connections it could not free.
pub(crate) fn reason_to_restart(abandoned: u64) -> Option<&'static str> {
    if abandoned > ABANDONED_MAX.min(open_files_max() / 8) {
        Some("too many connections had to be abandoned")
    } else if has_outgrown_memory() {
        Some("over 1 GiB of memory held by clients")
    } else {
        None
    }
}

/// Whether clients have made this process so large that it should start again.
pub(crate) fn has_outgrown_memory() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    resident.and_then(|kib| kib.parse::<u64>().ok()).is_some_and(|kib| kib << 10 > MEMORY_MAX_BYTES)
}

/// Raises the limit of open files to what is allowed (setrlimit(2)).
pub(crate) fn raise_open_files_max() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        log::warn!("failed to raise the limit of open files: {error}");
    }
}

/// Warns where fewer than `wanted` files may be open.
pub(crate) fn warn_of_few_files(wanted: u64) {
    let limit = open_files_max();
    if limit < wanted {
        log::warn!(
            "only {limit} files may be open, of which a connection takes two: raise `ulimit -n` to {wanted} at least"
        );
    }
}

fn open_files_max() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Whether there are descriptors for a few connections more.
pub(crate) fn has_room() -> bool {
    let spare = (open_files_max() / 8).clamp(SPARE_FILES_MIN, SPARE_FILES_MAX);
    let sockets: io::Result<Vec<_>> =
        (0..spare).map(|_| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))).collect();
    sockets.is_ok()
}

/// How many threads this process has: the links of a folder are its subfolders and two more.
pub(crate) fn threads() -> u64 {
    fs::metadata("/proc/self/task").map_or(0, |tasks| tasks.nlink())
}

/// How many files this process has open; always 0 before Linux 6.2, where nobody counts them.
pub(crate) fn open_files() -> u64 {
    fs::metadata("/proc/self/fd").map_or(0, |files| files.len())
}
