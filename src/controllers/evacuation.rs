//! Empties cordoned nodes, and nodes whose pods are to be evicted ([`crate::domain::evacuation`]).
//!
//! # Guarantees
//! Runs on the leader alone, so that the limits of the policies are not raced for. It decides from one set of reads and forgets it; what it makes has a name that
//! comes from the pod, so that doing it again does nothing. Where no policy speaks of evacuations it reads the policies and nothing else.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Node, Pod};
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
        evacuation::{Action, Seen, evacuates, plan},
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
    /// UIDs of the evacuations that have failed and were told of.
    told: HashSet<String>,
}

impl Looks for EvacuationController {
    const EVERY: Duration = LOOK;
    const AT: &'static str = "the nodes that are to be emptied";

    async fn look(&mut self) -> Result<(), kube::Error> {
        let Some(seen) = self.observe().await? else { return Ok(()) };
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
    pub fn new(client: Client, own_namespace: String, instance: String, eviction_requests: bool) -> Self {
        let reporter = Reporter { controller: keys::MANAGER.to_owned(), instance: Some(instance) };
        Self { recorder: Recorder::new(client.clone(), reporter), client, own_namespace, eviction_requests, told: HashSet::new() }
    }

    /// Works until the token is cancelled.
    ///
    /// # Errors
    /// Never; what a look meets is logged, and the next one tries again.
    pub async fn run(self, token: CancellationToken) -> anyhow::Result<()> {
        keep_looking(self, token).await;
        Ok(())
    }

    async fn observe(&self) -> Result<Option<Seen>, kube::Error> {
        let policies = leaving::policies(&self.client).await?;
        let evictions = if self.eviction_requests { eviction_requests::awaited(&self.client).await? } else { vec![] };
        if evictions.is_empty() && policies.iter().all(|policy| policy.spec.evacuation.is_none()) {
            return Ok(None);
        }
        let nodes = Api::<Node>::all(self.client.clone()).list(&ListParams::default()).await?;
        let cordoned: BTreeSet<String> = nodes.iter().filter(|node| NodeView::new(node, None).cordoned).map(ResourceExt::name_any).collect();
        let to_be_evicted = ListParams::default().labels(keys::EVICTION_REQUESTED);
        let mut pods = Api::<Pod>::all(self.client.clone()).list(&to_be_evicted).await?.items;
        pods.extend(pods_on(&self.client, &cordoned).await?);
        pods.extend(eviction_requests::pods_of(&self.client, &evictions).await?);
        let seen = leaving::seen(&self.client, &self.own_namespace, pods, policies).await?;
        Ok(Some(Seen { cordoned, evictions, ..seen }))
    }

    async fn make(&self, migration: &Migration) -> Result<(), kube::Error> {
        if leaving::make(&self.client, migration).await? {
            info!(migration = migration.name_any(), namespace = migration.namespace(), node = evacuates(migration), "a pod leaves its node");
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
            let event = Event {
                type_: EventType::Warning,
                reason: "EvacuationFailed".to_owned(),
                note: Some(text),
                action: "Evacuate".to_owned(),
                secondary: Some(migration.object_ref(&())),
            };
            tell_node(&self.recorder, node, event).await;
        }
    }
}
