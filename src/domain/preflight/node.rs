//! Blockers that stand in the nodes: who can checkpoint, who can restore.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;

use super::{Blocker, Facts, lane, post_copy};
use crate::{
    api::{
        NodeProfile, NodeProfileStatus,
        migration::{Destination, Lane},
    },
    domain::quantity::mebibytes,
};

/// A profile that is older than this is taken for a dead agent's. The agent writes one every 30 s.
pub const PROFILE_LIFETIME: Duration = Duration::from_mins(2);

/// How many nodes are spelt out; a cluster may have thousands.
const NODES_NAMED: usize = 10;
/// A node with less free space for checkpoints takes none: not even a small program fits, and whatever else lives on that disk is in trouble already.
/// What cannot be found out counts as none.
const LEAST_FREE_BYTES: u64 = 64 << 20;
/// The field that names the node to go to.
const TO_NODE: &str = "spec.destination.nodeName";

/// What preflight knows of a node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// Condition Ready.
    pub ready: bool,
    /// `spec.unschedulable`: cordoned.
    pub cordoned: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What its agent wrote; none where there is no agent.
    pub profile: Option<NodeProfileStatus>,
}

impl NodeView {
    /// A node with its profile.
    #[must_use]
    pub fn new(node: &Node, profile: Option<&NodeProfile>) -> Self {
        let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        Self {
            name: node.name_any(),
            ready: conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"),
            cordoned: node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false),
            labels: node.labels().clone(),
            profile: profile.and_then(|p| p.status.clone()),
        }
    }

    fn blocker(&self, field: &str, problem: &str, remedy: impl Into<String>) -> Blocker {
        Blocker::new(field, format!("node {} {problem}", self.name), remedy)
    }

    fn agent_blocker(&self, field: &str, facts: &Facts) -> Option<Blocker> {
        let remedy = "look at its drover-agent pod: kubectl get pods -A -o wide";
        let Some(seen) = self.profile.as_ref().and_then(|profile| profile.observed_at.as_ref()) else {
            return Some(self.blocker(field, "has no NodeProfile: no agent of Drover's runs there", remedy));
        };
        let age = Duration::try_from(facts.now.duration_since(seen.0)).unwrap_or_default();
        (age > PROFILE_LIFETIME).then(|| self.blocker(field, &format!("has a silent agent, last seen {} s ago", age.as_secs()), remedy))
    }

    /// Whether its runtime runs the gate for every container. A node that does not say so counts as one without.
    #[must_use]
    pub fn is_gated(&self) -> bool {
        self.profile.as_ref().is_some_and(|profile| profile.gate.installed)
    }

    fn source_blockers(&self, facts: &Facts) -> Vec<Blocker> {
        // Should the migration fall back, the pod is restored here.
        let lane = self.profile.as_ref().filter(|_| facts.lane == Lane::Runtime).and_then(|profile| lane::missing(profile, facts.lane));
        let lane = lane.map(|problem| self.blocker("spec.lane", &problem, "mend that, or use auto or image"));
        let post_copy = self.profile.as_ref().filter(|_| facts.post_copy).and_then(|profile| post_copy::agent_blocker(&self.name, profile));
        self.agent_blocker("spec.nodeName", facts).into_iter().chain(lane).chain(post_copy).collect()
    }

    /// Why it cannot take a pod of a node with the profile `source`.
    fn destination_blockers(&self, facts: &Facts, source: Option<&NodeProfileStatus>) -> Vec<Blocker> {
        let (name, mut found) = (&self.name, vec![]);
        if !self.ready {
            found.push(self.blocker(TO_NODE, "is not Ready", format!("kubectl describe node {name} says why, or name another node")));
        }
        if self.cordoned {
            found.push(self.blocker(TO_NODE, "is cordoned", format!("kubectl uncordon {name}, or name another node")));
        }
        found.extend(self.agent_blocker(TO_NODE, facts));
        let claims = facts.claims.iter().flatten().filter_map(|(name, claim)| claim.blocker(name, &self.name, &self.labels));
        found.extend(claims.map(|problem| self.blocker(TO_NODE, &problem, "name a node that can: kubectl get pv -o yaml")));
        let Some(profile) = &self.profile else { return found };
        found.extend(lane::missing(profile, facts.lane).map(|problem| self.blocker(TO_NODE, &problem, "mend that, or name another node")));
        if facts.post_copy {
            found.extend(post_copy::gate_blocker(self).into_iter().chain(post_copy::agent_blocker(name, profile)));
        }
        if profile.free_bytes < LEAST_FREE_BYTES {
            let problem = format!("has {} free for checkpoints", mebibytes(profile.free_bytes));
            found.push(self.blocker(TO_NODE, &problem, "free space under /var/lib there, or name another node"));
        }
        if let Some(source) = source {
            found.extend(self.differences(profile, source));
        }
        found
    }

    /// What the source's processes rely on and would not find here.
    fn differences(&self, own: &NodeProfileStatus, source: &NodeProfileStatus) -> Vec<Blocker> {
        let mut found = vec![];
        let mut differs = |problem: &str, remedy: &str| found.push(self.blocker(TO_NODE, problem, remedy));
        if own.architecture != source.architecture {
            let problem = format!("has architecture {}, the source has {}", own.architecture, source.architecture);
            differs(&problem, "name a node of the same architecture");
        }
        let missing: Vec<_> = source.cpu_features.iter().filter(|flag| !own.cpu_features.contains(flag)).map(String::as_str).collect();
        if !missing.is_empty() {
            differs(&format!("lacks CPU features of the source: {}", missing.join(", ")), "name a node with the same CPU");
        }
        if own.runtime != source.runtime && !own.runtime.is_empty() && !source.runtime.is_empty() {
            let problem = format!("has the container runtime {}, the source has {}", own.runtime, source.runtime);
            differs(&problem, "name a node with the same container runtime");
        }
        if kernel_version(&own.kernel).zip(kernel_version(&source.kernel)).is_some_and(|(own, source)| own < source) {
            let problem = format!("has kernel {}, which is older than the source's {}", own.kernel, source.kernel);
            differs(&problem, "name a node with the same kernel or a newer one: CRIU does not restore on an older one what it took on a newer one");
        }
        found
    }
}

