//! Reviews as tables: what is asked, and every word of the answer.

use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use super::*;
use crate::{
    api::NodeProfile,
    domain::{admission::validate_migration, preflight::NodeView},
};

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a well-formed object")
}

fn pod(annotations: &Value) -> Pod {
    of(json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "uid-web", "annotations": annotations, "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "main", "image": "nginx:1"}]},
        "status": {"phase": "Running", "containerStatuses": [{
            "name": "main", "image": "nginx:1", "imageID": "docker.io/library/nginx@sha256:0000000000000000000000000000000000000000000000000000000000000000",
            "containerID": "containerd://c1", "ready": true, "restartCount": 0, "started": true, "state": {"running": {}}
        }]}
    }))
}

/// A node as the API server has it; `profile` is when its agent was last seen, and whether it can restore.
fn node(name: &str, ready: &str, cordoned: bool, profile: Option<(&str, bool)>) -> NodeView {
    let node: Node =
        of(json!({"metadata": {"name": name}, "spec": {"unschedulable": cordoned}, "status": {"conditions": [{"type": "Ready", "status": ready}]}}));
    let profile: Option<NodeProfile> = profile.map(|(observed, available)| {
        of(json!({
            "apiVersion": "drover.dev/v1alpha1", "kind": "NodeProfile", "metadata": {"name": name}, "spec": {},
            "status": {
                "observedAt": observed, "gate": {"installed": true},
                "freeBytes": 1u64 << 30,
                "lanes": [{"name": "image", "available": available, "message": if available { "" } else { "install criu" }}]
            }
        }))
    });
    NodeView::new(&node, profile.as_ref())
}

fn migration(spec: &Value, status: &Value) -> Migration {
    of(json!({
        "apiVersion": "drover.dev/v1alpha1", "kind": "Migration",
        "metadata": {"name": "web-1", "namespace": "shop", "uid": "uid-mig"}, "spec": spec, "status": status
    }))
}

const NOW: &str = "2026-11-23T12:00:00Z";

fn world() -> World {
    let mut world = World::unseen(NOW.parse().expect("a time"));
    world.facts.nodes = vec![
        node("n1", "True", false, Some((NOW, true))),
        node("n2", "True", false, Some((NOW, true))),
        node("n3", "False", true, Some(("2026-11-23T11:00:00Z", false))),
        node("n4", "True", false, None),
        node("n5", "True", false, Some((NOW, false))),
    ];
    world
}

fn user() -> Requester {
    Requester { username: "alice".to_owned(), is_manager: false }
}

fn manager() -> Requester {
    Requester { username: "system:serviceaccount:drover:drover-manager".to_owned(), is_manager: true }
}

fn update_with(old: &Value, new: &Value, requester: &Requester, world: &World) -> Decision {
    decide(Change::Update { old: &pod(old), new: &pod(new) }, requester, world)
}

fn text(decision: &Decision) -> String {
    match decision {
        Decision::Allow { patch, warnings } => format!("allow {} {warnings:?}", serde_json::to_string(patch).expect("json")),
        Decision::Deny { what, reasons } => denial(what, reasons),
        Decision::Answer { message, .. } => message.clone(),
    }
}

#[test]
fn destinations_are_judged_with_every_reason() {
    let cases: [(Value, &[&str]); 8] = [
        (json!({"drover.dev/migrate-to": "n2"}), &["allow [] []"]),
        (json!({"drover.dev/migrate-to": "auto"}), &["allow [] []"]),
        (
            json!({"migrate-to": "n2"}),
            &[
                r#"{"op":"remove","path":"/metadata/annotations/migrate-to"}"#,
                r#"{"op":"add","path":"/metadata/annotations/drover.dev~1migrate-to","value":"n2"}"#,
            ],
        ),
        (
            json!({"drover.dev/migrate-to": "n9"}),
            &["pod shop/web cannot be migrated to \"n9\"", "node n9 does not exist (nodes that can take it: n2)"],
        ),
        (json!({"drover.dev/migrate-to": "n1"}), &["runs on node n1 already"]),
        (
            json!({"drover.dev/migrate-to": "n3"}),
            &[
                "metadata.annotations[drover.dev/migrate-to]: node n3 is not Ready",
                "node n3 is cordoned (kubectl uncordon n3",
                "node n3 has a silent agent, last seen 3600 s ago",
                "node n3 cannot restore a checkpoint image: install criu",
            ],
        ),
        (json!({"drover.dev/migrate-to": "n4"}), &["node n4 has no NodeProfile"]),
        (
            json!({"drover.dev/migrate-to": "N 2", "migrate-to": "n2"}),
            &["metadata.annotations[drover.dev/migrate-to]: \"N 2\" is no node's name", "and migrate-to says \"n2\" (set one of the two keys)"],
        ),
    ];
    for (annotations, expected) in cases {
        let said = text(&update_with(&json!({}), &annotations, &user(), &world()));
        for part in expected {
            assert!(said.contains(part), "{annotations}: {part:?} is missing in\n{said}");
        }
    }
}

