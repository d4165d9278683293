//! The envelope of kombu's virtual transports (Redis, Kafka).

use std::borrow::Cow;

use crate::decode::{BodyEncoding, RawMessage};
use crate::reject::{Reject, RejectReason};

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

/// Unwraps a message of a virtual transport.
pub fn decode_virtual_envelope(bytes: &[u8]) -> Result<Envelope<'_>, Reject> {
    Err(Reject::new(RejectReason::InvalidEnvelope, "not an object", bytes))
}
