//! Load: which nodes have been over a threshold for long enough, and which pods leave them for where there is room.
//!
//! # What is measured
//! What the pods of a node use against what the node has for pods (`status.allocatable`): that is what moving pods can change. Their agents report it
//! ([`crate::domain::load`]).
//!
//! # Never back and forth
//! A pod goes only where its new node stays [`MARGIN`] percent below the very thresholds that it leaves its old one for, so that its arrival is no reason to
//! leave again; a node that a migration comes to or leaves is not judged until a window after its end is full; and a pod that has moved stays for its policy's `coolDownSeconds` and for
//! [`Settings::window`].

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::{
    evacuation::{self, evacuates, frozen_till, leaving},
    load::{Amount, Percent},
    migration::{age, node_of},
};
use crate::api::{Migration, node_profile::NodeUsage, policy::Trigger};

/// So many percent of a node stay free below its threshold when a pod comes.
pub const MARGIN: u32 = 5;
/// A report that is older says nothing.
pub const STALE_AFTER: Duration = Duration::from_mins(2);

/// What is done about load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It is said what would be done.
    DryRun,
    /// Pods are moved.
    On,
}

/// When a node has too much to do, and how much is done about it at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Threshold of CPU, in percent of what the node has for pods.
    pub cpu_percent: u32,
    /// The same of memory.
    pub memory_percent: u32,
    /// How long it must have been over one of them, at every report.
    pub window: Duration,
    /// How many pods leave a node at once.
    pub most_pods: usize,
}

impl Settings {
    const fn thresholds(&self) -> Percent {
        Percent { cpu: self.cpu_percent, memory: self.memory_percent }
    }
}

/// A node, and what it has for pods.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeLoad {
    /// Its name.
    pub name: String,
    /// It is Ready and not cordoned.
    pub takes_pods: bool,
    /// `status.allocatable`.
    pub allocatable: Amount,
    /// What its agent has reported last.
    pub usage: NodeUsage,
}

impl NodeLoad {
    fn used(&self) -> Amount {
        self.usage.pods.iter().map(Amount::of).sum()
    }
}

/// The reports of the last while, by node.
#[derive(Debug, Default)]
pub struct History(BTreeMap<String, VecDeque<(Timestamp, Percent)>>);

impl History {
    /// Notes what is new; forgets nodes that are gone, and what is older than `window` but for the last report before it.
    pub fn note(&mut self, nodes: &[NodeLoad], window: Duration) {
        self.0.retain(|name, _| nodes.iter().any(|node| node.name == *name));
        for node in nodes {
            let at = node.usage.observed_at.0;
            let reports = self.0.entry(node.name.clone()).or_default();
            if reports.back().is_none_or(|(last, _)| *last < at) {
                reports.push_back((at, node.used().percent_of(&node.allocatable)));
            }
            while reports.get(1).is_some_and(|(second, _)| age(*second, at) >= window) {
                reports.pop_front();
            }
        }
    }

    /// Nodes that were over a threshold, the same one, at every report of the window, which they fill.
    #[must_use]
    pub fn overloaded(&self, settings: &Settings, now: Timestamp) -> Vec<Overloaded> {
        let limits = settings.thresholds();
        let is_over = |reports: &VecDeque<(Timestamp, Percent)>| {
            let (Some((first, _)), Some((last, _))) = (reports.front(), reports.back()) else { return false };
            let fills = reports.len() > 1 && age(*first, *last) >= settings.window && age(*last, now) < STALE_AFTER;
            fills && (reports.iter().all(|(_, used)| used.cpu > limits.cpu) || reports.iter().all(|(_, used)| used.memory > limits.memory))
        };
        let overloaded = |(name, reports): (&String, &VecDeque<_>)| {
            let (since, _) = reports.front().filter(|_| is_over(reports))?;
            Some(Overloaded { node: name.clone(), since: *since })
        };
        self.0.iter().filter_map(overloaded).collect()
    }
}

/// A node that has too much to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overloaded {
    /// Its name.
    pub node: String,
    /// The first of the reports that say so.
    pub since: Timestamp,
}

/// What is read once a node is overloaded.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Every node that reports.
    pub nodes: Vec<NodeLoad>,
    /// The pods of those that are overloaded, and what they are judged by.
    pub cluster: evacuation::Seen,
}

/// A pod that is to go.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    /// The Migration that does it.
    pub migration: Migration,
    /// Its node.
    pub from: String,
    /// Where there is room.
    pub to: String,
    /// In words for a person.
    pub why: String,
}

