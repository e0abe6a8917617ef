//! A histogram of fixed buckets whose recording is one atomic addition to a bucket and one to the sum. Steps of about
//! 10 %, so that quantiles of a window can be told from it; the exposition adds them up to few bounds.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds within a decade, in tenths.
const STEPS: [u64; 24] = [
    10, 11, 12, 13, 15, 16, 18, 20, 22, 24, 27, 30, 33, 36, 39, 43, 47, 50, 56, 62, 68, 75, 82, 91,
];
/// Six decades from 10 us, and the third of one up to 30 s.
const BOUNDS: usize = 6 * STEPS.len() + 12;
/// Upper bounds (inclusive), in nanoseconds.
static BOUNDS_NS: [u64; BOUNDS] = bounds();

/// Bounds of the exposition, in seconds; each is one of the bounds above.
pub const EXPOSED: [f64; 18] = [
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0,
];

const fn bounds() -> [u64; BOUNDS] {
    let mut out = [0; BOUNDS];
    let mut unit = 1_000; // a tenth of 10 us
    let mut n = 0;
    while n < BOUNDS {
        out[n] = STEPS[n % STEPS.len()] * unit;
        n += 1;
        if n % STEPS.len() == 0 {
            unit *= 10;
        }
    }
    out
}

/// Durations that were observed.
#[derive(Debug)]
pub struct Histogram {
    /// The last one: over every bound.
    buckets: [AtomicU64; BOUNDS + 1],
    sum_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            sum_ns: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    pub fn observe(&self, elapsed: Duration) {
        let ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_NS.partition_point(|bound| *bound < ns);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_ns.fetch_add(ns, Relaxed);
    }

    /// Where it stands.
    pub fn counts(&self) -> Counts {
        Counts {
            buckets: self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect(),
        }
    }

    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns.load(Relaxed))
    }
}

/// A histogram at one time, or the difference of two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    buckets: Box<[u64]>,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            buckets: vec![0; BOUNDS + 1].into(),
        }
    }
}

impl Counts {
    pub fn total(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// What came after `earlier`.
    pub fn since(mut self, earlier: &Self) -> Self {
        for (now, then) in self.buckets.iter_mut().zip(&earlier.buckets) {
            *now = now.saturating_sub(*then);
        }
        self
    }

    pub fn add(&mut self, other: &Self) {
        for (mine, its) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += its;
        }
    }

    /// The duration, in milliseconds, that this share (0 to 1) of them did not pass: the upper bound of its bucket.
    pub fn quantile_ms(&self, share: f64) -> Option<f64> {
        let total = self.total();
        let mut below = 0;
        for (bucket, n) in self.buckets.iter().enumerate() {
            below += n;
            if *n > 0 && below as f64 >= share * total as f64 {
                let ns = BOUNDS_NS[bucket.min(BOUNDS - 1)];
                return Some(ns as f64 / 1e6);
            }
        }
        None
    }

    /// For the exposition: bound in seconds and how many are in that bucket, the last without a bound.
    pub fn exposed(&self) -> [(f64, u64); EXPOSED.len() + 1] {
        let mut out = [(f64::INFINITY, 0); EXPOSED.len() + 1];
        for (slot, bound) in out.iter_mut().zip(EXPOSED) {
            slot.0 = bound;
        }
        for (bucket, n) in self.buckets.iter().enumerate() {
            let seconds = BOUNDS_NS.get(bucket).map_or(f64::INFINITY, |ns| *ns as f64 / 1e9);
            out[EXPOSED.partition_point(|bound| *bound < seconds)].1 += n;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_grow_and_every_exposed_bound_is_one_of_them() {
        assert!(BOUNDS_NS.is_sorted_by(|a, b| a < b));
        assert_eq!((BOUNDS_NS[0], BOUNDS_NS[BOUNDS - 1]), (10_000, 30_000_000_000));
        for bound in EXPOSED {
            assert!(BOUNDS_NS.iter().any(|ns| *ns as f64 / 1e9 == bound), "{bound}");
        }
    }

    #[test]
    fn a_duration_is_counted_at_the_first_bound_that_holds_it() {
        let histogram = Histogram::default();
        for us in [0, 100, 101, 1_000, 30_000_000, 30_000_001, u64::MAX / 1000] {
            histogram.observe(Duration::from_micros(us));
        }
        let exposed = histogram.counts().exposed();
        let filled: Vec<_> = exposed.into_iter().filter(|(_, n)| *n > 0).collect();
        assert_eq!(
            filled,
            [(0.0001, 2), (0.0002, 1), (0.001, 1), (30.0, 1), (f64::INFINITY, 2)]
        );
    }

    #[test]
    fn quantiles_are_within_ten_percent() {
        let histogram = Histogram::default();
        for us in 1..=10_000 {
            histogram.observe(Duration::from_micros(us));
        }
        let counts = histogram.counts();
        for (share, ms) in [(0.5, 5.0), (0.99, 9.9), (1.0, 10.0)] {
            let found = counts.quantile_ms(share).unwrap();
            assert!(found >= ms && found <= ms * 1.12, "{share}: {found}");
        }
        assert_eq!(Counts::default().quantile_ms(0.5), None);
    }
}
