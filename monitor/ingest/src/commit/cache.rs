//! A map that forgets what was not used for long, bounded in bytes.
//!
//! Two generations instead of a linked list: what is used moves into the young one; when that has taken half of the
//! budget it becomes the old one and the former old one is dropped. It is what keeps the facts of recent tasks in memory;
//! an entry that is forgotten costs one look-up in the store, never a wrong row.

use std::mem;
use std::sync::Arc;

use foldhash::HashMap;

/// Bytes that an entry takes besides its key and value: two words of the map, its control byte, allocator slack.
const ENTRY_OVERHEAD: usize = 96;

/// Says how much memory a value holds.
pub trait Weigh {
    /// Returns the bytes on the heap.
    fn weight(&self) -> usize;
}

/// The map; keys are task ids.
#[derive(Debug)]
pub struct Cache<V> {
    young: HashMap<Arc<str>, V>,
    old: HashMap<Arc<str>, V>,
    young_bytes: usize,
    old_bytes: usize,
    budget: usize,
}

impl<V: Weigh> Cache<V> {
    /// Returns an empty cache that holds at most `budget` bytes.
    pub fn new(budget: usize) -> Self {
        Self {
            young: HashMap::default(),
            old: HashMap::default(),
            young_bytes: 0,
            old_bytes: 0,
            budget,
        }
    }

    /// Tells whether an entry is there.
    pub fn contains(&self, key: &str) -> bool {
        self.young.contains_key(key) || self.old.contains_key(key)
    }

    /// Takes an entry out; whoever takes it puts it back with what is counted on.
    pub fn take(&mut self, key: &str) -> Option<V> {
        if let Some((key, value)) = self.young.remove_entry(key) {
            self.young_bytes = self.young_bytes.saturating_sub(cost(&key, &value));
            return Some(value);
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.old_bytes = self.old_bytes.saturating_sub(cost(&key, &value));
        Some(value)
    }

    /// Puts an entry in; an entry larger than a quarter of the budget is not kept.
    pub fn put(&mut self, key: Arc<str>, value: V) {
        let bytes = cost(&key, &value);
        drop(self.take(&key));
        if bytes > self.budget / 4 {
            return;
        }
        if self.young_bytes + bytes > self.budget / 2 {
            // Swapped: the tables keep their size and need not grow again.
            mem::swap(&mut self.old, &mut self.young);
            self.young.clear();
            self.old_bytes = mem::take(&mut self.young_bytes);
        }
        self.young_bytes += bytes;
        self.young.insert(key, value);
    }

    /// Returns the bytes held.
    pub const fn bytes(&self) -> usize {
        self.young_bytes + self.old_bytes
    }

    /// Returns how many entries are held.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Tells whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.young = HashMap::default();
        self.old = HashMap::default();
        self.young_bytes = 0;
        self.old_bytes = 0;
    }
}

fn cost<V: Weigh>(key: &str, value: &V) -> usize {
    key.len() + value.weight() + size_of::<V>() + ENTRY_OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Blob(usize);

    impl Weigh for Blob {
        fn weight(&self) -> usize {
            self.0
        }
    }

    #[test]
    fn never_holds_more_than_its_budget() {
        let mut cache = Cache::new(64 * 1024);
        for number in 0..10_000 {
            cache.put(format!("task-{number}").into(), Blob(number % 1000));
            assert!(cache.bytes() <= 64 * 1024);
        }
        assert!(cache.len() > 20, "{}", cache.len());
    }

    #[test]
    fn keeps_what_is_used_and_forgets_what_is_not() {
        let mut cache = Cache::new(16 * 1024);
        cache.put("used".into(), Blob(100));
        cache.put("unused".into(), Blob(100));
        for number in 0..1000 {
            cache.put(format!("task-{number}").into(), Blob(100));
            let used = cache.take("used").expect("was used a moment ago");
            cache.put("used".into(), used);
        }
        assert!(cache.take("unused").is_none());
        assert!(cache.take("used").is_some());
    }

    #[test]
    fn counts_an_entry_once_however_often_it_is_replaced() {
        let mut cache = Cache::new(1024 * 1024);
        for size in 0..100 {
            cache.put("same".into(), Blob(size));
        }
        assert_eq!(cache.len(), 1);
        let bytes = cache.bytes();
        assert!(cache.take("same").is_some());
        assert!(bytes > 0 && cache.bytes() == 0 && cache.is_empty());
    }

    #[test]
    fn does_not_keep_an_entry_that_would_push_out_all_others() {
        let mut cache = Cache::new(4096);
        cache.put("small".into(), Blob(10));
        cache.put("huge".into(), Blob(100_000));
        assert!(cache.take("huge").is_none());
        assert!(cache.take("small").is_some());
    }
}
