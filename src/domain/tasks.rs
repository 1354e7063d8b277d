//! What a node's runtime and kubelet show of a pod's containers, and what may be concluded from it.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt as _;

use super::{containers, criu};
use crate::api::{attestation::ContainerId, migration::ContainerCheckpoint};

/// State of a container's task in the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskState {
    /// Made, not started.
    Created,
    /// Executes.
    Running,
    /// Executes, but has not got all of its memory yet: it was restored lazily, and a page that is missing makes it wait.
    Filling,
    /// Frozen, or on the way to it.
    Paused,
    /// Ended, or has no task.
    Stopped,
    /// Executes, but the runtime takes its container for one that has ended, and so does the kubelet, which then starts another: the start was told to have
    /// failed when it had not, as it happens where containerd or the kubelet ends in mid-restore.
    Abandoned,
}

/// One container of a pod as the runtime knows it (never the sandbox).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Name in the pod's spec (label `io.kubernetes.container.name`).
    pub container: String,
    /// The runtime's ID.
    pub id: String,
    /// State of its task.
    pub state: TaskState,
    /// The checkpoint image that it was restored from, as the runtime recorded it; none for an ordinary container.
    pub restored_from: Option<String>,
    /// Why its memory did not come whole, of one that was restored lazily and is ended for it.
    pub spoilt: Option<String>,
}

/// Where a kubelet notes on each pod that it lists who told it of it: `api`, or `file` or `http` for static pods (verified on the lab, 1.37).
const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// What the kubelet says of a container that cannot be made or started.
const STUCK: [&str; 5] = ["CrashLoopBackOff", "RunContainerError", "CreateContainerError", "CreateContainerConfigError", "StartError"];

/// What a look at the containers of a replacement has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Not all of them run yet.
    NotYet,
    /// All of them run, restored from this migration's images, each for the first time.
    Restored(Vec<ContainerId>),
    /// Something that this migration cannot end well with.
    Wrong(String),
    /// A container runs that was not restored from this migration's checkpoint (R15).
    Cold(String),
}

/// What runc's error begins with when a restore did not end well (containerd's shim, `OCI runtime restore failed`).
const RESTORE_FAILED: &str = "restore failed";

/// CRIU's line at the point of no return, at its default verbosity (MEASURED.md 11): the processes run.
const RESUMED: &str = "Restore finished successfully. Tasks resumed.";

/// Judges the tasks of a replacement against what was to be restored.
#[must_use]
pub fn judge(checkpoints: &[ContainerCheckpoint], tasks: &[Task]) -> Finding {
    let mut restored = vec![];
    for checkpoint in checkpoints {
        let of_this_name: Vec<&Task> = tasks.iter().filter(|task| task.container == checkpoint.name).collect();
        match of_this_name.as_slice() {
            [] => return Finding::NotYet,
            [Task { spoilt: Some(reason), .. }] => return Finding::Wrong(format!("the restore of container {} failed: {reason}", checkpoint.name)),
            [task] => match (task.state, &task.restored_from) {
                (TaskState::Running, Some(image)) if *image == checkpoint.image => {
                    restored.push(ContainerId { name: task.container.clone(), container_id: task.id.clone() });
                }
                (TaskState::Running, Some(image)) => return Finding::Cold(format!("container {} was restored from {image}", checkpoint.name)),
                (TaskState::Running, None) => {
                    return Finding::Cold(format!("container {} runs but was not restored from a checkpoint", checkpoint.name));
                }
                // R19: it is not restored before its last page is there. Without a task it has not been started yet, or has ended: the kubelet's word
                // tells which.
                (TaskState::Filling | TaskState::Created | TaskState::Paused | TaskState::Stopped, _) => return Finding::NotYet,
                (TaskState::Abandoned, _) => {
                    return Finding::Wrong(format!(
                        "container {} executes, but the runtime told the kubelet that its start had failed",
                        checkpoint.name
                    ));
                }
            },
            more => return Finding::Wrong(format!("container {} was started {} times", checkpoint.name, more.len())),
        }
    }
    if restored.is_empty() { Finding::NotYet } else { Finding::Restored(restored) }
}

/// What the kubelet says against a replacement: a container that was restarted or cannot be started.
#[must_use]
pub fn trouble(pod: &Pod) -> Option<String> {
    containers::statuses(pod).find_map(container_trouble)
}

