//! What a support bundle holds of the cluster's objects: what tells how migrations went, and nothing that may be a secret.
//!
//! Of pods and nodes only the fields below are taken, so that a field which nobody has thought of yet stays out.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::keys;

/// Of the metadata of every object.
const METADATA: [&str; 9] =
    ["name", "namespace", "uid", "generation", "resourceVersion", "creationTimestamp", "deletionTimestamp", "finalizers", "ownerReferences"];
/// Of a pod's spec, besides its containers and volumes.
const POD: [&str; 23] = [
    "activeDeadlineSeconds",
    "affinity",
    "enableServiceLinks",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "hostUsers",
    "nodeName",
    "nodeSelector",
    "os",
    "overhead",
    "priority",
    "priorityClassName",
    "readinessGates",
    "restartPolicy",
    "runtimeClassName",
    "schedulerName",
    "schedulingGates",
    "securityContext",
    "shareProcessNamespace",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
];
/// Of a container; not its command, its arguments, its environment, its probes and its hooks.
const CONTAINER: [&str; 10] =
    ["name", "image", "imagePullPolicy", "ports", "resources", "restartPolicy", "securityContext", "stdin", "tty", "volumeMounts"];
/// Of a node's status.
const NODE: [&str; 4] = ["conditions", "nodeInfo", "capacity", "allocatable"];
/// Where a migration names its pods.
const PODS: [&str; 4] = ["source", "replacement", "placeholder", "fallback"];
/// By which labels and annotations a pod names its migration.
const MARKS: [&str; 4] = [keys::LOCK, keys::CLAIM, keys::REPLACES, keys::FALLBACK];

/// The Migrations of a bundle, and what belongs to them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Subjects {
    /// UIDs of the Migrations and of their pods.
    pub uids: BTreeSet<String>,
    /// The namespaces that they are in.
    pub namespaces: BTreeSet<String>,
    /// Their nodes.
    pub nodes: BTreeSet<String>,
}

impl Subjects {
    /// Those of these Migrations, as the API server has them.
    #[must_use]
    pub fn of(migrations: &[Value]) -> Self {
        let mut found = Self::default();
        for migration in migrations {
            let text = |path: &str| migration.pointer(path).and_then(Value::as_str).map(str::to_owned);
            found.uids.extend(text("/metadata/uid"));
            found.uids.extend(PODS.iter().filter_map(|pod| text(&format!("/status/{pod}/uid"))));
            found.namespaces.extend(text("/metadata/namespace"));
            found.namespaces.extend(text("/spec/destinationNamespace"));
            found.nodes.extend(text("/status/source/nodeName"));
            found.nodes.extend(text("/status/destination/nodeName"));
        }
        found
    }

    /// Whether a pod is one that they move or have made.
    #[must_use]
    pub fn have_pod(&self, pod: &Value) -> bool {
        let named = |kind: &str, mark: &str| pod["metadata"][kind][mark].as_str().is_some_and(|uid| self.uids.contains(uid));
        self.has(&pod["metadata"]["uid"]) || MARKS.iter().any(|mark| named("annotations", mark) || named("labels", mark))
    }

    /// Whether an Attestation is about one of them.
    #[must_use]
    pub fn have_attestation(&self, attestation: &Value) -> bool {
        self.has(&attestation["metadata"]["labels"][keys::MIGRATION_UID])
    }

    /// Whether an Event is about one of them, or about one of their pods.
    #[must_use]
    pub fn have_event(&self, event: &Value) -> bool {
        self.has(&event["involvedObject"]["uid"])
    }

    fn has(&self, uid: &Value) -> bool {
        uid.as_str().is_some_and(|uid| self.uids.contains(uid))
    }
}

/// Whether a Migration is this one, or one of those that it has made for several pods.
#[must_use]
pub fn is_of(migration: &Value, name: &str, uid: Option<&str>) -> bool {
    let parent = migration["metadata"]["labels"][keys::PARENT_UID].as_str();
    migration["metadata"]["name"] == name || (uid.is_some() && parent == uid)
}

