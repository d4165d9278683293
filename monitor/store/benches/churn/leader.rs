//! What the operator's leader does in the store, and the passing of time, which only the server's owner can simulate.

use kanchi_domain::UnixMicros;
use kanchi_store::{Room, StoreAdmin, StoreUrl, Upkeep};
use sqlx::{Connection as _, Executor as _, PgConnection};

const DAY: i64 = 86_400_000_000;

/// The leader.
pub(crate) struct Leader {
    admin: StoreAdmin,
    owner: PgConnection,
    room_made: u64,
    room_held: u64,
    rolled_up: u64,
    upkeep: Upkeep,
}

impl Leader {
    pub(crate) async fn new(admin: StoreAdmin, owner: &StoreUrl) -> anyhow::Result<Self> {
        Ok(Self {
            admin,
            owner: PgConnection::connect(owner.expose()).await?,
            room_made: 0,
            room_held: 0,
            rolled_up: 0,
            upkeep: Upkeep::default(),
        })
    }

    /// Does the first upkeep.
    pub(crate) async fn begin(&mut self) -> anyhow::Result<()> {
        self.upkeep().await.map(drop)
    }

    /// Does what comes every few seconds.
    pub(crate) async fn between_batches(&mut self) -> anyhow::Result<()> {
        self.admin.advance_generation().await?;
        match self.admin.make_room().await? {
            Room::Enough => {}
            Room::Made => self.room_made += 1,
            Room::Held => self.room_held += 1,
        }
        while {
            let done = self.admin.roll_up().await?;
            self.rolled_up += done.taken;
            done.more
        } {}
        Ok(())
    }

    /// Makes partitions ahead, and drops those that are over.
    pub(crate) async fn upkeep(&mut self) -> anyhow::Result<Upkeep> {
        let done = self.admin.upkeep(crate::environment::now()?).await?;
        self.upkeep.created += done.created;
        self.upkeep.dropped += done.dropped;
        self.upkeep.pruned += done.pruned;
        self.upkeep.postponed += done.postponed;
        Ok(done)
    }

    /// Ages what is kept by the day: it moves to the partitions of the day before, and what is two days old then is over.
    pub(crate) async fn midnight(&mut self) -> anyhow::Result<String> {
        let before: i64 = self.rows().await?;
        // Partitions of days that were over: a day passes in a moment, and the upkeep of then had not dropped them.
        let then = UnixMicros(crate::environment::now()?.0 - 2 * DAY);
        let created = self.admin.upkeep(then).await?.created;
        self.owner.execute(include_str!("midnight.sql")).await?;
        let done = self.upkeep().await?;
        let gone = before - self.rows().await?;
        Ok(format!(
            "{} of {before} tasks are over; partitions: {created} made for it, {} made, {} dropped",
            gone, done.created, done.dropped
        ))
    }

    async fn rows(&mut self) -> anyhow::Result<i64> {
        let query = sqlx::query_scalar("select count(*) from kanchi.task");
        Ok(query.fetch_one(&mut self.owner).await?)
    }

    /// Returns what was done, in words.
    pub(crate) fn told(&self) -> String {
        format!(
            "room made {} times, held {} times; {} deltas rolled up; partitions made {}, dropped {}, postponed {}; rows pruned {}",
            self.room_made,
            self.room_held,
            self.rolled_up,
            self.upkeep.created,
            self.upkeep.dropped,
            self.upkeep.postponed,
            self.upkeep.pruned
        )
    }
}
