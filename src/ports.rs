//! The doors to the outside: small traits that adapters implement and tests fake.
//!
//! Every method may be called again after a crash in the middle: each is idempotent or says how it is not.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use k8s_openapi::api::{
    core::v1::{Pod, PodCondition},
    policy::v1::PodDisruptionBudget,
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{
        Attestation, AttestationStatus, Migration, MigrationGrant, MigrationStatus, NodeProfileStatus,
        attestation::{ContainerId, PushedImage},
        migration::Lane,
    },
    domain::{
        ids::Digest,
        init_container::StandIn,
        lanes::NodeFacts,
        load::PodCounters,
        migration::{Effect, Told},
        owner,
        pages::PageIndex,
        permits::Permit,
        preflight::{ClaimView, NodeView},
    },
};

pub mod bus;
pub mod callers;
pub mod dump;
pub mod front;
pub mod inside;
pub mod layout;

/// What kind of failure it was, which decides whether it is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The same call may succeed later: a connection that broke, a service that starts.
    Transient,
    /// Somebody else wrote first: read again, decide again.
    Conflict,
    /// The thing is not there.
    NotFound,
    /// It will fail again.
    Permanent,
}

/// A port's failure: its kind, and what happened with what to do about it, in words for the Migration's message (no secrets).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PortError {
    /// Its kind.
    pub kind: Failure,
    /// What happened.
    pub message: String,
}

impl PortError {
    /// A failure of a kind.
    pub fn new(kind: Failure, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// A failure that will happen again.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self::new(Failure::Permanent, message)
    }

    /// A failure that may pass.
    pub fn transient(message: impl Into<String>) -> Self {
        Self::new(Failure::Transient, message)
    }

    /// The same failure, said to have happened while doing something.
    #[must_use]
    pub fn context(self, doing: &str) -> Self {
        Self { message: format!("{doing}: {}", self.message), ..self }
    }
}

/// What every port returns.
pub type PortResult<T> = Result<T, PortError>;

pub use crate::domain::tasks::{Task, TaskState};

/// The container runtime's tasks on this node.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// All containers of a pod, ended ones too, the sandbox not.
    async fn tasks(&self, pod_uid: &str) -> PortResult<Vec<Task>>;
    /// Pauses a task so that nothing of it executes, and nothing of it is where CRIU could not checkpoint it; nothing happens where it is paused already.
    /// Returns when it is paused.
    async fn pause(&self, id: &str) -> PortResult<()>;
    /// Resumes a paused task; nothing happens where it runs already or is gone.
    async fn resume(&self, id: &str) -> PortResult<()>;
    /// Sends SIGKILL to every process of a task, paused or not; nothing happens where it is gone.
    async fn kill(&self, id: &str) -> PortResult<()>;
    /// Ends what is left of a start that the runtime has lost, and tells whether it is over: a task that it shows as made although every process of it has
    /// ended is removed, one that is [`TaskState::Abandoned`] is killed, and so are processes that are in a cgroup of a container which it has given up.
    /// What it is to execute must have been seen to begin, else this may be a task that is about to.
    async fn remove_ended(&self, id: &str) -> PortResult<bool>;
    /// CPU time of the task's cgroup so far, in nanoseconds.
    async fn cpu_nanos(&self, id: &str) -> PortResult<u64>;
    /// When a restored container's processes ran again, where that was noted.
    async fn resumed_at(&self, _id: &str) -> PortResult<Option<jiff::Timestamp>> {
        Ok(None)
    }
}

/// User name and password (or identity token) for one image registry.
#[derive(Clone, PartialEq, Eq)]
pub struct PullCredential {
    /// Registry host that it is for, as in the docker config.
    pub registry: String,
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for PullCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullCredential").field("registry", &self.registry).finish_non_exhaustive()
    }
}

