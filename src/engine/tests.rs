//! One look with a fake cluster: what is written is written before it is acted on.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::{core::v1::PodCondition, policy::v1::PodDisruptionBudget};
use serde_json::json;

use super::*;
use crate::{
    api::{Attestation, MigrationSpec, MigrationStatus, Outcome, Verdict},
    domain::preflight::NodeView,
    testing::second,
};

const UID: &str = "5f1c22aa-0000-4000-8000-000000000001";

#[derive(Default)]
struct FakeCluster {
    trace: Mutex<Vec<String>>,
    source: Option<Pod>,
    attestations: Vec<Attestation>,
    nodes: Vec<NodeView>,
    budgets: Vec<PodDisruptionBudget>,
    /// The call that fails, and how.
    failing: Option<(&'static str, Failure)>,
}

impl FakeCluster {
    fn call(&self, name: &str, told: String) -> PortResult<()> {
        self.trace.lock().unwrap_or_else(PoisonError::into_inner).push(told);
        match self.failing {
            Some((failing, kind)) if failing == name => Err(PortError::new(kind, format!("{name} was made to fail"))),
            _ => Ok(()),
        }
    }

    fn trace(&self) -> Vec<String> {
        self.trace.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Clock for FakeCluster {
    fn now(&self) -> Timestamp {
        second(100)
    }
}

#[async_trait]
impl Cluster for FakeCluster {
    async fn write_condition(&self, pod: &Pod, condition: &PodCondition) -> PortResult<()> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        self.call("write_condition", format!("{name} is {} {}", condition.type_, condition.status))
    }
    async fn pod(&self, _namespace: &str, name: &str) -> PortResult<Option<Pod>> {
        // As kube does.
        if name.is_empty() {
            return Err(PortError::transient("a non-empty name is required"));
        }
        Ok(self.source.clone().filter(|pod| pod.metadata.name.as_deref() == Some(name)))
    }
    async fn attestation(&self, _namespace: &str, name: &str) -> PortResult<Option<Attestation>> {
        Ok(self.attestations.iter().find(|a| a.metadata.name.as_deref() == Some(name)).cloned())
    }
    async fn owner_selector(
        &self,
        _namespace: &str,
        _kind: owner::Kind,
        _name: &str,
        _uid: &str,
    ) -> PortResult<std::collections::BTreeMap<String, String>> {
        Ok(std::collections::BTreeMap::default())
    }
    async fn claims(&self, _pod: &Pod) -> PortResult<std::collections::BTreeMap<String, preflight::ClaimView>> {
        Ok(std::collections::BTreeMap::default())
    }
    async fn budgets(&self, _pod: &Pod) -> PortResult<Vec<PodDisruptionBudget>> {
        Ok(self.budgets.clone())
    }
    async fn asked_for(&self, _parent: &Migration) -> PortResult<Option<Vec<Pod>>> {
        Ok(Some(self.source.clone().into_iter().collect()))
    }
    async fn children(&self, _parent: &Migration) -> PortResult<Vec<Migration>> {
        Ok(vec![])
    }
    async fn make_child(&self, _parent: &Migration, child: &Migration) -> PortResult<()> {
        self.call("make_child", format!("make a child for {}", child.spec.pod_name.clone().unwrap_or_default()))
    }
    async fn nodes(&self) -> PortResult<Vec<NodeView>> {
        Ok(self.nodes.clone())
    }
    async fn active_migrations(&self) -> PortResult<Vec<String>> {
        Ok(vec![])
    }
    async fn has_pull_credentials(&self, _migration_uid: &str) -> PortResult<bool> {
        Ok(false)
    }
    async fn template(&self, _migration: &Migration) -> PortResult<Option<Pod>> {
        Ok(None)
    }
    async fn write_status(&self, migration: &Migration, status: &MigrationStatus) -> PortResult<Migration> {
        self.call("write_status", format!("write {}", status.phase))?;
        Ok(Migration { status: Some(status.clone()), ..migration.clone() })
    }
    async fn perform(&self, _migration: &Migration, effect: &Effect, _replacement: Option<&Pod>) -> PortResult<()> {
        let words = format!("{effect:?}");
        let name = words.split(' ').next().unwrap_or_default().to_owned();
        self.call(&name, format!("perform {name}"))
    }
    async fn tell(&self, _migration: &Migration, _warning: bool, reason: &str, _message: &str) -> PortResult<()> {
        self.call("tell", format!("tell {reason}"))
    }
}

fn migration(status: MigrationStatus) -> Migration {
    let mut migration = Migration::new("m", MigrationSpec { pod_name: Some("p".into()), deadline_seconds: 600, ..Default::default() });
    migration.metadata.uid = Some(UID.into());
    migration.metadata.namespace = Some("d".into());
    migration.metadata.finalizers = Some(vec![keys::FINALIZER.into()]);
    migration.status = Some(status);
    migration
}

fn source() -> Option<Pod> {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "d", "uid": "source-uid", "annotations": {keys::LOCK: UID}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}, "status": {"phase": "Running"}
    }))
    .unwrap()
}

