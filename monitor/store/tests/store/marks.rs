//! Marks: what a task's state does not say.

use kanchi_store::{PageRequest, StoreQuery, TaskFilter, TaskOrder, Words};

use crate::world::{self, World, batch, live, now, received, started, succeeded};

#[tokio::test]
async fn recovered_and_critical_tasks_are_told_apart() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let retried = |id: &str, end: &str| {
        let again = r#","name":"shop.charge","args":"(1,)","kwargs":"{}","retries":1"#;
        let events = [
            received(id, 0),
            started(id, 1),
            world::event(id, "task-received", 2, again),
            world::event(id, "task-retried", 3, r#","exception":"E()","traceback":"T\n""#),
            started(id, 4),
            world::event(id, end, 5, r#","exception":"E()","traceback":"T\n""#),
        ];
        live(id, &events, false)
    };
    let mut tasks = vec![
        retried("recovered", "task-succeeded"),
        retried("critical", "task-failed"),
    ];
    tasks.push(live(
        "plain",
        &[received("plain", 6), started("plain", 6), succeeded("plain", 6)],
        false,
    ));
    let failed = [
        received("failed", 0),
        started("failed", 1),
        world::event("failed", "task-failed", 2, r#","exception":"E()""#),
    ];
    tasks.push(live("failed", &failed, false));
    for mut task in [
        retried("live-recovered", "task-succeeded"),
        retried("live-critical", "task-failed"),
    ] {
        task.maybe_stored = true;
        tasks.push(task);
    }
    m.writer.commit(&batch(m.epoch, tasks)).await.unwrap();
    let query = StoreQuery::connect(&world.owner).await.unwrap();
    for (mark, exclude, wanted) in [
        ("RECOVERED", false, &["live-recovered", "recovered"][..]),
        ("CRITICAL", false, &["critical", "live-critical"]),
        ("CRITICAL", true, &["failed", "live-recovered", "plain", "recovered"]),
    ] {
        let filter = TaskFilter {
            mark: Words {
                exclude,
                ..Words::one(mark)
            },
            ..TaskFilter::default()
        };
        let (mut found, mut request) = (Vec::new(), PageRequest::first(10));
        loop {
            let page = query.tasks(&filter, TaskOrder::Arrived, &request, now()).await.unwrap();
            found.extend(page.tasks.into_iter().map(|task| task.task_id));
            request.cursor = page.next;
            if request.cursor.is_none() {
                break;
            }
        }
        found.sort_unstable();
        assert_eq!(found, wanted, "{mark} {exclude}");
    }
}
