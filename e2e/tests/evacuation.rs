//! Nodes that empty themselves: cordon, uncordon and drain.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use kube::ResourceExt as _;
use serde_json::json;

use drover::{
    api::{Migration, Outcome, Phase},
    domain::keys,
};

use crate::{
    disruptions::budget,
    owners::{assert_has_moved, made},
    support::{
        Namespace,
        counter::{Follower, assert_contiguous, assert_went_on},
        eventually, lab,
        leaving::Leaving,
        migrations::{assert_outcome, replacement, status},
        pods::{REDIS, counter, counting, pod},
        with_namespace,
    },
};

/// Pods leave for these reasons.
const TRIGGERS: [&str; 2] = ["Cordon", "Drain"];

impl Namespace {
    /// The evacuation of a pod, once it is there and as wanted.
    async fn evacuation(&self, pod: &str, what: &str, wanted: impl Fn(&Migration) -> bool) -> Migration {
        self.first(what, |m| m.spec.pod_name.as_deref() == Some(pod) && m.annotations().contains_key(keys::EVACUATES) && wanted(m)).await
    }

    async fn counts_on_n1(&self, name: &str) -> Follower {
        self.run(&counter(name, "n1", 4, 50)).await;
        let follower = self.follow(name, "c").await;
        follower.beyond(5).await;
        follower
    }
}

async fn assert_went_on_as(namespace: &Namespace, before: &Follower, migration: &Migration) {
    assert_outcome(migration, Outcome::Migrated);
    let after = namespace.follow(&replacement(migration), "c").await;
    after.beyond(before.last() + 5).await;
    assert_went_on(&before.lines(), &after.lines(), migration);
}

#[test]
fn a_cordoned_node_empties_itself_with_all_that_its_pods_remember() {
    with_namespace("cordon", |namespace| async move {
        let _leaving = Leaving::on(&TRIGGERS, &namespace).await;
        let mut followed = vec![];
        for pod in made::<Deployment>(&namespace, "Deployment", 2).await {
            assert_eq!(pod.spec.as_ref().unwrap().node_name.as_deref(), Some("n1"), "both start on n1");
            followed.push((pod.name_any(), namespace.counts(&pod).await));
        }
        let bare = namespace.counts_on_n1("bare").await;
        let redis = json!({"name": "redis", "image": REDIS, "command": ["redis-server", "--save", "", "--appendonly", "no"],
            "readinessProbe": {"exec": {"command": ["redis-cli", "ping"]}, "periodSeconds": 1}});
        namespace.run(&pod("db", "n1", &[redis])).await;
        assert_eq!(namespace.exec("db", &["redis-cli", "set", "key", "in memory only"]).trim(), "OK");
        lab::lab(&["kubectl", "cordon", "n1"]);
        for (name, before) in &followed {
            let migration = namespace.evacuation(name, "ended", Migration::is_done).await;
            assert_has_moved(&namespace, before, &migration, "ReplicaSet").await;
        }
        let migration = namespace.evacuation("bare", "ended", Migration::is_done).await;
        assert_went_on_as(&namespace, &bare, &migration).await;
        let migration = namespace.evacuation("db", "ended", Migration::is_done).await;
        assert_outcome(&migration, Outcome::Migrated);
        assert_eq!(namespace.exec(&replacement(&migration), &["redis-cli", "get", "key"]).trim(), "in memory only");
        assert_eq!(namespace.running_on("n1"), [] as [String; 0]);
        // Never more than two at a time.
        let all = namespace.migrations().list(&kube::api::ListParams::default()).await.unwrap().items;
        let spans: Vec<_> =
            all.iter().map(|m| status(m).phases).map(|phases| (phases[0].started_at.0, phases.last().unwrap().started_at.0)).collect();
        let at_once = spans.iter().map(|(begin, _)| spans.iter().filter(|(other, end)| other <= begin && begin < end).count()).max();
        assert!(at_once <= Some(2), "{spans:?}");
    });
}

