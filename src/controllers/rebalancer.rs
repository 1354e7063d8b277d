//! Moves pods away from nodes that have too much to do ([`crate::domain::rebalance`]).
//!
//! # Guarantees
//! Runs on the leader alone, which remembers the reports of the last window: a new leader waits for one. It reads pods only of nodes that are overloaded.
//! With [`Mode::DryRun`] it makes nothing, and says in an Event of the node what it would do.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::api::resource::Quantity};
use kube::{
    Client, ResourceExt,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::leaving::{self, Looks, keep_looking, pods_on, tell_node};
use crate::{
    domain::{
        keys,
        load::Amount,
        migration::age,
        preflight::NodeView,
        quantity,
        rebalance::{History, Mode, NodeLoad, Overloaded, Proposal, Seen, Settings, plan},
    },
    metrics::Metrics,
    ports::{Clock as _, SystemClock},
};

/// How often it looks; agents report as often.
const LOOK: Duration = Duration::from_secs(15);
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

impl Looks for Rebalancer {
    const EVERY: Duration = LOOK;
    const AT: &'static str = "the nodes' load";

    async fn look(&mut self) -> Result<(), kube::Error> {
        let nodes = self.loads().await?;
        self.history.note(&nodes, self.settings.window);
        let now = SystemClock.now();
        let overloaded = self.history.overloaded(&self.settings, now);
        if overloaded.is_empty() {
            return Ok(());
        }
        let seen = self.observe(nodes, &overloaded).await?;
        for proposal in plan(&overloaded, &seen, &self.settings, now) {
            self.propose(&proposal, now).await?;
        }
        self.told.retain(|_, told| age(*told, now) < TOLD_AGAIN);
        Ok(())
    }
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
    pub async fn run(self, token: CancellationToken) -> anyhow::Result<()> {
        keep_looking(self, token).await;
        Ok(())
    }

    /// The nodes whose agents report.
    async fn loads(&self) -> Result<Vec<NodeLoad>, kube::Error> {
        let load = |(node, view): (Node, NodeView)| {
            let takes_pods = view.ready && !view.cordoned;
            Some(NodeLoad { name: view.name, takes_pods, allocatable: allocatable(&node), usage: view.profile?.usage? })
        };
        Ok(leaving::nodes(&self.client).await?.into_iter().filter_map(load).collect())
    }

    async fn observe(&self, nodes: Vec<NodeLoad>, overloaded: &[Overloaded]) -> Result<Seen, kube::Error> {
        let pods = pods_on(&self.client, &overloaded.iter().map(|it| it.node.clone()).collect()).await?;
        let cluster = leaving::seen(&self.client, &self.own_namespace, pods, leaving::policies(&self.client).await?).await?;
        Ok(Seen { nodes, cluster })
    }

    async fn propose(&mut self, proposal: &Proposal, now: Timestamp) -> Result<(), kube::Error> {
        let pod = proposal.migration.annotations().get(keys::POD_UID).cloned().unwrap_or_default();
        let is_news = match self.mode {
            Mode::On => leaving::make(&self.client, &proposal.migration).await?,
            Mode::DryRun => !self.told.contains_key(&pod),
        };
        if !is_news {
            return Ok(());
        }
        info!(migration = proposal.migration.name_any(), mode = ?self.mode, why = proposal.why, "a pod is to leave an overloaded node");
        self.metrics.rebalanced(self.mode == Mode::On);
        self.told.insert(pod, now);
        self.tell(proposal).await;
        if self.mode == Mode::On {
            leaving::tell_fallen_back(&self.recorder, &proposal.from, &proposal.migration).await;
        }
        Ok(())
    }

    async fn tell(&self, proposal: &Proposal) {
        let (reason, text) = match self.mode {
            Mode::On => ("Rebalancing", proposal.why.clone()),
            Mode::DryRun => ("RebalanceProposed", format!("nothing is done (dry run): {}", proposal.why)),
        };
        let event = Event { type_: EventType::Normal, reason: reason.to_owned(), note: Some(text), action: "Rebalance".to_owned(), secondary: None };
        tell_node(&self.recorder, &proposal.from, event).await;
    }
}

fn allocatable(node: &Node) -> Amount {
    let of = |name: &str| node.status.as_ref().and_then(|status| status.allocatable.as_ref()?.get(name));
    let amount = |name: &str, read: fn(&Quantity) -> Option<u64>| of(name).and_then(read).unwrap_or_default();
    Amount { cpu_millis: amount("cpu", quantity::millis), memory_bytes: amount("memory", quantity::bytes) }
}
