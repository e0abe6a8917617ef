//! How much processor time single calls took: a histogram whose recording is one atomic addition, narrow enough that a median can
//! be compared with another one's. Knows no guest.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// Buckets for each doubling: 3 to 6 % wide.
const PER_DOUBLING: usize = 16;
/// The first doubling begins at about a microsecond; what is below is counted there.
const FIRST: u32 = 10;
/// The last one ends at about 17 s.
const DOUBLINGS: usize = 24;
const BUCKETS: usize = PER_DOUBLING * DOUBLINGS;

/// Calls by their processor time. Holds no memory until the first one.
#[derive(Debug, Default)]
pub struct CpuTimes(OnceLock<Box<[AtomicU32]>>);

impl CpuTimes {
    /// A call took so long.
    pub fn record(&self, ns: u64) {
        self.record_many(ns, 1);
    }

    /// So many calls took so long each.
    pub fn record_many(&self, ns: u64, calls: u32) {
        let buckets = self.0.get_or_init(|| (0..BUCKETS).map(|_| AtomicU32::new(0)).collect());
        buckets[bucket(ns)].fetch_add(calls, Relaxed);
    }

    /// Where it stands.
    pub fn counts(&self) -> CpuCounts {
        let buckets = self.0.get().into_iter().flat_map(|buckets| buckets.iter());
        CpuCounts(buckets.map(|n| n.load(Relaxed)).collect())
    }
}

fn bucket(ns: u64) -> usize {
    let ns = ns.max(1 << FIRST);
    let doubling = ns.ilog2();
    // The four bits below the highest one.
    let within = (ns >> (doubling - PER_DOUBLING.ilog2())) % PER_DOUBLING as u64;
    let at = u64::from(doubling - FIRST) * PER_DOUBLING as u64 + within;
    usize::try_from(at).map_or(BUCKETS - 1, |at| at.min(BUCKETS - 1))
}

/// Where a bucket begins, in nanoseconds.
fn begin(bucket: usize) -> u64 {
    let doubling = 1_u64 << (FIRST as usize + bucket / PER_DOUBLING);
    doubling + doubling / PER_DOUBLING as u64 * (bucket % PER_DOUBLING) as u64
}

/// A histogram at one time, the difference of two, or the sum of several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuCounts(Vec<u32>);

impl CpuCounts {
    pub fn calls(&self) -> u64 {
        self.0.iter().map(|n| u64::from(*n)).sum()
    }

    /// What came after `earlier`.
    #[must_use]
    pub fn since(mut self, earlier: &Self) -> Self {
        for (now, then) in self.0.iter_mut().zip(&earlier.0) {
            *now = now.wrapping_sub(*then);
        }
        self
    }

    pub fn add(&mut self, other: &Self) {
        if self.0.is_empty() {
            self.0.clone_from(&other.0);
            return;
        }
        for (mine, its) in self.0.iter_mut().zip(&other.0) {
            *mine = mine.saturating_add(*its);
        }
    }

    /// Half of the calls took less. Within a bucket they are taken for evenly spread.
    pub fn median(&self) -> Option<Duration> {
        let half = self.calls().div_ceil(2);
        let mut below = 0;
        for (at, n) in self.0.iter().enumerate() {
            let n = u64::from(*n);
            if n > 0 && below + n >= half {
                let (from, to) = (begin(at), begin(at + 1));
                let ns = u128::from(to - from) * u128::from(half - below) / u128::from(n);
                return Some(Duration::from_nanos(
                    from.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX)),
                ));
            }
            below += n;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_narrow_and_cover_a_microsecond_to_seventeen_seconds() {
        for at in 0..BUCKETS - 1 {
            assert_eq!((bucket(begin(at)), bucket(begin(at + 1) - 1)), (at, at));
            assert!(begin(at + 1) as f64 / begin(at) as f64 <= 1.0625);
        }
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BUCKETS - 1));
    }

    #[test]
    fn the_median_is_that_of_the_calls_and_not_of_the_outliers() {
        let times = CpuTimes::default();
        assert_eq!(times.counts().median(), None);
        for _ in 0..60 {
            times.record(100_000);
        }
        times.record_many(50_000_000, 40);
        let counts = times.counts();
        let median = counts.median().unwrap();
        assert!(
            median.abs_diff(Duration::from_micros(100)) < Duration::from_micros(7),
            "{median:?}"
        );
        times.record_many(50_000_000, 30);
        assert!(times.counts().median().unwrap() > Duration::from_millis(40));
        let since = times.counts().since(&counts);
        assert_eq!(since.calls(), 30);
        let mut sum = CpuCounts::default();
        sum.add(&since);
        sum.add(&counts);
        assert_eq!(sum, times.counts());
    }
}
