//! Keeps `caBundle` in the webhook configurations equal to the CA that signs the webhook's certificate.

use std::{sync::Arc, time::Duration};

use json_patch::{AddOperation, Patch as Operations, PatchOperation, TestOperation, jsonptr::PointerBuf};
use k8s_openapi::{
    ByteString,
    api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig},
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::kube_error::port_error;
use crate::{
    domain::keys,
    ports::{Failure, PortResult, front::Identity},
};

/// How often the configurations are looked at: an upgrade of the chart may write an empty bundle.
const LOOK: Duration = Duration::from_secs(30);

/// The two configurations of one name.
pub struct WebhookConfigurations {
    client: Client,
    name: String,
    identity: watch::Receiver<Arc<Identity>>,
}

impl WebhookConfigurations {
    /// The MutatingWebhookConfiguration and the ValidatingWebhookConfiguration of this name.
    #[must_use]
    pub fn new(client: Client, name: String, identity: watch::Receiver<Arc<Identity>>) -> Self {
        Self { client, name, identity }
    }

    /// Keeps the bundles until the token is cancelled; does nothing where the certificate brings no CA.
    ///
    /// # Errors
    /// None; the signature is that of a supervised task.
    pub async fn run(mut self, token: CancellationToken) -> anyhow::Result<()> {
        loop {
            let ca_pem = self.identity.borrow_and_update().ca_pem.clone();
            if !ca_pem.is_empty() {
                for result in [self.keep::<MutatingWebhookConfiguration>(&ca_pem).await, self.keep::<ValidatingWebhookConfiguration>(&ca_pem).await] {
                    match result {
                        Ok(()) => {}
                        Err(e) if e.kind == Failure::NotFound => warn!(name = self.name, "{e}"),
                        Err(e) => warn!("{e}"),
                    }
                }
            }
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {}
                Ok(()) = self.identity.changed() => {}
            }
        }
    }

    async fn keep<K: Webhooks>(&self, ca_pem: &str) -> PortResult<()> {
        let api: Api<K> = Api::all(self.client.clone());
        let kind = K::kind(&());
        let found = api.get(&self.name).await.map_err(|e| port_error(&format!("get {kind} {}", self.name), &e))?;
        let Some(operations) = operations(&found.clients(), found.resource_version().as_deref(), ca_pem) else { return Ok(()) };
        let params = PatchParams { field_manager: Some(keys::MANAGER.to_owned()), ..PatchParams::default() };
        api.patch(&self.name, &params, &Patch::<()>::Json(operations))
            .await
            .map_err(|e| port_error(&format!("write caBundle of {kind} {}", self.name), &e))?;
        info!(kind = %kind, name = self.name, "caBundle was written");
        Ok(())
    }
}

/// Only entries that differ; bound to the version that was read, since entries are named by their index.
fn operations(clients: &[&WebhookClientConfig], resource_version: Option<&str>, ca_pem: &str) -> Option<Operations> {
    let bundle = ByteString(ca_pem.as_bytes().to_vec());
    let differing: Vec<_> = clients.iter().enumerate().filter(|(_, c)| c.ca_bundle.as_ref() != Some(&bundle)).map(|(index, _)| index).collect();
    if differing.is_empty() {
        return None;
    }
    let mut operations =
        vec![PatchOperation::Test(TestOperation { path: PointerBuf::from_tokens(["metadata", "resourceVersion"]), value: json!(resource_version) })];
    operations.extend(differing.into_iter().map(|index| {
        let path = PointerBuf::from_tokens(["webhooks", &index.to_string(), "clientConfig", "caBundle"]);
        PatchOperation::Add(AddOperation { path, value: json!(bundle) })
    }));
    Some(Operations(operations))
}

/// What the two kinds have in common.
trait Webhooks: Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync {
    fn clients(&self) -> Vec<&WebhookClientConfig>;
}

impl Webhooks for MutatingWebhookConfiguration {
    fn clients(&self) -> Vec<&WebhookClientConfig> {
        self.webhooks.iter().flatten().map(|w| &w.client_config).collect()
    }
}

impl Webhooks for ValidatingWebhookConfiguration {
    fn clients(&self) -> Vec<&WebhookClientConfig> {
        self.webhooks.iter().flatten().map(|w| &w.client_config).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_entries_that_differ_are_written() {
        let config =
            |ca: Option<&str>| WebhookClientConfig { ca_bundle: ca.map(|c| ByteString(c.as_bytes().to_vec())), ..WebhookClientConfig::default() };
        let (right, wrong, none) = (config(Some("CA")), config(Some("old")), config(None));
        assert_eq!(operations(&[&right, &right], Some("7"), "CA"), None);
        let patch = serde_json::to_value(operations(&[&right, &wrong, &none], Some("7"), "CA")).expect("json");
        assert_eq!(
            patch,
            json!([
                {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
                {"op": "add", "path": "/webhooks/1/clientConfig/caBundle", "value": "Q0E="},
                {"op": "add", "path": "/webhooks/2/clientConfig/caBundle", "value": "Q0E="},
            ])
        );
    }
}
