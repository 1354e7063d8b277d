//! Whether the runtime has restored the containers, and whether they still run.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::{DestinationAgent, Look};
use crate::{
    api::attestation::{At, ContainerId, Remark, Restored},
    domain::{
        keys,
        tasks::{Finding, all_run, judge, none_awaits_its_restore, trouble, unconfirmed},
    },
    ports::{PortError, PortResult, Task, TaskState},
};

impl DestinationAgent {
    /// Attests `restored` once every container was restored and the checkpoint is out of reach (R16); false where they do not run yet.
    pub(super) async fn restore(&self, look: &Look) -> PortResult<bool> {
        self.keep_laid_out(look).await?;
        let tasks = self.parts.runtime.tasks(look.pod_uid()).await?;
        let containers = match self.judge(look, &tasks).await? {
            Finding::NotYet => return Ok(false),
            Finding::Wrong(message) => {
                self.attest_failure(look, &message).await?;
                return Ok(false);
            }
            Finding::Cold(message) => return self.attest_cold(look, &message).await,
            Finding::Restored(containers) => containers,
        };
        if look.gated() && !self.all_taken(look)? {
            let message = "a container runs without having been let through by the gate: is drover-gate installed on this node?";
            self.attest_failure(look, message).await?;
            return Ok(false);
        }
        let at = self.resumed_at(&containers).await?;
        self.take_out_of_reach(look).await?;
        // Between restore and re-pointing a crash still rewinds (MEASURED.md 4): only the very containers of the first look count.
        let again = self.parts.runtime.tasks(look.pod_uid()).await?;
        if self.judge(look, &again).await? != Finding::Restored(containers.clone()) {
            return Err(PortError::transient("a restored container ended before its checkpoint was out of reach"));
        }
        self.mend_restored(look, &containers).await;
        // The processes have their memory: what is laid out takes as much once more.
        self.parts.layout.discard(look.pod_uid()).await?;
        self.attest(look, |status| {
            status.restored = Some(Restored { at, containers });
            // A try that the kubelet has made good since.
            status.failure = None;
        })
        .await?;
        Ok(true)
    }

    /// When the last of them ran again: with memory that comes while they run that is long before they count as restored.
    async fn resumed_at(&self, containers: &[ContainerId]) -> PortResult<MicroTime> {
        let mut last = None;
        for container in containers {
            match self.parts.runtime.resumed_at(&container.container_id).await? {
                Some(at) => last = last.max(Some(at)),
                None => return Ok(self.now()),
            }
        }
        Ok(last.map_or_else(|| self.now(), MicroTime))
    }

    /// R15: it runs without the memory. What came of it is for the manager to decide; the restore is not tried again.
    async fn attest_cold(&self, look: &Look, message: &str) -> PortResult<bool> {
        if look.status.cold_started.is_some() {
            return Ok(false);
        }
        let remark = Remark { at: self.now(), message: message.to_owned() };
        self.attest(look, |status| {
            status.failure = Some(remark.clone());
            status.cold_started = Some(remark);
        })
        .await?;
        Ok(true)
    }

    /// It was decided that the replacement goes on without the memory: the checkpoint goes out of reach (R16), then the claims, and it counts as
    /// confirmed once every container runs. False as long as one does not.
    pub(super) async fn start_cold(&self, look: &Look) -> PortResult<bool> {
        let pod = look.pod_uid();
        // Without the gate nothing but the tag keeps the checkpoint from being restored again.
        if !look.gated() || !self.claims(look)?.is_empty() {
            self.take_out_of_reach(look).await?;
            // One that the kubelet has made from the checkpoint and not started yet is refused by the claims, and then made anew.
            let (taken, tasks) = (self.taken_ids(look)?, self.parts.runtime.tasks(pod).await?);
            let mut not_alive = taken.clone();
            not_alive.extend(tasks.iter().filter(|task| task.state == TaskState::Stopped).map(|task| task.id.clone()));
            let over = self.remove_ended(not_alive).await?;
            if look.gated() && !none_awaits_its_restore(&look.course.containers, &taken, &over, &tasks) {
                return Ok(false);
            }
            // Not gone yet: what the runtime is making from the checkpoint at this moment is shown by nobody, and the gate refuses its restore.
            self.let_start(look)?;
        }
        if !all_run(&look.course.containers, &self.parts.runtime.tasks(pod).await?) {
            return Ok(false);
        }
        self.forget(look)?;
        let at = self.now();
        self.attest(look, |status| {
            status.confirmed = Some(At { at: at.clone() });
            if status.restored.is_none() && status.died.is_none() {
                status.cold_started.get_or_insert_with(|| Remark { at, message: "let start from its image".to_owned() });
            }
        })
        .await?;
        Ok(true)
    }

    async fn judge(&self, look: &Look, tasks: &[Task]) -> PortResult<Finding> {
        let finding = judge(&look.course.containers, tasks);
        if matches!(finding, Finding::Cold(_)) {
            return Ok(finding);
        }
        // Of what has failed the kubelet has the runtime's own words.
        let pod = self.parts.kubelet.pod(look.pod_uid()).await?;
        Ok(match pod.as_ref().and_then(trouble) {
            Some(message) => Finding::Wrong(message),
            None => finding,
        })
    }

    /// Tags name the base image, also those of init containers, and the runtime's store knows the checkpoint no more: a later crash starts cold.
    async fn take_out_of_reach(&self, look: &Look) -> PortResult<()> {
        let repository = look.repository()?;
        if let Some(checkpoint) = look.course.containers.iter().find(|checkpoint| !look.bases().any(|(name, _)| name == checkpoint.name)) {
            return Err(PortError::permanent(format!("the base image of container {} is not known", checkpoint.name)));
        }
        for (container, base) in look.tags() {
            let manifest = self.parts.images.manifest(base).await?;
            self.parts.registry.repoint(repository, container, &manifest).await?;
            // In the runtime lane the name has never been the checkpoint's there, and containerd's next checkpoint of the container asks for it.
            if !look.course.is_by_runtime() || look.init_containers().any(|init| init.name == container) {
                self.parts.images.remove(&keys::checkpoint_image(repository, container)).await?;
            }
        }
        Ok(())
    }

    /// R17: after the Commit the same containers still run, and their pod is not being deleted.
    pub(super) async fn confirm(&self, look: &Look) -> PortResult<()> {
        let restored = look.status.restored.as_ref().ok_or_else(|| PortError::permanent("nothing was attested as restored"))?;
        let tasks = self.parts.runtime.tasks(look.pod_uid()).await?;
        let pod = self.parts.kubelet.pod(look.pod_uid()).await?;
        let trouble = unconfirmed(&look.course.containers, &restored.containers, &tasks, pod.as_ref());
        if let Some(message) = trouble {
            self.attest_failure(look, &message).await?;
            return Err(PortError::transient(message));
        }
        let at = self.now();
        self.attest(look, |status| {
            status.confirmed = Some(At { at });
            status.failure = None;
        })
        .await
    }
}
