//! Nodes that empty themselves: which pods leave a cordoned node, or one that they are to be evicted from, in which order, and what an eviction is answered.
//!
//! # One writer
//! Only the controller, on the leader, makes Migrations, so that limits hold whatever many webhooks and evictions come at once. The webhook writes down that
//! a pod is to be evicted ([`keys::EVICTION_REQUESTED`]), which lapses when nobody asks any more.
//!
//! # Once
//! A pod's evacuation has a name that comes from its UID. One that has failed stands there, with its reason, and is tried again after [`RETRY_AFTER`], or when
//! the node is cordoned anew.

pub mod deadline;
mod eviction;
pub mod responder;
#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

pub use eviction::{Eviction, judge};
use responder::{EvictionIntent, awaited};

use super::{
    admission::active_migration,
    extender::requested_memory,
    fan_out::is_running,
    ids::derived_name,
    keys,
    migration::{age, node_of},
    owner, policy, post_copy,
    preflight::{Facts, NodeView},
    request::migration_to,
};
use crate::api::{
    Migration, MigrationPolicy, MigrationStatus, Outcome, Phase,
    migration::Lane,
    node_profile::StayingPod,
    policy::{Evacuation, Trigger},
};

/// So much of the pod's name stands in the Migration's, whose limit is 52.
const STEM: usize = 34;
/// How long after a failure an evacuation is tried again.
pub const RETRY_AFTER: Duration = Duration::from_mins(10);
/// An eviction that nobody has asked for so long is wanted no more; `kubectl drain` asks every 5 s.
pub const LAPSES_AFTER: Duration = Duration::from_mins(1);
/// Of the pods that stay, so many are listed: an object has its limits.
const MOST_STAYING: usize = 100;
/// Of a reason, in characters.
const LONGEST_REASON: usize = 300;
/// How long the Migration of an evacuation stays after its end, in seconds.
const KEPT_SECONDS: u32 = 24 * 3600;

/// What the controller has read.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Names of the nodes that are cordoned.
    pub cordoned: BTreeSet<String>,
    /// Node → when it goes, of those of which that is known.
    pub deadlines: BTreeMap<String, Timestamp>,
    /// The pods on them, and those that are to be evicted.
    pub pods: Vec<Pod>,
    /// Every Migration.
    pub migrations: Vec<Migration>,
    /// The evictions of the API `lifecycle.k8s.io` in which it is Drover's turn; their pods are among `pods`.
    pub evictions: Vec<EvictionIntent>,
    /// Every policy.
    pub policies: Vec<MigrationPolicy>,
    /// Namespace → labels, of the pods' namespaces.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Every node, where a policy asks for post-copy.
    pub nodes: Vec<NodeView>,
}

/// What the controller does next.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make this Migration. It may be there already.
    Make(Box<Migration>),
    /// Delete this one: its node is not cordoned any more, or its eviction not asked for, and nothing was frozen; or it has failed and is to be tried again.
    Delete(Box<Migration>),
}

/// What comes next.
#[must_use]
pub fn plan(seen: &Seen, now: Timestamp) -> Vec<Action> {
    let mut actions: Vec<Action> = seen.migrations.iter().filter(|m| is_over(m, seen, now)).cloned().map(|m| Action::Delete(Box::new(m))).collect();
    let mut under_way = UnderWay::of(seen);
    let facts = seen.facts(now);
    for (pod, node, evacuation, trigger) in wanted(seen, now) {
        if !under_way.leaves_room(pod, node, evacuation) {
            continue;
        }
        // A name that no Migration can have is a pod's that no Migration can name.
        if let Ok(mut migration) = evacuation_of(pod, node, trigger) {
            deadline::bound(&mut migration, seen.deadlines.get(node).copied(), now);
            seen.post_copy(&mut migration, pod, &facts);
            under_way.begin(node, owner::controller(&pod.metadata).map(|owner| owner.uid.clone()));
            actions.push(Action::Make(Box::new(migration)));
        }
    }
    actions
}

/// How many evacuations have begun and not ended.
#[derive(Default)]
struct UnderWay {
    all: u32,
    of_node: BTreeMap<String, u32>,
    /// By the UID of the pods' controller.
    of_workload: BTreeMap<String, u32>,
}

impl UnderWay {
    fn of(seen: &Seen) -> Self {
        let mut under_way = Self::default();
        for migration in seen.migrations.iter().filter(|migration| !migration.is_done()) {
            let Some(node) = evacuates(migration) else { continue };
            // One that has just begun has not looked at its pod yet.
            let noted = migration.status.as_ref().and_then(|status| status.source.as_ref()?.owner.as_ref()).map(|owner| owner.uid.clone());
            let pod = migration.annotations().get(keys::POD_UID).and_then(|uid| seen.pods.iter().find(|pod| pod.metadata.uid.as_ref() == Some(uid)));
            let read = || pod.and_then(|pod| owner::controller(&pod.metadata)).map(|owner| owner.uid.clone());
            under_way.begin(node, noted.or_else(read));
        }
        under_way
    }

