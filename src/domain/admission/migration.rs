//! Validation of a Migration at its creation, beyond what the CRD's schema and CEL rules can say.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use crate::{
    api::Migration,
    domain::{
        ids::is_dns_subdomain,
        preflight::{Blocker, migration_blockers},
    },
};

/// Everything that is wrong with a new Migration. `pod` is the pod that `spec.podName` names, where there is one.
///
/// Whether the pod can be moved is not asked here: the preflight says so in the status, where `drover check` reads it.
#[must_use]
pub fn validate_migration(migration: &Migration, pod: Option<&Pod>) -> Vec<Blocker> {
    let spec = &migration.spec;
    let namespace = migration.namespace().unwrap_or_default();
    let mut reasons = migration_blockers(migration);
    if let Some(node) = spec.destination.node_name.as_deref().filter(|n| !is_dns_subdomain(n)) {
        reasons.push(Blocker::new("spec.destination.nodeName", format!("{node:?} is no node's name"), "lower-case letters, digits, '-' and '.'"));
    }
    if let (Some(name), None) = (&spec.pod_name, pod) {
        let remedy = format!("kubectl get pods -n {namespace}");
        reasons.push(Blocker::new("spec.podName", format!("pod {namespace}/{name} does not exist"), remedy));
    }
    reasons
}
