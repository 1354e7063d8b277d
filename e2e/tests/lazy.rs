//! Lazy restores of the runtime lane: containers that run before their memory is back. The program checks its own pages, so that one that came late, twice or
//! not at all would show.

use std::{thread::JoinHandle, time::Duration};

use drover::api::{MigrationSpec, Phase, migration::Lane};

use crate::support::{
    Namespace,
    agents::ready,
    counter::{assert_contiguous, lines},
    migrations::{replacement, status, to},
    moving::{Cut, Moving, PoweredOff},
    outstanding::{kill, once_it_waits},
    pods::checking,
    with_namespace,
};

/// CRIU's daemon, in the words that pgrep finds and does not contain itself.
const DAEMON: &str = "[l]azy-pages -v1";
/// Its keeper.
const KEEPER: &str = "[k]eep-lazy-pages";

/// A pod that checks its memory is on its way to n2.
async fn begin(namespace: &Namespace, mib: u32, spec: MigrationSpec) -> Moving {
    namespace.run(&checking("c", "n1", mib, 200)).await;
    let source = namespace.follow("c", "c").await;
    source.beyond(20).await;
    let migration = namespace.make(MigrationSpec { lane: Lane::Runtime, ..spec }).await;
    Moving::of(namespace, source, migration)
}

/// Does something on n2 in a thread of its own, which fails where no page is ever outstanding.
fn while_pages_are_outstanding(then: impl Into<String>) -> JoinHandle<()> {
    let then = then.into();
    std::thread::spawn(move || once_it_waits(&then))
}

#[test]
fn no_page_is_wrong_while_memory_still_comes() {
    with_namespace("lazy", |namespace| async move {
        let seen = while_pages_are_outstanding("true");
        let mut moving = begin(&namespace, 256, to("c", "n2")).await;
        moving.migrates().await;
        seen.join().unwrap();
        let copy = moving.until_copy_counts().await;
        copy.more(100).await;
    });
}

/// What the copy did is lost, and a person is asked; nothing ever reads what is not its memory.
#[test]
fn a_daemon_that_is_killed_ends_the_copy_and_never_shows_it_a_wrong_page() {
    with_namespace("lazy-daemon", |namespace| async move {
        let killed = while_pages_are_outstanding(kill(DAEMON));
        let mut moving = begin(&namespace, 1024, to("c", "n2")).await;
        moving.until("held", |m| status(m).message.contains("--prefer source")).await;
        killed.join().unwrap();
        let message = &status(&moving.migration).message;
        assert!(message.contains("may have run, and nothing of it runs any more"), "{message}");
        // A page that it waits for may have been the first; what it has printed is right in any case.
        assert_contiguous(&lines(&namespace.last_words(&replacement(&moving.migration), "c").await));
        assert_eq!((moving.migration.phase(), moving.migration.verdict()), (Phase::Restoring, None));
        moving.source_is_preferred().await;
    });
}

/// The daemon goes on, and nobody says of the copy that it is whole: that is a person's word.
#[test]
fn a_keeper_that_is_killed_is_never_called_a_success() {
    with_namespace("lazy-keeper", |namespace| async move {
        let killed = while_pages_are_outstanding(kill(KEEPER));
        let mut moving = begin(&namespace, 512, to("c", "n2")).await;
        moving.until("held", |m| status(m).message.contains("--prefer source")).await;
        killed.join().unwrap();
        let message = &status(&moving.migration).message;
        assert!(message.contains("keeper"), "{message}");
        assert_eq!((moving.migration.phase(), moving.migration.verdict()), (Phase::Restoring, None));
        let copy = moving.until_copy_counts().await;
        copy.more(100).await;
        moving.source_is_preferred().await;
    });
}

#[test]
fn an_agent_that_is_killed_meanwhile_changes_nothing() {
    with_namespace("lazy-agent", |namespace| async move {
        let killed = while_pages_are_outstanding(kill("[d]rover agent"));
        let mut moving = begin(&namespace, 512, to("c", "n2")).await;
        moving.migrates().await;
        killed.join().unwrap();
        moving.until_copy_counts().await.more(100).await;
    });
}

mod slow {
    use super::*;

    /// What comes from the node's own memory needs no source.
    fn the_copy_goes_on_without(name: &'static str, gone: fn() -> Box<dyn Send>) {
        with_namespace(name, move |namespace| async move {
            let seen = while_pages_are_outstanding("true");
            let gone = std::thread::spawn(move || {
                seen.join().unwrap();
                gone()
            });
            let mut moving = begin(&namespace, 1024, to("c", "n2")).await;
            moving.until("released", |migration| migration.phase() >= Phase::Restoring).await;
            let copy = moving.until_copy_counts().await;
            copy.more(100).await;
            drop(gone.join().unwrap());
            ready();
            moving.migrates().await;
            copy.more(100).await;
        });
    }

    #[test]
    fn a_source_that_loses_its_power_meanwhile_changes_nothing() {
        the_copy_goes_on_without("lazy-power", || {
            let off = PoweredOff::node("n1");
            std::thread::sleep(Duration::from_secs(5));
            off.on();
            Box::new(())
        });
    }

    #[test]
    fn a_source_that_is_cut_off_meanwhile_changes_nothing() {
        the_copy_goes_on_without("lazy-cut", || Box::new(Cut::node("n1")));
    }
}
