//! One monitor: its tasks, how they are joined, and in which order they end.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kanchi_broker::{Control, EventStream, EventStreamOptions, QueueSampler};
use kanchi_contract::Transport;
use kanchi_domain::{Limits, UnixMicros};
use kanchi_store::{Epoch, Previous, StoreReporter};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::commit::{self, Committer};
use crate::intake::buffer::Buffer;
use crate::intake::decoder::{self, Decoder};
use crate::intake::filling::BatchLimits;
use crate::intake::own::Own;
use crate::intake::source::{PORTIONS, Pump, Sink, Source};
use crate::intake::spool::{Spool, SpoolOptions};
use crate::repair::{self, Archive, Repair};
use crate::report::{self, KeptDigests, Reporter};
use crate::sampler::{Sampler, Samples};
use crate::settings::{Loaded, Settings, SettingsWatch, watch_directory};
use crate::shared::Shared;
use crate::standby::{Standby, spool_options};
use crate::workers::liveness::{Liveness, Seen};
use crate::workers::orphans::Orphans;

/// Bounds of a monitor. Together they keep it well below a container limit of 128 MiB.
#[derive(Clone, Debug)]
pub struct MonitorLimits {
    /// RabbitMQ: delivered and not yet acknowledged.
    pub unacknowledged_bytes: usize,
    /// Redis: read and not yet moved into the ring; what does not fit is lost, so it must hold a few large messages.
    pub unread_bytes: usize,
    /// Redis: messages waiting in memory.
    pub ring_bytes: usize,
    /// Redis: messages kept in memory while another monitor writes; what comes until it is replaced must fit. The caches and
    /// batches of a writer take this room later.
    pub standby_bytes: usize,
    /// Redis: messages waiting on disk.
    pub spool_bytes: u64,
    /// Facts of recent tasks.
    pub cache_bytes: usize,
    /// One batch; two are under way, and one is made meanwhile.
    pub batch: BatchLimits,
    /// What is read of a message.
    pub decode: Limits,
    /// How long the drain may take.
    pub grace: Duration,
}

impl Default for MonitorLimits {
    fn default() -> Self {
        Self {
            unacknowledged_bytes: 12 * 1024 * 1024,
            unread_bytes: 24 * 1024 * 1024,
            ring_bytes: 4 * 1024 * 1024,
            standby_bytes: 32 * 1024 * 1024,
            // Nine tenths of the volume: the kubelet evicts a pod whose emptyDir passes its limit.
            spool_bytes: kanchi_contract::SPOOL_BYTES / 10 * 9,
            cache_bytes: 5 * 1024 * 1024,
            batch: BatchLimits::default(),
            decode: Limits::DEFAULT,
            // Kubernetes kills after 30 s.
            grace: Duration::from_secs(20),
        }
    }
}

/// What a monitor is made of.
#[derive(Debug)]
pub struct Monitor {
    /// Directory of the mounted configuration.
    pub config_directory: PathBuf,
    /// What was read from it.
    pub loaded: Loaded,
    /// Directory of the disk spool.
    pub spool_directory: PathBuf,
    /// Bounds.
    pub limits: MonitorLimits,
    /// Shared state.
    pub shared: Arc<Shared>,
    /// Name of this process; another monitor of the same broker has another.
    pub instance: String,
    /// Version of this build.
    pub version: String,
}

/// How long the start waits for the store to say where the last process stopped.
const ASK_STORE: Duration = Duration::from_secs(5);

/// Once waiting is given up, a call to the store may take so long.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(2);

/// Longest pause between two attempts to reach a broker: a restarted one is seen again within it.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

impl Monitor {
    /// Runs until the token is cancelled and the drain is done, or until another writer takes over. `settings_changed` is
    /// told of each configuration in force.
    ///
    /// With more than one monitor for the broker this one first stands by, until no other writes.
    pub async fn run(
        self,
        shutdown: CancellationToken,
        settings_changed: impl Fn(&Settings) + Send + 'static,
    ) -> Result<(), commit::Error> {
        let mut run = Run::new(self, &shutdown);
        run.watch_settings(settings_changed);
        let beginning = if run.settings.borrow().has_standby() {
            run.begin_after_standing_by().await
        } else {
            run.begin_at_once().await
        };
        let Some(beginning) = beginning else {
            run.stop().await;
            return Ok(());
        };
        run.write(beginning).await
    }

