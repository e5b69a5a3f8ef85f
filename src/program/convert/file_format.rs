//! The formats that visits are converted from and to, and which of a visit's fields each has.

use std::str::FromStr;

use crate::visit::lines::{LineFormat, Numbered};

/// A format of a file of visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileFormat {
    /// A line for each.
    Lines(LineFormat),
    /// RFC 4180, with a first line that names the columns.
    Csv,
    /// Apache Parquet.
    Parquet,
}

impl FromStr for FileFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "csv" => Ok(FileFormat::Csv),
            "parquet" => Ok(FileFormat::Parquet),
            name => name
                .parse()
                .map(FileFormat::Lines)
                .map_err(|_| "expected pipe, combined, vcombined, ndjson, csv or parquet".to_string()),
        }
    }
}

impl FileFormat {
    /// What a file of it ends in.
    pub(super) fn extension(self) -> &'static str {
        match self {
            FileFormat::Lines(LineFormat::Ndjson | LineFormat::NdjsonBefore) => "ndjson",
            FileFormat::Lines(_) => "log",
            FileFormat::Csv => "csv",
            FileFormat::Parquet => "parquet",
        }
    }

    /// What of a visit it has no place for.
    pub(super) fn lacks(self) -> &'static [Field] {
        use Field::*;
        match self {
            FileFormat::Lines(LineFormat::Pipe) => {
                &[Host, Path, Query, AcceptLanguage, Dnt, Gpc, Method, Scheme, Number, NineDigits]
            }
            FileFormat::Lines(LineFormat::Combined | LineFormat::CombinedBefore) => {
                &[Host, AcceptLanguage, Dnt, Gpc, Scheme, Number, Fraction]
            }
            FileFormat::Lines(LineFormat::Vcombined) => &[AcceptLanguage, Dnt, Gpc, Number, Fraction],
            _ => &[],
        }
    }
}

/// A part of a visit that not every format has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Field {
    /// `host`.
    Host,
    /// `path`.
    Path,
    /// `query`.
    Query,
    /// `accept_language`.
    AcceptLanguage,
    /// `dnt`, where it is true.
    Dnt,
    /// `gpc`, where it is true.
    Gpc,
    /// `method`.
    Method,
    /// `scheme`.
    Scheme,
    /// Producer and sequence.
    Number,
    /// A fraction of the second.
    Fraction,
    /// More than seven digits of it.
    NineDigits,
}

impl Field {
    /// Its name, fit to be shown.
    pub(super) fn name(self) -> &'static str {
        match self {
            Field::Host => "host",
            Field::Path => "path",
            Field::Query => "query",
            Field::AcceptLanguage => "accept_language",
            Field::Dnt => "dnt",
            Field::Gpc => "gpc",
            Field::Method => "method",
            Field::Scheme => "scheme",
            Field::Number => "producer and sequence",
            Field::Fraction => "fractions of the second",
            Field::NineDigits => "digits of the second past the seventh",
        }
    }

    /// Whether a visit has it.
    pub(super) fn is_in(self, Numbered { visit, number }: Numbered<'_>) -> bool {
        match self {
            Field::Host => visit.host.is_some(),
            Field::Path => visit.path.is_some(),
            Field::Query => visit.query.is_some(),
            Field::AcceptLanguage => visit.accept_language.is_some(),
            Field::Dnt => visit.dnt,
            Field::Gpc => visit.gpc,
            Field::Method => visit.method.is_some(),
            Field::Scheme => visit.scheme.is_some(),
            Field::Number => number.is_some(),
            Field::Fraction => visit.received_at.subsec_nanosecond() != 0,
            Field::NineDigits => visit.received_at.subsec_nanosecond() % 100 != 0,
        }
    }
}
