//! Minutes, hours, days: which of them a time range is read from.

use kanchi_domain::UnixMicros;

use crate::retention::RetentionClass;

/// Points that a chart may have: half a day of minutes, a month of hours, two years of days.
pub const MAX_POINTS: i64 = 750;

const DAY: i64 = 86_400;

/// How long a point of statistics is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resolution {
    /// A minute; kept 14 days at most.
    Minute,
    /// An hour; kept 90 days at most.
    Hour,
    /// A day, from midnight to midnight UTC; kept as long as the broker says.
    Day,
}

impl Resolution {
    /// All of them, finest first.
    pub const ALL: [Self; 3] = [Self::Minute, Self::Hour, Self::Day];

    /// Returns its length in seconds.
    pub const fn seconds(self) -> i32 {
        match self {
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        }
    }

    /// Returns the class of its rows, for a broker whose statistics are of this class.
    pub fn class(self, statistics: RetentionClass) -> RetentionClass {
        statistics.min(self.longest())
    }

    /// Returns the longest class its rows can have.
    pub(crate) const fn longest(self) -> RetentionClass {
        match self {
            Self::Minute => RetentionClass::Days14,
            Self::Hour => RetentionClass::Days90,
            Self::Day => RetentionClass::Days365,
        }
    }

    /// Returns where the minute, hour or day of a time begins. In seconds since 1970, as all that follows.
    pub(crate) const fn floor(self, at: i64) -> i64 {
        at - at.rem_euclid(self.seconds() as i64)
    }

    const fn ceil(self, at: i64) -> i64 {
        self.floor(at.saturating_add(self.seconds() as i64 - 1))
    }

    const fn coarser(self) -> Option<Self> {
        match self {
            Self::Minute => Some(Self::Hour),
            Self::Hour => Some(Self::Day),
            Self::Day => None,
        }
    }

    /// Returns the finest that a range from then on can be read in, as far as classes go.
    fn finest(from: i64, now: i64) -> Self {
        let kept = |one: &Self| from >= now - i64::from(one.longest().days()) * DAY;
        Self::ALL.into_iter().find(kept).unwrap_or(Self::Day)
    }

    /// Returns the one that a chart of this range is best drawn in: minutes up to six hours, hours up to a month, then days;
    /// coarser where the finer rows are gone.
    pub fn of_chart(from: UnixMicros, to: UnixMicros, now: UnixMicros) -> Self {
        let (from, to, now) = (seconds(from), seconds(to), seconds(now));
        let by_length = match to.saturating_sub(from) {
            ..=21_600 => Self::Minute,
            21_601..=2_678_400 => Self::Hour,
            _ => Self::Day,
        };
        by_length.max(Self::finest(from, now))
    }
}

/// A range in seconds since 1970, its end not included, and what it is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) resolution: Resolution,
    pub(crate) from: i64,
    pub(crate) to: i64,
}

impl Piece {
    /// Returns the whole points of a resolution that cover a range.
    pub(crate) fn covering(resolution: Resolution, from: UnixMicros, to: UnixMicros) -> Self {
        let from = resolution.floor(seconds(from));
        // The end is not included, and may be within a second.
        let to = resolution.ceil(seconds(UnixMicros(to.0.saturating_add(999_999))));
        Self { resolution, from, to }
    }

    /// Returns how many points it has.
    pub(crate) const fn points(self) -> i64 {
        (self.to - self.from) / self.resolution.seconds() as i64
    }

    /// Cuts into as few rows as there can be: days, and at both ends hours, and at both ends of these minutes.
    pub(crate) fn coarsened(self) -> Vec<Self> {
        let mut pieces = Vec::new();
        self.split(&mut pieces);
        pieces.retain(|piece| piece.from < piece.to);
        pieces
    }

    fn split(self, pieces: &mut Vec<Self>) {
        let whole = self.resolution.coarser().map(|coarser| Self {
            resolution: coarser,
            from: coarser.ceil(self.from),
            to: coarser.floor(self.to),
        });
        match whole.filter(|whole| whole.from < whole.to) {
            Some(whole) => {
                pieces.push(Self { to: whole.from, ..self });
                whole.split(pieces);
                pieces.push(Self { from: whole.to, ..self });
            }
            None => pieces.push(self),
        }
    }
}

/// Returns what a range is summed up from. Where the minutes at its ends are gone, it grows to whole hours or days.
pub(crate) fn pieces(from: UnixMicros, to: UnixMicros, now: UnixMicros) -> Vec<Piece> {
    let finest = Resolution::finest(seconds(from), seconds(now));
    Piece::covering(finest, from, to).coarsened()
}

const fn seconds(at: UnixMicros) -> i64 {
    at.0.div_euclid(1_000_000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_795_219_200;

    fn at(seconds: i64) -> UnixMicros {
        UnixMicros(seconds * 1_000_000)
    }

    proptest! {
        #[test]
        fn pieces_cover_a_range_once_and_with_few_rows(from in 0..13 * DAY, length in 0..13 * DAY) {
            let from = NOW - 13 * DAY + from;
            let pieces = pieces(at(from), at(from + length), at(NOW));
            let mut next = Resolution::Minute.floor(from);
            for piece in &pieces {
                prop_assert_eq!(piece.from, next);
                prop_assert_eq!(piece.resolution.floor(piece.from), piece.from);
                next = piece.to;
            }
            prop_assert_eq!(next, Resolution::Minute.ceil(from + length).max(Resolution::Minute.floor(from)));
            prop_assert!(pieces.iter().map(|piece| piece.points()).sum::<i64>() <= 2 * 59 + 2 * 23 + 13);
        }
    }

    #[test]
    fn old_ranges_are_read_from_what_is_still_kept() {
        let old = |days: i64| Resolution::of_chart(at(NOW - days * DAY), at(NOW - days * DAY + 60), at(NOW));
        assert_eq!(
            (old(1), old(20), old(100)),
            (Resolution::Minute, Resolution::Hour, Resolution::Day)
        );
        let whole = pieces(at(NOW - 20 * DAY + 60), at(NOW - 20 * DAY + 120), at(NOW));
        assert_eq!(whole.len(), 1);
        assert_eq!(whole[0].resolution, Resolution::Hour);
    }

    #[test]
    fn every_default_chart_has_few_points() {
        for length in [60, 3_600, 21_600, DAY, 31 * DAY, 365 * DAY] {
            let (from, to) = (at(NOW - length), at(NOW));
            let piece = Piece::covering(Resolution::of_chart(from, to, at(NOW)), from, to);
            assert!(piece.points() <= MAX_POINTS, "{length}: {}", piece.points());
        }
    }
}
