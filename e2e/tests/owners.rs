//! Pods of Deployments, ReplicaSets and StatefulSets: the copy takes the source's place there, and no controller notices more than that.

use std::time::Duration;

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet, StatefulSet},
    core::v1::Pod,
};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, PostParams},
};
use serde_json::{Value, json};

use drover::{
    api::{Migration, MigrationSpec, Outcome, Phase},
    domain::keys,
};

use crate::support::{
    Namespace,
    agents::Part,
    counter::{Follower, assert_contiguous, assert_went_on},
    eventually, lab,
    migrations::{assert_outcome, replacement, status, to},
    moving::{Moment, Moving},
    pods::{container, counting},
    with_namespace,
};

/// Spec of a controller whose pods count, on node n1 at first.
fn spec(replicas: u32) -> Value {
    // Preferred alone: the pods must be able to go elsewhere.
    let n1 = json!({"weight": 100, "preference": {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]}});
    json!({"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
        "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false, "containers": [counting("c", 4, 50)],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [n1]}}}}})
}

pub async fn made<K>(namespace: &Namespace, kind: &str, replicas: u32) -> Vec<Pod>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
    K::DynamicType: Default,
{
    let owner = json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "web"}, "spec": spec(replicas)});
    let api: Api<K> = Api::namespaced(namespace.client.clone(), &namespace.name);
    api.create(&PostParams::default(), &serde_json::from_value(owner).unwrap()).await.unwrap();
    let wanted = usize::try_from(replicas).unwrap();
    namespace.until_ready(wanted).await
}

impl Namespace {
    /// Waits until just so many pods are there, and all are ready.
    pub async fn until_ready(&self, wanted: usize) -> Vec<Pod> {
        for _ in 0..300 {
            let pods = self.pods().list(&ListParams::default()).await.unwrap().items;
            let ready = |pod: &Pod| pod.status.as_ref().is_some_and(|s| s.container_statuses.iter().flatten().any(|c| c.ready));
            if pods.len() == wanted && pods.iter().all(|pod| ready(pod) && pod.metadata.deletion_timestamp.is_none()) {
                return pods;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        panic!("not within a minute: {wanted} ready pods");
    }

    pub async fn counts(&self, pod: &Pod) -> Follower {
        let follower = self.follow(&pod.name_any(), "c").await;
        follower.beyond(5).await;
        follower
    }

    /// How often a controller has made a pod of its own.
    pub fn pods_made(&self, kind: &str) -> usize {
        let events = ["get", "events", "--field-selector", "reason=SuccessfulCreate", "-o"];
        let columns = "custom-columns=KIND:.involvedObject.kind,COUNT:.count,MESSAGE:.message";
        let text = self.kubectl(&[&events[..], &[columns, "--no-headers"]].concat()).unwrap();
        text.lines().filter(|line| line.starts_with(kind)).count()
    }
}

/// The copy counts on where the source stopped, on n2, never restarted, and belongs to the controller of this kind.
pub async fn assert_has_moved(namespace: &Namespace, before: &Follower, migration: &Migration, kind: &str) -> Pod {
    assert_outcome(migration, Outcome::Migrated);
    let name = replacement(migration);
    let pod = namespace.until_pod(&name, "belongs to its controller", |pod| pod.is_some_and(|pod| !pod.owner_references().is_empty())).await;
    assert_eq!(pod.owner_references()[0].kind, kind);
    assert_eq!(pod.spec.as_ref().unwrap().node_name.as_deref(), Some("n2"));
    assert_eq!(container(&pod, "c").restart_count, 0);
    let after = namespace.follow(&name, "c").await;
    after.beyond(before.last() + 5).await;
    assert_went_on(&before.lines(), &after.lines(), migration);
    namespace.assert_no_leftovers(migration).await;
    pod
}

#[test]
fn a_deployments_pod_moves_and_its_replica_set_makes_no_other() {
    with_namespace("deployment", |namespace| async move {
        let pods = made::<Deployment>(&namespace, "Deployment", 1).await;
        let before = namespace.counts(&pods[0]).await;
        let migration = namespace.migrate(&pods[0].name_any(), "n2").await;
        eprintln!("deployment: frozen {:?} ms", status(&migration).frozen_millis);
        let moved = assert_has_moved(&namespace, &before, &migration, "ReplicaSet").await;
        assert_eq!(moved.labels().get("pod-template-hash"), pods[0].labels().get("pod-template-hash"));
        namespace.until_ready(1).await;
        namespace.kubectl(&["rollout", "status", "deployment/web", "--timeout=20s"]).unwrap();
        assert_eq!(namespace.pods_made("ReplicaSet"), 1, "the first pod alone");
        // An ordinary pod of its owner's: scaled down and up as any other.
        namespace.kubectl(&["scale", "deployment/web", "--replicas=2"]).unwrap();
        namespace.until_ready(2).await;
        namespace.kubectl(&["scale", "deployment/web", "--replicas=0"]).unwrap();
        namespace.until_ready(0).await;
    });
}

#[test]
fn a_pod_whose_copy_another_controller_would_take_is_refused_before_it_is_touched() {
    with_namespace("rival", |namespace| async move {
        let pod = made::<Deployment>(&namespace, "Deployment", 1).await.remove(0);
        // Nobody's: it selects the Deployment's pods too, and may not have them.
        let mut rival = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "wider"}, "spec": spec(0)});
        rival["spec"]["template"]["metadata"]["labels"]["rival"] = "yes".into();
        let sets: Api<ReplicaSet> = Api::namespaced(namespace.client.clone(), &namespace.name);
        sets.create(&PostParams::default(), &serde_json::from_value(rival).unwrap()).await.unwrap();
        let migration = namespace.make(to(&pod.name_any(), "n2")).await;
        let migration = namespace.until_done(&migration.name_any()).await;
        assert_outcome(&migration, Outcome::Failed);
        let status = status(&migration);
        assert!(status.blockers.iter().any(|blocker| blocker.contains("ReplicaSet wider selects this pod too")), "{:?}", status.blockers);
        namespace.until_ready(1).await;
    });
}

