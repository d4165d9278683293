//! RESP2 as a subscriber sees it: frames are found in place, so that payloads can be handed on without a copy.

/// Redis' own limit of a string.
const MAX_BULK: usize = 512 * 1024 * 1024;
/// A subscriber never gets more: `pmessage`, pattern, channel, payload.
const MAX_FIELDS: usize = 4;

/// Where a value lies in the buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Span {
    pub(super) fn of(self, buffer: &[u8]) -> &[u8] {
        buffer.get(self.start..self.end).unwrap_or_default()
    }
}

/// What kind of reply a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `+OK` or a bulk string.
    Text,
    /// `-ERR …`.
    Error,
    /// Anything pushed to a subscriber, and array replies.
    Array,
}

/// A whole frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) fields: [Span; MAX_FIELDS],
    pub(super) count: usize,
    /// First byte behind the frame.
    pub(super) end: usize,
}

impl Frame {
    pub(super) fn field(&self, index: usize) -> Span {
        self.fields.get(index).copied().unwrap_or_default()
    }

    /// Returns where the payload lies, if this is a message.
    pub(super) fn payload(&self, buffer: &[u8]) -> Option<Span> {
        match (self.count, self.field(0).of(buffer)) {
            (4, b"pmessage") => Some(self.field(3)),
            (3, b"message") => Some(self.field(2)),
            _other => None,
        }
    }
}

/// What a look at the buffer found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Frame(Frame),
    /// The frame ends at or behind this many bytes.
    Incomplete(usize),
    /// Not RESP2.
    Invalid,
}

/// Looks for a frame at `start`.
pub(super) fn find(buffer: &[u8], start: usize) -> Found {
    let Some(&marker) = buffer.get(start) else {
        return Found::Incomplete(start + 1);
    };
    if marker != b'*' {
        return match value(buffer, start) {
            Ok((kind, span, end)) => {
                let mut fields = [Span::default(); MAX_FIELDS];
                if let Some(first) = fields.first_mut() {
                    *first = span;
                }
                Found::Frame(Frame {
                    kind,
                    fields,
                    count: 1,
                    end,
                })
            }
            Err(found) => found,
        };
    }
    let (count, mut at) = match number(buffer, start) {
        Ok(header) => header,
        Err(found) => return found,
    };
    let Some(count) = usize::try_from(count).ok().filter(|count| *count <= MAX_FIELDS) else {
        return Found::Invalid;
    };
    let mut fields = [Span::default(); MAX_FIELDS];
    for field in fields.iter_mut().take(count) {
        match value(buffer, at) {
            Ok((_kind, span, end)) => {
                *field = span;
                at = end;
            }
            Err(found) => return found,
        }
    }
    Found::Frame(Frame {
        kind: Kind::Array,
        fields,
        count,
        end: at,
    })
}

/// A value that is no array: its kind, where its text lies, where it ends.
fn value(buffer: &[u8], start: usize) -> Result<(Kind, Span, usize), Found> {
    match buffer.get(start) {
        None => Err(Found::Incomplete(start + 1)),
        Some(b'$') => {
            let (length, body) = number(buffer, start)?;
            let Ok(length) = usize::try_from(length) else {
                return Ok((Kind::Text, Span { start: body, end: body }, body));
            };
            if length > MAX_BULK {
                return Err(Found::Invalid);
            }
            let end = body + length;
            if buffer.len() < end + 2 {
                return Err(Found::Incomplete(end + 2));
            }
            Ok((Kind::Text, Span { start: body, end }, end + 2))
        }
        Some(marker @ (b'+' | b'-' | b':')) => {
            let end = line_end(buffer, start)?;
            let kind = if *marker == b'-' { Kind::Error } else { Kind::Text };
            Ok((kind, Span { start: start + 1, end }, end + 2))
        }
        Some(_other) => Err(Found::Invalid),
    }
}

/// The number of a header line and where the next line begins.
fn number(buffer: &[u8], start: usize) -> Result<(i64, usize), Found> {
    let end = line_end(buffer, start)?;
    let digits = buffer
        .get(start + 1..end)
        .and_then(|digits| std::str::from_utf8(digits).ok());
    match digits.and_then(|digits| digits.parse().ok()) {
        Some(number) => Ok((number, end + 2)),
        None => Err(Found::Invalid),
    }
}

fn line_end(buffer: &[u8], start: usize) -> Result<usize, Found> {
    let rest = buffer.get(start..).unwrap_or_default();
    match rest.iter().position(|byte| *byte == b'\r') {
        Some(length) if rest.len() > length + 1 => Ok(start + length),
        Some(length) => Err(Found::Incomplete(start + length + 2)),
        None if rest.len() > 65_536 => Err(Found::Invalid),
        None => Err(Found::Incomplete(buffer.len() + 1)),
    }
}

/// Writes a command.
pub(super) fn encode(into: &mut Vec<u8>, parts: &[&[u8]]) {
    into.extend_from_slice(format!("*{}\r\n", parts.len()).as_bytes());
    for part in parts {
        into.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        into.extend_from_slice(part);
        into.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &[u8] = b"*4\r\n$8\r\npmessage\r\n$3\r\n/0*\r\n$4\r\n/0.x\r\n$7\r\na\r\nb\0\xffc\r\n";

    #[test]
    fn a_message_is_found_whole_with_any_bytes_in_it() {
        let Found::Frame(frame) = find(MESSAGE, 0) else {
            panic!("no frame")
        };
        assert_eq!(frame.end, MESSAGE.len());
        assert_eq!(frame.payload(MESSAGE).unwrap().of(MESSAGE), b"a\r\nb\0\xffc");
    }

    #[test]
    fn every_cut_of_a_message_is_incomplete_and_asks_for_more_than_is_there() {
        for length in 0..MESSAGE.len() {
            let Found::Incomplete(needed) = find(&MESSAGE[..length], 0) else {
                panic!("at {length}")
            };
            assert!(needed > length && needed <= MESSAGE.len(), "{needed} at {length}");
        }
    }

    #[test]
    fn frames_follow_one_another() {
        let both = [MESSAGE, b"*2\r\n$4\r\npong\r\n$0\r\n\r\n".as_slice()].concat();
        let Found::Frame(first) = find(&both, 0) else {
            panic!("no frame")
        };
        let Found::Frame(second) = find(&both, first.end) else {
            panic!("no frame")
        };
        assert_eq!((second.end, second.payload(&both)), (both.len(), None));
    }

    #[test]
    fn errors_nulls_and_numbers_are_told_apart_and_garbage_is_refused() {
        let kind = |bytes: &[u8]| match find(bytes, 0) {
            Found::Frame(frame) => frame.kind,
            other @ (Found::Incomplete(_) | Found::Invalid) => panic!("{other:?}"),
        };
        assert_eq!(kind(b"-NOAUTH Authentication required.\r\n"), Kind::Error);
        assert_eq!(kind(b"+OK\r\n"), Kind::Text);
        assert_eq!(kind(b"$-1\r\n"), Kind::Text);
        assert_eq!(kind(b":1\r\n"), Kind::Text);
        for garbage in [
            b"HTTP/1.1 400\r\n".as_slice(),
            b"*9\r\n",
            b"$99999999999\r\n",
            b"*x\r\n",
        ] {
            assert_eq!(find(garbage, 0), Found::Invalid, "{garbage:?}");
        }
    }
}
