//! From the bytes of a message to events.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::event::{Event, Repair, Repairs};
use crate::reject::{Reject, RejectReason};
use crate::time::UnixMicros;
use build::Builder;
pub(crate) use build::{address, blank};
pub(crate) use compression::unpack;
pub(crate) use exception::explain;

mod build;
mod compression;
mod exception;
pub(crate) mod json;
mod msgpack;
pub(crate) mod scalar;
mod yaml;

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

impl Limits {
    /// What a monitor uses.
    pub const DEFAULT: Self = Self {
        max_body_bytes: 16 << 20,
        max_decompressed_bytes: 16 << 20,
        max_yaml_bytes: 512 << 10,
        max_events: 10_000,
        max_rejects: 16,
        max_depth: 64,
        max_text_bytes: 1 << 20,
        max_extra_bytes: 256 << 10,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Bytes of a body whose invalid UTF-8 is repaired.
const MAX_LOSSY_BYTES: usize = 4 << 20;

/// What a message held.
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    /// Its events, in order.
    pub events: Vec<Event>,
    /// What was not an event.
    pub rejects: Vec<Reject>,
}

/// Decodes a message. Never fails as a whole: what cannot be read is a [`Reject`], the rest are events.
pub fn decode(message: &RawMessage<'_>, arrived: UnixMicros, limits: &Limits) -> Decoded {
    let mut decoded = Decoded::default();
    decode_into(message, arrived, limits, &mut decoded);
    decoded
}

/// Like [`decode`], appending to `decoded`: its memory serves for the next message again.
pub fn decode_into(message: &RawMessage<'_>, arrived: UnixMicros, limits: &Limits, decoded: &mut Decoded) {
    let sender = decoded.events.last().map(|event| Arc::clone(&event.hostname));
    let mut batch = Batch {
        arrived,
        limits,
        sender: sender.unwrap_or_else(|| Arc::from("")),
        decoded,
    };
    match unwrap_body(message, limits) {
        Ok(body) if body.is_empty() => batch.reject(RejectReason::Empty, "no body", &body),
        Ok(body) => batch.read(&body, message.content_type),
        Err(reject) => batch.push_reject(reject),
    }
}

/// Undoes what the transport and the sender wrapped around the serialized body.
fn unwrap_body<'a>(message: &RawMessage<'a>, limits: &Limits) -> Result<Cow<'a, [u8]>, Reject> {
    let mut body = Cow::Borrowed(message.body);
    if body.len() > limits.max_body_bytes {
        let detail = format_args!("{} bytes", body.len()).to_string();
        return Err(Reject::new(RejectReason::Oversize, detail, &body));
    }
    if message.body_encoding == BodyEncoding::Base64 {
        let plain = base64_lenient(&body);
        body = plain
            .ok_or_else(|| Reject::new(RejectReason::InvalidBase64, "not base64", &body))?
            .into();
    }
    if let Some(name) = message.compression.filter(|name| !name.is_empty()) {
        let plain = unpack(name, &body, limits.max_decompressed_bytes);
        body = plain
            .map_err(|(reason, detail)| Reject::new(reason, detail, &body))?
            .into();
    }
    Ok(body)
}

/// Like Python's `b64decode`, ignores what is not in the alphabet.
fn base64_lenient(text: &[u8]) -> Option<Vec<u8>> {
    const ENGINE: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    ENGINE.decode(text).ok().or_else(|| {
        let known = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
        ENGINE
            .decode(text.iter().copied().filter(known).collect::<Vec<_>>())
            .ok()
    })
}

/// How a body is serialized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Msgpack,
    Yaml,
    Pickle,
    Unknown,
}

/// Tells the format by the content type, or by the first byte where that says nothing.
fn format_of(content_type: Option<&str>, body: &[u8]) -> Format {
    let content_type = content_type.unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    match essence {
        "application/json" => Format::Json,
        "application/x-msgpack" | "application/msgpack" => Format::Msgpack,
        "application/x-yaml" | "application/yaml" | "text/yaml" => Format::Yaml,
        "application/x-python-serialize" => Format::Pickle,
        "" | "application/data" | "application/octet-stream" | "text/plain" => match body {
            [b'{' | b'[' | b' ' | b'\n' | 0xef, ..] => Format::Json,
            [0x80, 2..=5, ..] => Format::Pickle,
            [0x80..=0x9f | 0xdc..=0xdf, ..] => Format::Msgpack,
            _ => Format::Unknown,
        },
        other if other.ends_with("json") => Format::Json,
        _ => Format::Unknown,
    }
}

