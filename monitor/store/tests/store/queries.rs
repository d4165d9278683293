//! What pages ask: lists with filters and cursors, single tasks, workflows, counts.

use kanchi_domain::{TaskState, UnixMicros};
use kanchi_store::{
    EventChunk, GapRow, KnownGap, PageRequest, QueueRow, StoreQuery, TaskFilter, TaskOrder, TaskSummary, TimeField,
    Words,
};
use uuid::Uuid;

use crate::world::{self, Monitor, NOON, World, batch, chunk, json, live, now, received, started, succeeded};

pub(crate) async fn query(world: &World) -> StoreQuery {
    StoreQuery::connect(&world.owner).await.unwrap()
}

pub(crate) fn id(number: usize) -> String {
    format!("task-{number:04}")
}

/// A task that began and ended at a second after noon, stored as it ended.
fn ended(id: &str, second: i64) -> kanchi_store::LiveTask {
    live(
        id,
        &[received(id, second), started(id, second), succeeded(id, second)],
        false,
    )
}

pub(crate) async fn store(m: &mut Monitor, tasks: Vec<kanchi_store::LiveTask>) {
    m.writer.commit(&batch(m.epoch, tasks)).await.unwrap();
}

/// All pages of a list.
pub(crate) async fn pages(query: &StoreQuery, filter: &TaskFilter, order: TaskOrder, limit: u16) -> Vec<TaskSummary> {
    let (mut all, mut request) = (Vec::new(), PageRequest::first(limit));
    loop {
        let page = query.tasks(filter, order, &request, now()).await.unwrap();
        assert!(page.tasks.len() <= usize::from(limit));
        all.extend(page.tasks);
        match page.next {
            Some(_) => request.cursor = page.next,
            None => return all,
        }
    }
}

pub(crate) fn ids(tasks: &[TaskSummary]) -> Vec<&str> {
    tasks.iter().map(|task| task.task_id.as_str()).collect()
}

#[tokio::test]
async fn pages_follow_each_other_while_tasks_arrive() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    // Every second a task, and twenty of one second, more than a page.
    let tasks = (0..40).map(|number| ended(&id(number), i64::try_from(number.min(20)).unwrap()));
    store(&mut m, tasks.collect()).await;
    let query = query(&world).await;
    let mut wanted: Vec<usize> = (20..40).collect();
    wanted.extend((0..20).rev());
    let wanted: Vec<String> = wanted.into_iter().map(id).collect();

    let first = PageRequest::first(7);
    let filter = TaskFilter::default();
    let mut page = query.tasks(&filter, TaskOrder::Arrived, &first, now()).await.unwrap();
    while page.tasks.is_empty() {
        // On a slow machine the first pages end before they come to the tasks.
        let request = PageRequest {
            limit: 7,
            cursor: page.next,
        };
        page = query.tasks(&filter, TaskOrder::Arrived, &request, now()).await.unwrap();
    }
    let (mut seen, mut next) = (page.tasks, page.next);
    let mut number = 100;
    while next.is_some() {
        // Newer ones come, settled and open, and change nothing behind the cursor.
        store(
            &mut m,
            vec![
                ended(&id(number), 100),
                live(&id(number + 100), &[received(&id(number + 100), 100)], false),
            ],
        )
        .await;
        number += 1;
        let request = PageRequest { limit: 7, cursor: next };
        let page = query.tasks(&filter, TaskOrder::Arrived, &request, now()).await.unwrap();
        seen.extend(page.tasks);
        next = page.next;
    }
    assert_eq!(ids(&seen), wanted);
    let newest = query.tasks(&filter, TaskOrder::Arrived, &first, now()).await.unwrap();
    let all = pages(&query, &filter, TaskOrder::Arrived, 9).await;
    assert_eq!(all.iter().filter(|task| task.live).count(), number - 100);
    assert_eq!(all.len(), 40 + 2 * (number - 100));

    let finished = pages(&query, &filter, TaskOrder::Finished, 9).await;
    assert_eq!(
        ids(&finished)[number - 100..],
        ids(&seen),
        "tasks end in the order in which they came"
    );
    assert!(newest.next.is_some());
    let wrong = PageRequest {
        limit: 7,
        cursor: newest.next,
    };
    assert!(query.tasks(&filter, TaskOrder::Finished, &wrong, now()).await.is_err());
}

