//! Pods of ReplicaSets and Jobs: what the set selects by, and the change of its pod.

use std::collections::BTreeMap;

use json_patch::jsonptr::PointerBuf;
use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, ReplicaSet},
        batch::v1::Job,
        core::v1::{Pod, ReplicationController},
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::{Value, json};

use super::{KubeCluster, found, keys, port_error, replacement_of, source_of};
use crate::{
    api::Migration,
    domain::owner::{Adopter, Kind},
    ports::{Failure, PortError, PortResult},
};

impl KubeCluster {
    pub(super) async fn selector_of(&self, namespace: &str, kind: Kind, name: &str, uid: &str) -> PortResult<BTreeMap<String, String>> {
        let client = self.client.clone();
        let selector = if kind == Kind::Job {
            let job = found(Api::<Job>::namespaced(client, namespace).get(name).await, "read the pod's Job")?;
            job.filter(|job| job.metadata.uid.as_deref() == Some(uid)).and_then(|job| job.spec?.selector)
        } else {
            let set = found(Api::<ReplicaSet>::namespaced(client, namespace).get(name).await, "read the pod's ReplicaSet")?;
            set.filter(|set| set.metadata.uid.as_deref() == Some(uid)).map(|set| set.spec.selector)
        };
        Ok(selector.and_then(|selector| selector.match_labels).unwrap_or_default())
    }

    pub(super) async fn adopters_in(&self, namespace: &str) -> PortResult<Vec<Adopter>> {
        let every = ListParams::default();
        let adopter = |kind, metadata: ObjectMeta, selector| {
            let goes = metadata.deletion_timestamp.is_some();
            let (name, uid) = (metadata.name.unwrap_or_default(), metadata.uid.unwrap_or_default());
            (!goes).then_some(Adopter { kind, name, uid, selector })
        };
        let sets = Api::<ReplicaSet>::namespaced(self.client.clone(), namespace).list(&every).await;
        let sets = sets.map_err(|e| port_error("list the ReplicaSets", &e))?.items;
        let mut adopters: Vec<_> = sets.into_iter().filter_map(|set| adopter("ReplicaSet", set.metadata, set.spec.selector)).collect();
        let daemons = Api::<DaemonSet>::namespaced(self.client.clone(), namespace).list(&every).await;
        let daemons = daemons.map_err(|e| port_error("list the DaemonSets", &e))?.items;
        adopters.extend(daemons.into_iter().filter_map(|set| adopter("DaemonSet", set.metadata, set.spec.selector)));
        let controllers = Api::<ReplicationController>::namespaced(self.client.clone(), namespace).list(&every).await;
        let controllers = controllers.map_err(|e| port_error("list the ReplicationControllers", &e))?.items;
        let by_labels = |labels| LabelSelector { match_labels: Some(labels), ..LabelSelector::default() };
        adopters.extend(controllers.into_iter().filter_map(|it| adopter("ReplicationController", it.metadata, by_labels(it.spec?.selector?))));
        Ok(adopters)
    }

    pub(super) async fn release_source(&self, migration: &Migration, uid: &str) -> PortResult<()> {
        let source = source_of(migration)?;
        let mut patch = vec![json!({"op": "test", "path": "/metadata/uid", "value": uid})];
        let labels = source.owner.iter().flat_map(|owner| owner.tied_by.keys());
        patch.extend(labels.map(|key| json!({"op": "remove", "path": label_path(key)})));
        self.patch_pod(&self.pods(migration), &source.name, "release the source from its Job", patch.into()).await.map(drop)
    }

    /// One source of a ReplicaSet at a time. Of two that are equally cheap the ReplicaSet may take the one whose copy it does not have yet while the manager
    /// deletes the other: then it is one short, makes a pod of its own, and has one too many again when that copy comes, which may be the one it takes.
    pub(super) async fn mark_surplus(&self, migration: &Migration, uid: &str) -> PortResult<()> {
        let source = source_of(migration)?;
        let owner = source.owner.clone().unwrap_or_default();
        let _one_at_a_time = self.marking.lock().await;
        let tied: Vec<_> = owner.tied_by.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let pods = self.pods(migration).list(&ListParams::default().labels(&tied.join(","))).await;
        let pods = pods.map_err(|e| port_error("list the pods of the source's ReplicaSet", &e))?;
        if let Some(other) = pods.iter().find(|pod| pod.metadata.uid.as_deref() != Some(uid) && is_surplus(pod)) {
            let (other, set) = (other.name_any(), owner.name);
            return Err(PortError::transient(format!("the copy of pod {other} is being handed over to ReplicaSet {set}; this one is next")));
        }
        // It has its lock there, so that it has annotations.
        let cost = PointerBuf::from_tokens(["metadata", "annotations", keys::DELETION_COST]).to_string();
        let patch = json!([{"op": "test", "path": "/metadata/uid", "value": uid}, {"op": "add", "path": cost, "value": keys::CHEAPEST}]);
        self.patch_pod(&self.pods(migration), &source.name, "mark the source as the one too many", patch).await.map(drop)
    }

