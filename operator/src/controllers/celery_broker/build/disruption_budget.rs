//! One disruption at a time: of two monitors one stays; a single one does not hold up a drain.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Meta;
use crate::names;

pub(super) fn build(meta: &Meta<'_>) -> PodDisruptionBudget {
    let spec = PodDisruptionBudgetSpec {
        max_unavailable: Some(IntOrString::Int(1)),
        selector: Some(LabelSelector {
            match_labels: Some(names::selector(&meta.validated.child)),
            ..LabelSelector::default()
        }),
        ..PodDisruptionBudgetSpec::default()
    };
    PodDisruptionBudget {
        metadata: meta.object(),
        spec: Some(spec),
        ..PodDisruptionBudget::default()
    }
}
