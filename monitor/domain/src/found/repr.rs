//! JSON values as Python shows them, in the form of Celery's own `saferepr`: so a payload found later reads like one told
//! by an event, and the payload policy treats both alike.

use std::sync::Arc;

use crate::decode::Limits;
use crate::decode::json::{Reader, Result};
use crate::decode::scalar::{Scalar, unmark};
use crate::event::push_fmt;

/// What was read before is read again here, and bounded already.
const LIMITS: Limits = Limits {
    max_text_bytes: usize::MAX,
    max_depth: usize::MAX,
    ..Limits::DEFAULT
};

/// Positional arguments: a JSON list becomes a tuple.
pub(super) fn arguments(json: &str) -> Option<Arc<str>> {
    let items = items(json)?;
    let comma = if items.len() == 1 { "," } else { "" };
    Some(format!("({}{comma})", items.join(", ")).into())
}

/// Keyword arguments: a JSON object.
pub(super) fn keywords(json: &str) -> Option<Arc<str>> {
    json.starts_with('{').then(|| value(&Scalar::Json(json.into())).into())
}

/// Any value.
pub(super) fn value(value: &Scalar<'_>) -> String {
    let mut out = String::new();
    write(value, &mut out);
    out
}

/// `{"exc_type": T, "exc_message": […], "exc_module": …}` as `T(…)`; anything else as it is.
pub(super) fn exception(result: &Scalar<'_>) -> String {
    let Scalar::Json(json) = result else {
        return value(result);
    };
    let (mut class, mut message) = (None, None);
    let read = Reader::new(json, &LIMITS).object(|reader, key| {
        let scalar = reader.scalar()?;
        match (&*key, scalar) {
            ("exc_type", Scalar::Text(name)) => class = Some(name),
            ("exc_message", scalar) => message = Some(scalar),
            _ => {}
        }
        Ok(())
    });
    let Some(class) = class.filter(|_| read.is_ok()) else {
        return value(result);
    };
    let arguments = match message {
        None | Some(Scalar::Null) => String::new(),
        Some(Scalar::Json(list)) if list.starts_with('[') => items(&list).unwrap_or_default().join(", "),
        Some(scalar) => value(&scalar),
    };
    format!("{class}({arguments})")
}

/// The items of a JSON list.
fn items(json: &str) -> Option<Vec<String>> {
    let mut items = Vec::new();
    let mut reader = Reader::new(json, &LIMITS);
    list(&mut reader, &mut |item| items.push(value(&item))).ok()?;
    Some(items)
}

fn list<'a>(reader: &mut Reader<'a>, each: &mut impl FnMut(Scalar<'a>)) -> Result<()> {
    reader.expect(b'[')?;
    if reader.take(b']') {
        return Ok(());
    }
    loop {
        each(reader.scalar()?);
        if !reader.take(b',') {
            return reader.expect(b']');
        }
    }
}

fn write(value: &Scalar<'_>, out: &mut String) {
    match value {
        Scalar::Null => out.push_str("None"),
        Scalar::Bool(true) => out.push_str("True"),
        Scalar::Bool(false) => out.push_str("False"),
        Scalar::Int(number) => push_fmt(out, format_args!("{number}")),
        Scalar::Float(number) => push_fmt(out, format_args!("{number:?}")),
        Scalar::NotANumber(name) => out.push_str(match *name {
            "NaN" => "nan",
            "Infinity" => "inf",
            _ => "-inf",
        }),
        Scalar::Huge(digits) => out.push_str(digits),
        Scalar::Text(text) => quote(text, out),
        Scalar::Json(json) => match unmark(json) {
            Some(text) => quote(&text, out),
            None => nested(json, out),
        },
    }
}

/// What cannot be read again is shown as JSON: it was written by our own reader, so there is nothing.
fn nested(json: &str, out: &mut String) {
    let before = out.len();
    let mut reader = Reader::new(json, &LIMITS);
    let mut first = true;
    let mut separate = |out: &mut String| {
        if !std::mem::take(&mut first) {
            out.push_str(", ");
        }
    };
    let done = if json.starts_with('{') {
        out.push('{');
        let done = reader.object(|reader, key| {
            separate(out);
            quote(&key, out);
            out.push_str(": ");
            write(&reader.scalar()?, out);
            Ok(())
        });
        out.push('}');
        done
    } else {
        out.push('[');
        let done = list(&mut reader, &mut |item| {
            separate(out);
            write(&item, out);
        });
        out.push(']');
        done
    };
    if done.is_err() {
        out.truncate(before);
        out.push_str(json);
    }
}

/// As Celery's `saferepr`: single quotes always, and only they are escaped.
fn quote(text: &str, out: &mut String) {
    out.push('\'');
    for (index, part) in text.split('\'').enumerate() {
        if index > 0 {
            out.push_str("\\'");
        }
        out.push_str(part);
    }
    out.push('\'');
}