fn preparing() -> Migration {
    migration(
        serde_json::from_value(json!({
            "phase": "Preparing", "source": {"name": "p", "uid": "source-uid", "nodeName": "n1"},
            "destination": {"nodeName": "n2"}, "replacement": {"name": "p-5f1c22"}
        }))
        .unwrap(),
    )
}

/// What the source's agent says when it has looked at the processes.
fn inspected() -> Attestation {
    serde_json::from_value(json!({
        "apiVersion": "drover.dev/v1alpha1", "kind": "Attestation", "metadata": {"name": "m-source"},
        "spec": {"migration": "m", "migrationUID": UID, "nodeName": "n1", "podUID": "source-uid", "role": "Source"},
        "status": {"inspected": {"at": "2026-11-23T06:00:00.000000Z", "warnings": [{"field": "f", "message": "m"}]}}
    }))
    .unwrap()
}

async fn look(migration: Migration, cluster: &FakeCluster) -> PortResult<Vec<MigrationStatus>> {
    let written = Mutex::new(vec![]);
    let note = |_: &Migration, after: &Migration| written.lock().unwrap_or_else(PoisonError::into_inner).extend(after.status.clone());
    Box::pin(reconcile(migration, cluster, cluster, &|| "drover/0".to_owned(), &note)).await?;
    Ok(written.into_inner().unwrap_or_else(PoisonError::into_inner))
}

#[tokio::test]
async fn what_is_decided_is_written_before_it_is_done() {
    let cluster = FakeCluster { source: source(), ..Default::default() };
    let mut fresh = migration(MigrationStatus::default());
    fresh.metadata.finalizers = None;
    look(fresh, &cluster).await.unwrap();
    assert_eq!(cluster.trace(), ["perform AddFinalizer"], "nothing comes before the finalizer (R12)");

    let cluster = FakeCluster { source: source(), ..Default::default() };
    look(migration(MigrationStatus::default()), &cluster).await.unwrap();
    assert_eq!(cluster.trace(), ["write Preflight", "tell Preflight", "perform CreateAttestation"], "the processes are looked at");

    let cluster = FakeCluster { source: source(), attestations: vec![inspected()], ..Default::default() };
    let written = look(migration(MigrationStatus::default()), &cluster).await.unwrap();
    let done = ["write Preflight", "tell Preflight", "write Done", "tell PreflightWarning", "tell Failed", "perform Unlock"];
    assert_eq!(cluster.trace(), done, "no node can take it");
    assert_eq!(written.last().and_then(|status| status.outcome), Some(Outcome::Failed));
}

#[tokio::test]
async fn a_migration_that_was_refused_goes_also_when_its_pod_is_gone() {
    let cluster = FakeCluster::default();
    let mut refused = migration(serde_json::from_value(json!({"phase": "Done", "outcome": "Failed"})).unwrap());
    refused.spec.pod_name = Some("p".into());
    look(refused, &cluster).await.unwrap();
    assert_eq!(cluster.trace(), ["perform RemoveFinalizer"]);
}

#[tokio::test]
async fn a_migration_of_several_pods_makes_children_and_touches_no_pod() {
    let parent = || {
        let mut parent = migration(MigrationStatus::default());
        parent.spec =
            MigrationSpec { selector: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector::default()), ..Default::default() };
        parent.metadata.finalizers = None;
        parent
    };
    let cluster = FakeCluster { source: source(), ..Default::default() };
    look(parent(), &cluster).await.unwrap();
    assert_eq!(cluster.trace(), ["write Transferring", "tell Transferring", "make a child for p"]);

    let cluster = FakeCluster { source: source(), failing: Some(("make_child", Failure::Permanent)), ..Default::default() };
    let written = look(parent(), &cluster).await.unwrap();
    assert_eq!(cluster.trace(), ["write Transferring", "tell Transferring", "make a child for p", "write Done", "tell Failed"]);
    assert!(written[1].message.contains("make_child was made to fail"), "{}", written[1].message);

    let cluster = FakeCluster { source: source(), failing: Some(("make_child", Failure::Transient)), ..Default::default() };
    assert_eq!(look(parent(), &cluster).await.unwrap_err().kind, Failure::Transient, "what may pass is tried again");
}

#[tokio::test]
async fn who_comes_second_does_nothing() {
    let cluster = FakeCluster { source: source(), failing: Some(("write_status", Failure::Conflict)), ..Default::default() };
    let error = look(migration(MigrationStatus::default()), &cluster).await.unwrap_err();
    assert_eq!(error.kind, Failure::Conflict);
    assert_eq!(cluster.trace(), ["write Preflight"]);
}

#[tokio::test]
async fn an_effect_that_fails_for_good_rolls_back() {
    let cluster = FakeCluster { source: source(), failing: Some(("CreateAttestation", Failure::Permanent)), ..Default::default() };
    let written = look(preparing(), &cluster).await.unwrap();
    assert_eq!(written[0].verdict, Some(Verdict::Rollback));
    assert!(written[0].message.contains("CreateAttestation was made to fail"), "{}", written[0].message);

    let cluster = FakeCluster { failing: Some(("CreateAttestation", Failure::Transient)), ..cluster };
    assert_eq!(look(preparing(), &cluster).await.unwrap_err().kind, Failure::Transient, "what may pass is tried again");
}

