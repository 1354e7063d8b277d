//! Empties cordoned nodes, and nodes whose pods are to be evicted ([`crate::domain::evacuation`]).
//!
//! # Guarantees
//! Runs on the leader alone, so that the limits of the policies are not raced for. It decides from one set of reads and forgets it; what it makes has a name that
//! comes from the pod, so that doing it again does nothing. Where no policy speaks of evacuations it reads the policies and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Namespace, Node, ObjectReference, Pod};
use kube::{
    Api, Client, Resource as _, ResourceExt,
    api::{DeleteParams, ListParams, PostParams, Preconditions},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    api::{Migration, MigrationPolicy, Outcome},
    domain::{
        evacuation::{Action, Seen, evacuates, plan},
        keys,
    },
    ports::{Clock as _, SystemClock},
};

/// How often it looks.
const LOOK: Duration = Duration::from_secs(2);
/// A look's limit.
const LIMIT: Duration = Duration::from_secs(30);

/// The controller.
pub struct EvacuationController {
    client: Client,
    recorder: Recorder,
    /// Its pods stay: they do the work.
    own_namespace: String,
    /// UIDs of the evacuations that have failed and were told of.
    told: HashSet<String>,
}

impl EvacuationController {
    /// The controller; `instance` is the manager's pod name, which its Events carry.
    #[must_use]
    pub fn new(client: Client, own_namespace: String, instance: String) -> Self {
        let reporter = Reporter { controller: keys::MANAGER.to_owned(), instance: Some(instance) };
        Self { recorder: Recorder::new(client.clone(), reporter), client, own_namespace, told: HashSet::new() }
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
                Ok(Err(error)) => warn!(%error, "the nodes that are to be emptied could not be looked at"),
                Err(_) => warn!("the API server did not answer within {} s", LIMIT.as_secs()),
            }
        }
        Ok(())
    }

    async fn look(&mut self) -> Result<(), kube::Error> {
        let Some(seen) = self.observe().await? else { return Ok(()) };
        for action in plan(&seen, SystemClock.now()) {
            match action {
                Action::Make(migration) => self.make(&migration).await?,
                Action::Delete(migration) => self.delete(&migration).await?,
            }
        }
        self.tell(&seen).await;
        Ok(())
    }

    async fn observe(&self) -> Result<Option<Seen>, kube::Error> {
        let every = ListParams::default();
        let policies = Api::<MigrationPolicy>::all(self.client.clone()).list(&every).await?.items;
        let migrations = Api::<Migration>::all(self.client.clone());
        if policies.iter().all(|policy| policy.spec.evacuation.is_none()) {
            return Ok(None);
        }
        let nodes = Api::<Node>::all(self.client.clone()).list(&every).await?;
        let is_cordoned = |node: &Node| node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
        let cordoned: BTreeSet<String> = nodes.iter().filter(|node| is_cordoned(node)).map(ResourceExt::name_any).collect();
        let pods = self.candidates(&cordoned).await?;
        let mut namespaces = BTreeMap::new();
        for namespace in pods.iter().filter_map(ResourceExt::namespace).collect::<BTreeSet<_>>() {
            let found = Api::<Namespace>::all(self.client.clone()).get_metadata_opt(&namespace).await?;
            namespaces.insert(namespace, found.and_then(|found| found.metadata.labels).unwrap_or_default());
        }
        Ok(Some(Seen { cordoned, pods, migrations: migrations.list(&every).await?.items, policies, namespaces }))
    }

    /// The pods of cordoned nodes, and those that are to be evicted, each once.
    async fn candidates(&self, cordoned: &BTreeSet<String>) -> Result<Vec<Pod>, kube::Error> {
        let pods = Api::<Pod>::all(self.client.clone());
        let mut found = pods.list(&ListParams::default().labels(keys::EVICTION_REQUESTED)).await?.items;
        for node in cordoned {
            found.extend(pods.list(&ListParams::default().fields(&format!("spec.nodeName={node}"))).await?.items);
        }
        let mut uids = HashSet::new();
        found.retain(|pod| pod.namespace().as_deref() != Some(&self.own_namespace) && uids.insert(pod.uid()));
        Ok(found)
    }

    async fn make(&self, migration: &Migration) -> Result<(), kube::Error> {
        let (name, namespace) = (migration.name_any(), migration.namespace().unwrap_or_default());
        let api: Api<Migration> = Api::namespaced(self.client.clone(), &namespace);
        let params = PostParams { field_manager: Some(keys::MANAGER.to_owned()), ..PostParams::default() };
        match api.create(&params, migration).await {
            Ok(_) => info!(migration = name, namespace, node = evacuates(migration), "a pod leaves its node"),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            // Not our webhook's word, which lets an evacuation be made that cannot succeed, so that its reasons stand somewhere.
            Err(kube::Error::Api(status)) if status.is_forbidden() || status.is_invalid() => {
                warn!(migration = name, namespace, "an evacuation was refused: {}", status.message);
            }
            Err(error) => return Err(error),
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
                note: Some(text.chars().take(keys::LONGEST_NOTE).collect()),
                action: "Evacuate".to_owned(),
                secondary: Some(migration.object_ref(&())),
            };
            // Events of a node are found by its name as their UID (kubelet and kubectl describe node).
            let about =
                ObjectReference { kind: Some("Node".into()), name: Some(node.to_owned()), uid: Some(node.to_owned()), ..ObjectReference::default() };
            if let Err(error) = self.recorder.publish(&event, &about).await {
                warn!(%error, node, "the Event was not written");
            }
        }
    }
}
