//! Blockers that stand in the pod itself.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};
use kube::ResourceExt as _;

use super::Blocker;
use crate::domain::{containers, init_container, keys, lanes, owner};

/// Annotation of the kubelet's static pods (core/v1 `MirrorPodAnnotationKey`).
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What is said of an image that nobody can pull again.
const UNNAMED: &str = "its digest is not known (imageID in the pod's status)";
const UNNAMED_REMEDY: &str = "use an image that was pulled from a registry";

/// The base image of a container as `name@sha256:…`: from an earlier hop, else as the runtime reports it.
#[must_use]
pub fn base_image(pod: &Pod, container: &str) -> Option<String> {
    if let Some(image) = keys::original_images(pod).remove(container) {
        return is_canonical(&image).then_some(image);
    }
    let status = pod.status.as_ref()?;
    let mut statuses = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let id = &statuses.find(|s| s.name == container)?.image_id;
    // Docker-era runtimes put a scheme before it.
    let id = id.strip_prefix("docker-pullable://").unwrap_or(id);
    is_canonical(id).then(|| id.to_owned())
}

fn is_canonical(image: &str) -> bool {
    image.split_once("@sha256:").is_some_and(|(name, hex)| !name.is_empty() && hex.len() == 64) && !keys::is_checkpoint_image(image)
}

/// Every reason in the pod why it cannot be moved.
#[must_use]
pub fn blockers(pod: &Pod) -> Vec<Blocker> {
    let mut found = metadata_blockers(pod);
    let Some(spec) = &pod.spec else {
        found.push(Blocker::new("spec", "is missing", "this is no running pod"));
        return found;
    };
    found.extend(spec_blockers(spec));
    for container in containers::running(spec) {
        found.extend(container_blockers(pod, container));
    }
    for container in containers::initializing(spec) {
        found.extend(init_container_blockers(pod, container));
    }
    found.extend(order_blockers(spec));
    found.extend(spec.volumes.iter().flatten().filter_map(volume_blocker));
    found
}

fn metadata_blockers(pod: &Pod) -> Vec<Blocker> {
    let mut found = vec![];
    if pod.metadata.deletion_timestamp.is_some() {
        found.push(Blocker::new("metadata.deletionTimestamp", "the pod is being deleted", "there is nothing left to move"));
    }
    if pod.annotations().contains_key(MIRROR) {
        found.push(Blocker::new(format!("metadata.annotations[{MIRROR}]"), "static pods belong to their node", "move the manifest file instead"));
    }
    if let Some(owner) = owner::controller(&pod.metadata).filter(|owner| owner::kind(owner).is_none()) {
        let (message, remedy) = match owner.kind.as_str() {
            "DaemonSet" => ("has its pods on every node by design".to_owned(), "change which nodes the DaemonSet selects"),
            _ => (
                "cannot be moved yet: Drover knows Jobs, ReplicaSets, Deployments, StatefulSets and bare pods".to_owned(),
                "delete the pod and let its owner make another one elsewhere",
            ),
        };
        found.push(Blocker::new("metadata.ownerReferences", format!("a pod of {} {} {message}", owner.kind, owner.name), remedy));
    }
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Unknown");
    if phase != "Running" {
        found.push(Blocker::new("status.phase", format!("is {phase}"), "only running pods have a memory to move"));
    }
    found
}

fn spec_blockers(spec: &PodSpec) -> Vec<Blocker> {
    let devices = spec.resource_claims.as_ref().is_some_and(|c| !c.is_empty());
    let ephemeral = spec.ephemeral_containers.as_ref().is_some_and(|c| !c.is_empty());
    let other_os = spec.os.as_ref().is_some_and(|os| os.name != "linux");
    [
        ("spec.hostPID", spec.host_pid == Some(true), "process IDs of a node exist there only", "give the pod a PID namespace of its own"),
        ("spec.hostIPC", spec.host_ipc == Some(true), "shared memory of a node exists there only", "give the pod an IPC namespace of its own"),
        ("spec.shareProcessNamespace", spec.share_process_namespace == Some(true), "process IDs may be taken on the destination", "set it to false"),
        ("spec.ephemeralContainers", ephemeral, "cannot be made again on the destination", "make a pod without them"),
        (
            "spec.runtimeClassName",
            spec.runtime_class_name.as_deref().is_some_and(|class| class != lanes::RUNTIME_CLASS),
            "only the default runtime and Drover's are supported yet",
            "use the default runtime",
        ),
        ("spec.activeDeadlineSeconds", spec.active_deadline_seconds.is_some(), "would begin again on the destination", "remove it"),
        ("spec.resourceClaims", devices, "devices stay on their node", "a pod with devices cannot be moved"),
        ("spec.os", other_os, "only Linux pods can be checkpointed", "a pod of another system cannot be moved"),
        ("spec.hostUsers", spec.host_users == Some(false), "CRIU does not restore nested user namespaces", "set it to true"),
    ]
    .into_iter()
    .filter(|(_, present, _, _)| *present)
    .map(|(field, _, message, remedy)| Blocker::new(field, message, remedy))
    .collect()
}

