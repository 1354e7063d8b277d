//! Moves pods away from nodes that have too much to do ([`crate::domain::rebalance`]).
//!
//! # Guarantees
//! Runs on the leader alone, which remembers the reports of the last window: a new leader waits for one. It reads pods only of nodes that are overloaded.
//! With [`Mode::DryRun`] it makes nothing, and says in an Event of the node what it would do.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Namespace, Node, ObjectReference, Pod},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, PostParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    api::{Migration, MigrationPolicy, NodeProfile},
    domain::{
        keys,
        load::Amount,
        migration::age,
        quantity,
        rebalance::{History, Mode, NodeLoad, Proposal, Seen, Settings, plan},
    },
    metrics::Metrics,
    ports::{Clock as _, SystemClock},
};

/// How often it looks; agents report as often.
const LOOK: Duration = Duration::from_secs(15);
/// A look's limit.
const LIMIT: Duration = Duration::from_secs(30);
/// How long after an Event about a pod the next one comes, where nothing is done about it.
const TOLD_AGAIN: Duration = Duration::from_mins(10);

/// The controller.
pub struct Rebalancer {
    client: Client,
    recorder: Recorder,
    /// Its pods stay: they do the work.
    own_namespace: String,
    mode: Mode,
    settings: Settings,
    metrics: Metrics,
    history: History,
    /// UIDs of pods that were proposed, and when.
    told: HashMap<String, Timestamp>,
}

impl Rebalancer {
    /// The controller; `instance` is the manager's pod name, which its Events carry.
    #[must_use]
    pub fn new(client: Client, own_namespace: String, instance: String, mode: Mode, settings: Settings, metrics: Metrics) -> Self {
        let reporter = Reporter { controller: keys::MANAGER.to_owned(), instance: Some(instance) };
        let recorder = Recorder::new(client.clone(), reporter);
        Self { client, recorder, own_namespace, mode, settings, metrics, history: History::default(), told: HashMap::new() }
    }

    /// Works until the token is cancelled.
    ///
    /// # Errors
    /// Never; what a look meets is logged, and the next one tries again.
    pub async fn run(mut self, token: CancellationToken) -> anyhow::Result<()> {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while token.run_until_cancelled(looks.tick()).await.is_some() {
            match tokio::time::timeout(LIMIT, self.look()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(%error, "the nodes' load could not be looked at"),
                Err(_) => warn!("the API server did not answer within {} s", LIMIT.as_secs()),
            }
        }
        Ok(())
    }

    async fn look(&mut self) -> Result<(), kube::Error> {
        let nodes = self.loads().await?;
        self.history.note(&nodes, self.settings.window);
        let now = SystemClock.now();
        let overloaded: Vec<String> = self.history.overloaded(&self.settings, now).into_iter().map(str::to_owned).collect();
        if overloaded.is_empty() {
            return Ok(());
        }
        let seen = self.observe(nodes, &overloaded).await?;
        let overloaded: Vec<&str> = overloaded.iter().map(String::as_str).collect();
        for proposal in plan(&overloaded, &seen, &self.settings, now) {
            self.propose(&proposal, now).await?;
        }
        self.told.retain(|_, told| age(*told, now) < TOLD_AGAIN);
        Ok(())
    }

    /// The nodes whose agents report.
    async fn loads(&self) -> Result<Vec<NodeLoad>, kube::Error> {
        let every = ListParams::default();
        let profiles = Api::<NodeProfile>::all(self.client.clone()).list(&every).await?;
        let nodes = Api::<Node>::all(self.client.clone()).list(&every).await?;
        let load = |node: &Node| {
            let usage = profiles.iter().find(|profile| profile.name_any() == node.name_any())?.status.as_ref()?.usage.clone()?;
            Some(NodeLoad { name: node.name_any(), takes_pods: takes_pods(node), allocatable: allocatable(node), usage })
        };
        Ok(nodes.iter().filter_map(load).collect())
    }

    async fn observe(&self, nodes: Vec<NodeLoad>, overloaded: &[String]) -> Result<Seen, kube::Error> {
        let every = ListParams::default();
        let mut pods = vec![];
        for node in overloaded {
            let on_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
            pods.extend(Api::<Pod>::all(self.client.clone()).list(&on_node).await?.items);
        }
        pods.retain(|pod| pod.namespace().as_deref() != Some(&self.own_namespace));
        let mut namespaces = BTreeMap::new();
        for namespace in pods.iter().filter_map(ResourceExt::namespace).collect::<BTreeSet<_>>() {
            let found = Api::<Namespace>::all(self.client.clone()).get_metadata_opt(&namespace).await?;
            namespaces.insert(namespace, found.and_then(|found| found.metadata.labels).unwrap_or_default());
        }
        let policies = Api::<MigrationPolicy>::all(self.client.clone()).list(&every).await?.items;
        let migrations = Api::<Migration>::all(self.client.clone()).list(&every).await?.items;
        Ok(Seen { nodes, pods, migrations, policies, namespaces })
    }

    async fn propose(&mut self, proposal: &Proposal, now: Timestamp) -> Result<(), kube::Error> {
        let (name, namespace) = (proposal.migration.name_any(), proposal.migration.namespace().unwrap_or_default());
        let pod = proposal.migration.annotations().get(keys::POD_UID).cloned().unwrap_or_default();
        if self.mode == Mode::On {
            let api: Api<Migration> = Api::namespaced(self.client.clone(), &namespace);
            let params = PostParams { field_manager: Some(keys::MANAGER.to_owned()), ..PostParams::default() };
            match api.create(&params, &proposal.migration).await {
                Ok(_) => info!(migration = name, namespace, why = proposal.why, "a pod leaves an overloaded node"),
                Err(kube::Error::Api(status)) if status.is_already_exists() => return Ok(()),
                Err(kube::Error::Api(status)) if status.is_forbidden() || status.is_invalid() => {
                    warn!(migration = name, namespace, "a move of the rebalancer's was refused: {}", status.message);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        } else if self.told.contains_key(&pod) {
            return Ok(());
        }
        self.metrics.rebalanced(self.mode == Mode::On);
        self.told.insert(pod, now);
        self.tell(proposal).await;
        Ok(())
    }

    async fn tell(&self, proposal: &Proposal) {
        let (reason, text) = match self.mode {
            Mode::On => ("Rebalancing", proposal.why.clone()),
            Mode::Off | Mode::DryRun => ("RebalanceProposed", format!("nothing is done (dry run): {}", proposal.why)),
        };
        let event = Event {
            type_: EventType::Normal,
            reason: reason.to_owned(),
            note: Some(text.chars().take(keys::LONGEST_NOTE).collect()),
            action: "Rebalance".to_owned(),
            secondary: None,
        };
        // Events of a node are found by its name as their UID (kubelet and kubectl describe node).
        let node = Some(proposal.from.clone());
        let about = ObjectReference { kind: Some("Node".into()), name: node.clone(), uid: node, ..ObjectReference::default() };
        if let Err(error) = self.recorder.publish(&event, &about).await {
            warn!(%error, node = proposal.from, "the Event was not written");
        }
    }
}

fn takes_pods(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let is_cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
    !is_cordoned && conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn allocatable(node: &Node) -> Amount {
    let of = |name: &str| node.status.as_ref().and_then(|status| status.allocatable.as_ref()?.get(name));
    let amount = |name: &str, read: fn(&Quantity) -> Option<u64>| of(name).and_then(read).unwrap_or_default();
    Amount { cpu_millis: amount("cpu", quantity::millis), memory_bytes: amount("memory", quantity::bytes) }
}
