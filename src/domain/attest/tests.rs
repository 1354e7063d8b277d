//! What an agent does next, a case each.

use super::*;
use crate::api::attestation::{Archived, At, Frozen, Inspected, Prepared, Pushed, Remark, Restored};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

const BUDGET: Duration = Duration::from_mins(1);

fn second(n: i64) -> Timestamp {
    Timestamp::from_second(n).unwrap()
}

fn at() -> MicroTime {
    MicroTime(second(0))
}

fn in_phase(phase: Phase) -> MigrationStatus {
    MigrationStatus { phase, ..Default::default() }
}

fn next(status: &MigrationStatus, own: &AttestationStatus, journal: &SourceJournal, deletion: Deletion, now: i64) -> SourceAction {
    source_next(status, own, &AttestationStatus::default(), journal, deletion, BUDGET, second(now))
}

#[test]
fn the_source_follows_the_phases() {
    let none = SourceJournal::default();
    let own = AttestationStatus::default();
    assert_eq!(next(&in_phase(Phase::Preflight), &own, &none, Deletion::NotShown, 0), SourceAction::Inspect);
    let inspected = AttestationStatus {
        inspected: Some(Inspected { at: at(), blockers: vec![], warnings: vec![], bytes: None, volume_bytes: None }),
        ..own.clone()
    };
    assert_eq!(next(&in_phase(Phase::Preflight), &inspected, &none, Deletion::NotShown, 0), SourceAction::Wait);
    assert_eq!(next(&in_phase(Phase::Preparing), &own, &none, Deletion::NotShown, 0), SourceAction::Wait);
    assert_eq!(next(&in_phase(Phase::Freezing), &own, &none, Deletion::NotShown, 0), SourceAction::Freeze);
    assert_eq!(next(&in_phase(Phase::Checkpointing), &own, &none, Deletion::NotShown, 0), SourceAction::Checkpoint);
    assert_eq!(next(&in_phase(Phase::Transferring), &own, &none, Deletion::NotShown, 0), SourceAction::Push);
}

#[test]
fn the_source_goes_ahead_of_the_phases_by_one_step() {
    let (none, at) = (SourceJournal::default(), Some(At { at: at() }));
    let frozen = AttestationStatus { frozen: Some(Frozen { at: self::at(), containers: vec![] }), ..AttestationStatus::default() };
    assert_eq!(next(&in_phase(Phase::Freezing), &frozen, &none, Deletion::NotShown, 0), SourceAction::Checkpoint);
    let checkpointed = AttestationStatus { checkpointed: at, ..frozen };
    assert_eq!(next(&in_phase(Phase::Freezing), &checkpointed, &none, Deletion::NotShown, 0), SourceAction::Wait);
    assert_eq!(next(&in_phase(Phase::Checkpointing), &checkpointed, &none, Deletion::NotShown, 0), SourceAction::Push);
    let pushed = AttestationStatus { pushed: Some(Pushed { at: self::at(), images: vec![] }), ..checkpointed };
    assert_eq!(
        next(&in_phase(Phase::Checkpointing), &pushed, &none, Deletion::NotShown, 0),
        SourceAction::Wait,
        "no vote before the manager has followed"
    );
    assert_eq!(next(&in_phase(Phase::Transferring), &pushed, &none, Deletion::NotShown, 0), SourceAction::Vote);
}

#[test]
fn an_unvoted_source_gives_up_when_its_budget_is_over() {
    let journal = SourceJournal { frozen_at: Some(second(0)), ..Default::default() };
    let own = AttestationStatus::default();
    assert_eq!(next(&in_phase(Phase::Transferring), &own, &journal, Deletion::NotShown, 60), SourceAction::Push);
    assert!(matches!(next(&in_phase(Phase::Transferring), &own, &journal, Deletion::NotShown, 62), SourceAction::Abort(_)));
    let told = AttestationStatus { abort: Some(Remark { at: at(), message: "late".into() }), ..Default::default() };
    let journal = SourceJournal { aborted: Some("late".into()), ..journal };
    assert_eq!(next(&in_phase(Phase::Transferring), &told, &journal, Deletion::NotShown, 63), SourceAction::Thaw);
    let thawed = AttestationStatus { thawed: Some(At { at: at() }), ..told };
    assert_eq!(next(&in_phase(Phase::Transferring), &thawed, &journal, Deletion::NotShown, 64), SourceAction::Wait);
}

