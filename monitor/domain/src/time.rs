//! Points in time as Celery writes them. No clock in here: `now` is always an argument.

use std::time::Duration;

/// Microseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMicros(pub i64);

/// 2000-01-01 and 2200-01-01: a time outside is a broken clock or a broken field, not a time. The bounds are absolute,
/// not relative to the arrival, so that two deliveries of one event are judged alike.
const PLAUSIBLE: std::ops::Range<i64> = 946_684_800_000_000..7_258_118_400_000_000;

impl UnixMicros {
    /// Returns the time of a Unix timestamp in seconds, if it is a number and plausible.
    pub fn from_seconds(seconds: f64) -> Option<Self> {
        if !seconds.is_finite() || seconds.abs() > 1e11 {
            return None;
        }
        Some(Self((seconds * 1e6).round() as i64)).filter(|time| time.is_plausible())
    }

    /// Returns the Unix timestamp in seconds.
    pub fn as_seconds(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// Returns the time of an ISO 8601 string such as Celery's `eta`; without an offset it is UTC.
    pub fn parse_iso8601(text: &str) -> Option<Self> {
        parse_iso8601(text.trim().as_bytes()).map(Self)
    }

    /// Says whether this lies in 2000–2199; anything else is treated as unknown.
    pub fn is_plausible(self) -> bool {
        PLAUSIBLE.contains(&self.0)
    }

    /// Returns this time moved by `by`, stopping at the ends of the range.
    #[must_use]
    pub fn saturating_add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
    }
}

/// Reads `YYYY-MM-DD[(T| )hh:mm[:ss[(.|,)f…]]][Z|±hh[:]mm[:ss]]`.
fn parse_iso8601(bytes: &[u8]) -> Option<i64> {
    let mut rest = bytes;
    let year = digits(&mut rest, 4)?;
    literal(&mut rest, b'-')?;
    let month = digits(&mut rest, 2)?;
    literal(&mut rest, b'-')?;
    let day = digits(&mut rest, 2)?;
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let mut micros = days_from_civil(year, month, day).checked_mul(86_400_000_000)?;
    if let [b'T' | b't' | b' ', tail @ ..] = rest {
        rest = tail;
        micros += clock_time(&mut rest)?;
    }
    micros -= offset(&mut rest)?;
    rest.is_empty().then_some(micros)
}

fn clock_time(rest: &mut &[u8]) -> Option<i64> {
    let hours = digits(rest, 2)?;
    literal(rest, b':')?;
    let minutes = digits(rest, 2)?;
    let (mut seconds, mut fraction) = (0, 0);
    if literal(rest, b':').is_some() {
        seconds = digits(rest, 2)?;
        if literal(rest, b'.').or_else(|| literal(rest, b',')).is_some() {
            fraction = micros_of_fraction(rest)?;
        }
    }
    if hours > 24 || minutes > 59 || seconds > 60 {
        return None;
    }
    Some(((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + fraction)
}

fn micros_of_fraction(rest: &mut &[u8]) -> Option<i64> {
    let (mut micros, mut unit, mut seen) = (0, 100_000, 0);
    while let [digit @ b'0'..=b'9', tail @ ..] = *rest {
        micros += i64::from(digit - b'0') * unit;
        unit /= 10;
        seen += 1;
        *rest = tail;
    }
    (1..=30).contains(&seen).then_some(micros)
}

fn offset(rest: &mut &[u8]) -> Option<i64> {
    let sign = match *rest {
        [] => return Some(0),
        [b'Z' | b'z', tail @ ..] => {
            *rest = tail;
            return Some(0);
        }
        [b'+', tail @ ..] => {
            *rest = tail;
            1
        }
        [b'-', tail @ ..] => {
            *rest = tail;
            -1
        }
        _ => return None,
    };
    let mut seconds = digits(rest, 2)? * 3600;
    let colon = literal(rest, b':').is_some();
    if colon || !rest.is_empty() {
        seconds += digits(rest, 2)? * 60;
    }
    if literal(rest, b':').is_some() {
        seconds += digits(rest, 2)?;
    }
    Some(sign * seconds * 1_000_000)
}

fn digits(rest: &mut &[u8], count: usize) -> Option<i64> {
    let (head, tail) = rest.split_at_checked(count)?;
    *rest = tail;
    head.iter().try_fold(0, |value, byte| {
        byte.is_ascii_digit().then(|| value * 10 + i64::from(byte - b'0'))
    })
}

fn literal(rest: &mut &[u8], byte: u8) -> Option<()> {
    let (first, tail) = rest.split_first()?;
    (*first == byte).then(|| *rest = tail)
}

/// Days since 1970-01-01 of a proleptic Gregorian date (Howard Hinnant's algorithm).
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year - era * 400;
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_celery_writes_as_eta() {
        let expected = Some(UnixMicros(1_795_219_792_763_659));
        assert_eq!(UnixMicros::parse_iso8601("2026-11-21T00:09:52.763659+00:00"), expected);
        assert_eq!(UnixMicros::parse_iso8601("2026-11-21T00:09:52.763659"), expected);
        assert_eq!(UnixMicros::parse_iso8601("2026-11-21 00:09:52,763659Z"), expected);
        assert_eq!(UnixMicros::parse_iso8601("2026-11-20T19:09:52.763659-05:00"), expected);
        assert_eq!(UnixMicros::parse_iso8601("2026-11-21T05:39:52.763659+0530"), expected);
        assert_eq!(UnixMicros::parse_iso8601("1970-01-01"), Some(UnixMicros(0)));
    }

    #[test]
    fn refuses_what_is_no_time() {
        for text in [
            "",
            "now",
            "2026-13-01",
            "2026-11-21T",
            "2026-11-21T00:09:52.+00:00",
            "2026-11-21T00:00x",
            "2026-1-1",
        ] {
            assert_eq!(UnixMicros::parse_iso8601(text), None, "{text}");
        }
    }

    #[test]
    fn a_timestamp_far_off_is_unknown() {
        for seconds in [0.0, -1.0, 1e18, 1e-3, f64::NAN, f64::INFINITY, 1e10] {
            assert_eq!(UnixMicros::from_seconds(seconds), None, "{seconds}");
        }
        assert_eq!(
            UnixMicros::from_seconds(1_795_219_789.979_196_8),
            Some(UnixMicros(1_795_219_789_979_197))
        );
    }
}