#[test]
fn auto_says_why_no_node_will_do() {
    let mut world = world();
    world.facts.nodes.retain(|node| node.name != "n2");
    let said = text(&update_with(&json!({}), &json!({"drover.dev/migrate-to": "auto"}), &user(), &world));
    assert!(
        said.contains("no other node can take the pod: node n3 is not Ready; node n4 has no NodeProfile: no agent of Drover's runs there; node n5 cannot restore"),
        "{said}"
    );
}

#[test]
fn only_a_changed_value_asks_for_a_move() {
    let asked = json!({"drover.dev/migrate-to": "n9"});
    assert_eq!(update_with(&asked, &json!({"drover.dev/migrate-to": "n9", "note": "x"}), &user(), &world()), Decision::allow());
    assert_eq!(update_with(&asked, &json!({}), &user(), &world()), Decision::allow(), "removal is always allowed");
    assert!(text(&update_with(&asked, &json!({"drover.dev/migrate-to": "n8"}), &user(), &world())).contains("node n8 does not exist"));
    let same_under_the_bare_key = json!({"drover.dev/migrate-to": "n9", "migrate-to": "n9"});
    assert_eq!(
        text(&update_with(&asked, &same_under_the_bare_key, &user(), &world())),
        r#"allow [{"op":"remove","path":"/metadata/annotations/migrate-to"}] []"#
    );
}

#[test]
fn the_pods_state_policies_and_migrations_are_all_named() {
    let mut world = world();
    world.policies = vec![of(json!({
        "apiVersion": "drover.dev/v1alpha1", "kind": "MigrationPolicy", "metadata": {"name": "databases"},
        "spec": {"podSelector": {"matchLabels": {"app": "db"}}}
    }))];
    world.migrations = vec![migration(&json!({"podName": "web"}), &json!({"phase": "Freezing"}))];
    let mut new = pod(&json!({"drover.dev/migrate-to": "n1"}));
    new.metadata.deletion_timestamp = Some(of(json!(NOW)));
    new.status.as_mut().expect("a status").phase = Some("Pending".to_owned());
    let said = text(&decide(Change::Update { old: &pod(&json!({})), new: &new }, &user(), &world));
    for part in [
        "the pod is being deleted",
        "status.phase: is Pending",
        "runs on node n1 already",
        "Migration web-1 of this pod is in phase Freezing",
        "no MigrationPolicy permits this pod to move (there are: databases)",
    ] {
        assert!(said.contains(part), "{part:?} is missing in\n{said}");
    }
    assert_eq!(said.lines().count(), 6, "{said}");

    world.policies.push(of(json!({
        "apiVersion": "drover.dev/v1alpha1", "kind": "MigrationPolicy", "metadata": {"name": "all-of-shop"},
        "spec": {"namespaceSelector": {"matchLabels": {"team": "shop"}}}
    })));
    world.namespace_labels.insert("team".to_owned(), "shop".to_owned());
    world.migrations = vec![migration(&json!({"podName": "web"}), &json!({"phase": "Done"}))];
    assert_eq!(update_with(&json!({}), &json!({"drover.dev/migrate-to": "n2"}), &user(), &world), Decision::allow());
}

