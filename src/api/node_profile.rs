//! `NodeProfile`: what a node can do, written by its agent, read by preflight and the extender.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Nothing is asked of a profile; it only reports.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[kube(
    group = "drover.dev",
    version = "v1alpha1",
    kind = "NodeProfile",
    plural = "nodeprofiles",
    shortname = "np",
    category = "drover",
    status = "NodeProfileStatus",
    derive = "PartialEq",
    doc = "What a node can do for a migration. Its name is the node's name; written by the agent of that node alone.",
    printcolumn(name = "Runtime", type_ = "string", json_path = ".status.runtimeVersion"),
    printcolumn(name = "CRIU", type_ = "string", json_path = ".status.criu.version"),
    printcolumn(name = "Image-Lane", type_ = "boolean", json_path = ".status.lanes[?(@.name=='image')].available"),
    printcolumn(name = "Runtime-Lane", type_ = "boolean", json_path = ".status.lanes[?(@.name=='runtime')].available"),
    printcolumn(name = "Gate", type_ = "boolean", json_path = ".status.gate.installed"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NodeProfileSpec {}

/// A pod whose evacuation has failed.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct StayingPod {
    /// Namespace of the pod and of its Migration.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Why it stays: the message of its Migration.
    pub reason: String,
}

/// What the agent found on its node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodeProfileStatus {
    /// `containerd` or `cri-o`.
    #[serde(default)]
    pub runtime: String,
    /// Version as CRI tells it.
    #[serde(default)]
    pub runtime_version: String,
    /// Every lane, and why one is not available.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub lanes: Vec<LaneStatus>,
    /// Whether its agent knows post-copy (`spec.postCopy` of a Migration), at either end; one of before that says nothing. Whether the node has the runtime lane, which
    /// that needs, is told above.
    #[serde(default)]
    pub post_copy: bool,
    /// The checkpoint tool.
    #[serde(default)]
    pub criu: CriuStatus,
    /// The OCI hook that refuses containers of fenced pods.
    #[serde(default)]
    pub gate: GateStatus,
    /// Kernel release.
    #[serde(default)]
    pub kernel: String,
    /// Architecture in Go's words (`amd64`).
    #[serde(default)]
    pub architecture: String,
    /// CPU feature flags, sorted.
    #[serde(default)]
    pub cpu_features: Vec<String>,
    /// 1 or 2.
    #[serde(default)]
    pub cgroup_version: u8,
    /// Free bytes where the registry and the checkpoints lie.
    #[serde(default)]
    pub free_bytes: u64,
    /// Bytes of a checkpoint for which the node's memory has room, which is where the runtime lane puts them; what does not fit there lies on the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_memory_bytes: Option<u64>,
    /// Bytes that one migration may store in the node's registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes_per_migration: Option<u64>,
    /// `host:port` at which the agent takes pushes (mTLS).
    #[serde(default)]
    pub push_address: String,
    /// `host:port` at which the node's own runtime pulls checkpoint images.
    #[serde(default)]
    pub pull_address: String,
    /// `Ready`: the agent serves. `BusConnected`: the readiness bus, which the reason names, takes what the agent tells.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Pods that were to leave the node and stay, the first of them by name, until their evacuation is tried again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub staying: Vec<StayingPod>,
    /// What the node's pods use; only where the rebalancer is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<NodeUsage>,
    /// When the agent last looked; older than `PROFILE_LIFETIME` (preflight)] means that it is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_at: Option<Time>,
}

/// What the pods of a node use, as its kubelet counts it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeUsage {
    /// When it was counted last.
    pub observed_at: Time,
    /// The pods.
    #[serde(default)]
    pub pods: Vec<PodUsage>,
}

/// What a pod uses.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PodUsage {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Thousandths of a CPU, since the count before.
    pub cpu_millis: u64,
    /// Working set in bytes.
    pub memory_bytes: u64,
}

/// One lane on one node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LaneStatus {
    /// `image` or `runtime`.
    pub name: String,
    /// Whether a pod can be restored on this node in this lane.
    pub available: bool,
    /// Why not, and what to do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// CRIU on the node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CriuStatus {
    /// `criu --version`; empty where there is none.
    #[serde(default)]
    pub version: String,
    /// Whether `criu check` was content.
    #[serde(default)]
    pub check: bool,
    /// Its last line where it was not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// The gate on the node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct GateStatus {
    /// Whether the runtime runs the gate for every container.
    #[serde(default)]
    pub installed: bool,
    /// Why not, and what to do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}
