//! What this process may use and how much of it it does: descriptors, threads, memory.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, setpriority_process, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

/// tiny_http bounds nothing of what it keeps for clients that send faster than requests can be dropped, or
/// for a head without an end. Past this, or three quarters of what its cgroup may have, the program starts again:
/// some ten thousand honest connections fit.
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
        Some("too much memory held by clients")
    } else {
        None
    }
}

/// Whether clients have made this process so large that it should start again.
pub(crate) fn has_outgrown_memory() -> bool {
    resident_bytes() > memory_max_bytes()
}

/// Whether a quarter of that is used: what grows by doubling holds twice as much while it does.
pub(crate) fn is_short_of_memory() -> bool {
    resident_bytes() > memory_max_bytes() / 4
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    resident.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
}

fn memory_max_bytes() -> u64 {
    static MAX: OnceLock<u64> = OnceLock::new();
    *MAX.get_or_init(|| {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        memory_max_of(&own, Path::new("/sys/fs/cgroup"))
    })
}

/// The bound where /proc/self/cgroup says this, and the control groups are mounted there (cgroups(7)): each group on
/// the way up may have a limit, of either version.
fn memory_max_of(own: &str, mounted: &Path) -> u64 {
    let groups = own.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        match (parts.next()?, parts.next()?) {
            ("", path) => Some((mounted.to_path_buf(), "memory.max", path)),
            ("memory", path) => Some((mounted.join("memory"), "memory.limit_in_bytes", path)),
            _ => None,
        }
    });
    let limits = groups.flat_map(|(root, file, path)| {
        let ways_up = Path::new(path.trim_start_matches('/')).ancestors();
        ways_up.map(|group| root.join(group).join(file)).collect::<Vec<_>>()
    });
    // Where there is none, the file says `max`, or is missing.
    let limits = limits.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok());
    limits.map(|limit| limit / 4 * 3).fold(MEMORY_MAX_BYTES, u64::min)
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

/// How many files may be open.
pub(crate) fn open_files_max() -> u64 {
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

/// The priority that every other goes before (setpriority(2)).
const LAST_PRIORITY: i32 = 19;

/// Lets this process's threads called `name` run only where no other wants to, and with them the threads that they
/// start (sched(7)). For good: only a privileged process takes that back. Returns how many there are.
pub(crate) fn put_last(name: &str) -> usize {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let called = threads.filter(|thread| {
        fs::read_to_string(thread.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    });
    let numbers = called.filter_map(|thread| Pid::from_raw(thread.file_name().to_str()?.parse().ok()?));
    // One that has just ended is not there any more.
    numbers.filter(|number| setpriority_process(Some(*number), LAST_PRIORITY).is_ok()).count()
}

/// How many files this process has open; always 0 before Linux 6.2, where nobody counts them.
pub(crate) fn open_files() -> u64 {
    fs::metadata("/proc/self/fd").map_or(0, |files| files.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_are_put_last_are_so_with_all_that_they_start() {
        let of_this_thread = || rustix::process::getpriority_process(None).expect("it runs");
        let step = std::sync::Arc::new(std::sync::Barrier::new(2));
        let its_step = step.clone();
        let before = of_this_thread();
        let thread = std::thread::Builder::new().name("put-last".into()).spawn(move || {
            // A thread takes its name as it starts.
            its_step.wait();
            its_step.wait();
            std::thread::spawn(of_this_thread).join().expect("no panic")
        });
        step.wait();
        assert_eq!((put_last("put-last"), put_last("nobody")), (1, 0));
        step.wait();
        assert_eq!(thread.expect("there is room").join().expect("no panic"), LAST_PRIORITY);
        assert_eq!(of_this_thread(), before, "others keep theirs");
    }

    #[test]
    fn the_memory_limit_is_the_lowest_on_the_way_up() {
        let mounted = tempfile::tempdir().expect("a folder");
        let write = |file: &str, limit: &str| {
            let path = mounted.path().join(file);
            fs::create_dir_all(path.parent().expect("it has one")).expect("it is ours");
            fs::write(path, limit).expect("it is ours");
        };
        write("a/memory.max", "400000000\n");
        write("a/b/memory.max", "max\n");
        write("c/memory.max", "9000000000\n");
        write("memory/d/memory.limit_in_bytes", "200000000\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        for (case, own, max) in [
            ("none", "", MEMORY_MAX_BYTES),
            ("gone", "0::/nowhere\n", MEMORY_MAX_BYTES),
            ("a large one", "0::/c\n", MEMORY_MAX_BYTES),
            ("its own", "0::/a\n", 300_000_000),
            ("that of its parent", "0::/a/b\n", 300_000_000),
            ("version 1", "5:cpu:/x\n4:memory:/d\n0::/\n", 150_000_000),
        ] {
            assert_eq!(memory_max_of(own, mounted.path()), max, "{case}");
        }
        assert!(resident_bytes() > 0 && !is_short_of_memory());
    }
}
