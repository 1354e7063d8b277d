//! The manager's port to the API server: `adapters::cluster` call by call, each with its own trip.

use async_trait::async_trait;
use drover::{
    api::{Attestation, AttestationSpec, Migration, MigrationStatus, Outcome, Role, Verdict, attestation::attestation_name},
    domain::{
        keys,
        migration::Effect,
        owner,
        preflight::{ClaimView, NodeView},
    },
    ports::{Clock, Cluster, Failure, PortError, PortResult},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    core::v1::{Pod, PodCondition},
    policy::v1::PodDisruptionBudget,
};

use crate::{
    api::{conflict, name_of},
    world::{Door, Handle},
};

impl Clock for Handle {
    fn now(&self) -> Timestamp {
        let mut world = self.sim.lock();
        let skew = world.life(self.process).skew;
        world.now() + SignedDuration::from_millis(skew)
    }
}

fn uid_of(migration: &Migration) -> String {
    migration.metadata.uid.clone().unwrap_or_default()
}

fn source_name(migration: &Migration) -> PortResult<String> {
    let source = migration.status.as_ref().and_then(|s| s.source.as_ref());
    source.map(|s| s.name.clone()).ok_or_else(|| PortError::permanent("the Migration's status names no source"))
}

/// Name of the pod of the migration that is to be restored: the replacement, or the fallback.
fn claimed_name(migration: &Migration, uid: &str) -> PortResult<String> {
    let fallback = migration.status.as_ref().and_then(|s| s.fallback.as_ref()).filter(|f| f.uid == uid);
    fallback.map_or_else(|| replacement_name(migration), |fallback| Ok(fallback.name.clone()))
}

fn replacement_name(migration: &Migration) -> PortResult<String> {
    let replacement = migration.status.as_ref().and_then(|s| s.replacement.as_ref());
    replacement.map(|r| r.name.clone()).ok_or_else(|| PortError::permanent("the Migration's status names no replacement"))
}

impl Handle {
    async fn read_pod(&self, name: &str) -> PortResult<Option<Pod>> {
        self.call(Door::Api, |world| Ok(world.api.pods.get(name).cloned())).await
    }

    async fn annotate(&self, name: &str, uid: &str, version: Option<&str>, told: String, change: impl FnOnce(&mut Pod) + Send) -> PortResult<()> {
        self.call(Door::Api, |world| {
            let now = world.now();
            world.api.change_pod(name, uid, version, now, |pod| {
                change(pod);
                Ok(())
            })?;
            world.tell(format_args!("the {} {told}", self.process));
            Ok(())
        })
        .await
    }

    async fn lock(&self, migration: &Migration, uid: &str) -> PortResult<()> {
        let name = source_name(migration)?;
        let Some(pod) = self.read_pod(&name).await? else { return Err(PortError::permanent("the source pod is gone")) };
        let told = format!("locks pod {name} for Migration {}", name_of(&migration.metadata));
        self.annotate(&name, uid, pod.metadata.resource_version.as_deref(), told, |pod| {
            pod.metadata.annotations.get_or_insert_default().insert(keys::LOCK.into(), uid_of(migration));
        })
        .await
    }

    async fn unlock(&self, migration: &Migration, uid: &str) -> PortResult<()> {
        let name = source_name(migration)?;
        let Some(pod) = self.read_pod(&name).await? else { return Ok(()) };
        let lock = pod.metadata.annotations.as_ref().and_then(|a| a.get(keys::LOCK));
        if lock != migration.metadata.uid.as_ref() || pod.metadata.uid.as_deref() != Some(uid) {
            return Ok(());
        }
        self.annotate(&name, uid, pod.metadata.resource_version.as_deref(), format!("unlocks pod {name}"), |pod| {
            pod.metadata.annotations.get_or_insert_default().remove(keys::LOCK);
        })
        .await
    }

    async fn create_attestation(&self, migration: &Migration, role: Role, node: &str, pod_uid: &str) -> PortResult<()> {
        let name = attestation_name(&name_of(&migration.metadata), role);
        let spec = AttestationSpec {
            migration: name_of(&migration.metadata),
            migration_uid: uid_of(migration),
            node_name: node.to_owned(),
            pod_uid: pod_uid.to_owned(),
            role,
        };
        let made = self
            .call(Door::Api, |world| {
                let now = world.now();
                world.api.create_attestation(Attestation::new(&name, spec), now)?;
                world.tell(format_args!("the {} makes the attestation {name} for node {node}", self.process));
                Ok(())
            })
            .await;
        if made.as_ref().is_err_and(|error| error.kind == Failure::Conflict) {
            let existing = self.call(Door::Api, |world| Ok(world.api.attestations.get(&name).cloned())).await?;
            let existing = existing.ok_or_else(|| PortError::new(Failure::NotFound, "no such attestation"))?;
            if existing.spec.migration_uid == uid_of(migration) {
                return Ok(());
            }
            let uid = existing.metadata.uid.clone();
            self.call(Door::Api, |world| {
                if world.api.attestations.get(&name).is_some_and(|a| a.metadata.uid == uid) {
                    world.api.remove_attestation(&name);
                }
                Ok(())
            })
            .await?;
            return Err(conflict("an attestation of an earlier Migration of this name is being removed"));
        }
        made
    }