#[test]
fn a_voter_waits_for_the_verdict_however_long_it_takes() {
    let journal = SourceJournal { frozen_at: Some(second(0)), voted: true, aborted: None };
    let own = AttestationStatus::default();
    for phase in [Phase::AwaitingReadiness, Phase::Restoring] {
        assert_eq!(next(&in_phase(phase), &own, &journal, Deletion::NotShown, 100_000), SourceAction::Wait);
    }
    let rollback = MigrationStatus { verdict: Some(Verdict::Rollback), phase: Phase::Finishing, ..Default::default() };
    assert_eq!(next(&rollback, &own, &journal, Deletion::NotShown, 100_000), SourceAction::Thaw);
}

#[test]
fn the_source_is_killed_only_when_its_kubelet_shows_the_deletion() {
    let status = MigrationStatus { verdict: Some(Verdict::Commit), phase: Phase::Finishing, ..Default::default() };
    let confirmed = AttestationStatus { confirmed: Some(At { at: at() }), ..Default::default() };
    let step = |destination: &AttestationStatus, deletion| {
        source_next(&status, &AttestationStatus::default(), destination, &SourceJournal::default(), deletion, BUDGET, second(0))
    };
    assert_eq!(step(&confirmed, Deletion::NotShown), SourceAction::Wait);
    assert_eq!(step(&confirmed, Deletion::Shown), SourceAction::Kill);
    assert_eq!(step(&confirmed, Deletion::Gone), SourceAction::Forget);
    assert_eq!(step(&AttestationStatus::default(), Deletion::Shown), SourceAction::Wait);
}

#[test]
fn a_checkpoint_is_collected_only_after_the_original_is_seen_running() {
    let rollback = MigrationStatus { verdict: Some(Verdict::Rollback), phase: Phase::Finishing, ..Default::default() };
    let own = AttestationStatus::default();
    let never_frozen = AttestationStatus::default();
    assert_eq!(destination_next(&rollback, &own, &never_frozen), DestinationAction::CleanAfterRollback);
    let frozen = AttestationStatus { frozen: Some(Frozen { at: at(), containers: vec![] }), ..Default::default() };
    assert_eq!(destination_next(&rollback, &own, &frozen), DestinationAction::Wait);
    let thawed = AttestationStatus { thawed: Some(At { at: at() }), ..frozen.clone() };
    assert_eq!(destination_next(&rollback, &own, &thawed), DestinationAction::CleanAfterRollback);
    let fallen = MigrationStatus { fallback: Some(crate::api::migration::ReplacementStatus::default()), ..rollback };
    let ended = AttestationStatus { ended: Some(At { at: at() }), ..frozen };
    assert_eq!(destination_next(&fallen, &own, &ended), DestinationAction::Wait, "the node that has the archive may still be lost");
    let collected = AttestationStatus { cleaned: Some(At { at: at() }), ..ended };
    assert_eq!(destination_next(&fallen, &own, &collected), DestinationAction::CleanAfterRollback, "the fallback is confirmed");
}

#[test]
fn a_frozen_pod_that_is_deleted_is_thawed_before_the_vote() {
    let journal = SourceJournal { frozen_at: Some(second(0)), ..Default::default() };
    let step = next(&in_phase(Phase::Checkpointing), &AttestationStatus::default(), &journal, Deletion::Shown, 1);
    assert!(matches!(step, SourceAction::Abort(_)));
}

