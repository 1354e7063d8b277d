//! What the manager has read when it decides.

use std::{collections::BTreeMap, sync::LazyLock, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{ContainerStatus, Pod},
    policy::v1::PodDisruptionBudget,
};
use kube::ResourceExt as _;

use crate::{
    api::{
        Attestation, AttestationStatus, Migration, MigrationStatus,
        migration::{ContainerCheckpoint, OwnerStatus, ReplacementStatus, RunningContainer, SourceStatus},
    },
    domain::{
        containers, init_container, keys, owner,
        permits::Permit,
        preflight::{Blocker, base_image, lane::Choice},
        registry_event::RegistryEvent,
        room::Room,
    },
};

/// Two lists of the kubelet, and the API server keeps whole seconds of a condition.
const SETTLED: Duration = Duration::from_secs(3);

/// Everything that [`super::advance`] looks at besides the Migration itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// The pod of the source's name, whatever its UID.
    pub source: Option<Pod>,
    /// The pod of the replacement's name, whatever its UID.
    pub replacement: Option<Pod>,
    /// The source node's attestation.
    pub source_attestation: Option<Attestation>,
    /// The destination node's attestation.
    pub destination_attestation: Option<Attestation>,
    /// The source node's attestation about the fallback.
    pub fallback_attestation: Option<Attestation>,
    /// The pod of the placeholder's name, whatever its UID.
    pub placeholder: Option<Pod>,
    /// What is kept of the source for the time after its deletion.
    pub template: Option<Pod>,
    /// Whether the source node's runtime runs the gate.
    pub source_gated: bool,
    /// Whether the destination node's runtime runs the gate.
    pub destination_gated: bool,
    /// What preflight found; looked for in that phase only.
    pub blockers: Vec<Blocker>,
    /// Node → what it has room for; looked for before the freeze only.
    pub rooms: BTreeMap<String, Room>,
    /// Whether the destination node is Ready; none where it is not known yet.
    pub destination_ready: Option<bool>,
    /// A repository name that nobody can guess, drawn for this look; used when the migration needs one.
    pub fresh_repository: String,
    /// The lane that the migration takes; chosen in the preflight, and left at auto where nothing is to be chosen.
    pub lane: Choice,
    /// The replacement's name.
    pub replacement_name: String,
    /// The labels that the source's ReplicaSet or Job selects by; looked for before the preflight only.
    pub owner_selector: BTreeMap<String, String>,
    /// Whether the destination has a place for the pod; looked for when it is about to be frozen.
    pub permit: Permit,
    /// The disruption budgets of the source's namespace.
    pub budgets: Vec<PodDisruptionBudget>,
    /// What the readiness bus has told of the migration.
    pub told: Option<Told>,
    /// The laid-out pull credentials are still there.
    pub pull_credentials_left: bool,
}

/// An event, and the bus that brought it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Name of the bus.
    pub bus: &'static str,
    /// The event.
    pub event: RegistryEvent,
}

/// What an agent has attested when it has attested nothing.
static NOTHING: LazyLock<AttestationStatus> = LazyLock::new(AttestationStatus::default);

impl Observed {
    /// What the source's agent has said.
    #[must_use]
    pub fn source_status(&self) -> &AttestationStatus {
        self.source_attestation.as_ref().and_then(|a| a.status.as_ref()).unwrap_or(&NOTHING)
    }

    /// What the destination's agent has said.
    #[must_use]
    pub fn destination_status(&self) -> &AttestationStatus {
        self.destination_attestation.as_ref().and_then(|a| a.status.as_ref()).unwrap_or(&NOTHING)
    }

    /// What the source node's agent has said about the fallback.
    #[must_use]
    pub fn fallback_status(&self) -> &AttestationStatus {
        self.fallback_attestation.as_ref().and_then(|a| a.status.as_ref()).unwrap_or(&NOTHING)
    }

    /// Whether the API server has no pod of the source's UID.
    #[must_use]
    pub fn source_is_gone(&self, status: &MigrationStatus) -> bool {
        status.source.as_ref().is_some_and(|source| pod_is_gone(self.source.as_ref(), &source.uid))
    }

    /// The pod that waits on the destination before the source is touched: the placeholder of a same-name replacement, else the replacement.
    pub(super) fn waiting<'a>(&'a self, status: &'a MigrationStatus) -> (Option<&'a Pod>, Option<&'a ReplacementStatus>) {
        match &status.placeholder {
            Some(placeholder) => (self.placeholder.as_ref(), Some(placeholder)),
            None => (self.replacement.as_ref(), status.replacement.as_ref()),
        }
    }

    /// Whether the source pod carries this migration's lock.
    #[must_use]
    pub fn locked_by(&self, migration: &Migration) -> bool {
        let lock = self.source.as_ref().and_then(|pod| pod.annotations().get(keys::LOCK));
        lock.is_some() && lock == migration.metadata.uid.as_ref()
    }

    /// Whether a pod is the replacement that this migration made.
    #[must_use]
    pub fn is_our_replacement(&self, pod: &Pod, migration: &Migration) -> bool {
        let mark = pod.annotations().get(keys::REPLACES);
        mark.is_some() && mark == migration.metadata.uid.as_ref()
    }
}

