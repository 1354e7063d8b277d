//! The fake node's inside of a pod.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use futures::StreamExt as _;

use super::{FakeNode, node::State};
use crate::{
    api::attestation::ContainerId,
    domain::{ids::Digest, memory::MemoryDigest, processes::PodFacts},
    ports::{
        BlobStream, PortError, PortResult,
        dump::Dump,
        inside,
        layout::{self, Layout},
    },
};

/// What is inside of the fake node's pod.
#[derive(Default)]
pub(crate) struct Inside {
    /// What a look at its processes finds.
    pub(crate) facts: PodFacts,
    /// Its sandbox is not there yet.
    pub(crate) no_sandbox: bool,
    /// Volumes that have something in them.
    pub(crate) volumes: Vec<(String, PathBuf)>,
}

impl FakeNode {
    async fn inside(&self, call: &'static str, of: &[String]) -> PortResult<()> {
        self.call(call, |state| {
            if !of.is_empty() {
                state.trace.push(format!("{call} {}", of.join(" ")));
            }
            Ok(())
        })
        .await
    }
}

#[async_trait]
impl inside::Inside for FakeNode {
    async fn look(&self, _pod_uid: &str, _containers: &[ContainerId], _addresses: &[String]) -> PortResult<PodFacts> {
        self.call("look", |state| {
            state.trace.push("look".into());
            Ok(state.inside.facts.clone())
        })
        .await
    }
    async fn has_sandbox(&self, _pod_uid: &str) -> PortResult<bool> {
        self.call("has_sandbox", |state| Ok(!state.inside.no_sandbox)).await
    }
    async fn volumes(&self, _pod_uid: &str) -> PortResult<Vec<(String, PathBuf)>> {
        self.call("volumes", |state| Ok(state.inside.volumes.clone())).await
    }
    async fn archive_volumes(&self, _pod_uid: &str, to: &Path) -> PortResult<bool> {
        self.call("archive_volumes", |state| {
            if state.inside.volumes.is_empty() {
                return Ok(false);
            }
            state.trace.push("archive volumes".into());
            std::fs::write(to, b"volumes").map(|()| true).map_err(|error| PortError::transient(error.to_string()))
        })
        .await
    }
    async fn fill_volumes(&self, _pod_uid: &str, _tar: BlobStream, digest: &Digest) -> PortResult<()> {
        self.inside("fill_volumes", &[digest.to_string()]).await
    }
    async fn lend_addresses(&self, _pod_uid: &str, addresses: &[String]) -> PortResult<()> {
        self.inside("lend_addresses", addresses).await
    }
    async fn take_addresses_back(&self, _pod_uid: &str, addresses: &[String]) -> PortResult<()> {
        self.inside("take_addresses_back", addresses).await
    }
    async fn own_stdio(&self, containers: &[ContainerId]) -> PortResult<()> {
        let ids: Vec<String> = containers.iter().map(|c| c.container_id.clone()).collect();
        self.inside("own_stdio", &ids).await
    }
}

