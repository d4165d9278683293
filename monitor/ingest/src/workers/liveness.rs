//! Workers in the world: asks who is there, switches events on, and judges silence.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kanchi_broker::{Command, Control, Reply};
use kanchi_domain::UnixMicros;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::Pool;
use crate::settings::SettingsWatch;
use crate::shared::{SETTLED_MS, Shared};

/// How often silence is judged.
const TICK: Duration = Duration::from_secs(1);

/// How long replies are waited for. Celery's own default is one second; a busy event loop takes longer.
const REPLY_TIMEOUT: Duration = Duration::from_secs(3);

/// A wall clock that moved so much more or less than time passed (microseconds) was set, or the machine slept.
const JUMP: i64 = 2_000_000;

/// Workers that are asked by name in one request.
const ASK_AT_ONCE: usize = 100;

/// Watches over the workers of one broker.
#[derive(Debug)]
pub struct Liveness {
    /// Shared state.
    pub shared: Arc<Shared>,
    /// Settings in force.
    pub settings: SettingsWatch,
    /// The remote-control client.
    pub control: Control,
    /// Ends it.
    pub shutdown: CancellationToken,
    /// What the last turn saw.
    pub seen: Seen,
}

/// What a turn must know of the one before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    caught_up: bool,
    /// Our wall clock, and one that never jumps.
    clocks: Option<(UnixMicros, Instant)>,
}

impl Seen {
    /// Takes note of both clocks; says whether the wall clock has jumped since the turn before.
    fn jumped(&mut self, wall: UnixMicros, steady: Instant) -> bool {
        let before = self.clocks.replace((wall, steady));
        before.is_some_and(|(wall_before, steady_before)| {
            let passed = i64::try_from((steady - steady_before).as_micros()).unwrap_or(i64::MAX);
            let shown = wall.0.saturating_sub(wall_before.0);
            shown.saturating_sub(passed).saturating_abs() > JUMP
        })
    }
}

impl Liveness {
    /// Runs until the token ends it.
    pub async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let shutdown = self.shutdown.clone();
            tokio::select! {
                () = shutdown.cancelled() => return,
                Ok(()) = self.settings.changed() => {
                    let spec = self.settings.borrow_and_update().broker.clone();
                    self.control.reload(spec);
                }
                () = self.shared.connected_again.notified() => {
                    let turn = self.look_around();
                    tokio::select! { () = shutdown.cancelled() => return, () = turn => {} }
                }
                _ = tick.tick() => {
                    let turn = self.turn();
                    tokio::select! { () = shutdown.cancelled() => return, () = turn => {} }
                }
            }
        }
    }

    /// The stream connected: find the workers that are there, and switch their events on.
    async fn look_around(&self) {
        if self.is_read_only() {
            return;
        }
        self.cast(Command::heartbeat(), None).await;
        if self.enables_events() {
            self.cast(Command::enable_events(), None).await;
        }
        self.learn(None).await;
    }

    async fn turn(&mut self) {
        let newly_online = self.shared.workers().take_newly_online();
        if !newly_online.is_empty() && !self.is_read_only() {
            for some in newly_online.chunks(ASK_AT_ONCE) {
                if self.enables_events() {
                    self.cast(Command::enable_events(), Some(some.to_vec())).await;
                }
                self.learn(Some(some.to_vec())).await;
            }
        }
        let now = self.shared.now();
        if self.seen.jumped(now, Instant::now()) {
            tracing::warn!("the clock of this machine has jumped; the workers' timers start again");
            self.shared.workers().restart_timers(now);
        }
        let caught_up = self.shared.is_caught_up();
        if caught_up && !self.seen.caught_up {
            let moment = now
                .0
                .saturating_sub(i64::try_from(SETTLED_MS * 1_000).unwrap_or(i64::MAX));
            self.shared.workers().live_since(UnixMicros(moment));
        }
        self.seen.caught_up = caught_up;
        if caught_up {
            let patience = self.settings.borrow().patience();
            let suspects = self.shared.workers().check(now, patience);
            for some in suspects.chunks(ASK_AT_ONCE) {
                self.ask(some).await;
            }
        }
        let counts = self.shared.workers().counts();
        self.shared.metrics.workers(&counts);
    }

    /// Asks silent workers for a sign of life.
    async fn ask(&self, suspects: &[String]) {
        let Some(replies) = self.broadcast(Command::ping(), Some(suspects.to_vec())).await else {
            // Nobody was asked, so nobody is lost; they are suspected anew once asking works again.
            self.shared.workers().restart_timers(self.shared.now());
            return;
        };
        let answered: BTreeSet<&str> = replies.iter().map(|reply| reply.worker.as_str()).collect();
        let now = self.shared.now();
        let mut workers = self.shared.workers();
        for suspect in suspects {
            if answered.contains(suspect.as_str()) {
                workers.answered(suspect, now);
            } else {
                tracing::info!(worker.name = suspect, "worker is silent and does not answer");
                workers.unanswered(suspect, now);
            }
        }
    }

    /// Learns which queues workers consume, and of which pool they are.
    async fn learn(&self, workers: Option<Vec<String>>) {
        for reply in self
            .broadcast(Command::active_queues(), workers.clone())
            .await
            .unwrap_or_default()
        {
            let queues = queue_names(&reply.value);
            self.shared.workers().set_queues(&reply.worker, queues);
        }
        for reply in self.broadcast(Command::stats(), workers).await.unwrap_or_default() {
            if let Some(pool) = pool_of(&reply.value) {
                self.shared.workers().set_pool(&reply.worker, pool);
            }
        }
    }

    async fn cast(&self, command: Command, destination: Option<Vec<String>>) {
        let name = metric_name(&command);
        let sent = self.control.cast(command, destination).await;
        self.shared.metrics.command(name, sent.is_ok());
        if let Err(error) = sent {
            tracing::debug!(command = name, %error, "a command could not be sent");
        }
    }

    async fn broadcast(&self, command: Command, destination: Option<Vec<String>>) -> Option<Vec<Reply>> {
        let name = metric_name(&command);
        let replies = self.control.broadcast(command, destination, REPLY_TIMEOUT).await;
        self.shared.metrics.command(name, replies.is_ok());
        replies
            .inspect_err(|error| tracing::debug!(command = name, %error, "a command could not be sent"))
            .ok()
    }

    fn is_read_only(&self) -> bool {
        self.settings.borrow().config.read_only
    }

    fn enables_events(&self) -> bool {
        self.settings.borrow().config.celery.enable_events
    }
}

