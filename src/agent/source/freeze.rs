//! Freezing and thawing one pod.

use super::{Look, SourceAgent, disk};
use crate::{
    agent::journal::Journal,
    api::attestation::{At, ContainerId, Frozen, Kept, Remark},
    domain::tasks::nothing_left,
    ports::{PortError, PortResult, Task, TaskState},
};

impl SourceAgent {
    /// Fences the pod, pauses all of its containers together, and says so.
    pub(super) async fn freeze(&self, look: &Look) -> PortResult<()> {
        let mut journal = look.journal.clone();
        let running = self.live_tasks(&journal.pod_uid).await?;
        if running.is_empty() {
            return Err(PortError::permanent("no container of the pod runs"));
        }
        journal.containers = running.iter().map(container_id).collect();
        if journal.frozen_at.is_none() {
            // Older ones of a pod of this name. What is found from here on was dumped for this migration, also where a crash kept it out of the journal.
            self.remove_archives(&journal).await?;
        }
        let at = *journal.frozen_at.get_or_insert_with(|| self.parts.clock.now());
        self.save(&journal)?;
        self.parts.markers.fence(&journal.pod_uid, &journal.migration_uid).map_err(|e| disk("fence the pod", &e))?;
        let pauses = journal.containers.iter().map(|c| self.parts.runtime.pause(&c.container_id));
        futures::future::try_join_all(pauses).await.map_err(|e| e.context("failed to pause the containers"))?;
        // One that was started between the listing and the fence would go on running.
        let live = self.live_tasks(&journal.pod_uid).await?;
        if live.iter().any(|task| task.state != TaskState::Paused || !journal.containers.contains(&container_id(task))) {
            return Err(PortError::permanent("a container of the pod was started while it was being frozen"));
        }
        let frozen = Frozen { at: k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(at), containers: journal.containers };
        self.attest(look, |status| status.frozen = Some(frozen)).await
    }

    /// Writes down that there will be no vote, thaws, and says so.
    pub(super) async fn abort(&self, look: &Look, reason: &str) -> PortResult<()> {
        // The step that failed may have written the journal further than `look` knows.
        let mut journal = self.stored(&look.journal.migration_uid)?.unwrap_or_else(|| look.journal.clone());
        if journal.vote.is_some() {
            return Err(PortError::permanent("a vote cannot be taken back; the verdict is awaited"));
        }
        journal.aborted.get_or_insert_with(|| reason.to_owned());
        self.save(&journal)?;
        // Before it is said: an API server that is out of reach must not keep the pod frozen for the length of a call.
        self.thaw_locally(&journal).await?;
        let remark = Remark { at: self.now(), message: reason.to_owned() };
        self.attest(look, |status| {
            status.abort.get_or_insert(remark);
        })
        .await
    }

    /// Resumes the pod, takes the fence away, removes the archives, says so, and forgets the migration.
    pub(super) async fn thaw(&self, look: &Look) -> PortResult<()> {
        let archives = self.thaw_locally(&look.journal).await?;
        let at = self.now();
        self.attest(look, |status| {
            status.thawed = Some(At { at: at.clone() });
            if !archives.is_empty() {
                status.kept = Some(Kept { at, archives });
            }
        })
        .await?;
        self.parts.journals.remove(&look.journal.migration_uid).map_err(|e| disk("remove the journal", &e))
    }

    /// What of a thaw needs no API server. The archives go, unless a container with the memory lives no more: then they are kept, and named (R18).
    pub(super) async fn thaw_locally(&self, journal: &Journal) -> PortResult<Vec<String>> {
        let fence = self.parts.markers.fenced_by(&journal.pod_uid).map_err(|e| disk("read the fence", &e))?;
        // R11: a pod that another migration has fenced is frozen by that one, even where the containers are the same.
        if fence.as_ref().is_none_or(|owner| *owner == journal.migration_uid) {
            for task in self.live_tasks(&journal.pod_uid).await?.into_iter().filter(|task| task.state == TaskState::Paused) {
                // Without a fence only what this migration has paused: somebody has removed it by hand.
                if fence.is_some() || journal.containers.contains(&container_id(&task)) {
                    self.parts.runtime.resume(&task.id).await.map_err(|e| e.context("failed to thaw the source"))?;
                }
            }
            self.parts.markers.unfence(&journal.pod_uid, &journal.migration_uid).map_err(|e| disk("remove the fence", &e))?;
        }
        let live = self.live_tasks(&journal.pod_uid).await?;
        let memory_lives = journal.containers.iter().all(|c| live.iter().any(|task| task.id == c.container_id));
        if memory_lives { self.remove_archives(journal).await.map(|()| vec![]) } else { self.keep_archives(journal).await }
    }

