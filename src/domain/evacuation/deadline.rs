//! Nodes that go at a known time, for maintenance or because their price has changed: what leaves first, and what cannot leave in time.
//!
//! A deadline speeds nothing up and stops nothing: a pod that is probably too late is said to be so at once, and moved all the same as long as its node is
//! there, for to stay is no better. A move that has not been released by then is undone.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;

use super::{Seen, wanted};
use crate::{
    api::{
        Migration,
        migration::{Lane, default_deadline},
    },
    domain::{estimate, extender::requested_memory, keys},
};

/// A Migration has so many seconds at least.
const LEAST: u32 = 10;

/// When a node goes, by its annotation [`keys::EVACUATE_BY`].
///
/// # Errors
/// Where that is no time; the message names the annotation and shows how a time is written.
pub fn of_node(node: &Node) -> Result<Option<Timestamp>, String> {
    let Some(value) = node.annotations().get(keys::EVACUATE_BY) else { return Ok(None) };
    let unreadable = |_| {
        let shown: String = value.chars().take(40).collect();
        format!("metadata.annotations[{}]: {shown:?} is no time (2026-11-28T19:30:00Z)", keys::EVACUATE_BY)
    };
    value.parse().map(Some).map_err(unreadable)
}

/// Gives a Migration no more time than its node has. One whose time is over and that is still there has as much as any.
pub fn bound(migration: &mut Migration, deadline: Option<Timestamp>, now: Timestamp) {
    let left = deadline.and_then(|deadline| seconds_left(deadline, now));
    if let Some(left) = left {
        migration.spec.deadline_seconds = left.min(default_deadline());
    }
}

fn seconds_left(deadline: Timestamp, now: Timestamp) -> Option<u32> {
    u32::try_from(deadline.duration_since(now).as_secs()).ok().filter(|seconds| *seconds >= LEAST)
}

/// How long a pod will probably be frozen, by the memory that it asks for.
#[must_use]
pub fn estimate_of(pod: &Pod) -> Duration {
    // Its lane is not known yet, and the slower one is on the safe side.
    estimate::freeze(Lane::Image, false, requested_memory(pod), pod.spec.as_ref().map_or(0, |spec| spec.containers.len()))
}

/// A pod that will probably not have left its node in time.
#[derive(Debug, Clone, PartialEq)]
pub struct Late<'s> {
    /// The pod.
    pub pod: &'s Pod,
    /// Its node.
    pub node: &'s str,
    /// What is to be said of it.
    pub message: String,
}

/// The pods that will probably be too late, given that those before them leave first, so many at the same time as their policies say.
#[must_use]
pub fn late(seen: &Seen, now: Timestamp) -> Vec<Late<'_>> {
    if seen.deadlines.is_empty() {
        return vec![];
    }
    let mut busy: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let mut late = vec![];
    for (pod, node, evacuation, _) in wanted(seen, now) {
        let Some(deadline) = seen.deadlines.get(node) else { continue };
        let ends = ends_after(busy.entry(node).or_insert_with(|| lanes(evacuation.concurrent_per_node)), estimate_of(pod));
        if let Some(message) = too_late(pod, ends, *deadline, now) {
            late.push(Late { pod, node, message });
        }
    }
    late
}

/// The same for a list of pods that leave in this order, so many at the same time: the messages.
#[must_use]
pub fn late_of<'p>(pods: impl IntoIterator<Item = &'p Pod>, parallel: u32, deadline: Timestamp, now: Timestamp) -> Vec<String> {
    let mut lanes = lanes(parallel);
    pods.into_iter().filter_map(|pod| too_late(pod, ends_after(&mut lanes, estimate_of(pod)), deadline, now)).collect()
}

fn lanes(parallel: u32) -> Vec<Duration> {
    vec![Duration::ZERO; parallel.max(1) as usize]
}

/// Gives the work to the lane that is free first; when it will be done.
fn ends_after(lanes: &mut [Duration], work: Duration) -> Duration {
    match lanes.iter_mut().min() {
        Some(first) => {
            *first += work;
            *first
        }
        None => work,
    }
}

fn too_late(pod: &Pod, ends: Duration, deadline: Timestamp, now: Timestamp) -> Option<String> {
    let left = deadline.duration_since(now).max(SignedDuration::ZERO).unsigned_abs();
    (ends > left).then(|| {
        format!(
            "pod {}/{} will probably not have left in time: that takes about {} s, with those before it, and the node goes in {} s ({deadline})",
            pod.namespace().unwrap_or_default(),
            pod.name_any(),
            ends.as_secs(),
            left.as_secs()
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(name: &str, memory: &str) -> Pod {
        let container = json!({"name": "c", "resources": {"requests": {"memory": memory}}});
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d"}, "spec": {"containers": [container]}})).unwrap()
    }

    fn node(annotations: &Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n1", "annotations": annotations}})).unwrap()
    }

    #[test]
    fn a_nodes_time_is_read_and_what_is_none_is_named() {
        assert_eq!(of_node(&node(&json!({}))), Ok(None));
        assert_eq!(of_node(&node(&json!({"drover.dev/evacuate-by": "1970-01-01T00:01:00Z"}))), Ok(Some(at(60))));
        let problem = of_node(&node(&json!({"drover.dev/evacuate-by": "in ten minutes"}))).unwrap_err();
        assert!(problem.contains("metadata.annotations[drover.dev/evacuate-by]: \"in ten minutes\" is no time"), "{problem}");
    }

    #[test]
    fn a_migration_has_no_more_time_than_its_node() {
        let given = |deadline| {
            let mut migration = Migration::new("m", crate::api::MigrationSpec { deadline_seconds: default_deadline(), ..Default::default() });
            bound(&mut migration, deadline, at(100));
            migration.spec.deadline_seconds
        };
        assert_eq!([given(None), given(Some(at(160))), given(Some(at(5000)))], [600, 60, 600]);
        assert_eq!([given(Some(at(105))), given(Some(at(50)))], [600, 600], "the time is over, and the node is still there");
    }

    #[test]
    fn whoever_is_behind_others_is_later() {
        // 2.2 s and 24 s a GiB each (estimate.rs).
        let pods = [pod("small", "0"), pod("large", "1Gi"), pod("other", "1Gi")];
        let late = |parallel, left| late_of(&pods, parallel, at(left), at(0)).len();
        assert_eq!([late(1, 60), late(1, 50), late(2, 50), late(1, 1), late(2, -5)], [0, 1, 0, 3, 3]);
        let said = late_of(&pods, 1, at(50), at(0)).remove(0);
        assert!(said.starts_with("pod d/other will probably not have left in time: that takes about 54 s"), "{said}");
    }
}
