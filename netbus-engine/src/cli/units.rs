//! Sizes, times and durations as people write them.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// When and where the reader is.
pub(super) struct Clock {
    /// The time of reading.
    pub(super) now: Timestamp,
    /// The reader's time zone.
    pub(super) zone: TimeZone,
}

impl Clock {
    /// This machine's.
    pub(super) fn system() -> Self {
        Self { now: Timestamp::now(), zone: TimeZone::system() }
    }

    /// The reader's local time: `10:42`, with the date in front when it is not today's.
    pub(super) fn time(&self, moment: Timestamp) -> String {
        let local = moment.to_zoned(self.zone.clone());
        let is_today = local.date() == self.now.to_zoned(self.zone.clone()).date();
        local.strftime(if is_today { "%H:%M" } else { "%Y-%m-%d %H:%M" }).to_string()
    }
}

/// A size in bytes: `512 B`, `4.0 GiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) * 10;
    let mut unit = 0;
    tenths = (tenths + 512) / 1024;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths = (tenths + 512) / 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// A duration in whole seconds, by its two largest units: `45 s`, `2 min`, `1 h 30 min`.
pub(super) fn duration(seconds: u64) -> String {
    const STEPS: [(u64, &str, u64, &str); 3] = [(86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")];
    for (large, large_name, small, small_name) in STEPS {
        if seconds >= large {
            let rest = seconds % large / small;
            let tail = if rest == 0 { String::new() } else { format!(" {rest} {small_name}") };
            return format!("{} {large_name}{tail}", seconds / large);
        }
    }
    format!("{seconds} s")
}

/// A short duration in nanoseconds, in the unit that fits: `740 ns`, `12.3 µs`, `51.0 ms`, `2.0 s`.
pub(super) fn brief(nanoseconds: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1_000, "µs"), (1_000_000, "ms"), (1_000_000_000, "s")];
    if nanoseconds < 1_000 {
        return format!("{nanoseconds} ns");
    }
    // Rounded to tenths, and in the next unit where that makes a thousand.
    let tenths = |unit: u64| (u128::from(nanoseconds) * 10 + u128::from(unit) / 2) / u128::from(unit);
    let fits = |(unit, _): &&(u64, &str)| tenths(*unit) < 10_000;
    let (unit, name) = UNITS.iter().find(fits).unwrap_or(&UNITS[2]);
    format!("{}.{} {name}", tenths(*unit) / 10, tenths(*unit) % 10)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_decimal_and_the_unit_that_fits() {
        let sizes = [0, 1023, 1024, 1536, 1 << 20, 4 << 30, 4_000_787_030_016, u64::MAX].map(size);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "4.0 GiB", "3.6 TiB", "16.0 EiB"]);
    }

    #[test]
    fn a_size_just_under_a_unit_goes_over_to_it() {
        assert_eq!(size((1 << 20) - 1), "1.0 MiB");
    }

    #[test]
    fn durations_have_at_most_two_units() {
        let durations = [0, 59, 60, 119, 120, 5400, 90_061].map(duration);
        assert_eq!(durations, ["0 s", "59 s", "1 min", "1 min 59 s", "2 min", "1 h 30 min", "1 d 1 h"]);
    }

    #[test]
    fn short_durations_have_one_decimal_and_the_unit_that_fits() {
        let durations = [0, 999, 1_000, 12_345, 999_949, 999_950, 51_000_000, 2_000_000_000, 7_200_000_000_000];
        let expected = ["0 ns", "999 ns", "1.0 µs", "12.3 µs", "999.9 µs", "1.0 ms", "51.0 ms", "2.0 s", "7200.0 s"];
        assert_eq!(durations.map(brief), expected);
    }

    #[test]
    fn todays_times_have_no_date() {
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        let clock = Clock { now: "2026-11-20T12:00:00Z".parse().unwrap(), zone };
        assert_eq!(clock.time("2026-11-20T09:42:31Z".parse().unwrap()), "10:42");
        assert_eq!(clock.time("2026-11-19T23:00:00Z".parse().unwrap()), "00:00", "the day is the reader's");
        assert_eq!(clock.time("2026-11-19T22:59:00Z".parse().unwrap()), "2026-11-19 23:59");
    }
}
