//! Persistent volumes: which of them can be where the pod goes, and when.
//!
//! A volume that many nodes may use at once is mounted anew, like a ConfigMap. One that a single node may use must leave the source first; that is so only for
//! a pod that keeps its name: its source is deleted, unmounted and detached before its replacement is made (R13), and its placeholder has no claims.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::{
    ResourceExt,
    core::{Expression, SelectorExt as _},
};

use super::Blocker;
use crate::api::Migration;

/// What preflight knows of a claim and its volume.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClaimView {
    /// Name of the bound volume; empty where none is.
    pub volume: String,
    /// Several nodes may use it at once (`ReadWriteMany`, `ReadOnlyMany`).
    pub many_nodes: bool,
    /// The nodes that can use the volume; every one where there is none.
    pub node_affinity: Option<NodeSelector>,
    /// A folder of one node, and nothing says which nodes have the same.
    pub node_local: bool,
}

impl ClaimView {
    /// A claim with the volume that it is bound to.
    #[must_use]
    pub fn new(claim: &PersistentVolumeClaim, volume: Option<&PersistentVolume>) -> Self {
        let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
        let spec = volume.and_then(|volume| volume.spec.as_ref());
        let node_affinity = spec.and_then(|spec| spec.node_affinity.as_ref()?.required.clone());
        Self {
            volume: volume.map(ResourceExt::name_any).unwrap_or_default(),
            many_nodes: modes.iter().any(|mode| mode == "ReadWriteMany" || mode == "ReadOnlyMany"),
            node_local: node_affinity.is_none() && spec.is_some_and(|spec| spec.host_path.is_some() || spec.local.is_some()),
            node_affinity,
        }
    }

    /// Why a node cannot use the volume.
    pub(super) fn blocker(&self, claim: &str, node: &str, labels: &BTreeMap<String, String>) -> Option<String> {
        let terms = &self.node_affinity.as_ref()?.node_selector_terms;
        let fits = terms.iter().any(|term| {
            let own = BTreeMap::from([("metadata.name".to_owned(), node.to_owned())]);
            let (by_labels, by_fields) = (term.match_expressions.iter().flatten(), term.match_fields.iter().flatten());
            by_labels.clone().chain(by_fields.clone()).next().is_some()
                && by_labels.into_iter().all(|wanted| matches(wanted, labels))
                && by_fields.into_iter().all(|wanted| matches(wanted, &own))
        });
        (!fits).then(|| format!("cannot use volume {} of claim {claim} (its node affinity)", self.volume))
    }
}

/// What cannot be compared does not match.
fn matches(wanted: &NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let (key, values) = (wanted.key.clone(), wanted.values.iter().flatten().cloned().collect());
    let number = |text: Option<&String>| text.and_then(|text| text.parse::<i64>().ok());
    let compared = || number(labels.get(&wanted.key)).zip(number(wanted.values.iter().flatten().next()));
    match wanted.operator.as_str() {
        "In" => Expression::In(key, values).matches(labels),
        "NotIn" => Expression::NotIn(key, values).matches(labels),
        "Exists" => Expression::Exists(key).matches(labels),
        "DoesNotExist" => Expression::DoesNotExist(key).matches(labels),
        "Gt" => compared().is_some_and(|(has, bound)| has > bound),
        "Lt" => compared().is_some_and(|(has, bound)| has < bound),
        _ => false,
    }
}

/// The claims that a pod names: volume, claim.
pub fn of_pod(pod: &Pod) -> impl Iterator<Item = (&str, &str)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| Some((volume.name.as_str(), volume.persistent_volume_claim.as_ref()?.claim_name.as_str())))
}

