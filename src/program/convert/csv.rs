//! CSV as RFC 4180 has it: the first line names the columns, a value with a comma, a quote or a line feed is quoted. An
//! absent value is an empty one, as no value of a visit is empty.

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::rc::Rc;

use csv::{Reader, ReaderBuilder, StringRecord, Writer};

use super::columns::{COLUMNS, Row, number, texts};
use super::sink::{Sink, Target};
use crate::program::visit_file::{FileProblem, open_plain};
use crate::visit::lines::{BadLine, Numbered, ReadBack};

/// Writes it.
pub(super) struct CsvSink {
    writer: Writer<Target>,
}

impl CsvSink {
    /// Writes the names of the columns.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn new(target: Target) -> io::Result<Self> {
        let mut writer = Writer::from_writer(target);
        writer.write_record(COLUMNS)?;
        Ok(CsvSink { writer })
    }
}

impl Sink for CsvSink {
    fn add(&mut self, visit: Numbered<'_>) -> io::Result<()> {
        let v = visit.visit;
        let [referrer, user_agent, host, path, query, language, method, scheme] =
            texts(v).map(|(_, value)| value.unwrap_or_default());
        let (producer, sequence) = number(visit);
        let producer = producer.map(|id| id.to_string()).unwrap_or_default();
        let sequence = sequence.map(|number| number.to_string()).unwrap_or_default();
        let (time, ip) = (v.received_at.to_string(), v.ip.to_string());
        let truth = |is: bool| if is { "true" } else { "false" };
        let row = [
            &time,
            &ip,
            referrer,
            user_agent,
            host,
            path,
            query,
            language,
            truth(v.dnt),
            truth(v.gpc),
            method,
            scheme,
            &producer,
            &sequence,
        ];
        Ok(self.writer.write_record(row)?)
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Reads it.
pub(super) struct CsvFile {
    name: String,
    reader: Reader<Box<dyn io::BufRead>>,
    columns: StringRecord,
    row: StringRecord,
}

impl CsvFile {
    /// Opens the file at `path`, or standard input for `-`; `read` as for [`open_plain`].
    ///
    /// # Errors
    /// What the system said, and what is wrong with the names of the columns.
    pub(super) fn open(path: &Path, read: &Rc<Cell<u64>>) -> Result<Self, FileProblem> {
        let mut reader = ReaderBuilder::new().from_reader(open_plain(path, read)?);
        let name = path.display().to_string();
        let columns = reader.headers().cloned().map_err(|error| problem(&name, 1, &error))?;
        Ok(CsvFile { name, reader, columns, row: StringRecord::new() })
    }

    /// The next visit; `None` at the end.
    ///
    /// # Errors
    /// [`FileProblem`], with the line that the row begins at.
    pub(super) fn next_visit(&mut self) -> Result<Option<ReadBack<'static>>, FileProblem> {
        let line = self.reader.position().line();
        match self.reader.read_record(&mut self.row) {
            Ok(false) => return Ok(None),
            Ok(true) => {}
            Err(error) => return Err(problem(&self.name, line, &error)),
        }
        let line = self.row.position().map_or(line, csv::Position::line);
        let mut row = Row::new();
        let set = self.columns.iter().zip(&self.row).try_for_each(|(column, value)| row.set(column, value));
        let read = set.and_then(|()| row.read_back());
        read.map(Some).map_err(|BadLine(problem)| FileProblem {
            file: self.name.clone(),
            line: Some(line),
            problem,
        })
    }
}

fn problem(file: &str, line: u64, error: &csv::Error) -> FileProblem {
    // Behind an error of the disk nothing can be read.
    let line = Some(line).filter(|_| !error.is_io_error());
    FileProblem { file: file.into(), line, problem: error.to_string() }
}
