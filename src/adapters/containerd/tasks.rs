//! Tasks: freeze, thaw, kill, and what is known of them.

use std::{io, path::Path, time::Duration};

use async_trait::async_trait;
use containerd_client::{
    services::v1::{
        Container, DeleteTaskRequest, GetRequest, KillRequest, ListContainersRequest, MetricsRequest, PauseTaskRequest, ResumeTaskRequest,
        containers_client::ContainersClient, tasks_client::TasksClient,
    },
    types::v1::Status as ProcessStatus,
};
use k8s_cri::v1::ContainerState;
use tonic::{Code, transport::Channel};

use super::{Containerd, LARGEST_ANSWER, TASK_CALL, cgroup, failure, metrics, request, task_request, vfork};
use crate::{
    adapters::blocking,
    domain::ids::is_uid,
    ports::{Failure, PortError, PortResult, Runtime, Task, TaskState},
    runc::{Pages, Record, pages, processes},
};

pub(super) const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// containerd's CRI plugin labels what it makes: `sandbox` or `container`.
pub(super) const KIND: &str = "io.cri-containerd.kind";
const SIGKILL: u32 = 9;

/// Between two looks at a task that is being paused. Not a guess at how long it takes, only how often it is asked.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How long a freeze is tried again for a process that is caught between vfork and exec each time. Seldom more than some 10 us pass between the two.
const VFORK_PATIENCE: Duration = Duration::from_secs(5);
/// How long a page server may take to let go of the processes whose memory it gives away.
const LET_GO: Duration = Duration::from_secs(10);

