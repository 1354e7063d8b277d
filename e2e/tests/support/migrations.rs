//! Asking for migrations, and waiting for what becomes of them: by watch, so that short phases are seen.

use std::time::Duration;

use futures::StreamExt as _;
use kube::{
    ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;

use drover::{
    api::{Migration, MigrationSpec, MigrationStatus, Outcome, Phase, migration::Destination},
    domain::keys,
};

use super::Namespace;

/// What the tests wait for at most: a migration that is rolled back against a dead node takes a minute.
const LIMIT: Duration = Duration::from_mins(3);

/// A migration with short limits.
pub fn to(pod: &str, node: &str) -> MigrationSpec {
    MigrationSpec {
        pod_name: Some(pod.to_owned()),
        destination: Destination { node_name: Some(node.to_owned()), ..Default::default() },
        deadline_seconds: 90,
        freeze_budget_seconds: 30,
        ..Default::default()
    }
}

/// When a phase was entered, in milliseconds since 1970.
pub fn entered(migration: &Migration, phase: Phase) -> Option<i64> {
    status(migration).phases.iter().find(|timing| timing.phase == phase).map(|timing| timing.started_at.0.as_millisecond())
}

/// The status, empty where there is none yet.
pub fn status(migration: &Migration) -> MigrationStatus {
    migration.status.clone().unwrap_or_default()
}

/// The outcome and, on failure, why.
#[track_caller]
pub fn assert_outcome(migration: &Migration, outcome: Outcome) {
    let status = status(migration);
    assert_eq!(status.outcome, Some(outcome), "{}: {}", migration.name_any(), status.message);
}

/// Name of the replacement.
pub fn replacement(migration: &Migration) -> String {
    status(migration).replacement.expect("the migration has a replacement").name
}

impl Namespace {
    /// Annotates a pod; what the API server said against it.
    pub async fn annotate(&self, pod: &str, key: &str, value: &str) -> Result<(), String> {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {key: value}}}));
        self.pods().patch(pod, &PatchParams::default(), &patch).await.map(drop).map_err(|e| e.to_string())
    }

    /// Asks by annotation, and waits for the Migration that is made for it.
    pub async fn ask(&self, pod: &str, key: &str, value: &str) -> Migration {
        let before: Vec<_> = self.migrations().list(&ListParams::default()).await.unwrap().items.iter().map(kube::ResourceExt::name_any).collect();
        self.annotate(pod, key, value).await.unwrap();
        self.first(&format!("a Migration of pod {pod}"), |m| m.spec.pod_name.as_deref() == Some(pod) && !before.contains(&m.name_any())).await
    }

    /// Moves a pod by annotation and waits for the end.
    pub async fn migrate(&self, pod: &str, node: &str) -> Migration {
        let migration = self.ask(pod, keys::MIGRATE_TO, node).await;
        self.until_done(&migration.name_any()).await
    }

    /// Makes a Migration.
    pub async fn make(&self, spec: MigrationSpec) -> Migration {
        let name = format!("move-{}", jiff::Timestamp::now().as_microsecond());
        self.migrations().create(&PostParams::default(), &Migration::new(&name, spec)).await.unwrap()
    }

    /// Waits until a migration is in this phase or a later one.
    pub async fn until_phase(&self, name: &str, phase: Phase) -> Migration {
        self.first(&format!("Migration {name} in phase {phase}"), |m| m.name_any() == name && m.phase() >= phase).await
    }

    /// Waits until a migration has ended and its finalizer is gone (R12).
    pub async fn until_done(&self, name: &str) -> Migration {
        let ended = |m: &Migration| m.name_any() == name && m.is_done() && m.metadata.finalizers.is_none();
        self.first(&format!("the end of Migration {name}"), ended).await
    }

    /// The first Migration of this namespace that is as wanted.
    pub async fn first(&self, what: &str, wanted: impl Fn(&Migration) -> bool) -> Migration {
        let seen = async {
            let changes = watcher(self.migrations(), watcher::Config::default()).default_backoff().applied_objects();
            tokio::pin!(changes);
            while let Some(change) = changes.next().await {
                match change {
                    Ok(migration) if wanted(&migration) => return migration,
                    _ => {}
                }
            }
            panic!("the watch ended")
        };
        tokio::time::timeout(LIMIT, seen).await.unwrap_or_else(|_| panic!("not within {} s: {what}", LIMIT.as_secs()))
    }
}
