//! Real Celery tasks of each kind, on each broker: every row is compared field by field with the committed table, the
//! application's own journal and the result backend.
//!
//! `KANCHI_E2E_TASKS` is the number of tasks of each kind, 2,000 by default; the old Celery gets 100 at most, and of terminated
//! tasks there are `KANCHI_E2E_TERMINATED`, 500 by default: each costs its process, and a new one a quarter of a second.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use kanchi_domain::{TaskFacts, TaskRow, UnixMicros};
use kanchi_e2e::cluster::{number, setting};
use kanchi_e2e::expected::{Table, Truth};
use kanchi_e2e::shop::{Published, Shop, ShopOptions};
use kanchi_e2e::store::TASKS;
use kanchi_e2e::wait::{Look, seen};
use kanchi_e2e::{Cluster, Scope, Transport, scoped, until};
use serde::Deserialize;

const KINDS: [&str; 14] = [
    "success",
    "mail",
    "failure",
    "retry-success",
    "retry-failure",
    "revoked",
    "expired",
    "rejected",
    "ignored",
    "chain",
    "group",
    "chord",
    "eta",
    "progress",
];

#[derive(Deserialize)]
struct StoredTask {
    task_id: String,
    facts: String,
}

#[derive(Deserialize)]
struct StoredState {
    state: String,
    tasks: usize,
}

#[tokio::test]
async fn every_task_on_rabbitmq_is_what_the_table_says() -> anyhow::Result<()> {
    on_the_newest_celery("tasks-rabbitmq", Transport::RabbitMq).await
}

#[tokio::test]
async fn every_task_on_redis_is_what_the_table_says() -> anyhow::Result<()> {
    on_the_newest_celery("tasks-redis", Transport::Redis).await
}

async fn on_the_newest_celery(test: &str, transport: Transport) -> anyhow::Result<()> {
    let image = setting("KANCHI_CELERY_IMAGE")?;
    scoped(test, |scope| async move {
        let count = number("KANCHI_E2E_TASKS", 2_000)?;
        every_kind(&scope, transport, &image, count, &[]).await
    })
    .await
}

#[tokio::test]
async fn every_task_of_an_old_celery_is_what_the_table_says() -> anyhow::Result<()> {
    let image = setting("KANCHI_CELERY_OLD_IMAGE")?;
    // Celery 5.3 stores no REVOKED before a worker has met the task, and rejects without failing first.
    let old = [("rejected", "rejected on 5.3")];
    scoped("tasks-old", |scope| async move {
        let count = number("KANCHI_E2E_TASKS", 100)?.min(100);
        every_kind(&scope, Transport::Redis, &image, count, &old).await
    })
    .await
}

async fn every_kind(
    scope: &Scope,
    transport: Transport,
    image: &str,
    count: usize,
    renamed: &[(&str, &str)],
) -> anyhow::Result<()> {
    let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
    let shop = start(scope, transport, image).await?;
    let table = Table::read()?;
    let role = |task: &Published| {
        let new = renamed
            .iter()
            .find(|(role, _)| *role == task.role)
            .map(|(_, new)| (*new).to_owned());
        new.unwrap_or_else(|| task.role.clone())
    };
    let mut published = Vec::new();
    let mut states = HashMap::new();
    // A terminated process takes with it what the broker has not read yet, a retry of another task for example: those
    // come when all others are done.
    for kinds in [KINDS.as_slice(), &["terminated"]] {
        for kind in kinds {
            let count = if *kind == "terminated" {
                count.min(number("KANCHI_E2E_TERMINATED", 500)?)
            } else {
                count
            };
            let tasks = shop.publish(cluster, kind, count).await;
            for task in tasks.with_context(|| format!("publishing {kind}"))? {
                states.insert(task.id.clone(), table.line(&role(&task), transport)?.state());
                published.push(task);
            }
        }
        let within = Duration::from_secs(120 + count as u64 / 4);
        let settled = until("every task in its state", within, || async {
            let stored = stored_states(cluster, ns).await?;
            if !may_be_settled(&states, &stored) {
                return Ok(Look::NotYet(format!("{stored:?}")));
            }
            let rows = rows(cluster, ns).await?;
            let open = open(&published, &states, &rows);
            Ok(seen(open.is_empty(), (), |()| format!("{open:?}")))
        });
        if let Err(error) = settled.await {
            bail!(
                "{error:#}; open: {:?}",
                open(&published, &states, &rows(cluster, ns).await?)
            );
        }
    }

    let truth = Truth::new(&published, shop.journal(cluster).await?, shop.results(cluster).await?);
    let rows = rows(cluster, ns).await?;
    ensure!(
        rows.len() == published.len(),
        "{} rows of {} tasks",
        rows.len(),
        published.len()
    );
    let mut differences = BTreeMap::<_, (usize, String)>::new();
    for task in &published {
        let row = rows.get(&task.id).with_context(|| format!("no row of {task:?}"))?;
        for difference in table.line(&role(task), transport)?.differences(task, row, &truth) {
            let field = difference.split(':').next().unwrap_or_default().to_owned();
            let line = differences
                .entry((role(task), field))
                .or_insert_with(|| (0, format!("{difference}; {}", task.id)));
            line.0 += 1;
        }
    }
    if !differences.is_empty() {
        bail!("rows differ from the table: {differences:#?}");
    }
    Ok(())
}

