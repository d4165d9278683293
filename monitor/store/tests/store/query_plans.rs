//! Each named query has its index: a lost one fails here, not in front of a user.

use kanchi_domain::UnixMicros;
use kanchi_store::{PageRequest, StoreQuery, TaskFilter, TaskOrder, Words};

use crate::plans::explaining;
use crate::world::{World, now};

/// The queries, the table they read, and how each of its partitions must be gone about.
const QUERIES: [(&str, &str, &[&str]); 11] = [
    ("newest", "task", &["(broker_id = b.broker_id) AND (COALESCE("]),
    ("next page", "task", &["(broker_id = b.broker_id) AND (COALESCE("]),
    ("name", "task", &["AND (hashtext(name) = hashtext("]),
    ("worker", "task", &["AND (hashtext(worker) = hashtext("]),
    (
        "unsuccessful",
        "task",
        &["((broker_id)::bigint = b.broker_id) AND (COALESCE("],
    ),
    (
        "many brokers",
        "task",
        &["(((COALESCE(received_at, sent_at, started_at, finished_at, stored_at) AT TIME ZONE 'UTC'"],
    ),
    ("by end", "task", &["(broker_id = b.broker_id) AND (finished_at"]),
    ("by id", "task", &["(((generation)::bigint << 40) |"]),
    // The root is found by its id.
    (
        "family",
        "task",
        &[
            "(hashtextextended(root_id, '0'::bigint) = hashtextextended(",
            "(((generation)::bigint << 40) |",
        ],
    ),
    (
        "children",
        "task",
        &["AND (hashtextextended(parent_id, '0'::bigint) = hashtextextended("],
    ),
    (
        "events",
        "event_chunk",
        &[") AND (hashtextextended(task_id, '0'::bigint) = hashtextextended("],
    ),
];

/// Indexes, and the queries that cannot do without.
const INDEXES: [(&str, &[&str]); 7] = [
    ("task_arrived", &["newest", "next page", "name", "worker"]),
    ("task_unsuccessful", &["unsuccessful"]),
    ("task_arrived_any", &["many brokers"]),
    ("task_finished", &["by end"]),
    ("task_id_key", &["by id"]),
    ("task_family", &["family", "children"]),
    ("event_chunk_task", &["events"]),
];

const ROWS: &str = "
    insert into kanchi.task (broker_id, retention_days, task_id, state, name, queue, queue_inferred, worker, retries, root_id,
        parent_id, received_at, finished_at, facts)
    select 1 + n % 3, case n % 2 when 0 then 14 else 30 end, 'task-' || n, case n % 20 when 0 then 'FAILURE' else 'SUCCESS' end,
        'shop.task' || n % 50, 'queue' || n % 7, false, 'worker' || n % 9, 0, 'task-' || n / 10 * 10,
        case when n % 10 > 0 then 'task-' || n / 10 * 10 end, now() - n * interval '1 minute', now() - n * interval '1 minute', ''
    from generate_series(1, 5000) as n;
    insert into kanchi.event_chunk (broker_id, retention_days, task_id, first_at, event_count, events)
    select 1, 7, 'task-' || n, now(), 1, '[]' from generate_series(1, 5000) as n;
    analyze";

async fn ask(query: &StoreQuery, name: &str) {
    let mut filter = TaskFilter {
        brokers: Some(vec![1, 2]),
        ..TaskFilter::default()
    };
    let mut order = TaskOrder::Arrived;
    let mut request = PageRequest::first(50);
    match name {
        "name" => filter.name = Words::one("shop.task7"),
        "worker" => filter.worker = Words::one("worker7"),
        "unsuccessful" => filter.state = Words::one("FAILURE"),
        "many brokers" => filter.brokers = Some((1..100).collect()),
        "by end" => order = TaskOrder::Finished,
        "next page" => {
            let first = query.tasks(&filter, order, &request, now()).await.unwrap();
            request.cursor = first.next;
        }
        _ => {}
    }
    match name {
        // The rows have no facts: that they cannot be read says that they were found.
        "by id" => drop(query.task(Some(&[1, 2, 3]), "task-7", UnixMicros(0)).await.unwrap_err()),
        "family" => drop(query.family(1, "task-10", None, 100, now()).await.unwrap()),
        "children" => drop(query.family(1, "task-10", Some("task-10"), 100, now()).await.unwrap()),
        "events" => drop(query.task_events(1, "task-7", None, 100).await.unwrap()),
        _ => drop(query.tasks(&filter, order, &request, now()).await.unwrap()),
    }
}

