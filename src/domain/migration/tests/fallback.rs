//! What a migration falls back to whose source was deleted, and what becomes of one that cannot be restored there either.

use kube::ResourceExt as _;

use super::*;
use crate::{
    api::attestation::Kept,
    domain::{keys, resolution::GIVE_UP},
};

/// Fallen back in SourceDeleting, with the pod of the fallback made.
pub(super) fn fallen() -> Walk {
    let mut walk = Walk::same_name();
    walk.walk_to(Phase::SourceDeleting);
    walk.end_source();
    walk.settle();
    assert_eq!(walk.observed.replacement.as_ref().and_then(|pod| pod.metadata.uid.as_deref()), Some("same-name-uid"));
    walk.observed.destination_ready = Some(false);
    assert_eq!(walk.settle(), Phase::Finishing);
    walk
}

#[test]
fn a_destination_that_fails_leads_back_to_the_source_node() {
    let mut walk = fallen();
    assert_eq!(walk.status().fallback.as_ref().map(|f| (f.name.as_str(), f.uid.as_str())), Some(("p", "fallback-uid")));
    assert!(walk.status().message.contains("n2 is not Ready"), "{}", walk.status().message);
    assert!(walk.observed.fallback_attestation.as_ref().is_some_and(|a| a.spec.node_name == "n1" && a.spec.pod_uid == "fallback-uid"));
    assert!(!walk.observed.source.as_ref().unwrap().annotations().contains_key(keys::CLAIM), "no claim before the archive is there");
    walk.attest(Role::Fallback, |s| s.prepared = Some(Prepared { at: at(9), push_address: String::new(), pull_address: String::new() }));
    assert_eq!(walk.effects(), vec![Effect::Claim { uid: "fallback-uid".into() }]);
    walk.settle();
    walk.attest(Role::Fallback, |s| s.restored = Some(Restored { at: at(10), containers: containers() }));
    walk.settle();
    assert_eq!(walk.status().frozen_millis, Some(7000));
    walk.attest(Role::Fallback, |s| {
        s.confirmed = Some(At { at: at(11) });
        s.cleaned = Some(At { at: at(11) });
    });
    assert_eq!(walk.settle(), Phase::Finishing, "the archives are not collected yet");
    walk.collect();
    walk.now = 200;
    assert_eq!(walk.settle(), Phase::Done);
    assert_eq!(walk.status().outcome, Some(Outcome::RolledBack));
    for words in ["n2 is not Ready", "restored on the source node n1 from the kept archive"] {
        assert!(walk.status().message.contains(words), "{}", walk.status().message);
    }
    assert!(walk.observed.template.is_none());
}

#[test]
fn a_fallback_that_fails_is_held_with_the_archive_and_goes_on_when_it_can() {
    let mut walk = fallen();
    walk.attest(Role::Fallback, |s| s.failure = Some(Remark { at: at(9), message: "the disk is full".into() }));
    walk.settle();
    assert!(walk.is_held());
    for words in ["the disk is full", "/checkpoints/c.tar", "node n1"] {
        assert!(walk.status().message.contains(words), "{}", walk.status().message);
    }
    walk.attest(Role::Fallback, |s| {
        s.failure = None;
        s.prepared = Some(Prepared { at: at(9), push_address: String::new(), pull_address: String::new() });
    });
    walk.settle();
    assert!(walk.observed.source.as_ref().unwrap().annotations().contains_key(keys::CLAIM));
    walk.now = 1000;
    walk.settle();
    assert!(walk.is_held() && walk.status().message.matches("the fallback onto").count() == 1, "{}", walk.status().message);
}

#[test]
fn a_fallback_that_is_deleted_is_held() {
    let mut walk = fallen();
    walk.lose_replacement();
    walk.settle();
    assert!(walk.is_held() && walk.status().message.contains("its pod was deleted"), "{}", walk.status().message);
}

/// Fallen back, and restored on the source node.
fn restored_back() -> Walk {
    let mut walk = fallen();
    walk.attest(Role::Fallback, |s| {
        s.prepared = Some(Prepared { at: at(9), push_address: String::new(), pull_address: String::new() });
        s.restored = Some(Restored { at: at(10), containers: containers() });
    });
    walk
}

#[test]
fn a_restored_fallback_that_is_being_deleted_is_not_written_down() {
    let mut walk = restored_back();
    walk.observed.source.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(second(10)));
    walk.observed.replacement = walk.observed.source.clone();
    walk.settle();
    assert!(walk.is_held() && walk.status().message.contains("its pod was deleted"), "{}", walk.status().message);
    assert!(walk.status().fallback.as_ref().unwrap().containers.is_empty(), "its agent confirms nothing, and the archives stay");
}

