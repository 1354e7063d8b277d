//! Validation of a Migration at its creation, beyond what the CRD's schema and CEL rules can say.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::Reason;
use crate::{
    api::{Migration, migration::Lane},
    domain::ids::is_dns_subdomain,
};

/// Everything that is wrong with a new Migration. `pod` is the pod that `spec.podName` names, where there is one.
///
/// Whether the pod can be moved is not asked here: the preflight says so in the status, where `drover check` reads it.
#[must_use]
pub fn validate_migration(migration: &Migration, pod: Option<&Pod>) -> Vec<Reason> {
    let spec = &migration.spec;
    let namespace = migration.namespace().unwrap_or_default();
    let mut reasons = Vec::new();
    let mut unsupported = |given: bool, field: &str, remedy: &str| {
        if given {
            reasons.push(Reason::new(field, "not supported yet", remedy));
        }
    };
    unsupported(spec.deployment.is_some(), "spec.deployment", "make one Migration a pod with spec.podName");
    unsupported(spec.selector.is_some(), "spec.selector", "make one Migration a pod with spec.podName");
    let elsewhere = spec.destination_namespace.as_ref().is_some_and(|n| *n != namespace);
    unsupported(elsewhere, "spec.destinationNamespace", "leave it out: the replacement is made in the pod's own namespace");
    unsupported(spec.keep_name, "spec.keepName", "leave it out: the replacement gets a name of its own");
    unsupported(spec.lane == Lane::Runtime, "spec.lane", "use auto or image");
    if let Some(node) = spec.destination.node_name.as_deref().filter(|n| !is_dns_subdomain(n)) {
        reasons.push(Reason::new("spec.destination.nodeName", format!("{node:?} is no node's name"), "lower-case letters, digits, '-' and '.'"));
    }
    let Some(name) = spec.pod_name.as_deref() else { return reasons };
    match pod {
        None => {
            let remedy = format!("kubectl get pods -n {namespace}");
            reasons.push(Reason::new("spec.podName", format!("pod {namespace}/{name} does not exist"), remedy));
        }
        Some(pod) => {
            let known: Vec<_> = pod.spec.iter().flat_map(|s| &s.containers).map(|c| c.name.as_str()).collect();
            for (index, container) in spec.containers.iter().enumerate().filter(|(_, c)| !known.contains(&c.as_str())) {
                let message = format!("pod {name} has no container {container:?}");
                reasons.push(Reason::new(format!("spec.containers[{index}]"), message, format!("it has: {}", known.join(", "))));
            }
        }
    }
    reasons
}
