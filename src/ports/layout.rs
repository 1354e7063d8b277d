//! Checkpoints laid out on this node for `drover-runc`, which restores from them (the runtime lane).

use async_trait::async_trait;

use tokio::io::{AsyncRead, AsyncWrite};

use super::{BlobStream, PortResult};
use crate::domain::{ids::Digest, memory::MemoryDigest};

/// A checkpoint and the container that it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Repository of the checkpoint, under which its memory has come.
    pub repository: String,
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
    /// Whether its memory stays with the source, and is fetched from there (post-copy).
    pub is_post_copy: bool,
}

/// A way to the memory that a source has kept: what a keeper asks goes there, and pages come back.
pub trait Way: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Way for T {}

/// Header of a request that brings an image whose size is not known yet: what it is thought to become, in bytes.
pub const ESTIMATED_LENGTH: &str = "drover-estimated-length";

/// Header of a request whose image is told as pieces, some of them of what has come before (pre-copy): which file that is.
pub const OVER: &str = "drover-over";

/// Name of the protocol that a way speaks once it is open: what CRIU's page server and its lazy-pages daemon say to each other.
pub const WAY: &str = "drover-pages";

/// An image with pages on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// Repository of the checkpoint.
    pub repository: String,
    /// The container.
    pub container: String,
    /// Name of the image.
    pub file: String,
    /// Its size.
    pub size: Size,
    /// Whether it is told as pieces, some of them of [`crate::domain::memory::PRE_COPY`], which has come before.
    pub is_over_pre_copy: bool,
}

/// How large an image is that is on its way, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// So large.
    Exact(u64),
    /// It is still being written, and is thought to become about so large.
    Estimated(u64),
}

impl Size {
    /// Bytes that a place for it should have.
    #[must_use]
    pub fn bytes(self) -> u64 {
        let (Self::Exact(bytes) | Self::Estimated(bytes)) = self;
        bytes
    }
}

/// Checkpoints laid out on this node.
#[async_trait]
pub trait Layout: Send + Sync {
    /// Takes an image with pages that comes before the archive that names it; its digest. One that has come before is replaced. Where the stream ends in an
    /// error, or with another size than the exact one, nothing is kept.
    async fn receive(&self, memory: &Incoming, content: BlobStream) -> PortResult<MemoryDigest>;
    /// Takes the way to the memory that the source of a container has kept, until its keeper asks for it. One that has come before is closed.
    async fn connect(&self, repository: &str, container: &str, way: Box<dyn Way>) -> PortResult<()>;
    /// Listens for the keeper of a container whose memory stays with its source; nothing happens where it does.
    async fn offer(&self, copy: &Copy) -> PortResult<()>;
    /// Removes what has come for a repository, and closes its ways; nothing happens where there is nothing.
    async fn forget(&self, repository: &str) -> PortResult<()>;
    /// The repositories for which something has come.
    async fn repositories(&self) -> PortResult<Vec<String>>;
    /// Whether the checkpoint of a container is complete.
    async fn is_laid_out(&self, pod_uid: &str, container: &str) -> PortResult<bool>;
    /// Lays out an archive that must have this digest, with the images that it names and that have come, in memory where that has room for it, else on disk, and puts the container's log in its place. What is
    /// there of an earlier try is replaced. Nothing of the container may run yet.
    async fn lay_out(&self, copy: &Copy, tar: BlobStream, digest: &Digest) -> PortResult<()>;
    /// Removes what is laid out for a pod; nothing happens where there is nothing.
    async fn discard(&self, pod_uid: &str) -> PortResult<()>;
    /// UIDs of the pods for which something is laid out.
    async fn pods(&self) -> PortResult<Vec<String>>;
}
