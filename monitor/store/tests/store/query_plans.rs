//! Each named query has its index: a lost one fails here, not in front of a user.

use kanchi_domain::{Fingerprint, UnixMicros};
use kanchi_store::statistics::{Dimension, Select, StatisticsQuery, Transition};
use kanchi_store::{FailureOrder, PageRequest, StoreQuery, TaskFilter, TaskOrder, Words};

use crate::plans::explaining;
use crate::world::{World, now};

/// The queries, the table they read, and how each of its partitions, or it itself, must be gone about: a part of the
/// condition on an index, or the index by name, where another one could take the same condition.
const QUERIES: [(&str, &str, &[&str]); 29] = [
    ("newest", "task", &["(broker_id = b.broker_id) AND (COALESCE("]),
    ("next page", "task", &["(broker_id = b.broker_id) AND (COALESCE("]),
    ("name", "task", &["AND (hashtext(name) = hashtext("]),
    ("queue", "task", &["AND (hashtext(queue) = hashtext("]),
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
    ("count", "task", &["(broker_id = b.broker_id) AND (COALESCE("]),
    (
        "count of many brokers",
        "task",
        &["(((COALESCE(received_at, sent_at, started_at, finished_at, stored_at) AT TIME ZONE 'UTC'"],
    ),
    // The live tasks of the page, their facts, and the live row of each settled one.
    (
        "live",
        "task_live",
        &[
            "((broker_id)::bigint = b.broker_id) AND (first_seen_at",
            ".broker_id) AND (task_id = ",
        ],
    ),
    (
        "live by id",
        "task_live",
        &["(broker_id = b.broker_id) AND (task_id = "],
    ),
    ("generations", "task_generation", &["task_generation_pkey"]),
    (
        "failures",
        "failure_group",
        &["(broker_id = b.broker_id) AND (last_seen_at <= "],
    ),
    // All groups of a broker, by whichever index.
    ("failures by count", "failure_group", &["(broker_id = b.broker_id)"]),
    ("failure group", "failure_group", &["failure_group_pkey"]),
    ("task names", "task_name", &["(broker_id = b.broker_id) AND (name >= "]),
    ("workers", "worker", &["(broker_id = b.broker_id)"]),
    ("queues", "queue", &["(broker_id = b.broker_id)"]),
    ("queue samples", "queue_sample", &["AND (sampled_at >= "]),
    ("gaps", "gap", &["AND (from_at < "]),
    ("chart", "statistic", &["AND (key = k.key) AND (starts_at >= "]),
    ("fresh chart", "statistic_delta", &["AND (minute >= "]),
    // Which keys have the most, and what these come to.
    (
        "figures",
        "statistic",
        &["(broker_id = ANY (", "AND (key = k.key) AND (starts_at >= "],
    ),
    ("fresh figures", "statistic_delta", &["AND (minute >= "]),
];

/// Indexes, and the queries that cannot do without.
const INDEXES: [(&str, &[&str]); 20] = [
    (
        "task_arrived",
        &["newest", "next page", "name", "queue", "worker", "count"],
    ),
    ("task_unsuccessful", &["unsuccessful"]),
    ("task_arrived_any", &["many brokers", "count of many brokers"]),
    ("task_finished", &["by end"]),
    ("task_id_key", &["by id"]),
    ("task_family", &["family", "children"]),
    ("event_chunk_task", &["events"]),
    ("task_live_first_seen", &["live"]),
    ("task_live_pkey", &["live", "live by id"]),
    ("task_generation_pkey", &["generations"]),
    ("failure_group_last_seen", &["failures"]),
    ("failure_group_pkey", &["failure group"]),
    ("task_name_pkey", &["task names"]),
    ("worker_pkey", &["workers"]),
    ("queue_pkey", &["queues"]),
    ("queue_sample_time", &["queue samples"]),
    ("gap_from", &["gaps"]),
    ("statistic_pkey", &["figures"]),
    ("statistic_key", &["chart"]),
    ("statistic_delta_minute", &["fresh chart", "fresh figures"]),
];

/// Queries that two indexes serve, either of which may go.
const EITHER: [&str; 1] = ["failures by count"];

