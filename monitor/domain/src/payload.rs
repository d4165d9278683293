//! What is kept of arguments, results and tracebacks.

use std::sync::Arc;

use crate::event::{Event, PayloadField};
use crate::text::{boundary, boundary_above};

mod redact;

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

/// Marks the place where a payload was cut.
const MARK: &str = "…";

impl PayloadPolicy {
    /// Applies the policy to an event. Must be done before the event is stored or absorbed.
    pub fn apply(&self, event: &mut Event) {
        match self.store {
            PayloadStore::None => drop_payloads(event),
            PayloadStore::Full => {
                if !self.redact_keys.is_empty() {
                    self.redact(event);
                }
                self.cut(event);
            }
        }
    }

    fn redact(&self, event: &mut Event) {
        let mut progress = event.progress.as_deref_mut();
        let message = progress.as_mut().map(|progress| &mut progress.message);
        let texts = [
            &mut event.args,
            &mut event.kwargs,
            &mut event.result,
            &mut event.exception,
            &mut event.traceback,
        ];
        for text in texts.into_iter().chain(message) {
            if let Some(hidden) = text.as_deref().and_then(|text| redact::text(text, &self.redact_keys)) {
                *text = Some(hidden.into());
            }
        }
        let nested = event
            .progress
            .as_deref_mut()
            .map(|progress| [&mut progress.meta, &mut progress.steps]);
        for json in nested.into_iter().flatten().chain([&mut event.extra]) {
            *json = json
                .take()
                .and_then(|json| redact::json(&json, &self.redact_keys))
                .map(Arc::from);
        }
    }

    fn cut(&self, event: &mut Event) {
        let texts = [
            (PayloadField::Args, &mut event.args),
            (PayloadField::Kwargs, &mut event.kwargs),
            (PayloadField::Result, &mut event.result),
            (PayloadField::Exception, &mut event.exception),
        ];
        for (field, text) in texts {
            if let Some(long) = text.as_deref().filter(|text| text.len() > self.max_bytes) {
                *text = Some(self.head(long));
                event.cut.insert(field);
            }
        }
        // The end of a traceback says what happened.
        if let Some(long) = event.traceback.as_deref().filter(|text| text.len() > self.max_bytes) {
            let from = boundary_above(long, long.len() - self.max_bytes.saturating_sub(MARK.len()));
            event.traceback = Some(format!("{MARK}{}", long.get(from..).unwrap_or_default()).into());
            event.cut.insert(PayloadField::Traceback);
        }
        // Half of a JSON text is none.
        if event.extra.take_if(|json| json.len() > self.max_bytes).is_some() {
            event.cut.insert(PayloadField::Extra);
        }
        self.cut_progress(event);
    }

    fn cut_progress(&self, event: &mut Event) {
        let Some(progress) = event.progress.as_deref_mut() else {
            return;
        };
        for json in [&mut progress.meta, &mut progress.steps] {
            if json.take_if(|json| json.len() > self.max_bytes).is_some() {
                event.cut.insert(PayloadField::Progress);
            }
        }
        if let Some(long) = progress.message.as_deref().filter(|text| text.len() > self.max_bytes) {
            progress.message = Some(self.head(long));
            event.cut.insert(PayloadField::Progress);
        }
    }

    fn head(&self, text: &str) -> Arc<str> {
        let end = boundary(text, self.max_bytes.saturating_sub(MARK.len()));
        format!("{}{MARK}", text.get(..end).unwrap_or_default()).into()
    }
}

fn drop_payloads(event: &mut Event) {
    event.args = None;
    event.kwargs = None;
    event.result = None;
    event.exception = None;
    event.traceback = None;
    event.extra = None;
    if let Some(progress) = event.progress.as_deref_mut() {
        progress.message = None;
        progress.meta = None;
        progress.steps = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Limits, RawMessage, UnixMicros, decode};

    fn event(json: &str) -> Event {
        let message = RawMessage {
            body: json.as_bytes(),
            ..RawMessage::default()
        };
        decode(&message, UnixMicros(0), &Limits::default()).events.remove(0)
    }

    fn failed() -> Event {
        event(
            r#"{"type": "task-failed", "hostname": "w@h", "uuid": "t", "exception": "ValueError('ä')", "traceback": "first line\nlast line",
            "args": "(1, {'Password': 'geheim'})", "kwargs": "{'token': 'geheim', 'n': 1}", "result": "ok", "own": {"token": ["geheim"], "n": 2, "log": "token=geheim"}}"#,
        )
    }

    #[test]
    fn keeps_nothing_but_the_class_of_the_exception_if_told_so() {
        let mut event = failed();
        PayloadPolicy {
            store: PayloadStore::None,
            max_bytes: 100,
            redact_keys: Vec::new(),
        }
        .apply(&mut event);
        assert_eq!(event.exception_class.as_deref(), Some("ValueError"));
        let json = event.to_json();
        assert!(
            !json.contains("geheim") && !json.contains("line") && !json.contains("ok"),
            "{json}"
        );
    }

    #[test]
    fn hides_the_values_of_redacted_keys() {
        let mut event = failed();
        let redact_keys = vec!["password".into(), "token".into()];
        PayloadPolicy {
            store: PayloadStore::Full,
            max_bytes: 1_000,
            redact_keys,
        }
        .apply(&mut event);
        assert_eq!(event.args.as_deref(), Some("(1, {'Password': '***'})"));
        assert_eq!(event.kwargs.as_deref(), Some("{'token': '***', 'n': 1}"));
        assert_eq!(
            event.extra.as_deref(),
            Some(r#"{"own":{"token":"***","n":2,"log":"token='***'"}}"#)
        );
        assert!(event.cut.is_empty());
    }

    #[test]
    fn cuts_at_a_character_and_marks_it() {
        let mut event = failed();
        PayloadPolicy {
            store: PayloadStore::Full,
            max_bytes: 16,
            redact_keys: Vec::new(),
        }
        .apply(&mut event);
        assert_eq!(event.exception.as_deref(), Some("ValueError('ä')"));
        assert_eq!(event.traceback.as_deref(), Some("…ine\nlast line"));
        assert_eq!(event.args.as_deref(), Some("(1, {'Passwor…"));
        assert_eq!(event.result.as_deref(), Some("ok"));
        assert_eq!(event.extra, None);
        let cut: Vec<_> = event.cut.iter().map(PayloadField::as_str).collect();
        assert_eq!(cut, ["args", "kwargs", "traceback", "extra"]);
        for text in [&event.args, &event.kwargs, &event.traceback] {
            assert!(text.as_deref().unwrap().len() <= 16);
        }
    }
}
