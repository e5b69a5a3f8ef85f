//! A TCP proxy that cuts connections in the middle of a frame, and refuses them or swallows answers when told to.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::Outcome;
use super::broker::url_at;
use super::port::free_port;

/// The proxy of one port. It ends with its value.
pub struct Proxy {
    port: u16,
    state: Arc<State>,
}

struct State {
    target: u16,
    ended: AtomicBool,
    refuses: AtomicBool,
    swallows: AtomicBool,
    // How many bytes the next connections pass before each is cut; the rest of them are not cut.
    cuts: Mutex<Vec<u32>>,
    cut: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// A proxy to `target` on this machine.
    pub fn start(target: u16) -> Proxy {
        let state = State {
            target,
            ended: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
            swallows: AtomicBool::new(false),
            cuts: Mutex::default(),
            cut: AtomicUsize::new(0),
            open: Mutex::default(),
        };
        let proxy = Proxy { port: free_port(), state: Arc::new(state) };
        let (port, state) = (proxy.port, proxy.state.clone());
        thread::spawn(move || listen(port, &state));
        proxy
    }

    /// The address of the broker behind it.
    pub fn url(&self) -> String {
        url_at(self.port)
    }

    /// Cuts the connections that are open, and the next ones after as many bytes each.
    pub fn cut(&self, after_bytes: &[u32]) {
        self.state.cuts.lock().expect("no panic holds it").extend(after_bytes);
        self.state.cut_open();
    }

    /// How many connections were cut after their bytes.
    pub fn cut_count(&self) -> usize {
        self.state.cut.load(Ordering::Relaxed)
    }

    /// Swallows what the server says from now on, or lets it through again.
    pub fn swallow_answers(&self, swallows: bool) {
        self.state.swallows.store(swallows, Ordering::Relaxed);
    }

    /// Refuses connections, and cuts those that are open; or takes them again.
    pub fn refuse(&self, refuses: bool) {
        self.state.refuses.store(refuses, Ordering::Relaxed);
        if refuses {
            self.state.cut_open();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        self.state.cut_open();
    }
}

impl State {
    fn cut_open(&self) {
        for stream in self.open.lock().expect("no panic holds it").drain(..) {
            // The peer may have closed it already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn listen(port: u16, state: &Arc<State>) {
    while !state.ended.load(Ordering::Relaxed) {
        let listening = !state.refuses.load(Ordering::Relaxed);
        let Some(listener) = listening.then(|| TcpListener::bind(("127.0.0.1", port)).ok()).flatten() else {
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        listener.set_nonblocking(true).expect("a listener can be made so");
        while !state.ended.load(Ordering::Relaxed) && !state.refuses.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((client, _)) => drop(forward(client, state)),
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

fn forward(client: TcpStream, state: &Arc<State>) -> Outcome {
    client.set_nonblocking(false)?;
    let server = TcpStream::connect_timeout(
        &SocketAddr::from(([127, 0, 0, 1], state.target)),
        Duration::from_secs(1),
    )?;
    let cut_after = state.cuts.lock().expect("no panic holds it").pop();
    let left = Arc::new(AtomicI64::new(cut_after.map_or(i64::MAX, i64::from)));
    state.open.lock().expect("no panic holds it").extend([client.try_clone()?, server.try_clone()?]);
    let ways = [(client.try_clone()?, server.try_clone()?, false), (server, client, true)];
    for (mut from, mut to, is_answer) in ways {
        let (left, state) = (left.clone(), state.clone());
        thread::spawn(move || {
            let mut bytes = [0; 16_384];
            while let Ok(read @ 1..) = from.read(&mut bytes) {
                if is_answer && state.swallows.load(Ordering::Relaxed) {
                    continue;
                }
                let before = left.fetch_sub(read as i64, Ordering::Relaxed);
                let passed = (read as i64).min(before.max(0)) as usize;
                if to.write_all(&bytes[..passed]).is_err() || passed < read {
                    if passed < read {
                        state.cut.fetch_add(1, Ordering::Relaxed);
                    }
                    break;
                }
            }
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}
