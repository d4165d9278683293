//! Statistics: appended by batches, rolled up by the leader, read as one.

use std::sync::LazyLock;

use kanchi_store::statistics::{Dimension, Resolution, Select, StatisticsQuery, Transition};
use kanchi_store::{
    BrokerKey, ErrorKind, RetentionClass, RetentionPolicy, RolledUp, StatisticDelta, StoreQuery, TaskName, UnixMicros,
};
use uuid::Uuid;

use crate::world::{Monitor, World, batch, now, spec, succeeded_tasks};

const MINUTE: i64 = 60_000_000;
const DAY: i64 = 1_440 * MINUTE;

/// So long before a moment that is the same throughout: no test straddles two minutes.
fn ago(micros: i64) -> UnixMicros {
    static NOW: LazyLock<UnixMicros> = LazyLock::new(now);
    UnixMicros(NOW.0 - micros)
}

async fn store(m: &mut Monitor, deltas: Vec<StatisticDelta>) {
    let mut one = batch(m.epoch, vec![]);
    one.changes.statistics = deltas;
    one.changes.statistics.sort_by_key(|delta| delta.minute);
    m.writer.commit(&one).await.unwrap();
}

async fn roll_up_all(world: &World) -> RolledUp {
    let mut all = RolledUp::default();
    loop {
        let done = world.admin.roll_up().await.unwrap();
        all.taken += done.taken;
        all.damaged += done.damaged;
        if !done.more {
            return all;
        }
    }
}

fn asked(key: BrokerKey, select: Select, back: i64) -> StatisticsQuery {
    StatisticsQuery {
        brokers: Some(vec![key.0]),
        dimension: Dimension::Task,
        select,
        from: ago(back),
        to: ago(-MINUTE),
        now: ago(0),
    }
}

fn keys(keys: &[&str]) -> Select {
    Select::Keys(keys.iter().map(|key| (*key).to_owned()).collect())
}

/// What a name comes to by the rows of each step, rolled up.
fn rolled_up(world: &World, name: &str) -> String {
    world.sql(&format!(
        "select string_agg(step_seconds || ':' || succeeded, ' ' order by step_seconds) from (
            select step_seconds, sum(succeeded) as succeeded from kanchi.statistic where key = '{name}'
            group by step_seconds) as s"
    ))
}

#[tokio::test]
async fn a_chart_is_the_same_before_and_after_the_roll_up() {
    let world = World::new().await;
    world.admin.upkeep(now()).await.unwrap();
    let mut m = world.monitor("orders").await;
    let mut another = world.monitor("another").await;
    store(&mut another, vec![succeeded_tasks(ago(0), "a", 1_000)]).await;
    for number in 0..3 {
        let deltas = vec![
            succeeded_tasks(ago(number * 40 * MINUTE), "a", 5 + number),
            succeeded_tasks(ago(number * 40 * MINUTE), "b", 1),
            succeeded_tasks(ago(number * 40 * MINUTE), "c", 100),
        ];
        store(&mut m, deltas).await;
    }
    let query = StoreQuery::connect(&world.owner).await.unwrap();
    let (line, sums) = (
        asked(m.key, keys(&["a", "b"]), 3 * 60 * MINUTE),
        asked(m.key, keys(&["a"]), 3 * 60 * MINUTE),
    );
    let (chart, figures) = (
        query.chart(&line, None).await.unwrap(),
        query.figures(&sums).await.unwrap(),
    );
    assert_eq!(chart.resolution, Resolution::Minute);
    let points = &chart.series[0].points;
    let counts: Vec<i64> = points
        .iter()
        .map(|point| point.measures.counts.get(Transition::Succeeded))
        .collect();
    assert_eq!((chart.series[0].key.as_str(), counts), ("a", vec![7, 6, 5]));
    assert_eq!(figures[0].measures.counts.get(Transition::Succeeded), 18);
    let p95 = figures[0].measures.runtime.histogram.quantile(0.95).unwrap();
    assert!((p95 - 0.25).abs() < 0.25 * 0.06, "{p95}");
    assert_eq!(figures[0].measures.runtime.mean_seconds(), Some(0.25));

    // Another broker's rows come into it only where it is asked for.
    let of_all = StatisticsQuery {
        brokers: None,
        ..sums.clone()
    };
    let both = query.figures(&of_all).await.unwrap();
    assert_eq!(both[0].measures.counts.get(Transition::Succeeded), 1_018);

    assert_eq!(roll_up_all(&world).await.taken, 4);
    assert_eq!(world.sql("select count(*) from kanchi.statistic_delta"), "0");
    assert_eq!(query.figures(&of_all).await.unwrap(), both);
    assert_eq!(query.chart(&line, None).await.unwrap(), chart);
    assert_eq!(query.figures(&sums).await.unwrap(), figures);

    // Half of it rolled up, half not, in the same minutes.
    store(
        &mut m,
        vec![succeeded_tasks(ago(0), "a", -2), succeeded_tasks(ago(0), "b", 4)],
    )
    .await;
    let half = query.figures(&sums).await.unwrap();
    assert_eq!(half[0].measures.counts.get(Transition::Succeeded), 16);
    roll_up_all(&world).await;
    assert_eq!(query.figures(&sums).await.unwrap(), half);
    assert_eq!(roll_up_all(&world).await, RolledUp::default(), "nothing is left to do");
    assert_eq!(query.figures(&sums).await.unwrap(), half);
}

