//! A kubelet or a containerd that is restarted while a pod is frozen, on either node: containers outlive both, frozen or not.

use std::time::Duration;

use drover::api::Outcome;

use crate::support::{
    agents::ready,
    eventually, lab,
    leftovers::AFTER_SWEEP,
    migrations::{status, to},
    moving::{Moment, Moving, is_held},
    with_namespace,
};

fn restarted(node: &'static str, daemon: &'static str, moment: Moment) {
    let name = format!("{node}-{daemon}-{}", format!("{moment:?}").to_lowercase());
    with_namespace(&name, |namespace| async move {
        let mut moving = Moving::begin(&namespace, 32, to("c", "n2")).await;
        moving.hold(moment).await;
        lab::lab(&["restart", node, daemon]);
        moving.go_on();
        moving.migrates().await;
        ready();
    });
}

#[test]
fn kubelets_that_are_restarted_before_the_vote() {
    restarted("n1", "kubelet", Moment::BeforeVote);
    restarted("n2", "kubelet", Moment::BeforeVote);
}

#[test]
fn containerds_that_are_restarted_before_the_vote() {
    restarted("n1", "containerd", Moment::BeforeVote);
    restarted("n2", "containerd", Moment::BeforeVote);
}

#[test]
fn daemons_of_the_source_that_are_restarted_after_the_release() {
    restarted("n1", "kubelet", Moment::Released);
    restarted("n1", "containerd", Moment::Released);
}

#[test]
fn daemons_of_the_destination_that_are_restarted_after_the_release() {
    restarted("n2", "kubelet", Moment::Released);
    restarted("n2", "containerd", Moment::Released);
}

/// The runtime gives up a restore whose caller has gone away, maybe after it had begun to execute: then a person is asked, and loses nothing of the source.
fn restarted_during_the_restore(daemon: &'static str) {
    with_namespace(&format!("n2-{daemon}-taken"), |namespace| async move {
        let mut moving = Moving::begin(&namespace, 16, to("c", "n2")).await;
        moving.hold(Moment::Taken).await;
        lab::lab(&["restart", "n2", daemon]);
        moving.go_on();
        let ended = moving.until("ended or held", |m| m.is_done() || is_held(m, "Died")).await;
        match status(ended).outcome {
            Some(Outcome::Migrated) => moving.migrates().await,
            Some(_) => moving.rolls_back("never started", AFTER_SWEEP).await,
            None => {
                eprintln!("{daemon} restarted during the restore: {}", moving.until_held("Died").await);
                moving.resolve(&["--prefer", "source"]);
                moving.rolls_back("what the replacement did since the release is lost", AFTER_SWEEP).await;
            }
        }
        if status(&moving.migration).outcome != Some(Outcome::Migrated) {
            // Also what no runtime knows of: a restore that goes on when its containerd has ended.
            eventually(Duration::from_secs(10), || {
                let left = lab::on_node("n2", "grep -lsz '^/counter' /proc/[0-9]*/cmdline || true");
                (!left.trim().is_empty()).then(|| format!("no counter executes on n2; there are {left}"))
            });
        }
        ready();
    });
}

#[test]
fn a_kubelet_of_the_destination_that_is_restarted_during_the_restore() {
    restarted_during_the_restore("kubelet");
}

#[test]
fn a_containerd_of_the_destination_that_is_restarted_during_the_restore() {
    restarted_during_the_restore("containerd");
}
