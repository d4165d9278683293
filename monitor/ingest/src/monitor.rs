//! One monitor: its tasks, how they are joined, and in which order they end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kanchi_broker::{Control, EventStream, EventStreamOptions, QueueSampler};
use kanchi_contract::Transport;
use kanchi_domain::{Limits, UnixMicros};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::buffer::Buffer;
use crate::commit::{self, Committer};
use crate::decoder::{self, Decoder};
use crate::filling::BatchLimits;
use crate::liveness::{Liveness, Seen};
use crate::orphans::Orphans;
use crate::own::Own;
use crate::repair::{self, Repair};
use crate::report::{self, Reporter};
use crate::sampler::Sampler;
use crate::settings::{Loaded, Settings, watch_directory};
use crate::shared::Shared;
use crate::source::{PORTIONS, Pump, Sink, Source};
use crate::spool::{Spool, SpoolOptions};

/// Bounds of a monitor. Together they keep it well below a container limit of 128 MiB.
#[derive(Clone, Debug)]
pub struct MonitorLimits {
    /// RabbitMQ: delivered and not yet acknowledged.
    pub unacknowledged_bytes: usize,
    /// Redis: read and not yet moved into the ring; what does not fit is lost, so it must hold a few large messages.
    pub unread_bytes: usize,
    /// Redis: messages waiting in memory.
    pub ring_bytes: usize,
    /// Redis: messages waiting on disk.
    pub spool_bytes: u64,
    /// Facts of recent tasks.
    pub cache_bytes: usize,
    /// One batch; one is being stored, and one is made meanwhile.
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
            ring_bytes: 8 * 1024 * 1024,
            // Nine tenths of the volume: the kubelet evicts a pod whose emptyDir passes its limit.
            spool_bytes: kanchi_contract::SPOOL_BYTES / 10 * 9,
            cache_bytes: 10 * 1024 * 1024,
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
    /// Name of this process.
    pub instance: String,
    /// Version of this build.
    pub version: String,
}

/// Segments are deleted whole, so small ones free space sooner.
const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;

/// How long the start waits for the store to say where the last process stopped.
const ASK_STORE: Duration = Duration::from_secs(5);

/// Once waiting is given up, a call to the store may take so long.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(2);

/// Longest pause between two attempts to reach a broker: a restarted one is seen again within it.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

impl Monitor {
    /// Runs until the token is cancelled and the drain is done, or until another writer takes over.
    /// `settings_changed` is told of each configuration in force.
    pub async fn run(
        self,
        shutdown: CancellationToken,
        settings_changed: impl Fn(&Settings) + Send + 'static,
    ) -> Result<(), commit::Error> {
        let (settings_sender, settings) = watch::channel(Arc::new(self.loaded.settings.clone()));
        let transport = self.loaded.settings.broker.url.transport();
        let buffer = (transport == Transport::Redis).then(|| Arc::new(self.buffer()));
        let background = shutdown.child_token();
        let end = CancellationToken::new();
        let give_up = CancellationToken::new();

        let (store, previous) = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            previous = report::previous(&settings, ASK_STORE) => previous,
        };
        let asked = store.is_some();
        if transport == Transport::Amqp {
            self.shared
                .received_all_until(previous.complete_until.unwrap_or(UnixMicros(0)));
        }
        let options = EventStreamOptions {
            budget_bytes: match transport {
                Transport::Amqp => self.limits.unacknowledged_bytes,
                Transport::Redis => self.limits.unread_bytes,
            },
            max_backoff: MAX_BACKOFF,
            last_seen: previous.complete_until,
            previous_queue: previous.event_queue,
            ..EventStreamOptions::default()
        };
        let spec = self.loaded.settings.broker.clone();
        let stream = EventStream::open(spec.clone(), options, end.clone());

