//! Groups of failures: added up by batches, bounded, listed.

use std::sync::LazyLock;

use kanchi_domain::{Failure, Fingerprint, TaskState, UnixMicros};
use kanchi_store::{
    ErrorKind, FailureDelta, FailureGroup, FailureOrder, FailurePage, PageRequest, StoreQuery, TaskOrder, Words,
};

use crate::world::{self, Monitor, World, batch, failed_tasks, live, now, received, row_of, started};

/// A second of yesterday, whatever moment it is.
fn at(second: i64) -> UnixMicros {
    static BEGIN: LazyLock<i64> = LazyLock::new(|| now().0 / 1_000_000 - 86_400);
    UnixMicros((*BEGIN + second) * 1_000_000)
}

/// So many failures more, the last of them at that second.
fn failed(task: &str, message: &str, second: i64, count: i64) -> FailureDelta {
    let mut delta = failed_tasks(at(second), task, message, count);
    if let Some(last) = &mut delta.last {
        last.task_id = format!("{task}-{second}").into();
        last.exception = Some(format!("ValueError('{message} {second}')").into());
    }
    delta
}

async fn store(m: &mut Monitor, failures: Vec<FailureDelta>) {
    let mut one = batch(m.epoch, vec![]);
    one.changes.failures = failures;
    m.writer.commit(&one).await.unwrap();
}

async fn query(world: &World) -> StoreQuery {
    StoreQuery::connect(&world.owner).await.unwrap()
}

async fn page(query: &StoreQuery, m: &Monitor, order: FailureOrder, request: &PageRequest) -> FailurePage {
    query
        .failure_groups(Some(&[m.key.0]), None, order, request)
        .await
        .unwrap()
}

/// Message, failures and seconds of the first and the last, the last one first.
async fn groups(query: &StoreQuery, m: &Monitor) -> Vec<(String, u64, i64, i64)> {
    let second = |time: UnixMicros| (time.0 - at(0).0) / 1_000_000;
    let page = page(query, m, FailureOrder::LastSeen, &PageRequest::first(100)).await;
    assert_eq!(page.next, None);
    let one = |group: FailureGroup| {
        (
            group.message,
            group.failed,
            second(group.first_seen_at),
            second(group.last_seen_at),
        )
    };
    page.groups.into_iter().map(one).collect()
}

fn of(message: &str, failed: u64, first: i64, last: i64) -> (String, u64, i64, i64) {
    (message.to_owned(), failed, first, last)
}

#[tokio::test]
async fn failures_add_up_and_what_is_taken_back_goes() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let mut another = world.monitor("another").await;
    let query = query(&world).await;
    store(&mut another, vec![failed("pay", "boom", 500, 7)]).await;
    store(&mut m, vec![failed("pay", "boom", 10, 2), failed("pay", "no", 20, 1)]).await;
    store(&mut m, vec![failed("pay", "boom", 30, 3)]).await;
    // A batch that was late: it is counted, and another still is the last.
    store(&mut m, vec![failed("pay", "boom", 5, 1)]).await;
    assert_eq!(groups(&query, &m).await, [of("boom", 6, 5, 30), of("no", 1, 20, 20)]);
    let group = query
        .failure_group(m.key.0, Fingerprint::of("pay", "ValueError", "boom"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (&*group.task, &*group.last_task_id, &*group.example),
        ("pay", "pay-30", "ValueError('boom 30')")
    );

    let mut critical = failed("pay", "boom", 40, 0);
    critical.critical = 2;
    let unknown = failed("pay", "never heard of", 50, -1);
    store(&mut m, vec![critical, failed("pay", "no", 60, -1), unknown]).await;
    assert_eq!(groups(&query, &m).await, [of("boom", 6, 5, 30)]);
    let group = query.failure_group(m.key.0, group.fingerprint).await.unwrap().unwrap();
    assert_eq!((group.critical, &*group.last_task_id), (2, "pay-30"));
    assert_eq!(groups(&query, &another).await, [of("boom", 7, 500, 500)]);
}

#[tokio::test]
async fn a_batch_that_is_sent_twice_counts_once() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let mut one = batch(m.epoch, vec![live("a", &[received("a", 0)], false)]);
    one.changes.failures = vec![failed("pay", "boom", 10, 2)];
    m.writer.commit(&one).await.unwrap();
    m.writer.commit(&one).await.unwrap();
    // A promise that was not kept: the transaction begins anew.
    let mut again = batch(m.epoch, vec![live("a", &[received("a", 0), started("a", 1)], false)]);
    again.changes.failures = vec![failed("pay", "boom", 20, 1)];
    m.writer.commit(&again).await.unwrap();
    assert_eq!(world.sql("select failed from kanchi.failure_group"), "3");
}

#[tokio::test]
async fn the_groups_that_failed_last_are_kept() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let mut another = world.monitor("another").await;
    store(&mut another, vec![failed("pay", "boom", 0, 1)]).await;
    for part in 0..5 {
        let numbers = (part * 250)..(part * 250 + 250);
        let many = numbers.map(|number| failed("pay", &format!("m{number}"), number, 1));
        store(&mut m, many.collect()).await;
    }
    let kept = format!(
        "select count(*), min(last_task_id), max(last_task_id) from kanchi.failure_group where broker_id = {}",
        m.key.0
    );
    assert_eq!(world.sql(&kept), "1000|pay-1000|pay-999");
    assert_eq!(
        world.sql("select count(*) from kanchi.failure_group where message = 'm249'"),
        "0"
    );
    assert_eq!(groups(&query(&world).await, &another).await.len(), 1);

    // One more of a known group drops none; a new one of the same second as others drops one.
    store(&mut m, vec![failed("pay", "m250", 1249, 1)]).await;
    store(&mut m, vec![failed("pay", "new", 1249, 1)]).await;
    assert_eq!(world.sql(&kept).split('|').next(), Some("1000"));
    assert_eq!(
        world.sql("select string_agg(message, ' ' order by message) from kanchi.failure_group where message in ('m250', 'm251', 'm252', 'new')"),
        "m250 m252 new"
    );
}