#[tokio::test]
async fn the_live_row_of_a_task_wins() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    store(&mut m, vec![ended("a", 0), ended("b", 1), ended("c", 20)]).await;
    // A late event of `a` makes a live row beside the one of history.
    store(&mut m, vec![live("a", &[started("a", 2)], true)]).await;
    assert_eq!(world.sql("select count(*) from kanchi.task"), "3");
    let query = query(&world).await;
    let mut tasks = pages(&query, &TaskFilter::default(), TaskOrder::Arrived, 10).await;
    tasks.sort_by(|a, b| a.task_id.cmp(&b.task_id));
    let shown: Vec<(&str, bool, &TaskState)> = tasks
        .iter()
        .map(|task| (task.task_id.as_str(), task.live, &task.state))
        .collect();
    assert_eq!(
        shown,
        [
            ("a", true, &TaskState::Started),
            ("b", false, &TaskState::Success),
            ("c", false, &TaskState::Success)
        ]
    );
    // So little that the time cannot run out before the end: the live task was first seen later, and `c` came later.
    let filter = TaskFilter {
        from: Some(UnixMicros(NOON * 1_000_000)),
        to: Some(UnixMicros((NOON + 10) * 1_000_000)),
        ..TaskFilter::default()
    };
    let counts = query.count_by_state(&filter, now()).await.unwrap();
    assert_eq!(counts.at_least_since, None);
    assert_eq!(counts.by_state.into_iter().collect::<Vec<_>>(), [("SUCCESS".into(), 1)]);
    let task = query.task(None, "a", now()).await.unwrap();
    assert_eq!((task.len(), task[0].live, task[0].settled_rows), (1, true, 1));
}

/// Tasks of two brokers that differ in everything that can be filtered.
const TASKS: &str = "
    insert into kanchi.task (broker_id, retention_days, task_id, state, name, queue, queue_inferred, worker, retries, root_id,
        parent_id, sent_at, received_at, started_at, finished_at, runtime, args, kwargs, result, exception, facts)
    select b, 14, 't' || b || n, case n when 0 then 'SUCCESS' when 1 then 'FAILURE' when 2 then 'REVOKED' else 'EXPIRED' end,
        case n when 0 then 'shop.charge' else 'shop_mail.send' || n end, 'q' || n, false, case when n < 3 then 'celery@w' || n end,
        n, 'root', case when n > 0 then 'root' end, t, case when n < 3 then t + interval '1 s' end,
        case when n < 2 then t + n * interval '10 s' end, t + interval '1 min', case when n < 2 then n * 100 end,
        '(' || n || ',)', '{''k'': ' || n || '}', case n when 0 then '42' end, case n when 1 then 'TimeoutError(''50%'')' end, ''
    from (select b, n, timestamptz '2026-11-21 00:00Z' + n * interval '1 hour' as t
        from unnest(array[BROKERS]) as b, generate_series(0, 3) as n) as drawn";

