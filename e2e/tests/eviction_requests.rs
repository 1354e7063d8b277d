//! Evictions of the API `lifecycle.k8s.io` (KEP-4563), which the lab's API server has. Kubernetes 1.37 has no controller for them yet: the tests do what it would.

use std::time::Duration;

use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use drover::{
    api::Outcome,
    domain::{
        evacuation::responder::{self, EvictionIntent, RESPONDER, Responder},
        keys,
    },
};

use crate::support::{
    Namespace,
    agents::ready,
    counter::assert_went_on,
    eventually, lab,
    leaving::Leaving,
    migrations::{assert_outcome, replacement},
    pods::counter,
    with_namespace,
};

const LAST: &str = "imperative-eviction.k8s.io/evictor";

fn evictions(namespace: &Namespace) -> Api<EvictionIntent> {
    Api::namespaced_with(namespace.client.clone(), &namespace.name, &responder::resource())
}

/// The eviction of pod `c`, with Drover in this state.
async fn ask(namespace: &Namespace) {
    let pod = namespace.pods().get("c").await.unwrap();
    let eviction = json!({"apiVersion": "lifecycle.k8s.io/v1alpha1", "kind": "Eviction", "metadata": {"name": "e"},
        "spec": {"target": {"pod": {"name": "c", "uid": pod.uid()}}}});
    evictions(namespace).create(&PostParams::default(), &serde_json::from_value(eviction).unwrap()).await.unwrap();
    let now = jiff::Timestamp::now().round(jiff::Unit::Second).unwrap().to_string();
    let status = json!({"status": {
        "targetResponders": [{"name": RESPONDER, "priority": 20000, "state": "Active"}, {"name": LAST, "priority": 100, "state": "Inactive"}],
        "responders": [{"name": RESPONDER, "startTime": now}, {"name": LAST}]
    }});
    evictions(namespace).patch_status("e", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

async fn said(namespace: &Namespace) -> Responder {
    let status = evictions(namespace).get("e").await.unwrap().status.unwrap_or_default();
    status.responders.into_iter().find(|it| it.name == RESPONDER).unwrap_or_default()
}

#[test]
fn an_eviction_request_moves_a_pod_and_says_how_far_it_is() {
    lab::set_values("evictionRequests.enabled=true");
    ready();
    let _off = lab::Restore(|| {
        lab::set_values("evictionRequests.enabled=false");
        ready();
    });
    with_namespace("eviction-request", |namespace| async move {
        let mut pod = serde_json::to_value(counter("c", "n1", 4, 50)).unwrap();
        // A field that the types of this test do not know yet.
        pod["spec"]["evictionResponders"] = json!([{"name": RESPONDER, "priority": 20000}]);
        let dynamic: Api<kube::core::DynamicObject> =
            Api::namespaced_with(namespace.client.clone(), &namespace.name, &kube::core::ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&()));
        dynamic.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        namespace.until_pod("c", "runs", |pod| pod.and_then(|pod| pod.status.as_ref()?.phase.as_deref()) == Some("Running")).await;
        let source = namespace.follow("c", "c").await;
        source.beyond(5).await;

        // Without a policy the next responder may go on at once.
        ask(&namespace).await;
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while said(&namespace).await.completion_time.is_none() {
            assert!(std::time::Instant::now() < end, "it is not said that nothing is done");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert!(said(&namespace).await.message.unwrap().contains("no MigrationPolicy selects this pod"));
        assert!(namespace.migrations().list(&ListParams::default()).await.unwrap().items.is_empty());
        namespace.kubectl(&["delete", "evictions.v1alpha1.lifecycle.k8s.io", "e"]).unwrap();

        let _leaving = Leaving::on(&["EvictionRequest"], &namespace).await;
        ask(&namespace).await;
        let migration =
            namespace.first("the pod moves", |m| m.labels().get(keys::TRIGGER).map(String::as_str) == Some("eviction-request") && m.is_done()).await;
        assert_outcome(&migration, Outcome::Migrated);
        let copy = namespace.follow(&replacement(&migration), "c").await;
        copy.beyond(source.last() + 5).await;
        assert_went_on(&source.lines(), &copy.lines(), &migration);
        let named = namespace.kubectl(&["get", "pod", &replacement(&migration), "-o", "jsonpath={.spec.evictionResponders[*].name}"]).unwrap();
        assert_eq!(named.trim(), RESPONDER, "the copy has the field too");
        eventually(Duration::from_secs(30), || {
            let done = "jsonpath={.status.responders[0].completionTime} {.status.responders[0].message}";
            let said = namespace.kubectl(&["get", "evictions.v1alpha1.lifecycle.k8s.io", "e", "-o", done]).unwrap();
            let others =
                namespace.kubectl(&["get", "evictions.v1alpha1.lifecycle.k8s.io", "e", "-o", "jsonpath={.status.responders[1].name}"]).unwrap();
            assert_eq!(others.trim(), LAST, "what others say is left alone");
            (!said.starts_with("20") || !said.contains("not here any more")).then(|| format!("it is said that the pod is gone; it is said {said:?}"))
        });
    });
}
