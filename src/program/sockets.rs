//! Listening sockets that outlive a program: systemd opens them, or the program that starts itself again passes them
//! on. In between, clients wait in their backlog instead of being refused.
//!
//! The way is systemd's for both (sd_listen_fds(3)): LISTEN_FDS sockets from the descriptor 3 on, or from
//! LISTEN_FDS_FIRST_FD, named in LISTEN_FDNAMES.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use listenfd::ListenFd;
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

/// The name of the admin listener's socket; one of any other name is the public listener's.
const ADMIN: &str = "admin";
/// The first descriptor that is not one of the standard streams.
const FIRST_FD: i32 = 3;
/// How often a row of free descriptors is looked for.
const TRIES_MAX: usize = 64;

/// Sockets that were given to this program, and those that it will give to the next.
#[derive(Default)]
pub(super) struct Sockets {
    given: Mutex<Vec<(String, TcpListener)>>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    sockets: Vec<(&'static str, TcpListener)>,
    // Their duplicates whose numbers follow one another, made while there are descriptors.
    row: Vec<OwnedFd>,
}

impl Sockets {
    /// Takes what was given. To be called before there is a second thread, as the environment is changed.
    pub(super) fn from_environment() -> Self {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut descriptors = ListenFd::from_env();
        let mut given = Vec::new();
        for number in 0..descriptors.len() {
            let name = names.next().unwrap_or_default().to_string();
            match descriptors.take_tcp_listener(number) {
                Ok(socket) => given.extend(socket.map(|socket| (name, socket))),
                Err(error) => log::warn!("of the sockets given, `{name}` is not used: {error}"),
            }
        }
        Sockets { given: Mutex::new(given), kept: Mutex::default() }
    }

    /// The socket that was given for the listener called `name`.
    pub(super) fn take(&self, name: &str) -> Option<TcpListener> {
        let mut given = lock(&self.given);
        let at = given.iter().position(|(given, _)| (given == ADMIN) == (name == ADMIN))?;
        Some(given.remove(at).1)
    }

    /// Keeps the socket of the listener called `name`, to be passed on.
    ///
    /// # Errors
    /// What the system said where no descriptors are to be had.
    pub(super) fn keep(&self, name: &'static str, socket: TcpListener) -> io::Result<()> {
        let mut kept = lock(&self.kept);
        kept.sockets.push((name, socket));
        kept.row = row_of(&kept.sockets)?;
        Ok(())
    }

    /// Has `command`, which replaces this process, get the sockets that are kept.
    ///
    /// # Errors
    /// What the system said; then `command` gets none.
    pub(super) fn pass_on(&self, command: &mut Command) -> io::Result<()> {
        let kept = lock(&self.kept);
        let Some(first) = kept.row.first() else { return Ok(()) };
        for descriptor in &kept.row {
            fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        let names: Vec<&str> = kept.sockets.iter().map(|(name, _)| *name).collect();
        command
            .env("LISTEN_PID", std::process::id().to_string())
            .env("LISTEN_FDS", kept.row.len().to_string())
            .env("LISTEN_FDS_FIRST_FD", first.as_raw_fd().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        Ok(())
    }
}

/// Duplicates of these whose numbers follow one another.
fn row_of(sockets: &[(&str, TcpListener)]) -> io::Result<Vec<OwnedFd>> {
    let mut from = FIRST_FD;
    for _ in 0..TRIES_MAX {
        let mut row: Vec<OwnedFd> = Vec::new();
        for (_, socket) in sockets {
            row.push(fcntl_dupfd_cloexec(socket, from)?);
            from = row.last().map_or(from, |newest| newest.as_raw_fd() + 1);
        }
        if row.windows(2).all(|two| two[0].as_raw_fd() + 1 == two[1].as_raw_fd()) {
            return Ok(row);
        }
        // The last one begins the next row: what is behind it may be free.
        from -= 1;
    }
    Err(io::Error::other("no row of free descriptors"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change under a lock is one call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn socket() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").expect("a port is free")
    }

    #[test]
    fn a_row_goes_around_what_is_taken() {
        let sockets = [("http", socket()), ("admin", socket())];
        let taken: Vec<OwnedFd> = (0..8)
            .map(|n| fcntl_dupfd_cloexec(&sockets[0].1, 500 + 2 * n).expect("a descriptor is free"))
            .collect();
        let row = row_of(&sockets).expect("there is room");
        assert_eq!(row[0].as_raw_fd() + 1, row[1].as_raw_fd());
        let inode = |fd: i32| fs::read_link(format!("/proc/self/fd/{fd}")).expect("it is open");
        for ((_, socket), descriptor) in sockets.iter().zip(&row) {
            assert_eq!(inode(socket.as_raw_fd()), inode(descriptor.as_raw_fd()));
        }
        drop(taken);
        assert!(row_of(&[]).expect("nothing is asked for").is_empty());
    }

    #[test]
    fn the_admin_s_socket_is_known_by_its_name_and_the_public_one_has_any() {
        let given = vec![("admin".to_string(), socket()), ("pixel.socket".to_string(), socket())];
        let addresses: Vec<_> = given.iter().map(|(_, socket)| socket.local_addr().ok()).collect();
        let sockets = Sockets { given: Mutex::new(given), ..Sockets::default() };
        let taken = |name| sockets.take(name).map(|socket| socket.local_addr().ok());
        assert_eq!(taken("http"), Some(addresses[1]));
        assert_eq!(taken("http"), None);
        assert_eq!(taken("admin"), Some(addresses[0]));
    }
}