#[test]
fn two_pods_of_one_deployment_move_at_once() {
    with_namespace("deployment-two", |namespace| async move {
        let pods = made::<Deployment>(&namespace, "Deployment", 2).await;
        let pods: Vec<_> = pods.into_iter().filter(|pod| pod.spec.as_ref().unwrap().node_name.as_deref() == Some("n1")).collect();
        assert_eq!(pods.len(), 2, "both start on n1");
        let (one, two) = (namespace.counts(&pods[0]).await, namespace.counts(&pods[1]).await);
        let asked =
            [namespace.ask(&pods[0].name_any(), keys::MIGRATE_TO, "n2").await, namespace.ask(&pods[1].name_any(), keys::MIGRATE_TO, "n2").await];
        for (before, migration) in [one, two].iter().zip(asked) {
            let migration = namespace.until_done(&migration.name_any()).await;
            assert_has_moved(&namespace, before, &migration, "ReplicaSet").await;
        }
        namespace.until_ready(2).await;
        assert_eq!(namespace.pods_made("ReplicaSet"), 2, "the first two pods alone");
    });
}

#[test]
fn a_replica_sets_pod_that_is_not_moved_stays_its_own() {
    with_namespace("replica-set", |namespace| async move {
        let pods = made::<ReplicaSet>(&namespace, "ReplicaSet", 1).await;
        let name = pods[0].name_any();
        let source = namespace.counts(&pods[0]).await;
        let registry = Part::Registry("n2");
        let migration = namespace.make(MigrationSpec { freeze_budget_seconds: 6, ..to(&name, "n2") }).await;
        namespace.until_phase(&migration.name_any(), Phase::Freezing).await;
        let goes_on = lab::Restore(move || registry.signal("CONT"));
        registry.signal("STOP");
        namespace.until_phase(&migration.name_any(), Phase::Finishing).await;
        drop(goes_on);
        let migration = namespace.until_done(&migration.name_any()).await;
        assert_outcome(&migration, Outcome::RolledBack);
        source.more(5).await;
        assert_contiguous(&source.lines());
        let pods = namespace.until_ready(1).await;
        assert_eq!((pods[0].name_any(), pods[0].owner_references().len()), (name.clone(), 1));
        namespace.assert_no_leftovers(&migration).await;
        // And then it moves all the same.
        let migration = namespace.migrate(&name, "n2").await;
        assert_has_moved(&namespace, &source, &migration, "ReplicaSet").await;
        assert_eq!(namespace.pods_made("ReplicaSet"), 1, "the first pod alone");
    });
}

