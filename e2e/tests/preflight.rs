//! What the running processes hold is looked at before anything is touched.

use kube::ResourceExt as _;

use drover::{
    api::{Migration, MigrationSpec, Outcome, Phase},
    domain::keys,
};

use crate::support::{
    Namespace, lab,
    migrations::{assert_outcome, status, to},
    pods::{IO_URING, counter, pod},
    with_namespace,
};

/// Refused for what a process holds: nothing was made, nothing was frozen, the pod carries no mark and runs on.
async fn assert_refused_untouched(namespace: &Namespace, migration: &Migration, because: &str) {
    let migration = namespace.until_done(&migration.name_any()).await;
    assert_outcome(&migration, Outcome::Failed);
    let status = status(&migration);
    assert!(status.message.contains(because), "{because:?} is not in {:?}", status.message);
    let phases: Vec<_> = status.phases.iter().map(|timing| timing.phase).collect();
    assert_eq!(phases, [Phase::Preflight, Phase::Done]);
    assert!(status.replacement.is_none());
    let pod = namespace.pods().get("c").await.unwrap();
    assert!(!pod.annotations().contains_key(keys::LOCK));
    let before = namespace.logs("c", "c").await.lines().count();
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let lines: Vec<String> = namespace.logs("c", "c").await.lines().map(str::to_owned).collect();
    assert!(lines.len() > before, "it runs on");
    let numbers: Vec<usize> = lines.iter().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
    assert_eq!(numbers, (1..=lines.len()).collect::<Vec<_>>());
}

#[test]
fn a_program_that_criu_cannot_dump_is_refused_before_the_freeze() {
    with_namespace("preflight", |namespace| async move {
        namespace.run(&pod("c", "n1", &[serde_json::json!({"name": "c", "image": IO_URING})])).await;
        let migration = namespace.make(to("c", "n2")).await;
        assert_refused_untouched(&namespace, &migration, "uses io_uring, which CRIU does not checkpoint (set seccompProfile RuntimeDefault").await;
    });
}

#[test]
fn a_check_looks_at_the_processes_too() {
    with_namespace("check", |namespace| async move {
        namespace.run(&pod("c", "n1", &[serde_json::json!({"name": "c", "image": IO_URING})])).await;
        let migration = namespace.make(MigrationSpec { check_only: true, ..to("c", "n2") }).await;
        assert_refused_untouched(&namespace, &migration, "iouring].fd[").await;
        namespace.run(&counter("fine", "n1", 0, 100)).await;
        let migration = namespace.make(MigrationSpec { check_only: true, ..to("fine", "n2") }).await;
        let migration = namespace.until_done(&migration.name_any()).await;
        assert_eq!((status(&migration).outcome, status(&migration).message.contains("found no blocker")), (None, true));
    });
}

/// `drover check`: its exit code and what it printed.
fn check(namespace: &Namespace, pod: &str) -> (Option<i32>, String) {
    lab::drover(&["check", pod, "--to", "n2", "-n", &namespace.name])
}

#[test]
fn drover_check_prints_every_blocker_and_leaves_nothing() {
    with_namespace("drover-check", |namespace| async move {
        let mut bad = pod("c", "n1", &[serde_json::json!({"name": "c", "image": IO_URING, "tty": true})]);
        bad.spec.as_mut().unwrap().active_deadline_seconds = Some(1000);
        namespace.run(&bad).await;
        namespace.run(&counter("fine", "n1", 0, 100)).await;
        let (code, text) = check(&namespace, "c");
        assert_eq!((code, text.lines().count()), (Some(2), 4), "{text}");
        for found in ["freeze   about 2.", "blocked  spec.activeDeadlineSeconds: ", "blocked  spec.containers[c].tty: ", "uses io_uring"] {
            assert!(text.contains(found), "{found:?} is not in {text}");
        }
        let (code, text) = check(&namespace, "fine");
        assert!(code == Some(0) && text.contains("found no blocker") && text.contains("freeze   about 2."), "{text}");
        let (code, text) = check(&namespace, "none");
        assert!(code == Some(1) && text.contains("no pod none in namespace"), "{text}");
        let left = namespace.kubectl(&["get", "migrations", "-o", "name"]).unwrap();
        assert!(!left.contains("check-"), "{left}");
    });
}
