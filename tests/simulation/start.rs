//! One start of one container: image, record, gate, CRIU or a fresh program. It goes on when the kubelet or the agent dies, and ends with its node.

use std::fs;

use drover::{
    domain::keys,
    gate::{self, Decision},
    markers::{evidence, write_durably},
    ports::TaskState,
};

use crate::{
    mutation::Mutation,
    node::{Container, Content, Memory, Node},
    truth,
    world::{Process, Sim, World},
};

/// CRIU's line at the point of no return.
const RESUMED: &str = "Restore finished successfully. Tasks resumed.";

/// What is to be started.
pub struct Start {
    pub at: usize,
    /// The boot that it belongs to.
    pub boot: u32,
    /// The life of the kubelet that makes it: until the runtime has it, it ends with that.
    pub kubelet: u32,
    pub pod_uid: String,
    pub container: String,
    pub image: String,
}

impl Start {
    /// Brings the container up, as far as gate and CRIU let it.
    pub async fn run(self, sim: Sim) {
        self.bring_up(&sim).await;
        sim.aside(|world| {
            let node = &mut world.nodes[self.at];
            if let Some(place) = node.making.iter().position(|uid| *uid == self.pod_uid).filter(|_| node.boots == self.boot) {
                node.making.remove(place);
            }
        });
    }

    async fn bring_up(&self, sim: &Sim) {
        let Some((id, content)) = self.make(sim).await else { return };
        if let Err(refusal) = self.step(sim, |world| self.pass_gate(world, &id)).await.unwrap_or(Ok(())) {
            self.fail(sim, &id, &refusal).await;
            return;
        }
        match content {
            Content::Base => {
                self.step(sim, |world| {
                    let memory = truth::begins_anew(world, &self.pod_uid, &self.container);
                    self.executes(world, &id, memory, true);
                })
                .await;
            }
            Content::Checkpoint(memory) => self.restore(sim, &id, memory).await,
        }
    }

    /// A deed after a while; none where the node has failed since.
    async fn step<T>(&self, sim: &Sim, deed: impl FnOnce(&mut World) -> T) -> Option<T> {
        let pause = sim.aside(|world| world.millis(5..250));
        tokio::time::sleep(pause).await;
        sim.deed(|world| (world.nodes[self.at].boots == self.boot && world.nodes[self.at].is_up).then(|| deed(world)))
    }

    /// Pulls, and makes the record: no task yet.
    async fn make(&self, sim: &Sim) -> Option<(String, Content)> {
        let found = self.step(sim, |world| {
            let content = resolve(world, self.at, &self.image);
            if let Some(known) = world.nodes[self.at].kubelet.pods.get_mut(&self.pod_uid).and_then(|pod| pod.containers.get_mut(&self.container)) {
                known.is_pulling = false;
                if content.is_none() {
                    known.last_error = format!("{} cannot be pulled", self.image);
                }
            }
            content
        });
        let content = found.await??;
        self.step(sim, |world| {
            if world.life(Process::Kubelet(self.at)).generation != self.kubelet {
                return None;
            }
            let node = &mut world.nodes[self.at];
            let id = node.fresh_id();
            let restored = matches!(content, Content::Checkpoint(_));
            let container = Container {
                id: id.clone(),
                pod_uid: self.pod_uid.clone(),
                name: self.container.clone(),
                state: TaskState::Stopped,
                executes: false,
                memory: Memory { lineage: 0, steps: 0 },
                restored_from: restored.then(|| self.image.clone()),
                cpu_nanos: 0,
                is_starting: true,
                ended: None,
            };
            // The kubelet keeps the last dead one only.
            let dead: Vec<String> =
                node.of_pod(&self.pod_uid).filter(|c| c.name == self.container && c.ended.is_some()).map(|c| c.id.clone()).collect();
            dead.iter().rev().skip(1).for_each(|id| drop(node.containers.remove(id)));
            node.containers.insert(id.clone(), container);
            if restored {
                let bundle = node.bundle(&id);
                let _ = fs::create_dir_all(&bundle).and_then(|()| fs::write(bundle.join("restore.log"), "(00.000) begin\n"));
            }
            Some((id, content))
        })
        .await
        .flatten()
    }

    /// The OCI hook, with the state that runc gives it.
    fn pass_gate(&self, world: &mut World, id: &str) -> Result<(), String> {
        if world.plan.mutation == Mutation::NoGate || !world.nodes[self.at].gated {
            return Ok(());
        }
        let node = &world.nodes[self.at];
        let state = serde_json::json!({
            "ociVersion": "1.2.0", "id": id, "bundle": node.bundle(id),
            "annotations": {
                "io.kubernetes.cri.sandbox-uid": self.pod_uid,
                "io.kubernetes.cri.container-name": self.container,
                "io.kubernetes.cri.container-type": "container",
            }
        });
        let decision = gate::decide(&node.gate_root(), state.to_string().as_bytes());
        self.note_boot(node);
        match decision {
            Decision::Allow | Decision::AllowUnknown(_) => Ok(()),
            Decision::Refuse(reason) => Err(format!("OCI runtime restore failed: error running createRuntime hook #0: {reason}")),
        }
    }