    /// Gives up, without asking anybody, on pods that have been frozen longer than their budget (R2). Called every second, also
    /// while the API server is away.
    ///
    /// # Errors
    /// What a port or the disk said of a pod that could not be thawed; the others are thawed all the same.
    pub async fn watch_budgets(&self) -> PortResult<()> {
        let mut outcome = Ok(());
        for journal in self.journals()? {
            outcome = outcome.and(self.give_up_if_overdue(&journal).await);
        }
        outcome
    }

    async fn give_up_if_overdue(&self, listed: &Journal) -> PortResult<()> {
        let turn = self.turn(&listed.migration_uid);
        // A step in progress has its own limit, which is the same budget.
        let Ok(_one_at_a_time) = turn.try_lock() else { return Ok(()) };
        let Some(mut journal) = self.stored(&listed.migration_uid)?.filter(|journal| journal.is_overdue(self.parts.clock.now())) else {
            return Ok(());
        };
        tracing::warn!(migration = journal.migration, namespace = journal.namespace, "frozen longer than its budget; thawing");
        let reason = format!("frozen for more than {} s without a vote (spec.freezeBudgetSeconds)", journal.budget_seconds);
        journal.aborted.get_or_insert(reason);
        self.save(&journal)?;
        self.thaw_locally(&journal).await?;
        journal.thawed = true;
        self.save(&journal)
    }

    /// Ends what migrations have left that no longer exist: an unvoted source is thawed, a voted one stays frozen and is named in the log.
    ///
    /// # Errors
    /// What a port or the disk said of a journal that could not be swept; the others are swept all the same, this one by the next sweep.
    pub async fn sweep(&self) -> PortResult<()> {
        let mut outcome = Ok(());
        for journal in self.journals()? {
            outcome = outcome.and(self.end_if_forgotten(&journal).await);
        }
        let swept = self.parts.dump.sweep().await;
        outcome.and(swept)
    }

    async fn end_if_forgotten(&self, listed: &Journal) -> PortResult<()> {
        let found = self.parts.api.migration(&listed.namespace, &listed.migration).await?;
        if found.is_some_and(|m| m.metadata.uid.as_deref() == Some(listed.migration_uid.as_str())) {
            return Ok(());
        }
        let turn = self.turn(&listed.migration_uid);
        let Ok(_one_at_a_time) = turn.try_lock() else { return Ok(()) };
        // A vote may have been written since the list was read.
        let Some(journal) = self.stored(&listed.migration_uid)? else { return Ok(()) };
        let is_gone = self.is_gone(&journal.pod_uid).await?;
        if journal.vote.is_some() && !is_gone && self.is_frozen(&journal).await? {
            tracing::error!(
                migration = journal.migration,
                namespace = journal.namespace,
                pod = journal.pod,
                "the Migration was removed by force after this agent had voted; the pod stays frozen until a person decides"
            );
            return Ok(());
        }
        tracing::warn!(
            migration = journal.migration,
            namespace = journal.namespace,
            is_gone,
            "the Migration is gone; its pod is thawed, where it still is"
        );
        for archive in self.thaw_locally(&journal).await? {
            tracing::warn!(migration = journal.migration, namespace = journal.namespace, archive, "kept the memory of a pod that runs nowhere");
        }
        self.parts.journals.remove(&journal.migration_uid).map_err(|e| disk("remove the journal", &e))
    }

    /// Whether a migration still keeps a pod frozen: its fence stands, or what it has paused is paused. One whose agent died between the thaw and the end
    /// of its journal does not.
    async fn is_frozen(&self, journal: &Journal) -> PortResult<bool> {
        let fence = self.parts.markers.fenced_by(&journal.pod_uid).map_err(|e| disk("read the fence", &e))?;
        let paused = |task: &Task| task.state == TaskState::Paused && journal.containers.contains(&container_id(task));
        Ok(match fence {
            Some(owner) => owner == journal.migration_uid,
            None => self.live_tasks(&journal.pod_uid).await?.iter().any(paused),
        })
    }

    /// Whether the pod was deleted with its migration: neither kubelet nor runtime has anything of it.
    async fn is_gone(&self, pod_uid: &str) -> PortResult<bool> {
        let pod = self.parts.kubelet.pod(pod_uid).await?;
        Ok(nothing_left(pod.as_ref(), &self.parts.runtime.tasks(pod_uid).await?))
    }

    fn journals(&self) -> PortResult<Vec<Journal>> {
        self.parts.journals.all().map_err(|e| disk("list the journals", &e))
    }

    /// Containers of the pod that have a living task.
    pub(super) async fn live_tasks(&self, pod_uid: &str) -> PortResult<Vec<Task>> {
        let tasks = self.parts.runtime.tasks(pod_uid).await?;
        Ok(tasks.into_iter().filter(|task| task.state != TaskState::Stopped).collect())
    }
}

fn container_id(task: &Task) -> ContainerId {
    ContainerId { name: task.container.clone(), container_id: task.id.clone() }
}
