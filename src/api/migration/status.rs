//! What a `Migration` reports.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Lane, Outcome, Phase, Verdict, condition};
use crate::api::attestation::ContainerId;

/// What has happened so far.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(oldSelf.verdict) || (has(self.verdict) && self.verdict == oldSelf.verdict)").message("status.verdict is written once"),
    validation = Rule::new("!has(oldSelf.outcome) || (has(self.outcome) && self.outcome == oldSelf.outcome)").message("status.outcome is written once"),
    validation = Rule::new("!has(oldSelf.neverStarted) || (has(self.neverStarted) && self.neverStarted == oldSelf.neverStarted)").message("status.neverStarted is written once"),
    validation = Rule::new(PHASE_MONOTONE).message("status.phase never goes back"),
    validation = Rule::new("!has(self.phase) || self.phase != 'Restoring' || !has(self.verdict)").message("no release once a verdict stands"),
    validation = Rule::new("!(has(self.verdict) && self.verdict == 'Rollback' && !has(oldSelf.verdict) && has(oldSelf.phase) && (oldSelf.phase in ['Finishing', 'Done'] || (oldSelf.phase == 'Restoring' && !has(self.neverStarted) && !(has(self.resolved) && self.resolved.prefer == 'Source'))))").message("no rollback after the release without proof that the replacement never started (status.neverStarted), or a decision for the source (status.resolved)"),
    validation = Rule::new("!has(oldSelf.resolved) || (has(self.resolved) && self.resolved == oldSelf.resolved)").message("status.resolved is written once"),
    validation = Rule::new("!has(self.outcome) || self.outcome == 'Failed' || has(self.children) || (has(self.verdict) && (self.outcome in ['RolledBack', 'GivenUp']) == (self.verdict == 'Rollback'))").message("status.outcome follows the verdict (I5)"),
    validation = Rule::new("!(has(self.outcome) && has(self.resolved) && self.outcome == 'Migrated')").message("what was decided in doubt is never Migrated (R7)"),
    validation = Rule::new("!has(self.children) || !(has(self.source) || has(self.verdict) || has(self.replacement))").message("status.children: a Migration of several pods moves none itself"),
    validation = Rule::new("!has(self.outcome) || self.outcome != 'Partial' || has(self.children)").message("status.outcome is Partial only for a Migration of several pods"),
    validation = Rule::new(COMMIT_AFTER_RELEASE).optional_old_self(true).message("no commit of what was not released: status.verdict is Commit only from phase Restoring"),
    validation = Rule::new("!has(self.verdict) || self.verdict != 'Commit' || !has(self.neverStarted)").message("no commit of a replacement that never started (status.neverStarted)"),
    validation = Rule::new("!has(self.outcome) || self.phase == 'Done'").message("status.outcome is written with phase Done"),
    validation = Rule::new("!has(oldSelf.sourceFirst) || (has(self.sourceFirst) && self.sourceFirst == oldSelf.sourceFirst)").message("status.sourceFirst is written once"),
    validation = Rule::new("!has(self.phase) || self.phase != 'SourceDeleting' || (has(self.sourceFirst) && self.sourceFirst)").message("the source is deleted before the release only where status.sourceFirst says so (R13)"),
    validation = Rule::new("!has(self.phase) || self.phase != 'Restoring' || !has(self.sourceFirst) || !self.sourceFirst || (has(oldSelf.phase) && oldSelf.phase in ['SourceDeleting', 'Restoring'])").message("status.sourceFirst: no release before the source is deleted (R8)"),
    validation = Rule::new("!has(self.fallback) || (has(self.verdict) && self.verdict == 'Rollback')").message("status.fallback is for a rollback (R13)"),
    validation = Rule::new("!has(oldSelf.fallback) || has(self.fallback)").message("status.fallback stays"),
    validation = Rule::new("!(has(self.verdict) && self.verdict == 'Rollback' && !has(oldSelf.verdict) && has(oldSelf.phase) && has(self.sourceFirst) && self.sourceFirst && oldSelf.phase in ['SourceDeleting', 'Restoring'] && !has(self.fallback))").message("a source that was deleted is not thawed: such a rollback needs status.fallback (R13)"),
    validation = Rule::new("!has(self.givenUp) || has(self.fallback)").message("status.givenUp is for a fallback that has failed (status.fallback)"),
    validation = Rule::new("!has(oldSelf.lane) || (has(self.lane) && self.lane == oldSelf.lane)").message("status.lane is written once"),
    validation = Rule::new("!has(oldSelf.givenUp) || (has(self.givenUp) && self.givenUp == oldSelf.givenUp)").message("status.givenUp is written once"),
    validation = Rule::new("!has(self.outcome) || (self.outcome == 'GivenUp') == has(self.givenUp)").message("status.outcome is GivenUp where a person has given the pod up (status.givenUp)")
)]
pub struct MigrationStatus {
    /// Where the migration is.
    #[serde(default)]
    pub phase: Phase,
    /// Which copy goes on; absent while nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Since when, and why, the destination's agent is asked to make sure that the replacement never starts. Absent: it may start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revocation: Option<crate::api::attestation::Remark>,
    /// When the destination proved that the replacement never started. Without it nothing is rolled back after the release (R4, R21).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub never_started: Option<MicroTime>,
    /// How a doubt was decided for which there is no proof (R7); absent where there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolved: Option<Resolved>,
    /// How it ended; absent until it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// What happened last, and what a person should do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Every reason for which the preflight has refused it, each with its field and remedy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blockers: Vec<String>,
    /// What will be different for the pod after the move, as its source node has seen it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// `Held`, `Frozen`, `RegistryConfirmed` and `Complete` in the API conventions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The pod that is moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceStatus>,
    /// The node that it is moved to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<DestinationStatus>,
    /// How the memory travels: what `spec.lane` asks for, or what `auto` has come to. Fixed before the replacement is made; absent means image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lane: Option<Lane>,
    /// The pod that takes over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replacement: Option<ReplacementStatus>,
    /// Whether the source is deleted before the replacement may start: a same-name pod, or a node without the gate (R8, R13). Fixed before the freeze.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_first: Option<bool>,
    /// The pod that holds the place of a same-name replacement on the destination until the source is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placeholder: Option<ReplacementStatus>,
    /// The pod on the source node that goes on from the archive kept there, since the migration failed after its source was deleted (R13).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<ReplacementStatus>,
    /// When a person has given up a pod whose fallback has failed: nothing of it goes on, its archives are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub given_up: Option<MicroTime>,
    /// Each container's checkpoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<ContainerCheckpoint>,
    /// The images that the destination's registry was told to hold, as the readiness bus brought word of them. Nothing is released by them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub confirmations: Vec<RegistryConfirmation>,
    /// Each phase's start and length.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<PhaseTiming>,
    /// The pods of a Migration of several, each with its own Migration, in the order in which they are moved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Child>,
    /// Milliseconds that the pod will be frozen for, as the preflight estimates it from the memory and the volumes that will be carried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimated_freeze_millis: Option<u64>,
    /// Milliseconds in which neither copy ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen_millis: Option<u64>,
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Also of a first status, which has no old one: without `optionalOldSelf` the API server would not ask it.
const COMMIT_AFTER_RELEASE: &str = "!has(self.verdict) || self.verdict != 'Commit' || (oldSelf.hasValue() && ((has(oldSelf.value().verdict) && oldSelf.value().verdict == 'Commit') || (has(oldSelf.value().phase) && oldSelf.value().phase == 'Restoring')))";

impl MigrationStatus {
    /// Whether the source is deleted before the replacement may start.
    #[must_use]
    pub fn is_source_first(&self) -> bool {
        self.source_first == Some(true)
    }