impl Containerd {
    pub(super) fn tasks_client(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_ANSWER)
    }

    /// State of a container's task; [`TaskState::Stopped`] where it has none.
    async fn state(&self, id: &str) -> PortResult<TaskState> {
        let get = GetRequest { container_id: id.to_owned(), exec_id: String::new() };
        match self.tasks_client().get(task_request(get)).await {
            Ok(answer) => {
                let status = answer.into_inner().process.map_or(ProcessStatus::Unknown, |process| process.status());
                task_state(status)
                    .ok_or_else(|| PortError::transient(format!("containerd does not know the state of task {id}; its shim may have died")))
            }
            Err(status) if status.code() == Code::NotFound => Ok(TaskState::Stopped),
            Err(status) => Err(failure(&format!("read the state of task {id}"), &status)),
        }
    }

    /// Asks the files of the container's cgroup, whose path its OCI spec names; they are read below the host's /sys/fs/cgroup.
    async fn of_cgroup<T: Send + 'static>(&self, id: &str, ask: fn(&Path, &str) -> io::Result<T>) -> PortResult<io::Result<T>> {
        let spec: serde_json::Value = serde_json::from_slice(&self.spec(id).await?)
            .map_err(|error| PortError::permanent(format!("the OCI spec of container {id} cannot be parsed: {error}")))?;
        let path = spec.pointer("/linux/cgroupsPath").and_then(serde_json::Value::as_str);
        let path = path.ok_or_else(|| PortError::permanent(format!("the OCI spec of container {id} names no cgroup")))?.to_owned();
        let root = self.cgroups.clone();
        Ok(tokio::task::spawn_blocking(move || ask(&root, &path)).await.unwrap_or_else(|error| Err(io::Error::other(error))))
    }

    /// Whether nobody starts a container any more, or supervises it: CRI has seen its end, or cannot tell its state since a restart, or has forgotten it, as
    /// the kubelet removes an old container when it has made the pod new ones.
    async fn is_given_up(&self, id: &str) -> PortResult<bool> {
        match self.known(id).await {
            Ok(known) => Ok(matches!(known.state, ContainerState::ContainerExited | ContainerState::ContainerUnknown)),
            Err(error) if error.kind == Failure::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// What `drover-runc` has noted of a restore. Of one whose memory still comes, and whose keeper was killed, nobody will ever say that all of it has come.
    async fn vouched_for(&self, id: &str) -> PortResult<Option<Record>> {
        let record = self.recorded(id)?;
        if record.as_ref().is_none_or(|record| record.pages != Pages::Outstanding) {
            return Ok(record);
        }
        let of = id.to_owned();
        let kept = tokio::task::spawn_blocking(move || processes::is_kept(Path::new("/proc"), &of)).await;
        let kept = kept.unwrap_or_else(|error| Err(io::Error::other(error)));
        if kept.map_err(|error| PortError::transient(format!("the keeper of container {id} cannot be looked for: {error}")))? {
            return Ok(record);
        }
        // Read again: its last word may have come in between.
        let orphaned = || Pages::Failed("the keeper of its memory was killed, and nobody can say whether all of it has come".to_owned());
        Ok(self.recorded(id)?.map(|record| if record.pages == Pages::Outstanding { Record { pages: orphaned(), ..record } } else { record }))
    }

    /// Ends what still executes of a container that is given up; whether there was nothing. A restore whose containerd has ended in its middle goes on as
    /// an orphan: its container is removed, and it executes in a cgroup of its own for ever (seen with 2.3.4 on the lab).
    async fn end_orphans(&self, id: &str) -> PortResult<bool> {
        let of = id.to_owned();
        let killed = tokio::task::spawn_blocking(move || processes::kill(Path::new("/proc"), &of)).await;
        let killed = killed.unwrap_or_else(|error| Err(io::Error::other(error)));
        let killed = killed.map_err(|error| PortError::transient(format!("what executes of container {id} cannot be ended: {error}")))?;
        if killed > 0 {
            tracing::warn!(container = id, processes = killed, "killed what the runtime has given up and not ended");
        }
        Ok(killed == 0)
    }

    /// Ends the page server of a container that was dumped without its memory; false where it does not end in time. Nothing happens where there is none.
    async fn end_page_server(&self, id: &str) -> PortResult<bool> {
        let (root, of) = (self.pages.clone(), id.to_owned());
        let ended = blocking(move || pages::end(&root, &of, LET_GO)).await;
        ended.map_err(|error| PortError::transient(format!("the page server of container {id} cannot be ended: {error}")))
    }

    fn unreadable(&self, error: &io::Error) -> PortError {
        let root = self.cgroups.display();
        PortError::transient(format!("its cgroup below {root} cannot be read: {error}; is the host's /sys/fs/cgroup mounted into the agent?"))
    }

    /// Waits until the freezer has taken every process. `PAUSING` counts as paused in [`TaskState`], so it is told apart here.
    async fn wait_paused(&self, id: &str) -> PortResult<()> {
        let get = || GetRequest { container_id: id.to_owned(), exec_id: String::new() };
        let paused = async {
            loop {
                let answer =
                    self.tasks_client().get(task_request(get())).await.map_err(|status| failure(&format!("see task {id} paused"), &status))?;
                match answer.into_inner().process.map(|process| process.status()) {
                    Some(ProcessStatus::Paused) => return Ok(()),
                    Some(ProcessStatus::Pausing) => tokio::time::sleep(LOOK_AGAIN).await,
                    other => return Err(PortError::transient(format!("task {id} did not stay paused: it is {other:?}"))),
                }
            }
        };
        tokio::time::timeout(TASK_CALL, paused).await.unwrap_or_else(|_| {
            Err(PortError::transient(format!("task {id} was not paused within {TASK_CALL:?}; a process in it may be stuck in the kernel")))
        })
    }

    async fn pause_once(&self, id: &str) -> PortResult<()> {
        let pause = PauseTaskRequest { container_id: id.to_owned() };
        if let Err(status) = self.tasks_client().pause(task_request(pause)).await {
            // runc refuses to pause what is paused; that is the wish fulfilled.
            if self.state(id).await != Ok(TaskState::Paused) {
                return Err(failure(&format!("pause task {id}"), &status));
            }
        }
        self.wait_paused(id).await
    }

    /// Threads of a paused task that CRIU could not seize; none where that cannot be read, for CRIU says so itself, only later.
    async fn in_vfork(&self, id: &str) -> Vec<i32> {
        match self.of_cgroup(id, vfork::waiting).await.and_then(|read| read.map_err(|error| self.unreadable(&error))) {
            Ok(waiting) => waiting,
            Err(error) => {
                tracing::debug!(container = id, %error, "cannot tell whether a process is in vfork");
                vec![]
            }
        }
    }
}

#[async_trait]
impl Runtime for Containerd {
    async fn tasks(&self, pod_uid: &str) -> PortResult<Vec<Task>> {
        if !is_uid(pod_uid) {
            return Err(PortError::permanent(format!("{pod_uid:?} is no pod UID")));
        }
        let list = ListContainersRequest { filters: vec![format!("labels.\"{POD_UID}\"=={pod_uid}")] };
        let containers = ContainersClient::new(self.channel.clone())
            .max_decoding_message_size(LARGEST_ANSWER)
            .list(request(list))
            .await
            .map_err(|status| failure(&format!("list the containers of pod {pod_uid}"), &status))?
            .into_inner()
            .containers;
        let mut tasks = Vec::new();
        for container in containers.into_iter().filter(is_workload) {
            let known = match self.known(&container.id).await {
                // Removed since it was listed: it is no container of the pod any more.
                Err(error) if error.kind == Failure::NotFound => continue,
                other => other?,
            };
            let state = as_cri_knows(self.state(&container.id).await?, known.state);
            let name = container.labels.get(CONTAINER_NAME).cloned().unwrap_or_default();
            let task = Task { container: name, id: container.id, state, restored_from: known.restored_from, spoilt: None };
            let record = self.vouched_for(&task.id).await?;
            tasks.push(as_recorded(task, record));
        }
        tasks.sort_by(|a, b| (&a.container, &a.id).cmp(&(&b.container, &b.id)));
        Ok(tasks)
    }

    async fn pause(&self, id: &str) -> PortResult<()> {
        // CRIU takes a page that has not come for one that is not there: its checkpoint would have zeros in it.
        if self.recorded(id)?.is_some_and(|record| record.pages != Pages::Complete) {
            return Err(PortError::transient(format!("not all memory of container {id} is back from its restore; it cannot be checkpointed before")));
        }
        let given_up = tokio::time::Instant::now() + VFORK_PATIENCE;
        loop {
            self.pause_once(id).await?;
            let waiting = self.in_vfork(id).await;
            if waiting.is_empty() {
                return Ok(());
            }
            if tokio::time::Instant::now() >= given_up {
                return Err(PortError::permanent(format!(
                    "a process of container {id} (thread {} on its node) waits in vfork for a child that executes no program and does not end: CRIU \
                     cannot checkpoint that; try again when it has gone on",
                    waiting[0]
                )));
            }
            tracing::debug!(container = id, threads = ?waiting, "frozen between vfork and exec, which CRIU cannot checkpoint: once more");
            self.resume(id).await?;
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn resume(&self, id: &str) -> PortResult<()> {
        // CRIU holds every process as long as it serves, and thaws what it finds frozen when it is ended after that.
        if !self.end_page_server(id).await? {
            return Err(PortError::transient(format!("the page server of container {id} has not ended; what it holds cannot be resumed")));
        }
        let resume = ResumeTaskRequest { container_id: id.to_owned() };
        match self.tasks_client().resume(task_request(resume)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => match self.state(id).await? {
                TaskState::Running | TaskState::Filling | TaskState::Abandoned | TaskState::Stopped => Ok(()),
                TaskState::Created | TaskState::Paused => Err(failure(&format!("resume task {id}"), &status)),
            },
        }
    }

    async fn kill(&self, id: &str) -> PortResult<()> {
        // It ends with the processes in any case.
        if !matches!(self.end_page_server(id).await, Ok(true)) {
            tracing::warn!(container = id, "its page server has not ended before it");
        }
        // With `all`, every process of the cgroup; runc thaws a frozen cgroup v1 after the signal, so that nothing but the signal is executed
        // (MEASURED.md 1).
        let kill = KillRequest { container_id: id.to_owned(), exec_id: String::new(), signal: SIGKILL, all: true };
        match self.tasks_client().kill(task_request(kill)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => match self.state(id).await? {
                TaskState::Stopped => Ok(()),
                _ => Err(failure(&format!("kill task {id}"), &status)),
            },
        }
    }

    async fn remove_ended(&self, id: &str) -> PortResult<bool> {
        match self.state(id).await? {
            TaskState::Created => {}
            TaskState::Stopped => return Ok(self.is_given_up(id).await? && self.end_orphans(id).await?),
            TaskState::Running if self.is_given_up(id).await? => {
                tracing::warn!(container = id, "it executes, but the runtime has told the kubelet that its start failed: ending it");
                return self.kill(id).await.map(|()| false);
            }
            TaskState::Running | TaskState::Filling | TaskState::Abandoned | TaskState::Paused => return Ok(false),
        }
        if self.is_given_up(id).await? && !self.end_orphans(id).await? {
            return Ok(false);
        }
        match self.of_cgroup(id, cgroup::is_empty).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return Ok(false),
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Ok(Err(error)) => return Err(self.unreadable(&error)),
            Err(error) if error.kind == Failure::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        // runc refuses where it knows of a process after all.
        let delete = DeleteTaskRequest { container_id: id.to_owned() };
        match self.tasks_client().delete(task_request(delete)).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(true),
            Err(status) => Err(failure(&format!("remove the ended task {id}"), &status)),
        }
    }

    async fn resumed_at(&self, id: &str) -> PortResult<Option<jiff::Timestamp>> {
        let millis = self.recorded(id)?.and_then(|record| record.resumed).and_then(|millis| i64::try_from(millis).ok());
        Ok(millis.and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok()))
    }

    async fn cpu_nanos(&self, id: &str) -> PortResult<u64> {
        let doing = format!("read the CPU time of task {id}");
        let filter = MetricsRequest { filters: vec![format!("id=={id}")] };
        let answer = self.tasks_client().metrics(task_request(filter)).await.map_err(|status| failure(&doing, &status))?.into_inner();
        if let Some(metric) = answer.metrics.into_iter().find(|metric| metric.id == id).and_then(|metric| metric.data) {
            return metrics::cpu_nanos(&metric).map_err(|problem| PortError::permanent(format!("could not {doing}: {problem}")));
        }
        let read = self.of_cgroup(id, cgroup::cpu_nanos).await;
        read.and_then(|read| read.map_err(|error| self.unreadable(&error))).map_err(|error| error.context(&doing))
    }
}

/// Whether it is a container of the pod's spec, not its sandbox.
fn is_workload(container: &Container) -> bool {
    container.labels.get(KIND).is_none_or(|kind| kind != "sandbox") && container.labels.contains_key(CONTAINER_NAME)
}

/// A running task in the light of what the kubelet is told of its container, which was asked before: what CRI does not know to run yet is on its way.
fn as_cri_knows(task: TaskState, cri: ContainerState) -> TaskState {
    match (task, cri) {
        (TaskState::Running, ContainerState::ContainerCreated) => TaskState::Created,
        (TaskState::Running, ContainerState::ContainerExited | ContainerState::ContainerUnknown) => TaskState::Abandoned,
        (task, _) => task,
    }
}

/// A task in the light of what `drover-runc` has noted of its restore, if it was one.
fn as_recorded(task: Task, record: Option<Record>) -> Task {
    let Some(record) = record else { return task };
    let restored_from = task.restored_from.or(Some(record.checkpoint));
    let state = match (task.state, &record.pages) {
        (TaskState::Running, Pages::Outstanding | Pages::Failed(_)) => TaskState::Filling,
        (state, _) => state,
    };
    let spoilt = if let Pages::Failed(reason) = record.pages { Some(reason) } else { None };
    Task { state, restored_from, spoilt, ..task }
}

/// None for a state that says nothing.
fn task_state(status: ProcessStatus) -> Option<TaskState> {
    match status {
        ProcessStatus::Created => Some(TaskState::Created),
        ProcessStatus::Running => Some(TaskState::Running),
        ProcessStatus::Paused | ProcessStatus::Pausing => Some(TaskState::Paused),
        ProcessStatus::Stopped => Some(TaskState::Stopped),
        ProcessStatus::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled(labels: &[(&str, &str)]) -> Container {
        Container { labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(), ..Container::default() }
    }

    #[test]
    fn the_sandbox_is_no_container_of_the_pod() {
        assert!(is_workload(&labelled(&[(KIND, "container"), (CONTAINER_NAME, "redis")])));
        assert!(!is_workload(&labelled(&[(KIND, "sandbox"), (CONTAINER_NAME, "POD")])));
        assert!(!is_workload(&labelled(&[(KIND, "sandbox")])));
    }

    #[test]
    fn a_task_that_the_kubelet_takes_for_ended_is_abandoned() {
        use ContainerState::{ContainerCreated, ContainerExited, ContainerRunning, ContainerUnknown};
        for (cri, state) in [
            (ContainerCreated, TaskState::Created),
            (ContainerRunning, TaskState::Running),
            (ContainerExited, TaskState::Abandoned),
            (ContainerUnknown, TaskState::Abandoned),
        ] {
            assert_eq!(as_cri_knows(TaskState::Running, cri), state, "{cri:?}");
            assert_eq!(as_cri_knows(TaskState::Stopped, cri), TaskState::Stopped, "{cri:?}");
        }
    }

    #[test]
    fn a_task_runs_when_all_of_its_memory_is_there() {
        let task =
            |state, from: Option<&str>| Task { container: "c".into(), id: "1".into(), state, restored_from: from.map(str::to_owned), spoilt: None };
        let record = |pages| Some(Record { pod: "u".into(), container: "c".into(), checkpoint: "image".into(), pages, resumed: None });
        assert_eq!(as_recorded(task(TaskState::Running, None), None), task(TaskState::Running, None));
        for (state, pages, wanted) in [
            (TaskState::Running, Pages::Complete, TaskState::Running),
            (TaskState::Running, Pages::Outstanding, TaskState::Filling),
            (TaskState::Stopped, Pages::Outstanding, TaskState::Stopped),
            (TaskState::Abandoned, Pages::Outstanding, TaskState::Abandoned),
        ] {
            assert_eq!(as_recorded(task(state, None), record(pages)), task(wanted, Some("image")));
        }
        let spoilt = as_recorded(task(TaskState::Stopped, None), record(Pages::Failed("why".into())));
        assert_eq!(spoilt, Task { spoilt: Some("why".into()), ..task(TaskState::Stopped, Some("image")) });
    }

    #[test]
    fn an_unknown_state_is_no_state() {
        assert_eq!(task_state(ProcessStatus::Unknown), None);
        assert_eq!(task_state(ProcessStatus::Pausing), Some(TaskState::Paused));
    }
}
