//! A stolen monitor role opens its own broker's rows and nothing else.

use std::time::Duration;

use anyhow::{Context, ensure};
use kanchi_e2e::broker::{BrokerManifest, monitor_name, monitor_pod};
use kanchi_e2e::store::TASKS;
use kanchi_e2e::verbs::{BROKER, POD, SECRET};
use kanchi_e2e::wait::seen;
use kanchi_e2e::watched::ORDERS;
use kanchi_e2e::{Cluster, Scope, Transport, scoped, until};
use serde::Deserialize;
use serde_json::json;

#[derive(Debug, Deserialize)]
struct Relation {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Function {
    signature: String,
    call: String,
}

#[tokio::test]
async fn a_stolen_monitor_role_reads_and_writes_its_own_brokers_rows_only() -> anyhow::Result<()> {
    scoped("tenancy", |scope| async move {
        let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
        scope.watch(Transport::Redis).await?;
        let other = BrokerManifest::new("thief").with("celery", json!({ "globalKeyPrefix": "thief:" }));
        cluster
            .apply_broker(ns, &other, &Transport::Redis.monitor_url())
            .await?;
        cluster.await_ready(ns, "thief", Duration::from_secs(60)).await?;
        let shop = scope.shop(Transport::Redis).await?;
        shop.publish(cluster, "success", 20).await?;
        until("tasks of the other broker", Duration::from_secs(30), || async {
            let rows = cluster.psql(&format!("select count(*) from {TASKS} t")).await?;
            Ok(seen(rows.trim().parse::<i64>()? >= 20, (), |()| rows.clone()))
        })
        .await?;
        // The monitor would hold the connections that its role may have.
        let thief = stolen_url(&scope, "thief").await?;
        cluster
            .merge(BROKER, "thief", ns, json!({ "spec": { "enabled": false } }))
            .await?;
        cluster
            .await_gone(POD, &monitor_pod("thief"), ns, Duration::from_secs(60))
            .await?;
        every_relation(cluster, &thief).await?;
        every_function(&scope, &thief).await?;
        the_rest(cluster, &thief).await
    })
    .await
}

/// Reading any table fails, or shows nothing of another broker; so does changing it.
async fn every_relation(cluster: &Cluster, thief: &str) -> anyhow::Result<()> {
    let own = cluster
        .psql_as(thief, "select kanchi.current_broker()")
        .await?
        .trim()
        .to_owned();
    let relations: Vec<Relation> = cluster
        .query("select relname as name from pg_class where relnamespace = 'kanchi'::regnamespace and relkind in ('r', 'p', 'v', 'S')")
        .await?;
    ensure!(relations.len() > 50, "only {} relations found", relations.len());
    let reads: Vec<_> = relations
        .iter()
        .map(|relation| {
            let foreign = format!("to_jsonb(t) ->> 'broker_id' is distinct from '{own}'");
            format!("select count(*) from kanchi.\"{}\" t where {foreign}", relation.name)
        })
        .collect();
    for (relation, seen) in relations.iter().zip(cluster.attempts(thief, &reads).await?) {
        let own_view = relation.name.starts_with("own_");
        ensure!(
            seen.is_none() || (own_view && seen.as_deref() == Some("0")),
            "{relation:?} shows {seen:?} foreign rows"
        );
        ensure!(
            seen.is_some() == own_view,
            "{relation:?}: own rows must be readable, others not"
        );
    }
    let changes: Vec<_> = relations
        .iter()
        .flat_map(|Relation { name }| {
            [
                format!("delete from kanchi.\"{name}\""),
                format!("truncate kanchi.\"{name}\""),
                format!("update kanchi.\"{name}\" set broker_id = broker_id"),
                format!("insert into kanchi.\"{name}\" (broker_id) values (1)"),
                format!("drop table kanchi.\"{name}\""),
                format!("select nextval('kanchi.\"{name}\"')"),
            ]
        })
        .collect();
    none_allowed(cluster, thief, &changes).await
}

async fn none_allowed(cluster: &Cluster, thief: &str, statements: &[String]) -> anyhow::Result<()> {
    for (statement, said) in statements.iter().zip(cluster.attempts(thief, statements).await?) {
        ensure!(said.is_none(), "the role may {statement}: {said:?}");
    }
    Ok(())
}

/// Calling any function with nulls must leave every other broker's rows as they are.
async fn every_function(scope: &Scope, thief: &str) -> anyhow::Result<()> {
    let cluster = &scope.cluster;
    let functions: Vec<Function> = cluster
        .query(
            "select p.oid::regprocedure::text as signature,
               format('select kanchi.%I(%s)', p.proname, coalesce((select string_agg('null::' || format_type(a, null), ', ')
                 from unnest(p.proargtypes) a), '')) as call
             from pg_proc p where p.pronamespace = 'kanchi'::regnamespace and p.prokind = 'f'",
        )
        .await?;
    ensure!(functions.len() > 10, "only {} functions found", functions.len());
    let others = format!(
        "select md5(string_agg(t::text, '' order by task_id)) from {TASKS} t
         join kanchi.broker b using (broker_id) where b.namespace = '{}' and b.name = '{ORDERS}'",
        scope.namespace
    );
    let before = cluster.psql(&others).await?;
    let calls: Vec<_> = functions.iter().map(|function| function.call.clone()).collect();
    let outcomes = cluster.attempts(thief, &calls).await?;
    // Refused or harmless: which of the two is the function's business.
    let allowed = functions.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_some());
    let allowed: Vec<_> = allowed.map(|(function, _)| function.signature.as_str()).collect();
    ensure!(
        cluster.psql(&others).await? == before,
        "another broker's tasks changed by one of {allowed:?}"
    );
    Ok(())
}

async fn the_rest(cluster: &Cluster, thief: &str) -> anyhow::Result<()> {
    let attempts = [
        "create table public.mine (a int)",
        "create schema mine",
        "create temporary table mine (a int)",
        "create role mine",
        "set session authorization kanchi",
        "set role kanchi",
        "select pg_read_file('/etc/passwd')",
        "copy (select 1) to program 'true'",
        "select passwd from pg_shadow",
        "select 1 from pg_terminate_backend((select pid from pg_stat_activity where usename = 'kanchi' limit 1))",
    ];
    none_allowed(cluster, thief, &attempts.map(str::to_owned)).await
}

/// Returns a monitor's store URL, as whoever reads Secrets of its namespace has it.
async fn stolen_url(scope: &Scope, broker: &str) -> anyhow::Result<String> {
    let secret = scope
        .cluster
        .get(SECRET, &monitor_name(broker), &scope.namespace)
        .await?;
    let encoded = secret.data["data"]["store-url"]
        .as_str()
        .context("the Secret has no store-url")?;
    let decoded: k8s_openapi::ByteString = serde_json::from_value(json!(encoded))?;
    String::from_utf8(decoded.0).context("the URL is not UTF-8")
}
