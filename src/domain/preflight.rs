//! Every reason why a pod cannot be moved, all at once, each with its remedy; before anything is touched.

mod node;
mod spec;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

pub use node::{NodeView, PROFILE_LIFETIME, capable_nodes, node_blockers};
pub use spec::{base_image, blockers};

use super::keys;
use crate::api::Migration;

/// One reason why a pod cannot be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// The field of the pod, the Migration or the node that it is about.
    pub field: String,
    /// What is in the way.
    pub message: String,
    /// What to do about it; empty where the message says it.
    pub remedy: String,
}

impl Blocker {
    /// A blocker.
    pub fn new(field: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into(), remedy: remedy.into() }
    }

    /// All blockers as one line.
    #[must_use]
    pub fn join(blockers: &[Self]) -> String {
        blockers.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }
}

impl std::fmt::Display for Blocker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.message)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, " ({})", self.remedy) }
    }
}

/// What is known about the cluster when a migration is looked at.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// Every node.
    pub nodes: Vec<NodeView>,
    /// UIDs of the migrations that have not ended.
    pub active_migrations: Vec<String>,
    /// Now.
    pub now: jiff::Timestamp,
}

/// Every blocker of a migration: of its own fields, of the pod, of the nodes.
#[must_use]
pub fn examine(migration: &Migration, pod: &Pod, facts: &Facts) -> Vec<Blocker> {
    let mut found = migration_blockers(migration);
    found.extend(pod_blockers(migration, pod));
    if let Some(owner) = pod.annotations().get(keys::LOCK)
        && Some(owner) != migration.metadata.uid.as_ref()
        && facts.active_migrations.contains(owner)
    {
        found.push(Blocker::new(
            format!("metadata.annotations[{}]", keys::LOCK),
            format!("the pod is being moved by the migration with UID {owner}"),
            "wait until that one has ended, or delete it",
        ));
    }
    let source_node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
    found.extend(node_blockers(&source_node, &migration.spec.destination, facts));
    found
}

/// Every blocker in the pod, given how long the migration may keep it frozen.
#[must_use]
pub fn pod_blockers(migration: &Migration, pod: &Pod) -> Vec<Blocker> {
    let mut found = blockers(pod);
    found.extend(budget_blockers(migration, pod));
    found
}

/// What a Migration asks for that is not built yet: the webhook refuses it too, but may have been down.
#[must_use]
pub fn migration_blockers(migration: &Migration) -> Vec<Blocker> {
    use crate::api::migration::{InDoubt, Lane};
    let spec = &migration.spec;
    let mut found = vec![];
    let mut unsupported = |field: &str, asked: bool, remedy: &str| {
        if asked {
            found.push(Blocker::new(field, "is not supported yet", remedy));
        }
    };
    unsupported("spec.deployment", spec.deployment.is_some(), "name one pod in spec.podName");
    unsupported("spec.selector", spec.selector.is_some(), "name one pod in spec.podName");
    unsupported("spec.keepName", spec.keep_name, "leave it out: the replacement gets a name of its own");
    unsupported("spec.lane", spec.lane == Lane::Runtime, "use auto or image");
    unsupported("spec.inDoubt", spec.in_doubt != InDoubt::HoldFrozen, "leave it out: the migration is held until a person decides");
    unsupported("spec.containers", !spec.containers.is_empty(), "leave it out: all containers are restored");
    let elsewhere = spec.destination_namespace.as_ref().is_some_and(|ns| Some(ns) != migration.metadata.namespace.as_ref());
    unsupported("spec.destinationNamespace", elsewhere, "leave it out: the replacement is made in the pod's own namespace");
    found
}

/// R9: an http, tcp or grpc probe makes the kubelet kill a frozen pod, so the freeze must end before the probe's patience does.
fn budget_blockers(migration: &Migration, pod: &Pod) -> Vec<Blocker> {
    let freeze = migration.spec.freeze_budget_seconds;
    let mut found = vec![];
    for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
        for (kind, probe) in [("livenessProbe", &container.liveness_probe), ("startupProbe", &container.startup_probe)] {
            let Some(probe) = probe.as_ref().filter(|p| p.http_get.is_some() || p.tcp_socket.is_some() || p.grpc.is_some()) else { continue };
            let patience = i64::from(probe.failure_threshold.unwrap_or(3)) * i64::from(probe.period_seconds.unwrap_or(10));
            if patience < i64::from(freeze) {
                found.push(Blocker::new(
                    format!("spec.containers[{}].{kind}", container.name),
                    format!("the kubelet kills the frozen container after {patience} s, the freeze may take {freeze} s (spec.freezeBudgetSeconds)"),
                    "make a Migration with a smaller freezeBudgetSeconds, raise failureThreshold × periodSeconds, or use an exec probe",
                ));
            }
        }
    }
    found
}
