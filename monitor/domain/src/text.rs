//! Text that Postgres takes, and names that an index takes.

use std::borrow::Cow;

use xxhash_rust::xxh3::xxh3_128;

/// Stands for each character that Postgres `text` cannot hold.
pub(crate) const REPLACEMENT: char = '\u{FFFD}';
/// Bytes of a name (task, queue, worker, id …). An index entry of Postgres may have 2,700.
pub(crate) const NAME_BYTES: usize = 255;

/// Returns the largest char boundary of `text` at or below `at`.
pub(crate) fn boundary(text: &str, at: usize) -> usize {
    if at >= text.len() {
        return text.len();
    }
    (0..=at).rev().find(|&index| text.is_char_boundary(index)).unwrap_or(0)
}

/// Returns the smallest char boundary of `text` at or above `at`.
pub(crate) fn boundary_above(text: &str, at: usize) -> usize {
    (at..text.len())
        .find(|&index| text.is_char_boundary(index))
        .unwrap_or(text.len())
}

/// Returns `text` without NUL; says whether there was one.
pub(crate) fn without_nul(text: Cow<'_, str>) -> (Cow<'_, str>, bool) {
    if text.as_bytes().contains(&0) {
        (text.replace('\0', "\u{FFFD}").into(), true)
    } else {
        (text, false)
    }
}

/// Returns a name of at most [`NAME_BYTES`]. A longer one keeps its head and ends in a hash of the whole, so that two long
/// names stay two names; `None` if the name already fits.
pub(crate) fn shortened_name(name: &str) -> Option<String> {
    if name.len() <= NAME_BYTES {
        return None;
    }
    let hash = format!("~{:032x}", xxh3_128(name.as_bytes()));
    let head = boundary(name, NAME_BYTES - hash.len());
    Some(format!("{}{hash}", name.get(..head).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_shortened_and_stay_distinct() {
        let (a, b) = ("ä".repeat(5_000), format!("{}b", "ä".repeat(5_000)));
        let (short_a, short_b) = (shortened_name(&a).unwrap(), shortened_name(&b).unwrap());
        assert!(short_a.len() <= NAME_BYTES && short_b.len() <= NAME_BYTES);
        assert_ne!(short_a, short_b);
        assert_eq!(shortened_name("celery"), None);
    }
}
