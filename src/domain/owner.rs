//! Pods that belong to a controller, and what ties them to it.
//!
//! # ReplicaSet
//! The source stays its ReplicaSet's until the copy is confirmed, so that no rollout, scale or count of it is disturbed by a migration that fails. The
//! replacement lacks one label of the ReplicaSet's selector until then ([`tie`]): the ReplicaSet does not see it, makes no pod and deletes none. It is handed
//! over by that label, which makes the ReplicaSet adopt it (`migration/owner.rs`).
//!
//! # Job
//! Tied by its own label, but told apart at the end: of two running pods a Job deletes the one that was ready later, which is the copy (`ActivePods` of
//! kube-controller-manager). So the source is released from the Job first, by the same label, and the copy handed over at once. A Job looks at its pods a second
//! after a change (`syncJobBatchPeriod`), and sees both changes together; a manager that ends between the two leaves it without a pod for a moment, and it may
//! start one anew, as Jobs may ("the same program may sometimes be started twice").
//!
//! # StatefulSet
//! Its pods keep their name, so the source goes first. Once it has gone, a policy of the API server keeps everybody but the manager from taking the name
//! (charts/drover/templates/policies.yaml); the StatefulSet adopts the pod that the manager makes.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::Pod,
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
};
use kube::{
    ResourceExt as _,
    core::{Selector, SelectorExt as _},
};

use super::preflight::Blocker;

/// Label by which a Deployment tells its ReplicaSets' pods apart; nothing but ReplicaSets selects by it (apps/v1 `DefaultDeploymentUniqueLabelKey`).
const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// The controllers whose pods can be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Also that of a CronJob.
    Job,
    /// Also that of a Deployment.
    ReplicaSet,
    /// Pods with a name of their own.
    StatefulSet,
}

/// The controller's reference, if the pod has one.
#[must_use]
pub fn controller(pod: &ObjectMeta) -> Option<&OwnerReference> {
    pod.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// What the controller is, if its pods can be moved.
#[must_use]
pub fn kind(owner: &OwnerReference) -> Option<Kind> {
    Kind::named(&owner.kind).filter(|kind| owner.api_version.split('/').next() == Some(kind.group()))
}

impl Kind {
    /// The kind of this name in the API.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "Job" => Some(Self::Job),
            "ReplicaSet" => Some(Self::ReplicaSet),
            "StatefulSet" => Some(Self::StatefulSet),
            _ => None,
        }
    }

    fn group(self) -> &'static str {
        match self {
            Self::Job => "batch",
            Self::ReplicaSet | Self::StatefulSet => "apps",
        }
    }

    /// Whether it knows its pods by labels alone, whatever their names.
    #[must_use]
    pub fn ties_by_label(self) -> bool {
        matches!(self, Self::Job | Self::ReplicaSet)
    }
}

/// Whether a pod must keep its name when it moves.
#[must_use]
pub fn keeps_its_name(pod: &ObjectMeta) -> bool {
    controller(pod).and_then(kind) == Some(Kind::StatefulSet)
}

/// The label of a pod without which its controller does not see it: the Deployment's where there is one, since no Service selects by that.
/// Empty where the selector has no such label.
#[must_use]
pub fn tie(labels: &BTreeMap<String, String>, selector: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let ties = |key: &str| selector.contains_key(key) && labels.contains_key(key);
    let key = Some(POD_TEMPLATE_HASH).filter(|key| ties(key)).or_else(|| selector.keys().map(String::as_str).find(|key| ties(key)));
    key.and_then(|key| labels.get_key_value(key)).map(|(key, value)| (key.clone(), value.clone())).into_iter().collect()
}

/// A controller that makes every pod its own that its selector selects and that belongs to nobody.
#[derive(Debug, Clone, PartialEq)]
pub struct Adopter {
    /// `ReplicaSet`, `ReplicationController` or `DaemonSet`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Which pods it selects.
    pub selector: LabelSelector,
}

