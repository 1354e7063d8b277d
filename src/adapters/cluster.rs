//! The manager's reads and writes at the API server.

mod attestations;
mod children;
mod claims;
mod creation;
mod disruptions;
mod lock;
mod nodes;
mod owners;
mod permits;
mod pull_credentials;
mod readiness;
mod template;

pub use nodes::NodeWatch;
pub(super) use nodes::node_views;
pub use pull_credentials::SECRET as PULL_SECRET;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use k8s_openapi::api::{
    core::v1::{Pod, PodCondition},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::json;

use super::kube_error::{found, is_failed_test, port_error};
use crate::{
    api::{
        Attestation, Migration, MigrationGrant, MigrationStatus,
        migration::{Lane, ReplacementStatus, SourceStatus},
    },
    domain::{
        keys,
        migration::{Effect, Told},
        owner,
        permits::Permit,
        preflight::{ClaimView, NodeView},
        replacement,
    },
    ports::{
        Cluster, Failure, PortError, PortResult,
        bus::{Inbox, Migrations},
    },
};

/// The API server as the manager uses it.
pub struct KubeCluster {
    client: Client,
    /// Drover's own namespace, where pull credentials are laid out.
    namespace: String,
    recorder: Recorder,
    inbox: Arc<Inbox>,
    /// How many pods are on their way to a node at the same time; 0: no limit.
    arrivals_per_node: u32,
    /// The lane of migrations that leave it open.
    lane: Lane,
    /// The nodes, where they are watched; else they are listed.
    watched: Option<NodeWatch>,
    /// Held while a source is marked as its ReplicaSet's surplus.
    marking: tokio::sync::Mutex<()>,
}

impl KubeCluster {
    /// The API server behind `client`; `namespace` is Drover's own, `instance` this process's name in Events, `inbox` has what the bus tells.
    pub fn new(client: Client, namespace: impl Into<String>, instance: impl Into<String>, inbox: Arc<Inbox>) -> Self {
        let reporter = Reporter { controller: keys::MANAGER.to_owned(), instance: Some(instance.into()) };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            namespace: namespace.into(),
            inbox,
            arrivals_per_node: 0,
            lane: Lane::Auto,
            watched: None,
            marking: tokio::sync::Mutex::default(),
        }
    }

    /// The same with a limit of pods that are on their way to a node at the same time; 0: none.
    #[must_use]
    pub fn with_arrivals_per_node(self, arrivals_per_node: u32) -> Self {
        Self { arrivals_per_node, ..self }
    }

    /// The same with a lane for migrations that leave it open.
    #[must_use]
    pub fn with_lane(self, lane: Lane) -> Self {
        Self { lane, ..self }
    }

    /// Knows the nodes by this watch.
    #[must_use]
    pub fn with_nodes(self, watched: NodeWatch) -> Self {
        Self { watched: Some(watched), ..self }
    }

    /// The pods of the Migration's own namespace, where the source is, and a fallback.
    fn pods(&self, migration: &Migration) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &migration.namespace().unwrap_or_default())
    }

    /// The pods of the namespace in which the replacement is.
    fn replacements(&self, migration: &Migration) -> Api<Pod> {
        Api::namespaced(self.client.clone(), migration.replacement_namespace().unwrap_or_default())
    }

    fn migrations(&self, migration: &Migration) -> Api<Migration> {
        Api::namespaced(self.client.clone(), &migration.namespace().unwrap_or_default())
    }

    async fn patch_pod(&self, pods: &Api<Pod>, name: &str, doing: &str, patch: serde_json::Value) -> PortResult<Pod> {
        let patch: json_patch::Patch = serde_json::from_value(patch).map_err(|e| PortError::permanent(format!("failed to {doing}: {e}")))?;
        let params = PatchParams { field_manager: Some(keys::MANAGER.into()), ..PatchParams::default() };
        match pods.patch(name, &params, &Patch::<Pod>::Json(patch)).await {
            Err(kube::Error::Api(status)) if is_failed_test(&status) => {
                Err(PortError::new(Failure::Conflict, format!("failed to {doing}: the pod has changed")))
            }
            other => other.map_err(|e| port_error(doing, &e)),
        }
    }

    async fn claim(&self, migration: &Migration, uid: &str) -> PortResult<()> {
        let (pods, replacement) = self.claimed(migration, uid)?;
        let claim = format!("/metadata/annotations/{}", keys::CLAIM.replace('/', "~1"));
        let patch = json!([
            {"op": "test", "path": "/metadata/uid", "value": uid},
            {"op": "add", "path": claim, "value": migration.uid()},
        ]);
        self.patch_pod(&pods, &replacement.name, "release the replacement", patch).await.map(drop)
    }

    async fn write_images(&self, migration: &Migration, uid: &str, images: &BTreeMap<String, String>) -> PortResult<()> {
        let (pods, replacement) = self.claimed(migration, uid)?;
        let Some(pod) = found(pods.get(&replacement.name).await, "read the replacement")? else {
            return Err(PortError::new(Failure::Conflict, "the replacement is gone"));
        };
        let mut patch = vec![json!({"op": "test", "path": "/metadata/uid", "value": uid})];
        let spec = pod.spec.unwrap_or_default();
        for (list, containers) in [("containers", spec.containers), ("initContainers", spec.init_containers.unwrap_or_default())] {
            for (index, container) in containers.iter().enumerate() {
                if let Some(image) = images.get(&container.name) {
                    patch.push(json!({"op": "test", "path": format!("/spec/{list}/{index}/name"), "value": container.name}));
                    patch.push(json!({"op": "replace", "path": format!("/spec/{list}/{index}/image"), "value": image}));
                }
            }
        }
        self.patch_pod(&pods, &replacement.name, "write the pod's images", patch.into()).await.map(drop)
    }

    /// The pod of the migration that is to be restored, and where it is: the replacement, or the fallback.
    fn claimed<'a>(&self, migration: &'a Migration, uid: &str) -> PortResult<(Api<Pod>, &'a ReplacementStatus)> {
        let fallback = migration.status.as_ref().and_then(|s| s.fallback.as_ref()).filter(|f| f.uid == uid);
        fallback.map_or_else(|| Ok((self.replacements(migration), replacement_of(migration)?)), |fallback| Ok((self.pods(migration), fallback)))
    }

    async fn write_finalizers(&self, migration: &Migration, finalizers: Vec<String>) -> PortResult<()> {
        let patch = json!({"metadata": {"resourceVersion": migration.resource_version(), "finalizers": finalizers}});
        let params = PatchParams { field_manager: Some(keys::MANAGER.into()), ..PatchParams::default() };
        self.migrations(migration)
            .patch(&migration.name_any(), &params, &Patch::Merge(patch))
            .await
            .map_err(|e| port_error("write the finalizer", &e))?;
        Ok(())
    }
}