    fn spool(&self) -> SpoolOptions {
        spool_options(self.spool_directory.clone(), self.limits.spool_bytes)
    }

    fn buffer(&self) -> Buffer {
        let spool = match Spool::open(self.spool()) {
            Ok(spool) => Some(spool),
            Err(error) => {
                let text = crate::error_chain(&error);
                tracing::error!(error = %text, "there is no disk spool: only memory buffers a store that is away");
                None
            }
        };
        Buffer::new(self.limits.ring_bytes, spool)
    }
}

/// The parts of a monitor that runs, and what ends them.
struct Run {
    monitor: Monitor,
    settings: SettingsWatch,
    /// Taken by the task that reads the configuration again.
    settings_sender: Option<watch::Sender<Arc<Settings>>>,
    /// Ends taking messages.
    shutdown: CancellationToken,
    /// Ends the tasks beside the event path.
    background: CancellationToken,
    /// Ends the stream, after the last acknowledgement.
    end: CancellationToken,
    /// Ends waiting for a store that is away.
    give_up: CancellationToken,
    /// Another monitor has taken over.
    fenced: CancellationToken,
    acknowledge: watch::Sender<u64>,
    /// Tasks to wait for at the end.
    tasks: Vec<JoinHandle<()>>,
}

/// Where the event path begins.
struct Inlet {
    source: Source,
    buffer: Option<Arc<Buffer>>,
}

/// What is known when writing begins.
struct Beginning {
    inlet: Inlet,
    store: Option<StoreReporter>,
    /// The epoch of a take-over.
    taken: Option<Epoch>,
    digests: Option<HashSet<u128>>,
    /// Redis: the store could not be asked where the last process stopped; since when this one listens.
    restart_at: Option<UnixMicros>,
}

impl Run {
    fn new(monitor: Monitor, shutdown: &CancellationToken) -> Self {
        let (settings_sender, settings) = watch::channel(Arc::new(monitor.loaded.settings.clone()));
        let shutdown = shutdown.child_token();
        let (acknowledge, _) = watch::channel(0);
        Self {
            monitor,
            settings,
            settings_sender: Some(settings_sender),
            background: shutdown.child_token(),
            shutdown,
            end: CancellationToken::new(),
            give_up: CancellationToken::new(),
            fenced: CancellationToken::new(),
            acknowledge,
            tasks: Vec::new(),
        }
    }

    fn transport(&self) -> Transport {
        self.monitor.loaded.settings.broker.url.transport()
    }

    fn watch_settings(&mut self, settings_changed: impl Fn(&Settings) + Send + 'static) {
        let Some(sender) = self.settings_sender.take() else {
            return;
        };
        self.tasks.push(tokio::spawn(watch_directory(
            self.monitor.config_directory.clone(),
            self.monitor.loaded.fingerprint,
            sender,
            Arc::clone(&self.monitor.shared),
            self.background.clone(),
        )));
        let tell = tell_changes(self.settings.clone(), settings_changed, self.background.clone());
        self.tasks.push(tokio::spawn(tell));
    }

    /// The only monitor of its broker: it fences whoever wrote before with its first connection.
    async fn begin_at_once(&mut self) -> Option<Beginning> {
        let (store, previous) = tokio::select! {
            () = self.shutdown.cancelled() => return None,
            previous = report::previous(&self.settings, ASK_STORE) => previous,
        };
        let redis = self.transport() == Transport::Redis;
        let buffer = redis.then(|| Arc::new(self.monitor.buffer()));
        let restart_at = (store.is_none() && redis).then(|| self.monitor.shared.now());
        Some(Beginning {
            inlet: self.open(buffer, previous),
            store,
            taken: None,
            digests: None,
            restart_at,
        })
    }

