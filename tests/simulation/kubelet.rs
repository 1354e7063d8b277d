//! A kubelet: its own lagging view of the pods, what it starts, ends, and says.

use std::{collections::BTreeMap, time::Duration};

use drover::{domain::keys, ports::TaskState};
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, Pod, PodCondition, PodStatus,
};
use tokio::time::Instant;

use crate::{
    api::name_of,
    mutation::Mutation,
    node::Container,
    runtime::{base_image, end},
    start::Start,
    truth,
    world::{Door, Handle, NODES, Process, World},
};

/// Where a kubelet notes who told it of a pod.
const CONFIG_SOURCE: &str = "kubernetes.io/config.source";

/// What a kubelet knows; lost when it is restarted.
#[derive(Default)]
pub struct KubeletState {
    /// It has read its pods from the API server.
    pub has_read: bool,
    pub pods: BTreeMap<String, KnownPod>,
    /// Containers of no pod, and since when.
    orphans: BTreeMap<String, Instant>,
}

/// A pod as its kubelet knows it.
pub struct KnownPod {
    /// As it was last read.
    pub pod: Pod,
    sandbox_at: Instant,
    /// Since when it is ended, and when the program heeds SIGTERM.
    ending: Option<(Instant, Duration)>,
    pub containers: BTreeMap<String, Known>,
}

/// A container of a pod as its kubelet knows it.
#[derive(Clone, Default)]
pub struct Known {
    restarts: i32,
    tries: u32,
    /// Why the last one ended or could not be started.
    pub last_error: String,
    retry_at: Option<Instant>,
    pub is_pulling: bool,
}

impl KubeletState {
    /// It was restarted.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    pub fn uid_of(&self, name: &str) -> Option<String> {
        self.pods.iter().find(|(_, known)| known.pod.metadata.name.as_deref() == Some(name)).map(|(uid, _)| uid.clone())
    }

    /// `GET /pods`: with the agent's own pod, once it has read them.
    pub fn shown(&self) -> Vec<Pod> {
        let mut pods: Vec<Pod> = self.pods.values().map(|known| known.pod.clone()).collect();
        if self.has_read {
            let mut agent = Pod::default();
            agent.metadata.name = Some("drover-agent".into());
            agent.metadata.annotations = Some([(CONFIG_SOURCE.to_owned(), "api".to_owned())].into());
            pods.push(agent);
        }
        pods
    }
}

/// Runs one kubelet for one life.
pub async fn run(handle: Handle) {
    let Some(at) = handle.process.node() else { return };
    loop {
        let pause = handle.sim.aside(|world| world.millis(150..900));
        handle.sleep(pause).await;
        let starts = handle.sim.deed(|world| sync(world, at));
        for start in starts {
            tokio::spawn(start.run(handle.sim.clone()));
        }
    }
}

fn sync(world: &mut World, at: usize) -> Vec<Start> {
    let reaches = world.closed(Process::Kubelet(at), Door::Api).is_none();
    if reaches && !world.once_in(4) {
        refresh(world, at);
        world.nodes[at].last_heartbeat = Instant::now();
    }
    let runtime_up = world.closed(Process::Agent(at), Door::Runtime(at)).is_none();
    let mut starts = vec![];
    if runtime_up {
        let uids: Vec<String> = world.nodes[at].kubelet.pods.keys().cloned().collect();
        for uid in uids {
            starts.extend(sync_pod(world, at, &uid));
        }
        end_orphans(world, at);
    }
    show(world, at, reaches);
    starts
}

/// Reads the pods of this node. One that is gone is forgotten at once; its containers are orphans.
fn refresh(world: &mut World, at: usize) {
    let name = world.nodes[at].name;
    let mine: BTreeMap<String, Pod> = world
        .api
        .pods
        .values()
        .filter(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref() == Some(name)))
        .map(|pod| (pod.metadata.uid.clone().unwrap_or_default(), pod.clone()))
        .collect();
    world.nodes[at].kubelet.pods.retain(|uid, _| mine.contains_key(uid));
    for (uid, pod) in mine {
        let sandbox_at = Instant::now() + world.millis(100..1500);
        let status = world.nodes[at].kubelet.pods.get(&uid).map(|known| known.pod.status.clone());
        if let Some(known) = world.nodes[at].kubelet.pods.get_mut(&uid) {
            // What it has found out itself is newer than what it has told.
            known.pod = Pod { status: status.unwrap_or_default(), ..pod };
        } else {
            let told = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
            let containers = told.map(|s| (s.name.clone(), Known { restarts: s.restart_count, ..Known::default() })).collect();
            world.nodes[at].kubelet.pods.insert(uid, KnownPod { pod, sandbox_at, ending: None, containers });
        }
    }
    world.nodes[at].kubelet.has_read = true;
}

