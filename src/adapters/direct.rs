//! The readiness bus without a broker: the destination's agent notes the images in its Attestation, and the leader watches those.

use std::{
    collections::{HashMap, VecDeque},
    sync::atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream::BoxStream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde_json::json;
use tokio::sync::Mutex;

use super::kube_error::{found, port_error};
use crate::{
    api::{
        Attestation, Role,
        attestation::{Notified, attestation_name},
    },
    domain::{
        keys,
        registry_event::{MigrationRef, RegistryEvent, VERSION},
    },
    ports::{
        Failure, PortError, PortResult,
        bus::{Announcer, BusState, Delivery, Position, Subscription},
    },
};

/// Name of the bus.
pub const NAME: &str = "Direct";

fn connected(connected: bool) -> BusState {
    let message = if connected { "" } else { "the API server has not told of the attestations yet" };
    BusState { connected, message: message.to_owned() }
}

/// The agent's end.
pub struct DirectAnnouncer {
    client: Client,
    /// What is noted is a list: one after the other.
    one_at_a_time: Mutex<()>,
}

impl DirectAnnouncer {
    /// The API server behind `client`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, one_at_a_time: Mutex::default() }
    }
}

#[async_trait]
impl Announcer for DirectAnnouncer {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn announce(&self, event: &RegistryEvent) -> PortResult<()> {
        let _alone = self.one_at_a_time.lock().await;
        let migration = &event.migration;
        let api: Api<Attestation> = Api::namespaced(self.client.clone(), &migration.namespace);
        let name = attestation_name(&migration.name, Role::Destination);
        let attestation = found(api.get(&name).await, "read an attestation")?;
        let attestation = attestation.filter(|it| it.spec.migration_uid == migration.uid && it.spec.node_name == event.node);
        let attestation = attestation.ok_or_else(|| PortError::new(Failure::NotFound, "there is no attestation of this migration and node"))?;
        let mut notified = attestation.status.map(|status| status.notified).unwrap_or_default();
        if notified.iter().any(|known| known.container == event.container && known.digest == event.digest) {
            return Ok(());
        }
        notified.push(Notified { at: MicroTime(event.time), container: event.container.clone(), digest: event.digest.clone(), bytes: event.bytes });
        // A merge of this one field: nobody else writes it, and no word of the protocol depends on it.
        let patch = Patch::Merge(json!({"status": {"notified": notified}}));
        let params = PatchParams { field_manager: Some(keys::AGENT.into()), ..PatchParams::default() };
        api.patch_status(&name, &params, &patch).await.map(drop).map_err(|error| port_error("note an image in the attestation", &error))
    }

    fn state(&self) -> BusState {
        connected(true)
    }
}

/// The manager's end. What it has delivered is delivered again to the next subscriber: the attestations stay as long as their Migration.
pub struct DirectSubscription {
    watched: Mutex<Watched>,
    connected: AtomicBool,
}

struct Watched {
    changes: BoxStream<'static, watcher::Result<Event<Attestation>>>,
    /// UID of the attestation → how many of its images were delivered.
    told: HashMap<String, usize>,
    ready: VecDeque<RegistryEvent>,
}

impl DirectSubscription {
    /// Watches the attestations behind `client`.
    #[must_use]
    pub fn start(client: Client) -> Self {
        let changes = watcher(Api::<Attestation>::all(client), watcher::Config::default()).default_backoff().boxed();
        let watched = Watched { changes, told: HashMap::new(), ready: VecDeque::new() };
        Self { watched: Mutex::new(watched), connected: AtomicBool::default() }
    }
}

impl Watched {
    fn take(&mut self, attestation: &Attestation) {
        let told = self.told.entry(attestation.uid().unwrap_or_default()).or_default();
        let events = events(attestation);
        self.ready.extend(events.iter().skip(*told).cloned());
        *told = (*told).max(events.len());
    }
}

fn events(attestation: &Attestation) -> Vec<RegistryEvent> {
    let spec = &attestation.spec;
    let notified = attestation.status.iter().flat_map(|status| &status.notified);
    let event = |it: &Notified| RegistryEvent {
        version: VERSION,
        time: it.at.0,
        migration: MigrationRef {
            namespace: attestation.namespace().unwrap_or_default(),
            name: spec.migration.clone(),
            uid: spec.migration_uid.clone(),
        },
        node: spec.node_name.clone(),
        container: it.container.clone(),
        digest: it.digest.clone(),
        bytes: it.bytes,
    };
    notified.map(event).collect()
}

#[async_trait]
impl Subscription for DirectSubscription {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn receive(&self) -> PortResult<Delivery> {
        let mut watched = self.watched.lock().await;
        loop {
            if let Some(event) = watched.ready.pop_front() {
                return Ok(Delivery { event, position: Position::default() });
            }
            match watched.changes.next().await {
                Some(Ok(Event::Apply(attestation) | Event::InitApply(attestation))) => watched.take(&attestation),
                Some(Ok(Event::Delete(attestation))) => {
                    watched.told.remove(&attestation.uid().unwrap_or_default());
                }
                Some(Ok(Event::InitDone)) => self.connected.store(true, Ordering::Relaxed),
                Some(Ok(Event::Init)) => {}
                Some(Err(error)) => {
                    self.connected.store(false, Ordering::Relaxed);
                    tracing::debug!(%error, "the watch of the attestations is tried again");
                }
                None => return Err(PortError::permanent("the watch of the attestations has ended")),
            }
        }
    }

    fn settle(&self, _delivery: &Delivery) {}

    fn state(&self) -> BusState {
        connected(self.connected.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests;
