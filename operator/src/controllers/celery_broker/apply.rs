//! Step 4: sends what differs, in order, and nothing else.
//!
//! Each child is read first: an apply that would change nothing is not sent, so that an idle cluster sees no write. Nor is
//! one read that has, as the watches tell, the version that an earlier pass left it with. What is mounted goes before what
//! mounts it. A child that is somebody else's is never taken over.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::build::{Applied, Children, Prepared};
use super::left::{self, OwnSecret};
use super::observe::Observation;
use super::validate::Validated;
use crate::api::{self, call};
use crate::context::Context;
use crate::names::{self, annotation, field_manager};

/// How long a pass waits for a StatefulSet to go before it is made again; the next pass goes on.
const RECREATE_LIMIT: Duration = Duration::from_secs(15);

/// Children could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or was away.
    #[error("{source}{}", detail(source))]
    Api {
        /// What came back.
        #[source]
        source: api::Error,
    },
    /// An object of that name is somebody else's.
    #[error("failed to create {kind} {name}: an object of that name exists and is not Kanchi's; rename or delete it")]
    NotOurs {
        /// Kind of the child.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The child of an earlier life is on its way out.
    #[error("failed to create {kind} {name}: the old one is still being deleted")]
    StillDeleting {
        /// Kind of the child.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// An object's JSON could not be made.
    #[error("failed to compare {kind}")]
    Compare {
        /// Kind of the child.
        kind: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

fn detail(source: &api::Error) -> String {
    source
        .message()
        .map(|message| format!(": {message}"))
        .unwrap_or_default()
}

/// Pods of one monitor at most, as the schema says.
const MOST_PODS: i32 = 2;

/// The step's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The driver tells these as Events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deeds {
    /// The StatefulSet was deleted without its pod and made again.
    pub recreated: bool,
}

/// Applies all children in order; the StatefulSet only when [`left::found`] did not answer for it.
pub async fn apply(
    context: &Context,
    validated: &Validated,
    children: Children<Prepared>,
    own_secret: OwnSecret,
    found: Option<&Observation>,
) -> Result<(Children<Applied>, Deeds)> {
    let hand = Hand { context, validated };
    let mut deeds = Deeds::default();
    // Without `..`: a new kind of child that nobody applies does not compile.
    let mut applied = children.applied();
    let Children {
        secret,
        service,
        network_policy,
        disruption_budget,
        stateful_set,
        config_hash: _,
        waits_for_turn,
        state: _,
    } = &mut applied;
    *secret = match own_secret {
        OwnSecret::AsLeft(_) => hand.settle("Secret", secret).await?,
        OwnSecret::Read(live) => hand.settle_from("Secret", secret, live.map(|live| *live)).await?,
    };
    *service = hand.settle("Service", service).await?;
    *network_policy = hand.settle("NetworkPolicy", network_policy).await?;
    *disruption_budget = hand.settle("PodDisruptionBudget", disruption_budget).await?;
    // Last: what it mounts must exist.
    if found.is_none() {
        (*stateful_set, *waits_for_turn) = Box::pin(hand.settle_stateful_set(stateful_set, &mut deeds)).await?;
    }
    Ok((applied, deeds))
}

/// Deletes the monitor of a CeleryBroker that was refused, or goes: it must not write any more.
pub async fn withdraw(context: &Context, namespace: &str, name: &str, uid: &str) -> Result<()> {
    let api: Api<StatefulSet> = Api::namespaced(context.client.clone(), namespace);
    let child = names::child(name);
    let Some(live) = get(&api, &child).await? else {
        return Ok(());
    };
    if ownership(live.meta(), uid, name) == Ownership::Ours && live.metadata.deletion_timestamp.is_none() {
        let parameters = DeleteParams {
            preconditions: Some(of(&live.metadata)),
            ..DeleteParams::background()
        };
        let deleted = call("delete the StatefulSet", api.delete(&child, &parameters)).await;
        ignore_missing(deleted)?;
    }
    Ok(())
}

/// Returns the StatefulSet and the pods of a broker as they are.
pub async fn look(context: &Context, namespace: &str, name: &str) -> Result<(Option<StatefulSet>, Vec<Option<Pod>>)> {
    let child = names::child(name);
    let sets: Api<StatefulSet> = Api::namespaced(context.client.clone(), namespace);
    let set = get(&sets, &child).await?;
    let replicas = set.as_ref().and_then(|set| set.spec.as_ref()?.replicas);
    // Whoever else writes to the StatefulSet cannot make this loop long.
    let count = replicas.map_or(1, |count| count.clamp(1, MOST_PODS));
    let pods = pods(context, namespace, &child, count.unsigned_abs() as usize).await?;
    Ok((set, pods))
}

/// Returns so many of the monitor's pods, of those that there are.
pub async fn pods(context: &Context, namespace: &str, child: &str, count: usize) -> Result<Vec<Option<Pod>>> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let mut pods = Vec::with_capacity(count);
    for number in 0..count {
        pods.push(get(&api, &names::pod(child, number)).await?);
    }
    Ok(pods)
}

/// Makes the kubelet sync the mounted Secret now instead of within a minute or two. Returns the pod's version after that.
pub async fn sync_pod(context: &Context, pod: Option<&Pod>, config_hash: &str) -> Result<Option<String>> {
    let Some(pod) = pod.filter(|pod| pod.metadata.deletion_timestamp.is_none()) else {
        return Ok(None);
    };
    if pod
        .annotations()
        .get(annotation::CONFIG)
        .is_some_and(|hash| hash == config_hash)
    {
        return Ok(pod.resource_version());
    }
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &pod.namespace().unwrap_or_default());
    // A merge patch, since an apply would create the pod that was deleted a moment ago.
    let body = json!({ "metadata": { "uid": pod.uid(), "annotations": { annotation::CONFIG: config_hash } } });
    let parameters = PatchParams {
        field_manager: Some(field_manager::POD_SYNC.to_owned()),
        ..PatchParams::default()
    };
    let (name, patch) = (pod.name_any(), Patch::Merge(body));
    match call(
        "annotate the monitor's pod",
        api.patch_metadata(&name, &parameters, &patch),
    )
    .await
    {
        // Deleted, or replaced by another, meanwhile: the next one mounts the new Secret.
        Err(error) if matches!(error.code(), Some(404 | 409 | 422)) => Ok(None),
        other => other
            .map(|pod| pod.resource_version())
            .map_err(|source| Error::Api { source }),
    }
}

