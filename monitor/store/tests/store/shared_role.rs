//! One role for all monitors, where the store's user may not create roles.

use kanchi_store::{
    BrokerKey, ErrorKind, Purge, Purged, RetentionPolicy, RoleMode, SharedRole, StoreAdmin, StoreUrl, StoreWriter,
};

use crate::world::{PASSWORD, World, batch, chunk, live, now, received, spec};

const ID: &str = "33333333-0000-4000-8000-000000000001";
const NAME: &str = "kanchi_m_shared";
/// With everything that a URL would take for something else.
const SHARED_PASSWORD: &str = "canary of the shared+role@host/%41?#";
const CHUNK: &str =
    "insert into kanchi.event_chunk (retention_days, first_at, event_count, events) values (7, now(), 1, '')";

fn shared() -> SharedRole {
    SharedRole::new(NAME, SHARED_PASSWORD).unwrap()
}

impl World {
    /// A user without CREATEROLE, and the role to share as docs/install.md makes it.
    async fn sharing() -> Self {
        let mut world = Self::without_createrole().await;
        world.make_shared("login");
        world.admin = world.admin.with_shared_role(Some(shared()));
        world.admin.migrate().await.unwrap();
        world
    }

    fn make_shared(&self, attributes: &str) {
        self.sql(&format!("create role {NAME} password '{SHARED_PASSWORD}' {attributes}"));
    }

    /// The URL of a role with this `kanchi.broker`.
    fn url_saying(&self, role: &str, password: &str, broker: &str) -> StoreUrl {
        let url = self.owner.for_role(role, password).unwrap();
        StoreUrl::parse(&format!("{}?options=-c%20kanchi.broker%3D{broker}", url.expose())).unwrap()
    }

    fn as_monitor(&self, url: &StoreUrl, sql: &str) -> Result<String, String> {
        self.server
            .sql_at(url.expose(), sql)
            .map_err(|error| format!("{error:#}"))
    }
}

#[tokio::test]
async fn a_shared_role_writes_and_reads_the_broker_that_its_connection_says() {
    let world = World::sharing().await;
    world.sql("alter system set log_statement = 'all'");
    world.sql("select pg_reload_conf()");
    let mut a = world.monitor("a").await;
    let mut b = world.monitor("b").await;
    assert_eq!((a.url.role(), b.url.role()), (NAME, NAME));
    for (monitor, events) in [(&mut a, 1), (&mut b, 2)] {
        let mut whole = batch(monitor.epoch, vec![live(ID, &[received(ID, 0)], false)]);
        whole.head.chunks = (0..events).map(|at| chunk(ID, &[received(ID, at)])).collect();
        monitor.writer.commit(&whole).await.unwrap();
        assert!(monitor.writer.was_committed(whole.head.id).await.unwrap());
        assert_eq!(monitor.writer.load_facts(&[ID]).await.unwrap().len(), 1);
        assert!(monitor.reporter.last_commit_at().await.unwrap() > Some(now_less_a_minute()));
    }
    let mut reader = world.reader().await;
    for (monitor, events) in [(&a, 1), (&b, 2)] {
        let key = monitor.key.0;
        assert!(reader.task(key, ID, now()).await.unwrap().is_some());
        assert_eq!(
            reader.events(key, ID).await.unwrap().len(),
            events,
            "COPY went to its broker"
        );
        // What libpq makes of the URL that the operator writes.
        let seen = world
            .as_monitor(
                &monitor.url,
                "select broker_id, count(*) from kanchi.own_event_chunk group by 1",
            )
            .unwrap();
        assert_eq!(seen, format!("{key}|{events}"));
    }
    for (sql, why) in [
        ("select * from kanchi.task_live", "permission denied"),
        ("select * from kanchi.broker", "permission denied"),
        (
            "insert into kanchi.task_live (broker_id, task_id) values (2, 'x')",
            "permission denied",
        ),
        ("create temporary table mine (n int)", "permission denied"),
    ] {
        let error = world.as_monitor(&a.url, sql).unwrap_err();
        assert!(error.contains(why), "{sql}: {error}");
    }
    let log = world.server.log();
    assert!(log.contains("begin_epoch"), "statements are logged");
    assert!(!log.contains("canary"), "the operator never sends the password");
}