    fn begin(&mut self, node: &str, workload: Option<String>) {
        self.all += 1;
        *self.of_node.entry(node.to_owned()).or_default() += 1;
        if let Some(workload) = workload {
            *self.of_workload.entry(workload).or_default() += 1;
        }
    }

    fn leaves_room(&self, pod: &Pod, node: &str, evacuation: &Evacuation) -> bool {
        let of_node = self.of_node.get(node).copied().unwrap_or_default();
        let of_workload = owner::controller(&pod.metadata).and_then(|owner| self.of_workload.get(&owner.uid)).copied().unwrap_or_default();
        self.all < evacuation.concurrent
            && of_node < evacuation.concurrent_per_node
            && evacuation.concurrent_per_workload.is_none_or(|limit| of_workload < limit)
    }
}

impl Seen {
    /// How a pod leaves its node on this occasion, if it does.
    #[must_use]
    pub fn evacuation(&self, pod: &Pod, trigger: Trigger) -> Option<&Evacuation> {
        policy::evacuation(&self.policies, self.labels_around(pod), pod, trigger)
    }

    /// What post-copy is judged by.
    #[must_use]
    pub fn facts(&self, now: Timestamp) -> Facts {
        Facts { nodes: self.nodes.clone(), lane: Lane::Runtime, now, ..Facts::default() }
    }

    /// Makes a post-copy of a pod's Migration where its policy asks for that and it can be.
    pub fn post_copy(&self, migration: &mut Migration, pod: &Pod, facts: &Facts) {
        post_copy::by_policy(migration, pod, &self.policies, self.labels_around(pod), facts);
    }

    fn labels_around(&self, pod: &Pod) -> &BTreeMap<String, String> {
        const UNLABELLED: &BTreeMap<String, String> = &BTreeMap::new();
        self.namespaces.get(&pod.namespace().unwrap_or_default()).unwrap_or(UNLABELLED)
    }

    fn is_requested(&self, uid: &str) -> bool {
        self.evictions.iter().filter_map(awaited).any(|pod| pod.uid == uid)
    }

    /// Whether nothing keeps a pod from leaving by itself: it runs, is not on its way, has not failed to, and has cooled down.
    #[must_use]
    pub fn may_leave(&self, pod: &Pod, cool_down: Duration, now: Timestamp) -> bool {
        can_leave(pod)
            && active_migration(pod, &self.migrations).is_none()
            && failed(pod, &self.migrations).is_none()
            && cools_down(pod, cool_down, &self.migrations, now).is_none()
    }
}

/// How long a pod still stays where its last migration has left it; none where it has done so for `cool_down`.
#[must_use]
pub fn cools_down(pod: &Pod, cool_down: Duration, migrations: &[Migration], now: Timestamp) -> Option<Duration> {
    let uid = pod.metadata.uid.as_ref()?;
    let left_there = |migration: &Migration| {
        let status = migration.status.as_ref()?;
        let source = status.source.as_ref().map(|source| &source.uid);
        let copies = [&status.replacement, &status.fallback].into_iter().flatten().map(|copy| &copy.uid);
        copies.chain(source).any(|known| known == uid).then(|| frozen_till(status)).flatten()
    };
    let last = migrations.iter().filter(|m| m.namespace() == pod.namespace()).filter_map(left_there).max()?;
    cool_down.checked_sub(age(last, now)).filter(|left| !left.is_zero())
}

/// The pods that are to leave and have not begun to: those of the highest priority first, then those whose node goes first, then the smallest.
fn wanted(seen: &Seen, now: Timestamp) -> Vec<(&Pod, &str, &Evacuation, Trigger)> {
    let leaves = |pod| {
        let node = node_of(pod)?;
        let (evacuation, trigger) = occasion(pod, node, seen, now)?;
        seen.may_leave(pod, evacuation.cool_down(), now).then_some((pod, node, evacuation, trigger))
    };
    let mut wanted: Vec<_> = seen.pods.iter().filter_map(leaves).collect();
    let deadline = |node: &str| seen.deadlines.get(node).copied().unwrap_or(Timestamp::MAX);
    wanted.sort_by_cached_key(|(pod, node, ..)| (Reverse(priority(pod)), deadline(node), requested_memory(pod), pod.namespace(), pod.name_any()));
    wanted
}

/// A pod's priority, as the scheduler has it.
#[must_use]
pub fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or_default()
}

fn occasion<'s>(pod: &Pod, node: &str, seen: &'s Seen, now: Timestamp) -> Option<(&'s Evacuation, Trigger)> {
    let on = |trigger| Some((seen.evacuation(pod, trigger)?, trigger));
    let cordon = on(Trigger::Cordon).filter(|_| seen.cordoned.contains(node));
    let requested = || on(Trigger::EvictionRequest).filter(|_| pod.metadata.uid.as_ref().is_some_and(|uid| seen.is_requested(uid)));
    cordon.or_else(requested).or_else(|| on(Trigger::Drain).filter(|_| asked_at(pod).is_some_and(|asked| age(asked, now) < LAPSES_AFTER)))
}