#[tokio::test]
async fn a_failure_to_tell_is_none_of_the_migrations() {
    let failing = Some(("tell", Failure::Permanent));
    let cluster = FakeCluster { source: source(), attestations: vec![inspected()], failing, ..Default::default() };
    assert_eq!(look(migration(MigrationStatus::default()), &cluster).await.unwrap().len(), 2);
}

#[tokio::test]
async fn an_earlier_migrations_attestation_says_nothing_about_this_one() {
    let mut old: Attestation = serde_json::from_value(json!({
        "apiVersion": "drover.dev/v1alpha1", "kind": "Attestation", "metadata": {"name": "m-source"},
        "spec": {"migration": "m", "migrationUID": "another", "nodeName": "n1", "podUID": "source-uid", "role": "Source"}
    }))
    .unwrap();
    let cluster = FakeCluster { source: source(), attestations: vec![old.clone()], ..Default::default() };
    look(preparing(), &cluster).await.unwrap();
    assert_eq!(cluster.trace(), ["perform CreateAttestation"]);

    old.spec.migration_uid = UID.into();
    let cluster = FakeCluster { source: source(), attestations: vec![old], ..Default::default() };
    let written = look(preparing(), &cluster).await.unwrap();
    assert!(written[0].message.contains("no node can take the pod any more"), "the next effect is the replacement: {written:?}");
}

fn disrupted(seconds_ago: i64) -> Vec<PodDisruptionBudget> {
    let since = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(second(100 - seconds_ago));
    let budget = json!({"metadata": {"name": "b"}, "spec": {"selector": {}}, "status": {"disruptedPods": {"p": since}}});
    vec![serde_json::from_value(budget).unwrap()]
}

fn in_phase(status: &serde_json::Value) -> Migration {
    let mut all = json!({"source": {"name": "p", "uid": "source-uid", "nodeName": "n1"}, "replacement": {"name": "p-5f1c22", "uid": "r"}});
    json_patch::merge(&mut all, status);
    migration(serde_json::from_value(all).unwrap())
}

#[tokio::test]
async fn a_disruption_is_renewed_while_the_pod_is_frozen_and_only_when_it_grows_old() {
    for (age, renewed) in [(59, false), (60, true)] {
        for failing in [None, Some(("TakeDisruption", Failure::Permanent))] {
            let cluster = FakeCluster { source: source(), budgets: disrupted(age), failing, ..Default::default() };
            let frozen = in_phase(&json!({"phase": "Restoring"}));
            look(frozen, &cluster).await.unwrap();
            let trace = cluster.trace();
            assert_eq!(trace.contains(&"perform TakeDisruption".to_owned()), renewed, "{age} s: {trace:?}");
            assert!(trace.iter().any(|told| told.starts_with("write")), "what fails there holds nothing up: {trace:?}");
        }
    }
}

#[tokio::test]
async fn a_frozen_pod_leaves_its_services_once_nothing_waits_for_that() {
    let frozen = json!({"frozen": {"at": "2026-11-23T06:00:00.000000Z", "containers": []}});
    let mut attestation = inspected();
    attestation.status = serde_json::from_value(frozen).unwrap();
    let ready = source().map(|mut pod| {
        pod.status = serde_json::from_value(json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})).unwrap();
        pod
    });
    for failing in [None, Some(("write_condition", Failure::Permanent))] {
        let cluster = FakeCluster { source: ready.clone(), attestations: vec![attestation.clone()], failing, ..Default::default() };
        look(in_phase(&json!({"phase": "Restoring"})), &cluster).await.unwrap();
        let trace = cluster.trace();
        let at = |what: &str| trace.iter().position(|told| told == what).unwrap_or_else(|| panic!("{what}: {trace:?}"));
        assert!(at("write Restoring") < at("p is Ready False"), "the migration does not wait for it: {trace:?}");
    }
}

#[tokio::test]
async fn a_disruption_is_given_back_at_the_end() {
    let thawed: Attestation = serde_json::from_value(json!({
        "apiVersion": "drover.dev/v1alpha1", "kind": "Attestation", "metadata": {"name": "m-source"},
        "spec": {"migration": "m", "migrationUID": UID, "nodeName": "n1", "podUID": "source-uid", "role": "Source"},
        "status": {"thawed": {"at": "2026-11-23T06:00:00.000000Z"}}
    }))
    .unwrap();
    let unlocked = source().map(|mut pod| {
        pod.metadata.annotations = None;
        pod
    });
    let cluster = FakeCluster { source: unlocked, budgets: disrupted(5), attestations: vec![thawed], ..Default::default() };
    let phases = json!([{"phase": "Finishing", "startedAt": "1970-01-01T00:01:39.000000Z"}]);
    let undone = in_phase(&json!({"phase": "Finishing", "verdict": "Rollback", "phases": phases}));
    look(undone, &cluster).await.unwrap();
    assert_eq!(cluster.trace(), ["write Done", "tell RolledBack", "perform GiveBackDisruption", "perform RemoveFinalizer"]);
}
