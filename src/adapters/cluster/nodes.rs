//! Nodes and their profiles from a watch. Each look at a migration asks for two of them, and a list of all nodes for each look costs what nodes times
//! migrations cost.
//!
//! # Guarantees
//! An answer is as old as the watch is late, no older than [`TRUSTED`] by the profiles' own word: where they say nothing newer, the API server is asked.
//! The one rule that goes by a node's state, whether the source may stay frozen beside a released copy (R8), asks the API server itself.

use std::{collections::HashMap, time::Duration};

use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt as _,
    api::ListParams,
    runtime::{
        WatchStreamExt as _,
        reflector::{self, ObjectRef, Store},
        watcher::{self, ExponentialBackoff},
    },
};
use tokio_util::sync::CancellationToken;

use super::{KubeCluster, found, port_error};
use crate::{
    api::NodeProfile,
    domain::{migration::age, preflight::NodeView},
    ports::{Clock as _, PortResult, SystemClock},
};

/// Agents write their profiles every 30 s: what has heard of none for so long may be cut off.
const TRUSTED: Duration = Duration::from_mins(1);

/// The nodes and profiles that a watch has told of.
#[derive(Clone)]
pub struct NodeWatch {
    nodes: Store<Node>,
    profiles: Store<NodeProfile>,
}

impl NodeWatch {
    /// The watch, and what keeps it up until cancelled; `backoff` says how soon it is begun again.
    pub fn new(client: &Client, backoff: fn() -> ExponentialBackoff, stop: CancellationToken) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let ((nodes, of_nodes), (profiles, of_profiles)) = (reflector::store(), reflector::store());
        let every = watcher::Config::default;
        let nodes_change = watcher::watcher(Api::<Node>::all(client.clone()), every()).modify(|node| {
            node.managed_fields_mut().clear();
            // Nobody asks for them, and they are most of a node.
            if let Some(status) = &mut node.status {
                status.images = None;
            }
        });
        let profiles_change =
            watcher::watcher(Api::<NodeProfile>::all(client.clone()), every()).modify(|profile| profile.managed_fields_mut().clear());
        let nodes_change = nodes_change.backoff(backoff()).reflect(of_nodes).map(|change| change.map(drop));
        let profiles_change = profiles_change.backoff(backoff()).reflect(of_profiles).map(|change| change.map(drop));
        let following = async move {
            let mut changes = std::pin::pin!(futures::stream::select(nodes_change, profiles_change));
            while let Some(Some(change)) = stop.run_until_cancelled(changes.next()).await {
                if let Err(error) = change {
                    tracing::warn!(%error, "the watch of the nodes is tried again");
                }
            }
        };
        (Self { nodes, profiles }, following)
    }

    /// Every node with its profile; none where the API server must be asked.
    pub(super) fn all(&self, now: Timestamp) -> Option<Vec<NodeView>> {
        let is_live = || self.profiles.state().iter().any(|profile| is_fresh(profile, now));
        (self.is_ready() && is_live()).then(|| self.nodes.state().iter().map(|node| self.view(node)).collect())
    }

    /// Those of these nodes that exist; none where the API server must be asked.
    pub(super) fn named(&self, names: &[&str], now: Timestamp) -> Option<Vec<NodeView>> {
        let is_told_of = |name: &&str| self.profiles.get(&ObjectRef::new(name)).is_some_and(|profile| is_fresh(&profile, now));
        let found = || names.iter().filter_map(|name| self.nodes.get(&ObjectRef::new(name))).map(|node| self.view(&node)).collect();
        (self.is_ready() && names.iter().all(is_told_of)).then(found)
    }

    fn is_ready(&self) -> bool {
        let ready = |waited: Option<Result<(), _>>| waited.is_some_and(|waited: Result<(), reflector::store::WriterDropped>| waited.is_ok());
        ready(self.nodes.wait_until_ready().now_or_never()) && ready(self.profiles.wait_until_ready().now_or_never())
    }

    fn view(&self, node: &Node) -> NodeView {
        NodeView::new(node, self.profiles.get(&ObjectRef::new(&node.name_any())).as_deref())
    }
}

impl KubeCluster {
    pub(super) async fn all_nodes(&self) -> PortResult<Vec<NodeView>> {
        match self.watched.as_ref().and_then(|watched| watched.all(SystemClock.now())) {
            Some(known) => Ok(known),
            None => node_views(&self.client).await,
        }
    }

