//! Who may touch what: a monitor's role in the hands of a thief.

use kanchi_store::{BrokerKey, DeadLetter, GapRow, Heartbeat, QueueRow, UnixMicros, WorkerRow};
use sqlx::postgres::PgRow;
use sqlx::{Connection, Executor, PgConnection, Row};
use uuid::Uuid;

use crate::world::{
    Monitor, PASSWORD, World, batch, chunk, failed_tasks, live, now, received, started, succeeded, succeeded_tasks,
};

const LIVE: &str = "11111111-0000-4000-8000-000000000001";
const DONE: &str = "11111111-0000-4000-8000-000000000002";
/// In every text of the victim's rows.
const CANARY: &str = "canary";

/// Rows in every table that a monitor fills, with a canary in every text.
async fn fill(m: &mut Monitor) {
    let mut whole = batch(
        m.epoch,
        vec![
            live(LIVE, &[received(LIVE, 0), started(LIVE, 1)], false),
            live(DONE, &[received(DONE, 0), started(DONE, 1), succeeded(DONE, 2)], false),
        ],
    );
    for task in &mut whole.changes.tasks {
        task.name = Some(CANARY.into());
        if let Some(row) = &mut task.ended {
            row.name = Some(CANARY.into());
        }
    }
    whole.head.digests = vec![7];
    whole.head.chunks = vec![chunk(LIVE, &[received(LIVE, 0)])];
    let worker = WorkerRow {
        hostname: CANARY.into(),
        pid: None,
        state: CANARY.into(),
        freq: None,
        active: Some(1),
        processed: None,
        loadavg: None,
        sw_ident: None,
        sw_ver: None,
        sw_sys: None,
        pool: None,
        started_at: None,
        last_event_at: now(),
        last_heartbeat_at: None,
    };
    whole.changes.statistics = vec![succeeded_tasks(now(), CANARY, 1)];
    whole.changes.failures = vec![failed_tasks(now(), CANARY, CANARY, 1)];
    whole.head.gaps = vec![GapRow {
        id: Uuid::new_v4(),
        from: now(),
        to: None,
        cause: CANARY.into(),
        estimated_events: None,
    }];
    whole.head.dead_letters = vec![DeadLetter {
        arrived: now(),
        reason: CANARY.into(),
        detail: CANARY.into(),
        sample: CANARY.into(),
    }];
    m.writer.commit(&whole).await.unwrap();
    m.reporter.save_workers(&[worker]).await.unwrap();
    let queue = QueueRow {
        name: CANARY.into(),
        ready: 1,
        unacked: None,
        consumers: None,
    };
    m.reporter.save_queues(now(), &[queue]).await.unwrap();
    let beat = Heartbeat {
        instance: CANARY.into(),
        connection: CANARY.into(),
        ..Heartbeat::default()
    };
    m.reporter.heartbeat(&beat).await.unwrap();
}

/// Everything of every broker but one, and everything that belongs to none, as text.
fn others(world: &World, thief: i32) -> String {
    let tables = world.sql(
        "select c.relname, exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'broker_id')
         from pg_class c where c.relnamespace = 'kanchi'::regnamespace and c.relkind in ('r', 'p')
            and not c.relispartition order by 1",
    );
    let mut all = String::new();
    for line in tables.lines() {
        let (table, of_broker) = line.split_once('|').unwrap();
        let condition = if of_broker == "t" {
            format!("where t.broker_id <> {thief}")
        } else {
            String::new()
        };
        all += &world.sql(&format!(
            "select '{table}', t::text from kanchi.\"{table}\" t {condition} order by 2"
        ));
        all.push('\n');
    }
    all
}

struct Thief<'w> {
    world: &'w World,
    url: String,
    connection: PgConnection,
}

impl Thief<'_> {
    /// Runs one statement in the thief's session; `Ok` are the texts of the first column.
    async fn run(&mut self, sql: &str) -> Result<String, String> {
        let rows = self
            .connection
            .fetch_all(sql)
            .await
            .map_err(|error| error.to_string())?;
        let text = |row: &PgRow| {
            row.try_get_unchecked::<Option<String>, _>(0)
                .ok()
                .flatten()
                .unwrap_or_default()
        };
        Ok(rows.iter().map(text).collect::<Vec<_>>().join("\n"))
    }

    /// Runs SQL as the thief in a session of its own; `Ok` is what it prints.
    fn try_sql(&self, sql: &str) -> Result<String, String> {
        self.world
            .server
            .sql_at(&self.url, sql)
            .map_err(|error| error.to_string())
    }
}