/// Every claim that cannot go along, wherever the pod goes.
pub(super) fn blockers(migration: &Migration, pod: &Pod, claims: &BTreeMap<String, ClaimView>) -> Vec<Blocker> {
    let why = |(volume, name): (&str, &str)| {
        let (message, remedy) = match claims.get(name) {
            None => (format!("there is no claim {name}"), "a running pod's claim was removed: make it again"),
            Some(claim) if claim.volume.is_empty() => (format!("claim {name} is bound to no volume"), "kubectl describe pvc says why"),
            Some(claim) if claim.node_local => (
                format!("volume {} of claim {name} is a folder of its node", claim.volume),
                "give it a node affinity if other nodes have the same folder",
            ),
            Some(claim) if !claim.many_nodes && !migration.spec.keep_name => (
                format!("volume {} of claim {name} can be on one node at a time, and the replacement is made while the source has it", claim.volume),
                "a pod that keeps its name (keepName: true) moves with it; or use a claim of ReadWriteMany",
            ),
            Some(_) => return None,
        };
        Some(Blocker::new(format!("spec.volumes[{volume}].persistentVolumeClaim"), message, remedy))
    };
    of_pod(pod).filter_map(why).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::MigrationSpec;
    use serde_json::{Value, json};

    fn view(modes: &[&str], volume: &Value) -> ClaimView {
        let claim = serde_json::from_value(json!({"metadata": {"name": "data"}, "spec": {"accessModes": modes}})).unwrap();
        let volume: PersistentVolume = serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": volume})).unwrap();
        ClaimView::new(&claim, Some(&volume))
    }

    fn why(claim: Option<ClaimView>, keep_name: bool) -> String {
        let pod =
            serde_json::from_value(json!({"spec": {"containers": [], "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}}));
        let migration = Migration::new("m", MigrationSpec { keep_name, ..MigrationSpec::default() });
        let claims = claim.map(|claim| ("data".to_owned(), claim)).into_iter().collect();
        Blocker::join(&blockers(&migration, &pod.unwrap(), &claims))
    }

    #[test]
    fn a_volume_of_one_node_goes_along_only_where_the_source_goes_first() {
        let once = || view(&["ReadWriteOnce"], &json!({"csi": {"driver": "d", "volumeHandle": "h"}}));
        assert!(why(Some(once()), false).contains("spec.volumes[v].persistentVolumeClaim: volume pv of claim data can be on one node at a time"));
        assert_eq!(why(Some(once()), true), "");
        assert!(why(Some(view(&["ReadWriteOncePod"], &json!({}))), false).contains("keepName: true"));
        assert_eq!(why(Some(view(&["ReadWriteOnce", "ReadWriteMany"], &json!({"nfs": {"server": "s", "path": "/"}}))), false), "");
    }

    #[test]
    fn what_is_nowhere_else_is_refused() {
        assert!(why(None, true).contains("there is no claim data"));
        assert!(why(Some(ClaimView::default()), true).contains("is bound to no volume"));
        assert!(why(Some(view(&["ReadWriteMany"], &json!({"hostPath": {"path": "/x"}}))), true).contains("is a folder of its node"));
    }

    #[test]
    fn a_node_must_fit_one_term_of_the_volumes_affinity() {
        let affinity = json!({"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}, {"key": "disks", "operator": "Gt", "values": ["1"]}]},
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n3"]}]}, {}]}});
        let claim = view(&["ReadWriteMany"], &json!({"local": {"path": "/x"}, "nodeAffinity": affinity}));
        assert_eq!(why(Some(claim.clone()), false), "");
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>();
        assert_eq!(claim.blocker("data", "n1", &labels(&[("zone", "a"), ("disks", "2")])), None);
        assert_eq!(claim.blocker("data", "n3", &labels(&[])), None);
        for other in [labels(&[("zone", "b"), ("disks", "2")]), labels(&[("zone", "a"), ("disks", "1")]), labels(&[])] {
            assert_eq!(claim.blocker("data", "n1", &other).unwrap(), "cannot use volume pv of claim data (its node affinity)", "{other:?}");
        }
    }
}
