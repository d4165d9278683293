//! What a round of repairs found, for each of its gaps. Pure.

use std::collections::BTreeMap;

use kanchi_domain::{RecordFault, UnixMicros};
use kanchi_store::{GapRepair, GapRow, PendingGap};

/// Everything was asked that can be.
pub(super) const DONE: &str = "Done";
/// Something was not asked, or could not be read; the note says what.
pub(super) const PARTIAL: &str = "Partial";
/// Nothing was found out.
pub(super) const GIVEN_UP: &str = "GivenUp";

/// Clocks of workers and ours: a task that ended so long before a gap, or after it, may have ended in it.
const SKEW_MICROS: i64 = 2_000_000;

/// What was found so far.
#[derive(Debug)]
pub(super) struct Findings {
    gaps: Vec<(GapRow, GapRepair)>,
    /// Tasks that neither the result backend nor a worker knows.
    pub(super) unknown: u64,
    faults: BTreeMap<RecordFault, u64>,
    pub(super) too_large: u64,
    /// Records that the scan could not read: of which time they are cannot be told.
    pub(super) unread: u64,
    notes: Vec<String>,
    /// Nobody could be asked at all.
    pub(super) nobody: bool,
}

impl Findings {
    /// Begins with nothing. `gaps` are sorted by their begin.
    pub(super) fn new(gaps: &[PendingGap]) -> Self {
        Self {
            gaps: gaps
                .iter()
                .map(|pending| (pending.gap.clone(), GapRepair::default()))
                .collect(),
            unknown: 0,
            faults: BTreeMap::new(),
            too_large: 0,
            unread: 0,
            notes: Vec::new(),
            nobody: false,
        }
    }

    /// When the first of the gaps began.
    pub(super) fn from(&self) -> UnixMicros {
        self.gaps.first().map_or(UnixMicros(0), |(gap, _)| gap.from)
    }

    /// The end of a task was found that the store did not know.
    pub(super) fn repaired(&mut self, at: UnixMicros) {
        let place = self.gap_at(at).unwrap_or(self.gaps.len().saturating_sub(1));
        if let Some((_, repair)) = self.gaps.get_mut(place) {
            repair.repaired += 1;
        }
    }

    /// A task was found of which nothing was known.
    pub(super) fn found(&mut self, at: UnixMicros) {
        if let Some((_, repair)) = self.gap_at(at).and_then(|place| self.gaps.get_mut(place)) {
            repair.found += 1;
        }
    }

    /// Tells whether a task that ended then may have ended in one of the gaps.
    pub(super) fn covers(&self, at: UnixMicros) -> bool {
        self.gap_at(at).is_some()
    }

    fn gap_at(&self, at: UnixMicros) -> Option<usize> {
        let covers = |gap: &GapRow, skew: i64| {
            let to = gap.to.unwrap_or(gap.from);
            (gap.from.0.saturating_sub(skew)..=to.0.saturating_add(skew)).contains(&at.0)
        };
        let place = |skew: i64| self.gaps.iter().position(|(gap, _)| covers(gap, skew));
        place(0).or_else(|| place(SKEW_MICROS))
    }

    /// A record could not be read.
    pub(super) fn fault(&mut self, fault: RecordFault) {
        *self.faults.entry(fault).or_default() += 1;
    }

    /// Something was not asked, or not to its end.
    pub(super) fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// Returns what the repair of each gap came to. Tasks that stay unknown count for the newest: they may have ended in any.
    pub(super) fn repairs(self) -> Vec<(GapRow, GapRepair)> {
        let outcome = self.outcome();
        let note = self.text();
        let newest = self.gaps.len().saturating_sub(1);
        let unknown = self.unknown;
        let mut gaps = self.gaps;
        for (place, (_, repair)) in gaps.iter_mut().enumerate() {
            outcome.clone_into(&mut repair.outcome);
            repair.unknown = if place == newest { unknown } else { 0 };
            repair.note.clone_from(&note);
        }
        gaps
    }

    fn outcome(&self) -> &'static str {
        if self.nobody {
            GIVEN_UP
        } else if self.text().is_none() {
            DONE
        } else {
            PARTIAL
        }
    }

    fn text(&self) -> Option<String> {
        let faults = self
            .faults
            .iter()
            .map(|(fault, count)| format!("{count} records could not be read ({})", fault.as_str()));
        let large = (self.too_large > 0).then(|| format!("{} records are larger than 1 MiB", self.too_large));
        let unread = (self.unread > 0).then(|| format!("{} records of unknown time could not be read", self.unread));
        let parts: Vec<String> = self
            .notes
            .iter()
            .cloned()
            .chain(faults)
            .chain(large)
            .chain(unread)
            .collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const SECOND: i64 = 1_000_000;

    fn gap(from: i64, to: i64) -> PendingGap {
        PendingGap {
            gap: GapRow {
                id: Uuid::from_u128(u128::try_from(from).unwrap()),
                from: UnixMicros(from * SECOND),
                to: Some(UnixMicros(to * SECOND)),
                cause: "MonitorRestart".into(),
                estimated_events: None,
            },
            known_seconds: 0,
        }
    }

    fn at(second: i64) -> UnixMicros {
        UnixMicros(second * SECOND)
    }

    #[test]
    fn a_task_counts_for_the_gap_it_ended_in_and_else_for_the_newest() {
        let mut findings = Findings::new(&[gap(10, 20), gap(30, 40)]);
        findings.repaired(at(15));
        findings.repaired(at(5));
        findings.found(at(35));
        findings.found(at(25));
        findings.unknown = 3;
        let repairs: Vec<_> = findings
            .repairs()
            .into_iter()
            .map(|(_, repair)| {
                (
                    repair.outcome,
                    repair.repaired,
                    repair.found,
                    repair.unknown,
                    repair.note,
                )
            })
            .collect();
        assert_eq!(
            repairs,
            [("Done".to_owned(), 1, 0, 0, None), ("Done".to_owned(), 1, 1, 3, None)]
        );
    }

    #[test]
    fn clocks_may_differ_by_a_little() {
        let findings = Findings::new(&[gap(10, 20), gap(21, 40)]);
        assert!(findings.covers(at(9)) && findings.covers(at(42)));
        assert!(!findings.covers(at(7)) && !findings.covers(at(43)));
        assert_eq!(
            findings.gap_at(at(21)),
            Some(1),
            "inside one, although just after another"
        );
    }

    #[test]
    fn what_was_left_out_is_said() {
        let mut findings = Findings::new(&[gap(10, 20)]);
        findings.note("the scan ended after 60 s".into());
        findings.fault(RecordFault::Pickle);
        findings.fault(RecordFault::Pickle);
        findings.too_large = 1;
        findings.unread = 4;
        let (_, repair) = findings.repairs().remove(0);
        assert_eq!(repair.outcome, PARTIAL);
        assert_eq!(
            repair.note.as_deref(),
            Some(
                "the scan ended after 60 s; 2 records could not be read (pickle); 1 records are larger than 1 MiB; \
                 4 records of unknown time could not be read"
            )
        );
    }

    #[test]
    fn a_gap_of_which_nobody_can_tell_is_given_up() {
        let mut findings = Findings::new(&[gap(10, 20)]);
        findings.nobody = true;
        assert_eq!(findings.repairs().remove(0).1.outcome, GIVEN_UP);
    }
}
