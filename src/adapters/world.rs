//! What admission decisions and the scheduler extender's answers depend on, read from the API server at the moment of the request.
//!
//! Direct reads instead of caches: only pods that are being annotated, claimed or moved come here, and a claim must be judged by what stands now,
//! not by what a watch has brought (R1).

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client,
    api::{ListParams, ObjectList},
};
use serde::de::DeserializeOwned;

use super::{cluster::node_views, kube_error::port_error};
use crate::{
    api::{Migration, MigrationPolicy},
    domain::{
        admission::{Needs, World},
        preflight::NodeView,
    },
    ports::{
        Clock, PortResult, SystemClock,
        front::{PlacementSource, WorldSource},
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
        Ok(world)
    }

    async fn pod(&self, namespace: &str, name: &str) -> PortResult<Option<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        pods.get_opt(name).await.map_err(|e| port_error("get the pod", &e))
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
