//! How much of what was rotated is kept.

use std::str::FromStr;
use std::time::{Duration, SystemTime};

const EXPECTED: &str = "expected an age such as 90d (h, d, w), a size such as 10GiB (MiB, GiB, TiB), a number such as \
                        30files, or several of them with commas, each above 0 and given once";
const HOUR: u64 = 3_600;

/// What is kept of rotated files; by default all of them. Past any of the limits the oldest are removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keep {
    /// How long ago a file was written last, at most.
    pub age: Option<Duration>,
    /// How many bytes they take together as they are stored, at most; the newest is kept whatever it has.
    pub bytes: Option<u64>,
    /// How many they are, at most.
    pub files: Option<u64>,
}

impl Keep {
    /// How many of `files`, the oldest first, each with its bytes and when it was written last, are too many at `now`.
    pub(super) fn surplus(&self, files: &[(u64, SystemTime)], now: SystemTime) -> usize {
        // One from the future is not old.
        let is_old = |written: SystemTime| {
            let age = now.duration_since(written).unwrap_or_default();
            self.age.is_some_and(|max| age > max)
        };
        let mut bytes: u64 = files.iter().map(|(bytes, _)| bytes).sum();
        for (place, (own, written)) in files.iter().enumerate() {
            let left = (files.len() - place) as u64;
            let is_too_large = left > 1 && self.bytes.is_some_and(|max| bytes > max);
            if !is_old(*written) && !is_too_large && self.files.is_none_or(|max| left <= max) {
                return place;
            }
            bytes -= own;
        }
        files.len()
    }
}

impl FromStr for Keep {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let mut keep = Keep::default();
        for limit in text.split(',').map(str::trim).filter(|_| !text.is_empty()) {
            let unit = limit.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(limit.len());
            let (number, unit) = limit.split_at(unit);
            let number: u64 = number.parse().ok().filter(|number| *number > 0).ok_or(EXPECTED)?;
            let times = |unit: u64| number.checked_mul(unit).ok_or(EXPECTED);
            let before = match unit.trim_start() {
                "h" => keep.age.replace(Duration::from_secs(times(HOUR)?)).is_some(),
                "d" => keep.age.replace(Duration::from_secs(times(24 * HOUR)?)).is_some(),
                "w" => keep.age.replace(Duration::from_secs(times(7 * 24 * HOUR)?)).is_some(),
                "MiB" => keep.bytes.replace(times(1 << 20)?).is_some(),
                "GiB" => keep.bytes.replace(times(1 << 30)?).is_some(),
                "TiB" => keep.bytes.replace(times(1 << 40)?).is_some(),
                "files" => keep.files.replace(number).is_some(),
                _ => return Err(EXPECTED),
            };
            if before {
                return Err(EXPECTED);
            }
        }
        Ok(keep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_what_is_none_is_refused() {
        let day = Duration::from_secs(24 * HOUR);
        for (text, age, bytes, files) in [
            ("", None, None, None),
            ("36h", Some(day * 3 / 2), None, None),
            ("90d", Some(day * 90), None, None),
            ("2w", Some(day * 14), None, None),
            ("500MiB", None, Some(500 << 20), None),
            ("10 GiB", None, Some(10 << 30), None),
            ("30files", None, None, Some(30)),
            ("90d, 1TiB,30 files", Some(day * 90), Some(1 << 40), Some(30)),
        ] {
            assert_eq!(text.parse(), Ok(Keep { age, bytes, files }), "{text}");
        }
        for bad in [
            "90",
            "d",
            "0d",
            "-1d",
            "+1d",
            "1.5d",
            "90 days",
            "10GB",
            "10gib",
            "30",
            "30file",
            "90d,",
            ",",
            "90d,1w",
            "99999999999999999999d",
            "9999999999999TiB",
            "all",
        ] {
            assert_eq!(bad.parse::<Keep>(), Err(EXPECTED), "{bad}");
        }
    }

    #[test]
    fn the_oldest_go_until_no_limit_is_passed() {
        let now = SystemTime::now();
        let days = |days: u64| now - Duration::from_secs(days * 24 * HOUR);
        let files = [(400 << 20, days(9)), (300 << 20, days(5)), (200 << 20, days(2)), (100 << 20, days(1))];
        for (keep, surplus) in [
            ("", 0),
            ("9d", 0),
            ("8d", 1),
            ("2d", 2),
            ("1h", 4),
            ("1000MiB", 0),
            ("999MiB", 1),
            ("300MiB", 2),
            ("1MiB", 3),
            ("4files", 0),
            ("1files", 3),
            ("8d,300MiB,3files", 2),
            ("1h,1000MiB", 4),
        ] {
            let keep: Keep = keep.parse().expect(keep);
            assert_eq!(keep.surplus(&files, now), surplus, "{keep:?}");
        }
        let future = [(1, now + Duration::from_secs(HOUR))];
        assert_eq!("1h".parse::<Keep>().expect("a limit").surplus(&future, now), 0);
        assert_eq!(Keep { files: Some(1), ..Keep::default() }.surplus(&[], now), 0);
    }
}
