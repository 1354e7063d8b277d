//! The extender's protocol, by calls of the router.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use axum::{
    body::{Body as HttpBody, to_bytes},
    http::Request,
};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::{
    domain::{keys, preflight::NodeView},
    ports::{Failure, SystemClock},
};

const UID: &str = "5f1c22aa-0000-4000-8000-000000000000";

/// A Migration of pod web from n1 to n2, two nodes with fresh profiles, or an error; and how often it was asked.
#[derive(Default)]
struct Source {
    error: Option<PortError>,
    asked: AtomicUsize,
}

impl Source {
    fn answer<T>(&self, found: T) -> PortResult<T> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.error.clone().map_or(Ok(found), Err)
    }
}

#[async_trait]
impl PlacementSource for Source {
    async fn migrations(&self, namespace: Option<&str>) -> PortResult<Vec<Migration>> {
        let migration = json!({
            "apiVersion": "drover.dev/v1alpha1", "kind": "Migration", "metadata": {"name": "move-web", "namespace": "shop", "uid": UID},
            "spec": {"podName": "web", "destination": {"nodeName": "n2"}},
            "status": {"phase": "Preparing", "source": {"name": "web", "uid": "s", "nodeName": "n1"}, "replacement": {"name": "web-5f1c22"}}
        });
        assert!(namespace.is_none_or(|namespace| namespace == "shop" || namespace.starts_with("e2e-")));
        self.answer(vec![serde_json::from_value(migration).expect("a Migration")])
    }

    async fn nodes(&self) -> PortResult<Vec<NodeView>> {
        let profile = json!({"observedAt": SystemClock.now().to_string(), "freeBytes": 1u64 << 30, "lanes": [{"name": "image", "available": true}]});
        let node = |name: &str| NodeView {
            name: name.to_owned(),
            ready: true,
            profile: serde_json::from_value(profile.clone()).ok(),
            ..NodeView::default()
        };
        self.answer(["n1", "n2"].map(node).into())
    }
}

/// Posts to the router: status, body, and how often something was looked up.
async fn post_with(error: Option<PortError>, path: &str, body: impl Into<HttpBody>) -> (StatusCode, String, usize) {
    let source = Arc::new(Source { error, ..Source::default() });
    let metrics = Metrics::default();
    let router = router(Extender { source: source.clone(), clock: Arc::new(SystemClock), metrics: metrics.clone() });
    let response = router.oneshot(Request::post(path).body(body.into()).expect("a request")).await.expect("an answer");
    let status = response.status();
    let body = to_bytes(response.into_body(), 1 << 20).await.expect("a body");
    let text = metrics.text().expect("text");
    assert_eq!(text.matches("drover_extender_answers_total{").count(), 1, "every answer is counted:\n{text}");
    (status, String::from_utf8(body.to_vec()).expect("text"), source.asked.load(Ordering::Relaxed))
}

async fn post_to(path: &str, body: &Value) -> (StatusCode, Value, usize) {
    let (status, body, asked) = post_with(None, path, body.to_string()).await;
    (status, serde_json::from_str(&body).unwrap_or(Value::String(body)), asked)
}

fn args(annotations: &Value) -> Value {
    json!({
        "Pod": {"metadata": {"name": "web-5f1c22", "namespace": "shop", "uid": "w", "annotations": annotations}, "spec": {"containers": []}},
        "Nodes": null, "NodeNames": ["n1", "n2"]
    })
}

#[tokio::test]
async fn a_replacement_goes_to_its_node_only() {
    let (status, answer, _) = post_to("/extender/filter", &args(&json!({keys::REPLACES: UID}))).await;
    assert_eq!((status, &answer["NodeNames"], &answer["Error"]), (StatusCode::OK, &json!(["n2"]), &json!("")));
    let reason = answer["FailedAndUnresolvableNodes"]["n1"].as_str().unwrap_or_default();
    assert!(reason.starts_with("drover: Migration move-web moves this pod to node n2"), "{answer}");
    let (status, scores, _) = post_to("/extender/prioritize", &args(&json!({keys::REPLACES: UID}))).await;
    assert_eq!((status, scores), (StatusCode::OK, json!([{"Host": "n1", "Score": 5}, {"Host": "n2", "Score": 5}])));
}

