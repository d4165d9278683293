//! JSON as Python's encoder writes it: `NaN`, `Infinity`, lone surrogates and integers of any size included.
//!
//! One pass, no tree: known fields go straight to their place, and anything nested is copied as JSON that `jsonb` takes.

use std::borrow::Cow;

use super::Limits;
use super::scalar::Scalar;
use crate::event::{Repair, Repairs, push_fmt, write_number, write_string};
use crate::text::{REPLACEMENT, boundary};

/// Digits that are copied as they are; `numeric` would take more, but no Python float has them.
const PLAIN_DIGITS: usize = 40;

/// Where reading failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The text ends early.
    Truncated,
    /// Not JSON from here on.
    Syntax(usize),
}

pub(crate) type Result<T, E = Fault> = std::result::Result<T, E>;

/// A reader over one text.
pub(crate) struct Reader<'a> {
    text: &'a str,
    pos: usize,
    limits: &'a Limits,
    /// A nested value was too large to be copied.
    overflow: bool,
    /// What had to be repaired since it was last taken.
    pub(crate) repairs: Repairs,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(text: &'a str, limits: &'a Limits) -> Self {
        Self {
            text,
            pos: 0,
            limits,
            overflow: false,
            repairs: Repairs::default(),
        }
    }

    pub(crate) fn position(&self) -> usize {
        self.pos
    }

    pub(crate) fn rewind(&mut self, pos: usize) {
        self.pos = pos;
    }

    /// Returns the text from `from` up to here.
    pub(crate) fn since(&self, from: usize) -> &'a str {
        self.text.get(from..self.pos).unwrap_or_default()
    }

    /// Returns the text from here on.
    pub(crate) fn rest(&self) -> &'a str {
        self.text.get(self.pos..).unwrap_or_default()
    }

    /// Skips white space and returns the next byte without taking it.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        loop {
            match self.byte() {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.pos += 1,
                other => return other,
            }
        }
    }

    /// Takes `byte` after white space.
    pub(crate) fn expect(&mut self, byte: u8) -> Result<()> {
        if self.take(byte) { Ok(()) } else { Err(self.fault()) }
    }

    /// Takes `byte` after white space, if it is the next one.
    pub(crate) fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.pos += usize::from(found);
        found
    }

    /// Reads an object, calling `field` for each of its keys; `field` must read the value.
    pub(crate) fn object(&mut self, mut field: impl FnMut(&mut Self, Cow<'a, str>) -> Result<()>) -> Result<()> {
        self.expect(b'{')?;
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            let key = self.string()?;
            self.expect(b':')?;
            field(self, key)?;
            if !self.take(b',') {
                return self.expect(b'}');
            }
        }
    }

    /// Reads any value; what is nested becomes JSON text.
    pub(crate) fn scalar(&mut self) -> Result<Scalar<'a>> {
        match self.peek() {
            Some(b'"') => Ok(Scalar::Text(self.string()?)),
            Some(b'{' | b'[') => {
                let mut json = String::new();
                self.copy(&mut json, 0)?;
                if std::mem::take(&mut self.overflow) {
                    self.repairs.insert(Repair::LongText);
                    return Ok(Scalar::Text("[...]".into()));
                }
                Ok(Scalar::Json(json.into()))
            }
            Some(b'n') => self.word("null", Scalar::Null),
            Some(b't') => self.word("true", Scalar::Bool(true)),
            Some(b'f') => self.word("false", Scalar::Bool(false)),
            Some(b'N') => self.word("NaN", Scalar::NotANumber("NaN")),
            Some(b'I') => self.word("Infinity", Scalar::NotANumber("Infinity")),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => Err(self.fault()),
        }
    }

    /// Reads a string after white space.
    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>> {
        self.expect(b'"')?;
        let start = self.pos;
        let bytes = self.text.as_bytes();
        let plain = memchr::memchr3(b'"', b'\\', 0, bytes.get(start..).unwrap_or_default());
        let end = start + plain.ok_or(Fault::Truncated)?;
        self.pos = end;
        if bytes.get(end) == Some(&b'"') {
            self.pos += 1;
            let text = self.text.get(start..end).unwrap_or_default();
            return Ok(self.bounded(text).into());
        }
        self.escaped_string(start).map(Cow::Owned)
    }

    /// Skips one value by its brackets and quotes only, so that a faulty one costs no other; `None` if it has no end.
    pub(crate) fn skip_roughly(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            match self.byte()? {
                b'"' => {
                    self.pos += 1;
                    self.skip_string()?;
                    if depth == 0 {
                        return Some(());
                    }
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth <= 1 => {
                    // A closing bracket at depth 0 belongs to whoever called.
                    self.pos += depth;
                    return Some(());
                }
                b'}' | b']' => depth -= 1,
                b',' if depth == 0 => return Some(()),
                _ => {}
            }
            self.pos += 1;
        }
    }

    fn skip_string(&mut self) -> Option<()> {
        loop {
            match self.byte()? {
                b'"' => {
                    self.pos += 1;
                    return Some(());
                }
                b'\\' => self.pos += 2,
                _ => self.pos += 1,
            }
        }
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.pos).copied()
    }

    fn fault(&self) -> Fault {
        if self.pos >= self.text.len() {
            Fault::Truncated
        } else {
            Fault::Syntax(self.pos)
        }
    }

    fn bounded(&mut self, text: &'a str) -> &'a str {
        if text.len() <= self.limits.max_text_bytes {
            return text;
        }
        self.repairs.insert(Repair::LongText);
        text.get(..boundary(text, self.limits.max_text_bytes))
            .unwrap_or_default()
    }

    fn word(&mut self, word: &str, value: Scalar<'a>) -> Result<Scalar<'a>> {
        if self.rest().starts_with(word) {
            self.pos += word.len();
            return Ok(value);
        }
        if word.starts_with(self.rest()) {
            Err(Fault::Truncated)
        } else {
            Err(Fault::Syntax(self.pos))
        }
    }

    // === strings with escapes ===

    fn escaped_string(&mut self, start: usize) -> Result<String> {
        let mut out = String::new();
        let mut plain = start;
        loop {
            let special = memchr::memchr3(b'"', b'\\', 0, self.rest().as_bytes());
            self.pos += special.ok_or(Fault::Truncated)?;
            let byte = self.byte().ok_or(Fault::Truncated)?;
            self.push(&mut out, self.since(plain));
            self.pos += 1;
            match byte {
                b'"' => return Ok(out),
                b'\\' => {
                    let character = self.escape()?;
                    self.push(&mut out, character.encode_utf8(&mut [0; 4]));
                }
                _ => {
                    self.repairs.insert(Repair::Nul);
                    self.push(&mut out, "\u{FFFD}");
                }
            }
            plain = self.pos;
        }
    }

    fn push(&mut self, out: &mut String, text: &str) {
        let room = self.limits.max_text_bytes.saturating_sub(out.len());
        if text.len() > room {
            self.repairs.insert(Repair::LongText);
        }
        out.push_str(text.get(..boundary(text, room)).unwrap_or_default());
    }

    fn escape(&mut self) -> Result<char> {
        let byte = self.byte().ok_or(Fault::Truncated)?;
        self.pos += 1;
        Ok(match byte {
            b'n' => '\n',
            b't' => '\t',
            b'r' => '\r',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'"' | b'\\' | b'/' => char::from(byte),
            b'u' => self.unicode_escape()?,
            _ => return Err(Fault::Syntax(self.pos - 1)),
        })
    }

    fn unicode_escape(&mut self) -> Result<char> {
        let unit = self.hex4()?;
        if unit == 0 {
            self.repairs.insert(Repair::Nul);
            return Ok(REPLACEMENT);
        }
        if !(0xD800..0xE000).contains(&unit) {
            return Ok(char::from_u32(unit).unwrap_or(REPLACEMENT));
        }
        if unit < 0xDC00 && self.rest().starts_with("\\u") {
            let after_first = self.pos;
            self.pos += 2;
            let low = self.hex4()?;
            if (0xDC00..0xE000).contains(&low) {
                let code = 0x1_0000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
                return Ok(char::from_u32(code).unwrap_or(REPLACEMENT));
            }
            self.pos = after_first;
        }
        self.repairs.insert(Repair::Surrogate);
        Ok(REPLACEMENT)
    }

    fn hex4(&mut self) -> Result<u32> {
        let end = self.pos + 4;
        let bytes = self.text.as_bytes().get(self.pos..end).ok_or(Fault::Truncated)?;
        let mut value = 0;
        for byte in bytes {
            value = value * 16 + char::from(*byte).to_digit(16).ok_or(Fault::Syntax(self.pos))?;
        }
        self.pos = end;
        Ok(value)
    }

    // === numbers ===

    fn number(&mut self) -> Result<Scalar<'a>> {
        let start = self.pos;
        let negative = self.byte() == Some(b'-');
        self.pos += usize::from(negative);
        if negative && self.byte() == Some(b'I') {
            return self.word("Infinity", Scalar::NotANumber("-Infinity"));
        }
        let leading = self.pos;
        let mut integral = self.digits()?;
        if self.since(leading).len() > 1 && self.since(leading).starts_with('0') {
            return Err(Fault::Syntax(leading));
        }
        if self.byte() == Some(b'.') {
            self.pos += 1;
            self.digits()?;
            integral = None;
        }
        if let Some(b'e' | b'E') = self.byte() {
            self.pos += 1;
            if let Some(b'+' | b'-') = self.byte() {
                self.pos += 1;
            }
            self.digits()?;
            return self.float(start);
        }
        match integral {
            Some(value) => Ok(Scalar::Int(if negative { -value } else { value })),
            None if self.since(leading).contains('.') => self.float(start),
            None => Ok(Scalar::Huge(self.bounded(self.since(start)).into())),
        }
    }

    /// Takes digits and returns their value if it has at most 18 of them.
    fn digits(&mut self) -> Result<Option<i64>> {
        let start = self.pos;
        let mut value = 0_i64;
        while let Some(digit @ b'0'..=b'9') = self.byte() {
            value = value.wrapping_mul(10).wrapping_add(i64::from(digit - b'0'));
            self.pos += 1;
        }
        match self.pos - start {
            0 => Err(self.fault()),
            1..=18 => Ok(Some(value)),
            _ => Ok(self.since(start).parse().ok()),
        }
    }

    fn float(&self, start: usize) -> Result<Scalar<'a>> {
        let text = self.since(start);
        let value: f64 = text.parse().or(Err(Fault::Syntax(start)))?;
        if !value.is_finite() {
            return Ok(Scalar::NotANumber(if value > 0.0 { "Infinity" } else { "-Infinity" }));
        }
        Ok(Scalar::Float(value))
    }

    // === nested values ===

    /// Copies the next value to `out` as JSON that `jsonb` takes.
    fn copy(&mut self, out: &mut String, depth: usize) -> Result<()> {
        if out.len() > self.limits.max_text_bytes {
            self.overflow = true;
            out.clear();
        }
        match self.peek() {
            Some(b'{' | b'[') if depth >= self.limits.max_depth => {
                self.repairs.insert(Repair::Depth);
                out.push_str("\"[...]\"");
                self.skip_roughly().ok_or(Fault::Truncated)
            }
            Some(b'{') => {
                out.push('{');
                let mut first = true;
                self.object(|reader, key| {
                    if !std::mem::take(&mut first) {
                        out.push(',');
                    }
                    write_string(&key, out);
                    out.push(':');
                    reader.copy(out, depth + 1)
                })?;
                out.push('}');
                Ok(())
            }
            Some(b'[') => self.copy_array(out, depth),
            _ => {
                let start = self.pos;
                let scalar = self.scalar()?;
                let digits = self.since(start);
                scalar.write_json(
                    Some(digits).filter(|text| text.len() <= PLAIN_DIGITS),
                    &mut self.repairs,
                    out,
                );
                Ok(())
            }
        }
    }

    fn copy_array(&mut self, out: &mut String, depth: usize) -> Result<()> {
        self.expect(b'[')?;
        out.push('[');
        if !self.take(b']') {
            loop {
                self.copy(out, depth + 1)?;
                if !self.take(b',') {
                    break;
                }
                out.push(',');
            }
            self.expect(b']')?;
        }
        out.push(']');
        Ok(())
    }
}

impl Scalar<'_> {
    /// Appends the value as JSON that `jsonb` takes. `digits` is the number's own text, if that may be copied.
    pub(crate) fn write_json(&self, digits: Option<&str>, repairs: &mut Repairs, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Int(value) => push_fmt(out, format_args!("{value}")),
            Self::Float(value) => match digits.filter(|text| !text.contains(['e', 'E'])) {
                Some(text) => out.push_str(text),
                None => write_number(*value, out),
            },
            Self::NotANumber(name) => {
                repairs.insert(Repair::NotANumber);
                write_string(name, out);
            }
            Self::Huge(digits) => {
                repairs.insert(Repair::HugeInteger);
                write_string(digits, out);
            }
            Self::Text(text) => write_string(text, out),
            Self::Json(json) => out.push_str(json),
        }
    }
}