fn sync_pod(world: &mut World, at: usize, uid: &str) -> Vec<Start> {
    let Some(known) = world.nodes[at].kubelet.pods.get(uid) else { return vec![] };
    if known.pod.metadata.deletion_timestamp.is_some() {
        let again = if world.plan.mutation == Mutation::KubeletStartsWhatIsDeleted { start_again(world, at, uid) } else { vec![] };
        end_pod(world, at, uid);
        return again;
    }
    if known.sandbox_at > Instant::now() {
        return vec![];
    }
    world.nodes[at].sandboxes.insert(uid.to_owned());
    let Some(known) = world.nodes[at].kubelet.pods.get(uid) else { return vec![] };
    let wanted: Vec<(String, String)> =
        known.pod.spec.iter().flat_map(|spec| &spec.containers).map(|c| (c.name.clone(), c.image.clone().unwrap_or_default())).collect();
    wanted.into_iter().filter_map(|(name, image)| start_of(world, at, uid, &name, image)).collect()
}

/// What a kubelet must not do: an ended container of a pod whose deletion it shows is started once more.
fn start_again(world: &mut World, at: usize, uid: &str) -> Vec<Start> {
    let Some(known) = world.nodes[at].kubelet.pods.get(uid) else { return vec![] };
    let wanted: Vec<(String, String)> = known
        .pod
        .spec
        .iter()
        .flat_map(|spec| &spec.containers)
        .filter(|c| known.containers.get(&c.name).is_none_or(|container| container.restarts == 0))
        .map(|c| (c.name.clone(), c.image.clone().unwrap_or_default()))
        .collect();
    wanted.into_iter().filter_map(|(name, image)| start_of(world, at, uid, &name, image)).collect()
}

/// The start of a container that ought to run and does not.
fn start_of(world: &mut World, at: usize, uid: &str, name: &str, image: String) -> Option<Start> {
    let last = world.nodes[at].of_pod(uid).filter(|c| c.name == name).last().cloned();
    let known = world.nodes[at].kubelet.pods.get(uid)?.containers.get(name).cloned().unwrap_or_default();
    let comes_up = known.is_pulling || last.as_ref().is_some_and(|c| c.is_starting || c.is_alive());
    if comes_up || image == keys::WAITING_IMAGE || known.retry_at.is_some_and(|at| at > Instant::now()) {
        return None;
    }
    let boot = world.nodes[at].boots;
    let next = Known {
        restarts: known.restarts + i32::from(last.is_some()),
        tries: known.tries + 1,
        retry_at: Some(Instant::now() + Duration::from_secs(1 << known.tries.min(5))),
        is_pulling: true,
        last_error: known.last_error,
    };
    world.nodes[at].kubelet.pods.get_mut(uid)?.containers.insert(name.to_owned(), next);
    world.nodes[at].making.push(uid.to_owned());
    let kubelet = world.life(Process::Kubelet(at)).generation;
    Some(Start { at, boot, kubelet, pod_uid: uid.to_owned(), container: name.to_owned(), image })
}

/// SIGTERM, the grace period, SIGKILL; then the records go, and the object.
fn end_pod(world: &mut World, at: usize, uid: &str) {
    let heeds = world.millis(0..4000);
    let Some(known) = world.nodes[at].kubelet.pods.get_mut(uid) else { return };
    let (since, heeds) = *known.ending.get_or_insert((Instant::now(), heeds));
    let grace = Duration::from_secs(5);
    let name = name_of(&known.pod.metadata);
    let ids: Vec<String> = world.nodes[at].of_pod(uid).map(|c| c.id.clone()).collect();
    // A kubelet takes one step at a time for each pod: it ends it once it is done with what it makes.
    let mut is_over = !world.nodes[at].is_making(uid);
    for id in ids {
        let Some(mut container) = world.nodes[at].containers.get(&id).cloned() else { continue };
        if container.is_starting {
            is_over = false;
        } else if container.is_alive() {
            let heard = container.state == TaskState::Running && since.elapsed() >= heeds;
            if heard || since.elapsed() >= grace {
                kubelet_kills(world, at, &mut container);
                world.nodes[at].containers.insert(id, container);
            } else {
                is_over = false;
            }
        }
    }
    if is_over && world.closed(Process::Kubelet(at), Door::Api).is_none() {
        world.nodes[at].containers.retain(|_, c| c.pod_uid != uid);
        world.nodes[at].kubelet.pods.remove(uid);
        world.nodes[at].sandboxes.remove(uid);
        world.tell(format_args!("the kubelet of {} has ended pod {name}", NODES[at]));
        let now = world.now();
        world.api.delete_pod(&name, uid, true, now);
    }
}

fn kubelet_kills(world: &mut World, at: usize, container: &mut Container) {
    world.tell(format_args!("the kubelet of {} ends {} ({})", NODES[at], container.name, container.id));
    truth::kubelet_kills(world, at, container);
    end(world, container);
}

