//! The scheduler extender: which nodes kube-scheduler may give a pod of Drover's to, and which it should.
//!
//! A pod that is none of Drover's passes unchanged, and nothing is looked up for it. A pod that a Migration has made goes to the node that the
//! Migration names; where the scheduler is to choose, to a node that can restore it. The extender narrows and explains. It is never the only barrier: it
//! may be away, so what it says is also in the pod's affinity.
//!
//! # When nodes are looked at
//! Up to Preparing, while the source still runs: a node whose agent is silent, or that lacks what the restore needs, is refused, and `kubectl describe pod`
//! says why. Afterwards the source is frozen, or gone, and what is missing is for the migration to decide. Then only the pin counts: kube-scheduler may
//! take minutes until it tries a refused pod again (MEASURED.md 7).

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::Value;

mod preemption;
pub mod protocol;
mod space;

pub use preemption::preempt;

use self::protocol::{ExtenderArgs, ExtenderFilterResult, HostPriority, MAX_PRIORITY};
pub use self::space::requested_memory;
use super::{
    keys,
    preflight::{Blocker, Facts, destination_blockers},
    quantity::mebibytes,
};
use crate::api::{Migration, Phase, Verdict, migration::ReplacementStatus};

/// UID of the Migration that a pod says it was made for. None: the pod is none of Drover's.
#[must_use]
pub fn made_for(pod: &Pod) -> Option<&str> {
    pod.annotations().get(keys::REPLACES).or_else(|| pod.annotations().get(keys::FALLBACK)).map(String::as_str)
}

/// A pod that a Migration has made and that is to be placed.
#[derive(Debug, Clone, Copy)]
pub struct Placement<'a> {
    migration: &'a Migration,
    /// Goes on from the kept archive, on the node where the pod was (R13).
    is_fallback: bool,
}

impl<'a> Placement<'a> {
    /// Finds the Migration among those of the pod's namespace, and of the one that it says it was moved from. None where no Migration knows the pod, whatever its annotations say: users can copy
    /// them while the webhook is down.
    #[must_use]
    pub fn of(pod: &Pod, migrations: &'a [Migration]) -> Option<Self> {
        let uid = made_for(pod)?;
        let migration = migrations.iter().find(|m| m.uid().as_deref() == Some(uid) && m.is_in(pod.metadata.namespace.as_deref()))?;
        let status = migration.status.as_ref()?;
        let is = |made: &Option<ReplacementStatus>| made.as_ref().is_some_and(|made| names(made, pod));
        if is(&status.fallback) {
            return Some(Self { migration, is_fallback: true });
        }
        (is(&status.replacement) || is(&status.placeholder)).then_some(Self { migration, is_fallback: false })
    }

    /// Whether nodes and their profiles have to be known.
    #[must_use]
    pub fn looks_at_nodes(&self) -> bool {
        !self.is_fallback && self.migration.phase() <= Phase::Preparing
    }

    /// The node that the Migration names, if it names one.
    fn pinned(&self) -> Option<&str> {
        let status = self.migration.status.as_ref()?;
        if self.is_fallback {
            return status.source.as_ref().map(|source| source.node_name.as_str());
        }
        let placed = status.destination.as_ref().map(|destination| destination.node_name.as_str()).filter(|name| !name.is_empty());
        placed.or(self.migration.spec.destination.node_name.as_deref())
    }

    /// Why the pod must not be placed anywhere any more.
    fn is_over(&self, pod: &Pod) -> Option<String> {
        let (name, namespace) = (self.migration.name_any(), self.migration.namespace().unwrap_or_default());
        if self.migration.is_done() {
            let pod = pod.name_any();
            return Some(format!("Migration {name}, which made this pod, has ended (kubectl delete pod {pod} -n {namespace})"));
        }
        let is_undone = !self.is_fallback && self.migration.verdict() == Some(Verdict::Rollback);
        is_undone.then(|| format!("Migration {name}, which made this pod, is being rolled back, and will delete it"))
    }

    /// Why the pod must not go to this node, in words for a person; none where it may.
    #[must_use]
    pub fn refusal(&self, pod: &Pod, node: &str, facts: &Facts) -> Option<String> {
        self.reason(pod, node, facts).map(|reason| format!("drover: {reason}"))
    }

    fn reason(&self, pod: &Pod, node: &str, facts: &Facts) -> Option<String> {
        if let Some(over) = self.is_over(pod) {
            return Some(over);
        }
        let pinned = self.pinned();
        if let Some(pinned) = pinned.filter(|pinned| *pinned != node) {
            return Some(self.bound_elsewhere(pinned));
        }
        if !self.looks_at_nodes() {
            return None;
        }
        let source = self.migration.status.as_ref().and_then(|status| status.source.as_ref()).map(|source| source.node_name.as_str());
        let mut found = destination_blockers(source.unwrap_or_default(), node, &self.migration.spec.destination, facts);
        if pinned.is_none() {
            found.extend(room_blocker(pod, node, facts));
        }
        (!found.is_empty()).then(|| found.iter().map(in_words).collect::<Vec<_>>().join("; "))
    }

