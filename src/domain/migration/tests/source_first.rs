//! The order in which the source goes first, and what it falls back to.

use super::{fallback::fallen, *};
use crate::{
    api::{
        attestation::{Archived, Armed},
        migration::{InDoubt, Side},
    },
    domain::{keys, replacement},
};

impl Walk {
    pub(super) fn same_name() -> Self {
        let mut walk = Self::new();
        walk.migration.spec.keep_name = true;
        walk
    }

    fn without_gate(source: bool) -> Self {
        let mut walk = Self::new();
        (walk.observed.source_gated, walk.observed.destination_gated) = (!source, source);
        walk
    }

    /// The world after an effect of this order. A same-name replacement and the fallback have the source's name.
    pub(super) fn obey_source_first(&mut self, effect: &Effect) {
        let migration = self.migration.clone();
        match effect {
            Effect::KeepTemplate => self.observed.template = self.observed.source.as_ref().map(replacement::template),
            Effect::RemoveTemplate => self.observed.template = None,
            Effect::DeletePlaceholder { .. } => self.observed.placeholder = None,
            Effect::CreateSameName => {
                let pod = replacement::same_name(self.observed.template.as_ref().unwrap(), &migration, "n2");
                self.take_name(Self::placed(pod, "same-name-uid", "n2"));
            }
            Effect::CreateFallback => {
                let pod = replacement::fallback(self.observed.template.as_ref().unwrap(), &migration, "n1");
                self.take_name(Self::placed(pod, "fallback-uid", "n1"));
            }
            Effect::DeleteFallback { .. } => self.lose_replacement(),
            Effect::RehearseReplacement => assert!(self.observed.source.is_some(), "it is rehearsed while the source is there"),
            other => panic!("{other:?} is of no order"),
        }
    }

    fn placed(mut pod: Pod, uid: &str, node: &str) -> Pod {
        pod.metadata.uid = Some(uid.into());
        pod.spec.as_mut().unwrap().node_name = Some(node.into());
        pod.status = serde_json::from_value(serde_json::json!({"conditions": [{"type": "PodReadyToStartContainers", "status": "True"}]})).unwrap();
        pod
    }

    /// A pod of the source's name; a same-name replacement is looked up by that too.
    pub(super) fn take_name(&mut self, pod: Pod) {
        self.observed.source = Some(pod.clone());
        if self.migration.spec.keep_name {
            self.observed.replacement = Some(pod);
        }
    }

    fn is_one_pod(&self) -> bool {
        let uid = |pod: &Option<Pod>| pod.as_ref().and_then(|pod| pod.metadata.uid.clone());
        self.migration.spec.keep_name && uid(&self.observed.source) == uid(&self.observed.replacement)
    }

    /// Two looks at one pod show the same: what was done to the replacement.
    pub(super) fn mirror(&mut self) {
        if self.is_one_pod() {
            self.observed.source = self.observed.replacement.clone();
        }
    }

    /// The same for what was done to the pod of the source's name.
    pub(super) fn mirror_back(&mut self) {
        if self.is_one_pod() {
            self.observed.replacement = self.observed.source.clone();
        }
    }

    /// The replacement goes from the API, and with it whoever is looked up by its name.
    pub(super) fn lose_replacement(&mut self) {
        self.observed.replacement = None;
        if self.migration.spec.keep_name {
            self.observed.source = None;
        }
    }

    /// The next thing that the agents say in SourceDeleting.
    pub(super) fn end_source(&mut self) {
        if self.observed.source_status().ended.is_none() {
            self.attest(Role::Source, |s| {
                s.ended = Some(At { at: at(7) });
                s.archived = Some(Archived { at: at(7), paths: vec!["/checkpoints/c.tar".into()], last: true });
            });
        } else {
            let pod_uid = self.status().replacement.as_ref().unwrap().uid.clone();
            self.attest(Role::Destination, |s| s.armed = Some(Armed { at: at(7), pod_uid }));
        }
    }

    /// The source's agent has done what a confirmed copy allows.
    pub(super) fn collect(&mut self) {
        self.attest(Role::Source, |s| s.cleaned = Some(At { at: at(12) }));
    }

    pub(super) fn effects(&mut self) -> Vec<Effect> {
        self.step().effects
    }
}

