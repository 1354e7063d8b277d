//! Pre-copy: memory is sent before the freeze, and nothing depends on it.

use super::*;
use crate::{api::migration::Lane, ports::Failure};

const MUCH: u64 = 1 << 30;

impl Course {
    /// Of a pod with so many bytes of memory, in the runtime lane.
    fn with_memory(bytes: u64) -> Self {
        let course = Self::new();
        course.node.manager_writes(|status| status.lane = Some(Lane::Runtime));
        let inspected = serde_json::from_value(serde_json::json!({"at": "2026-11-29T00:00:00.000000Z", "bytes": bytes})).unwrap();
        course.node.other_attests(Role::Source, AttestationStatus { inspected: Some(inspected), ..Default::default() });
        course
    }

    fn deeds_of_memory(&self) -> Vec<String> {
        self.node.state().trace.iter().filter(|deed| ["pre-copy", "pause", "send ahead"].iter().any(|of| deed.starts_with(of))).cloned().collect()
    }
}

/// One look of an agent that lives on, and what it does beside it.
async fn look(agent: &SourceAgent) -> Option<Duration> {
    let after = settled(agent.reconcile("d", "m")).unwrap().unwrap();
    tokio::task::yield_now().await;
    after
}

async fn go_on(course: &Course, agent: &SourceAgent) {
    for _ in 0..6 {
        look(agent).await;
        course.manager();
    }
    assert!(course.said().vote.is_some());
}

#[tokio::test]
async fn memory_is_sent_while_the_pod_runs_and_of_the_frozen_one_what_has_changed() {
    let course = Course::with_memory(MUCH);
    let agent = course.agent();
    assert!(look(&agent).await.is_some(), "looked at again");
    assert!(course.said().frozen.is_none() && course.all_in(TaskState::Running), "not before it was sent");
    go_on(&course, &agent).await;
    let expected = [
        "pre-copy app",
        "pre-copy side",
        "pause one",
        "pause two",
        "send ahead app, but for what is known",
        "send ahead side, but for what is known",
    ];
    assert_eq!(course.deeds_of_memory(), expected);
    assert!(agent.sending.lock().unwrap().is_empty(), "nothing is kept of it");
}

#[tokio::test]
async fn only_what_the_runtime_dumps_of_much_memory_is_sent_before() {
    let image = Course::with_memory(MUCH);
    image.node.manager_writes(|status| status.lane = Some(Lane::Image));
    let first = Course::with_memory(MUCH);
    first.node.manager_writes(|status| status.source_first = Some(true));
    let left = Course::with_memory(MUCH);
    left.node.state().migration.as_mut().unwrap().spec.post_copy = true;
    for course in [Course::with_memory(1 << 20), image, first, left] {
        go_on(&course, &course.agent()).await;
        assert!(!course.deeds_of_memory().iter().any(|deed| deed.starts_with("pre-copy") || deed.ends_with("is known")));
    }
}

#[tokio::test]
async fn where_it_fails_all_of_the_memory_is_sent_of_the_frozen_pod() {
    let course = Course::with_memory(MUCH);
    course.node.fail("pre_copy", Failure::Permanent);
    go_on(&course, &course.agent()).await;
    assert_eq!(course.deeds_of_memory(), ["pause one", "pause two", "send ahead app", "send ahead side"]);
}

#[tokio::test]
async fn an_agent_that_was_started_anew_sends_again_before_the_freeze_and_all_after_it() {
    let course = Course::with_memory(MUCH);
    look(&course.agent()).await;
    go_on(&course, &course.agent()).await;
    assert_eq!(course.deeds_of_memory().iter().filter(|deed| *deed == "pre-copy app").count(), 2);

    let course = Course::with_memory(MUCH);
    let agent = course.agent();
    look(&agent).await;
    course.node.fail("prepare", Failure::Conflict);
    let _ = settled(agent.reconcile("d", "m"));
    assert!(course.said().frozen.is_some());
    course.node.mend("prepare");
    course.node.state().trace.clear();
    go_on(&course, &course.agent()).await;
    assert_eq!(course.deeds_of_memory(), ["send ahead app", "send ahead side"]);
}

#[tokio::test]
async fn a_verdict_that_comes_meanwhile_ends_it_and_nothing_is_frozen() {
    let course = Course::with_memory(MUCH);
    let agent = course.agent();
    assert!(settled(agent.reconcile("d", "m")).unwrap().unwrap().is_some());
    assert_eq!(agent.sending.lock().unwrap().len(), 1);
    course.node.manager_writes(|status| (status.verdict, status.phase) = (Some(Verdict::Rollback), Phase::Finishing));
    settled(agent.reconcile("d", "m")).unwrap().unwrap();
    tokio::task::yield_now().await;
    assert!(agent.sending.lock().unwrap().is_empty());
    assert!(course.deeds_of_memory().is_empty(), "what had not begun does not begin");
}

#[tokio::test]
async fn the_freeze_waits_for_it_no_longer_than_it_may_take() {
    let course = Course::with_memory(MUCH);
    let agent = course.agent();
    // Nobody lets it go on.
    for _ in 0..3 {
        assert!(settled(agent.reconcile("d", "m")).unwrap().unwrap().is_some());
    }
    assert!(course.said().frozen.is_none());
    agent.sending.lock().unwrap().get_mut(UID).unwrap().begun -= Duration::from_mins(3);
    go_on(&course, &agent).await;
    assert_eq!(course.deeds_of_memory()[..2], ["pause one", "pause two"]);
}

#[tokio::test(start_paused = true)]
async fn no_pod_is_frozen_for_a_destination_that_is_away_until_it_is_back() {
    let course = Course::with_memory(MUCH);
    course.node.fail("pre_copy", Failure::Transient);
    let agent = course.agent();
    for _ in 0..3 {
        assert!(look(&agent).await.is_some());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(course.said().frozen.is_none() && course.all_in(TaskState::Running));
    course.node.mend("pre_copy");
    tokio::time::sleep(Duration::from_secs(1)).await;
    go_on(&course, &agent).await;
    assert_eq!(course.deeds_of_memory().last().unwrap(), "send ahead side, but for what is known");
}
