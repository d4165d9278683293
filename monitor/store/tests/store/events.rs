//! Where the events of a task are found: by when they were stored, which its rows say.

use kanchi_domain::Event;
use kanchi_store::StoreQuery;

use crate::world::{Monitor, World, batch, chunk, json, live, now, received, row_of, settle, started, succeeded};

const ID: &str = "6b2c9f5e-0000-4000-8000-000000000001";

/// Stores events that came, with what is known of the task then.
async fn store(m: &mut Monitor, came: &[Event], known: &[Event], maybe_stored: bool) {
    let mut one = batch(m.epoch, vec![live(ID, known, maybe_stored)]);
    one.head.chunks = vec![chunk(ID, came)];
    m.writer.commit(&one).await.unwrap();
}

/// Makes everything stored so far older.
fn pass_hours(world: &World, hours: i32) {
    let less = format!("- interval '{hours} hours'");
    world.sql(&format!(
        "update kanchi.event_chunk set stored_at = stored_at {less};
         update kanchi.task_live set first_seen_at = first_seen_at {less};
         update kanchi.task set stored_at = stored_at {less}, first_stored_at = first_stored_at {less}"
    ));
}

async fn chunks(world: &World, m: &Monitor) -> usize {
    world.reader().await.events(m.key.0, ID).await.unwrap().len()
}

#[tokio::test]
async fn all_events_of_a_task_that_takes_hours_are_found() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let life = [received(ID, 0), started(ID, 18_000), succeeded(ID, 36_000)];
    store(&mut m, &life[..1], &life[..1], false).await;
    pass_hours(&world, 5);
    assert_eq!(chunks(&world, &m).await, 1, "live");
    store(&mut m, &life[1..2], &life[..2], true).await;
    pass_hours(&world, 5);
    store(&mut m, &life[2..], &life, true).await;
    assert_eq!(world.sql("select count(*) from kanchi.task_live"), "0");
    assert_eq!(chunks(&world, &m).await, 3, "ended");
    let query = StoreQuery::connect(&world.owner).await.unwrap();
    let (mut pages, mut next) = (Vec::new(), None);
    loop {
        let page = query.task_events(m.key.0, ID, next.as_deref(), 1).await.unwrap();
        pages.push(page.chunks);
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    assert_eq!(
        pages,
        [0, 1, 2].map(|one| vec![json(&chunk(ID, &life[one..=one]))]),
        "page by page"
    );

    // What comes late settles by itself.
    pass_hours(&world, 3);
    let late = [started(ID, 18_001)];
    store(&mut m, &late, &late, true).await;
    assert_eq!(chunks(&world, &m).await, 4, "ended, and a late event");
    settle(&mut m.reporter, now()).await;
    assert_eq!(world.sql("select count(*) from kanchi.task"), "1");
    assert_eq!(chunks(&world, &m).await, 4, "settled");

    world.sql("delete from kanchi.task");
    assert_eq!(chunks(&world, &m).await, 4, "history has let go of it");
}

#[tokio::test]
async fn a_rerun_hours_later_has_a_row_of_its_own_and_both_are_one_task() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let runs = [0, 14_400].map(|at| [received(ID, at), started(ID, at + 1), succeeded(ID, at + 2)]);
    store(&mut m, &runs[0], &runs[0], false).await;
    pass_hours(&world, 4);
    store(&mut m, &runs[1], &runs[1], false).await;
    assert_eq!(world.sql("select count(*) from kanchi.task"), "2");
    assert_eq!(chunks(&world, &m).await, 2);
    let task = world.reader().await.task(m.key.0, ID, now()).await.unwrap().unwrap();
    assert_eq!(
        (task.settled_rows, task.row),
        (2, row_of(&live(ID, &runs.concat(), false)))
    );
}

#[tokio::test]
async fn what_a_thief_says_of_the_first_event_is_bounded() {
    let world = World::new().await;
    world.admin.upkeep(now()).await.unwrap();
    let mut m = world.monitor("orders").await;
    let life = [received(ID, 0), started(ID, 1), succeeded(ID, 2)];
    store(&mut m, &life, &life, false).await;
    let set = |at: &str| {
        world
            .server
            .sql("kanchi", &format!("update kanchi.task set first_stored_at = '{at}'"))
    };
    set("-infinity").unwrap_err();
    for at in ["4713-01-01 BC", "9999-12-31"] {
        set(at).unwrap();
        // It hides its own events at most.
        assert!(chunks(&world, &m).await <= 1, "{at}");
    }
}
