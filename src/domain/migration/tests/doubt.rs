//! What is held, and what a decision makes of it.

use super::*;
use crate::{
    api::{
        attestation::{Died, Kept},
        migration::{Decider, InDoubt, Side},
    },
    domain::keys,
};

/// Released, and the destination was asked to close the claims.
fn in_doubt() -> Walk {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Restoring);
    walk.attest(Role::Destination, |s| s.failure = Some(Remark { at: at(8), message: "container c has ended with exit code 137".into() }));
    walk.settle();
    assert!(walk.status().revocation.is_some() && !walk.is_held());
    walk
}

fn died(walk: &mut Walk) {
    let taken = ClosedClaim { name: "c".into(), state: "taken".into(), proof: String::new() };
    walk.attest(Role::Destination, |s| s.died = Some(Died { at: at(9), containers: vec![taken] }));
}

fn decide(walk: &mut Walk, how: &str) {
    walk.migration.metadata.annotations = Some([(keys::RESOLVE.to_owned(), how.to_owned())].into());
}

fn thaw_and_clean(walk: &mut Walk) {
    walk.attest(Role::Source, |s| s.thawed = Some(At { at: at(11) }));
    walk.attest(Role::Destination, |s| s.cleaned = Some(At { at: at(11) }));
    walk.settle();
}

#[test]
fn a_replacement_that_ran_and_died_is_held_with_the_commands_to_type() {
    let mut walk = in_doubt();
    died(&mut walk);
    assert_eq!(walk.settle(), Phase::Restoring);
    assert!(walk.is_held() && walk.status().verdict.is_none());
    for command in ["drover resolve m -n d --prefer source", "drover resolve m -n d --prefer destination"] {
        assert!(walk.status().message.contains(command), "{}", walk.status().message);
    }
    assert!(walk.observed.replacement.is_some() && walk.observed.source.is_some(), "a hold touches neither copy");
}

/// Who decides for the source must know that it begins anew.
#[test]
fn a_source_that_was_booted_meanwhile_is_not_called_frozen() {
    let mut walk = in_doubt();
    died(&mut walk);
    let state = |state: &str| {
        serde_json::from_value(serde_json::json!({"containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": false,
        "restartCount": 0, "state": {state: {"exitCode": 255}}}]}))
        .unwrap()
    };
    walk.observed.source.as_mut().unwrap().status = state("running");
    walk.settle();
    assert!(walk.status().message.contains("the source stays frozen and is not deleted"), "{}", walk.status().message);
    walk.observed.source.as_mut().unwrap().status = state("terminated");
    walk.settle();
    let message = walk.status().message.clone();
    assert!(message.contains("of it c runs no more, as after a boot of node n1: its memory is lost"), "{message}");
    assert!(message.contains("To go on with the source, from its image: drover resolve m -n d --prefer source"), "{message}");
}

#[test]
fn a_person_sends_the_source_on_and_the_loss_is_told() {
    let mut walk = in_doubt();
    died(&mut walk);
    walk.settle();
    decide(&mut walk, "source");
    assert_eq!(walk.settle(), Phase::Finishing);
    let resolved = walk.status().resolved.clone().unwrap();
    assert_eq!((resolved.prefer, resolved.by, walk.status().verdict), (Side::Source, Decider::Person, Some(Verdict::Rollback)));
    thaw_and_clean(&mut walk);
    assert_eq!(walk.status().outcome, Some(Outcome::RolledBack));
    assert!(walk.status().message.contains("what the replacement did since the release is lost"), "{}", walk.status().message);
}

#[test]
fn the_policy_sends_the_source_on_only_after_the_word_that_nothing_runs() {
    let mut walk = Walk::new();
    walk.migration.spec.in_doubt = InDoubt::PreferSource;
    walk.walk_to(Phase::Restoring);
    walk.observed.destination_ready = Some(false);
    walk.settle();
    walk.now = 600;
    walk.settle();
    assert!(walk.is_held() && walk.observed.replacement.is_some(), "a node that is silent may run it");
    walk.observed.destination_ready = Some(true);
    died(&mut walk);
    assert_eq!(walk.settle(), Phase::Finishing);
    assert_eq!(walk.status().resolved.as_ref().map(|r| r.by), Some(Decider::Policy));
    assert!(!walk.is_held());
}

