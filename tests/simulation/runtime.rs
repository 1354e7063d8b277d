//! The agent's ports to its own node: runtime, kubelet, images; and the push to the other node's.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use drover::{
    api::attestation::{ContainerId, PushedImage},
    domain::{ids::Digest, pages::PageIndex, processes::PodFacts, tasks},
    ports::{
        BlobStream, Growing, ImageManifest, Images, Kubelet, Mending, PortError, PortResult, PullCredential, PushTarget, Pusher, Runtime, Task,
        TaskState, inside::Inside,
    },
};
use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;

use crate::{
    node::{Container, Content, Memory, read_archive, write_archive},
    truth,
    world::{Door, Handle, NODES, World},
};

/// The base image of every container.
pub fn base_image() -> String {
    format!("registry.example/web@sha256:{}", "b".repeat(64))
}

fn base_digest() -> Digest {
    Digest::from_sha256(&[0xbb; 32])
}

/// The digest of a checkpoint image: other memory, other digest; packing it twice gives the same.
fn digest_of(memory: Memory, container: &str) -> String {
    let name: u64 = container.bytes().fold(7, |sum, byte| sum * 31 + u64::from(byte));
    format!("sha256:{:016x}{:016x}{:016x}{}", memory.lineage, memory.steps, name, "0".repeat(16))
}

impl Handle {
    pub fn at(&self) -> usize {
        self.process.node().unwrap_or_default()
    }

    async fn on_task(&self, id: &str, deed: impl FnOnce(&mut World, &mut Container, usize) -> PortResult<()> + Send) -> PortResult<()> {
        let at = self.at();
        self.call(Door::Runtime(at), |world| {
            let Some(mut container) = world.nodes[at].containers.get(id).cloned() else { return Ok(()) };
            let done = deed(world, &mut container, at);
            world.nodes[at].containers.insert(id.to_owned(), container);
            done
        })
        .await
    }
}

#[async_trait]
impl Runtime for Handle {
    async fn tasks(&self, pod_uid: &str) -> PortResult<Vec<Task>> {
        let at = self.at();
        self.call(Door::Runtime(at), |world| {
            let task = |c: &Container| Task {
                container: c.name.clone(),
                id: c.id.clone(),
                state: c.state,
                restored_from: c.restored_from.clone(),
                spoilt: None,
            };
            Ok(world.nodes[at].of_pod(pod_uid).map(task).collect())
        })
        .await
    }

    async fn pause(&self, id: &str) -> PortResult<()> {
        self.on_task(id, |world, container, _| match container.state {
            TaskState::Running => {
                (container.state, container.executes) = (TaskState::Paused, false);
                world.tell(format_args!("the {} pauses {} ({})", self.process, container.name, container.id));
                Ok(())
            }
            TaskState::Paused => Ok(()),
            TaskState::Created | TaskState::Filling | TaskState::Abandoned | TaskState::Stopped => Err(PortError::permanent("the task does not run")),
        })
        .await
    }

    async fn resume(&self, id: &str) -> PortResult<()> {
        self.on_task(id, |world, container, _| {
            if container.state == TaskState::Paused {
                (container.state, container.executes) = (TaskState::Running, true);
                world.tell(format_args!("the {} thaws {} ({})", self.process, container.name, container.id));
                truth::thawed(world, container);
            }
            Ok(())
        })
        .await
    }

    async fn kill(&self, id: &str) -> PortResult<()> {
        self.on_task(id, |world, container, _| {
            if container.is_alive() {
                world.tell(format_args!("the {} kills {} ({})", self.process, container.name, container.id));
                truth::drover_kills(world, container);
                end(world, container);
            }
            Ok(())
        })
        .await
    }

    async fn remove_ended(&self, id: &str) -> PortResult<bool> {
        let at = self.at();
        self.call(Door::Runtime(at), |world| {
            let ended = world.elapsed();
            let Some(container) = world.nodes[at].containers.get_mut(id) else { return Ok(true) };
            if container.state == TaskState::Created && !container.is_starting && !container.executes {
                container.state = TaskState::Stopped;
                container.ended.get_or_insert(ended);
            }
            Ok(container.state == TaskState::Stopped && container.ended.is_some())
        })
        .await
    }

    async fn cpu_nanos(&self, id: &str) -> PortResult<u64> {
        let at = self.at();
        self.call(Door::Runtime(at), |world| {
            let container = world.nodes[at].containers.get(id).filter(|c| c.state != TaskState::Stopped);
            container.map(|c| c.cpu_nanos).ok_or_else(|| PortError::transient("its cgroup cannot be read"))
        })
        .await
    }
}

