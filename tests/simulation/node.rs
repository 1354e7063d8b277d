//! A node: what survives a power failure (disk, registry, the runtime's records), and what does not (tasks).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use drover::{
    api::node_profile::{GateStatus, LaneStatus, NodeProfileStatus},
    domain::preflight::NodeView,
    markers::Markers,
    ports::TaskState,
};
use tokio::time::Instant;

use crate::kubelet::KubeletState;

/// The memory of a program: which run of it, and how many steps that run has executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Memory {
    /// Which start from nothing it goes back to.
    pub lineage: u64,
    /// Steps executed since.
    pub steps: u64,
}

/// What an image reference stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The program as it was built.
    Base,
    /// A checkpoint.
    Checkpoint(Memory),
}

/// One container as the runtime knows it.
#[derive(Clone, Debug)]
pub struct Container {
    pub id: String,
    pub pod_uid: String,
    pub name: String,
    pub state: TaskState,
    /// Whether the program executes: also while the runtime does not say so yet.
    pub executes: bool,
    pub memory: Memory,
    pub restored_from: Option<String>,
    pub cpu_nanos: u64,
    /// It is being made; a kill in the middle ends it.
    pub is_starting: bool,
    /// When it ended.
    pub ended: Option<std::time::Duration>,
}

impl Container {
    /// Whether anything of the program is left in memory.
    pub fn is_alive(&self) -> bool {
        self.ended.is_none() && (self.executes || matches!(self.state, TaskState::Running | TaskState::Paused))
    }
}

/// One repository of the registry.
#[derive(Clone, Debug, Default)]
pub struct Repository {
    /// Tag → digest.
    pub tags: BTreeMap<String, String>,
    /// Digest → content and bytes.
    pub manifests: BTreeMap<String, (Content, u64)>,
}

/// A node.
pub struct Node {
    pub name: &'static str,
    pub is_up: bool,
    /// Grows with each power failure: what was in progress is over.
    pub boots: u32,
    /// It does not reach the API server.
    pub is_cut: bool,
    pub runtime_up: bool,
    pub registry_up: bool,
    /// Its runtime asks the gate.
    pub gated: bool,
    /// UIDs of the pods whose sandbox is up: it outlives the kubelet, and the pod's object.
    pub sandboxes: BTreeSet<String>,
    /// UIDs of the pods that a container is being made for: the runtime may not know it yet.
    pub making: Vec<String>,
    pub kubelet: KubeletState,
    pub containers: BTreeMap<String, Container>,
    /// Image reference → content, in the runtime's store.
    pub store: BTreeMap<String, Content>,
    pub registry: BTreeMap<String, Repository>,
    pub disk: PathBuf,
    /// As the API server's Node object and the agent's NodeProfile say.
    pub view: NodeView,
    pub last_heartbeat: Instant,
    made: u64,
}

impl Node {
    pub fn new(name: &'static str, disk: PathBuf, gated: bool) -> Self {
        let profile = NodeProfileStatus {
            lanes: vec![LaneStatus { name: "image".into(), available: true, message: String::new() }],
            free_bytes: 1 << 30,
            gate: GateStatus { installed: gated, message: String::new() },
            architecture: "amd64".into(),
            ..NodeProfileStatus::default()
        };
        let view = NodeView { name: name.into(), ready: true, profile: Some(profile), ..NodeView::default() };
        Self {
            name,
            is_up: true,
            boots: 0,
            is_cut: false,
            runtime_up: true,
            registry_up: true,
            gated,
            sandboxes: BTreeSet::new(),
            making: vec![],
            kubelet: KubeletState::default(),
            containers: BTreeMap::new(),
            store: BTreeMap::new(),
            registry: BTreeMap::new(),
            disk,
            view,
            last_heartbeat: Instant::now(),
            made: 0,
        }
    }

    /// Where the gate's markers lie.
    pub fn gate_root(&self) -> PathBuf {
        self.disk.join("state/gate")
    }

    /// This boot, as the kernel names it.
    pub fn boot_id(&self) -> String {
        format!("boot {} of {}", self.boots, self.name)
    }

    pub fn markers(&self) -> Markers {
        Markers::new(self.gate_root())
    }

    pub fn journals(&self) -> PathBuf {
        self.disk.join("state/journals")
    }

    /// Where the kubelet puts archives.
    pub fn checkpoints(&self) -> PathBuf {
        self.disk.join("checkpoints")
    }

    /// The runtime's folder of a container, where CRIU writes its log.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.disk.join("run").join(id)
    }

    pub fn fresh_id(&mut self) -> String {
        self.made += 1;
        format!("{}-c{:04}", self.name, self.made)
    }

    /// Whether anything may still be started for a pod.
    pub fn is_making(&self, pod_uid: &str) -> bool {
        self.making.iter().any(|uid| uid == pod_uid)
    }

    /// Containers of a pod, ended ones too.
    pub fn of_pod<'a>(&'a self, pod_uid: &'a str) -> impl Iterator<Item = &'a Container> {
        self.containers.values().filter(move |c| c.pod_uid == pod_uid)
    }
}

/// Writes an archive as the kubelet does.
pub fn write_archive(path: &std::path::Path, memory: Memory) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, format!("{} {}", memory.lineage, memory.steps))
}

pub fn read_archive(path: &std::path::Path) -> Option<Memory> {
    let text = fs::read_to_string(path).ok()?;
    let (lineage, steps) = text.split_once(' ')?;
    Some(Memory { lineage: lineage.parse().ok()?, steps: steps.parse().ok()? })
}