        let (acknowledge, acknowledged) = watch::channel(0);
        let (turns, batches) = decoder::turns();
        let (own, own_events) = Own::channel();
        let (archive, desk) = repair::desk();
        let (sink, source) = if let Some(buffer) = &buffer {
            (
                Sink::Buffer(Arc::clone(buffer)),
                Source::Buffer(Arc::clone(buffer), Vec::new()),
            )
        } else {
            let (sender, receiver) = mpsc::channel(PORTIONS);
            (Sink::Channel(sender), Source::Channel(receiver))
        };
        let pump = Pump {
            stream,
            shared: Arc::clone(&self.shared),
            settings: settings.clone(),
            acknowledged,
            drain: shutdown.clone(),
            end: end.clone(),
        };
        let decoder = Decoder {
            shared: Arc::clone(&self.shared),
            settings: settings.clone(),
            batch: self.limits.batch,
            limits: self.limits.decode,
            own: own_events,
            give_up: give_up.clone(),
        };
        let committer = Committer::new(
            Arc::clone(&self.shared),
            settings.clone(),
            acknowledge,
            give_up.clone(),
            self.instance.clone(),
            self.limits.decode,
            self.limits.cache_bytes,
        );
        let pump = tokio::spawn(pump.run(sink));
        let decoder = tokio::spawn(decoder.run(source, turns));
        let mut committer = tokio::spawn(committer.run(batches));

        // Tasks beside the event path; the reporter outlives the drain, to tell its end.
        let reporter_end = CancellationToken::new();
        let (samples_sender, samples) = watch::channel(None);
        let mut side: Vec<JoinHandle<()>> = vec![
            tokio::spawn(
                Sampler {
                    shared: Arc::clone(&self.shared),
                    settings: settings.clone(),
                    queues: QueueSampler::new(spec.clone()),
                    samples: samples_sender,
                    shutdown: background.clone(),
                }
                .run(),
            ),
            tokio::spawn(
                Liveness {
                    shared: Arc::clone(&self.shared),
                    settings: settings.clone(),
                    control: Control::new(spec.clone()),
                    shutdown: background.clone(),
                    seen: Seen::default(),
                }
                .run(),
            ),
            tokio::spawn(
                Repair {
                    shared: Arc::clone(&self.shared),
                    settings: settings.clone(),
                    control: Control::new(spec),
                    archive,
                    events: own.clone(),
                    shutdown: background.clone(),
                }
                .run(),
            ),
            tokio::spawn(watch_directory(
                self.config_directory.clone(),
                self.loaded.fingerprint,
                settings_sender,
                Arc::clone(&self.shared),
                background.clone(),
            )),
            tokio::spawn(tell_changes(settings.clone(), settings_changed, background.clone())),
        ];
        let reporter = tokio::spawn(
            Reporter {
                shared: Arc::clone(&self.shared),
                settings,
                samples,
                buffer,
                instance: self.instance.clone(),
                version: self.version.clone(),
                shutdown: reporter_end.clone(),
                store,
                orphans: Orphans::new(own),
                desk,
                workers_saved: None,
                restart_at: (!asked && transport == Transport::Redis).then(|| self.shared.now()),
                told_complete: None,
            }
            .run(),
        );

        let result = tokio::select! {
            ended = &mut committer => ended,
            () = drained(&shutdown, self.limits.grace) => {
                give_up.cancel();
                // A call that hangs is left behind: whether its batch was committed, the next process finds out.
                let ended = tokio::time::timeout(GIVEN_UP_WITHIN, &mut committer).await;
                ended.unwrap_or_else(|_elapsed| {
                    committer.abort();
                    Ok(Ok(()))
                })
            }
        };
        let fenced = matches!(result, Ok(Err(commit::Error::Fenced)));
        // The order matters: nothing more is decoded, then the last acknowledgement is sent, then the connection closes.
        give_up.cancel();
        shutdown.cancel();
        end.cancel();
        reporter_end.cancel();
        side.push(decoder);
        side.push(pump);
        if fenced {
            // The one that took over writes the heartbeat now.
            reporter.abort();
        } else {
            side.push(reporter);
        }
        let ended = tokio::time::timeout(Duration::from_secs(5), async {
            for task in side {
                if let Err(error) = task.await {
                    tracing::error!(%error, "a task of the monitor ended badly");
                }
            }
        });
        if ended.await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        match result {
            Ok(result) => result,
            Err(error) => {
                tracing::error!(%error, "the event path ended badly");
                Err(commit::Error::Panicked)
            }
        }
    }

    fn buffer(&self) -> Buffer {
        let options = SpoolOptions {
            directory: self.spool_directory.clone(),
            max_bytes: self.limits.spool_bytes,
            segment_bytes: SEGMENT_BYTES,
        };
        let spool = match Spool::open(options) {
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
