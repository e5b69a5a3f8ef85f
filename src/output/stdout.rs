//! Standard output in place of a file: lines go to whoever reads them.
//!
//! Nothing of what was handed over can be looked at again, so the ledger has the numbers of visits alone. Between the
//! last byte of a batch and the ledger's entry a crash has the batch printed again.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::lock::Right;
use crate::record::{Appended, Entry, Lines, VisitLog, VisitLogError, Written};
use crate::visit::lines::LineFormat;

/// What a pipe that is ready takes without waiting (`PIPE_BUF`, pipe(7)).
const PIECE_BYTES: usize = 4096;
/// How long who reads may take nothing before that counts as a failure.
const READER_MAX: Duration = Duration::from_secs(5);

/// Standard output, and the right to write to it for one ledger.
pub struct StandardOutput {
    right: Box<dyn Right>,
    file: File,
    // Whether what was written can be made durable.
    is_file: bool,
    // How much of the batch is out.
    sent: usize,
}

impl StandardOutput {
    /// The process's standard output.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(right: Box<dyn Right>) -> io::Result<Self> {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let is_file = file.metadata()?.is_file();
        Ok(StandardOutput { right, file, is_file, sent: 0 })
    }

    /// Waits until it takes bytes; `false` where it does not for so long.
    fn is_ready(&self, patience: Duration) -> io::Result<bool> {
        let mut asked = [PollFd::new(&self.file, PollFlags::OUT)];
        let patience = Timespec::try_from(patience).map_err(io::Error::other)?;
        poll(&mut asked, Some(&patience))?;
        // Of a pipe and a socket: nobody is at the other end.
        if asked[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(asked[0].revents().contains(PollFlags::OUT))
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut until = Instant::now() + READER_MAX;
        while self.sent < bytes.len() {
            if !self.is_ready(until.saturating_duration_since(Instant::now()))? {
                let text = "whoever reads it takes nothing";
                return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
            }
            let piece = &bytes[self.sent..bytes.len().min(self.sent + PIECE_BYTES)];
            match (&self.file).write(piece) {
                Ok(sent) => {
                    self.sent += sent;
                    until = Instant::now() + READER_MAX;
                }
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error),
            }
        }
        if self.is_file { self.file.sync_data() } else { Ok(()) }
    }
}

fn failed(error: io::Error) -> VisitLogError {
    match error.kind() {
        io::ErrorKind::BrokenPipe => VisitLogError::Closed { error },
        _ => VisitLogError::Failed { path: "standard output".into(), error },
    }
}

impl VisitLog for StandardOutput {
    fn check(&self) -> Result<(), VisitLogError> {
        self.right.check()
    }

    fn refresh(&mut self) -> Result<(), VisitLogError> {
        self.right.check()?;
        self.is_ready(Duration::ZERO).map(|_| ()).map_err(failed)
    }

    fn is_due(&self, _: &Written) -> bool {
        false
    }

    fn begin(&mut self, _: &Written) -> Result<Option<Entry>, VisitLogError> {
        self.right.check().map(|()| None)
    }

    fn has_begun(&self) -> bool {
        self.sent > 0
    }

    fn claims_formats(&self) -> Vec<LineFormat> {
        Vec::new()
    }

    fn append<'a>(&'a mut self, lines: &'a Lines, _: &[Lines]) -> Result<Appended<'a>, VisitLogError> {
        self.send(&lines.bytes).map_err(failed)?;
        Ok(Appended { mark: None, placed: Vec::new(), claims: None })
    }

    fn settle(&mut self) {
        self.sent = 0;
    }

    fn let_go(&mut self) {}
}
