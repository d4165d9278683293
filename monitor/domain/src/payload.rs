//! What is kept of arguments, results and tracebacks.

use crate::event::Event;

/// Whether payloads are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadStore {
    /// Up to the bound.
    Full,
    /// Not at all; the class of an exception is still kept.
    None,
}

/// What is kept of arguments, results, exceptions, tracebacks, progress and unknown fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadPolicy {
    /// Whether payloads are kept.
    pub store: PayloadStore,
    /// Bytes kept of each payload.
    pub max_bytes: usize,
    /// Keyword names whose values are replaced by `'***'`; case does not matter.
    pub redact_keys: Vec<String>,
}

impl PayloadPolicy {
    /// Applies the policy to an event. Must be done before the event is stored or absorbed.
    pub fn apply(&self, _event: &mut Event) {}
}
