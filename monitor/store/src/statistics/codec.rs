//! The bytes of a delta row, and of a stored histogram: few, and read again by the leader and by charts only.
//!
//! A monitor's bytes are a tenant's: whatever they hold, reading them ends soon, allocates little and says what is wrong.
//!
//! ```text
//! delta row  version (1), entries
//! entry      dimension, length of the key, key, mask of the counts that follow, counts, runtime, wait
//! durations  sum in µs, histogram
//! histogram  number of buckets, for each: distance to the one before, count
//! ```
//!
//! Numbers are LEB128; those that may be negative are zigzag encoded first.

use super::{BUCKETS, Counts, Dimension, Durations, Histogram, Measures, StatisticDelta, TRANSITIONS, Transition};

const VERSION: u8 = 1;

/// Bytes after which a delta row is full; an entry takes at most 4 kB more.
const ROW_BYTES: usize = 32 * 1024;

/// Entries of one delta row.
const ROW_ENTRIES: usize = 1_000;

/// Bytes of a key that are kept; event fields are bounded to as many.
const KEY_BYTES: usize = 255;

/// Why bytes could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to read statistics: damaged, or of a newer version")]
pub(crate) struct Damaged;

/// Returns the rows for these deltas, which must be in the order of their minutes: minute in µs, payload.
pub(crate) fn encode(deltas: &[StatisticDelta]) -> Vec<(kanchi_domain::UnixMicros, Vec<u8>)> {
    let mut rows = Vec::new();
    for minute in deltas.chunk_by(|a, b| a.minute == b.minute) {
        let mut row: Vec<u8> = Vec::new();
        let mut entries = 0;
        for delta in minute {
            if row.len() >= ROW_BYTES || entries >= ROW_ENTRIES {
                rows.push((delta.minute, std::mem::take(&mut row)));
                entries = 0;
            }
            if row.is_empty() {
                row.push(VERSION);
            }
            push_entry(&mut row, delta);
            entries += 1;
        }
        rows.extend(minute.first().map(|delta| (delta.minute, row)));
    }
    rows
}

fn push_entry(row: &mut Vec<u8>, delta: &StatisticDelta) {
    let key = crate::writer::head(&delta.key, KEY_BYTES);
    row.push(delta.dimension as u8);
    push_number(row, key.len() as u64);
    row.extend_from_slice(key.as_bytes());
    let counts = &delta.measures.counts;
    let counted = || Transition::ALL.into_iter().filter(|one| counts.get(*one) != 0);
    push_number(row, counted().fold(0, |mask, one| mask | bit(one)));
    for transition in counted() {
        push_signed(row, counts.get(transition));
    }
    for durations in [&delta.measures.runtime, &delta.measures.wait] {
        push_signed(row, durations.sum_micros);
        push_histogram(row, &durations.histogram);
    }
}

/// Appends a histogram.
pub(crate) fn push_histogram(out: &mut Vec<u8>, histogram: &Histogram) {
    push_number(out, histogram.buckets().len() as u64);
    let mut before = 0;
    for (bucket, count) in histogram.buckets() {
        push_number(out, u64::from(bucket - before));
        push_signed(out, *count);
        before = *bucket;
    }
}

/// Reads a delta row: dimension, key and measures of each entry.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<(Dimension, &str, Measures)>, Damaged> {
    let mut input = Input { left: bytes };
    if input.byte()? != VERSION {
        return Err(Damaged);
    }
    let mut entries = Vec::new();
    while !input.left.is_empty() {
        if entries.len() == ROW_ENTRIES {
            return Err(Damaged);
        }
        entries.push(input.entry()?);
    }
    Ok(entries)
}

/// Reads a stored histogram.
pub(crate) fn decode_histogram(bytes: &[u8]) -> Result<Histogram, Damaged> {
    let mut input = Input { left: bytes };
    let histogram = input.histogram()?;
    if input.left.is_empty() {
        Ok(histogram)
    } else {
        Err(Damaged)
    }
}

struct Input<'a> {
    left: &'a [u8],
}

impl<'a> Input<'a> {
    fn byte(&mut self) -> Result<u8, Damaged> {
        let (byte, left) = self.left.split_first().ok_or(Damaged)?;
        self.left = left;
        Ok(*byte)
    }

