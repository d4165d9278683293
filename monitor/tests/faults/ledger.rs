//! What was published, beside what is stored.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::rig::Rig;

/// Missing or doubled events that a failure shows.
const SHOWN: usize = 10;

/// Microseconds that an event may be on its way over a link that is slow or silent; gaps are told by times of arrival.
pub(crate) const ON_ITS_WAY: i64 = 8_000_000;

/// Which event it is: task, type, the worker's clock.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Identity(String, String, u64);

impl Identity {
    fn task(&self) -> &str {
        &self.0
    }
}

/// How an event was published.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    /// Before it was handed to the broker: microseconds since 1970.
    pub(crate) from: i64,
    /// When the broker had confirmed it, or was given up.
    pub(crate) to: i64,
    /// The broker said that it has it.
    pub(crate) confirmed: bool,
}

/// Every event that was published.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    sent: HashMap<Identity, Sent>,
}

/// When what was published that is stored, and that is missing although it was confirmed: before and after it was handed
/// over. Events of one turn of the publisher share their times.
#[derive(Debug, Default)]
pub(crate) struct Fates {
    pub(crate) heard: BTreeSet<(i64, i64)>,
    pub(crate) lost: BTreeSet<(i64, i64)>,
}

/// What must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// Everything, and no gap is told of.
    Exact,
    /// Everything that was not published within a gap that the monitor has told of.
    OutsideGaps,
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Report {
    published: usize,
    unconfirmed: usize,
    stored: usize,
    missing: usize,
    /// Stored, though a gap said that they may be missing.
    spared: usize,
    gaps: usize,
    /// How often there is each cause.
    causes: String,
    gap_seconds: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} events published ({} without an answer), {} stored, none twice, {} missing; {} gaps ({}), {:.1} s, {} events of them stored",
            self.published,
            self.unconfirmed,
            self.stored,
            self.missing,
            self.gaps,
            self.causes,
            self.gap_seconds,
            self.spared
        )
    }
}

impl Ledger {
    /// Notes the events of a message.
    pub(crate) fn add(&mut self, body: &str, sent: Sent) -> Result<()> {
        let message: Value = serde_json::from_str(body)?;
        let events = message.as_array().map_or(std::slice::from_ref(&message), Vec::as_slice);
        for event in events {
            let id = event["uuid"].as_str().context("an event without a task")?;
            self.sent.insert(identity(id, event)?, sent);
        }
        Ok(())
    }

    /// Compares with the store. `explain` judges the gaps by what became of everything.
    pub(crate) fn compare(
        &self,
        rig: &Rig,
        promise: Promise,
        explain: impl FnOnce(&Gaps, &Fates) -> Result<()>,
    ) -> Result<Report> {
        let stored = stored(rig)?;
        let gaps = Gaps::read(rig)?;
        let doubled: Vec<_> = stored.iter().filter(|(_, count)| **count > 1).take(SHOWN).collect();
        ensure!(doubled.is_empty(), "stored more than once: {doubled:?}");
        let unknown: Vec<_> = stored
            .keys()
            .filter(|id| !self.sent.contains_key(id))
            .take(SHOWN)
            .collect();
        ensure!(unknown.is_empty(), "stored, but never published: {unknown:?}");
        let missing: BTreeMap<_, _> = self
            .sent
            .iter()
            .filter(|(id, sent)| sent.confirmed && !stored.contains_key(id))
            .collect();
        let unexplained: Vec<_> = missing
            .iter()
            .filter(|(_, sent)| promise == Promise::Exact || !gaps.touch(sent))
            .collect();
        ensure!(
            unexplained.is_empty(),
            "{} events are missing, for example {:?}; gaps: {:?}",
            unexplained.len(),
            unexplained.iter().take(SHOWN).collect::<Vec<_>>(),
            gaps.0
        );
        let span = |sent: &Sent| (sent.from, sent.to);
        let fates = Fates {
            heard: stored.keys().filter_map(|id| self.sent.get(id)).map(span).collect(),
            lost: missing.values().copied().map(span).collect(),
        };
        explain(&gaps, &fates)?;
        ensure!(
            promise == Promise::OutsideGaps || gaps.0.is_empty(),
            "nothing may be missing, but gaps are told of: {gaps:?}"
        );
        let incomplete: HashSet<&str> = self
            .sent
            .keys()
            .filter(|id| !stored.contains_key(id))
            .map(Identity::task)
            .collect();
        check_rows(rig, &stored, &incomplete)?;
        Ok(Report {
            published: self.sent.len(),
            unconfirmed: self.sent.values().filter(|sent| !sent.confirmed).count(),
            stored: stored.len(),
            missing: missing.len(),
            spared: stored
                .keys()
                .filter(|id| self.sent.get(id).is_some_and(|sent| gaps.touch(sent)))
                .count(),
            gaps: gaps.0.len(),
            causes: gaps.causes(),
            gap_seconds: gaps.seconds(),
        })
    }
}

