//! How Postgres goes about what a monitor asks all the time. A plan is made when a connection asks first, on an empty
//! table at worst, and kept while the table fills: it must be the right one then already.

use kanchi_test_servers::postgres::{Postgres, PostgresOptions};

use crate::world::{Monitor, World, batch, live, now, received, settle, started, succeeded};

/// A server that writes down the plan of each statement, those inside functions too.
pub(crate) fn explaining() -> Postgres {
    let settings = [
        ("session_preload_libraries", "auto_explain"),
        ("auto_explain.log_min_duration", "0"),
        ("auto_explain.log_nested_statements", "on"),
        // Nothing may be known but what the planner sees for itself.
        ("autovacuum", "off"),
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let options = PostgresOptions {
        settings: settings.to_vec(),
        ..PostgresOptions::default()
    };
    Postgres::with(&options).unwrap()
}

/// Returns the plans whose statement contains a text, with all white space made one blank.
fn plans(log: &str, statement: &str) -> Vec<String> {
    let texts = log.split("Query Text: ").skip(1);
    let plans = texts.map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
    plans.filter(|plan| plan.contains(statement)).collect()
}

async fn everything_a_monitor_asks(m: &mut Monitor, first: usize, tasks: usize) {
    let ids: Vec<String> = (first..first + tasks).map(|number| format!("task-{number}")).collect();
    let names: Vec<&str> = ids.iter().map(String::as_str).collect();
    m.writer.load_facts(&names).await.unwrap();
    let open = ids.iter().map(|id| live(id, &[received(id, 0)], false)).collect();
    m.writer.commit(&batch(m.epoch, open)).await.unwrap();
    let ended = |id: &String| live(id, &[received(id, 0), started(id, 1), succeeded(id, 2)], true);
    let ended = ids.iter().skip(1).map(ended).collect();
    m.writer.commit(&batch(m.epoch, ended)).await.unwrap();
    // An end whose beginning was not seen: it may be an archived task's.
    let late = format!("late-{first}");
    let late = live(&late, &[succeeded(&late, 2)], true);
    m.writer.commit(&batch(m.epoch, vec![late])).await.unwrap();
    // And the publisher's event of a task that is in history.
    let ran = format!("ran-{first}");
    let whole = [received(&ran, 0), started(&ran, 1), succeeded(&ran, 2)];
    m.writer
        .commit(&batch(m.epoch, vec![live(&ran, &whole, false)]))
        .await
        .unwrap();
    m.writer
        .commit(&batch(m.epoch, vec![live(&ran, &whole[..1], false)]))
        .await
        .unwrap();
    settle(&mut m.reporter, now()).await;
    let mut ended = Vec::new();
    for before in [None, Some(now())] {
        let each = |id: &str, _| ended.push(id.to_owned());
        m.writer.ended_ids(before, 10, each).await.unwrap();
    }
}

#[tokio::test]
async fn tasks_are_looked_up_by_their_key_whatever_the_planner_knows() {
    let world = World::on(explaining()).await;
    let mut m = world.monitor("orders").await;
    everything_a_monitor_asks(&mut m, 0, 3).await;
    everything_a_monitor_asks(&mut m, 1_000, 500).await;
    let log = world.server.log();
    for statement in [
        "select l.task_id, l.facts from unnest",
        "select l.* from unnest",
        "delete from kanchi.task_live l where l.ctid = any (array(",
    ] {
        let found = plans(&log, statement);
        assert!(!found.is_empty(), "{statement} is asked no more:\n{log}");
        for plan in found {
            let (ids, key) = (
                plan.find("Function Scan on unnest"),
                plan.find("Index Scan using task_live_pkey"),
            );
            assert!(
                ids.is_some() && ids < key,
                "the ids come first, then the key for each: {plan}"
            );
        }
    }
    for (statement, way) in [
        ("delete from kanchi.task_live", "Tid Scan on task_live"),
        ("l.due_at <= before", "Index Scan using task_live_due"),
        ("l.first_seen_at > since", "Index Scan using task_live_first_seen"),
        ("order by t.finished_at desc", "Merge Append"),
        ("order by t.finished_at desc", "AND (finished_at <= "),
        ("t.finished_at is null", "AND (finished_at IS NULL)"),
        (
            "select t.task_id from kanchi.task t",
            "Index Cond: ((((generation)::bigint << 40) |",
        ),
    ] {
        let found = plans(&log, statement);
        assert!(!found.is_empty(), "{statement} is asked no more");
        for plan in found {
            assert!(plan.contains(way), "{way}: {plan}");
        }
    }
    assert!(
        !log.contains("Seq Scan on task_live"),
        "the live tasks are read one by one"
    );
}
