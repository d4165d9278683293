//! Fail-over: who of a broker's monitors writes. Decided in Postgres alone, by compare-and-swap.
//!
//! No pod's clock is compared with another's: the lease is judged by the server's clock, and what a writer says of itself is
//! a length of time beside the number of an answer that it had seen before.

use std::collections::HashSet;
use std::time::Duration;

use sqlx::{Executor, Row};

use crate::connection::within;
use crate::error::{During, Result};
use crate::writer::reporter::StoreReporter;
use crate::writer::{Epoch, commit};

/// Who writes, as another monitor of the same broker sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its epoch.
    pub epoch: Epoch,
    /// It is, or was, an earlier process of the name that asks.
    pub is_own: bool,
    /// Grows with each renewal and each epoch.
    pub renewals: i64,
    /// What the lease says.
    pub lease: Lease,
    /// The renewal whose answer the writer had before it made the newest one.
    pub answered: i64,
    /// How far the store was then behind what the writer had read; `None`: not known.
    pub behind: Option<Duration>,
    /// Digests of all that it stores are kept: what another monitor has heard can be compared.
    pub keeps_digests: bool,
}

/// What a writer says of itself with each renewal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Renewal {
    /// How far the store is behind what was read; `None`: not known.
    pub behind: Option<Duration>,
    /// Digests of all that it stores from now on are kept.
    pub keeps_digests: bool,
}

/// What a lease says of its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// It was renewed, or a batch was committed, a moment ago: nobody else may write.
    Alive,
    /// Neither happened for too long.
    Over,
    /// The holder has ended and given it back.
    Free,
}

/// A take-over that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakenOver {
    /// The epoch that has begun.
    pub epoch: Epoch,
    /// An earlier process of the same name wrote before, and nobody since.
    pub was_own: bool,
}

impl StoreReporter {
    /// Returns the broker key that the store derives from this role; compare with the configuration's.
    pub fn broker_key(&self) -> i32 {
        self.link.broker_key()
    }

    /// Returns who writes, as `instance` sees it; `None`: nobody ever did.
    pub async fn holder(&mut self, instance: &str) -> Result<Option<Holder>> {
        const OPERATION: &str = "look who writes";
        let mut connection = self.link.take().await?;
        let query = sqlx::query(
            "select epoch, is_own, renewals, is_free, is_alive, answered, behind, keeps_digests from kanchi.holder($1)",
        )
        .bind(instance);
        let call = async { query.fetch_optional(&mut connection).await.during(OPERATION) };
        let result = within(OPERATION, call).await;
        self.link.put(connection, &result);
        let lease = |free: bool, alive: bool| match (free, alive) {
            (true, _) => Lease::Free,
            (false, true) => Lease::Alive,
            (false, false) => Lease::Over,
        };
        Ok(result?.map(|row| Holder {
            epoch: Epoch(row.get(0)),
            is_own: row.get(1),
            renewals: row.get(2),
            lease: lease(row.get(3), row.get(4)),
            answered: row.get(5),
            behind: row
                .get::<Option<i64>, _>(6)
                .map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or(0))),
            keeps_digests: row.get(7),
        }))
    }

    /// Begins an epoch, if the holder is still the one that was `seen` and may be replaced: its lease is over or free, or it
    /// was an earlier process of this `instance`. `None`: somebody was faster, or the holder lives.
    ///
    /// Waits for a commit of the old writer that is under way; a session in which one stands still is ended.
    pub async fn take_over(&mut self, instance: &str, seen: Option<&Holder>) -> Result<Option<TakenOver>> {
        const OPERATION: &str = "take over";
        let mut connection = self.link.take().await?;
        let query = sqlx::query("select epoch, was_own from kanchi.take_over($1, $2, $3)")
            .bind(instance)
            .bind(seen.map(|holder| holder.epoch.0))
            .bind(seen.map(|holder| holder.renewals));
        let stuck = seen.is_some_and(|holder| holder.lease == Lease::Over);
        let call = async {
            if stuck {
                let ended = connection.execute("select kanchi.end_stuck_writer()").await;
                ended.during("end the session of a writer that stands still")?;
            }
            let row = query.fetch_optional(&mut connection).await.during(OPERATION)?;
            Ok(row.map(|row| TakenOver {
                epoch: Epoch(row.get(0)),
                was_own: row.get(1),
            }))
        };
        let result = within(OPERATION, call).await;
        self.link.put(connection, &result);
        result
    }

    /// Speaks for this epoch: the lease can be renewed, and a heartbeat is refused with
    /// [`ErrorKind::StaleEpoch`](crate::ErrorKind::StaleEpoch) once the epoch is over.
    pub const fn speak_for(&mut self, epoch: Epoch) {
        self.epoch = Some(epoch);
    }

    /// Renews the lease. Fails with
    /// [`ErrorKind::StaleEpoch`](crate::ErrorKind::StaleEpoch) once the epoch is over; does nothing before there is one.
    pub async fn renew(&mut self, renewal: Renewal) -> Result<()> {
        const OPERATION: &str = "renew the lease";
        let Some(epoch) = self.epoch else { return Ok(()) };
        let mut connection = self.link.take().await?;
        let behind = renewal
            .behind
            .map(|time| i64::try_from(time.as_micros()).unwrap_or(i64::MAX));
        let query = sqlx::query("select kanchi.renew($1, $2, $3, $4)")
            .bind(epoch.0)
            .bind(self.answered)
            .bind(behind)
            .bind(renewal.keeps_digests);
        let call = async { Ok(query.fetch_one(&mut connection).await.during(OPERATION)?.get(0)) };
        let result = within(OPERATION, call).await;
        self.link.put(connection, &result);
        self.answered = result?;
        Ok(())
    }

    /// Gives the broker back, so that whoever stands by takes over at once: the epoch spoken for, else whatever an earlier
    /// process of this `instance` held.
    pub async fn release(&mut self, instance: &str) -> Result<()> {
        let epoch = self.epoch.map(|epoch| epoch.0);
        let query = sqlx::query("select kanchi.release($1, $2)").bind(instance).bind(epoch);
        self.send("give the broker back", query).await
    }

    /// Returns the digests of the newest messages stored, as
    /// [`StoreWriter::recent_digests`](crate::StoreWriter::recent_digests) does.
    pub async fn recent_digests(&mut self) -> Result<HashSet<u128>> {
        let mut connection = self.link.take().await?;
        let result = commit::recent_digests(&mut connection).await;
        self.link.put(connection, &result);
        result
    }
}
