//! First processes of sandboxes and containers: the way into their namespaces.

use std::path::PathBuf;

use containerd_client::services::v1::{GetRequest, ListContainersRequest, containers_client::ContainersClient};
use tonic::Code;

use super::{Containerd, LARGEST_ANSWER, failure, request, task_request, tasks};
use crate::{
    domain::ids::is_uid,
    ports::{PortError, PortResult},
};

/// A pod's sandbox that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// The process that holds the pod's namespaces.
    pub pid: u32,
    /// What is mounted at its /dev/shm, by its path on the node. The sandbox itself sees it read-only.
    pub shared_memory: Option<PathBuf>,
}

impl Containerd {
    /// The pod's sandbox; none where none of it runs.
    ///
    /// # Errors
    /// Where containerd does not answer.
    pub async fn sandbox(&self, pod_uid: &str) -> PortResult<Option<Sandbox>> {
        if !is_uid(pod_uid) {
            return Err(PortError::permanent(format!("{pod_uid:?} is no pod UID")));
        }
        let list = ListContainersRequest { filters: vec![format!("labels.\"{}\"=={pod_uid},labels.\"{}\"==sandbox", tasks::POD_UID, tasks::KIND)] };
        let answer = ContainersClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_ANSWER).list(request(list)).await;
        let sandboxes = answer.map_err(|status| failure(&format!("find the sandbox of pod {pod_uid}"), &status))?.into_inner().containers;
        // One that was replaced may still be listed; it has no process.
        for sandbox in sandboxes {
            if let Some(pid) = self.task_pid(&sandbox.id).await? {
                let spec = sandbox.spec.map(|spec| spec.value).unwrap_or_default();
                return Ok(Some(Sandbox { pid, shared_memory: shared_memory(&spec) }));
            }
        }
        Ok(None)
    }

    /// The first process of a task; none where it has none.
    ///
    /// # Errors
    /// Where containerd does not answer.
    pub async fn task_pid(&self, id: &str) -> PortResult<Option<u32>> {
        let get = GetRequest { container_id: id.to_owned(), exec_id: String::new() };
        match self.tasks_client().get(task_request(get)).await {
            Ok(answer) => Ok(answer.into_inner().process.map(|process| process.pid).filter(|pid| *pid != 0)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(failure(&format!("find the process of task {id}"), &status)),
        }
    }
}

/// Source of the mount at /dev/shm in an OCI spec.
fn shared_memory(spec: &[u8]) -> Option<PathBuf> {
    let spec: serde_json::Value = serde_json::from_slice(spec).ok()?;
    let mounts = spec.get("mounts")?.as_array()?;
    let mount = mounts.iter().find(|mount| mount.get("destination").and_then(serde_json::Value::as_str) == Some("/dev/shm"))?;
    mount.get("source").and_then(serde_json::Value::as_str).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spec_names_what_is_mounted_at_dev_shm() {
        // As containerd 2.3 writes it for a sandbox.
        let spec = br#"{"mounts": [{"destination": "/dev/mqueue", "source": "mqueue"}, {"destination": "/dev/shm", "type": "bind",
            "source": "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/0f/shm", "options": ["rbind", "ro"]}]}"#;
        assert_eq!(shared_memory(spec), Some("/run/containerd/io.containerd.grpc.v1.cri/sandboxes/0f/shm".into()));
        assert_eq!(shared_memory(br#"{"mounts": []}"#), None);
    }
}
