//! The finalizer exists only under `reclaimPolicy: Delete`, and only where our rights outlive a namespace: with Roles
//! alone a namespace that is being deleted takes our right to remove the finalizer with it, and would never go. There the
//! history is deleted after the object instead. The finalizer is set and removed by JSON patches that test what they
//! change, so that concurrent writes of the status do not matter.

use kanchi_crds::{CeleryBroker, HISTORY_FINALIZER, ReclaimPolicy};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::live::Live;
use crate::api::{self, call};
use crate::context::Context;

/// A patch whose test fails is made anew from what is there now, so often.
const TRIES: u32 = 5;

/// Brings the finalizer in line with the policy. A deletion under way is left alone.
pub async fn follow(context: &Context, live: &Live, policy: ReclaimPolicy) -> api::Result<()> {
    let wanted = policy == ReclaimPolicy::Delete && context.outlives_namespaces;
    match (wanted, live.has_finalizer(HISTORY_FINALIZER)) {
        (true, false) => change(context, live, addition).await,
        (false, true) => change(context, live, removal).await,
        (true, true) | (false, false) => Ok(()),
    }
}

/// Lets the CeleryBroker go.
pub async fn remove(context: &Context, live: &Live) -> api::Result<()> {
    change(context, live, removal).await
}

async fn change(context: &Context, live: &Live, operations: fn(&[String]) -> Option<Value>) -> api::Result<()> {
    let namespace = live.metadata.namespace.clone().unwrap_or_default();
    let name = live.metadata.name.clone().unwrap_or_default();
    let api: Api<CeleryBroker> = Api::namespaced(context.client.clone(), &namespace);
    let mut finalizers = live.metadata.finalizers.clone().unwrap_or_default();
    let mut tries = 0;
    loop {
        let Some(operations) = operations(&finalizers) else {
            return Ok(());
        };
        let Ok(patch) = serde_json::from_value(operations) else {
            return Ok(());
        };
        let patch = Patch::Json::<()>(patch);
        let answer = call(
            "change the finalizer",
            api.patch_metadata(&name, &PatchParams::default(), &patch),
        )
        .await;
        tries += 1;
        match answer {
            Ok(_) => return Ok(()),
            Err(error) if error.code() == Some(404) => return Ok(()),
            Err(error) if matches!(error.code(), Some(409 | 422)) && tries < TRIES => {}
            Err(error) => return Err(error),
        }
        let now = call("read the CeleryBroker", api.get_metadata_opt(&name)).await?;
        let Some(now) = now.filter(|now| now.metadata.uid == live.metadata.uid) else {
            return Ok(());
        };
        finalizers = now.metadata.finalizers.unwrap_or_default();
    }
}

fn addition(finalizers: &[String]) -> Option<Value> {
    if finalizers.iter().any(|name| name == HISTORY_FINALIZER) {
        return None;
    }
    // An array cannot be appended to before it is there.
    Some(if finalizers.is_empty() {
        json!([
            { "op": "test", "path": "/metadata/finalizers", "value": null },
            { "op": "add", "path": "/metadata/finalizers", "value": [HISTORY_FINALIZER] }
        ])
    } else {
        json!([
            { "op": "test", "path": "/metadata/finalizers", "value": finalizers },
            { "op": "add", "path": "/metadata/finalizers/-", "value": HISTORY_FINALIZER }
        ])
    })
}

fn removal(finalizers: &[String]) -> Option<Value> {
    let index = finalizers.iter().position(|name| name == HISTORY_FINALIZER)?;
    let path = format!("/metadata/finalizers/{index}");
    Some(json!([
        { "op": "test", "path": path, "value": HISTORY_FINALIZER },
        { "op": "remove", "path": path }
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_test_what_they_change() {
        let others = ["a".to_owned(), HISTORY_FINALIZER.to_owned()];
        assert_eq!(removal(&others).unwrap()[0]["path"], "/metadata/finalizers/1");
        assert_eq!(removal(&others[..1]), None);
        assert_eq!(addition(&others), None);
        assert_eq!(addition(&others[..1]).unwrap()[0]["value"], json!(["a"]));
        assert_eq!(addition(&[]).unwrap()[1]["value"], json!([HISTORY_FINALIZER]));
    }
}