/// A container's processes are gone.
pub fn end(world: &World, container: &mut Container) {
    (container.state, container.executes) = (TaskState::Stopped, false);
    container.ended.get_or_insert(world.elapsed());
}

#[async_trait]
impl Kubelet for Handle {
    async fn checkpoint(&self, namespace: &str, pod: &str, container: &str, limit: Duration) -> PortResult<PathBuf> {
        let at = self.at();
        let took = self.sim.aside(|world| world.plan.slow_dump.unwrap_or(Duration::from_millis(300)));
        let half = took.min(limit) / 2;
        self.sleep(half).await;
        let path = self.call(Door::Kubelet(at), |world| dump(world, at, namespace, pod, container)).await;
        self.sleep(half).await;
        if took > limit {
            return Err(PortError::transient("the kubelet did not end the checkpoint in time"));
        }
        path
    }

    async fn sync(&self, archive: &Path) -> PortResult<()> {
        self.call(Door::Runtime(self.at()), |_| if archive.exists() { Ok(()) } else { Err(PortError::transient("the archive is not there")) }).await
    }

    async fn pods(&self) -> PortResult<Vec<Pod>> {
        let at = self.at();
        self.call(Door::Kubelet(at), |world| {
            let pods = world.nodes[at].kubelet.shown();
            if tasks::is_whole(&pods) { Ok(pods) } else { Err(PortError::transient("the kubelet has not read its pods from the API server yet")) }
        })
        .await
    }
}

/// CRIU thaws the cgroup to seize the tasks, runs its parasite in them, and leaves them paused; a refusal too.
fn dump(world: &mut World, at: usize, namespace: &str, pod: &str, container: &str) -> PortResult<PathBuf> {
    let uid = world.nodes[at].kubelet.uid_of(pod).ok_or_else(|| PortError::permanent("the kubelet knows no such pod"))?;
    let found = world.nodes[at].containers.values_mut().find(|c| c.pod_uid == uid && c.name == container && c.is_alive());
    let Some(found) = found else { return Err(PortError::permanent("the container does not run")) };
    found.cpu_nanos += 17;
    let (memory, id) = (found.memory, found.id.clone());
    if world.plan.dump_is_refused {
        world.tell(format_args!("CRIU refuses to dump {container} ({id})"));
        return Err(PortError::permanent("CRIU: Error (criu/files.c:1): Can't dump this"));
    }
    world.faults.archives += 1;
    let number = world.faults.archives;
    let path = world.nodes[at].checkpoints().join(format!("checkpoint-{pod}_{namespace}-{container}-2026-11-25T14:00:{number:02}Z.tar"));
    write_archive(&path, memory).map_err(|e| PortError::transient(e.to_string()))?;
    world.truth.archived(path.clone(), memory, &uid);
    world.tell(format_args!("CRIU dumps {container} ({id}) at step {}", memory.steps));
    Ok(path)
}

#[async_trait]
impl Pusher for Handle {
    async fn push(&self, archive: &Path, container: &str, _mending: &Mending, target: &PushTarget) -> PortResult<PushedImage> {
        let memory = read_archive(archive).ok_or_else(|| PortError::permanent("the archive cannot be read"))?;
        let to = NODES.iter().position(|name| *name == target.node).ok_or_else(|| PortError::permanent("no such node"))?;
        let from = self.at();
        let took = self.sim.aside(|world| world.plan.slow_push.unwrap_or(Duration::from_millis(200)));
        self.sleep(took).await;
        let image = PushedImage {
            container: container.to_owned(),
            digest: digest_of(memory, container),
            bytes: 7,
            memory_bytes: None,
            pre_copied_bytes: None,
        };
        self.call(Door::Push(to, from), |world| {
            if !world.api.may_push(NODES[to], NODES[from], &target.repository) {
                return Err(PortError::permanent("the push door refuses: no such migration"));
            }
            let repository = world.nodes[to].registry.entry(target.repository.clone()).or_default();
            repository.manifests.insert(image.digest.clone(), (Content::Checkpoint(memory), image.bytes));
            repository.tags.insert(container.to_owned(), image.digest.clone());
            world.tell(format_args!("the {} has pushed {container} at step {} to {}", self.process, memory.steps, NODES[to]));
            Ok(image)
        })
        .await
    }

