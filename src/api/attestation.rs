//! `Attestation`: what one agent knows from its own node's runtime, for one migration.
//!
//! The manager makes two for each migration (`<migration>-source`, `<migration>-destination`); only the agent of `spec.nodeName` may patch the
//! status, which a ValidatingAdmissionPolicy binds to the node claim of its token. What is written once stays: the CEL rules below refuse
//! a client that takes a word back.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which migration, node and pod the attestation speaks of.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[kube(
    group = "drover.dev",
    version = "v1alpha1",
    kind = "Attestation",
    plural = "attestations",
    category = "drover",
    namespaced,
    status = "AttestationStatus",
    derive = "PartialEq",
    doc = "What the agent of one node attests about one migration. Written by that agent alone.",
    selectable = ".spec.nodeName",
    printcolumn(name = "Migration", type_ = "string", json_path = ".spec.migration"),
    printcolumn(name = "Role", type_ = "string", json_path = ".spec.role"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.nodeName"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("spec is immutable"))]
pub struct AttestationSpec {
    /// Name of the Migration, in the same namespace.
    pub migration: String,
    /// UID of the Migration.
    #[serde(rename = "migrationUID")]
    #[schemars(rename = "migrationUID")]
    pub migration_uid: String,
    /// Node whose agent writes the status.
    pub node_name: String,
    /// UID of the pod on that node.
    #[serde(rename = "podUID")]
    #[schemars(rename = "podUID")]
    pub pod_uid: String,
    /// Which side the node is on.
    pub role: Role,
}

/// The sides of a migration.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The node that the pod leaves.
    Source,
    /// The node that the pod goes to.
    Destination,
    /// The source node again, where a pod whose source was deleted goes on from the kept archive (R13).
    Fallback,
}

impl Role {
    /// Suffix of the attestation's name.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Fallback => "fallback",
        }
    }
}

/// What the agent attests. Each field is written once.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(oldSelf.inspected) || (has(self.inspected) && self.inspected == oldSelf.inspected)").message("status.inspected is written once"),
    validation = Rule::new("!has(oldSelf.vote) || (has(self.vote) && self.vote == oldSelf.vote)").message("status.vote is written once"),
    validation = Rule::new("!has(oldSelf.abort) || (has(self.abort) && self.abort == oldSelf.abort)").message("status.abort is written once"),
    validation = Rule::new("!(has(self.vote) && has(self.abort))").message("status.vote and status.abort exclude each other (R2)"),
    validation = Rule::new("!has(oldSelf.ended) || (has(self.ended) && self.ended == oldSelf.ended)").message("status.ended is written once"),
    validation = Rule::new("!(has(self.ended) && has(self.thawed))").message("status.ended and status.thawed exclude each other (R13)"),
    validation = Rule::new("!has(oldSelf.armed) || (has(self.armed) && self.armed == oldSelf.armed)").message("status.armed is written once"),
    validation = Rule::new("!has(oldSelf.restored) || (has(self.restored) && self.restored == oldSelf.restored)").message("status.restored is written once"),
    validation = Rule::new("!has(oldSelf.confirmed) || (has(self.confirmed) && self.confirmed == oldSelf.confirmed)").message("status.confirmed is written once"),
    validation = Rule::new("!has(oldSelf.neverStarted) || (has(self.neverStarted) && self.neverStarted == oldSelf.neverStarted)").message("status.neverStarted is written once"),
    validation = Rule::new("!(has(self.restored) && has(self.neverStarted))").message("status.restored and status.neverStarted exclude each other (R3, R4)"),
    validation = Rule::new("!has(oldSelf.died) || (has(self.died) && self.died == oldSelf.died)").message("status.died is written once"),
    validation = Rule::new("!has(oldSelf.coldStarted) || (has(self.coldStarted) && self.coldStarted == oldSelf.coldStarted)").message("status.coldStarted is written once"),
    validation = Rule::new("!(has(self.died) && has(self.neverStarted))").message("status.died and status.neverStarted exclude each other (R7)"),
    validation = Rule::new("!(has(self.coldStarted) && has(self.restored))").message("what started cold was not restored: status.coldStarted and status.restored exclude each other (R15)"),
    validation = Rule::new("!has(self.restored) || has(oldSelf.restored) || !has(self.died)").message("what died is not restored any more: status.restored after status.died (R7)"),
    validation = Rule::new("!has(self.confirmed) || has(self.restored) || has(self.died) || has(self.coldStarted)").message("status.confirmed needs status.restored, or a replacement that was let start cold (R17)")
)]
pub struct AttestationStatus {
    /// Source: what the pod's processes hold, looked at before anything is touched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inspected: Option<Inspected>,
    /// Source: the pod is fenced and all of its containers are paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Frozen>,
    /// Source: the kubelet has checkpointed every container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpointed: Option<At>,
    /// Source: the checkpoint images are in the destination's registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pushed: Option<Pushed>,
    /// Source: the checkpoint is the last that was executed (R2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vote: Option<Vote>,
    /// Source: it will never vote; it has thawed or will (R2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort: Option<Remark>,
    /// Source: the original runs again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thawed: Option<At>,
    /// Source: the original was ended, never thawed (R10): after the confirmation, or, where it goes first, before the release.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<At>,
    /// Source: complete checkpoint archives that stay on this node for a person, since no copy with the memory lives (R15, R18).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
    /// Source, where it goes first: its checkpoint archives, complete and synced, which stay until a copy is confirmed (R14).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archived: Option<Archived>,

