//! What post-copy asks of a pod more than any other move (R9, R19).

use k8s_openapi::api::core::v1::{Container, Pod, Probe};

use super::{Blocker, Facts, NodeView, capable_nodes, network_probes};
use crate::{
    api::{
        Migration, NodeProfileStatus,
        migration::{InDoubt, Lane},
    },
    domain::{containers, lanes},
};

const FIELD: &str = "spec.postCopy";

/// Why a pod's memory cannot stay behind while its copy runs.
pub(super) fn blockers(migration: &Migration, pod: &Pod) -> Vec<Blocker> {
    let class = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref());
    let mut found = vec![];
    // The API server refuses these three as well, of Migrations that were made when it knew the rule.
    if migration.spec.lane != Lane::Runtime {
        found.push(Blocker::new(FIELD, "is never chosen for anybody, and exists in the runtime lane alone", "set spec.lane to runtime"));
    }
    if migration.spec.keep_name {
        let message = "the source of a pod that keeps its name is deleted before its copy starts, and with it the memory";
        found.push(Blocker::new(FIELD, message, "leave it out"));
    }
    if migration.spec.in_doubt == InDoubt::PreferDestination {
        let message = "a copy that is let start from its image ends the frozen source, and with it the memory, of which there is no archive";
        found.push(Blocker::new("spec.inDoubt", message, "use HoldFrozen or PreferSource, or leave spec.postCopy out"));
    }
    if class != Some(lanes::RUNTIME_CLASS) {
        let remedy = "leave it out, or give the pod this RuntimeClass; a pod that was moved by the runtime lane has it";
        found.push(Blocker::new(
            FIELD,
            format!("the pod does not run under the RuntimeClass {}, whose runtime gives pages away", lanes::RUNTIME_CLASS),
            remedy,
        ));
    }
    found.extend(network_probes(pod).map(|probe| probe_blocker(pod, probe)));
    found
}

/// R9: how long a page may take is not known, so no probe's patience is long enough.
fn probe_blocker(pod: &Pod, (container, kind, _): (&Container, &str, &Probe)) -> Blocker {
    let message = format!("with {FIELD} the kubelet could kill the container, here while it is frozen, there while it waits for a page");
    Blocker::new(format!("{}.{kind}", containers::field(pod, &container.name)), message, format!("use an exec probe, or leave {FIELD} out"))
}

/// An agent of before post-copy would take no notice of it: lay the checkpoint out without its memory, or write it with it.
pub(super) fn agent_blocker(node: &str, profile: &NodeProfileStatus) -> Option<Blocker> {
    (!profile.post_copy).then(|| {
        let message = format!("the agent of node {node} does not say that it knows post-copy (status.postCopy of its NodeProfile)");
        Blocker::new(FIELD, message, "upgrade its agent, or leave it out")
    })
}

/// Why a pod's move cannot be the post-copy that a policy asks for: what would refuse a Migration that asked for it itself, and nodes that it would keep the pod
/// from. `facts` are those of the same move without it.
#[must_use]
pub fn impossible(migration: &Migration, pod: &Pod, facts: &Facts) -> Vec<Blocker> {
    let mut found = blockers(migration, pod);
    let source = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let source = facts.nodes.iter().find(|node| Some(node.name.as_str()) == source);
    let Some(source) = source else {
        found.push(Blocker::new(FIELD, "nothing is known of the pod's node", "look at its drover-agent pod"));
        return found;
    };
    let takers = capable_nodes(&source.name, &migration.spec.destination, facts);
    let involved = || facts.nodes.iter().filter(|node| node.name == source.name || takers.contains(&node.name));
    found.extend(involved().filter_map(gate_blocker).take(1));
    found.extend(involved().filter_map(|node| agent_blocker(&node.name, node.profile.as_ref()?)).take(1));
    found
}

/// R8: without the gate at either end the source goes before its copy starts.
pub(super) fn gate_blocker(node: &NodeView) -> Option<Blocker> {
    (!node.is_gated()).then(|| {
        let message = format!("node {} has no gate, so that the source is deleted before its copy starts, and with it the memory", node.name);
        Blocker::new(FIELD, message, "run drover node setup --apply there and restart its containerd, or leave it out")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::MigrationSpec;

    fn fields(spec: MigrationSpec, class: Option<&str>, probe: &serde_json::Value) -> Vec<String> {
        let mut container = serde_json::json!({"name": "c", "image": "i"});
        json_patch::merge(&mut container, probe);
        let pod = serde_json::json!({"spec": {"containers": [container], "runtimeClassName": class}});
        let migration = Migration::new("m", MigrationSpec { post_copy: true, ..spec });
        super::super::pod_blockers(&migration, &serde_json::from_value(pod).unwrap())
            .into_iter()
            .map(|blocker| blocker.field)
            .filter(|field| field == FIELD || field == "spec.inDoubt" || field.contains("Probe"))
            .collect()
    }

    #[test]
    fn memory_stays_behind_only_where_that_was_asked_for_and_can_be_kept() {
        let none = serde_json::json!({});
        let spec = || MigrationSpec { lane: Lane::Runtime, freeze_budget_seconds: 5, ..MigrationSpec::default() };
        assert_eq!(fields(spec(), Some("drover"), &none), [""; 0]);
        assert_eq!(fields(spec(), None, &none), [FIELD]);
        assert_eq!(fields(MigrationSpec { lane: Lane::Auto, ..spec() }, Some("drover"), &none), [FIELD]);
        assert_eq!(fields(MigrationSpec { keep_name: true, ..spec() }, Some("drover"), &none), [FIELD]);
        assert_eq!(fields(MigrationSpec { in_doubt: InDoubt::PreferDestination, ..spec() }, Some("drover"), &none), ["spec.inDoubt"]);
        let http = serde_json::json!({"livenessProbe": {"httpGet": {"port": 80}, "failureThreshold": 1000}});
        assert_eq!(fields(spec(), Some("drover"), &http), ["spec.containers[c].livenessProbe"], "however patient it is");
        let exec = serde_json::json!({"livenessProbe": {"exec": {"command": ["true"]}}});
        assert_eq!(fields(spec(), Some("drover"), &exec), [""; 0]);
    }
}
