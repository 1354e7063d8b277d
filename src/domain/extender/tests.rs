//! The decisions, on pods and Migrations as the manager writes them.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    api::{NodeProfileStatus, node_profile::LaneStatus},
    domain::preflight::NodeView,
};

mod recorded;

const UID: &str = "5f1c22aa-0000-4000-8000-000000000000";
const IMAGE: &str = "reg/i@sha256:00";

fn pod(annotations: &Value) -> Pod {
    let pod = json!({
        "metadata": {"name": "web-5f1c22", "namespace": "d", "uid": "w", "annotations": annotations},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"memory": "2Gi"}}}]}
    });
    serde_json::from_value(pod).unwrap()
}

fn replacement() -> Pod {
    pod(&json!({keys::REPLACES: UID, keys::ORIGINAL_IMAGES: json!({"c": IMAGE}).to_string()}))
}

/// A Migration from n1, with what else its status says.
fn migration(destination: &Value, status: &Value) -> Migration {
    let mut migration = json!({
        "apiVersion": "drover.dev/v1alpha1", "kind": "Migration", "metadata": {"name": "move-web", "namespace": "d", "uid": UID},
        "spec": {"podName": "web", "destination": destination},
        "status": {"phase": "Preparing", "source": {"name": "web", "uid": "s", "nodeName": "n1"}, "replacement": {"name": "web-5f1c22"}}
    });
    json_patch::merge(&mut migration["status"], status);
    serde_json::from_value(migration).unwrap()
}

fn to_n2(status: &Value) -> Migration {
    migration(&json!({"nodeName": "n2"}), status)
}

fn view(name: &str) -> NodeView {
    let profile = NodeProfileStatus {
        lanes: vec![LaneStatus { name: "image".into(), available: true, message: String::new() }],
        free_bytes: 8 << 30,
        observed_at: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH)),
        ..NodeProfileStatus::default()
    };
    NodeView { name: name.into(), ready: true, profile: Some(profile), ..NodeView::default() }
}

fn facts(nodes: Vec<NodeView>) -> Facts {
    Facts { nodes, now: jiff::Timestamp::from_second(10).unwrap(), ..Facts::default() }
}

fn three() -> Facts {
    facts(["n1", "n2", "n3"].map(view).into())
}

fn args(pod: &Pod, names: &[&str]) -> ExtenderArgs {
    ExtenderArgs { pod: pod.clone(), nodes: None, node_names: Some(names.iter().map(|name| (*name).to_owned()).collect()) }
}

/// The reasons against n1, n2 and n3.
fn reasons(pod: &Pod, migration: &Migration, facts: &Facts) -> [Option<String>; 3] {
    let migrations = [migration.clone()];
    let placement = Placement::of(pod, &migrations).expect("the Migration's pod");
    ["n1", "n2", "n3"].map(|node| placement.refusal(pod, node, facts))
}

#[track_caller]
fn assert_told(reason: Option<&String>, text: &str) {
    assert!(reason.is_some_and(|reason| reason.starts_with("drover: ") && reason.contains(text)), "{text:?} is not in {reason:?}");
}

#[test]
fn only_the_pinned_node_passes() {
    let [n1, n2, n3] = reasons(&replacement(), &to_n2(&json!({})), &three());
    assert_eq!(n2, None);
    assert_eq!(n1, n3, "the same words for every node, so that kubectl shows them once");
    assert_told(n1.as_ref(), "Migration move-web moves this pod to node n2 and nowhere else");
    assert_told(n1.as_ref(), "kubectl delete migration move-web -n d");
}

#[test]
fn the_pinned_node_must_be_able_to_restore_it() {
    let mut silent = view("n2");
    silent.profile = None;
    let [_, n2, _] = reasons(&replacement(), &to_n2(&json!({})), &facts(vec![view("n1"), silent]));
    assert_told(n2.as_ref(), "node n2 has no NodeProfile: no agent of Drover's runs there (look at its drover-agent pod");
    let late = Facts { now: jiff::Timestamp::from_second(1000).unwrap(), ..three() };
    assert_told(reasons(&replacement(), &to_n2(&json!({})), &late)[1].as_ref(), "last seen 1000 s ago");
}

#[test]
fn once_the_source_is_frozen_only_the_pin_counts() {
    let migration = to_n2(&json!({"phase": "SourceDeleting", "destination": {"nodeName": "n2"}}));
    let [n1, n2, n3] = reasons(&replacement(), &migration, &Facts::default());
    assert!(n1.is_some() && n2.is_none() && n3.is_some(), "no profile was looked up");
    assert_told(n1.as_ref(), "kubectl describe migration move-web -n d");
    assert!(!n1.unwrap().contains("delete"), "the source may be gone");
}