fn now_less_a_minute() -> kanchi_store::UnixMicros {
    kanchi_store::UnixMicros(now().0 - 60_000_000)
}

#[tokio::test]
async fn a_shared_role_that_does_not_say_its_broker_is_refused_by_name() {
    let world = World::sharing().await;
    let key = world.monitor("orders").await.key;
    let bare = world.owner.for_role(NAME, SHARED_PASSWORD).unwrap();
    let mut urls = vec![bare];
    for said in ["", "0", "-1", "%2B1", "1x", "9999999999", "kanchi_m_1"] {
        urls.push(world.url_saying(NAME, SHARED_PASSWORD, said));
    }
    for url in &urls {
        let error = StoreWriter::connect(url, RetentionPolicy::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
        assert!(error.to_string().contains("must say its broker"), "{error}");
        for sql in [
            CHUNK,
            "select kanchi.begin_epoch('x')",
            "select count(*) from kanchi.own_worker",
        ] {
            let error = world.as_monitor(url, sql).unwrap_err();
            assert!(error.contains("must say its broker"), "{sql}: {error}");
        }
    }
    assert_eq!(world.sql("select count(*) from kanchi.event_chunk"), "0");
    let unknown = world.url_saying(NAME, SHARED_PASSWORD, &(key.0 + 1).to_string());
    let error = StoreWriter::connect(&unknown, RetentionPolicy::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
    assert!(error.to_string().contains("is not known"), "{error}");
}

#[tokio::test]
async fn a_role_of_its_own_stays_its_broker_whatever_it_says_beside_a_shared_one() {
    let world = World::sharing().await;
    let victim = world.monitor("victim").await;
    let insert = world.as_monitor(&victim.url, CHUNK);
    insert.unwrap();
    // From here on brokers get roles of their own.
    world.sql("alter role kanchi createrole");
    let thief = world.monitor("thief").await;
    assert_eq!(thief.url.role(), world.admin.role(thief.key));
    let said = world.url_saying(thief.url.role(), PASSWORD, &victim.key.0.to_string());
    let writer = StoreWriter::connect(&said, RetentionPolicy::default()).await.unwrap();
    assert_eq!(writer.broker_key(), thief.key.0);
    drop((writer, thief.writer, thief.reporter));
    for prefix in [
        String::new(),
        format!("set kanchi.broker = '{}'", victim.key.0),
        format!("set role \"{}\"", world.sql("select kanchi.monitor_group()")),
    ] {
        let key = thief.key.0.to_string();
        let run = |sql: &str| world.as_monitor(&said, &format!("{prefix}; {sql}"));
        assert_eq!(run("select kanchi.current_broker()").unwrap(), key);
        run(CHUNK).unwrap();
        let seen = run("select distinct broker_id from kanchi.own_event_chunk").unwrap();
        assert_eq!(seen, key, "{prefix}");
        run(&format!("set role {NAME}")).unwrap_err();
        run(&format!("set session authorization {NAME}")).unwrap_err();
    }
    let count = format!(
        "select count(*) from kanchi.event_chunk where broker_id = {}",
        victim.key.0
    );
    assert_eq!(world.sql(&count), "1");
}

#[tokio::test]
async fn a_broker_that_goes_leaves_the_shared_role_to_the_others() {
    let world = World::sharing().await;
    let mut gone = world.monitor("gone").await;
    let mut stays = world.monitor("stays").await;
    let role = "select rolcanlogin, rolconnlimit, xmin from pg_authid where rolname = 'kanchi_m_shared'";
    let before = world.sql(role);
    world.admin.retire_broker(gone.key).await.unwrap();
    let error = gone.writer.commit(&batch(gone.epoch, vec![])).await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::StaleEpoch | ErrorKind::Forbidden),
        "{error}"
    );
    let error = StoreWriter::connect(&gone.url, RetentionPolicy::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
    stays.writer.commit(&batch(stays.epoch, vec![])).await.unwrap();

    world.admin.order_purge(gone.key).await.unwrap();
    let mut purge = Purge::new(world.admin.clone(), std::time::Duration::ZERO);
    while !matches!(purge.step().await.unwrap(), Purged::Brokers { .. }) {}
    assert_eq!(world.sql(role), before, "nobody touched the role");
    stays.writer.commit(&batch(stays.epoch, vec![])).await.unwrap();

    // A retired broker that comes back goes on with its history.
    world.admin.retire_broker(stays.key).await.unwrap();
    let again = world.monitor("stays").await;
    assert_eq!(again.key, stays.key);
    assert!(again.epoch > stays.epoch);
}

#[tokio::test]
async fn a_role_that_another_database_made_of_the_same_number_is_left_alone() {
    let world = World::sharing().await;
    let m = world.monitor("orders").await;
    let other = StoreUrl::parse(&world.server.create_installation("second").unwrap()).unwrap();
    let second = StoreAdmin::connect(&other).await.unwrap();
    second.migrate().await.unwrap();
    assert_eq!(second.ensure_broker(&spec("orders")).await.unwrap(), m.key);
    second.ensure_role(m.key, PASSWORD).await.unwrap();
    let its = second.role(m.key);
    let its = format!("select rolcanlogin, rolpassword from pg_authid where rolname = '{its}'");
    let before = world.sql(&its);

    // Where it could be changed, too.
    for attribute in ["nosuperuser", "superuser"] {
        world.sql(&format!("alter role {} {attribute}", world.owner.role()));
        world.admin.retire_broker(m.key).await.unwrap();
        assert_eq!(world.sql(&its), before, "{attribute}");
    }
    assert_eq!(world.admin.ensure_role(m.key, PASSWORD).await.unwrap(), RoleMode::Own);
    assert_eq!(world.sql(&its), before);
    world.admin.order_purge(m.key).await.unwrap();
    let mut purge = Purge::new(world.admin.clone(), std::time::Duration::ZERO);
    while !matches!(purge.step().await.unwrap(), Purged::Brokers { .. }) {}
    assert_eq!(world.sql(&its), before);
}

#[tokio::test]
async fn a_shared_role_is_made_by_an_administrator_and_may_do_nothing_else() {
    let mut world = World::without_createrole().await;
    let key = world.admin.ensure_broker(&spec("orders")).await.unwrap();
    let refusal = async |world: &World, key: BrokerKey| {
        let error = world.admin.ensure_role(key, PASSWORD).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Forbidden);
        assert!(!error.to_string().contains("canary"), "{error}");
        error.to_string()
    };
    let text = refusal(&world, key).await;
    assert!(
        text.contains("createrole") && text.contains("store.sharedRole"),
        "{text}"
    );
    world.admin = world.admin.with_shared_role(Some(shared()));
    world.admin.migrate().await.unwrap();
    assert!(refusal(&world, key).await.contains("does not exist"));
    world.make_shared("nologin");
    assert!(refusal(&world, key).await.contains("may not log in"));
    world.sql(&format!("alter role {NAME} login createdb"));
    assert!(refusal(&world, key).await.contains("databases"));
    world.sql(&format!("alter role {NAME} nocreatedb; grant kanchi to {NAME}"));
    assert!(refusal(&world, key).await.contains("member of another role"));
    world.sql(&format!("revoke kanchi from {NAME}"));
    // Made after the operator connected; and many brokers come at once.
    let ensure = || world.admin.ensure_role(key, PASSWORD);
    let (a, b, c) = tokio::join!(ensure(), ensure(), ensure());
    assert_eq!([a.unwrap(), b.unwrap(), c.unwrap()], [RoleMode::Shared; 3]);
    world.monitor("orders").await;
}

#[tokio::test]
async fn in_a_database_of_somebody_else_its_owner_lets_the_shared_role_in() {
    let mut world = World::without_createrole().await;
    world.sql("alter database kanchi owner to postgres; grant connect on database kanchi to kanchi");
    world.make_shared("login");
    world.admin = world.admin.with_shared_role(Some(shared()));
    world.admin.migrate().await.unwrap();
    let key = world.admin.ensure_broker(&spec("orders")).await.unwrap();
    let mode = world.admin.ensure_role(key, PASSWORD).await.unwrap();
    let url = world.admin.monitor_url(key, mode, PASSWORD).unwrap();
    let error = StoreWriter::connect(&url, RetentionPolicy::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
    world.sql(&format!("grant connect on database kanchi to {NAME}"));
    world.monitor("orders").await;
}
