//! The annotation controller against a mocked API server.

use std::sync::{Arc, Mutex};

use axum::http::{Request as HttpRequest, Response};
use kube::client::Body;
use serde_json::{Value, json};
use tower_test::mock;

use super::*;

type Seen = Arc<Mutex<Vec<String>>>;

/// An API server without policies that answers by method and path and remembers what it was asked.
fn api_server(answer: impl Fn(&str, &str) -> (u16, Value) + Send + 'static) -> (Client, Seen) {
    api_server_with(list(&[]), answer)
}

fn list(items: &[Value]) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items})
}

/// The same with these policies, which it does not note that it was asked for.
fn api_server_with(policies: Value, answer: impl Fn(&str, &str) -> (u16, Value) + Send + 'static) -> (Client, Seen) {
    let (service, mut handle) = mock::pair::<HttpRequest<Body>, Response<Body>>();
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Some((request, send)) = handle.next_request().await {
            let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
            let bytes = request.into_body().collect_bytes().await.expect("a body");
            let (code, body) = if path.ends_with("/migrationpolicies") {
                (200, policies.clone())
            } else {
                log.lock().expect("no panic").push(format!("{method} {path} {}", String::from_utf8_lossy(&bytes)));
                answer(&method, &path)
            };
            send.send_response(Response::builder().status(code).body(Body::from(body.to_string().into_bytes())).expect("a response"));
        }
    });
    (Client::new(service, "default"), seen)
}

fn asking(value: &str) -> Request {
    let metadata = json!({"name": "web", "namespace": "shop", "uid": "u-1", "annotations": {"drover.dev/migrate-to": value}});
    request(&serde_json::from_value(metadata).expect("metadata")).expect("a request")
}

fn status(code: u16, reason: &str) -> (u16, Value) {
    (code, json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": format!("{reason}!")}))
}

fn pod_meta() -> (u16, Value) {
    (200, json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "web"}}))
}

fn migration_of(request: &Request) -> Value {
    serde_json::to_value(request.migration().expect("a migration")).expect("json")
}

fn calls(seen: &Seen) -> Vec<String> {
    seen.lock().expect("no panic").iter().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
}

