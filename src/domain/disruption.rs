//! Disruption budgets: a frozen pod serves nobody, so it counts as disrupted until its migration ends.
//!
//! A disruption is taken as the eviction API takes one (`checkAndDecrement` of kube-apiserver's eviction subresource): compare-and-swap on the budget's
//! status, `disruptionsAllowed` less one and the pod's name in `disruptedPods`. The disruption controller then leaves that pod out of those that are healthy,
//! though it is still Ready, for 2 minutes (`DeletionTimeout` of kube-controller-manager), so the entry is renewed as long as the migration lasts.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::Pod,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    ResourceExt as _,
    core::{Selector, SelectorExt as _},
};

use super::{migration::age, preflight::Blocker};

/// Half of the time after which the disruption controller takes a pod for one that was not deleted after all.
const RENEW_AFTER: Duration = Duration::from_mins(1);

/// What stands between a pod and its freeze, or does no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disruption {
    /// No budget speaks of the pod.
    Free,
    /// It was taken from this budget; `stale`: so long ago that it should be renewed.
    Taken {
        /// Name of the budget.
        budget: String,
        /// Whether it would lapse soon.
        stale: bool,
    },
    /// This budget allows one.
    Allowed {
        /// Name of the budget.
        budget: String,
    },
    /// Not now, for this reason.
    Refused(String),
}

/// The budgets, of those of the pod's namespace, that speak of it. One without a selector selects nothing, an empty selector selects all.
pub fn concerning<'a>(pod: &'a Pod, budgets: &'a [PodDisruptionBudget]) -> impl Iterator<Item = &'a PodDisruptionBudget> {
    budgets.iter().filter(|budget| {
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.clone());
        // A selector that cannot be parsed is one that the API server would not have taken.
        selector.is_some_and(|selector| Selector::try_from(selector).is_ok_and(|selector| selector.matches(pod.labels())))
    })
}

/// Whether a pod may be disrupted, or is already.
#[must_use]
pub fn disruption(pod: &Pod, budgets: &[PodDisruptionBudget], now: Timestamp) -> Disruption {
    let mut concerning = concerning(pod, budgets);
    let Some(budget) = concerning.next() else { return Disruption::Free };
    let name = budget.name_any();
    let status = budget.status.clone().unwrap_or_default();
    if let Some(since) = disrupted_since(&status, &pod.name_any()) {
        return Disruption::Taken { budget: name, stale: age(since, now) >= RENEW_AFTER };
    }
    if let Some(other) = concerning.next() {
        return Disruption::Refused(format!("{name} and {} both speak of the pod, and only one can be asked", other.name_any()));
    }
    if status.observed_generation < budget.metadata.generation {
        return Disruption::Refused(format!("the disruption controller has not looked at PodDisruptionBudget {name} yet"));
    }
    if !allows(&status) {
        let (healthy, wanted) = (status.current_healthy.unwrap_or_default(), status.desired_healthy.unwrap_or_default());
        return Disruption::Refused(format!("PodDisruptionBudget {name} allows no disruption now ({healthy} pods are healthy, {wanted} must be)"));
    }
    Disruption::Allowed { budget: name }
}

/// Why a pod can never be frozen under its budgets as they are, whenever it is tried.
#[must_use]
pub fn blocker(pod: &Pod, budgets: &[PodDisruptionBudget]) -> Option<Blocker> {
    let concerning: Vec<_> = concerning(pod, budgets).collect();
    let field = "metadata.labels";
    if let [one, other, ..] = concerning.as_slice() {
        let message =
            format!("PodDisruptionBudgets {} and {} both select the pod, which allows no disruption of it", one.name_any(), other.name_any());
        return Some(Blocker::new(field, message, "let one of them select it"));
    }
    let budget = concerning.first()?;
    let status = budget.status.as_ref().filter(|status| status.observed_generation >= budget.metadata.generation)?;
    let (expected, desired) = (status.expected_pods.filter(|pods| *pods > 0)?, status.desired_healthy?);
    (desired >= expected).then(|| {
        let name = budget.name_any();
        let message =
            format!("PodDisruptionBudget {name} never allows a disruption ({desired} of {expected} pods must be healthy), and a freeze is one");
        Blocker::new(field, message, "add a replica, or let the budget allow one disruption while the pod is moved")
    })
}

/// The status of a budget once a disruption of the pod was taken from it, or renewed.
///
/// # Errors
/// Why none can be taken.
pub fn take(budget: &PodDisruptionBudget, pod: &str, now: Timestamp) -> Result<PodDisruptionBudgetStatus, String> {
    let mut status = budget.status.clone().unwrap_or_default();
    if disrupted_since(&status, pod).is_none() {
        let Some(allowed) = status.disruptions_allowed.filter(|_| allows(&status)) else {
            return Err(format!("PodDisruptionBudget {} allows no disruption any more", budget.name_any()));
        };
        status.disruptions_allowed = Some(allowed - 1);
    }
    status.disrupted_pods.get_or_insert_with(BTreeMap::new).insert(pod.to_owned(), Time(now));
    Ok(status)
}

