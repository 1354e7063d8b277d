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
    api::{Attestation, Migration, Role, attestation::attestation_name},
    ports::{Failure, PortError},
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
        .watches(attestations, watcher::Config::default(), |changed| [peer(&changed)])
        .watches(Api::<Migration>::all(client), watcher::Config::default(), |migration| both(&migration))
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(look, on_error, sides)
        .for_each(|result| async move {
            if let Err(error) = result {
                tracing::debug!(%error, "a look at a migration failed");
            }
        })
        .await;
}

/// Gives up overdue freezes, each second, whether the API server answers or not; and sweeps up, each half minute.
pub async fn watch_over(sides: Arc<Sides>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(WATCHDOG);
    let mut since_sweep = SWEEP;
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        if let Err(error) = sides.source.watch_budgets().await {
            tracing::error!(%error, "failed to watch the freeze budgets");
        }
        since_sweep += WATCHDOG;
        if since_sweep >= SWEEP {
            since_sweep = Duration::ZERO;
            for (side, swept) in [("source", sides.source.sweep().await), ("destination", sides.destination.sweep().await)] {
                if let Err(error) = swept {
                    tracing::warn!(side, %error, "failed to sweep up; will try again");
                }
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
    };
    Ok(after.map_or_else(Action::await_change, Action::requeue))
}

// The signature is kube's.
#[allow(clippy::needless_pass_by_value)]
fn on_error(attestation: Arc<Attestation>, error: &PortError, _sides: Arc<Sides>) -> Action {
    if error.kind == Failure::Conflict {
        return Action::requeue(Duration::from_millis(100));
    }
    tracing::warn!(attestation = attestation.name_any(), namespace = attestation.namespace(), %error, "will look again");
    Action::requeue(Duration::from_millis(500))
}

/// The other side's attestation.
fn peer(attestation: &Attestation) -> ObjectRef<Attestation> {
    let other = match attestation.spec.role {
        Role::Source => Role::Destination,
        Role::Destination => Role::Source,
    };
    reference(&attestation.spec.migration, other, attestation.namespace())
}

/// The attestations of a migration.
fn both(migration: &Migration) -> Vec<ObjectRef<Attestation>> {
    [Role::Source, Role::Destination].map(|role| reference(&migration.name_any(), role, migration.namespace())).into()
}

fn reference(migration: &str, role: Role, namespace: Option<String>) -> ObjectRef<Attestation> {
    ObjectRef::new(&attestation_name(migration, role)).within(&namespace.unwrap_or_default())
}

/// Whether the agent of `peer` may push to `repository` now: it is the source of an active migration to this node whose repository that is.
#[must_use]
pub fn may_push(migrations: &Store<Migration>, node: &str, repository: &str, peer: &str) -> bool {
    migrations.state().iter().filter(|m| !m.is_done() && m.verdict().is_none()).filter_map(|m| m.status.as_ref()).any(|status| {
        let here = status.destination.as_ref().is_some_and(|d| d.node_name == node && d.repository == repository);
        here && status.source.as_ref().is_some_and(|s| s.node_name == peer)
    })
}
