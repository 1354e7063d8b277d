//! How much room a pod's checkpoint needs.

use k8s_openapi::api::core::v1::Pod;

use crate::domain::{containers, quantity::bytes};

/// What a pod asks for as memory, in bytes: before the freeze nothing tells more about how large its checkpoint will be. What cannot be read counts
/// as nothing.
pub fn requested_memory(pod: &Pod) -> u64 {
    let containers = pod.spec.iter().flat_map(containers::running);
    let requests = containers.filter_map(|container| container.resources.as_ref()?.requests.as_ref()?.get("memory"));
    requests.filter_map(bytes).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_containers_count() {
        let pod = serde_json::json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"memory": "1Gi"}}}, {"name": "b", "resources": {"requests": {"memory": "24Mi", "cpu": "1"}}}, {"name": "c"}
        ]}});
        assert_eq!(requested_memory(&serde_json::from_value(pod).unwrap()), 1048 << 20);
    }
}
