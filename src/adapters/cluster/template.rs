//! What is kept of a source whose object is deleted before its replacement is released: a PodTemplate beside the Migration, which owns it.
//!
//! A PodTemplate, since it is just that: metadata and spec of a pod that does not run, read by nobody whom the cluster's `view` role lets read pods only.

use k8s_openapi::api::core::v1::{Pod, PodTemplate, PodTemplateSpec};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{ObjectMeta, PostParams},
    core::{ApiResource, DynamicObject},
};

use super::{KubeCluster, delete};
use crate::{
    adapters::kube_error::{found, port_error},
    api::Migration,
    domain::{keys, migration::Effect},
    ports::{Failure, PortError, PortResult},
};

/// Where the kept pod's own name stands, since a template has none.
const NAME: &str = "drover.dev/pod-name";

impl KubeCluster {
    fn templates(&self, migration: &Migration) -> Api<PodTemplate> {
        Api::namespaced(self.client.clone(), &migration.namespace().unwrap_or_default())
    }

    pub(super) async fn read_template(&self, migration: &Migration) -> PortResult<Option<Pod>> {
        let kept = found(self.templates(migration).get(&migration.name_any()).await, "read the kept template")?;
        Ok(kept.filter(|kept| is_of(kept, migration)).map(to_pod))
    }

    pub(super) async fn keep_template(&self, migration: &Migration, effect: &Effect, pod: &Pod) -> PortResult<()> {
        let api = self.templates(migration);
        let params = PostParams { field_manager: Some(keys::MANAGER.into()), ..PostParams::default() };
        let kept = self.whole(migration, effect, &from_pod(pod, migration), "/template/spec").await?;
        let whole: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &migration.namespace().unwrap_or_default(), &ApiResource::erase::<PodTemplate>(&()));
        match whole.create(&params, &kept).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                let existing = api.get(&migration.name_any()).await.map_err(|e| port_error("read the kept template", &e))?;
                if is_of(&existing, migration) {
                    return Ok(());
                }
                if !existing.labels().contains_key(keys::MIGRATION_UID) {
                    let name = migration.name_any();
                    return Err(PortError::permanent(format!("a PodTemplate {name} exists that is not Drover's: give the Migration another name")));
                }
                // One of an earlier Migration of the same name, which garbage collection has not reached yet.
                delete(&api, &migration.name_any(), existing.uid().as_deref(), false, "remove an old template").await?;
                Err(PortError::new(Failure::Conflict, "a template of an earlier Migration of this name is being removed"))
            }
            Err(error) => Err(port_error("keep the source's template", &error)),
        }
    }

    pub(super) async fn remove_template(&self, migration: &Migration) -> PortResult<()> {
        let api = self.templates(migration);
        let Some(kept) = found(api.get(&migration.name_any()).await, "read the kept template")?.filter(|kept| is_of(kept, migration)) else {
            return Ok(());
        };
        delete(&api, &migration.name_any(), kept.uid().as_deref(), false, "remove the kept template").await
    }
}

fn is_of(kept: &PodTemplate, migration: &Migration) -> bool {
    kept.labels().get(keys::MIGRATION_UID).is_some_and(|uid| Some(uid) == migration.metadata.uid.as_ref())
}

fn from_pod(pod: &Pod, migration: &Migration) -> PodTemplate {
    PodTemplate {
        metadata: ObjectMeta {
            name: migration.metadata.name.clone(),
            namespace: migration.metadata.namespace.clone(),
            labels: Some([(keys::MIGRATION_UID.to_owned(), migration.uid().unwrap_or_default())].into()),
            annotations: Some([(NAME.to_owned(), pod.name_any())].into()),
            owner_references: migration.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        template: Some(PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: pod.metadata.labels.clone(),
                annotations: pod.metadata.annotations.clone(),
                ..ObjectMeta::default()
            }),
            spec: pod.spec.clone(),
        }),
    }
}

fn to_pod(kept: PodTemplate) -> Pod {
    let (name, namespace) = (kept.annotations().get(NAME).cloned(), kept.metadata.namespace);
    let template = kept.template.unwrap_or_default();
    let metadata = template.metadata.unwrap_or_default();
    Pod { metadata: ObjectMeta { name, namespace, ..metadata }, spec: template.spec, status: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_comes_back_as_it_was_kept() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "d", "labels": {"app": "p"}, "annotations": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}], "terminationGracePeriodSeconds": 1}
        }))
        .unwrap();
        let mut migration = Migration::new("m", crate::api::MigrationSpec::default());
        (migration.metadata.uid, migration.metadata.namespace) = (Some("uid".into()), Some("d".into()));
        let kept = from_pod(&pod, &migration);
        assert!(is_of(&kept, &migration));
        assert_eq!(kept.owner_references()[0].uid, "uid");
        assert_eq!(to_pod(kept), pod);
    }
}
