//! What becomes of a deleted broker's rows: they go in steps, and nobody sees them meanwhile.

use std::time::Duration;

use kanchi_store::{ErrorKind, Heartbeat, Purge, Purged, TaskFilter, TaskOrder};

use crate::queries::{id, ids, pages, query};
use crate::world::{World, batch, chunk, failed_tasks, live, now, received, spec, started, succeeded, succeeded_tasks};

const ID: &str = "6b2c9f5e-0000-4000-8000-000000000001";
const OTHER: &str = "6b2c9f5e-0000-4000-8000-000000000002";

#[tokio::test]
async fn deleting_a_broker_leaves_nothing_of_it_and_all_of_others() {
    let world = World::new().await;
    let mut gone = world.monitor("gone").await;
    let mut stays = world.monitor("stays").await;
    for m in [&mut gone, &mut stays] {
        let whole = [received(ID, 0), succeeded(ID, 2)];
        let mut one = batch(
            m.epoch,
            vec![live(ID, &whole, false), live(OTHER, &[received(OTHER, 0)], false)],
        );
        one.head.chunks = vec![chunk(ID, &whole)];
        one.changes.statistics = vec![succeeded_tasks(now(), "shop.charge", 1)];
        one.changes.failures = vec![failed_tasks(now(), "shop.charge", "boom", 1)];
        m.writer.commit(&one).await.unwrap();
        m.reporter.heartbeat(&Heartbeat::default()).await.unwrap();
    }
    world.admin.roll_up().await.unwrap();
    for m in [&mut gone, &mut stays] {
        let mut late = batch(m.epoch, vec![]);
        late.changes.statistics = vec![succeeded_tasks(now(), "shop.late", 1)];
        m.writer.commit(&late).await.unwrap();
    }
    world.admin.order_purge(gone.key).await.unwrap();
    let error = gone.writer.commit(&batch(gone.epoch, vec![])).await.unwrap_err();
    assert!(
        matches!(
            error.kind(),
            ErrorKind::StaleEpoch | ErrorKind::Forbidden | ErrorKind::Unreachable
        ),
        "{error}"
    );
    let again = world.admin.ensure_broker(&spec("gone")).await.unwrap();
    assert_ne!(again, gone.key, "the name is free at once, with an empty history");
    assert_eq!(world.admin.purges_pending().await.unwrap(), 1);
    let mut resting = Purge::new(world.admin.clone(), Duration::from_hours(1));
    assert_eq!(resting.step().await.unwrap(), Purged::Nothing);
    let purge = Purge::new(world.admin.clone(), Duration::ZERO);
    // A chunk, a live task, a task in history; a minute, an hour and a day; what was not rolled up.
    assert_eq!(finished(purge).await, 1 + 2 + 3 + 1);
    assert_eq!(world.admin.purges_pending().await.unwrap(), 0);
    assert_eq!(
        world.sql("select array_agg(broker_id order by broker_id) from kanchi.broker"),
        format!("{{{},{}}}", stays.key.0, again.0)
    );
    for table in [
        "event_chunk",
        "task_live",
        "task",
        "statistic",
        "statistic_delta",
        "failure_group",
        "task_name",
        "batch",
        "heartbeat",
        "writer",
    ] {
        assert_eq!(
            world.sql(&format!("select distinct broker_id from kanchi.{table}")),
            stays.key.0.to_string(),
            "{table}"
        );
    }
    assert_eq!(
        world.sql(&format!(
            "select count(*) from pg_roles where rolname = '{}'",
            gone.url.role()
        )),
        "0"
    );
}

/// Goes on with a reading that is for one broker; returns how many rows went.
async fn finished(mut purge: Purge) -> u64 {
    let mut gone = 0;
    loop {
        let done = purge.step().await.unwrap();
        let Purged::Some { rows } = done else {
            assert_eq!(done, Purged::Brokers { count: 1 });
            return gone;
        };
        gone += rows;
    }
}

/// A day's rows that no upkeep had prepared for are moved into a new partition while a purge is under way: it reads that
/// one, too. And a partition whose retention ends meanwhile is nothing to fail at.
#[tokio::test]
async fn a_purge_meets_partitions_that_come_and_go() {
    let world = World::new().await;
    let mut gone = world.monitor("gone").await;
    let mut one = batch(gone.epoch, vec![]);
    one.head.chunks = vec![chunk(ID, &[received(ID, 0)])];
    gone.writer.commit(&one).await.unwrap();
    world.admin.order_purge(gone.key).await.unwrap();
    let mut purge = Purge::new(world.admin.clone(), Duration::ZERO);
    purge.step().await.unwrap();
    let leaf = world.sql("select tableoid::regclass from kanchi.event_chunk");
    let bounds = world.sql(&format!(
        "select pg_get_expr(relpartbound, oid) from pg_class where oid = '{leaf}'::regclass"
    ));
    world.sql(&format!(
        "set role kanchi;
         create table kanchi.event_chunk_late (like {leaf} including all);
         insert into kanchi.event_chunk_late select * from {leaf};
         drop table {leaf};
         alter table kanchi.event_chunk_7 attach partition kanchi.event_chunk_late {bounds}"
    ));
    assert_eq!(finished(purge).await, 1);
    assert_eq!(world.sql("select count(*) from kanchi.event_chunk"), "0");
}

/// A list of all brokers does not know which rows are still there: those of the broker that leaves lie among the others'.
#[tokio::test]
async fn a_broker_that_is_being_purged_is_in_no_list() {
    let world = World::new().await;
    let mut gone = world.monitor("gone").await;
    let mut stays = [world.monitor("orders").await, world.monitor("mail").await];
    let (mut wanted, mut number) = (Vec::new(), 0);
    for second in 0..20 {
        for m in [&mut gone].into_iter().chain(&mut stays) {
            let id = id(number);
            // One in four is still open.
            let mut events = vec![received(&id, second), started(&id, second)];
            if second % 4 > 0 {
                events.push(succeeded(&id, second));
            }
            m.writer
                .commit(&batch(m.epoch, vec![live(&id, &events, false)]))
                .await
                .unwrap();
            if number % 3 > 0 {
                wanted.push(id);
            }
            number += 1;
        }
    }
    world.admin.order_purge(gone.key).await.unwrap();
    let query = query(&world).await;
    let mut purge = Purge::new(world.admin.clone(), Duration::ZERO);
    loop {
        let all = pages(&query, &TaskFilter::default(), TaskOrder::Arrived, 7).await;
        let mut found = ids(&all);
        found.sort_unstable();
        assert_eq!(found, wanted);
        assert!(query.task(None, &id(0), now()).await.unwrap().is_empty());
        let counted = query.count_by_state(&TaskFilter::default(), now()).await.unwrap();
        let tasks: u64 = counted.by_state.values().sum();
        // On a slow machine its time ends before it has counted all.
        let is_right = if counted.at_least_since.is_none() {
            tasks == 40
        } else {
            tasks < 40
        };
        assert!(is_right, "{counted:?}");
        if purge.step().await.unwrap() == (Purged::Brokers { count: 1 }) {
            return;
        }
    }
}
