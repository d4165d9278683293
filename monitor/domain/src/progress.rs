//! The steps that a task announces with `kanchi-task-steps`: read from whatever came, bounded, in one form of JSON.

use std::borrow::Cow;
use std::sync::Arc;

use crate::decode::Limits;
use crate::decode::json::Reader;
use crate::decode::scalar::Scalar;
use crate::event::{Repair, Repairs, push_fmt, write_string};
use crate::text::{boundary, shortened_name};

/// Steps of one task that are kept: the first of the list.
const STEPS: usize = 100;
/// Bytes kept of a label.
const LABEL_BYTES: usize = 255;
/// Bytes kept of a description.
const DESCRIPTION_BYTES: usize = 1_024;
/// A percentage may be so far beyond its ends: what is left of summing up fractions.
const ROUNDING: f64 = 1e-6;

/// A step that a task announced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgressStep {
    /// What progress names it by, at most 255 bytes. No two steps of a task have the same.
    pub key: Arc<str>,
    /// Name for people, at most 255 bytes.
    pub label: Option<Arc<str>>,
    /// More words, at most 1,024 bytes.
    pub description: Option<Arc<str>>,
    /// Units of work in it, whatever the application counts.
    pub total: Option<i64>,
    /// Its place among the steps, as the application numbers them.
    pub order: Option<i64>,
}

/// Returns the percentage, if the number can be one.
pub(crate) fn percent(number: f64) -> Option<f64> {
    let can_be = (-ROUNDING..=100.0 + ROUNDING).contains(&number);
    can_be.then(|| number.clamp(0.0, 100.0))
}

/// Returns what a list of steps says, as the text of a JSON array: at most 100 objects with known fields, in their order.
/// Nothing, if it is no list.
pub(crate) fn normalised(json: &str, repairs: &mut Repairs) -> Option<String> {
    let mut out = String::from("[");
    for step in read(json, repairs)? {
        if out.len() > 1 {
            out.push(',');
        }
        write(&step, &mut out);
    }
    out.push(']');
    Some(out)
}

/// Reads what [`normalised`] made, or what hiding of values left of it.
pub(crate) fn steps(json: &str) -> Vec<ProgressStep> {
    read(json, &mut Repairs::default()).unwrap_or_default()
}

fn read(json: &str, repairs: &mut Repairs) -> Option<Vec<ProgressStep>> {
    let limits = Limits::DEFAULT;
    let mut reader = Reader::new(json, &limits);
    let mut steps: Vec<ProgressStep> = Vec::new();
    reader.expect(b'[').ok()?;
    let mut more = !reader.take(b']');
    while more {
        let element = reader.scalar().ok()?;
        more = reader.take(b',');
        if steps.len() >= STEPS {
            repairs.insert(Repair::ManyFields);
            break;
        }
        match step(element, repairs) {
            Some(step) if !steps.iter().any(|known| known.key == step.key) => steps.push(step),
            // Nothing can name it, or another one is called the same.
            _ => repairs.insert(Repair::WrongType),
        }
    }
    // Those without a number stay behind the one before them.
    let mut place = i64::MIN;
    let mut placed = Vec::with_capacity(steps.len());
    for step in steps {
        place = step.order.unwrap_or(place);
        placed.push((place, step));
    }
    placed.sort_by_key(|(place, _)| *place);
    Some(placed.into_iter().map(|(_, step)| step).collect())
}

/// Reads one step: an object with a `key`, or a text that is one.
fn step(element: Scalar<'_>, repairs: &mut Repairs) -> Option<ProgressStep> {
    let mut step = ProgressStep::default();
    let limits = Limits::DEFAULT;
    match element {
        Scalar::Text(text) => step.key = key(&text, repairs)?,
        Scalar::Json(json) => {
            let mut found = None;
            let read = Reader::new(&json, &limits).object(|reader, name| {
                let value = reader.scalar()?;
                match &*name {
                    "key" => found = value.into_text(repairs).and_then(|text| key(&text, repairs)),
                    "label" => step.label = words(value, LABEL_BYTES, repairs),
                    "description" => step.description = words(value, DESCRIPTION_BYTES, repairs),
                    "total" => step.total = value.into_integer(repairs).filter(|total| *total >= 0),
                    "order" => step.order = value.into_integer(repairs),
                    _ => {}
                }
                Ok(())
            });
            read.ok()?;
            step.key = found?;
        }
        Scalar::Null
        | Scalar::Bool(_)
        | Scalar::Int(_)
        | Scalar::Float(_)
        | Scalar::NotANumber(_)
        | Scalar::Huge(_) => return None,
    }
    Some(step)
}

