//! A pod's claims and the volumes that they are bound to.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::{Api, ResourceExt as _};

use super::{KubeCluster, found};
use crate::{
    domain::preflight::{ClaimView, claims_of},
    ports::PortResult,
};

impl KubeCluster {
    pub(super) async fn claims_of(&self, pod: &Pod) -> PortResult<BTreeMap<String, ClaimView>> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let mut views = BTreeMap::new();
        for (_, name) in claims_of(pod) {
            let Some(claim) = found(claims.get(name).await, "read a claim of the pod")? else { continue };
            let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).filter(|name| !name.is_empty());
            let volume = match volume {
                Some(volume) => found(volumes.get(volume).await, "read the volume of a claim")?,
                None => None,
            };
            views.insert(name.to_owned(), ClaimView::new(&claim, volume.as_ref()));
        }
        Ok(views)
    }
}
