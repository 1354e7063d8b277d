//! The course of a migration as a walk: each step is fed back, with the world doing what the step asked for.

mod disruption;
mod doubt;
mod fallback;
mod init_containers;
mod meddling;
mod owner;
mod preflight;
mod source_first;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

use super::*;
use crate::api::{
    Attestation, AttestationSpec, AttestationStatus, MigrationSpec, Outcome,
    attestation::{At, ClosedClaim, ContainerId, Frozen, NeverStarted, Prepared, Pushed, PushedImage, Remark, Restored, Vote},
    migration::condition,
};

const UID: &str = "5f1c22aa-0000-4000-8000-000000000000";

fn second(n: i64) -> Timestamp {
    Timestamp::from_second(n).unwrap()
}

fn at(n: i64) -> MicroTime {
    MicroTime(second(n))
}

fn images() -> Vec<PushedImage> {
    vec![PushedImage { container: "c".into(), digest: format!("sha256:{}", "a".repeat(64)), bytes: 7, memory_bytes: None, pre_copied_bytes: None }]
}

fn containers() -> Vec<ContainerId> {
    vec![ContainerId { name: "c".into(), container_id: "one".into() }]
}

/// A migration and its world, stepped by hand.
struct Walk {
    migration: Migration,
    observed: Observed,
    now: i64,
}

