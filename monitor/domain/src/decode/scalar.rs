//! The value of one field of an event, whatever the serializer, and what can be made of it.

use std::borrow::Cow;

use super::Limits;
use super::json::Reader;
use crate::event::{Repair, Repairs};
use crate::time::UnixMicros;

/// A value; what is nested is JSON text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Scalar<'a> {
    Null,
    Bool(bool),
    Int(i64),
    /// Finite.
    Float(f64),
    NotANumber(&'static str),
    /// An integer beyond 64 bits, as digits.
    Huge(Cow<'a, str>),
    /// Without NUL.
    Text(Cow<'a, str>),
    /// An object or array, as JSON that `jsonb` takes.
    Json(Cow<'a, str>),
}

impl<'a> Scalar<'a> {
    /// Returns the value as text; null is none.
    pub(crate) fn into_text(self, repairs: &mut Repairs) -> Option<Cow<'a, str>> {
        match self {
            Self::Null => None,
            Self::Text(text) => Some(text),
            Self::Json(json) => Some(unmark(&json).map_or_else(
                || {
                    repairs.insert(Repair::WrongType);
                    json
                },
                Cow::Owned,
            )),
            Self::Huge(digits) => {
                repairs.insert(Repair::HugeInteger);
                Some(digits)
            }
            Self::NotANumber(name) => {
                repairs.insert(Repair::WrongType);
                Some(name.into())
            }
            other @ (Self::Bool(_) | Self::Int(_) | Self::Float(_)) => {
                repairs.insert(Repair::WrongType);
                let mut out = String::new();
                other.write_json(None, repairs, &mut out);
                Some(out.into())
            }
        }
    }

    /// Returns the value as integer.
    pub(crate) fn into_integer(self, repairs: &mut Repairs) -> Option<i64> {
        match &self {
            Self::Int(value) => Some(*value),
            Self::Float(value) if value.fract() == 0.0 && value.abs() < 9e15 => Some(*value as i64),
            Self::Text(text) => {
                repairs.insert(Repair::WrongType);
                text.trim().parse().ok()
            }
            Self::Null | Self::Bool(_) | Self::Float(_) | Self::NotANumber(_) | Self::Huge(_) | Self::Json(_) => {
                self.no_number(repairs)
            }
        }
    }

    /// Returns the value as number.
    pub(crate) fn into_number(self, repairs: &mut Repairs) -> Option<f64> {
        match &self {
            Self::Int(value) => Some(*value as f64),
            Self::Float(value) => Some(*value),
            Self::Text(text) => {
                repairs.insert(Repair::WrongType);
                text.trim().parse().ok().filter(|value: &f64| value.is_finite())
            }
            Self::Null | Self::Bool(_) | Self::NotANumber(_) | Self::Huge(_) | Self::Json(_) => self.no_number(repairs),
        }
    }

    /// Returns the value as truth.
    pub(crate) fn into_bool(self, repairs: &mut Repairs) -> Option<bool> {
        match self {
            Self::Null => None,
            Self::Bool(value) => Some(value),
            Self::Int(value) => Some(value != 0),
            Self::Text(_) | Self::Float(_) | Self::NotANumber(_) | Self::Huge(_) | Self::Json(_) => {
                repairs.insert(Repair::WrongType);
                None
            }
        }
    }

    /// Returns the value as a point in time: ISO 8601, or seconds since the epoch.
    pub(crate) fn into_time(self, repairs: &mut Repairs) -> Option<UnixMicros> {
        let time = match &self {
            Self::Null => return None,
            Self::Int(value) => UnixMicros::from_seconds(*value as f64),
            Self::Float(value) => UnixMicros::from_seconds(*value),
            Self::Text(text) => time_of_text(text),
            Self::Json(json) => unmark(json).as_deref().and_then(time_of_text),
            Self::Bool(_) | Self::NotANumber(_) | Self::Huge(_) => None,
        };
        if time.is_none() {
            repairs.insert(Repair::WrongType);
        }
        time
    }

    fn no_number<T>(&self, repairs: &mut Repairs) -> Option<T> {
        match self {
            Self::Null => {}
            Self::NotANumber(_) => repairs.insert(Repair::NotANumber),
            Self::Huge(_) => repairs.insert(Repair::HugeInteger),
            Self::Bool(_) | Self::Int(_) | Self::Float(_) | Self::Text(_) | Self::Json(_) => {
                repairs.insert(Repair::WrongType);
            }
        }
        None
    }
}

/// Returns the time of an ISO 8601 text or of a number in a text.
pub(crate) fn time_of_text(text: &str) -> Option<UnixMicros> {
    match text.trim().parse::<f64>() {
        Ok(seconds) => UnixMicros::from_seconds(seconds),
        Err(_) => UnixMicros::parse_iso8601(text).filter(|time| time.is_plausible()),
    }
}

/// Returns the text of kombu's marked values, `{"__type__": …, "__value__": …}`: times, decimals, UUIDs, bytes.
pub(crate) fn unmark(json: &str) -> Option<String> {
    if !json.starts_with("{\"__type__\":") {
        return None;
    }
    let limits = Limits::default();
    let (mut value, mut others) = (None, 0);
    let read = Reader::new(json, &limits).object(|reader, key| {
        let scalar = reader.scalar()?;
        match (&*key, scalar) {
            ("__type__", Scalar::Text(_)) => {}
            ("__value__", scalar) => value = Some(scalar),
            _ => others += 1,
        }
        Ok(())
    });
    match value.filter(|_| read.is_ok() && others == 0)? {
        Scalar::Text(text) => Some(text.into_owned()),
        Scalar::Json(json) => dashed_uuid(json.strip_prefix("{\"hex\":\"")?.strip_suffix("\"}")?),
        Scalar::Null
        | Scalar::Bool(_)
        | Scalar::Int(_)
        | Scalar::Float(_)
        | Scalar::NotANumber(_)
        | Scalar::Huge(_) => None,
    }
}

fn dashed_uuid(hex: &str) -> Option<String> {
    if hex.len() != 32 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let parts = [
        hex.get(..8)?,
        hex.get(8..12)?,
        hex.get(12..16)?,
        hex.get(16..20)?,
        hex.get(20..)?,
    ];
    Some(parts.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_marked_values_of_kombu() {
        let time = r#"{"__type__":"datetime","__value__":"2026-11-21T00:09:52+00:00"}"#;
        let mut repairs = Repairs::default();
        assert_eq!(
            Scalar::Json(time.into()).into_time(&mut repairs),
            Some(UnixMicros(1_795_219_792_000_000))
        );
        let uuid = r#"{"__type__":"uuid","__value__":{"hex":"00000000000000000000000000000005"}}"#;
        let text = Scalar::Json(uuid.into()).into_text(&mut repairs);
        assert_eq!(text.as_deref(), Some("00000000-0000-0000-0000-000000000005"));
        assert!(repairs.is_empty());
        let other = r#"{"__type__":"uuid","__value__":"x","more":1}"#;
        assert_eq!(
            Scalar::Json(other.into()).into_text(&mut repairs).as_deref(),
            Some(other)
        );
        assert!(repairs.contains(Repair::WrongType));
    }
}
