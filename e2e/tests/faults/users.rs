//! Users who delete, force, or ask twice while a migration runs.

use std::time::Duration;

use kube::{
    ResourceExt as _,
    api::{DeleteParams, EvictParams},
    runtime::{conditions::is_deleted, wait::await_condition},
};

use drover::api::{Outcome, Phase, Verdict};

use crate::support::{
    Namespace, eventually, lab,
    leftovers::AFTER_SWEEP,
    migrations::{assert_outcome, replacement, status, to},
    moving::{Moment, Moving},
    with_namespace,
};

/// Removes a pod's object at once, as `kubectl delete pod --force --grace-period=0` does.
async fn force_delete(namespace: &Namespace, pod: &str) {
    namespace.pods().delete(pod, &DeleteParams::default().grace_period(0)).await.unwrap();
}

/// The same of one that may be the only copy left, which the API server refuses at first, and to others than the manager.
async fn force_delete_in_doubt(namespace: &Namespace, pod: &str) {
    let eviction = namespace.pods().evict(pod, &EvictParams::default()).await.unwrap_err().to_string();
    let deletion = namespace.pods().delete(pod, &DeleteParams::default().grace_period(0)).await.unwrap_err().to_string();
    let garbage = namespace.kubectl(&["delete", "pod", pod, "--as=system:serviceaccount:kube-system:generic-garbage-collector"]).unwrap_err();
    for refused in [eviction, deletion, garbage] {
        assert!(refused.contains("drover-pods-in-doubt") && refused.contains("drover resolve"), "{refused}");
    }
    namespace.kubectl(&["annotate", "pod", pod, "drover.dev/allow-delete=true"]).unwrap();
    force_delete(namespace, pod).await;
}

#[test]
fn a_source_that_is_removed_by_force_before_its_vote_ends_and_nothing_takes_its_place() {
    with_namespace("force-source", |namespace| async move {
        let mut moving = Moving::begin(&namespace, 64, to("c", "n2")).await;
        moving.hold(Moment::BeforeVote).await;
        force_delete(&namespace, "c").await;
        moving.go_on();
        moving.migration = namespace.until_done(&moving.name()).await;
        assert_outcome(&moving.migration, Outcome::RolledBack);
        // Manager, agent and kubelet see it at the same time; who is first names what it saw.
        let message = status(&moving.migration).message;
        let seen = ["the source pod c is", "the source pod is being deleted", "container c", "paused"];
        assert!(seen.iter().any(|seen| message.contains(seen)), "{message}");
        eventually(Duration::from_secs(20), || {
            let running = namespace.running();
            (!running.is_empty()).then(|| format!("nothing runs; there are {running:?}"))
        });
        eventually(AFTER_SWEEP, || {
            let left = namespace.on_nodes(&moving.migration, &[]);
            (!left.is_empty()).then(|| format!("nothing is left; there is\n{left}"))
        });
    });
}

#[test]
fn a_source_that_is_removed_by_force_after_the_release_goes_on_at_the_destination() {
    with_namespace("force-released", |namespace| async move {
        let mut moving = Moving::begin(&namespace, 64, to("c", "n2")).await;
        moving.hold(Moment::Taken).await;
        force_delete_in_doubt(&namespace, "c").await;
        moving.go_on();
        moving.migrates().await;
    });
}

fn a_replacement_is_removed(name: &str, moment: Moment, because: &'static str) {
    with_namespace(name, |namespace| async move {
        let mut moving = Moving::begin(&namespace, 32, to("c", "n2")).await;
        moving.hold(moment).await;
        let name = replacement(&moving.migration);
        if moving.migration.phase() == Phase::Restoring {
            force_delete_in_doubt(&namespace, &name).await;
        } else {
            force_delete(&namespace, &name).await;
        }
        moving.go_on();
        moving.rolls_back(because, AFTER_SWEEP).await;
    });
}

#[test]
fn a_replacement_that_is_removed_by_force_before_the_vote_rolls_back() {
    a_replacement_is_removed("force-waiting", Moment::BeforeVote, "the waiting replacement");
}

#[test]
fn a_replacement_that_is_removed_by_force_before_its_restore_rolls_back() {
    a_replacement_is_removed("force-unstarted", Moment::Released, "c revoked");
}

