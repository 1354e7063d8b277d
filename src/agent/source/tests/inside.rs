//! What the source reads of the inside of its pod.

use super::*;

#[tokio::test]
async fn the_processes_are_looked_at_before_anything_is_touched() {
    let inspected = |kind: Option<Failure>| {
        let course = Course::new();
        course.node.manager_writes(|status| status.phase = Phase::Preflight);
        let traced = crate::domain::processes::Process { pid: 7, tracer: Some(9), ..Default::default() };
        course.node.state().inside.facts.processes = vec![traced];
        if let Some(kind) = kind {
            course.node.fail("look", kind);
        }
        let looked = course.look();
        assert!(course.all_in(TaskState::Running));
        assert_eq!(course.journals().all().unwrap(), vec![]);
        (looked, course.said().inspected.map(|inspected| inspected.blockers))
    };
    let (_, found) = inspected(None);
    assert_eq!(found.unwrap()[0].field, "process[7 ].TracerPid");
    let (_, unread) = inspected(Some(Failure::Permanent));
    assert!(unread.unwrap()[0].message.contains("look was made to fail"));
    let (looked, later) = inspected(Some(Failure::Transient));
    assert!(looked.is_err() && later.is_none(), "it is tried again");
}

#[tokio::test]
async fn volumes_go_along_and_are_voted_for() {
    let course = Course::new();
    course.node.state().inside.volumes = vec![("shm".into(), "/proc/7/root/dev/shm".into())];
    course.go_on();
    let trace = course.node.state().trace.clone();
    assert_eq!(trace[6..], ["push app", "push side", "push 1 volumes", "attest pushed", "attest vote"]);
    let voted: Vec<String> = course.said().vote.unwrap().images.into_iter().map(|image| image.container).collect();
    assert_eq!(voted, ["app", "side", crate::domain::keys::VOLUMES_TAG]);
}

#[tokio::test]
async fn volumes_that_cannot_be_carried_thaw_the_pod() {
    for call in ["volumes", "push_volumes"] {
        let course = Course::new();
        course.node.state().inside.volumes = vec![("shm".into(), "/proc/7/root/dev/shm".into())];
        course.node.fail(call, Failure::Permanent);
        course.go_on();
        assert!(course.said().vote.is_none(), "{call}");
        course.assert_thawed();
    }
}

#[tokio::test]
async fn volumes_are_kept_with_the_archives_where_the_source_goes_first() {
    let course = Course::new();
    course.node.state().inside.volumes = vec![("shm".into(), "/proc/7/root/dev/shm".into())];
    course.node.manager_writes(|status| status.source_first = Some(true));
    course.go_on();
    let kept = course.disk.path().join("checkpoints").join(format!("volumes-{UID}.tar"));
    let trace = course.node.state().trace.clone();
    let at = |step: &str| trace.iter().position(|done| done == step).unwrap_or_else(|| panic!("{step}: {trace:?}"));
    assert!(at("archive volumes") < at("push kept volumes") && at("push kept volumes") < at("attest vote"), "{trace:?}");
    assert!(kept.exists(), "the kubelet removes the volumes with the source");
    assert!(at("sync volumes") < at("attest vote"), "{trace:?}");

    course.node.manager_writes(|status| status.verdict = Some(Verdict::Rollback));
    course.go_on();
    assert!(!kept.exists());
    course.assert_thawed();
}
