//! Everything that goes wrong before the release ends with the source running on, without a gap, and with nothing left behind.

use std::time::Duration;

use k8s_openapi::api::core::v1::SecurityContext;
use kube::{
    ResourceExt as _,
    api::DeleteParams,
    runtime::{conditions::is_deleted, wait::await_condition},
};

use drover::api::{Migration, MigrationSpec, Outcome, Phase};

use crate::support::{
    Namespace,
    agents::{Part, ready},
    counter::{Follower, assert_contiguous},
    lab,
    leftovers::AFTER_SWEEP,
    migrations::{assert_outcome, status, to},
    pods::{IO_URING, counter, pod},
    with_namespace,
};

/// A counter on n1 that has begun to count.
async fn counting(namespace: &Namespace, mib: u32) -> Follower {
    namespace.run(&counter("c", "n1", mib, 50)).await;
    let follower = namespace.follow("c", "c").await;
    follower.beyond(5).await;
    follower
}

/// The source runs on without a gap.
async fn assert_runs_on(source: &Follower) {
    source.more(5).await;
    assert_contiguous(&source.lines());
}

/// Waits for a rollback that says why.
async fn rolled_back(namespace: &Namespace, migration: &Migration, because: &str) -> Migration {
    let migration = namespace.until_done(&migration.name_any()).await;
    assert_outcome(&migration, Outcome::RolledBack);
    let message = status(&migration).message;
    assert!(message.contains(because), "{because:?} is not in {message:?}");
    migration
}

#[test]
fn a_registry_that_hangs_while_frozen_rolls_back() {
    with_namespace("registry", |namespace| async move {
        let source = counting(&namespace, 8).await;
        let registry = Part::Registry("n2");
        let migration = namespace.make(MigrationSpec { freeze_budget_seconds: 8, ..to("c", "n2") }).await;
        namespace.until_phase(&migration.name_any(), Phase::Freezing).await;
        let goes_on = lab::Restore(move || registry.signal("CONT"));
        registry.signal("STOP");
        let frozen = namespace.until_phase(&migration.name_any(), Phase::Transferring).await;
        let traces = namespace.on_nodes(&frozen, &[]);
        let checkpoint = if status(&frozen).is_by_runtime() { "n1: /run/drover/dump/" } else { "n1: /var/lib/kubelet/checkpoints/" };
        for trace in ["n1: gate/", "n1: journals/", checkpoint, "n2: registry/"] {
            assert!(traces.contains(trace), "what is looked for afterwards is there while it is frozen: {trace} in\n{traces}");
        }
        namespace.until_phase(&migration.name_any(), Phase::Finishing).await;
        // It runs on while the registry still hangs.
        assert_runs_on(&source).await;
        drop(goes_on);
        let migration = rolled_back(&namespace, &migration, "Transferring").await;
        assert_runs_on(&source).await;
        namespace.assert_no_leftovers(&migration).await;
    });
}

#[test]
fn a_registry_that_hangs_from_the_start_never_freezes_the_pod() {
    with_namespace("registry-early", |namespace| async move {
        let source = counting(&namespace, 0).await;
        let registry = Part::Registry("n2");
        let goes_on = lab::Restore(move || registry.signal("CONT"));
        registry.signal("STOP");
        let migration = namespace.make(MigrationSpec { deadline_seconds: 10, ..to("c", "n2") }).await;
        namespace.until_phase(&migration.name_any(), Phase::Finishing).await;
        drop(goes_on);
        let migration = rolled_back(&namespace, &migration, "Preparing").await;
        assert_eq!(status(&migration).phases.iter().find(|timing| timing.phase == Phase::Freezing), None);
        assert_runs_on(&source).await;
        namespace.assert_no_leftovers(&migration).await;
    });
}

/// What preflight could not have seen: the ring is made after it.
#[test]
fn a_checkpoint_that_criu_refuses_rolls_back_with_its_words() {
    with_namespace("io-uring", |namespace| async move {
        let late = serde_json::json!({"name": "c", "image": IO_URING, "args": ["late"]});
        namespace.run(&pod("c", "n1", &[late])).await;
        let registry = Part::Registry("n2");
        let goes_on = lab::Restore(move || registry.signal("CONT"));
        registry.signal("STOP");
        let migration = namespace.make(to("c", "n2")).await;
        namespace.until_phase(&migration.name_any(), Phase::Preparing).await;
        namespace.exec("c", &["/iouring", "wake"]);
        while namespace.logs("c", "c").await.lines().last().is_none_or(|line| line.ends_with("ring -1")) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        drop(goes_on);
        let migration = rolled_back(&namespace, &migration, "Error (criu/").await;
        assert!(status(&migration).message.contains("io_uring"), "it says what to do: {}", status(&migration).message);
        // Its lines are "NUMBER ring FD".
        let numbers = |text: &str| -> Vec<u64> { text.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect() };
        let at_end = numbers(&namespace.logs("c", "c").await).len();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let later = numbers(&namespace.logs("c", "c").await);
        assert!(later.len() > at_end, "the source runs on");
        assert_eq!(later, (1..=later.len() as u64).collect::<Vec<_>>());
        namespace.assert_no_leftovers(&migration).await;
    });
}