#[tokio::test]
async fn a_stolen_monitor_role_reads_and_writes_its_own_rows_only() {
    let world = World::new().await;
    world.admin.upkeep(now()).await.unwrap();
    world.admin.claim_installation("installation-canary").await.unwrap();
    let mut victim = world.monitor("victim").await;
    // One batch's statistics are rolled up, one's are not.
    fill(&mut victim).await;
    world.admin.roll_up().await.unwrap();
    let mut more = batch(victim.epoch, vec![]);
    more.changes.statistics = vec![succeeded_tasks(now(), CANARY, 1)];
    victim.writer.commit(&more).await.unwrap();
    let own = world.monitor("thief").await;
    drop((own.writer, own.reporter));
    let url = own.url.expose().to_owned();
    let connection = PgConnection::connect(&url).await.unwrap();
    let mut thief = Thief {
        world: &world,
        url,
        connection,
    };
    let before = others(&world, own.key.0);
    assert!(before.matches(CANARY).count() >= 10, "the victim has rows: {before}");

    every_relation(&mut thief, victim.key.0).await;
    every_function(&mut thief).await;
    tricks(&thief, victim.key.0);
    assert_eq!(others(&world, own.key.0), before, "something of another broker changed");
}

/// Tables, partitions, views and sequences of Kanchi, and everything readable elsewhere.
async fn every_relation(thief: &mut Thief<'_>, victim: i32) {
    let relations = thief.world.sql(
        "select relnamespace::regnamespace || '.' || quote_ident(relname), relkind,
            (select quote_ident(attname) from pg_attribute where attrelid = pg_class.oid and attnum > 0
                order by attname <> 'broker_id', attnum limit 1)
         from pg_class
         where relkind in ('r', 'p', 'v', 'm', 'S', 'f')
            and relnamespace::regnamespace::text in ('kanchi', 'public') order by 1",
    );
    let mut readable = Vec::new();
    for line in relations.lines() {
        let [relation, kind, column] = line.split('|').collect::<Vec<_>>().try_into().unwrap();
        if kind == "S" {
            for verb in ["nextval", "currval"] {
                thief.run(&format!("select {verb}('{relation}')")).await.unwrap_err();
            }
            continue;
        }
        if let Ok(rows) = thief.run(&format!("select t::text from {relation} t")).await {
            assert!(!rows.contains(CANARY), "{relation}: {rows}");
            readable.push(relation.to_owned());
        }
        for statement in [
            format!("update {relation} set {column} = {column}"),
            format!("delete from {relation}"),
            format!("truncate {relation}"),
            format!("insert into {relation} (broker_id) values ({victim})"),
            format!("insert into {relation} select * from {relation}"),
            format!("alter table {relation} add column x int"),
            format!("drop table {relation}"),
            format!(
                "create trigger t after insert on {relation} execute function pg_catalog.suppress_redundant_updates_trigger()"
            ),
            format!("copy {relation} to stdout"),
        ] {
            // COPY speaks a protocol of its own; partitions have no rights that their parents have not.
            let done = match statement.strip_prefix("copy ") {
                Some(_) if relation.ends_with(|last: char| last.is_ascii_digit()) => continue,
                Some(_) => thief.try_sql(&statement),
                None => thief.run(&statement).await,
            };
            // Refused for the right, not for a mistake in the statement.
            let refused = |error: &String| {
                [
                    "permission denied",
                    "must be owner",
                    "cannot ",
                    "is not a table",
                    "does not exist",
                ]
                .iter()
                .any(|why| error.contains(why))
            };
            let copied = statement.starts_with("copy kanchi.own_");
            assert!(done.as_ref().map_or_else(refused, |_| copied), "{statement}: {done:?}");
        }
    }
    assert!(
        readable.iter().all(|relation| relation.starts_with("kanchi.own_")),
        "{readable:?}"
    );
    assert!(readable.len() >= 9, "{readable:?}");
}

