//! The containers of a pod that have a memory to move: its containers, and its native sidecars (KEP-753), which stand among the init containers.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec};

/// Whether an init container goes on running beside the containers.
#[must_use]
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Sidecars, then containers: the order in which a kubelet starts them.
pub fn running(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    sidecars(spec).chain(&spec.containers)
}

/// Every container of the spec's two lists, the ordinary ones first.
pub fn all(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.containers.iter().chain(spec.init_containers.iter().flatten())
}

/// The same, to be changed.
pub fn all_mut(spec: &mut PodSpec) -> impl Iterator<Item = &mut Container> {
    spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten())
}

fn sidecars(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().filter(|container| is_sidecar(container))
}

/// Init containers whose work ends.
pub fn initializing(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().filter(|container| !is_sidecar(container))
}

/// What the kubelet says of them.
pub fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let is_running = move |status: &&ContainerStatus| pod.spec.iter().flat_map(sidecars).any(|container| container.name == status.name);
    let status = pod.status.iter();
    let of_sidecars = status.clone().flat_map(|status| status.init_container_statuses.iter().flatten()).filter(is_running);
    of_sidecars.chain(status.flat_map(|status| status.container_statuses.iter().flatten()))
}

/// Where a container stands in the pod: `spec.containers[NAME]` or `spec.initContainers[NAME]`.
#[must_use]
pub fn field(pod: &Pod, name: &str) -> String {
    let is_init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten()).any(|container| container.name == name);
    format!("spec.{}[{name}]", if is_init { "initContainers" } else { "containers" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sidecars_count_and_init_containers_do_not() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "spec": {"containers": [{"name": "app"}], "initContainers": [{"name": "init"}, {"name": "proxy", "restartPolicy": "Always"}]},
            "status": {
                "containerStatuses": [{"name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 0}],
                "initContainerStatuses": [{"name": "init", "image": "", "imageID": "", "ready": true, "restartCount": 0},
                    {"name": "proxy", "image": "", "imageID": "", "ready": true, "restartCount": 0}]}
        }))
        .unwrap();
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(running(spec).map(|c| c.name.as_str()).collect::<Vec<_>>(), ["proxy", "app"]);
        assert_eq!(initializing(spec).map(|c| c.name.as_str()).collect::<Vec<_>>(), ["init"]);
        assert_eq!(statuses(&pod).map(|s| s.name.as_str()).collect::<Vec<_>>(), ["proxy", "app"]);
        assert_eq!((field(&pod, "app").as_str(), field(&pod, "proxy").as_str()), ("spec.containers[app]", "spec.initContainers[proxy]"));
    }
}
