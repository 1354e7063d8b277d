//! From the source pod to the pods that take its place: the waiting replacement, or the placeholder of a same-name one; after the source is gone, from
//! its template, the same-name replacement and the fallback.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration, Volume},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::ResourceExt as _;

use super::{containers, ids, keys, lanes, preflight::base_image};
use crate::api::{Migration, MigrationStatus};

/// Annotations that speak of one migration only, or that the API server's other clients own; they are not carried over.
const NOT_CARRIED: [&str; 9] = [
    keys::FALLBACK,
    keys::REQUESTS,
    keys::LOCK,
    keys::CLAIM,
    keys::REPLACES,
    keys::REPLACES_IN,
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
    let name = keys::replacement_name(&keys::base_name(source), &uid_of(migration));
    let mut pod = waiting(source, name, migration);
    if let (Some(namespace), Some(own)) = (migration.elsewhere(), migration.metadata.namespace.clone()) {
        pod.metadata.namespace = Some(namespace.to_owned());
        pod.annotations_mut().insert(keys::REPLACES_IN.into(), own);
    }
    // Its ReplicaSet, which has the source, must not count it yet.
    let owner = migration.status.as_ref().and_then(|status| status.source.as_ref()?.owner.as_ref());
    for key in owner.iter().flat_map(|owner| owner.tied_by.keys()) {
        pod.labels_mut().remove(key);
    }
    if let Some(spec) = &mut pod.spec {
        keep_host_name(spec, &source.name_any());
        bind(spec, nodes);
        if migration.spec.keep_name {
            leave_claims(spec);
        }
    }
    pod
}

/// A placeholder has no claims: their volumes may be on one node only, where the source has them.
fn leave_claims(spec: &mut PodSpec) {
    let Some(volumes) = &mut spec.volumes else { return };
    let (claims, others) = std::mem::take(volumes).into_iter().partition(|volume| volume.persistent_volume_claim.is_some());
    *volumes = others;
    let claims: Vec<Volume> = claims;
    for container in containers::all_mut(spec) {
        container.volume_mounts.iter_mut().for_each(|mounts| mounts.retain(|mount| !claims.iter().any(|volume| volume.name == mount.name)));
    }
}

/// What of a source outlives its deletion: everything that another pod in its place is made from.
///
/// The base images, which only the source's status tells, stand in its annotations.
#[must_use]
pub fn template(source: &Pod) -> Pod {
    let mut annotations = carried(source);
    annotations.insert(keys::ORIGINAL_IMAGES.into(), original_images(source));
    let spec = source.spec.clone().map(|spec| PodSpec { node_name: None, scheduling_gates: None, ..spec });
    Pod { metadata: metadata(source, source.name_any(), annotations), spec, status: None }
}

/// The same-name replacement, bound to the node that its placeholder was placed on. It carries the source's lock on, since whoever asks for another
/// migration asks by the name (R11). Its init containers need not wait: what stands in for their images is in that node's registry by now.
#[must_use]
pub fn same_name(template: &Pod, migration: &Migration, node: &str) -> Pod {
    let mut pod = waiting(template, template.name_any(), migration);
    pod.annotations_mut().insert(keys::LOCK.into(), uid_of(migration));
    if let Some(spec) = &mut pod.spec {
        bind(spec, &[node.to_owned()]);
        let images = init_images(migration);
        for container in spec.init_containers.iter_mut().flatten() {
            container.image = images.get(&container.name).cloned().or(container.image.take());
        }
    }
    pod
}

/// What the init containers of a replacement start from: container name → image, by tag.
#[must_use]
pub fn init_images(migration: &Migration) -> BTreeMap<String, String> {
    let Some(status) = &migration.status else { return BTreeMap::new() };
    let repository = status.destination.as_ref().map(|destination| destination.repository.as_str()).unwrap_or_default();
    let recorded = status.source.iter().flat_map(|source| &source.init_containers);
    recorded.map(|container| (container.name.clone(), keys::checkpoint_image(repository, &container.name))).collect()
}

