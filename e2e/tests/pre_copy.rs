//! Pre-copy: memory that is sent while the pod runs. The program changes ten thousand pages a second, and checks those that it reads.

use kube::api::DeleteParams;

use drover::api::{Migration, MigrationSpec, Phase, migration::Lane};

use crate::support::{
    Namespace,
    agents::{Part, ready},
    counter::assert_contiguous,
    migrations::{status, to},
    moving::Moving,
    pods::checking,
    with_namespace,
};

const MIB: u32 = 512;

/// A pod whose memory is being sent, and which runs.
async fn begin(namespace: &Namespace) -> Moving {
    namespace.run(&checking("c", "n1", MIB, 200)).await;
    let source = namespace.follow("c", "c").await;
    source.beyond(20).await;
    let migration = namespace.make(MigrationSpec { lane: Lane::Runtime, ..to("c", "n2") }).await;
    let mut moving = Moving::of(namespace, source, migration);
    moving.until("is sending its memory", |migration| migration.phase() >= Phase::Freezing).await;
    assert_eq!(moving.migration.phase(), Phase::Freezing, "seen too late");
    moving
}

fn of_memory(migration: &Migration) -> (u64, u64) {
    let container = status(migration).containers[0].clone();
    (container.pre_copied_bytes.unwrap_or_default(), container.memory_bytes.unwrap_or_default())
}

#[test]
fn pages_that_change_while_they_are_sent_are_those_of_the_freeze() {
    with_namespace("pre-copy", |namespace| async move {
        let mut moving = begin(&namespace).await;
        moving.migrates().await;
        moving.until_copy_counts().await.more(100).await;
        let (before, all) = of_memory(&moving.migration);
        assert!(before > u64::from(MIB) << 19 && before + (4 << 20) < all, "{before} of {all} bytes were there before the freeze");
    });
}

/// Nothing depends on it: the destination has what has come, or all of it comes of the frozen pod.
#[test]
fn an_agent_that_is_killed_meanwhile_changes_nothing() {
    for node in ["n1", "n2"] {
        with_namespace("pre-copy-agent", move |namespace| async move {
            let mut moving = begin(&namespace).await;
            Part::Agent(node).signal("KILL");
            ready();
            moving.migrates().await;
            moving.until_copy_counts().await.more(100).await;
        });
    }
}

#[test]
fn a_move_that_is_called_off_meanwhile_never_stops_the_pod() {
    with_namespace("pre-copy-off", |namespace| async move {
        let moving = begin(&namespace).await;
        namespace.migrations().delete(&moving.name(), &DeleteParams::default()).await.unwrap();
        moving.source.more(200).await;
        let lines = moving.source.lines();
        assert_contiguous(&lines);
        let gap = lines.windows(2).map(|two| two[1].at - two[0].at).max().unwrap();
        assert!(gap < 1000, "it stood for {gap} ms");
        namespace.assert_no_leftovers(&moving.migration).await;
        namespace.assert_one_runs("n1");
    });
}