impl Walk {
    fn new() -> Self {
        let mut migration =
            Migration::new("m", MigrationSpec { pod_name: Some("p".into()), deadline_seconds: 600, freeze_budget_seconds: 60, ..Default::default() });
        migration.metadata.uid = Some(UID.into());
        migration.metadata.namespace = Some("d".into());
        migration.metadata.creation_timestamp = Some(Time(second(0)));
        let source: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "source-uid", "annotations": {}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Running", "containerStatuses": [{"name": "c", "image": "i", "ready": true, "restartCount": 0,
                "imageID": format!("r/i@sha256:{}", "b".repeat(64)), "containerID": "containerd://one", "state": {"running": {}}}]}
        }))
        .unwrap();
        let observed = Observed {
            source: Some(source),
            source_gated: true,
            destination_gated: true,
            replacement_name: "p-5f1c22".into(),
            fresh_repository: "drover/00000000000000000000000000000000".into(),
            ..Default::default()
        };
        Self { migration, observed, now: 1 }
    }

    fn step(&mut self) -> Step {
        let step = advance(&self.migration, &self.observed, second(self.now));
        assert!(step.status.is_none() || step.effects.is_empty(), "a step writes or acts, never both");
        if let Some(status) = &step.status {
            self.migration.status = Some(status.clone());
        }
        for effect in step.effects.clone() {
            self.obey(&effect);
            self.mirror();
        }
        step
    }

    /// The world as it is after an effect.
    fn obey(&mut self, effect: &Effect) {
        match effect {
            Effect::AddFinalizer => self.migration.metadata.finalizers = Some(vec![super::super::keys::FINALIZER.into()]),
            Effect::RemoveFinalizer => self.migration.metadata.finalizers = None,
            Effect::Lock { .. } => self.annotate_source(true),
            Effect::Unlock { .. } => self.annotate_source(false),
            Effect::CreateAttestation { role, node, pod_uid } => {
                let spec = AttestationSpec {
                    migration: "m".into(),
                    migration_uid: UID.into(),
                    node_name: node.clone(),
                    pod_uid: pod_uid.clone(),
                    role: *role,
                };
                let attestation = Some(Attestation::new("a", spec));
                match role {
                    Role::Source => self.observed.source_attestation = attestation,
                    Role::Destination => self.observed.destination_attestation = attestation,
                    Role::Fallback => self.observed.fallback_attestation = attestation,
                }
            }
            Effect::CreateReplacement => {
                let pod = super::super::replacement::build(self.observed.source.as_ref().unwrap(), &self.migration, &["n2".to_owned()]);
                let mut pod = pod;
                pod.metadata.uid = Some("replacement-uid".into());
                pod.spec.as_mut().unwrap().node_name = Some("n2".into());
                pod.status =
                    serde_json::from_value(serde_json::json!({"conditions": [{"type": "PodReadyToStartContainers", "status": "True"}]})).unwrap();
                self.observed.destination_ready = Some(true);
                if self.migration.spec.keep_name {
                    self.observed.placeholder = Some(pod);
                } else {
                    self.observed.replacement = Some(pod);
                }
            }
            Effect::Claim { .. } => {
                let pod = self.observed.replacement.as_mut().unwrap();
                pod.metadata.annotations.get_or_insert_default().insert(super::super::keys::CLAIM.into(), UID.into());
            }
            Effect::RewriteImages { .. } => {
                let image = self.migration.status.as_ref().unwrap().containers[0].image.clone();
                self.observed.replacement.as_mut().unwrap().spec.as_mut().unwrap().containers[0].image = Some(image);
            }
            Effect::DeleteReplacement { .. } => self.lose_replacement(),
            Effect::DeleteSource { .. } => self.observed.source = None,
            Effect::WriteInitImages { .. } => self.give_init_images(),
            Effect::MarkSurplus { .. } | Effect::ReleaseSource { .. } | Effect::HandOver { .. } => self.obey_owner(effect),
            Effect::TakeDisruption { budget } => self.take_disruption(budget),
            Effect::TakePermit { .. } => self.observed.permit = crate::domain::permits::Permit::Held,
            Effect::LayOutPullCredentials | Effect::RemovePullCredentials | Effect::DeleteMigration => {}
            other => self.obey_source_first(other),
        }
    }

    fn annotate_source(&mut self, lock: bool) {
        let annotations = self.observed.source.as_mut().unwrap().metadata.annotations.get_or_insert_default();
        if lock {
            annotations.insert(super::super::keys::LOCK.into(), UID.into())
        } else {
            annotations.remove(super::super::keys::LOCK)
        };
        self.mirror_back();
    }

    fn attest(&mut self, role: Role, change: impl FnOnce(&mut AttestationStatus)) {
        let attestation = match role {
            Role::Source => &mut self.observed.source_attestation,
            Role::Destination => &mut self.observed.destination_attestation,
            Role::Fallback => &mut self.observed.fallback_attestation,
        };
        change(attestation.as_mut().expect("the attestation was made").status.get_or_insert_default());
    }

    /// Steps until nothing changes any more.
    fn settle(&mut self) -> Phase {
        for _ in 0..50 {
            let before = (self.migration.clone(), self.observed.clone());
            self.step();
            if before == (self.migration.clone(), self.observed.clone()) {
                return self.phase();
            }
        }
        panic!("the migration does not settle: {:?}", self.migration.status);
    }

    fn phase(&self) -> Phase {
        self.migration.phase()
    }

    fn prepare(&mut self) {
        let prepared = Prepared { at: at(2), push_address: "10.0.0.2:5786".into(), pull_address: String::new() };
        self.attest(Role::Destination, |s| s.prepared = Some(prepared));
    }

    /// Walks to a phase along the course in which all goes well.
    fn walk_to(&mut self, goal: Phase) {
        let mut reached = self.settle();
        while reached < goal {
            match reached {
                Phase::Preflight => self.attest(Role::Source, |s| s.inspected = Some(preflight::inspected(&[], &[]))),
                Phase::Preparing => self.prepare(),
                Phase::Freezing => self.attest(Role::Source, |s| s.frozen = Some(Frozen { at: at(3), containers: containers() })),
                Phase::Checkpointing => self.attest(Role::Source, |s| s.checkpointed = Some(At { at: at(4) })),
                Phase::Transferring => self.attest(Role::Source, |s| s.vote = Some(Vote { at: at(5), containers: containers(), images: images() })),
                Phase::AwaitingReadiness => self.attest(Role::Destination, |s| s.ready = Some(Pushed { at: at(6), images: images() })),
                Phase::Restoring => self.attest(Role::Destination, |s| {
                    s.restored = Some(Restored { at: at(8), containers: containers() });
                    s.failure = None;
                }),
                Phase::SourceDeleting => self.end_source(),
                Phase::Finishing => {
                    self.attest(Role::Destination, |s| {
                        s.confirmed = Some(At { at: at(9) });
                        s.cleaned = Some(At { at: at(9) });
                    });
                    self.attest(Role::Source, |s| s.ended = Some(At { at: at(9) }));
                }
                other => panic!("stuck in {other}"),
            }
            reached = self.settle();
        }
    }

    fn is_held(&self) -> bool {
        self.status().held().is_some()
    }

    fn status(&self) -> &MigrationStatus {
        self.migration.status.as_ref().unwrap()
    }
}