    /// One of several: it waits until no other writes. Redis: it listens meanwhile.
    async fn begin_after_standing_by(&mut self) -> Option<Beginning> {
        let limits = &self.monitor.limits;
        let ring_bytes = limits.ring_bytes;
        let buffer = Buffer::standing_by(limits.standby_bytes);
        let mut inlet =
            (self.transport() == Transport::Redis).then(|| self.open(Some(Arc::new(buffer)), Previous::default()));
        let standby = Standby {
            shared: Arc::clone(&self.monitor.shared),
            settings: self.settings.clone(),
            instance: self.monitor.instance.clone(),
            buffer: inlet.as_ref().and_then(|inlet| inlet.buffer.clone()),
            spool: self.monitor.spool(),
            ring_bytes,
            shutdown: self.shutdown.clone(),
        };
        let taken = standby.run().await?;
        let inlet = inlet.take().unwrap_or_else(|| self.open(None, taken.previous));
        Some(Beginning {
            inlet,
            store: Some(taken.store),
            taken: Some(taken.epoch),
            digests: taken.digests,
            restart_at: None,
        })
    }

    /// Opens the broker's stream, after what the process before has left.
    fn open(&mut self, buffer: Option<Arc<Buffer>>, previous: Previous) -> Inlet {
        let (monitor, transport) = (&self.monitor, self.transport());
        if transport == Transport::Amqp {
            let complete = previous.complete_until.unwrap_or(UnixMicros(0));
            monitor.shared.received_all_until(complete);
        }
        let options = EventStreamOptions {
            budget_bytes: match transport {
                Transport::Amqp => monitor.limits.unacknowledged_bytes,
                Transport::Redis => monitor.limits.unread_bytes,
            },
            max_backoff: MAX_BACKOFF,
            last_seen: previous.complete_until,
            previous_queue: previous.event_queue,
            ..EventStreamOptions::default()
        };
        let settings = self.settings.borrow();
        let pump = Pump {
            stream: EventStream::open(settings.broker.clone(), options, self.end.clone()),
            shared: Arc::clone(&monitor.shared),
            settings: self.settings.clone(),
            acknowledged: self.acknowledge.subscribe(),
            drain: self.shutdown.clone(),
            end: self.end.clone(),
        };
        let (sink, source) = if let Some(buffer) = &buffer {
            if settings.has_standby() {
                buffer.keep_digests();
            }
            let source = Source::Buffer(Arc::clone(buffer), Vec::new());
            (Sink::Buffer(Arc::clone(buffer)), source)
        } else {
            let (sender, receiver) = mpsc::channel(PORTIONS);
            (Sink::Channel(sender), Source::Channel(receiver))
        };
        drop(settings);
        self.tasks.push(tokio::spawn(pump.run(sink)));
        Inlet { source, buffer }
    }

    /// Writes, until the end.
    async fn write(mut self, beginning: Beginning) -> Result<(), commit::Error> {
        let (turns, batches) = decoder::turns();
        let (own, own_events) = Own::channel();
        let (archive, desk) = repair::desk();
        let Beginning {
            inlet,
            store,
            taken,
            digests,
            restart_at,
        } = beginning;
        if let Some(epoch) = taken {
            self.monitor.shared.begin_epoch(epoch);
        }
        let committer = self.committer(taken, digests);
        let decoder = Decoder {
            shared: Arc::clone(&self.monitor.shared),
            settings: self.settings.clone(),
            batch: self.monitor.limits.batch,
            limits: self.monitor.limits.decode,
            own: own_events,
            give_up: self.give_up.clone(),
        };
        self.tasks.push(tokio::spawn(decoder.run(inlet.source, turns)));
        let samples = self.spawn_side(archive, own.clone());
        // It outlives the drain, to tell its end.
        let reporter_end = CancellationToken::new();
        let reporter = tokio::spawn(
            Reporter {
                shared: Arc::clone(&self.monitor.shared),
                settings: self.settings.clone(),
                samples,
                buffer: inlet.buffer,
                instance: self.monitor.instance.clone(),
                version: self.monitor.version.clone(),
                shutdown: reporter_end.clone(),
                store,
                orphans: Orphans::new(own),
                desk,
                workers_saved: None,
                restart_at,
                told_complete: None,
                renewed: None,
                digests: KeptDigests::new(taken.is_some()),
                fenced: self.fenced.clone(),
            }
            .run(),
        );
        let result = self.written(tokio::spawn(committer.run(batches))).await;
        reporter_end.cancel();
        if matches!(result, Err(commit::Error::Fenced)) {
            // The one that took over writes the heartbeat now.
            reporter.abort();
        } else {
            self.tasks.push(reporter);
        }
        self.stop().await;
        result
    }

