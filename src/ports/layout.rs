//! Checkpoints laid out on this node for `drover-runc`, which restores from them (the runtime lane).

use async_trait::async_trait;

use super::{BlobStream, PortResult};
use crate::domain::ids::Digest;

/// A checkpoint and the container that it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// The pod.
    pub pod_uid: String,
    /// Its name, as `namespace_name`; the folder of its logs begins with it.
    pub pod: String,
    /// The container.
    pub container: String,
    /// What it is restored from: the image, as [`crate::domain::keys::checkpoint_image`] names it. Whoever asks later what a container was restored from is
    /// told this.
    pub image: String,
    /// Bytes of the archive.
    pub bytes: u64,
}

/// Checkpoints laid out on this node.
#[async_trait]
pub trait Layout: Send + Sync {
    /// Whether the checkpoint of a container is complete.
    async fn is_laid_out(&self, pod_uid: &str, container: &str) -> PortResult<bool>;
    /// Lays out an archive that must have this digest, in memory where that has room for it, else on disk, and puts the container's log in its place. What is
    /// there of an earlier try is replaced. Nothing of the container may run yet.
    async fn lay_out(&self, copy: &Copy, tar: BlobStream, digest: &Digest) -> PortResult<()>;
    /// Removes what is laid out for a pod; nothing happens where there is nothing.
    async fn discard(&self, pod_uid: &str) -> PortResult<()>;
    /// UIDs of the pods for which something is laid out.
    async fn pods(&self) -> PortResult<Vec<String>>;
}