    pub(super) async fn hand_over(&self, migration: &Migration, uid: &str, ready: bool) -> PortResult<()> {
        let replacement = replacement_of(migration)?;
        let Some(pod) = found(self.pods(migration).get(&replacement.name).await, "read the replacement")? else {
            return Err(PortError::new(Failure::Conflict, "the replacement is gone"));
        };
        let owner = source_of(migration)?.owner.clone().unwrap_or_default();
        let patch = hand_over_patch(&pod, uid, &owner.tied_by, ready)?;
        self.patch_pod(&self.pods(migration), &replacement.name, "hand the copy over to its ReplicaSet", patch).await.map(drop)
    }
}

/// Whether a pod is the source of a migration that is handing its copy over, and has not gone yet.
fn is_surplus(pod: &Pod) -> bool {
    let annotation = |key| pod.annotations().get(key).map(String::as_str);
    pod.metadata.deletion_timestamp.is_none() && annotation(keys::DELETION_COST) == Some(keys::CHEAPEST) && annotation(keys::LOCK).is_some()
}

/// Adds the labels; where that matters only while the pod is `ready`, since a ReplicaSet with one too many takes one that is not. It may have been when
/// this was decided, and not be any more.
fn hand_over_patch(pod: &Pod, uid: &str, labels: &BTreeMap<String, String>, ready: bool) -> PortResult<Value> {
    let mut operations = vec![json!({"op": "test", "path": "/metadata/uid", "value": uid})];
    if ready {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let at = conditions.iter().position(|c| c.type_ == "Ready" && c.status == "True");
        let at = at.ok_or_else(|| PortError::new(Failure::Conflict, "the copy is not Ready any more"))?;
        operations.push(json!({"op": "test", "path": format!("/status/conditions/{at}/type"), "value": "Ready"}));
        operations.push(json!({"op": "test", "path": format!("/status/conditions/{at}/status"), "value": "True"}));
    }
    let mut all = pod.labels().clone();
    all.extend(labels.clone());
    if pod.labels().is_empty() {
        operations.push(json!({"op": "add", "path": "/metadata/labels", "value": all}));
    } else {
        operations.extend(labels.iter().map(|(key, value)| json!({"op": "add", "path": label_path(key), "value": value})));
    }
    Ok(operations.into())
}

fn label_path(key: &str) -> String {
    PointerBuf::from_tokens(["metadata", "labels", key]).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_source_that_has_not_gone_is_waited_for() {
        let pod = |annotations: Value, goes: Option<&str>| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "w", "annotations": annotations, "deletionTimestamp": goes}})).unwrap()
        };
        let marked = json!({keys::DELETION_COST: keys::CHEAPEST, keys::LOCK: "m"});
        assert!(is_surplus(&pod(marked.clone(), None)));
        assert!(!is_surplus(&pod(marked, Some("2026-11-28T12:00:00Z"))));
        assert!(!is_surplus(&pod(json!({keys::LOCK: "m"}), None)));
        assert!(!is_surplus(&pod(json!({keys::DELETION_COST: keys::CHEAPEST}), None)), "a user may say that too");
    }

    #[test]
    fn a_copy_is_handed_over_only_as_ready_as_it_was_seen() {
        let pod = |labels: Value, ready: &str| -> Pod {
            let conditions = json!([{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": ready}]);
            serde_json::from_value(json!({"metadata": {"name": "w", "labels": labels}, "status": {"conditions": conditions}})).unwrap()
        };
        let tie = BTreeMap::from([("a.b/c".to_owned(), "7".to_owned())]);
        let patch = hand_over_patch(&pod(json!({"app": "w"}), "True"), "u", &tie, true).unwrap();
        assert_eq!(patch[1]["path"], "/status/conditions/1/type");
        assert_eq!(patch[3], json!({"op": "add", "path": "/metadata/labels/a.b~1c", "value": "7"}));
        let refused = hand_over_patch(&pod(json!({"app": "w"}), "False"), "u", &tie, true).unwrap_err();
        assert_eq!(refused.kind, Failure::Conflict, "it was when that was decided");
        let patch = hand_over_patch(&pod(json!({}), "False"), "u", &tie, false).unwrap();
        assert_eq!(patch.as_array().unwrap().len(), 2);
        assert_eq!(patch[1]["value"], json!({"a.b/c": "7"}));
    }
}