#[test]
fn a_destination_that_is_down_for_good_needs_a_persons_word_and_loses_the_object_first() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Restoring);
    walk.observed.destination_ready = Some(false);
    walk.settle();
    walk.now = 600;
    walk.settle();
    assert!(walk.status().message.contains("--prefer source --destination-is-down"), "{}", walk.status().message);
    decide(&mut walk, "source-destination-is-down");
    let uid = walk.status().replacement.as_ref().unwrap().uid.clone();
    assert!(walk.step().status.is_some_and(|status| status.resolved.is_some()), "first the decision is written");
    assert_eq!(walk.step().effects, vec![Effect::DeleteReplacement { uid, force: true }]);
    assert_eq!(walk.settle(), Phase::Finishing);
    assert_eq!(walk.status().verdict, Some(Verdict::Rollback));
}

#[test]
fn a_replacement_that_goes_on_cold_is_never_migrated_and_the_checkpoint_is_named() {
    let mut walk = in_doubt();
    died(&mut walk);
    decide(&mut walk, "destination");
    assert_eq!(walk.settle(), Phase::Finishing);
    assert!(walk.observed.source.is_some(), "not before the replacement runs");
    walk.attest(Role::Destination, |s| {
        s.confirmed = Some(At { at: at(12) });
        s.cleaned = Some(At { at: at(12) });
    });
    walk.attest(Role::Source, |s| {
        s.ended = Some(At { at: at(13) });
        s.kept = Some(Kept { at: at(13), archives: vec!["/checkpoints/kept-c.tar".into()] });
    });
    assert_eq!(walk.settle(), Phase::Done);
    assert_eq!(walk.status().outcome, Some(Outcome::ColdStarted));
    assert!(walk.status().message.contains("node n1: /checkpoints/kept-c.tar"), "{}", walk.status().message);
    assert!(walk.observed.source.is_none());
}

#[test]
fn a_copy_that_is_being_deleted_is_not_committed_to() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Restoring);
    walk.attest(Role::Destination, |s| s.restored = Some(Restored { at: at(8), containers: containers() }));
    walk.observed.replacement.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(second(8)));
    assert_eq!(walk.settle(), Phase::Restoring);
    assert!(walk.status().revocation.is_some() && walk.status().verdict.is_none());
    walk.observed.replacement = None;
    died(&mut walk);
    walk.settle();
    assert!(walk.is_held(), "what it did is lost, and a person must know");
}

#[test]
fn a_copy_that_ends_before_its_confirmation_goes_on_cold_only_by_a_decision() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Finishing);
    walk.attest(Role::Destination, |s| s.failure = Some(Remark { at: at(9), message: "a restored container has ended".into() }));
    walk.settle();
    assert!(walk.is_held() && walk.status().message.contains("drover resolve m -n d --prefer destination"), "{}", walk.status().message);
    decide(&mut walk, "source");
    walk.settle();
    assert!(walk.is_held() && walk.status().resolved.is_none(), "a verdict is written once");
    decide(&mut walk, "destination");
    walk.settle();
    assert_eq!(walk.status().resolved.as_ref().map(|r| r.prefer), Some(Side::Destination));
    walk.walk_to(Phase::Done);
    assert_eq!(walk.status().outcome, Some(Outcome::ColdStarted));
}