#[test]
fn an_uncordoned_node_keeps_what_is_not_frozen_yet() {
    with_namespace("uncordon", |namespace| async move {
        let _leaving = Leaving::on(&TRIGGERS, &namespace).await;
        // The copy finds no room.
        let big = |name: &str, node: &str| {
            let mut container = counting("c", 4, 50);
            container["resources"] = json!({"requests": {"cpu": "1200m"}});
            pod(name, node, &[container])
        };
        namespace.run(&big("filler", "n2")).await;
        namespace.run(&big("big", "n1")).await;
        let source = namespace.follow("big", "c").await;
        source.beyond(5).await;
        lab::lab(&["kubectl", "cordon", "n1"]);
        let migration =
            namespace.evacuation("big", "waits for room", |m| m.phase() == Phase::Preparing && status(m).message.contains("Insufficient cpu")).await;
        lab::lab(&["kubectl", "uncordon", "n1"]);
        eventually(Duration::from_secs(30), || {
            let left = namespace.kubectl(&["get", "migrations", "-o", "name"]).unwrap();
            (!left.trim().is_empty()).then(|| format!("the evacuation is called off; there is {left}"))
        });
        assert_eq!(namespace.pods().get_opt(&replacement(&migration)).await.unwrap().map(|pod| pod.name_any()), None);
        source.more(5).await;
        assert_contiguous(&source.lines());
    });
}

/// What waits for long.
mod slow {
    use super::*;

