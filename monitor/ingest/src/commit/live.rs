//! Which tasks may have a live row: spares the store a look-up for each new task. Pure.
//!
//! Only this process adds live rows, so a set that was loaded once in its epoch stays complete when it is told of each row
//! added: also one loaded beside the end of a batch, whose rows are added right after, and whose tasks are known until then. Rows
//! that settle are not taken out: that costs a look-up, never a wrong row. When the set has doubled, or its
//! table is full, it is loaded anew.

use std::time::{Duration, Instant};

use foldhash::HashSet;
use foldhash::fast::RandomState;
use xxhash_rust::xxh3::xxh3_64;

/// Live tasks that are remembered; beyond it every task is looked up. With [`SPARE`] and two batches they fit into [`TABLE`].
pub const MAX_LIVE: u32 = 200_000;

/// Ids that fit into a table of 2^18 places, seven of eight, and 2.4 MiB.
const TABLE: usize = (1 << 18) / 8 * 7;

/// More than fit that may be remembered until the set is loaded anew.
const SPARE: usize = 12_000;

/// The set is loaded anew when it has doubled or its table is full, but not before it has grown by so many, if there is room.
const GROWTH: usize = 50_000;

/// A set that did not fit is tried again after this.
const TRY_AGAIN: Duration = Duration::from_mins(5);

/// Hashes of the ids of live tasks: 64 bits, so that no two of so many are alike.
#[derive(Debug, Default)]
pub struct LiveIds {
    /// `None`: any task may be live.
    known: Option<HashSet<u64>>,
    reload_at: usize,
    failed: Option<Instant>,
}

impl LiveIds {
    /// Tells whether the set should be loaded before the next batch.
    pub fn is_due(&self, now: Instant) -> bool {
        match &self.known {
            Some(known) => known.len() >= self.reload_at,
            None => self.failed.is_none_or(|failed| now - failed >= TRY_AGAIN),
        }
    }

    /// Takes what was loaded: the ids of at most one more than [`MAX_LIVE`] tasks, or else there are too many.
    pub fn load(&mut self, loaded: LoadedIds, now: Instant) {
        let fits = loaded.0.len() <= MAX_LIVE as usize;
        self.failed = (!fits).then_some(now);
        let doubled = loaded.0.len() + loaded.0.len().max(GROWTH);
        self.reload_at = doubled.min(MAX_LIVE as usize + SPARE);
        self.known = fits.then_some(loaded.0);
    }

    /// Tells whether a task may have a live row.
    pub fn may_hold(&self, id: &str) -> bool {
        self.known.as_ref().is_none_or(|known| known.contains(&hash(id)))
    }

    /// These have a live row now.
    pub fn add<'a>(&mut self, ids: impl IntoIterator<Item = &'a str>) {
        if let Some(known) = self.known.as_mut() {
            for id in ids {
                make_room(known);
                known.insert(hash(id));
            }
        }
    }

    /// These have none any more.
    pub fn remove<'a>(&mut self, ids: impl IntoIterator<Item = &'a str>) {
        if let Some(known) = self.known.as_mut() {
            for id in ids {
                known.remove(&hash(id));
            }
        }
    }

    /// It is not known any more what was added.
    pub fn forget(&mut self) {
        self.known = None;
        self.failed = None;
    }
}

/// Where ids come and go, the places of those that went are used up: a table that is more than half full then doubles. It is made
/// anew instead, as large as it was.
fn make_room(known: &mut HashSet<u64>) {
    let (held, more) = (known.len(), known.len() / 4);
    if held == known.capacity() && (TABLE / 2..TABLE).contains(&held) {
        let mut fresh = HashSet::with_capacity_and_hasher((held + more).min(TABLE), RandomState::default());
        fresh.extend(known.drain());
        *known = fresh;
    }
}

/// Ids on their way from the store.
#[derive(Debug, Default)]
pub struct LoadedIds(HashSet<u64>);

impl LoadedIds {
    /// Adds one.
    pub fn push(&mut self, id: &str) {
        self.0.insert(hash(id));
    }
}

pub(super) fn hash(id: &str) -> u64 {
    xxh3_64(id.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(count: usize) -> LoadedIds {
        let mut loaded = LoadedIds::default();
        (0..count).for_each(|number| loaded.push(&number.to_string()));
        loaded
    }

    #[test]
    fn any_task_may_be_live_until_all_are_known() {
        let (mut live, now) = (LiveIds::default(), Instant::now());
        assert!(live.may_hold("x") && live.is_due(now));
        live.load(loaded(3), now);
        assert!(live.may_hold("2") && !live.may_hold("x") && !live.is_due(now));
        live.add(["x"]);
        assert!(live.may_hold("x"));
        live.remove(["2"]);
        assert!(!live.may_hold("2"));
        live.forget();
        assert!(live.may_hold("y") && live.is_due(now));
    }

    #[test]
    fn is_loaded_anew_when_it_has_doubled() {
        let (mut live, now) = (LiveIds::default(), Instant::now());
        live.load(loaded(60_000), now);
        let names: Vec<String> = (0..60_000).map(|number| format!("new-{number}")).collect();
        live.add(names.iter().take(59_999).map(String::as_str));
        assert!(!live.is_due(now));
        live.add(names.iter().map(String::as_str));
        assert!(live.is_due(now));
    }

    #[test]
    fn is_loaded_anew_when_its_table_is_full() {
        let (mut live, now) = (LiveIds::default(), Instant::now());
        let most = MAX_LIVE as usize;
        live.load(loaded(most), now);
        let names: Vec<String> = (0..SPARE).map(|number| format!("new-{number}")).collect();
        live.add(names.iter().skip(1).map(String::as_str));
        assert!(!live.is_due(now));
        live.add(names.iter().map(String::as_str));
        assert!(live.is_due(now));
    }

    #[test]
    fn too_many_are_not_remembered_and_asked_for_again_later() {
        let (mut live, now) = (LiveIds::default(), Instant::now());
        live.load(loaded(MAX_LIVE as usize + 1), now);
        assert!(live.may_hold("x") && !live.is_due(now) && live.is_due(now + TRY_AGAIN));
    }

    #[test]
    fn does_not_grow_where_as_many_tasks_end_as_begin() {
        let (mut live, now) = (LiveIds::default(), Instant::now());
        let held = 130_000;
        live.load(loaded(held), now);
        for number in 0..400_000 {
            live.remove([number.to_string().as_str()]);
            live.add([(number + held).to_string().as_str()]);
        }
        let sizes = live.known.map(|known| (known.len(), known.capacity() <= TABLE));
        assert_eq!(sizes, Some((held, true)));
    }
}
