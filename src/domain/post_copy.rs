//! Post-copy by policy (R19): a MigrationPolicy is the consent of whoever writes it, for the pods that it selects.
//!
//! Nobody who is moved by Drover itself waits for a person to correct a Migration, so what cannot be a post-copy is moved as ever, and the Migration says why.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::{
    keys, policy,
    preflight::{Facts, post_copy::impossible},
};
use crate::api::{Migration, MigrationPolicy, migration::Lane};

/// Whether any policy asks for it at all: where none does, nobody needs to be looked at.
#[must_use]
pub fn is_asked_for(policies: &[MigrationPolicy]) -> bool {
    policies.iter().any(|policy| policy.spec.post_copy == Some(true))
}

/// The policy that asks for post-copy for a pod: the first, by name, that selects it and says anything about it. The pod itself may speak against it.
#[must_use]
pub fn asked_by<'p>(policies: &'p [MigrationPolicy], namespace: &BTreeMap<String, String>, pod: &Pod) -> Option<&'p MigrationPolicy> {
    let speaks = policies.iter().filter(|policy| policy.spec.post_copy.is_some() && policy::selects(policy, namespace, pod));
    let first = speaks.min_by_key(|policy| policy.name_any())?;
    let is_declined = pod.annotations().get(keys::POST_COPY).is_some_and(|value| value != "true");
    (first.spec.post_copy == Some(true) && !is_declined).then_some(first)
}

/// Makes a post-copy of a Migration that Drover makes for a pod, where a policy asks for that and nothing is in its way.
pub fn by_policy(migration: &mut Migration, pod: &Pod, policies: &[MigrationPolicy], namespace: &BTreeMap<String, String>, facts: &Facts) {
    let Some(policy) = asked_by(policies, namespace, pod) else { return };
    let mut asking = migration.clone();
    (asking.spec.post_copy, asking.spec.lane) = (true, Lane::Runtime);
    let why_not: Vec<_> = impossible(&asking, pod, facts).into_iter().map(|blocker| format!("{}: {}", blocker.field, blocker.message)).collect();
    let mut said = format!("MigrationPolicy {} asks for it", policy.name_any());
    if why_not.is_empty() {
        *migration = asking;
    } else {
        said = format!("{said}, and it is not possible: {}", why_not.join("; "));
    }
    migration.annotations_mut().insert(keys::POST_COPY_BY.to_owned(), said);
}

