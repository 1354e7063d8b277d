//! Which pods leave, in which order, and what their evictions are answered.

mod responder;

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::MicroTime};
use serde_json::{Value, json};

use super::*;
use crate::{
    api::policy::Unmovable,
    domain::{admission::World, preflight::NodeView},
};

const NOW: i64 = 10_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn pod(name: &str, more: &Value) -> Pod {
    let mut pod = json!({"metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": {}}, "spec": {"nodeName": "n1", "containers": []},
        "status": {"phase": "Running"}});
    json_patch::merge(&mut pod, more);
    serde_json::from_value(pod).unwrap()
}

fn policy(triggers: &Value, unmovable: Unmovable) -> MigrationPolicy {
    let spec = json!({"evacuation": {"triggers": triggers, "concurrentPerNode": 2, "unmovable": unmovable}});
    serde_json::from_value(json!({"apiVersion": "drover.dev/v1alpha1", "kind": "MigrationPolicy", "metadata": {"name": "all"}, "spec": spec}))
        .unwrap()
}

/// A cordoned n1, and these pods on it.
fn seen(pods: Vec<Pod>) -> Seen {
    Seen { cordoned: ["n1".to_owned()].into(), pods, policies: vec![policy(&json!(["Cordon", "Drain"]), Unmovable::Evict)], ..Seen::default() }
}

fn made(seen: &Seen) -> Vec<String> {
    let pod_of = |action| match action {
        Action::Make(migration) => migration.spec.pod_name,
        Action::Delete(_) => None,
    };
    plan(seen, at(NOW)).into_iter().filter_map(pod_of).collect()
}

fn deleted(seen: &Seen) -> usize {
    plan(seen, at(NOW)).iter().filter(|action| matches!(action, Action::Delete(_))).count()
}

/// The evacuation of a pod in this state.
fn evacuation(pod: &Pod, trigger: Trigger, status: &Value) -> Migration {
    let mut migration = evacuation_of(pod, "n1", trigger).unwrap();
    migration.status = Some(serde_json::from_value(status.clone()).unwrap());
    migration
}

fn ended(outcome: &str, second: i64) -> Value {
    json!({"phase": "Done", "outcome": outcome, "message": "spec.hostPID is set", "phases": [{"phase": "Done", "startedAt": MicroTime(at(second))}]})
}

#[test]
fn the_pods_of_a_cordoned_node_leave_in_order_and_not_all_at_once() {
    let low = pod("a", &json!({}));
    let high = pod("z", &json!({"spec": {"priority": 1000}}));
    let mut seen = seen(vec![low.clone(), pod("b", &json!({})), high]);
    assert_eq!(made(&seen), ["z", "a"]);
    seen.migrations = vec![evacuation(&low, Trigger::Cordon, &json!({"phase": "Preparing"}))];
    assert_eq!(made(&seen), ["z"], "one is on its way");
    seen.cordoned.clear();
    assert_eq!(made(&seen), [""; 0]);
}

#[test]
fn what_stays_is_told_of_its_own_node_with_the_reason() {
    let (one, other) = (pod("b", &json!({})), pod("a", &json!({})));
    let long = "x".repeat(500);
    let mut failed = vec![evacuation(&one, Trigger::Cordon, &ended("Failed", NOW)), evacuation(&other, Trigger::Drain, &ended("RolledBack", NOW))];
    failed[0].status.as_mut().unwrap().message = long;
    failed.push(evacuation(&pod("c", &json!({})), Trigger::Cordon, &ended("Migrated", NOW)));
    let told: Vec<_> = staying("n1", &failed).into_iter().map(|it| (it.namespace, it.pod, it.reason.len())).collect();
    assert_eq!(told, [("shop".to_owned(), "a".to_owned(), 19), ("shop".to_owned(), "b".to_owned(), 300)]);
    assert_eq!(staying("n2", &failed), []);
}

