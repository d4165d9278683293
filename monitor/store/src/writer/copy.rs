//! Rows for binary COPY: no parsing on the server, no escaping here.

use kanchi_domain::UnixMicros;

/// Signature, flags, length of the header's extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Postgres counts from 2000-01-01.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// Years 1 to 9999: what `timestamptz` and everything that reads it can hold.
const TIMES: std::ops::RangeInclusive<i64> = -62_135_596_800_000_000..=253_402_300_799_999_999;

/// Collects rows.
#[derive(Debug)]
pub(super) struct CopyRows {
    buffer: Vec<u8>,
    columns: i16,
    rows: usize,
}

impl CopyRows {
    /// Begins rows of so many columns, all of which must then be given in order.
    pub(super) fn new(columns: i16, expected_bytes: usize) -> Self {
        let mut buffer = Vec::with_capacity(expected_bytes.saturating_add(64));
        buffer.extend_from_slice(HEADER);
        Self {
            buffer,
            columns,
            rows: 0,
        }
    }

    pub(super) fn row(&mut self) -> &mut Self {
        self.rows += 1;
        self.buffer.extend_from_slice(&self.columns.to_be_bytes());
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows == 0
    }

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

    /// Returns the bytes of the whole COPY.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.buffer.extend_from_slice(&(-1i16).to_be_bytes());
        self.buffer
    }
}

/// Microseconds since 1970 that Postgres can hold.
pub(super) fn clamped(value: UnixMicros) -> i64 {
    value.0.clamp(*TIMES.start(), *TIMES.end())
}

/// Returns at most `bytes` bytes of the beginning, whole characters only.
pub(super) fn head(text: &str, bytes: usize) -> &str {
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
