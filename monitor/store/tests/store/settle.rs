//! What settles, and what keeps it from settling.

use crate::world::{World, batch, live, now, received, row_of, settle, started, succeeded};

const ID: &str = "6b2c9f5e-0000-4000-8000-000000000001";

const ROWS: &str = "select (select count(*) from kanchi.task_live), (select count(*) from kanchi.task)";

#[tokio::test]
async fn tasks_that_cannot_be_read_keep_no_others_from_settling() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    // As many as are taken at once, and due before all others.
    world.sql(&format!(
        "insert into kanchi.task_live (broker_id, task_id, facts, state, first_seen_at, due_at)
         select {}, 'broken-' || n, '\\xff', 'SUCCESS', now() - interval '1 hour', '1969-01-01' from generate_series(1, 2000) as n",
        m.key.0
    ));
    let end = live(ID, &[succeeded(ID, 2)], false);
    m.writer.commit(&batch(m.epoch, vec![end])).await.unwrap();
    assert_eq!(settle(&mut m.reporter, now()).await.moved, 1);
    assert_eq!(world.sql(ROWS), "2000|1");
    assert_eq!(
        world.sql("select count(*) from kanchi.task_live where due_at is null"),
        "2000"
    );
}

#[tokio::test]
async fn a_third_run_is_merged_with_two_rows_of_history() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let runs = [0, 14_400, 14_500].map(|at| [received(ID, at), started(ID, at + 1), succeeded(ID, at + 2)]);
    for run in &runs[..2] {
        m.writer
            .commit(&batch(m.epoch, vec![live(ID, run, false)]))
            .await
            .unwrap();
        // Longer ago than a task that ends is looked for.
        world.sql("update kanchi.task set stored_at = stored_at - interval '4 hours'");
    }
    assert_eq!(world.sql(ROWS), "0|2");
    let begun = live(ID, &runs[2][..2], false);
    m.writer.commit(&batch(m.epoch, vec![begun])).await.unwrap();
    assert_eq!(m.reporter.settle(now(), 0, |_| ()).await.unwrap().moved, 0);
    assert_eq!(world.sql(ROWS), "1|2", "it runs");

    let ended = live(ID, &runs[2], true);
    m.writer.commit(&batch(m.epoch, vec![ended])).await.unwrap();
    settle(&mut m.reporter, now()).await;
    assert_eq!(world.sql(ROWS), "0|1");
    let task = world.reader().await.task(m.key.0, ID, now()).await.unwrap().unwrap();
    assert_eq!(task.row, row_of(&live(ID, &runs.concat(), false)));
}