/// Major and minor version of a kernel release such as `6.12.48+deb13-amd64`; none where it cannot be read.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Every reason in the nodes why a pod cannot go from one to the other.
#[must_use]
pub fn node_blockers(source: &str, destination: &Destination, facts: &Facts) -> Vec<Blocker> {
    let mut found = vec![];
    match facts.nodes.iter().find(|node| node.name == source) {
        Some(node) => found.extend(node.source_blockers(facts)),
        None => found.push(Blocker::new("spec.nodeName", format!("there is no node {source:?}"), "the pod must run on a node")),
    }
    let Some(wanted) = &destination.node_name else {
        if capable_nodes(source, destination, facts).is_empty() {
            let message = format!("no other node can take the pod: {}", why_none(source, destination, facts));
            found.push(Blocker::new("spec.destination", message, "mend one of them; kubectl get nodeprofiles shows what each node can do"));
        }
        return found;
    };
    found.extend(destination_blockers(source, wanted, destination, facts));
    found
}

/// Every reason why a pod of node `source` cannot go to node `wanted`.
#[must_use]
pub fn destination_blockers(source: &str, wanted: &str, destination: &Destination, facts: &Facts) -> Vec<Blocker> {
    if wanted == source {
        return vec![Blocker::new(TO_NODE, format!("the pod runs on node {wanted} already"), "name another node")];
    }
    let Some(node) = facts.nodes.iter().find(|node| node.name == wanted) else {
        return vec![Blocker::new(TO_NODE, format!("node {wanted} does not exist"), others(source, facts))];
    };
    let mut found = vec![];
    if !selected(node, destination) {
        found.push(Blocker::new("spec.destination.nodeSelector", format!("does not select node {wanted}"), "leave one of the two out"));
    }
    found.extend(node.destination_blockers(facts, profile_of(source, facts)));
    found
}

