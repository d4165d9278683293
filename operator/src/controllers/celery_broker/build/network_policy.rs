//! Only the admin port is open.
//!
//! Egress is not restricted: policies see addresses behind Services, whose ports (of the broker, of Postgres, of DNS) are
//! not those of the URLs, so that a guess would cut off monitors in some clusters.

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPort, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kanchi_contract::ADMIN_PORT;

use super::Meta;
use crate::names;

pub(super) fn build(meta: &Meta<'_>) -> NetworkPolicy {
    let admin = NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(ADMIN_PORT))),
        protocol: Some("TCP".to_owned()),
        ..NetworkPolicyPort::default()
    };
    let spec = NetworkPolicySpec {
        pod_selector: Some(LabelSelector {
            match_labels: Some(names::selector(&meta.validated.child)),
            ..LabelSelector::default()
        }),
        policy_types: Some(vec!["Ingress".to_owned()]),
        ingress: Some(vec![NetworkPolicyIngressRule {
            ports: Some(vec![admin]),
            from: None,
        }]),
        ..NetworkPolicySpec::default()
    };
    NetworkPolicy {
        metadata: meta.object(),
        spec: Some(spec),
    }
}
