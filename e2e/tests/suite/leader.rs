//! Two operators: one works, the other takes over.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kanchi_e2e::audit::Mark;
use kanchi_e2e::broker::{BrokerManifest, find_condition};
use kanchi_e2e::cluster::number;
use kanchi_e2e::install::{NAMESPACE, RELEASE};
use kanchi_e2e::verbs::{BROKER, LEASE};
use kanchi_e2e::wait::seen;
use kanchi_e2e::{Cluster, Scope, Transport, scoped_alone, until};
use serde_json::json;

#[tokio::test]
async fn a_killed_leader_is_replaced_while_fifty_brokers_are_created() -> anyhow::Result<()> {
    scoped_alone("leader", |scope| async move {
        scope.prepare(Transport::Redis).await?;
        scope
            .cluster
            .install_with(json!({ "operator": { "replicas": 2 } }))
            .await?;
        let outcome = kill_the_leader(&scope).await;
        scope.cluster.install().await?;
        outcome
    })
    .await
}

async fn kill_the_leader(scope: &Scope) -> anyhow::Result<()> {
    let (cluster, ns) = (&scope.cluster, scope.namespace.as_str());
    let count = number("KANCHI_E2E_BROKERS", 50)?;
    let (first, lease) = holder(cluster).await?;
    let mark = Mark::now()?;
    let mut killed = None;
    for index in 0..count {
        let broker = BrokerManifest::new(&format!("b{index}"))
            .with("celery", json!({ "globalKeyPrefix": format!("b{index}:") }));
        let url = Transport::Redis.monitor_url();
        cluster
            .apply_broker(ns, &broker.with("enabled", json!(false)), &url)
            .await?;
        if index == count / 2 {
            cluster.kill_pod(&first, NAMESPACE).await?;
            killed = Some(Instant::now());
        }
    }
    let killed = killed.context("there was nothing to create")?;
    let within = (lease + Duration::from_secs(30)).saturating_sub(killed.elapsed());
    until("every broker settled", within, || async {
        let brokers = cluster.list(BROKER, ns, "").await?;
        let settled = |broker: &&kube::api::DynamicObject| {
            find_condition(broker, "Ready").is_some_and(|ready| ready["status"] == "True")
        };
        let settled = brokers.iter().filter(settled).count();
        Ok(seen(settled == count, settled, |settled| format!("{settled} of {count}")).map(drop))
    })
    .await?;
    one_writer_at_a_time(&mark, &first)
}

/// Every write of the first leader came before the second took the Lease, and nobody else wrote before that.
fn one_writer_at_a_time(mark: &Mark, first: &str) -> anyhow::Result<()> {
    let mut writes = mark.writes_of(&format!("{NAMESPACE}:{RELEASE}-operator"))?;
    writes.sort_by(|a, b| a.request_received_timestamp.cmp(&b.request_received_timestamp));
    let work: Vec<_> = writes.iter().filter(|request| !request.is_about("leases")).collect();
    ensure!(
        work.iter().any(|request| request.pod() == Some(first)),
        "the first leader wrote nothing"
    );
    let other = work
        .iter()
        .position(|request| request.pod() != Some(first))
        .context("nobody took over")?;
    let late = work.iter().skip(other).find(|request| request.pod() == Some(first));
    ensure!(
        late.is_none(),
        "a write of the former leader after the new one's: {late:?}"
    );
    let began = work.get(other).context("no first write")?;
    let took = writes.iter().find(|request| {
        request.is_about("leases")
            && request.pod() == began.pod()
            && request.verb != "create"
            && request
                .response_status
                .as_ref()
                .is_some_and(|status| status.code == 200)
    });
    let took = took.context("a write of one who never took the Lease")?;
    ensure!(
        took.request_received_timestamp <= began.request_received_timestamp,
        "a write before the Lease was taken: {began:?}"
    );
    Ok(())
}

async fn holder(cluster: &Cluster) -> anyhow::Result<(String, Duration)> {
    let lease = cluster.get(LEASE, &format!("{RELEASE}-operator"), NAMESPACE).await?;
    let holder = lease.data["spec"]["holderIdentity"]
        .as_str()
        .context("nobody holds the Lease")?;
    let pod = holder
        .split('/')
        .next()
        .and_then(|text| text.split('_').next())
        .context("an empty holder")?;
    let seconds = lease.data["spec"]["leaseDurationSeconds"]
        .as_u64()
        .context("a Lease without a duration")?;
    Ok((pod.to_owned(), Duration::from_secs(seconds)))
}
