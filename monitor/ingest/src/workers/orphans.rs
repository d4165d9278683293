//! Tasks of lost workers become ORPHANED, and are healed when their worker comes back.
//!
//! The worker table says which processes were given up a grace time ago, and which came back. For each the live tasks are
//! walked, page by page, on the reporter's connection; what is found goes as an event of our own through the decoder and the
//! batches like any other. A walk begins only when the events of the one before are stored, and all that was read before the
//! loss: so it misses nothing that was on its way. What is cut short is done again: the loss stays in the table until its
//! walk has ended, a restart finds the worker lost in the store, and a task that is orphaned twice stays as it is.

use std::collections::HashMap;
use std::time::Duration;

use kanchi_domain::{Event, Running, TaskFacts, TaskId, UnixMicros};
use kanchi_store::{Error as StoreError, Held, HeldTask, StoreReporter, Walk};
use tokio::time::Instant;

use crate::intake::own::Own;
use crate::shared::Shared;
use crate::workers::Loss;

/// A turn walks no longer: the heartbeat must not wait behind a large table.
const WALK_AT_ONCE: Duration = Duration::from_millis(500);

/// Finds the tasks of workers that were lost or came back.
#[derive(Debug)]
pub struct Orphans {
    events: Own,
    job: Option<Job>,
}

/// A walk over the live tasks that is under way.
#[derive(Debug)]
struct Job {
    kind: Kind,
    workers: Vec<String>,
    walk: Walk,
}

#[derive(Debug)]
enum Kind {
    Lost(HashMap<String, Vec<Loss>>),
    Back,
}

impl Orphans {
    /// Sends what it finds to the decoder.
    pub const fn new(events: Own) -> Self {
        Self { events, job: None }
    }

    /// Goes on for a while; call it again and again. An error leaves the walk where it was.
    pub async fn turn(
        &mut self,
        store: &mut StoreReporter,
        shared: &Shared,
        grace: Duration,
    ) -> Result<(), StoreError> {
        // While the stream is behind, whoever seems lost may only not have been heard yet.
        if !shared.is_caught_up() {
            return Ok(());
        }
        if self.job.is_none() && self.events.is_stored(shared) {
            self.job = Job::next(shared, grace);
        }
        let until = Instant::now() + WALK_AT_ONCE;
        while let Some(job) = self.job.as_mut().filter(|_| Instant::now() < until) {
            // Taken first: what was looked up must not be looked up again because the decoder is busy.
            let Some(place) = self.events.try_place() else { break };
            let page = store.held(&job.workers, job.held(), &job.walk).await?;
            let events = job.events(&page.tasks, shared);
            if !events.is_empty() {
                place.send(events);
            }
            if let Some(next) = page.next {
                job.walk = next;
            } else {
                job.finish(shared);
                self.job = None;
            }
        }
        Ok(())
    }
}

impl Job {
    /// Returns what is to be done next: who came back first, as nobody should look lost for longer than needed.
    fn next(shared: &Shared, grace: Duration) -> Option<Self> {
        let returned = shared.workers().take_returned();
        if !returned.is_empty() {
            return Some(Self::new(Kind::Back, returned));
        }
        let mut losses: HashMap<String, Vec<Loss>> = HashMap::new();
        for loss in shared.workers().losses(shared.now(), grace) {
            if shared.is_stored_through(loss.since) {
                losses.entry(loss.hostname.clone()).or_default().push(loss);
            }
        }
        let workers: Vec<String> = losses.keys().cloned().collect();
        (!losses.is_empty()).then(|| Self::new(Kind::Lost(losses), workers))
    }

    fn new(kind: Kind, workers: Vec<String>) -> Self {
        Self {
            kind,
            workers,
            walk: Walk::default(),
        }
    }

    const fn held(&self) -> Held {
        match self.kind {
            Kind::Lost(_) => Held::Running,
            Kind::Back => Held::Orphaned,
        }
    }

    /// Returns what is to be said of these tasks.
    fn events(&self, tasks: &[HeldTask], shared: &Shared) -> Vec<Event> {
        let now = shared.now();
        tasks
            .iter()
            .filter_map(|task| {
                let id = TaskId::new(&task.task_id)?;
                let running = TaskFacts::decode(&task.facts).ok()?.running()?;
                match &self.kind {
                    Kind::Lost(losses) => orphaned(id, &running, losses.get(&*running.hostname)?, now),
                    Kind::Back => {
                        let heard = shared.workers().sign_of_life(&running)?;
                        Some(Event::worker_back(id, &running, heard, now))
                    }
                }
            })
            .collect()
    }

    fn finish(&self, shared: &Shared) {
        if let Kind::Lost(losses) = &self.kind {
            for loss in losses.values().flatten() {
                shared.workers().loss_done(loss);
                tracing::info!(
                    worker.name = loss.hostname,
                    worker.pid = loss.pid,
                    "the tasks of a lost worker are orphaned"
                );
            }
        }
    }
}

fn orphaned(id: TaskId, running: &Running, losses: &[Loss], now: UnixMicros) -> Option<Event> {
    let loss = losses.iter().find(|loss| loss.took(running))?;
    let heard = loss.heard.unwrap_or(running.latest);
    Some(Event::worker_lost(id, running, heard, now))
}
