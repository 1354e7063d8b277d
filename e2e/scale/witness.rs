//! What a watch has seen of the evacuations, and where a limit was exceeded. Every change of every Migration is judged, in the API server's order.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use drover::{
    api::{Migration, Outcome, Phase},
    domain::{evacuation::evacuates, keys},
};

use crate::load::Member;

/// What must never be exceeded.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub concurrent: u32,
    pub per_node: u32,
    pub per_workload: u32,
    pub per_budget: u32,
}

/// What has been seen so far.
pub struct Witness {
    limits: Limits,
    /// The pods before anything has moved, by UID.
    members: BTreeMap<String, Member>,
    /// Budget → UIDs of its pods that serve.
    available: BTreeMap<String, BTreeSet<String>>,
    /// Evacuations under way, by UID.
    active: BTreeMap<String, Evacuation>,
    /// UIDs of the pods that have moved.
    pub ended: BTreeSet<String>,
    /// Migrations that were refused before anything was touched: namespace, name, UID, why. A machine that is busy with something else brings that about.
    pub refused: BTreeSet<(String, String, String, String)>,
    /// The most that was seen at once: in the cluster, of a node, of a workload; and of a budget, frozen and not released.
    pub most: [u32; 4],
    pub faults: Vec<String>,
}

struct Evacuation {
    node: String,
    pod: String,
    /// Neither copy serves. From the release on the copy may, and then its budget allows the next freeze.
    is_frozen: bool,
}

impl Witness {
    /// Nothing was seen yet of the moves of these pods.
    pub fn new(limits: Limits, members: BTreeMap<String, Member>) -> Self {
        Self {
            limits,
            members,
            available: BTreeMap::new(),
            active: BTreeMap::new(),
            ended: BTreeSet::new(),
            refused: BTreeSet::new(),
            most: [0; 4],
            faults: vec![],
        }
    }

    /// A Migration was made or changed.
    pub fn sees(&mut self, migration: &Migration) {
        let Some(node) = evacuates(migration) else { return self.faults.push(format!("{} empties no node", migration.name_any())) };
        let uid = migration.uid().unwrap_or_default();
        let pod = migration.annotations().get(keys::POD_UID).cloned().unwrap_or_default();
        if migration.is_done() {
            self.active.remove(&uid);
            let status = migration.status.clone().unwrap_or_default();
            match status.outcome {
                Some(Outcome::Migrated) => {
                    self.ended.insert(pod);
                }
                Some(Outcome::Failed) => {
                    self.refused.insert((migration.namespace().unwrap_or_default(), migration.name_any(), uid, status.message));
                }
                other => self.faults.push(format!("{}: {other:?}: {}", migration.name_any(), status.message)),
            }
        } else {
            let is_frozen = (Phase::Freezing..Phase::Restoring).contains(&migration.phase());
            self.active.insert(uid, Evacuation { node: node.to_owned(), pod, is_frozen });
        }
        self.count();
    }

    /// A Migration was deleted: none is, within a day, unless it was refused or its node was uncordoned.
    pub fn misses(&mut self, migration: &Migration) {
        self.active.remove(&migration.uid().unwrap_or_default());
        if self.refused.iter().any(|(.., uid, _)| Some(uid) == migration.metadata.uid.as_ref()) {
            return;
        }
        self.faults.push(format!("{} was deleted", migration.name_any()));
    }

    /// A pod was made or changed since the nodes were cordoned, or before.
    pub fn sees_pod(&mut self, pod: &Pod) {
        let uid = pod.uid().unwrap_or_default();
        if !self.members.contains_key(&uid) && !pod.annotations().contains_key(keys::REPLACES) {
            // Once is enough: it changes many times.
            self.members.insert(uid.clone(), Member::default());
            self.faults.push(format!("pod {} was made anew, without the memory of another", pod.name_any()));
        }
        let Some(budget) = budget_of(pod) else { return };
        let serving = self.available.entry(budget).or_default();
        if serves(pod) {
            serving.insert(uid);
        } else if serving.remove(&uid) {
            self.judge_budget(pod);
        }
    }

    /// A pod is gone.
    pub fn misses_pod(&mut self, pod: &Pod) {
        let uid = pod.uid().unwrap_or_default();
        let Some(budget) = budget_of(pod) else { return };
        if self.available.get_mut(&budget).is_some_and(|serving| serving.remove(&uid)) {
            self.judge_budget(pod);
        }
    }

    /// After one less of its budget serves.
    fn judge_budget(&mut self, pod: &Pod) {
        let Some(budget) = budget_of(pod) else { return };
        let of_it = self.members.values().filter(|member| member.budget.as_ref() == Some(&budget)).count();
        let serving = self.available[&budget].len();
        if serving + (self.limits.per_budget as usize) < of_it {
            self.faults.push(format!("{serving} of {of_it} pods of {budget} serve, which lets {} be away", self.limits.per_budget));
        }
    }

