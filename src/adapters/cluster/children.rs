//! What a Migration of several pods reads and makes.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, PostParams},
    core::Selector,
};

use super::KubeCluster;
use crate::{
    adapters::kube_error::{found, port_error},
    api::Migration,
    domain::{fan_out::is_child_of, keys, owner},
    ports::{PortError, PortResult},
};

impl KubeCluster {
    pub(super) async fn pods_asked_for(&self, parent: &Migration) -> PortResult<Option<Vec<Pod>>> {
        let namespace = parent.namespace().unwrap_or_default();
        let Some(name) = &parent.spec.deployment else {
            return self.selected(&namespace, parent.spec.selector.clone().unwrap_or_default()).await.map(Some);
        };
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), &namespace);
        let Some(deployment) = found(deployments.get(name).await, "read the Deployment")? else { return Ok(None) };
        let selector = deployment.spec.selector.clone();
        // Others may have pods with these labels too; what counts is who controls them.
        let sets: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &namespace);
        let params = ListParams::default().labels_from(&labels(selector.clone())?);
        let sets = sets.list(&params).await.map_err(|e| port_error("list the Deployment's ReplicaSets", &e))?;
        let own =
            sets.iter().filter(|set| owner::controller(&set.metadata).is_some_and(|owner| Some(&owner.uid) == deployment.metadata.uid.as_ref()));
        let own: BTreeSet<String> = own.filter_map(ReplicaSet::uid).collect();
        let mut pods = self.selected(&namespace, selector).await?;
        pods.retain(|pod| owner::controller(&pod.metadata).is_some_and(|owner| own.contains(&owner.uid)));
        Ok(Some(pods))
    }

    async fn selected(&self, namespace: &str, selector: LabelSelector) -> PortResult<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let params = ListParams::default().labels_from(&labels(selector)?);
        pods.list(&params).await.map(|list| list.items).map_err(|e| port_error("list the pods", &e))
    }

    pub(super) async fn children_of(&self, parent: &Migration) -> PortResult<Vec<Migration>> {
        let params = ListParams::default().labels(&format!("{}={}", keys::PARENT_UID, parent.uid().unwrap_or_default()));
        self.migrations(parent).list(&params).await.map(|list| list.items).map_err(|e| port_error("list the Migration's children", &e))
    }

    pub(super) async fn create_child(&self, parent: &Migration, child: &Migration) -> PortResult<()> {
        let params = PostParams { field_manager: Some(keys::MANAGER.into()), ..PostParams::default() };
        match self.migrations(parent).create(&params, child).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                let name = child.name_any();
                let there = self.migrations(parent).get(&name).await.map_err(|e| port_error("read the child", &e))?;
                if is_child_of(&there, parent) {
                    return Ok(());
                }
                Err(PortError::permanent(format!("another Migration has the name {name}")))
            }
            Err(error) => Err(port_error("make a Migration for the pod", &error)),
        }
    }
}

fn labels(selector: LabelSelector) -> PortResult<Selector> {
    Selector::try_from(selector).map_err(|error| PortError::permanent(format!("the selector cannot be used: {error}")))
}
