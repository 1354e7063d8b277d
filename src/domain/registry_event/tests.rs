//! What is taken for an event, and what an event is worth.

use serde_json::{Value, json};

use super::*;

const UID: &str = "5f1c22aa-0000-4000-8000-000000000000";

fn digest(digit: &str) -> String {
    format!("sha256:{}", digit.repeat(64))
}

fn golden() -> &'static str {
    include_str!("../../../tests/golden/registry-event.json")
}

fn event() -> RegistryEvent {
    parse(golden().as_bytes()).expect("the golden event")
}

fn migration(status: &Value) -> Migration {
    serde_json::from_value(json!({
        "apiVersion": "drover.dev/v1alpha1", "kind": "Migration", "metadata": {"name": "counter-1", "namespace": "default", "uid": UID}, "spec": {}, "status": status
    }))
    .expect("a migration")
}

fn in_phase(phase: &str) -> Value {
    json!({
        "phase": phase, "destination": {"nodeName": "n2", "repository": "drover/0"},
        "source": {"name": "counter", "uid": "source", "nodeName": "n1", "containers": [{"name": "counter", "containerID": "c1", "image": "i"}]}
    })
}

fn with(mut status: Value, field: &str, value: Value) -> Value {
    status[field] = value;
    status
}

#[test]
fn the_schema_is_golden() {
    let event = RegistryEvent {
        version: VERSION,
        time: "2026-11-28T07:05:02.123456Z".parse().expect("a time"),
        migration: MigrationRef { namespace: "default".into(), name: "counter-1".into(), uid: UID.into() },
        node: "n2".into(),
        container: "counter".into(),
        digest: digest("a"),
        bytes: 1_234_567,
    };
    let written = serde_json::to_value(&event).expect("JSON");
    assert_eq!(written, serde_json::from_str::<Value>(golden()).expect("golden"));
    assert_eq!(self::event(), event);
}

#[test]
fn what_is_no_event_says_which_field() {
    let changed = |pointer: &str, value: Value| {
        let mut document: Value = serde_json::from_str(golden()).expect("golden");
        *document.pointer_mut(pointer).expect("the field") = value;
        parse(document.to_string().as_bytes())
    };
    assert_eq!(changed("/version", json!(2)), Err(Unreadable::UnknownVersion(2)));
    for (pointer, value, field) in [
        ("/version", json!("one"), "version"),
        ("/digest", json!("sha256:00"), "digest"),
        ("/migration/uid", json!("../../x"), "migration.uid"),
        ("/migration/name", json!("A b"), "migration.name"),
        ("/node", json!(""), "node"),
        ("/container", json!("_volumes"), "container"),
        ("/bytes", json!(-1), "u64"),
        ("/time", json!("yesterday"), ""),
    ] {
        let refused = changed(pointer, value).expect_err(pointer).to_string();
        assert!(refused.contains(field), "{pointer}: {refused}");
    }
    assert!(parse(b"{").is_err() && parse(b"\xff").is_err() && parse(&vec![b' '; LONGEST + 1]).is_err());
    let mut more: Value = serde_json::from_str(golden()).expect("golden");
    more["later"] = json!({"version": 1});
    assert!(parse(more.to_string().as_bytes()).is_ok(), "a field of a later Drover is passed over");
}

#[test]
fn an_event_counts_only_for_its_migration_its_node_its_containers_and_in_its_time() {
    let judged = |status: &Value| judge(&migration(status), &event());
    assert_eq!(judged(&in_phase("Transferring")), Judgement::News);
    for late in ["Pending", "Preparing", "Freezing", "Finishing", "Done"] {
        assert_eq!(judged(&in_phase(late)), Judgement::OutOfTime, "{late}");
    }
    assert_eq!(judged(&with(in_phase("Restoring"), "verdict", json!("Rollback"))), Judgement::OutOfTime);
    assert_eq!(judged(&with(in_phase("Transferring"), "destination", json!({"nodeName": "n3", "repository": "drover/0"}))), Judgement::WrongNode);
    assert_eq!(judged(&with(in_phase("Transferring"), "source", Value::Null)), Judgement::UnknownContainer);
    let mut other = event();
    other.migration.uid = "5f1c22aa-0000-4000-8000-000000000001".into();
    assert_eq!(judge(&migration(&in_phase("Transferring")), &other), Judgement::UnknownMigration);
}

#[test]
fn after_the_vote_only_what_was_voted_for_is_news() {
    let voted = |digest: String| json!([{"name": "counter", "digest": digest, "bytes": 1, "image": "i"}]);
    let known = |digest: String| json!([{"container": "counter", "digest": digest, "bytes": 1, "at": "2026-11-28T07:05:02.000000Z", "bus": "Kafka"}]);
    let awaiting = |digest| migration(&with(in_phase("AwaitingReadiness"), "containers", voted(digest)));
    assert_eq!(judge(&awaiting(digest("a")), &event()), Judgement::News);
    assert_eq!(judge(&awaiting(digest("b")), &event()), Judgement::WrongDigest);
    let status = with(with(in_phase("AwaitingReadiness"), "containers", voted(digest("a"))), "confirmations", known(digest("a")));
    let noted = migration(&status);
    assert_eq!(judge(&noted, &event()), Judgement::Repeated);
    assert_eq!(confirmed_by(noted.status.as_ref().expect("a status")), Some("Kafka"));
    let forged = migration(&with(status, "confirmations", known(digest("b"))));
    let forged = forged.status.expect("a status");
    assert_eq!(confirmed_by(&forged), None);
    assert!(!is_voted(&forged.containers, &forged.confirmations[0].container, &forged.confirmations[0].digest));
}

#[test]
fn before_the_vote_nobody_fills_the_status() {
    let mut status = in_phase("Transferring");
    let mut told = vec![];
    for digit in ["b", "c", "d", "e"] {
        told.push(json!({"container": "counter", "digest": digest(digit), "bytes": 1, "at": "2026-11-28T07:05:02.000000Z", "bus": "Kafka"}));
        status["confirmations"] = json!(told);
    }
    assert_eq!(judge(&migration(&status), &event()), Judgement::TooMany);
}