    async fn pre_copy(&self, container: &ContainerId, _bytes: u64, _target: &PushTarget) -> PortResult<PageIndex> {
        Err(PortError::permanent(format!("the pages of {} cannot be read here", container.name)))
    }

    async fn send_ahead(&self, dump: &Growing, _target: &PushTarget, _written: CancellationToken) -> PortResult<()> {
        Err(PortError::permanent(format!("no runtime writes {} here", dump.folder.display())))
    }

    async fn give_memory(&self, container: &ContainerId, _target: &PushTarget) -> PortResult<()> {
        Err(PortError::permanent(format!("nobody has left the memory of {} here", container.name)))
    }

    async fn push_volumes(&self, _volumes: &[(String, PathBuf)], _target: &PushTarget) -> PortResult<PushedImage> {
        Err(PortError::permanent("no pod has volumes here"))
    }

    async fn push_volumes_archive(&self, _archive: &Path, _target: &PushTarget) -> PortResult<PushedImage> {
        Err(PortError::permanent("no pod has volumes here"))
    }
}

#[async_trait]
impl Inside for Handle {
    async fn look(&self, _pod_uid: &str, _containers: &[ContainerId], _addresses: &[String]) -> PortResult<PodFacts> {
        self.call(Door::Runtime(self.at()), |_| Ok(PodFacts::default())).await
    }

    async fn has_sandbox(&self, pod_uid: &str) -> PortResult<bool> {
        let at = self.at();
        self.call(Door::Runtime(at), |world| Ok(world.nodes[at].sandboxes.contains(pod_uid))).await
    }

    async fn volumes(&self, _pod_uid: &str) -> PortResult<Vec<(String, PathBuf)>> {
        self.call(Door::Runtime(self.at()), |_| Ok(vec![])).await
    }

    async fn archive_volumes(&self, _pod_uid: &str, _to: &Path) -> PortResult<bool> {
        self.call(Door::Runtime(self.at()), |_| Ok(false)).await
    }

    async fn fill_volumes(&self, _pod_uid: &str, _tar: BlobStream, _digest: &Digest) -> PortResult<()> {
        Err(PortError::permanent("no pod has volumes here"))
    }

    async fn lend_addresses(&self, _pod_uid: &str, _addresses: &[String]) -> PortResult<()> {
        self.call(Door::Runtime(self.at()), |_| Ok(())).await
    }

    async fn take_addresses_back(&self, _pod_uid: &str, _addresses: &[String]) -> PortResult<()> {
        self.call(Door::Runtime(self.at()), |_| Ok(())).await
    }

    async fn own_stdio(&self, _containers: &[ContainerId]) -> PortResult<()> {
        self.call(Door::Runtime(self.at()), |_| Ok(())).await
    }
}

#[async_trait]
impl Images for Handle {
    async fn ensure(&self, reference: &str, _credentials: &[PullCredential]) -> PortResult<()> {
        let at = self.at();
        self.call(Door::Runtime(at), |world| {
            if world.plan.base_is_missing {
                return Err(PortError::permanent("the base image does not exist"));
            }
            world.nodes[at].store.insert(reference.to_owned(), Content::Base);
            Ok(())
        })
        .await
    }

    async fn remove(&self, reference: &str) -> PortResult<()> {
        let at = self.at();
        self.call(Door::Runtime(at), |world| {
            truth::drover_collects(world, |world| {
                world.nodes[at].store.remove(reference);
            });
            Ok(())
        })
        .await
    }

    async fn checkpoints(&self) -> PortResult<Vec<String>> {
        let at = self.at();
        self.call(Door::Runtime(at), |world| {
            Ok(world.nodes[at].store.keys().filter(|name| drover::domain::keys::is_checkpoint_image(name)).cloned().collect())
        })
        .await
    }

    async fn manifest(&self, reference: &str) -> PortResult<ImageManifest> {
        let at = self.at();
        self.call(Door::Runtime(at), |world| {
            if world.nodes[at].store.contains_key(reference) {
                Ok(ImageManifest { digest: base_digest(), media_type: String::new(), bytes: vec![], blobs: vec![] })
            } else {
                Err(PortError::permanent("the image is not in the store"))
            }
        })
        .await
    }

    async fn blob(&self, _digest: &Digest) -> PortResult<BlobStream> {
        Err(PortError::permanent("nobody asks for blobs here"))
    }
}
