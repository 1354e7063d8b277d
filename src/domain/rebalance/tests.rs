//! Which pods leave, and that none comes back.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use serde_json::{Value, json};

use super::*;
use crate::api::{MigrationPolicy, MigrationSpec, node_profile::PodUsage};

const NOW: i64 = 10_000;
const SETTINGS: Settings = Settings { cpu_percent: 60, memory_percent: 70, window: Duration::from_mins(5), most_pods: 5 };
const GIB: u64 = 1 << 30;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A node of 4 CPUs and 8 GiB, and what its pods use: name, millis, bytes.
fn node(name: &str, pods: &[(&str, u64, u64)]) -> NodeLoad {
    let usage = |(name, cpu_millis, memory_bytes): &(&str, u64, u64)| PodUsage {
        namespace: "shop".into(),
        name: (*name).into(),
        cpu_millis: *cpu_millis,
        memory_bytes: *memory_bytes,
    };
    NodeLoad {
        name: name.into(),
        takes_pods: true,
        allocatable: Amount { cpu_millis: 4000, memory_bytes: 8 * GIB },
        usage: NodeUsage { observed_at: Time(at(NOW)), pods: pods.iter().map(usage).collect() },
    }
}

fn pod(name: &str, node: &str) -> Pod {
    let pod = json!({"metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": {"moves": "yes"}},
        "spec": {"nodeName": node, "containers": []}, "status": {"phase": "Running"}});
    serde_json::from_value(pod).unwrap()
}

fn policy(triggers: &Value) -> MigrationPolicy {
    let spec = json!({"podSelector": {"matchLabels": {"moves": "yes"}}, "evacuation": {"triggers": triggers}});
    serde_json::from_value(json!({"apiVersion": "drover.dev/v1alpha1", "kind": "MigrationPolicy", "metadata": {"name": "p"}, "spec": spec})).unwrap()
}

/// n1 with three pods, 65 % of its CPU; n2 with little to do.
fn seen() -> Seen {
    Seen {
        nodes: vec![node("n1", &[("busy", 1400, GIB), ("brisk", 1000, GIB), ("idle", 200, GIB)]), node("n2", &[("other", 300, GIB)])],
        cluster: evacuation::Seen {
            pods: ["idle", "brisk", "busy"].map(|name| pod(name, "n1")).into(),
            policies: vec![policy(&json!(["Load"]))],
            ..evacuation::Seen::default()
        },
    }
}

/// n1, from this moment on.
fn overloaded(since: i64) -> [Overloaded; 1] {
    [Overloaded { node: "n1".into(), since: at(since) }]
}

fn moved(seen: &Seen) -> Vec<(String, String)> {
    plan(&overloaded(0), seen, &SETTINGS, at(NOW)).into_iter().map(|it| (it.migration.spec.pod_name.unwrap(), it.to)).collect()
}

fn to(pod: &str, node: &str) -> (String, String) {
    (pod.to_owned(), node.to_owned())
}

#[test]
fn a_node_is_overloaded_once_it_was_so_for_the_whole_window() {
    let mut history = History::default();
    let mut over = |second: i64, millis: u64| {
        let mut busy = node("n1", &[("busy", millis, 0)]);
        busy.usage.observed_at = Time(at(second));
        history.note(&[busy], SETTINGS.window);
        history.overloaded(&SETTINGS, at(second)).len()
    };
    assert_eq!((over(0, 3000), over(150, 3000), over(299, 3000)), (0, 0, 0));
    assert_eq!(over(300, 3000), 1);
    assert_eq!(over(330, 2400), 0, "60 % is not over 60 %");
    assert_eq!((over(360, 3000), over(500, 3000), over(629, 3000)), (0, 0, 0), "it began anew");
    assert_eq!(over(661, 3000), 1);
    assert!(history.overloaded(&SETTINGS, at(661 + 120)).is_empty(), "its agent is silent");
    history.note(&[], SETTINGS.window);
    assert!(history.0.is_empty(), "its node is gone");
}

#[test]
fn one_threshold_must_have_been_passed_all_the_time() {
    let mut history = History::default();
    for (second, cpu, memory) in [(0, 3000, GIB), (150, 100, 7 * GIB), (300, 3000, GIB)] {
        let mut node = node("n1", &[("p", cpu, memory)]);
        node.usage.observed_at = Time(at(second));
        history.note(&[node], SETTINGS.window);
    }
    assert!(history.overloaded(&SETTINGS, at(300)).is_empty());
}

#[test]
fn the_heaviest_pod_leaves_and_no_more_than_needed() {
    let seen = seen();
    assert_eq!(moved(&seen), [to("busy", "n2")], "30 % are left on n1");
    let proposal = plan(&overloaded(0), &seen, &SETTINGS, at(NOW)).remove(0);
    assert!(
        proposal.why.contains("node n1 is at 65 % of CPU, 37 % of memory (thresholds 60 % of CPU, 70 % of memory), node n2 has room"),
        "{}",
        proposal.why
    );
    assert_eq!(proposal.migration.spec.destination.node_name.as_deref(), Some("n2"));
    assert!(plan(&[], &seen, &SETTINGS, at(NOW)).is_empty());
}

