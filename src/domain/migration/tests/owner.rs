//! A ReplicaSet's pod: it keeps the source until the copy is confirmed, and never has a choice that could cost the copy.

use kube::ResourceExt as _;

use super::*;
use crate::domain::keys;

const HASH: &str = "pod-template-hash";

impl Walk {
    fn owned_by(kind: &str) -> Self {
        let api_version = if kind == "Job" { "batch/v1" } else { "apps/v1" };
        let mut walk = Self::new();
        let source = walk.observed.source.as_mut().unwrap();
        source.metadata.labels = Some([("app".to_owned(), "web".to_owned()), (HASH.to_owned(), "7d4".to_owned())].into());
        source.metadata.owner_references =
            serde_json::from_value(serde_json::json!([{"apiVersion": api_version, "kind": kind, "name": "web", "uid": "set", "controller": true}]))
                .unwrap();
        walk.observed.owner_selector = source.metadata.labels.clone().unwrap();
        walk
    }

    pub(super) fn obey_owner(&mut self, effect: &Effect) {
        match effect {
            Effect::MarkSurplus { .. } => {
                let source = self.observed.source.as_mut().unwrap();
                source.metadata.annotations.get_or_insert_default().insert(keys::DELETION_COST.into(), keys::CHEAPEST.into());
            }
            Effect::ReleaseSource { .. } => {
                let labels = self.observed.source.as_mut().unwrap().metadata.labels.as_mut().unwrap();
                let owner = self.migration.status.as_ref().unwrap().source.as_ref().unwrap().owner.as_ref().unwrap();
                labels.retain(|key, _| !owner.tied_by.contains_key(key));
            }
            Effect::HandOver { .. } => {
                let owner = self.status().source.clone().unwrap().owner.unwrap();
                self.observed.replacement.as_mut().unwrap().metadata.labels.get_or_insert_default().extend(owner.tied_by);
            }
            other => panic!("{other:?}"),
        }
    }

    fn confirm(&mut self) {
        self.attest(Role::Destination, |s| s.confirmed = Some(At { at: at(9) }));
    }