#[tokio::test]
async fn a_batch_that_is_sent_twice_is_counted_once() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let mut one = batch(m.epoch, vec![]);
    one.head.id = Uuid::new_v4();
    one.changes.statistics = vec![succeeded_tasks(ago(0), "a", 3)];
    m.writer.commit(&one).await.unwrap();
    m.writer.commit(&one).await.unwrap();
    roll_up_all(&world).await;
    m.writer.commit(&one).await.unwrap();
    roll_up_all(&world).await;
    assert_eq!(rolled_up(&world, "a"), "60:3 3600:3 86400:3");
}

#[tokio::test]
async fn a_roll_up_that_fails_or_stops_halfway_loses_nothing_and_counts_nothing_twice() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    // A row for each minute: more than one step takes.
    let deltas = (0..600)
        .map(|minute| succeeded_tasks(ago(minute * MINUTE), "a", 1))
        .collect();
    store(&mut m, deltas).await;
    let first = world.admin.roll_up().await.unwrap();
    assert!(first.more && first.taken < 600, "{first:?}");
    let query = StoreQuery::connect(&world.owner).await.unwrap();
    let question = asked(m.key, keys(&["a"]), 700 * MINUTE);
    let sum = async || {
        let figures = query.figures(&question).await.unwrap();
        figures[0].measures.counts.get(Transition::Succeeded)
    };
    assert_eq!(sum().await, 600, "halfway");

    world.sql(
        "create function public.refuse() returns trigger language plpgsql as $$
            begin if new.step_seconds = 86400 then raise exception 'no'; end if; return new; end $$;
         create trigger refuse before insert on kanchi.statistic for each row execute function public.refuse()",
    );
    world.admin.roll_up().await.unwrap_err();
    assert_eq!(sum().await, 600, "after a failure");
    world.sql("drop trigger refuse on kanchi.statistic");

    let (a, b) = tokio::join!(roll_up_all(&world), roll_up_all(&world));
    assert_eq!(first.taken + a.taken + b.taken, 600);
    assert_eq!(sum().await, 600);
    assert_eq!(rolled_up(&world, "a"), "60:600 3600:600 86400:600");
}

#[tokio::test]
async fn what_comes_late_is_added_to_its_own_minute_hour_and_day() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let then = ago(3 * DAY);
    for count in [5, -2, 1] {
        store(&mut m, vec![succeeded_tasks(then, "a", count)]).await;
        roll_up_all(&world).await;
    }
    assert_eq!(rolled_up(&world, "a"), "60:4 3600:4 86400:4");
    assert_eq!(
        world.sql("select count(*) from kanchi.statistic"),
        "3",
        "one row each, however often it is added to"
    );
    let query = StoreQuery::connect(&world.owner).await.unwrap();
    let chart = query.chart(&asked(m.key, keys(&["a"]), 4 * DAY), None).await.unwrap();
    assert_eq!(chart.resolution, Resolution::Hour);
    assert_eq!(chart.series[0].points.len(), 1);
    assert_eq!(chart.series[0].points[0].measures.runtime.histogram.count(), 4);
}