#[test]
fn whose_node_goes_first_leaves_first_and_then_the_smallest() {
    let asks = |name: &str, node: &str, memory: &str| {
        let container = json!({"name": "c", "resources": {"requests": {"memory": memory}}});
        pod(name, &json!({"spec": {"nodeName": node, "containers": [container]}}))
    };
    let mut seen = seen(vec![asks("a", "n1", "2Gi"), asks("b", "n1", "1Gi"), asks("c", "n3", "4Gi"), asks("d", "n4", "0")]);
    seen.cordoned.extend(["n3".to_owned(), "n4".to_owned()]);
    assert_eq!(made(&seen), ["d", "b", "a", "c"]);
    seen.deadlines = [("n3".to_owned(), at(NOW + 300)), ("n1".to_owned(), at(NOW + 60))].into();
    assert_eq!(made(&seen), ["b", "a", "c", "d"]);
    let limits = plan(&seen, at(NOW)).into_iter().map(|action| match action {
        Action::Make(migration) | Action::Delete(migration) => migration.spec.deadline_seconds,
    });
    assert_eq!(limits.collect::<Vec<_>>(), [60, 60, 300, 600], "no more time than their nodes have");
    let late: Vec<_> = deadline::late(&seen, at(NOW)).into_iter().map(|late| late.pod.metadata.name.clone().unwrap()).collect();
    assert_eq!(late, [""; 0]);
    seen.deadlines.insert("n1".to_owned(), at(NOW + 30));
    let late: Vec<_> = deadline::late(&seen, at(NOW)).into_iter().map(|late| late.pod.metadata.name.clone().unwrap()).collect();
    assert_eq!(late, ["a"], "two leave at the same time, one in 26 s and one in 50 s");
}

#[test]
fn a_pod_whose_policy_asks_for_post_copy_leaves_by_it_where_it_can() {
    let under = |name: &str, class: Option<&str>| pod(name, &json!({"spec": {"runtimeClassName": class}}));
    let mut seen = seen(vec![under("a", Some("drover")), under("b", None)]);
    let gate = crate::api::node_profile::GateStatus { installed: true, message: String::new() };
    let profile = Some(crate::api::NodeProfileStatus { gate, post_copy: true, ..Default::default() });
    seen.nodes = vec![NodeView { name: "n1".into(), profile, ..NodeView::default() }];
    let asked = |seen: &Seen| -> Vec<_> {
        let spec_of = |action| match action {
            Action::Make(migration) => (migration.spec.post_copy, migration.annotations().contains_key(keys::POST_COPY_BY)),
            Action::Delete(_) => (false, false),
        };
        plan(seen, at(NOW)).into_iter().map(spec_of).collect()
    };
    assert_eq!(asked(&seen), [(false, false), (false, false)], "no policy asks for it");
    seen.policies[0].spec.post_copy = Some(true);
    assert_eq!(asked(&seen), [(true, true), (false, true)], "both leave");
}

/// The policy of `seen` with these fields.
fn limited(seen: &mut Seen, limits: &Value) {
    let mut policy = serde_json::to_value(&seen.policies[0]).unwrap();
    json_patch::merge(&mut policy["spec"]["evacuation"], limits);
    seen.policies = vec![serde_json::from_value(policy).unwrap()];
}

fn owned(name: &str, node: &str) -> Pod {
    let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "set", "controller": true}]);
    pod(name, &json!({"metadata": {"ownerReferences": owner}, "spec": {"nodeName": node}}))
}

#[test]
fn no_more_leave_at_once_than_their_policy_says() {
    let mut all = seen(vec![owned("a", "n1"), owned("b", "n2"), pod("c", &json!({"spec": {"nodeName": "n2"}}))]);
    all.cordoned.insert("n2".to_owned());
    assert_eq!(made(&all), ["a", "b", "c"], "two nodes, and no limit for a workload");
    limited(&mut all, &json!({"concurrentPerWorkload": 1}));
    assert_eq!(made(&all), ["a", "c"]);
    all.migrations = vec![evacuation(&all.pods[0].clone(), Trigger::Cordon, &json!({"phase": "Pending"}))];
    assert_eq!(made(&all), ["c"], "one that has just begun counts by its pod");
    // Its pod is gone where it keeps its name, and its Migration knows whose it was.
    let source = json!({"name": "a", "uid": "uid-a", "nodeName": "n1", "owner": {"kind": "ReplicaSet", "name": "web", "uid": "set"}});
    all.migrations = vec![evacuation(&all.pods.remove(0), Trigger::Cordon, &json!({"phase": "Restoring", "source": source}))];
    assert_eq!(made(&all), ["c"]);
    limited(&mut all, &json!({"concurrentPerWorkload": null, "concurrent": 2}));
    assert_eq!(made(&all), ["b"], "two in the cluster");
}