    fn be_ready(&mut self, copy: bool, source: bool) {
        let condition = |ready| serde_json::json!({"conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]});
        for (pod, ready) in [(&mut self.observed.replacement, copy), (&mut self.observed.source, source)] {
            if let Some(pod) = pod {
                let mut status = serde_json::to_value(pod.status.clone().unwrap_or_default()).unwrap();
                json_patch::merge(&mut status, &condition(ready));
                pod.status = serde_json::from_value(status).unwrap();
            }
        }
    }

    fn is_handed_over(&self) -> bool {
        self.observed.replacement.as_ref().unwrap().metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(HASH))
    }
}

#[test]
fn the_replica_set_has_the_source_until_the_copy_is_ready_then_the_copy() {
    let mut walk = Walk::owned_by("ReplicaSet");
    walk.walk_to(Phase::Finishing);
    let labels = walk.observed.replacement.as_ref().unwrap().metadata.labels.clone().unwrap();
    assert_eq!(labels.keys().collect::<Vec<_>>(), ["app"], "Services and network policies see it, its ReplicaSet does not");
    walk.be_ready(false, true);
    walk.confirm();
    walk.settle();
    assert!(!walk.is_handed_over() && walk.observed.source.is_some(), "else the ReplicaSet might delete the copy, which is not ready");
    let marked = |walk: &Walk| walk.observed.source.as_ref().is_some_and(|pod| pod.annotations().contains_key(keys::DELETION_COST));
    assert!(!marked(&walk), "else other sources of the ReplicaSet would wait for a copy that may never be ready");
    walk.be_ready(true, true);
    let mut effects = vec![];
    for _ in 0..6 {
        effects.extend(walk.step().effects);
    }
    assert!(matches!(effects.as_slice(), [Effect::MarkSurplus { .. }, Effect::HandOver { .. }, Effect::DeleteSource { .. }, ..]), "{effects:?}");
    walk.walk_to(Phase::Done);
    assert_eq!(walk.status().outcome, Some(Outcome::Migrated));
}

#[test]
fn the_source_is_the_cheapest_pod_before_there_is_one_too_many() {
    let mut walk = Walk::owned_by("ReplicaSet");
    walk.walk_to(Phase::Finishing);
    walk.be_ready(true, true);
    walk.confirm();
    let effects: Vec<_> = (0..3).flat_map(|_| walk.step().effects).collect();
    assert!(
        matches!(effects.as_slice(), [Effect::MarkSurplus { .. }, Effect::HandOver { ready: true, .. }, Effect::DeleteSource { .. }]),
        "{effects:?}"
    );
}

#[test]
fn a_source_that_is_not_ready_goes_first_whatever_the_copy_is() {
    let mut walk = Walk::owned_by("ReplicaSet");
    walk.walk_to(Phase::Finishing);
    walk.be_ready(false, false);
    walk.confirm();
    walk.settle();
    assert!(walk.is_handed_over());
}

#[test]
fn a_job_loses_the_source_before_it_has_the_copy() {
    let mut walk = Walk::owned_by("Job");
    walk.walk_to(Phase::Finishing);
    walk.be_ready(false, true);
    walk.confirm();
    let effects: Vec<_> = (0..2).flat_map(|_| walk.step().effects).collect();
    assert!(matches!(effects.as_slice(), [Effect::ReleaseSource { .. }, Effect::HandOver { .. }, Effect::DeleteSource { .. }]), "{effects:?}");
    // A manager that ended between the two.
    let mut walk = Walk::owned_by("Job");
    walk.walk_to(Phase::Finishing);
    walk.confirm();
    walk.observed.source.as_mut().unwrap().metadata.labels.as_mut().unwrap().remove(HASH);
    assert!(matches!(walk.step().effects.as_slice(), [Effect::HandOver { .. }]));
}

#[test]
fn a_copy_that_does_not_become_ready_is_held_and_the_source_stays() {
    let mut walk = Walk::owned_by("ReplicaSet");
    walk.walk_to(Phase::Finishing);
    walk.be_ready(false, true);
    walk.confirm();
    walk.settle();
    walk.now = 1000;
    walk.settle();
    assert!(walk.is_held() && walk.status().message.contains("kubectl describe pod"), "{}", walk.status().message);
    walk.be_ready(true, true);
    walk.settle();
    assert!(walk.is_handed_over() && walk.observed.source.is_none());
}

#[test]
fn a_source_that_its_owner_has_deleted_leaves_its_place_to_the_copy() {
    let mut walk = Walk::owned_by("ReplicaSet");
    walk.walk_to(Phase::Finishing);
    walk.be_ready(false, true);
    walk.observed.source.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(second(9)));
    walk.confirm();
    walk.settle();
    assert!(walk.is_handed_over());
}

#[test]
fn a_node_without_the_gate_would_let_the_replica_set_make_a_third_pod() {
    let mut walk = Walk::owned_by("ReplicaSet");
    walk.observed.destination_gated = false;
    walk.walk_to(Phase::Preparing);
    assert_eq!(walk.status().verdict, Some(Verdict::Rollback));
    assert!(walk.status().message.contains("node n2 has no gate"), "{}", walk.status().message);
}

#[test]
fn a_selector_without_labels_is_refused_untouched() {
    let mut walk = Walk::owned_by("ReplicaSet");
    walk.observed.owner_selector.clear();
    walk.settle();
    walk.attest(Role::Source, |s| s.inspected = Some(preflight::inspected(&[], &[])));
    assert_eq!(walk.settle(), Phase::Done);
    assert_eq!(walk.status().outcome, Some(Outcome::Failed));
    assert!(walk.status().message.contains("matchLabels"), "{}", walk.status().message);
}

#[test]
fn a_pod_of_a_stateful_set_is_not_tied() {
    let mut walk = Walk::owned_by("StatefulSet");
    walk.observed.owner_selector.clear();
    walk.migration.spec.keep_name = true;
    walk.walk_to(Phase::Preparing);
    let owner = walk.status().source.clone().unwrap().owner.unwrap();
    assert_eq!((owner.kind.as_str(), owner.tied_by.len()), ("StatefulSet", 0));
}
