//! From a message to what of it is stored: decode, payload policy, sizes. Pure.

use bytes::Bytes;
use kanchi_broker::Framing;
use kanchi_domain::{
    Decoded, Event, EventKind, Limits, PayloadPolicy, RawMessage, Reject, UnixMicros, decode, decode_virtual_envelope,
};
use xxhash_rust::xxh3::xxh3_128;

/// Bytes of an event besides its texts.
const EVENT_BYTES: usize = 640;

/// A message on its way through the monitor.
#[derive(Clone, Debug)]
pub struct Message {
    /// Grows with each message; what is acknowledged.
    pub tag: u64,
    /// It may have been stored before.
    pub maybe_stored: bool,
    /// Its digest must be kept: the transport may deliver it again.
    pub may_repeat: bool,
    /// When it was read from the connection.
    pub arrived: UnixMicros,
    /// The bytes.
    pub body: Bytes,
    /// How to read them.
    pub framing: Framing,
}

/// A message, read.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// What is acknowledged once this is stored.
    pub tag: u64,
    /// Made by the monitor itself: it acknowledges nothing, and says nothing of what was read.
    pub own: bool,
    /// It may have been stored before.
    pub maybe_stored: bool,
    /// Tells it from other messages; `None` where the transport never delivers twice.
    pub digest: Option<u128>,
    /// When it was read from the connection.
    pub arrived: UnixMicros,
    /// What is stored of it, in the sender's order. Heartbeats are not among them.
    pub events: Vec<Event>,
    /// What could not be read.
    pub rejects: Vec<Reject>,
    /// Head of the message, for a dead letter should the store refuse it.
    pub head: Bytes,
    /// About how many bytes of memory this takes.
    pub bytes: usize,
}

impl Prepared {
    /// Tells whether nothing of the message is to be stored.
    pub fn is_void(&self) -> bool {
        self.events.is_empty() && self.rejects.is_empty()
    }
}

/// Bytes of a refused message that are kept for a look.
const HEAD_BYTES: usize = 512;

/// Reads a message; whatever it holds, it never fails. The second value are events that update workers only.
pub fn prepare(message: &Message, policy: &PayloadPolicy, limits: &Limits) -> (Prepared, Vec<Event>) {
    let Decoded { mut events, rejects } = decode_framed(message, limits);
    let mut heartbeats = Vec::new();
    if events.iter().any(|event| event.kind == EventKind::WorkerHeartbeat) {
        let (beats, others) = events
            .into_iter()
            .partition(|event| event.kind == EventKind::WorkerHeartbeat);
        heartbeats = beats;
        events = others;
    }
    let mut bytes = size_of::<Prepared>() + HEAD_BYTES;
    for event in &mut events {
        policy.apply(event);
        bytes += weight(event);
    }
    bytes += rejects
        .iter()
        .map(|reject| reject.sample.len() + reject.detail.len() + 64)
        .sum::<usize>();
    let prepared = Prepared {
        tag: message.tag,
        own: false,
        maybe_stored: message.maybe_stored,
        digest: message.may_repeat.then(|| xxh3_128(&message.body)),
        arrived: message.arrived,
        events,
        rejects,
        // Copied: a slice would keep the whole message alive until its batch is stored.
        head: Bytes::copy_from_slice(message.body.get(..HEAD_BYTES).unwrap_or(&message.body)),
        bytes,
    };
    (prepared, heartbeats)
}

/// Returns events of our own as a message like any other. `tag`: that of the message read last, which stays the newest.
pub fn own(events: Vec<Event>, tag: u64, now: UnixMicros) -> Prepared {
    Prepared {
        tag,
        own: true,
        maybe_stored: false,
        digest: None,
        arrived: now,
        bytes: size_of::<Prepared>() + events.iter().map(weight).sum::<usize>(),
        events,
        rejects: Vec::new(),
        head: Bytes::new(),
    }
}

fn decode_framed(message: &Message, limits: &Limits) -> Decoded {
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
            decode(&raw, message.arrived, limits)
        }
        Framing::Envelope => match decode_virtual_envelope(&message.body) {
            Ok(envelope) => decode(&envelope.as_raw_message(), message.arrived, limits),
            Err(reject) => Decoded {
                events: Vec::new(),
                rejects: vec![reject],
            },
        },
    }
}

/// About how many bytes of memory an event takes.
pub fn weight(event: &Event) -> usize {
    let texts = [
        &event.name,
        &event.args,
        &event.kwargs,
        &event.queue,
        &event.exchange,
        &event.routing_key,
        &event.result,
        &event.exception,
        &event.exception_class,
        &event.traceback,
        &event.signum,
        &event.extra,
    ];
    let texts: usize = texts.into_iter().flatten().map(|text| text.len()).sum();
    let progress = event.progress.as_deref().map_or(0, |progress| {
        [&progress.step_key, &progress.message, &progress.meta, &progress.steps]
            .into_iter()
            .flatten()
            .map(|text| text.len())
            .sum()
    });
    EVENT_BYTES + texts + progress
}
