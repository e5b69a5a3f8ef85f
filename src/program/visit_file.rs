//! A file of visits, read line by line as it is: plain, or compressed with gzip or zstd, whatever its name.
//!
//! What is wrong with a line is told with the file's name and the line's number.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;
use std::rc::Rc;

use crate::output::names;
use crate::visit::lines::{BadLine, LineFormat, ReadBack};

/// A line that is longer is no line of Pixel's, in bytes: so much of it is in memory.
pub const LINE_MAX_BYTES: usize = 1 << 20;
const READ_AHEAD_BYTES: usize = 256 << 10;
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Standard input, where a file's name is expected.
pub const STDIN: &str = "-";

/// What is wrong, with which file and which line of it.
#[derive(Debug)]
pub struct FileProblem {
    /// The file.
    pub file: String,
    /// The line, from 1 on; `None` where it is the file as a whole.
    pub line: Option<u64>,
    /// What is wrong.
    pub problem: String,
}

impl fmt::Display for FileProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(formatter, "{}:{line}: {}", self.file, self.problem),
            None => write!(formatter, "failed to read `{}`: {}", self.file, self.problem),
        }
    }
}

impl std::error::Error for FileProblem {}

impl FileProblem {
    /// What the system said of the file at `path`.
    pub fn whole(path: &Path, error: &io::Error) -> Self {
        FileProblem { file: path.display().to_string(), line: None, problem: error.to_string() }
    }
}

/// A stream that counts what was read of it, in bytes.
struct Counted<R> {
    inner: R,
    read: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read.set(self.read.get() + read as u64);
        Ok(read)
    }
}

/// Opens a file, or standard input where `path` is `-`, and reads it decompressed; one that was compressed since it was
/// named is read all the same. `read` is told how many of the bytes that are stored were read.
///
/// # Errors
/// What the system said.
pub fn open_plain(path: &Path, read: &Rc<Cell<u64>>) -> Result<Box<dyn BufRead>, FileProblem> {
    let opened = match path == Path::new(STDIN) {
        true => decompressed(io::stdin(), read),
        false => open_stored(path).and_then(|file| decompressed(file, read)),
    };
    opened.map_err(|error| FileProblem::whole(path, &error))
}

/// What `stored` holds, decompressed if it begins as gzip or zstd; `read` is told how many of its bytes were read.
///
/// # Errors
/// What the system said of its beginning.
pub fn decompressed(stored: impl Read + 'static, read: &Rc<Cell<u64>>) -> io::Result<Box<dyn BufRead>> {
    let mut stored = Counted { inner: stored, read: read.clone() };
    let mut magic = Vec::new();
    (&mut stored).take(ZSTD.len() as u64).read_to_end(&mut magic)?;
    let (is_gzip, is_zstd) = (magic.starts_with(&GZIP), magic.starts_with(&ZSTD));
    let stored = BufReader::with_capacity(READ_AHEAD_BYTES, Cursor::new(magic).chain(stored));
    Ok(if is_gzip {
        Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(stored)))
    } else if is_zstd {
        Box::new(BufReader::new(zstd::stream::Decoder::with_buffer(stored)?))
    } else {
        Box::new(stored)
    })
}

fn open_stored(path: &Path) -> io::Result<File> {
    File::open(path).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            names::compressed(path).find_map(|path| File::open(path).ok()).ok_or(error)
        }
        _ => Err(error),
    })
}

/// A file of lines.
pub struct VisitFile {
    name: String,
    reader: Box<dyn BufRead>,
    format: Option<LineFormat>,
    line: Vec<u8>,
    number: u64,
}

impl VisitFile {
    /// Opens the file at `path`, or standard input for `-`. Without a `format` it is that of the first line.
    /// `read` is told how many of the bytes that are stored were read.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(path: &Path, format: Option<LineFormat>, read: &Rc<Cell<u64>>) -> Result<Self, FileProblem> {
        let reader = open_plain(path, read)?;
        Ok(VisitFile { format, ..VisitFile::of_lines(path, reader) })
    }

    /// The file at `path`, of which these are the lines.
    pub fn of_lines(path: &Path, reader: Box<dyn BufRead>) -> Self {
        VisitFile { name: path.display().to_string(), reader, format: None, line: Vec::new(), number: 0 }
    }

    /// The next visit; `None` at the end. After a line that is none it can be gone on.
    ///
    /// # Errors
    /// [`FileProblem`], with the line where it is a line's.
    pub fn next_visit(&mut self) -> Result<Option<ReadBack<'_>>, FileProblem> {
        self.line.clear();
        self.number += 1;
        let limit = LINE_MAX_BYTES as u64 + 1;
        let read = (&mut self.reader).take(limit).read_until(b'\n', &mut self.line);
        let whole = |error: io::Error| FileProblem {
            file: self.name.clone(),
            // Nothing can be read behind it.
            line: None,
            problem: format!("{error}, at line {}", self.number),
        };
        if read.map_err(whole)? == 0 {
            return Ok(None);
        }
        if self.line.len() > LINE_MAX_BYTES && !self.line.ends_with(b"\n") {
            skip_line(&mut self.reader).map_err(whole)?;
            return Err(self.bad(BadLine(format!("it is longer than {LINE_MAX_BYTES} bytes"))));
        }
        let format = match self.format {
            Some(format) => format,
            None => match LineFormat::of_line(&self.line) {
                Some(format) => *self.format.insert(format),
                None => return Err(self.bad(BadLine("it is a line of no format that Pixel writes".into()))),
            },
        };
        match format.read(&self.line) {
            Ok(visit) => Ok(Some(visit)),
            Err(error) => {
                Err(FileProblem { file: self.name.clone(), line: Some(self.number), problem: error.0 })
            }
        }
    }

    /// The format that its lines are of, once it is known.
    pub fn format(&self) -> Option<LineFormat> {
        self.format
    }

    fn bad(&self, error: BadLine) -> FileProblem {
        FileProblem { file: self.name.clone(), line: Some(self.number), problem: error.0 }
    }
}

