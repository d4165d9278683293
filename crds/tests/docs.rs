//! `docs/runbooks.md` has a section for every condition and every reason, and none for anything else.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;

use kanchi_crds::{ConditionType, Reason};

fn headings(mark: &str) -> BTreeSet<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/runbooks.md");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .filter_map(|line| line.strip_prefix(mark))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_reason_has_a_runbook_and_every_runbook_a_reason() {
    let reasons: BTreeSet<String> = Reason::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(headings("### "), reasons);
}

#[test]
fn every_condition_has_a_chapter() {
    let mut conditions: BTreeSet<String> = ConditionType::ALL.iter().map(ToString::to_string).collect();
    conditions.insert("Alerts".into());
    assert_eq!(headings("## "), conditions);
}
