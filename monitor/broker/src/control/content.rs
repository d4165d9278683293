//! Bodies of answers: workers answer in their own serializer. Pickle is never read.

use serde_json::{Map, Number, Value};

/// Deeper nesting is refused.
const MAX_DEPTH: u32 = 64;

/// Reads a body; `None` if it cannot be read.
pub(super) fn decode(content_type: Option<&str>, body: &[u8]) -> Option<Value> {
    match content_type.unwrap_or("application/json") {
        "application/json" => serde_json::from_slice(body).ok(),
        "application/x-yaml" => serde_yaml::from_slice(body).ok(),
        "application/x-msgpack" => {
            let mut rest = body;
            msgpack(&mut rest, 0).filter(|_| rest.is_empty())
        }
        _other => None,
    }
}

fn msgpack(rest: &mut &[u8], depth: u32) -> Option<Value> {
    if depth > MAX_DEPTH {
        return None;
    }
    let (&marker, after) = rest.split_first()?;
    *rest = after;
    match marker {
        0x00..=0x7f => Some(Value::from(marker)),
        0x80..=0x8f => map(rest, usize::from(marker & 0x0f), depth),
        0x90..=0x9f => list(rest, usize::from(marker & 0x0f), depth),
        0xa0..=0xbf => text(rest, usize::from(marker & 0x1f)),
        0xc0 => Some(Value::Null),
        0xc2 => Some(Value::Bool(false)),
        0xc3 => Some(Value::Bool(true)),
        0xc4 | 0xd9 => length(rest, 1).and_then(|length| text(rest, length)),
        0xc5 | 0xda => length(rest, 2).and_then(|length| text(rest, length)),
        0xc6 | 0xdb => length(rest, 4).and_then(|length| text(rest, length)),
        0xca => take(rest).map(|bytes| float(f64::from(f32::from_be_bytes(bytes)))),
        0xcb => take(rest).map(|bytes| float(f64::from_be_bytes(bytes))),
        0xcc => take(rest).map(|[byte]| Value::from(byte)),
        0xcd => take(rest).map(|bytes| Value::from(u16::from_be_bytes(bytes))),
        0xce => take(rest).map(|bytes| Value::from(u32::from_be_bytes(bytes))),
        0xcf => take(rest).map(|bytes| Value::from(u64::from_be_bytes(bytes))),
        0xd0 => take(rest).map(|bytes| Value::from(i8::from_be_bytes(bytes))),
        0xd1 => take(rest).map(|bytes| Value::from(i16::from_be_bytes(bytes))),
        0xd2 => take(rest).map(|bytes| Value::from(i32::from_be_bytes(bytes))),
        0xd3 => take(rest).map(|bytes| Value::from(i64::from_be_bytes(bytes))),
        0xdc => length(rest, 2).and_then(|count| list(rest, count, depth)),
        0xdd => length(rest, 4).and_then(|count| list(rest, count, depth)),
        0xde => length(rest, 2).and_then(|count| map(rest, count, depth)),
        0xdf => length(rest, 4).and_then(|count| map(rest, count, depth)),
        0xe0..=0xff => Some(Value::from(i8::from_be_bytes([marker]))),
        // Extension types and the marker that msgpack never uses.
        0xc1 | 0xc7..=0xc9 | 0xd4..=0xd8 => None,
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*bytes)
}

fn length(rest: &mut &[u8], bytes: usize) -> Option<usize> {
    let (digits, after) = rest.split_at_checked(bytes)?;
    *rest = after;
    Some(digits.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
}

fn text(rest: &mut &[u8], length: usize) -> Option<Value> {
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(Value::String(String::from_utf8_lossy(bytes).into_owned()))
}

fn list(rest: &mut &[u8], count: usize, depth: u32) -> Option<Value> {
    // Every element takes at least a byte: a count that lies cannot reserve memory.
    let mut values = Vec::with_capacity(count.min(rest.len()));
    for _ in 0..count {
        values.push(msgpack(rest, depth + 1)?);
    }
    Some(Value::Array(values))
}

fn map(rest: &mut &[u8], count: usize, depth: u32) -> Option<Value> {
    let mut values = Map::new();
    for _ in 0..count {
        let key = msgpack(rest, depth + 1)?;
        let key = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
        values.insert(key, msgpack(rest, depth + 1)?);
    }
    Some(Value::Object(values))
}

fn float(value: f64) -> Value {
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_in_json_yaml_and_msgpack_are_read_and_pickles_are_not() {
        let expected = json!({ "w@h": { "ok": "pong" } });
        let msgpack = b"\x81\xa3w@h\x81\xa2ok\xa4pong";
        assert_eq!(decode(None, br#"{"w@h": {"ok": "pong"}}"#), Some(expected.clone()));
        assert_eq!(
            decode(Some("application/x-yaml"), b"w@h: {ok: pong}"),
            Some(expected.clone())
        );
        assert_eq!(decode(Some("application/x-msgpack"), msgpack), Some(expected));
        assert_eq!(decode(Some("application/x-python-serialize"), b"\x80\x04."), None);
    }

    #[test]
    fn msgpack_numbers_keep_their_value() {
        let bytes = b"\x96\x05\xff\xcd\x01\x00\xd1\xff\x00\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00\xc3";
        assert_eq!(
            decode(Some("application/x-msgpack"), bytes),
            Some(json!([5, -1, 256, -256, 1.5, true]))
        );
    }

    #[test]
    fn broken_msgpack_is_refused_without_reserving_memory() {
        for bytes in [
            b"\xdd\xff\xff\xff\xff".as_slice(),
            b"\xa5ab",
            b"\xc1",
            b"\x81\xa1a",
            &[0x91; 200],
            b"\x01\x01",
        ] {
            assert_eq!(decode(Some("application/x-msgpack"), bytes), None, "{bytes:?}");
        }
    }
}
