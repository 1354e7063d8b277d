//! Preflight: the spec and the running processes are judged together, and nothing is touched.

use super::*;
use crate::{
    api::{
        attestation::{Finding, Inspected},
        migration::Lane,
    },
    domain::{preflight::Blocker, room::Room},
};

fn findings(messages: &[&str]) -> Vec<Finding> {
    messages.iter().map(|message| Finding { field: "process[7 app].fd[3]".into(), message: (*message).into(), remedy: "close it".into() }).collect()
}

pub(super) fn inspected(blockers: &[&str], warnings: &[&str]) -> Inspected {
    Inspected { at: at(1), blockers: findings(blockers), warnings: findings(warnings), bytes: None, volume_bytes: None }
}

/// A migration whose source's agent is asked.
fn asked() -> Walk {
    let mut walk = Walk::new();
    assert_eq!(walk.settle(), Phase::Preflight);
    assert!(walk.observed.source_attestation.is_some(), "the source's agent is asked");
    walk
}

fn assert_untouched(walk: &Walk) {
    assert!(walk.observed.replacement.is_none() && !walk.observed.locked_by(&walk.migration));
}

#[test]
fn all_blockers_of_spec_and_processes_are_told_at_once() {
    let mut walk = Walk::new();
    walk.observed.blockers = vec![Blocker::new("spec.hostPID", "is set", "unset it"), Blocker::new("node n2", "is cordoned", "uncordon it")];
    assert_eq!(walk.settle(), Phase::Preflight, "the processes are looked at first");
    walk.attest(Role::Source, |s| s.inspected = Some(inspected(&["uses io_uring"], &[])));
    assert_eq!(walk.settle(), Phase::Done);
    assert_eq!(walk.status().outcome, Some(Outcome::Failed));
    for part in ["spec.hostPID", "cordoned", "process[7 app].fd[3]: uses io_uring (close it)"] {
        assert!(walk.status().message.contains(part), "{part} is not in {}", walk.status().message);
    }
    assert_untouched(&walk);
}

#[test]
fn what_the_processes_hold_is_enough_for_a_refusal() {
    let mut walk = asked();
    walk.attest(Role::Source, |s| s.inspected = Some(inspected(&["uses io_uring"], &[])));
    assert_eq!(walk.settle(), Phase::Done);
    assert_eq!(walk.status().outcome, Some(Outcome::Failed));
    assert_untouched(&walk);
}

#[test]
fn warnings_stay_in_the_status_and_keep_nobody() {
    let mut walk = asked();
    walk.attest(Role::Source, |s| s.inspected = Some(inspected(&[], &["is an SQLite database"])));
    assert_eq!(walk.settle(), Phase::Preparing);
    assert_eq!(walk.status().warnings, ["process[7 app].fd[3]: is an SQLite database (close it)"]);
}

#[test]
fn an_agent_that_does_not_answer_refuses_with_where_to_look() {
    let mut walk = asked();
    walk.now = 21;
    assert_eq!(walk.settle(), Phase::Preflight);
    walk.now = 22;
    assert_eq!(walk.settle(), Phase::Done);
    assert_eq!(walk.status().outcome, Some(Outcome::Failed));
    assert!(walk.status().message.contains("the agent of node n1") && walk.status().message.contains("drover-agent"), "{}", walk.status().message);
    assert_untouched(&walk);
}

#[test]
fn what_is_refused_anyway_does_not_wait_as_long_for_the_agent() {
    let mut walk = Walk::new();
    walk.observed.blockers = vec![Blocker::new("spec.hostPID", "is set", "unset it")];
    walk.settle();
    walk.now = 6;
    assert_eq!(walk.settle(), Phase::Done);
    assert!(walk.status().message.contains("spec.hostPID"), "{}", walk.status().message);
}

#[test]
fn a_check_looks_at_the_processes_and_touches_nothing() {
    for (blockers, outcome) in [(vec![], None), (vec!["uses io_uring"], Some(Outcome::Failed))] {
        let mut walk = Walk::new();
        walk.migration.spec.check_only = true;
        assert_eq!(walk.settle(), Phase::Preflight);
        walk.attest(Role::Source, |s| s.inspected = Some(inspected(&blockers, &["is an SQLite database"])));
        assert_eq!(walk.settle(), Phase::Done);
        assert_eq!(walk.status().outcome, outcome);
        assert_eq!(walk.status().message.contains("after a move: process[7 app]"), outcome.is_none(), "{}", walk.status().message);
        assert_untouched(&walk);
    }
}

#[test]
fn the_freeze_is_estimated_and_a_budget_that_will_not_do_is_warned_of() {
    for (gibibytes, warned) in [(1, false), (4, true)] {
        let mut walk = asked();
        walk.attest(Role::Source, |s| s.inspected = Some(Inspected { bytes: Some(gibibytes << 30), ..inspected(&[], &[]) }));
        assert_eq!(walk.settle(), Phase::Preparing);
        assert!(walk.status().estimated_freeze_millis > Some(gibibytes * 20_000), "{:?}", walk.status().estimated_freeze_millis);
        assert_eq!(walk.status().warnings.iter().any(|warning| warning.starts_with("spec.freezeBudgetSeconds")), warned);
    }
    let mut walk = asked();
    walk.observed.lane.lane = Lane::Runtime;
    walk.attest(Role::Source, |s| s.inspected = Some(Inspected { bytes: Some(4 << 30), ..inspected(&[], &[]) }));
    assert_eq!(walk.settle(), Phase::Preparing);
    assert!(walk.status().estimated_freeze_millis < Some(30_000), "it goes by the lane: {:?}", walk.status().estimated_freeze_millis);
}

#[test]
fn a_disk_without_room_refuses_the_move_or_ends_it_before_the_freeze() {
    let small = Room { free: 1 << 30, memory: 0, most: None };
    let carrying = |bytes| Inspected { bytes: Some(bytes), ..inspected(&[], &[]) };
    let mut walk = asked();
    walk.migration.spec.destination.node_name = Some("n2".into());
    walk.observed.rooms = [("n1".to_owned(), small), ("n2".to_owned(), small)].into();
    walk.attest(Role::Source, |s| s.inspected = Some(carrying(300 << 20)));
    assert_eq!(walk.settle(), Phase::Done);
    assert!(walk.status().message.contains("node n2: has 1024 MiB free for checkpoints"), "{}", walk.status().message);
    assert_untouched(&walk);

    // The disk has filled up since.
    let mut walk = asked();
    walk.attest(Role::Source, |s| s.inspected = Some(carrying(300 << 20)));
    assert_eq!(walk.settle(), Phase::Preparing);
    walk.observed.rooms = [("n2".to_owned(), small)].into();
    walk.prepare();
    assert_eq!(walk.settle(), Phase::Finishing);
    assert!(walk.status().message.contains("rolled back in phase Preparing: node n2: has 1024 MiB free"), "{}", walk.status().message);
}

#[test]
fn a_pod_that_carries_more_than_its_destination_allows_is_not_frozen_for_it() {
    let mut walk = asked();
    walk.migration.spec.destination.node_name = Some("n2".into());
    walk.observed.rooms = [("n2".to_owned(), Room { free: 1 << 40, memory: 0, most: Some(1 << 30) })].into();
    walk.attest(Role::Source, |s| s.inspected = Some(Inspected { bytes: Some(2 << 30), ..inspected(&[], &[]) }));
    assert_eq!(walk.settle(), Phase::Done);
    assert!(walk.status().message.contains("node n2: lets one migration store 1024 MiB"), "{}", walk.status().message);
    assert_untouched(&walk);
}