/// Asks and returns the nodes of its plans that read a partition of the table in another way than wanted; `None` when the
/// log has no plan that reads one. Asks again where there are some: a query that was left before its last row ends, and is
/// logged, when its connection is used the next time.
async fn astray(world: &World, query: &StoreQuery, one: (&str, &str, &[&str])) -> Option<Vec<String>> {
    let nodes = astray_once(world, query, one).await;
    if nodes.as_ref().is_some_and(|nodes| !nodes.is_empty()) {
        return astray_once(world, query, one).await;
    }
    nodes
}

async fn astray_once(
    world: &World,
    query: &StoreQuery,
    (name, table, ways): (&str, &str, &[&str]),
) -> Option<Vec<String>> {
    let before = world.server.log().len();
    ask(query, name).await;
    let log = world.server.log();
    let nodes: Vec<String> = log[before..]
        .split("->")
        .map(|node| node.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|node| {
            let partition = node.split_once(&format!(" on {table}_")).map(|(_, rest)| rest);
            partition.is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
        })
        .collect();
    let is_astray = |node: &String| match node.split_once("Index Cond: ") {
        Some((_, condition)) => {
            let condition = condition.split(" Filter: ").next().unwrap_or_default();
            !ways.iter().any(|way| condition.contains(way))
        }
        None => true,
    };
    (!nodes.is_empty()).then(|| nodes.into_iter().filter(is_astray).collect())
}

#[tokio::test]
async fn each_query_has_its_index_and_misses_it_when_it_is_gone() {
    let world = World::on(explaining()).await;
    world.admin.upkeep(now()).await.unwrap();
    // Plans are made while the tables are empty, and kept.
    let query = StoreQuery::connect(&world.owner).await.unwrap();
    for one in QUERIES.iter().filter(|one| !matches!(one.0, "by id" | "next page")) {
        ask(&query, one.0).await;
    }
    world.sql(ROWS);
    for one in QUERIES {
        assert_eq!(astray(&world, &query, one).await.as_deref(), Some(&[][..]), "{}", one.0);
    }
    assert!(
        !world.server.log().contains("Seq Scan on task_live"),
        "the live tasks are read one by one"
    );

    for (index, queries) in INDEXES {
        let definition = world.sql(&format!("select pg_get_indexdef('kanchi.{index}'::regclass)"));
        world.sql(&format!("drop index kanchi.{index}"));
        for one in QUERIES.iter().filter(|one| queries.contains(&one.0)) {
            let nodes = astray(&world, &query, *one).await;
            assert!(
                nodes.is_some_and(|nodes| !nodes.is_empty()),
                "{} does without {index}",
                one.0
            );
        }
        world.sql(&definition.replace("ON ONLY", "ON"));
    }
    let needed: Vec<&str> = INDEXES.iter().flat_map(|(_, queries)| *queries).copied().collect();
    assert!(
        QUERIES.iter().all(|one| needed.contains(&one.0)),
        "a query without an index: {needed:?}"
    );
    let there = world.sql(
        "select count(*) from pg_index where indrelid in ('kanchi.task'::regclass, 'kanchi.event_chunk'::regclass)",
    );
    assert_eq!(there, INDEXES.len().to_string(), "an index that no query needs");
}
