//! Queue depths on Redis: lengths of lists over all priorities; queues found in kombu's bindings. Reads only.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::{AsyncCommands, RedisError};

use super::channels::{bound_queue, escape_glob, priority_lists};
use super::commands::{Commands, failed};
use crate::net::ConnectError;
use crate::queues::{InFlight, QueueSample};
use crate::spec::BrokerConnectSpec;

const RESPONSE: Duration = Duration::from_secs(5);
/// Bindings outlive their queues; an application that makes a queue per request must not flood the monitor.
const MAX_QUEUES: usize = 2000;
/// Keys looked at in one discovery; a broker that is also a big cache is not read to its end.
const MAX_SCANS: usize = 2000;
const SCAN_COUNT: usize = 1000;

pub(crate) struct RedisSampler {
    spec: BrokerConnectSpec,
    commands: Commands,
}

impl RedisSampler {
    pub(crate) async fn open(spec: &BrokerConnectSpec) -> Result<Self, ConnectError> {
        Ok(Self {
            spec: spec.clone(),
            commands: Commands::open(spec, RESPONSE).await?,
        })
    }

    pub(crate) async fn sample(&mut self, names: &[&str]) -> Result<Vec<QueueSample>, ConnectError> {
        let mut samples = Vec::with_capacity(names.len());
        for some in names.chunks(100) {
            let depths = self.depths(some).await.map_err(|error| failed(&self.spec, &error))?;
            samples.extend(some.iter().zip(depths).map(|(name, ready)| QueueSample {
                name: (*name).to_owned(),
                ready,
                unacked: None,
                consumers: None,
            }));
        }
        Ok(samples)
    }

    /// A key of another type than a list is somebody else's: its queue's depth is unknown.
    async fn depths(&mut self, names: &[&str]) -> Result<Vec<Option<u64>>, RedisError> {
        let prefix = &self.spec.celery.global_key_prefix;
        let mut pipeline = redis::pipe();
        pipeline.ignore_errors();
        for list in names.iter().flat_map(|name| priority_lists(prefix, name)) {
            pipeline.llen(list);
        }
        let lengths: Vec<redis::RedisResult<u64>> = pipeline.query_async(&mut self.commands.connection).await?;
        let lists = priority_lists("", "").len();
        let mut depths = Vec::with_capacity(names.len());
        for of_queue in lengths.chunks(lists) {
            let mut depth = Some(0);
            for length in of_queue {
                depth = match length {
                    Ok(length) => depth.map(|sum: u64| sum.saturating_add(*length)),
                    Err(error) if error.code() == Some("WRONGTYPE") => None,
                    Err(error) => return Err(error.clone()),
                };
            }
            depths.push(depth);
        }
        Ok(depths)
    }

    pub(crate) async fn in_flight(&mut self) -> Result<InFlight, ConnectError> {
        let prefix = self.spec.celery.global_key_prefix.clone();
        let connection = &mut self.commands.connection;
        let counting = async {
            let count: u64 = connection.hlen(format!("{prefix}unacked")).await?;
            let oldest: Vec<(String, f64)> = connection
                .zrange_withscores(format!("{prefix}unacked_index"), 0, 0)
                .await?;
            Ok(InFlight {
                count,
                oldest_since: oldest.first().map(|(_tag, since)| *since),
            })
        };
        counting.await.map_err(|error: RedisError| failed(&self.spec, &error))
    }

    pub(crate) async fn discover(&mut self) -> Result<BTreeSet<String>, ConnectError> {
        self.scan_bindings().await.map_err(|error| failed(&self.spec, &error))
    }

    async fn scan_bindings(&mut self) -> Result<BTreeSet<String>, RedisError> {
        let start = format!("{}_kombu.binding.", self.spec.celery.global_key_prefix);
        let pattern = format!("{}*", escape_glob(&start));
        let mut queues = BTreeSet::new();
        let mut cursor = 0_u64;
        for _scan in 0..MAX_SCANS {
            let (next, keys): (u64, Vec<String>) = redis::cmd("SCAN")
                .arg(cursor)
                .arg("MATCH")
                .arg(&pattern)
                .arg("COUNT")
                .arg(SCAN_COUNT)
                .query_async(&mut self.commands.connection)
                .await?;
            for key in keys {
                let exchange = key.strip_prefix(&start).unwrap_or_default();
                if !self.is_internal(exchange) {
                    let members: Vec<String> = self.members(&key).await?;
                    queues.extend(
                        members
                            .iter()
                            .filter_map(|member| bound_queue(member))
                            .map(str::to_owned),
                    );
                }
            }
            cursor = next;
            if cursor == 0 || queues.len() >= MAX_QUEUES {
                break;
            }
        }
        Ok(queues.into_iter().take(MAX_QUEUES).collect())
    }

    async fn members(&mut self, key: &str) -> Result<Vec<String>, RedisError> {
        let (_cursor, members): (u64, Vec<String>) = redis::cmd("SSCAN")
            .arg(key)
            .arg(0)
            .arg("COUNT")
            .arg(MAX_QUEUES)
            .query_async(&mut self.commands.connection)
            .await?;
        Ok(members)
    }

    fn is_internal(&self, exchange: &str) -> bool {
        exchange.ends_with(".pidbox") || exchange.starts_with("reply.") || exchange == self.spec.celery.event_exchange
    }
}