#[test]
fn a_same_name_pod_has_a_placeholder_until_its_source_is_over() {
    let mut walk = Walk::same_name();
    walk.walk_to(Phase::Freezing);
    assert_eq!(walk.status().source_first, Some(true));
    assert!(walk.observed.template.is_some() && walk.observed.placeholder.is_some());
    assert_eq!(walk.status().replacement.as_ref().map(|r| (r.name.as_str(), r.uid.as_str())), Some(("p", "")));
    walk.walk_to(Phase::SourceDeleting);
    assert!(walk.observed.source.is_none(), "the source is deleted");
    assert!(walk.observed.placeholder.is_some(), "its end is not proved: nothing else is done");
    walk.walk_to(Phase::Restoring);
    assert!(walk.observed.placeholder.is_none());
    assert_eq!(walk.status().replacement.as_ref().map(|r| r.uid.as_str()), Some("same-name-uid"));
    walk.walk_to(Phase::Finishing);
    assert_eq!(walk.status().verdict, Some(Verdict::Commit));
    walk.attest(Role::Destination, |s| {
        s.confirmed = Some(At { at: at(9) });
        s.cleaned = Some(At { at: at(9) });
    });
    assert_eq!(walk.settle(), Phase::Finishing, "the archives are not collected yet");
    walk.collect();
    assert_eq!(walk.settle(), Phase::Done);
    assert_eq!(walk.status().outcome, Some(Outcome::Migrated));
    assert_eq!(walk.observed.source.as_ref().and_then(|pod| pod.metadata.uid.clone()).as_deref(), Some("same-name-uid"));
    assert!(!walk.observed.locked_by(&walk.migration));
    assert!(walk.observed.template.is_none());
}

#[test]
fn without_a_gate_on_either_node_the_source_goes_first_too() {
    for source in [true, false] {
        let mut walk = Walk::without_gate(source);
        walk.walk_to(Phase::SourceDeleting);
        let status = walk.status().clone();
        assert_eq!((status.source.unwrap().without_gate, status.destination.unwrap().without_gate), (source, !source));
        assert!(status.placeholder.is_none() && walk.observed.replacement.is_some(), "a new name waits as ever");
        walk.end_source();
        assert_eq!(walk.settle(), Phase::Restoring);
    }
    let mut walk = Walk::new();
    walk.walk_to(Phase::Restoring);
    assert_eq!(walk.status().source_first, Some(false));
    assert!(walk.observed.source.is_some() && walk.observed.template.is_none());
}

#[test]
fn memory_that_stays_with_the_source_is_not_deleted_with_it() {
    for source in [true, false] {
        let mut walk = Walk::without_gate(source);
        (walk.migration.spec.post_copy, walk.migration.spec.lane) = (true, crate::api::migration::Lane::Runtime);
        walk.walk_to(Phase::Finishing);
        assert_eq!((walk.status().verdict, walk.status().source_first), (Some(Verdict::Rollback), None));
        let node = if source { "n1" } else { "n2" };
        assert!(walk.status().message.contains(&format!("node {node} has no gate any more")), "{}", walk.status().message);
    }
}

#[test]
fn what_nobody_can_prove_without_the_gate_is_held_with_the_command_and_then_falls_back() {
    let mut walk = Walk::without_gate(false);
    walk.walk_to(Phase::Restoring);
    walk.attest(Role::Destination, |s| s.failure = Some(Remark { at: at(8), message: "restore failed".into() }));
    walk.settle();
    walk.now = 60;
    walk.settle();
    assert!(walk.is_held());
    for words in ["has no gate", "drover resolve m -n d --prefer source", "checkpoint is kept on node n1 (/checkpoints/c.tar)"] {
        assert!(walk.status().message.contains(words), "{}", walk.status().message);
    }
    walk.migration.metadata.annotations = Some([(keys::RESOLVE.to_owned(), "source".to_owned())].into());
    walk.settle();
    assert!(walk.observed.replacement.is_none() && walk.status().verdict.is_none(), "deleted, and not yet known to be over");
    walk.attest(Role::Destination, |s| s.died = Some(crate::api::attestation::Died { at: at(9), containers: vec![] }));
    assert_eq!(walk.settle(), Phase::Finishing);
    assert_eq!(walk.status().fallback.as_ref().map(|f| (f.name.as_str(), f.uid.as_str())), Some(("p", "fallback-uid")));
}

/// Past the end of a source of which nobody can say that its checkpoint is the last that it executed.
fn outrun() -> Walk {
    let mut walk = Walk::without_gate(true);
    walk.walk_to(Phase::SourceDeleting);
    walk.end_source();
    walk.attest(Role::Source, |s| s.archived.as_mut().unwrap().last = false);
    walk
}

