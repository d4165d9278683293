//! Histograms of durations with fixed buckets, so that any two can be added up.
//!
//! Log-linear: eight buckets of equal width between each power of two of microseconds and the next. A value is known to
//! within 6 %: far less than it varies from hour to hour. The bounds are integers, so every machine agrees on them.

/// Powers of two of microseconds: what lies below the first, or at the last and above, has one bucket each.
const OCTAVES: std::ops::Range<u32> = 6..40;

/// Bits that tell the buckets between two powers of two apart.
const BITS: u32 = 3;

/// How many buckets there are: less than 64 µs, 8 for each doubling up to 12.7 days, and what is longer.
pub const BUCKETS: u16 = 2 + ((OCTAVES.end - OCTAVES.start) << BITS) as u16;

/// Returns the bucket of a duration.
pub const fn bucket_of(micros: u64) -> u16 {
    let octave = (micros | 1).ilog2();
    if octave < OCTAVES.start {
        0
    } else if octave >= OCTAVES.end {
        BUCKETS - 1
    } else {
        let within = (micros >> (octave - BITS)) & ((1 << BITS) - 1);
        1 + (((octave - OCTAVES.start) << BITS) + within as u32) as u16
    }
}

/// Returns the lower bound of a bucket, which belongs to it, and the upper one, which does not; `None`: there is none. In
/// microseconds.
pub const fn bucket_bounds(bucket: u16) -> (u64, Option<u64>) {
    if bucket == 0 {
        (0, Some(1 << OCTAVES.start))
    } else if bucket >= BUCKETS - 1 {
        (1 << OCTAVES.end, None)
    } else {
        let number = bucket as u32 - 1;
        let octave = OCTAVES.start + (number >> BITS);
        let width = 1u64 << (octave - BITS);
        let lower = (1u64 << octave) + (number & ((1 << BITS) - 1)) as u64 * width;
        (lower, Some(lower + width))
    }
}

/// Counts by bucket. Only buckets that are not zero take room; a count is negative where more was taken back than counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// In the order of the buckets, without zeros.
    buckets: Vec<(u16, i64)>,
}

impl Histogram {
    /// Makes one of counts by bucket, in any order, a bucket as often as you like.
    pub fn of(mut counts: Vec<(u16, i64)>) -> Self {
        counts.sort_unstable();
        counts.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1 = kept.1.saturating_add(next.1);
            }
            same
        });
        counts.retain(|(_, count)| *count != 0);
        Self { buckets: counts }
    }

    /// Returns it as the store keeps it.
    pub fn to_stored(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        super::codec::push_histogram(&mut bytes, self);
        bytes
    }

    /// Returns buckets and their counts, in order, without zeros.
    pub fn buckets(&self) -> &[(u16, i64)] {
        &self.buckets
    }

    /// Tells whether all counts are zero.
    pub const fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Returns how many durations were counted; what is negative counts as nothing.
    pub fn count(&self) -> i64 {
        let counts = self.buckets.iter().map(|(_, count)| (*count).max(0));
        counts.fold(0, i64::saturating_add)
    }

    /// Adds `other`.
    pub fn merge(&mut self, other: &Self) {
        if self.is_empty() {
            self.buckets.clone_from(&other.buckets);
        } else if !other.is_empty() {
            let mut all = std::mem::take(&mut self.buckets);
            all.extend_from_slice(&other.buckets);
            *self = Self::of(all);
        }
    }

    /// Returns the duration in seconds that this share of the durations does not exceed, for example 0.95; within 6 % between
    /// 64 µs and 12.7 days. `None` where nothing is known.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = ((share.clamp(0.0, 1.0) * count as f64).ceil() as i64).clamp(1, count);
        let mut below = 0_i64;
        for (bucket, count) in &self.buckets {
            below = below.saturating_add((*count).max(0));
            if below >= rank {
                return Some(match bucket_bounds(*bucket) {
                    // The value whose relative distance to both bounds is the same.
                    (lower @ 1.., Some(upper)) => 2e-6 * lower as f64 * upper as f64 / (lower + upper) as f64,
                    (0, Some(upper)) => upper as f64 / 1e6,
                    (lower, None) => lower as f64 / 1e6,
                });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        let mut next = 0;
        for bucket in 0..BUCKETS {
            let (lower, upper) = bucket_bounds(bucket);
            assert_eq!(lower, next, "{bucket}");
            assert_eq!(bucket_of(lower), bucket);
            let Some(upper) = upper else {
                assert_eq!(bucket, BUCKETS - 1);
                continue;
            };
            assert_eq!(bucket_of(upper - 1), bucket);
            next = upper;
        }
        assert!(next > 8 * 86_400_000_000, "more than a week has a bucket");
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn what_is_taken_back_is_gone() {
        let mut histogram = Histogram::of(vec![(3, 1), (9, 2)]);
        histogram.merge(&Histogram::of(vec![(9, -2), (3, -1)]));
        assert_eq!(histogram, Histogram::default());
        assert_eq!(histogram.quantile(0.5), None);
    }

    #[test]
    fn more_taken_back_than_counted_is_no_quantile() {
        let histogram = Histogram::of(vec![(3, -5), (9, 1)]);
        assert_eq!(histogram.count(), 1);
        assert_eq!(histogram.quantile(0.5), Histogram::of(vec![(9, 1)]).quantile(0.99));
    }

    fn histogram() -> impl Strategy<Value = Histogram> {
        proptest::collection::vec((0..BUCKETS, -3..9_i64), 0..20).prop_map(Histogram::of)
    }

    fn sum(a: &Histogram, b: &Histogram) -> Histogram {
        let mut sum = a.clone();
        sum.merge(b);
        sum
    }

    proptest! {
        #[test]
        fn adding_up_is_commutative_and_associative(a in histogram(), b in histogram(), c in histogram()) {
            prop_assert_eq!(sum(&a, &b), sum(&b, &a));
            prop_assert_eq!(sum(&sum(&a, &b), &c), sum(&a, &sum(&b, &c)));
        }

        #[test]
        fn a_quantile_is_within_six_percent(values in proptest::collection::vec(64..(1_u64 << 40), 1..200), share in 0.0..1.0_f64) {
            let mut values: Vec<u64> = values;
            let histogram = Histogram::of(values.iter().map(|value| (bucket_of(*value), 1)).collect());
            values.sort_unstable();
            let rank = ((share * values.len() as f64).ceil() as usize).clamp(1, values.len());
            let exact = values[rank - 1] as f64 / 1e6;
            let told = histogram.quantile(share).unwrap();
            prop_assert!((told - exact).abs() <= 0.06 * exact, "{} for {}", told, exact);
        }
    }
}
