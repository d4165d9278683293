//! The headless Service a StatefulSet needs; metrics are scraped through it.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kanchi_contract::ADMIN_PORT;

use super::Meta;
use crate::names;

/// Name of the admin port.
pub(super) const PORT: &str = "admin";

pub(super) fn build(meta: &Meta<'_>) -> Service {
    let spec = ServiceSpec {
        cluster_ip: Some("None".to_owned()),
        // A monitor that cannot get ready is the one whose metrics are wanted.
        publish_not_ready_addresses: Some(true),
        selector: Some(names::selector(&meta.validated.child)),
        ports: Some(vec![ServicePort {
            name: Some(PORT.to_owned()),
            port: i32::from(ADMIN_PORT),
            target_port: Some(IntOrString::String(PORT.to_owned())),
            protocol: Some("TCP".to_owned()),
            ..ServicePort::default()
        }]),
        ..ServiceSpec::default()
    };
    Service {
        metadata: meta.object(),
        spec: Some(spec),
        ..Service::default()
    }
}
