//! Post-copy: the copy runs before its memory has come, and fetches it from the frozen source. The program checks its own pages.

use std::{thread::JoinHandle, time::Duration};

use kube::ResourceExt as _;
use serde_json::json;

use drover::{
    api::{Migration, MigrationSpec, Outcome, Phase, migration::Lane},
    domain::keys,
};

use crate::support::{
    Namespace,
    counter::{Follower, assert_contiguous, lines},
    lab,
    leaving::Leaving,
    migrations::{assert_outcome, replacement, status, to},
    moving::{Cut, Moving},
    outstanding::{kill, once_it_waits},
    pods::checking,
    with_namespace,
};

/// What ends one of the sides on its node.
const DAEMON: &str = "[l]azy-pages -v1";
const KEEPER: &str = "[k]eep-lazy-pages";
const SERVER: &str = "[s]erve-pages";

fn post_copy(pod: &str) -> MigrationSpec {
    MigrationSpec { lane: Lane::Runtime, post_copy: true, ..to(pod, "n2") }
}

/// A pod `c` on n1 that checks its memory, under the RuntimeClass that can leave it behind.
async fn start(namespace: &Namespace, mib: u32) -> Follower {
    let mut pod = checking("c", "n1", mib, 200);
    pod.spec.as_mut().unwrap().runtime_class_name = Some("drover".into());
    namespace.run(&pod).await;
    let source = namespace.follow("c", "c").await;
    source.beyond(20).await;
    source
}

/// Such a pod is on its way to n2.
async fn begin(namespace: &Namespace, mib: u32) -> Moving {
    let source = start(namespace, mib).await;
    let migration = namespace.make(post_copy("c")).await;
    Moving::of(namespace, source, migration)
}

/// Does something on a node in a thread of its own, which fails where no page is ever outstanding.
fn while_pages_are_outstanding(node: &'static str, then: String) -> JoinHandle<()> {
    std::thread::spawn(move || {
        if node == "n2" {
            return once_it_waits(&then);
        }
        once_it_waits("true");
        lab::on_node(node, &then);
    })
}

#[test]
fn memory_is_fetched_from_the_frozen_source_and_no_page_is_wrong() {
    with_namespace("post-copy", |namespace| async move {
        let seen = while_pages_are_outstanding("n2", "true".into());
        let mut moving = begin(&namespace, 256).await;
        moving.migrates().await;
        seen.join().unwrap();
        let copy = moving.until_copy_counts().await;
        copy.more(100).await;
        // Also what another test has left is gone after the next sweep.
        for (node, folders) in [("n1", "/run/drover/pages/* /run/drover/dump/*"), ("n2", "/run/drover/ways/*")] {
            lab::on_node(
                node,
                &format!("for i in $(seq 90); do ls -d {folders} 2>/dev/null | grep -q . || exit 0; sleep 1; done; ls -d {folders}; exit 1"),
            );
        }
    });
}

/// The memory is with the source alone: the copy is ended before it can read a wrong page, and a person, who is told what is lost, lets the source go on.
fn the_source_goes_on_after(name: &'static str, node: &'static str, then: String) {
    with_namespace(name, move |namespace| async move {
        let done = while_pages_are_outstanding(node, then);
        let mut moving = begin(&namespace, 1024).await;
        moving.until("held", |m| status(m).message.contains("--prefer source")).await;
        done.join().unwrap();
        assert_eq!((moving.migration.phase(), moving.migration.verdict()), (Phase::Restoring, None));
        // A page that it waits for may have been the first; what it has printed is right in any case.
        assert_contiguous(&lines(&namespace.last_words(&replacement(&moving.migration), "c").await));
        moving.source_is_preferred().await;
    });
}

#[test]
fn a_page_server_that_is_killed_ends_the_copy_and_not_the_source() {
    the_source_goes_on_after("post-copy-server", "n1", kill(SERVER));
}

#[test]
fn a_lazy_pages_daemon_that_is_killed_ends_the_copy_and_not_the_source() {
    the_source_goes_on_after("post-copy-daemon", "n2", kill(DAEMON));
}

#[test]
fn an_agent_that_is_killed_at_the_source_ends_the_copy_and_not_the_source() {
    the_source_goes_on_after("post-copy-agent", "n1", kill("[d]rover agent"));
}

#[test]
fn an_agent_that_is_killed_at_the_destination_ends_the_copy_and_not_the_source() {
    the_source_goes_on_after("post-copy-agent-there", "n2", kill("[d]rover agent"));
}

/// Nobody can say any more whether all of its memory has come.
#[test]
fn a_keeper_that_is_killed_is_never_called_a_success() {
    with_namespace("post-copy-keeper", |namespace| async move {
        let killed = while_pages_are_outstanding("n2", kill(KEEPER));
        let mut moving = begin(&namespace, 1024).await;
        moving.until("held", |m| status(m).message.contains("--prefer source")).await;
        killed.join().unwrap();
        assert_eq!((moving.migration.phase(), moving.migration.verdict()), (Phase::Restoring, None));
        moving.source_is_preferred().await;
    });
}

