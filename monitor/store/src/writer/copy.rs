//! Binary COPY: no parsing on the server, no escaping here. Rows are sent while the next ones are being made.

use std::mem;

use kanchi_domain::UnixMicros;
use sqlx::PgConnection;
use sqlx::postgres::PgCopyIn;

use crate::error::{During, Result};

/// Signature, flags, length of the header's extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Postgres counts from 2000-01-01.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// Years 1 to 9999: what `timestamptz` and everything that reads it can hold.
const TIMES: std::ops::RangeInclusive<i64> = -62_135_596_800_000_000..=253_402_300_799_999_999;

/// Bytes that are sent together: the server reads a message to its end before it looks at it, so that it would wait for us
/// and then we for it.
const PIECE: usize = 64 * 1024;

/// What is copied where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// `copy … from stdin (format binary)`.
    pub(super) statement: &'static str,
    /// How many columns it names.
    pub(super) columns: i16,
    /// What the caller is doing, for errors.
    pub(super) operation: &'static str,
}

/// A COPY that begins with its first row; without a row nothing is sent.
pub(super) struct Copying<'c> {
    target: Target,
    rows: Rows,
    stream: Stream<'c>,
}

enum Stream<'c> {
    Idle(&'c mut PgConnection),
    Open(PgCopyIn<&'c mut PgConnection>),
    Broken,
}

impl<'c> Copying<'c> {
    /// Prepares a COPY.
    pub(super) fn new(connection: &'c mut PgConnection, target: Target) -> Self {
        let mut buffer = Vec::with_capacity(PIECE * 2);
        buffer.extend_from_slice(HEADER);
        Self {
            target,
            rows: Rows { buffer },
            stream: Stream::Idle(connection),
        }
    }

    /// Begins a row, whose columns must then all be given in order; sends what is there when it is enough.
    pub(super) async fn row(&mut self) -> Result<&mut Rows> {
        if self.rows.buffer.len() >= PIECE {
            self.send().await?;
        }
        self.rows.buffer.extend_from_slice(&self.target.columns.to_be_bytes());
        Ok(&mut self.rows)
    }

    async fn send(&mut self) -> Result<()> {
        let Target {
            statement, operation, ..
        } = self.target;
        self.stream = match mem::replace(&mut self.stream, Stream::Broken) {
            Stream::Idle(connection) => Stream::Open(connection.copy_in_raw(statement).await.during(operation)?),
            other @ (Stream::Open(_) | Stream::Broken) => other,
        };
        if let Stream::Open(stream) = &mut self.stream {
            stream.send(self.rows.buffer.as_slice()).await.during(operation)?;
        }
        self.rows.buffer.clear();
        Ok(())
    }

    /// Sends the rest, and waits until the server has all of it.
    pub(super) async fn finish(mut self) -> Result<()> {
        let is_idle = matches!(self.stream, Stream::Idle(_));
        if is_idle && self.rows.buffer.len() == HEADER.len() {
            return Ok(());
        }
        self.rows.buffer.extend_from_slice(&(-1i16).to_be_bytes());
        self.send().await?;
        match self.stream {
            Stream::Open(stream) => stream.finish().await.during(self.target.operation).map(drop),
            Stream::Idle(_) | Stream::Broken => Ok(()),
        }
    }
}

/// Rows in binary form.
#[derive(Debug)]
pub(super) struct Rows {
    buffer: Vec<u8>,
}

impl Rows {
    pub(super) fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.buffer.extend_from_slice(&(value.len() as i32).to_be_bytes());
        self.buffer.extend_from_slice(value);
        self
    }

    pub(super) fn text(&mut self, value: &str) -> &mut Self {
        self.bytes(value.as_bytes())
    }

    pub(super) fn null(&mut self) -> &mut Self {
        self.buffer.extend_from_slice(&(-1i32).to_be_bytes());
        self
    }

    pub(super) fn maybe_text(&mut self, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.text(value),
            None => self.null(),
        }
    }

    pub(super) fn int2(&mut self, value: i16) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(super) fn int4(&mut self, value: i32) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(super) fn bool(&mut self, value: bool) -> &mut Self {
        self.bytes(&[u8::from(value)])
    }

    pub(super) fn maybe_float8(&mut self, value: Option<f64>) -> &mut Self {
        match value {
            Some(value) => self.bytes(&value.to_be_bytes()),
            None => self.null(),
        }
    }

    pub(super) fn time(&mut self, value: UnixMicros) -> &mut Self {
        self.bytes(&(clamped(value) - POSTGRES_EPOCH).to_be_bytes())
    }

    pub(super) fn maybe_time(&mut self, value: Option<UnixMicros>) -> &mut Self {
        match value {
            Some(value) => self.time(value),
            None => self.null(),
        }
    }
}

/// Microseconds since 1970 that Postgres can hold.
pub(super) fn clamped(value: UnixMicros) -> i64 {
    value.0.clamp(*TIMES.start(), *TIMES.end())
}

/// Returns at most `bytes` bytes of the beginning, whole characters only.
pub(crate) fn head(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_never_ends_within_a_character() {
        assert_eq!(head("añb", 2), "a");
        assert_eq!(head("añb", 3), "añ");
        assert_eq!(head("", 3), "");
        assert_eq!(head("abc", 9), "abc");
    }

    #[test]
    fn times_beyond_the_calendar_stop_at_its_ends() {
        assert_eq!(clamped(UnixMicros(i64::MIN)), -62_135_596_800_000_000);
        assert_eq!(clamped(UnixMicros(i64::MAX)), 253_402_300_799_999_999);
        assert_eq!(clamped(UnixMicros(7)), 7);
    }
}
