//! The Migration controller: whatever changes around a migration leads to one look at it.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
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

use crate::{
    api::{Attestation, Migration},
    engine,
    metrics::Metrics,
    ports::{Clock, Cluster, Failure, PortError},
};

/// What every look needs.
pub struct Context {
    /// The API server.
    pub cluster: Arc<dyn Cluster>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Where outcomes and phases are counted.
    pub metrics: Metrics,
}

/// Runs until cancelled: as long as this process is the leader.
pub async fn run(client: Client, context: Context, stop: CancellationToken) {
    let controller = Controller::new(Api::<Migration>::all(client.clone()), watcher::Config::default());
    let migrations = controller.store();
    controller
        .owns(Api::<Attestation>::all(client.clone()), watcher::Config::default())
        .watches(Api::<Pod>::all(client), watcher::Config::default(), move |pod| concerned(&migrations, &pod))
        .graceful_shutdown_on(async move { stop.cancelled().await })
        .run(look, on_error, Arc::new(context))
        .for_each(|result| async move {
            if let Err(error) = result {
                tracing::debug!(%error, "a look at a migration failed");
            }
        })
        .await;
}

async fn look(migration: Arc<Migration>, context: Arc<Context>) -> Result<Action, PortError> {
    let count = |before: &Migration, after: &Migration| count(&context.metrics, before, after);
    let after = Box::pin(engine::reconcile((*migration).clone(), &*context.cluster, &*context.clock, &fresh_repository, &count)).await?;
    Ok(after.map_or_else(Action::await_change, Action::requeue))
}

/// Counts the phase that has ended, and the migration where it has.
fn count(metrics: &Metrics, before: &Migration, after: &Migration) {
    let Some(status) = &after.status else { return };
    if before.phase() == after.phase() {
        return;
    }
    if let Some(ended) = status.phases.iter().rev().find(|timing| timing.phase == before.phase()) {
        metrics.phase(ended.phase, ended.millis.unwrap_or_default());
    }
    if let Some(outcome) = status.outcome {
        metrics.migration_ended(outcome, status.frozen_millis);
    }
}

// The signature is kube's.
#[allow(clippy::needless_pass_by_value)]
fn on_error(migration: Arc<Migration>, error: &PortError, _context: Arc<Context>) -> Action {
    // A conflict is the ordinary course: somebody wrote first, and their write is on its way to our watch.
    if error.kind == Failure::Conflict {
        return Action::requeue(Duration::from_millis(50));
    }
    tracing::warn!(migration = migration.name_any(), namespace = migration.namespace(), %error, "will look again");
    Action::requeue(Duration::from_secs(1))
}

/// The active migrations whose source or replacement has this name.
fn concerned(migrations: &Store<Migration>, pod: &Pod) -> Vec<ObjectRef<Migration>> {
    let (name, namespace) = (pod.name_any(), pod.namespace());
    let all = migrations.state();
    let of_pod = all.iter().filter(|m| !m.is_done() && m.namespace() == namespace).filter(|m| {
        let status = m.status.as_ref();
        let source = status.and_then(|s| s.source.as_ref()).is_some_and(|s| s.name == name);
        source || status.and_then(|s| s.replacement.as_ref()).is_some_and(|r| r.name == name)
    });
    of_pod.map(|m| ObjectRef::from_obj(&**m)).collect()
}

/// A repository that nobody can guess: `drover/` and 128 random bits (DESIGN.md 7).
fn fresh_repository() -> String {
    use std::fmt::Write as _;
    let bits: [u8; 16] = rand::random();
    bits.iter().fold(crate::domain::keys::REPOSITORY_PREFIX.to_owned(), |mut name, byte| {
        let _ = write!(name, "{byte:02x}");
        name
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn repositories_are_drovers_and_differ() {
        let (one, other) = (super::fresh_repository(), super::fresh_repository());
        assert!(crate::domain::ids::is_repository(&one), "{one}");
        assert_ne!(one, other);
    }
}