#[async_trait]
impl Layout for FakeNode {
    async fn receive(&self, memory: &layout::Incoming, mut content: BlobStream) -> PortResult<MemoryDigest> {
        let place = format!("{}/{}", memory.container, memory.file);
        self.call("receive", |state| {
            state.trace.push(format!("receive {place}"));
            Ok(())
        })
        .await?;
        let mut come = vec![];
        while let Some(chunk) = content.next().await {
            match chunk {
                Ok(chunk) => come.extend_from_slice(&chunk),
                Err(error) => {
                    let told = |state: &mut State| {
                        state.trace.push(format!("{place} breaks off"));
                        Err(PortError::transient(error.to_string()))
                    };
                    return self.call("received", told).await;
                }
            }
        }
        self.call("received", |state| {
            state.trace.push(format!("{} of {} bytes of {place}", come.len(), memory.size.bytes()));
            match memory.size {
                layout::Size::Exact(bytes) if come.len() as u64 != bytes => {
                    Err(PortError::transient(format!("{} bytes of {bytes} came", come.len())))
                }
                _ => Ok(MemoryDigest::of(&come)),
            }
        })
        .await
    }
    /// What comes by the way goes back by it.
    async fn connect(&self, repository: &str, container: &str, way: Box<dyn layout::Way>) -> PortResult<()> {
        let (mut from, mut to) = tokio::io::split(way);
        tokio::spawn(async move { tokio::io::copy(&mut from, &mut to).await });
        self.call("connect", |state| {
            state.trace.push(format!("connect {repository}/{container}"));
            Ok(())
        })
        .await
    }
    async fn offer(&self, copy: &layout::Copy) -> PortResult<()> {
        self.call("offer", |state| {
            state.trace.push(format!("offer memory to {}/{}", copy.pod_uid, copy.container));
            Ok(())
        })
        .await
    }
    async fn forget(&self, _repository: &str) -> PortResult<()> {
        self.call("forget", |_| Ok(())).await
    }
    async fn repositories(&self) -> PortResult<Vec<String>> {
        Ok(vec![])
    }
    async fn is_laid_out(&self, pod_uid: &str, container: &str) -> PortResult<bool> {
        self.call("is_laid_out", |state| Ok(state.laid_out.contains(&format!("{pod_uid}/{container}")))).await
    }
    async fn lay_out(&self, copy: &layout::Copy, _tar: BlobStream, _digest: &Digest) -> PortResult<()> {
        self.call("lay_out", |state| {
            let place = format!("{}/{}", copy.pod_uid, copy.container);
            state.trace.push(format!("lay out {place}"));
            state.laid_out.insert(place);
            Ok(())
        })
        .await
    }
    async fn discard(&self, pod_uid: &str) -> PortResult<()> {
        self.call("discard", |state| {
            let before = state.laid_out.len();
            state.laid_out.retain(|place| !place.starts_with(pod_uid));
            if state.laid_out.len() < before {
                state.trace.push(format!("discard {pod_uid}"));
            }
            Ok(())
        })
        .await
    }
    async fn pods(&self) -> PortResult<Vec<String>> {
        let of = |place: &String| place.split('/').next().unwrap_or_default().to_owned();
        self.call("laid_out", |state| Ok(state.laid_out.iter().map(of).collect())).await
    }
}

#[async_trait]
impl Dump for FakeNode {
    async fn prepare(&self, migration_uid: &str, container: &str, _bytes: u64) -> PortResult<PathBuf> {
        self.call("prepare", |state| {
            let folder = state.checkpoints.join(migration_uid).join(container);
            std::fs::create_dir_all(&folder).map_err(|error| PortError::permanent(error.to_string()))?;
            Ok(folder)
        })
        .await
    }
    async fn dump(&self, container: &ContainerId, folder: &Path) -> PortResult<()> {
        self.call("dump", |state| {
            assert!(folder.is_dir(), "nobody has prepared {}", folder.display());
            state.trace.push(format!("dump {}", container.name));
            Ok(())
        })
        .await
    }
    async fn dump_but_memory(&self, container: &ContainerId, folder: &Path) -> PortResult<()> {
        self.call("dump_but_memory", |state| {
            assert!(folder.is_dir(), "nobody has prepared {}", folder.display());
            state.trace.push(format!("dump {} but its memory", container.name));
            Ok(())
        })
        .await
    }
    async fn left(&self, migration_uid: &str, container: &str) -> PortResult<Option<PathBuf>> {
        self.call("left", |state| Ok(Some(state.checkpoints.join(migration_uid).join(container)).filter(|dump| dump.is_dir()))).await
    }
    async fn keep(&self, dump: &Path, to: &Path) -> PortResult<()> {
        self.call("keep", |state| {
            state.trace.push("keep".into());
            std::fs::write(to, dump.display().to_string()).map_err(|error| PortError::permanent(error.to_string()))
        })
        .await
    }
    async fn discard(&self, migration_uid: &str) -> PortResult<()> {
        self.call("discard_dump", |state| {
            let folder = state.checkpoints.join(migration_uid);
            if folder.exists() {
                state.trace.push("discard dump".into());
                std::fs::remove_dir_all(folder).map_err(|error| PortError::permanent(error.to_string()))?;
            }
            Ok(())
        })
        .await
    }
}
