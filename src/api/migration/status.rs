//! What a `Migration` reports.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Outcome, Phase, Verdict};

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
    #[serde(rename = "containerID")]
    #[schemars(rename = "containerID")]
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
    #[serde(rename = "containerID")]
    #[schemars(rename = "containerID")]
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
    pub started_at: MicroTime,
    /// Milliseconds that it took; absent while it lasts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub millis: Option<u64>,
}