    #[test]
    fn a_drain_of_five_replicas_keeps_to_their_budget() {
        with_namespace("drain-budget", |namespace| async move {
            let _leaving = Leaving::on(&TRIGGERS, &namespace).await;
            let pods = made::<Deployment>(&namespace, "Deployment", 5).await;
            let mut followed = vec![];
            for pod in pods.iter().filter(|pod| pod.spec.as_ref().unwrap().node_name.as_deref() == Some("n1")) {
                followed.push((pod.name_any(), namespace.counts(pod).await));
            }
            assert!(followed.len() > 1, "several are on n1: {}", followed.len());
            budget(&namespace, "web", &json!({"maxUnavailable": 1})).await;
            let selector = ["--pod-selector=app=web".to_owned(), "--timeout=300s".to_owned()];
            let drain = std::thread::spawn(move || lab::try_lab(&["kubectl", "drain", "n1", &selector[0], &selector[1]]));
            let mut fewest = i32::MAX;
            while !drain.is_finished() {
                let healthy = namespace.kubectl(&["get", "pdb", "web", "-o", "jsonpath={.status.currentHealthy}"]).unwrap();
                fewest = fewest.min(healthy.trim().parse().unwrap());
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            let told = drain.join().unwrap().unwrap();
            assert!(told.contains("node/n1 drained"), "{told}");
            assert_eq!(fewest, 4, "one at a time, and each counted as disrupted");
            for (name, before) in &followed {
                let migration = namespace.evacuation(name, "ended", Migration::is_done).await;
                assert_has_moved(&namespace, before, &migration, "ReplicaSet").await;
            }
            namespace.until_ready(5).await;
        });
    }
}

#[test]
fn a_node_is_emptied_by_hand_with_an_exit_code_that_tells_of_what_stays() {
    with_namespace("by-hand", |namespace| async move {
        let _uncordoned = lab::Restore(|| {
            drop(lab::try_lab(&["kubectl", "uncordon", "n1"]));
            forget_deadline();
        });
        let bare = namespace.counts_on_n1("bare").await;
        let mut container = counting("c", 4, 50);
        container["tty"] = json!(true);
        namespace.run(&pod("with-tty", "n1", &[container])).await;
        let (code, told) = lab::drover(&["evacuate", "n1", "-n", &namespace.name, "--deadline", "5m"]);
        assert_eq!(code, Some(2), "{told}");
        assert!(!told.contains("will probably not have left"), "{told}");
        assert!(told.contains("1 of 2 pods were moved with their memory"), "{told}");
        assert!(told.lines().any(|line| line.contains("/with-tty") && line.contains("Failed") && line.contains("spec.containers[c].tty")), "{told}");
        let migration = namespace.evacuation("bare", "ended", Migration::is_done).await;
        assert_went_on_as(&namespace, &bare, &migration).await;
        eventually(Duration::from_secs(45), || {
            let staying =
                lab::lab(&["kubectl", "get", "nodeprofile", "n1", "-o", "jsonpath={range .status.staying[*]}{.namespace}/{.pod}: {.reason}{end}"]);
            let told = staying.contains(&format!("{}/with-tty: spec.containers[c].tty", namespace.name));
            (!told).then(|| format!("the node's profile says who stays: {staying}"))
        });
        assert!((290..=300).contains(&migration.spec.deadline_seconds), "{} s", migration.spec.deadline_seconds);
        let written = lab::lab(&["kubectl", "get", "node", "n1", "-o", "jsonpath={.metadata.annotations.drover\\.dev/evacuate-by}"]);
        assert!(written.trim().parse::<jiff::Timestamp>().is_ok(), "{written:?} is a time");
    });
}

fn forget_deadline() {
    drop(lab::try_lab(&["kubectl", "annotate", "node", "n1", &format!("{}-", keys::EVACUATE_BY)]));
}

/// It asks for so much memory that it would be frozen for longer than its node lives, and has little: it is moved all the same.
#[test]
fn a_node_that_goes_soon_says_at_once_who_is_probably_too_late() {
    with_namespace("deadline", |namespace| async move {
        let _leaving = Leaving::on(&TRIGGERS, &namespace).await;
        let _forgotten = lab::Restore(forget_deadline);
        let mut container = counting("c", 4, 50);
        container["resources"] = json!({"requests": {"memory": "3Gi"}});
        namespace.run(&pod("asks-for-much", "n1", &[container])).await;
        let small = namespace.counts_on_n1("small").await;
        let goes = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(60);
        lab::lab(&["kubectl", "annotate", "node", "n1", &format!("{}={goes:.0}", keys::EVACUATE_BY)]);
        lab::lab(&["kubectl", "cordon", "n1"]);
        eventually(Duration::from_secs(15), || {
            let told =
                lab::lab(&["kubectl", "get", "events", "-A", "--field-selector=reason=EvacuationTooLate", "-o", "jsonpath={.items[*].message}"]);
            let wanted = format!("pod {}/asks-for-much will probably not have left in time", namespace.name);
            assert!(!told.contains(&format!("{}/small", namespace.name)), "{told}");
            (!told.contains(&wanted)).then(|| format!("{wanted}; there is {told:?}"))
        });
        let migration = namespace.evacuation("small", "ended", Migration::is_done).await;
        assert_went_on_as(&namespace, &small, &migration).await;
        assert!(migration.spec.deadline_seconds <= 60, "{} s", migration.spec.deadline_seconds);
        let migration = namespace.evacuation("asks-for-much", "ended", Migration::is_done).await;
        assert_outcome(&migration, Outcome::Migrated);
    });
}

#[test]
fn kubectl_drain_waits_for_those_that_move_and_ends_well() {
    with_namespace("drain", |namespace| async move {
        let _leaving = Leaving::on(&TRIGGERS, &namespace).await;
        let set = made::<StatefulSet>(&namespace, "StatefulSet", 1).await;
        assert_eq!(set[0].spec.as_ref().unwrap().node_name.as_deref(), Some("n1"));
        let in_set = namespace.counts(&set[0]).await;
        let bare = namespace.counts_on_n1("bare").await;
        let mut container = counting("c", 4, 50);
        container["tty"] = json!(true);
        namespace.run(&pod("with-tty", "n1", &[container])).await;
        // Everything else on the node stays.
        namespace.kubectl(&["label", "pods", "--all", "drain=this"]).unwrap();
        let told = lab::lab(&["kubectl", "drain", "n1", "--pod-selector=drain=this", "--force", "--timeout=150s"]);
        assert!(told.contains("node/n1 drained"), "{told}");

        let migration = namespace.evacuation("web-0", "ended", Migration::is_done).await;
        assert_has_moved(&namespace, &in_set, &migration, "StatefulSet").await;
        assert_eq!(namespace.pods_made("StatefulSet"), 1, "it was not evicted where it went");
        let migration = namespace.evacuation("bare", "ended", Migration::is_done).await;
        assert_went_on_as(&namespace, &bare, &migration).await;
        // What cannot move is evicted as usual, and told on the node.
        assert_eq!(namespace.pods().get_opt("with-tty").await.unwrap().map(|pod| pod.name_any()), None);
        let reason = format!("pod {}/with-tty stays", namespace.name);
        eventually(Duration::from_secs(20), || {
            let events = lab::lab(&[
                "kubectl",
                "get",
                "events",
                "-n",
                "default",
                "--field-selector=reason=EvacuationFailed",
                "-o",
                "jsonpath={.items[*].message}",
            ]);
            (!events.contains(&reason)).then(|| format!("{reason} is among {events}"))
        });
        assert_eq!(namespace.running_on("n1"), [] as [String; 0]);
    });
}