/// Containers of pods that it does not know: ended, then removed. Not before it has read its pods.
fn end_orphans(world: &mut World, at: usize) {
    if !world.nodes[at].kubelet.has_read {
        return;
    }
    let known = |world: &World, c: &Container| world.nodes[at].kubelet.pods.contains_key(&c.pod_uid);
    let node = &mut world.nodes[at];
    let (making, containers, pods) = (&node.making, &node.containers, &node.kubelet.pods);
    node.sandboxes.retain(|uid| pods.contains_key(uid) || making.contains(uid) || containers.values().any(|c| c.pod_uid == *uid));
    let orphans: Vec<Container> = world.nodes[at].containers.values().filter(|c| !known(world, c) && !c.is_starting).cloned().collect();
    for mut orphan in orphans {
        let since = *world.nodes[at].kubelet.orphans.entry(orphan.id.clone()).or_insert_with(Instant::now);
        if orphan.is_alive() && since.elapsed() > Duration::from_secs(2) {
            kubelet_kills(world, at, &mut orphan);
            world.nodes[at].containers.insert(orphan.id.clone(), orphan);
        } else if !orphan.is_alive() && since.elapsed() > Duration::from_secs(3) {
            world.nodes[at].containers.remove(&orphan.id);
            world.nodes[at].kubelet.orphans.remove(&orphan.id);
        }
    }
}

/// Works out the status of every pod, and tells the API server where it reaches it.
fn show(world: &mut World, at: usize, reaches: bool) {
    let uids: Vec<String> = world.nodes[at].kubelet.pods.keys().cloned().collect();
    for uid in uids {
        let Some(known) = world.nodes[at].kubelet.pods.get(&uid) else { continue };
        let status = status_of(world, at, &uid, known);
        let name = name_of(&known.pod.metadata);
        if let Some(known) = world.nodes[at].kubelet.pods.get_mut(&uid) {
            known.pod.status = Some(status.clone());
        }
        if reaches {
            world.api.touch_pod(&name, &uid, |pod| pod.status = Some(status));
        }
    }
}

fn status_of(world: &World, at: usize, uid: &str, known: &KnownPod) -> PodStatus {
    let sandbox = known.sandbox_at <= Instant::now();
    let names = known.pod.spec.iter().flat_map(|spec| &spec.containers).map(|c| c.name.clone());
    let statuses: Vec<ContainerStatus> = names.map(|name| container_status(world, at, uid, known, &name)).collect();
    let runs = statuses.iter().any(|s| s.state.as_ref().is_some_and(|state| state.running.is_some()) || s.restart_count > 0);
    let had_run = known.pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
    PodStatus {
        phase: Some(if runs || had_run { "Running" } else { "Pending" }.to_owned()),
        conditions: Some(vec![PodCondition {
            type_: "PodReadyToStartContainers".into(),
            status: if sandbox { "True" } else { "False" }.into(),
            ..PodCondition::default()
        }]),
        container_statuses: Some(statuses),
        ..PodStatus::default()
    }
}

fn container_status(world: &World, at: usize, uid: &str, known: &KnownPod, name: &str) -> ContainerStatus {
    let facts = known.containers.get(name).cloned().unwrap_or_default();
    let last = world.nodes[at].of_pod(uid).filter(|c| c.name == name).last();
    let mut status = ContainerStatus { name: name.to_owned(), restart_count: facts.restarts, image_id: base_image(), ..ContainerStatus::default() };
    let waiting = |reason: &str, message: &str| {
        Some(ContainerState {
            waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message: Some(message.to_owned()) }),
            ..ContainerState::default()
        })
    };
    let Some(container) = last else {
        let image = known.pod.spec.iter().flat_map(|spec| &spec.containers).find(|c| c.name == name).and_then(|c| c.image.as_deref());
        let reason = if image == Some(keys::WAITING_IMAGE) { "InvalidImageName" } else { "ContainerCreating" };
        status.state = waiting(reason, &facts.last_error);
        return status;
    };
    status.container_id = Some(format!("containerd://{}", container.id));
    if container.is_starting {
        status.state = waiting("ContainerCreating", "");
    } else if container.is_alive() {
        status.state = Some(ContainerState { running: Some(ContainerStateRunning::default()), ..ContainerState::default() });
    } else {
        let ended = ContainerStateTerminated {
            exit_code: 128,
            message: Some(facts.last_error.clone()),
            container_id: status.container_id.clone(),
            ..ContainerStateTerminated::default()
        };
        let ended = Some(ContainerState { terminated: Some(ended), ..ContainerState::default() });
        // At first it shows how the container ended, later that it waits before it tries again.
        if facts.tries > 1 {
            (status.state, status.last_state) = (waiting("CrashLoopBackOff", "back-off restarting failed container"), ended);
        } else {
            status.state = ended;
        }
    }
    status
}