/// What is to be told of a Migration that is no post-copy though a policy asks for one.
#[must_use]
pub fn fallen_back(migration: &Migration) -> Option<String> {
    let said = migration.annotations().get(keys::POST_COPY_BY).filter(|_| !migration.spec.post_copy)?;
    let (namespace, pod) = (migration.namespace().unwrap_or_default(), migration.spec.pod_name.clone().unwrap_or_default());
    Some(format!("pod {namespace}/{pod} moves without post-copy: {said}"))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use kube::ResourceExt;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        api::{
            NodeProfileStatus,
            node_profile::{GateStatus, LaneStatus},
        },
        domain::{evacuation::evacuation_of, preflight::NodeView},
    };

    fn policy(name: &str, spec: &Value) -> MigrationPolicy {
        serde_json::from_value(json!({"apiVersion": "drover.dev/v1alpha1", "kind": "MigrationPolicy", "metadata": {"name": name}, "spec": spec}))
            .unwrap()
    }

    fn pod(more: &Value) -> Pod {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "shop", "uid": "u", "labels": {"app": "db"}},
            "spec": {"nodeName": "n1", "runtimeClassName": "drover", "containers": [{"name": "c", "image": "i"}]}});
        json_patch::merge(&mut pod, more);
        serde_json::from_value(pod).unwrap()
    }

    fn facts(gated: bool) -> Facts {
        let node = |name: &str| NodeView {
            name: name.into(),
            ready: true,
            profile: Some(NodeProfileStatus {
                gate: GateStatus { installed: gated, message: String::new() },
                lanes: vec![LaneStatus { name: "runtime".into(), available: true, message: String::new() }],
                free_bytes: 1 << 30,
                observed_at: Some(Time(jiff::Timestamp::UNIX_EPOCH)),
                post_copy: true,
                ..NodeProfileStatus::default()
            }),
            ..NodeView::default()
        };
        let now = jiff::Timestamp::from_second(1).unwrap();
        Facts { nodes: vec![node("n1"), node("n2"), node("n3")], lane: Lane::Runtime, now, ..Facts::default() }
    }

    fn made(pod: &Pod, facts: &Facts, policies: &[MigrationPolicy]) -> Migration {
        let mut migration = evacuation_of(pod, "n1", crate::api::policy::Trigger::Cordon).unwrap();
        by_policy(&mut migration, pod, policies, &BTreeMap::new(), facts);
        migration
    }

    #[test]
    fn the_first_policy_that_speaks_of_it_counts_and_the_pod_may_decline() {
        let policies = [
            policy("c", &json!({"postCopy": true})),
            policy("b", &json!({"podSelector": {"matchLabels": {"app": "web"}}, "postCopy": false})),
            policy("a", &json!({})),
        ];
        let asks = |policies: &[MigrationPolicy], more: &Value| asked_by(policies, &BTreeMap::new(), &pod(more)).map(ResourceExt::name_any);
        assert_eq!(asks(&policies, &json!({})).as_deref(), Some("c"));
        assert_eq!(asks(&policies, &json!({"metadata": {"labels": {"app": "web"}}})), None, "an earlier one says no");
        assert_eq!(asks(&policies[1..], &json!({})), None, "none says anything of it");
        for (value, expected) in [("true", Some("c")), ("false", None), ("", None)] {
            assert_eq!(asks(&policies, &json!({"metadata": {"annotations": {"drover.dev/post-copy": value}}})).as_deref(), expected, "{value:?}");
        }
        assert!(is_asked_for(&policies) && !is_asked_for(&policies[1..]));
    }

    #[test]
    fn what_can_be_a_post_copy_is_one_and_says_by_whom() {
        let policies = [policy("fast", &json!({"postCopy": true}))];
        let migration = made(&pod(&json!({})), &facts(true), &policies);
        assert_eq!((migration.spec.post_copy, migration.spec.lane, migration.spec.keep_name), (true, Lane::Runtime, false));
        assert_eq!(migration.annotations()[keys::POST_COPY_BY], "MigrationPolicy fast asks for it");
        assert_eq!(fallen_back(&migration), None);
        let untouched = made(&pod(&json!({})), &facts(true), &[policy("slow", &json!({"postCopy": false}))]);
        assert_eq!((untouched.spec.post_copy, untouched.spec.lane), (false, Lane::Auto));
        assert!(!untouched.annotations().contains_key(keys::POST_COPY_BY));
    }

    #[test]
    fn what_cannot_be_one_is_moved_as_ever_and_says_why() {
        let policies = [policy("fast", &json!({"postCopy": true}))];
        let probe = json!({"containers": [{"name": "c", "image": "i", "livenessProbe": {"httpGet": {"port": 80}}}]});
        let set = json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "s", "controller": true}]);
        for (more, gated, why) in [
            (json!({"spec": {"runtimeClassName": null}}), true, "does not run under the RuntimeClass drover"),
            (json!({"spec": probe}), true, "spec.containers[c].livenessProbe"),
            (json!({"metadata": {"ownerReferences": set}}), true, "keeps its name"),
            (json!({}), false, "node n1 has no gate"),
            (json!({"spec": {"nodeName": "n9"}}), true, "nothing is known of the pod's node"),
        ] {
            let migration = made(&pod(&more), &facts(gated), &policies);
            assert_eq!((migration.spec.post_copy, migration.spec.lane), (false, Lane::Auto), "{why}");
            let told = fallen_back(&migration).unwrap();
            assert!(told.starts_with("pod shop/p moves without post-copy: MigrationPolicy fast asks for it, and it is not possible: "), "{told}");
            assert!(told.contains(why), "{told}");
        }
    }

    #[test]
    fn while_agents_are_upgraded_no_node_is_lost_to_the_scheduler() {
        let policies = [policy("fast", &json!({"postCopy": true}))];
        let with = |change: fn(&mut NodeProfileStatus)| {
            let mut facts = facts(true);
            change(facts.nodes[2].profile.as_mut().unwrap());
            made(&pod(&json!({})), &facts, &policies)
        };
        let old = with(|profile| profile.post_copy = false);
        assert!(!old.spec.post_copy && fallen_back(&old).unwrap().contains("the agent of node n3 does not say that it knows post-copy"));
        let elsewhere = with(|profile| {
            profile.post_copy = false;
            profile.lanes[0].available = false;
        });
        assert!(elsewhere.spec.post_copy, "n3 could not take the pod anyway: {elsewhere:?}");
    }
}