#[test]
fn all_goes_well_and_the_source_is_deleted_only_after_the_confirmation() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Finishing);
    assert_eq!(walk.status().verdict, Some(Verdict::Commit));
    assert!(walk.observed.source.is_some(), "committed is not confirmed");
    assert_eq!(walk.status().frozen_millis, Some(5000));
    walk.walk_to(Phase::Done);
    assert_eq!(walk.status().outcome, Some(Outcome::Migrated));
    assert!(walk.observed.source.is_none());
    assert_eq!(walk.migration.metadata.finalizers, None);
    let order: Vec<_> = walk.status().phases.iter().map(|t| t.phase).collect();
    assert!(order.is_sorted(), "{order:?}");
}

#[test]
fn every_phase_before_the_release_can_be_undone_and_leaves_nothing() {
    for phase in [Phase::Preparing, Phase::Freezing, Phase::Checkpointing, Phase::Transferring, Phase::AwaitingReadiness] {
        let mut walk = Walk::new();
        walk.walk_to(phase);
        walk.migration.metadata.deletion_timestamp = Some(Time(second(10)));
        walk.settle();
        assert_eq!(walk.status().verdict, Some(Verdict::Rollback), "{phase}");
        assert_eq!(walk.phase(), Phase::Finishing, "{phase}: it waits for the thaw");
        walk.attest(Role::Source, |s| s.thawed = Some(At { at: at(11) }));
        if walk.observed.destination_attestation.is_some() {
            walk.attest(Role::Destination, |s| s.cleaned = Some(At { at: at(11) }));
        }
        assert_eq!(walk.settle(), Phase::Done, "{phase}");
        assert_eq!(walk.status().outcome, Some(Outcome::RolledBack), "{phase}");
        assert!(walk.observed.replacement.is_none(), "{phase}");
        assert!(!walk.observed.locked_by(&walk.migration), "{phase}");
        assert_eq!(walk.migration.metadata.finalizers, None, "{phase}");
    }
}

#[test]
fn a_replacement_that_a_stopped_manager_makes_after_the_end_is_removed() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Preparing);
    walk.migration.metadata.deletion_timestamp = Some(Time(second(10)));
    walk.settle();
    walk.attest(Role::Source, |s| s.thawed = Some(At { at: at(11) }));
    walk.attest(Role::Destination, |s| s.cleaned = Some(At { at: at(11) }));
    assert_eq!(walk.settle(), Phase::Done);
    walk.obey(&Effect::CreateReplacement);
    walk.settle();
    assert!(walk.observed.replacement.is_none());
}

#[test]
fn a_placeholder_that_a_stopped_manager_makes_after_the_move_is_removed_and_the_pod_is_not() {
    let mut walk = Walk::new();
    walk.migration.spec.keep_name = true;
    walk.walk_to(Phase::Finishing);
    walk.attest(Role::Destination, |s| (s.confirmed, s.cleaned) = (Some(At { at: at(9) }), Some(At { at: at(9) })));
    walk.attest(Role::Source, |s| s.cleaned = Some(At { at: at(9) }));
    assert_eq!(walk.settle(), Phase::Done);
    walk.obey(&Effect::CreateReplacement);
    assert!(walk.observed.placeholder.is_some());
    walk.settle();
    assert!(walk.observed.placeholder.is_none() && walk.observed.replacement.is_some());
}

#[test]
fn the_reason_of_an_abort_is_told() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Checkpointing);
    walk.attest(Role::Source, |s| s.abort = Some(Remark { at: at(5), message: "criu said no".into() }));
    walk.settle();
    assert!(walk.status().message.contains("criu said no") && walk.status().message.contains("Checkpointing"), "{}", walk.status().message);
}

#[test]
fn after_the_release_a_failure_holds_and_a_late_restore_still_commits() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Restoring);
    walk.attest(Role::Destination, |s| s.failure = Some(Remark { at: at(9), message: "restore failed".into() }));
    walk.migration.metadata.deletion_timestamp = Some(Time(second(10)));
    walk.now = 5000;
    assert_eq!(walk.settle(), Phase::Restoring, "neither deletion nor deadline undo a release");
    assert_eq!(walk.status().verdict, None);
    assert!(walk.status().revocation.is_some() && !walk.is_held(), "first the destination is asked");
    walk.now = 5060;
    walk.settle();
    assert!(walk.is_held() && walk.status().message.contains("restore failed"), "{}", walk.status().message);
    walk.walk_to(Phase::Finishing);
    assert_eq!(walk.status().verdict, Some(Verdict::Commit));
    assert!(walk.status().conditions.iter().all(|c| c.type_ != condition::HELD || c.status == "False"));
}