    async fn create_replacement(&self, pod: &Pod) -> PortResult<()> {
        let made = self
            .call(Door::Api, |world| {
                let now = world.now();
                world.api.create_pod(pod, now)?;
                world.tell(format_args!("the {} makes the waiting pod {}", self.process, name_of(&pod.metadata)));
                Ok(())
            })
            .await;
        if made.as_ref().is_err_and(|error| error.kind == Failure::Conflict) { Ok(()) } else { made }
    }

    async fn claim(&self, migration: &Migration, uid: &str) -> PortResult<()> {
        let name = claimed_name(migration, uid)?;
        let told = format!("claims {name}");
        self.annotate(&name, uid, None, told, |pod| {
            pod.metadata.annotations.get_or_insert_default().insert(keys::CLAIM.into(), uid_of(migration));
        })
        .await
    }

    async fn rewrite_images(&self, migration: &Migration, uid: &str) -> PortResult<()> {
        let name = claimed_name(migration, uid)?;
        if self.read_pod(&name).await?.is_none() {
            return Err(conflict("the replacement is gone"));
        }
        let checkpoints = migration.status.as_ref().map(|s| s.containers.clone()).unwrap_or_default();
        let told = format!("writes the checkpoint images into {name}");
        self.annotate(&name, uid, None, told, |pod| {
            for container in pod.spec.iter_mut().flat_map(|spec| &mut spec.containers) {
                if let Some(checkpoint) = checkpoints.iter().find(|c| c.name == container.name) {
                    container.image = Some(checkpoint.image.clone());
                }
            }
        })
        .await
    }

    async fn delete_pod(&self, name: String, uid: &str, force: bool) -> PortResult<()> {
        self.call(Door::Api, |world| {
            let now = world.now();
            if world.api.pods.get(&name).is_some_and(|pod| pod.metadata.uid.as_deref() == Some(uid)) {
                world.tell(format_args!("the {} deletes pod {name}{}", self.process, if force { " by force" } else { "" }));
                crate::truth::drover_deletes(world, uid);
            }
            world.api.delete_pod(&name, uid, force, now);
            Ok(())
        })
        .await
    }

    async fn finalizers(&self, migration: &Migration, stays: bool) -> PortResult<()> {
        let mut finalizers = migration.metadata.finalizers.clone().unwrap_or_default();
        if stays {
            finalizers.push(keys::FINALIZER.into());
        } else {
            finalizers.retain(|finalizer| finalizer != keys::FINALIZER);
        }
        self.call(Door::Api, |world| world.api.write_finalizers(migration, finalizers)).await
    }

    async fn pull_credentials_are(&self, migration: &Migration, there: bool) -> PortResult<()> {
        self.call(Door::Api, |world| {
            let uid = uid_of(migration);
            world.api.pull_credentials.retain(|have| *have != uid);
            if there && world.plan.has_pull_credentials {
                world.api.pull_credentials.push(uid);
            }
            Ok(())
        })
        .await
    }
}

#[async_trait]
impl Cluster for Handle {
    async fn write_condition(&self, _pod: &Pod, condition: &PodCondition) -> PortResult<()> {
        unreachable!("no kubelet of the simulation says that a pod is {}", condition.type_)
    }
    async fn pod(&self, _namespace: &str, name: &str) -> PortResult<Option<Pod>> {
        self.read_pod(name).await
    }

    async fn attestation(&self, _namespace: &str, name: &str) -> PortResult<Option<Attestation>> {
        self.call(Door::Api, |world| Ok(world.api.attestations.get(name).cloned())).await
    }

    async fn owner_selector(
        &self,
        _namespace: &str,
        _kind: owner::Kind,
        _name: &str,
        _uid: &str,
    ) -> PortResult<std::collections::BTreeMap<String, String>> {
        unreachable!("the simulated pods belong to nobody")
    }

    async fn claims(&self, _pod: &Pod) -> PortResult<std::collections::BTreeMap<String, ClaimView>> {
        Ok(std::collections::BTreeMap::default())
    }

    async fn budgets(&self, _pod: &Pod) -> PortResult<Vec<PodDisruptionBudget>> {
        Ok(vec![])
    }

    async fn asked_for(&self, _parent: &Migration) -> PortResult<Option<Vec<Pod>>> {
        unreachable!("each simulated Migration is of one pod")
    }

    async fn children(&self, _parent: &Migration) -> PortResult<Vec<Migration>> {
        unreachable!("each simulated Migration is of one pod")
    }

    async fn make_child(&self, _parent: &Migration, _child: &Migration) -> PortResult<()> {
        unreachable!("each simulated Migration is of one pod")
    }

    async fn nodes(&self) -> PortResult<Vec<NodeView>> {
        self.call(Door::Api, |world| Ok(world.nodes.iter().map(|node| node.view.clone()).collect())).await
    }

    async fn active_migrations(&self) -> PortResult<Vec<String>> {
        self.call(Door::Api, |world| Ok(world.api.migrations.values().filter(|m| !m.is_done()).map(uid_of).collect())).await
    }

