//! The attestations of a migration, which the manager makes and the agents fill in.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Api, Resource as _, ResourceExt as _, api::PostParams};

use super::{KubeCluster, delete, keys, port_error};
use crate::{
    api::{Attestation, AttestationSpec, Migration, Role, attestation::attestation_name},
    ports::{Failure, PortError, PortResult},
};

impl KubeCluster {
    pub(super) async fn create_attestation(&self, migration: &Migration, role: Role, node: &str, pod_uid: &str) -> PortResult<()> {
        let api: Api<Attestation> = Api::namespaced(self.client.clone(), &migration.namespace().unwrap_or_default());
        let name = attestation_name(&migration.name_any(), role);
        let uid = migration.uid().unwrap_or_default();
        let spec =
            AttestationSpec { migration: migration.name_any(), migration_uid: uid.clone(), node_name: node.into(), pod_uid: pod_uid.into(), role };
        let mut attestation = Attestation::new(&name, spec);
        attestation.metadata.labels = Some([(keys::MIGRATION_UID.to_owned(), uid.clone())].into());
        attestation.metadata.owner_references = migration.controller_owner_ref(&()).map(|owner| vec![OwnerReference { ..owner }]);
        match api.create(&PostParams::default(), &attestation).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                let existing = api.get(&name).await.map_err(|e| port_error("read the attestation", &e))?;
                if existing.spec.migration_uid == uid {
                    return Ok(());
                }
                // One of an earlier Migration of the same name, which garbage collection has not reached yet.
                delete(&api, &name, existing.uid().as_deref(), false, "remove an old attestation").await?;
                Err(PortError::new(Failure::Conflict, "an attestation of an earlier Migration of this name is being removed"))
            }
            Err(error) => Err(port_error("create the attestation", &error)),
        }
    }
}
