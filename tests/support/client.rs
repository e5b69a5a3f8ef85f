//! An HTTP client of plain sockets, and a load that remembers what it was promised.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Outcome;
use super::program::{lines, wait_until};

/// The 43 bytes of the contract.
pub const GIF_HEX: &str =
    "47494638396101000100800100000000ffffff21f90401000001002c00000000010001000002024c01003b";

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header, if it is there once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.head.lines().filter_map(|line| {
            let (field, value) = line.split_once(": ")?;
            field.eq_ignore_ascii_case(name).then_some(value)
        });
        let value = values.next();
        if values.next().is_some() { None } else { value }
    }

    pub fn body_hex(&self) -> String {
        self.body.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A connection.
pub struct Client {
    stream: TcpStream,
    buffered: Vec<u8>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Outcome<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        stream.set_nodelay(true)?;
        Ok(Client { stream, buffered: Vec::new() })
    }

    pub fn send(&mut self, bytes: &[u8]) -> Outcome {
        Ok(self.stream.write_all(bytes)?)
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Reads one answer; `has_body` is false for one to HEAD. Interim answers are passed over.
    pub fn receive(&mut self, has_body: bool) -> Outcome<Answer> {
        loop {
            let end = loop {
                if let Some(end) = self.buffered.windows(4).position(|four| four == b"\r\n\r\n") {
                    break end;
                }
                self.fill()?;
            };
            let head = String::from_utf8(self.buffered.drain(..end + 4).take(end).collect())?;
            let status = head.split(' ').nth(1).unwrap_or_default().parse()?;
            let mut answer = Answer { status, head, body: Vec::new() };
            if status == 100 {
                continue;
            }
            let length: usize = answer.header("Content-Length").unwrap_or("0").parse()?;
            if has_body {
                while self.buffered.len() < length {
                    self.fill()?;
                }
                answer.body = self.buffered.drain(..length).collect();
            }
            return Ok(answer);
        }
    }

    /// Sends a request without a body and reads its answer.
    pub fn ask(&mut self, method: &str, target: &str, headers: &[(&str, &str)]) -> Outcome<Answer> {
        let mut request = format!("{method} {target} HTTP/1.1\r\nHost: px.example.com\r\n");
        headers.iter().for_each(|(name, value)| request += &format!("{name}: {value}\r\n"));
        self.send((request + "\r\n").as_bytes())?;
        self.receive(method != "HEAD")
    }

    /// Whether the server has closed the connection, or does within ten seconds.
    pub fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(read) => read == 0,
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }

    fn fill(&mut self) -> Outcome {
        let mut piece = [0; 4096];
        match self.stream.read(&mut piece)? {
            0 => Err("the server closed the connection".into()),
            read => {
                self.buffered.extend_from_slice(&piece[..read]);
                Ok(())
            }
        }
    }
}

/// One request on a connection of its own.
pub fn get(address: SocketAddr, target: &str, headers: &[(&str, &str)]) -> Outcome<Answer> {
    Client::connect(address)?.ask("GET", target, headers)
}

/// What `/readyz` says.
pub fn ready(admin: SocketAddr) -> Outcome<(u16, String)> {
    let answer = get(admin, "/readyz", &[])?;
    Ok((answer.status, String::from_utf8(answer.body)?))
}

/// The value of a metric without labels.
pub fn metric(admin: SocketAddr, name: &str) -> Outcome<f64> {
    let text = String::from_utf8(get(admin, "/metrics", &[])?.body)?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.ok_or_else(|| format!("no {name} in\n{text}"))?.parse()?)
}

/// Clients that ask for the pixel over and over, each time with a number of its own in the query.
pub struct Load {
    stop: Arc<AtomicBool>,
    promised: Arc<Mutex<Vec<u64>>>,
    refused: Arc<Mutex<Vec<u64>>>,
    threads: Vec<JoinHandle<()>>,
}

/// A number that no other visit of this test process has.
pub fn next_number() -> u64 {
    static NUMBERS: AtomicU64 = AtomicU64::new(1);
    NUMBERS.fetch_add(1, Ordering::Relaxed)
}

impl Load {
    /// Starts `clients` connections to each of `addresses`; one that breaks is opened anew.
    pub fn start(addresses: &[SocketAddr], clients: usize) -> Load {
        Self::paced(addresses, clients, Duration::ZERO)
    }

    /// The same, with a pause of each client after each answer.
    pub fn paced(addresses: &[SocketAddr], clients: usize, pause: Duration) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let (promised, refused) = <(Arc<Mutex<Vec<u64>>>, Arc<Mutex<Vec<u64>>>)>::default();
        let threads = addresses.iter().flat_map(|address| std::iter::repeat_n(*address, clients));
        let threads = threads.map(|address| {
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
        client.stream.set_read_timeout(Some(Duration::from_secs(3)))?;
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

    /// The visits that were answered with 503 so far.
    pub fn refused(&self) -> Vec<u64> {
        self.refused.lock().expect("no panic holds it").clone()
    }

    /// Waits until `more` further visits are promised.
    pub fn wait_for(&self, more: usize) -> Outcome {
        let target = self.count() + more;
        wait_until(&format!("{target} promised visits"), || self.count() >= target)
    }

    /// Ends the load; the numbers of the visits that were answered with 200.
    pub fn stop(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("a load thread does not panic"));
        std::mem::take(&mut *self.promised.lock().expect("no panic holds it"))
    }
}

/// How often each number of a load stands in an output of format ndjson.
pub fn written(output: &Path) -> BTreeMap<u64, usize> {
    let mut counts = BTreeMap::new();
    for line in lines(output) {
        // The last line may be half there while the file is written to.
        let Ok(visit) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
        let number = visit["query"].as_str().and_then(|query| query.strip_prefix("n=")?.parse().ok());
        if let Some(number) = number {
            *counts.entry(number).or_insert(0) += 1;
        }
    }
    counts
}

/// Waits until every promised visit is written, then checks that each is there once and that no line
/// is torn.
pub fn all_written_once(promised: &[u64], output: &Path) -> Outcome {
    let missing = || {
        let counts = written(output);
        promised.iter().filter(|number| !counts.contains_key(number)).count()
    };
    wait_until("every promised visit in the output", || missing() == 0)
        .map_err(|error| format!("{error}: {} of {} are missing", missing(), promised.len()))?;
    let twice: Vec<_> = written(output).into_iter().filter(|(_, count)| *count > 1).collect();
    if !twice.is_empty() {
        return Err(format!("written more than once: {twice:?}").into());
    }
    let torn =
        lines(output).into_iter().find(|line| serde_json::from_str::<serde_json::Value>(line).is_err());
    torn.map_or(Ok(()), |line| Err(format!("not a whole line: {line}").into()))
}
