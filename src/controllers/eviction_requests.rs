//! Evictions of the API `lifecycle.k8s.io` (KEP-4563): read, and answered ([`crate::domain::evacuation::responder`]).

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use tracing::warn;

use crate::domain::{
    evacuation::{
        Seen,
        responder::{self, EvictionIntent},
    },
    keys,
};

/// The evictions in which it is Drover's turn; none where the API server has no such API.
pub(super) async fn awaited(client: &Client) -> Result<Vec<EvictionIntent>, kube::Error> {
    let api: Api<EvictionIntent> = Api::all_with(client.clone(), &responder::resource());
    match api.list(&ListParams::default()).await {
        Ok(found) => Ok(found.items.into_iter().filter(|eviction| responder::awaited(eviction).is_some()).collect()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(vec![]),
        Err(error) => Err(error),
    }
}

/// Their pods, as far as they are there.
pub(super) async fn pods_of(client: &Client, evictions: &[EvictionIntent]) -> Result<Vec<Pod>, kube::Error> {
    let mut pods = vec![];
    for eviction in evictions {
        let (Some(target), Some(namespace)) = (responder::awaited(eviction), eviction.namespace()) else { continue };
        let pod = Api::<Pod>::namespaced(client.clone(), &namespace).get_opt(&target.name).await?;
        pods.extend(pod.filter(|pod| pod.metadata.uid.as_ref() == Some(&target.uid)));
    }
    Ok(pods)
}

/// Says how far each is.
pub(super) async fn answer(client: &Client, seen: &Seen, now: Timestamp) -> Result<(), kube::Error> {
    for eviction in &seen.evictions {
        let Some(answer) = responder::answer(eviction, seen, now) else { continue };
        let (name, namespace) = (eviction.name_any(), eviction.namespace().unwrap_or_default());
        let resource = responder::resource();
        let api: Api<EvictionIntent> = Api::namespaced_with(client.clone(), &namespace, &resource);
        let patch = json!({"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {"uid": eviction.uid()}, "status": {"responders": [answer]}});
        match api.patch_status(&name, &PatchParams::apply(keys::MANAGER).force(), &Patch::Apply(patch)).await {
            Ok(_) => {}
            // It has gone on meanwhile; the next look sees how.
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(kube::Error::Api(status)) if status.is_invalid() => {
                warn!(eviction = name, namespace, "what is said of an eviction was refused: {}", status.message);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
