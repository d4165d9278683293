//! Generations of history: when one begins, and that a task is found in whichever it was stored.

use kanchi_domain::UnixMicros;
use kanchi_store::ErrorKind;
use kanchi_test_servers::postgres::{Postgres, PostgresOptions};

use crate::world::{Monitor, World, batch, live, now, received, row_of, settle, started, succeeded};

const ID: &str = "6b2c9f5e-0000-4000-8000-000000000001";

const GENERATIONS: &str = "select count(*) from kanchi.task_generation";

fn next_generation(world: &World) {
    world.sql(
        "insert into kanchi.task_generation select max(generation) + 1, clock_timestamp(), 0 from kanchi.task_generation",
    );
}

async fn ends(m: &mut Monitor, id: &str, second: i64) {
    let whole = [received(id, second), started(id, second + 1), succeeded(id, second + 2)];
    m.writer
        .commit(&batch(m.epoch, vec![live(id, &whole, false)]))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_generation_begins_with_each_day_and_when_its_index_has_a_quarter_of_the_buffers() {
    let options = PostgresOptions {
        settings: vec![("shared_buffers".to_owned(), "1MB".to_owned())],
        ..PostgresOptions::default()
    };
    let world = World::on(Postgres::with(&options).unwrap()).await;
    world.admin.upkeep(now()).await.unwrap();
    let mut m = world.monitor("orders").await;
    world.admin.advance_generation().await.unwrap();
    assert_eq!(world.sql(GENERATIONS), "2", "the first one began before today");
    world.admin.advance_generation().await.unwrap();
    assert_eq!(world.sql(GENERATIONS), "2");

    // Some 500 kB of index.
    world.sql(
        "insert into kanchi.task (broker_id, retention_days, generation, task_id, state, queue_inferred, retries, facts)
         select 1, 14, 1, 'task-' || n, 'SUCCESS', false, 0, '' from generate_series(1, 10000) as n",
    );
    world.admin.advance_generation().await.unwrap();
    world.admin.advance_generation().await.unwrap();
    assert_eq!(world.sql(GENERATIONS), "3", "one, not one with each look");
    ends(&mut m, ID, 0).await;
    let stored = format!("select generation from kanchi.task where task_id = '{ID}'");
    assert_eq!(world.sql(&stored), "2");

    // Partitions go, and what the index grows from then on counts.
    world.sql("update kanchi.task_generation set index_bytes = 1 << 30 where generation = 2");
    world.admin.advance_generation().await.unwrap();
    let base = world.sql("select index_bytes < 1 << 20 from kanchi.task_generation where generation = 2");
    assert_eq!((base.as_str(), world.sql(GENERATIONS).as_str()), ("t", "3"));
}

#[tokio::test]
async fn a_task_is_found_in_whichever_generation_it_was_stored() {
    let world = World::new().await;
    world.admin.upkeep(now()).await.unwrap();
    let mut m = world.monitor("orders").await;
    ends(&mut m, ID, 0).await;
    for _ in 0..3 {
        next_generation(&world);
    }

    // It runs again.
    ends(&mut m, ID, 100).await;
    settle(&mut m.reporter, now()).await;
    assert_eq!(
        world.sql("select string_agg(generation::text, ' ') from kanchi.task"),
        "3"
    );

    // A late event of one whose end was stored days and generations ago.
    next_generation(&world);
    world.sql(
        "update kanchi.task set stored_at = stored_at - interval '3 days', first_stored_at = stored_at - interval '3 days';
         update kanchi.task_generation set began_at = began_at - interval '3 days' where generation < 4",
    );
    let late = succeeded(ID, 103);
    m.writer
        .commit(&batch(m.epoch, vec![live(ID, std::slice::from_ref(&late), false)]))
        .await
        .unwrap();
    settle(&mut m.reporter, now()).await;
    let task = world.reader().await.task(m.key.0, ID, now()).await.unwrap().unwrap();
    assert_eq!((task.live, task.settled_rows), (false, 1), "{:?}", task.row);
    let all = [
        received(ID, 0),
        started(ID, 1),
        succeeded(ID, 2),
        received(ID, 100),
        started(ID, 101),
        succeeded(ID, 102),
        late,
    ];
    assert_eq!(task.row, row_of(&live(ID, &all, false)));
    assert_eq!(
        world.sql("select string_agg(generation::text, ' ') from kanchi.task"),
        "4"
    );
}

#[tokio::test]
async fn a_batch_of_many_tasks_looks_into_the_last_four_generations_only() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    ends(&mut m, ID, 0).await;
    let others = |run: usize| (0..6_000).map(move |number| format!("{run}-{number}"));
    for (run, generations, rows) in [(1, 9, 1), (2, 3, 1), (3, 4, 2)] {
        for _ in 0..generations {
            next_generation(&world);
        }
        let ids: Vec<String> = others(run).chain([ID.to_owned()]).collect();
        // Few at once are looked for further back: two thousand probes for each.
        let ids = if run == 1 { &ids[6_000..] } else { &ids[..] };
        let whole = |id: &String| live(id, &[received(id, 200), started(id, 201), succeeded(id, 202)], false);
        m.writer
            .commit(&batch(m.epoch, ids.iter().map(whole).collect()))
            .await
            .unwrap();
        if rows == 1 {
            settle(&mut m.reporter, now()).await;
        }
        let found = world.sql(&format!("select count(*) from kanchi.task where task_id = '{ID}'"));
        assert_eq!(found, rows.to_string(), "run {run}");
    }
}