/// Reads up to the end of a line, and keeps nothing of it.
///
/// # Errors
/// What the system said.
pub fn skip_line(reader: &mut dyn BufRead) -> io::Result<()> {
    loop {
        let there = reader.fill_buf()?;
        let end = memchr::memchr(b'\n', there);
        let read = end.map_or(there.len(), |end| end + 1);
        if read == 0 {
            return Ok(());
        }
        reader.consume(read);
        if end.is_some() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const LINE: &str = "2022-12-19T14:16:49.9605280Z|null|curl/8|1.2.3.4\n";

    fn read(bytes: &[u8]) -> Result<Vec<String>, FileProblem> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("visits");
        std::fs::write(&path, bytes).expect("the disk works");
        let read = Rc::new(Cell::new(0));
        let mut file = VisitFile::open(&path, None, &read)?;
        let mut agents = Vec::new();
        while let Some(there) = file.next_visit()? {
            agents.extend(there.visit.user_agent.map(|text| text.as_str().to_string()));
        }
        assert_eq!(read.get(), bytes.len() as u64);
        Ok(agents)
    }

    #[test]
    fn a_compressed_file_is_read_whatever_it_is_called() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(LINE.as_bytes()).expect("memory");
        let gzip = gzip.finish().expect("memory");
        let zstd = zstd::encode_all(LINE.as_bytes(), 1).expect("memory");
        for (case, bytes, lines) in [
            ("plain", LINE.as_bytes().to_vec(), 1),
            ("gzip", gzip.clone(), 1),
            ("two gzip members", gzip.repeat(2), 2),
            ("zstd", zstd.clone(), 1),
            ("two zstd frames", zstd.repeat(2), 2),
            ("no line feed at the end", LINE.trim_end().as_bytes().to_vec(), 1),
            ("empty", Vec::new(), 0),
        ] {
            assert_eq!(read(&bytes).expect(case), vec!["curl/8"; lines], "{case}");
        }
        let torn = read(&gzip[..gzip.len() - 9]).expect_err("it is torn").to_string();
        assert!(torn.contains("visits`: ") && torn.ends_with(", at line 1"), "{torn}");
    }

    /// What was listed as plain may be compressed by the time that it is opened.
    #[test]
    fn a_file_that_was_compressed_since_it_was_named_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("visits-2026-11-23T14.log");
        let zstd = zstd::encode_all(LINE.as_bytes(), 1).expect("memory");
        std::fs::write(path.with_extension("log.zst"), zstd).expect("the disk works");
        let mut file = VisitFile::open(&path, None, &Rc::default()).expect("it is there, compressed");
        assert!(file.next_visit().expect("a visit").is_some());
        let absent = VisitFile::open(&folder.path().join("absent"), None, &Rc::default()).map(|_| ());
        assert!(absent.is_err_and(|error| error.to_string().contains("No such file")));
    }

    #[test]
    fn a_line_that_is_none_is_named_with_its_file_and_number_and_takes_no_memory() {
        let long = [LINE.as_bytes(), &vec![b'x'; 3 << 20], b"\n", LINE.as_bytes()].concat();
        let said = read(&long).expect_err("it is too long").to_string();
        assert!(said.ends_with("visits:2: it is longer than 1048576 bytes"), "{said}");
        let said = read(&[LINE, "hello\n"].concat().into_bytes()).expect_err("no visit").to_string();
        assert!(said.contains("visits:2: it has 1 fields"), "{said}");
        let said = read(b"hello\n").expect_err("of no format").to_string();
        assert!(said.contains("visits:1: it is a line of no format"), "{said}");
    }
}
