//! What the formats write their values with.

/// Appends `\xhh`.
pub(super) fn hex_escape(byte: u8, line: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    line.extend_from_slice(b"\\x");
    line.extend_from_slice(&digits);
}

/// Appends formatted text.
pub(super) fn push(line: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    use std::io::Write;
    line.write_fmt(text).expect("writing to memory cannot fail");
}
