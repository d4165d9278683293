//! The controllers, and how each is assembled from watches.
//!
//! One set of watches per scope: the CeleryBrokers themselves, and metadata of Secrets, children and pods. Values of
//! Secrets are never cached. Every replica keeps the watches warm; without the Lease a pass ends before it begins.

use std::sync::Arc;

use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kanchi_runtime::Pulse;
use kube::core::PartialObjectMeta;
use kube::runtime::controller::{Config, Controller, Error as ControllerError};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::{WatchStreamExt, predicates, watcher};
use kube::{Api, Resource, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::args::Scope;
use crate::context::{Context, Guarded};
use crate::names::{self, MANAGED_SELECTOR, annotation};
use crate::wake::WakeQueue;

pub mod celery_broker;
pub mod feed;

/// How often the liveness pulse of a controller is checked.
const BEAT: std::time::Duration = std::time::Duration::from_secs(5);

/// Objects in one page of the list that a watch begins with. A page is in memory as text and as objects, for each of the
/// seven watches at once: with five hundred of the default, a restart took more memory than all that follows.
const LISTED_AT_ONCE: u32 = 100;

/// Runs the CeleryBroker controller over one scope until it is told to stop and its passes have ended.
pub async fn run_celery_brokers(context: Arc<Context>, scope: Scope, stop: CancellationToken, pulse: Pulse) {
    let (store, writer) = reflector::store::<Guarded>();
    let wake = Arc::new(WakeQueue::default());
    context.scopes.add(scope.clone(), store.clone(), Arc::clone(&wake));
    let watching = Arc::clone(&context);
    let mut listed = false;
    let brokers = watcher(api::<Guarded>(&context, &scope), listing())
        .default_backoff()
        .modify(|object| object.meta_mut().managed_fields = None)
        .reflect(writer)
        .inspect_ok(move |event| match event {
            watcher::Event::Delete(object) => celery_broker::forget(&watching, object),
            watcher::Event::InitDone if !std::mem::replace(&mut listed, true) => watching.scopes.note_listed(),
            watcher::Event::InitDone
            | watcher::Event::Init
            | watcher::Event::InitApply(_)
            | watcher::Event::Apply(_) => {}
        })
        .applied_objects()
        // A write of the status must not wake us; an annotation we obey, a finalizer and a deletion must.
        .predicate_filter(
            |object: &Guarded| Some(wake_property(object)),
            kube::runtime::PredicateConfig::default(),
        );
    let index = Arc::clone(&context);
    let secrets = touched::<Secret>(&context, &scope, listing());
    let children = listing().labels(MANAGED_SELECTOR);
    let mut leading = context.leadership.changes();
    leading.mark_changed();
    let on_leading = futures::stream::unfold((leading, Arc::clone(&context)), |(mut leading, context)| async move {
        loop {
            leading.changed().await.ok()?;
            if *leading.borrow_and_update() {
                // Somebody else may have led, and written, since we remembered.
                context.memory.clear();
                return Some(((), (leading, context)));
            }
        }
    });
    let controller = Controller::for_stream(brokers, store)
        .with_config(
            Config::default().concurrency(u16::try_from(context.permits.available_permits()).unwrap_or(u16::MAX)),
        )
        .watches_stream(secrets, move |secret| from_secret(&index, &secret))
        .watches_stream(
            touched::<StatefulSet>(&context, &scope, children.clone()),
            from_child(&context),
        )
        .watches_stream(
            touched::<Service>(&context, &scope, children.clone()),
            from_child(&context),
        )
        .watches_stream(
            touched::<PodDisruptionBudget>(&context, &scope, children.clone()),
            from_child(&context),
        )
        .watches_stream(
            touched::<NetworkPolicy>(&context, &scope, children.clone()),
            from_child(&context),
        )
        .watches_stream(touched::<Pod>(&context, &scope, children), from_child(&context))
        .reconcile_on(
            wake.stream()
                .map(|(namespace, name)| ObjectRef::new(&name).within(&namespace)),
        )
        .reconcile_all_on(on_leading)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(
            celery_broker::reconcile,
            celery_broker::error_policy,
            Arc::clone(&context),
        );
    drive(&context, controller, &pulse).await;
}

/// Polls a controller to its end, and beats while no pass is stuck.
async fn drive<T, E>(
    context: &Context,
    controller: impl Stream<Item = Result<T, ControllerError<E, watcher::Error>>>,
    pulse: &Pulse,
) where
    E: std::error::Error + 'static,
{
    tokio::pin!(controller);
    let mut beat = tokio::time::interval(BEAT);
    loop {
        tokio::select! {
            item = controller.next() => match item {
                None => return,
                Some(Err(ControllerError::QueueError(error))) => {
                    context.metrics.watch_errors.inc();
                    tracing::warn!(error = %crate::lease::chain(&error), "watch failed, starting it again");
                }
                // The pass itself has logged its error; an object that is gone is no error.
                Some(_) => {}
            },
            _ = beat.tick() => {
                if context.passes.longest().is_none_or(|longest| longest < celery_broker::STUCK) {
                    pulse.beat();
                }
            }
        }
    }
}

fn api<K>(context: &Context, scope: &Scope) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match scope {
        Scope::All => Api::all(context.client.clone()),
        Scope::Namespace(name) => Api::namespaced(context.client.clone(), name),
    }
}