    /// Destination: base images and registry are ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prepared: Option<Prepared>,
    /// Destination: images that its registry has told of and holds, before the vote. A hint, by the direct adapter of the readiness bus.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notified: Vec<Notified>,
    /// Destination: the registry holds the images that were voted for (HEAD-verified).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<Pushed>,
    /// Destination: the node expects this same-name replacement, which was made after the attestation; its claims are armed where there is a gate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub armed: Option<Armed>,
    /// Destination: the runtime restored these containers and the checkpoint is out of reach (R16).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
    /// Destination: no restored container ever started, and none ever will (R3, R5): each was revoked, or refused before its resume point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub never_started: Option<NeverStarted>,
    /// Destination: containers of the replacement may have run, and none of it executes now or will before the migration ends (R7).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub died: Option<Died>,
    /// Destination: a container of the replacement has run from another image than this migration's checkpoint (R15).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cold_started: Option<Remark>,
    /// Destination: after the Commit, the same containers still ran (R17); or, where the replacement was let start cold, that it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<At>,
    /// Destination: checkpoint blobs and names are gone. Source, where it went first: its archives are gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cleaned: Option<At>,
    /// Destination: what went wrong; before the release it leads to a rollback, after it to a hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Remark>,
}

/// Checkpoint archives on the source node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Archived {
    /// When they were synced, at the latest.
    pub at: MicroTime,
    /// Paths on the node, one a container.
    pub paths: Vec<String>,
    /// They hold the last that the pod has executed (R8): its fence stood until nothing of it could start any more; or, on a node without the gate, the very
    /// containers of the vote were still paused when the kubelet showed the deletion. False where nobody can say so.
    #[serde(default)]
    pub last: bool,
}

/// A replacement that a node expects.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Armed {
    /// When.
    pub at: MicroTime,
    /// UID of the replacement.
    #[serde(rename = "podUID")]
    #[schemars(rename = "podUID")]
    pub pod_uid: String,
}

/// A moment on the agent's clock.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct At {
    /// When.
    pub at: MicroTime,
}

/// A moment and why.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Remark {
    /// When.
    pub at: MicroTime,
    /// What happened and what to do about it; no secrets.
    pub message: String,
}

