//! Lines of an output file, read back: what each format holds of a visit, and why a line is none.

use std::borrow::Cow;
use std::fmt;

use super::numbered::Numbered;
use crate::visit::{Text, Visit};
use uuid::Uuid;

/// How much of a reason is kept, in bytes: some quote what they found.
const REASON_MAX_BYTES: usize = 300;

/// What a line holds.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadBack<'a> {
    /// The visit. What the line's format does not have is absent.
    pub visit: Visit<'a>,
    /// The spool that numbered it, and the number, where the format has them.
    pub number: Option<(Uuid, u64)>,
}

impl ReadBack<'_> {
    /// As a format writes it.
    pub fn numbered(&self) -> Numbered<'_> {
        Numbered { visit: &self.visit, number: self.number }
    }
}

/// Why a line is no visit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine(pub String);

impl BadLine {
    pub(super) fn new(reason: impl fmt::Display) -> Self {
        let mut reason = reason.to_string();
        reason.truncate(reason.floor_char_boundary(REASON_MAX_BYTES));
        BadLine(reason)
    }
}

impl fmt::Display for BadLine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for BadLine {}

/// A value of `bytes`, which were escaped.
pub(super) fn value_of<'a>(bytes: Cow<'a, [u8]>) -> Result<Option<Text<'a>>, BadLine> {
    let not_utf8 = || BadLine::new("a value's escapes are no UTF-8");
    Ok(match bytes {
        Cow::Borrowed(bytes) => Text::new(std::str::from_utf8(bytes).map_err(|_| not_utf8())?),
        Cow::Owned(bytes) => Text::owned(std::str::from_utf8(&bytes).map_err(|_| not_utf8())?),
    })
}

/// The byte of two hexadecimal digits.
pub(super) fn hex_byte(digits: &[u8]) -> Result<u8, BadLine> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    match digits {
        [high, low, ..] => digit(*high).zip(digit(*low)).map(|(high, low)| (high * 16 + low) as u8),
        _ => None,
    }
    .ok_or_else(|| BadLine::new("`\\x` is not followed by two hexadecimal digits"))
}