#[test]
fn a_source_that_goes_first_is_ended_and_its_archives_stay_until_a_copy_is_confirmed() {
    let journal = SourceJournal { frozen_at: Some(second(0)), voted: true, aborted: None };
    let mut status = MigrationStatus { phase: Phase::SourceDeleting, source_first: Some(true), ..Default::default() };
    let own = AttestationStatus::default();
    assert_eq!(next(&status, &own, &journal, Deletion::NotShown, 0), SourceAction::Wait);
    assert_eq!(next(&status, &own, &journal, Deletion::Shown, 0), SourceAction::Kill);
    assert_eq!(next(&status, &own, &journal, Deletion::Gone, 0), SourceAction::End);
    let own = AttestationStatus { ended: Some(At { at: at() }), archived: Some(Archived { at: at(), paths: vec![], last: true }), ..own };
    assert_eq!(next(&status, &own, &journal, Deletion::Gone, 0), SourceAction::Wait);
    for verdict in [Verdict::Commit, Verdict::Rollback] {
        status.verdict = Some(verdict);
        status.fallback = (verdict == Verdict::Rollback).then(Default::default);
        let step = |copy: &AttestationStatus| source_next(&status, &own, copy, &journal, Deletion::Gone, BUDGET, second(0));
        let restored = Some(Restored { at: at(), containers: vec![] });
        assert_eq!(step(&AttestationStatus { restored: restored.clone(), ..Default::default() }), SourceAction::Wait);
        assert_eq!(step(&AttestationStatus { restored, confirmed: Some(At { at: at() }), ..Default::default() }), SourceAction::Collect);
    }
}

#[test]
fn the_fallback_begins_only_once_its_pod_is_known() {
    let mut status = MigrationStatus {
        verdict: Some(Verdict::Rollback),
        fallback: Some(crate::api::migration::ReplacementStatus::default()),
        ..Default::default()
    };
    let mut own = AttestationStatus::default();
    assert_eq!(fallback_next(&status, &own), FallbackAction::Wait);
    status.fallback.as_mut().unwrap().uid = "new".into();
    assert_eq!(fallback_next(&status, &own), FallbackAction::Prepare);
    own.prepared = Some(Prepared { at: at(), push_address: String::new(), pull_address: String::new() });
    assert_eq!(fallback_next(&status, &own), FallbackAction::Restore);
    own.restored = Some(Restored { at: at(), containers: vec![] });
    assert_eq!(fallback_next(&status, &own), FallbackAction::Wait, "the manager may know that its pod is being deleted");
    status.fallback.as_mut().unwrap().containers.push(crate::api::migration::RestoredContainer::default());
    assert_eq!(fallback_next(&status, &own), FallbackAction::Confirm);
    own.confirmed = Some(At { at: at() });
    assert_eq!(fallback_next(&status, &own), FallbackAction::Clean);
    status.verdict = None;
    assert_eq!(fallback_next(&status, &own), FallbackAction::Wait);
}

#[test]
fn what_is_given_up_is_neither_restored_nor_confirmed_and_its_archives_stay() {
    let fallback = crate::api::migration::ReplacementStatus { uid: "new".into(), ..Default::default() };
    let (verdict, given_up) = (Some(Verdict::Rollback), Some(at()));
    let status =
        MigrationStatus { verdict, fallback: Some(fallback), source_first: Some(true), given_up, phase: Phase::Finishing, ..Default::default() };
    let (restored, confirmed) = (Some(Restored { at: at(), containers: vec![] }), Some(At { at: at() }));
    for copy in [AttestationStatus::default(), AttestationStatus { restored, confirmed, ..Default::default() }] {
        assert_eq!(fallback_next(&status, &copy), FallbackAction::Clear);
        let own = AttestationStatus {
            ended: Some(At { at: at() }),
            archived: Some(Archived { at: at(), paths: vec![], last: true }),
            ..Default::default()
        };
        let journal = SourceJournal { frozen_at: Some(second(0)), voted: true, aborted: None };
        assert_eq!(source_next(&status, &own, &copy, &journal, Deletion::Gone, BUDGET, second(0)), SourceAction::Keep);
    }
    assert_eq!(fallback_next(&status, &AttestationStatus { cleaned: Some(At { at: at() }), ..Default::default() }), FallbackAction::Wait);
}

#[test]
fn a_same_name_replacement_is_expected_once_it_is_made() {
    let pod = |uid: &str| Some(crate::api::migration::ReplacementStatus { name: "p".into(), uid: uid.into(), ..Default::default() });
    let nothing = AttestationStatus::default();
    let mut status = MigrationStatus { phase: Phase::SourceDeleting, placeholder: pod("holder"), replacement: pod(""), ..Default::default() };
    assert_eq!(destination_next(&status, &nothing, &nothing), DestinationAction::Wait);
    status.replacement = pod("new");
    assert_eq!(destination_next(&status, &nothing, &nothing), DestinationAction::Arm);
    status.placeholder = None;
    assert_eq!(destination_next(&status, &nothing, &nothing), DestinationAction::Wait, "a new-name one was armed in Preparing");
}
