//! Reaches the sockets of connections that tiny_http keeps, and hands nobody (T14).
//!
//! The process looks through its own descriptors for those of a client, and duplicates them. A look costs time
//! for each descriptor, so it is made for all that wait for one. Where a sandbox forbids it, as Docker's does,
//! the timeouts end connections later.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Sender, bounded};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use socket2::Socket;

/// What a look finds of one client: its socket, unless it is gone; or what the system said.
type Found = Result<Option<Socket>, Errno>;

/// The sockets of this process's clients.
#[derive(Default)]
pub(super) struct Sockets {
    wanted: Mutex<Vec<(SocketAddr, Sender<Found>)>>,
    // Held by whoever looks.
    turn: Mutex<()>,
    // As a sandbox would have it.
    is_forbidden: AtomicBool,
}

impl Sockets {
    /// A duplicate of the socket of the connection with `peer`; `None` where it is gone.
    ///
    /// # Errors
    /// What the system said, where that is not allowed.
    pub(super) fn of(&self, peer: SocketAddr) -> Found {
        let (sender, found) = bounded(1);
        lock(&self.wanted).push((peer, sender));
        let turn = lock(&self.turn);
        // Empty, or others' only, where somebody looked for this one while it waited for its turn.
        let wanted = mem::take(&mut *lock(&self.wanted));
        if !wanted.is_empty() {
            let mut sockets = self.look(&wanted.iter().map(|(peer, _)| *peer).collect());
            for (peer, sender) in wanted {
                let found = sockets.as_mut().map(|sockets| sockets.remove(&peer)).map_err(|error| *error);
                // There is room for one, and whoever waits for it is in this function.
                let _ = sender.send(found);
            }
        }
        drop(turn);
        found.recv().unwrap_or(Err(Errno::CANCELED))
    }

    /// Duplicates of the sockets of the connections with `peers` that are there.
    ///
    /// # Errors
    /// What the system said, where that is not allowed.
    pub(super) fn of_all(&self, peers: &HashSet<SocketAddr>) -> Result<HashMap<SocketAddr, Socket>, Errno> {
        let _turn = lock(&self.turn);
        self.look(peers)
    }

    /// Shuts the connections with `peers` down.
    ///
    /// # Errors
    /// What the system said, where none of it is allowed.
    pub(super) fn hang_up(&self, peers: &HashSet<SocketAddr>) -> Result<(), Errno> {
        for socket in self.of_all(peers)?.into_values() {
            // It may have ended by itself.
            let _ = socket.shutdown(Shutdown::Both);
        }
        Ok(())
    }

    /// From now on nothing is allowed.
    #[cfg(test)]
    pub(super) fn forbid(&self) {
        self.is_forbidden.store(true, Ordering::Relaxed);
    }

    fn look(&self, peers: &HashSet<SocketAddr>) -> Result<HashMap<SocketAddr, Socket>, Errno> {
        if self.is_forbidden.load(Ordering::Relaxed) {
            return Err(Errno::PERM);
        }
        let process = pidfd_open(getpid(), PidfdFlags::empty())?;
        let descriptors = fs::read_dir("/proc/self/fd").map_err(|error| errno(&error))?;
        let mut sockets = HashMap::new();
        for entry in descriptors.flatten() {
            let link = fs::read_link(entry.path()).unwrap_or_default();
            let is_socket = link.to_string_lossy().starts_with("socket:");
            let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if !is_socket {
                continue;
            }
            let socket = match pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) {
                Ok(descriptor) => Socket::from(descriptor),
                // Closed in the meantime.
                Err(Errno::BADF) => continue,
                Err(error) => return Err(error),
            };
            let peer = socket.peer_addr().ok().and_then(|address| address.as_socket());
            if let Some(peer) = peer.filter(|peer| peers.contains(peer)) {
                sockets.insert(peer, socket);
            }
        }
        Ok(sockets)
    }
}

/// Whether `peer` has said that it sends no more on its connection, as far as the kernel tells.
pub(super) fn has_ended(peer: SocketAddr) -> bool {
    connections().is_some_and(|all| !all.contains(&(peer, ESTABLISHED)))
}

/// The other ends of all connections that the kernel still knows: for where no socket can be reached. `None` where
/// it does not say.
pub(super) fn connected_peers() -> Option<HashSet<SocketAddr>> {
    let open = connections()?.into_iter().filter(|(_, state)| *state != TIME_WAIT);
    Some(open.map(|(peer, _)| peer).collect())
}

