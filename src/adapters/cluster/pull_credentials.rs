//! The pod's own pull credentials, laid out for the destination's agent.
//!
//! The agent pulls base images with the credentials that the pod itself would be pulled with. So that agents need no right to read Secrets
//! in users' namespaces, the manager copies the docker configurations that the pod names into a Secret in Drover's own namespace, for as
//! long as the migration lasts. It is one Secret of a fixed name, with a key for each migration, so that the agents' Role can name it and nothing
//! else in that namespace, where the CA's key lies too.

use k8s_openapi::{
    ByteString,
    api::core::v1::{Secret, ServiceAccount},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};

use super::{KubeCluster, found, port_error, source_of};
use crate::{
    adapters::docker_config,
    api::Migration,
    domain::keys,
    ports::{Failure, PortError, PortResult},
};

/// Name of the Secret with the pull credentials of all running migrations, in Drover's namespace; its keys are their UIDs.
pub const SECRET: &str = "drover-pull-credentials";

impl KubeCluster {
    pub(super) async fn pull_credentials_exist(&self, migration_uid: &str) -> PortResult<bool> {
        let secret = found(self.secrets().get(SECRET).await, "look for pull credentials")?;
        Ok(secret.and_then(|s| s.data).is_some_and(|data| data.contains_key(migration_uid)))
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(super) async fn lay_out_pull_credentials(&self, migration: &Migration) -> PortResult<()> {
        let mut auths = serde_json::Map::new();
        for secret in self.pull_secrets(migration).await? {
            let parsed = docker_config::auths(&secret).map_err(|e| PortError::permanent(format!("pull Secret {}: {e}", secret.name_any())))?;
            for (registry, auth) in parsed {
                auths.entry(registry).or_insert(auth);
            }
        }
        if auths.is_empty() {
            return Ok(());
        }
        let uid = migration.uid().unwrap_or_default();
        let config = serde_json::json!({"auths": auths}).to_string();
        let empty = Secret { metadata: ObjectMeta { name: Some(SECRET.into()), ..ObjectMeta::default() }, ..Secret::default() };
        match self.secrets().create(&PostParams::default(), &empty).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
            Err(error) => return Err(port_error("make the Secret for pull credentials", &error)),
        }
        self.patch_key(&uid, Some(config)).await
    }

    /// Sets one migration's key, or removes it; keys of others are not touched.
    async fn patch_key(&self, migration_uid: &str, config: Option<String>) -> PortResult<()> {
        let value = config.map(|config| ByteString(config.into_bytes()));
        let patch = serde_json::json!({"data": {migration_uid: value}});
        let params = PatchParams { field_manager: Some(keys::MANAGER.into()), ..PatchParams::default() };
        match self.secrets().patch_metadata(SECRET, &params, &Patch::Merge(patch)).await {
            Ok(_) => Ok(()),
            Err(error) => Err(port_error("write the pull credentials", &error)),
        }
    }

    /// The Secrets that the kubelet would use for the pod: its own and its service account's.
    async fn pull_secrets(&self, migration: &Migration) -> PortResult<Vec<Secret>> {
        let namespace = migration.namespace().unwrap_or_default();
        let Some(pod) = found(self.pods(migration).get(&source_of(migration)?.name).await, "read the source pod")? else { return Ok(vec![]) };
        let spec = pod.spec.unwrap_or_default();
        let mut names: Vec<String> = spec.image_pull_secrets.unwrap_or_default().into_iter().map(|r| r.name).collect();
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &namespace);
        let account = spec.service_account_name.unwrap_or_else(|| "default".into());
        if names.is_empty() {
            // As the service account admission does it: the account's Secrets count where the pod names none.
            let account = found(accounts.get(&account).await, "read the pod's service account")?;
            names = account.and_then(|a| a.image_pull_secrets).unwrap_or_default().into_iter().map(|r| r.name).collect();
        }
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
        let mut all = vec![];
        for name in names.iter().filter(|name| !name.is_empty()) {
            // A Secret that is named but missing is no error for the kubelet either.
            all.extend(found(secrets.get(name).await, "read a pull Secret")?);
        }
        Ok(all)
    }

    pub(super) async fn remove_pull_credentials(&self, migration: &Migration) -> PortResult<()> {
        match self.patch_key(&migration.uid().unwrap_or_default(), None).await {
            // No migration has needed the Secret yet.
            Err(error) if error.kind == Failure::NotFound => Ok(()),
            done => done,
        }
    }
}
