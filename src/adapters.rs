//! The outside as it really is: containerd, kubelet, registry, API server. Only `app` names these types.

pub mod archive;
pub mod containerd;
pub mod kubelet;
pub mod node_probe;
pub mod node_setup;
pub mod registry;