    /// Whether drover-runc restores it.
    #[must_use]
    pub fn is_by_runtime(&self) -> bool {
        self.lane == Some(Lane::Runtime)
    }

    /// The condition `Held` while it is true: why it needs a person.
    #[must_use]
    pub fn held(&self) -> Option<&Condition> {
        self.conditions.iter().find(|c| c.type_ == condition::HELD && c.status == "True")
    }
}

/// CEL has no order on enums, so the rule spells the course out. By maps: the API server estimates the cost of `indexOf` on a list as
/// unbounded and then refuses the CRD.
const PHASE_MONOTONE: &str = "!has(oldSelf.phase) || {'Pending':0,'Preflight':1,'Preparing':2,'Freezing':3,'Checkpointing':4,'Transferring':5,'AwaitingReadiness':6,'SourceDeleting':7,'Restoring':8,'Finishing':9,'Done':10}[self.phase] >= {'Pending':0,'Preflight':1,'Preparing':2,'Freezing':3,'Checkpointing':4,'Transferring':5,'AwaitingReadiness':6,'SourceDeleting':7,'Restoring':8,'Finishing':9,'Done':10}[oldSelf.phase]";

/// One pod of a Migration of several.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Child {
    /// Name of the pod.
    pub pod: String,
    /// Its UID.
    pub pod_uid: String,
    /// Name of the Migration that moves it.
    pub migration: String,
    /// Where that one is; absent until its turn has come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// What a person should know of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// A decision in doubt: by `spec.inDoubt`, or by a person.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Resolved {
    /// When.
    pub at: MicroTime,
    /// Which copy goes on.
    pub prefer: Side,
    /// Who decided.
    pub by: Decider,
    /// What was known, and what is lost by it.
    pub message: String,
}

