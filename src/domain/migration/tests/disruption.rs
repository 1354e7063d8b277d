//! A freeze is a disruption: it is taken before, and waited for where the budget allows none.

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::json;

use super::*;
use crate::domain::{disruption::take, permits::Permit};

impl Walk {
    pub(super) fn take_disruption(&mut self, name: &str) {
        let pod = self.observed.source.as_ref().unwrap().metadata.name.clone().unwrap();
        let budget = self.observed.budgets.iter_mut().find(|budget| budget.metadata.name.as_deref() == Some(name)).unwrap();
        budget.status = Some(take(budget, &pod, second(self.now)).unwrap());
    }

    fn allow(&mut self, disruptions: i32) {
        let budget: PodDisruptionBudget = serde_json::from_value(json!({
            "metadata": {"name": "all", "generation": 1}, "spec": {"selector": {}},
            "status": {"observedGeneration": 1, "disruptionsAllowed": disruptions, "currentHealthy": 2, "desiredHealthy": 2, "expectedPods": 3}
        }))
        .unwrap();
        self.observed.budgets = vec![budget];
    }
}

#[test]
fn nothing_is_frozen_before_the_budget_allows_a_disruption() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Preparing);
    walk.allow(0);
    walk.prepare();
    assert_eq!(walk.settle(), Phase::Preparing);
    assert!(walk.status().message.contains("PodDisruptionBudget all allows no disruption now"), "{}", walk.status().message);
    walk.allow(1);
    assert_eq!(walk.settle(), Phase::Freezing);
    let status = walk.observed.budgets[0].status.as_ref().unwrap();
    assert_eq!((status.disruptions_allowed, status.disrupted_pods.as_ref().map(|pods| pods.contains_key("p"))), (Some(0), Some(true)));
}

#[test]
fn a_budget_that_never_allows_one_ends_in_a_rollback_with_its_name() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Preparing);
    walk.allow(0);
    walk.prepare();
    walk.settle();
    walk.now = 601;
    walk.settle();
    assert_eq!(walk.status().verdict, Some(Verdict::Rollback));
    assert!(walk.status().message.contains("PodDisruptionBudget all"), "{}", walk.status().message);
}

#[test]
fn a_pod_waits_for_a_permit_and_takes_it_before_the_disruption() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Preparing);
    walk.allow(0);
    walk.observed.permit = Permit::Available;
    walk.prepare();
    assert_eq!((walk.settle(), &walk.observed.permit), (Phase::Preparing, &Permit::Available), "not taken for nothing");

    walk.allow(1);
    walk.observed.permit = Permit::Refused { holders: vec!["d/other".into()] };
    assert_eq!(walk.settle(), Phase::Preparing);
    assert!(walk.status().message.contains("waiting for a permit for node n2, where others are on their way: d/other"), "{}", walk.status().message);
    assert_eq!(walk.step().after, Some(std::time::Duration::from_secs(1)), "nobody tells of a permit that is given back");
    walk.observed.permit = Permit::Available;
    assert_eq!((walk.settle(), &walk.observed.permit), (Phase::Freezing, &Permit::Held));
    assert!(walk.status().message.is_empty());
}

/// The sandbox of the waiting pod came up at this second, as its kubelet's clock says.
fn sandbox_came_up(walk: &mut Walk, at: i64) {
    let conditions = json!([{"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": second(at).to_string()}]);
    walk.observed.replacement.as_mut().unwrap().status = serde_json::from_value(json!({"conditions": conditions})).unwrap();
}

#[test]
fn nothing_is_frozen_while_the_kubelet_would_be_slow_to_see_the_release() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Preparing);
    walk.observed.permit = Permit::Available;
    walk.prepare();
    walk.now = 21;
    sandbox_came_up(&mut walk, 19);
    assert_eq!((walk.settle(), &walk.observed.permit), (Phase::Preparing, &Permit::Available), "a permit is not taken for nothing");
    assert_eq!(walk.step().after, Some(std::time::Duration::from_secs(1)));
    walk.migration.status.as_mut().unwrap().estimated_freeze_millis = Some(1200);
    assert_eq!(walk.step().after, Some(std::time::Duration::from_millis(600)), "something passes between freeze and release");
    walk.now = 22;
    assert_eq!(walk.settle(), Phase::Freezing);
}

#[test]
fn a_kubelet_whose_clock_is_ahead_keeps_nobody_waiting() {
    let mut walk = Walk::new();
    walk.walk_to(Phase::Preparing);
    walk.prepare();
    walk.now = 20;
    sandbox_came_up(&mut walk, 3600);
    assert_eq!(walk.settle(), Phase::Freezing);
}
