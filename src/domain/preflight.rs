//! Every reason why a pod cannot be moved, all at once, each with its remedy; before anything is touched.

mod claims;
mod elsewhere;
pub mod lane;
mod node;
pub mod post_copy;
mod spec;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use kube::ResourceExt as _;

pub use claims::{ClaimView, of_pod as claims_of};
pub use node::{NodeView, PROFILE_LIFETIME, capable_nodes, destination_blockers, node_blockers};
pub use spec::{base_image, blockers, warnings};

use super::{containers, keys, owner};
use crate::api::{Migration, MigrationGrant, attestation::Finding, migration::Lane};

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

impl From<Finding> for Blocker {
    fn from(Finding { field, message, remedy }: Finding) -> Self {
        Self { field, message, remedy }
    }
}

impl From<Blocker> for Finding {
    fn from(Blocker { field, message, remedy }: Blocker) -> Self {
        Self { field, message, remedy }
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
    /// UIDs of the migrations that have not ended; looked up where the pod [names another](names_another).
    pub active_migrations: Vec<String>,
    /// The grants of the namespace that the pod is to leave its own for.
    pub grants: Vec<MigrationGrant>,
    /// The pod's claims by name; none where they were not looked up.
    pub claims: Option<BTreeMap<String, ClaimView>>,
    /// The lane that the nodes must have; any is enough for [`Lane::Auto`].
    pub lane: Lane,
    /// Whether the nodes' agents must know post-copy.
    pub post_copy: bool,
    /// Now.
    pub now: jiff::Timestamp,
}

/// Whether another migration than this one is named on the pod, which may have it locked or may still be making it.
#[must_use]
pub fn names_another(pod: &Pod, migration: &Migration) -> bool {
    let named = [keys::LOCK, keys::REPLACES].into_iter().filter_map(|key| pod.annotations().get(key));
    named.into_iter().any(|uid| Some(uid) != migration.metadata.uid.as_ref())
}

/// Every blocker of a migration: of its own fields, of the pod, of the nodes.
#[must_use]
pub fn examine(migration: &Migration, pod: &Pod, facts: &Facts) -> Vec<Blocker> {
    let mut found = migration_blockers(migration);
    found.extend(pod_blockers(migration, pod));
    found.extend(elsewhere::blockers(migration, pod, &facts.grants));
    found.extend(facts.claims.iter().flat_map(|known| claims::blockers(migration, pod, known)));
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
    if let Some(maker) = pod.annotations().get(keys::REPLACES).filter(|uid| facts.active_migrations.contains(uid)) {
        found.push(Blocker::new(
            format!("metadata.annotations[{}]", keys::REPLACES),
            format!("the migration with UID {maker}, which makes this pod, has not ended"),
            "wait until it has",
        ));
    }
    let source_node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
    found.extend(node_blockers(&source_node, &migration.spec.destination, facts));
    if let Some(node) = facts.nodes.iter().find(|node| node.name == source_node).filter(|node| node.profile.is_some() && !node.is_gated()) {
        found.extend(gate_blockers(node, pod));
        found.extend(post_copy::gate_blocker(node).filter(|_| migration.spec.post_copy));
    }
    found
}

/// R9: without the gate a probe's kill starts a second copy in place, so no budget is small enough.
fn gate_blockers(node: &NodeView, pod: &Pod) -> Vec<Blocker> {
    let blocker = |(container, kind, _): (&Container, &str, &Probe)| {
        let why = node.profile.as_ref().map(|profile| profile.gate.message.clone()).unwrap_or_default();
        Blocker::new(
            format!("{}.{kind}", containers::field(pod, &container.name)),
            format!("the kubelet of node {} would start the container again while it is frozen, since the node has no gate: {why}", node.name),
            "run drover node setup --apply there and restart its containerd, or use an exec probe",
        )
    };
    network_probes(pod).map(blocker).collect()
}

/// Probes over the network that make the kubelet kill a container: container, field, probe. An exec probe counts as unknown while its container is paused
/// (MEASURED.md 1), and a startup probe that has succeeded is not asked again.
fn network_probes(pod: &Pod) -> impl Iterator<Item = (&Container, &'static str, &Probe)> {
    let kinds = move |container: &'_ Container| {
        let has_started = containers::statuses(pod).any(|status| status.name == container.name && status.started == Some(true));
        [("livenessProbe", false), ("startupProbe", has_started)]
    };
    let probes = pod.spec.iter().flat_map(containers::running).flat_map(move |container| {
        kinds(container).into_iter().filter(|(_, is_over)| !is_over).filter_map(move |(kind, _)| {
            let probe = if kind == "livenessProbe" { container.liveness_probe.as_ref() } else { container.startup_probe.as_ref() };
            Some((container, kind, probe?))
        })
    });
    probes.filter(|(_, _, probe)| probe.http_get.is_some() || probe.tcp_socket.is_some() || probe.grpc.is_some())
}

