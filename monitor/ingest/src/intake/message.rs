//! A message, and what is read of it: decode, payload policy. Pure.

use bytes::Bytes;
use kanchi_broker::Framing;
use kanchi_domain::{
    Decoded, Event, EventKind, Limits, PayloadPolicy, RawMessage, UnixMicros, decode_into, decode_virtual_envelope,
};
use xxhash_rust::xxh3::xxh3_128;

/// A message on its way through the monitor.
#[derive(Clone, Debug)]
pub struct Message {
    /// Grows with each message; what is acknowledged.
    pub tag: u64,
    /// It may have been stored before.
    pub maybe_stored: bool,
    /// Its digest must be kept: the transport may deliver it again, or another monitor has it, too.
    pub may_repeat: bool,
    /// When it was read from the connection.
    pub arrived: UnixMicros,
    /// The bytes.
    pub body: Bytes,
    /// How to read them.
    pub framing: Framing,
}

impl Message {
    /// Returns what tells it from other messages; `None` where the transport never delivers twice.
    pub fn digest(&self) -> Option<u128> {
        self.may_repeat.then(|| digest_of(&self.body))
    }
}

/// Returns what tells a message of these bytes from others.
pub fn digest_of(body: &[u8]) -> u128 {
    xxh3_128(body)
}

/// What was read of one message. Its memory serves for the next one again.
#[derive(Debug, Default)]
pub struct Reading {
    /// What is stored, in the sender's order, and what could not be read.
    pub decoded: Decoded,
    /// Events that update workers only.
    pub heartbeats: Vec<Event>,
}

impl Reading {
    /// Reads a message; whatever it holds, it never fails.
    pub fn read(&mut self, message: &Message, policy: &PayloadPolicy, limits: &Limits) {
        let Self { decoded, heartbeats } = self;
        decoded.events.clear();
        decoded.rejects.clear();
        heartbeats.clear();
        decode_framed(message, limits, decoded);
        let is_heartbeat = |event: &mut Event| event.kind == EventKind::WorkerHeartbeat;
        heartbeats.extend(decoded.events.extract_if(.., is_heartbeat));
        for event in &mut decoded.events {
            policy.apply(event);
        }
    }

    /// Returns all events.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.decoded.events.iter().chain(&self.heartbeats)
    }
}

fn decode_framed(message: &Message, limits: &Limits, decoded: &mut Decoded) {
    match &message.framing {
        Framing::Message {
            content_type,
            content_encoding,
            compression,
        } => {
            let raw = RawMessage {
                body: &message.body,
                content_type: content_type.as_deref(),
                content_encoding: content_encoding.as_deref(),
                compression: compression.as_deref(),
                ..RawMessage::default()
            };
            decode_into(&raw, message.arrived, limits, decoded);
        }
        Framing::Envelope => match decode_virtual_envelope(&message.body) {
            Ok(envelope) => decode_into(&envelope.as_raw_message(), message.arrived, limits, decoded),
            Err(reject) => decoded.rejects.push(reject),
        },
    }
}
