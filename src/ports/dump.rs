//! Checkpoints that are taken through the container runtime itself, without the kubelet's archive (the runtime lane).

use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::PortResult;
use crate::api::attestation::ContainerId;

/// Takes checkpoints on this node.
#[async_trait]
pub trait Dump: Send + Sync {
    /// Makes an empty folder for the checkpoint of a container; what is there of an earlier try goes. `bytes` is what the pod's memory is thought to be.
    async fn prepare(&self, migration_uid: &str, container: &str, bytes: u64) -> PortResult<PathBuf>;
    /// Checkpoints one paused container, which stays paused, into a folder of [`Self::prepare`]: CRIU's images, the difference of its root file system, its log.
    async fn dump(&self, container: &ContainerId, folder: &Path) -> PortResult<()>;
    /// The same without the memory, which stays with the paused processes and is given away from there ([`super::Pusher::give_memory`]), as long as nobody
    /// resumes or kills the container.
    async fn dump_but_memory(&self, container: &ContainerId, folder: &Path) -> PortResult<()>;
    /// The whole checkpoint of a container that is there of a migration, also one of which nobody has heard. One without the memory is none.
    async fn left(&self, migration_uid: &str, container: &str) -> PortResult<Option<PathBuf>>;
    /// Makes a checkpoint that nobody else has outlast a reboot, as one file.
    async fn keep(&self, dump: &Path, to: &Path) -> PortResult<()>;
    /// Removes what was dumped for a migration; nothing happens where there is nothing.
    async fn discard(&self, migration_uid: &str) -> PortResult<()>;
    /// Ends what gives away the memory of containers that the runtime knows no more.
    async fn sweep(&self) -> PortResult<()> {
        Ok(())
    }
}