/// Whether a pod is one that leaves a node by itself. What it holds is the preflight's business.
#[must_use]
pub fn can_leave(pod: &Pod) -> bool {
    let is_mirror = pod.annotations().contains_key("kubernetes.io/config.mirror");
    let is_a_daemons = owner::controller(&pod.metadata).is_some_and(|owner| owner.kind == "DaemonSet");
    is_running(pod) && !is_mirror && !is_a_daemons
}

/// When it was asked for last that a pod be evicted.
#[must_use]
pub fn asked_at(pod: &Pod) -> Option<Timestamp> {
    pod.labels().get(keys::EVICTION_REQUESTED)?.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok())
}

/// The node that a Migration was made to empty.
#[must_use]
pub fn evacuates(migration: &Migration) -> Option<&str> {
    migration.annotations().get(keys::EVACUATES).map(String::as_str)
}

/// The evacuation of this very pod that has failed.
#[must_use]
pub fn failed<'m>(pod: &Pod, migrations: &'m [Migration]) -> Option<&'m Migration> {
    let uid = pod.metadata.uid.as_ref()?;
    let of_pod = |m: &&Migration| m.namespace() == pod.namespace() && m.annotations().get(keys::POD_UID) == Some(uid);
    migrations.iter().filter(of_pod).find(|m| evacuates(m).is_some() && has_failed(m))
}

/// The pods that were to leave a node and stay there, and why: the first of them by name, and of a reason what a person reads.
#[must_use]
pub fn staying<'m>(node: &str, migrations: impl IntoIterator<Item = &'m Migration>) -> Vec<StayingPod> {
    let of_node = migrations.into_iter().filter(|migration| evacuates(migration) == Some(node) && has_failed(migration));
    let staying = of_node.map(|migration| StayingPod {
        namespace: migration.namespace().unwrap_or_default(),
        pod: migration.spec.pod_name.clone().unwrap_or_default(),
        reason: migration.status.iter().flat_map(|status| status.message.chars()).take(LONGEST_REASON).collect(),
    });
    let mut staying: Vec<_> = staying.collect();
    staying.sort();
    staying.truncate(MOST_STAYING);
    staying
}

fn has_failed(migration: &Migration) -> bool {
    let outcome = migration.status.as_ref().and_then(|status| status.outcome);
    migration.is_done() && outcome != Some(Outcome::Migrated)
}

fn is_over(migration: &Migration, seen: &Seen, now: Timestamp) -> bool {
    let Some(node) = evacuates(migration).filter(|_| migration.metadata.deletion_timestamp.is_none()) else { return false };
    let is_for = |trigger: Trigger| migration.labels().get(keys::TRIGGER).map(String::as_str) == Some(trigger.as_label());
    let is_uncordoned = is_for(Trigger::Cordon) && !seen.cordoned.contains(node);
    if has_failed(migration) {
        let ended = migration.status.as_ref().and_then(ended_at);
        return is_uncordoned || ended.is_some_and(|ended| age(ended, now) >= RETRY_AFTER);
    }
    let is_requested = || migration.annotations().get(keys::POD_UID).is_some_and(|uid| seen.is_requested(uid));
    let is_given_up = is_uncordoned || (is_for(Trigger::EvictionRequest) && !is_requested());
    is_given_up && !migration.is_done() && migration.phase() < Phase::Freezing
}

/// When a migration has ended that had frozen its pod.
#[must_use]
pub fn frozen_till(status: &MigrationStatus) -> Option<Timestamp> {
    status.phases.iter().any(|timing| timing.phase == Phase::Freezing).then(|| ended_at(status)).flatten()
}

fn ended_at(status: &MigrationStatus) -> Option<Timestamp> {
    status.phases.iter().find(|timing| timing.phase == Phase::Done).map(|timing| timing.started_at.0)
}

/// The Migration of a pod that leaves its node for wherever the scheduler finds room.
///
/// # Errors
/// What is wrong with the pod's name.
pub fn evacuation_of(pod: &Pod, node: &str, trigger: Trigger) -> Result<Migration, String> {
    leaving(pod, node, keys::AUTO, trigger)
}

/// The Migration of a pod that leaves its node for another one.
///
/// # Errors
/// What is wrong with a name.
pub fn leaving(pod: &Pod, node: &str, to: &str, trigger: Trigger) -> Result<Migration, String> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let name = format!("evacuate-{}", derived_name(&pod.name_any(), STEM, &uid));
    let mut migration = migration_to(to, &name, &pod.name_any(), owner::keeps_its_name(&pod.metadata))?;
    migration.metadata.namespace = pod.namespace();
    migration.metadata.annotations = Some(BTreeMap::from([(keys::POD_UID.to_owned(), uid), (keys::EVACUATES.to_owned(), node.to_owned())]));
    migration.metadata.labels = Some(BTreeMap::from([(keys::TRIGGER.to_owned(), trigger.as_label().to_owned())]));
    migration.spec.ttl_seconds_after_finished = Some(KEPT_SECONDS);
    Ok(migration)
}
