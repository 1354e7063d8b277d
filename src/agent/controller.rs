//! Runs both sides of a node's agent: every change of a migration, or of either attestation, leads to one look.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{
        Controller,
        controller::Action,
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use tokio_util::sync::CancellationToken;

use super::{destination::DestinationAgent, source::SourceAgent};
use crate::{
    api::{Attestation, Migration, MigrationStatus, Role, Verdict, attestation::attestation_name},
    ports::{Failure, PortError},
    watching,
};

/// How often budgets are looked at; they are whole seconds.
const WATCHDOG: Duration = Duration::from_secs(1);
/// How often leftovers of migrations that are gone are looked for.
const SWEEP: Duration = Duration::from_secs(30);

/// Both sides of a node's agent.
pub struct Sides {
    /// Name of this node.
    pub node: String,
    /// The side that pods leave.
    pub source: SourceAgent,
    /// The side that pods come to.
    pub destination: DestinationAgent,
}

/// Looks at this node's migrations until cancelled.
pub async fn run(client: Client, sides: Arc<Sides>, stop: CancellationToken) {
    let attestations = Api::<Attestation>::all(client.clone());
    Controller::new(attestations.clone(), watcher::Config::default())
        .watches(attestations, watcher::Config::default(), |changed| peers(&changed))
        .watches(Api::<Migration>::all(client), watcher::Config::default(), |migration| all(&migration))
        .trigger_backoff(watching::backoff())
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(look, on_error, sides)
        .for_each(|result| async move {
            if let Err(error) = result {
                tracing::debug!(%error, "a look at a migration failed");
            }
        })
        .await;
}

/// Gives up overdue freezes, each second, and sweeps up, each half minute. Side by side: a sweep asks the API server, and while that is out of reach each
/// call may take as long as a freeze may last.
pub async fn watch_over(sides: Arc<Sides>, stop: CancellationToken) {
    tokio::join!(watch_budgets(&sides, &stop), sweep(&sides, &stop));
}

async fn watch_budgets(sides: &Sides, stop: &CancellationToken) {
    let mut tick = tokio::time::interval(WATCHDOG);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        if let Err(error) = sides.source.watch_budgets().await {
            tracing::error!(%error, "failed to watch the freeze budgets");
        }
    }
}

async fn sweep(sides: &Sides, stop: &CancellationToken) {
    let mut tick = tokio::time::interval(SWEEP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        for (side, swept) in [("source", sides.source.sweep().await), ("destination", sides.destination.sweep().await)] {
            if let Err(error) = swept {
                tracing::warn!(side, %error, "failed to sweep up; will try again");
            }
        }
    }
}

async fn look(attestation: Arc<Attestation>, sides: Arc<Sides>) -> Result<Action, PortError> {
    if attestation.spec.node_name != sides.node {
        return Ok(Action::await_change());
    }
    let namespace = attestation.namespace().unwrap_or_default();
    let migration = &attestation.spec.migration;
    let after = match attestation.spec.role {
        Role::Source => sides.source.reconcile(&namespace, migration).await?,
        Role::Destination => sides.destination.reconcile(&namespace, migration).await?,
        Role::Fallback => sides.destination.reconcile_fallback(&namespace, migration).await?,
    };
    Ok(after.map_or_else(Action::await_change, Action::requeue))
}

// The signature is kube's.
#[allow(clippy::needless_pass_by_value)]
fn on_error(attestation: Arc<Attestation>, error: &PortError, _sides: Arc<Sides>) -> Action {
    if error.kind != Failure::Conflict {
        tracing::warn!(attestation = attestation.name_any(), namespace = attestation.namespace(), %error, "will look again");
    }
    Action::requeue(look_again_after(error))
}

/// When a migration is looked at again after a look that failed.
#[must_use]
pub fn look_again_after(error: &PortError) -> Duration {
    Duration::from_millis(if error.kind == Failure::Conflict { 100 } else { 500 })
}

const ROLES: [Role; 3] = [Role::Source, Role::Destination, Role::Fallback];

/// The other sides' attestations.
fn peers(attestation: &Attestation) -> Vec<ObjectRef<Attestation>> {
    let others = ROLES.into_iter().filter(|role| *role != attestation.spec.role);
    others.map(|role| reference(&attestation.spec.migration, role, attestation.namespace())).collect()
}

/// The attestations of a migration.
fn all(migration: &Migration) -> Vec<ObjectRef<Attestation>> {
    ROLES.map(|role| reference(&migration.name_any(), role, migration.namespace())).into()
}

fn reference(migration: &str, role: Role, namespace: Option<String>) -> ObjectRef<Attestation> {
    ObjectRef::new(&attestation_name(migration, role)).within(&namespace.unwrap_or_default())
}

/// Whether the agent of `peer` may push to `repository` now: it is the source of an active migration to this node whose repository that is, or this
/// node's own agent, for a pod that falls back here.
#[must_use]
pub fn may_push(migrations: &Store<Migration>, node: &str, repository: &str, peer: &str) -> bool {
    migrations.state().iter().filter(|m| !m.is_done()).filter_map(|m| m.status.as_ref()).any(|status| expects(status, node, repository, peer))
}

fn expects(status: &MigrationStatus, node: &str, repository: &str, peer: &str) -> bool {
    let Some(destination) = status.destination.as_ref().filter(|d| d.repository == repository) else { return false };
    let from_source = status.source.as_ref().is_some_and(|s| s.node_name == peer);
    match (status.verdict, &status.fallback) {
        (None, _) => from_source && destination.node_name == node,
        (Some(Verdict::Rollback), Some(_)) => from_source && peer == node,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_source_pushes_and_after_a_fallback_only_to_itself() {
        let mut status: MigrationStatus = serde_json::from_value(serde_json::json!({
            "source": {"name": "p", "uid": "old", "nodeName": "n1"}, "destination": {"nodeName": "n2", "repository": "drover/0"}
        }))
        .unwrap();
        assert!(expects(&status, "n2", "drover/0", "n1"));
        assert!(!expects(&status, "n2", "drover/1", "n1") && !expects(&status, "n2", "drover/0", "n3") && !expects(&status, "n1", "drover/0", "n1"));
        status.verdict = Some(Verdict::Rollback);
        assert!(!expects(&status, "n2", "drover/0", "n1") && !expects(&status, "n1", "drover/0", "n1"));
        status.fallback = Some(crate::api::migration::ReplacementStatus::default());
        assert!(expects(&status, "n1", "drover/0", "n1") && !expects(&status, "n2", "drover/0", "n1"));
    }
}
