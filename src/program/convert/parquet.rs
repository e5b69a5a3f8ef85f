//! Apache Parquet, by its columns and without Arrow. In a build without the feature `parquet`, how to get one with it.

#[cfg(feature = "parquet")]
pub(super) use self::with::{ParquetFile, sink};
#[cfg(not(feature = "parquet"))]
pub(super) use self::without::{ParquetFile, sink};

#[cfg(not(feature = "parquet"))]
mod without {
    use std::cell::Cell;
    use std::io;
    use std::path::Path;
    use std::rc::Rc;

    use crate::program::convert::sink::{Sink, Target};
    use crate::program::visit_file::FileProblem;
    use crate::visit::lines::ReadBack;

    const ABSENT: &str = "this Pixel was built without Parquet, as `make run` builds it: `cargo build --release` has it, \
        and so have the package and the images; or convert to csv";

    pub(crate) fn sink(_: Target) -> io::Result<Box<dyn Sink>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, ABSENT))
    }

    pub(crate) enum ParquetFile {}

    impl ParquetFile {
        pub(crate) fn open(path: &Path, _: &Rc<Cell<u64>>) -> Result<Self, FileProblem> {
            Err(FileProblem { file: path.display().to_string(), line: None, problem: ABSENT.into() })
        }

        pub(crate) fn next_visit(&mut self) -> Result<Option<ReadBack<'static>>, FileProblem> {
            match *self {}
        }
    }
}

#[cfg(feature = "parquet")]
mod with {
    use std::cell::Cell;
    use std::fs::File;
    use std::io;
    use std::path::Path;
    use std::rc::Rc;
    use std::sync::Arc;

