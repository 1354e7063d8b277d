//! The outside as it really is: containerd, kubelet, registry, API server. Only `app` names these types.

pub mod agent_api;
pub mod cluster;
pub mod docker_config;
pub mod kube_error;
