//! The source side: inspect, fence, pause, checkpoint, push, vote; thaw or end.
//!
//! # Guarantees
//! Every step is written down before it is done ([`Journal`]), so each may be repeated after a crash. A pod is thawed only where
//! [`crate::domain::verdict::may_thaw`] says so, and killed only where [`crate::domain::verdict::may_end`] or, before the release,
//! [`crate::domain::verdict::may_end_first`] does.

mod first;
mod freeze;
mod give;
mod inspect;
mod pre_copy;
mod steps;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tokio::task::JoinSet;

use super::journal::{Journal, Journals};
use crate::{
    api::{Attestation, AttestationStatus, Migration, MigrationStatus, Phase, Role, Verdict, attestation::attestation_name},
    domain::attest::{Deletion, SourceAction, source_next},
    markers::Markers,
    ports::{AgentApi, Clock, Failure, Kubelet, PortError, PortResult, Pusher, Runtime, dump::Dump, inside::Inside},
};

/// How soon a source that waits for its kubelet is looked at again.
const SOON: Duration = Duration::from_millis(200);

/// What the source side needs.
pub struct SourceParts {
    /// Name of this node.
    pub node: String,
    /// Its runtime.
    pub runtime: Arc<dyn Runtime>,
    /// Its kubelet.
    pub kubelet: Arc<dyn Kubelet>,
    /// Its runtime's own checkpoints.
    pub dump: Arc<dyn Dump>,
    /// The inside of its pods.
    pub inside: Arc<dyn Inside>,
    /// The way to other nodes' registries.
    pub pusher: Arc<dyn Pusher>,
    /// The API server.
    pub api: Arc<dyn AgentApi>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The gate's markers.
    pub markers: Markers,
    /// The journals.
    pub journals: Journals,
    /// Whether memory is sent before the freeze.
    pub pre_copies: bool,
    /// Where the kubelet puts its archives.
    pub checkpoint_folder: std::path::PathBuf,
}

/// The source side of a node's agent.
pub struct SourceAgent {
    parts: SourceParts,
    /// One step at a time for each migration: the watchdog and the controller both act.
    busy: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// The memory that copies fetch, by their migrations.
    giving: Mutex<HashMap<String, JoinSet<()>>>,
    /// The memory that is sent before the freeze, by their migrations.
    sending: Mutex<HashMap<String, pre_copy::Sending>>,
}

/// One migration as the source agent sees it now.
struct Look {
    migration: Migration,
    own: Attestation,
    status: AttestationStatus,
    journal: Journal,
    /// The journal as the disk had it.
    stored: Option<Journal>,
}

impl Look {
    fn is_source_first(&self) -> bool {
        self.migration.status.as_ref().is_some_and(MigrationStatus::is_source_first)
    }

    /// Whether the checkpoint goes without the kubelet's archive. A source that goes first must leave one behind (R14).
    fn dumps_itself(&self) -> bool {
        !self.is_source_first() && self.migration.status.as_ref().is_some_and(MigrationStatus::is_by_runtime)
    }
}

impl SourceAgent {
    /// The source side of a node's agent.
    #[must_use]
    pub fn new(parts: SourceParts) -> Self {
        Self { parts, busy: Mutex::default(), giving: Mutex::default(), sending: Mutex::default() }
    }

    /// Takes steps for one migration until there is none to take; returns when to look again though nothing changes.
    ///
    /// # Errors
    /// What a port said; the same step is taken again later.
    pub async fn reconcile(&self, namespace: &str, migration: &str) -> PortResult<Option<Duration>> {
        loop {
            // Read and decided before the turn is taken: while an API server that is out of reach lets a call wait, the watchdog must be able to thaw.
            let Some(look) = self.look(namespace, migration).await? else { return Ok(None) };
            let action = self.decide(&look).await?;
            let turn = self.turn(&look.journal.migration_uid);
            let _one_at_a_time = turn.lock().await;
            // The watchdog may have given up in between.
            if self.stored(&look.journal.migration_uid)? != look.stored {
                continue;
            }
            self.give_or_stop(&look)?;
            if let Some(soon) = self.pre_copy_before(&look, &action)? {
                return Ok(Some(soon));
            }
            if action == SourceAction::Wait {
                if is_forgotten(&look.status) {
                    // One that a crash between the last word and this left: it must never speak for a later migration of the same pod.
                    self.parts.journals.remove(&look.journal.migration_uid).map_err(|e| disk("remove the journal", &e))?;
                }
                return Ok(look_again(&look));
            }
            tracing::info!(migration, namespace, ?action, "source");
            if let Err(error) = self.perform(&look, &action).await {
                if error.kind == Failure::Conflict || !is_undone_by_abort(&action) {
                    return Err(error);
                }
                tracing::warn!(migration, namespace, ?action, %error, "a step before the vote failed; the source is thawed");
                self.abort(&look, &error.message).await?;
            }
            // What the kubelet has not done yet is looked at again; what was attested comes back by watch.
            if matches!(action, SourceAction::Kill | SourceAction::End | SourceAction::Collect | SourceAction::Keep) {
                return Ok(Some(SOON));
            }
        }
    }

