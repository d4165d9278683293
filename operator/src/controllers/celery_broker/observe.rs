//! What became of the monitor: read from the StatefulSet and its pods, believed only when it is up to date. Pure.

use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::jiff::Timestamp;
use kanchi_crds::Reason;

use super::status::{Status, Verdict};

/// A StatefulSet without a pod for so long has been refused one.
const POD_PATIENCE: Duration = Duration::from_secs(30);

/// What is known of the monitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The `MonitorAvailable` condition.
    pub verdict: Verdict,
    /// Whether a pod is being replaced: such a monitor holds a rollout slot.
    pub rolling: bool,
    /// Image of the rolled-out monitor.
    pub image: Option<String>,
}

/// Judges a StatefulSet and its pods, in their order. One of two that is ready does the work: the monitor is available then,
/// with what ails the other one as its reason.
pub fn observe(stateful_set: Option<&StatefulSet>, pods: &[Option<Pod>], waits: bool, now: Timestamp) -> Observation {
    let Some(set) = stateful_set else {
        return plain(
            Status::False,
            Reason::WorkloadNotReady,
            "the monitor's StatefulSet does not exist yet",
            false,
        );
    };
    let spec = set.spec.clone().unwrap_or_default();
    let status = set.status.clone().unwrap_or_default();
    let image = spec
        .template
        .spec
        .as_ref()
        .and_then(|pod| pod.containers.first())
        .and_then(|c| c.image.clone());
    if status.observed_generation.unwrap_or(0) < set.metadata.generation.unwrap_or(0) {
        let changed = set.metadata.generation.unwrap_or(0) > 1;
        return plain(
            Status::False,
            Reason::RollingOut,
            "the change has not been taken up yet",
            changed,
        );
    }
    if spec.replicas == Some(0) {
        let text = "enabled is false: no monitor runs";
        return plain(Status::False, Reason::ScaledToZero, text, false);
    }
    let current = status.update_revision.is_none() || status.update_revision == status.current_revision;
    let (wanted, ready) = (spec.replicas.unwrap_or(1), status.ready_replicas.unwrap_or(0));
    let updated = current || status.updated_replicas.unwrap_or(0) >= wanted;
    if updated && ready >= wanted {
        let (reason, text) = if waits {
            (
                Reason::WaitingForTurn,
                "the monitor runs; its new version waits until other monitors have theirs",
            )
        } else {
            (Reason::RolledOut, "the monitor runs")
        };
        let verdict = Verdict::new(Status::True, reason, text);
        return Observation {
            verdict,
            rolling: false,
            image,
        };
    }
    let ails = pods.iter().map(Option::as_ref).find(|pod| !pod.is_some_and(is_ready));
    let (reason, text) = why_not_ready(set, ails.flatten(), now);
    if wanted > 1 && ready >= 1 {
        let (reason, text) = if current {
            (
                Reason::StandbyNotReady,
                format!("{ready} of {wanted} monitors are ready: {text}"),
            )
        } else {
            let text = "the monitors are being replaced one after the other";
            (Reason::RollingOut, text.to_owned())
        };
        return Observation {
            verdict: Verdict::new(Status::True, reason, text),
            rolling: !current,
            image: None,
        };
    }
    // The first rollout replaces nothing, and a crash is no rollout.
    Observation {
        verdict: Verdict::new(Status::False, reason, text),
        rolling: !current,
        image: None,
    }
}