#[test]
fn what_a_silent_source_node_will_keep_is_named_before_the_end() {
    let mut walk = Walk::new();
    walk.migration.spec.keep_name = true;
    walk.walk_to(Phase::Finishing);
    walk.attest(Role::Destination, |s| s.failure = Some(Remark { at: at(9), message: "a restored container has ended".into() }));
    decide(&mut walk, "destination");
    walk.settle();
    walk.attest(Role::Destination, |s| {
        s.confirmed = Some(At { at: at(12) });
        s.cleaned = Some(At { at: at(12) });
    });
    assert_eq!(walk.settle(), Phase::Finishing, "its agent may still say where they are");
    walk.now = 600;
    assert_eq!(walk.settle(), Phase::Done);
    assert_eq!(walk.status().outcome, Some(Outcome::ColdStarted));
    for named in ["on node n1: /checkpoints/c.tar", &keys::kept_archive(UID, "c")] {
        assert!(walk.status().message.contains(named), "{}", walk.status().message);
    }
}

#[test]
fn a_source_node_has_its_time_to_collect_from_the_confirmation_on() {
    let mut walk = Walk::new();
    walk.migration.spec.keep_name = true;
    walk.walk_to(Phase::Finishing);
    walk.now = 100;
    walk.attest(Role::Destination, |s| {
        s.confirmed = Some(At { at: at(99) });
        s.cleaned = Some(At { at: at(99) });
    });
    assert_eq!(walk.settle(), Phase::Finishing, "its agent has just heard of it");
    walk.now = 150;
    assert_eq!(walk.settle(), Phase::Done);
    assert_eq!(walk.status().outcome, Some(Outcome::Migrated));
}

#[test]
fn an_annotation_that_is_no_decision_is_named_in_the_hold() {
    let mut walk = in_doubt();
    died(&mut walk);
    decide(&mut walk, "thaw it; now");
    walk.settle();
    assert!(walk.is_held() && walk.status().message.contains("\"thaw it; now\" is no decision"), "{}", walk.status().message);
}

#[test]
fn a_replacement_that_is_gone_cannot_go_on_cold_and_is_held() {
    let mut walk = in_doubt();
    died(&mut walk);
    decide(&mut walk, "destination");
    assert_eq!(walk.settle(), Phase::Finishing);
    assert!(!walk.is_held());
    walk.observed.replacement = None;
    walk.settle();
    assert!(walk.is_held() && walk.observed.source.is_some(), "{}", walk.status().message);
}

#[test]
fn a_lost_replacement_after_the_release_is_asked_after_and_then_held() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Restoring);
    walk.observed.replacement = None;
    walk.settle();
    assert_eq!((walk.phase(), walk.status().verdict), (Phase::Restoring, None));
    assert!(walk.status().revocation.is_some() && !walk.is_held(), "first the destination is asked");
    walk.now = 60;
    walk.settle();
    assert!(walk.is_held() && walk.status().message.contains("is gone"), "{}", walk.status().message);
}

#[test]
fn a_destination_that_goes_away_after_the_release_is_asked_when_it_is_back() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Restoring);
    walk.observed.destination_ready = Some(false);
    walk.settle();
    assert!(walk.status().revocation.as_ref().is_some_and(|r| r.message.contains("not Ready")));
    walk.now = 600;
    walk.settle();
    assert!(walk.is_held() && walk.status().verdict.is_none(), "nobody can prove anything");
    walk.observed.destination_ready = Some(true);
    walk.attest(Role::Destination, |s| s.never_started = Some(never_started()));
    assert_eq!(walk.settle(), Phase::Finishing);
    assert!(!walk.is_held() && walk.status().verdict == Some(Verdict::Rollback));
}

#[test]
fn a_node_that_never_does_its_part_of_the_end_is_named_by_a_hold() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::AwaitingReadiness);
    walk.attest(Role::Source, |s| s.abort = Some(Remark { at: at(8), message: "late".into() }));
    walk.settle();
    assert!(!walk.is_held());
    walk.now += 200;
    walk.settle();
    assert!(walk.is_held() && walk.status().message.contains("look at node n1"), "{}", walk.status().message);
    thaw_and_clean(&mut walk);
    assert_eq!(walk.status().outcome, Some(Outcome::RolledBack));
    assert!(!walk.is_held() && walk.status().message.ends_with("late"), "{}", walk.status().message);
}

