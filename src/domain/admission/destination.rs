//! The request for a move: every reason against it, at once.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    ResourceExt as _,
    core::{Selector, SelectorExt as _},
};

use super::{Reason, World};
use crate::{
    api::{Migration, MigrationPolicy},
    domain::{ids::is_dns_subdomain, keys, preflight},
};

/// How many nodes are spelt out when none will do; a cluster may have thousands.
const NODES_NAMED: usize = 10;

/// A destination that an update asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The value: a node's name or `auto`.
    pub value: String,
    /// The key that the user wrote.
    pub key: &'static str,
    /// Whether the value differs from the one in force; otherwise only the key is normalised.
    pub is_new: bool,
    /// The value under the other key where both were written and differ.
    contradicting: Option<String>,
}

/// What the update asks for, if it asks for anything: only an added or changed value does; a removed one never.
pub fn request(old: &Pod, new: &Pod) -> Option<Request> {
    let written = |key: &'static str| {
        let value = new.annotations().get(key)?;
        (old.annotations().get(key) != Some(value)).then(|| (key, value.clone()))
    };
    let (full, bare) = (written(keys::MIGRATE_TO), written(keys::MIGRATE_TO_BARE));
    let contradicting = match (&full, &bare) {
        (Some((_, full)), Some((_, bare))) if full != bare => Some(bare.clone()),
        _ => None,
    };
    let (key, value) = full.or(bare)?;
    let is_new = old.annotations().get(keys::MIGRATE_TO) != Some(&value);
    Some(Request { value, key, is_new, contradicting })
}

/// Every reason against moving the pod to where the request says.
pub fn reasons(pod: &Pod, request: &Request, world: &World) -> Vec<Reason> {
    let field = format!("metadata.annotations[{}]", request.key);
    let mut reasons = Vec::new();
    if let Some(other) = &request.contradicting {
        let message = format!("says {:?}, and {} says {other:?}", request.value, keys::MIGRATE_TO_BARE);
        reasons.push(Reason::new(&field, message, "set one of the two keys"));
    }
    reasons.extend(place_reasons(pod, &request.value, &field, world));
    reasons.extend(active_migration(pod, &world.migrations).map(|m| {
        let message = format!("Migration {} of this pod is in phase {}", m.name_any(), m.phase());
        Reason::new(&field, message, format!("wait until it has ended, or cancel it: kubectl delete migration {}", m.name_any()))
    }));
    if !world.policies.is_empty() && !world.policies.iter().any(|p| permits(p, pod, world)) {
        let names: Vec<_> = world.policies.iter().map(kube::ResourceExt::name_any).collect();
        reasons.push(Reason::new(
            &field,
            format!("no MigrationPolicy permits this pod to move (there are: {})", names.join(", ")),
            "ask the cluster's administrator to select this pod or namespace in one",
        ));
    }
    reasons.extend(preflight::blockers(pod).into_iter().map(Reason::from));
    reasons
}

fn place_reasons(pod: &Pod, value: &str, field: &str, world: &World) -> Vec<Reason> {
    let current = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
    if value == keys::AUTO {
        return auto_reason(current, field, world).into_iter().collect();
    }
    if !is_dns_subdomain(value) {
        let message = format!("{value:?} is no node's name");
        return vec![Reason::new(field, message, "write a node's name (lower-case letters, digits, '-' and '.') or auto")];
    }
    let mut reasons = Vec::new();
    if current == Some(value) {
        reasons.push(Reason::new(field, format!("the pod runs on node {value} already"), "name another node, or auto"));
    }
    match world.nodes.iter().find(|n| n.name_any() == value) {
        None => {
            let able: Vec<_> = able_nodes(current, world).take(NODES_NAMED).collect();
            let remedy =
                if able.is_empty() { "kubectl get nodes lists them".to_owned() } else { format!("nodes that can take it: {}", able.join(", ")) };
            reasons.push(Reason::new(field, format!("node {value} does not exist"), remedy));
        }
        Some(node) => reasons.extend(node_problems(node, world).into_iter().map(|(message, remedy)| Reason::new(field, message, remedy))),
    }
    reasons
}

