//! A node gets a taint that its pods do not tolerate (`NoExecute`): the taint manager deletes them, the managers' pods on it too.

use drover::api::{Outcome, Phase};

use crate::support::{
    SYSTEM,
    agents::ready,
    lab,
    leftovers::AFTER_SWEEP,
    migrations::{assert_outcome, status, to},
    moving::{Moment, Moving},
    with_namespace,
};

/// Taints a node until the test is over. All managers are on the other node by then, and later tests power nodes off: one that is made anew keeps away
/// from those that are there.
fn taint(node: &'static str) -> impl Drop {
    let mut tainted = Some(lab::taint(node, "NoExecute"));
    lab::Restore(move || {
        drop(tainted.take());
        let managers = ["kubectl", "-n", SYSTEM, "get", "pods", "-l", "app.kubernetes.io/component=manager", "-o", "name"];
        let managers = lab::try_lab(&managers).unwrap_or_default();
        if let Some(one) = managers.lines().next() {
            drop(lab::try_lab(&["kubectl", "-n", SYSTEM, "delete", one]));
        }
        ready();
    })
}

mod slow {
    use super::*;

    #[test]
    fn a_taint_of_the_source_node_in_doubt_takes_nothing() {
        with_namespace("taint-doubt", |namespace| async move {
            let mut moving = Moving::begin(&namespace, 16, to("c", "n2")).await;
            moving.hold(Moment::Taken).await;
            let _tainted = taint("n1");
            tokio::time::sleep(std::time::Duration::from_secs(5)).await;
            let source = namespace.pods().get("c").await.unwrap();
            assert!(source.metadata.deletion_timestamp.is_none(), "the taint manager is refused while nobody knows which copy lives");
            moving.go_on();
            moving.migrates().await;
        });
    }

    #[test]
    fn a_taint_of_the_source_node_before_the_vote_ends_the_pod_and_nothing_takes_its_place() {
        with_namespace("taint-early", |namespace| async move {
            let mut moving = Moving::begin(&namespace, 16, to("c", "n2")).await;
            moving.hold(Moment::BeforeVote).await;
            let _tainted = taint("n1");
            namespace.until_phase(&moving.name(), Phase::Finishing).await;
            moving.go_on();
            moving.migration = namespace.until_done(&moving.name()).await;
            assert_outcome(&moving.migration, Outcome::RolledBack);
            assert!(status(&moving.migration).message.contains("the source pod"), "{}", status(&moving.migration).message);
            moving.leaves_nothing();
        });
    }

    #[test]
    fn a_taint_of_the_destination_before_the_vote_rolls_back() {
        with_namespace("taint-destination", |namespace| async move {
            let mut moving = Moving::begin(&namespace, 16, to("c", "n2")).await;
            moving.hold(Moment::BeforeVote).await;
            let tainted = taint("n2");
            namespace.until_phase(&moving.name(), Phase::Finishing).await;
            moving.go_on();
            moving.rolls_back("the waiting replacement", AFTER_SWEEP).await;
            drop(tainted);
        });
    }
}
