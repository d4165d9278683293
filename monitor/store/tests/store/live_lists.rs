//! Live tasks in lists: what Postgres leaves out matches nothing, and what it leaves in is judged as it is now.

use std::collections::BTreeMap;

use kanchi_store::{LiveTask, PageRequest, TaskFilter, TaskOrder, TaskSummary, Words};

use crate::queries::{id, ids, pages, query, store};
use crate::world::{World, event, live, now, received, started};

type Matches = fn(&TaskSummary) -> bool;

/// Tasks of seven names, five queues, three workflows; every other one has started, every fourth has had its time.
fn various(number: usize) -> LiveTask {
    let id = id(number);
    let expires = match number % 4 {
        0 => r#""2026-01-01T00:00:00+00:00""#,
        _ => "null",
    };
    let call = format!(
        r#","name":"shop.task{}","args":"('customer-{}',)","kwargs":"{{}}","retries":0,"eta":null,"expires":{expires},"root_id":"task-{:04}","parent_id":"task-{:04}""#,
        number % 7,
        number % 11,
        number % 3,
        number % 6
    );
    let sent = event(&id, "task-sent", 0, &format!(r#"{call},"queue":"queue{}""#, number % 5));
    let mut events = vec![sent, event(&id, "task-received", 1, &call)];
    if number % 2 == 1 {
        events.push(started(&id, 2));
    }
    live(&id, &events, false)
}

#[tokio::test]
async fn what_postgres_leaves_out_matches_nothing() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    store(&mut m, (0..120).map(various).collect()).await;
    let query = query(&world).await;
    let all = pages(&query, &TaskFilter::default(), TaskOrder::Arrived, 50).await;
    assert_eq!(all.len(), 120);
    let none = TaskFilter::default;
    let words = |any_of: &[&str], exclude| Words {
        any_of: any_of.iter().map(|value| (*value).to_owned()).collect(),
        exclude,
    };
    let cases: [(TaskFilter, Matches); 14] = [
        (
            TaskFilter {
                name: Words::one("shop.task3"),
                ..none()
            },
            |task| task.name.as_deref() == Some("shop.task3"),
        ),
        (
            TaskFilter {
                name: Words::one("*task3"),
                ..none()
            },
            |task| task.name.as_deref() == Some("shop.task3"),
        ),
        (
            TaskFilter {
                name: words(&["shop.task3"], true),
                ..none()
            },
            |task| task.name.as_deref() != Some("shop.task3"),
        ),
        (
            TaskFilter {
                queue: Words::one("queue2"),
                ..none()
            },
            |task| task.queue.as_deref() == Some("queue2"),
        ),
        (
            TaskFilter {
                worker: Words::one("celery@worker"),
                ..none()
            },
            |task| task.worker.is_some(),
        ),
        (
            TaskFilter {
                worker: Words::one("celery@other"),
                ..none()
            },
            |_| false,
        ),
        (
            TaskFilter {
                state: Words::one("STARTED"),
                ..none()
            },
            |task| task.state.as_str() == "STARTED",
        ),
        (
            TaskFilter {
                state: words(&["STARTED", "RECEIVED"], true),
                ..none()
            },
            |task| !matches!(task.state.as_str(), "STARTED" | "RECEIVED"),
        ),
        (
            TaskFilter {
                task_id: Words::one("task-001*"),
                ..none()
            },
            |task| task.task_id.starts_with("task-001"),
        ),
        (
            TaskFilter {
                root_id: Some("task-0001".into()),
                ..none()
            },
            |task| task.root_id.as_deref() == Some("task-0001"),
        ),
        // Roots and workers stand in the facts as well.
        (
            TaskFilter {
                parent_id: Some("task-0001".into()),
                ..none()
            },
            |task| task.parent_id.as_deref() == Some("task-0001"),
        ),
        (
            TaskFilter {
                text: Some("celery@worker".into()),
                ..none()
            },
            |_| false,
        ),
        (
            TaskFilter {
                text: Some("customer-1".into()),
                ..none()
            },
            |task| task.args.as_deref().is_some_and(|args| args.contains("customer-1")),
        ),
        (
            TaskFilter {
                text: Some("task-0099".into()),
                ..none()
            },
            |task| task.task_id == "task-0099",
        ),
    ];
    for (filter, matches) in cases {
        let wanted: Vec<&TaskSummary> = all.iter().filter(|task| matches(task)).collect();
        let mut states = BTreeMap::<_, u64>::new();
        for task in &wanted {
            *states.entry(task.state.as_str().to_owned()).or_default() += 1;
        }
        let counted = query.count_by_state(&filter, now()).await.unwrap();
        assert_eq!(counted.by_state, states, "{filter:?}");
        let wanted: Vec<&str> = wanted.iter().map(|task| task.task_id.as_str()).collect();
        for limit in [3, 100] {
            let found = pages(&query, &filter, TaskOrder::Arrived, limit).await;
            assert_eq!(ids(&found), wanted, "{filter:?} by {limit}");
        }
    }
}

#[tokio::test]
async fn live_tasks_are_filtered_as_they_are_now() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    store(
        &mut m,
        vec![
            live("a", &[received("a", 0)], false),
            live("b", &[received("b", 0), started("b", 1)], false),
        ],
    )
    .await;
    let query = query(&world).await;
    let of = async |state: &str| {
        let filter = TaskFilter {
            state: Words::one(state),
            name: Words::one("shop.*"),
            ..TaskFilter::default()
        };
        let found = pages(&query, &filter, TaskOrder::Arrived, 10).await;
        found.into_iter().map(|task| task.task_id).collect::<Vec<_>>()
    };
    assert_eq!(
        (of("RECEIVED").await, of("STARTED").await),
        (vec!["a".to_owned()], vec!["b".to_owned()])
    );
    assert_eq!(of("SUCCESS").await, Vec::<String>::new());
}

#[tokio::test]
async fn more_live_tasks_than_a_page_looks_at_are_found_by_going_on() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    // All of one transaction, so that all have one time.
    let tasks = (0..4_500)
        .map(|number| live(&id(number), &[received(&id(number), 0)], false))
        .collect();
    store(&mut m, tasks).await;
    let query = query(&world).await;
    let filter = TaskFilter {
        task_id: Words::one(id(4_400)),
        ..TaskFilter::default()
    };
    let request = PageRequest::first(10);
    let page = query.tasks(&filter, TaskOrder::Arrived, &request, now()).await.unwrap();
    assert_eq!(
        (page.tasks.len(), page.partial.is_some(), page.next.is_some()),
        (0, true, true)
    );
    assert_eq!(ids(&pages(&query, &filter, TaskOrder::Arrived, 10).await), [id(4_400)]);
    let all = pages(&query, &TaskFilter::default(), TaskOrder::Arrived, 500).await;
    assert_eq!(ids(&all), (0..4_500).map(id).collect::<Vec<_>>());
}
