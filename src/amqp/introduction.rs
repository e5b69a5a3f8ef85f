//! What a connection says of itself: its name, the product and the version.
//!
//! amiquip 0.4.2 says that it is the product, and takes neither another one nor a name (only `information`, a text). What
//! it answers to the broker's greeting, `connection.start-ok`, is the first frame that it writes; ours go into that frame
//! on its way to the socket.

use std::io::{self, ErrorKind, Read, Write};

use amiquip::IoStream;
use mio::{Evented, Poll, PollOpt, Ready, Token};

/// How a frame with a method on channel 0 begins (AMQP 0-9-1, 4.2.3). Its length follows, in 4 bytes.
const METHOD_FRAME: &[u8] = &[1, 0, 0];
/// Class and method of `connection.start-ok`. The client's properties follow, then its login.
const START_OK: &[u8] = &[0, 10, 0, 11];
const FRAME_END: u8 = 0xce;
/// The types of amiquip's own properties, texts and tables: both begin with their length in 4 bytes.
const TEXT: u8 = b'S';
const TABLE: u8 = b'F';

/// A stream to a broker that learns on it who we are.
pub(super) struct Introduced<S> {
    stream: S,
    properties: Vec<(&'static str, String)>,
    // How much of our frame was written, until it is past.
    written: Option<usize>,
}

impl<S> Introduced<S> {
    pub(super) fn new(stream: S) -> Self {
        Introduced { stream, properties: properties(), written: Some(0) }
    }
}

fn properties() -> Vec<(&'static str, String)> {
    let program = std::env::current_exe().ok();
    let program = program.as_ref().and_then(|path| path.file_stem()?.to_str()).unwrap_or("pixel");
    // An upgrade may have replaced the file.
    let program = program.trim_end_matches(" (deleted)");
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    vec![
        ("connection_name", format!("{program}@{host}")),
        ("product", program.to_string()),
        ("version", env!("CARGO_PKG_VERSION").to_string()),
    ]
}

/// The first bytes of `buffer`, a `connection.start-ok`, and what is written in their place.
fn introduce<'a>(buffer: &'a [u8], ours: &[(&str, String)]) -> Option<(&'a [u8], Vec<u8>)> {
    let mut rest = buffer.strip_prefix(METHOD_FRAME)?;
    let payload = part(&mut rest)?.strip_prefix(START_OK)?;
    let frame = &buffer[..buffer.len() - rest.strip_prefix(&[FRAME_END])?.len()];
    let mut login = payload;
    let mut theirs = part(&mut login)?;
    let mut table = Vec::new();
    while let [length, rest @ ..] = theirs {
        let (name, rest) = rest.split_at_checked(usize::from(*length))?;
        let [TEXT | TABLE, rest @ ..] = rest else { return None };
        let mut rest = rest;
        part(&mut rest)?;
        if ours.iter().all(|(our, _)| our.as_bytes() != name) {
            table.extend(&theirs[..theirs.len() - rest.len()]);
        }
        theirs = rest;
    }
    for (name, value) in ours {
        table.push(u8::try_from(name.len()).ok()?);
        table.extend([name.as_bytes(), &[TEXT]].concat());
        table.extend(counted(value.as_bytes())?);
    }
    let payload = [START_OK, &counted(&table)?, login].concat();
    Some((frame, [METHOD_FRAME, &counted(&payload)?, &[FRAME_END]].concat()))
}

/// Takes a part off that begins with its length in 4 bytes.
fn part<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (part, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    *bytes = rest;
    Some(part)
}

fn counted(part: &[u8]) -> Option<Vec<u8>> {
    Some([&u32::try_from(part.len()).ok()?.to_be_bytes(), part].concat())
}

impl<S: Write> Write for Introduced<S> {
    /// Where the socket is full, the same bytes have to be given again: amiquip does.
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let Some(written) = &mut self.written else { return self.stream.write(buffer) };
        let Some((frame, ours)) = introduce(buffer, &self.properties) else {
            return self.stream.write(buffer);
        };
        while *written < ours.len() {
            match self.stream.write(&ours[*written..])? {
                0 => return Err(ErrorKind::WriteZero.into()),
                some => *written += some,
            }
        }
        self.written = None;
        Ok(frame.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<S: Read> Read for Introduced<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl<S: Evented> Evented for Introduced<S> {
    fn register(&self, poll: &Poll, token: Token, interest: Ready, opts: PollOpt) -> io::Result<()> {
        self.stream.register(poll, token, interest, opts)
    }

    fn reregister(&self, poll: &Poll, token: Token, interest: Ready, opts: PollOpt) -> io::Result<()> {
        self.stream.reregister(poll, token, interest, opts)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        self.stream.deregister(poll)
    }
}

impl<S: IoStream> IoStream for Introduced<S> {}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket that takes three bytes at a time, and every other time none.
    #[derive(Default)]
    struct Narrow {
        taken: Vec<u8>,
        is_full: bool,
    }

    impl Write for Narrow {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            self.is_full = !self.is_full;
            if self.is_full {
                return Err(ErrorKind::WouldBlock.into());
            }
            let some = &buffer[..buffer.len().min(3)];
            self.taken.extend(some);
            Ok(some.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn frame(properties: &[(&str, u8, &str)]) -> Vec<u8> {
        let mut table = Vec::new();
        for (name, kind, value) in properties {
            table.push(name.len() as u8);
            table.extend([name.as_bytes(), &[*kind], &counted(value.as_bytes()).expect("short")].concat());
        }
        let payload = [START_OK, &counted(&table).expect("short"), b"\x05PLAIN\0\0\0\0\x05en_US"].concat();
        [METHOD_FRAME, &counted(&payload).expect("short"), &[FRAME_END]].concat()
    }

    #[test]
    fn the_first_frame_says_who_we_are_and_every_other_byte_stays() {
        let theirs = frame(&[
            ("capabilities", TABLE, "\x01at\x01"),
            ("platform", TEXT, "linux"),
            ("product", TEXT, "amiquip"),
        ]);
        let ours = frame(&[
            ("capabilities", TABLE, "\x01at\x01"),
            ("platform", TEXT, "linux"),
            ("product", TEXT, "pixel-http"),
        ]);
        let mut stream = Introduced::new(Narrow::default());
        stream.properties = vec![("product", "pixel-http".into())];
        // The broker greets in between. Later, the same bytes may be anybody's.
        let (header, more) = (b"AMQP\0\0\x09\x01", b"\x01\0\x01 more");
        for written in [&header[..], &[&theirs[..], more].concat(), &theirs] {
            let mut left = written;
            while !left.is_empty() {
                match stream.write(left) {
                    Ok(some) => left = &left[some..],
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
        }
        assert_eq!(stream.stream.taken, [header, &ours[..], more, &theirs].concat());
    }

    #[test]
    fn what_is_no_greeting_or_not_understood_is_left_alone() {
        let ours = [("product", "pixel-http".to_string())];
        let whole = frame(&[("product", TEXT, "amiquip")]);
        assert!(introduce(&whole, &ours).is_some());
        for end in 0..whole.len() {
            assert_eq!(introduce(&whole[..end], &ours), None, "{end} bytes of it");
        }
        assert_eq!(introduce(&frame(&[("heartbeat", b'I', "4")]), &ours), None);
        assert_eq!(introduce(b"AMQP\0\0\x09\x01", &ours), None);
    }
}
