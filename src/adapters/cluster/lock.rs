//! R11: the annotation by which a pod has at most one active Migration, written by compare-and-swap.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::json;

use super::{KubeCluster, found, keys, source_of};
use crate::{
    api::Migration,
    ports::{Cluster as _, PortError, PortResult},
};

impl KubeCluster {
    pub(super) async fn lock(&self, migration: &Migration, uid: &str) -> PortResult<()> {
        let source = source_of(migration)?;
        let Some(pod) = found(self.pods(migration).get(&source.name).await, "read the source pod")? else {
            return Err(PortError::permanent("the source pod is gone"));
        };
        // Another one may have passed its preflight at the same moment. What an ended migration has left is no lock.
        if let Some(owner) = pod.annotations().get(keys::LOCK).filter(|owner| Some(*owner) != migration.metadata.uid.as_ref())
            && self.active_migrations().await?.contains(owner)
        {
            return Err(PortError::permanent(format!(
                "the pod is being moved by the migration with UID {owner}; wait until that one has ended, or delete it"
            )));
        }
        let mut annotations = pod.annotations().clone();
        annotations.insert(keys::LOCK.into(), migration.uid().unwrap_or_default());
        annotations.retain(|key, _| key != keys::MIGRATE_TO && key != keys::MIGRATE_TO_BARE);
        self.write_annotations(migration, &pod, uid, &annotations, "lock the source pod").await
    }

    pub(super) async fn unlock(&self, migration: &Migration, uid: &str) -> PortResult<()> {
        let source = source_of(migration)?;
        let Some(pod) = found(self.pods(migration).get(&source.name).await, "read the source pod")? else { return Ok(()) };
        if pod.annotations().get(keys::LOCK) != migration.metadata.uid.as_ref() || pod.metadata.uid.as_deref() != Some(uid) {
            return Ok(());
        }
        let mut annotations = pod.annotations().clone();
        annotations.remove(keys::LOCK);
        self.write_annotations(migration, &pod, uid, &annotations, "unlock the source pod").await
    }

    async fn write_annotations(
        &self,
        migration: &Migration,
        pod: &Pod,
        uid: &str,
        annotations: &BTreeMap<String, String>,
        doing: &str,
    ) -> PortResult<()> {
        let patch = json!([
            {"op": "test", "path": "/metadata/uid", "value": uid},
            {"op": "test", "path": "/metadata/resourceVersion", "value": pod.resource_version()},
            {"op": "add", "path": "/metadata/annotations", "value": annotations},
        ]);
        self.patch_pod(&self.pods(migration), &pod.name_any(), doing, patch).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{Request, Response};
    use kube::{Client, client::Body};
    use serde_json::Value;
    use tower_test::mock;

    use super::*;
    use crate::{
        api::{MigrationSpec, MigrationStatus, Outcome, Phase, migration::SourceStatus},
        ports::Failure,
    };

    const OWN: &str = "5f1c22aa-0000-4000-8000-000000000001";
    const OTHER: &str = "5f1c22aa-0000-4000-8000-000000000002";

    fn migration(uid: &str, outcome: Option<Outcome>) -> Migration {
        let mut migration = Migration::new("m", MigrationSpec::default());
        (migration.metadata.namespace, migration.metadata.uid) = (Some("d".into()), Some(uid.into()));
        let source = SourceStatus { name: "p".into(), uid: "u".into(), ..SourceStatus::default() };
        let phase = if outcome.is_some() { Phase::Done } else { Phase::Preflight };
        migration.status = Some(MigrationStatus { source: Some(source), phase, outcome, ..MigrationStatus::default() });
        migration
    }

    /// Locks a pod that the other one has locked, which is as given; whether the pod was patched.
    async fn lock_against(other: Migration) -> (PortResult<()>, bool) {
        let (service, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
        let served = tokio::spawn(async move {
            let mut patched = false;
            while let Some((request, send)) = handle.next_request().await {
                patched |= request.method() == "PATCH";
                let pod =
                    json!({"metadata": {"name": "p", "namespace": "d", "uid": "u", "resourceVersion": "7", "annotations": {keys::LOCK: OTHER}}});
                let list: Value = json!({"metadata": {}, "items": [migration(OWN, None), &other]});
                let answer = if request.uri().path().ends_with("/migrations") { list } else { pod };
                send.send_response(Response::new(Body::from(answer.to_string().into_bytes())));
            }
            patched
        });
        let cluster = KubeCluster::new(Client::new(service, "d"), "drover-system", "m-0", std::sync::Arc::default());
        let locked = cluster.lock(&migration(OWN, None), "u").await;
        drop(cluster);
        (locked, served.await.unwrap())
    }

    #[tokio::test]
    async fn a_lock_of_an_active_migration_is_never_overwritten() {
        let (locked, patched) = lock_against(migration(OTHER, None)).await;
        let error = locked.unwrap_err();
        assert!(error.kind == Failure::Permanent && error.message.contains(OTHER) && !patched, "{error}");
        let (locked, patched) = lock_against(migration(OTHER, Some(Outcome::Migrated))).await;
        assert!(locked.is_ok() && patched, "what an ended one has left is no lock");
    }
}
