//! Input that is not kept as an event: why, and a look at it.

use std::fmt;

/// Bytes of the refused input that are kept for a look.
const SAMPLE_BYTES: usize = 512;
/// Bytes of the explanation.
const DETAIL_BYTES: usize = 256;

/// A message, or a part of one, that is not an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Why, from a closed set.
    pub reason: RejectReason,
    /// What exactly, for a person.
    pub detail: String,
    /// The head of the refused bytes.
    pub sample: Vec<u8>,
    /// How many elements this stands for; more than one only where a message had too many bad ones to list.
    pub count: u64,
}

impl Reject {
    /// Builds the reject of `bytes`, keeping only their head.
    pub fn new(reason: RejectReason, detail: impl fmt::Display, bytes: &[u8]) -> Self {
        let mut detail = detail.to_string();
        detail.truncate(crate::text::boundary(&detail, DETAIL_BYTES));
        Self {
            reason,
            detail,
            sample: bytes.get(..SAMPLE_BYTES).unwrap_or(bytes).to_vec(),
            count: 1,
        }
    }
}

/// Why input was refused: a closed set, fit for a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RejectReason {
    /// The message is larger than the monitor reads.
    Oversize,
    /// The virtual transport's envelope cannot be read.
    InvalidEnvelope,
    /// The body says base64 and is not.
    InvalidBase64,
    /// A compression that kombu does not have.
    UnknownCompression,
    /// Compressed data that cannot be unpacked.
    InvalidCompression,
    /// Unpacks to more than the monitor reads.
    DecompressedOversize,
    /// Pickle: never executed, never read.
    Pickle,
    /// A content type that is neither JSON, msgpack nor yaml.
    UnknownContentType,
    /// An empty body.
    Empty,
    /// The body, or an element of it, ends early.
    Truncated,
    /// Invalid UTF-8 in a body too large to repair it.
    InvalidUtf8,
    /// Not JSON.
    InvalidJson,
    /// Not msgpack.
    InvalidMsgpack,
    /// Not yaml.
    InvalidYaml,
    /// Readable, but not an object: a number, a text, a list in a list.
    NotAnEvent,
    /// No `type`, or one that is not a text.
    MissingType,
    /// A task event without the id of its task.
    MissingTaskId,
    /// A worker event without the name of its worker.
    MissingHostname,
    /// More elements in one message than the monitor reads.
    TooManyEvents,
    /// Something after the end of the body.
    TrailingData,
}

impl RejectReason {
    /// All reasons, for metrics that start at zero.
    pub const ALL: [Self; 20] = [
        Self::Oversize,
        Self::InvalidEnvelope,
        Self::InvalidBase64,
        Self::UnknownCompression,
        Self::InvalidCompression,
        Self::DecompressedOversize,
        Self::Pickle,
        Self::UnknownContentType,
        Self::Empty,
        Self::Truncated,
        Self::InvalidUtf8,
        Self::InvalidJson,
        Self::InvalidMsgpack,
        Self::InvalidYaml,
        Self::NotAnEvent,
        Self::MissingType,
        Self::MissingTaskId,
        Self::MissingHostname,
        Self::TooManyEvents,
        Self::TrailingData,
    ];

    /// Returns the name used as metric label and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Oversize => "oversize",
            Self::InvalidEnvelope => "invalid_envelope",
            Self::InvalidBase64 => "invalid_base64",
            Self::UnknownCompression => "unknown_compression",
            Self::InvalidCompression => "invalid_compression",
            Self::DecompressedOversize => "decompressed_oversize",
            Self::Pickle => "pickle",
            Self::UnknownContentType => "unknown_content_type",
            Self::Empty => "empty",
            Self::Truncated => "truncated",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::InvalidJson => "invalid_json",
            Self::InvalidMsgpack => "invalid_msgpack",
            Self::InvalidYaml => "invalid_yaml",
            Self::NotAnEvent => "not_an_event",
            Self::MissingType => "missing_type",
            Self::MissingTaskId => "missing_task_id",
            Self::MissingHostname => "missing_hostname",
            Self::TooManyEvents => "too_many_events",
            Self::TrailingData => "trailing_data",
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
