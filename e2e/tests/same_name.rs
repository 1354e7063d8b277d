//! Same-name pods (`spec.keepName`): the source goes before the release, so a failure ends in a restore from the archive that its node has kept.

use std::time::Duration;

use k8s_openapi::api::core::v1::SecurityContext;
use kube::{ResourceExt as _, api::ListParams};
use serde_json::json;

use drover::{
    api::{Migration, MigrationSpec, Outcome, Phase},
    domain::{keys, resolution::FALLBACK_FAILED},
};

use crate::support::{
    Namespace,
    agents::{Part, ready, signal_all},
    counter::{Follower, assert_contiguous, assert_went_on, lines},
    eventually, lab,
    leftovers::AFTER_SWEEP,
    migrations::{assert_outcome, status, to},
    moving::is_held,
    pods::{container, counter},
    with_namespace,
};

/// A migration that keeps the pod's name.
fn keeping(pod: &str, node: &str) -> MigrationSpec {
    MigrationSpec { keep_name: true, ..to(pod, node) }
}

/// A file in an emptyDir of the pod, on its node.
fn scratch(uid: &str) -> String {
    format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/scratch/file")
}

/// With a volume, which the kubelet removes with the source.
async fn counting(namespace: &Namespace) -> Follower {
    let mut pod = counter("c", "n1", 4, 50);
    let spec = pod.spec.as_mut().unwrap();
    spec.volumes = serde_json::from_value(json!([{"name": "scratch", "emptyDir": {}}])).unwrap();
    spec.containers[0].volume_mounts = serde_json::from_value(json!([{"name": "scratch", "mountPath": "/scratch"}])).unwrap();
    let pod = namespace.run(&pod).await;
    let file = scratch(&pod.uid().unwrap());
    lab::on_node("n1", &format!("echo content >{file} && chown 1000:2000 {file} && chmod 640 {file}"));
    let follower = namespace.follow("c", "c").await;
    follower.beyond(5).await;
    follower
}

/// The pod runs on this node under its own name, as the only one, was never restarted, and goes on where the source stopped.
async fn assert_goes_on(namespace: &Namespace, before: &Follower, node: &str, migration: &Migration) -> Follower {
    let pod = namespace.pods().get("c").await.unwrap();
    assert_eq!(pod.spec.as_ref().unwrap().node_name.as_deref(), Some(node));
    assert_eq!(container(&pod, "c").restart_count, 0);
    let file = scratch(&pod.uid().unwrap());
    assert_eq!(lab::on_node(node, &format!("stat -c '%u:%g %a' {file} && cat {file}")).trim(), "1000:2000 640\ncontent");
    assert!(!pod.annotations().contains_key(keys::LOCK), "it may be moved again");
    assert_ne!(pod.uid(), status(migration).source.map(|source| source.uid), "another pod has its name");
    let all = namespace.pods().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(all.len(), 1, "exactly one pod is there: {:?}", all.iter().map(kube::ResourceExt::name_any).collect::<Vec<_>>());
    let after = namespace.follow("c", "c").await;
    after.beyond(before.last() + 5).await;
    assert_went_on(&before.lines(), &after.lines(), migration);
    after
}

/// It ended as a rollback that says why, and where the pod runs now.
async fn fell_back(namespace: &Namespace, migration: &Migration, because: &str) -> Migration {
    let migration = namespace.until_done(&migration.name_any()).await;
    assert_outcome(&migration, Outcome::RolledBack);
    let status = status(&migration);
    for words in [because, "restored on the source node n1 from the kept archive"] {
        assert!(status.message.contains(words), "{words:?} is not in {:?}", status.message);
    }
    assert!(status.fallback.is_some_and(|fallback| !fallback.containers.is_empty()));
    eprintln!("fell back, frozen {:?} ms: {}", status.frozen_millis, status.message);
    migration
}

