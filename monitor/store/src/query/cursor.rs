//! Where a page ends and the next one begins.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::error::{Error, ErrorKind, Result};
use crate::query::tasks::TaskOrder;

/// Earlier than any task.
pub(super) const BEGINNING: i64 = 0;
/// The year 9999.
pub(super) const END: i64 = 253_402_300_799_999_999;

/// A place in a list: newest first, then by broker, then by id (byte by byte). Smaller comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Microseconds, negated.
    until: i64,
    pub(super) broker_key: i32,
    pub(super) task_id: String,
}

impl Place {
    pub(super) fn new(micros: i64, broker_key: i32, task_id: &str) -> Self {
        Self {
            until: micros.saturating_neg(),
            broker_key,
            task_id: task_id.to_owned(),
        }
    }

    /// Before all tasks of that time.
    pub(super) fn ahead_of(micros: i64) -> Self {
        Self::new(micros, i32::MIN, "")
    }

    /// After all tasks of that time.
    pub(super) fn behind(micros: i64) -> Self {
        Self::new(micros, i32::MAX, "")
    }

    /// Returns the place that comes first; `None` comes last.
    pub(super) fn first(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    pub(super) fn micros(&self) -> i64 {
        self.until.saturating_neg()
    }
}

/// What the opaque text of a cursor holds: the order, and the place behind which the next page begins. What comes later
/// stands before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) order: TaskOrder,
    pub(super) after: Place,
    /// Microseconds that the next slice of history spans; `None`: as a list begins.
    pub(super) width: Option<i64>,
}

impl Cursor {
    pub(super) fn write(&self) -> String {
        let order = self.order.letter();
        let Place {
            broker_key, task_id, ..
        } = &self.after;
        let text = format!(
            "{order}.{}.{}.{broker_key}.{task_id}",
            self.width.unwrap_or(0),
            self.after.micros()
        );
        encode(&text)
    }

    /// Reads a cursor, which must be of a list in this order.
    pub(super) fn read(text: &str, order: TaskOrder) -> Result<Self> {
        decode(text, |text| Self::parse(text).filter(|cursor| cursor.order == order))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(5, '.');
        let order = TaskOrder::of_letter(parts.next()?)?;
        let width = Some(parts.next()?.parse().ok()?).filter(|width| *width > 0);
        let micros = parts.next()?.parse().ok()?;
        let broker_key = parts.next()?.parse().ok()?;
        let after = Place::new(micros, broker_key, parts.next()?);
        Some(Self { order, after, width })
    }
}

/// Makes a cursor opaque.
pub(super) fn encode(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

/// Reads what was encoded. It comes from outside, so `parse` may find that it is nothing of ours.
pub(super) fn decode<T>(text: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok();
    bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| parse(&text))
        .ok_or_else(|| Error::new(ErrorKind::Invalid, "read a cursor", "this is no cursor of such a list"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_as_it_was() {
        let cursor = Cursor {
            order: TaskOrder::Arrived,
            after: Place::new(-7, 42, "a.b/ñ"),
            width: Some(80),
        };
        assert_eq!(Cursor::read(&cursor.write(), TaskOrder::Arrived).unwrap(), cursor);
        assert!(Cursor::read(&cursor.write(), TaskOrder::Finished).is_err());
        for damaged in ["", "####", "YS4x", "YS4xLjIuMw"] {
            assert!(Cursor::read(damaged, TaskOrder::Arrived).is_err(), "{damaged}");
        }
    }

    #[test]
    fn newest_comes_first() {
        let mut places = [
            Place::new(1, 1, "a"),
            Place::new(2, 2, "a"),
            Place::new(2, 1, "b"),
            Place::behind(2),
        ];
        places.sort();
        assert_eq!(
            places.map(|place| (place.micros(), place.broker_key)),
            [(2, 1), (2, 2), (2, i32::MAX), (1, 1)]
        );
    }
}