/// The container runtime's images on this node.
#[async_trait]
pub trait Images: Send + Sync {
    /// Makes sure that the image `name@sha256:…` is in the runtime's store under that very name, pulling it through CRI where it is not.
    async fn ensure(&self, reference: &str, credentials: &[PullCredential]) -> PortResult<()>;
    /// Removes a reference from the runtime's store, and every other name of the same image; nothing happens where it is not there.
    async fn remove(&self, reference: &str) -> PortResult<()>;
    /// Every name in the runtime's store that is a checkpoint's, as [`crate::domain::keys::checkpoint_image`] makes them, or one by digest.
    async fn checkpoints(&self) -> PortResult<Vec<String>>;
    /// The manifest of this node's platform of a stored image, with its digest and media type: an index is followed.
    async fn manifest(&self, reference: &str) -> PortResult<ImageManifest>;
    /// A blob of the content store, whole or as a stream of chunks.
    async fn blob(&self, digest: &Digest) -> PortResult<BlobStream>;
}

/// A stream of a blob's bytes.
pub type BlobStream = futures::stream::BoxStream<'static, Result<bytes::Bytes, std::io::Error>>;

/// A manifest as stored, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageManifest {
    /// Digest of the bytes.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Config and layers: digest and size in bytes.
    pub blobs: Vec<(Digest, u64)>,
}

/// The node's own kubelet.
#[async_trait]
pub trait Kubelet: Send + Sync {
    /// Checkpoints one container and returns the archive on this node (`POST /checkpoint/ns/pod/container`). A second call makes a second archive.
    async fn checkpoint(&self, namespace: &str, pod: &str, container: &str, limit: Duration) -> PortResult<PathBuf>;
    /// Makes an archive outlast a power failure; returns when it does.
    async fn sync(&self, archive: &std::path::Path) -> PortResult<()>;
    /// Every pod that this kubelet knows (`GET /pods`), with what it shows of deletion and restarts.
    async fn pods(&self) -> PortResult<Vec<Pod>>;
    /// What it has counted of each pod's use of CPU and memory (`GET /metrics/resource`); nothing where it counts nothing.
    async fn counters(&self) -> PortResult<Vec<PodCounters>> {
        Ok(vec![])
    }
    /// The pod of this UID, or none.
    async fn pod(&self, uid: &str) -> PortResult<Option<Pod>> {
        Ok(self.pods().await?.into_iter().find(|pod| pod.metadata.uid.as_deref() == Some(uid)))
    }
}

/// What is changed in an archive while it is packed; everything else stays byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mending {
    /// Canonical `name@sha256:…` of the base image, written to `config.dump` (MEASURED.md 5).
    pub base_image: String,
}

/// Where the checkpoint images of a migration lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushTarget {
    /// `host:port` of the destination's agent.
    pub address: String,
    /// Node name of the destination, as its certificate must say.
    pub node: String,
    /// `drover/<32 hex>`.
    pub repository: String,
}

/// A checkpoint that the runtime still writes.
#[derive(Debug, Clone)]
pub struct Growing {
    /// Where.
    pub folder: PathBuf,
    /// Of which container.
    pub container: String,
    /// Bytes that its memory is thought to become.
    pub bytes: u64,
    /// What of it the destination has.
    pub known: Arc<PageIndex>,
}

/// Packs checkpoint archives as images and pushes them to another node.
#[async_trait]
pub trait Pusher: Send + Sync {
    /// Packs the archive of one container as a one-layer image and pushes it as `repository:container`.
    async fn push(&self, archive: &std::path::Path, container: &str, mending: &Mending, target: &PushTarget) -> PortResult<PushedImage>;
    /// Sends what there is of a running container's memory, `bytes` at most and not longer than half a minute, and tells which pages the destination then has.
    async fn pre_copy(&self, container: &ContainerId, bytes: u64, target: &PushTarget) -> PortResult<PageIndex>;
    /// Sends the memory of a checkpoint while the runtime still writes it into its folder, until `written` is cancelled; [`Self::push`] then sends what has not
    /// arrived whole.
    async fn send_ahead(&self, dump: &Growing, target: &PushTarget, written: CancellationToken) -> PortResult<()>;
    /// Gives the memory of a container that was dumped without it to its copy, which asks for it page by page; returns when it has all of it.
    ///
    /// An error that is permanent says that it will never have: the way broke in the middle.
    async fn give_memory(&self, container: &ContainerId, target: &PushTarget) -> PortResult<()>;
    /// Packs volumes, each with its name, as one artifact and pushes it under [`crate::domain::keys::VOLUMES_TAG`].
    async fn push_volumes(&self, volumes: &[(String, PathBuf)], target: &PushTarget) -> PortResult<PushedImage>;
    /// The same with a tar that [`inside::Inside::archive_volumes`] has written: the artifact is the same.
    async fn push_volumes_archive(&self, archive: &std::path::Path, target: &PushTarget) -> PortResult<PushedImage>;
}