#[tokio::test]
async fn each_filter_finds_what_it_says() {
    let world = World::new().await;
    let (a, b) = (
        world.monitor("orders").await.key.0,
        world.monitor("billing").await.key.0,
    );
    world.sql(&TASKS.replace("BROKERS", &format!("{a}, {b}")));
    let query = query(&world).await;
    let words = |any_of: &[&str], exclude| Words {
        any_of: any_of.iter().map(|value| (*value).to_owned()).collect(),
        exclude,
    };
    let hour = |hours: i64| Some(UnixMicros((NOON + hours * 3600) * 1_000_000));
    let base = TaskFilter {
        brokers: Some(vec![a]),
        ..TaskFilter::default()
    };
    let cases: [(&str, TaskFilter, &[usize]); 24] = [
        ("all", base.clone(), &[3, 2, 1, 0]),
        (
            "state",
            TaskFilter {
                state: Words::one("FAILURE"),
                ..base.clone()
            },
            &[1],
        ),
        (
            "states",
            TaskFilter {
                state: words(&["FAILURE", "SUCCESS"], false),
                ..base.clone()
            },
            &[1, 0],
        ),
        (
            "not succeeded",
            TaskFilter {
                state: words(&["SUCCESS"], true),
                ..base.clone()
            },
            &[3, 2, 1],
        ),
        (
            "not failed",
            TaskFilter {
                state: words(&["FAILURE"], true),
                ..base.clone()
            },
            &[3, 2, 0],
        ),
        (
            "name",
            TaskFilter {
                name: Words::one("shop.charge"),
                ..base.clone()
            },
            &[0],
        ),
        (
            "names",
            TaskFilter {
                name: words(&["shop.charge", "shop_mail.send2"], false),
                ..base.clone()
            },
            &[2, 0],
        ),
        (
            "name with a star",
            TaskFilter {
                name: Words::one("shop_mail*"),
                ..base.clone()
            },
            &[3, 2, 1],
        ),
        (
            "other names",
            TaskFilter {
                name: words(&["shop_mail*"], true),
                ..base.clone()
            },
            &[0],
        ),
        (
            "queue",
            TaskFilter {
                queue: Words::one("q2"),
                ..base.clone()
            },
            &[2],
        ),
        (
            "worker",
            TaskFilter {
                worker: Words::one("celery@w1"),
                ..base.clone()
            },
            &[1],
        ),
        (
            "no such worker",
            TaskFilter {
                worker: words(&["celery@w1"], true),
                ..base.clone()
            },
            &[3, 2, 0],
        ),
        (
            "id",
            TaskFilter {
                task_id: Words::one(format!("t{a}2")),
                ..base.clone()
            },
            &[2],
        ),
        (
            "id prefix",
            TaskFilter {
                task_id: Words::one("t*"),
                ..base.clone()
            },
            &[3, 2, 1, 0],
        ),
        (
            "root",
            TaskFilter {
                root_id: Some("root".into()),
                ..base.clone()
            },
            &[3, 2, 1, 0],
        ),
        (
            "parent",
            TaskFilter {
                parent_id: Some("root".into()),
                ..base.clone()
            },
            &[3, 2, 1],
        ),
        (
            "exception",
            TaskFilter {
                exception: Words::one("TimeoutError*"),
                ..base.clone()
            },
            &[1],
        ),
        (
            "arguments",
            TaskFilter {
                kwargs: Words::one("*: 3*"),
                ..base.clone()
            },
            &[3],
        ),
        (
            "text",
            TaskFilter {
                text: Some("50%".into()),
                ..base.clone()
            },
            &[1],
        ),
        (
            "time",
            TaskFilter {
                from: hour(1),
                to: hour(2),
                ..base.clone()
            },
            &[1],
        ),
        (
            "time of the end",
            TaskFilter {
                from: hour(1),
                to: hour(2),
                time_field: TimeField::Finished,
                ..base.clone()
            },
            &[1],
        ),
        (
            "runtime",
            TaskFilter {
                runtime_gt: Some(50.0),
                ..base.clone()
            },
            &[1],
        ),
        (
            "wait",
            TaskFilter {
                wait_gt: Some(5.0),
                ..base.clone()
            },
            &[1],
        ),
        (
            "retries",
            TaskFilter {
                retries_gt: Some(1),
                runtime_lt: None,
                ..base.clone()
            },
            &[3, 2],
        ),
    ];
    for (name, filter, wanted) in cases {
        let wanted: Vec<String> = wanted.iter().map(|number| format!("t{a}{number}")).collect();
        let found = pages(&query, &filter, TaskOrder::Arrived, 3).await;
        assert_eq!(ids(&found), wanted, "{name}");
        // The same of both brokers, and of so many that their tasks are read by time.
        for brokers in [None, Some([a, b].into_iter().chain(1_000..1_040).collect())] {
            let both = TaskFilter {
                brokers,
                ..filter.clone()
            };
            let of_a = pages(&query, &both, TaskOrder::Arrived, 3).await;
            let of_a: Vec<TaskSummary> = of_a.into_iter().filter(|task| task.broker_key == a).collect();
            if name != "id" {
                assert_eq!(ids(&of_a), wanted, "{name}, {:?}", both.brokers);
            }
        }
    }
    let too_many = TaskFilter {
        name: words(&["x"; 65], false),
        ..base
    };
    assert!(
        query
            .tasks(&too_many, TaskOrder::Arrived, &PageRequest::first(1), now())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_workflow_is_found_by_its_root_and_its_parents() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let of = |id: &str, parent: &str, second: i64, is_open: bool| {
        let more = format!(r#","name":"shop.step","root_id":"root","parent_id":{parent},"retries":0"#);
        let begun = world::event(id, "task-received", second, &more);
        let rest = [started(id, second), succeeded(id, second)];
        let events: Vec<_> = [begun]
            .into_iter()
            .chain(rest.into_iter().filter(|_| !is_open))
            .collect();
        live(id, &events, false)
    };
    let family = vec![
        of("root", "null", 0, false),
        of("child-1", "\"root\"", 1, false),
        of("child-2", "\"root\"", 2, false),
        of("grandchild", "\"child-1\"", 3, false),
        of("running", "\"root\"", 4, true),
        ended("stranger", 5),
    ];
    store(&mut m, family).await;
    let query = query(&world).await;
    let whole = query.family(m.key.0, "root", None, 100, now()).await.unwrap();
    let mut found = ids(&whole.tasks);
    found.sort_unstable();
    assert_eq!(found, ["child-1", "child-2", "grandchild", "root", "running"]);
    assert!(!whole.truncated);
    let children = query.family(m.key.0, "root", Some("root"), 100, now()).await.unwrap();
    let mut found = ids(&children.tasks);
    found.sort_unstable();
    assert_eq!(found, ["child-1", "child-2", "running"]);
    let some = query.family(m.key.0, "root", None, 2, now()).await.unwrap();
    assert_eq!((some.tasks.len(), some.truncated), (2, true));
}

#[tokio::test]
async fn events_of_a_task_come_in_pages() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    for second in 0..5 {
        let mut one = batch(m.epoch, Vec::new());
        one.head.chunks = vec![chunk("a", &[started("a", second)]), chunk("b", &[started("b", second)])];
        m.writer.commit(&one).await.unwrap();
    }
    let query = query(&world).await;
    let (mut chunks, mut next) = (Vec::new(), None);
    loop {
        let page = query.task_events(m.key.0, "a", next.as_deref(), 2).await.unwrap();
        chunks.extend(page.chunks);
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    let wanted: Vec<EventChunk> = (0..5).map(|second| chunk("a", &[started("a", second)])).collect();
    assert_eq!(chunks, wanted.iter().map(json).collect::<Vec<_>>());

    world.sql("update kanchi.event_chunk set events = '\\x00' where first_at = (select min(first_at) from kanchi.event_chunk where task_id = 'a')");
    let page = query.task_events(m.key.0, "a", None, 10).await.unwrap();
    assert_eq!(
        (page.chunks.len(), page.unreadable),
        (4, 1),
        "one that is damaged hides no other"
    );
}

#[tokio::test]
async fn workers_queues_and_gaps_are_listed() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let other = world.monitor("billing").await.key.0;
    let gap = GapRow {
        id: Uuid::new_v4(),
        from: UnixMicros(NOON * 1_000_000),
        to: None,
        cause: "Restart".into(),
        estimated_events: Some(7),
    };
    let mut one = batch(m.epoch, Vec::new());
    one.head.gaps = vec![gap.clone()];
    m.writer.commit(&one).await.unwrap();
    let queue = |name: &str| QueueRow {
        name: name.into(),
        ready: 3,
        unacked: None,
        consumers: Some(1),
    };
    let at = now();
    m.reporter
        .save_queues(at, &[queue("mail"), queue("charge")])
        .await
        .unwrap();
    world.sql(&format!(
        "insert into kanchi.worker (broker_id, hostname, state, last_event_at)
         select b, 'celery@' || n, 'online', now() from unnest(array[{}, {other}]) as b, generate_series(1, 2) as n",
        m.key.0
    ));
    let query = query(&world).await;
    let known = query.gaps(m.key.0, now(), 10).await.unwrap();
    assert_eq!(known, [KnownGap { gap, repair: None }]);
    assert!(query.gaps(other, now(), 10).await.unwrap().is_empty());
    let queues = query.queues(None, None, 10).await.unwrap();
    assert_eq!(
        queues.iter().map(|queue| queue.queue.name.as_str()).collect::<Vec<_>>(),
        ["charge", "mail"]
    );
    let samples = query
        .queue_samples(m.key.0, "mail", UnixMicros(0), UnixMicros(at.0 + 1), 10)
        .await
        .unwrap();
    assert_eq!(samples.iter().map(|sample| sample.ready).collect::<Vec<_>>(), [3]);
    let workers = query.workers(None, None, 3).await.unwrap();
    let names: Vec<(i32, &str)> = workers
        .iter()
        .map(|(key, worker)| (*key, worker.hostname.as_str()))
        .collect();
    assert_eq!(
        names,
        [(m.key.0, "celery@1"), (m.key.0, "celery@2"), (other, "celery@1")]
    );
    let rest = query.workers(None, Some((other, "celery@1")), 3).await.unwrap();
    assert_eq!(rest.len(), 1);
}