/// Whether a pod is the fallback that this migration made.
pub(super) fn is_our_fallback(pod: &Pod, migration: &Migration) -> bool {
    let mark = pod.annotations().get(keys::FALLBACK);
    mark.is_some() && mark == migration.metadata.uid.as_ref()
}

pub(super) fn has_finalizer(migration: &Migration) -> bool {
    migration.finalizers().iter().any(|f| f == keys::FINALIZER)
}

pub(super) fn is_being_deleted(migration: &Migration) -> bool {
    migration.metadata.deletion_timestamp.is_some()
}

/// Whether no object of this UID is there: none of its name, or another one.
#[must_use]
pub fn pod_is_gone(pod: Option<&Pod>, uid: &str) -> bool {
    pod.is_none_or(|pod| pod.metadata.uid.as_deref() != Some(uid))
}

pub(in crate::domain) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

pub(super) fn claimed_by(pod: &Pod, migration: &Migration) -> bool {
    let claim = pod.annotations().get(keys::CLAIM);
    claim.is_some() && claim == migration.metadata.uid.as_ref()
}

pub(super) fn has_images(pod: &Pod, checkpoints: &[ContainerCheckpoint]) -> bool {
    checkpoints
        .iter()
        .all(|c| pod.spec.iter().flat_map(containers::running).any(|k| k.name == c.name && k.image.as_deref() == Some(c.image.as_str())))
}

/// Whether the init containers have the images that stand in for their own.
pub(super) fn has_init_images(pod: &Pod, images: &BTreeMap<String, String>) -> bool {
    let containers = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    images.iter().all(|(name, image)| containers.iter().any(|c| c.name == *name && c.image.as_ref() == Some(image)))
}

/// The kubelet's word that the pod has gone through its init containers. Its condition `Initialized` waits for the sidecars too.
pub(super) fn has_initialized(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.init_container_statuses.as_deref()).unwrap_or_default();
    let has_ended = |name: &str| {
        let ended = |status: &ContainerStatus| status.state.as_ref().and_then(|state| state.terminated.as_ref()).is_some_and(|t| t.exit_code == 0);
        statuses.iter().any(|status| status.name == name && ended(status))
    };
    pod.spec.iter().flat_map(containers::initializing).all(|container| has_ended(&container.name))
}

/// The kubelet's word that sandbox, network and volumes are up (condition `PodReadyToStartContainers`, KEP-3085).
pub(super) fn sandbox_ready(pod: &Pod) -> bool {
    condition(pod, "PodReadyToStartContainers").is_some_and(|c| c.status == "True")
}

/// How long until the kubelet acts at once on a change of a pod whose sandbox is up; none where it does already.
///
/// After each look at a pod it waits for a list of containers that is newer than that look (`GetNewerThan` in pkg/kubelet/pod_workers.go), and makes one a
/// second (`genericPlegRelistPeriod`). The next list shows the sandbox, so that it looks once more; the one after lets it act. A clock that is ahead of this
/// one says nothing.
pub(super) fn unsettled(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let since = condition(pod, "PodReadyToStartContainers")?.last_transition_time.as_ref()?.0;
    let passed = Duration::try_from(now.duration_since(since)).ok()?;
    SETTLED.checked_sub(passed).filter(|left| !left.is_zero())
}

/// Whether a pod has not come up yet: it may still run.
pub(super) fn is_starting(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let phase = status.and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
    pod.metadata.deletion_timestamp.is_none() && phase == "Pending"
}

/// The kubelet's word that the pod may be given work.
pub(super) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// What the scheduler says of a pod that it has not placed.
pub(super) fn scheduling_message(pod: &Pod) -> String {
    let said = condition(pod, "PodScheduled").and_then(|c| c.message.clone()).unwrap_or_default();
    if said.is_empty() { "waiting for the scheduler".to_owned() } else { format!("waiting for the scheduler: {said}") }
}

pub(in crate::domain) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a k8s_openapi::api::core::v1::PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// The addresses of a pod that are not its node's.
fn own_addresses(pod: &Pod) -> Vec<String> {
    if pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true)) {
        return vec![];
    }
    let addresses = pod.status.as_ref().and_then(|status| status.pod_ips.as_deref()).unwrap_or_default();
    addresses.iter().map(|address| address.ip.clone()).collect()
}

/// The source as it is recorded when the migration begins.
pub(super) fn source_status(pod: &Pod) -> SourceStatus {
    SourceStatus {
        name: pod.name_any(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        node_name: node_of(pod).unwrap_or_default().to_owned(),
        pod_ips: own_addresses(pod),
        containers: containers::statuses(pod)
            .map(|status| RunningContainer {
                name: status.name.clone(),
                container_id: status.container_id.as_deref().and_then(|id| id.split_once("://")).map(|(_, id)| id.to_owned()).unwrap_or_default(),
                image: base_image(pod, &status.name).unwrap_or_default(),
            })
            .collect(),
        init_containers: pod
            .spec
            .iter()
            .flat_map(containers::initializing)
            .map(|container| init_container::recorded(container, base_image(pod, &container.name).unwrap_or_default()))
            .collect(),
        without_gate: false,
        owner: owner::controller(&pod.metadata).map(|owner| OwnerStatus {
            kind: owner.kind.clone(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
            tied_by: BTreeMap::new(),
        }),
    }
}
