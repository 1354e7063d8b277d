//! Pushes that are cut in the middle, and a registry that is lost with what it had to tell.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use drover::{
    api::{MigrationSpec, migration::condition},
    markers::GATE_ROOT,
};

use crate::support::{
    agents::{Part, on_disk, ready},
    kafka::counted_by_agent,
    lab,
    migrations::{status, to},
    moving::{Moment, Moving},
    with_namespace,
};

/// Bytes of the pod, and how many of them have arrived when the push is cut.
const MIB: u32 = 256;
const CUT_AFTER: u64 = 32 << 20;

/// Bytes that the uploads into the migration's repository have on n2's disk.
fn arrived(moving: &Moving) -> u64 {
    let repository = status(&moving.migration).destination.unwrap().repository;
    let registry = on_disk("n2", &Path::new(GATE_ROOT).with_file_name("registry"));
    let uploads = fs::read_dir(registry.join("docker/registry/v2/repositories").join(repository).join("_uploads")).into_iter().flatten().flatten();
    uploads.filter_map(|upload| fs::metadata(upload.path().join("data")).ok()).map(|data| data.len()).sum()
}

/// A migration in the middle of its push, which goes no further: the registry is stopped.
async fn in_mid_push(namespace: &crate::support::Namespace) -> Moving {
    let mut moving = Moving::begin(namespace, MIB, MigrationSpec { freeze_budget_seconds: 90, deadline_seconds: 150, ..to("c", "n2") }).await;
    moving.hold(Moment::BeforeVote).await;
    let registry = Part::Registry("n2");
    moving.go_on();
    let end = Instant::now() + Duration::from_secs(30);
    while arrived(&moving) < CUT_AFTER {
        assert!(Instant::now() < end, "{} bytes of the push have arrived within 30 s", arrived(&moving));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    registry.signal("STOP");
    let held = arrived(&moving);
    assert!(held < u64::from(MIB - 16) << 20, "the registry was stopped too late, with {held} bytes");
    moving
}

const RESUMED: &str = "drover_push_resumed_total";

/// The source is told that its connection is gone; the destination hears nothing more of it.
const RESET: &str = "nft add table inet cut-push; nft add chain inet cut-push in '{ type filter hook input priority 0; }'; \
                     nft add rule inet cut-push in tcp dport 5786 reject with tcp reset";

#[test]
fn a_push_goes_on_after_its_connection_was_cut() {
    with_namespace("cut-push", |namespace| async move {
        let before = counted_by_agent("n1", RESUMED);
        let mut moving = in_mid_push(&namespace).await;
        let heals = lab::Restore(|| drop(lab::try_lab(&["exec", "n2", "nft", "delete", "table", "inet", "cut-push"])));
        lab::on_node("n2", RESET);
        tokio::time::sleep(Duration::from_secs(2)).await;
        Part::Registry("n2").signal("CONT");
        drop(heals);
        moving.migrates().await;
        assert_eq!(counted_by_agent("n1", RESUMED), before + 1);
    });
}

#[test]
fn a_push_goes_on_after_its_registry_was_killed() {
    with_namespace("killed-registry", |namespace| async move {
        let before = counted_by_agent("n1", RESUMED);
        let mut moving = in_mid_push(&namespace).await;
        Part::Registry("n2").signal("KILL");
        moving.migrates().await;
        assert!(counted_by_agent("n1", RESUMED) > before, "it was not begun anew");
        Part::Agent("n2").replace_pods();
    });
}

/// Nobody listens where the registry tells of pushes.
const UNHEARD: &str = "nft add table inet unheard; nft add chain inet unheard in '{ type filter hook input priority 0; }'; \
                       nft add rule inet unheard in tcp dport 5788 drop";

#[test]
fn what_a_registry_could_not_tell_before_it_was_lost_is_made_up_for() {
    with_namespace("lost-queue", |namespace| async move {
        const TAKEN: &str = "drover_registry_notifications_total{result=\"taken\"}";
        ready();
        let before = counted_by_agent("n2", TAKEN);
        let hears = lab::Restore(|| drop(lab::try_lab(&["exec", "n2", "nft", "delete", "table", "inet", "unheard"])));
        lab::on_node("n2", UNHEARD);
        let mut moving = Moving::begin(&namespace, 16, to("c", "n2")).await;
        moving.hold(Moment::BeforeRelease).await;
        assert_eq!(counted_by_agent("n2", TAKEN), before, "the agent has heard nothing");
        let registry = Part::Registry("n2");
        let old = registry.pids();
        registry.signal("KILL");
        let end = Instant::now() + Duration::from_secs(30);
        while registry.pids().is_empty() || registry.pids() == old {
            assert!(Instant::now() < end, "the registry was not started again within 30 s");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        drop(hears);
        moving.go_on();
        moving.migrates().await;
        let status = status(&moving.migration);
        let confirmed = status.conditions.iter().find(|it| it.type_ == condition::REGISTRY_CONFIRMED).expect("the condition");
        match confirmed.status.as_str() {
            "True" => assert_eq!((status.confirmations.len(), &status.confirmations[0].digest), (1, &status.containers[0].digest)),
            _ => assert_eq!(confirmed.reason, "Polled", "{confirmed:?}"),
        }
        Part::Agent("n2").replace_pods();
    });
}
