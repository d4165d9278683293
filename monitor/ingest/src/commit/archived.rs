//! Which tasks may have a row in recent history: spares the store a look-up for each task that ends. Pure.
//!
//! Only this process adds rows of history in its epoch, so filters that are told of each task before it ends or settles in the store
//! miss none of them; those of earlier processes are loaded piece by piece, and until that is done any task may have a row. A task that is
//! found here is looked up, so one that is found by chance costs time, never a wrong row.

use std::collections::VecDeque;

use kanchi_store::{LiveTask, UnixMicros};

use crate::commit::live::hash;

/// Ids in one filter.
const IDS: usize = 180_000;

/// Filters at most, the last 0.7 million tasks and 2 MiB: the oldest makes room. An id is found by chance in one of 600 cases; with twice
/// the ids it would be one of forty, each of which costs a read in every generation of the last hours.
const FILTERS: usize = 4;

/// Blocks of a filter, 512 KiB: 23 bits an id.
const BLOCKS: usize = 1 << 13;

/// Bits of an id, all in one block.
const BITS: u32 = 5;

/// Ids that are loaded at once.
pub const PIECE: u32 = 20_000;

/// Hashes of the ids of tasks that ended lately.
#[derive(Debug, Default)]
pub struct ArchivedIds {
    /// Of this process, the newest last.
    own: VecDeque<Filter>,
    /// Of those before it, the newest first.
    earlier: Vec<Filter>,
    loading: Loading,
}

/// How far those of earlier processes are loaded.
#[derive(Clone, Copy, Debug, Default)]
enum Loading {
    #[default]
    NotBegun,
    /// Those that ended later are there.
    Until(UnixMicros),
    Done,
    /// There are too many of which no end is known, or the store takes too long to tell.
    Never,
}

/// Which piece is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Tasks of which no end is known.
    WithoutEnd,
    /// Those that ended last before a moment.
    EndedBefore(UnixMicros),
}

/// Ids on their way from the store.
#[derive(Debug, Default)]
pub struct LoadedPiece {
    hashes: Vec<u64>,
    /// When the last of them ended.
    last: Option<UnixMicros>,
}

impl LoadedPiece {
    /// Adds one.
    pub fn push(&mut self, id: &str, ended: Option<UnixMicros>) {
        self.hashes.push(hash(id));
        self.last = ended;
    }
}

impl ArchivedIds {
    /// These tasks ended, or are in history.
    pub fn add<'a>(&mut self, ids: impl IntoIterator<Item = &'a str>) {
        for id in ids {
            let hash = hash(id);
            // Again and again, where settling fails.
            if self.own.back().is_some_and(|newest| newest.may_hold(hash)) {
                continue;
            }
            if self.own.back().is_none_or(Filter::is_full) {
                if self.own.len() + self.earlier.len() >= FILTERS && self.earlier.pop().is_none() {
                    self.own.pop_front();
                }
                self.own.push_back(Filter::new());
            }
            if let Some(newest) = self.own.back_mut() {
                newest.add(hash);
            }
        }
    }

    /// Tells whether recent history may have a row of a task.
    pub fn may_hold(&self, id: &str) -> bool {
        let hash = hash(id);
        !matches!(self.loading, Loading::Done)
            || self.own.iter().chain(&self.earlier).any(|filter| filter.may_hold(hash))
    }

    /// Says of the tasks of a batch that end with it which need not be looked up.
    pub fn mark(&self, tasks: &mut [LiveTask]) {
        for task in tasks.iter_mut().filter(|task| task.ended.is_some()) {
            task.maybe_archived = self.may_hold(&task.task_id);
        }
    }

    /// Returns what is to be loaded next.
    pub const fn wanted(&self) -> Option<Piece> {
        match self.loading {
            Loading::NotBegun => Some(Piece::WithoutEnd),
            Loading::Until(until) => Some(Piece::EndedBefore(until)),
            Loading::Done | Loading::Never => None,
        }
    }

    /// They cannot be loaded: any task may have a row from now on.
    pub const fn give_up(&mut self) {
        self.loading = Loading::Never;
    }

    /// Takes a piece that was [`wanted`](Self::wanted), if it still is; one with fewer than [`PIECE`] ids is the last.
    pub fn load(&mut self, piece: Piece, loaded: &LoadedPiece) {
        if self.wanted() != Some(piece) {
            return;
        }
        let is_last = loaded.hashes.len() < PIECE as usize;
        self.loading = match (piece, loaded.last) {
            (Piece::WithoutEnd, _) if !is_last => Loading::Never,
            (Piece::WithoutEnd, _) => Loading::Until(UnixMicros(i64::MAX)),
            (Piece::EndedBefore(before), Some(last)) if !is_last => {
                // Also past thousands that ended in one moment.
                Loading::Until(UnixMicros(last.0.min(before.0.saturating_sub(1))))
            }
            (Piece::EndedBefore(_), _) => Loading::Done,
        };
        for hash in &loaded.hashes {
            if self.earlier.last().is_none_or(Filter::is_full) {
                if self.own.len() + self.earlier.len() >= FILTERS {
                    // As many as are remembered; those before them were longer ago.
                    self.loading = Loading::Done;
                    return;
                }
                self.earlier.push(Filter::new());
            }
            if let Some(oldest) = self.earlier.last_mut() {
                oldest.add(*hash);
            }
        }
    }
}

/// A Bloom filter whose bits of an id are in one cache line.
#[derive(Debug)]
struct Filter {
    blocks: Vec<[u64; 8]>,
    ids: usize,
}

impl Filter {
    fn new() -> Self {
        Self {
            blocks: vec![[0; 8]; BLOCKS],
            ids: 0,
        }
    }

    const fn is_full(&self) -> bool {
        self.ids >= IDS
    }

