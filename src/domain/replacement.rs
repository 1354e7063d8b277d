//! From the source pod to the waiting replacement.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::ResourceExt as _;

use super::{ids, keys, preflight::base_image};
use crate::api::Migration;

/// Annotations that speak of one migration only, or that the API server's other clients own; they are not carried over.
const NOT_CARRIED: [&str; 7] = [
    keys::REQUESTS,
    keys::LOCK,
    keys::CLAIM,
    keys::REPLACES,
    keys::MIGRATE_TO,
    keys::MIGRATE_TO_BARE,
    "kubectl.kubernetes.io/last-applied-configuration",
];

/// The waiting replacement of a pod, bound to the nodes that can restore it.
///
/// Everything that the restore compares is the source's own: mounts, security context, environment, service account. The images are no valid
/// references, so that sandbox, network and volumes come up and no container does (MEASURED.md 3). The host name stays the source's, since
/// programs remember it.
#[must_use]
pub fn build(source: &Pod, migration: &Migration, nodes: &[String]) -> Pod {
    let uid = migration.metadata.uid.clone().unwrap_or_default();
    let base_name = keys::base_name(source);
    let mut annotations: BTreeMap<String, String> = source.annotations().clone();
    annotations.retain(|key, _| !NOT_CARRIED.contains(&key.as_str()));
    annotations.insert(keys::REPLACES.into(), uid.clone());
    annotations.insert(keys::BASE_NAME.into(), base_name.clone());
    annotations.insert(keys::HOPS.into(), (keys::hops(source) + 1).to_string());
    annotations.insert(keys::ORIGINAL_IMAGES.into(), original_images(source));
    Pod {
        metadata: ObjectMeta {
            name: Some(keys::replacement_name(&base_name, &uid)),
            namespace: source.namespace(),
            labels: source.metadata.labels.clone(),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: source.spec.clone().map(|spec| waiting_spec(spec, &source.name_any(), nodes)),
        status: None,
    }
}

/// JSON object, container name → base image `name@digest`.
fn original_images(source: &Pod) -> String {
    let names = source.spec.iter().flat_map(|spec| &spec.containers).map(|c| &c.name);
    let images: BTreeMap<&String, String> = names.filter_map(|name| Some((name, base_image(source, name)?))).collect();
    serde_json::to_string(&images).unwrap_or_default()
}

fn waiting_spec(mut spec: PodSpec, source_name: &str, nodes: &[String]) -> PodSpec {
    spec.node_name = None;
    spec.scheduling_gates = None;
    if spec.hostname.is_none() && ids::is_dns_subdomain(source_name) && !source_name.contains('.') && source_name.len() <= 63 {
        spec.hostname = Some(source_name.to_owned());
    }
    for container in &mut spec.containers {
        container.image = Some(keys::WAITING_IMAGE.into());
        // With Never the kubelet would pull neither the checkpoint nor, after a crash, the base image.
        if container.image_pull_policy.as_deref() == Some("Never") {
            container.image_pull_policy = Some("IfNotPresent".into());
        }
    }
    let mut affinity = spec.affinity.unwrap_or_default();
    let mut node_affinity = affinity.node_affinity.unwrap_or_default();
    node_affinity.required_during_scheduling_ignored_during_execution =
        Some(bound_to(node_affinity.required_during_scheduling_ignored_during_execution.as_ref(), nodes));
    affinity.node_affinity = Some(NodeAffinity { ..node_affinity });
    spec.affinity = Some(affinity);
    spec
}

/// The pod's own required terms, each once for every node: terms are ORed, and `metadata.name` takes one value only.
fn bound_to(required: Option<&NodeSelector>, nodes: &[String]) -> NodeSelector {
    let own = required.map(|r| r.node_selector_terms.clone()).filter(|terms| !terms.is_empty()).unwrap_or_else(|| vec![NodeSelectorTerm::default()]);
    let node_selector_terms = nodes
        .iter()
        .flat_map(|node| own.iter().map(move |term| (node, term)))
        .map(|(node, term)| {
            let mut term = term.clone();
            // A term of an earlier hop names the node of that hop.
            let mut fields: Vec<_> = term.match_fields.take().unwrap_or_default().into_iter().filter(|f| f.key != "metadata.name").collect();
            fields.push(NodeSelectorRequirement { key: "metadata.name".into(), operator: "In".into(), values: Some(vec![node.clone()]) });
            term.match_fields = Some(fields);
            term
        })
        .collect::<Vec<_>>();
    NodeSelector { node_selector_terms: dedup(node_selector_terms) }
}

fn dedup(terms: Vec<NodeSelectorTerm>) -> Vec<NodeSelectorTerm> {
    terms.into_iter().fold(vec![], |mut kept, term| {
        if !kept.contains(&term) {
            kept.push(term);
        }
        kept
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "redis", "namespace": "d", "uid": "aaaa-bbbb", "labels": {"app": "redis"},
                "annotations": {keys::LOCK: "x", "keep": "me"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i", "imagePullPolicy": "Never"}], "serviceAccountName": "sa"},
            "status": {"phase": "Running", "containerStatuses": [{"name": "c", "image": "i", "ready": true, "restartCount": 0,
                "imageID": format!("reg/i@sha256:{}", "a".repeat(64)), "containerID": "containerd://abc", "state": {"running": {}}}]}
        }))
        .unwrap()
    }

    fn migration() -> Migration {
        let mut migration = Migration::new("m", crate::api::MigrationSpec::default());
        migration.metadata.uid = Some("5f1c22aa-0000-4000-8000-000000000000".into());
        migration
    }

    #[test]
    fn the_replacement_waits_elsewhere_under_a_name_of_its_own() {
        let pod = build(&source(), &migration(), &["n2".into()]);
        assert_eq!(pod.name_any(), "redis-5f1c22");
        let spec = pod.spec.clone().unwrap();
        assert_eq!(spec.node_name, None);
        assert_eq!(spec.hostname.as_deref(), Some("redis"));
        assert_eq!(spec.containers[0].image.as_deref(), Some(keys::WAITING_IMAGE));
        assert_eq!(spec.containers[0].image_pull_policy.as_deref(), Some("IfNotPresent"));
        assert_eq!(pod.annotations().get("keep").map(String::as_str), Some("me"));
        assert!(!pod.annotations().contains_key(keys::LOCK));
        assert!(pod.annotations()[keys::ORIGINAL_IMAGES].contains("reg/i@sha256:"));
        assert_eq!(pod.labels().get("app").map(String::as_str), Some("redis"));
    }

    #[test]
    fn a_second_hop_keeps_base_name_images_and_host_name() {
        let mut first = build(&source(), &migration(), &["n2".into()]);
        first.spec.as_mut().unwrap().node_name = Some("n2".into());
        let mut again = migration();
        again.metadata.uid = Some("00ff00aa-0000-4000-8000-000000000000".into());
        let second = build(&first, &again, &["n1".into()]);
        assert_eq!(second.name_any(), "redis-00ff00");
        assert_eq!(second.annotations()[keys::HOPS], "2");
        assert_eq!(second.annotations()[keys::ORIGINAL_IMAGES], first.annotations()[keys::ORIGINAL_IMAGES]);
        let spec = second.spec.unwrap();
        assert_eq!(spec.hostname.as_deref(), Some("redis"));
        let required = spec.affinity.unwrap().node_affinity.unwrap().required_during_scheduling_ignored_during_execution.unwrap();
        assert_eq!(required.node_selector_terms.len(), 1);
        let fields = required.node_selector_terms[0].match_fields.clone().unwrap();
        assert_eq!((fields.len(), fields[0].values.clone()), (1, Some(vec!["n1".to_owned()])));
    }

    #[test]
    fn own_affinity_terms_hold_for_each_capable_node() {
        let own: NodeSelector =
            serde_json::from_value(serde_json::json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]}))
                .unwrap();
        let bound = bound_to(Some(&own), &["n2".into(), "n3".into()]);
        assert_eq!(bound.node_selector_terms.len(), 2);
        assert!(bound.node_selector_terms.iter().all(|t| t.match_expressions.as_ref().is_some_and(|e| e[0].key == "disk")));
    }
}