/// Every blocker in the pod, given how long the migration may keep it frozen.
#[must_use]
pub fn pod_blockers(migration: &Migration, pod: &Pod) -> Vec<Blocker> {
    let mut found = blockers(pod);
    found.extend(owner_blocker(migration, pod));
    if migration.spec.post_copy {
        found.extend(post_copy::blockers(migration, pod));
    } else {
        found.extend(budget_blockers(migration, pod));
    }
    found
}

/// A pod keeps its name if, and only if, its controller knows it by that.
fn owner_blocker(migration: &Migration, pod: &Pod) -> Option<Blocker> {
    let owner = owner::controller(&pod.metadata)?;
    let whose = format!("the pod belongs to {} {}", owner.kind, owner.name);
    match (owner::kind(owner)?, migration.spec.keep_name) {
        (owner::Kind::ReplicaSet | owner::Kind::Job, true) => {
            let message = format!("{whose}, which would start another pod as soon as the source goes");
            Some(Blocker::new("spec.keepName", message, "leave it out: the pod's name means nothing to its owner"))
        }
        (owner::Kind::StatefulSet, false) => {
            Some(Blocker::new("spec.keepName", format!("{whose}, which knows its pods by their names"), "set it to true"))
        }
        (owner::Kind::ReplicaSet | owner::Kind::Job, false) | (owner::Kind::StatefulSet, true) => None,
    }
}

/// What a Migration asks for that is not built yet: the webhook refuses it too, but may have been down.
#[must_use]
pub fn migration_blockers(migration: &Migration) -> Vec<Blocker> {
    let spec = &migration.spec;
    let mut found = vec![];
    let mut unsupported = |field: &str, asked: bool, remedy: &str| {
        if asked {
            found.push(Blocker::new(field, "is not supported yet", remedy));
        }
    };
    unsupported("spec.containers", !spec.containers.is_empty(), "leave it out: all containers are restored");
    found.extend(elsewhere::name_blocker(migration));
    found
}

/// R9: an http, tcp or grpc probe makes the kubelet kill a frozen pod, so the freeze must end before the probe's patience does.
fn budget_blockers(migration: &Migration, pod: &Pod) -> Vec<Blocker> {
    let freeze = migration.spec.freeze_budget_seconds;
    let mut found = vec![];
    for (container, kind, probe) in network_probes(pod) {
        let patience = patience_while_frozen(probe);
        if patience < i64::from(freeze) {
            found.push(Blocker::new(
                format!("{}.{kind}", containers::field(pod, &container.name)),
                format!("the kubelet may kill the frozen container after {patience} s, the freeze may take {freeze} s (spec.freezeBudgetSeconds)"),
                "make a Migration with a smaller freezeBudgetSeconds, raise failureThreshold × periodSeconds, or use an exec probe",
            ));
        }
    }
    found
}

/// Seconds after the freeze at which the kubelet may kill the container: the first probe may fail right then, at its timeout, and each further one a period
/// later.
fn patience_while_frozen(probe: &Probe) -> i64 {
    let (threshold, period) = (probe.failure_threshold.unwrap_or(3), probe.period_seconds.unwrap_or(10));
    i64::from(threshold - 1) * i64::from(period) + i64::from(probe.timeout_seconds.unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::MigrationSpec;

    fn blockers_of(probes: &serde_json::Value, started: bool) -> Vec<String> {
        let mut container = serde_json::json!({"name": "c", "image": "i"});
        json_patch::merge(&mut container, probes);
        let pod = serde_json::json!({
            "spec": {"containers": [container]},
            "status": {"containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "started": started}]}
        });
        let migration = Migration::new("m", MigrationSpec { freeze_budget_seconds: 60, ..Default::default() });
        budget_blockers(&migration, &serde_json::from_value(pod).unwrap()).into_iter().map(|blocker| blocker.field).collect()
    }

    #[test]
    fn a_probe_over_the_network_must_outlast_the_freeze() {
        let http =
            |threshold: i32| serde_json::json!({"httpGet": {"port": 80}, "failureThreshold": threshold, "periodSeconds": 10, "timeoutSeconds": 1});
        let none: Vec<String> = vec![];
        assert_eq!(blockers_of(&serde_json::json!({"livenessProbe": http(6)}), true), ["spec.containers[c].livenessProbe"], "51 s");
        assert_eq!(blockers_of(&serde_json::json!({"livenessProbe": http(7)}), true), none, "61 s");
        assert_eq!(blockers_of(&serde_json::json!({"livenessProbe": {"exec": {"command": ["true"]}}}), true), none);
        assert_eq!(blockers_of(&serde_json::json!({"startupProbe": http(1)}), false), ["spec.containers[c].startupProbe"]);
        assert_eq!(blockers_of(&serde_json::json!({"startupProbe": http(1)}), true), none, "it has succeeded");
    }
}