    fn count(&mut self) {
        let (mut nodes, mut workloads, mut budgets) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for evacuation in self.active.values() {
            *nodes.entry(evacuation.node.as_str()).or_insert(0) += 1;
            let Some(member) = self.members.get(&evacuation.pod) else { continue };
            if !member.workload.is_empty() {
                *workloads.entry(member.workload.as_str()).or_insert(0) += 1;
            }
            if let Some(budget) = member.budget.as_deref().filter(|_| evacuation.is_frozen) {
                *budgets.entry(budget).or_insert(0) += 1;
            }
        }
        let all = BTreeMap::from([("the cluster", u32::try_from(self.active.len()).unwrap())]);
        let Limits { concurrent, per_node, per_workload, per_budget } = self.limits;
        let counted = [(all, concurrent), (nodes, per_node), (workloads, per_workload), (budgets, per_budget)];
        for (most, (of, limit)) in self.most.iter_mut().zip(counted) {
            for (name, count) in of {
                *most = count.max(*most);
                if count > limit {
                    self.faults.push(format!("{count} at once of {name}, which allows {limit}"));
                }
            }
        }
    }

    /// Every pod that was to leave has moved, once, and nothing was seen that must not be.
    pub fn assert_all_moved(&self, leaving: &BTreeSet<String>) {
        assert!(self.faults.is_empty(), "{} faults:\n{}", self.faults.len(), self.faults[..self.faults.len().min(20)].join("\n"));
        assert_eq!(&self.ended, leaving, "the pods that have moved are those that were to leave");
        assert_eq!(self.active.len(), 0);
    }
}

/// As the disruption controller counts.
fn serves(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none() && conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Its budget, with the namespace.
pub fn budget_of(pod: &Pod) -> Option<String> {
    pod.labels().get("budget").map(|budget| format!("{}/{budget}", pod.namespace().unwrap_or_default()))
}

mod tests {
    use super::{BTreeMap, Limits, Member, Migration, Pod, Witness};
    use serde_json::json;

    fn migration(name: &str, node: &str, phase: &str) -> Migration {
        let outcome = (phase == "Done").then_some("Migrated");
        serde_json::from_value(json!({
            "apiVersion": "drover.dev/v1alpha1", "kind": "Migration", "spec": {}, "status": {"phase": phase, "outcome": outcome},
            "metadata": {"name": name, "uid": name, "annotations": {"drover.dev/evacuates": node, "drover.dev/pod-uid": name}}
        }))
        .unwrap()
    }

    /// What is found where these are seen one after the other; pods of one letter are of one workload, with a budget.
    fn faults(seen: &[(&str, &str, &str)]) -> Vec<String> {
        let member = |name: &str| Member { workload: name[..1].to_owned(), budget: Some(name[..1].to_owned()) };
        let members: BTreeMap<_, _> = seen.iter().map(|(name, ..)| ((*name).to_owned(), member(name))).collect();
        let mut witness = Witness::new(Limits { concurrent: 3, per_node: 2, per_workload: 2, per_budget: 1 }, members);
        for (name, node, phase) in seen {
            witness.sees(&migration(name, node, phase));
        }
        witness.faults
    }

    #[test]
    fn each_limit_that_is_exceeded_is_found() {
        let begins = "Preparing";
        assert_eq!(faults(&[("a1", "n1", begins), ("b1", "n1", begins), ("a2", "n2", "Freezing")]), [] as [&str; 0]);
        let ends = [("a1", "n1", begins), ("a2", "n1", begins), ("a1", "n1", "Done"), ("a3", "n1", begins)];
        assert_eq!(faults(&ends), [] as [&str; 0], "one that has ended is counted no more");
        assert_eq!(faults(&[("a1", "n1", begins), ("b1", "n1", begins), ("c1", "n1", begins)]), ["3 at once of n1, which allows 2"]);
        assert_eq!(faults(&[("a1", "n1", begins), ("a2", "n2", begins), ("a3", "n3", begins)]), ["3 at once of a, which allows 2"]);
        assert_eq!(faults(&[("a1", "n1", "Freezing"), ("a2", "n2", "AwaitingReadiness")]), ["2 at once of a, which allows 1"]);
        let four = [("a1", "n1", begins), ("b1", "n2", begins), ("c1", "n3", begins), ("d1", "n4", begins)];
        assert_eq!(faults(&four), ["4 at once of the cluster, which allows 3"]);
    }

    #[test]
    fn a_budget_that_is_not_kept_and_a_pod_that_is_no_copy_are_found() {
        let pod = |name: &str, ready: &str, copies: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "d", "uid": name, "labels": {"budget": "a"}, "annotations": {"drover.dev/replaces": copies}},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}
            }))
            .unwrap()
        };
        let member = |name: &str| (name.to_owned(), Member { workload: "a".to_owned(), budget: Some("d/a".to_owned()) });
        let limits = Limits { concurrent: 3, per_node: 2, per_workload: 2, per_budget: 1 };
        let mut witness = Witness::new(limits, ["a1", "a2"].map(member).into());
        let copy = pod("copy", "True", "m");
        for seen in [&pod("a1", "True", ""), &pod("a2", "True", ""), &pod("a1", "False", ""), &copy, &pod("a2", "False", "")] {
            witness.sees_pod(seen);
        }
        assert_eq!(witness.faults, [] as [&str; 0], "the copy serves in the place of one");
        witness.misses_pod(&copy);
        assert_eq!(witness.faults, ["0 of 2 pods of d/a serve, which lets 1 be away"]);
        let mut other = pod("a3", "True", "");
        other.metadata.annotations = None;
        witness.sees_pod(&other);
        assert!(witness.faults[1].contains("a3 was made anew"), "{:?}", witness.faults);
    }
}