/// It has executed, and what it did is lost: a person decides that the source goes on.
#[test]
fn a_replacement_that_is_removed_by_force_once_it_counts_is_held_until_a_person_decides() {
    with_namespace("force-running", |namespace| async move {
        let mut moving = Moving::begin(&namespace, 64, to("c", "n2")).await;
        moving.hold(Moment::Taken).await;
        drop(moving.until_copy_counts().await);
        force_delete_in_doubt(&namespace, &replacement(&moving.migration)).await;
        eventually(Duration::from_secs(20), || (!namespace.running().is_empty()).then(|| "its kubelet ends the copy".to_owned()));
        moving.go_on();
        moving.until_held("Died").await;
        assert_eq!(namespace.running(), [] as [String; 0], "the source stays frozen");
        moving.resolve(&["--prefer", "source"]);
        moving.rolls_back("what the replacement did since the release is lost", AFTER_SWEEP).await;
    });
}

#[test]
fn a_second_migration_of_a_pod_on_its_way_is_refused() {
    with_namespace("second", |namespace| async move {
        let mut moving = Moving::begin(&namespace, 64, to("c", "n2")).await;
        moving.hold(Moment::BeforeVote).await;
        let second = namespace.make(to("c", "n2")).await;
        let second = namespace.until_done(&second.name_any()).await;
        assert_outcome(&second, Outcome::Failed);
        let message = status(&second).message;
        assert!(message.contains(&moving.migration.uid().unwrap()), "it names the Migration that runs: {message}");
        moving.go_on();
        moving.migrates().await;
    });
}

/// R12: what is released is not cancelled; the Migration goes when it has ended.
#[test]
fn a_migration_that_is_deleted_after_the_release_ends_first() {
    with_namespace("deleted-released", |namespace| async move {
        let mut moving = Moving::begin(&namespace, 64, to("c", "n2")).await;
        moving.hold(Moment::Taken).await;
        namespace.migrations().delete(&moving.name(), &DeleteParams::default()).await.unwrap();
        let deleting = namespace.migrations().get(&moving.name()).await.unwrap();
        assert!(deleting.metadata.deletion_timestamp.is_some() && deleting.phase() == Phase::Restoring, "it stays: {}", deleting.phase());
        moving.go_on();
        let committed = moving.until("committed", |m| m.verdict() == Some(Verdict::Commit)).await.clone();
        let (name, uid) = (committed.name_any(), committed.uid().unwrap());
        let gone = await_condition(namespace.migrations(), &name, is_deleted(&uid));
        tokio::time::timeout(Duration::from_mins(1), gone).await.expect("the Migration goes").unwrap();
        let copy = namespace.follow(&replacement(&committed), "c").await;
        copy.beyond(moving.source.last() + 5).await;
        crate::support::counter::assert_went_on(&moving.source.lines(), &copy.lines(), &committed);
        namespace.assert_one_runs("n2");
    });
}

/// The namespace controller deletes the pods, the Migration and the attestations: nobody is left to prove anything, and nothing to prove it of.
#[test]
fn a_namespace_that_is_deleted_after_the_release_goes_and_leaves_nothing_that_runs() {
    with_namespace("deleted", |namespace| async move {
        let mut moving = Moving::begin(&namespace, 16, to("c", "n2")).await;
        moving.hold(Moment::Taken).await;
        lab::lab(&["kubectl", "delete", "namespace", &namespace.name, "--wait=false"]);
        // The destination's agent has said nothing, and cannot any more.
        eventually(Duration::from_mins(1), || {
            let left = namespace.kubectl(&["get", "pods,attestations", "-o", "name"]).unwrap();
            (!left.trim().is_empty()).then(|| format!("neither pods nor attestations are left; there are {left}"))
        });
        moving.go_on();
        eventually(Duration::from_mins(1), || {
            let found = lab::try_lab(&["kubectl", "get", "namespace", &namespace.name]);
            found.is_ok().then(|| "the namespace is gone".to_owned())
        });
        eventually(AFTER_SWEEP, || {
            let left = namespace.on_nodes(&moving.migration, &[]);
            (!left.is_empty()).then(|| format!("nothing is left; there is\n{left}"))
        });
        assert_eq!(namespace.running(), [] as [String; 0]);
        // The memory is kept: a namespace may have been deleted by mistake.
        lab::on_node("n1", &format!("rm /var/lib/kubelet/checkpoints/kept-{}-c.tar", moving.migration.uid().unwrap()));
    });
}