const ESTABLISHED: u8 = 1;
/// It waits only for its port to be free again.
const TIME_WAIT: u8 = 6;

/// The other end and the state of each connection (proc_pid_net(5)).
fn connections() -> Option<HashSet<(SocketAddr, u8)>> {
    let mut connections = HashSet::new();
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        match fs::read_to_string(table) {
            Ok(text) => connections.extend(text.lines().skip(1).filter_map(connection)),
            // A kernel without IPv6 has no such table.
            Err(_) if table.ends_with('6') => {}
            Err(_) => return None,
        }
    }
    Some(connections)
}

/// How many connections wait on a listening socket to be accepted; `None` where the kernel does not say.
pub(super) fn waiting(socket: &TcpListener) -> Option<u64> {
    let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).ok()?;
    let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_string();
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
        .map(|table| fs::read_to_string(table).unwrap_or_default());
    // Its queue of what is to be read is the one of connections; the tenth column is its inode.
    let own = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (_, waiting) = columns.get(4).filter(|_| columns.get(9) == Some(&&*inode))?.split_once(':')?;
        u64::from_str_radix(waiting, 16).ok()
    };
    tables.iter().flat_map(|table| table.lines()).find_map(own)
}

fn connection(line: &str) -> Option<(SocketAddr, u8)> {
    let mut columns = line.split_whitespace().skip(2);
    let (ip, port) = columns.next()?.split_once(':')?;
    let state = u8::from_str_radix(columns.next()?, 16).ok()?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Words of 32 bits, each in this machine's order.
    let word = |n: usize| u32::from_str_radix(ip.get(n * 8..n * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    if ip.len() == 8 {
        return Some(((Ipv4Addr::from(word(0)?), port).into(), state));
    }
    let words = [word(0)?, word(1)?, word(2)?, word(3)?];
    let bytes: [u8; 16] = words.concat().try_into().ok()?;
    Some(((Ipv6Addr::from(bytes), port).into(), state))
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change under a lock is one call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpStream;
    use std::thread;

    #[test]
    fn many_that_look_at_once_each_get_their_own() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let pairs: Vec<_> = (0..20)
            .map(|_| {
                let client = TcpStream::connect(address).expect("it listens");
                (client, listener.accept().expect("one has connected"))
            })
            .collect();
        let sockets = Sockets::default();
        thread::scope(|scope| {
            for (client, (_, peer)) in &pairs {
                let sockets = &sockets;
                scope.spawn(move || {
                    let socket = sockets.of(*peer).expect("it is allowed").expect("it is there");
                    socket.shutdown(Shutdown::Write).expect("it is open");
                    assert_eq!((&mut &*client).read(&mut [0]).expect("it was shut down"), 0);
                });
            }
        });
        let gone = SocketAddr::from(([192, 0, 2, 1], 1));
        assert!(sockets.of(gone).expect("it is allowed").is_none());
        sockets.forbid();
        assert!(sockets.of(pairs[0].1.1).is_err() && sockets.hang_up(&HashSet::from([gone])).is_err());
    }

    #[test]
    fn the_kernel_says_who_is_connected() {
        for (case, listen) in [("IPv4", "127.0.0.1:0"), ("IPv6", "[::1]:0")] {
            let Ok(listener) = TcpListener::bind(listen) else { continue };
            let client = TcpStream::connect(listener.local_addr().expect(case)).expect(case);
            assert_eq!(waiting(&listener), Some(1), "{case}");
            let (_server, peer) = listener.accept().expect(case);
            assert_eq!(waiting(&listener), Some(0), "{case}");
            assert!(connected_peers().expect("there is a /proc").contains(&peer), "{case}");
            assert!(!has_ended(peer), "{case}");
            client.shutdown(Shutdown::Write).expect(case);
            assert!(has_ended(peer) && connected_peers().is_some_and(|all| all.contains(&peer)), "{case}");
        }
        let line = "0: 0100007F:1F90 0200007F:E5C2 06 00000000:00000000";
        assert_eq!(connection(line), Some((SocketAddr::from(([127, 0, 0, 2], 58_818)), TIME_WAIT)));
        assert_eq!(connection("0: nonsense"), None);
    }
}
