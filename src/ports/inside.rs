//! What is inside of a pod on this node: its processes, and what its sandbox has.

use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::{BlobStream, PortResult};
use crate::{
    api::attestation::ContainerId,
    domain::{ids::Digest, processes::PodFacts},
};

/// The inside of this node's pods.
#[async_trait]
pub trait Inside: Send + Sync {
    /// What the processes of these containers hold, and how much is in the pod's emptyDir volumes; `addresses` are the pod's own. Nothing is stopped or
    /// changed by it, and it is bounded in time.
    async fn look(&self, pod_uid: &str, containers: &[ContainerId], addresses: &[String]) -> PortResult<PodFacts>;
    /// Whether the pod's sandbox, with its network and volumes, is there.
    async fn has_sandbox(&self, pod_uid: &str) -> PortResult<bool>;
    /// The pod's volumes that are carried, by their names in the tar, as folders that this process can read: each emptyDir, and /dev/shm where something
    /// is in it.
    async fn volumes(&self, pod_uid: &str) -> PortResult<Vec<(String, PathBuf)>>;
    /// Writes the tar of these volumes, readable by nobody else; false where the pod has none. It is not synced yet.
    async fn archive_volumes(&self, pod_uid: &str, to: &Path) -> PortResult<bool>;
    /// Empties the pod's volumes and fills them from a tar that must have this digest. Nothing may run in the pod yet.
    async fn fill_volumes(&self, pod_uid: &str, tar: BlobStream, digest: &Digest) -> PortResult<()>;
    /// Puts addresses on the loopback device of the pod's own network, so that sockets may be bound to them; those that are there stay. Nothing
    /// happens in a pod that uses the node's network.
    async fn lend_addresses(&self, pod_uid: &str, addresses: &[String]) -> PortResult<()>;
    /// Takes them off again; nothing happens where they are not there.
    async fn take_addresses_back(&self, pod_uid: &str, addresses: &[String]) -> PortResult<()>;
    /// Makes the pipes at standard input, output and error of these containers' first processes their own user's.
    async fn own_stdio(&self, containers: &[ContainerId]) -> PortResult<()>;
}