fn never_started() -> NeverStarted {
    NeverStarted { at: at(9), containers: vec![ClosedClaim { name: "c".into(), state: "failed".into(), proof: "Error (criu/x.c:1): no".into() }] }
}

#[test]
fn a_refused_restore_is_rolled_back_with_its_proof_and_its_reason() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Restoring);
    walk.attest(Role::Destination, |s| s.failure = Some(Remark { at: at(8), message: "restore failed".into() }));
    assert_eq!(walk.settle(), Phase::Restoring);
    assert_eq!(walk.status().revocation.as_ref().map(|r| r.message.as_str()), Some("restore failed"));
    walk.attest(Role::Destination, |s| s.never_started = Some(never_started()));
    assert_eq!(walk.settle(), Phase::Finishing);
    assert_eq!((walk.status().verdict, walk.status().never_started.is_some()), (Some(Verdict::Rollback), true));
    assert!(walk.status().message.contains("Error (criu/x.c:1): no"), "{}", walk.status().message);
    walk.attest(Role::Source, |s| s.thawed = Some(At { at: at(10) }));
    walk.attest(Role::Destination, |s| s.cleaned = Some(At { at: at(10) }));
    assert_eq!(walk.settle(), Phase::Done);
    assert_eq!(walk.status().outcome, Some(Outcome::RolledBack));
    assert!(walk.observed.replacement.is_none() && walk.observed.source.is_some());
}

#[test]
fn once_committed_a_proof_that_it_never_started_changes_nothing() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Finishing);
    walk.attest(Role::Destination, |s| s.never_started = Some(never_started()));
    walk.settle();
    assert_eq!(walk.status().verdict, Some(Verdict::Commit));
}

#[test]
fn the_deadline_rolls_back_before_the_release() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Freezing);
    walk.now = 601;
    walk.settle();
    assert!(walk.status().message.contains("spec.deadlineSeconds"), "{}", walk.status().message);
    assert_eq!(walk.status().verdict, Some(Verdict::Rollback));
}

#[test]
fn no_release_without_the_very_images_that_were_voted_for() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::AwaitingReadiness);
    let mut forged = images();
    forged[0].digest = format!("sha256:{}", "f".repeat(64));
    walk.attest(Role::Destination, |s| s.ready = Some(Pushed { at: at(6), images: forged }));
    assert_eq!(walk.settle(), Phase::AwaitingReadiness);
}

#[test]
fn a_container_that_was_restarted_since_preflight_rolls_back() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Freezing);
    let other = vec![ContainerId { name: "c".into(), container_id: "two".into() }];
    walk.attest(Role::Source, |s| s.frozen = Some(Frozen { at: at(3), containers: other }));
    walk.settle();
    assert_eq!(walk.status().verdict, Some(Verdict::Rollback));
}

#[test]
fn a_destination_that_does_not_answer_does_not_keep_the_source_frozen() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Transferring);
    walk.observed.destination_ready = Some(false);
    walk.settle();
    assert_eq!(walk.status().verdict, Some(Verdict::Rollback));
    walk.attest(Role::Source, |s| s.thawed = Some(At { at: at(11) }));
    walk.now = 100;
    assert_eq!(walk.settle(), Phase::Done);
    assert!(walk.status().message.contains("does not answer"), "{}", walk.status().message);
}

#[test]
fn a_missed_webhook_is_made_up_for() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::AwaitingReadiness);
    walk.attest(Role::Destination, |s| s.ready = Some(Pushed { at: at(6), images: images() }));
    let effects: Vec<_> = (0..4).flat_map(|_| walk.step().effects).collect();
    assert!(matches!(effects.as_slice(), [Effect::Claim { .. }, Effect::RewriteImages { .. }, ..]), "{effects:?}");
}

#[test]
fn an_effect_that_fails_for_good_rolls_back_before_the_release_and_holds_after_it() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Preparing);
    let step = effect_failed(&walk.migration, &walk.observed, "quota exceeded", second(2));
    assert_eq!(step.status.map(|s| (s.verdict, s.message.contains("quota"))), Some((Some(Verdict::Rollback), true)));
    walk.walk_to(Phase::Restoring);
    let step = effect_failed(&walk.migration, &walk.observed, "forbidden", second(2));
    assert_eq!(step.status.map(|s| s.verdict), Some(None));
}