fn auto_reason(current: Option<&str>, field: &str, world: &World) -> Option<Reason> {
    if able_nodes(current, world).next().is_some() {
        return None;
    }
    let others: Vec<_> = world.nodes.iter().filter(|n| Some(n.name_any().as_str()) != current).collect();
    let mut why: Vec<_> = others.iter().take(NODES_NAMED).filter_map(|n| Some(node_problems(n, world).first()?.0.clone())).collect();
    if others.len() > NODES_NAMED {
        why.push(format!("and {} more", others.len() - NODES_NAMED));
    }
    let detail = if why.is_empty() { "the cluster has no other node".to_owned() } else { why.join("; ") };
    Some(Reason::new(field, format!("no other node can take the pod: {detail}"), "kubectl drover nodes shows what each node lacks"))
}

fn able_nodes<'a>(current: Option<&'a str>, world: &'a World) -> impl Iterator<Item = String> + 'a {
    world.nodes.iter().filter(move |n| Some(n.name_any().as_str()) != current && node_problems(n, world).is_empty()).map(kube::ResourceExt::name_any)
}

/// Why a node cannot take a migrated pod, each with its remedy; empty where it can.
#[must_use]
pub fn node_problems(node: &Node, world: &World) -> Vec<(String, String)> {
    let name = node.name_any();
    let mut problems = Vec::new();
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    if !conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True") {
        problems.push((format!("node {name} is not Ready"), format!("kubectl describe node {name}")));
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false) {
        problems.push((format!("node {name} is unschedulable"), format!("kubectl uncordon {name}, or name another node")));
    }
    let agent = "is Drover's agent running there? kubectl get pods -A -o wide shows it";
    let Some(profile) = world.profiles.iter().find(|p| p.name_any() == name) else {
        problems.push((format!("node {name} has no NodeProfile"), agent.to_owned()));
        return problems;
    };
    let status = profile.status.clone().unwrap_or_default();
    match status.observed_at {
        None => problems.push((format!("NodeProfile {name} was never filled"), agent.to_owned())),
        Some(seen) if world.now.duration_since(seen.0) > world.profile_lifetime => {
            let age = world.now.duration_since(seen.0).as_secs();
            problems.push((format!("NodeProfile {name} is {age} s old"), agent.to_owned()));
        }
        Some(_) => {}
    }
    if !status.lanes.iter().any(|l| l.available) {
        let why: Vec<_> = status.lanes.iter().map(|l| format!("{}: {}", l.name, l.message)).collect();
        let remedy = if why.is_empty() { format!("kubectl get nodeprofile {name} -o yaml") } else { why.join("; ") };
        problems.push((format!("node {name} has no lane available"), remedy));
    }
    problems
}

/// The Migration that has not ended and owns this pod, as source or as replacement. One that only checks touches nothing.
fn active_migration<'a>(pod: &Pod, migrations: &'a [Migration]) -> Option<&'a Migration> {
    let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
    migrations.iter().filter(|m| !m.is_done() && !m.spec.check_only && m.namespace() == pod.namespace()).find(|m| {
        let source = m.status.as_ref().and_then(|s| s.source.as_ref());
        let is_source = source.map_or(m.spec.pod_name.as_ref() == Some(&name), |s| s.uid == uid);
        let is_replacement = m.status.as_ref().and_then(|s| s.replacement.as_ref()).is_some_and(|r| r.uid == uid && !uid.is_empty());
        is_source || is_replacement
    })
}

/// A selector that cannot be read selects nothing: a policy never permits by mistake.
fn permits(policy: &MigrationPolicy, pod: &Pod, world: &World) -> bool {
    let matches = |selector: &Option<_>, labels| match selector.clone() {
        None => true,
        Some(selector) => Selector::try_from(selector).is_ok_and(|s: Selector| s.matches(labels)),
    };
    matches(&policy.spec.namespace_selector, &world.namespace_labels) && matches(&policy.spec.pod_selector, pod.labels())
}
