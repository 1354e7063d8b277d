//! What keeps a pod from being moved. (Stub: the branch that writes preflight replaces this file.)

use k8s_openapi::api::core::v1::Pod;

/// One thing that keeps a pod from being moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// Field path in the pod.
    pub field: String,
    /// What is in the way.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

/// Everything in the pod's spec that keeps it from being moved.
#[must_use]
pub fn blockers(_pod: &Pod) -> Vec<Blocker> {
    Vec::new()
}
