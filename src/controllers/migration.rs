//! The Migration controller: whatever changes around a migration leads to one look at it.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

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
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{Attestation, Migration, Verdict},
    domain::{
        ids::hex,
        keys,
        migration_event::{entered, may_be_untold},
        registry_event::Judgement,
    },
    engine,
    metrics::Metrics,
    ports::{
        Clock, Cluster, Failure, PortError,
        bus::{Audit, Inbox},
    },
    watching,
};

/// What every look needs.
pub struct Context {
    /// The API server.
    pub cluster: Arc<dyn Cluster>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Where outcomes and phases are counted.
    pub metrics: Metrics,
    /// What the readiness bus has told and no status notes yet.
    pub inbox: Arc<Inbox>,
    /// Where other systems are told of each phase; none where nobody listens.
    pub audit: Option<Arc<dyn Audit>>,
    /// UIDs of the migrations of which this leader has told: whoever led before may have died before its last message was delivered.
    pub told: Mutex<HashSet<String>>,
}

impl Context {
    /// Tells other systems of the phases that were entered.
    fn tell(&self, before: Option<&Migration>, after: &Migration) {
        let Some(audit) = &self.audit else { return };
        for event in entered(before, after) {
            audit.tell(&event);
        }
    }

    /// Tells them of every phase of a migration that this leader sees first.
    fn tell_once(&self, migration: &Migration) {
        let uid = migration.uid().unwrap_or_default();
        if self.audit.is_some() && may_be_untold(migration, self.clock.now()) && self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(uid)
        {
            self.tell(None, migration);
        }
    }
}

/// Runs until cancelled: as long as this process is the leader. `looks` asks for a look at one migration.
pub async fn run(client: Client, context: Context, looks: mpsc::Receiver<ObjectRef<Migration>>, stop: CancellationToken) {
    let controller = Controller::new(Api::<Migration>::all(client.clone()), watcher::Config::default());
    let migrations = controller.store();
    let looks = futures::stream::unfold(looks, |mut looks| async move { looks.recv().await.map(|of| (of, looks)) });
    controller
        .reconcile_on(looks)
        .owns(Api::<Attestation>::all(client.clone()), watcher::Config::default())
        // The children of a Migration of several pods
        .owns(Api::<Migration>::all(client.clone()), watcher::Config::default().labels(keys::PARENT_UID))
        .watches(Api::<Pod>::all(client), watcher::Config::default(), move |pod| concerned(&migrations, &pod))
        .trigger_backoff(watching::backoff())
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
    let written = |before: &Migration, after: &Migration| {
        count(&context.metrics, before, after);
        context.inbox.written(after);
        context.tell(Some(before), after);
    };
    context.tell_once(&migration);
    let after = Box::pin(engine::reconcile((*migration).clone(), &*context.cluster, &*context.clock, &fresh_repository, &written)).await?;
    Ok(after.map_or_else(Action::await_change, Action::requeue))
}

/// Counts the phase that has ended, and the migration where it has.
fn count(metrics: &Metrics, before: &Migration, after: &Migration) {
    let Some(status) = &after.status else { return };
    for forged in before.status.iter().flat_map(|before| &before.confirmations).filter(|known| !status.confirmations.contains(known)) {
        metrics.registry_event(Judgement::WrongDigest.label());
        let (container, digest) = (&forged.container, &forged.digest);
        tracing::warn!(migration = after.name_any(), container, digest, "word of an image is dropped: the source has voted for another");
    }
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
    if error.kind != Failure::Conflict {
        tracing::warn!(migration = migration.name_any(), namespace = migration.namespace(), %error, "will look again");
    }
    Action::requeue(look_again_after(error))
}

/// When a migration is looked at again after a look that failed.
#[must_use]
pub fn look_again_after(error: &PortError) -> Duration {
    // A conflict is the ordinary course: somebody wrote first, and their write is on its way to our watch.
    if error.kind == Failure::Conflict { Duration::from_millis(50) } else { Duration::from_secs(1) }
}

/// The migrations that must be looked at because a pod has changed.
fn concerned(migrations: &Store<Migration>, pod: &Pod) -> Vec<ObjectRef<Migration>> {
    migrations.state().iter().filter(|m| concerns(m, pod)).map(|m| ObjectRef::from_obj(&**m)).collect()
}

/// Whether a change of the pod is a reason to look at the migration: it is active, and its source, replacement or placeholder has this name; or it has
/// ended, and a pod was made all the same that is not the moved one.
#[must_use]
pub fn concerns(migration: &Migration, pod: &Pod) -> bool {
    if !migration.is_in(pod.metadata.namespace.as_deref()) {
        return false;
    }
    if migration.is_done() {
        let mark = pod.annotations().get(keys::REPLACES);
        let placeholder =
            migration.status.as_ref().and_then(|s| s.placeholder.as_ref()).is_some_and(|placeholder| placeholder.name == pod.name_any());
        let waits = migration.verdict() == Some(Verdict::Rollback) || placeholder;
        return waits && mark.is_some() && mark == migration.metadata.uid.as_ref();
    }
    let (name, status) = (pod.name_any(), migration.status.as_ref());
    let source = status.and_then(|s| s.source.as_ref()).is_some_and(|s| s.name == name);
    // A fallback has the source's name.
    source || status.into_iter().flat_map(|s| [&s.replacement, &s.placeholder]).flatten().any(|pod| pod.name == name)
}

/// A repository that nobody can guess: `drover/` and 128 random bits (DESIGN.md 7).
fn fresh_repository() -> String {
    let bits: [u8; 16] = rand::random();
    format!("{}{}", keys::REPOSITORY_PREFIX, hex(&bits))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use crate::api::Migration;

    #[test]
    fn an_ended_migration_is_looked_at_again_for_a_pod_that_was_made_for_it_too_late() {
        let migration = |verdict: &str| -> Migration {
            serde_json::from_value(json!({
                "apiVersion": "drover.dev/v1alpha1", "kind": "Migration", "metadata": {"name": "m", "namespace": "d", "uid": "one"}, "spec": {},
                "status": {"phase": "Done", "verdict": verdict, "source": {"name": "p", "uid": "source", "nodeName": "n1"}}
            }))
            .unwrap()
        };
        let pod = |name: &str, replaces: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d", "annotations": {"drover.dev/replaces": replaces}}})).unwrap()
        };
        assert!(super::concerns(&migration("Rollback"), &pod("p-5f1c22", "one")));
        assert!(!super::concerns(&migration("Rollback"), &pod("p-5f1c22", "other")));
        assert!(!super::concerns(&migration("Rollback"), &pod("p", "other")));
        assert!(!super::concerns(&migration("Commit"), &pod("p-5f1c22", "one")), "it is the workload by now");
        let mut same_name = migration("Commit");
        same_name.status.as_mut().unwrap().placeholder =
            Some(crate::api::migration::ReplacementStatus { name: "p-5f1c22".into(), ..Default::default() });
        assert!(super::concerns(&same_name, &pod("p-5f1c22", "one")), "a placeholder never is");
        assert!(!super::concerns(&same_name, &pod("p", "one")));
    }

    #[test]
    fn repositories_are_drovers_and_differ() {
        let (one, other) = (super::fresh_repository(), super::fresh_repository());
        assert!(crate::domain::ids::is_repository(&one), "{one}");
        assert_ne!(one, other);
    }
}