#[test]
fn a_same_name_pod_moves_there_and_back_and_loses_no_line() {
    with_namespace("same-name", |namespace| async move {
        let mut before = counting(&namespace).await;
        for node in ["n2", "n1"] {
            let migration = namespace.make(keeping("c", node)).await;
            let migration = namespace.until_done(&migration.name_any()).await;
            assert_outcome(&migration, Outcome::Migrated);
            let frozen = status(&migration).frozen_millis;
            eprintln!(
                "same name to {node}: frozen {frozen:?} ms; {:?}",
                status(&migration).phases.iter().map(|p| (p.phase, p.millis)).collect::<Vec<_>>()
            );
            assert!(status(&migration).phases.iter().any(|timing| timing.phase == Phase::SourceDeleting));
            before = assert_goes_on(&namespace, &before, node, &migration).await;
            namespace.assert_no_leftovers(&migration).await;
        }
        let all = lines(&namespace.logs("c", "c").await);
        assert_eq!(all[0].number, 1, "the log goes back to the first pod's beginning");
        assert_contiguous(&all);
    });
}

#[test]
fn a_same_name_pod_is_thawed_where_it_fails_before_its_source_is_deleted() {
    with_namespace("same-name-undone", |namespace| async move {
        let source = counting(&namespace).await;
        let registry = Part::Registry("n2");
        let migration = namespace.make(MigrationSpec { freeze_budget_seconds: 8, ..keeping("c", "n2") }).await;
        namespace.until_phase(&migration.name_any(), Phase::Freezing).await;
        let goes_on = lab::Restore(move || registry.signal("CONT"));
        registry.signal("STOP");
        namespace.until_phase(&migration.name_any(), Phase::Finishing).await;
        drop(goes_on);
        let migration = namespace.until_done(&migration.name_any()).await;
        assert_outcome(&migration, Outcome::RolledBack);
        source.more(5).await;
        assert_contiguous(&source.lines());
        namespace.assert_no_leftovers(&migration).await;
    });
}

/// CRIU's own settings outrank what runc asks for, so this node can restore nothing.
#[test]
fn a_refused_restore_falls_back_onto_the_source_node_and_loses_no_line() {
    const CONF: &str = "/etc/criu/runc.conf";
    with_namespace("same-name-refused", |namespace| async move {
        let source = counting(&namespace).await;
        let mended = lab::Restore(|| drop(lab::on_node("n2", &format!("mv {CONF}.kept {CONF}"))));
        lab::on_node("n2", &format!("cp {CONF} {CONF}.kept && echo 'root /nonexistent' >>{CONF}"));
        let migration = namespace.make(keeping("c", "n2")).await;
        let migration = fell_back(&namespace, &migration, "c failed (Error (").await;
        drop(mended);
        assert!(status(&migration).never_started.is_some());
        let after = assert_goes_on(&namespace, &source, "n1", &migration).await;
        namespace.assert_no_leftovers(&migration).await;
        // It is an ordinary pod again, and moves.
        let migration = namespace.make(keeping("c", "n2")).await;
        let migration = namespace.until_done(&migration.name_any()).await;
        assert_outcome(&migration, Outcome::Migrated);
        assert_goes_on(&namespace, &after, "n2", &migration).await;
    });
}

#[test]
fn a_destination_that_dies_while_the_source_is_deleted_leads_back_to_it() {
    with_namespace("same-name-power-off", |namespace| async move {
        let source = counting(&namespace).await;
        // Its agent sleeps while the destination dies, so that the source ends only after that.
        let agent = Part::Agent("n1").pids();
        let migration = namespace.make(MigrationSpec { deadline_seconds: 180, ..keeping("c", "n2") }).await;
        namespace.until_phase(&migration.name_any(), Phase::AwaitingReadiness).await;
        let wakes = lab::Restore(|| signal_all(&agent, "CONT"));
        signal_all(&agent, "STOP");
        let deleting = namespace.until_phase(&migration.name_any(), Phase::SourceDeleting).await;
        assert_eq!(deleting.phase(), Phase::SourceDeleting, "the agent was stopped in time");
        let boots = lab::Restore(|| drop(lab::try_lab(&["power-on", "n2"])));
        lab::lab(&["power-off", "n2"]);
        drop(wakes);
        let migration = fell_back(&namespace, &migration, "rolled back in phase SourceDeleting").await;
        assert_goes_on(&namespace, &source, "n1", &migration).await;
        drop(boots);
        ready();
        namespace.assert_no_leftovers_within(AFTER_SWEEP, &migration).await;
    });
}

