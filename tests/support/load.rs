//! A load that remembers what it was promised.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Outcome;
use super::client::Client;
use super::wait::wait_until;

/// Clients that ask for the pixel over and over, each time with a number of its own in the query.
pub struct Load {
    stop: Arc<AtomicBool>,
    promised: Arc<Mutex<Vec<u64>>>,
    refused: Arc<Mutex<Vec<u64>>>,
    threads: Vec<JoinHandle<()>>,
}

/// The numbers of the visits of a load.
pub struct Answers {
    /// Those that were answered with 200.
    pub promised: Vec<u64>,
    /// Those that were answered with 503.
    pub refused: Vec<u64>,
}

/// A number that no other visit of this test process has.
pub fn next_number() -> u64 {
    static NUMBERS: AtomicU64 = AtomicU64::new(1);
    NUMBERS.fetch_add(1, Ordering::Relaxed)
}

impl Load {
    /// Starts `clients` connections to `address`; one that breaks is opened anew.
    pub fn start(address: SocketAddr, clients: usize) -> Load {
        Self::paced(address, clients, Duration::ZERO)
    }

    /// Starts it with a pause of each client after each answer.
    pub fn paced(address: SocketAddr, clients: usize, pause: Duration) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let (promised, refused) = <(Arc<Mutex<Vec<u64>>>, Arc<Mutex<Vec<u64>>>)>::default();
        let threads = (0..clients).map(|_| {
            let (stop, promised, refused) = (stop.clone(), promised.clone(), refused.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // Whatever ends a connection, there is another.
                    let _ = Self::visit(address, pause, &stop, (&promised, &refused));
                    std::thread::sleep(Duration::from_millis(5));
                }
            })
        });
        let threads = threads.collect();
        Load { stop, promised, refused, threads }
    }

    fn visit(
        address: SocketAddr,
        pause: Duration,
        stop: &AtomicBool,
        (promised, refused): (&Mutex<Vec<u64>>, &Mutex<Vec<u64>>),
    ) -> Outcome {
        let mut client = Client::connect(address)?;
        client.stream().set_read_timeout(Some(Duration::from_secs(3)))?;
        while !stop.load(Ordering::Relaxed) {
            let number = next_number();
            match client.ask("GET", &format!("/track?n={number}"), &[])?.status {
                200 => promised.lock().expect("no panic holds it").push(number),
                503 => refused.lock().expect("no panic holds it").push(number),
                status => return Err(format!("an answer of {status}").into()),
            }
            std::thread::sleep(pause);
        }
        Ok(())
    }

    /// How many visits were promised so far.
    pub fn count(&self) -> usize {
        self.promised.lock().expect("no panic holds it").len()
    }

    /// How many visits were answered with 503 so far.
    pub fn refused_count(&self) -> usize {
        self.refused.lock().expect("no panic holds it").len()
    }

    /// Waits until `more` further visits are promised.
    pub fn wait_for(&self, more: usize) -> Outcome {
        let target = self.count() + more;
        wait_until(&format!("{target} promised visits"), || self.count() >= target)
    }

    /// Waits until more than `more` further visits are answered with 503.
    pub fn wait_for_refusals(&self, more: usize) -> Outcome {
        let before = self.refused_count();
        wait_until("answers of 503", || self.refused_count() > before + more)
    }

    /// Ends the load: how its visits were answered.
    pub fn stop(self) -> Answers {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("a load thread does not panic"));
        let take =
            |numbers: &Mutex<Vec<u64>>| std::mem::take(&mut *numbers.lock().expect("no panic holds it"));
        Answers { promised: take(&self.promised), refused: take(&self.refused) }
    }
}
