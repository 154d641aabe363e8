//! How durations are spread: counts in buckets that grow with the duration.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets of one power of two: a bucket is at most an eighth as wide as the durations in it are long.
const SUB_BUCKETS: u64 = 1 << SUB_BITS;
const SUB_BITS: u32 = 3;

/// Below this the buckets are all of the same width, in nanoseconds: clocks tell no less apart.
const LINEAR: u64 = 128;

/// The power of two at which buckets begin to grow.
const FIRST_POWER: u32 = LINEAR.ilog2();

/// From this power of two on, in nanoseconds, all durations share the last bucket: more than four minutes.
const LAST_POWER: u32 = 38;

const BUCKETS: usize = ((LAST_POWER - FIRST_POWER + 1) << SUB_BITS) as usize + 1;

/// Counts of durations. Whoever counts does not wait, and whoever reads does not stop them.
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    /// All durations, in nanoseconds.
    sum: AtomicU64,
}

/// What a histogram tells. Durations are in nanoseconds, and 0 where nothing was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many were counted.
    pub count: u64,
    /// Their mean, exact.
    pub mean: u64,
    /// Half of them took no longer, as exact as the bucket: an eighth.
    pub median: u64,
    /// Of a hundred, 99 took no longer, as exact as the bucket.
    pub p99: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BUCKETS], sum: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Counts a duration.
    pub fn record(&self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanoseconds)].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// What was counted so far.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let count = counts.iter().sum();
        let mean = self.sum.load(Ordering::Relaxed).checked_div(count).unwrap_or(0);
        Summary { count, mean, median: quantile(&counts, count, 50), p99: quantile(&counts, count, 99) }
    }
}

/// The duration that `percent` of 100 do not exceed, in nanoseconds.
fn quantile(counts: &[u64], count: u64, percent: u64) -> u64 {
    let mut rank = (count * percent).div_ceil(100);
    for (index, &here) in counts.iter().enumerate() {
        if rank <= here && here > 0 {
            // The durations of a bucket are taken to be spread evenly over it.
            let (start, end) = (start(index), start(index + 1));
            let within = u128::from(end - start) * u128::from(2 * rank - 1) / u128::from(2 * here);
            return start + u64::try_from(within).unwrap_or(0);
        }
        rank -= here;
    }
    0
}

/// The bucket of a duration.
fn bucket(nanoseconds: u64) -> usize {
    let index = if nanoseconds < LINEAR {
        nanoseconds * SUB_BUCKETS / LINEAR
    } else {
        let power = nanoseconds.ilog2();
        let sub_bucket = (nanoseconds >> (power - SUB_BITS)) % SUB_BUCKETS;
        u64::from(power - FIRST_POWER + 1) * SUB_BUCKETS + sub_bucket
    };
    usize::try_from(index).map_or(BUCKETS - 1, |index| index.min(BUCKETS - 1))
}

/// Where a bucket starts, in nanoseconds.
fn start(index: usize) -> u64 {
    let (octave, sub_bucket) = (index as u64 / SUB_BUCKETS, index as u64 % SUB_BUCKETS);
    match octave {
        0 => sub_bucket * LINEAR / SUB_BUCKETS,
        octave => ((SUB_BUCKETS + sub_bucket) * (LINEAR / SUB_BUCKETS)) << (octave - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_lies_in_its_bucket() {
        for power in 0..LAST_POWER {
            for nanoseconds in [(1 << power) - 1, 1_u64 << power, (1 << power) + (1 << power) / 3] {
                let index = bucket(nanoseconds);
                assert!(start(index) <= nanoseconds && nanoseconds < start(index + 1), "{nanoseconds} ns");
                let width = start(index + 1) - start(index);
                assert!(width <= (nanoseconds / SUB_BUCKETS).max(LINEAR / SUB_BUCKETS), "{nanoseconds} ns");
            }
        }
        assert_eq!(bucket(1 << LAST_POWER), BUCKETS - 1);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_of_known_durations_are_within_an_eighth() {
        // 1 to 1000 microseconds, each once.
        let summary = summary_of((1..=1000).rev().map(|microseconds| microseconds * 1000));
        assert_eq!((summary.count, summary.mean), (1000, 500_500));
        near(summary.median, 500_000);
        near(summary.p99, 990_000);
    }

    #[test]
    fn a_few_slow_ones_move_the_mean_and_the_p99_but_not_the_median() {
        let summary = summary_of(std::iter::repeat_n(20_000, 980).chain(std::iter::repeat_n(50_000_000, 20)));
        assert_eq!((summary.count, summary.mean), (1000, (20_000 * 980 + 50_000_000 * 20) / 1000));
        near(summary.median, 20_000);
        near(summary.p99, 50_000_000);
    }

    #[test]
    fn one_duration_is_all_of_its_quantiles_and_none_are_nothing() {
        let summary = summary_of([1_000_000].into_iter());
        assert_eq!((summary.count, summary.mean), (1, 1_000_000));
        near(summary.median, 1_000_000);
        near(summary.p99, 1_000_000);
        assert_eq!(summary_of(std::iter::empty()), Summary::default());
    }

    fn summary_of(nanoseconds: impl Iterator<Item = u64>) -> Summary {
        let histogram = Histogram::default();
        nanoseconds.for_each(|nanoseconds| histogram.record(Duration::from_nanos(nanoseconds)));
        histogram.summary()
    }

    fn near(measured: u64, exact: u64) {
        assert!(measured.abs_diff(exact) <= exact / SUB_BUCKETS, "{measured} instead of {exact}");
    }
}