#[tokio::test]
async fn a_request_becomes_a_migration_and_goes() {
    let request = asking("n2");
    let made = migration_of(&request);
    let (client, seen) = api_server(move |method, path| match (method, path) {
        ("POST", p) if p.ends_with("/migrations") => (201, made.clone()),
        ("PATCH", _) => pod_meta(),
        _ => (201, json!({"metadata": {"name": "e"}})),
    });
    AnnotationController::new(client, "m-0".to_owned()).take_up(&request).await.expect("taken up");
    let calls = calls(&seen);
    assert_eq!(calls[..2], ["POST /apis/drover.dev/v1alpha1/namespaces/shop/migrations", "PATCH /api/v1/namespaces/shop/pods/web"]);
    let seen = seen.lock().expect("no panic");
    assert!(seen[1].contains(r#"{"op":"remove","path":"/metadata/annotations/drover.dev~1migrate-to"}"#), "{}", seen[1]);
    assert!(seen[2].contains("MigrationRequested") && seen[2].contains("/events"), "{}", seen[2]);
}

#[tokio::test]
async fn after_a_crash_between_the_writes_the_same_migration_is_found() {
    let request = asking("n2");
    let made = migration_of(&request);
    let (client, seen) = api_server(move |method, path| match (method, path) {
        ("POST", p) if p.ends_with("/migrations") => status(409, "AlreadyExists"),
        ("GET", _) => (200, made.clone()),
        ("PATCH", _) => pod_meta(),
        _ => (201, json!({"metadata": {"name": "e"}})),
    });
    AnnotationController::new(client, "m-0".to_owned()).take_up(&request).await.expect("taken up");
    assert!(calls(&seen).contains(&"PATCH /api/v1/namespaces/shop/pods/web".to_owned()));
}

#[tokio::test]
async fn a_value_that_changed_meanwhile_is_left_to_the_watch() {
    let request = asking("n2");
    let made = migration_of(&request);
    let (client, seen) = api_server(move |method, _| if method == "PATCH" { status(422, "Invalid") } else { (201, made.clone()) });
    AnnotationController::new(client, "m-0".to_owned()).take_up(&request).await.expect("no error");
    assert_eq!(calls(&seen).len(), 2, "no Event for what did not happen");
}

#[tokio::test]
async fn a_refusal_is_told_and_not_repeated() {
    for (value, code) in [("not a node", 201), ("n2", 403)] {
        let request = asking(value);
        let (client, seen) = api_server(move |method, path| match (method, path) {
            ("POST", p) if p.ends_with("/migrations") => status(code, "Forbidden"),
            ("PATCH", _) => pod_meta(),
            _ => (201, json!({"metadata": {"name": "e"}})),
        });
        AnnotationController::new(client, "m-0".to_owned()).take_up(&request).await.expect("done with");
        let seen = seen.lock().expect("no panic");
        assert!(seen.last().is_some_and(|l| l.contains("MigrationRefused")), "{seen:?}");
    }
}

#[tokio::test]
async fn a_failure_is_tried_again_later() {
    let (client, _) = api_server(|_, _| status(500, "InternalError"));
    let controller = AnnotationController::new(client, "m-0".to_owned());
    let mut waiting = HashMap::new();
    controller.attempt(asking("n2"), 0, &mut waiting).await;
    assert_eq!(waiting.get("u-1").map(|w| w.tries), Some(1));
}

/// What is made for the pod, which runs under this RuntimeClass, and what is said of it.
async fn made_by_policy(class: Option<&'static str>, policy: &Value) -> Vec<String> {
    let request = asking("n2");
    let made = migration_of(&request);
    let policy = json!({"apiVersion": "drover.dev/v1alpha1", "kind": "MigrationPolicy", "metadata": {"name": "fast"}, "spec": policy});
    let (client, seen) = api_server_with(list(&[policy]), move |method, path| match (method, path) {
        ("POST", p) if p.ends_with("/migrations") => (201, made.clone()),
        ("PATCH", _) => pod_meta(),
        ("GET", p) if p.ends_with("/pods/web") => (
            200,
            json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u-1"}, "spec": {"nodeName": "n1", "containers": [], "runtimeClassName": class}}),
        ),
        ("GET", p) if p.ends_with("/nodeprofiles") => {
            let profile = json!({"apiVersion": "drover.dev/v1alpha1", "kind": "NodeProfile", "metadata": {"name": "n1"}, "spec": {}, "status": {"gate": {"installed": true}, "postCopy": true}});
            (200, list(&[profile]))
        }
        ("GET", p) if p.ends_with("/nodes") => (200, list(&[json!({"metadata": {"name": "n1"}})])),
        ("GET", _) => (200, json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "shop"}})),
        _ => (201, json!({"metadata": {"name": "e"}})),
    });
    AnnotationController::new(client, "m-0".to_owned()).take_up(&request).await.expect("taken up");
    let seen = seen.lock().expect("no panic");
    seen.iter().filter(|line| line.starts_with("POST")).cloned().collect()
}

#[tokio::test]
async fn a_policy_makes_a_post_copy_of_what_was_asked_for_where_it_can_be_one() {
    let yes = json!({"postCopy": true});
    let posted = made_by_policy(Some("drover"), &yes).await;
    assert!(posted[0].contains(r#""postCopy":true"#) && posted[0].contains(r#""lane":"runtime""#), "{posted:?}");
    assert_eq!(posted.len(), 2, "one Event: {posted:?}");
    let posted = made_by_policy(None, &yes).await;
    assert!(
        posted[0].contains(r#""postCopy":false"#) && posted[0].contains("it is not possible: spec.postCopy: the pod does not run under"),
        "{posted:?}"
    );
    assert!(posted.last().is_some_and(|event| event.contains("PostCopyNotPossible")), "{posted:?}");
    let posted = made_by_policy(Some("drover"), &json!({"postCopy": false})).await;
    assert!(posted[0].contains(r#""postCopy":false"#) && !posted[0].contains("post-copy-by"), "{posted:?}");
}
