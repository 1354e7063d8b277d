//! Whether the runtime has restored the containers, and whether they still run.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::{DestinationAgent, Look};
use crate::{
    api::{
        attestation::{At, ContainerId, Restored},
        migration::ContainerCheckpoint,
    },
    ports::{PortError, PortResult, Task, TaskState},
};

/// What the kubelet says of a container that cannot be made or started.
const STUCK: [&str; 5] = ["CrashLoopBackOff", "RunContainerError", "CreateContainerError", "CreateContainerConfigError", "StartError"];

/// What a look at the containers of a replacement has found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Finding {
    /// Not all of them run yet.
    NotYet,
    /// All of them run, restored from this migration's images, each for the first time.
    Restored(Vec<ContainerId>),
    /// Something that this migration cannot end well with.
    Wrong(String),
}

impl DestinationAgent {
    /// Attests `restored` once every container was restored and the checkpoint is out of reach (R16); false where they do not run yet.
    pub(super) async fn restore(&self, look: &Look) -> PortResult<bool> {
        let tasks = self.parts.runtime.tasks(&look.own.spec.pod_uid).await?;
        let containers = match self.judge(look, &tasks).await? {
            Finding::NotYet => return Ok(false),
            Finding::Wrong(message) => {
                self.attest_failure(look, &message).await?;
                return Ok(false);
            }
            Finding::Restored(containers) => containers,
        };
        if !self.all_taken(look)? {
            let message = "a container runs without having been let through by the gate: is drover-gate installed on this node?";
            self.attest_failure(look, message).await?;
            return Ok(false);
        }
        let at = self.now();
        self.take_out_of_reach(look).await?;
        // Between restore and re-pointing a crash still rewinds (MEASURED.md 4): only the very containers of the first look count.
        let again = self.parts.runtime.tasks(&look.own.spec.pod_uid).await?;
        if self.judge(look, &again).await? != Finding::Restored(containers.clone()) {
            return Err(PortError::transient("a restored container ended before its checkpoint was out of reach"));
        }
        self.attest(look, |status| {
            status.restored = Some(Restored { at, containers });
            // A try that the kubelet has made good since.
            status.failure = None;
        })
        .await?;
        Ok(true)
    }

    async fn judge(&self, look: &Look, tasks: &[Task]) -> PortResult<Finding> {
        let finding = judge(&look.course.containers, tasks);
        if matches!(finding, Finding::Wrong(_)) {
            return Ok(finding);
        }
        let pod = self.parts.kubelet.pod(&look.own.spec.pod_uid).await?;
        Ok(match pod.as_ref().and_then(trouble) {
            Some(message) => Finding::Wrong(message),
            None => finding,
        })
    }

    /// Tags name the base image, and the runtime's store knows the checkpoint no more: a later crash starts cold.
    async fn take_out_of_reach(&self, look: &Look) -> PortResult<()> {
        let repository = look.repository()?;
        for checkpoint in &look.course.containers {
            let base = look.bases().find(|(name, _)| *name == checkpoint.name).map(|(_, image)| image);
            let base = base.ok_or_else(|| PortError::permanent(format!("the base image of container {} is not known", checkpoint.name)))?;
            let manifest = self.parts.images.manifest(base).await?;
            self.parts.registry.repoint(repository, &checkpoint.name, &manifest).await?;
            self.parts.images.remove(&checkpoint.image).await?;
        }
        Ok(())
    }