    async fn look(&self, namespace: &str, name: &str) -> PortResult<Option<Look>> {
        let own = attestation_name(name, Role::Source);
        // Side by side, since a frozen pod waits for either, and nobody else writes what this side has said.
        let (migration, own) = futures::try_join!(self.parts.api.migration(namespace, name), self.parts.api.attestation(namespace, &own))?;
        let Some(migration) = migration else { return Ok(None) };
        let uid = migration.metadata.uid.clone().unwrap_or_default();
        let Some(own) = own.filter(|a| a.spec.migration_uid == uid && a.spec.node_name == self.parts.node) else { return Ok(None) };
        let status = own.status.clone().unwrap_or_default();
        let stored = self.stored(&uid)?;
        let journal = stored.clone().unwrap_or_else(|| Journal {
            migration_uid: uid,
            namespace: namespace.to_owned(),
            migration: name.to_owned(),
            pod: migration.status.as_ref().and_then(|s| s.source.as_ref()).map(|s| s.name.clone()).unwrap_or_default(),
            pod_uid: own.spec.pod_uid.clone(),
            budget_seconds: migration.spec.freeze_budget_seconds,
            ..Journal::default()
        });
        Ok(Some(Look { migration, own, status, journal, stored }))
    }

    fn stored(&self, migration_uid: &str) -> PortResult<Option<Journal>> {
        self.parts.journals.load(migration_uid).map_err(|e| disk("read the journal", &e))
    }

    async fn decide(&self, look: &Look) -> PortResult<SourceAction> {
        let namespace = look.journal.namespace.as_str();
        let status = look.migration.status.clone().unwrap_or_default();
        let role = if status.fallback.is_some() { Role::Fallback } else { Role::Destination };
        let copy = self.parts.api.attestation(namespace, &attestation_name(&look.journal.migration, role)).await?;
        let copy = copy.filter(|a| a.spec.migration_uid == look.journal.migration_uid).and_then(|a| a.status).unwrap_or_default();
        let budget = Duration::from_secs(look.journal.budget_seconds.into());
        // A rollback thaws whatever the kubelet says, also while it says nothing.
        let matters = match status.verdict {
            None => look.journal.frozen_at.is_some() && look.status.ended.is_none(),
            Some(Verdict::Commit) => look.status.ended.is_none(),
            Some(Verdict::Rollback) => false,
        };
        let deletion = if matters { self.deletion(&look.journal.pod_uid).await? } else { Deletion::NotShown };
        Ok(source_next(&status, &look.status, &copy, &look.journal.view(), deletion, budget, self.parts.clock.now()))
    }

    async fn deletion(&self, pod_uid: &str) -> PortResult<Deletion> {
        Ok(match self.parts.kubelet.pod(pod_uid).await? {
            None => Deletion::Gone,
            Some(pod) if pod.metadata.deletion_timestamp.is_some() => Deletion::Shown,
            Some(_) => Deletion::NotShown,
        })
    }

    fn turn(&self, migration_uid: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut busy = self.busy.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        busy.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(busy.entry(migration_uid.to_owned()).or_default())
    }

    async fn attest(&self, look: &Look, change: impl FnOnce(&mut AttestationStatus)) -> PortResult<()> {
        let mut status = look.status.clone();
        change(&mut status);
        // Whatever went wrong here says nothing about the step itself: look again and say it again.
        self.parts.api.attest(&look.own, &status).await.map(drop).map_err(|e| {
            if e.kind != Failure::Conflict {
                tracing::warn!(migration = look.journal.migration, namespace = look.journal.namespace, error = %e, "will say it again");
            }
            PortError { kind: Failure::Conflict, ..e }
        })
    }

    fn save(&self, journal: &Journal) -> PortResult<()> {
        self.parts.journals.save(journal).map_err(|e| disk("write the journal", &e))
    }

    fn now(&self) -> MicroTime {
        MicroTime(self.parts.clock.now())
    }
}

/// Whether the last word is said, so that no journal is needed any more.
fn is_forgotten(said: &AttestationStatus) -> bool {
    let kept = said.archived.is_some() && said.cleaned.is_none();
    said.thawed.is_some() || (said.ended.is_some() && !kept)
}

/// A frozen source is looked at often enough to keep its budget and to see its own deletion.
fn look_again(look: &Look) -> Option<Duration> {
    let ends = look.migration.verdict() == Some(Verdict::Commit) || look.migration.phase() == Phase::SourceDeleting;
    if ends && look.status.ended.is_none() {
        return Some(SOON);
    }
    (look.journal.frozen_at.is_some() && look.status.thawed.is_none()).then_some(Duration::from_secs(1))
}

/// Whether a failed step is answered by giving up and thawing: everything up to the vote.
fn is_undone_by_abort(action: &SourceAction) -> bool {
    matches!(action, SourceAction::Freeze | SourceAction::Checkpoint | SourceAction::Push | SourceAction::Vote)
}

fn disk(doing: &str, error: &std::io::Error) -> PortError {
    PortError::transient(format!("failed to {doing}: {error}"))
}

#[cfg(test)]
mod tests;
