//! Finds the events of a refused batch that the store does not take. Pure.
//!
//! Halves are tried in transactions that are rolled back, each together with all that was taken so far, so that in the end
//! everything good is known to fit into one transaction: nothing of a batch is stored before all of it is.

use kanchi_domain::{Event, TaskId, UnixMicros};
use kanchi_store::{DeadLetter, EventChunk};

/// Bytes of an event that a dead letter keeps for a look.
const SAMPLE_BYTES: usize = 512;

/// Events on their way to being taken or refused.
#[derive(Debug)]
pub struct Sieve {
    /// Taken together.
    good: Vec<Event>,
    /// On trial behind these.
    trial: Vec<Event>,
    /// Not tried yet, the next ones last.
    waiting: Vec<Vec<Event>>,
    letters: Vec<DeadLetter>,
    arrived: UnixMicros,
}

impl Sieve {
    /// Reads the events of a batch back. `arrived`: when the first of them came.
    pub fn new(chunks: &[EventChunk], arrived: UnixMicros) -> Self {
        let (events, letters) = read_back(chunks, arrived);
        let mut sieve = Self {
            good: Vec::new(),
            trial: Vec::new(),
            waiting: Vec::new(),
            letters,
            arrived,
        };
        sieve.wait(events);
        sieve
    }

    /// Returns what is tried next: all that was taken, and some more. `None` when all is tried.
    pub fn trial(&mut self) -> Option<impl Iterator<Item = &Event>> {
        self.trial = self.waiting.pop()?;
        Some(self.good.iter().chain(&self.trial))
    }

    /// The store takes the trial.
    pub fn taken(&mut self) {
        self.good.append(&mut self.trial);
    }

    /// The store refuses the trial, for this reason.
    pub fn refused(&mut self, reason: &str) {
        let mut events = std::mem::take(&mut self.trial);
        if let [event] = events.as_slice() {
            tracing::error!(error = reason, "the store refuses an event; it becomes a dead letter");
            let text = event.to_json();
            self.letters.push(letter(reason, &text, self.arrived));
            return;
        }
        let second = events.split_off(events.len() / 2);
        self.wait(second);
        self.wait(events);
    }

    /// Returns the events that the store takes, all together, and letters of the others.
    pub fn end(self) -> (Vec<Event>, Vec<DeadLetter>) {
        (self.good, self.letters)
    }

    fn wait(&mut self, events: Vec<Event>) {
        if !events.is_empty() {
            self.waiting.push(events);
        }
    }
}

/// Reads the events of a batch back from what is stored of them, and returns letters of what cannot be read. `arrived`: when
/// the first of them came.
pub fn read_back(chunks: &[EventChunk], arrived: UnixMicros) -> (Vec<Event>, Vec<DeadLetter>) {
    let (mut events, mut letters) = (Vec::new(), Vec::new());
    for chunk in chunks {
        let id = chunk.task_id.as_deref().and_then(TaskId::new);
        let json = match chunk.events.unpack(chunk.task_id.as_deref()) {
            Ok(json) => json,
            Err(error) => {
                letters.push(letter(&error.to_string(), "", arrived));
                continue;
            }
        };
        let text = String::from_utf8_lossy(&json);
        match Event::read_stored(&text, id.as_ref(), arrived) {
            Ok(read) => {
                for event in read {
                    match event {
                        Ok(event) => events.push(event),
                        Err(error) => letters.push(letter(&error.to_string(), &text, arrived)),
                    }
                }
            }
            Err(error) => letters.push(letter(&error.to_string(), &text, arrived)),
        }
    }
    (events, letters)
}

fn letter(reason: &str, text: &str, arrived: UnixMicros) -> DeadLetter {
    DeadLetter {
        arrived,
        reason: "store_refused".to_owned(),
        detail: reason.replace('\0', "\u{FFFD}"),
        sample: text.as_bytes().get(..SAMPLE_BYTES).unwrap_or(text.as_bytes()).to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use kanchi_domain::{Limits, RawMessage, decode};
    use kanchi_store::{Epoch, PackedEvents};
    use proptest::prelude::*;

    use super::*;
    use crate::intake::gather::Gathered;

    const ARRIVED: UnixMicros = UnixMicros(1_795_300_000_000_000);

    fn events(count: usize) -> Vec<Event> {
        let one = |number| {
            format!(
                r#"{{"type": "task-started", "hostname": "w@h", "uuid": "t{}", "timestamp": 1795219800.5, "pid": {number}}}"#,
                number % 7
            )
        };
        let body = format!("[{}]", (0..count).map(one).collect::<Vec<_>>().join(","));
        let message = RawMessage {
            body: body.as_bytes(),
            ..RawMessage::default()
        };
        decode(&message, ARRIVED, &Limits::default()).events
    }

    proptest! {
        #[test]
        fn keeps_all_that_is_taken_and_tells_the_rest(count in 1..60_usize, bad in proptest::collection::hash_set(0..60_i64, 0..20)) {
            let chunks = Gathered::of(&events(count)).take_head(Epoch(1)).chunks;
            let mut sieve = Sieve::new(&chunks, ARRIVED);
            let is_bad = |event: &Event| event.pid.is_some_and(|pid| bad.contains(&pid));
            let mut trials = 0;
            while let Some(refused) = sieve.trial().map(|mut trial| trial.any(is_bad)) {
                trials += 1;
                if refused { sieve.refused("no") } else { sieve.taken() }
            }
            prop_assert!(trials <= 2 * count);
            let (good, letters) = sieve.end();
            let refused = bad.iter().filter(|pid| **pid < count as i64).count();
            prop_assert_eq!((good.len(), letters.len()), (count - refused, refused));
            prop_assert!(!good.iter().any(is_bad));
        }
    }

    #[test]
    fn what_cannot_be_read_back_costs_no_other_event() {
        let mut chunks = Gathered::of(&events(2)).take_head(Epoch(1)).chunks;
        chunks[0].events = PackedEvents::pack("[5, {}]", chunks[0].task_id.as_deref());
        chunks.push(EventChunk {
            events: PackedEvents::from_stored(vec![0]),
            ..chunks[0].clone()
        });
        let mut sieve = Sieve::new(&chunks, ARRIVED);
        assert_eq!(sieve.trial().map(Iterator::count), Some(1));
        sieve.taken();
        let (good, letters) = sieve.end();
        assert_eq!((good.len(), letters.len()), (1, 3));
    }
}
