//! The monitor itself: one pod or two, no Kubernetes API access, nothing that survives it but the store.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetUpdateStrategy};
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, Container, ContainerPort, EmptyDirVolumeSource, HTTPGetAction, LocalObjectReference,
    PodAffinityTerm, PodAntiAffinity, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements,
    SeccompProfile, SecretVolumeSource, SecurityContext, Volume, VolumeMount, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kanchi_contract::{ADMIN_PORT, CONFIG_DIR, SPOOL_BYTES, SPOOL_DIR, path};
use kanchi_crds::Resources;

use super::service::PORT;
use super::{Error, Meta, Result};
use crate::context::Settings;
use crate::names::{self, annotation};

/// Name of the monitor's container.
const CONTAINER: &str = "monitor";

/// Longer than a monitor's drain: its last batch has to be committed and acknowledged.
const GRACE_SECONDS: i64 = 30;

/// Of two monitors the second is replaced this long after the first is ready: on Redis that one has to listen for about
/// fifteen seconds before it is sure to have heard all that the other one has not stored.
const CATCH_UP_SECONDS: i32 = 20;

/// Old pod templates that are kept to look at.
const REVISIONS: i32 = 2;

pub(super) fn build(meta: &Meta<'_>, settings: &Settings) -> Result<StatefulSet> {
    let validated = meta.validated;
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(names::labels(&validated.child)),
            annotations: Some([(annotation::BROKER.to_owned(), validated.identity.name.clone())].into()),
            ..ObjectMeta::default()
        }),
        spec: Some(pod(meta, settings)),
    };
    let template_hash = names::hash_of(&template).map_err(|source| Error::Hash {
        what: "the pod template",
        source,
    })?;
    let mut metadata = meta.object();
    metadata
        .annotations
        .get_or_insert_default()
        .insert(annotation::TEMPLATE.to_owned(), template_hash);
    let spec = StatefulSetSpec {
        replicas: Some(if validated.enabled {
            i32::from(validated.pods.replicas)
        } else {
            0
        }),
        min_ready_seconds: has_standby(meta).then_some(CATCH_UP_SECONDS),
        service_name: Some(validated.child.clone()),
        selector: LabelSelector {
            match_labels: Some(names::selector(&validated.child)),
            ..LabelSelector::default()
        },
        // A pod that never gets ready must not keep its successor from starting.
        pod_management_policy: Some("Parallel".to_owned()),
        update_strategy: Some(StatefulSetUpdateStrategy {
            type_: Some("RollingUpdate".to_owned()),
            ..StatefulSetUpdateStrategy::default()
        }),
        revision_history_limit: Some(REVISIONS),
        template,
        ..StatefulSetSpec::default()
    };
    Ok(StatefulSet {
        metadata,
        spec: Some(spec),
        ..StatefulSet::default()
    })
}

fn pod(meta: &Meta<'_>, settings: &Settings) -> PodSpec {
    let pods = &meta.validated.pods;
    let pull_secrets = settings.monitor_image_pull_secrets.iter();
    let pull_secrets: Vec<_> = pull_secrets
        .map(|name| LocalObjectReference { name: name.clone() })
        .collect();
    PodSpec {
        containers: vec![container(meta, settings)],
        volumes: Some(vec![
            Volume {
                name: "config".to_owned(),
                // Readable by any user of the pod, which is the monitor alone: no fsGroup that a cluster might refuse.
                secret: Some(SecretVolumeSource {
                    secret_name: Some(meta.validated.child.clone()),
                    default_mode: Some(0o444),
                    ..SecretVolumeSource::default()
                }),
                ..Volume::default()
            },
            Volume {
                name: "spool".to_owned(),
                empty_dir: Some(EmptyDirVolumeSource {
                    size_limit: Some(spool_size()),
                    medium: None,
                }),
                ..Volume::default()
            },
        ]),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        image_pull_secrets: (!pull_secrets.is_empty()).then_some(pull_secrets),
        node_selector: (!pods.node_selector.is_empty()).then(|| pods.node_selector.clone()),
        tolerations: (!pods.tolerations.is_empty()).then(|| pods.tolerations.clone()),
        affinity: affinity(meta),
        ..PodSpec::default()
    }
}

fn has_standby(meta: &Meta<'_>) -> bool {
    meta.validated.pods.replicas > 1
}

/// Two monitors go to two nodes where they can, unless the user has rules about that.
fn affinity(meta: &Meta<'_>) -> Option<Affinity> {
    let own = meta.validated.pods.affinity.clone();
    if !has_standby(meta) || own.as_ref().is_some_and(|own| own.pod_anti_affinity.is_some()) {
        return own;
    }
    let apart = WeightedPodAffinityTerm {
        weight: 100,
        pod_affinity_term: PodAffinityTerm {
            topology_key: "kubernetes.io/hostname".to_owned(),
            label_selector: Some(LabelSelector {
                match_labels: Some(names::selector(&meta.validated.child)),
                ..LabelSelector::default()
            }),
            ..PodAffinityTerm::default()
        },
    };
    Some(Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![apart]),
            ..PodAntiAffinity::default()
        }),
        ..own.unwrap_or_default()
    })
}

fn container(meta: &Meta<'_>, settings: &Settings) -> Container {
    let admin = format!("--admin-addr=0.0.0.0:{ADMIN_PORT}");
    let args = [
        "run".to_owned(),
        format!("--config-dir={CONFIG_DIR}"),
        format!("--spool-dir={SPOOL_DIR}"),
        admin,
    ];
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    Container {
        name: CONTAINER.to_owned(),
        image: Some(settings.monitor_image.clone()),
        image_pull_policy: Some(settings.monitor_image_pull_policy.clone()),
        args: Some(args.into()),
        ports: Some(vec![ContainerPort {
            name: Some(PORT.to_owned()),
            container_port: i32::from(ADMIN_PORT),
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        resources: Some(resources(&meta.validated.pods.resources)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                add: None,
            }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        // The whole directory, never a subPath: the kubelet updates directories only.
        volume_mounts: Some(vec![
            mount("config", CONFIG_DIR, true),
            mount("spool", SPOOL_DIR, false),
        ]),
        liveness_probe: Some(probe(path::LIVE, 10, 3)),
        readiness_probe: Some(probe(path::READY, 2, 3)),
        startup_probe: Some(probe(path::LIVE, 1, 60)),
        ..Container::default()
    }
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(PORT.to_owned()),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(5),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

fn resources(own: &Resources) -> ResourceRequirements {
    let list = |entries: &[(&str, &str)]| -> BTreeMap<String, Quantity> {
        entries
            .iter()
            .map(|(name, quantity)| ((*name).to_owned(), Quantity((*quantity).to_owned())))
            .collect()
    };
    let defaults = Resources {
        requests: list(&[("cpu", "50m"), ("memory", "64Mi")]),
        limits: list(&[("memory", "128Mi")]),
    };
    own.or(&defaults)
}

/// In the form the API server gives back, so that nothing seems to differ.
fn spool_size() -> Quantity {
    const MEBI: u64 = 1024 * 1024;
    const GIBI: u64 = 1024 * MEBI;
    if SPOOL_BYTES.is_multiple_of(GIBI) {
        Quantity(format!("{}Gi", SPOOL_BYTES / GIBI))
    } else {
        Quantity(format!("{}Mi", SPOOL_BYTES / MEBI))
    }
}
