//! Which pods a MigrationPolicy speaks of.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::LabelSelector};
use kube::{
    ResourceExt as _,
    core::{Selector, SelectorExt as _},
};

use crate::api::{
    MigrationPolicy,
    policy::{Evacuation, Trigger},
};

/// Whether a policy selects a pod. A selector that cannot be read selects nothing: a policy never permits by mistake.
#[must_use]
pub fn selects(policy: &MigrationPolicy, namespace: &BTreeMap<String, String>, pod: &Pod) -> bool {
    matches(policy.spec.namespace_selector.as_ref(), namespace) && matches(policy.spec.pod_selector.as_ref(), pod.labels())
}

/// Whether labels are selected: all are where there is no selector, none where it cannot be read.
#[must_use]
pub fn matches(selector: Option<&LabelSelector>, labels: &BTreeMap<String, String>) -> bool {
    selector.is_none_or(|selector| Selector::try_from(selector.clone()).is_ok_and(|selector: Selector| selector.matches(labels)))
}

/// How a pod leaves its node on this occasion, if it does: the first policy, by name, that selects it and has the trigger.
#[must_use]
pub fn evacuation<'p>(policies: &'p [MigrationPolicy], namespace: &BTreeMap<String, String>, pod: &Pod, trigger: Trigger) -> Option<&'p Evacuation> {
    let fits = |policy: &&MigrationPolicy| policy.spec.evacuation.as_ref().is_some_and(|evacuation| evacuation.triggers.contains(&trigger));
    let chosen = policies.iter().filter(fits).filter(|policy| selects(policy, namespace, pod)).min_by_key(|policy| policy.name_any())?;
    chosen.spec.evacuation.as_ref()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn policy(name: &str, spec: &Value) -> MigrationPolicy {
        serde_json::from_value(json!({"apiVersion": "drover.dev/v1alpha1", "kind": "MigrationPolicy", "metadata": {"name": name}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn the_first_policy_that_selects_the_pod_and_has_the_trigger_counts() {
        let evacuation_of = |concurrent: u32, triggers: &Value| json!({"concurrentPerNode": concurrent, "triggers": triggers});
        let policies = [
            policy("c", &json!({"evacuation": evacuation_of(3, &json!(["Cordon", "Drain"]))})),
            policy("b", &json!({"podSelector": {"matchLabels": {"app": "db"}}, "evacuation": evacuation_of(2, &json!(["Cordon"]))})),
            policy("a", &json!({"namespaceSelector": {"matchLabels": {"team": "other"}}, "evacuation": evacuation_of(1, &json!(["Cordon"]))})),
        ];
        let pod = |app: &str| serde_json::from_value(json!({"metadata": {"name": "p", "labels": {"app": app}}})).unwrap();
        let namespace = BTreeMap::from([("team".to_owned(), "shop".to_owned())]);
        let limit = |app, trigger| evacuation(&policies, &namespace, &pod(app), trigger).map(|evacuation| evacuation.concurrent_per_node);
        assert_eq!((limit("db", Trigger::Cordon), limit("db", Trigger::Drain), limit("web", Trigger::Cordon)), (Some(2), Some(3), Some(3)));
        assert_eq!(evacuation(&policies[2..], &namespace, &pod("db"), Trigger::Cordon), None);
        assert_eq!(evacuation(&[policy("none", &json!({}))], &namespace, &pod("db"), Trigger::Cordon), None);
    }
}