/// This node's own registry.
#[async_trait]
pub trait LocalRegistry: Send + Sync {
    /// Digest of a tag's manifest and bytes of its layers, by HEAD and GET; none where the tag, its manifest or a blob is missing.
    async fn image(&self, repository: &str, tag: &str) -> PortResult<Option<PushedImage>>;
    /// The same, of a checkpoint image of the container that the tag names: none where the manifest has no mark of that ([`crate::domain::image::CONTAINERD_MARK`]).
    async fn checkpoint(&self, repository: &str, tag: &str) -> PortResult<Option<PushedImage>>;
    /// The one layer of an artifact by its digest, and its bytes.
    async fn layer(&self, repository: &str, manifest: &Digest) -> PortResult<(Digest, BlobStream)>;
    /// Copies the blobs of a base image from the runtime's store into the repository and stores its manifest by digest, without a tag.
    async fn adopt_base(&self, repository: &str, base: &ImageManifest) -> PortResult<()>;
    /// Makes the tag name an image that [`Self::adopt_base`] has stored.
    async fn repoint(&self, repository: &str, tag: &str, base: &ImageManifest) -> PortResult<()>;
    /// Stores an image above a base image that [`Self::adopt_base`] has stored, under a tag.
    async fn store(&self, repository: &str, tag: &str, media_type: &str, image: &StandIn) -> PortResult<()>;
    /// Removes these checkpoint images: manifest and blobs, also from the disk, but nothing that another manifest needs.
    async fn purge_images(&self, repository: &str, images: &[Digest]) -> PortResult<()>;
    /// Removes a repository with all that only it holds, also from the disk.
    async fn purge_repository(&self, repository: &str) -> PortResult<()>;
    /// Repositories on the disk.
    async fn repositories(&self) -> PortResult<Vec<String>>;
}

/// A look at this node.
#[async_trait]
pub trait NodeProbe: Send + Sync {
    /// What is found; what cannot be found out is left empty.
    async fn facts(&self) -> NodeFacts;
    /// Whether the runtime runs the gate, looked at without the rest, which takes longer; none where the runtime does not say so now.
    async fn is_gated(&self) -> Option<bool> {
        None
    }
}

/// What a migration that has not ended needs on its destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Repository of its checkpoint images.
    pub repository: String,
    /// UIDs of the pods that it makes on this node, which may have claims there; empty ones are not made yet.
    pub pods: Vec<String>,
}

/// What an agent asks of the API server.
#[async_trait]
pub trait AgentApi: Send + Sync {
    /// A Migration, or none.
    async fn migration(&self, namespace: &str, name: &str) -> PortResult<Option<Migration>>;
    /// An Attestation, or none.
    async fn attestation(&self, namespace: &str, name: &str) -> PortResult<Option<Attestation>>;
    /// Writes the status of an attestation by compare-and-swap on the resource version of `attestation`.
    async fn attest(&self, attestation: &Attestation, status: &AttestationStatus) -> PortResult<Attestation>;
    /// Writes this node's profile, making it where there is none.
    async fn write_profile(&self, status: &NodeProfileStatus) -> PortResult<()>;
    /// What the migrations to this node that have not ended need here.
    async fn arrivals(&self) -> PortResult<Vec<Arrival>>;
    /// Pull credentials that the manager has laid out for a migration; empty where it needs none.
    async fn pull_credentials(&self, migration_uid: &str) -> PortResult<Vec<PullCredential>>;
}

