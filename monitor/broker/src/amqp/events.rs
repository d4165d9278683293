//! The event stream on RabbitMQ: connect, declare, consume with manual acknowledgements, for ever.
//!
//! A connection carries one channel that consumes; RabbitMQ may close that channel alone (a delivery unacknowledged for
//! `consumer_timeout`), and then only the channel is opened again. Whatever was not acknowledged is delivered again with
//! the redelivered flag.

mod acker;
mod completeness;
mod session;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kanchi_contract::Transport;

use self::session::Session;
use super::connection::{AmqpConnection, Purpose, failed};
use super::prefetch::Prefetch;
use super::topology::{self, QueuePlan};
use crate::backoff::Backoff;
use crate::handover::Ledger;
use crate::net::ConnectError;
use crate::report::{ConnectReason, ConnectionState, GapCause};
use crate::spec::BrokerConnectSpec;
use crate::stream::{Interrupted, StreamTask};
use crate::time::now;

/// A channel that fails sooner after its opening was not closed for a slow acknowledgement.
const SHORT_LIFE: Duration = Duration::from_secs(2);

/// What outlives a connection to RabbitMQ.
struct Consumption {
    ledger: Arc<Ledger>,
    prefetch: Prefetch,
    /// Queues of earlier configurations that may hold events, oldest first.
    outdated: Vec<String>,
    /// The queue in use.
    current: Option<QueuePlan>,
    /// Signs of a restart, for brokers that refuse the queue that would prove it.
    restart_suspected: bool,
}

/// Why consuming ended.
enum Ended {
    /// More was under way than may be held.
    Overloaded,
    Interrupted(Interrupted),
    Failed(ConnectError),
    /// The queue being drained is empty.
    Drained,
}

/// Runs until stopped, or until the spec names another transport.
pub(crate) async fn run(task: &mut StreamTask) -> Interrupted {
    let mut state = Consumption {
        ledger: Ledger::new(task.options.budget_bytes.saturating_mul(2)),
        prefetch: Prefetch::new(task.options.budget_bytes),
        outdated: task.options.previous_queue.clone().into_iter().collect(),
        current: None,
        restart_suspected: false,
    };
    let mut backoff = Backoff::new(task.options.max_backoff);
    loop {
        let spec = task.specs.borrow_and_update().clone();
        if spec.url.transport() != Transport::Amqp {
            return Interrupted::Reload;
        }
        if !task.connected_before {
            task.report(ConnectionState::Connecting, None, None, None);
        }
        match state.serve(task, &spec, &mut backoff).await {
            Ended::Interrupted(Interrupted::Stop) => return Interrupted::Stop,
            Ended::Interrupted(Interrupted::Reload) | Ended::Drained | Ended::Overloaded => continue,
            Ended::Failed(error) => {
                state.restart_suspected |= matches!(
                    error.reason,
                    ConnectReason::ConnectionRefused | ConnectReason::BrokerUnavailable
                );
                task.report(ConnectionState::Disconnected, Some(&error), None, None);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_delay()) => {}
            interrupted = StreamTask::interrupted(&task.stop, &mut task.specs) => match interrupted {
                Interrupted::Stop => return Interrupted::Stop,
                Interrupted::Reload => {}
            },
        }
    }
}

impl Consumption {
    /// One connection, from opening to its end.
    async fn serve(&mut self, task: &mut StreamTask, spec: &BrokerConnectSpec, backoff: &mut Backoff) -> Ended {
        let purpose = Purpose {
            name: "events",
            heartbeat: task.options.heartbeat,
            timeout: task.options.connect_timeout,
            ledger: Some(Arc::clone(&self.ledger)),
        };
        self.ledger.begin(task.last_tag);
        let setup = async {
            let connection = AmqpConnection::open(spec, purpose).await?;
            let plan = QueuePlan::new(spec, connection.major());
            let found = topology::declare(&connection, spec, &plan).await?;
            Ok::<_, ConnectError>((connection, plan, found))
        };
        let deadline = task.options.connect_timeout.saturating_mul(3);
        let outcome = tokio::select! {
            outcome = tokio::time::timeout(deadline, setup) => outcome,
            interrupted = StreamTask::interrupted(&task.stop, &mut task.specs) => return Ended::Interrupted(interrupted),
        };
        let (connection, plan, found) = match outcome {
            Ok(Ok(ready)) => ready,
            Ok(Err(error)) => return Ended::Failed(error),
            Err(_elapsed) => {
                let message = "the broker stopped answering while the queue was being declared";
                return Ended::Failed(ConnectError::new(ConnectReason::Timeout, message));
            }
        };
        if let Some(old) = self.current.take().filter(|old| old.name != plan.name) {
            self.outdated.push(old.name);
        }
        self.outdated.retain(|old| *old != plan.name);
        let inherited = self.detach_outdated(&connection, spec, &plan).await;
        self.notice_gap(task, &plan, found, inherited);
        // Of what was before nothing is known: from here on what is lost is missed.
        task.complete_until.get_or_insert_with(now);
        self.current = Some(plan.clone());
        self.restart_suspected = false;
        task.connected_before = true;
        backoff.reset();
        let ended = self.consume_all(task, spec, &connection, &plan).await;
        connection.close().await;
        ended
    }