#[test]
fn a_checkpoint_that_may_be_outrun_is_restored_nowhere_before_that_is_decided() {
    let mut walk = outrun();
    walk.observed.destination_ready = Some(false);
    walk.migration.spec.in_doubt = InDoubt::PreferDestination;
    assert_eq!(walk.settle(), Phase::SourceDeleting, "there is no replacement to prefer");
    assert!(walk.is_held() && walk.status().verdict.is_none());
    for words in ["kubelet of node n1", "drover resolve m -n d --prefer source", "/checkpoints/c.tar"] {
        assert!(walk.status().message.contains(words), "{}", walk.status().message);
    }
    walk.migration.metadata.annotations = Some([(keys::RESOLVE.to_owned(), "source".to_owned())].into());
    assert_eq!(walk.settle(), Phase::Finishing);
    assert!(!walk.is_held() && walk.status().fallback.is_some());
    assert!(walk.status().message.contains("decided by drover resolve"), "{}", walk.status().message);

    let mut walk = outrun();
    walk.migration.spec.in_doubt = InDoubt::PreferSource;
    assert_eq!(walk.settle(), Phase::Finishing);
    let status = walk.status();
    assert_eq!((status.verdict, status.resolved.as_ref().map(|resolved| resolved.prefer)), (Some(Verdict::Rollback), Some(Side::Source)));
}

#[test]
fn before_the_source_is_deleted_a_failure_thaws_it() {
    let mut walk = Walk::same_name();
    walk.walk_to(Phase::AwaitingReadiness);
    walk.attest(Role::Destination, |s| s.failure = Some(Remark { at: at(6), message: "full".into() }));
    assert_eq!(walk.settle(), Phase::Finishing);
    assert!(walk.status().fallback.is_none() && walk.observed.placeholder.is_none());
    walk.attest(Role::Source, |s| s.thawed = Some(At { at: at(7) }));
    walk.attest(Role::Destination, |s| s.cleaned = Some(At { at: at(7) }));
    assert_eq!(walk.settle(), Phase::Done);
    assert!(walk.observed.template.is_none() && walk.observed.source.is_some());
}

#[test]
fn past_the_point_of_no_return_nothing_is_decided_before_the_source_is_over() {
    let mut walk = Walk::same_name();
    walk.walk_to(Phase::SourceDeleting);
    walk.attest(Role::Destination, |s| s.failure = Some(Remark { at: at(6), message: "full".into() }));
    walk.migration.metadata.deletion_timestamp = Some(Time(second(10)));
    walk.now = 5000;
    assert_eq!(walk.settle(), Phase::SourceDeleting, "neither failure, deletion nor deadline");
    assert!(walk.is_held() && walk.status().message.contains("nobody has proved"), "{}", walk.status().message);
    walk.end_source();
    assert_eq!(walk.settle(), Phase::Finishing);
    assert_eq!(walk.status().verdict, Some(Verdict::Rollback));
    assert!(!walk.is_held() && walk.status().message.contains("full"), "{}", walk.status().message);
}

#[test]
fn a_name_that_somebody_else_has_taken_is_held_until_it_is_free() {
    let mut walk = Walk::same_name();
    walk.walk_to(Phase::SourceDeleting);
    let stranger: Pod = serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "namespace": "d", "uid": "stranger"}})).unwrap();
    walk.take_name(stranger);
    walk.end_source();
    assert_eq!(walk.settle(), Phase::SourceDeleting);
    assert!(walk.is_held() && walk.status().message.contains("kubectl delete pod p"), "{}", walk.status().message);
    walk.lose_replacement();
    walk.settle();
    walk.end_source();
    assert_eq!(walk.settle(), Phase::Restoring);
    assert!(!walk.is_held());
}

#[test]
fn an_effect_that_is_refused_falls_back_once_the_source_is_over_and_is_held_before() {
    let mut walk = Walk::same_name();
    walk.walk_to(Phase::SourceDeleting);
    let step = effect_failed(&walk.migration, &walk.observed, "a webhook says no", second(8));
    let status = step.status.unwrap();
    assert!(status.verdict.is_none() && status.message.contains("cannot be deleted: a webhook says no"), "{}", status.message);
    walk.attest(Role::Source, |s| {
        s.ended = Some(At { at: at(7) });
        s.archived = Some(Archived { at: at(7), paths: vec![], last: true });
    });
    let status = effect_failed(&walk.migration, &walk.observed, "quota exceeded", second(8)).status.unwrap();
    assert_eq!((status.verdict, status.fallback.is_some()), (Some(Verdict::Rollback), true));
    let mut walk = fallen();
    walk.observed.fallback_attestation = None;
    let status = effect_failed(&walk.migration, &walk.observed, "quota exceeded", second(8)).status.unwrap();
    assert!(status.message.contains("has failed: quota exceeded"), "{}", status.message);
}
