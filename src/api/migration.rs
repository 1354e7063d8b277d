//! `Migration`: one move of one pod, from the request to the verdict.

mod status;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use status::*;

/// What is to be moved, and where to.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "drover.dev",
    version = "v1alpha1",
    kind = "Migration",
    plural = "migrations",
    shortname = "mig",
    category = "drover",
    namespaced,
    status = "MigrationStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Moves a running pod to another node with its memory.",
    validation = Rule::new("self.metadata.name.size() <= 52").message("metadata.name: must be no more than 52 characters, since the names of the attestations are made from it"),
    printcolumn(name = "Pod", type_ = "string", json_path = ".spec.podName"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Outcome", type_ = "string", json_path = ".status.outcome"),
    printcolumn(name = "From", type_ = "string", json_path = ".status.source.nodeName"),
    printcolumn(name = "To", type_ = "string", json_path = ".status.destination.nodeName"),
    printcolumn(name = "Replacement", type_ = "string", json_path = ".status.replacement.name", priority = 1),
    printcolumn(name = "Frozen-ms", type_ = "integer", json_path = ".status.frozenMillis"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Lane", type_ = "string", json_path = ".status.lane", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.podName), has(self.deployment), has(self.selector)].filter(x, x).size() == 1").message("exactly one of spec.podName, spec.deployment and spec.selector must be set"),
    validation = Rule::new("self == oldSelf").message("spec is immutable: delete this Migration and make another one"),
    validation = Rule::new("!self.postCopy || (self.lane == 'runtime' && !self.keepName && self.inDoubt != 'PreferDestination')").message("spec.postCopy needs spec.lane: runtime, and neither spec.keepName nor spec.inDoubt: PreferDestination: until the last page has come nothing but the frozen source has all of the memory (R19)")
)]
pub struct MigrationSpec {
    /// Name of the pod to move, in the Migration's own namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub pod_name: Option<String>,

    /// Name of a Deployment whose running pods are to be moved: one child Migration a pod, one after the other, until one does not move its pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub deployment: Option<String>,

    /// Selects the running pods to move, as for `deployment`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,

    /// Where the pod goes. Empty: the scheduler chooses among the nodes that can restore it.
    #[serde(default, skip_serializing_if = "Destination::is_empty")]
    pub destination: Destination,

    /// Namespace of the replacement. Default: the pod's own. Another one needs a MigrationGrant there, and whoever makes the Migration must be allowed to
    /// create pods there and to exec into pods here: the copy has the pod's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub destination_namespace: Option<String>,

    /// Containers that are restored; the others start fresh. All are frozen. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<String>,

    /// Seconds from creation until a migration that has not released its replacement is rolled back.
    #[serde(default = "default_deadline")]
    #[schemars(range(min = 10, max = 86400))]
    pub deadline_seconds: u32,

    /// Seconds that the source may stay frozen before the vote; after them its agent thaws it without asking anybody.
    #[serde(default = "default_freeze_budget")]
    #[schemars(range(min = 5, max = 3600))]
    pub freeze_budget_seconds: u32,

    /// Keep the pod's name: the source object is deleted before the restore.
    #[serde(default)]
    pub keep_name: bool,

    /// How the memory travels.
    #[serde(default)]
    pub lane: Lane,

    /// Resume the copy before the memory has come, and fetch that from the frozen source: the shortest freeze. The price: where source, network or one of
    /// both agents is lost before the last page, the copy is ended, and what it has done since the release is lost. Only with `lane: runtime`, for a pod that runs
    /// under the RuntimeClass `drover` already, and neither with `keepName` nor with `inDoubt: PreferDestination`.
    #[serde(default)]
    pub post_copy: bool,

    /// What is done when nobody can prove which copy lives.
    #[serde(default)]
    pub in_doubt: InDoubt,

    /// Only run the preflight; nothing is touched.
    #[serde(default)]
    pub check_only: bool,

    /// Seconds after which an ended Migration is deleted. Default: it is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds_after_finished: Option<u32>,
}

/// Seconds of `spec.deadlineSeconds` when it is not given: 1 GiB takes half a minute on slow disks, an image pull some minutes.
pub const fn default_deadline() -> u32 {
    600
}

/// Seconds of `spec.freezeBudgetSeconds` when it is not given.
pub const fn default_freeze_budget() -> u32 {
    120
}

/// Where a pod is to go; both fields empty means that the scheduler chooses.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// The destination node by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub node_name: Option<String>,
    /// Labels that the destination node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
}

impl Destination {
    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.node_name.is_none() && self.node_selector.is_empty()
    }
}

/// The two ways in which memory travels, and the choice between them.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Runtime where both nodes have it, else image.
    #[default]
    Auto,
    /// The runtime restores a checkpoint image in CRI CreateContainer.
    Image,
    /// drover-runc restores, in front of runc, under the RuntimeClass `drover`.
    Runtime,
}

