//! Nodes that are cut off: everything on them goes on running, and nobody hears of it.

use std::time::Duration;

use drover::api::{MigrationSpec, Verdict};

use crate::support::{
    agents::ready,
    counter::assert_contiguous,
    leftovers::AFTER_SWEEP,
    migrations::{status, to},
    moving::{Cut, Moment, Moving},
    with_namespace,
};

/// A source without a vote thaws by itself, asks nobody, and says so when it is heard again.
#[test]
fn a_source_that_is_cut_off_before_its_vote_thaws_by_itself() {
    with_namespace("cut-source", |namespace| async move {
        let mut moving = Moving::begin(&namespace, 64, MigrationSpec { freeze_budget_seconds: 8, ..to("c", "n2") }).await;
        moving.hold(Moment::BeforeVote).await;
        let frozen_at = moving.source.lines().last().unwrap().at;
        let cut = Cut::node("n1");
        moving.go_on();
        tokio::time::sleep(Duration::from_secs(12)).await;
        drop(cut);
        moving.rolls_back("freeze", AFTER_SWEEP).await;
        // It counted while nobody could tell it to.
        let lines = crate::support::counter::lines(&namespace.logs("c", "c").await);
        assert_contiguous(&lines);
        assert!(lines.iter().any(|line| (frozen_at + 8_000..frozen_at + 12_000).contains(&line.at)), "it was thawed within its budget");
    });
}

/// The copy goes on; the source stays frozen on its island, and ends when it is heard again.
fn a_voted_source_is_cut_off(name: &str, moment: Moment) {
    with_namespace(name, |namespace| async move {
        let mut moving = Moving::begin(&namespace, 64, to("c", "n2")).await;
        moving.hold(moment).await;
        let cut = Cut::node("n1");
        moving.go_on();
        let copy = moving.until_copy_counts().await;
        moving.until("waits for the source", |m| status(m).message.contains("waiting for the source")).await;
        assert_eq!(moving.migration.verdict(), Some(Verdict::Commit));
        copy.more(5).await;
        namespace.assert_one_runs("n2");
        drop(cut);
        moving.migrates().await;
        ready();
    });
}

#[test]
fn a_source_that_is_cut_off_after_its_vote_stays_frozen_until_it_ends() {
    a_voted_source_is_cut_off("cut-voted", Moment::BeforeRelease);
}

#[test]
fn a_destination_that_is_cut_off_before_the_vote_rolls_back() {
    with_namespace("cut-destination", |namespace| async move {
        let mut moving = Moving::begin(&namespace, 64, MigrationSpec { freeze_budget_seconds: 10, ..to("c", "n2") }).await;
        moving.hold(Moment::BeforeVote).await;
        let cut = Cut::node("n2");
        moving.go_on();
        // Thawed while the destination can be asked nothing.
        moving.source.more(5).await;
        drop(cut);
        moving.rolls_back("n2", AFTER_SWEEP).await;
        ready();
    });
}

mod slow {
    use super::*;

    #[test]
    fn a_source_that_is_cut_off_after_the_release_stays_frozen_until_it_ends() {
        a_voted_source_is_cut_off("cut-released", Moment::Taken);
    }

    /// The copy runs and cannot say so: in doubt the source stays frozen, until the destination is heard again.
    #[test]
    fn a_destination_that_is_cut_off_after_the_release_is_held_and_then_migrates() {
        with_namespace("cut-restoring", |namespace| async move {
            let mut moving = Moving::begin(&namespace, 32, to("c", "n2")).await;
            moving.hold(Moment::Released).await;
            let cut = Cut::node("n2");
            // Its own node serves the image.
            moving.go_on();
            let message = moving.until_held("InDoubt").await;
            assert!(message.contains("node n2 is not Ready"), "{message}");
            namespace.assert_one_runs("n2");
            drop(cut);
            moving.migrates().await;
            ready();
        });
    }
}