fn identity(id: &str, event: &Value) -> Result<Identity> {
    let kind = event["type"].as_str().context("an event without a type")?;
    let clock = event["clock"].as_u64().context("an event without a clock")?;
    Ok(Identity(id.to_owned(), kind.to_owned(), clock))
}

/// Returns how often each event is stored.
fn stored(rig: &Rig) -> Result<HashMap<Identity, u32>> {
    let mut found = HashMap::new();
    for (id, events) in rig.chunks("true")? {
        for event in serde_json::from_str::<Vec<Value>>(&events)? {
            // What the monitor found out itself was not published.
            if event["type"].as_str().is_none_or(|kind| kind.starts_with("kanchi-")) {
                continue;
            }
            *found.entry(identity(&id, &event)?).or_default() += 1;
        }
    }
    Ok(found)
}

/// Each task has one row, and its state is that of its last event; where some are missing, that cannot be said.
fn check_rows(rig: &Rig, stored: &HashMap<Identity, u32>, incomplete: &HashSet<&str>) -> Result<()> {
    let live = rig.sql("select task_id, state from kanchi.task_live")?;
    let history = rig.sql("select task_id, state from kanchi.task")?;
    let (mut states, mut incomplete) = (states_of(&live)?, incomplete.clone());
    for (id, state) in states_of(&history)? {
        // What comes late for a task of history waits in the live table for some minutes until it is merged.
        if states.insert(id, state).is_some() {
            incomplete.insert(id);
        }
    }
    let tasks: BTreeSet<&str> = stored.keys().map(Identity::task).collect();
    let rows: BTreeSet<&str> = states.keys().copied().collect();
    ensure!(
        rows == tasks,
        "{} tasks have events, {} have rows",
        tasks.len(),
        rows.len()
    );
    for Identity(id, kind, _) in stored.keys() {
        let ended = match kind.as_str() {
            "task-succeeded" => "SUCCESS",
            "task-failed" => "FAILURE",
            "task-revoked" => "REVOKED",
            "task-rejected" => "REJECTED",
            _ => continue,
        };
        let state = states.get(id.as_str()).copied().unwrap_or_default();
        if state != ended && !incomplete.contains(id.as_str()) {
            let events = rig.chunks(&format!("task_id = '{id}'"))?;
            bail!("task {id} is {state}, but its {kind} is stored: {events:?}");
        }
    }
    Ok(())
}

fn states_of(rows: &str) -> Result<BTreeMap<&str, &str>> {
    let mut states = BTreeMap::new();
    for row in rows.lines() {
        let (id, state) = row.split_once('|').context("a row without a state")?;
        ensure!(
            states.insert(id, state).is_none(),
            "task {id} has two rows in one table"
        );
    }
    Ok(states)
}

/// A span of time of which the monitor says that events may be missing: microseconds since 1970.
#[derive(Clone, Debug)]
pub(crate) struct Gap {
    /// The last moment known to be complete.
    pub(crate) from: i64,
    /// The first moment known to be complete again.
    pub(crate) to: i64,
    pub(crate) cause: String,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Gaps(pub(crate) Vec<Gap>);

impl Gaps {
    fn read(rig: &Rig) -> Result<Self> {
        let micros = |column: &str| format!("(extract(epoch from {column}) * 1000000)::bigint");
        let rows = rig.sql(&format!(
            "select {}, coalesce({}, {}), cause from kanchi.gap order by 1",
            micros("from_at"),
            micros("to_at"),
            micros("now()")
        ))?;
        let gap = |row: &str| {
            let mut columns = row.split('|');
            Some(Gap {
                from: columns.next()?.parse().ok()?,
                to: columns.next()?.parse().ok()?,
                cause: columns.next()?.to_owned(),
            })
        };
        let gaps: Option<Vec<_>> = rows.lines().map(gap).collect();
        Ok(Self(gaps.context("a gap that cannot be read")?))
    }

    /// Says whether an event may have been published within a gap, which is told by times of arrival.
    fn touch(&self, sent: &Sent) -> bool {
        let within = |gap: &Gap| sent.from <= gap.to && sent.to + ON_ITS_WAY >= gap.from;
        self.0.iter().any(within)
    }

    /// Returns how often there is each cause.
    fn causes(&self) -> String {
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        for gap in &self.0 {
            *counts.entry(&gap.cause).or_default() += 1;
        }
        let counts: Vec<String> = counts.iter().map(|(cause, count)| format!("{cause} {count}")).collect();
        counts.join(", ")
    }

    fn seconds(&self) -> f64 {
        self.0.iter().map(|gap| gap.to - gap.from).sum::<i64>() as f64 / 1e6
    }
}
