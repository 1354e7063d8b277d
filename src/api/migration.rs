//! `Migration`: one move of one pod, from the request to the verdict.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.podName), has(self.deployment), has(self.selector)].filter(x, x).size() == 1").message("exactly one of spec.podName, spec.deployment and spec.selector must be set"),
    validation = Rule::new("self == oldSelf").message("spec is immutable: delete this Migration and make another one")
)]
pub struct MigrationSpec {
    /// Name of the pod to move, in the Migration's own namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub pod_name: Option<String>,

    /// Name of a Deployment whose pods are all to be moved (one child Migration a pod).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub deployment: Option<String>,

    /// Selects the pods to move (one child Migration a pod).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,

    /// Where the pod goes. Empty: the scheduler chooses among the nodes that can restore it.
    #[serde(default, skip_serializing_if = "Destination::is_empty")]
    pub destination: Destination,

    /// Namespace of the replacement. Default: the pod's own.
    #[serde(skip_serializing_if = "Option::is_none")]
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
    /// drover-runc restores in front of runc.
    Runtime,
}

/// What is done with a released migration that nobody can prove.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InDoubt {
    /// Keep the source frozen until a person decides.
    #[default]
    HoldFrozen,
    /// Go on with the source; what the replacement did is lost.
    PreferSource,
    /// Go on with the replacement.
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
    /// The checkpoints are packed and pushed; the source agent votes.
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
    /// Refused or failed before anything was touched.
    Failed,
}

impl Outcome {
    /// The name as it stands in the API and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Migrated => "Migrated",
            Self::RolledBack => "RolledBack",
            Self::ColdStarted => "ColdStarted",
            Self::Failed => "Failed",
        }
    }
}

/// What has happened so far.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(oldSelf.verdict) || (has(self.verdict) && self.verdict == oldSelf.verdict)").message("status.verdict is written once"),
    validation = Rule::new("!has(oldSelf.outcome) || (has(self.outcome) && self.outcome == oldSelf.outcome)").message("status.outcome is written once"),
    validation = Rule::new(PHASE_MONOTONE).message("status.phase never goes back"),
    validation = Rule::new("!has(self.phase) || self.phase != 'Restoring' || !has(self.verdict)").message("no release once a verdict stands"),
    validation = Rule::new("!(has(self.verdict) && self.verdict == 'Rollback' && !has(oldSelf.verdict) && has(oldSelf.phase) && oldSelf.phase in ['SourceDeleting', 'Restoring', 'Finishing', 'Done'])").message("no rollback after the release without proof that the replacement never started")
)]
pub struct MigrationStatus {
    /// Where the migration is.
    #[serde(default)]
    pub phase: Phase,
    /// Which copy goes on; absent while nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// How it ended; absent until it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// What happened last, and what a person should do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// `Held`, `Frozen` and `Complete` in the API conventions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The pod that is moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceStatus>,
    /// The node that it is moved to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<DestinationStatus>,
    /// The pod that takes over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replacement: Option<ReplacementStatus>,
    /// Each container's checkpoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<ContainerCheckpoint>,
    /// Each phase's start and length.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<PhaseTiming>,
    /// Milliseconds in which neither copy ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen_millis: Option<u64>,
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// CEL has no order on enums, so the rule spells the course out. By maps: the API server estimates the cost of `indexOf` on a list as
/// unbounded and then refuses the CRD.
const PHASE_MONOTONE: &str = "!has(oldSelf.phase) || {'Pending':0,'Preflight':1,'Preparing':2,'Freezing':3,'Checkpointing':4,'Transferring':5,'AwaitingReadiness':6,'SourceDeleting':7,'Restoring':8,'Finishing':9,'Done':10}[self.phase] >= {'Pending':0,'Preflight':1,'Preparing':2,'Freezing':3,'Checkpointing':4,'Transferring':5,'AwaitingReadiness':6,'SourceDeleting':7,'Restoring':8,'Finishing':9,'Done':10}[oldSelf.phase]";

/// The pod that is moved, as it was when the migration began.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// Pod name.
    pub name: String,
    /// Pod UID: another pod of the same name is another pod.
    pub uid: String,
    /// Node that it runs on.
    pub node_name: String,
    /// Its containers when preflight looked; the same must be there at the freeze.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<RunningContainer>,
}

/// One running container of a pod.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RunningContainer {
    /// Name in the pod's spec.
    pub name: String,
    /// ID without the `containerd://` prefix.
    pub container_id: String,
    /// Base image as `name@sha256:…`: what an ordinary restart uses.
    pub image: String,
}

/// The node that the pod is moved to.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DestinationStatus {
    /// Node name, known once the replacement is placed.
    pub node_name: String,
    /// Repository of the checkpoint images in that node's registry: `drover/` and 32 hex digits that nobody can guess.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub repository: String,
    /// `host:port` at which that node's agent takes pushes (mTLS).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub push_address: String,
}

/// The pod that takes over.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ReplacementStatus {
    /// Pod name.
    pub name: String,
    /// Pod UID; empty until the pod is made.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Its restored containers, as the destination's runtime attested them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<RestoredContainer>,
}

/// One restored container.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RestoredContainer {
    /// Name in the pod's spec.
    pub name: String,
    /// ID without the runtime's prefix.
    pub container_id: String,
}

/// One container's checkpoint image.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ContainerCheckpoint {
    /// Name in the pod's spec, and tag of the image.
    pub name: String,
    /// Digest of the image's manifest.
    pub digest: String,
    /// Bytes of the checkpoint archive.
    pub bytes: u64,
    /// The image as the replacement names it.
    pub image: String,
}

/// Start and length of a phase.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PhaseTiming {
    /// The phase.
    pub phase: Phase,
    /// When it was entered, with microseconds.
    pub started_at: k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime,
    /// Milliseconds that it took; absent while it lasts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub millis: Option<u64>,
}

/// Condition types of a Migration.
pub mod condition {
    /// A person must decide; the message says what to type.
    pub const HELD: &str = "Held";
    /// The source is paused.
    pub const FROZEN: &str = "Frozen";
    /// The migration has ended; the reason is the outcome.
    pub const COMPLETE: &str = "Complete";
}

impl Migration {
    /// The phase, `Pending` where there is no status yet.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.status.as_ref().map_or(Phase::Pending, |s| s.phase)
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
