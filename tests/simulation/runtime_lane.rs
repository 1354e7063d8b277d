//! The ports of the runtime lane: the simulated nodes have the image lane alone.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use drover::{
    api::attestation::ContainerId,
    domain::{ids::Digest, memory::MemoryDigest},
    ports::{
        BlobStream, PortError, PortResult,
        dump::Dump,
        layout::{Copy, Incoming, Layout, Way},
    },
};

use crate::world::Handle;

#[async_trait]
impl Layout for Handle {
    async fn receive(&self, memory: &Incoming, _content: BlobStream) -> PortResult<MemoryDigest> {
        Err(PortError::permanent(format!("no memory comes here, also not {}", memory.file)))
    }
    async fn connect(&self, _repository: &str, container: &str, _way: Box<dyn Way>) -> PortResult<()> {
        Err(PortError::permanent(format!("no memory comes here, also not of container {container}")))
    }
    async fn offer(&self, copy: &Copy) -> PortResult<()> {
        Err(PortError::permanent(format!("no memory comes here, also not of container {}", copy.container)))
    }
    async fn forget(&self, _repository: &str) -> PortResult<()> {
        Ok(())
    }
    async fn repositories(&self) -> PortResult<Vec<String>> {
        Ok(vec![])
    }
    async fn is_laid_out(&self, _pod_uid: &str, _container: &str) -> PortResult<bool> {
        Ok(false)
    }
    async fn lay_out(&self, copy: &Copy, _tar: BlobStream, _digest: &Digest) -> PortResult<()> {
        Err(PortError::permanent(format!("no checkpoint is laid out here, also not of container {}", copy.container)))
    }
    async fn discard(&self, _pod_uid: &str) -> PortResult<()> {
        Ok(())
    }
    async fn pods(&self) -> PortResult<Vec<String>> {
        Ok(vec![])
    }
}

#[async_trait]
impl Dump for Handle {
    async fn prepare(&self, _migration_uid: &str, container: &str, _bytes: u64) -> PortResult<PathBuf> {
        Err(PortError::permanent(format!("the runtime dumps nothing here, also not container {container}")))
    }
    async fn dump(&self, container: &ContainerId, _folder: &Path) -> PortResult<()> {
        Err(PortError::permanent(format!("the runtime dumps nothing here, also not container {}", container.name)))
    }
    async fn dump_but_memory(&self, container: &ContainerId, folder: &Path) -> PortResult<()> {
        self.dump(container, folder).await
    }
    async fn left(&self, _migration_uid: &str, _container: &str) -> PortResult<Option<PathBuf>> {
        Ok(None)
    }
    async fn keep(&self, _dump: &Path, _to: &Path) -> PortResult<()> {
        Ok(())
    }
    async fn discard(&self, _migration_uid: &str) -> PortResult<()> {
        Ok(())
    }
}