/// The controllers that would take the copy of an owned pod before its owner has it, and delete it where they have pods enough. `tied_by`: the labels that
/// the copy lacks until then.
#[must_use]
pub fn rivals(pod: &Pod, tied_by: &BTreeMap<String, String>, adopters: &[Adopter]) -> Vec<Blocker> {
    let Some(owner) = controller(&pod.metadata) else { return vec![] };
    let mut labels = pod.labels().clone();
    labels.retain(|key, _| !tied_by.contains_key(key));
    let takes =
        |adopter: &&Adopter| adopter.uid != owner.uid && Selector::try_from(adopter.selector.clone()).is_ok_and(|it: Selector| it.matches(&labels));
    let blocker = |rival: &Adopter| {
        let (kind, name) = (rival.kind, &rival.name);
        let message = format!("{kind} {name} selects this pod too, and would take its copy, which belongs to nobody until it is confirmed");
        Blocker::new(
            "metadata.labels",
            message,
            format!("give {kind} {name} a selector that does not select the pods of {} {}", owner.kind, owner.name),
        )
    };
    adopters.iter().filter(takes).map(blocker).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wider_selector_would_take_the_copy() {
        let adopter = |name: &str, selector: &[(&str, &str)]| Adopter {
            kind: "ReplicaSet",
            name: name.into(),
            uid: format!("uid-{name}"),
            selector: LabelSelector { match_labels: Some(map(selector)), ..LabelSelector::default() },
        };
        let labels = map(&[("app", "web"), ("pod-template-hash", "7d4")]);
        let mut pod = Pod { metadata: owned("apps/v1", "ReplicaSet", true), ..Pod::default() };
        pod.metadata.labels = Some(labels.clone());
        pod.metadata.owner_references.as_mut().unwrap()[0].uid = "uid-own".into();
        let adopters = [
            adopter("own", &[("app", "web")]),
            adopter("older", &[("app", "web"), ("pod-template-hash", "6c3")]),
            adopter("wider", &[("app", "web")]),
        ];
        let tie = tie(&labels, &labels);
        let found = rivals(&pod, &tie, &adopters);
        assert_eq!(found.len(), 1);
        assert!(found[0].message.contains("ReplicaSet wider selects this pod too"), "{found:?}");
        let exact = [adopter("same", &[("app", "web"), ("pod-template-hash", "7d4")])];
        assert!(rivals(&pod, &tie, &exact).is_empty(), "the copy lacks that label");
        assert_eq!(rivals(&pod, &BTreeMap::new(), &exact).len(), 1, "a StatefulSet's has it");
        pod.metadata.owner_references = None;
        assert!(rivals(&pod, &tie, &adopters).is_empty(), "it would have been taken long ago");
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn owned(api_version: &str, kind: &str, controller: bool) -> ObjectMeta {
        let owner = OwnerReference { api_version: api_version.into(), kind: kind.into(), controller: Some(controller), ..OwnerReference::default() };
        ObjectMeta { owner_references: Some(vec![owner]), ..ObjectMeta::default() }
    }

    #[test]
    fn the_deployments_label_ties_before_any_other() {
        let labels = map(&[("app", "web"), ("pod-template-hash", "7d4"), ("tier", "front")]);
        assert_eq!(tie(&labels, &map(&[("app", "web"), ("pod-template-hash", "7d4")])), map(&[("pod-template-hash", "7d4")]));
        assert_eq!(tie(&labels, &map(&[("app", "web"), ("tier", "front")])), map(&[("app", "web")]));
        assert_eq!(tie(&labels, &map(&[])), map(&[]), "a selector of expressions alone");
    }

    #[test]
    fn a_stranger_of_the_same_kind_is_not_known() {
        let kind_of = |pod: &ObjectMeta| controller(pod).and_then(kind);
        assert_eq!(kind_of(&owned("apps/v1", "ReplicaSet", true)), Some(Kind::ReplicaSet));
        assert_eq!((kind_of(&owned("batch/v1", "Job", true)), kind_of(&owned("apps/v1", "Job", true))), (Some(Kind::Job), None));
        assert_eq!(kind_of(&owned("apps.kruise.io/v1beta1", "StatefulSet", true)), None);
        assert_eq!(kind_of(&owned("apps/v1", "DaemonSet", true)), None);
        assert_eq!(kind_of(&owned("apps/v1", "StatefulSet", false)), None, "an owner that does not control");
        assert!(keeps_its_name(&owned("apps/v1", "StatefulSet", true)) && !keeps_its_name(&ObjectMeta::default()));
    }
}
