//! Nodes that lose their power: every process and all memory at once; the disk stays.

use drover::api::{MigrationSpec, Verdict};

use crate::support::{
    agents::ready,
    leftovers::AFTER_SWEEP,
    migrations::{status, to},
    moving::{Moment, Moving, PoweredOff},
    with_namespace,
};

/// The source, which has voted, loses its power: the copy goes on, and what is left of the source ends when its node is back.
fn a_source_loses_power(name: &str, moment: Moment) {
    with_namespace(name, |namespace| async move {
        let mut moving = Moving::begin(&namespace, 64, to("c", "n2")).await;
        moving.hold(moment).await;
        let off = PoweredOff::node("n1");
        moving.go_on();
        let copy = moving.until_copy_counts().await;
        moving.until("waits for the source's node", |m| status(m).message.contains("waiting for the source")).await;
        assert_eq!(moving.migration.verdict(), Some(Verdict::Commit));
        copy.more(5).await;
        off.on();
        ready();
        moving.migrates().await;
    });
}

#[test]
fn a_source_that_loses_power_after_its_vote_goes_on_at_the_destination() {
    a_source_loses_power("source-voted", Moment::BeforeRelease);
}

mod slow {
    use super::*;

    #[test]
    fn a_source_that_loses_power_after_the_release_goes_on_at_the_destination() {
        a_source_loses_power("source-released", Moment::Taken);
    }

    /// Its memory is lost as in any power failure: it begins anew, and only there.
    #[test]
    fn a_source_that_loses_power_before_its_vote_begins_anew() {
        with_namespace("source-unvoted", |namespace| async move {
            let mut moving = Moving::begin(&namespace, 64, MigrationSpec { deadline_seconds: 20, ..to("c", "n2") }).await;
            moving.hold(Moment::BeforeVote).await;
            let off = PoweredOff::node("n1");
            moving.go_on();
            moving.until("waits for the source's node", |m| status(m).message.contains("waiting for the agent of node n1")).await;
            assert_eq!(namespace.running_on("n2"), [] as [String; 0], "nothing was released");
            off.on();
            ready();
            moving.begins_anew("spec.deadlineSeconds (20 s)").await;
        });
    }

    /// The destination closes its claims as soon as it is back; the source, frozen until then, goes on.
    #[test]
    fn a_destination_that_loses_power_before_the_restore_is_held_and_then_rolled_back() {
        with_namespace("destination-released", |namespace| async move {
            let mut moving = Moving::begin(&namespace, 32, to("c", "n2")).await;
            moving.hold(Moment::Released).await;
            let off = PoweredOff::node("n2");
            let message = moving.until_held("InDoubt").await;
            assert!(message.contains("node n2 is not Ready"), "{message}");
            off.on();
            ready();
            moving.rolls_back("c revoked", AFTER_SWEEP).await;
        });
    }

    /// Its memory is lost with what it did since the release. The node tells as soon as it is back, and a person decides.
    #[test]
    fn a_destination_that_loses_power_after_the_restore_is_held_until_a_person_decides() {
        with_namespace("destination-died", |namespace| async move {
            let mut moving = Moving::begin(&namespace, 64, to("c", "n2")).await;
            moving.hold(Moment::Taken).await;
            drop(moving.until_copy_counts().await);
            let off = PoweredOff::node("n2");
            moving.until_held("InDoubt").await;
            off.on();
            moving.until_held("Died").await;
            assert_eq!(namespace.running(), [] as [String; 0], "the source stays frozen");
            moving.resolve(&["--prefer", "source"]);
            moving.rolls_back("what the replacement did since the release is lost", AFTER_SWEEP).await;
            ready();
        });
    }

    /// A person's word that the node stays down is taken; when it comes back after all, nothing of the replacement starts.
    #[test]
    fn a_destination_that_stays_down_is_given_up_on_a_persons_word() {
        with_namespace("destination-down", |namespace| async move {
            let mut moving = Moving::begin(&namespace, 64, to("c", "n2")).await;
            moving.hold(Moment::Taken).await;
            drop(moving.until_copy_counts().await);
            let off = PoweredOff::node("n2");
            moving.until_held("InDoubt").await;
            moving.resolve(&["--prefer", "source", "--destination-is-down"]);
            moving.until("ended", drover::api::Migration::is_done).await;
            moving.source.more(5).await;
            off.on();
            ready();
            moving.rolls_back("said to be down for good", AFTER_SWEEP).await;
        });
    }
}
