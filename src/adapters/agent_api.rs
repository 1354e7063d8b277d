//! An agent's reads and writes at the API server.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, PostParams},
};

use super::{
    cluster::PULL_SECRET,
    docker_config,
    kube_error::{found, port_error},
};
use crate::{
    api::{Attestation, AttestationStatus, Migration, MigrationStatus, NodeProfile, NodeProfileSpec, NodeProfileStatus},
    domain::keys,
    ports::{AgentApi, Arrival, PortError, PortResult, PullCredential},
};

/// The API server as an agent uses it.
pub struct KubeAgentApi {
    client: Client,
    namespace: String,
    node: String,
}

impl KubeAgentApi {
    /// The API server behind `client`; `namespace` is Drover's own, `node` this agent's.
    pub fn new(client: Client, namespace: impl Into<String>, node: impl Into<String>) -> Self {
        Self { client, namespace: namespace.into(), node: node.into() }
    }
}

#[async_trait]
impl AgentApi for KubeAgentApi {
    async fn migration(&self, namespace: &str, name: &str) -> PortResult<Option<Migration>> {
        let api: Api<Migration> = Api::namespaced(self.client.clone(), namespace);
        found(api.get(name).await, "read the Migration")
    }

    async fn attestation(&self, namespace: &str, name: &str) -> PortResult<Option<Attestation>> {
        let api: Api<Attestation> = Api::namespaced(self.client.clone(), namespace);
        found(api.get(name).await, "read an attestation")
    }

    async fn attest(&self, attestation: &Attestation, status: &AttestationStatus) -> PortResult<Attestation> {
        let api: Api<Attestation> = Api::namespaced(self.client.clone(), &attestation.namespace().unwrap_or_default());
        let mut next = attestation.clone();
        next.status = Some(status.clone());
        next.metadata.managed_fields = None;
        let params = PostParams { field_manager: Some(keys::AGENT.into()), ..PostParams::default() };
        let written = api.replace_status(&attestation.name_any(), &params, &next).await;
        written.map_err(|e| port_error("write the attestation", &e))
    }

    async fn write_profile(&self, status: &NodeProfileStatus) -> PortResult<()> {
        let api: Api<NodeProfile> = Api::all(self.client.clone());
        let params = PostParams { field_manager: Some(keys::AGENT.into()), ..PostParams::default() };
        let mut profile = match found(api.get(&self.node).await, "read the NodeProfile")? {
            Some(profile) => profile,
            None => api
                .create(&params, &NodeProfile::new(&self.node, NodeProfileSpec::default()))
                .await
                .map_err(|e| port_error("create the NodeProfile", &e))?,
        };
        let mut status = status.clone();
        // A condition that says what it said before keeps its time.
        for condition in &mut status.conditions {
            let before = profile.status.iter().flat_map(|s| &s.conditions).find(|c| c.type_ == condition.type_ && c.status == condition.status);
            if let Some(before) = before {
                condition.last_transition_time = before.last_transition_time.clone();
            }
        }
        profile.status = Some(status);
        profile.metadata.managed_fields = None;
        api.replace_status(&self.node, &params, &profile).await.map(drop).map_err(|e| port_error("write the NodeProfile", &e))
    }

    async fn arrivals(&self) -> PortResult<Vec<Arrival>> {
        let api: Api<Migration> = Api::all(self.client.clone());
        let all = api.list(&ListParams::default()).await.map_err(|e| port_error("list the migrations", &e))?;
        Ok(all.into_iter().filter(|m| !m.is_done()).filter_map(|m| m.status).filter_map(|status| arrival(&status, &self.node)).collect())
    }

    async fn pull_credentials(&self, migration_uid: &str) -> PortResult<Vec<PullCredential>> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let secret = found(api.get(PULL_SECRET).await, "read the pull credentials")?;
        match secret.and_then(|s| s.data).and_then(|mut data| data.remove(migration_uid)) {
            Some(config) => docker_config::credentials_of(&config.0).map_err(|e| PortError::permanent(format!("pull credentials: {e}"))),
            None => Ok(vec![]),
        }
    }
}

/// What a migration that has not ended needs on a node, where it needs anything there.
fn arrival(status: &MigrationStatus, node: &str) -> Option<Arrival> {
    let destination = status.destination.as_ref()?;
    let source = status.source.as_ref().map(|source| source.node_name.as_str());
    // A destination that the scheduler has not chosen yet may become this node.
    let arrives = destination.node_name == node || destination.node_name.is_empty();
    let falls_back = status.fallback.is_some() && source == Some(node);
    let pods = [&status.replacement, &status.placeholder, &status.fallback].into_iter().flatten().map(|pod| pod.uid.clone()).collect();
    (arrives || falls_back).then(|| Arrival { repository: destination.repository.clone(), pods })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_node_needs_something_only_once_the_pod_falls_back_to_it() {
        let mut status: MigrationStatus = serde_json::from_value(serde_json::json!({
            "source": {"name": "p", "uid": "old", "nodeName": "n1"}, "destination": {"nodeName": "n2", "repository": "drover/0"},
            "replacement": {"name": "p", "uid": "new"}
        }))
        .unwrap();
        assert_eq!(arrival(&status, "n2").map(|a| a.pods), Some(vec!["new".to_owned()]));
        assert_eq!(arrival(&status, "n1"), None);
        status.fallback = Some(crate::api::migration::ReplacementStatus { uid: "back".into(), ..Default::default() });
        assert!(arrival(&status, "n1").is_some_and(|a| a.pods.contains(&"back".to_owned())));
    }
}
