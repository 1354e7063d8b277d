//! One look at one migration: observe, decide, and either write or act. No protocol detail, no decision of its own.

mod fan_out;

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use fan_out::Looked;

use crate::{
    api::{Migration, NodeProfileStatus, Phase, Role, attestation::attestation_name},
    domain::{
        self,
        disruption::{self, Disruption},
        keys,
        migration::{self, Effect, Observed},
        owner,
        preflight::{self, Facts, NodeView},
        replacement,
        room::Room,
        services,
    },
    ports::{Clock, Cluster, Failure, PortError, PortResult},
};

/// Looks at a migration until nothing is left to write or do; returns when it wants to be looked at again though nothing changes.
///
/// `fresh_repository` draws a repository name that nobody can guess; `written` hears of each status written, before and after.
///
/// # Errors
/// What a port said; a conflict means that the next look decides anew. A permanent failure of an effect before the release has
/// become a rollback and is no error.
pub async fn reconcile(
    migration: Migration,
    cluster: &dyn Cluster,
    clock: &dyn Clock,
    fresh_repository: &(dyn Fn() -> String + Send + Sync),
    written: &(dyn Fn(&Migration, &Migration) + Send + Sync),
) -> PortResult<Option<Duration>> {
    let mut migration = migration;
    if domain::fan_out::is_parent(&migration) && !migration.is_done() {
        migration = match fan_out::reconcile(migration, cluster, clock, written).await? {
            Looked::Unfinished(after) => return Ok(Some(after)),
            Looked::Ended(migration) => *migration,
        };
    }
    loop {
        let observed = Box::pin(observe(&migration, cluster, clock.now(), fresh_repository)).await?;
        keep_disruption(&migration, &observed, cluster, clock.now()).await;
        let mut step = migration::advance(&migration, &observed, clock.now());
        if step.status.is_none()
            && let Err(error) = perform(&migration, &observed, &step.effects, cluster, clock.now()).await
        {
            if error.kind != Failure::Permanent {
                return Err(error);
            }
            step = migration::effect_failed(&migration, &observed, &error.message, clock.now());
        }
        let Some(status) = step.status else {
            // Nobody waits for it here: what the frozen pod waits for was done before.
            keep_out_of_services(&migration, &observed, cluster, clock.now()).await;
            return Ok(step.after);
        };
        let after = cluster.write_status(&migration, &status).await?;
        written(&migration, &after);
        tell(&migration, &after, cluster).await;
        if after.is_done() {
            give_back_disruption(&migration, &observed, cluster, clock.now()).await;
            tried("give the place at the destination back", cluster.give_back_permit(&after).await);
        }
        migration = after;
    }
}

