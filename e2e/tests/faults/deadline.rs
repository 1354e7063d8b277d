//! A kubelet that ends a pod by itself, past the API server, its policies and every disruption budget, as it does under node pressure. The lab's kubelets know no
//! pressure (their machine's disk is none that cadvisor finds), but a pod whose `activeDeadlineSeconds` is over they end in the same way: phase Failed, SIGKILL.

use drover::api::{Outcome, Phase};
use serde_json::json;

use crate::support::{
    leftovers::AFTER_SWEEP,
    migrations::{assert_outcome, status, to},
    moving::{Moment, Moving},
    with_namespace,
};

/// The deadline of a pod is over: its kubelet ends it, and says so unless nobody has such a pod any more.
async fn ended(moving: &Moving, pod: &str) {
    let deadline = json!({"spec": {"activeDeadlineSeconds": 1}});
    moving.namespace.kubectl(&["patch", "pod", pod, "--type=merge", "-p", &deadline.to_string()]).unwrap();
    let phase = |pod: Option<&k8s_openapi::api::core::v1::Pod>| {
        pod.is_none_or(|pod| pod.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Failed")))
    };
    moving.namespace.until_pod(pod, "is ended by its kubelet", phase).await;
}

#[test]
fn a_source_that_its_kubelet_ends_after_the_release_moves_all_the_same() {
    with_namespace("ended-released", |namespace| async move {
        let mut moving = Moving::begin(&namespace, 16, to("c", "n2")).await;
        moving.hold(Moment::Released).await;
        ended(&moving, "c").await;
        moving.go_on();
        moving.migrates().await;
    });
}

mod slow {
    use super::*;

    #[test]
    fn a_source_that_its_kubelet_ends_before_the_vote_ends_and_nothing_takes_its_place() {
        with_namespace("ended-early", |namespace| async move {
            let mut moving = Moving::begin(&namespace, 16, to("c", "n2")).await;
            moving.hold(Moment::BeforeVote).await;
            ended(&moving, "c").await;
            namespace.until_phase(&moving.name(), Phase::Finishing).await;
            moving.go_on();
            moving.migration = namespace.until_done(&moving.name()).await;
            assert_outcome(&moving.migration, Outcome::RolledBack);
            eprintln!("ended before the vote: {}", status(&moving.migration).message);
            moving.leaves_nothing();
        });
    }

    #[test]
    fn a_replacement_that_its_kubelet_ends_before_it_is_restored_rolls_back() {
        with_namespace("ended-copy", |namespace| async move {
            let mut moving = Moving::begin(&namespace, 16, to("c", "n2")).await;
            moving.hold(Moment::Released).await;
            let copy = status(&moving.migration).replacement.unwrap().name;
            ended(&moving, &copy).await;
            moving.go_on();
            moving.rolls_back("never started", AFTER_SWEEP).await;
        });
    }
}