    /// The gate has noted the boot of the machine that simulates: it becomes the simulated node's, unless it was noted in an earlier one.
    fn note_boot(&self, node: &Node) {
        let Ok(path) = node.markers().evidence_path(&self.pod_uid, &self.container) else { return };
        let Ok(Some(mut noted)) = evidence::read(&path) else { return };
        if noted.boot == evidence::this_boot() {
            noted.boot = Some(node.boot_id());
            let _ = write_durably(&path, &serde_json::to_vec(&noted).unwrap_or_default());
        }
    }

    /// CRIU: the processes run before its log says so, and the log says so before the runtime does.
    async fn restore(&self, sim: &Sim, id: &str, memory: Memory) {
        let refused = {
            let plan = &sim.lock().plan;
            plan.restore_is_refused && (self.at == 1 || plan.fallback_is_refused)
        };
        if refused {
            self.log(sim, id, "Error (criu/mount.c:1): mnt: No mapping for 7\nError (criu/cr-restore.c:2): Restoring FAILED.\n").await;
            self.fail(sim, id, "OCI runtime restore failed: criu failed: type RESTORE errno 0").await;
            return;
        }
        if sim.lock().plan.log_is_noisy {
            self.log(sim, id, "Error (criu/util.c:641): something that CRIU gets over\n").await;
        }
        self.step(sim, |world| self.executes(world, id, memory, false)).await;
        self.log(sim, id, RESUMED).await;
        self.step(sim, |world| self.is_running(world, id)).await;
    }

    async fn log(&self, sim: &Sim, id: &str, text: &str) {
        use std::io::Write as _;
        self.step(sim, |world| {
            let path = world.nodes[self.at].bundle(id).join("restore.log");
            let _ = fs::OpenOptions::new().append(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()));
        })
        .await;
    }

    fn executes(&self, world: &mut World, id: &str, memory: Memory, at_once: bool) {
        let Some(container) = world.nodes[self.at].containers.get_mut(id) else { return };
        (container.executes, container.memory) = (true, memory);
        let (name, from) = (container.name.clone(), container.restored_from.is_some());
        let how = if from { format!("is restored at step {}", memory.steps) } else { "starts anew".to_owned() };
        let node = world.nodes[self.at].name;
        world.tell(format_args!("{name} ({id}) of pod {} {how} on {node}", &self.pod_uid[..8]));
        truth::started(world, self.at, id);
        if at_once {
            self.is_running(world, id);
        }
    }

    fn is_running(&self, world: &mut World, id: &str) {
        if let Some(container) = world.nodes[self.at].containers.get_mut(id) {
            container.is_starting = false;
            if container.ended.is_none() {
                container.state = TaskState::Running;
            }
        }
    }

    /// The record stays, its folder goes, the kubelet hears of it.
    async fn fail(&self, sim: &Sim, id: &str, message: &str) {
        self.step(sim, |world| {
            let ended = world.elapsed();
            let node = &mut world.nodes[self.at];
            let _ = fs::remove_dir_all(node.bundle(id));
            if let Some(container) = node.containers.get_mut(id) {
                container.is_starting = false;
                container.ended.get_or_insert(ended);
            }
            if let Some(known) = node.kubelet.pods.get_mut(&self.pod_uid).and_then(|pod| pod.containers.get_mut(&self.container)) {
                message.clone_into(&mut known.last_error);
            }
            world.tell(format_args!("{} ({id}) of pod {} is not started: {message}", self.container, &self.pod_uid[..8]));
        })
        .await;
    }
}

/// What the image stands for on this node, pulling a checkpoint from its registry where the store does not have it (pullPolicy `IfNotPresent`).
fn resolve(world: &mut World, at: usize, image: &str) -> Option<Content> {
    let node = &mut world.nodes[at];
    if let Some(content) = node.store.get(image) {
        return Some(*content);
    }
    let Some(rest) = image.strip_prefix(keys::PULL_ADDRESS).and_then(|rest| rest.strip_prefix('/')) else {
        return Some(Content::Base);
    };
    if !node.registry_up {
        return None;
    }
    let (repository, tag) = rest.rsplit_once(':')?;
    let stored = node.registry.get(repository)?;
    let content = stored.manifests.get(stored.tags.get(tag)?)?.0;
    node.store.insert(image.to_owned(), content);
    Some(content)
}
