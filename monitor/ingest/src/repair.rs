//! Repair of gaps: what became of tasks whose events were missed.
//!
//! A gap that has ended waits until all that came after it is read and stored. Then the live tasks that have not ended are
//! walked: what the result backend knows of them becomes an event of our own, of the rest the workers are asked; at last the
//! backend is scanned for tasks that lie wholly inside the gap. Those events go through the decoder and the batches like any
//! other, so that nothing is counted twice and a late event of Celery wins. A gap counts as repaired once they are stored:
//! what is cut short is done again, and finding a task twice is finding it once.

use std::sync::Arc;
use std::time::Duration;

use kanchi_broker::{Control, ResultError};
use kanchi_domain::UnixMicros;
use kanchi_store::{GapRepair, PendingGap};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::intake::own::Own;
use crate::settings::SettingsWatch;
use crate::shared::Shared;

mod desk;
mod findings;
mod round;

pub use desk::{Archive, Closed, Desk, desk};
use findings::Findings;
use round::Round;

/// How often it is looked whether there is anything to do; that costs nothing.
const TICK: Duration = Duration::from_secs(1);

/// After a gap's end what was on its way then is waited for: results are stored before the events about them are sent.
const SETTLE_MICROS: i64 = 5_000_000;

/// The first pause after a result backend could not be read, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_mins(5));

/// A gap that could not be repaired for so long is given up: Celery's results themselves expire after a day by default.
pub const GIVE_UP_SECONDS: u64 = 86_400;

/// A round takes no longer; it is broken off as a backend that is away would.
const ROUND_TIMEOUT: Duration = Duration::from_mins(30);

/// Why a round came to nothing.
#[derive(Debug)]
enum Trouble {
    /// The result backend was not read; free of credentials.
    Backend(String),
    /// It took too long.
    Slow,
    /// The monitor ends.
    Ends,
}

impl From<Closed> for Trouble {
    fn from(Closed: Closed) -> Self {
        Self::Ends
    }
}

impl From<ResultError> for Trouble {
    fn from(error: ResultError) -> Self {
        Self::Backend(error.to_string())
    }
}

/// Repairs the gaps of one broker.
#[derive(Debug)]
pub struct Repair {
    /// Shared state.
    pub shared: Arc<Shared>,
    /// Settings in force.
    pub settings: SettingsWatch,
    /// The remote-control client.
    pub control: Control,
    /// The store.
    pub archive: Archive,
    /// Where what is found goes.
    pub events: Own,
    /// Ends it.
    pub shutdown: CancellationToken,
}

/// When to look next.
#[derive(Debug)]
struct Agenda {
    /// Gaps that were stored when the store was asked last; `None`: it has not been asked.
    known: Option<u64>,
    /// Not before, although there is something to do.
    not_before: Instant,
    backoff: Backoff,
}

impl Repair {
    /// Runs until the token ends it.
    pub async fn run(mut self) {
        let mut agenda = Agenda {
            known: None,
            not_before: Instant::now(),
            backoff: Backoff::new(PAUSES.0, PAUSES.1),
        };
        let shutdown = self.shutdown.clone();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(TICK) => {}
            }
            if self.settings.has_changed().unwrap_or(false) {
                let spec = self.settings.borrow_and_update().broker.clone();
                self.control.reload(spec);
                // A backend that was wrong may be right now.
                agenda.not_before = Instant::now();
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                ended = self.turn(&mut agenda) => if ended.is_err() { return },
            }
        }
    }

    async fn turn(&self, agenda: &mut Agenda) -> Result<(), Closed> {
        let stored = self.shared.gaps_stored();
        if agenda.known == Some(stored) || Instant::now() < agenda.not_before || !self.shared.is_caught_up() {
            return Ok(());
        }
        let pending = self.archive.pending_gaps().await?;
        let now = self.shared.now();
        let (ripe, unripe): (Vec<PendingGap>, Vec<PendingGap>) =
            pending.into_iter().partition(|gap| self.is_ripe(gap, now));
        if ripe.is_empty() {
            if unripe.is_empty() {
                agenda.known = Some(stored);
            }
            return Ok(());
        }
        match self.round(&ripe, now).await {
            Ok(findings) => {
                agenda.backoff.reset();
                self.save(findings.repairs()).await
            }
            Err(Trouble::Ends) => Err(Closed),
            Err(Trouble::Backend(text)) => self.failed(agenda, &ripe, &text).await,
            Err(Trouble::Slow) => self.failed(agenda, &ripe, "the repair took too long").await,
        }
    }

    /// Tells whether all that came right after the gap is stored.
    fn is_ripe(&self, pending: &PendingGap, now: UnixMicros) -> bool {
        let Some(to) = pending.gap.to else { return false };
        let settled = now.0.saturating_sub(to.0) >= SETTLE_MICROS;
        settled
            && self
                .shared
                .is_stored_through(UnixMicros(to.0.saturating_add(SETTLE_MICROS)))
    }

    async fn round(&self, gaps: &[PendingGap], now: UnixMicros) -> Result<Findings, Trouble> {
        let settings = Arc::clone(&self.settings.borrow());
        let round = Round::new(self, &settings, gaps, now);
        match tokio::time::timeout(ROUND_TIMEOUT, round.run()).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(Trouble::Slow),
        }
    }

    /// The backend was not read: later again, except for gaps that have waited long enough.
    async fn failed(&self, agenda: &mut Agenda, gaps: &[PendingGap], text: &str) -> Result<(), Closed> {
        self.shared.metrics.gap_repair_failed();
        if agenda.backoff.failures() == 0 {
            tracing::warn!(
                gaps = gaps.len(),
                error = text,
                "gaps could not be repaired; trying again"
            );
        }
        agenda.not_before = Instant::now() + agenda.backoff.pause();
        let given_up = gaps.iter().filter(|gap| gap.known_seconds >= GIVE_UP_SECONDS);
        let repair = |gap: &PendingGap| (gap.gap.clone(), given_up_because(text));
        let given_up: Vec<_> = given_up.map(repair).collect();
        self.save(given_up).await
    }

    /// Stores and tells what it came to.
    async fn save(&self, repairs: Vec<(kanchi_store::GapRow, GapRepair)>) -> Result<(), Closed> {
        if repairs.is_empty() {
            return Ok(());
        }
        let rows = repairs.iter().map(|(gap, repair)| (gap.id, repair.clone())).collect();
        self.archive.save(rows).await?;
        for (gap, repair) in &repairs {
            self.shared.metrics.gap_repaired(repair);
            tracing::info!(
                outcome = repair.outcome,
                gap.from = gap.from.0,
                gap.to = gap.to.map(|to| to.0),
                tasks.repaired = repair.repaired,
                tasks.found = repair.found,
                tasks.unknown = repair.unknown,
                note = repair.note,
                "the repair of a gap has ended"
            );
        }
        Ok(())
    }
}

fn given_up_because(text: &str) -> GapRepair {
    GapRepair {
        outcome: findings::GIVEN_UP.to_owned(),
        note: Some(format!("given up after {} hours: {text}", GIVE_UP_SECONDS / 3_600)),
        ..GapRepair::default()
    }
}