/// The commonest failure of all, and it comes after the release (MEASURED.md 8: CRIU refuses a read-only root without /tmp).
#[test]
fn a_restore_that_criu_refuses_rolls_back_with_its_proof_and_loses_nothing() {
    with_namespace("refused-restore", |namespace| async move {
        let mut source = counter("c", "n1", 4, 50);
        let container = &mut source.spec.as_mut().unwrap().containers[0];
        container.security_context = Some(SecurityContext { read_only_root_filesystem: Some(true), ..SecurityContext::default() });
        namespace.run(&source).await;
        let source = namespace.follow("c", "c").await;
        source.beyond(5).await;
        let migration = namespace.make(to("c", "n2")).await;
        let migration = rolled_back(&namespace, &migration, "the replacement never started: c failed (Error (").await;
        assert!(status(&migration).never_started.is_some());
        assert_runs_on(&source).await;
        namespace.assert_no_leftovers(&migration).await;
    });
}

#[test]
fn a_migration_that_is_deleted_while_frozen_thaws_the_source_and_goes() {
    with_namespace("deleted", |namespace| async move {
        let source = counting(&namespace, 64).await;
        let migration = namespace.make(to("c", "n2")).await;
        let frozen = namespace.until_phase(&migration.name_any(), Phase::Checkpointing).await;
        namespace.migrations().delete(&migration.name_any(), &DeleteParams::default()).await.unwrap();
        assert_runs_on(&source).await;
        let (name, uid) = (migration.name_any(), migration.uid().unwrap());
        let gone = await_condition(namespace.migrations(), &name, is_deleted(&uid));
        tokio::time::timeout(Duration::from_mins(1), gone).await.expect("the Migration goes").unwrap();
        assert_runs_on(&source).await;
        namespace.assert_no_leftovers(&frozen).await;
    });
}

#[test]
fn a_destination_that_dies_during_the_transfer_rolls_back() {
    with_namespace("power-off", |namespace| async move {
        let source = counting(&namespace, 256).await;
        let migration = namespace.make(MigrationSpec { freeze_budget_seconds: 60, deadline_seconds: 120, ..to("c", "n2") }).await;
        namespace.until_phase(&migration.name_any(), Phase::Transferring).await;
        let boots = lab::Restore(|| drop(lab::try_lab(&["power-on", "n2"])));
        lab::lab(&["power-off", "n2"]);
        namespace.until_phase(&migration.name_any(), Phase::Finishing).await;
        assert_runs_on(&source).await;
        let migration = rolled_back(&namespace, &migration, "n2").await;
        drop(boots);
        ready();
        assert_runs_on(&source).await;
        namespace.assert_no_leftovers_within(AFTER_SWEEP, &migration).await;
    });
}

#[test]
fn a_destination_that_is_not_ready_rolls_back() {
    with_namespace("not-ready", |namespace| async move {
        let source = counting(&namespace, 0).await;
        let registry = Part::Registry("n2");
        let migration = namespace.make(MigrationSpec { freeze_budget_seconds: 120, deadline_seconds: 150, ..to("c", "n2") }).await;
        namespace.until_phase(&migration.name_any(), Phase::Freezing).await;
        // The transfer hangs until the node's lease has run out.
        let goes_on = lab::Restore(move || registry.signal("CONT"));
        registry.signal("STOP");
        let starts = lab::Restore(|| drop(lab::try_lab(&["start-part", "n2-kubelet"])));
        lab::lab(&["stop-part", "n2-kubelet"]);
        namespace.until_phase(&migration.name_any(), Phase::Finishing).await;
        // Thawed though the destination can be asked nothing.
        assert_runs_on(&source).await;
        drop((goes_on, starts));
        let migration = rolled_back(&namespace, &migration, "node n2 is not Ready").await;
        ready();
        assert_runs_on(&source).await;
        namespace.assert_no_leftovers_within(AFTER_SWEEP, &migration).await;
    });
}

#[test]
fn a_deadline_names_what_was_waited_for() {
    with_namespace("deadline", |namespace| async move {
        let source = counting(&namespace, 0).await;
        let starts = lab::Restore(|| drop(lab::try_lab(&["start-part", "n2-kubelet"])));
        lab::lab(&["stop-part", "n2-kubelet"]);
        let migration = namespace.make(MigrationSpec { deadline_seconds: 10, ..to("c", "n2") }).await;
        namespace.until_phase(&migration.name_any(), Phase::Finishing).await;
        drop(starts);
        let migration = rolled_back(&namespace, &migration, "spec.deadlineSeconds (10 s); it was in phase Preparing, waiting for").await;
        assert_runs_on(&source).await;
        namespace.assert_no_leftovers(&migration).await;
    });
}
