//! How far a page has read history, and how much time it has left.

use std::time::{Duration, Instant};

use kanchi_domain::UnixMicros;
use sqlx::PgConnection;

use crate::error::{Error, ErrorKind, Result};
use crate::query::cursor::Place;
use crate::query::set_timeout;

/// Beyond it no further slice is read: the page ends where the slices did.
const BUDGET: Duration = Duration::from_millis(40);
/// A slice that takes so much longer than the budget is given up.
const GRACE: Duration = Duration::from_millis(20);

/// The first slice, microseconds: where every row matches, and where most rows may not.
const FIRST: i64 = 3_600_000_000;
const FIRST_SELECTIVE: i64 = 60_000_000;
/// The first slice of a count, which has no cursor to ask for less with.
pub(super) const FIRST_COUNTED: i64 = 1_000_000;
/// A slice is at most so many times as wide as the one before.
const GROWTH: i64 = 16;
/// A page whose rows may not match and that begins with a slice as narrow as this has no time limit but that of any statement: it has
/// to get somewhere.
const NARROWEST: i64 = 100_000;
/// The longest retention and its widest partition; what is older is read in one last slice.
const LONGEST: i64 = 400 * 86_400 * 1_000_000;

/// How far history has been read.
#[derive(Debug)]
pub(super) struct Slices {
    /// The place behind which the next slice begins.
    pub(super) first: Place,
    /// Microseconds that the next slice spans.
    pub(super) width: i64,
    /// Where it ended for want of time.
    pub(super) end: Option<Place>,
    from: i64,
    now: UnixMicros,
    /// Its first slice may hold any number of rows that do not match.
    is_selective: bool,
    began: Instant,
    slice_began: Instant,
    has_moved: bool,
    is_over: bool,
    /// What the server gives to a slice, once it was told.
    allowed: Option<Duration>,
}

impl Slices {
    /// Begins behind a place, and goes back to a time; `began`: since when the page's time runs.
    pub(super) fn new((first, from): (Place, i64), is_selective: bool, now: UnixMicros, began: Instant) -> Self {
        Self {
            first,
            width: if is_selective { FIRST_SELECTIVE } else { FIRST },
            end: None,
            from,
            now,
            is_selective,
            began,
            slice_began: began,
            has_moved: false,
            is_over: false,
            allowed: None,
        }
    }

    /// Begins a slice and returns how far back it goes. `None`: there is nothing to read, or no time for it.
    pub(super) async fn begin(&mut self, connection: &mut PgConnection) -> Result<Option<i64>> {
        let first = self.first.micros();
        if self.is_over || self.end.is_some() || first < self.from {
            return Ok(None);
        }
        let left = BUDGET.saturating_sub(self.began.elapsed());
        if self.has_moved && left.is_zero() {
            self.end = Some(self.first.clone());
            return Ok(None);
        }
        // Not each time: that would be as many questions as there are slices.
        if self.is_limited() && self.allowed.is_none_or(|allowed| left < allowed / 2) {
            self.allowed = Some(left);
            set_timeout(connection, left + GRACE).await?;
        }
        self.slice_began = Instant::now();
        // Few tasks are of the future: the first slice has them all.
        let low = first.min(self.now.0).saturating_sub(self.width).max(self.from);
        // Nothing is kept for so long.
        Ok(Some(if low < self.now.0 - LONGEST { self.from } else { low }))
    }

    /// Ends a slice that was read.
    pub(super) fn next(&mut self, low: i64) {
        self.first = Place::behind(low);
        self.has_moved = true;
        self.is_over = low <= self.from;
        let left = BUDGET.saturating_sub(self.began.elapsed());
        self.width = grown(self.width, self.slice_began.elapsed(), left);
    }

    /// Ends before a slice that took too long; the next page tries a narrower one. Any other error is returned.
    pub(super) fn give_up(&mut self, error: Error) -> Result<()> {
        if error.kind() != ErrorKind::Timeout || !self.is_limited() {
            return Err(error);
        }
        self.end = Some(self.first.clone());
        self.width = (self.width / GROWTH).max(NARROWEST);
        Ok(())
    }

    /// Whether the next slice may be given up.
    fn is_limited(&self) -> bool {
        self.has_moved || (self.is_selective && self.width > NARROWEST)
    }
}

/// Returns the width of the next slice, twice as wide at least: where Postgres is slow in itself, narrow slices get nowhere.
/// One that turns out too wide runs into its time limit.
fn grown(width: i64, took: Duration, left: Duration) -> i64 {
    let factor = i64::try_from(left.as_micros() / 2 / took.as_micros().max(1)).unwrap_or(GROWTH);
    width.saturating_mul(factor.clamp(2, GROWTH))
}
