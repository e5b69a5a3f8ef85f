//! Where converted visits go: a stream of one format, in bounded memory.

use std::io::{self, Write};

use crate::visit::lines::Numbered;

/// A stream of visits.
pub(super) trait Sink {
    /// Adds a visit.
    ///
    /// # Errors
    /// What the system said.
    fn add(&mut self, visit: Numbered<'_>) -> io::Result<()>;
    /// Writes what is left, and what has to stand at the end.
    ///
    /// # Errors
    /// What the system said.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// What takes bytes: a file, standard output.
pub(super) type Target = Box<dyn Write + Send>;
