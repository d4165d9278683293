//! A batch's changes, made on a thread of their own while its events are already on their way to Postgres.

use std::panic;

use foldhash::HashMap;
use kanchi_store::TaskChanges;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::gather::TaskNews;
use crate::reduce::{Reduced, Reducer};

/// What went to the thread, and what it made.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) reducer: Reducer,
    pub(crate) reduced: Reduced,
}

/// The work on one batch.
#[derive(Debug)]
pub(crate) enum Reducing {
    UnderWay(JoinHandle<Done>),
    Ended(Box<Done>),
}

impl Reducing {
    /// Starts; `loaded` as [`Reducer::reduce`] wants it.
    pub(crate) fn start(mut reducer: Reducer, tasks: Vec<TaskNews>, loaded: HashMap<String, Vec<u8>>) -> Self {
        Self::UnderWay(spawn_blocking(move || Done {
            reduced: reducer.reduce(tasks, loaded),
            reducer,
        }))
    }

    /// Returns the changes, once they are made. A panic of the thread goes on here.
    pub(crate) async fn changes(&mut self) -> &TaskChanges {
        if let Self::UnderWay(thread) = self {
            *self = Self::Ended(Box::new(joined(thread).await));
        }
        match self {
            Self::Ended(done) => &done.reduced.changes,
            Self::UnderWay(_) => unreachable!("was awaited above"),
        }
    }

    /// Gives everything back, once the work is done.
    pub(crate) async fn end(self) -> Done {
        match self {
            Self::UnderWay(mut thread) => joined(&mut thread).await,
            Self::Ended(done) => *done,
        }
    }
}

async fn joined(thread: &mut JoinHandle<Done>) -> Done {
    match thread.await {
        Ok(done) => done,
        Err(error) => panic::resume_unwind(error.into_panic()),
    }
}
