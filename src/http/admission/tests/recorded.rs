//! Reviews as the lab's API server (1.37) has sent them, byte for byte but for the fingerprints of credentials.

use super::*;

async fn answer(app: Router, path: &str, recorded: &str) -> Value {
    let asked: Value = serde_json::from_str(recorded).expect("json");
    let (status, body) = post_to(app, path, recorded.to_owned()).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let answered: Value = serde_json::from_str(&body).expect("json");
    assert_eq!(answered["response"]["uid"], asked["request"]["uid"]);
    answered["response"].clone()
}

#[tokio::test]
async fn a_pod_that_is_annotated_in_place() {
    let response = answer(app(None), "/mutate/pods", include_str!("../../recorded/pod-update-annotated.json")).await;
    assert_eq!((&response["allowed"], response.get("patch")), (&json!(true), None), "it is as it should be: {response}");
}

#[tokio::test]
async fn a_pod_that_is_made_with_the_annotation() {
    let response = answer(app(None), "/mutate/pods", include_str!("../../recorded/pod-create-annotated.json")).await;
    assert_eq!(response["allowed"], true);
    let patch = patch_of(&response);
    assert_eq!((patch.as_array().map(Vec::len), &patch[0]["op"]), (Some(1), &json!("remove")), "{patch}");
    assert_eq!(patch[0]["path"], "/metadata/annotations/drover.dev~1migrate-to");
}

#[tokio::test]
async fn a_claim_of_the_managers_gets_its_image_in_one_operation() {
    let recorded = include_str!("../../recorded/pod-update-claimed.json");
    let review: Value = serde_json::from_str(recorded).expect("json");
    let pod = &review["request"]["object"];
    let image = "127.0.0.1:5785/drover/0123456789abcdef0123456789abcdef:c";
    let migration = json!({
        "apiVersion": "drover.dev/v1alpha1", "kind": "Migration",
        "metadata": {"name": "m", "namespace": pod["metadata"]["namespace"], "uid": pod["metadata"]["annotations"]["drover.dev/claim"]},
        "spec": {"podName": "hopper"},
        "status": {"phase": "Restoring", "replacement": {"name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]},
            "containers": [{"name": "c", "digest": "sha256:00", "bytes": 1, "image": image}]}
    });
    let migrations = vec![serde_json::from_value(migration).expect("a Migration")];
    let response = answer(app_in(FakeWorld { migrations, ..FakeWorld::default() }), "/mutate/pods", recorded).await;
    assert_eq!(response["allowed"], true, "{response}");
    assert_eq!(patch_of(&response), json!([{"op": "add", "path": "/spec/containers/0/image", "value": image}]));
    let unknown = answer(app(None), "/mutate/pods", recorded).await;
    assert!(unknown["status"]["message"].as_str().is_some_and(|text| text.contains("no Migration with UID")), "{unknown}");
}

#[tokio::test]
async fn a_migration_of_a_pod_that_is_not_there() {
    let response = answer(app(None), "/validate/migrations", include_str!("../../recorded/migration-create.json")).await;
    assert_eq!(response["allowed"], false);
    assert!(response["status"]["message"].as_str().is_some_and(|text| text.contains("spec.podName: pod")), "{response}");
}
