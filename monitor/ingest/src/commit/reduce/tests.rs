//! Whatever the batches, whatever is remembered between them: the same rows, the same counts, every event once.

use std::collections::BTreeMap;

use kanchi_broker::Framing;
use kanchi_domain::{Limits, PayloadPolicy, PayloadStore};
use kanchi_store::EventChunk;
use kanchi_store::statistics::{Dimension, Measures, Transition};
use kanchi_test_load::{Recording, Workload};
use proptest::prelude::*;

use super::*;
use crate::commit::sieve::Sieve;
use crate::intake::gather::{Gathered, Gathering};
use crate::intake::message::{Message, Reading};

fn messages(tasks: u64) -> Vec<Message> {
    let recording = Recording::new(Workload::realistic(3), tasks, 10_000, 1_795_219_800_000_000);
    let messages = recording.messages.iter().zip(1..).map(|(message, tag)| Message {
        tag,
        maybe_stored: false,
        may_repeat: false,
        arrived: UnixMicros(1_795_219_800_000_000),
        body: message.body.clone().into(),
        framing: Framing::Message {
            content_type: Some("application/json".to_owned()),
            content_encoding: None,
            compression: None,
        },
    });
    messages.collect()
}

/// Gathers messages behind what waits; the youngest tasks wait in their turn where more follows.
fn gathered(gathering: &mut Gathering, messages: &[Message], more: bool) -> Gathered {
    let mut reading = Reading::default();
    for message in messages {
        reading.read(message, &policy(), &Limits::DEFAULT);
        gathering.push(message.clone(), &mut reading.decoded);
    }
    if more {
        gathering.finish_but_young()
    } else {
        gathering.finish()
    }
}

fn policy() -> PayloadPolicy {
    PayloadPolicy {
        store: PayloadStore::Full,
        max_bytes: 65_536,
        redact_keys: Vec::new(),
    }
}

/// What was refused is read back.
fn read_back(refused: &Gathered) -> Gathered {
    let mut sieve = Sieve::new(&refused.chunks, UnixMicros(1_795_219_800_000_000));
    while sieve.trial().is_some() {
        sieve.taken();
    }
    Gathered::of(&sieve.end().0)
}

/// What a store would hold.
#[derive(Debug, Default, PartialEq)]
struct Stored {
    facts: BTreeMap<String, Vec<u8>>,
    states: BTreeMap<String, String>,
    events: u64,
    statistics: BTreeMap<(i64, Dimension, String), Measures>,
    /// Failures and critical ones by task and message.
    failures: BTreeMap<(String, String), (i64, i64)>,
}

impl Stored {
    fn store(&mut self, chunks: &[EventChunk], changes: &TaskChanges) {
        for task in &changes.tasks {
            let known = self.facts.insert(task.task_id.to_string(), task.facts.to_vec());
            assert!(
                known.is_none() || task.maybe_stored,
                "{} was said to be new",
                task.task_id
            );
            self.states
                .insert(task.task_id.to_string(), task.state.as_str().to_owned());
        }
        self.events += chunks.iter().map(|chunk| u64::from(chunk.count)).sum::<u64>();
        for delta in &changes.statistics {
            let key = (delta.minute.0, delta.dimension, delta.key.clone());
            self.statistics.entry(key).or_default().merge(&delta.measures);
        }
        for delta in &changes.failures {
            let key = (delta.group.task.to_string(), delta.group.message.clone());
            let counts = self.failures.entry(key).or_default();
            *counts = (counts.0 + delta.failed, counts.1 + delta.critical);
        }
    }
}

/// Stores messages in batches of these sizes, in turn; a batch whose turn says so fails once and is made again.
fn stored(messages: &[Message], sizes: &[(usize, bool)], cache: usize) -> Stored {
    let (mut reducer, mut stored) = (Reducer::new(cache), Stored::default());
    let (mut gathering, mut left) = (Gathering::default(), messages);
    for (size, fails) in sizes.iter().cycle() {
        if left.is_empty() {
            break;
        }
        let (batch, rest) = left.split_at((*size).min(left.len()));
        left = rest;
        let mut batch = gathered(&mut gathering, batch, !left.is_empty());
        for last in if *fails { [false, true].as_slice() } else { &[true] } {
            let missing = reducer.missing(&batch.tasks);
            let known = |id: &&str| Some(((*id).to_owned(), stored.facts.get(*id)?.clone()));
            let loaded = missing.iter().filter_map(known).collect();
            let made = reducer.reduce(mem::take(&mut batch.tasks), loaded);
            if *last {
                stored.store(&batch.chunks, &made.changes);
                reducer.keep(made.touched);
            } else {
                batch = read_back(&batch);
            }
        }
    }
    stored.statistics.retain(|_, measures| !measures.is_zero());
    stored.failures.retain(|_, counts| *counts != (0, 0));
    stored
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn batches_failures_and_forgetting_do_not_matter(
        sizes in proptest::collection::vec((1..200_usize, proptest::bool::weighted(0.2)), 1..8),
        cache in prop_oneof![Just(0_usize), Just(20_000), Just(10_000_000)],
    ) {
        let messages = messages(200);
        let whole = stored(&messages, &[(usize::MAX, false)], 0);
        prop_assert_eq!(&stored(&messages, &sizes, cache), &whole);
        // Four events a task, four more for one in twenty.
        prop_assert_eq!(whole.events, 200 * 4 + 10 * 4);
        let succeeded = whole.states.values().filter(|state| *state == "SUCCESS").count();
        prop_assert!(succeeded > 150);
        for dimension in Dimension::ALL {
            let of = whole.statistics.iter().filter(|((_, of, _), _)| *of == dimension);
            let mut sum = Measures::default();
            of.for_each(|(_, measures)| sum.merge(measures));
            let runs = sum.runtime.histogram.count();
            prop_assert_eq!((sum.counts.get(Transition::Succeeded), runs), (succeeded as i64, succeeded as i64));
            prop_assert_eq!(sum.wait.histogram.count(), sum.counts.get(Transition::Started));
        }
        let failed = whole.states.values().filter(|state| *state == "FAILURE").count();
        prop_assert!(failed > 0);
        prop_assert_eq!(whole.failures.values().map(|(failed, _)| *failed).sum::<i64>(), failed as i64);
    }
}
