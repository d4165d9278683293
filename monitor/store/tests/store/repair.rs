//! Gaps until they are repaired, and the tasks that a repair is about.

use kanchi_domain::{Event, TaskId};
use kanchi_store::{
    GapRepair, GapRow, KnownGap, PageRequest, StoreQuery, TaskFilter, TaskOrder, UnixMicros, Walk, Words,
};
use uuid::Uuid;

use crate::world::{self, NOON, World, batch, live, now, received, started, succeeded};

fn at(second: i64) -> UnixMicros {
    UnixMicros((NOON + second) * 1_000_000)
}

fn gap(number: u128, to: Option<UnixMicros>) -> GapRow {
    GapRow {
        id: Uuid::from_u128(number),
        from: at(i64::try_from(number).unwrap()),
        to,
        cause: "MonitorRestart".into(),
        estimated_events: Some(7),
    }
}

#[tokio::test]
async fn a_gap_waits_until_its_repair_is_stored_and_the_first_word_is_the_last() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let mut other = world.monitor("mail").await;
    let (open, closed) = (gap(1, None), gap(2, Some(at(9))));
    for gap in [&open, &closed] {
        m.reporter.save_gap(gap).await.unwrap();
    }
    let pending = m.reporter.pending_gaps().await.unwrap();
    assert_eq!(pending.len(), 1, "an open gap is not ripe");
    assert_eq!(pending[0].gap, closed);
    assert!(pending[0].known_seconds < 60);
    assert!(other.reporter.pending_gaps().await.unwrap().is_empty());

    let repair = GapRepair {
        outcome: "Partial".into(),
        repaired: 3,
        found: 2,
        unknown: 1,
        note: Some("a\0b".into()),
    };
    // Another broker's role changes nothing.
    other
        .reporter
        .save_repairs(&[(closed.id, repair.clone())])
        .await
        .unwrap();
    assert_eq!(m.reporter.pending_gaps().await.unwrap().len(), 1);
    for repaired in [3, 99] {
        let repair = GapRepair {
            repaired,
            ..repair.clone()
        };
        m.reporter.save_repairs(&[(closed.id, repair)]).await.unwrap();
    }
    assert!(m.reporter.pending_gaps().await.unwrap().is_empty());
    // What is told of the gap itself later leaves its repair alone.
    m.reporter.save_gap(&closed).await.unwrap();
    let query = StoreQuery::connect(&world.owner).await.unwrap();
    let known: Vec<KnownGap> = query.gaps(m.key.0, now(), 10).await.unwrap();
    assert_eq!((&known[0].gap, &known[1].gap), (&closed, &open));
    let (_, stored) = known[0].repair.clone().unwrap();
    let note = Some("a\u{fffd}b".to_owned());
    assert_eq!(stored, GapRepair { note, ..repair });
    assert_eq!(known[1].repair, None);
}

#[tokio::test]
async fn the_walk_finds_what_has_not_ended_and_the_look_up_what_nobody_knows() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let mut other = world.monitor("mail").await;
    let tasks = vec![
        live("runs", &[received("runs", 0), started("runs", 1)], true),
        live("waits", &[received("waits", 0)], true),
        live(
            "done",
            &[received("done", 0), started("done", 1), succeeded("done", 2)],
            true,
        ),
        live(
            "old",
            &[received("old", 0), started("old", 1), succeeded("old", 2)],
            false,
        ),
    ];
    m.writer.commit(&batch(m.epoch, tasks)).await.unwrap();
    world::settle(&mut m.reporter, now()).await;
    let later = UnixMicros(now().0 + 60_000_000);
    let (mut walk, mut found) = (Walk::default(), Vec::new());
    loop {
        let page = m.reporter.open_tasks(later, &walk).await.unwrap();
        found.extend(page.tasks.into_iter().map(|task| (task.task_id, task.state)));
        match page.next {
            Some(next) => walk = next,
            None => break,
        }
    }
    found.sort();
    let expected = [("runs", "STARTED"), ("waits", "RECEIVED")];
    assert_eq!(found, expected.map(|(id, state)| (id.to_owned(), state.to_owned())));
    let early = m.reporter.open_tasks(UnixMicros(1), &Walk::default()).await.unwrap();
    assert!(
        early.tasks.is_empty() && early.next.is_none(),
        "first seen after the moment"
    );
    assert!(
        other
            .reporter
            .open_tasks(later, &Walk::default())
            .await
            .unwrap()
            .tasks
            .is_empty()
    );

    let ids: Vec<String> = ["runs", "done", "old", "new"].map(str::to_owned).into();
    assert_eq!(m.reporter.unknown_tasks(&ids, UnixMicros(1)).await.unwrap(), ["new"]);
    assert_eq!(
        other.reporter.unknown_tasks(&ids, UnixMicros(1)).await.unwrap().len(),
        4
    );
}

#[tokio::test]
async fn repaired_and_incomplete_tasks_are_found_by_their_mark() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let found = |id: &str| {
        let record =
            br#"{"status": "SUCCESS", "result": 42, "date_done": "2026-11-21T12:00:09", "name": "shop.charge"}"#;
        Event::found_result(&TaskId::new(id).unwrap(), record, now())
            .unwrap()
            .unwrap()
    };
    let tasks = vec![
        live("repaired", &[received("repaired", 0), found("repaired")], true),
        live("incomplete", &[found("incomplete")], false),
        live("plain", &[received("plain", 0), succeeded("plain", 1)], false),
        live(
            "told",
            &[received("told", 0), succeeded("told", 1), found("told")],
            false,
        ),
    ];
    m.writer.commit(&batch(m.epoch, tasks)).await.unwrap();
    let query = StoreQuery::connect(&world.owner).await.unwrap();
    for settled in [false, true] {
        if settled {
            world::settle(&mut m.reporter, now()).await;
        }
        for (mark, wanted) in [("REPAIRED", "repaired"), ("INCOMPLETE", "incomplete")] {
            let filter = TaskFilter {
                mark: Words::one(mark),
                ..TaskFilter::default()
            };
            let (mut found, mut request) = (Vec::new(), PageRequest::first(10));
            loop {
                let page = query.tasks(&filter, TaskOrder::Arrived, &request, now()).await.unwrap();
                found.extend(page.tasks);
                request.cursor = page.next;
                if request.cursor.is_none() {
                    break;
                }
            }
            let shown: Vec<_> = found
                .iter()
                .map(|task| (task.task_id.as_str(), task.state.as_str()))
                .collect();
            assert_eq!(shown, [(wanted, "SUCCESS")], "{mark}, settled: {settled}");
            assert_eq!(found[0].result.as_deref(), Some("42"));
        }
    }
}
