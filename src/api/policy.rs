//! `MigrationPolicy`: which pods may move, which leave a node by themselves, and for which a copy may run before its memory has come.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which pods may be moved by annotation, and which leave their node by themselves. Where no policy exists, every supported pod may be moved, and none leaves.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "drover.dev",
    version = "v1alpha1",
    kind = "MigrationPolicy",
    plural = "migrationpolicies",
    category = "drover",
    derive = "PartialEq",
    doc = "Which pods may be migrated, and within which limits.",
    printcolumn(name = "Triggers", type_ = "string", json_path = ".spec.evacuation.triggers"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct MigrationPolicySpec {
    /// Namespaces that the policy speaks of. Empty: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Pods that the policy speaks of. Empty: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// When these pods leave their node by themselves. Empty: never. Of several policies that select a pod the first, by name, that has the trigger counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evacuation: Option<Evacuation>,
    /// Whether the moves that Drover makes of these pods, when they leave their node by themselves or are asked to by annotation, are post-copies (`spec.postCopy`
    /// of a Migration) wherever pod and nodes allow that, and ordinary moves elsewhere. `true` agrees to its price: until the last page has come nothing but the
    /// frozen source has all of the memory. Of several policies that select a pod the first, by name, that has this field counts. A pod's annotation
    /// `drover.dev/post-copy: "false"` speaks against it. Never for pods that keep their names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_copy: Option<bool>,
}

/// Pods that leave their node alive.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Evacuation {
    /// On which occasions.
    #[schemars(length(min = 1, max = 4))]
    pub triggers: Vec<Trigger>,
    /// How many of a node's pods leave it at the same time.
    #[serde(default = "default_concurrent")]
    #[schemars(range(min = 1, max = 50))]
    pub concurrent_per_node: u32,
    /// How many pods of one controller (a ReplicaSet, StatefulSet or Job) leave at the same time, wherever they are. Absent: as many as their
    /// PodDisruptionBudget allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 50))]
    pub concurrent_per_workload: Option<u32>,
    /// How many evacuations are under way in the whole cluster, of whatever policy, while this one begins another.
    #[serde(default = "default_in_the_cluster")]
    #[schemars(range(min = 1, max = 1000))]
    pub concurrent: u32,
    /// How long after the end of its last migration a pod stays where it is before it may leave again by itself, in seconds.
    #[serde(default = "default_cool_down")]
    #[schemars(range(max = 86400))]
    pub cool_down_seconds: u32,
    /// What becomes of the eviction of a pod whose evacuation has failed.
    #[serde(default)]
    pub unmovable: Unmovable,
}

impl Evacuation {
    /// How long a pod stays after the end of its last migration.
    #[must_use]
    pub const fn cool_down(&self) -> Duration {
        Duration::from_secs(self.cool_down_seconds as u64)
    }
}

/// So many pods leave a node at the same time where nothing else is said.
fn default_concurrent() -> u32 {
    2
}

/// So many pods leave in the whole cluster at the same time where nothing else is said.
fn default_in_the_cluster() -> u32 {
    20
}

/// In seconds: long enough for a pod to do some work between two freezes, short against the time that a node is cordoned.
fn default_cool_down() -> u32 {
    60
}

/// Why a pod leaves its node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// The node is cordoned.
    Cordon,
    /// The pod is to be evicted, as `kubectl drain` does; only in namespaces that are labelled for it.
    Drain,
    /// An eviction of the API `lifecycle.k8s.io` is Drover's turn: the pod has `drover.dev/migration` in its `spec.evictionResponders`; only where that is on (chart:
    /// `evictionRequests.enabled`).
    EvictionRequest,
    /// The node has too much to do; only where the rebalancer is on (chart: `rebalancer.mode`).
    Load,
}

/// What becomes of the eviction of a pod that cannot be moved.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unmovable {
    /// It is evicted as usual, and starts anew elsewhere.
    #[default]
    Evict,
    /// It stays, and the drain does not end.
    Refuse,
}

impl Trigger {
    /// As it stands in a label.
    #[must_use]
    pub const fn as_label(self) -> &'static str {
        match self {
            Self::Cordon => "cordon",
            Self::Drain => "drain",
            Self::EvictionRequest => "eviction-request",
            Self::Load => "load",
        }
    }
}