#[test]
fn a_pod_goes_only_where_its_arrival_is_no_reason_to_leave_again() {
    let mut seen = seen();
    // With the busy one 35 + 21 = 56 % of n2's CPU would be in use, and 55 are allowed; the brisk one fits, and is not enough by itself.
    seen.nodes[1] = node("n2", &[("other", 850, GIB)]);
    assert_eq!(moved(&seen), [to("brisk", "n2")], "40 % are left on n1");
    seen.nodes[1] = node("n2", &[("other", 2100, GIB)]);
    assert_eq!(moved(&seen), [], "and what uses next to nothing would not help: 57 %");
    seen.nodes.push(node("n3", &[]));
    assert_eq!(moved(&seen), [to("busy", "n3")]);
    seen.nodes[2].takes_pods = false;
    assert_eq!(moved(&seen), []);
    seen.nodes[2].takes_pods = true;
    seen.nodes[2].usage.observed_at = Time(at(NOW - 120));
    assert_eq!(moved(&seen), [], "nobody knows what it has to do");
}

#[test]
fn what_the_node_is_short_of_decides() {
    let mut seen = seen();
    seen.nodes[0] = node("n1", &[("busy", 1400, GIB), ("idle", 10, 3 * GIB), ("brisk", 100, 2 * GIB)]);
    assert_eq!(moved(&seen), [to("idle", "n2")], "75 % of the memory");
}

#[test]
fn so_many_pods_leave_at_once_and_no_more() {
    let mut seen = seen();
    let names = ["a", "b", "c", "d", "e", "f", "g"];
    seen.nodes[0] = node("n1", &names.map(|name| (name, 570, 0)));
    seen.nodes.push(node("n3", &[]));
    seen.cluster.pods = names.map(|name| pod(name, "n1")).into();
    assert_eq!(moved(&seen), [to("a", "n3"), to("b", "n2"), to("c", "n3")], "99 % become 57 %, and each goes where there is most room by then");
    let few = Settings { most_pods: 2, ..SETTINGS };
    assert_eq!(plan(&overloaded(0), &seen, &few, at(NOW)).len(), 2);
}

#[test]
fn only_pods_whose_policy_says_so_leave() {
    let mut seen = seen();
    seen.cluster.policies = vec![policy(&json!(["Cordon", "Drain"]))];
    assert_eq!(moved(&seen), []);
    seen.cluster.policies = vec![policy(&json!(["Load"]))];
    seen.cluster.pods[2].metadata.labels = None;
    assert_eq!(moved(&seen), [to("brisk", "n2")]);
}

#[test]
fn a_node_that_a_migration_changes_and_a_pod_that_has_just_moved_are_left_alone() {
    let ended = |second: i64| {
        json!({"phase": "Done", "outcome": "Migrated", "replacement": {"name": "busy", "uid": "uid-busy"},
            "phases": [{"phase": "Freezing", "startedAt": MicroTime(at(second))}, {"phase": "Done", "startedAt": MicroTime(at(second))}]})
    };
    let with = |status: &Value| {
        let mut migration = Migration::new("m", MigrationSpec { pod_name: Some("x".into()), ..MigrationSpec::default() });
        migration.metadata.namespace = Some("shop".into());
        migration.status = Some(serde_json::from_value(status.clone()).unwrap());
        let mut seen = seen();
        seen.cluster.migrations = vec![migration];
        seen
    };
    assert_eq!(moved(&with(&json!({"phase": "Preparing", "source": {"name": "x", "uid": "x", "nodeName": "n1"}}))), []);
    assert_eq!(moved(&with(&json!({"phase": "Preparing", "destination": {"nodeName": "n1"}}))), []);
    assert_eq!(moved(&with(&ended(NOW - 299))), [to("brisk", "n2")], "for the window, though its policy would let it go after a minute");
    assert_eq!(moved(&with(&ended(NOW - 300))), [to("busy", "n2")]);
}

#[test]
fn what_was_reported_before_a_migration_ended_moves_no_further_pod() {
    let ended = |end: &str, frozen: bool| {
        let mut phases = vec![json!({"phase": "Done", "startedAt": MicroTime(at(NOW - 60))})];
        phases.extend(frozen.then(|| json!({"phase": "Freezing", "startedAt": MicroTime(at(NOW - 65))})));
        let mut migration = Migration::new("m", MigrationSpec::default());
        let mut status = json!({"phase": "Done", "outcome": "Migrated", "phases": phases});
        status[end] = json!({"name": "x", "uid": "x", "nodeName": "n1"});
        migration.status = Some(serde_json::from_value(status).unwrap());
        let mut seen = seen();
        seen.cluster.migrations = vec![migration];
        seen
    };
    let moves = |seen: &Seen, since: i64| plan(&overloaded(since), seen, &SETTINGS, at(NOW)).len();
    for end in ["source", "destination"] {
        assert_eq!(moves(&ended(end, true), NOW - 61), 0, "{end}");
        assert_eq!(moves(&ended(end, true), NOW - 59), 1, "{end}: it is still too much");
        assert_eq!(moves(&ended(end, false), NOW - 61), 1, "{end}: nothing was moved");
    }
}