/// Whoever scales down while a pod is on its way gets what they asked for; before the vote the source ends in order, and nothing takes its place.
#[test]
fn a_scale_down_before_the_vote_ends_the_migration_and_the_pod() {
    with_namespace("scale-down", |namespace| async move {
        let pods = made::<Deployment>(&namespace, "Deployment", 1).await;
        drop(namespace.counts(&pods[0]).await);
        let registry = Part::Registry("n2");
        let migration = namespace.make(to(&pods[0].name_any(), "n2")).await;
        namespace.until_phase(&migration.name_any(), Phase::Freezing).await;
        let goes_on = lab::Restore(move || registry.signal("CONT"));
        registry.signal("STOP");
        namespace.kubectl(&["scale", "deployment/web", "--replicas=0"]).unwrap();
        namespace.until_phase(&migration.name_any(), Phase::Finishing).await;
        drop(goes_on);
        let migration = namespace.until_done(&migration.name_any()).await;
        assert_outcome(&migration, Outcome::RolledBack);
        namespace.until_ready(0).await;
        eventually(Duration::from_secs(20), || (!namespace.running().is_empty()).then(|| "nothing runs".to_owned()));
    });
}

/// After the release the source may be the only copy left, so its ReplicaSet waits for the verdict; what was asked for comes about then.
#[test]
fn a_scale_down_after_the_release_waits_and_takes_the_copy() {
    with_namespace("scale-late", |namespace| async move {
        let pods = made::<Deployment>(&namespace, "Deployment", 1).await;
        let name = pods[0].name_any();
        let source = namespace.counts(&pods[0]).await;
        let migration = namespace.make(to(&name, "n2")).await;
        let mut moving = Moving::of(&namespace, source, migration);
        moving.hold(Moment::Taken).await;
        namespace.kubectl(&["scale", "deployment/web", "--replicas=0"]).unwrap();
        eventually(Duration::from_secs(20), || {
            let events = namespace.kubectl(&["get", "events", "--field-selector=reason=FailedDelete", "-o", "jsonpath={.items[*].message}"]).unwrap();
            (!events.contains("drover-pods-in-doubt")).then(|| format!("the ReplicaSet is refused; it says {events:?}"))
        });
        assert_eq!(namespace.pods().get(&name).await.unwrap().metadata.deletion_timestamp, None);
        moving.go_on();
        let migration = namespace.until_done(&moving.name()).await;
        assert_outcome(&migration, Outcome::Migrated);
        namespace.until_ready(0).await;
        eventually(Duration::from_secs(20), || (!namespace.running().is_empty()).then(|| "nothing runs".to_owned()));
        assert_eq!(namespace.pods_made("ReplicaSet"), 1, "the first pod alone");
    });
}

/// An autoscaler that needs no metrics to see that there are too many: it asks for one pod while one of two is on its way.
#[test]
fn an_autoscaler_that_scales_down_after_the_release_keeps_one_pod_and_loses_no_copy() {
    with_namespace("autoscaler", |namespace| async move {
        let pods = made::<Deployment>(&namespace, "Deployment", 2).await;
        let name = pods[0].name_any();
        let source = namespace.counts(&pods[0]).await;
        let migration = namespace.make(to(&name, "n2")).await;
        let mut moving = Moving::of(&namespace, source, migration);
        moving.hold(Moment::Taken).await;
        namespace.kubectl(&["autoscale", "deployment/web", "--min=1", "--max=1", "--cpu=50%"]).unwrap();
        eventually(Duration::from_secs(40), || {
            let wanted = namespace.kubectl(&["get", "deployment/web", "-o", "jsonpath={.spec.replicas}"]).unwrap();
            (wanted.trim() != "1").then(|| format!("the autoscaler asks for one pod; {wanted:?} are asked for"))
        });
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(namespace.pods().get(&name).await.unwrap().metadata.deletion_timestamp, None, "it may be the only copy");
        moving.go_on();
        let migration = namespace.until_done(&moving.name()).await;
        assert_outcome(&migration, Outcome::Migrated);
        namespace.until_ready(1).await;
        eventually(Duration::from_secs(40), || {
            let running = namespace.running();
            (running.len() != 1).then(|| format!("one pod runs; there are {running:?}"))
        });
        assert_eq!(namespace.pods_made("ReplicaSet"), 2, "the first two alone");
    });
}

#[test]
fn a_stateful_sets_pod_moves_under_its_name_and_its_set_makes_no_other() {
    with_namespace("stateful-set", |namespace| async move {
        let pods = made::<StatefulSet>(&namespace, "StatefulSet", 1).await;
        let before = namespace.counts(&pods[0]).await;
        let migration = namespace.migrate("web-0", "n2").await;
        assert!(migration.spec.keep_name, "its set knows it by its name");
        eprintln!("stateful set: frozen {:?} ms", status(&migration).frozen_millis);
        assert_has_moved(&namespace, &before, &migration, "StatefulSet").await;
        namespace.until_ready(1).await;
        namespace.kubectl(&["rollout", "status", "statefulset/web", "--timeout=20s"]).unwrap();
        assert_eq!(namespace.pods_made("StatefulSet"), 1, "the first pod alone");
    });
}
