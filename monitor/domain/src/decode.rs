//! From the bytes of a message to events.

use crate::event::Event;
use crate::reject::Reject;
use crate::time::UnixMicros;

/// A message as the broker delivered it.
#[derive(Clone, Copy, Debug, Default)]
pub struct RawMessage<'a> {
    /// The body.
    pub body: &'a [u8],
    /// Property `content_type`.
    pub content_type: Option<&'a str>,
    /// Property `content_encoding`.
    pub content_encoding: Option<&'a str>,
    /// Header `compression`.
    pub compression: Option<&'a str>,
    /// How the transport wrapped the body.
    pub body_encoding: BodyEncoding,
}

/// How the transport wrapped the body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyEncoding {
    /// Not at all.
    #[default]
    Raw,
    /// Base64: the default of kombu's virtual transports.
    Base64,
}

/// What the decoder accepts. It never holds much more than one body of this size.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a body as delivered.
    pub max_body_bytes: usize,
    /// Bytes of a body after decompression.
    pub max_decompressed_bytes: usize,
    /// Bytes of a yaml body, whose reader builds a tree.
    pub max_yaml_bytes: usize,
    /// Events of one message.
    pub max_events: usize,
    /// Rejects listed for one message; the rest is one reject with a count.
    pub max_rejects: usize,
    /// Nesting.
    pub max_depth: usize,
    /// Bytes kept of one text.
    pub max_text_bytes: usize,
    /// Bytes kept of the unknown fields of one event.
    pub max_extra_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body_bytes: 32 << 20,
            max_decompressed_bytes: 32 << 20,
            max_yaml_bytes: 1 << 20,
            max_events: 10_000,
            max_rejects: 16,
            max_depth: 64,
            max_text_bytes: 1 << 20,
            max_extra_bytes: 256 << 10,
        }
    }
}

/// What a message held.
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    /// Its events, in order.
    pub events: Vec<Event>,
    /// What was not an event.
    pub rejects: Vec<Reject>,
}

/// Decodes a message. Never fails as a whole: what cannot be read is a [`Reject`], the rest are events.
pub fn decode(_message: &RawMessage<'_>, _arrived: UnixMicros, _limits: &Limits) -> Decoded {
    Decoded::default()
}