impl std::fmt::Display for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Image => "image",
            Self::Runtime => "runtime",
        })
    }
}

/// What is done with a released migration that nobody can prove.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InDoubt {
    /// Keep the source frozen until a person decides.
    #[default]
    HoldFrozen,
    /// Go on with the source as soon as nothing of the replacement executes; what the replacement did is lost.
    PreferSource,
    /// Go on with the replacement, from its image where its memory is lost; the checkpoint is kept on the source node.
    PreferDestination,
}

/// Where a migration is. The order of the variants is the order of the course; a phase never goes back (R21).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Seen by nobody yet.
    #[default]
    Pending,
    /// Every blocker is looked for.
    Preflight,
    /// The waiting replacement is made and placed; base images are pulled.
    Preparing,
    /// The source is fenced and paused.
    Freezing,
    /// The kubelet writes the checkpoints.
    Checkpointing,
    /// The checkpoints are packed and pushed; the source agent votes. A Migration of several pods is here until its last child has ended.
    Transferring,
    /// The destination's registry is asked whether it holds what was voted for.
    AwaitingReadiness,
    /// Same-name pods only: the source object goes before the restore.
    SourceDeleting,
    /// Released: the replacement may start. From here only proof decides.
    Restoring,
    /// The verdict stands and is carried out.
    Finishing,
    /// Ended; see the outcome.
    Done,
}

impl Phase {
    /// The name as it stands in the API and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Preflight => "Preflight",
            Self::Preparing => "Preparing",
            Self::Freezing => "Freezing",
            Self::Checkpointing => "Checkpointing",
            Self::Transferring => "Transferring",
            Self::AwaitingReadiness => "AwaitingReadiness",
            Self::SourceDeleting => "SourceDeleting",
            Self::Restoring => "Restoring",
            Self::Finishing => "Finishing",
            Self::Done => "Done",
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which copy goes on. Written once, by compare-and-swap, before anybody acts on it (I3).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The replacement goes on; the source is ended.
    Commit,
    /// The source goes on; the replacement is removed.
    Rollback,
}

/// How a migration ended.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The destination's runtime said that the running container was restored from this migration's checkpoint.
    Migrated,
    /// The source goes on as if nothing had happened.
    RolledBack,
    /// The replacement started from its base image instead of the checkpoint.
    ColdStarted,
    /// Nothing of the pod goes on: the fallback of a source that had been deleted has failed too, and a person has given it up. Its archives are kept.
    GivenUp,
    /// Refused or failed before anything was touched.
    Failed,
    /// Of several pods some were moved and some were not: `status.children` says which.
    Partial,
}

impl Outcome {
    /// The name as it stands in the API and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Migrated => "Migrated",
            Self::RolledBack => "RolledBack",
            Self::ColdStarted => "ColdStarted",
            Self::GivenUp => "GivenUp",
            Self::Failed => "Failed",
            Self::Partial => "Partial",
        }
    }
}

/// Condition types of a Migration.
pub mod condition {
    /// A person must decide; the message says what to type.
    pub const HELD: &str = "Held";
    /// The source is paused.
    pub const FROZEN: &str = "Frozen";
    /// The migration has ended; the reason is the outcome.
    pub const COMPLETE: &str = "Complete";
    /// The readiness bus has told of every image that was voted for; the reason is the bus, or `Polled` where the destination's own word came first.
    pub const REGISTRY_CONFIRMED: &str = "RegistryConfirmed";
}

impl Migration {
    /// The phase, `Pending` where there is no status yet.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.status.as_ref().map_or(Phase::Pending, |s| s.phase)
    }

    /// The namespace that the pod leaves its own for, if it does.
    #[must_use]
    pub fn elsewhere(&self) -> Option<&str> {
        self.spec.destination_namespace.as_deref().filter(|namespace| Some(*namespace) != self.metadata.namespace.as_deref())
    }

    /// Whether pods of the migration are in this namespace: its own, or the replacement's.
    #[must_use]
    pub fn is_in(&self, namespace: Option<&str>) -> bool {
        self.metadata.namespace.as_deref() == namespace || self.replacement_namespace() == namespace
    }

    /// Namespace of the replacement.
    #[must_use]
    pub fn replacement_namespace(&self) -> Option<&str> {
        self.elsewhere().or(self.metadata.namespace.as_deref())
    }

    /// The verdict, if one stands.
    #[must_use]
    pub fn verdict(&self) -> Option<Verdict> {
        self.status.as_ref().and_then(|s| s.verdict)
    }

    /// Whether the migration has ended.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.phase() == Phase::Done
    }

    /// When the phase was entered.
    #[must_use]
    pub fn phase_started(&self, phase: Phase) -> Option<Time> {
        let timings = &self.status.as_ref()?.phases;
        timings.iter().find(|t| t.phase == phase).map(|t| Time(t.started_at.0))
    }
}
