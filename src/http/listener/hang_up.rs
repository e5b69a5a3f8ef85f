//! Ends connections that tiny_http keeps, and hands nobody the socket of.
//!
//! The process looks through its own descriptors for those of the client, and shuts them down by a
//! duplicate. Where a sandbox forbids that, as Docker's does, the timeouts end them later.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{Shutdown, SocketAddr};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use socket2::Socket;

/// Shuts the connections with `peers` down.
///
/// # Errors
/// What the system said, where none of it is allowed.
pub(super) fn hang_up(peers: &HashSet<SocketAddr>) -> io::Result<()> {
    let process = pidfd_open(getpid(), PidfdFlags::empty())?;
    for entry in fs::read_dir("/proc/self/fd")?.flatten() {
        let link = fs::read_link(entry.path()).unwrap_or_default();
        let is_socket = link.to_string_lossy().starts_with("socket:");
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if !is_socket {
            continue;
        }
        let socket = match pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) {
            Ok(descriptor) => Socket::from(descriptor),
            // Closed in the meantime.
            Err(rustix::io::Errno::BADF) => continue,
            Err(error) => return Err(error.into()),
        };
        let peer = socket.peer_addr().ok().and_then(|address| address.as_socket());
        if peer.is_some_and(|peer| peers.contains(&peer)) {
            // It may have ended by itself.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
    Ok(())
}
