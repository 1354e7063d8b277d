//! What admission decisions and the scheduler extender's answers depend on, read from the API server at the moment of the request.
//!
//! Direct reads instead of caches: only pods that are being annotated, claimed or moved come here, and a claim must be judged by what stands now,
//! not by what a watch has brought (R1).

use std::collections::BTreeMap;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, ObjectList, Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{cluster::node_views, kube_error::port_error};
use crate::{
    api::{Migration, MigrationPolicy},
    domain::{
        admission::{Needs, World},
        keys,
        preflight::NodeView,
    },
    ports::{
        Clock, PortResult, SystemClock,
        front::{EvictionRequests, PlacementSource, WorldSource},
    },
};

/// The API server's view.
#[derive(Clone)]
pub struct KubeWorld {
    client: Client,
}

impl KubeWorld {
    /// A view through this client.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

async fn list<K>(api: Api<K>, what: &str) -> PortResult<Vec<K>>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let list: ObjectList<K> = api.list(&ListParams::default()).await.map_err(|e| port_error(&format!("list {what}"), &e))?;
    Ok(list.items)
}

#[async_trait]
impl WorldSource for KubeWorld {
    async fn world(&self, namespace: &str, needs: &Needs) -> PortResult<World> {
        let client = || self.client.clone();
        let mut world = World::unseen(SystemClock.now());
        if needs.destination {
            let namespaces = Api::<Namespace>::all(client());
            let (nodes, policies, migrations, found) = tokio::try_join!(
                node_views(&self.client),
                list(Api::<MigrationPolicy>::all(client()), "migration policies"),
                list(Api::<Migration>::namespaced(client(), namespace), "migrations"),
                async { namespaces.get_metadata(namespace).await.map_err(|e| port_error("get the namespace", &e)) },
            )?;
            (world.facts.nodes, world.policies, world.migrations) = (nodes, policies, migrations);
            world.namespace_labels = found.metadata.labels.unwrap_or_default();
        } else if needs.claim {
            world.migrations = list(Api::<Migration>::namespaced(client(), namespace), "migrations").await?;
        }
        if let Some(elsewhere) = needs.elsewhere.as_deref().filter(|elsewhere| *elsewhere != namespace && !needs.is_empty()) {
            world.migrations.extend(list(Api::<Migration>::namespaced(client(), elsewhere), "migrations").await?);
        }
        Ok(world)
    }

    async fn pod(&self, namespace: &str, name: &str) -> PortResult<Option<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        pods.get_opt(name).await.map_err(|e| port_error("get the pod", &e))
    }
}

#[async_trait]
impl EvictionRequests for KubeWorld {
    async fn note(&self, pod: &Pod, now: Timestamp) -> PortResult<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let labels = [(keys::EVICTION_REQUESTED, now.as_second().to_string())];
        // A merge patch whose UID is another's is refused: a UID never changes.
        let patch = json!({"metadata": {"uid": pod.metadata.uid, "labels": BTreeMap::from(labels)}});
        let params = PatchParams { field_manager: Some(keys::MANAGER.into()), ..PatchParams::default() };
        match pods.patch_metadata(&pod.name_any(), &params, &Patch::Merge(patch)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => Ok(()),
            Err(error) => Err(port_error("write down that an eviction was asked for", &error)),
        }
    }
}

#[async_trait]
impl PlacementSource for KubeWorld {
    async fn migrations(&self, namespace: Option<&str>) -> PortResult<Vec<Migration>> {
        let api = namespace.map_or_else(|| Api::all(self.client.clone()), |namespace| Api::namespaced(self.client.clone(), namespace));
        list(api, "migrations").await
    }

    async fn nodes(&self) -> PortResult<Vec<NodeView>> {
        node_views(&self.client).await
    }
}