/// The nodes that could be meant instead.
fn others(source: &str, facts: &Facts) -> String {
    let able = capable_nodes(source, &Destination::default(), facts);
    if able.is_empty() {
        return "kubectl get nodes lists them".to_owned();
    }
    format!("nodes that can take it: {}", able[..able.len().min(NODES_NAMED)].join(", "))
}

/// Nodes other than the source that can restore the pod.
#[must_use]
pub fn capable_nodes(source: &str, destination: &Destination, facts: &Facts) -> Vec<String> {
    let profile = profile_of(source, facts);
    candidates(source, destination, facts).filter(|node| node.destination_blockers(facts, profile).is_empty()).map(|node| node.name.clone()).collect()
}

/// The first reason of each node.
fn why_none(source: &str, destination: &Destination, facts: &Facts) -> String {
    let profile = profile_of(source, facts);
    let mut reasons: Vec<_> =
        candidates(source, destination, facts).filter_map(|node| Some(node.destination_blockers(facts, profile).first()?.message.clone())).collect();
    if reasons.is_empty() {
        return "there is none, or the selector selects none".to_owned();
    }
    let more = reasons.len().saturating_sub(NODES_NAMED);
    reasons.truncate(NODES_NAMED);
    if more > 0 {
        reasons.push(format!("and {more} more"));
    }
    reasons.join("; ")
}

fn profile_of<'a>(name: &str, facts: &'a Facts) -> Option<&'a NodeProfileStatus> {
    facts.nodes.iter().find(|node| node.name == name).and_then(|node| node.profile.as_ref())
}

fn candidates<'a>(source: &'a str, destination: &'a Destination, facts: &'a Facts) -> impl Iterator<Item = &'a NodeView> {
    let named = |node: &NodeView| destination.node_name.as_ref().is_none_or(|name| name == &node.name);
    facts.nodes.iter().filter(move |node| node.name != source && named(node) && selected(node, destination))
}