/// The pod that goes on from the kept archive, on the node where it was, which may be cordoned by now.
#[must_use]
pub fn fallback(template: &Pod, migration: &Migration, node: &str) -> Pod {
    let mut annotations = carried(template);
    annotations.insert(keys::FALLBACK.into(), uid_of(migration));
    annotations.insert(keys::LOCK.into(), uid_of(migration));
    let mut spec = waiting_spec(template.spec.clone().unwrap_or_default(), migration);
    bind(&mut spec, &[node.to_owned()]);
    let tolerations = spec.tolerations.get_or_insert_default();
    if !tolerations.iter().any(|t| t.key.as_deref() == Some(keys::CORDONED)) {
        let (key, effect) = (Some(keys::CORDONED.to_owned()), Some("NoSchedule".to_owned()));
        tolerations.push(Toleration { key, operator: Some("Exists".into()), effect, ..Toleration::default() });
    }
    Pod { metadata: metadata(template, template.name_any(), annotations), spec: Some(spec), status: None }
}

/// What the containers of a replacement are restored from: container name → image, by tag.
#[must_use]
pub fn checkpoint_images(migration: &Migration) -> BTreeMap<String, String> {
    let checkpoints = migration.status.iter().flat_map(|status| &status.containers);
    checkpoints.map(|checkpoint| (checkpoint.name.clone(), checkpoint.image.clone())).collect()
}

fn waiting(source: &Pod, name: String, migration: &Migration) -> Pod {
    let mut annotations = carried(source);
    annotations.insert(keys::REPLACES.into(), uid_of(migration));
    annotations.insert(keys::BASE_NAME.into(), keys::base_name(source));
    annotations.insert(keys::HOPS.into(), (keys::hops(source) + 1).to_string());
    annotations.insert(keys::ORIGINAL_IMAGES.into(), original_images(source));
    Pod { metadata: metadata(source, name, annotations), spec: source.spec.clone().map(|spec| waiting_spec(spec, migration)), status: None }
}

fn metadata(source: &Pod, name: String, annotations: BTreeMap<String, String>) -> ObjectMeta {
    let mut labels = source.metadata.labels.clone();
    // Who asked for the eviction meant the pod where it was.
    if let Some(labels) = &mut labels {
        labels.remove(keys::EVICTION_REQUESTED);
    }
    ObjectMeta { name: Some(name), namespace: source.namespace(), labels, annotations: Some(annotations), ..ObjectMeta::default() }
}

fn carried(source: &Pod) -> BTreeMap<String, String> {
    let mut annotations = source.annotations().clone();
    annotations.retain(|key, _| !NOT_CARRIED.contains(&key.as_str()));
    annotations
}

fn uid_of(migration: &Migration) -> String {
    migration.metadata.uid.clone().unwrap_or_default()
}

/// JSON object, container name → base image `name@digest`.
fn original_images(source: &Pod) -> String {
    let names = source.spec.iter().flat_map(containers::all).map(|c| &c.name);
    let images: BTreeMap<&String, String> = names.filter_map(|name| Some((name, base_image(source, name)?))).collect();
    serde_json::to_string(&images).unwrap_or_default()
}

fn waiting_spec(mut spec: PodSpec, migration: &Migration) -> PodSpec {
    if migration.status.as_ref().is_some_and(MigrationStatus::is_by_runtime) {
        spec.runtime_class_name = Some(lanes::RUNTIME_CLASS.to_owned());
    }
    spec.node_name = None;
    spec.scheduling_gates = None;
    for container in containers::all_mut(&mut spec) {
        container.image = Some(keys::WAITING_IMAGE.into());
        // With Never the kubelet would pull neither the checkpoint nor, after a crash, the base image.
        if container.image_pull_policy.as_deref() == Some("Never") {
            container.image_pull_policy = Some("IfNotPresent".into());
        }
    }
    spec
}

fn keep_host_name(spec: &mut PodSpec, source_name: &str) {
    if spec.hostname.is_none() && ids::is_dns_subdomain(source_name) && !source_name.contains('.') && source_name.len() <= 63 {
        spec.hostname = Some(source_name.to_owned());
    }
}

