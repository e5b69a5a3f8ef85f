//! A disk that fails on command: a small library, preloaded into the program, in front of the C library.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::SystemTime;

use super::Outcome;

/// Fails an operation on a file while the file named by `FAULTS_FILE` says so: the operations, the error's number, how
/// the path ends, and where the page starts that cannot be read (all can where it is absent). A write that fails has
/// written half. A number below 0 is that of a signal to the process itself, in place of the operation; for `moved` and
/// `gone`, right behind the renaming and the removal. With `FAULTS_CLOCK`, the clock runs so many times as fast since the time that is named.
const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long long bad_page;

static int fails_at(const char *operation, const char *target) {
    const char *path = getenv("FAULTS_FILE");
    char text[512] = {0}, operations[64] = {0}, suffix[256] = {0};
    int number = 0;
    int file = path ? syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0) : -1;
    if (file < 0) return 0;
    long got = syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    long long page = -1;
    if (got <= 0 || sscanf(text, "%63s %d %255s %lld", operations, &number, suffix, &page) < 2) return 0;
    bad_page = page;
    if (!strstr(operations, operation)) return 0;
    size_t length = strlen(target), end = strlen(suffix);
    if (length < end || strcmp(target + length - end, suffix) != 0) return 0;
    if (number < 0) kill(getpid(), -number);
    return number;
}

static int fails(const char *operation, int fd) {
    char link[64], target[512] = {0};
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (readlink(link, target, sizeof target - 1) <= 0 || target[0] != '/') return 0;
    if (strncmp(target, "/dev/", 5) == 0) return 0;
    return fails_at(operation, target);
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *bytes, size_t count) {
    REAL(write);
    int error = fails("write", fd);
    if (!error) return real(fd, bytes, count);
    real(fd, bytes, count / 2);
    errno = error;
    return -1;
}
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset) {
    REAL(pwrite64);
    int error = fails("write", fd);
    if (!error) return real(fd, bytes, count, offset);
    real(fd, bytes, count / 2, offset);
    errno = error;
    return -1;
}
ssize_t pread64(int fd, void *bytes, size_t count, off64_t offset) {
    REAL(pread64);
    int error = fails("read", fd);
    long long page = bad_page;
    if (!error || page >= 0 && (offset + (long long)count <= page || offset >= page + 4096))
        return real(fd, bytes, count, offset);
    /* As Linux does: what stands before it first. */
    if (page > offset) return real(fd, bytes, page - offset, offset);
    errno = error;
    return -1;
}
int fdatasync(int fd) {
    REAL(fdatasync);
    int error = fails("sync", fd);
    if (!error) return real(fd);
    errno = error;
    return -1;
}
int fsync(int fd) {
    REAL(fsync);
    int error = fails("sync", fd);
    if (!error) return real(fd);
    errno = error;
    return -1;
}
int ftruncate64(int fd, off64_t length) {
    REAL(ftruncate64);
    int error = fails("truncate", fd);
    if (!error) return real(fd, length);
    errno = error;
    return -1;
}
int rename(const char *from, const char *to) {
    REAL(rename);
    int error = fails_at("rename", from);
    if (!error) error = real(from, to) ? errno : 0;
    fails_at("moved", from);
    errno = error;
    return error ? -1 : 0;
}
int unlink(const char *path) {
    REAL(unlink);
    int error = fails_at("unlink", path);
    if (!error) error = real(path) ? errno : 0;
    fails_at("gone", path);
    errno = error;
    return error ? -1 : 0;
}
int clock_gettime(clockid_t clock, struct timespec *time) {
    REAL(clock_gettime);
    long long rate, since;
    const char *fast = getenv("FAULTS_CLOCK");
    int outcome = real(clock, time);
    if (clock == CLOCK_REALTIME && fast && sscanf(fast, "%lld %lld", &rate, &since) == 2)
        time->tv_sec = since + (time->tv_sec - since) * rate + time->tv_nsec * rate / 1000000000;
    return outcome;
}
/* As NFSv4, which makes byte-range locks of them: an exclusive one needs a descriptor that writes, a shared one one
   that reads. */
int flock(int fd, int operation) {
    REAL(flock);
    if (getenv("FAULTS_NFS_FLOCK")) {
        int mode = fcntl(fd, F_GETFL) & O_ACCMODE;
        if ((operation & LOCK_EX) && mode == O_RDONLY || (operation & LOCK_SH) && mode == O_WRONLY) {
            errno = EBADF;
            return -1;
        }
    }
    return real(fd, operation);
}
"#;

/// The library and the file that commands it.
pub struct FaultyDisk {
    library: PathBuf,
    command: PathBuf,
    _folder: tempfile::TempDir,
}

impl FaultyDisk {
    /// Compiles it; `None` where there is no C compiler, which is then said.
    pub fn compile() -> Outcome<Option<FaultyDisk>> {
        let folder = tempfile::tempdir()?;
        let (source, library) = (folder.path().join("faults.c"), folder.path().join("faults.so"));
        fs::write(&source, SOURCE)?;
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
        match run(&mut compiler) {
            Err(error) => {
                println!("NOT TESTED: a disk that reports errors needs a C compiler: {error}");
                Ok(None)
            }
            Ok(()) => {
                Ok(Some(FaultyDisk { library, command: folder.path().join("faults"), _folder: folder }))
            }
        }
    }

    /// The shell command that puts it in front of a program.
    pub fn preload(&self) -> String {
        format!("export LD_PRELOAD='{}' FAULTS_FILE='{}'", self.library.display(), self.command.display())
    }

    /// The same, over a file system whose flock refuses what NFSv4 refuses.
    pub fn preload_over_nfs_locks(&self) -> String {
        format!("{} FAULTS_NFS_FLOCK=1", self.preload())
    }

    /// From now on the page of 4 KiB that starts at `page` cannot be read in files whose path ends with `suffix`.
    pub fn hide(&self, suffix: &str, page: u64) -> Outcome {
        self.begin("read", "EIO", &format!("{suffix} {page}"))
    }

    /// The same, with a clock that runs `rate` times as fast from now on.
    pub fn preload_with_fast_clock(&self, rate: u32) -> Outcome<String> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        Ok(format!("{} FAULTS_CLOCK='{rate} {now}'", self.preload()))
    }

    /// From now on `operations` (read, write, sync, truncate, rename, moved, unlink, gone) fail on files whose path ends with `suffix`.
    pub fn begin(&self, operations: &str, error: &str, suffix: &str) -> Outcome {
        let number = match error {
            "EIO" => 5,
            "ENOSPC" => 28,
            "EROFS" => 30,
            "SIGKILL" => -9,
            _ => return Err(format!("no number for {error}").into()),
        };
        let draft = self.command.with_extension("new");
        fs::write(&draft, format!("{operations} {number} {suffix}\n"))?;
        Ok(fs::rename(draft, &self.command)?)
    }

    /// All is well again.
    pub fn end(&self) -> Outcome {
        match fs::remove_file(&self.command) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn run(command: &mut Command) -> Outcome {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned().into())
}
