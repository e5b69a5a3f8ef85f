//! An HTTP client of plain sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::Outcome;

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
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then_some(value.trim_start())
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
                // Only as the client asked for it: with nothing of tiny_http's own.
                if answer.header("Upgrade").is_some() {
                    return Ok(answer);
                }
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
