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

/// The two sides of a migration.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The node that the pod leaves.
    Source,
    /// The node that the pod goes to.
    Destination,
}

impl Role {
    /// Suffix of the attestation's name.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// What the agent attests. Each field is written once.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(oldSelf.vote) || (has(self.vote) && self.vote == oldSelf.vote)").message("status.vote is written once"),
    validation = Rule::new("!has(oldSelf.abort) || (has(self.abort) && self.abort == oldSelf.abort)").message("status.abort is written once"),
    validation = Rule::new("!(has(self.vote) && has(self.abort))").message("status.vote and status.abort exclude each other (R2)"),
    validation = Rule::new("!has(oldSelf.restored) || (has(self.restored) && self.restored == oldSelf.restored)").message("status.restored is written once"),
    validation = Rule::new("!has(oldSelf.confirmed) || (has(self.confirmed) && self.confirmed == oldSelf.confirmed)").message("status.confirmed is written once"),
    validation = Rule::new("!has(self.confirmed) || has(self.restored)").message("status.confirmed needs status.restored (R17)")
)]
pub struct AttestationStatus {
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
    /// Source: the original was ended after the confirmation, never thawed (R10).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<At>,

    /// Destination: base images and registry are ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prepared: Option<Prepared>,
    /// Destination: the registry holds these images (HEAD-verified). The direct adapter of the readiness bus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<Pushed>,
    /// Destination: the runtime restored these containers and the checkpoint is out of reach (R16).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
    /// Destination: after the Commit, the same containers still ran (R17).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<At>,
    /// Destination: checkpoint blobs and names are gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cleaned: Option<At>,
    /// Destination: what went wrong; before the release it leads to a rollback, after it to a hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Remark>,
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

/// Name of a migration's attestation.
#[must_use]
pub fn attestation_name(migration: &str, role: Role) -> String {
    format!("{migration}-{}", role.suffix())
}
