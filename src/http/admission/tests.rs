//! The webhooks' protocol, by calls of the router.

mod evictions;
mod recorded;

use async_trait::async_trait;
use axum::{
    body::{Body, to_bytes},
    http::{Request, StatusCode},
};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::{
    domain::admission::Needs,
    domain::preflight::NodeView,
    ports::{Failure, SystemClock},
};

/// Two ready nodes with fresh profiles, and these Migrations; or an error.
#[derive(Default)]
struct FakeWorld {
    error: Option<PortError>,
    migrations: Vec<Migration>,
    policies: Vec<crate::api::MigrationPolicy>,
    noted: std::sync::Mutex<Vec<String>>,
}

#[async_trait]
impl WorldSource for FakeWorld {
    async fn world(&self, _namespace: &str, _needs: &Needs) -> PortResult<World> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let now = SystemClock.now();
        let profile = json!({"observedAt": now.to_string(), "freeBytes": 1u64 << 30, "gate": {"installed": true}, "lanes": [{"name": "image", "available": true}]});
        let node = |name: &str| NodeView {
            name: name.to_owned(),
            ready: true,
            profile: serde_json::from_value(profile.clone()).ok(),
            ..NodeView::default()
        };
        let mut world = World::unseen(now);
        world.facts.nodes = vec![node("n1"), node("n2")];
        world.migrations.clone_from(&self.migrations);
        world.policies.clone_from(&self.policies);
        Ok(world)
    }

    async fn pod(&self, _namespace: &str, name: &str) -> PortResult<Option<Pod>> {
        let pod = json!({"metadata": {"name": "web"}, "spec": {"nodeName": "n1", "containers": [{"name": "main"}]}, "status": {"phase": "Running"}});
        Ok((name == "web").then(|| serde_json::from_value(pod).expect("a pod")))
    }
}

#[async_trait]
impl EvictionRequests for FakeWorld {
    async fn note(&self, pod: &Pod, _now: jiff::Timestamp) -> PortResult<()> {
        self.noted.lock().expect("no test panics").push(pod.metadata.name.clone().unwrap_or_default());
        Ok(())
    }
}

fn app(error: Option<PortError>) -> Router {
    app_in(FakeWorld { error, ..FakeWorld::default() })
}

fn app_in(world: FakeWorld) -> Router {
    let world = Arc::new(world);
    router(Admission {
        evictions: world.clone(),
        world,
        clock: Arc::new(SystemClock),
        manager_username: "system:serviceaccount:drover-system:drover-manager".to_owned(),
        metrics: Metrics::default(),
    })
}

async fn post_to(app: Router, path: &str, body: impl Into<Body>) -> (StatusCode, String) {
    let request = Request::post(path).body(body.into()).expect("a request");
    let response = app.oneshot(request).await.expect("an answer");
    let status = response.status();
    let body = to_bytes(response.into_body(), 1 << 20).await.expect("a body");
    (status, String::from_utf8(body.to_vec()).expect("text"))
}

async fn response_to(app: Router, path: &str, review: &Value) -> Value {
    let (status, body) = post_to(app, path, review.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let review: Value = serde_json::from_str(&body).expect("json");
    assert_eq!((&review["apiVersion"], &review["kind"]), (&json!("admission.k8s.io/v1"), &json!("AdmissionReview")));
    review["response"].clone()
}

fn review(operation: &str, kind: &str, object: &Value, old: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "r-1", "kind": {"group": "", "version": "v1", "kind": kind}, "resource": {"group": "", "version": "v1", "resource": "x"},
            "name": "web", "namespace": "shop", "operation": operation, "userInfo": {"username": "alice"}, "dryRun": true,
            "object": object, "oldObject": old
        }
    })
}

fn pod(annotations: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "uid": "u", "annotations": annotations},
        "spec": {"nodeName": "n1", "containers": [{"name": "main", "image": "nginx"}]}, "status": {"phase": "Running", "containerStatuses": [{
            "name": "main", "image": "nginx:1", "imageID": "docker.io/library/nginx@sha256:0000000000000000000000000000000000000000000000000000000000000000",
            "containerID": "containerd://c1", "ready": true, "restartCount": 0, "started": true, "state": {"running": {}}
        }]}
    })
}

fn patch_of(response: &Value) -> Value {
    // kube writes the bytes as a JSON array, which Go reads into []byte as well as base64.
    let raw: Vec<u8> = serde_json::from_value(response["patch"].clone()).expect("bytes");
    serde_json::from_slice(&raw).expect("json")
}

#[tokio::test]
async fn an_annotated_pod_is_normalised() {
    let response = response_to(app(None), "/mutate/pods", &review("UPDATE", "Pod", &pod(&json!({"migrate-to": "n2"})), &pod(&json!({})))).await;
    assert_eq!((&response["uid"], &response["allowed"], &response["patchType"]), (&json!("r-1"), &json!(true), &json!("JSONPatch")), "{response}");
    assert_eq!(patch_of(&response)[1]["path"], "/metadata/annotations/drover.dev~1migrate-to");
}