#[test]
fn a_source_node_that_dies_after_its_pod_was_deleted_is_not_needed() {
    with_namespace("same-name-source-off", |namespace| async move {
        let source = counting(&namespace).await;
        let migration = namespace.make(MigrationSpec { deadline_seconds: 180, ..keeping("c", "n2") }).await;
        namespace.until_phase(&migration.name_any(), Phase::Restoring).await;
        let boots = lab::Restore(|| drop(lab::try_lab(&["power-on", "n1"])));
        lab::lab(&["power-off", "n1"]);
        let migration = namespace.until_done(&migration.name_any()).await;
        assert_outcome(&migration, Outcome::Migrated);
        assert!(status(&migration).message.contains("collects its archives when it is back"), "{}", status(&migration).message);
        assert_goes_on(&namespace, &source, "n2", &migration).await;
        drop(boots);
        ready();
        namespace.assert_no_leftovers_within(AFTER_SWEEP, &migration).await;
    });
}

#[test]
fn a_source_that_cannot_be_proved_to_have_ended_is_held_and_goes_on_when_its_agent_is_back() {
    with_namespace("same-name-held", |namespace| async move {
        let source = counting(&namespace).await;
        let agent = Part::Agent("n1").pids();
        let migration = namespace.make(MigrationSpec { deadline_seconds: 60, ..keeping("c", "n2") }).await;
        namespace.until_phase(&migration.name_any(), Phase::AwaitingReadiness).await;
        let wakes = lab::Restore(|| signal_all(&agent, "CONT"));
        signal_all(&agent, "STOP");
        let name = migration.name_any();
        let held = |m: &Migration| m.name_any() == name && status(m).message.contains("nobody has proved that the deleted source has ended");
        let held = namespace.first("a hold", held).await;
        assert_eq!((held.phase(), held.verdict()), (Phase::SourceDeleting, None), "neither deadline nor absence decides");
        assert!(status(&held).message.contains("node n1"));
        drop(wakes);
        let migration = namespace.until_done(&name).await;
        assert_outcome(&migration, Outcome::Migrated);
        assert_goes_on(&namespace, &source, "n2", &migration).await;
        eventually(Duration::from_secs(30), || Part::Agent("n1").pids().is_empty().then(|| "the agent of n1".to_owned()));
        ready();
        namespace.assert_no_leftovers(&migration).await;
    });
}

/// CRIU refuses it on either node (MEASURED.md 8: a read-only root without /tmp).
#[test]
fn a_pod_that_is_restored_nowhere_is_given_up_by_a_person_and_its_checkpoint_is_kept() {
    with_namespace("given-up", |namespace| async move {
        let mut pod = counter("c", "n1", 4, 50);
        let security = SecurityContext { read_only_root_filesystem: Some(true), ..SecurityContext::default() };
        pod.spec.as_mut().unwrap().containers[0].security_context = Some(security);
        namespace.run(&pod).await;
        namespace.follow("c", "c").await.beyond(5).await;
        namespace.make(keeping("c", "n2")).await;
        let migration = namespace.first("it is held", |m| is_held(m, FALLBACK_FAILED)).await;
        let (name, message) = (migration.name_any(), status(&migration).message);
        assert!(message.contains(&format!("drover resolve {name} -n {} --give-up", namespace.name)), "{message}");
        let (code, told) = lab::drover(&["resolve", &name, "-n", &namespace.name, "--give-up"]);
        assert_eq!(code, Some(0), "{told}");
        let migration = namespace.until_done(&name).await;
        assert_outcome(&migration, Outcome::GivenUp);
        let message = status(&migration).message;
        let kept = format!("/var/lib/kubelet/checkpoints/{}", keys::kept_archive(&migration.uid().unwrap(), "c"));
        assert!(message.contains("was given up by drover resolve") && message.contains(&kept), "{message}");
        assert!(lab::on_node("n1", &format!("tar -tf {kept}")).contains("checkpoint/inventory.img"), "the memory is there");
        lab::on_node("n1", &format!("rm {kept}"));
        assert!(namespace.pods().list(&ListParams::default()).await.unwrap().items.is_empty());
        // The name is free.
        namespace.run(&counter("c", "n1", 4, 50)).await;
        namespace.assert_no_leftovers(&migration).await;
    });
}
