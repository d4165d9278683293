//! What the operator writes of a broker under load, by the API server's audit log.

use std::collections::BTreeMap;

use anyhow::ensure;
use kanchi_e2e::audit::{Mark, Request};
use kanchi_e2e::watched::ORDERS;
use kanchi_e2e::{Scope, Transport, scoped};

#[tokio::test]
async fn under_load_the_counts_of_a_broker_are_written_at_most_once_a_minute() -> anyhow::Result<()> {
    scoped("counts", |scope| async move {
        scope.watch(Transport::Redis).await?;
        let shop = scope.shop(Transport::Redis).await?;
        let mark = Mark::now()?;
        shop.run(&scope.cluster, &["load", "20", "--seconds", "130"]).await?;
        let writes = mark.operator_writes()?;
        let of_ours: Vec<_> = writes.iter().filter(|request| is_about(request, &scope)).collect();
        let mut managers = BTreeMap::<_, usize>::new();
        for request in &of_ours {
            *managers
                .entry(request.uri.split("fieldManager=").nth(1).unwrap_or_default().to_owned())
                .or_default() += 1;
        }
        ensure!(of_ours.len() <= 3, "{} writes in 130 s: {managers:?}", of_ours.len());
        Ok(())
    })
    .await
}

fn is_about(request: &Request, scope: &Scope) -> bool {
    request
        .object_ref
        .as_ref()
        .is_some_and(|object| object.namespace == scope.namespace && object.name == ORDERS)
}