/// Indexes that no page needs, and why they are there.
const NOT_FOR_PAGES: [(&str, &str); 15] = [
    ("installation_pkey", "one row"),
    ("upkeep_pkey", "one row"),
    ("upkeep_lock_pkey", "one row"),
    ("roll_up_pkey", "one row"),
    ("migration_pkey", "a row for each migration"),
    (
        "broker_pkey",
        "monitors and the operator, which know a broker by its key",
    ),
    (
        "broker_identity",
        "the operator, which may not make a broker of one name twice",
    ),
    (
        "heartbeat_pkey",
        "monitors, one row each; the operator reads all of them at once",
    ),
    ("writer_pkey", "monitors, one row each"),
    ("lease_pkey", "monitors, one row each"),
    ("batch_pkey", "monitors, which commit no batch twice"),
    (
        "batch_committed",
        "monitors, and who asks whether one is there: its last commit",
    ),
    ("dead_letter_pkey", "monitors, which keep the newest thousand"),
    ("gap_pkey", "monitors, which write a gap again when it ends"),
    ("task_live_due", "monitors, which settle what is due: see plans.rs"),
];

/// Indexes that nothing needs: whoever reads these samples moves theirs up.
const NOT_READ_YET: [&str; 1] = ["worker_sample_time"];

const ROWS: &str = "
    insert into kanchi.broker (broker_id, namespace_uid, namespace, name, succeeded_days, failed_days, events_days,
        statistics_days)
    select n, 'uid-of-shop', 'shop', 'broker' || n, 14, 30, 7, 90 from generate_series(1, 3) as n;
    insert into kanchi.task (broker_id, retention_days, task_id, state, name, queue, queue_inferred, worker, retries, root_id,
        parent_id, received_at, finished_at, facts)
    select 1 + n % 3, case n % 2 when 0 then 14 else 30 end, 'task-' || n, case n % 20 when 0 then 'FAILURE' else 'SUCCESS' end,
        'shop.task' || n % 50, 'queue' || n % 7, false, 'worker' || n % 9, 0, 'task-' || n / 10 * 10,
        case when n % 10 > 0 then 'task-' || n / 10 * 10 end, now() - n * interval '1 minute', now() - n * interval '1 minute', ''
    from generate_series(1, 5000) as n;
    insert into kanchi.event_chunk (broker_id, retention_days, task_id, first_at, event_count, events)
    select 1, 7, 'task-' || n, now(), 1, '[]' from generate_series(1, 5000) as n;
    insert into kanchi.failure_group (broker_id, fingerprint, task, exception_class, message, failed, critical, first_seen_at,
        last_seen_at, last_task_id, example)
    select 1 + n % 3, md5('failure' || n)::uuid, 'shop.task' || n % 50, 'ValueError', 'message ' || n, n, 0, now(),
        now() - n * interval '1 minute', 'task-' || n, ''
    from generate_series(1, 1000) as n;
    insert into kanchi.task_name (broker_id, name, first_seen_at, last_seen_at)
    select 1 + n % 3, 'shop.task' || n, now(), now() from generate_series(1, 1000) as n;
    insert into kanchi.worker (broker_id, hostname, state, last_event_at)
    select 1 + n % 3, 'worker' || n, 'online', now() from generate_series(1, 1000) as n;
    insert into kanchi.queue (broker_id, name, ready, sampled_at)
    select 1 + n % 3, 'queue' || n, 0, now() from generate_series(1, 1000) as n;
    insert into kanchi.queue_sample (broker_id, retention_days, sampled_at, queue_name, ready)
    select 1 + n % 3, 7, now() - n * interval '1 minute', 'queue' || n % 7, 0 from generate_series(1, 5000) as n;
    insert into kanchi.gap (broker_id, gap_id, from_at, to_at, cause)
    select 1 + n % 3, md5('gap' || n)::uuid, now() - n * interval '1 minute', now(), 'Restart' from generate_series(1, 1000) as n;
    analyze kanchi.broker, kanchi.task, kanchi.task_live, kanchi.event_chunk, kanchi.failure_group, kanchi.task_name,
        kanchi.worker, kanchi.queue, kanchi.queue_sample, kanchi.gap;
    insert into kanchi.statistic (broker_id, retention_days, stored_at, step_seconds, starts_at, dimension, key, sent,
        received, started, retried, succeeded, failed, revoked, rejected, expired, orphaned, recovered, critical,
        runtime_micros, runtime, wait_micros, wait)
    select 1 + n % 3, 14, date_trunc('day', now(), 'UTC'), 60, date_trunc('minute', now()) - n * interval '1 minute', 'task', 'shop.task7',
        1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, '\\x00', 0, '\\x00'
    from generate_series(1, 5000) as n;
    insert into kanchi.statistic_delta (broker_id, minute, payload)
    select 1 + n % 3, date_trunc('minute', now()) - n * interval '1 minute', '\\x00' from generate_series(1, 5000) as n";

