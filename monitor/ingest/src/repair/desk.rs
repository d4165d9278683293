//! The seam between the repair, which waits for a result backend and for workers, and the reporter, whose connection to the
//! store must never wait for either.

use kanchi_domain::UnixMicros;
use kanchi_store::{Error as StoreError, GapRepair, OpenPage, PendingGap, StoreReporter, Walk};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// Returns both ends.
pub fn desk() -> (Archive, Desk) {
    // One at a time: whoever asks waits for the answer.
    let (asks, asked) = mpsc::channel(1);
    (Archive { asks }, Desk { asked, current: None })
}

/// A question to the store.
#[derive(Debug)]
enum Ask {
    Gaps(oneshot::Sender<Vec<PendingGap>>),
    Open(UnixMicros, Walk, oneshot::Sender<OpenPage>),
    Unknown(Vec<String>, UnixMicros, oneshot::Sender<Vec<String>>),
    Save(Vec<(Uuid, GapRepair)>, oneshot::Sender<()>),
}

/// The monitor ends: nobody answers any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

/// Asks the store, by way of the reporter. While the store is away, every call waits.
#[derive(Debug)]
pub struct Archive {
    asks: mpsc::Sender<Ask>,
}

impl Archive {
    /// See [`StoreReporter::pending_gaps`].
    pub async fn pending_gaps(&self) -> Result<Vec<PendingGap>, Closed> {
        self.ask(Ask::Gaps).await
    }

    /// See [`StoreReporter::open_tasks`].
    pub async fn open_tasks(&self, before: UnixMicros, walk: Walk) -> Result<OpenPage, Closed> {
        self.ask(|answer| Ask::Open(before, walk, answer)).await
    }

    /// See [`StoreReporter::unknown_tasks`].
    pub async fn unknown_tasks(&self, ids: Vec<String>, since: UnixMicros) -> Result<Vec<String>, Closed> {
        self.ask(|answer| Ask::Unknown(ids, since, answer)).await
    }

    /// See [`StoreReporter::save_repairs`].
    pub async fn save(&self, repairs: Vec<(Uuid, GapRepair)>) -> Result<(), Closed> {
        self.ask(|answer| Ask::Save(repairs, answer)).await
    }

    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Closed> {
        let (sender, answer) = oneshot::channel();
        if self.asks.send(make(sender)).await.is_err() {
            return Err(Closed);
        }
        answer.await.or(Err(Closed))
    }
}

/// The reporter's end.
#[derive(Debug)]
pub struct Desk {
    asked: mpsc::Receiver<Ask>,
    /// Not answered yet: the store failed.
    current: Option<Ask>,
}

impl Desk {
    /// Waits until something is asked. May be cancelled.
    pub async fn asked(&mut self) {
        if self.current.is_none() {
            match self.asked.recv().await {
                Some(ask) => self.current = Some(ask),
                None => std::future::pending().await,
            }
        }
    }

    /// Answers what was asked. After an error the question stays, to be answered the next time.
    pub async fn serve(&mut self, store: &mut StoreReporter) -> Result<(), StoreError> {
        let Some(ask) = &self.current else {
            return Ok(());
        };
        let answer = Answer::of(ask, store).await?;
        if let Some(ask) = self.current.take() {
            answer.give(ask);
        }
        Ok(())
    }
}

/// What the store answered.
enum Answer {
    Gaps(Vec<PendingGap>),
    Open(OpenPage),
    Unknown(Vec<String>),
    Saved,
}

impl Answer {
    async fn of(ask: &Ask, store: &mut StoreReporter) -> Result<Self, StoreError> {
        Ok(match ask {
            Ask::Gaps(_) => Self::Gaps(store.pending_gaps().await?),
            Ask::Open(before, walk, _) => Self::Open(store.open_tasks(*before, walk).await?),
            Ask::Unknown(ids, since, _) => Self::Unknown(store.unknown_tasks(ids, *since).await?),
            Ask::Save(repairs, _) => {
                store.save_repairs(repairs).await?;
                Self::Saved
            }
        })
    }

    /// Whoever asked may have gone meanwhile.
    fn give(self, ask: Ask) {
        match (ask, self) {
            (Ask::Gaps(to), Self::Gaps(answer)) => drop(to.send(answer)),
            (Ask::Open(_, _, to), Self::Open(answer)) => drop(to.send(answer)),
            (Ask::Unknown(_, _, to), Self::Unknown(answer)) => drop(to.send(answer)),
            (Ask::Save(_, to), Self::Saved) => drop(to.send(())),
            _ => {}
        }
    }
}
