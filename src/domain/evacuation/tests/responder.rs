//! Evictions of KEP-4563.

use super::*;
use crate::domain::evacuation::responder::{RESPONDER, Responder, answer};

/// The eviction of pod `a` in which Drover has this state, and has said this.
fn eviction(state: &str, said: &Value) -> EvictionIntent {
    let mut mine = json!({"name": RESPONDER, "startTime": "2026-11-28T15:00:00Z"});
    json_patch::merge(&mut mine, said);
    let status = json!({
        "targetResponders": [{"name": RESPONDER, "priority": 20000, "state": state}, {"name": "imperative-eviction.k8s.io/evictor", "priority": 100, "state": "Inactive"}],
        "responders": [mine, {"name": "imperative-eviction.k8s.io/evictor"}]
    });
    serde_json::from_value(json!({"apiVersion": "lifecycle.k8s.io/v1alpha1", "kind": "Eviction", "metadata": {"name": "e", "namespace": "shop"},
        "spec": {"target": {"pod": {"name": "a", "uid": "uid-a"}}}, "status": status}))
    .unwrap()
}

fn asked(state: &str) -> Seen {
    let policies = vec![policy(&json!(["EvictionRequest"]), Unmovable::Evict)];
    Seen { pods: vec![pod("a", &json!({})), pod("b", &json!({}))], policies, evictions: vec![eviction(state, &json!({}))], ..Seen::default() }
}

fn word(seen: &Seen) -> Responder {
    answer(&seen.evictions[0], seen, at(NOW)).unwrap()
}

/// Whether it is done, and that the message has these words.
fn says(seen: &Seen, words: &str) -> bool {
    let said = word(seen);
    let message = said.message.unwrap();
    assert!(message.contains(words), "{words:?} is not in {message:?}");
    said.completion_time.is_some()
}

#[test]
fn a_pod_moves_when_it_is_drovers_turn_and_the_others_stay() {
    assert_eq!(made(&asked("Active")), ["a"]);
    for state in ["Inactive", "Interrupted", "Canceled", "Completed"] {
        let seen = asked(state);
        assert_eq!((made(&seen), answer(&seen.evictions[0], &seen, at(NOW))), (vec![], None), "{state}");
    }
    let mut seen = asked("Active");
    seen.policies = vec![policy(&json!(["Cordon", "Drain", "Load"]), Unmovable::Evict)];
    assert_eq!(made(&seen), [""; 0]);
    assert!(says(&seen, "no MigrationPolicy selects this pod"), "the next responder may go on at once");
}

#[test]
fn an_eviction_that_is_called_off_calls_off_what_is_not_frozen_yet() {
    let mut seen = asked("Canceled");
    for (phase, called_off) in [("Preparing", 1), ("Freezing", 0)] {
        seen.migrations = vec![evacuation(&seen.pods[0], Trigger::EvictionRequest, &json!({"phase": phase}))];
        assert_eq!(deleted(&seen), called_off, "{phase}");
    }
    seen.evictions = vec![eviction("Active", &json!({}))];
    seen.migrations = vec![evacuation(&seen.pods[0], Trigger::EvictionRequest, &json!({"phase": "Preparing"}))];
    assert_eq!(deleted(&seen), 0);
}

#[test]
fn it_is_said_how_far_a_pod_is() {
    let mut seen = asked("Active");
    assert!(!says(&seen, "as soon as it is its turn"));
    let held = json!({"phase": "Restoring", "conditions": [{"type": "Held", "status": "True", "reason": "InDoubt", "message": "look at n2",
        "lastTransitionTime": "2026-11-28T15:00:00Z"}]});
    seen.migrations = vec![evacuation(&seen.pods[0], Trigger::EvictionRequest, &held)];
    assert!(!says(&seen, "is in phase Restoring, held for InDoubt: look at n2"));
    seen.migrations = vec![evacuation(&seen.pods[0], Trigger::EvictionRequest, &ended("Failed", NOW))];
    assert!(says(&seen, "it may be evicted as usual: spec.hostPID is set"));
    seen.policies = vec![policy(&json!(["EvictionRequest"]), Unmovable::Refuse)];
    assert!(!says(&seen, "it stays"), "no other responder gets its turn as long as it is heard from");
    seen.migrations.clear();
    seen.pods[0] = pod(
        "a",
        &json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "d", "controller": true}]}}),
    );
    assert!(says(&seen, "do not move"));
    seen.pods[0] = pod("a", &json!({"metadata": {"uid": "another"}}));
    assert!(says(&seen, "not here any more"));
}

#[test]
fn it_says_nothing_twice_and_nothing_too_often() {
    let spoke = |ago: i64, message: &str| {
        let seen = asked("Active");
        let said = json!({"heartbeatTime": at(NOW - ago).to_string(), "message": message});
        answer(&eviction("Active", &said), &seen, at(NOW)).is_some()
    };
    let same = word(&asked("Active")).message.unwrap();
    assert!(!spoke(10, "another"), "20 s are asked for");
    assert!(spoke(20, "another"));
    assert!(!spoke(100, &same));
    assert!(spoke(120, &same), "a silent responder is passed over");
    let done = json!({"heartbeatTime": at(NOW - 500).to_string(), "completionTime": at(NOW - 500).to_string()});
    assert_eq!(answer(&eviction("Active", &done), &asked("Active"), at(NOW)), None);
}
