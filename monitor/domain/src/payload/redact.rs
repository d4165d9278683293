//! Hides the values of named keys in Python reprs and JSON.
//!
//! Reprs made by Celery are ambiguous (a string may end in a backslash, or in the middle), so the end of a value is looked
//! for generously: when in doubt more is hidden than needed, never less.

use crate::decode::Limits;
use crate::decode::json::{Fault, Reader};
use crate::event::{Repairs, write_string};

/// Returns `text` with the value of each of `keys` replaced, or nothing if there was none.
///
/// Found are `'key': value`, `"key": value` and `key=value`; case does not matter.
pub(super) fn text(text: &str, keys: &[String]) -> Option<String> {
    let mut out = String::new();
    let mut kept = 0;
    let mut pos = 0;
    while let Some((value, quote)) = next_value(text, pos, keys) {
        let end = value + value_len(text.get(value..).unwrap_or_default());
        out.push_str(text.get(kept..value).unwrap_or_default());
        out.push(quote);
        out.push_str("***");
        out.push(quote);
        (kept, pos) = (end, end);
    }
    if kept == 0 {
        return None;
    }
    out.push_str(text.get(kept..).unwrap_or_default());
    Some(out)
}

/// Returns JSON text with the value of each of `keys` replaced, at any depth and inside its texts; nothing if it is no
/// JSON.
pub(super) fn json(json: &str, keys: &[String]) -> Option<String> {
    const LIMITS: Limits = Limits {
        max_text_bytes: usize::MAX,
        ..Limits::DEFAULT
    };
    let mut out = String::with_capacity(json.len());
    let mut reader = Reader::new(json, &LIMITS);
    copy(&mut reader, keys, &mut out)
        .ok()
        .filter(|()| reader.peek().is_none())?;
    Some(out)
}

/// Copies the next value. Recursion is bounded, because so was the decoder that wrote the text.
fn copy(reader: &mut Reader<'_>, keys: &[String], out: &mut String) -> Result<(), Fault> {
    match reader.peek() {
        Some(b'{') => {
            out.push('{');
            let mut first = true;
            reader.object(|reader, key| {
                if !std::mem::take(&mut first) {
                    out.push(',');
                }
                write_string(&key, out);
                out.push(':');
                if keys.iter().any(|secret| secret.eq_ignore_ascii_case(&key)) {
                    out.push_str("\"***\"");
                    return reader.scalar().map(drop);
                }
                copy(reader, keys, out)
            })?;
            out.push('}');
        }
        Some(b'[') => {
            reader.expect(b'[')?;
            out.push('[');
            if !reader.take(b']') {
                copy(reader, keys, out)?;
                while reader.take(b',') {
                    out.push(',');
                    copy(reader, keys, out)?;
                }
                reader.expect(b']')?;
            }
            out.push(']');
        }
        Some(b'"') => {
            let plain = reader.string()?;
            write_string(&text(&plain, keys).unwrap_or(plain.into_owned()), out);
        }
        _ => reader.scalar()?.write_json(None, &mut Repairs::default(), out),
    }
    Ok(())
}

/// Finds the next value of one of the keys from `from` on: where it begins, and the quote that fits.
fn next_value(text: &str, from: usize, keys: &[String]) -> Option<(usize, char)> {
    let bytes = text.as_bytes();
    let mut earliest: Option<(usize, char)> = None;
    for key in keys.iter().filter(|key| !key.is_empty()) {
        let mut at = from;
        while let Some(found) = find_ignoring_case(bytes, key.as_bytes(), at) {
            at = found + 1;
            if earliest.is_some_and(|(begin, _)| begin <= found) {
                break;
            }
            if let Some(value) = value_after(text, found, key.len()) {
                earliest = Some(earliest.map_or(value, |other| if other.0 <= value.0 { other } else { value }));
                break;
            }
        }
    }
    earliest
}

fn find_ignoring_case(bytes: &[u8], key: &[u8], from: usize) -> Option<usize> {
    let rest = bytes.get(from..)?;
    rest.windows(key.len())
        .position(|window| window.eq_ignore_ascii_case(key))
        .map(|index| from + index)
}

