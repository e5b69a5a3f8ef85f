//! One file as it grows, under whoever cuts it off.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use crate::disk::folder::Identity;
use crate::disk::identity;
use crate::program::visit_file::LINE_MAX_BYTES;

/// For how many looks a file that was rotated is read still: a batch may have been on its way to it.
pub(super) const LOOKS_BACK: u32 = 50;
/// How much of what was read is remembered.
const KNOWN_BYTES: usize = 1024;
const READ_BYTES: usize = 256 << 10;

/// A file, and how far it was read.
pub(super) struct Growing {
    pub(super) file: File,
    pub(super) identity: Identity,
    pub(super) read_to: u64,
    // What was read last, by which one that was cut off and has grown again is known.
    last: Vec<u8>,
    // What was read of a line whose end is not there yet.
    begun: Vec<u8>,
    // Its first line, once that was read, and whether it is the next.
    pub(super) head: Option<Vec<u8>>,
    is_at_head: bool,
    // Once it has lost its name.
    looks_left: u32,
}

impl Growing {
    /// From its beginning.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let identity = identity(&file.metadata()?);
        Ok(Growing {
            file,
            identity,
            read_to: 0,
            last: Vec::new(),
            begun: Vec::new(),
            head: None,
            is_at_head: true,
            looks_left: LOOKS_BACK,
        })
    }

    /// It has lost its name.
    pub(super) fn without_name(self) -> Self {
        Growing { looks_left: LOOKS_BACK, ..self }
    }

    /// Counts a look at it, once it has lost its name; returns whether there is to be another.
    pub(super) fn count_look(&mut self) -> bool {
        self.looks_left = self.looks_left.saturating_sub(1);
        self.looks_left > 0
    }

    /// From its beginning.
    pub(super) fn begin_anew(&mut self) {
        self.read_to = 0;
        self.last.clear();
        self.begun.clear();
        self.is_at_head = true;
    }

    /// Leaves out the lines that are there.
    pub(super) fn skip_lines(&mut self) -> io::Result<()> {
        loop {
            match end_of_lines(&self.file) {
                // It was cut off since its length was asked for.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {}
                found => {
                    (self.read_to, self.last) = found?;
                    self.is_at_head = self.read_to == 0;
                    return Ok(());
                }
            }
        }
    }

    /// Tells `each` the lines that are there now.
    pub(super) fn new_lines(&mut self, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut buffer = vec![0; KNOWN_BYTES + READ_BYTES];
        loop {
            // Together with what was read before: it may be cut off, and grow again, between two reads.
            let read = self.file.read_at(&mut buffer, self.read_to - self.last.len() as u64)?;
            let Some(new) = buffer[..read].strip_prefix(&self.last[..]) else {
                // Somebody copied it first.
                self.begin_anew();
                continue;
            };
            if new.is_empty() {
                return Ok(());
            }
            self.read_to += new.len() as u64;
            self.last.extend_from_slice(&new[new.len().saturating_sub(KNOWN_BYTES)..]);
            self.last.drain(..self.last.len().saturating_sub(KNOWN_BYTES));
            for part in new.split_inclusive(|byte| *byte == b'\n') {
                // A line that is so long is none of Pixel's.
                if self.begun.len() + part.len() <= LINE_MAX_BYTES {
                    self.begun.extend_from_slice(part);
                }
                if part.ends_with(b"\n") {
                    if std::mem::take(&mut self.is_at_head) {
                        self.head = Some(self.begun.clone());
                    }
                    each(&self.begun)?;
                    self.begun.clear();
                }
            }
        }
    }
}

/// Where the last whole line ends, and what stands right before that.
fn end_of_lines(file: &File) -> io::Result<(u64, Vec<u8>)> {
    let mut end = file.metadata()?.len();
    let mut piece = vec![0; 4096];
    while end > 0 {
        let from = end.saturating_sub(piece.len() as u64);
        let there = &mut piece[..(end - from) as usize];
        file.read_exact_at(there, from)?;
        match memchr::memrchr(b'\n', there) {
            Some(at) => {
                end = from + at as u64 + 1;
                let mut last = vec![0; end.min(KNOWN_BYTES as u64) as usize];
                file.read_exact_at(&mut last, end.saturating_sub(KNOWN_BYTES as u64))?;
                return Ok((end, last));
            }
            None => end = from,
        }
    }
    Ok((0, Vec::new()))
}
