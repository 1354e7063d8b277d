//! The runtime lane: drover-runc restores, from memory that has gone past the registry.

use std::time::Duration;

use kube::ResourceExt as _;

use drover::{
    api::{Migration, MigrationSpec, Outcome, migration::Lane},
    domain::{keys, lanes},
};

use crate::support::{
    Namespace,
    counter::{assert_contiguous, assert_went_on, lines},
    eventually, lab,
    migrations::{assert_outcome, replacement, status, to},
    moving::{Moment, Moving},
    pods::{container, counter},
    with_namespace,
};

/// From n1 to this node in this lane.
fn in_lane(lane: Lane, pod: &str, node: &str) -> MigrationSpec {
    MigrationSpec { lane, ..to(pod, node) }
}

/// Nothing of anybody's memory is left where drover-runc and the agents keep it.
fn assert_no_memory_left() {
    eventually(Duration::from_secs(10), || {
        let find =
            "find /run/drover/dump /run/drover/restore /run/drover/incoming /var/lib/drover/dump /var/lib/drover/restore -type f 2>/dev/null; true";
        let left: Vec<_> = ["n1", "n2"].map(|node| lab::on_node(node, find)).into_iter().filter(|found| !found.trim().is_empty()).collect();
        (!left.is_empty()).then(|| format!("memory is left: {left:?}"))
    });
}

async fn moves(namespace: &Namespace, pod: &str, lane: Lane, node: &str) -> Migration {
    let migration = namespace.make(in_lane(lane, pod, node)).await;
    let migration = namespace.until_done(&migration.name_any()).await;
    assert_outcome(&migration, Outcome::Migrated);
    assert_eq!(status(&migration).lane, Some(lane));
    migration
}

#[test]
fn a_pod_moves_and_its_memory_goes_past_the_registry() {
    with_namespace("runtime", |namespace| async move {
        namespace.run(&counter("counter", "n1", 32, 50)).await;
        let before = namespace.follow("counter", "c").await;
        before.beyond(5).await;
        let migration = moves(&namespace, "counter", Lane::Runtime, "n2").await;
        let copy = replacement(&migration);
        let after = namespace.follow(&copy, "c").await;
        after.beyond(before.last() + 5).await;
        assert_went_on(&before.lines(), &after.lines(), &migration);
        assert_eq!(after.lines()[0].number, 1, "kubectl logs of the copy begins where the original began");

        let copy = namespace.pods().get(&copy).await.unwrap();
        assert_eq!(copy.spec.as_ref().unwrap().runtime_class_name.as_deref(), Some(lanes::RUNTIME_CLASS));
        assert_eq!(container(&copy, "c").restart_count, 0);
        let pushed = status(&migration).containers[0].bytes;
        assert!(pushed < 8 << 20, "the registry has {pushed} bytes of a container with 32 MiB");
        let memory = status(&migration).containers[0].memory_bytes;
        assert!(memory > Some(32 << 20), "{memory:?} bytes of memory were sent");
        let pre_copied = status(&migration).containers[0].pre_copied_bytes;
        assert!(pre_copied > Some(28 << 20) && pre_copied < memory, "{pre_copied:?} of {memory:?} bytes were there before the freeze");
        namespace.assert_no_leftovers(&migration).await;
        assert_no_memory_left();
    });
}

#[test]
fn it_goes_there_and_back_in_one_lane_and_the_other() {
    with_namespace("lanes", |namespace| async move {
        namespace.run(&counter("hopper", "n1", 0, 50)).await;
        let mut name = "hopper".to_owned();
        let mut before = namespace.follow(&name, "c").await;
        before.beyond(3).await;
        for (lane, node) in [(Lane::Runtime, "n2"), (Lane::Runtime, "n1"), (Lane::Image, "n2"), (Lane::Runtime, "n1")] {
            let migration = moves(&namespace, &name, lane, node).await;
            name = replacement(&migration);
            let after = namespace.follow(&name, "c").await;
            after.beyond(before.last() + 3).await;
            assert_went_on(&before.lines(), &after.lines(), &migration);
            namespace.assert_no_leftovers(&migration).await;
            before = after;
        }
        assert_eq!(keys::hops(&namespace.pods().get(&name).await.unwrap()), 4);
        let all = lines(&namespace.logs(&name, "c").await);
        assert_eq!(all[0].number, 1);
        assert_contiguous(&all);
    });
}

#[test]
fn a_crash_after_the_move_starts_cold() {
    with_namespace("runtime-crash", |namespace| async move {
        namespace.run(&counter("counter", "n1", 0, 50)).await;
        namespace.follow("counter", "c").await.beyond(20).await;
        let migration = moves(&namespace, "counter", Lane::Runtime, "n2").await;
        let copy = replacement(&migration);
        let id = status(&migration).replacement.unwrap().containers[0].container_id.clone();
        lab::on_node("n2", &format!("kill -9 $(ctr -n k8s.io task ls 2>/dev/null | awk '$1 == \"{id}\" {{print $2}}')"));
        let restarted = namespace
            .until_pod(&copy, "is restarted", |pod| pod.is_some_and(|pod| container(pod, "c").restart_count == 1 && container(pod, "c").ready));
        restarted.await;
        let after = namespace.follow(&copy, "c").await;
        after.beyond(3).await;
        let after = lines(&namespace.logs(&copy, "c").await);
        assert_eq!(after[0].number, 1, "it began anew");
        assert_contiguous(&after);
    });
}

/// The proof that it was refused is CRIU's own, as in the image lane.
#[test]
fn a_refused_restore_is_rolled_back() {
    with_namespace("runtime-refused", |namespace| async move {
        let mut moving = Moving::begin(&namespace, 8, in_lane(Lane::Runtime, "c", "n2")).await;
        moving.hold(Moment::Released).await;
        lab::on_node("n2", "for core in /run/drover/restore/*/c/checkpoint/core-*.img; do echo spoilt >$core; done");
        moving.go_on();
        moving.rolls_back("CRIU says", Duration::from_secs(90)).await;
        assert_no_memory_left();
    });
}

/// All three have one base image, so in a node's store each pod's tag is another name of the same image.
#[test]
fn what_becomes_of_others_with_its_image_keeps_no_pod_from_going_on_in_one_lane_and_the_other() {
    with_namespace("runtime-names", |namespace| async move {
        namespace.run(&counter("stays", "n1", 0, 50)).await;
        let first = moves(&namespace, "stays", Lane::Runtime, "n2").await;
        let mut moving = Moving::begin(&namespace, 0, in_lane(Lane::Runtime, "c", "n2")).await;
        moving.hold(Moment::Released).await;
        lab::on_node("n2", "for core in /run/drover/restore/*/c/checkpoint/core-*.img; do echo spoilt >$core; done");
        moving.go_on();
        let done = namespace.until_done(&moving.name()).await;
        assert_outcome(&done, Outcome::RolledBack);
        // containerd looks for the image of a container that it checkpoints by name.
        moves(&namespace, &replacement(&first), Lane::Image, "n1").await;
    });
}
