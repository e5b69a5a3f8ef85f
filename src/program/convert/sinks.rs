//! A stream for each format.

use std::io::{self, BufWriter, Write};

use super::csv::CsvSink;
use super::file_format::FileFormat;
use super::parquet;
use super::sink::{Sink, Target};
use crate::visit::lines::{LineFormat, Numbered};

/// A stream of a format into `target`.
///
/// # Errors
/// What the system said; for Parquet in a build without it, how to get it.
pub(super) fn sink(format: FileFormat, target: Target) -> io::Result<Box<dyn Sink>> {
    Ok(match format {
        FileFormat::Lines(format) => {
            Box::new(LinesSink { target: BufWriter::new(target), format, line: Vec::new() })
        }
        FileFormat::Csv => Box::new(CsvSink::new(target)?),
        FileFormat::Parquet => parquet::sink(target)?,
    })
}

struct LinesSink {
    target: BufWriter<Target>,
    format: LineFormat,
    line: Vec<u8>,
}

impl Sink for LinesSink {
    fn add(&mut self, visit: Numbered<'_>) -> io::Result<()> {
        self.line.clear();
        self.format.write(visit, &mut self.line);
        self.target.write_all(&self.line)
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.target.flush()
    }
}
