//! Events of our own on their way to the decoder, and whether all of them are stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kanchi_domain::Event;
use tokio::sync::mpsc;

use crate::shared::Shared;

/// Messages of our own that wait for the decoder. Each holds the tasks of one page.
const WAITING: usize = 4;

/// Sends events of our own. All clones count together, so that what one of them sent is waited for by the others as well.
#[derive(Clone, Debug)]
pub struct Own {
    events: mpsc::Sender<Vec<Event>>,
    sent: Arc<AtomicU64>,
}

/// A place in the decoder's queue.
#[derive(Debug)]
pub struct Place<'o> {
    permit: mpsc::Permit<'o, Vec<Event>>,
    sent: &'o AtomicU64,
}

impl Own {
    /// Makes both ends.
    pub fn channel() -> (Self, mpsc::Receiver<Vec<Event>>) {
        let (events, receiver) = mpsc::channel(WAITING);
        let sent = Arc::default();
        (Self { events, sent }, receiver)
    }

    /// Takes a place, if one is free just now.
    pub fn try_place(&self) -> Option<Place<'_>> {
        let permit = self.events.try_reserve().ok()?;
        Some(Place {
            permit,
            sent: &self.sent,
        })
    }

    /// Waits for a place and sends; says whether the decoder is still there.
    pub async fn send(&self, events: Vec<Event>) -> bool {
        let Ok(permit) = self.events.reserve().await else {
            return false;
        };
        Place {
            permit,
            sent: &self.sent,
        }
        .send(events);
        true
    }

    /// Tells whether all that was sent so far is stored.
    pub fn is_stored(&self, shared: &Shared) -> bool {
        shared.own_messages_stored() >= self.sent.load(Ordering::Relaxed)
    }
}

impl Place<'_> {
    /// Sends a message.
    pub fn send(self, events: Vec<Event>) {
        // Counted first: the message may be stored before the next line.
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.permit.send(events);
    }
}