    /// R17: after the Commit the same containers still run, and their pod is not being deleted.
    pub(super) async fn confirm(&self, look: &Look) -> PortResult<()> {
        let restored = look.status.restored.as_ref().ok_or_else(|| PortError::permanent("nothing was attested as restored"))?;
        let tasks = self.parts.runtime.tasks(&look.own.spec.pod_uid).await?;
        let same = judge(&look.course.containers, &tasks) == Finding::Restored(restored.containers.clone());
        let trouble = match &self.parts.kubelet.pod(&look.own.spec.pod_uid).await? {
            None => Some("the kubelet does not list the replacement any more".to_owned()),
            Some(pod) if pod.metadata.deletion_timestamp.is_some() => Some("the replacement is being deleted".to_owned()),
            Some(_) if !same => Some("a restored container has ended since it was attested; what it did since the release is lost".to_owned()),
            Some(pod) => trouble(pod),
        };
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

fn judge(checkpoints: &[ContainerCheckpoint], tasks: &[Task]) -> Finding {
    let mut restored = vec![];
    for checkpoint in checkpoints {
        let of_this_name: Vec<&Task> = tasks.iter().filter(|task| task.container == checkpoint.name).collect();
        match of_this_name.as_slice() {
            [] => return Finding::NotYet,
            [task] => match (task.state, &task.restored_from) {
                (TaskState::Running, Some(image)) if *image == checkpoint.image => {
                    restored.push(ContainerId { name: task.container.clone(), container_id: task.id.clone() });
                }
                (TaskState::Running, Some(image)) => return Finding::Wrong(format!("container {} was restored from {image}", checkpoint.name)),
                (TaskState::Running, None) => {
                    return Finding::Wrong(format!("container {} runs but was not restored from a checkpoint", checkpoint.name));
                }
                // Without a task it has not been started yet, or has ended: the kubelet's word tells which.
                (TaskState::Created | TaskState::Paused | TaskState::Stopped, _) => return Finding::NotYet,
            },
            more => return Finding::Wrong(format!("container {} was started {} times", checkpoint.name, more.len())),
        }
    }
    if restored.is_empty() { Finding::NotYet } else { Finding::Restored(restored) }
}

/// What the kubelet says against a replacement: a container that was restarted or cannot be started.
fn trouble(pod: &Pod) -> Option<String> {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    statuses.iter().find_map(container_trouble)
}

fn container_trouble(status: &ContainerStatus) -> Option<String> {
    if status.restart_count > 0 {
        return Some(format!("container {} was restarted {} times", status.name, status.restart_count));
    }
    let state = status.state.as_ref()?;
    if let Some(ended) = &state.terminated {
        let message = ended.message.as_deref().unwrap_or_default();
        return Some(format!("container {} has ended with exit code {}: {message}", status.name, ended.exit_code));
    }
    let waiting = state.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().unwrap_or_default();
    let message = waiting.message.as_deref().unwrap_or_default();
    STUCK.contains(&reason).then(|| format!("container {} cannot be restored: {reason}: {message}", status.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Vec<ContainerCheckpoint> {
        vec![ContainerCheckpoint { name: "c".into(), digest: "sha256:a".into(), bytes: 1, image: "img".into() }]
    }

    fn task(id: &str, state: TaskState, from: Option<&str>) -> Task {
        Task { container: "c".into(), id: id.into(), state, restored_from: from.map(str::to_owned) }
    }

    #[test]
    fn only_a_container_restored_once_from_this_image_counts() {
        let running = task("1", TaskState::Running, Some("img"));
        assert_eq!(
            judge(&checkpoint(), std::slice::from_ref(&running)),
            Finding::Restored(vec![ContainerId { name: "c".into(), container_id: "1".into() }])
        );
        assert_eq!(judge(&checkpoint(), &[]), Finding::NotYet);
        assert_eq!(judge(&checkpoint(), &[task("1", TaskState::Stopped, Some("img"))]), Finding::NotYet, "made, but not started yet");
        for wrong in [
            vec![task("1", TaskState::Running, None)],
            vec![task("1", TaskState::Running, Some("other"))],
            vec![task("1", TaskState::Stopped, Some("img")), running.clone()],
        ] {
            assert!(matches!(judge(&checkpoint(), &wrong), Finding::Wrong(_)), "{wrong:?}");
        }
        assert_eq!(judge(&[], &[running]), Finding::NotYet);
    }

    #[test]
    fn a_restart_is_trouble() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"status": {"containerStatuses": [
            {"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 1, "state": {"running": {}}}]}}))
        .unwrap();
        assert!(trouble(&pod).is_some_and(|m| m.contains("restarted 1 times")));
        let pod: Pod = serde_json::from_value(serde_json::json!({"status": {"containerStatuses": [
            {"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 137}}}]}}))
        .unwrap();
        assert!(trouble(&pod).is_some_and(|m| m.contains("exit code 137")));
    }
}