    fn committer(&self, taken: Option<Epoch>, digests: Option<HashSet<u128>>) -> Committer {
        let begin = commit::Begin {
            instance: self.monitor.instance.clone(),
            taken,
            digests,
        };
        Committer::new(
            Arc::clone(&self.monitor.shared),
            self.settings.clone(),
            self.acknowledge.clone(),
            self.give_up.clone(),
            begin,
            self.monitor.limits.decode,
            self.monitor.limits.cache_bytes,
        )
    }

    /// Starts what a writer does beside the event path; returns the newest queue samples. `archive`: where the repair of gaps
    /// asks the store; `own`: where what it finds goes.
    fn spawn_side(&mut self, archive: Archive, own: Own) -> Samples {
        let (newest, samples) = watch::channel(None);
        let spec = self.settings.borrow().broker.clone();
        let queues = Sampler {
            shared: Arc::clone(&self.monitor.shared),
            settings: self.settings.clone(),
            queues: QueueSampler::new(spec.clone()),
            samples: newest,
            shutdown: self.background.clone(),
        };
        let liveness = Liveness {
            shared: Arc::clone(&self.monitor.shared),
            settings: self.settings.clone(),
            control: Control::new(spec.clone()),
            shutdown: self.background.clone(),
            seen: Seen::default(),
        };
        let repair = Repair {
            shared: Arc::clone(&self.monitor.shared),
            settings: self.settings.clone(),
            control: Control::new(spec),
            archive,
            events: own,
            shutdown: self.background.clone(),
        };
        self.tasks.push(tokio::spawn(queues.run()));
        self.tasks.push(tokio::spawn(liveness.run()));
        self.tasks.push(tokio::spawn(repair.run()));
        samples
    }

    /// Waits for the end of the event path: the drain, or another writer.
    async fn written(&self, mut committer: JoinHandle<Result<(), commit::Error>>) -> Result<(), commit::Error> {
        let result = tokio::select! {
            ended = &mut committer => ended,
            () = self.fenced.cancelled() => {
                committer.abort();
                return Err(commit::Error::Fenced);
            }
            () = drained(&self.shutdown, self.monitor.limits.grace) => {
                self.give_up.cancel();
                // A call that hangs is left behind: whether its batch was committed, the next process finds out.
                let ended = tokio::time::timeout(GIVEN_UP_WITHIN, &mut committer).await;
                ended.unwrap_or_else(|_elapsed| {
                    committer.abort();
                    Ok(Ok(()))
                })
            }
        };
        result.unwrap_or_else(|error| {
            tracing::error!(%error, "the event path ended badly");
            Err(commit::Error::Panicked)
        })
    }

    /// Ends all parts. The order matters: nothing more is decoded, then the last acknowledgement is sent, then the connection
    /// closes.
    async fn stop(self) {
        self.give_up.cancel();
        self.shutdown.cancel();
        self.end.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(5), async {
            for task in self.tasks {
                if let Err(error) = task.await {
                    tracing::error!(%error, "a task of the monitor ended badly");
                }
            }
        });
        if ended.await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
    }
}

/// Waits for the shutdown and then for as long as the drain may take.
async fn drained(shutdown: &CancellationToken, grace: Duration) {
    shutdown.cancelled().await;
    tokio::time::sleep(grace).await;
}

async fn tell_changes(
    mut settings: watch::Receiver<Arc<Settings>>,
    tell: impl Fn(&Settings) + Send,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = settings.changed() => match changed {
                Ok(()) => tell(&settings.borrow_and_update()),
                Err(_) => return,
            }
        }
    }
}
