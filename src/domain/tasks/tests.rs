//! What may be concluded from what a node shows.

use super::*;

fn checkpoint() -> Vec<ContainerCheckpoint> {
    vec![ContainerCheckpoint {
        name: "c".into(),
        digest: "sha256:a".into(),
        bytes: 1,
        memory_bytes: None,
        pre_copied_bytes: None,
        image: "img".into(),
    }]
}

fn task(id: &str, state: TaskState, from: Option<&str>) -> Task {
    Task { container: "c".into(), id: id.into(), state, restored_from: from.map(str::to_owned), spoilt: None }
}

#[test]
fn only_a_container_restored_once_from_this_image_counts() {
    let running = task("1", TaskState::Running, Some("img"));
    assert_eq!(
        judge(&checkpoint(), std::slice::from_ref(&running)),
        Finding::Restored(vec![ContainerId { name: "c".into(), container_id: "1".into() }])
    );
    assert_eq!(judge(&checkpoint(), &[]), Finding::NotYet);
    assert_eq!(judge(&checkpoint(), &[task("1", TaskState::Stopped, Some("img"))]), Finding::NotYet, "made, but not started yet");
    for cold in [task("1", TaskState::Running, None), task("1", TaskState::Running, Some("other"))] {
        assert!(matches!(judge(&checkpoint(), std::slice::from_ref(&cold)), Finding::Cold(_)), "{cold:?}");
    }
    assert!(matches!(judge(&checkpoint(), &[task("1", TaskState::Abandoned, Some("img"))]), Finding::Wrong(_)), "the kubelet starts another");
    let twice = [task("1", TaskState::Stopped, Some("img")), running.clone()];
    assert!(matches!(judge(&checkpoint(), &twice), Finding::Wrong(_)));
    assert_eq!(judge(&[], &[running]), Finding::NotYet);
}

#[test]
fn a_container_whose_memory_still_comes_is_not_restored_yet() {
    let filling = task("1", TaskState::Filling, Some("img"));
    assert_eq!(judge(&checkpoint(), std::slice::from_ref(&filling)), Finding::NotYet);
    assert!(all_run(&checkpoint(), std::slice::from_ref(&filling)) && !is_over(true, std::slice::from_ref(&filling)));
    assert!(!all_paused(&[ContainerId { name: "c".into(), container_id: "1".into() }], std::slice::from_ref(&filling)));
    // Killed for it, or about to be.
    for state in [TaskState::Filling, TaskState::Stopped] {
        let spoilt = Task { spoilt: Some("why".into()), state, ..filling.clone() };
        assert_eq!(judge(&checkpoint(), &[spoilt]), Finding::Wrong("the restore of container c failed: why".into()));
    }
}

#[test]
fn a_restart_is_trouble() {
    let pod: Pod = serde_json::from_value(serde_json::json!({"status": {"containerStatuses": [
        {"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 1, "state": {"running": {}}}]}}))
    .unwrap();
    assert!(trouble(&pod).is_some_and(|m| m.contains("restarted 1 times")));
    let pod: Pod = serde_json::from_value(serde_json::json!({"status": {"containerStatuses": [
        {"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 137}}}]}}))
    .unwrap();
    assert!(trouble(&pod).is_some_and(|m| m.contains("exit code 137")));
}

#[test]
fn a_log_proves_a_refusal_only_with_an_error_and_without_the_resume_point() {
    let refused = "(00.1) Restoring\n(00.2) Error (criu/mount.c:1): mnt: No mapping for 7\n(00.3) Error (criu/cr-restore.c:2): Restoring FAILED.\n";
    assert_eq!(refused_before_resume(refused).as_deref(), Some("Error (criu/mount.c:1): mnt: No mapping for 7"));
    assert_eq!(refused_before_resume(&format!("{refused}(00.4) {RESUMED}\n")), None);
    assert_eq!(refused_before_resume("(00.1) Restoring\n"), None, "a log that breaks off proves nothing");
}

#[test]
fn the_kubelets_word_may_stand_in_the_last_state() {
    let status: ContainerStatus =
        serde_json::from_value(serde_json::json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
        "lastState": {"terminated": {"exitCode": 128, "reason": "StartError", "message": "OCI runtime restore failed: criu failed"}}}))
        .unwrap();
    assert!(says_restore_failed(&status));
}

#[test]
fn claims_stay_while_anything_of_the_pod_is_left() {
    let made = task("1", TaskState::Stopped, Some("img"));
    assert!(nothing_left(None, &[]));
    assert!(!nothing_left(None, &[made]), "made, and the kubelet may start it yet");
    assert!(!nothing_left(Some(&Pod::default()), &[]));
}

#[test]
fn a_kubelet_that_has_just_started_does_not_know_its_pods() {
    let from = |source: &str| -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "annotations": {"kubernetes.io/config.source": source}}})).unwrap()
    };
    assert!(!is_whole(&[]));
    assert!(!is_whole(&[from("file")]));
    assert!(is_whole(&[from("file"), from("api")]));
}

#[test]
fn a_restore_is_over_only_where_it_was_seen_to_end() {
    let stopped = [task("1", TaskState::Stopped, Some("img"))];
    assert!(is_over(true, &stopped) && is_over(true, &[]));
    assert!(!is_over(false, &stopped) && !is_over(false, &[]), "no task yet is not no task any more");
    for alive in [TaskState::Created, TaskState::Running, TaskState::Filling, TaskState::Paused, TaskState::Abandoned] {
        assert!(!is_over(true, &[task("1", alive, None)]), "{alive:?}");
    }
}

#[test]
fn what_was_made_or_let_through_awaits_its_restore_until_it_runs_or_is_over() {
    let (one, none) = (["1".to_owned()], []);
    let made = [task("1", TaskState::Stopped, Some("img"))];
    assert!(!none_awaits_its_restore(&checkpoint(), &none, &none, &made));
    assert!(none_awaits_its_restore(&checkpoint(), &none, &one, &made));
    assert!(!none_awaits_its_restore(&checkpoint(), &one, &none, &[]), "the runtime has lost it");
    assert!(none_awaits_its_restore(&checkpoint(), &one, &one, &[]));
    assert!(none_awaits_its_restore(&checkpoint(), &one, &none, &[task("1", TaskState::Running, Some("img"))]));
    assert!(!none_awaits_its_restore(&checkpoint(), &one, &none, &[task("1", TaskState::Abandoned, Some("img"))]));
    assert!(none_awaits_its_restore(&checkpoint(), &none, &none, &[task("2", TaskState::Stopped, None)]), "an ordinary one");
}