fn last_hour(select: Select) -> StatisticsQuery {
    let now = now();
    StatisticsQuery {
        brokers: Some(vec![1, 2]),
        dimension: Dimension::Task,
        select,
        from: UnixMicros(now.0 - 3_600_000_000),
        to: now,
        now,
    }
}

async fn ask(query: &StoreQuery, name: &str) {
    let mut filter = TaskFilter {
        brokers: Some(vec![1, 2]),
        ..TaskFilter::default()
    };
    let mut order = TaskOrder::Arrived;
    let mut request = PageRequest::first(50);
    match name {
        "name" => filter.name = Words::one("shop.task7"),
        "queue" => filter.queue = Words::one("queue3"),
        "worker" => filter.worker = Words::one("worker7"),
        "unsuccessful" => filter.state = Words::one("FAILURE"),
        "many brokers" | "count of many brokers" => filter.brokers = Some((1..100).collect()),
        "by end" => order = TaskOrder::Finished,
        "next page" => {
            let first = query.tasks(&filter, order, &request, now()).await.unwrap();
            request.cursor = first.next;
        }
        _ => {}
    }
    let first = PageRequest::first(50);
    let brokers = Some(&[1, 2][..]);
    match name {
        "chart" | "fresh chart" => {
            let keys = Select::Keys(vec!["shop.task7".into()]);
            drop(query.chart(&last_hour(keys), None).await.unwrap());
        }
        "figures" | "fresh figures" => {
            let top = Select::Top {
                by: Transition::Succeeded,
                count: 5,
            };
            drop(query.figures(&last_hour(top)).await.unwrap());
        }
        // The rows have no facts: that they cannot be read says that they were found.
        "by id" | "live by id" | "generations" => {
            drop(query.task(Some(&[1, 2, 3]), "task-7", UnixMicros(0)).await.unwrap_err());
        }
        "family" => drop(query.family(1, "task-10", None, 100, now()).await.unwrap()),
        "children" => drop(query.family(1, "task-10", Some("task-10"), 100, now()).await.unwrap()),
        "events" => drop(query.task_events(1, "task-7", None, 100).await.unwrap()),
        "count" | "count of many brokers" => drop(query.count_by_state(&filter, now()).await.unwrap()),
        "failures" | "failures by count" => {
            let order = match name {
                "failures" => FailureOrder::LastSeen,
                _ => FailureOrder::Count,
            };
            drop(query.failure_groups(brokers, None, order, &first).await.unwrap());
        }
        "failure group" => drop(query.failure_group(1, Fingerprint(7)).await.unwrap()),
        "task names" => drop(query.task_names(brokers, "shop", None, 50).await.unwrap()),
        "workers" => drop(query.workers(brokers, None, 50).await.unwrap()),
        "queues" => drop(query.queues(brokers, None, 50).await.unwrap()),
        "queue samples" => {
            let (from, to) = (UnixMicros(now().0 - 3_600_000_000), now());
            drop(query.queue_samples(1, "queue3", from, to, 50).await.unwrap());
        }
        "gaps" => drop(query.gaps(1, now(), 50).await.unwrap()),
        _ => drop(query.tasks(&filter, order, &request, now()).await.unwrap()),
    }
}