#[test]
fn a_source_node_that_is_lost_after_the_fallback_is_a_hold_and_a_silent_destination_is_not_waited_for() {
    let mut walk = restored_back();
    walk.settle();
    walk.attest(Role::Fallback, |s| s.confirmed = Some(At { at: at(11) }));
    walk.settle();
    assert!(!walk.is_held(), "{}", walk.status().message);
    walk.now = 1000;
    assert_eq!(walk.settle(), Phase::Finishing);
    for words in ["look at node n1", "a copy of the checkpoint stays in the registry of node n2"] {
        assert!(walk.is_held() && walk.status().message.contains(words), "{}", walk.status().message);
    }
    walk.attest(Role::Fallback, |s| s.cleaned = Some(At { at: at(1000) }));
    walk.attest(Role::Source, |s| s.cleaned = Some(At { at: at(1000) }));
    walk.observed.destination_ready = Some(true);
    assert_eq!(walk.settle(), Phase::Finishing, "the destination begins to clean up only now");
    walk.now = 1060;
    assert_eq!(walk.settle(), Phase::Done);
    assert!(walk.status().message.contains("cleans up when it is back") && !walk.is_held(), "{}", walk.status().message);
}

#[test]
fn after_the_release_a_fallback_needs_the_proof() {
    let mut walk = Walk::same_name();
    walk.walk_to(Phase::Restoring);
    walk.attest(Role::Destination, |s| s.failure = Some(Remark { at: at(8), message: "restore failed".into() }));
    walk.settle();
    walk.now = 60;
    walk.settle();
    assert!(walk.is_held() && walk.status().verdict.is_none());
    walk.attest(Role::Destination, |s| s.never_started = Some(never_started()));
    assert_eq!(walk.settle(), Phase::Finishing);
    assert_eq!(walk.status().fallback.as_ref().map(|f| f.uid.as_str()), Some("fallback-uid"), "the failed replacement made room for it");
}

/// A fallback that was refused, and what a person has said of it.
fn given_up() -> Walk {
    let mut walk = fallen();
    walk.attest(Role::Fallback, |s| s.failure = Some(Remark { at: at(9), message: "CRIU refuses it".into() }));
    walk.settle();
    assert!(walk.is_held() && walk.status().message.contains("drover resolve m -n d --give-up"), "{}", walk.status().message);
    walk.migration.annotations_mut().insert(keys::RESOLVE.into(), GIVE_UP.into());
    walk.settle();
    walk
}

#[test]
fn what_is_given_up_ends_with_its_archives_kept_and_its_name_free() {
    let mut walk = given_up();
    assert!(walk.status().given_up.is_some() && !walk.is_held(), "written before anything is done");
    assert!(walk.observed.source.is_none(), "the pod is deleted");
    assert_eq!(walk.status().phase, Phase::Finishing, "nobody has said yet that the archives are kept");
    walk.attest(Role::Fallback, |s| s.cleaned = Some(At { at: at(12) }));
    walk.attest(Role::Source, |s| {
        s.cleaned = Some(At { at: at(12) });
        s.kept = Some(Kept { at: at(12), archives: vec!["/checkpoints/kept-u-c.tar".into()] });
    });
    walk.now = 200;
    assert_eq!(walk.settle(), Phase::Done);
    assert_eq!(walk.status().outcome, Some(Outcome::GivenUp));
    for words in ["n2 is not Ready", "CRIU refuses it, and it was given up by drover resolve: nothing of the pod runs", "kept-u-c.tar"] {
        assert!(walk.status().message.contains(words), "{}", walk.status().message);
    }
}

#[test]
fn a_copy_that_is_confirmed_after_it_was_given_up_ends_no_archive_and_a_silent_node_is_a_hold() {
    let mut walk = given_up();
    walk.attest(Role::Fallback, |s| {
        s.restored = Some(Restored { at: at(12), containers: containers() });
        s.confirmed = Some(At { at: at(12) });
    });
    assert_eq!(walk.settle(), Phase::Finishing);
    assert!(walk.status().fallback.as_ref().unwrap().containers.is_empty(), "what was given up stays so");
    walk.now = 1000;
    walk.settle();
    assert!(walk.is_held() && walk.status().message.contains("look at node n1"), "{}", walk.status().message);
}

#[test]
fn nobody_gives_up_what_has_not_failed() {
    let mut walk = fallen();
    walk.migration.annotations_mut().insert(keys::RESOLVE.into(), GIVE_UP.into());
    walk.settle();
    assert!(walk.status().given_up.is_none() && walk.observed.source.is_some());
}