#[tokio::test]
async fn minutes_go_after_two_weeks_hours_after_three_months_and_days_when_the_broker_says() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let mut brief = world.monitor("brief").await;
    let policy = RetentionPolicy {
        statistics: RetentionClass::Days7,
        ..RetentionPolicy::default()
    };
    let of_brief = kanchi_store::BrokerSpec {
        retention: policy,
        ..spec("brief")
    };
    assert_eq!(world.admin.ensure_broker(&of_brief).await.unwrap(), brief.key);
    world.admin.upkeep(now()).await.unwrap();
    for one in [&mut m, &mut brief] {
        store(one, vec![succeeded_tasks(ago(0), "a", 1)]).await;
    }
    roll_up_all(&world).await;
    let left = |key: BrokerKey| {
        world.sql(&format!(
            "select string_agg(step_seconds || ':' || retention_days, ' ' order by step_seconds) from kanchi.statistic
             where broker_id = {}",
            key.0
        ))
    };
    assert_eq!(left(m.key), "60:14 3600:90 86400:365");
    assert_eq!(left(brief.key), "60:7 3600:7 86400:7");
    for (days, of_m, of_brief) in [
        (10, "60:14 3600:90 86400:365", ""),
        (17, "3600:90 86400:365", ""),
        (100, "86400:365", ""),
        (400, "", ""),
    ] {
        world.admin.upkeep(UnixMicros(now().0 + days * DAY)).await.unwrap();
        assert_eq!(
            (left(m.key), left(brief.key)),
            (of_m.to_owned(), of_brief.to_owned()),
            "{days}"
        );
    }
}

#[tokio::test]
async fn the_names_with_the_most_failures_are_found_wherever_they_are_counted() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let failed = |back: i64, name: &str, count| {
        let mut delta = succeeded_tasks(ago(back), name, 1);
        delta.measures.counts.add(Transition::Failed, count);
        delta
    };
    store(
        &mut m,
        vec![
            failed(2 * DAY, "often", 10),
            failed(2 * DAY, "never", 0),
            failed(30 * DAY, "long-ago", 99),
        ],
    )
    .await;
    roll_up_all(&world).await;
    store(
        &mut m,
        vec![failed(0, "now", 15), failed(0, "often", 10), failed(0, "once", 1)],
    )
    .await;
    let query = StoreQuery::connect(&world.owner).await.unwrap();
    let top = |count| Select::Top {
        by: Transition::Failed,
        count,
    };
    let figures = query.figures(&asked(m.key, top(2), 5 * DAY)).await.unwrap();
    let named: Vec<_> = figures
        .iter()
        .map(|one| {
            (
                one.key.as_str(),
                one.measures.counts.get(Transition::Failed),
                one.measures.counts.get(Transition::Succeeded),
            )
        })
        .collect();
    assert_eq!(named, [("often", 20, 2), ("now", 15, 1)]);
    let all = query.figures(&asked(m.key, top(20), 5 * DAY)).await.unwrap();
    assert_eq!(all.len(), 3, "what never failed is not among them: {all:?}");
    let chart = query
        .chart(&asked(m.key, top(1), 5 * DAY), Some(Resolution::Day))
        .await
        .unwrap();
    assert_eq!(
        (chart.series[0].key.as_str(), chart.series[0].points.len()),
        ("often", 2)
    );
}