#[test]
fn a_new_pod_is_stripped_and_never_refused() {
    let brought = json!({"drover.dev/migrate-to": "n2", "migrate-to": "n2", "drover.dev/claim": "u", "drover.dev/migration": "u", "drover.dev/replaces": "u", "keep": "me"});
    let decision = decide(Change::Create(&pod(&brought)), &user(), &world());
    let Decision::Allow { patch, warnings } = &decision else { panic!("{decision:?}") };
    assert_eq!(warnings.len(), 5, "{warnings:?}");
    let mut object = serde_json::to_value(pod(&brought)).expect("json");
    json_patch::patch(&mut object, patch).expect("the patch applies");
    assert_eq!(object["metadata"]["annotations"], json!({"keep": "me"}));
    assert_eq!(decide(Change::Create(&of(object)), &user(), &world()), Decision::allow(), "a second invocation changes nothing");

    let made_by_manager = decide(Change::Create(&pod(&json!({"drover.dev/claim": "u", "drover.dev/replaces": "u"}))), &manager(), &world());
    assert_eq!(made_by_manager, Decision::allow());
}

#[test]
fn drovers_own_annotations_are_the_managers() {
    for key in ["claim", "migration", "replaces", "fallback", "original-images", "base-name", "hops", "requests"] {
        let key = format!("drover.dev/{key}");
        let (with, without) = (json!({&key: "1"}), json!({}));
        for (old, new) in [(&without, &with), (&with, &without), (&with, &json!({&key: "2"}))] {
            let said = text(&update_with(old, new, &user(), &world()));
            assert!(
                said.contains(&format!("metadata.annotations[{key}]: only Drover's manager may add, change or remove it, not \"alice\"")),
                "{said}"
            );
        }
        if key != "drover.dev/claim" {
            assert_eq!(update_with(&without, &with, &manager(), &world()), Decision::allow());
        }
        assert_eq!(update_with(&with, &without, &manager(), &world()), Decision::allow());
    }
}

fn restoring(uid: &str) -> Value {
    json!({
        "phase": "Restoring", "replacement": {"name": "web", "uid": uid},
        "containers": [{"name": "main", "digest": "sha256:0", "bytes": 1, "image": "127.0.0.1:5785/drover/00ff:main"}]
    })
}