fn bind(spec: &mut PodSpec, nodes: &[String]) {
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let node_affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    let required = &mut node_affinity.required_during_scheduling_ignored_during_execution;
    *required = Some(bound_to(required.as_ref(), nodes));
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
    fn the_runtime_lane_has_a_runtime_class() {
        let class = |pod: Pod| pod.spec.unwrap().runtime_class_name;
        assert_eq!(class(build(&source(), &migration(), &[])), None);
        let mut migration = migration();
        migration.status = Some(MigrationStatus { lane: Some(crate::api::migration::Lane::Runtime), ..MigrationStatus::default() });
        let kept = template(&source());
        for pod in [build(&source(), &migration, &[]), same_name(&kept, &migration, "n2"), fallback(&kept, &migration, "n1")] {
            assert_eq!(class(pod).as_deref(), Some("drover"));
        }
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

    #[test]
    fn what_comes_after_the_source_is_made_from_its_template() {
        let kept = template(&source());
        assert!(kept.status.is_none() && !kept.annotations().contains_key(keys::LOCK));
        let moved = same_name(&kept, &migration(), "n2");
        assert_eq!((moved.name_any(), keys::hops(&moved)), ("redis".to_owned(), 1));
        assert_eq!(moved.annotations().get(keys::LOCK), migration().metadata.uid.as_ref());
        assert_eq!(moved.annotations()[keys::ORIGINAL_IMAGES], build(&source(), &migration(), &[]).annotations()[keys::ORIGINAL_IMAGES]);
        assert_eq!(moved.spec.unwrap().containers[0].image.as_deref(), Some(keys::WAITING_IMAGE));
    }

    #[test]
    fn a_placeholder_leaves_the_volumes_of_claims_to_the_source() {
        let mut pod = source();
        let spec = pod.spec.as_mut().unwrap();
        spec.volumes = serde_json::from_value(
            serde_json::json!([{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "own", "emptyDir": {}}]),
        )
        .unwrap();
        spec.containers[0].volume_mounts =
            serde_json::from_value(serde_json::json!([{"name": "data", "mountPath": "/data"}, {"name": "own", "mountPath": "/own"}])).unwrap();
        let mut migration = migration();
        let names = |pod: &Pod| {
            let spec = pod.spec.as_ref().unwrap();
            let (volumes, mounts) = (spec.volumes.as_ref().unwrap(), spec.containers[0].volume_mounts.as_ref().unwrap());
            volumes.iter().map(|v| v.name.clone()).chain(mounts.iter().map(|m| m.name.clone())).collect::<Vec<_>>()
        };
        assert_eq!(names(&build(&pod, &migration, &["n2".into()])), ["data", "own", "data", "own"]);
        migration.spec.keep_name = true;
        assert_eq!(names(&build(&pod, &migration, &["n2".into()])), ["own", "own"]);
        assert_eq!(names(&same_name(&template(&pod), &migration, "n2")), ["data", "own", "data", "own"]);
    }

    #[test]
    fn init_containers_wait_until_there_is_something_to_stand_in_for_them() {
        let mut pod = source();
        pod.spec.as_mut().unwrap().init_containers = serde_json::from_value(serde_json::json!([{"name": "init", "image": "j"}])).unwrap();
        let mut migration = migration();
        migration.status = serde_json::from_value(serde_json::json!({"phase": "SourceDeleting",
            "source": {"name": "redis", "uid": "u", "nodeName": "n1", "initContainers": [{"name": "init", "image": "j"}]},
            "destination": {"nodeName": "n2", "repository": "drover/00"}}))
        .unwrap();
        let image = |pod: &Pod| pod.spec.as_ref().unwrap().init_containers.as_ref().unwrap()[0].image.clone();
        assert_eq!(image(&build(&pod, &migration, &["n2".into()])).as_deref(), Some(keys::WAITING_IMAGE));
        assert_eq!(image(&fallback(&template(&pod), &migration, "n1")).as_deref(), Some(keys::WAITING_IMAGE));
        assert_eq!(image(&same_name(&template(&pod), &migration, "n2")), Some(keys::checkpoint_image("drover/00", "init")));
    }

    #[test]
    fn the_fallback_stays_where_the_pod_was() {
        let pod = fallback(&template(&source()), &migration(), "n1");
        assert_eq!((pod.name_any(), keys::hops(&pod)), ("redis".to_owned(), 0), "it has not moved");
        assert!(!pod.annotations().contains_key(keys::REPLACES) && pod.annotations().contains_key(keys::FALLBACK));
        let spec = pod.spec.unwrap();
        assert_eq!(spec.tolerations.unwrap()[0].key.as_deref(), Some(keys::CORDONED));
        let terms = spec.affinity.unwrap().node_affinity.unwrap().required_during_scheduling_ignored_during_execution.unwrap().node_selector_terms;
        assert_eq!((terms.len(), terms[0].match_fields.as_ref().unwrap()[0].values.clone()), (1, Some(vec!["n1".to_owned()])));
    }
}
