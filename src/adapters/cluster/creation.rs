//! Making pods after another one: of the fields that the API server has, not only of those that this program's types know.

use k8s_openapi::api::core::v1::{Pod, PodSpec, PodTemplate};
use kube::{
    Api, ResourceExt as _,
    api::PostParams,
    core::{ApiResource, DynamicObject},
};
use serde_json::Value;

use super::{KubeCluster, found, keys, port_error, source_of};
use crate::{
    api::Migration,
    domain::{migration::Effect, unknown_fields},
    ports::{PortError, PortResult},
};

impl KubeCluster {
    pub(super) async fn create_replacement(&self, migration: &Migration, effect: &Effect, pod: &Pod) -> PortResult<()> {
        let params = PostParams { field_manager: Some(keys::MANAGER.into()), ..PostParams::default() };
        match self.create(migration, effect, pod, &params).await? {
            Ok(_) => Ok(()),
            // Made by an earlier try, or somebody else's: the next look tells them apart.
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
            Err(error) => Err(port_error(&format!("create pod {}", pod.name_any()), &error)),
        }
    }

    /// Has every admission judge the pod; nothing is made.
    pub(super) async fn rehearse(&self, migration: &Migration, effect: &Effect, pod: &Pod) -> PortResult<()> {
        let params = PostParams { dry_run: true, field_manager: Some(keys::MANAGER.into()) };
        match self.create(migration, effect, pod, &params).await? {
            Ok(_) => Ok(()),
            // The source still has the name: that is found out last, by the storage.
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
            Err(error) => Err(port_error("rehearse the same-name replacement", &error)),
        }
    }

    async fn create(&self, migration: &Migration, effect: &Effect, pod: &Pod, params: &PostParams) -> PortResult<kube::Result<DynamicObject>> {
        let made = self.whole(migration, effect, pod, "/spec").await?;
        let pods: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &pod.namespace().unwrap_or_default(), &ApiResource::erase::<Pod>(&()));
        Ok(pods.create(params, &made).await)
    }

    /// An object whose pod's spec is at `spec`, with the fields that the one has after which it is made and that this program's types do not know.
    pub(super) async fn whole<K: serde::Serialize>(
        &self,
        migration: &Migration,
        effect: &Effect,
        object: &K,
        spec: &str,
    ) -> PortResult<DynamicObject> {
        let mut made: DynamicObject = serde_json::to_value(object).and_then(serde_json::from_value).map_err(unreadable)?;
        if let Some(model) = self.whole_spec(migration, effect).await?
            && let Some(target) = made.data.pointer_mut(spec)
        {
            add_unknown(target, &model)?;
        }
        Ok(made)
    }

    /// The spec that the effect's pod is made after, with every field; none where its object is gone.
    async fn whole_spec(&self, migration: &Migration, effect: &Effect) -> PortResult<Option<Value>> {
        let namespace = migration.namespace().unwrap_or_default();
        if matches!(effect, Effect::CreateSameName | Effect::CreateFallback) {
            let kept: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &namespace, &ApiResource::erase::<PodTemplate>(&()));
            let kept = found(kept.get(&migration.name_any()).await, "read the kept template")?;
            return Ok(kept.and_then(|mut kept| Some(kept.data.pointer_mut("/template/spec")?.take())));
        }
        let pods: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &namespace, &ApiResource::erase::<Pod>(&()));
        let source = found(pods.get(&source_of(migration)?.name).await, "read the source pod")?;
        Ok(source.and_then(|mut source| Some(source.data.get_mut("spec")?.take())))
    }
}

/// Adds to a spec what another one has that this program's types do not know.
fn add_unknown(target: &mut Value, whole: &Value) -> PortResult<()> {
    let known: PodSpec = serde_json::from_value(whole.clone()).map_err(unreadable)?;
    let known = serde_json::to_value(known).map_err(unreadable)?;
    if let Some(missing) = unknown_fields::of(whole, &known) {
        unknown_fields::add(target, &missing);
    }
    Ok(())
}

// The signature is map_err's.
#[allow(clippy::needless_pass_by_value)]
fn unreadable(error: serde_json::Error) -> PortError {
    PortError::permanent(format!("the pod's spec cannot be read: {error}"))
}