#[tokio::test]
async fn questions_without_a_bound_are_refused() {
    let world = World::new().await;
    let m = world.monitor("orders").await;
    let query = StoreQuery::connect(&world.owner).await.unwrap();
    let month = asked(m.key, keys(&["a"]), 30 * DAY);
    let minutes = query.chart(&month, Some(Resolution::Minute)).await;
    assert_eq!(minutes.unwrap_err().kind(), ErrorKind::Invalid);
    let many: Vec<String> = (0..21).map(|number| number.to_string()).collect();
    let figures = query.figures(&asked(m.key, Select::Keys(many), DAY)).await;
    assert_eq!(figures.unwrap_err().kind(), ErrorKind::Invalid);
    let backwards = query.chart(&asked(m.key, keys(&["a"]), -DAY), None).await;
    assert_eq!(backwards.unwrap_err().kind(), ErrorKind::Invalid);
    let empty = query.chart(&asked(m.key, keys(&["a"]), DAY), None).await.unwrap();
    assert!(empty.series[0].points.is_empty());
}

#[tokio::test]
async fn what_one_broker_damages_is_its_own() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let hostile = world.monitor("hostile").await;
    let url = hostile.url.expose().to_owned();
    for payload in [
        "'\\x'",
        "'\\x02'",
        "'\\x01ff'",
        // Under the empty name of everything, more tasks than there are numbers for.
        "'\\x01000010feffffffffffffffff0100000000'",
    ] {
        let insert = format!("insert into kanchi.statistic_delta (minute, payload) values (now(), {payload})");
        for _ in 0..2 {
            world.server.sql_at(&url, &insert).unwrap();
        }
    }
    let mut all = succeeded_tasks(ago(0), "", 3);
    all.dimension = Dimension::All;
    store(&mut m, vec![succeeded_tasks(ago(0), "a", 3), all]).await;
    let done = roll_up_all(&world).await;
    assert_eq!((done.taken, done.damaged), (9, 6), "{done:?}");
    assert_eq!(rolled_up(&world, "a"), "60:3 3600:3 86400:3");
    assert_eq!(world.sql("select taken, damaged from kanchi.roll_up"), "9|6");
    let hours = world.admin.last_hour(ago(0)).await.unwrap();
    assert_eq!(hours[&m.key].succeeded, 3);
}

#[tokio::test]
async fn the_last_hour_is_counted() {
    let world = World::new().await;
    let mut m = world.monitor("orders").await;
    let counted = |minutes: i64, transition, count| {
        let mut delta = succeeded_tasks(ago(minutes * MINUTE), "", 0);
        delta.dimension = Dimension::All;
        delta.measures.counts.add(transition, count);
        delta
    };
    let deltas = vec![
        counted(1, Transition::Succeeded, 5),
        counted(58, Transition::Succeeded, 2),
        counted(62, Transition::Succeeded, 100),
        counted(2, Transition::Failed, 3),
        counted(2, Transition::Retried, 1),
        counted(2, Transition::Received, 50),
        // What is counted by name is not counted again.
        succeeded_tasks(ago(0), "a", 7),
    ];
    store(&mut m, deltas).await;
    roll_up_all(&world).await;
    let counts = world.admin.last_hour(ago(0)).await.unwrap()[&m.key];
    assert_eq!((counts.succeeded, counts.failed, counts.retried), (7, 3, 1));
}

/// Names, by name, with the minutes that have passed since the first and the last.
async fn names(query: &StoreQuery, key: BrokerKey, prefix: &str) -> Vec<(String, i64, i64)> {
    let past = |time: UnixMicros| (ago(0).0 - time.0) / MINUTE;
    let names = query.task_names(Some(&[key.0]), prefix, None, 1_000).await.unwrap();
    let one = |name: TaskName| (name.name, past(name.first_seen_at), past(name.last_seen_at));
    names.into_iter().map(one).collect()
}

fn seen(name: &str, first: i64, last: i64) -> (String, i64, i64) {
    (name.to_owned(), first, last)
}