/// What the source's agent has found in the pod's processes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Inspected {
    /// When.
    pub at: MicroTime,
    /// What keeps the pod where it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blockers: Vec<Finding>,
    /// What will be different after the move.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Finding>,
    /// Bytes that will be read and sent while the pod is frozen: its memory and its emptyDir volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Of these, what is in emptyDir volumes and in /dev/shm: it goes through the registry in either lane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_bytes: Option<u64>,
}

/// One thing that was found.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What it is about: `process[PID NAME].fd[N]`, with the node's process ID.
    pub field: String,
    /// What was found.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

/// The paused containers.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Frozen {
    /// When the first container was paused.
    pub at: MicroTime,
    /// All containers of the pod that run.
    pub containers: Vec<ContainerId>,
}

/// A container by its name in the pod and its ID in the runtime.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ContainerId {
    /// Name in the pod's spec.
    pub name: String,
    /// ID without the runtime's prefix.
    #[serde(rename = "containerID")]
    #[schemars(rename = "containerID")]
    pub container_id: String,
}

/// Images in a registry.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Pushed {
    /// When the last one was there.
    pub at: MicroTime,
    /// One a container.
    pub images: Vec<PushedImage>,
}

/// One image that the registry has told of.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Notified {
    /// When it was seen in the registry.
    pub at: MicroTime,
    /// Container, and tag.
    pub container: String,
    /// Digest of the manifest.
    pub digest: String,
    /// Bytes of the archive (the one layer).
    pub bytes: u64,
}

/// One checkpoint image in a registry.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PushedImage {
    /// Container, and tag.
    pub container: String,
    /// Digest of the manifest.
    pub digest: String,
    /// Bytes of the archive (the one layer).
    pub bytes: u64,
    /// Bytes of memory that were sent past the registry, in the runtime lane: the archive names them with their digests. What a post-copy fetches is not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Bytes of that memory that the destination had before the pod was frozen (pre-copy).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_copied_bytes: Option<u64>,
}

/// The source agent's durable word that the checkpoint is the last that was executed.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Vote {
    /// When.
    pub at: MicroTime,
    /// The containers, still paused by this migration.
    pub containers: Vec<ContainerId>,
    /// What is voted for: the digests of the checkpoint images.
    pub images: Vec<PushedImage>,
}

/// What the destination has made ready.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Prepared {
    /// When.
    pub at: MicroTime,
    /// `host:port` at which the agent takes pushes (mTLS).
    pub push_address: String,
    /// `host:port` at which the node's own runtime pulls.
    pub pull_address: String,
}

/// Restored containers, from the runtime.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Restored {
    /// When they were seen running.
    pub at: MicroTime,
    /// One a container; its restartCount is 0.
    pub containers: Vec<ContainerId>,
}

/// Proof that nothing of the replacement ever executed.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NeverStarted {
    /// When the last claim was closed.
    pub at: MicroTime,
    /// One a container.
    pub containers: Vec<ClosedClaim>,
}

/// The replacement may have run, and is over: what it did since the release is lost.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Died {
    /// When the last claim was closed and no task was left.
    pub at: MicroTime,
    /// One a container, with the state of its claim: `taken` where its one restore was let through and is over.
    pub containers: Vec<ClosedClaim>,
}

/// Checkpoint archives that were not collected.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    /// When that was decided.
    pub at: MicroTime,
    /// Paths on the source node, one a container.
    pub archives: Vec<String>,
}

/// How one container's claim was closed, from the durable marker on the destination's disk.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClosedClaim {
    /// Name in the pod's spec.
    pub name: String,
    /// `revoked` or `failed`; in `status.died` also `taken`, or `unknown` on a node without the gate.
    pub state: String,
    /// What proves it, for `failed`: CRIU's error.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub proof: String,
}

/// Name of a migration's attestation.
#[must_use]
pub fn attestation_name(migration: &str, role: Role) -> String {
    format!("{migration}-{}", role.suffix())
}