/// What the manager reads from and writes to the API server. Every write names its object by UID or resource version.
#[async_trait]
pub trait Cluster: Send + Sync {
    /// A pod by name, or none.
    async fn pod(&self, namespace: &str, name: &str) -> PortResult<Option<Pod>>;
    /// An attestation by name, or none.
    async fn attestation(&self, namespace: &str, name: &str) -> PortResult<Option<Attestation>>;
    /// The labels by which a ReplicaSet or Job of this UID selects its pods; empty where it is gone.
    async fn owner_selector(&self, namespace: &str, kind: owner::Kind, name: &str, uid: &str) -> PortResult<BTreeMap<String, String>>;
    /// What lets pods of other namespaces move into this one.
    async fn grants(&self, _namespace: &str) -> PortResult<Vec<MigrationGrant>> {
        Ok(vec![])
    }
    /// Whether the migration's pod may come to a node, and be frozen for it.
    async fn permit(&self, _migration: &Migration, _node: &str) -> PortResult<Permit> {
        Ok(Permit::Held)
    }
    /// Gives back the permit for its destination, where the migration has one.
    async fn give_back_permit(&self, _migration: &Migration) -> PortResult<()> {
        Ok(())
    }
    /// The controllers of a namespace that adopt pods by their labels alone.
    async fn adopters(&self, _namespace: &str) -> PortResult<Vec<owner::Adopter>> {
        Ok(vec![])
    }
    /// The pods that a Migration of several asks for; none where its Deployment is not there.
    async fn asked_for(&self, parent: &Migration) -> PortResult<Option<Vec<Pod>>>;
    /// The children of a Migration of several pods.
    async fn children(&self, parent: &Migration) -> PortResult<Vec<Migration>>;
    /// Makes a child; nothing happens where it is there already. A permanent error where another Migration has its name, or it is refused.
    async fn make_child(&self, parent: &Migration, child: &Migration) -> PortResult<()>;
    /// The claims that a pod names and that exist, by name, with their volumes.
    async fn claims(&self, pod: &Pod) -> PortResult<BTreeMap<String, ClaimView>>;
    /// The disruption budgets of the pod's namespace.
    async fn budgets(&self, pod: &Pod) -> PortResult<Vec<PodDisruptionBudget>>;
    /// Every node with its profile.
    async fn nodes(&self) -> PortResult<Vec<NodeView>>;
    /// Those of these nodes that exist, with their profiles.
    async fn nodes_named(&self, names: &[&str]) -> PortResult<Vec<NodeView>> {
        Ok(self.nodes().await?.into_iter().filter(|node| names.contains(&node.name.as_str())).collect())
    }
    /// The same as they are now, whatever a watch has told of them.
    async fn nodes_now(&self, names: &[&str]) -> PortResult<Vec<NodeView>> {
        self.nodes_named(names).await
    }
    /// The lane of migrations that leave it open.
    fn default_lane(&self) -> Lane {
        Lane::Auto
    }
    /// UIDs of the migrations that have not ended.
    async fn active_migrations(&self) -> PortResult<Vec<String>>;
    /// Whether pull credentials of a migration are laid out.
    async fn has_pull_credentials(&self, migration_uid: &str) -> PortResult<bool>;
    /// What [`Effect::KeepTemplate`] has kept of a migration's source, or none.
    async fn template(&self, migration: &Migration) -> PortResult<Option<Pod>>;
    /// Writes the status by compare-and-swap on the resource version of `migration`.
    async fn write_status(&self, migration: &Migration, status: &MigrationStatus) -> PortResult<Migration>;
    /// Does what one effect says; `pod` is the one to make, rehearse or keep, where the effect is about one.
    async fn perform(&self, migration: &Migration, effect: &Effect, pod: Option<&Pod>) -> PortResult<()>;
    /// Writes a condition of this very pod into its status, whatever its kubelet has written since.
    async fn write_condition(&self, pod: &Pod, condition: &PodCondition) -> PortResult<()>;
    /// What the readiness bus has told of a migration and its status may not note yet; nothing where there is no bus.
    fn told(&self, _migration_uid: &str) -> Option<Told> {
        None
    }
    /// Tells people, as an Event of the Migration.
    async fn tell(&self, migration: &Migration, warning: bool, reason: &str, message: &str) -> PortResult<()>;
}

/// The clock; faked in tests.
pub trait Clock: Send + Sync {
    /// Now, in UTC.
    fn now(&self) -> jiff::Timestamp;
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }
}

/// Container name → base image `name@sha256:…`.
pub type BaseImages = BTreeMap<String, String>;