#[tokio::test]
async fn a_clock_that_is_ahead_does_not_hold_the_first_place_for_years() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    store(&mut m, vec![failed("pay", "from the future", 86_400 * 365 * 50, 1)]).await;
    assert_eq!(
        world.sql("select last_seen_at <= now() and first_seen_at <= now() from kanchi.failure_group"),
        "t"
    );
}

#[tokio::test]
async fn groups_are_listed_by_their_last_failure_or_by_their_number() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let mut another = world.monitor("another").await;
    let many = (0..30).map(|number| failed("pay", &format!("m{number}"), number / 3, 1 + (number * 7) % 10));
    store(&mut m, many.collect()).await;
    let many = (0..30).map(|number| failed("refund", &format!("m{number}"), number / 3, 1 + number % 10));
    store(&mut another, many.collect()).await;
    let query = query(&world).await;
    let both = [m.key.0, another.key.0];
    for (order, brokers) in [
        (FailureOrder::LastSeen, None),
        (FailureOrder::LastSeen, Some(&both[..])),
        (FailureOrder::Count, Some(&both[..])),
    ] {
        let (mut all, mut request) = (Vec::new(), PageRequest::first(7));
        loop {
            let page = query.failure_groups(brokers, None, order, &request).await.unwrap();
            assert!(page.groups.len() <= 7);
            all.extend(page.groups);
            request.cursor = page.next;
            if request.cursor.is_none() {
                break;
            }
        }
        let value = |group: &FailureGroup| match order {
            FailureOrder::LastSeen => group.last_seen_at.0,
            FailureOrder::Count => i64::try_from(group.failed).unwrap(),
        };
        assert!(
            all.is_sorted_by_key(|group| (-value(group), group.broker_key, group.fingerprint)),
            "{order:?}"
        );
        let mut distinct: Vec<_> = all.iter().map(|group| (group.broker_key, group.fingerprint)).collect();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!((all.len(), distinct.len()), (60, 60), "{order:?}");
    }
    let refunds = query
        .failure_groups(None, Some("refund"), FailureOrder::LastSeen, &PageRequest::first(100))
        .await
        .unwrap();
    assert_eq!(refunds.groups.len(), 30);
    assert!(refunds.groups.iter().all(|group| group.task == "refund"));

    let first = PageRequest::first(1);
    let many: Vec<i32> = (1..=17).collect();
    let refused = query.failure_groups(Some(&many), None, FailureOrder::Count, &first);
    assert_eq!(refused.await.unwrap_err().kind(), ErrorKind::Invalid);
    let of_another_order = PageRequest {
        limit: 1,
        cursor: page(&query, &m, FailureOrder::Count, &first).await.next,
    };
    let refused = query.failure_groups(None, None, FailureOrder::LastSeen, &of_another_order);
    assert_eq!(refused.await.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_group_leads_to_its_tasks() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let failing = |id: &str, exception: &str| {
        let failure = world::event(
            id,
            "task-failed",
            2,
            &format!(r#","exception":"{exception}","traceback":"Traceback\n""#),
        );
        live(id, &[received(id, 0), started(id, 1), failure], false)
    };
    let tasks = vec![
        failing("a", "ValueError('order 5')"),
        failing("b", "ValueError('order 6')"),
        failing("c", "KeyError('order')"),
        live(
            "d",
            &[received("d", 0), started("d", 1), world::succeeded("d", 2)],
            false,
        ),
    ];
    let group = Failure::of(&row_of(&tasks[0])).unwrap();
    assert_eq!(Some(&group), Failure::of(&row_of(&tasks[1])).as_ref());
    let mut one = batch(m.epoch, tasks);
    one.changes.failures = vec![FailureDelta {
        group: group.clone(),
        ..failed("", "", 2, 2)
    }];
    m.writer.commit(&one).await.unwrap();
    let query = query(&world).await;
    let group = query.failure_group(m.key.0, group.fingerprint).await.unwrap().unwrap();
    let filter = group.tasks();
    assert_eq!(filter.state, Words::one(TaskState::Failure.as_str()));
    let (mut ids, mut request) = (Vec::new(), PageRequest::first(10));
    loop {
        let page = query.tasks(&filter, TaskOrder::Arrived, &request, now()).await.unwrap();
        ids.extend(page.tasks.into_iter().map(|task| task.task_id));
        request.cursor = page.next;
        if request.cursor.is_none() {
            break;
        }
    }
    ids.sort_unstable();
    assert_eq!(ids, ["a", "b"]);
}

#[tokio::test]
async fn groups_go_with_their_tasks() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    store(&mut m, vec![failed("pay", "old", 0, 1), failed("pay", "young", 1, 1)]).await;
    world.sql("update kanchi.failure_group set last_seen_at = now() - interval '31 days' where message = 'old'");
    world.sql("update kanchi.failure_group set last_seen_at = now() - interval '29 days' where message = 'young'");
    assert_eq!(world.admin.upkeep(now()).await.unwrap().pruned, 1);
    assert_eq!(world.sql("select message from kanchi.failure_group"), "young");
}