/// Every function of Kanchi with arguments that name the victim's things: whatever answers, answers about the thief.
async fn every_function(thief: &mut Thief<'_>) {
    let functions = thief.world.sql(
        "select proname || '(' || coalesce((
            select string_agg(case t::regtype::text
                when 'text' then quote_literal('canary')
                when 'text[]' then format('array[%L, %L]', '11111111-0000-4000-8000-000000000001',
                    '11111111-0000-4000-8000-000000000002')
                when 'timestamp with time zone' then quote_literal('-infinity')
                when 'interval' then quote_literal('-1 day')
                when 'jsonb' then 'null'
                when 'boolean' then 'true'
                when 'uuid' then quote_literal((select batch_id from kanchi.batch limit 1))
                when 'bytea' then 'null'
                when 'bytea[]' then 'null'
                when 'bigint[]' then 'null'
                else '1' end || '::' || t::regtype::text, ', ' order by n)
            from unnest(proargtypes) with ordinality as a (t, n)), '') || ')'
         from pg_proc where pronamespace = 'kanchi'::regnamespace order by 1",
    );
    let mut callable = 0;
    for call in functions.lines() {
        if let Ok(rows) = thief.run(&format!("select f::text from kanchi.{call} as f")).await {
            callable += 1;
            assert!(!rows.contains(CANARY) && !rows.contains("11111111"), "{call}: {rows}");
        }
    }
    assert!(
        callable >= 10,
        "the calls must be well formed: {callable} of\n{functions}"
    );
    for private in ["kanchi.grant_rights()", "kanchi.save_dead_letters('[]')"] {
        thief.run(&format!("select {private}")).await.unwrap_err();
    }
}

/// What a clever thief would try besides.
fn tricks(thief: &Thief<'_>, victim: i32) {
    let group = thief.world.sql("select kanchi.monitor_group()");
    let victim = thief.world.admin.role(BrokerKey(victim));
    let refused = [
        format!("set session authorization {victim}"),
        format!("set role {victim}"),
        "set role kanchi".to_owned(),
        format!("grant \"{group}\" to public"),
        format!("alter role {victim} password 'x'"),
        "alter role current_user createrole".to_owned(),
        "alter role current_user connection limit 100".to_owned(),
        "create role mine".to_owned(),
        "create schema mine".to_owned(),
        "create table public.mine (n int)".to_owned(),
        "create table kanchi.mine (n int)".to_owned(),
        "create temporary table mine (n int)".to_owned(),
        "create function kanchi.mine() returns int language sql as 'select 1'".to_owned(),
        format!("insert into kanchi.event_chunk (broker_id, retention_days, first_at, event_count, events) values ({victim}, 7, now(), 1, '')"),
        "insert into kanchi.event_chunk (stored_at, retention_days, first_at, event_count, events) values (now(), 7, now(), 1, '')".to_owned(),
        format!("insert into kanchi.statistic_delta (broker_id, minute, payload) values ({victim}, now(), '')"),
        "insert into kanchi.statistic_delta (minute, payload) values ('infinity', '')".to_owned(),
        "insert into kanchi.statistic_delta (minute, payload) values (now(), repeat('x', 70000)::bytea)".to_owned(),
        format!("copy kanchi.event_chunk (broker_id, retention_days, first_at, event_count, events) from stdin; {victim}"),
        "select pg_read_file('postgresql.conf')".to_owned(),
        "copy (select 1) to program 'true'".to_owned(),
        "select * from pg_authid".to_owned(),
        format!("select pg_terminate_backend(pid) from pg_stat_activity where usename = '{victim}' and pg_terminate_backend(pid)"),
    ];
    for statement in refused {
        let done = thief.try_sql(&statement);
        assert!(
            done.as_ref().is_err() || done.as_ref().is_ok_and(String::is_empty),
            "{statement}: {done:?}"
        );
        assert!(
            done.is_err() || statement.contains("pg_stat_activity"),
            "{statement}: {done:?}"
        );
    }
    // As the group, with settings and search paths of its own choice, it still is the broker of its login role.
    for prefix in [
        format!("set role \"{group}\""),
        format!("set kanchi.broker = '{victim}'"),
        "set search_path = public, pg_temp, kanchi".to_owned(),
    ] {
        for view in [
            "own_task_live",
            "own_task",
            "own_event_chunk",
            "own_worker",
            "own_gap",
            "own_dead_letter",
            "own_statistic",
            "own_statistic_delta",
            "own_failure_group",
        ] {
            let rows = thief
                .try_sql(&format!("{prefix}; select t::text from kanchi.{view} t"))
                .unwrap();
            assert!(!rows.contains(CANARY), "{prefix}: {rows}");
        }
    }
    // A condition that would print each row it sees runs only on rows behind the barrier.
    let peek = "select count(*) from kanchi.own_task where (name || 'x')::int > 0";
    assert_eq!(thief.try_sql(peek).unwrap(), "0");
    // Rows it may write land in its own broker, in today's partition.
    let insert = "insert into kanchi.event_chunk (retention_days, first_at, event_count, events) values (7, '2000-01-01', 1, '')";
    thief.try_sql(insert).unwrap();
    let own = thief
        .world
        .sql("select count(*) from kanchi.event_chunk where event_count = 1 and events = '' and broker_id <> 1");
    assert_eq!(own, "1");
    // Hints may be sent and heard; they carry nothing, and nobody else's data goes through channels.
    thief.try_sql("listen kanchi_status; notify kanchi_status").unwrap();
}