#[test]
fn a_copy_that_nobody_confirms_is_held_after_a_while() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Finishing);
    walk.settle();
    assert!(walk.status().verdict == Some(Verdict::Commit) && !walk.is_held());
    walk.now += 200;
    walk.settle();
    assert!(walk.is_held() && walk.status().message.contains("has not confirmed"), "{}", walk.status().message);
    walk.attest(Role::Destination, |s| s.confirmed = Some(At { at: at(300) }));
    walk.settle();
    assert!(walk.observed.source.is_none(), "late is soon enough");
}

#[test]
fn a_decision_that_ends_the_replacement_is_written_first_and_nothing_is_committed_after_it() {
    let mut walk = in_doubt();
    decide(&mut walk, "source");
    let step = walk.step();
    assert!(step.effects.is_empty() && walk.status().resolved.is_some(), "written, and nothing done yet");
    walk.attest(Role::Destination, |s| s.restored = Some(Restored { at: at(9), containers: containers() }));
    walk.settle();
    assert_eq!(walk.status().verdict, None, "a restore that is told now is too late: somebody may be deleting it");
    assert!(walk.observed.replacement.is_none());
    decide(&mut walk, "destination");
    died(&mut walk);
    walk.settle();
    assert_eq!((walk.status().verdict, walk.status().resolved.as_ref().unwrap().prefer), (Some(Verdict::Rollback), Side::Source), "decided once");
}

#[test]
fn what_was_deleted_as_a_whole_is_waited_for_no_longer() {
    let gone_to = |namespace: Option<&str>, phase: Phase, keep: fn(&mut Observed, Observed)| {
        let mut walk = Walk::new();
        walk.migration.spec.destination_namespace = namespace.map(str::to_owned);
        walk.walk_to(phase);
        walk.migration.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(second(20)));
        let before = std::mem::take(&mut walk.observed);
        keep(&mut walk.observed, before);
        walk.step().effects
    };
    let gone = |phase, keep| gone_to(None, phase, keep);
    let abandoned = [Effect::RemovePullCredentials, Effect::RemoveFinalizer];
    assert_eq!(gone(Phase::Restoring, |_, _| {}), abandoned);
    assert_ne!(gone(Phase::Restoring, |now, before| now.source = before.source), abandoned, "a frozen source is waited for");
    assert_ne!(gone(Phase::Restoring, |now, before| now.replacement = before.replacement), abandoned, "and a copy");
    assert_ne!(gone(Phase::Restoring, |now, before| now.source_attestation = before.source_attestation), abandoned, "and who can speak of one");
    assert_ne!(gone(Phase::Restoring, |now, before| now.destination_attestation = before.destination_attestation), abandoned);
    assert_ne!(gone(Phase::Transferring, |_, _| {}), abandoned, "before the release it is undone in order");
    let elsewhere = |phase, keep| gone_to(Some("other"), phase, keep);
    assert_eq!(elsewhere(Phase::Restoring, |now, before| now.replacement = before.replacement), abandoned, "it does not go with this namespace");
    assert_ne!(elsewhere(Phase::Restoring, |now, before| now.source = before.source), abandoned, "a frozen source is waited for there too");
}

/// Its kubelet, which may hear late of the deletion, has confirmed it all the same.
#[test]
fn the_source_is_not_ended_for_a_copy_that_is_being_deleted() {
    for goes in [false, true] {
        let mut walk = Walk::new();
        walk.walk_to(Phase::Finishing);
        walk.observed.replacement.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(second(9)));
        if goes {
            walk.observed.replacement = None;
        }
        walk.attest(Role::Destination, |s| s.confirmed = Some(At { at: at(9) }));
        assert_eq!(walk.settle(), Phase::Finishing);
        assert!(walk.observed.source.is_some(), "it may be the only copy");
        assert!(walk.is_held() && walk.status().message.contains("kubectl delete pod p -n d"), "{}", walk.status().message);
    }
}