#[test]
fn a_pod_that_was_frozen_a_moment_ago_stays_for_a_while() {
    let all = |frozen: bool, ended: i64, known_as: &str| {
        let moved = pod("a", &json!({}));
        let mut seen = seen(vec![moved.clone()]);
        let mut phases = vec![json!({"phase": "Done", "startedAt": MicroTime(at(ended))})];
        phases.extend(frozen.then(|| json!({"phase": "Freezing", "startedAt": MicroTime(at(ended - 5))})));
        let copy = json!({"name": "a", "uid": "uid-a"});
        let mut status = json!({"phase": "Done", "outcome": "RolledBack", "phases": phases});
        status[known_as] = copy;
        if known_as == "source" {
            status["source"]["nodeName"] = "n1".into();
        }
        let mut migration = Migration::new("by-hand", crate::api::MigrationSpec::default());
        migration.metadata.namespace = moved.namespace();
        migration.status = Some(serde_json::from_value(status).unwrap());
        seen.migrations = vec![migration];
        seen
    };
    for known_as in ["source", "replacement", "fallback"] {
        assert_eq!(made(&all(true, NOW - 59, known_as)), [""; 0], "{known_as}");
        assert_eq!(made(&all(true, NOW - 60, known_as)), ["a"], "{known_as}");
        assert_eq!(made(&all(false, NOW - 1, known_as)), ["a"], "it was not frozen");
    }
    let mut at_once = all(true, NOW, "source");
    limited(&mut at_once, &json!({"coolDownSeconds": 0}));
    assert_eq!(made(&at_once), ["a"]);
}

#[test]
fn what_belongs_to_its_node_or_does_not_run_stays() {
    let owner =
        |kind: &str| json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": "o", "uid": "o", "controller": true}]}});
    let pods = vec![
        pod("daemon", &owner("DaemonSet")),
        pod("static", &json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}})),
        pod("finished", &json!({"status": {"phase": "Succeeded"}})),
        pod("going", &json!({"metadata": {"deletionTimestamp": "2026-11-28T00:00:00Z"}})),
        pod("set", &owner("StatefulSet")),
    ];
    assert_eq!(made(&seen(pods)), ["set"]);
    assert!(evacuation_of(&pod("set", &owner("StatefulSet")), "n1", Trigger::Cordon).unwrap().spec.keep_name);
}

#[test]
fn an_eviction_that_is_asked_for_no_more_lapses() {
    let marked = |seconds: i64| pod("a", &json!({"metadata": {"labels": {"drover.dev/eviction-requested": seconds.to_string()}}}));
    let not_cordoned = |pod| Seen { cordoned: BTreeSet::new(), ..seen(vec![pod]) };
    assert_eq!(made(&not_cordoned(marked(NOW - 59))), ["a"]);
    assert_eq!(made(&not_cordoned(marked(NOW - 60))), [""; 0]);
    assert_eq!(made(&Seen { policies: vec![policy(&json!(["Cordon"]), Unmovable::Evict)], ..not_cordoned(marked(NOW)) }), [""; 0]);
}

#[test]
fn uncordoning_calls_off_what_is_not_frozen_yet() {
    let one = pod("a", &json!({}));
    for (trigger, phase, called_off) in
        [(Trigger::Cordon, "Preparing", 1), (Trigger::Cordon, "Freezing", 0), (Trigger::Drain, "Preparing", 0), (Trigger::Cordon, "Restoring", 0)]
    {
        let migrations = vec![evacuation(&one, trigger, &json!({"phase": phase}))];
        let mut seen = Seen { migrations, ..seen(vec![one.clone()]) };
        assert_eq!(deleted(&seen), 0, "{phase}");
        seen.cordoned.clear();
        assert_eq!(deleted(&seen), called_off, "{trigger:?} {phase}");
    }
}

#[test]
fn what_has_failed_is_tried_again_later_or_when_the_node_is_cordoned_anew() {
    let one = pod("a", &json!({}));
    let with = |second| Seen { migrations: vec![evacuation(&one, Trigger::Cordon, &ended("Failed", second))], ..seen(vec![one.clone()]) };
    assert_eq!((made(&with(NOW - 599)).len(), deleted(&with(NOW - 599))), (0, 0));
    assert_eq!(deleted(&with(NOW - 600)), 1);
    assert_eq!(deleted(&Seen { cordoned: BTreeSet::new(), ..with(NOW) }), 1);
    let moved = Seen { migrations: vec![evacuation(&one, Trigger::Cordon, &ended("Migrated", NOW))], cordoned: BTreeSet::new(), ..seen(vec![]) };
    assert_eq!(deleted(&moved), 0, "its record stays");
}