    async fn has_pull_credentials(&self, migration_uid: &str) -> PortResult<bool> {
        self.call(Door::Api, |world| Ok(world.api.pull_credentials.iter().any(|uid| uid == migration_uid))).await
    }

    async fn template(&self, migration: &Migration) -> PortResult<Option<Pod>> {
        self.call(Door::Api, |world| Ok(world.api.templates.get(&uid_of(migration)).cloned())).await
    }

    async fn write_status(&self, migration: &Migration, status: &MigrationStatus) -> PortResult<Migration> {
        let written = self
            .call(Door::Api, |world| {
                let before = world.api.migrations.get(&name_of(&migration.metadata)).and_then(|m| m.status.clone()).unwrap_or_default();
                let after = world.api.write_migration_status(migration, status)?;
                tell_status(world, self, &name_of(&migration.metadata), &before, status);
                crate::truth::status_written(world, &after, &before);
                Ok(after)
            })
            .await;
        written.map_err(|error| {
            if matches!(error.kind, Failure::Permanent | Failure::NotFound) { PortError { kind: Failure::Transient, ..error } } else { error }
        })
    }

    async fn perform(&self, migration: &Migration, effect: &Effect, pod: Option<&Pod>) -> PortResult<()> {
        let made = || pod.ok_or_else(|| PortError::permanent("no pod was given to create"));
        match effect {
            Effect::AddFinalizer => self.finalizers(migration, true).await,
            Effect::RemoveFinalizer => self.finalizers(migration, false).await,
            Effect::Lock { uid } => self.lock(migration, uid).await,
            Effect::Unlock { uid } => self.unlock(migration, uid).await,
            Effect::CreateAttestation { role, node, pod_uid } => self.create_attestation(migration, *role, node, pod_uid).await,
            Effect::LayOutPullCredentials => self.pull_credentials_are(migration, true).await,
            Effect::RemovePullCredentials => self.pull_credentials_are(migration, false).await,
            Effect::CreateReplacement | Effect::CreateSameName | Effect::CreateFallback => self.create_replacement(made()?).await,
            Effect::RehearseReplacement => self.call(Door::Api, |_| Ok(())).await,
            Effect::KeepTemplate => {
                let (uid, pod) = (uid_of(migration), made()?.clone());
                self.call(Door::Api, |world| {
                    world.api.templates.entry(uid).or_insert(pod);
                    Ok(())
                })
                .await
            }
            Effect::RemoveTemplate => {
                self.call(Door::Api, |world| {
                    world.api.templates.remove(&uid_of(migration));
                    Ok(())
                })
                .await
            }
            Effect::DeletePlaceholder { uid, force } => {
                let name = migration.status.as_ref().and_then(|s| s.placeholder.as_ref()).map(|p| p.name.clone()).unwrap_or_default();
                self.delete_pod(name, uid, *force).await
            }
            Effect::Claim { uid } => self.claim(migration, uid).await,
            Effect::WriteInitImages { .. } => unreachable!("no pod of the simulation has init containers"),
            Effect::RewriteImages { uid } => self.rewrite_images(migration, uid).await,
            Effect::DeleteReplacement { uid, force } => self.delete_pod(replacement_name(migration)?, uid, *force).await,
            Effect::DeleteSource { uid } | Effect::DeleteFallback { uid } => self.delete_pod(source_name(migration)?, uid, false).await,
            Effect::TakeDisruption { .. } | Effect::GiveBackDisruption { .. } | Effect::TakePermit { .. } => {
                unreachable!("nothing simulated has budgets and limits")
            }
            Effect::MarkSurplus { .. } | Effect::ReleaseSource { .. } | Effect::HandOver { .. } => {
                unreachable!("the simulated pods belong to nobody")
            }
            Effect::DeleteMigration => {
                self.call(Door::Api, |world| {
                    let now = world.now();
                    world.api.delete_migration(&name_of(&migration.metadata), now);
                    Ok(())
                })
                .await
            }
        }
    }

    async fn tell(&self, _migration: &Migration, _warning: bool, _reason: &str, _message: &str) -> PortResult<()> {
        self.call(Door::Api, |_| Ok(())).await
    }
}

/// What a reader of the story must know of a written status.
fn tell_status(world: &mut crate::world::World, by: &Handle, name: &str, before: &MigrationStatus, after: &MigrationStatus) {
    let verdict = match after.verdict {
        Some(Verdict::Commit) if before.verdict.is_none() => ", verdict Commit",
        Some(Verdict::Rollback) if before.verdict.is_none() => ", verdict Rollback",
        _ => "",
    };
    let outcome = after.outcome.map_or(String::new(), |outcome: Outcome| format!(", outcome {}", outcome.as_str()));
    let revocation = if after.revocation.is_some() && before.revocation.is_none() { ", asks for revocation" } else { "" };
    let message = if after.message == before.message { String::new() } else { format!(": {}", after.message) };
    world.tell(format_args!("the {} writes {} into {name}{verdict}{outcome}{revocation}{message}", by.process, after.phase));
}