/// The events of one message while they are read.
struct Batch<'l> {
    arrived: UnixMicros,
    limits: &'l Limits,
    /// Hostname of the last event, shared by the next one where it is the same.
    sender: Arc<str>,
    decoded: &'l mut Decoded,
}

impl Batch<'_> {
    fn read(&mut self, body: &[u8], content_type: Option<&str>) {
        match format_of(content_type, body) {
            Format::Json => self.read_json(body),
            Format::Msgpack => self.read_msgpack(body),
            Format::Yaml => self.read_yaml(body),
            Format::Pickle => self.reject(RejectReason::Pickle, "pickle is never read", body),
            Format::Unknown => {
                let detail = format!("content type {content_type:?}");
                self.reject(RejectReason::UnknownContentType, detail, body);
            }
        }
    }

    // === JSON ===

    fn read_json(&mut self, body: &[u8]) {
        let mut repairs = Repairs::default();
        let Some(text) = text_of(body, &mut repairs) else {
            return self.reject(RejectReason::InvalidUtf8, format!("in {} bytes", body.len()), body);
        };
        let mut reader = json::Reader::new(text.trim_start_matches('\u{FEFF}'), self.limits);
        if reader.take(b'[') {
            if !reader.take(b']') && !self.read_json_elements(&mut reader, repairs) {
                return;
            }
        } else if reader.peek().is_none() {
            return self.reject(RejectReason::Empty, "white space only", body);
        } else if self.read_json_event(&mut reader, repairs).is_none() {
            return;
        }
        if reader.peek().is_some() {
            self.reject(
                RejectReason::TrailingData,
                "after the end of the body",
                reader.rest().as_bytes(),
            );
        }
    }

    /// Reads elements up to the end of the array; says whether there was one.
    fn read_json_elements(&mut self, reader: &mut json::Reader<'_>, repairs: Repairs) -> bool {
        for _ in 0..self.limits.max_events {
            if self.read_json_event(reader, repairs).is_none() {
                return false;
            }
            if reader.take(b']') {
                return true;
            }
            if !reader.take(b',') {
                let reason = if reader.peek().is_none() {
                    RejectReason::Truncated
                } else {
                    RejectReason::InvalidJson
                };
                self.reject(
                    reason,
                    "expected a comma or the end of the array",
                    reader.rest().as_bytes(),
                );
                return false;
            }
        }
        self.reject(
            RejectReason::TooManyEvents,
            "the rest is not read",
            reader.rest().as_bytes(),
        );
        false
    }

    /// Reads one element; `None` if what follows it cannot be found.
    fn read_json_event(&mut self, reader: &mut json::Reader<'_>, repairs: Repairs) -> Option<()> {
        let first = reader.peek();
        let start = reader.position();
        reader.repairs = repairs;
        let mut builder = Builder::new(self.arrived, &self.sender, self.limits);
        let read = match first {
            Some(b'{') => reader.object(|reader, key| {
                let value = reader.scalar()?;
                builder.set(&key, value);
                Ok(())
            }),
            _ => reader.scalar().map(drop),
        };
        match read {
            Ok(()) if first == Some(b'{') => {
                builder.repaired(reader.repairs);
                self.finish(builder, reader.since(start).as_bytes());
                Some(())
            }
            Ok(()) => {
                self.reject(
                    RejectReason::NotAnEvent,
                    "not an object",
                    reader.since(start).as_bytes(),
                );
                Some(())
            }
            Err(json::Fault::Truncated) => {
                reader.rewind(start);
                self.reject(RejectReason::Truncated, "ends early", reader.rest().as_bytes());
                None
            }
            Err(json::Fault::Syntax(at)) => {
                reader.rewind(start);
                let rest = reader.rest();
                let end = reader.skip_roughly();
                let bytes = if end.is_some() { reader.since(start) } else { rest };
                self.reject(
                    RejectReason::InvalidJson,
                    format!("at byte {}", at - start),
                    bytes.as_bytes(),
                );
                // Nothing was skipped: there is no element here at all.
                end.filter(|()| reader.position() > start)
            }
        }
    }

    // === msgpack ===

    fn read_msgpack(&mut self, body: &[u8]) {
        let mut reader = msgpack::Reader::new(body, self.limits);
        let count = reader.array().unwrap_or(1);
        for index in 0..count {
            if index as usize >= self.limits.max_events {
                return self.reject(RejectReason::TooManyEvents, "the rest is not read", reader.rest());
            }
            if !self.read_msgpack_event(&mut reader, body) {
                return;
            }
        }
        if !reader.rest().is_empty() {
            self.reject(RejectReason::TrailingData, "after the end of the body", reader.rest());
        }
    }

    fn read_msgpack_event(&mut self, reader: &mut msgpack::Reader<'_>, body: &[u8]) -> bool {
        let start = reader.position();
        reader.repairs = Repairs::default();
        let mut builder = Builder::new(self.arrived, &self.sender, self.limits);
        let read = reader.map(|key, value| builder.set(key, value));
        let bytes = body.get(start..reader.position()).unwrap_or_default();
        match read {
            Ok(true) => {
                builder.repaired(reader.repairs);
                self.finish(builder, bytes);
            }
            Ok(false) => self.reject(RejectReason::NotAnEvent, "not a map", bytes),
            Err(msgpack::Fault::Truncated) => self.reject(RejectReason::Truncated, "ends early", bytes),
            Err(msgpack::Fault::Reserved(at)) => {
                self.reject(
                    RejectReason::InvalidMsgpack,
                    format!("reserved marker at byte {at}"),
                    bytes,
                );
            }
        }
        read.is_ok()
    }

    // === yaml ===

    fn read_yaml(&mut self, body: &[u8]) {
        if body.len() > self.limits.max_yaml_bytes {
            return self.reject(RejectReason::Oversize, format!("{} bytes of yaml", body.len()), body);
        }
        let mut repairs = Repairs::default();
        let Some(text) = text_of(body, &mut repairs) else {
            return self.reject(RejectReason::InvalidUtf8, format!("in {} bytes", body.len()), body);
        };
        match yaml::read(&text, self.limits) {
            Ok(yaml::Node::List(nodes)) => {
                for (index, node) in nodes.into_iter().enumerate() {
                    if index >= self.limits.max_events {
                        return self.reject(RejectReason::TooManyEvents, "the rest is not read", body);
                    }
                    self.read_yaml_event(node, repairs, body);
                }
            }
            Ok(node) => self.read_yaml_event(node, repairs, body),
            Err(detail) => self.reject(RejectReason::InvalidYaml, detail, body),
        }
    }

    fn read_yaml_event(&mut self, node: yaml::Node, mut repairs: Repairs, body: &[u8]) {
        let yaml::Node::Map(entries) = node else {
            return self.reject(RejectReason::NotAnEvent, "not a map", body);
        };
        let mut builder = Builder::new(self.arrived, &self.sender, self.limits);
        for (key, node) in entries {
            let value = node.into_scalar(&mut repairs);
            builder.set(&key, value);
        }
        builder.repaired(repairs);
        self.finish(builder, body);
    }

    // === results ===

    fn finish(&mut self, builder: Builder<'_>, bytes: &[u8]) {
        match builder.finish() {
            Ok(event) => {
                if !Arc::ptr_eq(&self.sender, &event.hostname) {
                    self.sender = Arc::clone(&event.hostname);
                }
                self.decoded.events.push(event);
            }
            Err(reason) => self.reject(reason, reason, bytes),
        }
    }

    fn reject(&mut self, reason: RejectReason, detail: impl fmt::Display, bytes: &[u8]) {
        if self.decoded.rejects.len() < self.limits.max_rejects {
            return self.push_reject(Reject::new(reason, detail, bytes));
        }
        // Too many to list: the last of the same reason, or the last of all, stands for this one, too.
        let same = self.decoded.rejects.iter().rposition(|reject| reject.reason == reason);
        let index = same.unwrap_or(self.decoded.rejects.len().saturating_sub(1));
        if let Some(reject) = self.decoded.rejects.get_mut(index) {
            reject.count += 1;
        }
    }

    fn push_reject(&mut self, reject: Reject) {
        self.decoded.rejects.push(reject);
    }
}

/// Returns the body as text. Repairing invalid UTF-8 can treble it, so that is not done to a large body.
fn text_of<'a>(body: &'a [u8], repairs: &mut Repairs) -> Option<Cow<'a, str>> {
    match std::str::from_utf8(body) {
        Ok(text) => Some(text.into()),
        Err(_) if body.len() > MAX_LOSSY_BYTES => None,
        Err(_) => {
            repairs.insert(Repair::Utf8);
            Some(String::from_utf8_lossy(body))
        }
    }
}
