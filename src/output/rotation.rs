//! When Pixel gives the output a name of its own and begins a new file.

use std::str::FromStr;

use jiff::Timestamp;

const DAY_SECONDS: i64 = 86_400;

/// When the output is rotated. By default never.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Once it has so many bytes; a batch is never parted.
    pub max_bytes: Option<u64>,
    /// At which times.
    pub at: TimesOfDay,
}

impl Rotation {
    /// Whether a file of `bytes`, not empty, that was begun at `begun` is to be rotated at `now`.
    pub(super) fn is_due(&self, bytes: u64, begun: Timestamp, now: Timestamp) -> bool {
        self.max_bytes.is_some_and(|max| bytes >= max) || self.at.is_between(begun, now)
    }
}

/// Times of the day, in UTC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TimesOfDay {
    // In seconds from midnight on, in their order.
    seconds: Vec<i64>,
}

impl TimesOfDay {
    /// Whether one of them came after `begun`, and not after `now`.
    fn is_between(&self, begun: Timestamp, now: Timestamp) -> bool {
        let now = now.as_second();
        let midnight = now - now.rem_euclid(DAY_SECONDS);
        let times = self.seconds.iter().map(|seconds| midnight + seconds);
        let last = times.filter(|time| *time <= now).max();
        // Before the first of today, it is the last of yesterday.
        let last = last.or(self.seconds.last().map(|seconds| midnight - DAY_SECONDS + seconds));
        last.is_some_and(|last| begun.as_second() < last)
    }
}

impl FromStr for TimesOfDay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut seconds = match text {
            "" => Vec::new(),
            "hourly" => (0..24).map(|hour| hour * 3_600).collect(),
            "daily" => vec![0],
            times => times
                .split(',')
                .map(|time| second_of_day(time.trim()))
                .collect::<Option<Vec<i64>>>()
                .ok_or("expected hourly, daily, or times of day in UTC such as 06:00,18:00")?,
        };
        seconds.sort_unstable();
        seconds.dedup();
        Ok(TimesOfDay { seconds })
    }
}

fn second_of_day(time: &str) -> Option<i64> {
    let (hour, minute) = time.split_once(':')?;
    let number = |text: &str, max: i64| {
        let is_number = text.len() == 2 && text.bytes().all(|digit| digit.is_ascii_digit());
        text.parse::<i64>().ok().filter(|number| is_number && *number < max)
    };
    Some(number(hour, 24)? * 3_600 + number(minute, 60)? * 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_rotated_once_a_time_of_day_has_passed_since_it_was_begun() {
        let time = |text: &str| text.parse::<Timestamp>().expect("a time");
        for (at, begun, now, is_due) in [
            ("", "2026-11-23T00:00:00Z", "2026-11-25T00:00:00Z", false),
            ("hourly", "2026-11-23T14:00:00Z", "2026-11-23T14:59:59Z", false),
            ("hourly", "2026-11-23T14:59:59Z", "2026-11-23T15:00:00Z", true),
            ("hourly", "2026-11-23T23:30:00Z", "2026-11-24T00:00:01Z", true),
            ("daily", "2026-11-23T00:00:00Z", "2026-11-23T23:59:59Z", false),
            ("daily", "2026-11-23T23:59:59Z", "2026-11-24T00:00:00Z", true),
            ("06:00,18:30", "2026-11-23T06:00:00Z", "2026-11-23T18:29:59Z", false),
            ("18:30, 06:00", "2026-11-23T06:00:00Z", "2026-11-23T18:30:00Z", true),
            ("06:00,18:30", "2026-11-23T18:30:00Z", "2026-11-24T05:59:59Z", false),
            ("06:00,18:30", "2026-11-23T18:29:00Z", "2026-11-24T05:59:59Z", true),
            ("daily", "2026-11-24T00:00:01Z", "2026-11-23T00:00:00Z", false),
        ] {
            let rotation = Rotation { max_bytes: None, at: at.parse().expect(at) };
            assert_eq!(rotation.is_due(1, time(begun), time(now)), is_due, "{at}: {begun} to {now}");
        }
        for bad in ["weekly", "6:00", "24:00", "06:60", "06:00,", "+6:00", "06:00:00"] {
            assert!(bad.parse::<TimesOfDay>().is_err(), "{bad}");
        }
    }
}
