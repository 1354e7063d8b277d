//! Empties cordoned nodes, and nodes whose pods are to be evicted ([`crate::domain::evacuation`]).
//!
//! # Guarantees
//! Runs on the leader alone, so that the limits of the policies are not raced for. It decides from one set of reads and forgets it; what it makes has a name that
//! comes from the pod, so that doing it again does nothing. Where no policy speaks of evacuations it reads the policies and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod};
use kube::{
    Api, Client, Resource as _, ResourceExt,
    api::{DeleteParams, ListParams, Preconditions},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{
    eviction_requests,
    leaving::{self, Looks, keep_looking, pods_on, tell_node},
};
use crate::{
    api::{Migration, Outcome},
    domain::{
        evacuation::{Action, Seen, deadline, evacuates, plan},
        keys,
        preflight::NodeView,
    },
    ports::{Clock as _, SystemClock},
};

/// How often it looks.
const LOOK: Duration = Duration::from_secs(2);

/// The controller.
pub struct EvacuationController {
    client: Client,
    recorder: Recorder,
    /// Its pods stay: they do the work.
    own_namespace: String,
    /// Whether it answers evictions of the API `lifecycle.k8s.io`.
    eviction_requests: bool,
    /// Keys of the taints that cordon a node as well as its `spec.unschedulable` does.
    taints: Vec<String>,
    /// UIDs of the evacuations that have failed, and of the pods that are too late, and were told of.
    told: HashSet<String>,
}

impl Looks for EvacuationController {
    const EVERY: Duration = LOOK;
    const AT: &'static str = "the nodes that are to be emptied";

    async fn look(&mut self) -> Result<(), kube::Error> {
        let Some(seen) = self.observe().await? else { return Ok(()) };
        self.tell_late(&seen).await;
        for action in plan(&seen, SystemClock.now()) {
            match action {
                Action::Make(migration) => self.make(&migration).await?,
                Action::Delete(migration) => self.delete(&migration).await?,
            }
        }
        self.tell(&seen).await;
        eviction_requests::answer(&self.client, &seen, SystemClock.now()).await
    }
}

impl EvacuationController {
    /// The controller; `instance` is the manager's pod name, which its Events carry.
    #[must_use]
    pub fn new(client: Client, own_namespace: String, instance: String, eviction_requests: bool, taints: Vec<String>) -> Self {
        let reporter = Reporter { controller: keys::MANAGER.to_owned(), instance: Some(instance) };
        Self { recorder: Recorder::new(client.clone(), reporter), client, own_namespace, eviction_requests, taints, told: HashSet::new() }
    }

    /// Works until the token is cancelled.
    ///
    /// # Errors
    /// Never; what a look meets is logged, and the next one tries again.
    pub async fn run(self, token: CancellationToken) -> anyhow::Result<()> {
        keep_looking(self, token).await;
        Ok(())
    }

    async fn observe(&mut self) -> Result<Option<Seen>, kube::Error> {
        let policies = leaving::policies(&self.client).await?;
        let evictions = if self.eviction_requests { eviction_requests::awaited(&self.client).await? } else { vec![] };
        if evictions.is_empty() && policies.iter().all(|policy| policy.spec.evacuation.is_none()) {
            return Ok(None);
        }
        let nodes = Api::<Node>::all(self.client.clone()).list(&ListParams::default()).await?;
        let cordoned: BTreeSet<String> = nodes.iter().filter(|node| is_leaving(node, &self.taints)).map(ResourceExt::name_any).collect();
        let deadlines = self.deadlines(&nodes.items).await;
        let to_be_evicted = ListParams::default().labels(keys::EVICTION_REQUESTED);
        let mut pods = Api::<Pod>::all(self.client.clone()).list(&to_be_evicted).await?.items;
        pods.extend(pods_on(&self.client, &cordoned).await?);
        pods.extend(eviction_requests::pods_of(&self.client, &evictions).await?);
        let seen = leaving::seen(&self.client, &self.own_namespace, pods, policies).await?;
        Ok(Some(Seen { cordoned, deadlines, evictions, ..seen }))
    }

    /// When nodes go. What cannot be read is told on the node, once for each text.
    async fn deadlines(&mut self, nodes: &[Node]) -> BTreeMap<String, Timestamp> {
        let mut deadlines = BTreeMap::new();
        for node in nodes {
            match deadline::of_node(node) {
                Ok(Some(at)) => {
                    deadlines.insert(node.name_any(), at);
                }
                Err(problem) if self.told.insert(format!("{}: {problem}", node.name_any())) => {
                    tell_node(&self.recorder, &node.name_any(), warning("EvacuateByUnreadable", problem, None)).await;
                }
                Ok(None) | Err(_) => {}
            }
        }
        deadlines
    }

    async fn make(&self, migration: &Migration) -> Result<(), kube::Error> {
        if leaving::make(&self.client, migration).await? {
            info!(migration = migration.name_any(), namespace = migration.namespace(), node = evacuates(migration), "a pod leaves its node");
            leaving::tell_fallen_back(&self.recorder, evacuates(migration).unwrap_or_default(), migration).await;
        }
        Ok(())
    }

    async fn delete(&self, migration: &Migration) -> Result<(), kube::Error> {
        let (name, namespace) = (migration.name_any(), migration.namespace().unwrap_or_default());
        let api: Api<Migration> = Api::namespaced(self.client.clone(), &namespace);
        let seen = Preconditions { uid: migration.uid(), resource_version: migration.resource_version() };
        match api.delete(&name, &DeleteParams::default().preconditions(seen)).await {
            Ok(_) => info!(migration = name, namespace, node = evacuates(migration), "an evacuation is called off, or forgotten to be tried again"),
            // It has gone on meanwhile.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// What cannot leave is told on its node, once.
    async fn tell(&mut self, seen: &Seen) {
        for migration in &seen.migrations {
            let Some(status) = migration.status.as_ref().filter(|status| status.outcome.is_some_and(|outcome| outcome != Outcome::Migrated)) else {
                continue;
            };
            let (Some(node), Some(uid)) = (evacuates(migration), migration.uid()) else { continue };
            if !self.told.insert(uid) {
                continue;
            }
            let pod = migration.spec.pod_name.clone().unwrap_or_default();
            let text = format!("pod {}/{pod} stays: {}", migration.namespace().unwrap_or_default(), status.message);
            tell_node(&self.recorder, node, warning("EvacuationFailed", text, Some(migration.object_ref(&())))).await;
        }
    }

    /// What will probably not have left in time is told on its node at once, once for each pod and time.
    async fn tell_late(&mut self, seen: &Seen) {
        for late in deadline::late(seen, SystemClock.now()) {
            let known = format!("{} {:?}", late.pod.uid().unwrap_or_default(), seen.deadlines.get(late.node));
            if self.told.insert(known) {
                tell_node(&self.recorder, late.node, warning("EvacuationTooLate", late.message, Some(late.pod.object_ref(&())))).await;
            }
        }
    }
}

fn warning(reason: &str, note: String, secondary: Option<ObjectReference>) -> Event {
    Event { type_: EventType::Warning, reason: reason.to_owned(), note: Some(note), action: "Evacuate".to_owned(), secondary }
}

/// Whether the pods of a node are to leave it: it is cordoned, or has one of these taints.
fn is_leaving(node: &Node, taints: &[String]) -> bool {
    let tainted = || node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).any(|taint| taints.contains(&taint.key));
    NodeView::new(node, None).cordoned || tainted()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cordon_or_a_taint_that_was_named_empties_a_node() {
        let node = |spec| -> Node { serde_json::from_value(json!({"metadata": {"name": "n1"}, "spec": spec})).unwrap() };
        let taints = ["cloud.example/interrupted".to_owned()];
        assert!(is_leaving(&node(json!({"unschedulable": true})), &taints));
        assert!(is_leaving(&node(json!({"taints": [{"key": "cloud.example/interrupted", "effect": "NoSchedule"}]})), &taints));
        assert!(!is_leaving(&node(json!({"taints": [{"key": "other", "effect": "NoSchedule"}]})), &taints));
    }
}
