//! Which lane a migration takes: what is asked for, what the pod allows, what the nodes have.

use k8s_openapi::api::core::v1::Pod;

use super::{Facts, NodeView, capable_nodes};
use crate::{
    api::{
        Migration, NodeProfileStatus,
        migration::{Destination, Lane},
    },
    domain::lanes,
};

/// A lane, and why it is that one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Choice {
    /// The lane; [`Lane::Auto`] where both are possible.
    pub lane: Lane,
    /// Why, in words for a person.
    pub reason: &'static str,
}

/// The lane that is asked of the nodes: the migration's, where it leaves that open the installation's, and where that does too, the only one that pod and
/// source node leave. [`Lane::Auto`] where both are possible.
#[must_use]
pub fn wanted(migration: &Migration, default: Lane, pod: &Pod, nodes: &[NodeView]) -> Choice {
    let status = migration.status.as_ref().and_then(|status| status.lane).unwrap_or_default();
    let spec = pod.spec.as_ref();
    let source = spec.and_then(|spec| spec.node_name.as_deref());
    let can = nodes.iter().find(|node| Some(node.name.as_str()) == source).and_then(|node| node.profile.as_ref());
    let in_class = spec.and_then(|spec| spec.runtime_class_name.as_deref()) == Some(lanes::RUNTIME_CLASS);
    let choice = |lane, reason| Choice { lane, reason };
    match (status, migration.spec.lane, default) {
        (lane @ (Lane::Image | Lane::Runtime), _, _) => choice(lane, "it is fixed"),
        (_, lane @ (Lane::Image | Lane::Runtime), _) => choice(lane, "spec.lane asks for it"),
        (_, _, lane @ (Lane::Image | Lane::Runtime)) => choice(lane, "it is this installation's (the chart's value lane)"),
        // Only a node with that handler can make its sandbox.
        _ if in_class => choice(Lane::Runtime, "the pod has the RuntimeClass drover"),
        _ if can.is_some_and(|profile| has(profile, lanes::RUNTIME)) => Choice::default(),
        _ => choice(Lane::Image, "the pod's node has not the runtime lane"),
    }
}

/// What `auto` comes to: the runtime lane where every node that can take the pod has it, or none has the other one, so that the choice takes no node away from
/// the scheduler. Anything else than auto stays as it is.
#[must_use]
pub fn chosen(wanted: Choice, pod: &Pod, destination: &Destination, facts: &Facts) -> Choice {
    if wanted.lane != Lane::Auto {
        return wanted;
    }
    let source = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
    let able = capable_nodes(source, destination, facts);
    let profiles: Vec<_> = facts.nodes.iter().filter(|node| able.contains(&node.name)).filter_map(|node| node.profile.as_ref()).collect();
    let all = |lane| profiles.iter().all(|profile| has(profile, lane));
    let any = |lane| profiles.iter().any(|profile| has(profile, lane));
    if !any(lanes::RUNTIME) {
        Choice { lane: Lane::Image, reason: "no node that can take the pod has the runtime lane" }
    } else if all(lanes::RUNTIME) {
        Choice { lane: Lane::Runtime, reason: "every node that can take the pod has it" }
    } else if any(lanes::IMAGE) {
        Choice { lane: Lane::Image, reason: "not every node that can take the pod has the runtime lane" }
    } else {
        Choice { lane: Lane::Runtime, reason: "no node that can take the pod has the image lane" }
    }
}

/// Why a node cannot restore by a lane; none where it can.
pub(super) fn missing(profile: &NodeProfileStatus, lane: Lane) -> Option<String> {
    let image = || lacks(profile, lanes::IMAGE, "restore a checkpoint image");
    let runtime = || lacks(profile, lanes::RUNTIME, "restore in the runtime lane");
    match lane {
        Lane::Image => image(),
        Lane::Runtime => runtime(),
        Lane::Auto => image().zip(runtime()).map(|(image, runtime)| format!("{image}; and it {runtime}")),
    }
}