/// Who leaves the `overloaded` nodes.
#[must_use]
pub fn plan(overloaded: &[Overloaded], seen: &Seen, settings: &Settings, now: Timestamp) -> Vec<Proposal> {
    // What was reported before the last change says nothing about what is left.
    let is_as_reported = |it: &Overloaded| changed_at(&it.node, &seen.cluster.migrations, now).is_none_or(|at| at < it.since);
    let overloaded = |node: &&NodeLoad| overloaded.iter().any(|it| it.node == node.name && is_as_reported(it));
    let mut used: BTreeMap<&str, Amount> = seen.nodes.iter().map(|node| (node.name.as_str(), node.used())).collect();
    let mut proposals = vec![];
    let facts = seen.cluster.facts(now);
    for node in seen.nodes.iter().filter(overloaded) {
        let mut left = settings.most_pods;
        for (pod, amount) in heaviest(node, seen, settings, now) {
            let before = used[node.name.as_str()].percent_of(&node.allocatable);
            if left == 0 || !before.is_over(settings.thresholds()) {
                break;
            }
            let Some(to) = with_room(node, amount, seen, &used, settings, now) else { continue };
            let (from, room) = (node.name.clone(), to.name.clone());
            let Ok(mut migration) = leaving(pod, &from, &room, Trigger::Load) else { continue };
            seen.cluster.post_copy(&mut migration, pod, &facts);
            let why = format!(
                "pod {}/{} uses {} m of CPU and {} MiB; node {from} is at {before} (thresholds {}), node {room} has room",
                pod.namespace().unwrap_or_default(),
                pod.name_any(),
                amount.cpu_millis,
                amount.memory_bytes >> 20,
                settings.thresholds()
            );
            *used.entry(&node.name).or_default() -= amount;
            *used.entry(&to.name).or_default() += amount;
            left -= 1;
            proposals.push(Proposal { migration, from, to: room, why });
        }
    }
    proposals
}

/// When a migration has changed last what a node has to do: `now` while one does, its end where it has frozen a pod.
fn changed_at(node: &str, migrations: &[Migration], now: Timestamp) -> Option<Timestamp> {
    let touches = |migration: &Migration| {
        let status = migration.status.as_ref();
        let (asked, evacuated) = (migration.spec.destination.node_name.as_deref(), evacuates(migration));
        let source = status.and_then(|status| status.source.as_ref()).map(|it| it.node_name.as_str());
        let destination = status.and_then(|status| status.destination.as_ref()).map(|it| it.node_name.as_str());
        [asked, evacuated, source, destination].contains(&Some(node))
    };
    let at = |migration: &Migration| if migration.is_done() { migration.status.as_ref().and_then(frozen_till) } else { Some(now) };
    migrations.iter().filter(|migration| touches(migration)).filter_map(at).max()
}

/// The pods that may leave a node, those first that use most of what it is short of.
fn heaviest<'s>(node: &NodeLoad, seen: &'s Seen, settings: &Settings, now: Timestamp) -> Vec<(&'s Pod, Amount)> {
    let may_leave = |pod: &&Pod| {
        let policy = seen.cluster.evacuation(pod, Trigger::Load);
        policy.is_some_and(|evacuation| seen.cluster.may_leave(pod, evacuation.cool_down().max(settings.window), now))
    };
    let amount = |pod: &Pod| {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        node.usage.pods.iter().find(|usage| usage.namespace == namespace && usage.name == name).map(Amount::of)
    };
    let short_of_cpu = node.used().percent_of(&node.allocatable).cpu > settings.cpu_percent;
    let mut pods: Vec<_> = seen
        .cluster
        .pods
        .iter()
        .filter(|pod| node_of(pod) == Some(&node.name))
        .filter(may_leave)
        .filter_map(|pod| Some((pod, amount(pod)?)))
        .collect();
    pods.sort_by_key(|(pod, amount)| {
        let used = if short_of_cpu { amount.cpu_millis } else { amount.memory_bytes };
        (std::cmp::Reverse(used), pod.namespace(), pod.name_any())
    });
    // One that uses nothing of it would not help.
    pods.retain(|(_, amount)| if short_of_cpu { amount.cpu_millis > 0 } else { amount.memory_bytes > 0 });
    pods
}

/// The node that has least to do after a pod has come, and stays well below its thresholds then.
fn with_room<'s>(
    from: &NodeLoad,
    pod: Amount,
    seen: &'s Seen,
    used: &BTreeMap<&str, Amount>,
    settings: &Settings,
    now: Timestamp,
) -> Option<&'s NodeLoad> {
    let limits = settings.thresholds().less(MARGIN);
    let after = |node: &NodeLoad| (used.get(node.name.as_str()).copied().unwrap_or_default() + pod).percent_of(&node.allocatable);
    let fits = |node: &&NodeLoad| {
        node.name != from.name && node.takes_pods && age(node.usage.observed_at.0, now) < STALE_AFTER && !after(node).is_over(limits)
    };
    seen.nodes.iter().filter(fits).min_by_key(|node| {
        let after = after(node);
        (after.cpu.max(after.memory), node.name.clone())
    })
}

#[cfg(test)]
mod tests;
