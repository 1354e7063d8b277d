//! From a registry's notification to word on the readiness bus.
//!
//! What the registry says is a hint too: nothing is told to others before the registry, when asked, holds that very image (I7). A notification that was lost, as
//! all are that a registry has not sent before it is restarted, is made up for when the destination side has verified the images for the vote.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use kube::{ResourceExt as _, runtime::reflector::Store};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{Migration, attestation::PushedImage},
    domain::{
        ids::Digest,
        notification::Pushed,
        registry_event::{MigrationRef, RegistryEvent, VERSION},
    },
    metrics::Metrics,
    ports::{Clock, Failure, LocalRegistry, PortError, PortResult, bus::Announcer},
};

/// So many pushes wait at most; more are dropped.
pub const ROOM: usize = 256;
/// So many images are remembered as told.
const REMEMBERED: usize = 4096;
/// How long the bus is tried for one image: its broker may be away for minutes, and others than its migration may want to know.
const TRIED_FOR: Duration = Duration::from_mins(10);
/// Pause between tries.
const PAUSE: Duration = Duration::from_millis(500);

/// What the destination side says of images that it has verified.
#[derive(Debug, Clone)]
pub struct Verified(mpsc::Sender<Pushed>);

impl Verified {
    /// Hands verified images to `announced`, which may not have heard of them.
    #[must_use]
    pub fn new(announced: mpsc::Sender<Pushed>) -> Self {
        Self(announced)
    }

    /// One that tells nobody.
    #[must_use]
    pub fn nobody() -> Self {
        Self(mpsc::channel(1).0)
    }

    /// The registry holds these images.
    pub fn tell(&self, repository: &str, images: &[PushedImage]) {
        for image in images.iter().filter(|image| image.container != crate::domain::keys::VOLUMES_TAG) {
            let Ok(digest) = Digest::parse(&image.digest) else { continue };
            // A hint that is dropped is no harm: what the destination attests does not depend on it.
            let _ = self.0.try_send(Pushed { id: String::new(), repository: repository.to_owned(), tag: image.container.clone(), digest });
        }
    }
}

/// What announcing needs.
pub struct Announcing {
    /// Name of this node.
    pub node: String,
    /// Its registry.
    pub registry: Arc<dyn LocalRegistry>,
    /// The migrations.
    pub migrations: Store<Migration>,
    /// The bus.
    pub bus: Arc<dyn Announcer>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Where it is counted.
    pub metrics: Metrics,
}

/// Announces what is pushed, until cancelled. An image whose bus is away does not keep others waiting.
pub async fn announce(parts: Arc<Announcing>, mut pushed: mpsc::Receiver<Pushed>, stop: CancellationToken) {
    let told = Arc::new(Mutex::new(Told::default()));
    while let Some(Some(push)) = stop.run_until_cancelled(pushed.recv()).await {
        if !told.lock().await.is_new(&push) {
            parts.metrics.registry_event("repeated");
            continue;
        }
        let (parts, stop, told) = (Arc::clone(&parts), stop.clone(), Arc::clone(&told));
        tokio::spawn(async move {
            if stop.run_until_cancelled(parts.announce_one(&push)).await != Some(true) {
                // Whoever hears of it again tries again.
                told.lock().await.forget(&push);
            }
        });
    }
}

impl Announcing {
    /// Whether it was announced. What was there is told though its migration has ended before the bus was back.
    async fn announce_one(&self, push: &Pushed) -> bool {
        let until = tokio::time::Instant::now() + TRIED_FOR;
        match self.looked_for(push, until).await {
            Some(event) => self.delivered(&event, until).await,
            None => false,
        }
    }

    /// The event, once the registry has answered.
    async fn looked_for(&self, push: &Pushed, until: tokio::time::Instant) -> Option<RegistryEvent> {
        loop {
            match self.look(push).await {
                Ok(Some(event)) => return Some(event),
                Ok(None) => {
                    self.metrics.registry_event("not_held");
                    tracing::debug!(event = push.id, container = push.tag, digest = %push.digest, "no checkpoint that a migration to this node waits for");
                    return None;
                }
                Err(error) if tokio::time::Instant::now() >= until => {
                    self.give_up(&push.tag, &error);
                    return None;
                }
                Err(error) => tracing::debug!(%error, "the registry is asked again"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Whether the bus has taken it.
    async fn delivered(&self, event: &RegistryEvent, until: tokio::time::Instant) -> bool {
        loop {
            match self.bus.announce(event).await {
                Ok(()) => {
                    let (migration, container, digest) = (&event.migration.name, &event.container, &event.digest);
                    tracing::debug!(migration, container, digest, bus = self.bus.name(), "announced");
                    self.metrics.registry_event("announced");
                    return true;
                }
                Err(error) if error.kind == Failure::NotFound || tokio::time::Instant::now() >= until => {
                    self.give_up(&event.container, &error);
                    return false;
                }
                Err(error) => tracing::debug!(%error, bus = self.bus.name(), "the bus is tried again"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn give_up(&self, container: &str, error: &PortError) {
        self.metrics.registry_event("given_up");
        tracing::warn!(%error, bus = self.bus.name(), container, "the bus was not told of an image; its migration does without");
    }

    /// The event about an image; none where there is nothing to tell.
    async fn look(&self, push: &Pushed) -> PortResult<Option<RegistryEvent>> {
        let expected = self.expected(push).await?;
        Ok(expected.map(|(migration, bytes)| RegistryEvent {
            version: VERSION,
            time: self.clock.now(),
            migration,
            node: self.node.clone(),
            container: push.tag.clone(),
            digest: push.digest.to_string(),
            bytes,
        }))
    }

    /// The Migration that waits for the image here, and the archive's bytes, where the registry holds the image under its tag.
    async fn expected(&self, push: &Pushed) -> PortResult<Option<(MigrationRef, u64)>> {
        let waits = |migration: &&Arc<Migration>| {
            let destination = migration.status.as_ref().and_then(|status| status.destination.as_ref());
            !migration.is_done() && destination.is_some_and(|to| to.repository == push.repository && to.node_name == self.node)
        };
        let state = self.migrations.state();
        let Some(migration) = state.iter().find(waits) else { return Ok(None) };
        let is_container = |name: &str| {
            let source = migration.status.iter().filter_map(|status| status.source.as_ref());
            source.flat_map(|source| &source.containers).any(|container| container.name == name)
        };
        if !is_container(&push.tag) {
            return Ok(None);
        }
        let held = self.registry.checkpoint(&push.repository, &push.tag).await?.filter(|held| held.digest == push.digest.as_str());
        let of = MigrationRef {
            namespace: migration.namespace().unwrap_or_default(),
            name: migration.name_any(),
            uid: migration.uid().unwrap_or_default(),
        };
        Ok(held.map(|held| (of, held.bytes)))
    }
}

/// Repository, tag, digest.
type Image = (String, String, Digest);

fn image(push: &Pushed) -> Image {
    (push.repository.clone(), push.tag.clone(), push.digest.clone())
}

/// What was announced, so far as it is remembered, the oldest first: the registry sends an event again where it did not hear the answer.
#[derive(Default)]
struct Told(VecDeque<Image>);

impl Told {
    fn is_new(&mut self, push: &Pushed) -> bool {
        let image = image(push);
        if self.0.contains(&image) {
            return false;
        }
        self.0.push_back(image);
        if self.0.len() > REMEMBERED {
            self.0.pop_front();
        }
        true
    }

    fn forget(&mut self, push: &Pushed) {
        let image = image(push);
        self.0.retain(|known| *known != image);
    }
}

#[cfg(test)]
mod tests;
