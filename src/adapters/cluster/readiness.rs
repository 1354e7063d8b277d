//! The word on whether a pod is Ready.

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{KubeCluster, keys, port_error};
use crate::ports::PortResult;

impl KubeCluster {
    pub(super) async fn patch_condition(&self, pod: &Pod, condition: &PodCondition) -> PortResult<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        // Conditions are merged by their type; the UID, where it is another pod's, makes the patch a conflict.
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}});
        let params = PatchParams { field_manager: Some(keys::MANAGER.into()), ..PatchParams::default() };
        let patched = pods.patch_status(&pod.name_any(), &params, &Patch::Strategic(patch)).await;
        patched.map(drop).map_err(|e| port_error("write a condition of the pod", &e))
    }
}
