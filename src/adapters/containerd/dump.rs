//! What a checkpoint without CRI needs of containerd: CRIU's images straight into a folder, and where the rest of a container lies.

use std::path::{Path, PathBuf};

use containerd_client::services::v1::{
    CheckpointTaskRequest, Container, GetContainerRequest,
    containers_client::ContainersClient,
    snapshots::{MountsRequest, snapshots_client::SnapshotsClient},
};
use k8s_cri::v1::ContainerStatusRequest;
use prost::Message;

use super::{Containerd, LARGEST_ANSWER, failure, request, task_request};
use crate::ports::{Failure, PortError, PortResult};

/// Type of a checkpoint's options for runc's shim (containerd `api/types/runc/options/oci.proto`).
const OPTIONS: &str = "containerd.runc.v1.CheckpointOptions";

/// The fields of it that are set here. With a path for the images containerd leaves them there, and puts nothing into its content store
/// (`plugins/services/tasks/local.go`, `Checkpoint`). The container goes on, or stays paused, unless `exit` is set.
#[derive(Clone, PartialEq, Message)]
struct CheckpointOptions {
    #[prost(string, tag = "8")]
    image_path: String,
    #[prost(string, tag = "9")]
    work_path: String,
}

impl Containerd {
    /// Has runc checkpoint a paused task into a folder of the node, with CRIU's log in another. It stays paused.
    ///
    /// # Errors
    /// What containerd says; CRIU's own reason is in its log.
    pub async fn checkpoint_into(&self, id: &str, images: &Path, work: &Path) -> PortResult<()> {
        let options = CheckpointOptions { image_path: images.display().to_string(), work_path: work.display().to_string() };
        let options = prost_types::Any { type_url: OPTIONS.to_owned(), value: options.encode_to_vec() };
        let checkpoint = CheckpointTaskRequest { container_id: id.to_owned(), parent_checkpoint: String::new(), options: Some(options) };
        // No limit of its own: the freeze budget ends it.
        let done = self.tasks_client().checkpoint(request(checkpoint)).await;
        done.map(drop).map_err(|status| failure(&format!("checkpoint task {id}"), &status))
    }

    /// The container's OCI spec, as JSON.
    ///
    /// # Errors
    /// Where containerd does not know it.
    pub async fn spec(&self, id: &str) -> PortResult<Vec<u8>> {
        Ok(self.container(id).await?.spec.unwrap_or_default().value)
    }

    /// The folder of the node in which a container's overlay keeps what was changed in its root file system.
    ///
    /// # Errors
    /// Permanent where its snapshotter keeps no such folder.
    pub async fn changed_files(&self, id: &str) -> PortResult<PathBuf> {
        let container = self.container(id).await?;
        let mounts = MountsRequest { snapshotter: container.snapshotter.clone(), key: container.snapshot_key };
        let answer = SnapshotsClient::new(self.channel.clone()).mounts(task_request(mounts)).await;
        let mounts = answer.map_err(|status| failure(&format!("find the root file system of container {id}"), &status))?.into_inner().mounts;
        let upper = mounts.iter().flat_map(|mount| &mount.options).find_map(|option| option.strip_prefix("upperdir="));
        upper.map(PathBuf::from).ok_or_else(|| {
            let snapshotter = container.snapshotter;
            PortError::permanent(format!("containerd's snapshotter {snapshotter:?} keeps no folder of changes (an overlay does); use lane: image"))
        })
    }

    /// Where the runtime writes a container's log, by its path on the node; none where it writes none.
    ///
    /// # Errors
    /// Where CRI does not answer.
    pub async fn log_path(&self, id: &str) -> PortResult<Option<PathBuf>> {
        let ask = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.cri().container_status(super::cri::limited(ask)).await;
        let status = answer.map_err(|status| failure(&format!("tell the log of container {id}"), &status))?.into_inner().status.unwrap_or_default();
        Ok(Some(status.log_path).filter(|path| !path.is_empty()).map(PathBuf::from))
    }

    /// Whether containerd knows a container.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn knows(&self, id: &str) -> PortResult<bool> {
        match self.container(id).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind == Failure::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn container(&self, id: &str) -> PortResult<Container> {
        let get = GetContainerRequest { id: id.to_owned() };
        let answer = ContainersClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_ANSWER).get(task_request(get)).await;
        let found = answer.map_err(|status| failure(&format!("find container {id}"), &status))?.into_inner().container;
        found.ok_or_else(|| PortError::transient(format!("containerd told nothing of container {id}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_are_as_runcs_shim_reads_them() {
        let options = CheckpointOptions { image_path: "/a".into(), work_path: "/b".into() };
        assert_eq!(options.encode_to_vec(), b"\x42\x02/a\x4a\x02/b");
    }
}
