//! A replacement that ran and is over, or began without the memory: what is said of it, and what is let start afterwards.

use super::*;
use crate::{
    api::migration::{Decider, Resolved, Side},
    markers::evidence,
};

/// The kubelet's word on the container with this ID.
fn ended(id: &str) -> serde_json::Value {
    json!({"containerStatuses": [{"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
        "lastState": {"terminated": {"exitCode": 137, "containerID": format!("containerd://{id}")}}}]})
}

impl Course {
    fn kubelet_says(&self, status: serde_json::Value) {
        self.node.state().pods[0].status = serde_json::from_value(status).unwrap();
    }

    /// Restored, resumed, and killed before anybody looked; then asked to close the claims.
    fn resumed_and_ended() -> Self {
        let course = Self::restored();
        course.node.state().tasks[0].state = TaskState::Stopped;
        course.kubelet_says(ended("new"));
        course.node.state().emptied.insert("new".into());
        course.asked_to_revoke();
        course
    }

    fn died_and_decided_for_the_replacement() -> Self {
        let course = Self::resumed_and_ended();
        // First the failure, then, on the attestation as it stands then, the end.
        let _ = course.look();
        course.look().unwrap();
        course.resolved(Side::Destination);
        course
    }

    fn resolved(&self, prefer: Side) {
        let resolved = Resolved { at: at(10), prefer, by: Decider::Person, message: "decided".into() };
        self.node.manager_writes(|status| {
            (status.resolved, status.verdict, status.phase) = (Some(resolved), Some(Verdict::Commit), Phase::Finishing);
        });
    }
}

#[tokio::test]
async fn what_ran_and_ended_has_died_and_can_never_start_again() {
    let course = Course::resumed_and_ended();
    // First the failure, then, on the attestation as it stands then, the end.
    let _ = course.look();
    course.look().unwrap();
    let died = course.said().died.expect("it is said to have died");
    assert_eq!((died.containers[0].name.as_str(), died.containers[0].state.as_str()), ("app", "taken"));
    assert_eq!(course.claim(), Some(Claim::Taken), "which the gate does not let through again");
    assert!(course.said().restored.is_none() && course.said().never_started.is_none());
}

#[tokio::test]
async fn no_end_is_said_where_something_may_be_on_its_way() {
    let spoiled: [(&str, Spoil); 3] = [
        ("a living task", |course| course.node.state().tasks.push(Task { state: TaskState::Created, ..restored_task("other") })),
        ("the kubelet says that it has ended, and its runtime does not", |course| course.node.state().emptied.clear()),
        ("no evidence of which container it was", |course| {
            std::fs::remove_file(course.markers().evidence_path(POD, "app").unwrap()).unwrap();
        }),
    ];
    for (what, spoil) in spoiled {
        let course = Course::resumed_and_ended();
        spoil(&course);
        let _ = course.look();
        let _ = course.look();
        assert!(course.said().died.is_none(), "{what}");
    }
}

#[tokio::test]
async fn a_restore_that_its_runtime_has_lost_is_over_once_nothing_of_it_is_left_in_its_cgroup() {
    let course = Course::resumed_and_ended();
    course.node.state().tasks[0].state = TaskState::Created;
    course.node.state().emptied.clear();
    course.kubelet_says(json!({"containerStatuses": [{"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": "RunContainerError", "message": "error reading from server: EOF"}}}]}));
    let _ = course.look();
    let _ = course.look();
    assert!(course.said().died.is_none(), "something of it may execute");
    course.node.state().emptied.insert("new".into());
    let _ = course.look();
    assert!(course.said().died.is_some() && course.said().never_started.is_none(), "whether it executed nobody knows");
}

#[tokio::test]
async fn a_restore_that_the_kubelet_takes_for_failed_is_not_restored_and_is_ended_in_doubt() {
    let course = Course::restored();
    course.node.state().tasks[0].state = TaskState::Abandoned;
    let _ = course.look();
    let said = course.said();
    assert!(said.restored.is_none() && said.failure.is_some_and(|failure| failure.message.contains("told the kubelet that its start had failed")));
    assert_eq!(course.node.state().tasks[0].state, TaskState::Abandoned, "nobody has asked for a revocation yet");
    course.asked_to_revoke();
    let _ = course.look();
    assert_eq!(course.node.state().tasks[0].state, TaskState::Stopped);
    assert!(course.said().died.is_none(), "it was killed, and has not been seen to end yet");
    course.node.state().emptied.insert("new".into());
    let _ = course.look();
    assert!(course.said().died.is_some() && course.said().never_started.is_none());
}

#[tokio::test]
async fn a_restore_that_the_kubelet_takes_for_failed_is_ended_before_anything_starts_cold() {
    let course = Course::died_and_decided_for_the_replacement();
    course.node.state().tasks[0].state = TaskState::Abandoned;
    course.node.state().tasks.push(Task { restored_from: None, ..restored_task("cold") });
    course.look().unwrap();
    assert_eq!(course.node.state().tasks[0].state, TaskState::Stopped);
    assert!(course.said().confirmed.is_some());
}