#[tokio::test]
async fn generations_without_a_partition_are_forgotten() {
    let world = World::new().await;
    world.admin.upkeep(now()).await.unwrap();
    for _ in 0..3 {
        next_generation(&world);
    }
    world.admin.upkeep(now()).await.unwrap();
    assert_eq!(world.sql(GENERATIONS), "4");
    world.sql("update kanchi.task_generation set began_at = began_at - interval '100 days' where generation < 3");
    ends(&mut world.monitor("orders").await, ID, 0).await;
    world.admin.upkeep(now()).await.unwrap();
    let left = world.sql("select string_agg(generation::text, ' ' order by generation) from kanchi.task_generation");
    assert_eq!(
        left, "2 3",
        "the one that ended today has rows, empty partitions of a long class have none"
    );
}

#[tokio::test]
async fn of_many_tasks_that_end_together_those_are_looked_up_that_the_caller_is_not_sure_of() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    for (tasks, is_sure, rows) in [(300, false, 1), (200, true, 1), (300, true, 2)] {
        world.sql("delete from kanchi.task; delete from kanchi.task_live");
        ends(&mut m, ID, 0).await;
        let others = (1..tasks).map(|number| format!("{tasks}-{number}"));
        let whole = |id: String| {
            let mut task = live(
                &id,
                &[received(&id, 200), started(&id, 201), succeeded(&id, 202)],
                false,
            );
            task.maybe_archived = !is_sure;
            task
        };
        let again = others.chain([ID.to_owned()]).map(whole).collect();
        m.writer.commit(&batch(m.epoch, again)).await.unwrap();
        let found = world.sql(&format!("select count(*) from kanchi.task where task_id = '{ID}'"));
        assert_eq!(found, rows.to_string(), "{tasks} tasks, sure: {is_sure}");
    }
}

#[tokio::test]
async fn the_ids_of_tasks_that_ended_lately_are_told_from_the_newest_on() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let other = world.monitor("mail").await;
    world.sql(&format!(
        "insert into kanchi.task (broker_id, retention_days, task_id, state, queue_inferred, retries, facts, finished_at, stored_at)
         select case when n = 7 then {} else {} end, 14, 'task-' || n, 'SUCCESS', false, 0, '',
            case when n <> 3 then to_timestamp(2e9) - n * interval '1 s' end,
            case when n = 5 then now() - interval '5 hours' else now() end
         from generate_series(1, 9) as n",
        other.key.0, m.key.0
    ));
    let end = |n: i64| UnixMicros(2_000_000_000_000_000 - n * 1_000_000);
    for (before, expected) in [
        (None, vec![("task-3".to_owned(), None)]),
        (
            Some(UnixMicros(i64::MAX)),
            [1, 2, 4].map(|n| (format!("task-{n}"), Some(end(n)))).to_vec(),
        ),
        (
            Some(end(4)),
            [4, 6, 8].map(|n| (format!("task-{n}"), Some(end(n)))).to_vec(),
        ),
        (Some(end(9)), vec![("task-9".to_owned(), Some(end(9)))]),
        (Some(end(10)), Vec::new()),
    ] {
        let mut told = Vec::new();
        let each = |id: &str, ended| told.push((id.to_owned(), ended));
        m.writer.ended_ids(before, 3, each).await.unwrap();
        assert_eq!(told, expected, "before {before:?}");
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_hides_nothing() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    world.sql("insert into kanchi.task_generation values (1, clock_timestamp() + interval '3 hours', 0)");
    world.admin.advance_generation().await.unwrap();
    ends(&mut m, ID, 0).await;
    let stored = world.sql("select count(*) from kanchi.task where generation = 1");
    let found = world.sql(&format!("select count(*) from kanchi.tasks_by_id('{ID}')"));
    assert_eq!((stored.as_str(), found.as_str()), ("1", "1"));

    // Not by much: the leader need not have looked yet.
    world.sql("insert into kanchi.task_generation values (2, clock_timestamp() + interval '50 minutes', 0)");
    ends(&mut m, ID, 100).await;
    settle(&mut m.reporter, now()).await;
    let rows = world.sql(&format!(
        "select string_agg(generation::text, ' ') from kanchi.tasks_by_id('{ID}')"
    ));
    assert_eq!(rows, "2");
}

#[tokio::test]
async fn settling_gets_on_however_many_generations_there_are() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    world.sql(
        "insert into kanchi.task_generation
         select n, clock_timestamp() - interval '20 days' + n * interval '8 minutes', 0 from generate_series(1, 3000) as n",
    );
    // Late events, of which all of history is searched: 33 at once.
    let late = |number: usize| {
        let id = format!("late-{number}");
        live(&id, &[succeeded(&id, 1)], false)
    };
    m.writer
        .commit(&batch(m.epoch, (0..50).map(late).collect()))
        .await
        .unwrap();
    let first = settle(&mut m.reporter, now()).await;
    assert_eq!((first.moved, first.more), (33, true));
    let second = settle(&mut m.reporter, now()).await;
    assert_eq!((second.moved, second.more), (17, false));
}

#[tokio::test]
async fn who_leaves_is_told_before_history_has_it_and_an_epoch_that_is_over_moves_nothing() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    m.reporter.speak_for(m.epoch);
    let late = live(ID, &[succeeded(ID, 1)], false);
    m.writer.commit(&batch(m.epoch, vec![late])).await.unwrap();
    m.writer.begin_epoch("another").await.unwrap();
    let mut told = Vec::new();
    let leave = |ids: &[&str]| told.extend(ids.iter().map(|id| (*id).to_owned()));
    let refused = m.reporter.settle(now(), 0, leave).await.unwrap_err();
    assert_eq!(
        (refused.kind(), told.as_slice()),
        (ErrorKind::StaleEpoch, &[ID.to_owned()][..])
    );
    assert_eq!(world.sql("select count(*) from kanchi.task_live"), "1");
    assert_eq!(world.sql("select count(*) from kanchi.task"), "0");
}