    fn bound_elsewhere(&self, node: &str) -> String {
        let (name, namespace) = (self.migration.name_any(), self.migration.namespace().unwrap_or_default());
        if self.is_fallback {
            return format!(
                "this pod goes on from the checkpoint that is kept on node {node} (bring {node} back; Migration {name} says what it waits for)"
            );
        }
        let remedy = if self.looks_at_nodes() {
            format!("make room there, or give it up: kubectl delete migration {name} -n {namespace}")
        } else {
            format!("make room there; kubectl describe migration {name} -n {namespace} says what it waits for")
        };
        format!("Migration {name} moves this pod to node {node} and nowhere else ({remedy})")
    }
}

/// Until its UID is known a pod is known by its name.
fn names(made: &ReplacementStatus, pod: &Pod) -> bool {
    if made.uid.is_empty() { made.name == pod.name_any() } else { pod.metadata.uid.as_ref() == Some(&made.uid) }
}

/// Without the field: that is one of the Migration, and who reads this looks at a pod.
fn in_words(blocker: &Blocker) -> String {
    if blocker.remedy.is_empty() { blocker.message.clone() } else { format!("{} ({})", blocker.message, blocker.remedy) }
}

/// Where the scheduler may choose, it chooses a node that has room for what the pod says it needs.
fn room_blocker(pod: &Pod, node: &str, facts: &Facts) -> Option<Blocker> {
    let (needed, free) = (requested_memory(pod), free_bytes(node, facts)?);
    let message = || format!("node {node} has {} free for checkpoints, and the pod requests {} of memory", mebibytes(free), mebibytes(needed));
    (free < needed).then(|| Blocker::new("", message(), "free space under /var/lib there, or name a node in the Migration"))
}

fn free_bytes(node: &str, facts: &Facts) -> Option<u64> {
    facts.nodes.iter().find(|view| view.name == node)?.profile.as_ref().map(|profile| profile.free_bytes)
}

/// The answer for a pod that is none of Drover's: every node passes.
#[must_use]
pub fn pass(args: ExtenderArgs) -> ExtenderFilterResult {
    ExtenderFilterResult::sorted(args, |_| None)
}

/// The nodes that the pod may go to, and why it may not go to the others. No preemption is tried on those: what is wrong with them is not that they are
/// full.
#[must_use]
pub fn filter(args: ExtenderArgs, placement: &Placement<'_>, facts: &Facts) -> ExtenderFilterResult {
    let pod = args.pod.clone();
    ExtenderFilterResult::sorted(args, |node| placement.refusal(&pod, node, facts))
}

/// The scores for a pod that is none of Drover's: all nodes are the same.
#[must_use]
pub fn indifferent(args: &ExtenderArgs) -> Vec<HostPriority> {
    args.names().into_iter().map(|host| HostPriority { host: host.to_owned(), score: 0 }).collect()
}

/// Half of the score is how many of the pod's base images a node has (known only where nodes come in full), the other half how much free space it has
/// compared with the one that has most.
#[must_use]
pub fn prioritize(args: &ExtenderArgs, facts: &Facts) -> Vec<HostPriority> {
    let names = args.names();
    let most = names.iter().filter_map(|name| free_bytes(name, facts)).max().unwrap_or(0);
    let wanted: Vec<String> = keys::original_images(&args.pod).into_values().collect();
    let score = |name: &str| {
        let here = args.node(name).map_or(0, |node| wanted.iter().filter(|image| has_image(node, image)).count());
        share(here as u64, wanted.len() as u64) + share(free_bytes(name, facts).unwrap_or(0), most)
    };
    names.iter().map(|name| HostPriority { host: (*name).to_owned(), score: score(name) }).collect()
}

/// A part of the whole, as half a score.
fn share(part: u64, whole: u64) -> i64 {
    let half = MAX_PRIORITY / 2;
    if whole == 0 {
        return 0;
    }
    let share = i128::from(part.min(whole)) * i128::from(half) / i128::from(whole);
    i64::try_from(share).unwrap_or(half)
}

/// `status.images[].names` holds references by tag and by digest; base images are known by digest.
fn has_image(node: &Value, image: &str) -> bool {
    let images = node.pointer("/status/images").and_then(Value::as_array).into_iter().flatten();
    let names = images.filter_map(|image| image.get("names")?.as_array()).flatten();
    names.filter_map(Value::as_str).any(|name| name == image)
}

#[cfg(test)]
mod tests;
