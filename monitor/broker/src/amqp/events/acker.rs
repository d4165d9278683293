//! Acknowledgements of one channel of RabbitMQ.

use std::sync::Arc;
use std::time::Duration;

use lapin::Channel;
use lapin::options::BasicAckOptions;

use super::Ended;
use crate::handover::{Handover, Ledger};

/// A socket that has not been read for so long gives up its connection: what is under way is more than may be held, and a
/// new connection asks for less.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Sends acknowledgements on, beside everything else that a session does.
pub(super) struct Acker {
    pub(super) handover: Arc<Handover>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) channel: Channel,
    pub(super) base: u64,
}

impl Acker {
    pub(super) async fn run(&self, acked: &mut u64) -> Result<Ended, lapin::Error> {
        loop {
            self.handover.ack_arrived.notified().await;
            self.acknowledge(acked).await?;
        }
    }

    pub(super) async fn acknowledge(&self, acked: &mut u64) -> Result<(), lapin::Error> {
        let Some(tag) = self.handover.acknowledged() else {
            return Ok(());
        };
        self.ledger.acknowledged(tag);
        // A tag of an earlier channel only frees its bytes; RabbitMQ has put the message back already.
        let on_channel = tag.0.saturating_sub(self.base);
        if on_channel > *acked {
            self.channel
                .basic_ack(on_channel, BasicAckOptions { multiple: true })
                .await?;
            *acked = on_channel;
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