/// Whether an Event is about an object of Drover's.
#[must_use]
pub fn is_about_ours(event: &Value) -> bool {
    event["involvedObject"]["apiVersion"].as_str().is_some_and(|version| version.starts_with("drover.dev/"))
}

/// An object of Drover's own or an Event: all but what others have written on it.
#[must_use]
pub fn own(mut object: Value) -> Value {
    object["metadata"] = metadata(&object["metadata"]);
    object
}

/// A pod, without what its containers are given and what they are told to run.
#[must_use]
pub fn pod(pod: &Value) -> Value {
    let from = &pod["spec"];
    let mut spec = only(from, &POD);
    for kind in ["containers", "initContainers", "ephemeralContainers"] {
        if let Some(containers) = from[kind].as_array() {
            spec[kind] = containers.iter().map(|container| only(container, &CONTAINER)).collect();
        }
    }
    if let Some(volumes) = from["volumes"].as_array() {
        spec["volumes"] = volumes.iter().map(volume).collect();
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata(&pod["metadata"]), "spec": spec, "status": pod["status"]})
}

/// Its name and what kind of volume it is; whose claim it is, and nothing else of what its driver is told.
fn volume(volume: &Value) -> Value {
    let kinds = volume.as_object().into_iter().flatten().filter(|(key, _)| *key != "name");
    let mut found: Map<String, Value> = kinds.map(|(kind, _)| (kind.clone(), json!({}))).collect();
    if let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() {
        found.insert("persistentVolumeClaim".into(), json!({"claimName": claim}));
    }
    found.insert("name".into(), volume["name"].clone());
    Value::Object(found)
}

/// A node: whether it is well, what runs on it and how much room it has.
#[must_use]
pub fn node(node: &Value) -> Value {
    let (spec, status) = (only(&node["spec"], &["taints", "unschedulable"]), only(&node["status"], &NODE));
    json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata(&node["metadata"]), "spec": spec, "status": status})
}

/// Labels stay, since selectors go by them; of the annotations only Drover's.
fn metadata(metadata: &Value) -> Value {
    let mut found = only(metadata, &METADATA);
    if !metadata["labels"].is_null() {
        found["labels"] = metadata["labels"].clone();
    }
    let annotations = metadata["annotations"].as_object().into_iter().flatten();
    let ours: Map<String, Value> = annotations.filter(|(key, _)| is_ours(key)).map(|(key, value)| (key.clone(), value.clone())).collect();
    if !ours.is_empty() {
        found["annotations"] = Value::Object(ours);
    }
    found
}

fn is_ours(key: &str) -> bool {
    key.starts_with("drover.dev/") || key == keys::MIGRATE_TO_BARE
}