#[test]
fn a_claim_that_holds_releases_the_pod() {
    let mut world = world();
    world.migrations = vec![migration(&json!({"podName": "web-0"}), &restoring("uid-web"))];
    let claimed = json!({"drover.dev/claim": "uid-mig"});
    let decision = update_with(&json!({}), &claimed, &manager(), &world);
    assert_eq!(text(&decision), r#"allow [{"op":"add","path":"/spec/containers/0/image","value":"127.0.0.1:5785/drover/00ff:main"}] []"#);
    let mut released = pod(&claimed);
    released.spec.as_mut().expect("a spec").containers[0].image = Some("127.0.0.1:5785/drover/00ff:main".to_owned());
    let again = decide(Change::Update { old: &pod(&json!({})), new: &released }, &manager(), &world);
    assert_eq!(again, Decision::allow(), "a second invocation changes nothing");
}

#[test]
fn the_fallback_is_claimed_only_by_its_verdict() {
    let fallen = |change: fn(&mut Value)| {
        let mut status = restoring("uid-failed");
        status["phase"] = json!("Finishing");
        status["verdict"] = json!("Rollback");
        status["fallback"] = json!({"name": "web", "uid": "uid-web"});
        change(&mut status);
        let mut world = world();
        world.migrations = vec![migration(&json!({"podName": "web"}), &status)];
        text(&update_with(&json!({}), &json!({"drover.dev/claim": "uid-mig"}), &manager(), &world))
    };
    assert!(fallen(|_| {}).starts_with("allow [{"));
    let without: [fn(&mut Value); 4] = [
        |status| status["verdict"] = json!("Commit"),
        |status| status["phase"] = json!("Done"),
        |status| status["fallback"]["uid"] = json!("uid-other"),
        |status| status["fallback"]["uid"] = json!(""),
    ];
    for change in without {
        let said = fallen(change);
        assert!(said.contains("cannot be claimed"), "{said}");
    }
}

#[test]
fn a_claim_that_does_not_hold_is_refused() {
    let spec = json!({"podName": "web-0"});
    let mut early = restoring("uid-web");
    early["phase"] = json!("AwaitingReadiness");
    let mut decided = restoring("uid-other");
    decided["verdict"] = json!("Rollback");
    let mut foreign = restoring("uid-web");
    foreign["containers"][0] = json!({"name": "sidecar", "digest": "sha256:0", "bytes": 1, "image": "evil.example/x"});
    let mut elsewhere = migration(&spec, &restoring("uid-web"));
    elsewhere.metadata.namespace = Some("other".to_owned());
    let cases: [(Vec<Migration>, &[&str]); 5] = [
        (vec![], &["no Migration with UID \"uid-mig\" has pods in namespace shop"]),
        (vec![elsewhere], &["no Migration with UID \"uid-mig\" has pods in namespace shop"]),
        (vec![migration(&spec, &early)], &["is in phase AwaitingReadiness, and only Restoring"]),
        (vec![migration(&spec, &decided)], &["has its verdict already (Rollback)", "has the replacement \"uid-other\", and this pod is \"uid-web\""]),
        (
            vec![migration(&spec, &foreign)],
            &["restores container \"sidecar\"", "\"evil.example/x\" for container \"sidecar\", which is no checkpoint image"],
        ),
    ];
    for (migrations, expected) in cases {
        let mut world = world();
        world.migrations = migrations;
        let said = text(&update_with(&json!({}), &json!({"drover.dev/claim": "uid-mig"}), &manager(), &world));
        for part in expected {
            assert!(said.contains(part), "{part:?} is missing in\n{said}");
        }
    }
}

#[test]
fn a_pod_of_another_namespaces_migration_is_claimed_by_that_one() {
    let mut incoming = migration(&json!({"podName": "web-0", "destinationNamespace": "shop"}), &restoring("uid-web"));
    incoming.metadata.namespace = Some("other".to_owned());
    let mut world = world();
    world.migrations = vec![incoming];
    let claim = json!({"drover.dev/replaces-in": "other", "drover.dev/claim": "uid-mig"});
    let said = text(&update_with(&json!({"drover.dev/replaces-in": "other"}), &claim, &manager(), &world));
    assert!(said.starts_with("allow [{"), "{said}");
    let (waiting, claimed) = (pod(&json!({"drover.dev/replaces-in": "other"})), pod(&claim));
    assert_eq!(needs(Change::Update { old: &waiting, new: &claimed }, &manager()).elsewhere.as_deref(), Some("other"));
    assert_eq!(active_migration(&claimed, &world.migrations).map(kube::ResourceExt::name_any).as_deref(), Some("web-1"));
    let said = text(&update_with(&json!({}), &json!({"drover.dev/replaces-in": "other"}), &user(), &world));
    assert!(said.contains("only Drover's manager may add"), "{said}");
}

#[test]
fn nothing_is_looked_up_for_ordinary_pods() {
    let (plain, asking) = (pod(&json!({})), pod(&json!({"drover.dev/migrate-to": "n2"})));
    let claiming = pod(&json!({"drover.dev/claim": "u"}));
    assert!(needs(Change::Create(&asking), &user()).is_empty());
    assert!(needs(Change::Update { old: &plain, new: &plain }, &user()).is_empty());
    assert!(needs(Change::Update { old: &plain, new: &claiming }, &user()).is_empty(), "refused without asking the API server");
    assert!(needs(Change::Update { old: &plain, new: &claiming }, &manager()).claim);
    assert!(needs(Change::Update { old: &plain, new: &asking }, &user()).destination);
    assert!(needs(Change::Update { old: &asking, new: &plain }, &user()).is_empty());
}

#[test]
fn migrations_are_validated_with_every_reason() {
    let bad = migration(
        &json!({"podName": "web", "destination": {"nodeName": "N2"}, "destinationNamespace": "other", "keepName": true, "inDoubt": "PreferSource", "containers": ["main", "nope"]}),
        &Value::Null,
    );
    let fields = |reasons: Vec<Blocker>| reasons.into_iter().map(|r| r.field).collect::<Vec<_>>();
    assert_eq!(fields(validate_migration(&bad, Some(&pod(&json!({}))))), ["spec.containers", "spec.keepName", "spec.destination.nodeName"]);
    let many = migration(&json!({"deployment": "web", "containers": ["main"]}), &Value::Null);
    assert_eq!(fields(validate_migration(&many, None)), ["spec.containers"], "the same for several pods, and no pod is missed");
    let good = migration(&json!({"podName": "web", "destinationNamespace": "shop", "lane": "image"}), &Value::Null);
    assert!(validate_migration(&good, Some(&pod(&json!({})))).is_empty());
    assert_eq!(fields(validate_migration(&good, None)), ["spec.podName"]);
}