    fn add(&mut self, hash: u64) {
        if let Some(block) = self.blocks.get_mut(block_of(hash)) {
            for (word, mask) in bits_of(hash) {
                if let Some(word) = block.get_mut(word) {
                    *word |= mask;
                }
            }
        }
        self.ids += 1;
    }

    fn may_hold(&self, hash: u64) -> bool {
        let block = self.blocks.get(block_of(hash));
        block
            .is_some_and(|block| bits_of(hash).all(|(word, mask)| block.get(word).is_some_and(|word| word & mask != 0)))
    }
}

/// The highest bits of the hash choose the block.
const fn block_of(hash: u64) -> usize {
    (hash >> (u64::BITS - BLOCKS.trailing_zeros())) as usize
}

/// Nine of the other bits each choose a bit of the 512.
fn bits_of(hash: u64) -> impl Iterator<Item = (usize, u64)> {
    (0..BITS).map(move |number| {
        let bit = (hash >> (9 * number)) & 511;
        ((bit >> 6) as usize, 1 << (bit & 63))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(from: usize, count: usize) -> Vec<String> {
        (from..from + count).map(|number| number.to_string()).collect()
    }

    fn names(ids: &[String]) -> impl Iterator<Item = &str> {
        ids.iter().map(String::as_str)
    }

    fn piece(ids: &[String], last: i64) -> LoadedPiece {
        let mut loaded = LoadedPiece::default();
        for id in ids {
            loaded.push(id, Some(UnixMicros(last)));
        }
        loaded
    }

    /// Nothing was stored before.
    fn fresh() -> ArchivedIds {
        let mut archived = ArchivedIds::default();
        for expected in [Piece::WithoutEnd, Piece::EndedBefore(UnixMicros(i64::MAX))] {
            assert_eq!(archived.wanted(), Some(expected));
            assert!(archived.may_hold("anything"), "nobody knows yet");
            archived.load(expected, &LoadedPiece::default());
        }
        assert_eq!(archived.wanted(), None);
        archived
    }

    #[test]
    fn none_that_was_added_is_missed_and_few_others_are_found() {
        let mut archived = fresh();
        let added = ids(0, FILTERS * IDS);
        archived.add(names(&added));
        assert!(names(&added).all(|id| archived.may_hold(id)));
        let by_chance = names(&ids(10_000_000, 100_000))
            .filter(|id| archived.may_hold(id))
            .count();
        assert!(by_chance < 300, "{by_chance} of 100,000");
    }

    #[test]
    fn the_oldest_make_room_those_of_earlier_processes_first() {
        let mut archived = ArchivedIds::default();
        archived.load(Piece::WithoutEnd, &LoadedPiece::default());
        let (newer, older) = (ids(0, IDS), ids(IDS, PIECE as usize - 1));
        for (number, some) in (0..).zip(newer.chunks(PIECE as usize)) {
            let wanted = archived.wanted().unwrap();
            archived.load(wanted, &piece(some, 100 - number));
        }
        let wanted = archived.wanted().unwrap();
        archived.load(wanted, &piece(&older, 5));
        assert_eq!((archived.wanted(), archived.earlier.len()), (None, 2));
        let own = ids(10_000_000, (FILTERS - 1) * IDS);
        archived.add(names(&own));
        let held = |archived: &ArchivedIds, ids: &[String]| names(ids).filter(|id| archived.may_hold(id)).count();
        assert_eq!(held(&archived, &own), own.len());
        assert_eq!(held(&archived, &newer), newer.len());
        assert!(held(&archived, &older) < older.len() / 10, "they ended first");
        archived.add(names(&ids(20_000_000, 2 * IDS)));
        assert!(held(&archived, &newer) < newer.len() / 10);
        assert!(held(&archived, &own[..IDS]) < IDS / 10);
        // A filter has a few more, which it seemed to have already.
        let rest = &own[IDS + IDS / 50..];
        assert_eq!(held(&archived, rest), rest.len());
    }

    #[test]
    fn it_is_loaded_from_the_newest_on_until_there_is_no_more_or_no_room() {
        let mut archived = ArchivedIds::default();
        archived.load(Piece::WithoutEnd, &piece(&ids(0, 3), 0));
        let full = ids(100, PIECE as usize);
        archived.load(Piece::EndedBefore(UnixMicros(i64::MAX)), &piece(&full, 70));
        assert_eq!(archived.wanted(), Some(Piece::EndedBefore(UnixMicros(70))));
        archived.load(Piece::EndedBefore(UnixMicros(70)), &piece(&full, 70));
        assert_eq!(
            archived.wanted(),
            Some(Piece::EndedBefore(UnixMicros(69))),
            "no progress, no end"
        );
        assert!(archived.may_hold("anything"));
        archived.load(Piece::EndedBefore(UnixMicros(69)), &piece(&full[1..], 50));
        assert_eq!(archived.wanted(), None);
        assert!(archived.may_hold("0") && archived.may_hold("100") && !archived.may_hold("anything"));

        let mut archived = ArchivedIds::default();
        archived.load(Piece::WithoutEnd, &LoadedPiece::default());
        let mut pieces = 0;
        while let Some(wanted) = archived.wanted() {
            archived.load(wanted, &piece(&full, -pieces));
            pieces += 1;
        }
        assert!((30..=40).contains(&pieces), "{pieces}");

        let mut archived = ArchivedIds::default();
        archived.load(Piece::WithoutEnd, &piece(&full, 0));
        assert!(archived.wanted().is_none() && archived.may_hold("anything"), "too many");

        let mut archived = fresh();
        assert!(!archived.may_hold("anything"));
        archived.give_up();
        assert!(archived.wanted().is_none() && archived.may_hold("anything"));
    }
}