fn world(unmovable: Unmovable, migrations: Vec<Migration>) -> World {
    let mut world = World::unseen(at(NOW));
    world.policies = vec![policy(&json!(["Drain"]), unmovable)];
    world.migrations = migrations;
    world.facts.nodes = ["n1", "n2"].map(|name| NodeView { name: name.into(), cordoned: name == "n1", ..NodeView::default() }).into();
    world
}

#[test]
fn an_eviction_waits_while_the_pod_moves_and_is_written_down_once_in_a_while() {
    let answer = |pod: &Pod, migrations| judge(pod, &world(Unmovable::Evict, migrations), at(NOW));
    let Eviction::Later { message, mark: true } = answer(&pod("a", &json!({})), vec![]) else { panic!("it must wait") };
    assert!(message.starts_with("Eviction triggered evacuation of pod shop/a"), "{message}");
    let marked = |ago: i64| pod("a", &json!({"metadata": {"labels": {"drover.dev/eviction-requested": (NOW - ago).to_string()}}}));
    assert!(matches!(answer(&marked(20), vec![]), Eviction::Later { mark: false, .. }));
    assert!(matches!(answer(&marked(21), vec![]), Eviction::Later { mark: true, .. }));
    let one = pod("a", &json!({}));
    let moving = evacuation(&one, Trigger::Drain, &json!({"phase": "Transferring", "source": {"name": "a", "uid": "uid-a", "nodeName": "n1"}}));
    assert!(matches!(answer(&one, vec![moving]), Eviction::Later { message, mark: false } if message.contains("Transferring")));
    assert_eq!(answer(&pod("d", &json!({"status": {"phase": "Succeeded"}})), vec![]), Eviction::Allow);
}

#[test]
fn what_cannot_be_moved_is_evicted_or_stays_as_the_policy_says() {
    let one = pod("a", &json!({}));
    let failed = || vec![evacuation(&one, Trigger::Drain, &ended("Failed", NOW - 1))];
    assert_eq!(judge(&one, &world(Unmovable::Evict, failed()), at(NOW)), Eviction::Allow);
    let Eviction::Later { message, mark: false } = judge(&one, &world(Unmovable::Refuse, failed()), at(NOW)) else { panic!("it must stay") };
    assert!(message.contains("spec.hostPID is set"), "{message}");
}

#[test]
fn a_pod_of_no_policy_is_evicted_as_usual_unless_it_may_be_the_only_copy_left() {
    let one = pod("a", &json!({}));
    let judged = |phase: &str| {
        let mut migration = migration_to(keys::AUTO, "by-hand", "a", false).unwrap();
        migration.metadata.namespace = Some("shop".into());
        migration.status = serde_json::from_value(json!({"phase": phase, "source": {"name": "a", "uid": "uid-a", "nodeName": "n1"}})).unwrap();
        judge(&one, &World { policies: vec![], ..world(Unmovable::Evict, vec![migration]) }, at(NOW))
    };
    assert_eq!(judged("Transferring"), Eviction::Allow);
    assert!(matches!(judged("Restoring"), Eviction::Later { .. }));
    assert_eq!(judge(&one, &World { policies: vec![], ..world(Unmovable::Evict, vec![]) }, at(NOW)), Eviction::Allow);
}

#[test]
fn a_pod_that_has_come_under_its_old_name_is_spared() {
    let judged = |node: &str, uid: &str, second: i64| {
        let mut migration = migration_to(keys::AUTO, "m", "db-0", true).unwrap();
        migration.metadata.namespace = Some("shop".into());
        let mut status = ended("Migrated", second);
        json_patch::merge(&mut status, &json!({"destination": {"nodeName": "n2"}, "replacement": {"name": "db-0", "uid": uid}}));
        migration.status = Some(serde_json::from_value(status).unwrap());
        judge(&pod("db-0", &json!({"spec": {"nodeName": node}})), &world(Unmovable::Evict, vec![migration]), at(NOW))
    };
    let Eviction::Gone(message) = judged("n2", "uid-db-0", NOW - 299) else { panic!("it is spared") };
    assert!(message.contains("not found") && message.contains("node n2"), "{message}");
    assert!(matches!(judged("n2", "uid-db-0", NOW - 300), Eviction::Later { .. }), "a real eviction of it");
    assert!(matches!(judged("n1", "uid-db-0", NOW), Eviction::Later { .. }), "its new node is cordoned too");
    assert!(matches!(judged("n2", "another", NOW), Eviction::Later { .. }));
}