fn selected(node: &NodeView, destination: &Destination) -> bool {
    destination.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::node_profile::{GateStatus, LaneStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn node(name: &str) -> NodeView {
        NodeView {
            name: name.into(),
            ready: true,
            profile: Some(NodeProfileStatus {
                lanes: vec![LaneStatus { name: "image".into(), available: true, message: String::new() }],
                gate: GateStatus { installed: true, message: String::new() },
                architecture: "amd64".into(),
                cpu_features: vec!["avx2".into()],
                runtime: "containerd".into(),
                kernel: "6.12.48+deb13-amd64".into(),
                free_bytes: 1 << 30,
                observed_at: Some(Time(jiff::Timestamp::UNIX_EPOCH)),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn facts(nodes: Vec<NodeView>) -> Facts {
        Facts { nodes, now: jiff::Timestamp::from_second(10).unwrap(), ..Facts::default() }
    }

    fn to(name: &str) -> Destination {
        Destination { node_name: Some(name.into()), ..Default::default() }
    }

    #[test]
    fn two_healthy_nodes_have_no_blocker() {
        let facts = facts(vec![node("n1"), node("n2")]);
        assert_eq!(node_blockers("n1", &to("n2"), &facts), vec![]);
        assert_eq!(capable_nodes("n1", &Destination::default(), &facts), vec!["n2"]);
    }

    #[test]
    fn every_reason_of_a_node_is_told() {
        let mut bad = node("n2");
        bad.ready = false;
        bad.cordoned = true;
        let profile = bad.profile.as_mut().unwrap();
        profile.lanes[0].available = false;
        profile.cpu_features.clear();
        let found = node_blockers("n1", &to("n2"), &facts(vec![node("n1"), bad]));
        assert_eq!(found.len(), 4, "{found:?}");
    }

    #[test]
    fn what_a_restore_would_miss_is_told() {
        let refused = |change: fn(&mut NodeProfileStatus)| {
            let mut other = node("n2");
            change(other.profile.as_mut().unwrap());
            Blocker::join(&node_blockers("n1", &to("n2"), &facts(vec![node("n1"), other])))
        };
        let expect = |change: fn(&mut NodeProfileStatus), text: &str| assert!(refused(change).contains(text), "{text:?}: {}", refused(change));
        expect(|profile| profile.kernel = "6.1.0-37-amd64".into(), "has kernel 6.1.0-37-amd64, which is older than the source's 6.12.48");
        expect(|profile| profile.runtime = "cri-o".into(), "has the container runtime cri-o, the source has containerd");
        expect(|profile| profile.free_bytes = 5 << 20, "has 5 MiB free for checkpoints (free space under /var/lib there");
        expect(|profile| profile.architecture = "arm64".into(), "has architecture arm64");
        for same_or_newer in ["6.12.1", "6.13.0-rc1", "7.0", "unreadable"] {
            let mut other = node("n2");
            other.profile.as_mut().unwrap().kernel = same_or_newer.into();
            assert_eq!(node_blockers("n1", &to("n2"), &facts(vec![node("n1"), other])), vec![], "{same_or_newer}");
        }
    }

    #[test]
    fn an_agent_that_knows_no_post_copy_takes_none_and_sends_none() {
        let knows = |name: &str, post_copy| {
            let mut node = node(name);
            node.profile.as_mut().unwrap().post_copy = post_copy;
            node
        };
        let asked = |source, destination| Facts { post_copy: true, ..facts(vec![knows("n1", source), knows("n2", destination)]) };
        assert_eq!(node_blockers("n1", &to("n2"), &asked(true, true)), vec![]);
        for (source, destination, old) in [(true, false, "node n2"), (false, true, "node n1")] {
            let found = node_blockers("n1", &to("n2"), &asked(source, destination));
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].to_string().contains(&format!("spec.postCopy: the agent of {old} does not say")), "{found:?}");
        }
        assert_eq!(capable_nodes("n1", &Destination::default(), &asked(true, false)), [""; 0], "the scheduler does not choose it either");
        let mut ungated = asked(true, true);
        ungated.nodes[1].profile.as_mut().unwrap().gate.installed = false;
        assert!(Blocker::join(&node_blockers("n1", &to("n2"), &ungated)).contains("spec.postCopy: node n2 has no gate"));
        assert_eq!(node_blockers("n1", &to("n2"), &Facts { post_copy: false, ..asked(false, false) }), vec![]);
    }

    #[test]
    fn a_node_without_the_gate_is_no_blocker() {
        let bare = |name: &str| {
            let mut node = node(name);
            node.profile.as_mut().unwrap().gate = GateStatus { installed: false, message: "no hook".into() };
            node
        };
        assert!(node("n1").is_gated() && !bare("n1").is_gated() && !NodeView::default().is_gated());
        assert_eq!(node_blockers("n1", &to("n2"), &facts(vec![bare("n1"), bare("n2")])), vec![]);
    }

    #[test]
    fn unknown_nodes_and_silent_agents_are_refused() {
        let found = node_blockers("n1", &to("n9"), &facts(vec![node("n1")]));
        assert!(Blocker::join(&found).contains("node n9 does not exist (kubectl get nodes"), "{found:?}");
        let late = Facts { now: jiff::Timestamp::from_second(1000).unwrap(), ..facts(vec![node("n1"), node("n2")]) };
        assert_eq!(node_blockers("n1", &to("n2"), &late).len(), 2);
        assert!(Blocker::join(&node_blockers("n1", &Destination::default(), &late)).contains("last seen"));
    }
}