fn container_trouble(status: &ContainerStatus) -> Option<String> {
    if status.restart_count > 0 {
        let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref()).and_then(|ended| ended.message.as_deref());
        let why = last.map(|message| format!(": {message}")).unwrap_or_default();
        return Some(format!("container {} was restarted {} times{why}", status.name, status.restart_count));
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

/// R17: why a committed copy cannot be confirmed; none where the same containers still run and their pod is not being deleted.
#[must_use]
pub fn unconfirmed(checkpoints: &[ContainerCheckpoint], restored: &[ContainerId], tasks: &[Task], pod: Option<&Pod>) -> Option<String> {
    match pod {
        None => Some("the kubelet does not list the replacement any more".to_owned()),
        Some(pod) if pod.metadata.deletion_timestamp.is_some() => Some("the replacement is being deleted".to_owned()),
        Some(_) if judge(checkpoints, tasks) != Finding::Restored(restored.to_vec()) => {
            Some("a restored container has ended since it was attested; what it did since the release is lost".to_owned())
        }
        Some(pod) => trouble(pod),
    }
}

/// R2: exactly these containers have a living task, and each of them is paused.
#[must_use]
pub fn all_paused(containers: &[ContainerId], tasks: &[Task]) -> bool {
    let live: Vec<&Task> = tasks.iter().filter(|task| is_alive(task)).collect();
    live.len() == containers.len() && containers.iter().all(|c| live.iter().any(|t| t.id == c.container_id && t.state == TaskState::Paused))
}

/// Whether nothing of a pod is left on a node, so that its claims may go: the kubelet does not list it, and the runtime has no container of it. A kubelet
/// forgets a pod at once that is removed by force, and may still start a container that it has made for it.
#[must_use]
pub fn nothing_left(pod: Option<&Pod>, tasks: &[Task]) -> bool {
    pod.is_none() && tasks.is_empty()
}

/// Whether a kubelet's list is whole. One that has just started lists static pods alone until it has read the API server's; since the agent itself is a
/// pod of the API server's, a whole list has at least that one.
#[must_use]
pub fn is_whole(pods: &[Pod]) -> bool {
    pods.iter().any(|pod| pod.annotations().get(CONFIG_SOURCE).is_some_and(|source| source == "api"))
}

/// CRIU's error, where all signs agree that the one restore of a container was refused before its resume point: the runtime has no living
/// task of it, the kubelet has runc's error, and CRIU's log has an error and lacks the line of the resume point.
///
/// A pod that the kubelet has forgotten cannot tell any more; the log and the runtime remain.
#[must_use]
pub fn refused(container: &str, tasks: &[Task], log: &str, pod: Option<&Pod>) -> Option<String> {
    if tasks.iter().any(|task| task.container == container && is_alive(task)) {
        return None;
    }
    let error = refused_before_resume(log)?;
    let told = pod.is_none_or(|pod| containers::statuses(pod).any(|status| status.name == container && says_restore_failed(status)));
    told.then_some(error)
}

/// Whether CRIU's log shows a refusal of which the kubelet, which lists the pod, has not said anything yet: it hears of it a moment later.
#[must_use]
pub fn is_untold(container: &str, log: &str, pod: Option<&Pod>) -> bool {
    let says = |pod: &Pod| containers::statuses(pod).any(|status| status.name == container && says_restore_failed(status));
    refused_before_resume(log).is_some() && pod.is_some_and(|pod| !says(pod))
}

/// R7: whether the one restore that a container's claim let through is over for good: no living task of the pod, and it has been `seen_to_end`: the node has
/// booted since, which nothing outlives, or the runtime has ended it and no process is left of it ([`crate::ports::Runtime::remove_ended`]). While the
/// claim is `taken` the gate lets no other start. A runtime that merely has no task proves nothing: one may be on its way between the gate and the task's
/// start. Nor does the kubelet's word, which is told that a start has failed when containerd ends in its middle, while the process goes on (seen).
#[must_use]
pub fn is_over(seen_to_end: bool, tasks: &[Task]) -> bool {
    seen_to_end && !tasks.iter().any(is_alive)
}

/// I8: whether no container awaits its restore, or goes on unseen: each of the runtime's that was made from a checkpoint runs, or is one of `over`, and so is
/// each that the gate has let through (`taken`). One that was made and not started yet would be restored as soon as the gate lets it through, wherever its
/// image's tag leads by then.
#[must_use]
pub fn none_awaits_its_restore(checkpoints: &[ContainerCheckpoint], taken: &[String], over: &[String], tasks: &[Task]) -> bool {
    let runs = |id: &String| tasks.iter().any(|task| task.id == *id && is_alive(task) && task.state != TaskState::Abandoned);
    let copies = tasks.iter().filter(|task| checkpoints.iter().any(|c| task.restored_from.as_ref() == Some(&c.image))).map(|task| &task.id);
    copies.chain(taken).all(|id| runs(id) || over.contains(id))
}

/// Whether every container that was to be restored has a running task, whatever it was made from.
#[must_use]
pub fn all_run(checkpoints: &[ContainerCheckpoint], tasks: &[Task]) -> bool {
    let runs = |task: &Task| matches!(task.state, TaskState::Running | TaskState::Filling);
    !checkpoints.is_empty() && checkpoints.iter().all(|c| tasks.iter().any(|t| t.container == c.name && runs(t)))
}

fn is_alive(task: &Task) -> bool {
    task.state != TaskState::Stopped
}

/// CRIU's first error, where its log has one and does not have the line of the resume point.
fn refused_before_resume(log: &str) -> Option<String> {
    if log.contains(RESUMED) {
        return None;
    }
    criu::cause(log)
}

fn says_restore_failed(status: &ContainerStatus) -> bool {
    let said = |state: Option<&k8s_openapi::api::core::v1::ContainerState>| {
        let waiting = state.and_then(|s| s.waiting.as_ref()).and_then(|w| w.message.as_deref());
        let ended = state.and_then(|s| s.terminated.as_ref()).and_then(|t| t.message.as_deref());
        [waiting, ended].into_iter().flatten().any(|message| message.contains(RESTORE_FAILED))
    };
    said(status.state.as_ref()) || said(status.last_state.as_ref())
}

#[cfg(test)]
mod tests;
