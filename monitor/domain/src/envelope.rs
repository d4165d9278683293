//! The envelope of kombu's virtual transports (Redis, Kafka).

use std::borrow::Cow;

use crate::decode::json::{self, Fault, Reader};
use crate::decode::scalar::Scalar;
use crate::decode::{BodyEncoding, Limits, RawMessage};
use crate::reject::{Reject, RejectReason};

/// Bytes of an envelope that are read: a body of the greatest size in base64, and what is around it.
const MAX_BYTES: usize = Limits::DEFAULT.max_body_bytes / 3 * 4 + (1 << 20);

/// A message of a virtual transport, unwrapped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Envelope<'a> {
    /// The body, still encoded as [`Self::body_encoding`] says.
    pub body: Cow<'a, str>,
    /// How the body is wrapped.
    pub body_encoding: BodyEncoding,
    /// `content-type`.
    pub content_type: Option<Cow<'a, str>>,
    /// `content-encoding`.
    pub content_encoding: Option<Cow<'a, str>>,
    /// Header `compression`.
    pub compression: Option<Cow<'a, str>>,
    /// Exchange it was published to.
    pub exchange: Option<Cow<'a, str>>,
    /// Routing key it was published with.
    pub routing_key: Option<Cow<'a, str>>,
    /// Unique for each message of the transport.
    pub delivery_tag: Option<Cow<'a, str>>,
    /// Delivered before.
    pub redelivered: bool,
}

impl Envelope<'_> {
    /// Returns the message inside.
    pub fn as_raw_message(&self) -> RawMessage<'_> {
        RawMessage {
            body: self.body.as_bytes(),
            content_type: self.content_type.as_deref(),
            content_encoding: self.content_encoding.as_deref(),
            compression: self.compression.as_deref(),
            body_encoding: self.body_encoding,
        }
    }
}

/// Unwraps a message of a virtual transport. Needs `body`; anything else may be missing.
pub fn decode_virtual_envelope(bytes: &[u8]) -> Result<Envelope<'_>, Reject> {
    // No text of an envelope is cut: the body's own limits hold later.
    const LIMITS: Limits = Limits {
        max_text_bytes: usize::MAX,
        ..Limits::DEFAULT
    };
    if bytes.len() > MAX_BYTES {
        return Err(Reject::new(
            RejectReason::Oversize,
            format_args!("{} bytes", bytes.len()),
            bytes,
        ));
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => return Err(Reject::new(RejectReason::InvalidEnvelope, error, bytes)),
    };
    let mut envelope = Envelope::default();
    let mut body = None;
    let mut reader = Reader::new(text, &LIMITS);
    let read = reader.object(|reader, key| {
        match &*key {
            "body" => body = text_of(reader.scalar()?),
            "content-type" => envelope.content_type = text_of(reader.scalar()?),
            "content-encoding" => envelope.content_encoding = text_of(reader.scalar()?),
            "headers" if reader.peek() == Some(b'{') => reader.object(|reader, key| {
                let value = reader.scalar()?;
                match &*key {
                    "compression" => envelope.compression = text_of(value),
                    "redelivered" => envelope.redelivered |= value == Scalar::Bool(true),
                    _ => {}
                }
                Ok(())
            })?,
            "properties" if reader.peek() == Some(b'{') => {
                reader.object(|reader, key| property(reader, &key, &mut envelope))?;
            }
            _ => drop(reader.scalar()?),
        }
        Ok(())
    });
    match (read, body) {
        (Ok(()), Some(body)) => {
            envelope.body = body;
            Ok(envelope)
        }
        (Ok(()), None) => Err(Reject::new(RejectReason::InvalidEnvelope, "no body", bytes)),
        (Err(Fault::Truncated), _) => Err(Reject::new(RejectReason::InvalidEnvelope, "ends early", bytes)),
        (Err(Fault::Syntax(at)), _) => Err(Reject::new(
            RejectReason::InvalidEnvelope,
            format_args!("not JSON at byte {at}"),
            bytes,
        )),
    }
}

fn property<'a>(reader: &mut Reader<'a>, key: &str, envelope: &mut Envelope<'a>) -> json::Result<()> {
    match key {
        "body_encoding" => {
            let base64 = matches!(reader.scalar()?, Scalar::Text(text) if text == "base64");
            envelope.body_encoding = if base64 {
                BodyEncoding::Base64
            } else {
                BodyEncoding::Raw
            };
        }
        "delivery_tag" => envelope.delivery_tag = text_of(reader.scalar()?),
        "delivery_info" if reader.peek() == Some(b'{') => reader.object(|reader, key| {
            let value = reader.scalar()?;
            match &*key {
                "exchange" => envelope.exchange = text_of(value),
                "routing_key" => envelope.routing_key = text_of(value),
                "redelivered" => envelope.redelivered |= value == Scalar::Bool(true),
                _ => {}
            }
            Ok(())
        })?,
        _ => drop(reader.scalar()?),
    }
    Ok(())
}

fn text_of(value: Scalar<'_>) -> Option<Cow<'_, str>> {
    match value {
        Scalar::Text(text) => Some(text),
        // Some senders put the object itself where its text belongs.
        Scalar::Json(json) => Some(json),
        Scalar::Null
        | Scalar::Bool(_)
        | Scalar::Int(_)
        | Scalar::Float(_)
        | Scalar::NotANumber(_)
        | Scalar::Huge(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unwraps_what_kombu_publishes() {
        let text = r#"{"body": "e30=", "content-encoding": "utf-8", "content-type": "application/json", "headers": {"hostname": "w@h", "redelivered": true},
            "properties": {"delivery_mode": 1, "delivery_info": {"exchange": "celeryev", "routing_key": "worker.online"}, "priority": 0, "body_encoding": "base64", "delivery_tag": "t"}}"#;
        let envelope = decode_virtual_envelope(text.as_bytes()).unwrap();
        assert_eq!(envelope.body, "e30=");
        assert_eq!(envelope.body_encoding, BodyEncoding::Base64);
        assert_eq!(envelope.exchange.as_deref(), Some("celeryev"));
        assert_eq!(envelope.routing_key.as_deref(), Some("worker.online"));
        assert_eq!(envelope.delivery_tag.as_deref(), Some("t"));
        assert!(envelope.redelivered);
    }

    #[test]
    fn refuses_what_is_no_envelope() {
        for text in [
            "",
            "{",
            "[]",
            "{}",
            "1",
            "{\"body\": 1}",
            "{\"body\": \"a\", }",
            "\u{0}",
        ] {
            let reject = decode_virtual_envelope(text.as_bytes()).unwrap_err();
            assert_eq!(reject.reason, RejectReason::InvalidEnvelope, "{text}");
        }
        assert_eq!(
            decode_virtual_envelope(b"{\"body\": \"\xff\"}").unwrap_err().reason,
            RejectReason::InvalidEnvelope
        );
    }
}