/// Counts tasks that are not in their state yet, by role and present state, each with an example.
fn open<'a>(
    published: &'a [Published],
    states: &HashMap<String, &str>,
    rows: &HashMap<String, TaskRow>,
) -> BTreeMap<(&'a str, Option<String>), (usize, &'a str)> {
    let mut open = BTreeMap::new();
    for task in published {
        let state = rows.get(&task.id).map(|row| row.state.as_str());
        if state != states.get(&task.id).copied() {
            let key = (task.role.as_str(), state.map(str::to_owned));
            open.entry(key).or_insert((0, task.id.as_str())).0 += 1;
        }
    }
    open
}

/// Looks at the counts of states alone, which costs little: whether it is worth while to look at each task.
fn may_be_settled(states: &HashMap<String, &str>, stored: &BTreeMap<String, usize>) -> bool {
    let mut wanted = BTreeMap::<_, usize>::new();
    for state in states.values() {
        *wanted.entry(*state).or_default() += 1;
    }
    // A deadline that passes is no event: the stored state is the one before it.
    wanted.remove("EXPIRED");
    wanted.iter().all(|(state, count)| stored.get(*state) >= Some(count))
}

async fn start(scope: &Scope, transport: Transport, image: &str) -> anyhow::Result<Shop> {
    scope.watch(transport).await?;
    let options = ShopOptions {
        // A terminated task costs its process, and a new one takes a second: many, so that this does not take all the time.
        concurrency: 32,
        ..ShopOptions::new("shop", image, &transport.shop_url())
    };
    scope.cluster.start_shop(&scope.namespace, &options).await
}

/// Counts the rows of a namespace's brokers by the state that is stored.
async fn stored_states(cluster: &Cluster, namespace: &str) -> anyhow::Result<BTreeMap<String, usize>> {
    let counts: Vec<StoredState> = cluster
        .query(&format!(
            "select t.state, count(*) as tasks from {TASKS} t
             join kanchi.broker b using (broker_id) where b.namespace = '{namespace}' group by t.state"
        ))
        .await?;
    Ok(counts.into_iter().map(|count| (count.state, count.tasks)).collect())
}

/// Returns the rows of a namespace's brokers, from the facts as they are stored, live or settled.
async fn rows(cluster: &Cluster, namespace: &str) -> anyhow::Result<HashMap<String, TaskRow>> {
    let stored: Vec<StoredTask> = cluster
        .query(&format!(
            "select t.task_id, encode(t.facts, 'hex') as facts
             from {TASKS} t
             join kanchi.broker b using (broker_id) where b.namespace = '{namespace}'"
        ))
        .await?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970")?;
    let now = UnixMicros(i64::try_from(now.as_micros())?);
    let mut tasks = HashMap::<_, TaskFacts>::new();
    for task in stored {
        let facts = TaskFacts::decode(&unhex(&task.facts)?).with_context(|| format!("facts of {}", task.task_id))?;
        // What came a moment after a task went to history waits in the live table until it is settled in its turn.
        match tasks.entry(task.task_id) {
            Entry::Occupied(mut known) => drop(known.get_mut().merge(&facts)),
            Entry::Vacant(new) => drop(new.insert(facts)),
        }
    }
    let rows = tasks.into_iter().map(|(id, facts)| (id, facts.project_at(now)));
    Ok(rows.collect())
}

fn unhex(text: &str) -> anyhow::Result<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?))
        .collect()
}