#[tokio::test]
async fn nothing_is_looked_up_for_ordinary_pods() {
    let (status, answer, asked) = post_to("/extender/filter", &args(&json!({}))).await;
    let wanted = json!({"Nodes": null, "NodeNames": ["n1", "n2"], "FailedNodes": {}, "FailedAndUnresolvableNodes": {}, "Error": ""});
    assert_eq!((status, answer, asked), (StatusCode::OK, wanted, 0));
    let (status, scores, asked) = post_to("/extender/prioritize", &args(&json!({}))).await;
    assert_eq!((status, scores, asked), (StatusCode::OK, json!([{"Host": "n1", "Score": 0}, {"Host": "n2", "Score": 0}]), 0));
}

#[tokio::test]
async fn victims_of_migrations_are_spared() {
    let of = |uid: &str| json!({"Pods": [{"UID": uid}], "NumPDBViolations": 0});
    let proposed = json!({"Pod": {}, "NodeNameToVictims": {}, "NodeNameToMetaVictims": {"n1": of("s"), "n2": of("other")}});
    let (status, answer, _) = post_to("/extender/preempt", &proposed).await;
    // Only one of the two forms is set by kube-scheduler; the other is null or empty.
    assert_eq!((status, answer), (StatusCode::OK, json!({"NodeNameToMetaVictims": {"n2": of("other")}})));
}

#[tokio::test]
async fn what_cannot_be_read_is_named() {
    for (path, body, expected) in [
        ("/extender/filter", "{", "the ExtenderArgs cannot be read: EOF"),
        ("/extender/prioritize", r#"{"NodeNames": []}"#, "missing field `Pod`"),
        ("/extender/preempt", "[]", "the ExtenderPreemptionArgs cannot be read"),
    ] {
        let (status, answer, asked) = post_with(None, path, body).await;
        assert_eq!((status, asked), (StatusCode::BAD_REQUEST, 0), "{answer}");
        assert!(answer.contains(expected), "{answer}");
    }
    let mut nameless = args(&json!({keys::REPLACES: UID}));
    nameless["Pod"]["metadata"]["namespace"].take();
    let (status, answer, _) = post_to("/extender/filter", &nameless).await;
    assert_eq!((status, answer), (StatusCode::BAD_REQUEST, json!("the ExtenderArgs cannot be read: Pod.metadata.namespace is missing\n")));
    let (status, answer, _) = post_with(None, "/extender/filter", vec![b' '; LARGEST_REQUEST + 1]).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(answer.contains("larger than 16 MiB; set nodeCacheCapable: true"), "{answer}");
}

#[tokio::test]
async fn an_api_server_that_is_away_is_an_error_and_no_refusal() {
    let away = || Some(PortError::new(Failure::Transient, "list migrations: connection refused"));
    let body = args(&json!({keys::REPLACES: UID})).to_string();
    let (status, answer, _) = post_with(away(), "/extender/filter", body.clone()).await;
    let answer: Value = serde_json::from_str(&answer).expect("json");
    assert_eq!((status, &answer["FailedAndUnresolvableNodes"]), (StatusCode::OK, &json!({})));
    assert_eq!(answer["Error"], "drover: what the answer depends on could not be looked up: list migrations: connection refused");
    assert_eq!(post_with(away(), "/extender/prioritize", body).await.0, StatusCode::INTERNAL_SERVER_ERROR);
    let proposed = r#"{"NodeNameToMetaVictims": {}}"#;
    assert_eq!(post_with(away(), "/extender/preempt", proposed).await.0, StatusCode::INTERNAL_SERVER_ERROR);
    let (status, _, asked) = post_with(away(), "/extender/filter", args(&json!({})).to_string()).await;
    assert_eq!((status, asked), (StatusCode::OK, 0), "an ordinary pod does not notice");
}

/// As the lab's kube-scheduler (1.37, nodeCacheCapable) has sent them.
#[tokio::test]
async fn what_kube_scheduler_has_sent_is_read() {
    let (status, answer, asked) = post_with(None, "/extender/filter", include_str!("../recorded/extender-filter.json")).await;
    let answer: Value = serde_json::from_str(&answer).expect("json");
    assert_eq!((status, &answer["NodeNames"], asked > 0), (StatusCode::OK, &json!(["n2"]), true), "{answer}");
    let (status, scores, _) = post_with(None, "/extender/prioritize", include_str!("../recorded/extender-prioritize.json")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(serde_json::from_str::<Value>(&scores).expect("json"), json!([{"Host": "n2", "Score": 0}, {"Host": "n1", "Score": 0}]));
}
