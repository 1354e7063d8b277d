//! A bundle of a cluster that a script plays.

use std::io::Read as _;

use axum::http::{Request, Response};
use kube::client::Body;
use tower_test::mock;

use super::*;

const MIGRATION: &str = r#"{"metadata": {"name": "m", "namespace": "shop", "uid": "m1", "managedFields": []},
    "status": {"source": {"uid": "s1", "nodeName": "n1"}, "destination": {"nodeName": "n2"}}}"#;
const OTHER: &str = r#"{"metadata": {"name": "other", "namespace": "shop", "uid": "o1"}, "spec": {}}"#;

/// What the API server answers to a path: a code and a document.
fn answer(path: &str) -> (u16, String) {
    let items = |items: &[&str]| (200, format!(r#"{{"apiVersion": "v1", "kind": "List", "metadata": {{}}, "items": [{}]}}"#, items.join(",")));
    let own = |name: &str, component: &str, node: &str| {
        format!(
            r#"{{"metadata": {{"name": "{name}", "labels": {{"app.kubernetes.io/name": "drover", "app.kubernetes.io/component": "{component}"}}}},
            "spec": {{"nodeName": "{node}", "containers": []}}, "status": {{"containerStatuses": [{{"name": "{component}", "restartCount": 1}}]}}}}"#
        )
    };
    match path {
        "/version" => (200, r#"{"major": "1", "minor": "35", "gitVersion": "v1.35.0", "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": ""}"#.into()),
        "/apis/drover.dev/v1alpha1/namespaces/shop/migrations" => items(&[MIGRATION, OTHER]),
        "/api/v1/namespaces/shop/pods" => items(&[
            r#"{"metadata": {"name": "p", "uid": "s1"}, "spec": {"containers": [{"name": "c", "env": [{"name": "PASSWORD", "value": "hunter2"}]}]}}"#,
            r#"{"metadata": {"name": "not-asked-for", "uid": "x"}, "spec": {"containers": []}}"#,
        ]),
        "/api/v1/namespaces/drover-system/pods" => items(&[&own("manager-1", "manager", "n3"), &own("agent-3", "agent", "n3")]),
        "/api/v1/namespaces/drover-system/pods/manager-1/log" => (200, "a line\n".into()),
        "/api/v1/nodes" | "/api/v1/namespaces/shop/events" => items(&[]),
        _ => (403, format!(r#"{{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "{path} is forbidden"}}"#)),
    }
}

async fn bundle_of(scope: Scope, answer: fn(&str) -> (u16, String)) -> anyhow::Result<(Vec<String>, Vec<(String, String)>)> {
    let (service, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
    tokio::spawn(async move {
        while let Some((request, send)) = handle.next_request().await {
            let (code, text) = answer(request.uri().path());
            send.send_response(Response::builder().status(code).body(Body::from(text.into_bytes())).unwrap());
        }
    });
    let settings =
        Settings { scope, since: Duration::from_mins(1), system_namespace: "drover-system".into(), folder: "b".into(), now: Timestamp::UNIX_EPOCH };
    let mut out = vec![];
    let problems = collect(Client::new(service, "default"), &settings, &mut out).await?;
    let mut files = vec![];
    for entry in tar::Archive::new(flate2::read::GzDecoder::new(out.as_slice())).entries()? {
        let mut entry = entry?;
        let mut text = String::new();
        entry.read_to_string(&mut text)?;
        files.push((entry.path()?.display().to_string(), text));
    }
    Ok((problems, files))
}

fn one(name: &str) -> Scope {
    Scope::Migration { namespace: "shop".into(), name: name.into() }
}

#[tokio::test]
async fn a_bundle_has_what_can_be_had_and_names_what_cannot() {
    let (problems, files) = bundle_of(one("m"), answer).await.unwrap();
    let file = |name: &str| files.iter().find(|(path, _)| path == &format!("b/{name}")).map(|(_, text)| text.as_str()).unwrap();
    let migrations: Value = serde_json::from_str(file("objects/migrations.json")).unwrap();
    assert_eq!((migrations["items"].as_array().unwrap().len(), &migrations["items"][0]["metadata"]["uid"]), (1, &json!("m1")));
    assert_eq!((&migrations["items"][0]["kind"], &migrations["items"][0]["apiVersion"]), (&json!("Migration"), &json!("drover.dev/v1alpha1")));
    assert!(file("objects/pods.json").contains("\"s1\""));
    assert_eq!((file("logs/manager-1/manager.log"), file("logs/manager-1/manager.previous.log")), ("a line\n", "a line\n"));
    assert!(file("about.json").contains("v1.35.0"));
    for forbidden in ["attestations", "migrationgrants", "migrationpolicies", "nodeprofiles"] {
        let named: Vec<_> = problems.iter().filter(|problem| problem.contains(&format!("failed to list {forbidden}"))).collect();
        assert!(named.len() == 1 && named[0].contains("is forbidden"), "{forbidden}: {problems:?}");
        assert!(file("problems.txt").contains(named[0]), "{forbidden}");
    }
    assert_eq!(problems.len(), 4, "no agent is on one of its nodes: {problems:?}");
    assert!(!files.iter().any(|(_, text)| text.contains("hunter2") || text.contains("not-asked-for") || text.contains("managedFields")), "{files:?}");
}

#[tokio::test]
async fn an_agent_in_which_nothing_can_be_run_is_one_of_the_problems() {
    fn with_agent(path: &str) -> (u16, String) {
        let (code, text) = answer(path);
        (code, text.replace(r#""nodeName": "n3""#, r#""nodeName": "n2""#))
    }
    let (problems, files) = bundle_of(one("m"), with_agent).await.unwrap();
    assert!(problems.iter().any(|problem| problem.contains("failed to run drover support node in pod agent-3")), "{problems:?}");
    assert!(problems.iter().any(|problem| problem.contains("failed to read the log of container agent of pod agent-3")), "{problems:?}");
    assert!(files.iter().any(|(path, _)| path == "b/logs/manager-1/manager.log"));
}

#[tokio::test]
async fn a_migration_that_is_not_there_and_a_cluster_that_says_nothing_are_errors() {
    let error = bundle_of(one("n"), answer).await.unwrap_err().to_string();
    assert!(error.contains("no Migration n in namespace shop"), "{error}");
    let error = bundle_of(Scope::All, |path| answer(if path == "/version" { path } else { "/nothing" })).await.unwrap_err().to_string();
    assert!(error.contains("nothing could be read: failed to list migrations"), "{error}");
}