    fn number(&mut self) -> Result<u64, Damaged> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(number);
            }
        }
        Err(Damaged)
    }

    fn signed(&mut self) -> Result<i64, Damaged> {
        let number = self.number()?;
        Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }

    fn entry(&mut self) -> Result<(Dimension, &'a str, Measures), Damaged> {
        let dimension = Dimension::from_number(self.byte()?).ok_or(Damaged)?;
        let length = usize::try_from(self.number()?).map_err(|_too_long| Damaged)?;
        let (key, left) = self.left.split_at_checked(length).ok_or(Damaged)?;
        self.left = left;
        let key = std::str::from_utf8(key).map_err(|_no_text| Damaged)?;
        if length > KEY_BYTES || key.contains('\0') {
            return Err(Damaged);
        }
        let mask = self.number()?;
        if mask >> TRANSITIONS != 0 {
            return Err(Damaged);
        }
        let mut counts = Counts::default();
        for transition in Transition::ALL {
            if mask & bit(transition) != 0 {
                counts.add(transition, self.signed()?);
            }
        }
        let measures = Measures {
            counts,
            runtime: self.durations()?,
            wait: self.durations()?,
        };
        Ok((dimension, key, measures))
    }

    fn durations(&mut self) -> Result<Durations, Damaged> {
        Ok(Durations {
            sum_micros: self.signed()?,
            histogram: self.histogram()?,
        })
    }

    fn histogram(&mut self) -> Result<Histogram, Damaged> {
        let length = self.number()?;
        if length > u64::from(BUCKETS) {
            return Err(Damaged);
        }
        let mut buckets = Vec::new();
        let mut bucket = 0_u64;
        for _ in 0..length {
            bucket = bucket.checked_add(self.number()?).ok_or(Damaged)?;
            let known = u16::try_from(bucket).ok().filter(|bucket| *bucket < BUCKETS);
            buckets.push((known.ok_or(Damaged)?, self.signed()?));
        }
        Ok(Histogram::of(buckets))
    }
}

const fn bit(transition: Transition) -> u64 {
    1 << transition as u8
}

fn push_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 128 {
        out.push(number as u8 | 128);
        number >>= 7;
    }
    out.push(number as u8);
}

fn push_signed(out: &mut Vec<u8>, number: i64) {
    push_number(out, ((number << 1) ^ (number >> 63)).cast_unsigned());
}

#[cfg(test)]
mod tests {
    use kanchi_domain::UnixMicros;
    use proptest::prelude::*;

    use super::*;

    fn durations() -> impl Strategy<Value = Durations> {
        let counts = proptest::collection::vec((0..BUCKETS, any::<i64>()), 0..9);
        (any::<i64>(), counts).prop_map(|(sum_micros, counts)| Durations {
            sum_micros,
            histogram: Histogram::of(counts),
        })
    }

    fn delta() -> impl Strategy<Value = StatisticDelta> {
        let counts = proptest::collection::vec((0..TRANSITIONS, any::<i64>()), 0..4);
        ((0..3_i64, 0..4_u8), "[^\0]{0,60}", counts, durations(), durations()).prop_map(
            |((minute, dimension), key, counted, runtime, wait)| {
                let mut counts = Counts::default();
                for (transition, count) in counted {
                    counts.add(Transition::ALL[transition], count);
                }
                StatisticDelta {
                    minute: UnixMicros(minute * 60_000_000),
                    dimension: Dimension::from_number(dimension).unwrap(),
                    key,
                    measures: Measures { counts, runtime, wait },
                }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(deltas in proptest::collection::vec(delta(), 0..30)) {
            let mut deltas = deltas;
            deltas.sort_by_key(|delta| delta.minute);
            let mut read = Vec::new();
            for (minute, row) in encode(&deltas) {
                for (dimension, key, measures) in decode(&row).unwrap() {
                    read.push(StatisticDelta { minute, dimension, key: key.to_owned(), measures });
                }
            }
            prop_assert_eq!(read, deltas);
        }

        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _whatever = decode(&bytes);
            let _whatever = decode_histogram(&bytes);
        }
    }

    #[test]
    fn many_keys_take_several_rows_that_each_can_be_read() {
        let one = |number: usize| StatisticDelta {
            minute: UnixMicros(0),
            dimension: Dimension::Worker,
            key: format!("{number:0>200}"),
            measures: Measures::default(),
        };
        let rows = encode(&(0..2_500).map(one).collect::<Vec<_>>());
        assert!(rows.len() > 10);
        let entries = rows.iter().map(|(_, row)| decode(row).unwrap().len());
        assert_eq!(entries.sum::<usize>(), 2_500);
        assert!(rows.iter().all(|(_, row)| row.len() < 64 * 1024));
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        for bytes in [&[][..], &[2], &[1, 9, 0, 0], &[1, 1, 1, 0, 0, 0, 0, 0, 0], &[1, 1, 200]] {
            assert_eq!(decode(bytes), Err(Damaged), "{bytes:?}");
        }
    }
}