/// The copy waits for its pages, and goes on.
#[test]
fn a_network_that_is_away_for_a_while_loses_nothing() {
    with_namespace("post-copy-network", |namespace| async move {
        let seen = while_pages_are_outstanding("n1", "true".into());
        let cut = std::thread::spawn(move || {
            seen.join().unwrap();
            let cut = Cut::node("n1");
            std::thread::sleep(Duration::from_secs(15));
            drop(cut);
        });
        let mut moving = begin(&namespace, 1024).await;
        moving.migrates().await;
        cut.join().unwrap();
        let copy = moving.until_copy_counts().await;
        copy.more(100).await;
    });
}

/// Of what nobody has asked for nothing is lost.
#[test]
fn an_agent_that_is_killed_before_the_release_changes_nothing() {
    with_namespace("post-copy-early", |namespace| async move {
        let killed = std::thread::spawn(|| {
            let script = format!(
                "for i in $(seq 6000); do if ls /run/drover/pages/*/pages.sock; then {}; exit 0; fi; sleep 0.005; done; exit 1",
                kill("[d]rover agent")
            );
            lab::on_node("n1", &script)
        });
        let mut moving = begin(&namespace, 64).await;
        moving.migration = namespace.until_done(&moving.name()).await;
        killed.join().unwrap();
        // What it came to depends on how far the vote was; the memory is whole in either case.
        match status(&moving.migration).outcome {
            Some(Outcome::Migrated) => moving.until_copy_counts().await.more(50).await,
            Some(Outcome::RolledBack) => moving.source_goes_on().await,
            other => panic!("{other:?}: {}", status(&moving.migration).message),
        }
    });
}

#[test]
fn whoever_cannot_leave_memory_behind_is_refused_and_told_why() {
    with_namespace("post-copy-refused", |namespace| async move {
        namespace.run(&checking("c", "n1", 16, 20)).await;
        let migration = namespace.make(post_copy("c")).await;
        let done = namespace.until_done(migration.metadata.name.as_deref().unwrap_or_default()).await;
        assert_outcome(&done, Outcome::Failed);
        let message = &status(&done).message;
        assert!(message.contains("spec.postCopy: the pod does not run under the RuntimeClass drover"), "{message}");
    });
}

/// Whoever writes the policy has agreed to it; who cannot be moved that way is moved all the same.
#[test]
fn a_policy_empties_a_node_by_post_copy_where_that_can_be() {
    with_namespace("post-copy-policy", |namespace| async move {
        let _leaving = Leaving::by(&json!({"evacuation": {"triggers": ["Cordon"]}, "postCopy": true}), &namespace).await;
        let outstanding = while_pages_are_outstanding("n2", "true".into());
        let source = start(&namespace, 256).await;
        lab::lab(&["kubectl", "cordon", "n1"]);
        let policy_says = |m: &Migration| m.annotations().get(keys::POST_COPY_BY).cloned().unwrap_or_default();
        let migration = namespace.first("c leaves n1", |m| m.spec.pod_name.as_deref() == Some("c")).await;
        assert_eq!((migration.spec.post_copy, migration.spec.lane), (true, Lane::Runtime), "{}", policy_says(&migration));
        assert_eq!(policy_says(&migration), format!("MigrationPolicy {} asks for it", namespace.name));
        let mut moving = Moving::of(&namespace, source, migration);
        moving.migrates().await;
        outstanding.join().unwrap();
        moving.until_copy_counts().await.more(100).await;

        namespace.run(&checking("plain", "n1", 16, 20)).await;
        let ended = |m: &Migration| m.spec.pod_name.as_deref() == Some("plain") && m.is_done();
        let plain = namespace.first("plain has left n1", ended).await;
        assert_outcome(&plain, Outcome::Migrated);
        assert!(!plain.spec.post_copy && policy_says(&plain).contains("does not run under the RuntimeClass drover"), "{}", policy_says(&plain));
        namespace.follow(&replacement(&plain), "c").await.more(50).await;
    });
}

mod slow {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;
    use crate::support::{agents::ready, moving::PoweredOff, pods::container};

    /// What had not come yet is lost with the source's processes: nobody may call that a success, and no copy may run on without it.
    #[test]
    fn a_source_that_loses_its_power_meanwhile_ends_the_copy_and_begins_anew() {
        with_namespace("post-copy-power", |namespace| async move {
            let seen = while_pages_are_outstanding("n2", "true".into());
            let gone = std::thread::spawn(move || {
                seen.join().unwrap();
                let off = PoweredOff::node("n1");
                std::thread::sleep(Duration::from_secs(5));
                off.on();
            });
            let mut moving = begin(&namespace, 1024).await;
            moving.until_held("Died").await;
            gone.join().unwrap();
            ready();
            assert_contiguous(&lines(&namespace.last_words(&replacement(&moving.migration), "c").await));
            let told = |m: &Migration| status(m).message.contains("of it c runs no more, as after a boot of node n1: its memory is lost");
            moving.until("told what is lost", told).await;
            assert_eq!((moving.migration.verdict(), namespace.running()), (None, vec![]), "a person decides which of them begins anew");
            moving.resolve(&["--prefer", "source"]);
            moving.migration = namespace.until_done(&moving.name()).await;
            assert_outcome(&moving.migration, Outcome::RolledBack);
            let restarted = |pod: Option<&Pod>| pod.is_some_and(|pod| container(pod, "c").ready);
            namespace.until_pod("c", "is started again", restarted).await;
            let anew = namespace.follow("c", "c").await;
            anew.more(20).await;
            assert_eq!(anew.lines()[0].number, 1);
            namespace.assert_one_runs("n1");
        });
    }
}