/// What one pass applies with.
struct Hand<'a> {
    context: &'a Context,
    validated: &'a Validated,
}

impl Hand<'_> {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.context.client.clone(), &self.validated.identity.namespace)
    }

    /// Brings one child to where it should be. One that is as an earlier pass left it is not read: then what is wanted is
    /// returned.
    async fn settle<K>(&self, kind: &'static str, desired: &K) -> Result<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Child,
    {
        if left::is_left(self.context, self.validated, kind, desired) {
            return Ok(desired.clone());
        }
        let live = get(&self.api::<K>(), &desired.name_any()).await?;
        self.settle_from(kind, desired, live).await
    }

    async fn settle_from<K>(&self, kind: &'static str, desired: &K, live: Option<K>) -> Result<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Child,
    {
        let wanted = to_json(kind, desired)?;
        let exists = live.is_some();
        if let Some(live) = live {
            self.refuse_foreign(kind, live.meta())?;
            let found = to_json(kind, &live)?;
            if covers(&found, &wanted) || self.is_as_we_left_it(kind, &wanted, &found)? {
                left::leave(self.context, self.validated, kind, desired, &live);
                return Ok(live);
            }
        }
        let mut applied = self.send(desired).await;
        if exists && kind != "StatefulSet" && applied.as_ref().is_err_and(is_invalid) {
            self.replace_lists(desired, &wanted).await?;
            applied = self.send(desired).await;
        }
        let applied = applied?;
        tracing::info!(
            broker.namespace = %self.validated.identity.namespace,
            broker.name = %self.validated.identity.name,
            child.kind = kind,
            "applied {kind} of {}", self.validated.identity.id()
        );
        self.remember(kind, &wanted, &to_json(kind, &applied)?)?;
        left::leave(self.context, self.validated, kind, desired, &applied);
        Ok(applied)
    }

    async fn send<K>(&self, desired: &K) -> Result<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Child,
    {
        let parameters = PatchParams::apply(field_manager::CHILDREN).force();
        let (api, name, patch) = (self.api::<K>(), desired.name_any(), Patch::Apply(desired));
        let applied = call("apply a child", api.patch(&name, &parameters, &patch)).await;
        applied.map_err(|source| Error::Api { source })
    }

    /// Somebody changed the key of an item in a list, for example a port's number: an apply would add ours beside theirs,
    /// and both together are refused. A merge patch puts our lists in the place of what is there.
    async fn replace_lists<K>(&self, desired: &K, wanted: &Value) -> Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Child,
    {
        let parameters = PatchParams {
            field_manager: Some(field_manager::CHILDREN.to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(json!({ "spec": wanted.get("spec") }));
        let (api, name) = (self.api::<K>(), desired.name_any());
        let replaced = call("replace a child's lists", api.patch(&name, &parameters, &patch)).await;
        replaced.map(drop).map_err(|source| Error::Api { source })
    }

    /// A new pod template restarts the monitor: only a few do so at a time.
    async fn settle_stateful_set(&self, desired: &StatefulSet, deeds: &mut Deeds) -> Result<(StatefulSet, bool)> {
        let kind = "StatefulSet";
        let live = get(&self.api::<StatefulSet>(), &desired.name_any()).await?;
        if let Some(live) = &live
            && restarts(live, desired)
            && !self.context.rollouts.take(&self.validated.uid, Instant::now())
        {
            self.refuse_foreign(kind, live.meta())?;
            return Ok((live.clone(), true));
        }
        match self.settle_from(kind, desired, live.clone()).await {
            Err(error) if is_forbidden_change(&error) => {
                let Some(live) = live else { return Err(error) };
                self.delete_without_pod(&live).await?;
                deeds.recreated = true;
                Ok((self.settle_from(kind, desired, None).await?, false))
            }
            settled => Ok((settled?, false)),
        }
    }

    /// The pod stays and goes on; the new StatefulSet adopts it by its labels.
    async fn delete_without_pod(&self, live: &StatefulSet) -> Result<()> {
        let api = self.api::<StatefulSet>();
        let parameters = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Orphan),
            preconditions: Some(of(&live.metadata)),
            ..DeleteParams::default()
        };
        ignore_missing(call("delete the StatefulSet", api.delete(&live.name_any(), &parameters)).await)?;
        let deadline = Instant::now() + RECREATE_LIMIT;
        while Instant::now() < deadline {
            match get(&api, &live.name_any()).await? {
                Some(still) if still.uid() == live.uid() => tokio::time::sleep(Duration::from_millis(250)).await,
                _ => return Ok(()),
            }
        }
        Err(Error::StillDeleting {
            kind: "StatefulSet",
            name: live.name_any(),
        })
    }

    fn refuse_foreign(&self, kind: &'static str, live: &ObjectMeta) -> Result<()> {
        let name = live.name.clone().unwrap_or_default();
        if live.deletion_timestamp.is_some() {
            return Err(Error::StillDeleting { kind, name });
        }
        match ownership(live, &self.validated.uid, &self.validated.identity.name) {
            Ownership::Ours | Ownership::Abandoned => Ok(()),
            Ownership::EarlierLife => Err(Error::StillDeleting { kind, name }),
            Ownership::Foreign => Err(Error::NotOurs { kind, name }),
        }
    }

    /// The API server may write a value in another form than ours (`1000m` as `1`): then the object is compared with what
    /// came back from the last apply.
    fn is_as_we_left_it(&self, kind: &'static str, wanted: &Value, found: &Value) -> Result<bool> {
        let pair = fingerprints(kind, wanted, found)?;
        Ok(self.context.memory.with(&self.validated.uid, |object| {
            object.fingerprints.get(kind) == Some(&pair)
        }))
    }

    fn remember(&self, kind: &'static str, wanted: &Value, found: &Value) -> Result<()> {
        let pair = fingerprints(kind, wanted, found)?;
        self.context
            .memory
            .with(&self.validated.uid, |object| object.fingerprints.insert(kind, pair));
        Ok(())
    }
}

/// What all kinds of children can do.
trait Child: Serialize + DeserializeOwned + Clone + Debug + Send + Sync {}

impl<T: Serialize + DeserializeOwned + Clone + Debug + Send + Sync> Child for T {}

async fn get<K: Clone + DeserializeOwned + Debug>(api: &Api<K>, name: &str) -> Result<Option<K>> {
    call("read a child", api.get_opt(name))
        .await
        .map_err(|source| Error::Api { source })
}

fn ignore_missing<T>(answer: api::Result<T>) -> Result<()> {
    match answer {
        Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(()),
        other => other.map(drop).map_err(|source| Error::Api { source }),
    }
}

fn of(metadata: &ObjectMeta) -> Preconditions {
    Preconditions {
        uid: metadata.uid.clone(),
        resource_version: None,
    }
}

fn to_json<K: Serialize>(kind: &'static str, object: &K) -> Result<Value> {
    serde_json::to_value(object).map_err(|source| Error::Compare { kind, source })
}

/// Whose object it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ownership {
    /// Controlled by this CeleryBroker.
    Ours,
    /// Made by Kanchi for this name, and nobody controls it: adopted.
    Abandoned,
    /// Controlled by an earlier CeleryBroker of this name: the garbage collector comes for it.
    EarlierLife,
    /// Somebody else's.
    Foreign,
}

