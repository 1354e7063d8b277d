//! A checkpoint that is the last to have the memory is not collected (R18).

use super::*;
use crate::api::{
    Verdict,
    attestation::At,
    migration::{Decider, Resolved, Side},
};

pub(super) fn kept_names(course: &Course) -> Vec<String> {
    let files = std::fs::read_dir(course.disk.path().join("checkpoints")).unwrap();
    let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_rollback_keeps_the_archives_of_a_source_that_ended_while_it_was_frozen() {
    let course = Course::voted();
    for task in &mut course.node.state().tasks {
        task.state = TaskState::Stopped;
    }
    course.node.manager_writes(|status| (status.verdict, status.phase) = (Some(Verdict::Rollback), Phase::Finishing));
    course.look().unwrap();
    let names = kept_names(&course);
    assert_eq!(names, [format!("kept-{UID}-app.tar"), format!("kept-{UID}-side.tar")]);
    let said = course.said();
    assert!(said.thawed.is_some());
    assert!(said.kept.is_some_and(|kept| kept.archives.len() == 2 && kept.archives[0].ends_with(&names[0])));
}

#[tokio::test]
async fn an_archive_that_the_agent_died_before_hearing_of_is_kept_too() {
    let course = Course::new();
    let stale = course.disk.path().join("checkpoints/checkpoint-p_d-app-2026-11-20T06:20:00Z.tar");
    std::fs::write(&stale, "of an earlier pod of this name").unwrap();
    course.freeze();
    assert!(!stale.exists(), "it would pass for this migration's");
    std::fs::write(course.disk.path().join("checkpoints/checkpoint-p_d-app-2026-11-23T06:20:00Z.tar"), "memory").unwrap();
    course.node.state().tasks.clear();
    course.node.manager_writes(|status| (status.verdict, status.phase) = (Some(Verdict::Rollback), Phase::Finishing));
    course.look().unwrap();
    assert_eq!(kept_names(&course), [format!("kept-{UID}-app.tar")]);
    assert_eq!(course.said().kept.map(|kept| kept.archives.len()), Some(1));
}

#[tokio::test]
async fn a_checkpoint_that_is_taken_again_removes_no_archive_of_a_source_that_is_gone() {
    let course = Course::frozen();
    std::fs::write(course.disk.path().join("checkpoints/checkpoint-p_d-app-2026-11-23T06:20:00Z.tar"), "memory").unwrap();
    course.node.state().tasks.clear();
    course.manager();
    course.look().unwrap();
    assert!(course.said().abort.is_some());
    assert_eq!(kept_names(&course), [format!("kept-{UID}-app.tar")]);
}

#[tokio::test]
async fn a_rollback_keeps_the_archives_where_one_container_of_two_ended() {
    let course = Course::voted();
    course.node.state().tasks[1].state = TaskState::Stopped;
    course.node.manager_writes(|status| (status.verdict, status.phase) = (Some(Verdict::Rollback), Phase::Finishing));
    course.look().unwrap();
    assert_eq!(kept_names(&course).len(), 2, "a pod goes on with the memory of all of its containers or with none");
}

#[tokio::test]
async fn a_rollback_of_a_living_source_keeps_nothing() {
    let course = Course::voted();
    course.node.manager_writes(|status| (status.verdict, status.phase) = (Some(Verdict::Rollback), Phase::Finishing));
    course.look().unwrap();
    assert!(course.said().kept.is_none());
    course.assert_thawed();
}

#[tokio::test]
async fn a_commit_in_doubt_keeps_the_archives_and_names_them() {
    let course = Course::voted();
    let resolved = Resolved { at: at(9), prefer: Side::Destination, by: Decider::Person, message: "decided".into() };
    course.node.manager_writes(|status| {
        (status.verdict, status.phase, status.resolved) = (Some(Verdict::Commit), Phase::Finishing, Some(resolved));
    });
    course.node.other_attests(Role::Destination, AttestationStatus { confirmed: Some(At { at: at(9) }), ..Default::default() });
    course.node.state().pods.clear();
    course.node.state().tasks.clear();
    course.look().unwrap();
    assert!(course.said().ended.is_some());
    assert_eq!(course.said().kept.map(|kept| kept.archives.len()), Some(2));
    assert_eq!(kept_names(&course).len(), 2);
}

#[tokio::test]
async fn a_voted_journal_that_outlived_its_thaw_and_its_migration_is_swept_and_a_frozen_one_is_not() {
    let course = Course::voted();
    let left = course.journals().all().unwrap().remove(0);
    let migration = course.node.state().migration.take();
    settled(course.agent().sweep()).unwrap().unwrap();
    course.assert_frozen();

    course.node.state().migration = migration;
    course.node.manager_writes(|status| (status.verdict, status.phase) = (Some(Verdict::Rollback), Phase::Finishing));
    course.look().unwrap();
    course.assert_thawed();
    course.journals().save(&left).unwrap();
    course.node.state().migration = None;
    settled(course.agent().sweep()).unwrap().unwrap();
    assert_eq!(course.journals().all().unwrap(), vec![]);
}

#[tokio::test]
async fn what_was_deleted_with_its_migration_is_forgotten_once_nothing_of_it_is_left_and_its_memory_kept() {
    let course = Course::voted();
    course.node.state().migration = None;
    course.node.state().pods.clear();
    settled(course.agent().sweep()).unwrap().unwrap();
    course.assert_frozen();
    course.node.state().tasks.clear();
    settled(course.agent().sweep()).unwrap().unwrap();
    assert_eq!((course.markers().fenced_by(POD).unwrap(), course.journals().all().unwrap()), (None, vec![]));
    assert_eq!(kept_names(&course).len(), 2);
}