#[async_trait]
impl Cluster for KubeCluster {
    async fn pod(&self, namespace: &str, name: &str) -> PortResult<Option<Pod>> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        found(api.get(name).await, "read a pod")
    }

    async fn attestation(&self, namespace: &str, name: &str) -> PortResult<Option<Attestation>> {
        let api: Api<Attestation> = Api::namespaced(self.client.clone(), namespace);
        found(api.get(name).await, "read an attestation")
    }

    async fn owner_selector(&self, namespace: &str, kind: owner::Kind, name: &str, uid: &str) -> PortResult<BTreeMap<String, String>> {
        self.selector_of(namespace, kind, name, uid).await
    }

    async fn claims(&self, pod: &Pod) -> PortResult<BTreeMap<String, ClaimView>> {
        self.claims_of(pod).await
    }

    async fn budgets(&self, pod: &Pod) -> PortResult<Vec<PodDisruptionBudget>> {
        self.budgets_of(pod).await
    }

    async fn asked_for(&self, parent: &Migration) -> PortResult<Option<Vec<Pod>>> {
        self.pods_asked_for(parent).await
    }

    async fn children(&self, parent: &Migration) -> PortResult<Vec<Migration>> {
        self.children_of(parent).await
    }

    async fn make_child(&self, parent: &Migration, child: &Migration) -> PortResult<()> {
        self.create_child(parent, child).await
    }

    async fn adopters(&self, namespace: &str) -> PortResult<Vec<owner::Adopter>> {
        self.adopters_in(namespace).await
    }

    async fn permit(&self, migration: &Migration, node: &str) -> PortResult<Permit> {
        self.permit_at(migration, node).await.map(|(permit, _)| permit)
    }

    async fn give_back_permit(&self, migration: &Migration) -> PortResult<()> {
        self.return_permit(migration).await
    }

    async fn grants(&self, namespace: &str) -> PortResult<Vec<MigrationGrant>> {
        let api: Api<MigrationGrant> = Api::namespaced(self.client.clone(), namespace);
        let grants = api.list(&ListParams::default()).await.map_err(|e| port_error("list the migration grants", &e))?;
        Ok(grants.items)
    }

    async fn nodes(&self) -> PortResult<Vec<NodeView>> {
        self.all_nodes().await
    }

    async fn nodes_named(&self, names: &[&str]) -> PortResult<Vec<NodeView>> {
        self.these_nodes(names).await
    }

    async fn nodes_now(&self, names: &[&str]) -> PortResult<Vec<NodeView>> {
        self.read_nodes(names).await
    }

    fn default_lane(&self) -> Lane {
        self.lane
    }

    async fn active_migrations(&self) -> PortResult<Vec<String>> {
        let api: Api<Migration> = Api::all(self.client.clone());
        let all = api.list(&ListParams::default()).await.map_err(|e| port_error("list the migrations", &e))?;
        Ok(all.iter().filter(|m| !m.is_done()).filter_map(kube::ResourceExt::uid).collect())
    }

    async fn has_pull_credentials(&self, migration_uid: &str) -> PortResult<bool> {
        self.pull_credentials_exist(migration_uid).await
    }

    async fn template(&self, migration: &Migration) -> PortResult<Option<Pod>> {
        self.read_template(migration).await
    }

    async fn write_status(&self, migration: &Migration, status: &MigrationStatus) -> PortResult<Migration> {
        let mut next = migration.clone();
        next.status = Some(status.clone());
        next.metadata.managed_fields = None;
        let params = PostParams { field_manager: Some(keys::MANAGER.into()), ..PostParams::default() };
        let written = self.migrations(migration).replace_status(&migration.name_any(), &params, &next).await;
        written.map_err(|e| match port_error("write the Migration's status", &e) {
            // Never a reason to roll back by itself: R21 refused a stale leader, or the Migration is gone. Look again.
            error if matches!(error.kind, Failure::Permanent | Failure::NotFound) => PortError { kind: Failure::Transient, ..error },
            error => error,
        })
    }

    async fn perform(&self, migration: &Migration, effect: &Effect, pod: Option<&Pod>) -> PortResult<()> {
        let made = || pod.ok_or_else(|| PortError::permanent("no pod was given to create"));
        match effect {
            Effect::AddFinalizer => {
                let mut finalizers = migration.finalizers().to_vec();
                finalizers.push(keys::FINALIZER.into());
                self.write_finalizers(migration, finalizers).await
            }
            Effect::RemoveFinalizer => {
                let kept = migration.finalizers().iter().filter(|f| *f != keys::FINALIZER).cloned().collect();
                self.write_finalizers(migration, kept).await
            }
            Effect::Lock { uid } => self.lock(migration, uid).await,
            Effect::Unlock { uid } => self.unlock(migration, uid).await,
            Effect::TakeDisruption { budget } => self.take_disruption(migration, budget).await,
            Effect::TakePermit { node } => self.take_permit(migration, node).await,
            Effect::GiveBackDisruption { budget } => self.give_back_disruption(migration, budget).await,
            Effect::CreateAttestation { role, node, pod_uid } => self.create_attestation(migration, *role, node, pod_uid).await,
            Effect::LayOutPullCredentials => self.lay_out_pull_credentials(migration).await,
            Effect::RemovePullCredentials => self.remove_pull_credentials(migration).await,
            Effect::CreateReplacement | Effect::CreateSameName | Effect::CreateFallback => self.create_replacement(migration, effect, made()?).await,
            Effect::RehearseReplacement => self.rehearse(migration, effect, made()?).await,
            Effect::KeepTemplate => self.keep_template(migration, effect, made()?).await,
            Effect::RemoveTemplate => self.remove_template(migration).await,
            Effect::DeletePlaceholder { uid, force } => {
                let name = migration.status.as_ref().and_then(|s| s.placeholder.as_ref()).map(|p| p.name.clone()).unwrap_or_default();
                delete(&self.pods(migration), &name, Some(uid), *force, "delete the placeholder").await
            }
            Effect::Claim { uid } => self.claim(migration, uid).await,
            Effect::WriteInitImages { uid } => self.write_images(migration, uid, &replacement::init_images(migration)).await,
            Effect::RewriteImages { uid } => self.write_images(migration, uid, &replacement::checkpoint_images(migration)).await,
            Effect::DeleteReplacement { uid, force } => {
                let name = &replacement_of(migration)?.name;
                delete(&self.replacements(migration), name, Some(uid), *force, "delete the replacement").await
            }
            Effect::MarkSurplus { uid } => self.mark_surplus(migration, uid).await,
            Effect::ReleaseSource { uid } => self.release_source(migration, uid).await,
            Effect::HandOver { uid, ready } => self.hand_over(migration, uid, *ready).await,
            Effect::DeleteSource { uid } => delete(&self.pods(migration), &source_of(migration)?.name, Some(uid), false, "delete the source").await,
            Effect::DeleteFallback { uid } => {
                delete(&self.pods(migration), &source_of(migration)?.name, Some(uid), false, "delete the fallback").await
            }
            Effect::DeleteMigration => {
                delete(&self.migrations(migration), &migration.name_any(), migration.uid().as_deref(), false, "delete the ended Migration").await
            }
        }
    }

    async fn write_condition(&self, pod: &Pod, condition: &PodCondition) -> PortResult<()> {
        self.patch_condition(pod, condition).await
    }

    fn told(&self, migration_uid: &str) -> Option<Told> {
        self.inbox.of(migration_uid)
    }

    async fn tell(&self, migration: &Migration, warning: bool, reason: &str, message: &str) -> PortResult<()> {
        let event = Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            note: Some(message.chars().take(keys::LONGEST_NOTE).collect()),
            action: "Migrate".to_owned(),
            secondary: None,
        };
        self.recorder.publish(&event, &migration.object_ref(&())).await.map_err(|e| port_error("write an event", &e))
    }
}