#[test]
fn where_the_scheduler_chooses_only_nodes_that_can_restore_it_pass() {
    let mut migration = migration(&json!({"nodeSelector": {"disk": "fast"}}), &json!({"destination": {"nodeName": ""}}));
    let mut nodes: Vec<NodeView> = ["n1", "n2", "n3"].map(view).into();
    for node in &mut nodes {
        node.labels = [("disk".to_owned(), "fast".to_owned())].into();
    }
    nodes[2].profile.as_mut().unwrap().free_bytes = 1 << 30;
    let [n1, n2, n3] = reasons(&replacement(), &migration, &facts(nodes.clone()));
    assert_told(n1.as_ref(), "runs on node n1 already");
    assert_eq!(n2, None);
    assert_told(n3.as_ref(), "node n3 has 1024 MiB free for checkpoints, and the pod requests 2048 MiB of memory (free space");
    nodes[1].labels.clear();
    nodes[0].profile.as_mut().unwrap().architecture = "amd64".into();
    let [_, n2, _] = reasons(&replacement(), &migration, &facts(nodes.clone()));
    assert_told(n2.as_ref(), "does not select node n2");
    assert_told(n2.as_ref(), "has architecture , the source has amd64");

    // Once the scheduler has chosen, that is the pin.
    migration.status.as_mut().unwrap().destination.as_mut().unwrap().node_name = "n3".into();
    let [_, n2, n3] = reasons(&replacement(), &migration, &facts(nodes));
    assert_told(n2.as_ref(), "to node n3 and nowhere else");
    assert!(n3.is_some_and(|reason| !reason.contains("requests")), "the room was a matter of the choice");
}

#[test]
fn a_placeholder_is_placed_like_a_replacement() {
    let migration = to_n2(&json!({"placeholder": {"name": "web-5f1c22", "uid": "w"}, "replacement": {"name": "web"}}));
    let [n1, n2, _] = reasons(&replacement(), &migration, &three());
    assert!(n1.is_some() && n2.is_none());
}

#[test]
fn the_fallback_goes_home_whatever_its_profile_says() {
    let fallback = pod(&json!({keys::FALLBACK: UID}));
    let migration =
        to_n2(&json!({"phase": "Finishing", "verdict": "Rollback", "fallback": {"name": "web", "uid": "w"}, "destination": {"nodeName": "n2"}}));
    let [n1, n2, _] = reasons(&fallback, &migration, &Facts::default());
    assert_eq!(n1, None);
    assert_told(n2.as_ref(), "the checkpoint that is kept on node n1");
}

#[test]
fn what_is_over_is_placed_nowhere() {
    let rolled_back = to_n2(&json!({"phase": "Finishing", "verdict": "Rollback"}));
    for reason in reasons(&replacement(), &rolled_back, &three()) {
        assert_told(reason.as_ref(), "is being rolled back");
    }
    for reason in reasons(&replacement(), &to_n2(&json!({"phase": "Done", "replacement": {"uid": "w"}})), &three()) {
        assert_told(reason.as_ref(), "has ended (kubectl delete pod web-5f1c22 -n d)");
    }
}

#[test]
fn a_pod_that_no_migration_knows_is_ordinary() {
    let known = |pod: &Pod, migration: &Migration| Placement::of(pod, std::slice::from_ref(migration)).is_some();
    let active = to_n2(&json!({}));
    assert!(known(&replacement(), &active) && made_for(&replacement()) == Some(UID));
    assert!(made_for(&pod(&json!({"keep": "me"}))).is_none());
    assert!(!known(&pod(&json!({keys::REPLACES: "another"})), &active));
    assert!(!known(&replacement(), &to_n2(&json!({"replacement": {"uid": "another"}}))), "a copy of the manifest");
    let elsewhere = Migration { metadata: kube::api::ObjectMeta { namespace: Some("e".into()), ..active.metadata.clone() }, ..active };
    assert!(!known(&replacement(), &elsewhere));
}

#[test]
fn both_forms_are_filtered() {
    let migrations = [to_n2(&json!({}))];
    let pod = replacement();
    let placement = Placement::of(&pod, &migrations).unwrap();
    let named = filter(args(&pod, &["n1", "n2"]), &placement, &three());
    assert_eq!((named.node_names.as_deref(), named.nodes.is_none()), (Some(&["n2".to_owned()][..]), true));

    let body = json!({"Pod": pod, "NodeNames": null, "Nodes": {"metadata": {"resourceVersion": "7"}, "items": [
        {"metadata": {"name": "n1"}}, {"metadata": {"name": "n2"}, "fieldOfTomorrow": {"kept": true}}
    ]}});
    let full = filter(ExtenderArgs::read(body.to_string().as_bytes()).unwrap(), &placement, &three());
    let answer = serde_json::to_value(&full).unwrap();
    assert_eq!(answer["Nodes"]["items"], json!([{"metadata": {"name": "n2"}, "fieldOfTomorrow": {"kept": true}}]));
    assert_eq!((&answer["Nodes"]["metadata"]["resourceVersion"], &answer["NodeNames"], &answer["Error"]), (&json!("7"), &Value::Null, &json!("")));
    assert_eq!((full.passing(), full.failed_nodes.len(), full.failed_and_unresolvable_nodes.len()), (1, 0, 1));
}