fn ownership(live: &ObjectMeta, uid: &str, broker: &str) -> Ownership {
    let controller = live
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true));
    let label = live.labels.as_ref().and_then(|labels| labels.get(names::MANAGED_BY));
    let named = live
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(annotation::BROKER));
    let by_kanchi = label.is_some_and(|label| label == names::OPERATOR) && named.is_some_and(|name| name == broker);
    match controller {
        Some(owner) if owner.uid == uid => Ownership::Ours,
        Some(owner) if owner.kind == "CeleryBroker" && owner.name == broker => Ownership::EarlierLife,
        None if by_kanchi => Ownership::Abandoned,
        Some(_) | None => Ownership::Foreign,
    }
}

/// Whether the desired StatefulSet would restart a running monitor.
fn restarts(live: &StatefulSet, desired: &StatefulSet) -> bool {
    let runs = |set: &StatefulSet| set.spec.as_ref().is_some_and(|spec| spec.replicas != Some(0));
    let template = |set: &StatefulSet| set.annotations().get(annotation::TEMPLATE).cloned();
    runs(live) && runs(desired) && template(live) != template(desired)
}

fn is_invalid(error: &Error) -> bool {
    matches!(error, Error::Api { source } if source.code() == Some(422))
}

/// A StatefulSet takes changes of a few fields only.
fn is_forbidden_change(error: &Error) -> bool {
    matches!(error, Error::Api { source } if is_invalid(error)
        && source.message().is_some_and(|message| message.contains("updates to statefulset spec")))
}

/// Whether the found object has everything the wanted one says. A wanted field that was removed shows in the hash that
/// the wanted object carries.
fn covers(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| found.get(key).is_some_and(|found| covers(found, value))),
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len() && found.iter().zip(wanted).all(|(found, wanted)| covers(found, wanted))
        }
        _ => found == wanted,
    }
}

fn fingerprints(kind: &'static str, wanted: &Value, found: &Value) -> Result<(String, String)> {
    let mut found = found.clone();
    if let Some(object) = found.as_object_mut() {
        object.remove("status");
    }
    if let Some(metadata) = found.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        for volatile in ["resourceVersion", "managedFields", "generation"] {
            metadata.remove(volatile);
        }
    }
    let hash = |value: &Value| names::hash_of(value).map_err(|source| Error::Compare { kind, source });
    Ok((hash(wanted)?, hash(&found)?))
}

impl Error {
    /// Returns a fixed word for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Api { source } => source.category(),
            Self::NotOurs { .. } => "NotOurs",
            Self::StillDeleting { .. } => "StillDeleting",
            Self::Compare { .. } => "Compare",
        }
    }
}

#[cfg(test)]
mod tests;
