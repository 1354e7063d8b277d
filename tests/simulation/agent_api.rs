//! The agent's port to the API server: `adapters::agent_api` call by call.

use async_trait::async_trait;
use drover::{
    api::{Attestation, AttestationStatus, Migration, MigrationStatus, NodeProfileStatus},
    ports::{AgentApi, Arrival, PortResult, PullCredential},
};

use crate::{
    api::name_of,
    truth,
    world::{Door, Handle, NODES},
};

#[async_trait]
impl AgentApi for Handle {
    async fn migration(&self, _namespace: &str, name: &str) -> PortResult<Option<Migration>> {
        self.call(Door::Api, |world| Ok(world.api.migrations.get(name).cloned())).await
    }

    async fn attestation(&self, _namespace: &str, name: &str) -> PortResult<Option<Attestation>> {
        self.call(Door::Api, |world| Ok(world.api.attestations.get(name).cloned())).await
    }

    async fn attest(&self, attestation: &Attestation, status: &AttestationStatus) -> PortResult<Attestation> {
        self.call(Door::Api, |world| {
            let before = attestation.status.clone().unwrap_or_default();
            let after = world.api.write_attestation(attestation, status)?;
            let new: Vec<String> = said(status).into_iter().filter(|word| !said(&before).contains(word)).collect();
            world.tell(format_args!("the {} attests {} ({})", self.process, new.join(", "), name_of(&attestation.metadata)));
            truth::attested(world, &before, &after);
            Ok(after)
        })
        .await
    }

    async fn write_profile(&self, _status: &NodeProfileStatus) -> PortResult<()> {
        self.call(Door::Api, |_| Ok(())).await
    }

    async fn arrivals(&self) -> PortResult<Vec<Arrival>> {
        let node = NODES[self.process.node().unwrap_or_default()];
        self.call(Door::Api, |world| {
            let active = world.api.migrations.values().filter(|m| !m.is_done()).filter_map(|m| m.status.as_ref());
            let arrival = |status: &MigrationStatus| {
                let destination = status.destination.as_ref()?;
                let arrives = destination.node_name == node || destination.node_name.is_empty();
                let falls_back = status.fallback.is_some() && status.source.as_ref().is_some_and(|source| source.node_name == node);
                let pods = [&status.replacement, &status.placeholder, &status.fallback].into_iter().flatten().map(|pod| pod.uid.clone()).collect();
                (arrives || falls_back).then(|| Arrival { repository: destination.repository.clone(), pods })
            };
            Ok(active.filter_map(arrival).collect())
        })
        .await
    }

    async fn pull_credentials(&self, _migration_uid: &str) -> PortResult<Vec<PullCredential>> {
        self.call(Door::Api, |_| Ok(vec![])).await
    }
}

/// The words that stand in an attestation, as the API spells them; a remark with what it says.
fn said(status: &AttestationStatus) -> Vec<String> {
    let value = serde_json::to_value(status).unwrap_or_default();
    let words = value.as_object().into_iter().flatten();
    words
        .map(|(word, content)| match content.get("message").and_then(serde_json::Value::as_str) {
            Some(message) => format!("{word} ({message})"),
            None => word.clone(),
        })
        .collect()
}