#[tokio::test]
async fn a_role_of_one_database_opens_no_other() {
    let world = World::new().await;
    let m = world.monitor("orders").await;
    let other = kanchi_store::StoreUrl::parse(&world.server.create_installation("second").unwrap()).unwrap();
    let admin = kanchi_store::StoreAdmin::connect(&other).await.unwrap();
    admin.migrate().await.unwrap();
    let key = admin.ensure_broker(&crate::world::spec("orders")).await.unwrap();
    assert_eq!(key, m.key, "each database counts its own brokers");
    admin.ensure_role(key, PASSWORD).await.unwrap();
    let url = other.for_role(m.url.role(), PASSWORD).unwrap();
    drop((m.writer, m.reporter));
    let error = kanchi_store::StoreWriter::connect(&url, kanchi_store::RetentionPolicy::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), kanchi_store::ErrorKind::Forbidden, "{error}");
}

#[tokio::test]
async fn no_password_reaches_the_servers_log() {
    let world = World::new().await;
    world
        .server
        .sql("postgres", "alter system set log_statement = 'all'")
        .unwrap();
    world.server.sql("postgres", "select pg_reload_conf()").unwrap();
    let m = world.monitor("orders").await;
    let log = world.server.log();
    assert!(
        log.contains(m.url.role()) && log.contains("SCRAM-SHA-256$"),
        "statements are logged"
    );
    assert!(!log.contains(PASSWORD));
}

#[tokio::test]
async fn without_the_right_to_create_roles_it_says_what_to_grant() {
    let world = World::new().await;
    world
        .server
        .sql("postgres", "create role poor login password 'owner-of-a-test'")
        .unwrap();
    world.server.sql("postgres", "create database poor owner poor").unwrap();
    let url = kanchi_store::StoreUrl::parse(&world.server.url_of("poor", "owner-of-a-test", "poor")).unwrap();
    let admin = kanchi_store::StoreAdmin::connect(&url).await.unwrap();
    admin.migrate().await.unwrap();
    let key = admin.ensure_broker(&crate::world::spec("orders")).await.unwrap();
    let error = admin.ensure_role(key, PASSWORD).await.unwrap_err();
    assert_eq!(error.kind(), kanchi_store::ErrorKind::Forbidden);
    assert!(error.to_string().contains("createrole"), "{error}");
    world.server.sql("postgres", "alter role poor createrole").unwrap();
    admin.ensure_role(key, PASSWORD).await.unwrap();
}

#[tokio::test]
async fn batches_of_two_brokers_with_the_same_ids_do_not_meet() {
    let world = World::new().await;
    let mut a = world.monitor("a").await;
    let mut b = world.monitor("b").await;
    let mut one = batch(a.epoch, vec![live(LIVE, &[received(LIVE, 0)], false)]);
    one.head.id = Uuid::from_u128(1);
    a.writer.commit(&one).await.unwrap();
    assert!(!b.writer.was_committed(one.head.id).await.unwrap());
    b.writer.commit(&one).await.unwrap();
    assert_eq!(world.sql("select count(*) from kanchi.task_live"), "2");
    assert_eq!(a.reporter.previous().await.unwrap().event_queue, None);
    assert!(a.reporter.last_commit_at().await.unwrap() > Some(UnixMicros(0)));
}
