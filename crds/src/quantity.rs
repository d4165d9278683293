//! Lengths of time and sizes as people write them: `15s`, `14d`, `1Gi`. Parsed at the edge, trusted inside.

use std::borrow::Cow;
use std::fmt;

use kube::core::{Message, Rule};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Why a length of time or a size was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuantityError {
    /// Not a whole number with one of the units s, m, h, d.
    Period(String),
    /// Not a whole number, optionally with one of the units Ki, Mi, Gi, Ti.
    ByteSize(String),
}

impl fmt::Display for QuantityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Period(text) => {
                write!(
                    f,
                    "failed to read {text:?} as a length of time: write a whole number and s, m, h or d, as in 15s or 14d"
                )
            }
            Self::ByteSize(text) => {
                write!(
                    f,
                    "failed to read {text:?} as a size: write a whole number of bytes, or one with Ki, Mi, Gi or Ti, as in 512Mi"
                )
            }
        }
    }
}

impl std::error::Error for QuantityError {}

/// The schema's pattern of a [`Period`].
const PERIOD_PATTERN: &str = "^[1-9][0-9]{0,6}[smhd]$";

/// The schema's pattern of a [`ByteSize`].
const BYTE_SIZE_PATTERN: &str = "^[1-9][0-9]{0,11}(Ki|Mi|Gi|Ti)?$";

/// A length of time: a whole number and one unit of `s`, `m`, `h`, `d`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Period {
    text: String,
    seconds: u64,
}

impl Period {
    /// Returns a length of time of whole seconds.
    pub fn from_seconds(seconds: u32) -> Self {
        Self {
            text: format!("{seconds}s"),
            seconds: u64::from(seconds),
        }
    }

    /// Returns the length in seconds.
    pub fn seconds(&self) -> u64 {
        self.seconds
    }

    /// Returns the length for the standard library.
    pub fn duration(&self) -> std::time::Duration {
        std::time::Duration::from_secs(self.seconds)
    }

    /// Returns the text as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Splits `text` into its leading digits and its unit, when the digits form a number without leading zero.
fn split(text: &str, most_digits: usize) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    if number.is_empty() || number.len() > most_digits || number.starts_with('0') {
        return None;
    }
    Some((number.parse().ok()?, unit))
}

impl TryFrom<String> for Period {
    type Error = QuantityError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let seconds = split(&text, 7).and_then(|(number, unit)| {
            let factor = match unit {
                "s" => 1,
                "m" => 60,
                "h" => 3_600,
                "d" => 86_400,
                _ => return None,
            };
            Some(number * factor)
        });
        match seconds {
            Some(seconds) => Ok(Self { text, seconds }),
            None => Err(QuantityError::Period(text)),
        }
    }
}

impl std::str::FromStr for Period {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.to_owned().try_into()
    }
}

impl From<Period> for String {
    fn from(period: Period) -> Self {
        period.text
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl JsonSchema for Period {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Period".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 8, "pattern": PERIOD_PATTERN })
    }
}

/// Returns the CEL rule that keeps a [`Period`] field between two bounds, given as they are written.
///
/// A text that is no period is refused by the pattern and by this rule, whose message says how to write one.
pub(crate) fn period_between(field: &str, least: &str, most: &str) -> Rule {
    let seconds = |text: &str| text.parse::<Period>().map_or(0, |period| period.seconds());
    Rule::new(format!(
        "self.matches('{PERIOD_PATTERN}') && [int(self.substring(0, self.size() - 1)) * (self.endsWith('s') ? 1 : self.endsWith('m') ? 60 : \
         self.endsWith('h') ? 3600 : 86400)].all(s, s >= {} && s <= {})",
        seconds(least),
        seconds(most)
    ))
    .message(Message::Message(format!(
        "{field} must be between {least} and {most}: write a whole number and one unit of s, m, h, d, for example {least}"
    )))
}

/// A number of bytes, plain or with a binary unit: `1048576`, `512Mi`, `1Gi`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize {
    text: String,
    bytes: u64,
}

impl ByteSize {
    /// Returns the size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the text as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl TryFrom<String> for ByteSize {
    type Error = QuantityError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes = split(&text, 12).and_then(|(number, unit)| {
            let shift = match unit {
                "" => 0,
                "Ki" => 10,
                "Mi" => 20,
                "Gi" => 30,
                "Ti" => 40,
                _ => return None,
            };
            number.checked_mul(1 << shift)
        });
        match bytes {
            Some(bytes) => Ok(Self { text, bytes }),
            None => Err(QuantityError::ByteSize(text)),
        }
    }
}

impl std::str::FromStr for ByteSize {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.to_owned().try_into()
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> Self {
        size.text
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl JsonSchema for ByteSize {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 14, "pattern": BYTE_SIZE_PATTERN })
    }
}

/// Returns the CEL rule that keeps a [`ByteSize`] field between two bounds, given as they are written.
pub(crate) fn size_between(field: &str, least: &str, most: &str) -> Rule {
    Rule::new(format!(
        "self.matches('{BYTE_SIZE_PATTERN}') && quantity(self).compareTo(quantity('{least}')) >= 0 && \
         quantity(self).compareTo(quantity('{most}')) <= 0"
    ))
    .message(Message::Message(format!(
        "{field} must be between {least} and {most}: write a whole number of bytes, or one with Ki, Mi, Gi or Ti, for example 512Mi"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_read_in_every_unit() {
        for (text, seconds) in [("15s", 15), ("5m", 300), ("24h", 86_400), ("14d", 1_209_600)] {
            assert_eq!(text.parse::<Period>().unwrap().seconds(), seconds, "{text}");
        }
    }

    #[test]
    fn what_is_no_period_is_refused_with_a_word_on_how_to_write_one() {
        for text in [
            "",
            "s",
            "0s",
            "015s",
            "15",
            "1.5h",
            "-1s",
            "1h30m",
            "15 s",
            "15w",
            "12345678s",
            "１s",
        ] {
            let error = text.parse::<Period>().unwrap_err();
            assert!(error.to_string().contains("as in 15s"), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_are_read_in_every_unit() {
        for (text, bytes) in [
            ("1048576", 1 << 20),
            ("4Ki", 4096),
            ("512Mi", 512 << 20),
            ("1Gi", 1 << 30),
            ("2Ti", 2 << 40),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap().bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "Gi", "0", "1G", "1gi", "1.5Gi", "-1", "999999999999Ti"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_text_survives_a_round_trip() {
        let period: Period = serde_json::from_str("\"24h\"").unwrap();
        assert_eq!(serde_json::to_string(&period).unwrap(), "\"24h\"");
        let size: ByteSize = serde_json::from_str("\"1Gi\"").unwrap();
        assert_eq!(serde_json::to_string(&size).unwrap(), "\"1Gi\"");
    }
}
