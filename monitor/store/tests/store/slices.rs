//! Pages where so many tasks came in so little time that not even their first slice of history can be looked through in time.

use kanchi_store::{PageRequest, TaskFilter, TaskOrder};

use crate::queries::{ids, query};
use crate::world::{World, now};

/// Tasks of one second, some three times as many as Postgres looks through in the time of a page.
const TASKS: usize = 300_000;

#[tokio::test]
async fn a_page_that_ran_out_of_time_is_followed_by_one_that_asks_for_less() {
    let world = World::new().await;
    let key = world.monitor("orders").await.key.0;
    world.sql(&format!(
        "insert into kanchi.task (broker_id, retention_days, task_id, state, name, queue_inferred, retries, root_id, received_at,
            finished_at, args, facts)
        select {key}, 14, 'task-' || n, 'SUCCESS', 'shop.task', false, 0, 'task-' || n,
            date_trunc('second', now()) - interval '10 seconds' + n * interval '3 microseconds', now(),
            case when n % {} = 7 then 'needle' else 'hay' end, ''
        from generate_series(1, {TASKS}) as n",
        TASKS / 3
    ));
    let query = query(&world).await;
    let filter = TaskFilter {
        text: Some("needle".to_owned()),
        ..TaskFilter::default()
    };
    let mut request = PageRequest::first(10);
    let (mut pages, mut empty, mut found) = (0, 0, Vec::new());
    loop {
        let page = query.tasks(&filter, TaskOrder::Arrived, &request, now()).await.unwrap();
        pages += 1;
        assert!(pages < 1_000, "found {:?}", ids(&found));
        empty += usize::from(page.tasks.is_empty() && page.next.is_some());
        assert_eq!(page.partial.is_some(), page.next.is_some());
        found.extend(page.tasks);
        match page.next {
            Some(_) => request.cursor = page.next,
            None => break,
        }
    }
    assert_eq!(ids(&found), ["task-200007", "task-100007", "task-7"]);
    assert!(empty > 0, "{pages} pages: all tasks were looked through at once");
}
