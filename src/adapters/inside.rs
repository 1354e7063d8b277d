//! The inside of this node's pods, as [`Inside`] asks for it: by way of their sandboxes' and containers' first processes, which containerd names.

mod addresses;
mod empty_dirs;
mod stdio;

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use async_trait::async_trait;

use super::{
    containerd::{Containerd, Sandbox},
    processes::ProcInspector,
    received::feed,
    volumes::{self, Hashed, Volume},
};
use crate::{
    api::attestation::ContainerId,
    domain::{ids::Digest, processes::PodFacts},
    ports::{BlobStream, PortError, PortResult, inside::Inside},
};

/// Name of /dev/shm in the tar of a pod's volumes.
const SHARED_MEMORY: &str = "shm";

/// This node's pods.
#[derive(Debug, Clone)]
pub struct NodeInside {
    inspector: ProcInspector,
    containerd: Containerd,
    host_root: PathBuf,
    pods: PathBuf,
}

/// The node's root as its first process sees it. What the kubelet has mounted, emptyDirs in memory among it, is there whatever the agent's own mounts
/// have missed: an empty folder in its stead would be taken for the volume's content.
const NODE: &str = "/proc/1/root";

impl NodeInside {
    /// The pods of the node whose root file system is at `host_root`, and whose kubelet keeps pods' folders at `pods` there; the agent shares its
    /// process IDs.
    #[must_use]
    pub fn new(containerd: Containerd, host_root: &Path, pods: &Path) -> Self {
        let pods = Path::new(NODE).join(pods.strip_prefix("/").unwrap_or(pods));
        Self { inspector: ProcInspector::new(host_root), containerd, host_root: host_root.to_owned(), pods }
    }

    async fn sandbox(&self, pod_uid: &str) -> PortResult<Sandbox> {
        let sandbox = self.containerd.sandbox(pod_uid).await?;
        sandbox.ok_or_else(|| PortError::transient(format!("no sandbox of pod {pod_uid} runs on this node")))
    }

    fn empty_dirs(&self, pod_uid: &str) -> PortResult<Vec<Volume>> {
        empty_dirs::of(&self.pods, pod_uid).map_err(|error| PortError::transient(format!("the pod's emptyDir volumes cannot be listed: {error}")))
    }

    /// The sandbox's own /dev/shm, where the agent has it too: below the runtime's folder. None where it has the node's, or none at all.
    fn shared_memory(&self, sandbox: &Sandbox) -> PortResult<Option<PathBuf>> {
        let Some(folder) = sandbox.shared_memory.clone() else { return Ok(None) };
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
        let Ok(own) = device(&folder) else {
            let folder = folder.display();
            return Err(PortError::transient(format!(
                "the pod's /dev/shm is not at {folder} in the agent: is the runtime's state folder mounted there?"
            )));
        };
        if device(&self.host_root.join("dev/shm")).is_ok_and(|nodes| nodes == own) {
            return Ok(None);
        }
        if folder.parent().is_some_and(|above| device(above).is_ok_and(|above| above == own)) {
            return Err(PortError::transient(format!("{} is not mounted in the agent: its volume needs HostToContainer", folder.display())));
        }
        Ok(Some(folder))
    }
}

fn process(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

#[async_trait]
impl Inside for NodeInside {
    async fn look(&self, pod_uid: &str, containers: &[ContainerId], addresses: &[String]) -> PortResult<PodFacts> {
        let pods = self.pods.clone();
        let uid = pod_uid.to_owned();
        let sizes = move || empty_dirs::of(&pods, &uid).map(|volumes| empty_dirs::bytes(&volumes));
        self.inspector.look(containers, addresses, sizes).await
    }

    async fn has_sandbox(&self, pod_uid: &str) -> PortResult<bool> {
        Ok(self.containerd.sandbox(pod_uid).await?.is_some())
    }

    async fn volumes(&self, pod_uid: &str) -> PortResult<Vec<(String, PathBuf)>> {
        let sandbox = self.sandbox(pod_uid).await?;
        let mut volumes = self.empty_dirs(pod_uid)?;
        if let Some(folder) = self.shared_memory(&sandbox)? {
            let mut entries = fs::read_dir(&folder).map_err(|error| PortError::transient(format!("the pod's /dev/shm cannot be read: {error}")))?;
            if entries.next().is_some() {
                volumes.push(Volume { name: SHARED_MEMORY.to_owned(), folder });
            }
        }
        Ok(volumes.into_iter().map(|volume| (volume.name, volume.folder)).collect())
    }

    async fn archive_volumes(&self, pod_uid: &str, to: &Path) -> PortResult<bool> {
        let volumes: Vec<Volume> = self.volumes(pod_uid).await?.into_iter().map(|(name, folder)| Volume { name, folder }).collect();
        if volumes.is_empty() {
            return Ok(false);
        }
        let to = to.to_owned();
        let written = tokio::task::spawn_blocking(move || volumes::archive(&volumes, &to)).await.unwrap_or_else(|error| Err(io::Error::other(error)));
        written.map(|()| true).map_err(|error| PortError::transient(format!("the pod's volumes could not be archived: {error}")))
    }

    async fn fill_volumes(&self, pod_uid: &str, tar: BlobStream, digest: &Digest) -> PortResult<()> {
        let sandbox = self.sandbox(pod_uid).await?;
        let mut volumes = self.empty_dirs(pod_uid)?;
        volumes.extend(self.shared_memory(&sandbox)?.map(|folder| Volume { name: SHARED_MEMORY.to_owned(), folder }));
        let wanted = digest.clone();
        let filled = feed(tar, move |tar| {
            let mut hashed = Hashed::new(tar);
            volumes::unpack(&mut hashed, &volumes)?;
            hashed.finish()
        });
        match filled.await {
            Ok(found) if found == wanted => Ok(()),
            Ok(found) => Err(PortError::permanent(format!("the pod's volumes have the digest {found}, not {wanted}: they were changed on the way"))),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(PortError::permanent(format!("the pod's volumes: {error}"))),
            Err(error) => Err(PortError::transient(format!("the pod's volumes could not be filled: {error}"))),
        }
    }

    async fn lend_addresses(&self, pod_uid: &str, addresses: &[String]) -> PortResult<()> {
        addresses::change(&process(self.sandbox(pod_uid).await?.pid), addresses, addresses::Change::Add).await
    }

    async fn take_addresses_back(&self, pod_uid: &str, addresses: &[String]) -> PortResult<()> {
        // Without a sandbox there is no network either.
        let Some(sandbox) = self.containerd.sandbox(pod_uid).await? else { return Ok(()) };
        addresses::change(&process(sandbox.pid), addresses, addresses::Change::Remove).await
    }

    async fn own_stdio(&self, containers: &[ContainerId]) -> PortResult<()> {
        for container in containers {
            let Some(pid) = self.containerd.task_pid(&container.container_id).await? else { continue };
            stdio::own(&process(pid)).map_err(|error| {
                PortError::transient(format!("the pipes of container {} could not be given to its user: {error}", container.name))
            })?;
        }
        Ok(())
    }
}
