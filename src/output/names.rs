//! The names of rotated files: those that others give, which begin with the output's, and those that Pixel gives,
//! `visits-2026-11-23T14.log` beside `visits.log`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::compression::Compression;

/// A name without what a compressor added.
pub fn plain(name: &OsStr) -> &OsStr {
    Compression::of(name).0
}

/// Where the file at `path` may be once it is compressed.
pub fn compressed(path: &Path) -> impl Iterator<Item = PathBuf> + '_ {
    Compression::names(path.as_os_str()).map(PathBuf::from)
}

/// Whether `name` is one that a rotation gives to the output called `output`, by whoever, or `output` itself.
pub fn is_rotated(output: &OsStr, name: &OsStr) -> bool {
    match name.as_bytes().strip_prefix(output.as_bytes()) {
        Some(rest) => is_added(rest),
        None => is_own(output, name),
    }
}

/// Whether this is what a rotation puts behind a name: nothing, a number or a date, and what a compressor adds.
pub(super) fn is_added(rest: &[u8]) -> bool {
    plain(OsStr::from_bytes(rest))
        .as_bytes()
        .iter()
        .all(|byte| byte.is_ascii_digit() || b".-_:T".contains(byte))
}

/// Whether `name` is one that Pixel gives to a file of the output called `output`, or compressed one.
pub fn is_own(output: &OsStr, name: &OsStr) -> bool {
    let (stem, extension) = parts(output);
    let rest = plain(name).as_bytes().strip_prefix(stem).and_then(|rest| rest.strip_suffix(extension));
    let Some((time, number)) =
        rest.and_then(|rest| rest.strip_prefix(b"-")).and_then(|rest| rest.split_at_checked(13))
    else {
        return false;
    };
    let is_time = time.iter().zip(b"0000-00-00T00").all(|(byte, like)| match like {
        b'0' => byte.is_ascii_digit(),
        like => byte == like,
    });
    let is_number = |number: &[u8]| !number.is_empty() && number.iter().all(u8::is_ascii_digit);
    is_time && (number.is_empty() || number.strip_prefix(b".").is_some_and(is_number))
}

/// The name of the file of the output called `output` that was begun at `time`; with a `number` where it is not the
/// first of that hour.
pub(super) fn own(output: &OsStr, time: Timestamp, number: u32) -> OsString {
    let (stem, extension) = parts(output);
    let number = if number > 0 { format!(".{number}") } else { String::new() };
    let middle = format!("-{}{number}", time.strftime("%Y-%m-%dT%H"));
    OsString::from_vec([stem, middle.as_bytes(), extension].concat())
}

/// The number of a file, compressed or not, that [`own`] named for `time`; 0 where the name has none.
pub(super) fn own_number(output: &OsStr, time: Timestamp, name: &OsStr) -> Option<u32> {
    let first = own(output, time, 0);
    let (stem, extension) = parts(&first);
    let rest = plain(name).as_bytes().strip_prefix(stem)?.strip_suffix(extension)?;
    match rest {
        b"" => Some(0),
        number => std::str::from_utf8(number.strip_prefix(b".")?).ok()?.parse().ok(),
    }
}

/// What stands before the time, and what behind it.
fn parts(output: &OsStr) -> (&[u8], &[u8]) {
    let bytes = output.as_bytes();
    match bytes.iter().rposition(|byte| *byte == b'.').filter(|at| *at > 0) {
        Some(dot) => bytes.split_at(dot),
        None => (bytes, b""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_rotation_are_told_from_others() {
        for (output, name) in [
            ("visits.log", "visits.log"),
            ("visits.log", "visits.log.1"),
            ("visits.log", "visits.log.12.gz"),
            ("visits.log", "visits.log-20261124.zst"),
            ("visits.log", "visits.log.2026-11-24T10:00"),
            ("visits.log", "visits.log_1.zstd"),
            ("visits.log", "visits.log.gz"),
            ("visits.log", "visits-2026-11-23T14.log"),
            ("visits.log", "visits-2026-11-23T14.2.log.gz"),
            ("visits.2.log", "visits.2-2026-11-23T14.log.zst"),
            ("visits", "visits-2026-11-23T14"),
            (".v", ".v-2026-11-23T14.1"),
        ] {
            assert!(is_rotated(output.as_ref(), name.as_ref()), "{name}");
        }
        for (output, name) in [
            ("visits.log", "visits-2026-11-23T14.log.tmp"),
            ("visits.log", "visits-2026-11-23T14.log.zst.tmp"),
            ("visits.log", "visits-2026-11-23T14.txt"),
            ("visits.log", "visits-2026-11-23T14.x.log"),
            ("visits.log", "visits-2026-11-23T14..log"),
            ("visits.log", "visits-2026-11-23.log"),
            ("visits.log", "visits.2-2026-11-23T14.log"),
            ("visits.log", "visits.log.eu"),
            ("visits.log", "visits.log.notes.gz"),
            ("visits.log", "visits.log.1.bak"),
            ("visits.log", "visits.log2.txt"),
            ("visits.log", "visits-é026-11-23T4.log"),
        ] {
            assert!(!is_rotated(output.as_ref(), name.as_ref()), "{name}");
        }
        let time: Timestamp = "2026-11-23T14:59:59Z".parse().expect("a time");
        for (output, number, name) in [
            ("visits.log", 0, "visits-2026-11-23T14.log"),
            ("visits.log", 12, "visits-2026-11-23T14.12.log"),
            ("visits", 0, "visits-2026-11-23T14"),
        ] {
            assert_eq!(own(output.as_ref(), time, number), name);
            assert_eq!(own_number(output.as_ref(), time, name.as_ref()), Some(number));
            assert_eq!(own_number(output.as_ref(), time, format!("{name}.zst").as_ref()), Some(number));
            assert!(is_own(output.as_ref(), name.as_ref()));
        }
    }
}
