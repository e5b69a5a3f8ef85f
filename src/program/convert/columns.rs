//! The columns of a table of visits: their names, their order, and the way there and back.

use jiff::Timestamp;
use uuid::Uuid;

use crate::visit::lines::{BadLine, Numbered, ReadBack};
use crate::visit::{Text, Visit};

/// The columns, in their order.
pub(super) const COLUMNS: [&str; 14] = [
    "received_at",
    "ip",
    "referrer",
    "user_agent",
    "host",
    "path",
    "query",
    "accept_language",
    "dnt",
    "gpc",
    "method",
    "scheme",
    "producer",
    "sequence",
];

/// The columns of text that may be absent, and their values.
pub(super) fn texts<'v>(visit: &'v Visit<'_>) -> [(&'static str, Option<&'v str>); 8] {
    let text = |value: &'v Option<Text<'_>>| value.as_ref().map(Text::as_str);
    [
        ("referrer", text(&visit.referrer)),
        ("user_agent", text(&visit.user_agent)),
        ("host", text(&visit.host)),
        ("path", text(&visit.path)),
        ("query", text(&visit.query)),
        ("accept_language", text(&visit.accept_language)),
        ("method", text(&visit.method)),
        ("scheme", text(&visit.scheme)),
    ]
}

/// A visit that is put together from a row.
pub(super) struct Row {
    received_at: Option<Timestamp>,
    visit: Visit<'static>,
    has_ip: bool,
    producer: Option<Uuid>,
    sequence: Option<u64>,
}

impl Row {
    /// Nothing is known yet.
    pub(super) fn new() -> Self {
        let visit = Visit::new(Timestamp::UNIX_EPOCH, [0, 0, 0, 0].into());
        Row { received_at: None, visit, has_ip: false, producer: None, sequence: None }
    }

    /// Sets the value of a column, as text; an empty one is absent.
    ///
    /// # Errors
    /// [`BadLine`] for a column that no visit has, and for what cannot be its value.
    pub(super) fn set(&mut self, column: &str, value: &str) -> Result<(), BadLine> {
        if !COLUMNS.contains(&column) {
            return Err(BadLine(format!("a visit has no column {column:?}")));
        }
        if value.is_empty() {
            return Ok(());
        }
        let text = Text::owned(value);
        let is_no = |what: &str| BadLine(format!("`{value}` of {column} is no {what}"));
        match column {
            "received_at" => self.received_at = Some(value.parse().map_err(|_| is_no("time"))?),
            "ip" => {
                let ip: std::net::IpAddr = value.parse().map_err(|_| is_no("address"))?;
                (self.visit.ip, self.has_ip) = (ip.to_canonical(), true);
            }
            "referrer" => self.visit.referrer = text,
            "user_agent" => self.visit.user_agent = text,
            "host" => self.visit.host = text,
            "path" => self.visit.path = text,
            "query" => self.visit.query = text,
            "accept_language" => self.visit.accept_language = text,
            "dnt" => self.visit.dnt = value.parse().map_err(|_| is_no("true or false"))?,
            "gpc" => self.visit.gpc = value.parse().map_err(|_| is_no("true or false"))?,
            "method" => self.visit.method = text,
            "scheme" => self.visit.scheme = text,
            "producer" => self.producer = Some(value.parse().map_err(|_| is_no("UUID"))?),
            _ => self.sequence = Some(value.parse().map_err(|_| is_no("number"))?),
        }
        Ok(())
    }

    /// Sets the time, in nanoseconds of Unix.
    ///
    /// # Errors
    /// [`BadLine`] for one that is out of range.
    #[cfg(feature = "parquet")]
    pub(super) fn set_time(&mut self, nanoseconds: i128) -> Result<(), BadLine> {
        let time = Timestamp::from_nanosecond(nanoseconds);
        self.received_at = Some(time.map_err(|error| BadLine(error.to_string()))?);
        Ok(())
    }

    /// The visit.
    ///
    /// # Errors
    /// [`BadLine`] where time or address are absent.
    pub(super) fn read_back(mut self) -> Result<ReadBack<'static>, BadLine> {
        let absent = |column: &str| BadLine(format!("it has no {column}"));
        self.visit.received_at = self.received_at.ok_or_else(|| absent("received_at"))?;
        if !self.has_ip {
            return Err(absent("ip"));
        }
        Ok(ReadBack { visit: self.visit, number: self.producer.zip(self.sequence) })
    }
}

/// The number of a visit, each part by itself.
pub(super) fn number(visit: Numbered<'_>) -> (Option<Uuid>, Option<u64>) {
    visit.number.unzip()
}