/// One of the two copies.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The frozen source.
    Source,
    /// The replacement.
    Destination,
}

/// Who decides a doubt.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decider {
    /// `spec.inDoubt`.
    Policy,
    /// A person, by `drover resolve`.
    Person,
}

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
    /// Its own addresses, which it leaves behind; none where it uses its node's.
    #[serde(default, rename = "podIPs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(rename = "podIPs")]
    pub pod_ips: Vec<String>,
    /// Its containers when preflight looked; the same must be there at the freeze.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<RunningContainer>,
    /// Its init containers, whose work is not done again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub init_containers: Vec<InitContainer>,
    /// The node had no gate when the order was fixed (`status.sourceFirst`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_gate: bool,
    /// The controller that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerStatus>,
}

/// The controller of a pod.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct OwnerStatus {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Labels by which a ReplicaSet sees the pod; the replacement gets them when the copy is confirmed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tied_by: BTreeMap<String, String>,
}

/// An init container of a pod, and what tells which program it starts.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct InitContainer {
    /// Name in the pod's spec.
    pub name: String,
    /// Base image as `name@sha256:…`.
    pub image: String,
    /// First word of its command; empty where the image's entry point runs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub command: String,
    /// First word of its arguments.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub argument: String,
    /// Its working folder; empty where it is the image's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// The PATH of its environment; empty where it is the image's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub search_path: String,
    /// Where volumes are mounted in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mount_paths: Vec<String>,
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

impl RunningContainer {
    /// Its name and ID.
    #[must_use]
    pub fn id(&self) -> ContainerId {
        ContainerId { name: self.name.clone(), container_id: self.container_id.clone() }
    }
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
    /// The node had no gate when the order was fixed (`status.sourceFirst`): nothing there can prove that a container never started (R6).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_gate: bool,
}

/// A pod that Drover makes for the migration: the one that takes over, the one that holds its place, or the one that it falls back to.
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
    /// Bytes of memory that were sent past the registry, in the runtime lane, by the word of the source's agent. What a post-copy fetches is not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Bytes of that memory that the destination had before the pod was frozen (pre-copy).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_copied_bytes: Option<u64>,
    /// The image as the replacement names it.
    pub image: String,
}

/// Word of one image in the destination's registry.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RegistryConfirmation {
    /// Container, and tag.
    pub container: String,
    /// Digest of the manifest.
    pub digest: String,
    /// Bytes of the checkpoint archive.
    pub bytes: u64,
    /// When the destination's agent had seen it there.
    pub at: MicroTime,
    /// The way that the word came: `Kafka` or `Direct`.
    pub bus: String,
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
