//! Ends a process whose listener nobody reaches: its supervisor starts it again.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::shared::Shared;
use crate::limits::has_room;

const PROBE_EVERY: Duration = Duration::from_secs(1);
const PROBE_TIMEOUT: Duration = Duration::from_millis(750);
/// A listener that answers no probe for this long ends the process.
const DEAF_MAX: Duration = Duration::from_secs(10);
/// A listener that serves the connections it has, but answers no new one for this long, ends it too.
const BUSY_MAX: Duration = Duration::from_secs(60);

/// Asks for a page every second, until the listener is closed.
///
/// # Errors
/// That nobody answered for too long.
pub(super) fn watch(address: SocketAddr, shared: &Shared) -> Result<(), String> {
    let mut silence = Duration::ZERO;
    let mut asked = (0, Instant::now());
    let mut turn = Instant::now();
    while !shared.stop.wait(PROBE_EVERY) {
        let answered = answers(address);
        let requests = shared.requests.load(Ordering::Relaxed);
        if requests != asked.0 {
            asked = (requests, Instant::now());
        }
        // A process that was stopped or starved for longer has not asked in the meantime.
        silence = if answered { Duration::ZERO } else { silence + turn.elapsed().min(PROBE_EVERY * 2) };
        turn = Instant::now();
        let patience = if asked.1.elapsed() < DEAF_MAX {
            BUSY_MAX
        } else if answered || has_room() {
            DEAF_MAX
        } else {
            // Clients hold all descriptors: those that say nothing, until the read timeout.
            DEAF_MAX + shared.settings.read_timeout * 2
        };
        if silence >= patience && !shared.stop.is_set() {
            return Err(format!(
                "the {} listener at {address} has answered nobody new for {} s; ending, to be started again",
                shared.settings.name,
                silence.as_secs()
            ));
        }
    }
    Ok(())
}

/// Whether a request at `address` is answered in time.
fn answers(address: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&address, PROBE_TIMEOUT)?;
        stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
        stream.write_all(b"GET /robots.txt HTTP/1.0\r\n\r\n")?;
        let mut answer = [0; 9];
        stream.read_exact(&mut answer)?;
        // The rest is not read: closing with a reset keeps no port for a minute.
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        Ok::<_, io::Error>(answer.starts_with(b"HTTP/"))
    };
    ask().unwrap_or(false)
}
