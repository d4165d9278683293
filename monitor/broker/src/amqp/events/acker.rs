//! Acknowledgements of one channel of RabbitMQ.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lapin::Channel;
use lapin::options::BasicAckOptions;

use super::Ended;
use crate::handover::{Handover, Ledger, Outstanding};

/// A socket that has not been read for so long gives up its connection: what is under way is more than may be held, and a
/// new connection asks for less.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// While messages wait at the broker, acknowledgements make room for so many at a time. An acknowledged batch would make it
/// send thousands at once, all of which its channel's process holds, and copies whenever it collects garbage.
const ROOM: u64 = 1_000;

/// So long an acknowledgement is kept back at most; one that comes meanwhile waits for the next such time.
const KEPT_BACK: Duration = Duration::from_millis(200);

/// Sends acknowledgements on, beside everything else that a session does.
pub(super) struct Acker {
    pub(super) handover: Arc<Handover>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) channel: Channel,
    pub(super) base: u64,
}

impl Acker {
    pub(super) async fn run(&self) -> Result<Ended, lapin::Error> {
        let mut pace = Pace::default();
        loop {
            // Deliveries wake it, too: they use up the room.
            let news = self.handover.ack_arrived.notified();
            match pace.until {
                Some((_, deadline)) => drop(tokio::time::timeout_at(deadline.into(), news).await),
                None => news.await,
            }
            if let Some(durable) = self.durable() {
                let due = pace.due(durable, self.ledger.outstanding(), Instant::now());
                self.acknowledge(due).await?;
            }
        }
    }

    /// Acknowledges all that is durable.
    pub(super) async fn acknowledge_all(&self) -> Result<(), lapin::Error> {
        match self.durable() {
            Some(durable) => self.acknowledge(durable).await,
            None => Ok(()),
        }
    }

    /// Returns the newest tag that is durable, and frees what is held of it.
    fn durable(&self) -> Option<u64> {
        let tag = self.handover.acknowledged()?;
        self.ledger.acknowledged(tag);
        Some(tag.0)
    }

    async fn acknowledge(&self, through: u64) -> Result<(), lapin::Error> {
        // A tag of an earlier channel only frees its bytes; RabbitMQ has put the message back already.
        if through > self.ledger.outstanding().acknowledged {
            let options = BasicAckOptions { multiple: true };
            let sending = self.channel.basic_ack(through - self.base, options);
            // Before it is waited for: who is interrupted meanwhile must not send it again.
            self.ledger.told(through);
            sending.await?;
        }
        Ok(())
    }

    /// Returns when the socket has not been read for too long.
    pub(super) async fn overloaded(&self) {
        while self.ledger.paused_for() < LONGEST_PAUSE {
            tokio::time::sleep(LONGEST_PAUSE / 4).await;
        }
    }
}

/// How far to acknowledge now. Pure.
#[derive(Debug, Default)]
struct Pace {
    /// What is kept back: through this tag until then, at most.
    until: Option<(u64, Instant)>,
}

impl Pace {
    /// Returns the tag through which to acknowledge; one that is acknowledged already says: nothing now.
    fn due(&mut self, durable: u64, state: Outstanding, now: Instant) -> u64 {
        let mut due = durable;
        if state.is_behind {
            due = due.min((state.newest + ROOM).saturating_sub(state.prefetch));
            // In halves, not message by message.
            if due < durable && due < state.acknowledged + ROOM / 2 {
                due = state.acknowledged;
            }
            if let Some((tag, _)) = self.until.filter(|(_, deadline)| *deadline <= now) {
                due = due.max(tag);
            }
        }
        self.until = match self.until {
            _ if due >= durable => None,
            Some((tag, deadline)) if due < tag => Some((tag, deadline)),
            _ => Some((durable, now + KEPT_BACK)),
        };
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behind(newest: u64, acknowledged: u64) -> Outstanding {
        Outstanding {
            newest,
            acknowledged,
            prefetch: 10_000,
            is_behind: true,
        }
    }

    #[test]
    fn a_batch_makes_room_little_by_little() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert_eq!(pace.due(4_000, behind(10_000, 0), now), 1_000);
        assert_eq!(
            pace.due(4_000, behind(10_400, 1_000), now),
            1_000,
            "not message by message"
        );
        assert_eq!(pace.due(4_000, behind(10_500, 1_000), now), 1_500);
        assert_eq!(pace.due(4_000, behind(13_000, 1_500), now), 4_000);
        assert_eq!(pace.until, None);
    }

    #[test]
    fn nothing_is_kept_back_for_long() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        assert_eq!(pace.due(4_000, behind(10_000, 0), now), 1_000);
        let (later, newer) = (now + KEPT_BACK, 8_000);
        assert_eq!(pace.due(newer, behind(10_000, 1_000), now + KEPT_BACK / 2), 1_000);
        assert_eq!(
            pace.due(newer, behind(10_000, 1_000), later),
            4_000,
            "what was durable then"
        );
        assert_eq!(pace.due(newer, behind(10_000, 4_000), later), 4_000);
        assert_eq!(pace.due(newer, behind(10_000, 4_000), later + KEPT_BACK), newer);
    }

    #[test]
    fn while_nothing_waits_at_the_broker_all_is_acknowledged_at_once() {
        let caught_up = Outstanding {
            is_behind: false,
            ..behind(300, 0)
        };
        assert_eq!(Pace::default().due(300, caught_up, Instant::now()), 300);
        let small = Outstanding {
            prefetch: 256,
            ..behind(256, 0)
        };
        assert_eq!(
            Pace::default().due(200, small, Instant::now()),
            200,
            "so many are never on their way"
        );
    }
}