/// Asks and returns the nodes of its plans that read the table, or a partition of it, in another way than wanted; `None` when
/// the log has no plan that reads one. Asks again then, and where there are some: a query that was left before its last row
/// ends, and is logged, when its connection is used the next time.
async fn astray(world: &World, query: &StoreQuery, one: (&str, &str, &[&str])) -> Option<Vec<String>> {
    let nodes = astray_once(world, query, one).await;
    if nodes.as_ref().is_none_or(|nodes| !nodes.is_empty()) {
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
    let on = format!(" on {table}");
    let nodes: Vec<String> = log[before..]
        .split("->")
        .flat_map(|plans| plans.split("Query Text: "))
        .map(|node| node.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|node| {
            node.split_once(&on).is_some_and(|(_, rest)| {
                let is_of_partition = |rest: &str| rest.starts_with(|first: char| first.is_ascii_digit());
                rest.starts_with(' ') || rest.strip_prefix('_').is_some_and(is_of_partition)
            })
        })
        .collect();
    let is_astray = |node: &String| {
        let (scan, rest) = node.split_once(&on).unwrap_or_default();
        let index = scan.rsplit_once(" using ").map_or("", |(_, index)| index);
        // Of an index, or what a bitmap is checked again for.
        let condition = rest.split_once(" Cond: ").map_or("", |(_, condition)| condition);
        let condition = condition.split(" Filter: ").next().unwrap_or_default();
        !ways.iter().any(|way| *way == index || condition.contains(way))
    };
    (!nodes.is_empty()).then(|| nodes.into_iter().filter(is_astray).collect())
}

/// Drops an index, a key with those that refer to it; returns how to make it again.
fn without(world: &World, index: &str) -> String {
    let of_key = format!(
        "from pg_constraint c where c.conindid = 'kanchi.{index}'::regclass and c.contype = 'p' and c.conname = '{index}'"
    );
    let key = world.sql(&format!(
        "select format('alter table %s add constraint {index} %s', c.conrelid::regclass, pg_get_constraintdef(c.oid)) {of_key}"
    ));
    if key.is_empty() {
        let definition = world.sql(&format!("select pg_get_indexdef('kanchi.{index}'::regclass)"));
        world.sql(&format!("drop index kanchi.{index}"));
        return definition.replace("ON ONLY", "ON");
    }
    let drop = world.sql(&format!(
        "select format('alter table %s drop constraint {index} cascade', c.conrelid::regclass) {of_key}"
    ));
    world.sql(&format!("set client_min_messages = warning; {drop}"));
    key
}

#[tokio::test]
async fn each_query_has_its_index_and_misses_it_when_it_is_gone() {
    let world = World::on(explaining()).await;
    world.admin.upkeep(now()).await.unwrap();
    // Plans are made while the tables are empty, and kept.
    let query = StoreQuery::connect(&world.owner).await.unwrap();
    let finds_nothing = |name: &str| !matches!(name, "by id" | "live by id" | "generations" | "next page");
    for one in QUERIES.iter().filter(|one| finds_nothing(one.0)) {
        ask(&query, one.0).await;
    }
    world.sql(ROWS);
    let mut wrong = Vec::new();
    for one in QUERIES {
        match astray(&world, &query, one).await {
            Some(nodes) if nodes.is_empty() => {}
            nodes => wrong.push(format!("{} of {}: {nodes:#?}", one.0, one.1)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        !world.server.log().contains("Seq Scan on task_live"),
        "the live tasks are read one by one"
    );
    // The text of a query names the schema, a plan that calls a function does not.
    let log = world.server.log();
    for function in ["stored_in(", "micros("] {
        let in_texts = log.matches(&format!("kanchi.{function}")).count()
            + log.matches(&format!("kanchi.unix_{function}")).count();
        let called = log.matches(function).count() - in_texts;
        assert_eq!(called, 0, "{function} is called for each row");
    }

    for (index, queries) in INDEXES {
        let again = without(&world, index);
        for one in QUERIES.iter().filter(|one| queries.contains(&one.0)) {
            let nodes = astray(&world, &query, *one).await;
            if nodes.is_none_or(|nodes| nodes.is_empty()) {
                wrong.push(format!("{} does without {index}", one.0));
            }
        }
        world.sql(&again);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_query_is_said_to_need_an_index() {
    let needed = || INDEXES.iter().flat_map(|(_, queries)| *queries).chain(&EITHER);
    let names = || QUERIES.iter().map(|one| one.0);
    assert!(names().all(|name| needed().any(|query| *query == name)));
    assert!(needed().all(|query| names().any(|name| name == *query)));
}

#[tokio::test]
async fn each_index_serves_a_page_or_says_what_it_is_for() {
    let world = World::new().await;
    let there = world.sql(
        "select relname from pg_class
         where relnamespace = 'kanchi'::regnamespace and relkind in ('i', 'I') and not relispartition",
    );
    let mut there: Vec<&str> = there.lines().collect();
    let for_pages = INDEXES.iter().map(|(index, _)| *index);
    let others = NOT_FOR_PAGES.iter().map(|(index, _)| *index);
    let mut known: Vec<&str> = for_pages.chain(others).chain(NOT_READ_YET).collect();
    there.sort_unstable();
    known.sort_unstable();
    assert_eq!(there, known);
}
