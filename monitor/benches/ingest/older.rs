//! The store that streams are measured in: with tasks that are older than all of them, and a leader.

use std::time::Duration;

use anyhow::Result;
use kanchi_store::StoreAdmin;
use kanchi_test_load::{RedisPublisher, Stream, Workload, now};
use kanchi_test_servers::postgres::{Postgres, PostgresOptions};
use kanchi_test_servers::redis::Redis;

use crate::Sizes;
use crate::drive::{Until, publish_and_store};
use crate::figures::say;
use crate::leader::Leader;
use crate::rig::{Registered, Rig};

/// Tasks a second that are opened beforehand, to end within the stream; more than a stream can end.
const OLDER_A_SECOND: u64 = 500;

/// Tells the seeds of what is stored beforehand from those of what is measured.
const BEFORE: u64 = 1 << 32;

/// Where streams are stored, and who publishes to the broker that the older tasks came from.
pub(crate) struct Store {
    pub(crate) redis: Redis,
    pub(crate) rig: Rig,
    pub(crate) publisher: RedisPublisher,
    _leader: Leader,
}

impl Store {
    /// Stores the older tasks, and opens those that end in the streams that will be published to the same broker.
    pub(crate) fn filled(runtime: &tokio::runtime::Runtime, streams: &mut [Stream], sizes: Sizes) -> Result<Self> {
        let redis = Redis::start_new()?;
        let rig = runtime.block_on(Rig::new(postgres()?, &redis.url(0)))?;
        rig.as_owner(&["upkeep"])?;
        let mut store = Self {
            publisher: RedisPublisher::connect(redis.port())?,
            _leader: Leader::start(rig.owner()?)?,
            redis,
            rig,
        };
        store.fill(streams, sizes)?;
        Ok(store)
    }

    fn fill(&mut self, streams: &mut [Stream], sizes: Sizes) -> Result<()> {
        let mut monitor = self.rig.monitor(&[])?;
        monitor.connected()?;
        let opened = now();
        for stream in &mut *streams {
            if stream.workload().older_in > 0 {
                stream.begin_older(OLDER_A_SECOND * sizes.stream.as_secs(), opened);
                let all = Until::Tasks(stream.tasks());
                publish_and_store(stream, &mut self.publisher, all, &mut monitor)?;
            }
        }
        let mut before = Stream::new(Workload::realistic(BEFORE));
        let all = Until::Tasks(sizes.older_tasks);
        publish_and_store(&mut before, &mut self.publisher, all, &mut monitor)?;
        monitor.terminate()?;
        let age = Duration::from_micros((now() - opened) as u64);
        say(&format!(
            "{} older tasks stored after {} s",
            sizes.older_tasks,
            age.as_secs()
        ));
        if streams.iter().any(|stream| stream.tasks() > 0) {
            std::thread::sleep(sizes.open_age.saturating_sub(age));
        }
        Ok(())
    }
}

/// Registers another broker in a store.
pub(crate) async fn register(rig: &Rig, name: &str, url: &str) -> Result<Registered> {
    let admin = StoreAdmin::connect(&rig.owner()?).await?;
    let broker = Registered::new(&admin, name, url).await?;
    admin.close().await;
    Ok(broker)
}

/// A server with its own defaults.
pub(crate) fn postgres() -> Result<Postgres> {
    Postgres::with(&PostgresOptions {
        fsync: true,
        ..PostgresOptions::default()
    })
}