async fn observe(
    migration: &Migration,
    cluster: &dyn Cluster,
    now: Timestamp,
    fresh_repository: &(dyn Fn() -> String + Send + Sync),
) -> PortResult<Observed> {
    let namespace = migration.metadata.namespace.as_deref().unwrap_or_default();
    let name = migration.metadata.name.as_deref().unwrap_or_default();
    let uid = migration.metadata.uid.as_deref().unwrap_or_default();
    let status = migration.status.clone().unwrap_or_default();
    let source_name = status.source.as_ref().map(|s| s.name.clone()).or_else(|| migration.spec.pod_name.clone()).unwrap_or_default();
    // Side by side, here and below: a frozen pod waits for each of these on its way to the API server and back.
    let (source, source_attestation, destination_attestation) = futures::try_join!(
        async { if source_name.is_empty() { Ok(None) } else { cluster.pod(namespace, &source_name).await } },
        async { if status.phase >= Phase::Preflight { attestation(cluster, migration, namespace, name, Role::Source).await } else { Ok(None) } },
        async { if status.phase >= Phase::Preparing { attestation(cluster, migration, namespace, name, Role::Destination).await } else { Ok(None) } },
    )?;
    let placeholder = status.placeholder.as_ref().map(|p| p.name.clone());
    let replacement_name = match &status.replacement {
        Some(replacement) => replacement.name.clone(),
        None => source.as_ref().map(|pod| keys::replacement_name(&keys::base_name(pod), uid)).unwrap_or_default(),
    };
    let mut observed = Observed { source, source_attestation, destination_attestation, replacement_name, ..Observed::default() };
    if status.phase == Phase::Pending
        && let Some(set) = observed.source.as_ref().and_then(|pod| owner::controller(&pod.metadata))
        && let Some(kind) = owner::kind(set).filter(|kind| kind.ties_by_label())
    {
        observed.owner_selector = cluster.owner_selector(namespace, kind, &set.name, &set.uid).await?;
    }
    let budgets = async {
        match observed.source.as_ref().filter(|_| (Phase::Preflight..Phase::Done).contains(&status.phase)) {
            Some(source) => cluster.budgets(source).await,
            None => Ok(vec![]),
        }
    };
    let replacement = async {
        match observed.replacement_name.as_str() {
            _ if status.phase < Phase::Preparing => Ok(None),
            // One that was refused has none, and its pod may be gone.
            "" => Ok(None),
            // One read where both have one name, so that they never contradict each other.
            name if name == source_name && migration.elsewhere().is_none() => Ok(observed.source.clone()),
            name => cluster.pod(migration.replacement_namespace().unwrap_or_default(), name).await,
        }
    };
    (observed.budgets, observed.replacement) = futures::try_join!(budgets, replacement)?;
    if status.phase >= Phase::Preparing {
        if let Some(placeholder) = &placeholder {
            observed.placeholder = cluster.pod(namespace, placeholder).await?;
        }
        if status.fallback.is_some() {
            observed.fallback_attestation = attestation(cluster, migration, namespace, name, Role::Fallback).await?;
        }
        if status.is_source_first() {
            observed.template = cluster.template(migration).await?;
        }
        let destination = status.destination.as_ref().map(|d| d.node_name.as_str()).filter(|node| !node.is_empty());
        if let Some(node) = destination {
            let source = status.source.as_ref().map(|s| s.node_name.as_str()).unwrap_or_default();
            // Whether the source may stay frozen beside a released copy hangs on their gates (R8), once.
            let fixes_order = status.phase == Phase::Preparing && status.source_first.is_none();
            let nodes = if fixes_order { cluster.nodes_now(&[source, node]).await? } else { cluster.nodes_named(&[source, node]).await? };
            observed.destination_ready = Some(nodes.iter().any(|n| n.name == node && n.ready));
            if status.phase == Phase::Preparing {
                observed.rooms = rooms(&nodes);
                observed.permit = cluster.permit(migration, node).await?;
            }
            let gated = |name: &str| nodes.iter().any(|n| n.name == name && n.is_gated());
            (observed.source_gated, observed.destination_gated) = (gated(source), gated(node));
        }
    }
    if status.phase == Phase::Preflight {
        observed.fresh_repository = fresh_repository();
        if let Some(pod) = &observed.source {
            let facts = facts(migration, pod, cluster, now).await?;
            let wanted = preflight::lane::wanted(migration, cluster.default_lane(), pod, &facts.nodes);
            observed.lane = preflight::lane::chosen(wanted, pod, &migration.spec.destination, &facts);
            observed.rooms = rooms(&facts.nodes);
            observed.blockers = preflight::examine(migration, pod, &facts);
            observed.blockers.extend(disruption::blocker(pod, &observed.budgets));
            if let Some(owner) = status.source.as_ref().and_then(|source| source.owner.as_ref()) {
                observed.blockers.extend(owner::rivals(pod, &owner.tied_by, &cluster.adopters(namespace).await?));
            }
        }
    }
    observed.told = cluster.told(uid);
    if status.phase == Phase::Finishing {
        observed.pull_credentials_left = cluster.has_pull_credentials(uid).await?;
    }
    Ok(observed)
}

/// The attestation of one side, if it is this migration's: one of an earlier Migration of the same name says nothing about this one.
async fn attestation(
    cluster: &dyn Cluster,
    migration: &Migration,
    namespace: &str,
    name: &str,
    role: Role,
) -> PortResult<Option<crate::api::Attestation>> {
    let found = cluster.attestation(namespace, &attestation_name(name, role)).await?;
    Ok(found.filter(|a| Some(&a.spec.migration_uid) == migration.metadata.uid.as_ref()))
}

fn rooms(nodes: &[NodeView]) -> BTreeMap<String, Room> {
    let room = |profile: &NodeProfileStatus| Room {
        free: profile.free_bytes,
        memory: profile.free_memory_bytes.unwrap_or_default(),
        most: profile.max_bytes_per_migration,
    };
    nodes.iter().filter_map(|node| Some((node.name.clone(), room(node.profile.as_ref()?)))).collect()
}

async fn facts(migration: &Migration, pod: &Pod, cluster: &dyn Cluster, now: Timestamp) -> PortResult<Facts> {
    let claims = cluster.claims(pod).await?;
    let grants = match migration.elsewhere() {
        Some(namespace) => cluster.grants(namespace).await?,
        None => vec![],
    };
    // Whoever is named on the pod may be another migration that has not ended. Nobody is on most pods, and then a list of all would tell nothing.
    let active_migrations = if preflight::names_another(pod, migration) { cluster.active_migrations().await? } else { vec![] };
    let nodes = cluster.nodes().await?;
    let lane = preflight::lane::wanted(migration, cluster.default_lane(), pod, &nodes).lane;
    Ok(Facts { nodes, active_migrations, grants, claims: Some(claims), lane, post_copy: migration.spec.post_copy, now })
}

async fn perform(migration: &Migration, observed: &Observed, effects: &[Effect], cluster: &dyn Cluster, now: Timestamp) -> PortResult<()> {
    for effect in effects {
        let pod = pod_for(effect, migration, observed, cluster, now).await?;
        tracing::info!(migration = migration.metadata.name, namespace = migration.metadata.namespace, ?effect, "perform");
        cluster.perform(migration, effect, pod.as_ref()).await?;
    }
    Ok(())
}

