//! The adapter against an API server of one attestation.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex as StdMutex},
    time::Duration,
};

use axum::http::{Request, Response};
use futures::{Stream, stream};
use kube::client::Body;
use serde_json::Value;

use super::*;
use crate::testing::bus_contract::{self as contract, event};

/// The attestation of the golden event's migration and node, as an API server serves it.
#[derive(Clone)]
struct Server(Arc<StdMutex<Value>>);

impl Server {
    fn new() -> Self {
        let of = event("a").migration;
        Self(Arc::new(StdMutex::new(json!({
            "apiVersion": "drover.dev/v1alpha1", "kind": "Attestation",
            "metadata": {"name": format!("{}-destination", of.name), "namespace": of.namespace, "uid": "u", "resourceVersion": "1"},
            "spec": {"migration": of.name, "migrationUID": of.uid, "nodeName": "n2", "podUID": "p", "role": "Destination"}
        }))))
    }

    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        Client::new(service, "default")
    }

    fn now(&self) -> Value {
        self.0.lock().expect("a lock").clone()
    }

    async fn answer(&self, request: Request<Body>) -> Response<axum::body::Body> {
        let (head, body) = request.into_parts();
        if head.method == "PATCH" {
            let patch: Value = serde_json::from_slice(&body.collect_bytes().await.expect("a body")).expect("JSON");
            let mut attestation = self.0.lock().expect("a lock");
            json_patch::merge(&mut attestation, &patch);
            let version: u64 = attestation["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).expect("a version");
            attestation["metadata"]["resourceVersion"] = json!((version + 1).to_string());
        }
        if head.uri.query().is_some_and(|query| query.contains("watch=true")) {
            return Response::new(axum::body::Body::from_stream(self.clone().changes()));
        }
        let body = if head.uri.path().ends_with("/attestations") {
            json!({"apiVersion": "drover.dev/v1alpha1", "kind": "AttestationList", "metadata": {"resourceVersion": "1"}, "items": [self.now()]})
        } else {
            self.now()
        };
        Response::new(body.to_string().into())
    }

    /// A watch from the first version on.
    fn changes(self) -> impl Stream<Item = Result<String, Infallible>> {
        stream::unfold((self, json!("1")), |(server, seen)| async move {
            loop {
                let object = server.now();
                let version = object["metadata"]["resourceVersion"].clone();
                if version != seen {
                    let line = json!({"type": "MODIFIED", "object": object}).to_string() + "\n";
                    return Some((Ok(line), (server, version)));
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
    }
}

#[tokio::test]
async fn the_api_server_is_a_bus() {
    let server = Server::new();
    let announcer = DirectAnnouncer::new(server.client());
    let subscribe = || Arc::new(DirectSubscription::start(server.client())) as Arc<dyn Subscription>;
    contract::holds(contract::Bus { announcer: &announcer, subscribe: &subscribe }, ["a", "b", "c"].map(event)).await;
    let noted = server.now()["status"]["notified"].as_array().map(Vec::len);
    assert_eq!(noted, Some(3), "what is told twice is noted once");
}

#[tokio::test]
async fn another_nodes_attestation_is_left_alone() {
    let server = Server::new();
    let announcer = DirectAnnouncer::new(server.client());
    let of_another_node = RegistryEvent { node: "n3".into(), ..event("a") };
    assert_eq!(announcer.announce(&of_another_node).await.map_err(|error| error.kind), Err(Failure::NotFound));
    assert!(server.now().get("status").is_none());
}