/// How a watch lists what is there before it begins.
fn listing() -> watcher::Config {
    watcher::Config::default().page_size(LISTED_AT_ONCE)
}

/// Metadata of everything of a kind that comes, changes or goes. Its version is noted before anybody is woken.
fn touched<K>(
    context: &Arc<Context>,
    scope: &Scope,
    config: watcher::Config,
) -> impl Stream<Item = Result<PartialObjectMeta<K>, watcher::Error>> + Send + 'static
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + Send + Sync + 'static,
{
    let (watching, scope_of) = (Arc::clone(context), scope.clone());
    watcher(api::<PartialObjectMeta<K>>(context, scope), config)
        .default_backoff()
        .inspect_ok(move |event| watching.watched.note(&scope_of, event))
        .touched_objects()
}

/// From a changed child or pod to its CeleryBroker: the annotation names it, whatever became of the owner reference. What a
/// pass did itself, or has seen already, wakes nobody.
fn from_child<K>(context: &Arc<Context>) -> impl Fn(PartialObjectMeta<K>) -> Option<ObjectRef<Guarded>> + use<K>
where
    K: Resource<DynamicType = ()>,
{
    let context = Arc::clone(context);
    move |child| {
        if is_known(&context, &child) {
            return None;
        }
        let namespace = child.metadata.namespace?;
        let name = child.metadata.annotations?.remove(annotation::BROKER)?;
        Some(ObjectRef::new(&name).within(&namespace))
    }
}

/// Whether a child is there, and has the version that the last pass left it with.
fn is_known<K>(context: &Context, child: &PartialObjectMeta<K>) -> bool
where
    K: Resource<DynamicType = ()>,
{
    let (metadata, kind) = (&child.metadata, K::kind(&()));
    let (Some(namespace), Some(name)) = (metadata.namespace.as_deref(), metadata.name.as_deref()) else {
        return false;
    };
    let Some(version) = context.watched.version(&kind, namespace, name) else {
        return false;
    };
    let mut owners = metadata.owner_references.iter().flatten();
    owners.any(|owner| context.memory.is_left(&owner.uid, &kind, &version))
}

/// From a changed Secret to the CeleryBrokers that use it, and to the one whose child it is.
fn from_secret(context: &Context, secret: &PartialObjectMeta<Secret>) -> Vec<ObjectRef<Guarded>> {
    let Some(namespace) = secret.metadata.namespace.as_deref() else {
        return Vec::new();
    };
    let name = secret.metadata.name.as_deref().unwrap_or_default();
    let mut brokers = context.secrets.users(namespace, name);
    let managed = secret
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(names::MANAGED_BY));
    if managed.is_some_and(|by| by == names::OPERATOR) && !is_known(context, secret) {
        brokers.extend(
            secret
                .metadata
                .annotations
                .iter()
                .filter_map(|all| all.get(annotation::BROKER))
                .cloned(),
        );
    }
    brokers
        .iter()
        .map(|broker| ObjectRef::new(broker).within(namespace))
        .collect()
}

fn wake_property(object: &Guarded) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    predicates::generation(object).hash(&mut hasher);
    predicates::annotations(object).hash(&mut hasher);
    predicates::finalizers(object).hash(&mut hasher);
    object.meta().deletion_timestamp.is_some().hash(&mut hasher);
    hasher.finish()
}

/// Returns a reference as namespace and name.
pub(crate) fn names_of(object: &impl ResourceExt) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}