fn lacks(profile: &NodeProfileStatus, lane: &str, deed: &str) -> Option<String> {
    match profile.lanes.iter().find(|found| found.name == lane) {
        Some(found) if found.available => None,
        Some(found) => Some(format!("cannot {deed}: {}", found.message)),
        None => Some(format!("does not say whether it can {deed}: upgrade its agent")),
    }
}

fn has(profile: &NodeProfileStatus, lane: &str) -> bool {
    profile.lanes.iter().any(|found| found.name == lane && found.available)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{MigrationSpec, node_profile::LaneStatus};

    fn node(name: &str, lanes: &[&str]) -> NodeView {
        let lane = |name: &&str| LaneStatus { name: (*name).to_owned(), available: true, message: String::new() };
        let observed_at = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        let profile = NodeProfileStatus { lanes: lanes.iter().map(lane).collect(), free_bytes: 1 << 30, observed_at, ..Default::default() };
        NodeView { name: name.into(), ready: true, profile: Some(profile), ..Default::default() }
    }

    fn pod(class: Option<&str>) -> Pod {
        serde_json::from_value(serde_json::json!({"spec": {"nodeName": "n1", "containers": [], "runtimeClassName": class}})).unwrap()
    }

    /// The lane of a migration that leaves it open.
    fn auto(class: Option<&str>, nodes: Vec<NodeView>) -> Lane {
        let (migration, pod) = (Migration::new("m", MigrationSpec::default()), pod(class));
        let wanted = wanted(&migration, Lane::Auto, &pod, &nodes);
        let facts = Facts { nodes, lane: wanted.lane, now: jiff::Timestamp::from_second(1).unwrap(), ..Facts::default() };
        let choice = chosen(wanted, &pod, &Destination::default(), &facts);
        assert!(!choice.reason.is_empty());
        choice.lane
    }

    #[test]
    fn auto_takes_the_runtime_lane_where_that_takes_no_node_away() {
        let (both, image, runtime) = (["image", "runtime"].as_slice(), ["image"].as_slice(), ["runtime"].as_slice());
        for (nodes, expected) in [
            ([both, both, both], Lane::Runtime),
            ([both, both, image], Lane::Image),
            ([both, runtime, both], Lane::Runtime),
            ([both, runtime, image], Lane::Image),
            ([both, runtime, &[]], Lane::Runtime),
            ([image, both, both], Lane::Image),
            ([runtime, runtime, runtime], Lane::Runtime),
        ] {
            let found = auto(None, vec![node("n1", nodes[0]), node("n2", nodes[1]), node("n3", nodes[2])]);
            assert_eq!(found, expected, "{nodes:?}");
        }
    }

    #[test]
    fn a_pod_of_the_runtime_lane_stays_in_it() {
        assert_eq!(auto(Some("drover"), vec![node("n1", &["image"]), node("n2", &["image"])]), Lane::Runtime);
    }

    #[test]
    fn what_was_fixed_stays() {
        let mut migration = Migration::new("m", MigrationSpec { lane: Lane::Runtime, ..MigrationSpec::default() });
        assert_eq!(wanted(&migration, Lane::Auto, &pod(None), &[]).lane, Lane::Runtime);
        migration.status = Some(crate::api::MigrationStatus { lane: Some(Lane::Image), ..Default::default() });
        assert_eq!(wanted(&migration, Lane::Auto, &pod(None), &[]).lane, Lane::Image);
        let open = Migration::new("m", MigrationSpec::default());
        assert_eq!(wanted(&open, Lane::Runtime, &pod(None), &[]).lane, Lane::Runtime);
    }

    #[test]
    fn a_missing_lane_is_told_with_its_reason() {
        let profile = NodeProfileStatus {
            lanes: vec![LaneStatus { name: "image".into(), available: false, message: "no CRIU".into() }],
            ..NodeProfileStatus::default()
        };
        assert_eq!(missing(&profile, Lane::Image).as_deref(), Some("cannot restore a checkpoint image: no CRIU"));
        assert!(missing(&profile, Lane::Auto).is_some_and(|why| why.contains("no CRIU") && why.contains("runtime lane")));
        assert_eq!(missing(node("n", &["runtime"]).profile.as_ref().unwrap(), Lane::Auto), None);
    }
}
