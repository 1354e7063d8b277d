//! A freeze is a disruption: budgets count it, and what they do not allow waits or is refused.

use k8s_openapi::api::{apps::v1::Deployment, policy::v1::PodDisruptionBudget};
use kube::{Api, ResourceExt as _, api::PostParams};
use serde_json::{Value, json};

use drover::api::{Migration, MigrationSpec, Outcome, Phase};

use crate::{
    owners::{assert_has_moved, made},
    support::{
        Namespace, SYSTEM, eventually, lab,
        migrations::{assert_outcome, status, to},
        pods::{counting, pod},
        with_namespace,
    },
};

pub async fn budget(namespace: &Namespace, app: &str, limit: &Value) {
    let mut spec = json!({"selector": {"matchLabels": {"app": app}}});
    spec.as_object_mut().unwrap().extend(limit.as_object().unwrap().clone());
    let budget: PodDisruptionBudget = serde_json::from_value(json!({"metadata": {"name": app}, "spec": spec})).unwrap();
    let api: Api<PodDisruptionBudget> = Api::namespaced(namespace.client.clone(), &namespace.name);
    api.create(&PostParams::default(), &budget).await.unwrap();
    eventually(std::time::Duration::from_secs(30), || {
        let seen = namespace.kubectl(&["get", "pdb", app, "-o", "jsonpath={.status.expectedPods}"]).unwrap();
        (seen.trim().is_empty() || seen.trim() == "0").then(|| "the disruption controller counts the pods".to_owned())
    });
}

/// From when on the pod may have been frozen, and until when its source may have been it.
fn disturbed(migration: &Migration) -> (jiff::Timestamp, jiff::Timestamp) {
    let phases = status(migration).phases;
    let at = |phase: Phase| phases.iter().find(|timing| timing.phase == phase).unwrap().started_at.0;
    (at(Phase::Freezing), at(Phase::Finishing))
}

#[test]
fn two_migrations_of_one_deployment_at_once_never_take_more_than_its_budget() {
    with_namespace("budget", |namespace| async move {
        let pods = made::<Deployment>(&namespace, "Deployment", 2).await;
        budget(&namespace, "web", &json!({"maxUnavailable": 1})).await;
        let mut moves = vec![];
        for pod in &pods {
            let before = namespace.counts(pod).await;
            moves.push((before, namespace.make(MigrationSpec { deadline_seconds: 300, ..to(&pod.name_any(), "n2") }).await));
        }
        let mut spans = vec![];
        for (before, migration) in moves {
            let migration = namespace.until_done(&migration.name_any()).await;
            assert_has_moved(&namespace, &before, &migration, "ReplicaSet").await;
            spans.push(disturbed(&migration));
        }
        spans.sort_unstable();
        assert!(spans[0].1 <= spans[1].0, "one was frozen while the other was: {spans:?}");
        eventually(std::time::Duration::from_secs(30), || {
            let left = namespace.kubectl(&["get", "pdb", "web", "-o", "jsonpath={.status.disruptedPods} {.status.disruptionsAllowed}"]).unwrap();
            (left.trim() != "1").then(|| format!("the disruptions are given back; there are {left}"))
        });
    });
}

/// So many are let in at once where the chart says nothing else.
const PERMITS: usize = 5;

#[test]
fn no_more_pods_are_on_their_way_to_a_node_than_it_has_permits() {
    with_namespace("permits", |namespace| async move {
        let names: Vec<String> = (0..PERMITS + 2).map(|number| format!("c{number}")).collect();
        for name in &names {
            namespace.run(&pod(name, "n1", &[counting("c", 1, 50)])).await;
        }
        let mut migrations = vec![];
        for name in &names {
            migrations.push(namespace.make(MigrationSpec { deadline_seconds: 300, freeze_budget_seconds: 120, ..to(name, "n2") }).await.name_any());
        }
        namespace.first("one that waits", |migration| status(migration).message.contains("waiting for a permit for node n2")).await;
        let (mut spans, mut uids) = (vec![], vec![]);
        for name in &migrations {
            let migration = namespace.until_done(name).await;
            assert_outcome(&migration, Outcome::Migrated);
            spans.push(disturbed(&migration));
            uids.push(migration.uid().unwrap());
        }
        for (begun, _) in &spans {
            let under_way = spans.iter().filter(|(from, till)| from <= begun && begun < till).count();
            assert!(under_way <= PERMITS, "{under_way} at once: {spans:?}");
        }
        eventually(std::time::Duration::from_secs(10), || {
            let holders = lab::lab(&["kubectl", "-n", SYSTEM, "get", "leases", "-o", "jsonpath={.items[*].spec.holderIdentity}"]);
            uids.iter().any(|uid| holders.contains(uid)).then(|| format!("the permits are given back: {holders}"))
        });
    });
}

#[test]
fn a_budget_that_never_allows_a_disruption_refuses_the_move() {
    with_namespace("budget-never", |namespace| async move {
        let mut one = pod("db", "n1", &[counting("c", 4, 50)]);
        one.metadata.labels = Some([("app".to_owned(), "db".to_owned())].into());
        namespace.run(&one).await;
        budget(&namespace, "db", &json!({"minAvailable": 1})).await;
        let migration = namespace.migrate("db", "n2").await;
        assert_outcome(&migration, Outcome::Failed);
        let message = status(&migration).message;
        assert!(message.contains("PodDisruptionBudget db never allows a disruption (1 of 1 pods must be healthy)"), "{message}");
        namespace.kubectl(&["wait", "pod/db", "--for=condition=Ready", "--timeout=5s"]).unwrap();
    });
}