fn plain(status: Status, reason: Reason, text: &str, rolling: bool) -> Observation {
    Observation {
        verdict: Verdict::new(status, reason, text),
        rolling,
        image: None,
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .filter_map(|status| status.conditions.as_ref())
        .flatten();
    pod.metadata.deletion_timestamp.is_none()
        && conditions
            .into_iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn why_not_ready(set: &StatefulSet, pod: Option<&Pod>, now: Timestamp) -> (Reason, String) {
    let Some(pod) = pod else {
        let created = set.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let age = created.map_or(0, |created| now.as_second() - created.as_second());
        if set.status.as_ref().is_none_or(|status| status.replicas == 0) && age > POD_PATIENCE.as_secs() as i64 {
            let name = set.metadata.name.as_deref().unwrap_or_default();
            let text =
                format!("no pod could be created; `kubectl describe statefulset {name}` says why (a quota, a policy)");
            return (Reason::PodsRefused, text);
        }
        return (Reason::RollingOut, "the monitor's pod is being created".to_owned());
    };
    if pod.metadata.deletion_timestamp.is_some() {
        return (Reason::RollingOut, "the monitor's pod is being replaced".to_owned());
    }
    let status = pod.status.clone().unwrap_or_default();
    for condition in status.conditions.iter().flatten() {
        if condition.type_ == "PodScheduled" && condition.status == "False" {
            let text = condition
                .message
                .clone()
                .unwrap_or_else(|| "no node takes the monitor's pod".to_owned());
            return (Reason::Unschedulable, bounded(text));
        }
    }
    let container = status.container_statuses.unwrap_or_default().into_iter().next();
    container.as_ref().and_then(why_waiting).unwrap_or_else(|| {
        let text = match status.phase.as_deref() {
            Some("Failed") => status
                .message
                .map_or_else(|| "the monitor's pod failed".to_owned(), bounded),
            _ => "the monitor starts".to_owned(),
        };
        (Reason::RollingOut, text)
    })
}

fn why_waiting(container: &ContainerStatus) -> Option<(Reason, String)> {
    let state = container.state.as_ref()?;
    let waiting = state.waiting.as_ref();
    match waiting.and_then(|waiting| waiting.reason.as_deref()) {
        Some(
            "ImagePullBackOff" | "ErrImagePull" | "InvalidImageName" | "ErrImageNeverPull" | "RegistryUnavailable",
        ) => {
            let why = waiting.and_then(|waiting| waiting.message.clone()).unwrap_or_default();
            Some((
                Reason::ImagePullFailed,
                bounded(format!("image {} cannot be pulled: {why}", container.image)),
            ))
        }
        Some("CrashLoopBackOff" | "RunContainerError" | "CreateContainerError") => {
            Some((Reason::CrashLooping, how_it_ended(container)))
        }
        Some("CreateContainerConfigError") => {
            let why = waiting.and_then(|waiting| waiting.message.clone()).unwrap_or_default();
            Some((
                Reason::CrashLooping,
                bounded(format!("the monitor's container cannot be created: {why}")),
            ))
        }
        // Between two crashes the container runs, or has just ended, for a moment.
        _ if container.restart_count >= 2 && !container.ready => Some((Reason::CrashLooping, how_it_ended(container))),
        _ => None,
    }
}

/// Without the restart count: it would make a new message, and a write, at each crash.
fn how_it_ended(container: &ContainerStatus) -> String {
    let states = [container.state.as_ref(), container.last_state.as_ref()];
    let ended = states.into_iter().flatten().find_map(|state| state.terminated.clone());
    let how = ended.map_or_else(String::new, |ended| {
        let reason = ended.reason.unwrap_or_else(|| "Error".to_owned());
        format!(" ({reason}, exit code {})", ended.exit_code)
    });
    format!("the monitor ends again and again{how}; `kubectl logs --previous` says why")
}

fn bounded(mut text: String) -> String {
    if text.len() > 512 {
        let end = (0..=512).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(generation: i64, observed: i64, mut status: serde_json::Value) -> StatefulSet {
        status["observedGeneration"] = observed.into();
        status["replicas"] = status.get("replicas").cloned().unwrap_or(json!(1));
        serde_json::from_value(json!({
            "metadata": { "name": "orders-monitor", "generation": generation, "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": {
                "replicas": 1, "selector": {}, "serviceName": "s",
                "template": { "spec": { "containers": [{ "name": "monitor", "image": "monitor:1" }] } }
            },
            "status": status,
        }))
        .unwrap()
    }

    #[expect(clippy::needless_pass_by_value, reason = "reads better at the caller")]
    fn pod(status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "orders-monitor-0" }, "status": status })).unwrap()
    }

    fn waiting(reason: &str) -> Pod {
        pod(json!({ "phase": "Pending", "containerStatuses": [{
            "name": "monitor", "image": "monitor:1", "imageID": "", "ready": false, "restartCount": 3,
            "state": { "waiting": { "reason": reason, "message": "back-off" } },
            "lastState": { "terminated": { "exitCode": 64, "reason": "Error" } }
        }]}))
    }

    fn now() -> Timestamp {
        "2026-01-01T00:01:00Z".parse().unwrap()
    }

    const READY: &str = r#"{"readyReplicas":1,"currentRevision":"a","updateRevision":"a"}"#;

    #[test]
    fn a_stale_status_is_not_believed() {
        let ready = serde_json::from_str(READY).unwrap();
        let seen = observe(Some(&set(2, 1, ready)), &[None], false, now());
        assert_eq!(
            (seen.verdict.status, seen.verdict.reason),
            (Status::False, Reason::RollingOut)
        );
        assert!(seen.rolling);
    }

    #[test]
    fn ready_and_current_means_rolled_out() {
        let ready: serde_json::Value = serde_json::from_str(READY).unwrap();
        let seen = observe(Some(&set(2, 2, ready.clone())), &[None], false, now());
        assert_eq!(
            (seen.verdict.status, seen.verdict.reason),
            (Status::True, Reason::RolledOut)
        );
        assert_eq!(seen.image.as_deref(), Some("monitor:1"));
        assert!(!seen.rolling);
        let waits = observe(Some(&set(2, 2, ready)), &[None], true, now());
        assert_eq!(
            (waits.verdict.status, waits.verdict.reason),
            (Status::True, Reason::WaitingForTurn)
        );
    }

    #[test]
    fn ready_by_an_old_pod_is_not_rolled_out() {
        let status = json!({ "readyReplicas": 1, "currentRevision": "a", "updateRevision": "b", "updatedReplicas": 0 });
        let seen = observe(Some(&set(2, 2, status)), &[None], false, now());
        assert_eq!(seen.verdict.reason, Reason::RollingOut);
        assert!(seen.rolling);
    }

    #[test]
    fn failures_of_the_pod_are_named() {
        let status = json!({ "readyReplicas": 0, "currentRevision": "a", "updateRevision": "a" });
        let set = set(2, 2, status);
        for (pod, reason, text) in [
            (waiting("CrashLoopBackOff"), Reason::CrashLooping, "exit code 64"),
            (waiting("ImagePullBackOff"), Reason::ImagePullFailed, "image monitor:1"),
            (
                pod(json!({ "conditions": [{ "type": "PodScheduled", "status": "False", "message": "0/3 nodes" }] })),
                Reason::Unschedulable,
                "0/3 nodes",
            ),
            (pod(json!({ "phase": "Running" })), Reason::RollingOut, "starts"),
        ] {
            let seen = observe(Some(&set), &[Some(pod)], false, now());
            assert_eq!((seen.verdict.status, seen.verdict.reason), (Status::False, reason));
            assert!(seen.verdict.message.contains(text), "{}", seen.verdict.message);
        }
    }

    #[test]
    fn one_of_two_is_enough_to_be_available_and_the_other_one_is_named() {
        let two = |status| {
            let mut set = set(1, 1, status);
            set.spec.as_mut().unwrap().replicas = Some(2);
            set
        };
        let ready = || Some(pod(json!({ "conditions": [{ "type": "Ready", "status": "True" }] })));
        let both = two(json!({ "replicas": 2, "readyReplicas": 2 }));
        let seen = observe(Some(&both), &[ready(), ready()], false, now());
        assert_eq!(
            (seen.verdict.status, seen.verdict.reason),
            (Status::True, Reason::RolledOut)
        );
        let one = two(json!({ "replicas": 2, "readyReplicas": 1 }));
        for pods in [
            [ready(), Some(waiting("CrashLoopBackOff"))],
            [Some(waiting("CrashLoopBackOff")), ready()],
        ] {
            let seen = observe(Some(&one), &pods, false, now());
            assert_eq!(
                (seen.verdict.status, seen.verdict.reason),
                (Status::True, Reason::StandbyNotReady)
            );
            assert!(seen.verdict.message.starts_with("1 of 2"), "{}", seen.verdict.message);
            assert!(
                seen.verdict.message.contains("exit code 64"),
                "{}",
                seen.verdict.message
            );
            assert!(!seen.rolling);
        }
        let none = two(json!({ "replicas": 2, "readyReplicas": 0 }));
        let seen = observe(Some(&none), &[Some(waiting("ImagePullBackOff")), None], false, now());
        assert_eq!(
            (seen.verdict.status, seen.verdict.reason),
            (Status::False, Reason::ImagePullFailed)
        );
        let rolling =
            json!({ "readyReplicas": 2, "currentRevision": "a", "updateRevision": "b", "updatedReplicas": 1 });
        let seen = observe(Some(&two(rolling)), &[ready(), ready()], false, now());
        assert_eq!(
            (seen.verdict.status, seen.verdict.reason),
            (Status::True, Reason::RollingOut)
        );
        assert!(seen.rolling);
    }

    #[test]
    fn no_pod_after_a_while_means_it_was_refused() {
        let set = set(1, 1, json!({ "replicas": 0 }));
        assert_eq!(
            observe(Some(&set), &[None], false, now()).verdict.reason,
            Reason::PodsRefused
        );
        let at_once: Timestamp = "2026-01-01T00:00:05Z".parse().unwrap();
        assert_eq!(
            observe(Some(&set), &[None], false, at_once).verdict.reason,
            Reason::RollingOut
        );
        assert_eq!(
            observe(None, &[None], false, now()).verdict.reason,
            Reason::WorkloadNotReady
        );
    }
}