#[async_trait]
impl Migrations for KubeCluster {
    async fn migration(&self, namespace: &str, name: &str) -> PortResult<Option<Migration>> {
        let api: Api<Migration> = Api::namespaced(self.client.clone(), namespace);
        found(api.get(name).await, "read the Migration")
    }
}

/// Deletes an object of this UID; nothing happens where it is gone or another one has its name.
async fn delete<K>(api: &Api<K>, name: &str, uid: Option<&str>, force: bool, doing: &str) -> PortResult<()>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: uid.map(str::to_owned), resource_version: None }),
        grace_period_seconds: force.then_some(0),
        ..DeleteParams::default()
    };
    match api.delete(name, &params).await {
        Ok(_) => Ok(()),
        // 409: the UID is another's.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(error) => Err(port_error(doing, &error)),
    }
}

fn source_of(migration: &Migration) -> PortResult<&SourceStatus> {
    let source = migration.status.as_ref().and_then(|s| s.source.as_ref());
    source.ok_or_else(|| PortError::permanent("the Migration's status names no source"))
}

fn replacement_of(migration: &Migration) -> PortResult<&ReplacementStatus> {
    let replacement = migration.status.as_ref().and_then(|s| s.replacement.as_ref());
    replacement.ok_or_else(|| PortError::permanent("the Migration's status names no replacement"))
}
