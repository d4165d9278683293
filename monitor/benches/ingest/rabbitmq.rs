//! RabbitMQ: a full queue is emptied, beside a consumer that only acknowledges while the same rows are copied.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use kanchi_contract::EventQueueType;
use kanchi_test_load::{AmqpPublisher, Stream, Workload};
use kanchi_test_servers::postgres::Postgres;
use kanchi_test_servers::processor_seconds;
use kanchi_test_servers::rabbitmq::Rabbitmq;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};

use crate::Sizes;
use crate::drive::{self, Blocking, Brake, Until, stored};
use crate::figures::{Figures, Processor, say};
use crate::floor;
use crate::older::{Store, register};
use crate::server::Written;

/// Queue of the consumer that only acknowledges.
const QUEUE: &str = "bench.only-acknowledged";

/// The queue fills at the pace of a large fleet: published as fast as the broker takes them, the events of a task that takes
/// milliseconds would lie thousands of others apart.
const FLEET: Brake<'_> = Brake::Steady(25_000);

/// Processor seconds that a broker with nothing to do may use in a second; it counts its own statistics.
const AT_REST: f64 = 0.15;

/// Tells the seeds of these streams from those of Redis, which are stored in the same place.
const SEEDS: u64 = 1 << 33;

/// Measures a queue of this type in one run of so many.
pub(crate) fn measure(
    store: &mut Store,
    runtime: &tokio::runtime::Runtime,
    queue: EventQueueType,
    run: u64,
    sizes: Sizes,
) -> Result<Figures> {
    let name = match queue {
        EventQueueType::Classic => "classic",
        EventQueueType::Quorum => "quorum",
    };
    let workload = Workload::realistic(run + SEEDS);
    let rabbit = Rabbitmq::start_new()?;
    let mut broker = runtime.block_on(register(&store.rig, &format!("{name}-{run}"), &rabbit.url()))?;
    broker.config.celery.event_queue.queue_type = queue;
    // Everything waits in the queue at once.
    broker.config.celery.event_queue.max_length_bytes = 1 << 36;
    broker.write_config(|_| {})?;
    let rig = &mut store.rig;
    let publisher = runtime.block_on(AmqpPublisher::connect(&rabbit.url()))?;
    // The queue is made by a first monitor and stays when it ends; a second queue gets the same messages.
    let mut monitor = broker.monitor(&[])?;
    monitor.connected()?;
    monitor.terminate()?;
    runtime.block_on(second_queue(&publisher, queue))?;
    let mut stream = Stream::new(workload);
    let mut blocking = Blocking {
        runtime,
        publisher: &publisher,
    };
    drive::publish(&mut stream, &mut blocking, Until::Events(sizes.queued), FLEET)?;
    let events = stream.events();
    rested(&rabbit)?;

    // What is dirty from before is not this queue's cost, nor F's.
    rig.sql("checkpoint")?;
    let (before, written) = (rig.events()?, Written::so_far(rig)?);
    let used = Processor::so_far(0, rig.postgres.pid(), rabbit.pid());
    let started = Instant::now();
    let mut monitor = broker.monitor(&[])?;
    monitor.until("everything is stored", Duration::from_mins(30), |monitor| {
        stored(monitor) >= events
    })?;
    let elapsed = started.elapsed().as_secs_f64();
    let processor = Processor::so_far(monitor.pid(), rig.postgres.pid(), rabbit.pid()).since(used, events);
    let peak = monitor.peak_memory();
    monitor.terminate()?;
    let written = Written::so_far(rig)?.since(written);
    rig.postgres.stop()?;
    rig.postgres.start()?;
    let lost = events as i64 - (rig.events()? - before) as i64;
    rested(&rabbit)?;
    let against = runtime.block_on(acknowledge_beside_copy(&rabbit, &rig.postgres, workload, events))?;
    Ok(Figures {
        name: format!("RabbitMQ, {name}"),
        events,
        lost,
        rate: events as f64 / elapsed,
        against,
        processor: Processor {
            publisher: 0.0,
            ..processor
        },
        peak,
        written,
        required: 0.8,
    })
}

/// Waits until the broker has done what earlier work left to it: quorum queues copy what was published from their common
/// log into files of their own, for seconds and on a whole core, which is neither measurement's cost.
fn rested(rabbit: &Rabbitmq) -> Result<()> {
    let began = Instant::now();
    loop {
        let before = processor_seconds(rabbit.pid());
        std::thread::sleep(Duration::from_secs(1));
        if processor_seconds(rabbit.pid()) - before < AT_REST {
            return Ok(());
        }
        ensure!(
            began.elapsed() < Duration::from_mins(5),
            "the broker does not come to rest"
        );
    }
}

async fn second_queue(publisher: &AmqpPublisher, queue: EventQueueType) -> Result<()> {
    let durable = QueueDeclareOptions {
        durable: true,
        ..Default::default()
    };
    let mut arguments = FieldTable::default();
    if queue == EventQueueType::Quorum {
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    }
    publisher
        .channel
        .queue_declare(QUEUE.into(), durable, arguments)
        .await?;
    publisher
        .channel
        .queue_bind(
            QUEUE.into(),
            "celeryev".into(),
            "#".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await?;
    Ok(())
}

/// The rate at which a consumer that only acknowledges, and a COPY of the same rows beside it, are both done.
async fn acknowledge_beside_copy(
    rabbit: &Rabbitmq,
    postgres: &Postgres,
    workload: Workload,
    events: u64,
) -> Result<f64> {
    let file = floor::rows(workload, events)?;
    floor::prepare(postgres)?;
    let connection = lapin::Connection::connect(&rabbit.url(), lapin::ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let waiting = channel
        .queue_declare(
            QUEUE.into(),
            QueueDeclareOptions {
                passive: true,
                ..Default::default()
            },
            FieldTable::default(),
        )
        .await?
        .message_count();
    channel.basic_qos(2_000, BasicQosOptions::default()).await?;
    let mut consumer = channel
        .basic_consume(
            QUEUE.into(),
            "bench".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let used = Processor::so_far(0, postgres.pid(), rabbit.pid());
    let started = Instant::now();
    let mut copy = floor::command(postgres, file.path()).spawn()?;
    for number in 1..=waiting {
        let delivery = consumer.next().await.context("the consumer ended")??;
        if number % 500 == 0 || number == waiting {
            delivery.ack(BasicAckOptions { multiple: true }).await?;
        }
    }
    let copied = tokio::task::spawn_blocking(move || copy.wait()).await??;
    ensure!(copied.success(), "psql");
    let elapsed = started.elapsed().as_secs_f64();
    let used = Processor::so_far(0, postgres.pid(), rabbit.pid()).since(used, events);
    say(&format!(
        "only acknowledged, beside a COPY: {:.1} µs an event of the broker, {:.1} of Postgres, {:.1} of the consumer; {waiting} messages",
        used.broker * 1e6,
        used.postgres * 1e6,
        used.publisher * 1e6,
    ));
    Ok(events as f64 / elapsed)
}