#[tokio::test]
async fn names_of_tasks_are_learned_as_they_are_rolled_up() {
    let world = World::new().await;
    world.admin.upkeep(now()).await.unwrap();
    let mut m = world.monitor("orders").await;
    let mut another = world.monitor("another").await;
    let query = StoreQuery::connect(&world.owner).await.unwrap();
    let named = |back: i64, name: &str| succeeded_tasks(ago(back * MINUTE), name, 1);
    store(&mut another, vec![named(5, "shop.pay"), named(5, "other.x")]).await;
    let first = [
        (200, "shop.pay"),
        (100, "shop.pay"),
        (100, "Shop.b"),
        (100, "(other)"),
        (100, ""),
    ];
    store(&mut m, first.map(|(back, name)| named(back, name)).into()).await;
    roll_up_all(&world).await;
    assert_eq!(
        names(&query, m.key, "").await,
        [seen("Shop.b", 100, 100), seen("shop.pay", 200, 100)]
    );

    // What is ten minutes newer is no news yet; what is earlier is.
    store(&mut m, vec![named(95, "shop.pay"), named(300, "Shop.b")]).await;
    roll_up_all(&world).await;
    assert_eq!(
        names(&query, m.key, "").await,
        [seen("Shop.b", 300, 100), seen("shop.pay", 200, 100)]
    );
    store(&mut m, vec![named(50, "shop.pay"), named(-1_440, "early")]).await;
    roll_up_all(&world).await;
    assert_eq!(names(&query, m.key, "shop").await, [seen("shop.pay", 200, 50)]);
    assert_eq!(
        world.sql("select last_seen_at <= now() from kanchi.task_name where name = 'early'"),
        "t",
        "a clock that is ahead"
    );
}

#[tokio::test]
async fn pages_of_names_follow_each_other() {
    let world = World::new().await;
    world.admin.upkeep(now()).await.unwrap();
    let mut wanted = Vec::new();
    for broker in ["orders", "another"] {
        let mut m = world.monitor(broker).await;
        let deltas = ["b", "a", "a.b", "ä", "A"].map(|name| succeeded_tasks(ago(0), name, 1));
        store(&mut m, deltas.into()).await;
        wanted.extend(["A", "a", "a.b", "b", "ä"].map(|name| (m.key.0, name.to_owned())));
    }
    roll_up_all(&world).await;
    let query = StoreQuery::connect(&world.owner).await.unwrap();
    let mut all: Vec<(i32, String)> = Vec::new();
    loop {
        let after = all.last().map(|(broker, name)| (*broker, name.as_str()));
        let page = query.task_names(None, "", after, 2).await.unwrap();
        if page.is_empty() {
            break;
        }
        all.extend(page.into_iter().map(|name| (name.broker_key, name.name)));
    }
    assert_eq!(all, wanted);
    let some = query.task_names(None, "a", Some((wanted[0].0, "a")), 10).await.unwrap();
    let some: Vec<_> = some.iter().map(|name| name.name.as_str()).collect();
    assert_eq!(some, ["a.b", "a", "a.b"]);
}

#[tokio::test]
async fn the_names_that_were_seen_last_are_kept() {
    let world = World::new().await;
    world.admin.upkeep(now()).await.unwrap();
    let mut m = world.monitor("orders").await;
    world.sql(&format!(
        "insert into kanchi.task_name select {}, 'old-' || n, now() - interval '30 days', now() - n * interval '1 minute' - interval '1 day'
         from generate_series(1, 10000) as n",
        m.key.0
    ));
    store(
        &mut m,
        vec![
            succeeded_tasks(ago(0), "new", 1),
            succeeded_tasks(ago(0), "old-9999", 1),
        ],
    )
    .await;
    roll_up_all(&world).await;
    assert_eq!(world.sql("select count(*) from kanchi.task_name"), "10000");
    assert_eq!(
        world.sql("select string_agg(name, ' ' order by name) from kanchi.task_name where name in ('new', 'old-9998', 'old-9999', 'old-10000')"),
        "new old-9998 old-9999"
    );
    world.sql("update kanchi.task_name set last_seen_at = now() - interval '366 days' where name like 'old-%'");
    assert_eq!(world.admin.upkeep(now()).await.unwrap().pruned, 9_999);
    assert_eq!(world.sql("select name from kanchi.task_name"), "new");
}