/// Returns where the value of the key at `at` begins, if it is a key there at all.
fn value_after(text: &str, at: usize, len: usize) -> Option<(usize, char)> {
    let bytes = text.as_bytes();
    let end = at + len;
    let before = at.checked_sub(1).and_then(|index| bytes.get(index)).copied();
    let after = bytes.get(end).copied();
    let mut pos = end;
    let (separator, quote) = match (before, after) {
        (Some(open @ (b'\'' | b'"')), Some(close)) if open == close => {
            pos += 1;
            // A JSON text inside a Python or JSON string: `\"key\"` has its backslash before the closing quote.
            (b':', char::from(open))
        }
        (Some(open @ (b'\'' | b'"')), Some(b'\\')) if bytes.get(end + 1) == Some(&open) => {
            pos += 2;
            (b':', '\'')
        }
        (before, Some(b'=' | b' ')) if before.is_none_or(|byte| !byte.is_ascii_alphanumeric() && byte != b'_') => {
            (b'=', '\'')
        }
        _ => return None,
    };
    pos += spaces(bytes, pos);
    if bytes.get(pos) != Some(&separator) {
        return None;
    }
    pos += 1;
    pos += spaces(bytes, pos);
    (pos < bytes.len()).then_some((pos, quote))
}

fn spaces(bytes: &[u8], from: usize) -> usize {
    bytes
        .get(from..)
        .unwrap_or_default()
        .iter()
        .take_while(|byte| byte.is_ascii_whitespace())
        .count()
}

/// Returns how long the value at the beginning of `text` is: up to a comma or bracket that is not inside it.
fn value_len(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut chars = text.char_indices().peekable();
    while let Some((index, character)) = chars.next() {
        match character {
            '\'' | '"' => skip_string(character, &mut chars),
            '\\' if matches!(chars.peek(), Some((_, '"' | '\''))) => {
                // An escaped quote opens a string in a nested text; it ends at the next escaped quote.
                let quote = chars.next().map_or('"', |(_, quote)| quote);
                skip_nested_string(quote, &mut chars);
            }
            '(' | '[' | '{' | '<' => depth += 1,
            ')' | ']' | '}' | '>' | ',' | '\n' if depth == 0 => return index,
            ')' | ']' | '}' | '>' => depth -= 1,
            _ => {}
        }
    }
    text.len()
}

type Chars<'a> = std::iter::Peekable<std::str::CharIndices<'a>>;

fn skip_string(quote: char, chars: &mut Chars<'_>) {
    while let Some((_, character)) = chars.next() {
        match character {
            '\\' => drop(chars.next()),
            _ if character == quote => return,
            _ => {}
        }
    }
}

fn skip_nested_string(quote: char, chars: &mut Chars<'_>) {
    while let Some((_, character)) = chars.next() {
        if character == '\\' && chars.next().is_some_and(|(_, next)| next == quote) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    fn hide(text: &str) -> String {
        super::text(text, &["password".into(), "api_key".into()]).unwrap_or_else(|| text.into())
    }

    #[test]
    fn hides_values_in_reprs() {
        for (text, hidden) in [
            ("{'password': 'x', 'n': 1}", "{'password': '***', 'n': 1}"),
            ("{'PASSWORD': ('a', ['b']), 'n': 1}", "{'PASSWORD': '***', 'n': 1}"),
            ("{'n': 1, 'api_key': b'\\'x\\','}", "{'n': 1, 'api_key': '***'}"),
            ("{'password': 'it\\'s, me', 'n': 1}", "{'password': '***', 'n': 1}"),
            (
                "{'password': {'a': 'x', 'b': 'y'}, 'api_key': 3}",
                "{'password': '***', 'api_key': '***'}",
            ),
            ("{'password': 'cut off in the mid...", "{'password': '***'"),
            ("{'password': 'ends in \\', 'n': 1}", "{'password': '***'"),
            (
                "User(name='n', password='x', age=3)",
                "User(name='n', password='***', age=3)",
            ),
            ("{\"password\": \"x\", \"n\": 1}", "{\"password\": \"***\", \"n\": 1}"),
            (
                "('{\"password\": \"x, y\", \"n\": 1}',)",
                "('{\"password\": \"***\", \"n\": 1}',)",
            ),
            (
                "{\"own\": \"{\\\"password\\\": \\\"x, y\\\", \\\"n\\\": 1}\"}",
                "{\"own\": \"{\\\"password\\\": '***', \\\"n\\\": 1}\"}",
            ),
            ("ValueError: password=hunter2", "ValueError: password='***'"),
        ] {
            assert_eq!(hide(text), hidden, "{text}");
        }
    }

    #[test]
    fn leaves_everything_else_alone() {
        for text in [
            "{'passwords': 1}",
            "{'n': 'password'}",
            "my_password=1",
            "the password is wrong",
            "",
            "password",
        ] {
            assert_eq!(super::text(text, &["password".into(), String::new()]), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn hides_any_value_and_never_panics(before in ".{0,20}", secret in "[a-z]{12}", after in ".{0,20}") {
            let text = format!("{before}{{'password': '{secret}'{after}");
            proptest::prop_assert!(!hide(&text).contains(&secret), "{}", hide(&text));
            hide(&format!("{before}password{after}password'{before}"));
        }
    }
}