#[tokio::test]
async fn a_refusal_names_every_reason_and_its_field() {
    let mut gone = pod(&json!({"drover.dev/migrate-to": "n9"}));
    gone["status"]["phase"] = json!("Pending");
    let response = response_to(app(None), "/mutate/pods", &review("UPDATE", "Pod", &gone, &pod(&json!({})))).await;
    assert_eq!((&response["allowed"], &response["status"]["code"]), (&json!(false), &json!(403)));
    let message = response["status"]["message"].as_str().expect("a message");
    assert!(message.contains("node n9 does not exist (nodes that can take it: n2)") && message.contains("status.phase"), "{message}");
    assert_eq!(response["status"]["details"]["causes"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn a_new_pod_is_stripped_with_a_warning_and_without_a_lookup() {
    let broken = Some(PortError::transient("nobody may ask"));
    let response =
        response_to(app(broken), "/mutate/pods", &review("CREATE", "Pod", &pod(&json!({"drover.dev/migrate-to": "n2"})), &Value::Null)).await;
    assert_eq!(response["allowed"], true);
    assert!(response["warnings"][0].as_str().is_some_and(|w| w.contains("drover.dev/migrate-to was removed")), "{response}");
}

#[tokio::test]
async fn an_unreachable_api_server_refuses_with_a_reason() {
    let broken = Some(PortError::new(Failure::Transient, "connection refused"));
    let response = response_to(app(broken), "/mutate/pods", &review("UPDATE", "Pod", &pod(&json!({"migrate-to": "n2"})), &pod(&json!({})))).await;
    assert_eq!((&response["allowed"], &response["status"]["code"]), (&json!(false), &json!(500)));
    assert!(response["status"]["message"].as_str().is_some_and(|m| m.contains("connection refused; try again")), "{response}");
}

#[tokio::test]
async fn a_malformed_review_is_refused_and_the_field_named() {
    let whole = review("UPDATE", "Pod", &pod(&json!({})), &pod(&json!({})));
    let changed = |pointer: &str, value: Value| {
        let mut review = whole.clone();
        *review.pointer_mut(pointer).expect("a field") = value;
        review
    };
    for (review, expected) in [
        (changed("/apiVersion", json!("admission.k8s.io/v1beta1")), "apiVersion is \"admission.k8s.io/v1beta1\""),
        (changed("/request/kind/kind", json!("Node")), "request.kind.kind is \"Node\""),
        (changed("/request/object", json!({"spec": {"containers": 5}})), "request.object: "),
        (changed("/request/object", Value::Null), "request.object is missing"),
        (changed("/request/oldObject", Value::Null), "request.oldObject is missing"),
        (changed("/request/operation", json!("PATCH")), "request: unknown variant `PATCH`"),
    ] {
        let response = response_to(app(None), "/mutate/pods", &review).await;
        assert_eq!((&response["uid"], &response["allowed"], &response["status"]["code"]), (&json!("r-1"), &json!(false), &json!(400)), "{expected}");
        assert!(response["status"]["message"].as_str().is_some_and(|m| m.contains(expected)), "{expected}: {response}");
    }
    for (body, expected) in [("not json", "the body is no JSON"), ("{}", "request.uid is missing")] {
        let (status, said) = post_to(app(None), "/mutate/pods", body).await;
        assert!(status == StatusCode::BAD_REQUEST && said.contains(expected), "{status} {said}");
    }
    let huge = vec![b' '; LARGEST_REVIEW + 1];
    assert_eq!(post_to(app(None), "/mutate/pods", huge).await.0, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn migrations_are_validated_at_their_creation_only() {
    let object = |spec: Value| json!({"apiVersion": "drover.dev/v1alpha1", "kind": "Migration", "metadata": {"name": "m"}, "spec": spec});
    let bad = object(json!({"podName": "nope", "containers": ["main"]}));
    let response = response_to(app(None), "/validate/migrations", &review("CREATE", "Migration", &bad, &Value::Null)).await;
    let message = response["status"]["message"].as_str().expect("a message");
    assert!(message.contains("Migration shop/m cannot be made"), "{message}");
    assert!(message.contains("spec.podName: pod shop/nope does not exist") && message.contains("spec.containers: is not supported yet"), "{message}");
    let updated = response_to(app(None), "/validate/migrations", &review("UPDATE", "Migration", &bad, &bad)).await;
    assert_eq!(updated["allowed"], true);
    let good = response_to(app(None), "/validate/migrations", &review("CREATE", "Migration", &object(json!({"podName": "web"})), &Value::Null)).await;
    assert_eq!(good["allowed"], true, "{good}");
}