#[tokio::test]
async fn after_a_boot_a_log_proves_no_refusal_but_nothing_runs_any_more() {
    let course = Course::released(Phase::Restoring);
    course.take("(00.1) Error (criu/mount.c:1): mnt: No mapping for 7\n");
    course.asked_to_revoke();
    course.kubelet_says(json!({"containerStatuses": [{"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": 128, "reason": "StartError", "message": "OCI runtime restore failed: criu failed"}}}]}));
    let path = course.markers().evidence_path(POD, "app").unwrap();
    let noted = evidence::Evidence { boot: Some("an earlier one".into()), ..evidence::read(&path).unwrap().unwrap() };
    std::fs::write(&path, serde_json::to_vec(&noted).unwrap()).unwrap();
    let _ = course.look();
    course.look().unwrap();
    assert!(course.said().never_started.is_none(), "the log may have been cut");
    assert!(course.said().died.is_some(), "it may have run, and nothing outlives a boot");
}

#[tokio::test]
async fn a_cold_start_is_said_once_and_is_no_restore() {
    let course = Course::released(Phase::Restoring);
    course.take("");
    course.node.state().tasks = vec![Task { restored_from: None, ..restored_task("new") }];
    course.look().unwrap();
    let said = course.said();
    assert!(said.cold_started.is_some_and(|cold| cold.message.contains("was not restored from a checkpoint")));
    assert!(said.restored.is_none() && said.failure.is_some());
}

#[tokio::test]
async fn a_decision_for_the_replacement_takes_the_checkpoint_away_before_anything_starts() {
    let course = Course::died_and_decided_for_the_replacement();
    course.node.state().trace.clear();
    assert_eq!(course.look().unwrap(), Some(SOON), "nothing runs yet");
    assert_eq!(course.trace(), ["repoint app".to_owned(), format!("remove {}", keys::checkpoint_image(&repository(), "app"))]);
    assert_eq!(course.claim(), Some(Claim::Open), "now it may start, and still no restore");
    assert!(course.said().confirmed.is_none());
    course.node.state().tasks.push(Task { restored_from: None, ..restored_task("cold") });
    course.look().unwrap();
    assert!(course.said().confirmed.is_some() && course.said().cleaned.is_some());
    assert_eq!(course.claim(), None);
}

#[tokio::test]
async fn a_container_that_was_made_from_the_checkpoint_and_not_started_keeps_the_claims_closed() {
    let course = Course::died_and_decided_for_the_replacement();
    course.node.state().tasks.push(Task { state: TaskState::Stopped, ..restored_task("made") });
    assert_eq!(course.look().unwrap(), Some(SOON));
    assert_eq!(course.claim(), Some(Claim::Taken), "else its start would rewind");
    course.kubelet_says(ended("made"));
    assert_eq!(course.look().unwrap(), Some(SOON));
    assert_eq!(course.claim(), Some(Claim::Taken), "the kubelet may have been told wrongly");
    course.node.state().emptied.insert("made".into());
    course.look().unwrap();
    assert_eq!(course.claim(), Some(Claim::Open));
}

#[tokio::test]
async fn a_decision_that_fails_to_take_the_checkpoint_away_lets_nothing_start() {
    let course = Course::died_and_decided_for_the_replacement();
    course.node.fail("repoint", Failure::Transient);
    assert!(course.look().is_err());
    assert_eq!(course.claim(), Some(Claim::Taken), "else the next start would rewind");
}

/// The kubelet was a moment late, on a busy machine: it was said to have died, and held for a person, for ever.
#[tokio::test]
async fn a_refusal_that_only_the_kubelet_has_not_told_yet_is_waited_for_and_not_for_ever() {
    let refused = || {
        let course = Course::released(Phase::Restoring);
        course.take("(00.1) Error (criu/mount.c:1): mnt: No mapping for 7\n");
        course.node.manager_writes(|status| status.revocation = Some(Remark { at: at(95), message: "doubt".into() }));
        course.node.state().emptied.insert("new".into());
        let _ = course.look();
        let _ = course.look();
        assert_eq!((course.said().died, course.said().never_started), (None, None), "5 s after the revocation");
        course
    };
    let course = refused();
    course.kubelet_says(json!({"containerStatuses": [{"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": "RunContainerError", "message": "OCI runtime restore failed: criu failed"}}}]}));
    let _ = course.look();
    course.look().unwrap();
    assert_eq!((course.said().died, course.said().never_started.map(|said| said.containers.len())), (None, Some(1)));

    let course = refused();
    course.node.state().now += jiff::SignedDuration::from_secs(20);
    let _ = course.look();
    assert!(course.said().died.is_some() && course.said().never_started.is_none(), "nobody knows");
}