/// Returns the key of a step as progress and steps alike have it.
pub(crate) fn key(text: &str, repairs: &mut Repairs) -> Option<Arc<str>> {
    match shortened_name(text) {
        None => (!text.is_empty()).then(|| text.into()),
        Some(short) => {
            repairs.insert(Repair::LongName);
            Some(short.into())
        }
    }
}

fn words(value: Scalar<'_>, bytes: usize, repairs: &mut Repairs) -> Option<Arc<str>> {
    let text: Cow<'_, str> = value.into_text(repairs)?;
    if text.len() > bytes {
        repairs.insert(Repair::LongText);
    }
    let head = text.get(..boundary(&text, bytes)).unwrap_or_default();
    (!head.is_empty()).then(|| head.into())
}

fn write(step: &ProgressStep, out: &mut String) {
    out.push_str("{\"key\":");
    write_string(&step.key, out);
    for (name, text) in [("label", &step.label), ("description", &step.description)] {
        if let Some(text) = text {
            push_fmt(out, format_args!(",\"{name}\":"));
            write_string(text, out);
        }
    }
    for (name, number) in [("total", step.total), ("order", step.order)] {
        if let Some(number) = number {
            push_fmt(out, format_args!(",\"{name}\":{number}"));
        }
    }
    out.push('}');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(json: &str) -> (Option<String>, Vec<&'static str>) {
        let mut repairs = Repairs::default();
        let text = normalised(json, &mut repairs);
        (text, repairs.iter().map(Repair::as_str).collect())
    }

    #[test]
    fn steps_are_read_in_their_order_and_only_what_is_known_of_them() {
        for (json, wanted, repaired) in [
            ("[]", "[]", &[][..]),
            (
                r#"[{"key":"b","label":"B","total":3,"order":2,"own":1},{"key":"a","description":"d","order":1}]"#,
                r#"[{"key":"a","description":"d","order":1},{"key":"b","label":"B","total":3,"order":2}]"#,
                &[],
            ),
            (
                r#"[{"key":"a","order":5},{"key":"b"},{"key":"c","order":1}]"#,
                r#"[{"key":"c","order":1},{"key":"a","order":5},{"key":"b"}]"#,
                &[],
            ),
            (r#"["fetch","store"]"#, r#"[{"key":"fetch"},{"key":"store"}]"#, &[]),
            (r#"[{"key":7}]"#, r#"[{"key":"7"}]"#, &["wrong_type"]),
            (
                r#"[1,null,{"label":"L"},{"key":""},{"key":"a"},{"key":"a","label":"again"}]"#,
                r#"[{"key":"a"}]"#,
                &["wrong_type"],
            ),
            (r#"[{"key":"a","total":-1,"order":null}]"#, r#"[{"key":"a"}]"#, &[]),
        ] {
            assert_eq!(made(json), (Some(wanted.to_owned()), repaired.to_vec()), "{json}");
            assert_eq!(
                made(wanted).0.as_deref(),
                Some(wanted),
                "reading it again changes nothing"
            );
        }
        assert_eq!(made(r#"{"key":"a"}"#), (None, vec![]));
    }

    #[test]
    fn steps_are_bounded() {
        let long = "ä".repeat(5_000);
        let one = |n: usize| format!(r#"{{"key":"{n}{long}","label":"{long}","description":"{long}"}}"#);
        let many = format!("[{}]", (0..500).map(one).collect::<Vec<_>>().join(","));
        let (text, repaired) = made(&many);
        let text = text.unwrap();
        assert!(text.len() < 200_000, "{}", text.len());
        assert_eq!(steps(&text).len(), 100, "keys stay distinct");
        assert_eq!(repaired, ["long_name", "long_text", "many_fields"]);
        assert!(steps(&text).iter().all(|step| step.key.len() <= 255
            && step.label.as_ref().unwrap().len() <= 255
            && step.description.as_ref().unwrap().len() <= 1_024));
    }

    #[test]
    fn a_percentage_lies_between_nought_and_a_hundred() {
        for (number, wanted) in [
            (0.0, Some(0.0)),
            (-1e-9, Some(0.0)),
            (100.000_000_1, Some(100.0)),
            (42.5, Some(42.5)),
            (-0.1, None),
            (350.0, None),
            (1e308, None),
        ] {
            assert_eq!(percent(number), wanted, "{number}");
        }
    }
}