    /// Unbinds queues of earlier configurations; forgets those that are gone. Returns whether one is left.
    async fn detach_outdated(
        &mut self,
        connection: &AmqpConnection,
        spec: &BrokerConnectSpec,
        plan: &QueuePlan,
    ) -> bool {
        let mut left = Vec::new();
        for old in std::mem::take(&mut self.outdated) {
            if !matches!(topology::exists(connection, spec, &old).await, Ok(true)) {
                continue;
            }
            let unbinding = topology::unbind(connection, &old, &plan.exchange);
            if let Err(error) = connection.within(unbinding).await {
                tracing::warn!(
                    queue = old,
                    "failed to unbind a queue of an earlier configuration: {error}"
                );
            }
            left.push(old);
        }
        self.outdated = left;
        !self.outdated.is_empty()
    }

    fn notice_gap(&self, task: &StreamTask, plan: &QueuePlan, found: topology::Found, inherited: bool) {
        let Some(from) = task.complete_until else { return };
        let away = Duration::from_micros(u64::try_from(now().0.saturating_sub(from.0)).unwrap_or(0));
        let cause = match (found.queue, found.alive) {
            // The events of the time before are in the queue that is drained first.
            (false, _) if inherited => return,
            (false, _) if away >= plan.expires => GapCause::QueueExpired,
            (false, _) | (true, Some(false)) => GapCause::BrokerRestart,
            (true, None) if plan.is_classic() && self.restart_suspected => GapCause::BrokerRestart,
            (true, Some(true) | None) => return,
        };
        task.gap(from, cause, None);
    }

    /// Drains queues of earlier configurations, then consumes the present one until something ends it.
    async fn consume_all(
        &mut self,
        task: &mut StreamTask,
        spec: &BrokerConnectSpec,
        connection: &AmqpConnection,
        plan: &QueuePlan,
    ) -> Ended {
        loop {
            let draining = self.outdated.first().cloned();
            let queue = draining.clone().unwrap_or_else(|| plan.name.clone());
            // The next process must find a queue that is not drained yet, so that one is reported as long as it lasts.
            task.report(
                ConnectionState::Connected,
                None,
                connection.broker_version(),
                Some(queue.clone()),
            );
            let opened = Instant::now();
            let mut session = match Session::open(self, task, connection, plan, queue, draining.is_some()).await {
                Ok(session) => session,
                Err(error) => return Ended::Failed(failed(spec, &error)),
            };
            let outcome = session.run().await;
            match (outcome, draining) {
                (Ok(Ended::Drained), Some(old)) => {
                    tracing::info!(queue = old, "drained the queue of an earlier configuration");
                    // Only an unused queue is deleted: this session's consumer ends first.
                    let deleting = async {
                        session.channel.close(200, "OK".into()).await?;
                        topology::delete(connection, &old).await
                    };
                    if let Err(error) = connection.within(deleting).await {
                        tracing::warn!(queue = old, "failed to delete a drained queue: {error}");
                    }
                    self.outdated.retain(|other| *other != old);
                }
                (Ok(ended), _) => return ended,
                // A socket that breaks takes the connection with it, which says so a moment later.
                (Err(error), _)
                    if !error.is_io_error()
                        && connection.connection.status().connected()
                        && opened.elapsed() > SHORT_LIFE =>
                {
                    tracing::warn!("the broker closed the channel, opening another: {error}");
                    match topology::exists(connection, spec, &plan.name).await {
                        Ok(true) => {}
                        // Deleted under us: everything is declared again, and a gap noticed.
                        Ok(false) => return Ended::Failed(failed(spec, &error)),
                        Err(error) => return Ended::Failed(error),
                    }
                }
                (Err(error), _) => return Ended::Failed(failed(spec, &error)),
            }
        }
    }
}
