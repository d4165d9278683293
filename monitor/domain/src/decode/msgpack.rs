//! msgpack bodies, read without a tree.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rmp::Marker;

use super::Limits;
use super::scalar::Scalar;
use crate::event::{Repair, Repairs, write_string};
use crate::text::{boundary, without_nul};

/// Where reading failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The bytes end early.
    Truncated,
    /// A byte that msgpack does not use, at this position.
    Reserved(usize),
}

type Result<T, E = Fault> = std::result::Result<T, E>;

/// What comes next.
enum Item<'a> {
    Scalar(Scalar<'a>),
    Array(u32),
    Map(u32),
}

/// A reader over one body.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    pos: usize,
    limits: &'a Limits,
    pub(super) repairs: Repairs,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], limits: &'a Limits) -> Self {
        Self {
            bytes,
            pos: 0,
            limits,
            repairs: Repairs::default(),
        }
    }

    pub(super) fn position(&self) -> usize {
        self.pos
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.pos..).unwrap_or_default()
    }

    /// Returns the length of the array that begins here, if one does.
    pub(super) fn array(&mut self) -> Option<u32> {
        let start = self.pos;
        if let Ok(Item::Array(len)) = self.item() {
            return Some(len);
        }
        self.pos = start;
        None
    }

    /// Reads a map, calling `field` for each of its entries; says whether there was one. Any other value is skipped.
    pub(super) fn map(&mut self, mut field: impl FnMut(&str, Scalar<'a>)) -> Result<bool> {
        match self.item()? {
            Item::Map(len) => {
                for _ in 0..len {
                    let key = self.key(0)?;
                    let value = self.scalar()?;
                    field(&key, value);
                }
                Ok(true)
            }
            Item::Array(len) => {
                for _ in 0..len {
                    self.copy(&mut None, 1)?;
                }
                Ok(false)
            }
            Item::Scalar(_) => Ok(false),
        }
    }

    fn scalar(&mut self) -> Result<Scalar<'a>> {
        let start = self.pos;
        if let Item::Scalar(scalar) = self.item()? {
            return Ok(scalar);
        }
        self.pos = start;
        let mut json = Some(String::new());
        self.copy(&mut json, 0)?;
        Ok(Scalar::Json(json.unwrap_or_default().into()))
    }

    fn key(&mut self, depth: usize) -> Result<Cow<'a, str>> {
        let start = self.pos;
        match self.item()? {
            Item::Scalar(scalar) => Ok(scalar.into_text(&mut self.repairs).unwrap_or("null".into())),
            Item::Array(_) | Item::Map(_) => {
                self.pos = start;
                let mut json = Some(String::new());
                self.copy(&mut json, depth + 1)?;
                Ok(json.unwrap_or_default().into())
            }
        }
    }

    /// Copies the next value as JSON, or only skips it where `out` is none.
    fn copy(&mut self, out: &mut Option<String>, depth: usize) -> Result<()> {
        match self.item()? {
            Item::Scalar(scalar) => {
                if let Some(out) = out {
                    scalar.write_json(None, &mut self.repairs, out);
                }
                Ok(())
            }
            Item::Array(len) if depth < self.limits.max_depth => {
                push(out, "[");
                for index in 0..len {
                    push(out, if index == 0 { "" } else { "," });
                    self.copy(out, depth + 1)?;
                }
                push(out, "]");
                Ok(())
            }
            Item::Map(len) if depth < self.limits.max_depth => {
                push(out, "{");
                for index in 0..len {
                    push(out, if index == 0 { "" } else { "," });
                    let key = self.key(depth)?;
                    if let Some(out) = out {
                        write_string(&key, out);
                    }
                    push(out, ":");
                    self.copy(out, depth + 1)?;
                }
                push(out, "}");
                Ok(())
            }
            Item::Array(len) => self.skip_deep(out, u64::from(len)),
            Item::Map(len) => self.skip_deep(out, 2 * u64::from(len)),
        }
    }

    /// Skips `open` values and all that is in them, without recursion.
    fn skip_deep(&mut self, out: &mut Option<String>, mut open: u64) -> Result<()> {
        self.repairs.insert(Repair::Depth);
        push(out, "\"[...]\"");
        while open > 0 {
            open -= 1;
            open = open.saturating_add(match self.item()? {
                Item::Scalar(_) => 0,
                Item::Array(len) => u64::from(len),
                Item::Map(len) => 2 * u64::from(len),
            });
        }
        Ok(())
    }

    fn item(&mut self) -> Result<Item<'a>> {
        let at = self.pos;
        let [byte] = self.fixed::<1>()?;
        let scalar = match Marker::from_u8(byte) {
            Marker::FixPos(value) => Scalar::Int(value.into()),
            Marker::FixNeg(value) => Scalar::Int(value.into()),
            Marker::Null => Scalar::Null,
            Marker::True => Scalar::Bool(true),
            Marker::False => Scalar::Bool(false),
            Marker::U8 => Scalar::Int(u8::from_be_bytes(self.fixed()?).into()),
            Marker::U16 => Scalar::Int(u16::from_be_bytes(self.fixed()?).into()),
            Marker::U32 => Scalar::Int(u32::from_be_bytes(self.fixed()?).into()),
            Marker::U64 => unsigned(u64::from_be_bytes(self.fixed()?)),
            Marker::I8 => Scalar::Int(i8::from_be_bytes(self.fixed()?).into()),
            Marker::I16 => Scalar::Int(i16::from_be_bytes(self.fixed()?).into()),
            Marker::I32 => Scalar::Int(i32::from_be_bytes(self.fixed()?).into()),
            Marker::I64 => Scalar::Int(i64::from_be_bytes(self.fixed()?)),
            Marker::F32 => float(f32::from_be_bytes(self.fixed()?).into()),
            Marker::F64 => float(f64::from_be_bytes(self.fixed()?)),
            Marker::FixStr(len) => self.text(len.into())?,
            Marker::Str8 => self.sized::<1>().and_then(|len| self.text(len))?,
            Marker::Str16 => self.sized::<2>().and_then(|len| self.text(len))?,
            Marker::Str32 => self.sized::<4>().and_then(|len| self.text(len))?,
            Marker::Bin8 => self.sized::<1>().and_then(|len| self.binary(len))?,
            Marker::Bin16 => self.sized::<2>().and_then(|len| self.binary(len))?,
            Marker::Bin32 => self.sized::<4>().and_then(|len| self.binary(len))?,
            Marker::FixExt1 => self.binary(2)?,
            Marker::FixExt2 => self.binary(3)?,
            Marker::FixExt4 => self.binary(5)?,
            Marker::FixExt8 => self.binary(9)?,
            Marker::FixExt16 => self.binary(17)?,
            Marker::Ext8 => self.sized::<1>().and_then(|len| self.binary(len + 1))?,
            Marker::Ext16 => self.sized::<2>().and_then(|len| self.binary(len + 1))?,
            Marker::Ext32 => self.sized::<4>().and_then(|len| self.binary(len + 1))?,
            Marker::FixArray(len) => return Ok(Item::Array(len.into())),
            Marker::Array16 => return Ok(Item::Array(self.sized::<2>()? as u32)),
            Marker::Array32 => return Ok(Item::Array(self.sized::<4>()? as u32)),
            Marker::FixMap(len) => return Ok(Item::Map(len.into())),
            Marker::Map16 => return Ok(Item::Map(self.sized::<2>()? as u32)),
            Marker::Map32 => return Ok(Item::Map(self.sized::<4>()? as u32)),
            Marker::Reserved => return Err(Fault::Reserved(at)),
        };
        Ok(Item::Scalar(scalar))
    }

    fn text(&mut self, len: usize) -> Result<Scalar<'a>> {
        let text = String::from_utf8_lossy(self.take(len)?);
        if let Cow::Owned(_) = text {
            self.repairs.insert(Repair::Utf8);
        }
        let (text, had_nul) = without_nul(text);
        if had_nul {
            self.repairs.insert(Repair::Nul);
        }
        Ok(Scalar::Text(self.bounded(text)))
    }

    /// Bytes are text where they are UTF-8, as in kombu's JSON; else base64.
    fn binary(&mut self, len: usize) -> Result<Scalar<'a>> {
        let bytes = self.take(len)?;
        let text = match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => text.into(),
            _ => STANDARD
                .encode(bytes.get(..self.limits.max_text_bytes).unwrap_or(bytes))
                .into(),
        };
        Ok(Scalar::Text(self.bounded(text)))
    }

    fn bounded(&mut self, text: Cow<'a, str>) -> Cow<'a, str> {
        let end = boundary(&text, self.limits.max_text_bytes);
        if end == text.len() {
            return text;
        }
        self.repairs.insert(Repair::LongText);
        match text {
            Cow::Borrowed(text) => text.get(..end).unwrap_or_default().into(),
            Cow::Owned(mut text) => {
                text.truncate(end);
                text.into()
            }
        }
    }

    fn sized<const N: usize>(&mut self) -> Result<usize> {
        Ok(self
            .fixed::<N>()?
            .iter()
            .fold(0, |len, byte| len << 8 | usize::from(*byte)))
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().or(Err(Fault::Truncated))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let end = self.pos.checked_add(len).ok_or(Fault::Truncated)?;
        let bytes = self.bytes.get(self.pos..end).ok_or(Fault::Truncated)?;
        self.pos = end;
        Ok(bytes)
    }
}

fn push(out: &mut Option<String>, text: &str) {
    if let Some(out) = out {
        out.push_str(text);
    }
}

fn unsigned(value: u64) -> Scalar<'static> {
    match i64::try_from(value) {
        Ok(value) => Scalar::Int(value),
        Err(_) => Scalar::Huge(value.to_string().into()),
    }
}

fn float(value: f64) -> Scalar<'static> {
    if value.is_finite() {
        Scalar::Float(value)
    } else {
        Scalar::not_finite(value)
    }
}

impl Scalar<'_> {
    /// Returns the value of a float that is no number.
    pub(super) fn not_finite(value: f64) -> Self {
        Self::NotANumber(if value.is_nan() {
            "NaN"
        } else if value > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        })
    }
}