/// The pod that an effect is about, where it makes one.
async fn pod_for(effect: &Effect, migration: &Migration, observed: &Observed, cluster: &dyn Cluster, now: Timestamp) -> PortResult<Option<Pod>> {
    let status = migration.status.clone().unwrap_or_default();
    let source = || observed.source.as_ref().ok_or_else(|| PortError::permanent("the source pod is gone"));
    let kept = || {
        let gone = "what was kept of the source pod (a PodTemplate with the Migration's name) is gone, so that no pod can be made in its place";
        observed.template.as_ref().ok_or_else(|| PortError::permanent(gone))
    };
    let destination = || status.destination.clone().unwrap_or_default().node_name;
    Ok(match effect {
        Effect::CreateReplacement => Some(waiting_replacement(migration, observed, cluster, now).await?),
        Effect::RehearseReplacement => {
            // With `auto` the node is not known yet; which one it is does not matter to those who judge the pod.
            let source = source()?;
            let node = migration.spec.destination.node_name.clone().or_else(|| source.spec.as_ref()?.node_name.clone()).unwrap_or_default();
            Some(replacement::same_name(&replacement::template(source), migration, &node))
        }
        Effect::KeepTemplate => Some(replacement::template(source()?)),
        Effect::CreateSameName => Some(replacement::same_name(kept()?, migration, &destination())),
        Effect::CreateFallback => Some(replacement::fallback(kept()?, migration, &status.source.clone().unwrap_or_default().node_name)),
        _ => None,
    })
}

async fn waiting_replacement(migration: &Migration, observed: &Observed, cluster: &dyn Cluster, now: Timestamp) -> PortResult<Pod> {
    let source = observed.source.as_ref().ok_or_else(|| PortError::permanent("the source pod is gone"))?;
    let node = source.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
    let nodes = preflight::capable_nodes(&node, &migration.spec.destination, &facts(migration, source, cluster, now).await?);
    if nodes.is_empty() {
        return Err(PortError::permanent("no node can take the pod any more"));
    }
    Ok(replacement::build(source, migration, &nodes))
}

/// Renews the disruption that was taken, before it lapses. What cannot be renewed is no reason to leave a frozen pod alone.
async fn keep_disruption(migration: &Migration, observed: &Observed, cluster: &dyn Cluster, now: Timestamp) {
    if let Some((budget, true)) = taken(migration, observed, now) {
        tried("renew the disruption", cluster.perform(migration, &Effect::TakeDisruption { budget }, None).await);
    }
}

/// A frozen pod is not Ready, and one that was thawed is again.
async fn keep_out_of_services(migration: &Migration, observed: &Observed, cluster: &dyn Cluster, now: Timestamp) {
    let (Some(status), Some(source)) = (&migration.status, &observed.source) else { return };
    let said = observed.source_attestation.as_ref().and_then(|attestation| attestation.status.as_ref());
    if let Some(condition) = said.and_then(|said| services::readiness(status, said, source, now)) {
        tried("say whether the source is Ready", cluster.write_condition(source, &condition).await);
    }
}

/// At the end. An entry that stays lapses by itself.
async fn give_back_disruption(migration: &Migration, observed: &Observed, cluster: &dyn Cluster, now: Timestamp) {
    if let Some((budget, _)) = taken(migration, observed, now) {
        tried("give the disruption back", cluster.perform(migration, &Effect::GiveBackDisruption { budget }, None).await);
    }
}

/// The budget that a disruption was taken from, and whether it would lapse soon.
fn taken(migration: &Migration, observed: &Observed, now: Timestamp) -> Option<(String, bool)> {
    let source = observed.source.as_ref().filter(|_| migration.phase() > Phase::Preparing)?;
    match disruption::disruption(source, &observed.budgets, now) {
        Disruption::Taken { budget, stale } => Some((budget, stale)),
        Disruption::Free | Disruption::Allowed { .. } | Disruption::Refused(_) => None,
    }
}

/// A failure of what is done beside a migration is none of the migration.
fn tried(what: &str, result: PortResult<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "failed to {what}");
    }
}

/// An Event for each phase and each warning.
async fn tell(before: &Migration, after: &Migration, cluster: &dyn Cluster) {
    let (Some(now), then) = (&after.status, before.status.clone().unwrap_or_default()) else { return };
    if !now.warnings.is_empty() && then.warnings.is_empty() {
        for warning in &now.warnings {
            tried("write an event", cluster.tell(after, true, "PreflightWarning", warning).await);
        }
    }
    let told = if now.held().is_some() && then.held().is_none() {
        cluster.tell(after, true, "Held", &now.message).await
    } else if now.phase != then.phase {
        let reason = now.outcome.map_or(now.phase.as_str(), crate::api::Outcome::as_str);
        let warning = now.outcome.is_some_and(|outcome| outcome != crate::api::Outcome::Migrated);
        let message = if now.message.is_empty() { format!("phase {}", now.phase) } else { now.message.clone() };
        cluster.tell(after, warning, reason, &message).await
    } else {
        Ok(())
    };
    tried("write an event", told);
}

#[cfg(test)]
mod tests;