    pub(super) async fn these_nodes(&self, names: &[&str]) -> PortResult<Vec<NodeView>> {
        match self.watched.as_ref().and_then(|watched| watched.named(names, SystemClock.now())) {
            Some(known) => Ok(known),
            None => Ok(node_views(&self.client).await?.into_iter().filter(|node| names.contains(&node.name.as_str())).collect()),
        }
    }

    /// Those of these nodes that exist, as the API server has them now.
    pub(super) async fn read_nodes(&self, names: &[&str]) -> PortResult<Vec<NodeView>> {
        let (nodes, profiles): (Api<Node>, Api<NodeProfile>) = (Api::all(self.client.clone()), Api::all(self.client.clone()));
        let mut views = vec![];
        for name in names.iter().filter(|name| !name.is_empty()) {
            let Some(node) = found(nodes.get(name).await, "read a node")? else { continue };
            let profile = found(profiles.get(name).await, "read a node's profile")?;
            views.push(NodeView::new(&node, profile.as_ref()));
        }
        Ok(views)
    }
}

/// Every node with its profile.
pub(in crate::adapters) async fn node_views(client: &Client) -> PortResult<Vec<NodeView>> {
    let (nodes, profiles): (Api<Node>, Api<NodeProfile>) = (Api::all(client.clone()), Api::all(client.clone()));
    let every = ListParams::default();
    let (nodes, profiles) = tokio::try_join!(async { nodes.list(&every).await.map_err(|e| port_error("list the nodes", &e)) }, async {
        profiles.list(&every).await.map_err(|e| port_error("list the node profiles", &e))
    },)?;
    let profiles: HashMap<String, &NodeProfile> = profiles.iter().map(|profile| (profile.name_any(), profile)).collect();
    Ok(nodes.iter().map(|node| NodeView::new(node, profiles.get(&node.name_any()).copied())).collect())
}

fn is_fresh(profile: &NodeProfile, now: Timestamp) -> bool {
    let observed = profile.status.as_ref().and_then(|status| status.observed_at.as_ref());
    observed.is_some_and(|observed| age(observed.0, now) < TRUSTED)
}

#[cfg(test)]
mod tests {
    use kube::runtime::watcher::Event;
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// A watch that has told of n1, observed at second 100, and of n2, which has no agent.
    fn told() -> NodeWatch {
        let ((nodes, mut of_nodes), (profiles, mut of_profiles)) = (reflector::store(), reflector::store());
        let watch = NodeWatch { nodes, profiles };
        assert_eq!(watch.all(at(100)), None, "nothing was told yet");
        of_nodes.apply_watcher_event(&Event::Init);
        for name in ["n1", "n2"] {
            let node: Node = serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"unschedulable": true}})).unwrap();
            of_nodes.apply_watcher_event(&Event::InitApply(node));
        }
        of_nodes.apply_watcher_event(&Event::InitDone);
        let profile: NodeProfile = serde_json::from_value(json!({
            "apiVersion": "drover.dev/v1alpha1", "kind": "NodeProfile", "metadata": {"name": "n1"}, "spec": {},
            "status": {"observedAt": at(100).to_string(), "gate": {"installed": true}}
        }))
        .unwrap();
        assert_eq!(watch.all(at(100)), None, "no profile was told yet");
        of_profiles.apply_watcher_event(&Event::Init);
        of_profiles.apply_watcher_event(&Event::InitApply(profile));
        of_profiles.apply_watcher_event(&Event::InitDone);
        watch
    }

    #[test]
    fn what_was_told_is_answered() {
        let all = told().all(at(110)).unwrap();
        let mut known: Vec<_> = all.iter().map(|node| (node.name.as_str(), node.cordoned, node.is_gated())).collect();
        known.sort_unstable();
        assert_eq!(known, [("n1", true, true), ("n2", true, false)]);
        assert_eq!(told().named(&["n1"], at(110)).unwrap().iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["n1"]);
    }

    #[test]
    fn what_may_be_cut_off_or_unknown_is_asked_for() {
        assert_eq!(told().all(at(160)), None);
        assert_eq!(told().named(&["n1"], at(160)), None);
        assert_eq!(told().named(&["n1", "n2"], at(110)), None, "n2 has no agent, or one that was not told of yet");
    }
}