/// Up to the first sidecar, whose start is its restore, init containers are passed before the freeze.
fn order_blockers(spec: &PodSpec) -> Option<Blocker> {
    let mut of_init = spec.init_containers.iter().flatten();
    let sidecar = of_init.by_ref().find(|container| containers::is_sidecar(container))?;
    let after = of_init.find(|container| !containers::is_sidecar(container))?;
    let message = format!("begins its work after sidecar {}, so that it could be passed only within the freeze", sidecar.name);
    Some(Blocker::new(format!("spec.initContainers[{}]", after.name), message, "name it before the sidecars"))
}

fn init_container_blockers(pod: &Pod, container: &Container) -> Vec<Blocker> {
    let at = |field: &str| format!("spec.initContainers[{}]{field}", container.name);
    let mut found: Vec<Blocker> =
        init_container::obstacles(container).into_iter().map(|(field, message, remedy)| Blocker::new(at(field), message, remedy)).collect();
    if base_image(pod, &container.name).is_none() {
        found.push(Blocker::new(at(".image"), UNNAMED, UNNAMED_REMEDY));
    }
    found
}

fn container_blockers(pod: &Pod, container: &Container) -> Vec<Blocker> {
    let name = &container.name;
    let post_start = container.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some());
    let block_devices = container.volume_devices.as_ref().is_some_and(|d| !d.is_empty());
    let devices: Vec<&str> = container
        .resources
        .iter()
        .flat_map(|r| r.limits.iter().flatten())
        .map(|(resource, _)| resource.as_str())
        .filter(|resource| resource.contains('/') && !resource.starts_with("hugepages-"))
        .collect();
    let status = containers::statuses(pod).find(|status| &status.name == name);
    let running = status.is_some_and(|s| s.state.as_ref().is_some_and(|state| state.running.is_some()));
    let unnamed = running && base_image(pod, name).is_none();
    let device_list = format!("devices stay on their node: {}", devices.join(", "));
    [
        (".tty", container.tty == Some(true), "a terminal cannot be restored", "set tty to false"),
        (".volumeDevices", block_devices, "block devices are not moved", "use a volume with a file system"),
        (".lifecycle.postStart", post_start, "would run again after the restore", "remove the hook"),
        (".resources.limits", !devices.is_empty(), device_list.as_str(), "a pod with devices cannot be moved"),
        ("", !running, "is not running", "wait until every container runs"),
        (".image", unnamed, UNNAMED, UNNAMED_REMEDY),
    ]
    .into_iter()
    .filter(|(_, present, _, _)| *present)
    .map(|(field, _, message, remedy)| Blocker::new(format!("{}{field}", containers::field(pod, name)), message, remedy))
    .collect()
}

/// What is different for the pod after a move, as its spec has it.
#[must_use]
pub fn warnings(pod: &Pod) -> Vec<Blocker> {
    let spec = pod.spec.as_ref();
    let stopping = spec.into_iter().flat_map(containers::running).filter(|c| c.lifecycle.as_ref().is_some_and(|l| l.pre_stop.is_some()));
    let hook = |container: &Container| {
        let field = format!("{}.lifecycle.preStop", containers::field(pod, &container.name));
        Blocker::new(field, "does not run where the pod leaves: its process goes on elsewhere", "")
    };
    stopping.map(hook).collect()
}

fn volume_blocker(volume: &Volume) -> Option<Blocker> {
    let mounted_anew = volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some()
        || volume.image.is_some()
        // Whether its volume can be where the pod goes is looked up ([`super::claims`]).
        || volume.persistent_volume_claim.is_some();
    if mounted_anew {
        return None;
    }
    let (message, remedy) = if let Some(empty_dir) = &volume.empty_dir {
        let medium = empty_dir.medium.as_deref().unwrap_or_default();
        if ["", "Memory"].contains(&medium) {
            return None;
        }
        ("emptyDir: only those on the node's disk or in its memory are moved", "leave its medium out, or set it to Memory")
    } else if volume.host_path.is_some() {
        ("hostPath: its content stays on the node", "use a volume that the destination has too")
    } else if volume.ephemeral.is_some() {
        ("ephemeral: its claim is deleted with the pod", "use a persistentVolumeClaim")
    } else {
        ("this kind of volume is not supported", "use emptyDir, ConfigMap, Secret, projected, downwardAPI or claims' volumes")
    };
    Some(Blocker::new(format!("spec.volumes[{}]", volume.name), message, remedy))
}

#[cfg(test)]
mod tests;