    use parquet::basic::{Compression, LogicalType, Repetition, TimeUnit, Type as PhysicalType};
    use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, Int64Type};
    use parquet::errors::ParquetError;
    use parquet::file::properties::WriterProperties;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
    use parquet::record::Field;
    use parquet::record::reader::RowIter;
    use parquet::schema::types::{Type, TypePtr};

    use crate::program::convert::columns::{COLUMNS, Row, number, texts};
    use crate::program::convert::sink::{Sink, Target};
    use crate::program::visit_file::{FileProblem, STDIN};
    use crate::visit::lines::{BadLine, Numbered, ReadBack};

    /// A row group is so many rows, or so many bytes of values, whichever comes first: what is in memory at once.
    const GROUP_ROWS: usize = 100_000;
    const GROUP_BYTES: usize = 16 << 20;

    /// Values of a column that may be absent: what is there, and for each row whether it is.
    struct Optional<T> {
        values: Vec<T>,
        levels: Vec<i16>,
    }

    impl<T> Default for Optional<T> {
        fn default() -> Self {
            Optional { values: Vec::new(), levels: Vec::new() }
        }
    }

    impl<T> Optional<T> {
        fn push(&mut self, value: Option<T>) {
            self.levels.push(i16::from(value.is_some()));
            self.values.extend(value);
        }
    }

    #[derive(Default)]
    struct Group {
        times: Vec<i64>,
        ips: Vec<ByteArray>,
        texts: [Optional<ByteArray>; 8],
        dnt: Vec<bool>,
        gpc: Vec<bool>,
        producers: Optional<ByteArray>,
        sequences: Optional<i64>,
        bytes: usize,
    }

    struct ParquetSink {
        writer: SerializedFileWriter<Target>,
        group: Group,
    }

    /// Visits as Parquet into `target`.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn sink(target: Target) -> io::Result<Box<dyn Sink>> {
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let schema = schema().map_err(failed)?;
        let writer = SerializedFileWriter::new(target, schema, Arc::new(properties)).map_err(failed)?;
        Ok(Box::new(ParquetSink { writer, group: Group::default() }))
    }

    fn failed(error: ParquetError) -> io::Error {
        match error {
            ParquetError::External(inner) => match inner.downcast::<io::Error>() {
                Ok(error) => *error,
                Err(error) => io::Error::other(error.to_string()),
            },
            error => io::Error::other(error.to_string()),
        }
    }

    fn schema() -> Result<TypePtr, ParquetError> {
        let column = |name: &str| {
            let (physical, logical) = match name {
                "received_at" => (PhysicalType::INT64, Some(LogicalType::timestamp(true, TimeUnit::NANOS))),
                "dnt" | "gpc" => (PhysicalType::BOOLEAN, None),
                "sequence" => (PhysicalType::INT64, None),
                _ => (PhysicalType::BYTE_ARRAY, Some(LogicalType::String)),
            };
            let repetition = match name {
                "received_at" | "ip" | "dnt" | "gpc" => Repetition::REQUIRED,
                _ => Repetition::OPTIONAL,
            };
            let column = Type::primitive_type_builder(name, physical);
            column.with_logical_type(logical).with_repetition(repetition).build().map(Arc::new)
        };
        let fields = COLUMNS.iter().map(|name| column(name)).collect::<Result<Vec<_>, _>>()?;
        Type::group_type_builder("visit").with_fields(fields).build().map(Arc::new)
    }

    impl Sink for ParquetSink {
        fn add(&mut self, visit: Numbered<'_>) -> io::Result<()> {
            let (v, group) = (visit.visit, &mut self.group);
            let nanoseconds = i64::try_from(v.received_at.as_nanosecond());
            group.times.push(nanoseconds.map_err(|_| {
                let range = "Parquet's times are from 1677 to 2262";
                io::Error::new(io::ErrorKind::InvalidData, format!("{}: {range}", v.received_at))
            })?);
            group.ips.push(v.ip.to_string().into_bytes().into());
            for (column, (_, value)) in group.texts.iter_mut().zip(texts(v)) {
                group.bytes += value.map_or(0, str::len);
                column.push(value.map(|value| value.as_bytes().to_vec().into()));
            }
            group.dnt.push(v.dnt);
            group.gpc.push(v.gpc);
            let (producer, sequence) = number(visit);
            group.producers.push(producer.map(|id| id.to_string().into_bytes().into()));
            let sequence = sequence.map(i64::try_from).transpose();
            group.sequences.push(sequence.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?);
            match group.times.len() >= GROUP_ROWS || group.bytes >= GROUP_BYTES {
                true => self.write_group(),
                false => Ok(()),
            }
        }

        fn finish(mut self: Box<Self>) -> io::Result<()> {
            if !self.group.times.is_empty() {
                self.write_group()?;
            }
            self.writer.close().map(drop).map_err(failed)
        }
    }

    impl ParquetSink {
        fn write_group(&mut self) -> io::Result<()> {
            let group = std::mem::take(&mut self.group);
            let mut write = || -> Result<(), ParquetError> {
                let mut rows = self.writer.next_row_group()?;
                let [referrer, user_agent, host, path, query, language, method, scheme] = &group.texts;
                let rows_ref = &mut rows;
                write::<Int64Type>(rows_ref, &group.times, None)?;
                write::<ByteArrayType>(rows_ref, &group.ips, None)?;
                for text in [referrer, user_agent, host, path, query, language] {
                    write::<ByteArrayType>(rows_ref, &text.values, Some(&text.levels))?;
                }
                write::<BoolType>(rows_ref, &group.dnt, None)?;
                write::<BoolType>(rows_ref, &group.gpc, None)?;
                for text in [method, scheme, &group.producers] {
                    write::<ByteArrayType>(rows_ref, &text.values, Some(&text.levels))?;
                }
                write::<Int64Type>(rows_ref, &group.sequences.values, Some(&group.sequences.levels))?;
                rows.close().map(drop)
            };
            write().map_err(failed)
        }
    }

    fn write<T: DataType>(
        rows: &mut SerializedRowGroupWriter<'_, Target>,
        values: &[T::T],
        levels: Option<&[i16]>,
    ) -> Result<(), ParquetError> {
        let mut column = rows.next_column()?.ok_or_else(|| ParquetError::EOF("a column too many".into()))?;
        column.typed::<T>().write_batch(values, levels, None)?;
        column.close()
    }

    /// Reads it.
    pub(crate) struct ParquetFile {
        name: String,
        rows: RowIter<'static>,
        row: u64,
        read: Rc<Cell<u64>>,
        bytes_per_row: u64,
    }

    impl ParquetFile {
        /// Opens the file at `path`; `read` is told how much of it was read.
        ///
        /// # Errors
        /// What the system said, and what is wrong with the file.
        pub(crate) fn open(path: &Path, read: &Rc<Cell<u64>>) -> Result<Self, FileProblem> {
            let name = path.display().to_string();
            let problem = |problem: String| FileProblem { file: name.clone(), line: None, problem };
            if path.as_os_str() == STDIN {
                return Err(problem("Parquet is read from its end: name a file".into()));
            }
            let file = File::open(path).map_err(|error| problem(error.to_string()))?;
            let bytes = file.metadata().map_or(0, |metadata| metadata.len());
            let reader = SerializedFileReader::new(file).map_err(|error| problem(error.to_string()))?;
            let rows = u64::try_from(reader.metadata().file_metadata().num_rows()).unwrap_or(1);
            Ok(ParquetFile {
                rows: RowIter::from_file_into(Box::new(reader)),
                row: 0,
                read: read.clone(),
                bytes_per_row: bytes / rows.max(1),
                name,
            })
        }

        /// The next visit; `None` at the end.
        ///
        /// # Errors
        /// [`FileProblem`], with the number of the row.
        pub(crate) fn next_visit(&mut self) -> Result<Option<ReadBack<'static>>, FileProblem> {
            self.row += 1;
            self.read.set(self.read.get() + self.bytes_per_row);
            let bad =
                |BadLine(problem)| FileProblem { file: self.name.clone(), line: Some(self.row), problem };
            let Some(next) = self.rows.next() else { return Ok(None) };
            let fields = next.map_err(|error| FileProblem {
                file: self.name.clone(),
                // Nothing can be read behind it.
                line: None,
                problem: format!("{error}, at row {}", self.row),
            })?;
            let mut row = Row::new();
            for (column, field) in fields.get_column_iter() {
                set(&mut row, column, field).map_err(bad)?;
            }
            row.read_back().map(Some).map_err(bad)
        }
    }

    fn set(row: &mut Row, column: &str, field: &Field) -> Result<(), BadLine> {
        match (column, field) {
            (_, Field::Null) => row.set(column, ""),
            ("received_at", Field::Long(nanoseconds)) => row.set_time(i128::from(*nanoseconds)),
            ("received_at", Field::TimestampMicros(micros)) => row.set_time(i128::from(*micros) * 1_000),
            ("received_at", Field::TimestampMillis(millis)) => row.set_time(i128::from(*millis) * 1_000_000),
            (_, Field::Str(text)) => row.set(column, text),
            (_, Field::Bool(is)) => row.set(column, if *is { "true" } else { "false" }),
            (_, Field::Long(number)) => row.set(column, &number.to_string()),
            (_, Field::ULong(number)) => row.set(column, &number.to_string()),
            (_, other) => Err(BadLine(format!("{column} is of a type that a visit's is not: {other}"))),
        }
    }
}