/// A closed set of names, whatever commands there will be.
fn metric_name(command: &Command) -> &'static str {
    match command.method.as_str() {
        "ping" => "ping",
        "heartbeat" => "heartbeat",
        "enable_events" => "enable_events",
        "stats" => "stats",
        "active_queues" => "active_queues",
        _ => "other",
    }
}

/// Reads the reply of `active_queues`: a list of objects with `name`.
fn queue_names(reply: &Value) -> BTreeSet<String> {
    let queues = reply.as_array().map(Vec::as_slice).unwrap_or_default();
    queues
        .iter()
        .filter_map(|queue| queue.get("name").and_then(Value::as_str))
        .filter(|name| !name.is_empty() && name.len() <= 255)
        .map(str::to_owned)
        .collect()
}

/// Reads the reply of `stats`: Celery 5.3 names the pool; before, a solo pool's only process is the worker itself.
/// `None`: it says nothing of a pool, as an error or a worker that is about to begin.
fn pool_of(reply: &Value) -> Option<Pool> {
    let pool = reply.get("pool")?.as_object()?;
    if let Some(implementation) = pool.get("implementation").and_then(Value::as_str) {
        return Some(Pool::from_name(implementation));
    }
    let processes = pool.get("processes").and_then(Value::as_array).map(Vec::as_slice);
    let is_solo = matches!((processes, reply.get("pid")), (Some([only]), Some(pid)) if only == pid);
    Some(if is_solo { Pool::Solo } else { Pool::Other })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_clock_that_was_set_is_noticed_and_a_late_turn_is_not() {
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        let mut seen = Seen::default();
        assert!(!seen.jumped(UnixMicros(0), start));
        assert!(!seen.jumped(UnixMicros(60_000_000), later(60)));
        assert!(seen.jumped(UnixMicros(3_660_000_000), later(61)));
        assert!(!seen.jumped(UnixMicros(3_661_000_000), later(62)));
        assert!(seen.jumped(UnixMicros(62_000_000), later(63)));
    }

    #[test]
    fn reads_queues_from_whatever_a_worker_answers() {
        let reply = json!([{"name": "celery", "durable": true}, {"name": 5}, {}, {"name": "billing"}]);
        assert_eq!(queue_names(&reply), ["billing".to_owned(), "celery".to_owned()].into());
        assert!(queue_names(&json!({"error": "x"})).is_empty());
    }

    #[test]
    fn knows_a_solo_pool_of_new_and_old_celery() {
        let pool = |pool| pool_of(&json!({"pid": 7, "pool": pool}));
        let implementation = |name| pool(json!({"implementation": name}));
        assert_eq!(implementation("celery.concurrency.solo:TaskPool"), Some(Pool::Solo));
        assert_eq!(
            implementation("celery.concurrency.prefork:TaskPool"),
            Some(Pool::Prefork)
        );
        assert_eq!(implementation("celery.concurrency.thread:TaskPool"), Some(Pool::Thread));
        assert_eq!(implementation("shop.pools:Fibers"), Some(Pool::Other));
        assert_eq!(pool(json!({"processes": [7]})), Some(Pool::Solo));
        assert_eq!(pool(json!({"processes": [8]})), Some(Pool::Other));
    }

    #[test]
    fn an_answer_without_a_pool_says_nothing_of_it() {
        assert_eq!(pool_of(&json!({"error": "x"})), None);
        assert_eq!(pool_of(&json!({"pid": 7, "pool": "N/A"})), None);
    }
}