fn only(object: &Value, fields: &[&str]) -> Value {
    let taken = fields.iter().filter_map(|field| Some(((*field).to_owned(), object.get(field)?.clone())));
    Value::Object(taken.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "hunter2";

    #[test]
    fn nothing_that_a_container_is_given_or_told_to_run_is_in_a_pod() {
        let container = json!({"name": "c", "image": "redis", "tty": true,
            "command": ["sh", SECRET], "args": [SECRET], "env": [{"name": "PASSWORD", "value": SECRET}], "envFrom": [{"prefix": SECRET}],
            "livenessProbe": {"exec": {"command": [SECRET]}, "httpGet": {"httpHeaders": [{"name": "Authorization", "value": SECRET}]}},
            "lifecycle": {"preStop": {"exec": {"command": [SECRET]}}}, "ofTomorrow": SECRET});
        let whole = json!({
            "metadata": {"name": "p", "uid": "u", "labels": {"app": "web"}, "managedFields": [{"manager": SECRET}],
                "annotations": {keys::HOPS: "2", "vault.example/token": SECRET, "kubectl.kubernetes.io/last-applied-configuration": SECRET}},
            "spec": {"nodeName": "n1", "ofTomorrow": SECRET, "containers": [container], "initContainers": [container], "ephemeralContainers": [container],
                "volumes": [{"name": "v", "csi": {"driver": "d", "volumeAttributes": {"password": SECRET}}},
                    {"name": "w", "persistentVolumeClaim": {"claimName": "data"}}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1"}});
        let found = pod(&whole);
        assert!(!found.to_string().contains(SECRET), "{found}");
        let kept = json!({"name": "c", "image": "redis", "tty": true});
        assert_eq!(found["spec"]["containers"], json!([kept]));
        assert_eq!(found["spec"]["initContainers"], found["spec"]["ephemeralContainers"]);
        assert_eq!(found["spec"]["volumes"], json!([{"name": "v", "csi": {}}, {"name": "w", "persistentVolumeClaim": {"claimName": "data"}}]));
        assert_eq!(found["metadata"], json!({"name": "p", "uid": "u", "labels": {"app": "web"}, "annotations": {keys::HOPS: "2"}}));
        assert_eq!((&found["spec"]["nodeName"], &found["status"]), (&json!("n1"), &whole["status"]));
    }

    #[test]
    fn of_a_node_there_is_what_it_can_do_and_of_ours_all_but_foreign_annotations() {
        let found =
            node(&json!({"metadata": {"name": "n1", "annotations": {"flannel/key": SECRET}}, "spec": {"providerID": SECRET, "unschedulable": true},
            "status": {"nodeInfo": {"kernelVersion": "6.18"}, "images": [SECRET], "addresses": [{"address": SECRET}]}}));
        assert!(!found.to_string().contains(SECRET), "{found}");
        assert_eq!((&found["spec"]["unschedulable"], &found["status"]["nodeInfo"]["kernelVersion"]), (&json!(true), &json!("6.18")));
        let found = own(
            json!({"metadata": {"name": "m", "managedFields": [], "annotations": {"x": SECRET}}, "spec": {"podName": "p"}, "status": {"any": 1}}),
        );
        assert_eq!(found, json!({"metadata": {"name": "m"}, "spec": {"podName": "p"}, "status": {"any": 1}}));
    }

    #[test]
    fn what_belongs_to_a_migration_is_known_by_its_uids() {
        let migration = json!({"metadata": {"name": "m", "namespace": "shop", "uid": "m1"}, "spec": {"destinationNamespace": "other"},
            "status": {"source": {"uid": "s1", "nodeName": "n1"}, "replacement": {"uid": "r1"}, "destination": {"nodeName": "n2"}}});
        let subjects = Subjects::of(std::slice::from_ref(&migration));
        let set = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(subjects, Subjects { uids: set(&["m1", "s1", "r1"]), namespaces: set(&["shop", "other"]), nodes: set(&["n1", "n2"]) });
        for (metadata, expected) in [
            (json!({"uid": "s1"}), true),
            (json!({"uid": "x", "annotations": {keys::CLAIM: "m1"}}), true),
            (json!({"uid": "x", "labels": {keys::REPLACES: "m1"}}), true),
            (json!({"uid": "x", "annotations": {keys::CLAIM: "m2"}}), false),
            (json!({"annotations": {"other": "m1"}}), false),
        ] {
            assert_eq!(subjects.have_pod(&json!({"metadata": metadata})), expected, "{metadata}");
        }
        assert!(subjects.have_event(&json!({"involvedObject": {"uid": "r1"}})) && !subjects.have_event(&json!({"involvedObject": {}})));
        let about = |version: &str| is_about_ours(&json!({"involvedObject": {"apiVersion": version}}));
        assert!(about("drover.dev/v1alpha1") && !about("v1") && !is_about_ours(&json!({})));
        assert!(subjects.have_attestation(&json!({"metadata": {"labels": {keys::MIGRATION_UID: "m1"}}})));
        assert!(!subjects.have_attestation(&json!({"metadata": {}})));
        let child = json!({"metadata": {"name": "m-1", "labels": {keys::PARENT_UID: "m1"}}});
        assert!(is_of(&migration, "m", None) && is_of(&child, "m", Some("m1")) && !is_of(&child, "m", None) && !is_of(&child, "x", Some("m2")));
    }
}