/// The status of a budget once the pod counts again; none where it did all the time.
#[must_use]
pub fn give_back(budget: &PodDisruptionBudget, pod: &str) -> Option<PodDisruptionBudgetStatus> {
    let mut status = budget.status.clone()?;
    // How many are allowed then is the controller's to count, which looks at every change.
    status.disrupted_pods.as_mut()?.remove(pod)?;
    Some(status)
}

fn allows(status: &PodDisruptionBudgetStatus) -> bool {
    status.disruptions_allowed.is_some_and(|allowed| allowed > 0)
}

fn disrupted_since(status: &PodDisruptionBudgetStatus, pod: &str) -> Option<Timestamp> {
    status.disrupted_pods.as_ref()?.get(pod).map(|since| since.0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "db-0", "namespace": "d", "labels": {"app": "db", "tier": "data"}}})).unwrap()
    }

    fn budget(name: &str, selector: &Value, status: &Value) -> PodDisruptionBudget {
        let spec = if selector.is_null() { json!({}) } else { json!({"selector": selector}) };
        serde_json::from_value(json!({"metadata": {"name": name, "generation": 2}, "spec": spec, "status": status})).unwrap()
    }

    fn counted(allowed: i32, healthy: i32, desired: i32, expected: i32) -> Value {
        json!({"observedGeneration": 2, "disruptionsAllowed": allowed, "currentHealthy": healthy, "desiredHealthy": desired, "expectedPods": expected})
    }

    fn db(status: &Value) -> PodDisruptionBudget {
        budget("db", &json!({"matchLabels": {"app": "db"}}), status)
    }

    #[test]
    fn only_budgets_that_select_the_pod_are_asked() {
        let (none, all) = (budget("none", &Value::Null, &counted(0, 1, 1, 1)), budget("all", &json!({}), &counted(1, 2, 1, 2)));
        let other = budget("other", &json!({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["data"]}]}), &counted(0, 1, 1, 1));
        assert_eq!(disruption(&pod(), &[none.clone(), other.clone()], at(0)), Disruption::Free);
        assert_eq!(disruption(&pod(), &[none, other, all], at(0)), Disruption::Allowed { budget: "all".into() });
    }

    #[test]
    fn what_the_budget_does_not_allow_now_is_waited_for() {
        let Disruption::Refused(why) = disruption(&pod(), &[db(&counted(0, 2, 2, 3))], at(0)) else { panic!("it must be refused") };
        assert_eq!(why, "PodDisruptionBudget db allows no disruption now (2 pods are healthy, 2 must be)");
        assert_eq!(blocker(&pod(), &[db(&counted(0, 2, 2, 3))]), None, "another look may find one");
        let unseen = budget(
            "db",
            &json!({}),
            &json!({"observedGeneration": 1, "disruptionsAllowed": 5, "currentHealthy": 9, "desiredHealthy": 1, "expectedPods": 9}),
        );
        assert!(matches!(disruption(&pod(), &[unseen], at(0)), Disruption::Refused(why) if why.contains("has not looked")));
    }

    #[test]
    fn what_it_never_allows_is_refused_before_anything_is_touched() {
        let refused = blocker(&pod(), &[db(&counted(0, 1, 1, 1))]).unwrap().to_string();
        assert!(refused.contains("PodDisruptionBudget db never allows a disruption (1 of 1 pods must be healthy)"), "{refused}");
        let refused = blocker(&pod(), &[db(&counted(1, 2, 1, 2)), budget("all", &json!({}), &counted(1, 2, 1, 2))]).unwrap().to_string();
        assert!(refused.contains("db and all both select the pod"), "{refused}");
    }

    #[test]
    fn a_disruption_is_taken_once_renewed_and_given_back() {
        let mut budget = db(&counted(1, 3, 2, 3));
        budget.status = Some(take(&budget, "db-0", at(0)).unwrap());
        assert_eq!(budget.status.as_ref().unwrap().disruptions_allowed, Some(0));
        assert_eq!(disruption(&pod(), &[budget.clone()], at(59)), Disruption::Taken { budget: "db".into(), stale: false });
        assert_eq!(disruption(&pod(), &[budget.clone()], at(60)), Disruption::Taken { budget: "db".into(), stale: true });
        assert!(take(&budget, "db-1", at(60)).unwrap_err().contains("any more"));
        budget.status = Some(take(&budget, "db-0", at(60)).unwrap());
        assert_eq!(budget.status.as_ref().unwrap().disruptions_allowed, Some(0), "a renewal takes no second one");
        assert_eq!(disruption(&pod(), &[budget.clone()], at(61)), Disruption::Taken { budget: "db".into(), stale: false });
        budget.status = give_back(&budget, "db-0");
        assert_eq!(give_back(&budget, "db-0"), None);
        assert!(matches!(disruption(&pod(), &[budget], at(62)), Disruption::Refused(_)), "the controller has not counted yet");
    }
}
