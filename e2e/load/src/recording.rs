//! A whole stream at once, on a clock that steps from event to event: for tests, which need not wait a task's time.

use std::collections::BTreeMap;

use crate::event::Event;
use crate::messages::{Message, Messages};
use crate::stream::Stream;
use crate::workload::Workload;

/// One event.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Task id.
    pub task: String,
    /// `task-sent` …
    pub kind: &'static str,
    /// When it happened: microseconds since 1970.
    pub at: i64,
    /// The event as a JSON object.
    pub json: String,
}

/// One message.
#[derive(Clone, Debug)]
pub struct RecordedMessage {
    /// `task.sent` or `task.multi`.
    pub routing_key: &'static str,
    /// Node name of the sender.
    pub hostname: String,
    /// The body, JSON.
    pub body: String,
}

impl From<&Message<'_>> for RecordedMessage {
    fn from(message: &Message<'_>) -> Self {
        Self {
            routing_key: message.routing_key,
            hostname: message.hostname.to_owned(),
            body: message.body.to_owned(),
        }
    }
}

impl RecordedMessage {
    /// Returns it as a publisher wants it.
    pub fn as_message(&self) -> Message<'_> {
        Message {
            routing_key: self.routing_key,
            hostname: &self.hostname,
            body: &self.body,
            events: 0,
        }
    }
}

/// A whole stream.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// Every event, in order.
    pub events: Vec<Recorded>,
    /// The same, packed.
    pub messages: Vec<RecordedMessage>,
    /// How many tasks ended in which state.
    pub ended: BTreeMap<&'static str, u64>,
}

impl Recording {
    /// Records so many tasks from `start` (microseconds since 1970) on, of which so many begin each second.
    ///
    /// Tasks that are older than the stream began ten minutes before it; their beginning is left out.
    pub fn new(workload: Workload, tasks: u64, tasks_per_second: u64, start: i64) -> Self {
        let mut stream = Stream::new(workload);
        stream.begin_older(tasks.checked_div(workload.older_in).unwrap_or(0), start - 600_000_000);
        while let Some(at) = stream.next_due() {
            stream.take_due(at, |_| {});
        }
        let mut recorder = Recorder {
            recording: Self::default(),
            messages: Messages::new(workload.workers),
        };
        for number in 0..tasks {
            let begin = start + (number * 1_000_000 / tasks_per_second) as i64;
            recorder.until(&mut stream, begin);
            stream.begin(1, begin);
        }
        recorder.until(&mut stream, i64::MAX);
        let Recorder {
            mut recording,
            mut messages,
        } = recorder;
        messages.flush(|message| recording.messages.push(message.into()));
        recording.ended = stream
            .ended()
            .iter()
            .map(|(outcome, count)| (outcome.state(), *count))
            .collect();
        recording
    }
}

struct Recorder {
    recording: Recording,
    messages: Messages,
}

impl Recorder {
    fn until(&mut self, stream: &mut Stream, end: i64) {
        let Self { recording, messages } = self;
        while let Some(at) = stream.next_due().filter(|at| *at < end) {
            stream.take_due(at, |event: &Event<'_>| {
                recording.events.push(Recorded {
                    task: event.task.to_owned(),
                    kind: event.kind,
                    at: event.at,
                    json: event.json.to_owned(),
                });
                messages.push(event, |message| recording.messages.push(message.into()));
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_has_its_events_and_one_seed_gives_one_stream() {
        let recording = Recording::new(Workload::realistic(1), 2_000, 10_000, 1_000_000_000_000);
        let again = Recording::new(Workload::realistic(1), 2_000, 10_000, 1_000_000_000_000);
        // Four events a task, four more for one in twenty, one less for one in a hundred, whose end is an older task's.
        assert_eq!(recording.events.len(), 2_000 * 4 + 100 * 4);
        assert_eq!(recording.ended.values().sum::<u64>(), 2_000);
        assert!(
            recording
                .events
                .iter()
                .zip(&again.events)
                .all(|(a, b)| a.json == b.json)
        );
        assert!(recording.events.is_sorted_by_key(|event| event.at));
    }

    #[test]
    fn messages_hold_the_events_in_order() {
        let recording = Recording::new(Workload::short(3), 500, 10_000, 0);
        let bodies: usize = recording
            .messages
            .iter()
            .map(|message| message.body.matches("\"uuid\"").count())
            .sum();
        assert_eq!(bodies, recording.events.len());
        assert!(recording.messages.len() < recording.events.len() * 3 / 4);
    }
}