#[test]
fn requests_that_cannot_be_read_say_why() {
    for (body, expected) in [
        ("", "cannot be read: EOF"),
        (r#"{"NodeNames": ["n1"]}"#, "missing field `Pod`"),
        (r#"{"Pod": null, "NodeNames": ["n1"]}"#, "invalid type: null"),
        (r#"{"Pod": {}, "Nodes": null, "NodeNames": null}"#, "neither Nodes nor NodeNames is there"),
        (r#"{"Pod": {}, "Nodes": {"items": [{"metadata": {"name": "n1"}}, {"metadata": {}}]}}"#, "Nodes.items[1].metadata.name is missing"),
        (r#"{"Pod": {}, "NodeNames": "n1"}"#, "invalid type: string"),
    ] {
        let problem = ExtenderArgs::read(body.as_bytes()).expect_err(body);
        assert!(problem.contains(expected), "{body}: {problem}");
    }
}

#[test]
fn base_images_and_free_space_decide_the_score() {
    let pod = replacement();
    let mut nodes: Vec<NodeView> = ["n1", "n2", "n3"].map(view).into();
    nodes[1].profile.as_mut().unwrap().free_bytes = 4 << 30;
    nodes[2].profile = None;
    let node = |name: &str, image: &str| json!({"metadata": {"name": name}, "status": {"images": [{"names": [image, "reg/i:1"], "sizeBytes": 1}]}});
    let items = [node("n1", "reg/i@sha256:11"), node("n2", IMAGE), json!({"metadata": {"name": "n3"}})];
    let body = json!({"Pod": pod, "Nodes": {"items": items}});
    let full = ExtenderArgs::read(body.to_string().as_bytes()).unwrap();
    let scores = |args: &ExtenderArgs| prioritize(args, &facts(nodes.clone())).into_iter().map(|found| found.score).collect::<Vec<_>>();
    assert_eq!(scores(&full), [5, 5 + 2, 0]);
    assert_eq!(scores(&args(&pod, &["n1", "n2", "n3"])), [5, 2, 0], "names tell nothing of images");
    assert_eq!(serde_json::to_value(indifferent(&args(&pod, &["n1"]))).unwrap(), json!([{"Host": "n1", "Score": 0}]));
}

proptest! {
    /// A name that kube-scheduler has not asked about would be an error to it, and no node may vanish without a reason.
    #[test]
    fn every_candidate_passes_or_fails_with_a_reason(
        names in proptest::collection::btree_set("n[0-9]", 0..8), pinned in "(n[0-9])?", known in proptest::collection::vec("n[0-9]", 0..8),
        phase in prop::sample::select(vec!["Pending", "Preparing", "Transferring", "Restoring", "Finishing", "Done"]), in_full: bool,
    ) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let migrations = [migration(&json!({}), &json!({"phase": phase, "destination": {"nodeName": pinned}}))];
        let pod = replacement();
        let mut request = args(&pod, &names);
        if in_full {
            let items = names.iter().map(|name| json!({"metadata": {"name": name}})).collect();
            request = ExtenderArgs { node_names: None, nodes: Some(protocol::NodeList { items: Some(items), ..Default::default() }), ..request };
        }
        let facts = facts(known.iter().map(|name| view(name)).collect());
        let scores = prioritize(&request, &facts);
        let result = filter(request, &Placement::of(&pod, &migrations).unwrap(), &facts);
        let passed: Vec<String> = match (&result.node_names, &result.nodes) {
            (Some(names), None) => names.clone(),
            (None, Some(list)) => list.items.iter().flatten().map(|node| protocol::name_of(node).to_owned()).collect(),
            other => panic!("one form: {other:?}"),
        };
        let failed = &result.failed_and_unresolvable_nodes;
        prop_assert!(passed.iter().all(|name| names.contains(&name.as_str()) && !failed.contains_key(name)));
        prop_assert!(failed.iter().all(|(name, reason)| names.contains(&name.as_str()) && reason.len() > "drover: ".len()));
        prop_assert_eq!(passed.len() + failed.len(), names.len());
        prop_assert_eq!(scores.iter().map(|score| score.host.as_str()).collect::<Vec<_>>(), names);
        prop_assert!(scores.iter().all(|score| (0..=MAX_PRIORITY).contains(&score.score)));
    }
}
