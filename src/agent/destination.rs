//! The destination side: base images, verification, the look at the restored containers, confirmation, cleaning.
//!
//! # Guarantees
//! `restored` is attested only for containers that the runtime says were restored from this migration's image, that are the only ones of their
//! name, and whose checkpoint is out of reach by then (I5, R16). Nothing is attested from the list of pods alone.

mod fallback;
mod lay_out;
mod mend;
mod prepare;
mod restore;
mod revoke;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::{journal::Journals, notified::Verified};
use crate::{
    api::{
        Attestation, AttestationStatus, MigrationStatus, Role,
        attestation::{Armed, At, Pushed, PushedImage, Remark, attestation_name},
        migration::InitContainer,
    },
    domain::{
        attest::{DestinationAction, destination_next},
        ids::Digest,
        keys,
        tasks::nothing_left,
    },
    markers::Markers,
    ports::{AgentApi, Clock, Failure, Images, Kubelet, LocalRegistry, PortError, PortResult, Pusher, Runtime, inside::Inside, layout::Layout},
};

/// How long a step before the release may fail in ways that pass before the migration is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How soon a step that waits for the registry or the runtime is taken again.
const SOON: Duration = Duration::from_millis(100);
/// After this time in a phase such a step is taken less often: each look asks the API server, and a held migration may stay so for days.
const SOON_FOR: Duration = Duration::from_mins(1);
/// How often it is taken then.
const SELDOM: Duration = Duration::from_secs(2);

/// What the destination side needs.
pub struct DestinationParts {
    /// Name of this node.
    pub node: String,
    /// Its runtime's tasks.
    pub runtime: Arc<dyn Runtime>,
    /// Its runtime's images.
    pub images: Arc<dyn Images>,
    /// Its kubelet.
    pub kubelet: Arc<dyn Kubelet>,
    /// The inside of its pods.
    pub inside: Arc<dyn Inside>,
    /// The checkpoints that are laid out on it, in the runtime lane.
    pub layout: Arc<dyn Layout>,
    /// Its registry.
    pub registry: Arc<dyn LocalRegistry>,
    /// The way to its registry's push door, for archives that were kept here.
    pub pusher: Arc<dyn Pusher>,
    /// The source side's journals, which name those archives.
    pub journals: Journals,
    /// Who may not have heard of an image that this side has verified.
    pub verified: Verified,
    /// The API server.
    pub api: Arc<dyn AgentApi>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The gate's markers.
    pub markers: Markers,
    /// The node's root file system, as the agent sees it.
    pub host_root: PathBuf,
    /// `host:port` at which this agent takes pushes.
    pub push_address: String,
    /// This boot of the node ([`crate::markers::evidence::this_boot`]).
    pub boot: Option<String>,
    /// Where CRIU's logs are kept.
    pub logs: PathBuf,
}

/// The destination side of a node's agent.
pub struct DestinationAgent {
    parts: DestinationParts,
    /// Migration UID → when a step before the release began to fail.
    failing: Mutex<HashMap<String, Timestamp>>,
}

/// One migration as the destination agent sees it now.
struct Look {
    /// The Migration's status.
    course: MigrationStatus,
    own: Attestation,
    status: AttestationStatus,
    source: AttestationStatus,
    /// `spec.postCopy`.
    is_post_copy: bool,
}

impl Look {
    fn uid(&self) -> &str {
        &self.own.spec.migration_uid
    }

    /// UID of the pod that is restored here. A same-name one is made after the attestation, which then speaks of its placeholder.
    fn pod_uid(&self) -> &str {
        let armed = self.status.armed.as_ref().map(|armed| armed.pod_uid.as_str());
        armed.unwrap_or(&self.own.spec.pod_uid)
    }

    /// Whether this node's gate keeps the claims of that pod.
    fn gated(&self) -> bool {
        !match self.own.spec.role {
            Role::Destination => self.course.destination.as_ref().is_some_and(|d| d.without_gate),
            Role::Source | Role::Fallback => self.course.source.as_ref().is_some_and(|s| s.without_gate),
        }
    }

    fn repository(&self) -> PortResult<&str> {
        let repository = self.course.destination.as_ref().map(|d| d.repository.as_str()).filter(|name| crate::domain::ids::is_repository(name));
        repository.ok_or_else(|| PortError::permanent("status.destination.repository is not one of Drover's"))
    }

    fn init_containers(&self) -> impl Iterator<Item = &InitContainer> {
        self.course.source.iter().flat_map(|source| &source.init_containers)
    }

    /// Every tag of the repository with the base image that it names in the end.
    fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.bases().chain(self.init_containers().map(|container| (container.name.as_str(), container.image.as_str())))
    }

    /// Container → base image.
    fn bases(&self) -> impl Iterator<Item = (&str, &str)> {
        self.course.source.iter().flat_map(|source| source.containers.iter().map(|c| (c.name.as_str(), c.image.as_str())))
    }
}

impl DestinationAgent {
    /// The destination side of a node's agent.
    #[must_use]
    pub fn new(parts: DestinationParts) -> Self {
        Self { parts, failing: Mutex::default() }
    }

    /// Takes steps for one migration until there is none to take; returns when to look again though nothing changes.
    ///
    /// # Errors
    /// What a port said; the same step is taken again later.
    pub async fn reconcile(&self, namespace: &str, migration: &str) -> PortResult<Option<Duration>> {
        loop {
            let Some(look) = self.look(namespace, migration, Role::Destination).await? else { return Ok(None) };
            let action = destination_next(&look.course, &look.status, &look.source);
            let done = match action {
                DestinationAction::Wait => return Ok(None),
                DestinationAction::Prepare => self.prepare(&look).await.map(|()| true),
                DestinationAction::Verify => self.verify(&look).await,
                DestinationAction::Arm => self.expect(&look).await,
                DestinationAction::Restore => self.restore(&look).await,
                DestinationAction::Revoke => self.revoke(&look).await,
                DestinationAction::Confirm => self.confirm(&look).await.map(|()| true),
                DestinationAction::StartCold => self.start_cold(&look).await,
                DestinationAction::CleanAfterCommit => self.clean_after_commit(&look).await.map(|()| true),
                DestinationAction::CleanAfterRollback => self.clean_after_rollback(&look).await,
            };
            match done {
                Ok(true) => {
                    tracing::info!(migration, namespace, ?action, "destination");
                    self.recovered(look.uid());
                }
                Ok(false) => return Ok(Some(self.look_again(&look))),
                Err(error) => {
                    let before_release = matches!(action, DestinationAction::Prepare | DestinationAction::Verify | DestinationAction::Arm);
                    self.failed(&look, before_release, error).await?;
                }
            }
        }
    }

    async fn look(&self, namespace: &str, name: &str, role: Role) -> PortResult<Option<Look>> {
        let own = attestation_name(name, role);
        // Side by side, since a frozen pod waits for either, and nobody else writes what this side has said.
        let (migration, own) = futures::try_join!(self.parts.api.migration(namespace, name), self.parts.api.attestation(namespace, &own))?;
        let Some(migration) = migration else { return Ok(None) };
        let uid = migration.metadata.uid.clone().unwrap_or_default();
        let Some(own) = own.filter(|a| a.spec.migration_uid == uid && a.spec.node_name == self.parts.node) else { return Ok(None) };
        // After the Migration: where that has a verdict, what the source said before it must be known.
        let source = self.parts.api.attestation(namespace, &attestation_name(name, Role::Source)).await?;
        let source = source.filter(|a| a.spec.migration_uid == uid).and_then(|a| a.status).unwrap_or_default();
        let status = own.status.clone().unwrap_or_default();
        let (course, is_post_copy) = (migration.status.unwrap_or_default(), migration.spec.post_copy);
        Ok(Some(Look { course, own, status, source, is_post_copy }))
    }

    /// Before the release a failure that does not pass ends the migration; later ones are tried for ever.
    async fn failed(&self, look: &Look, before_release: bool, error: PortError) -> PortResult<()> {
        if error.kind == Failure::Conflict || !before_release {
            return Err(error);
        }
        let now = self.parts.clock.now();
        let since = *self.failing.lock().unwrap_or_else(std::sync::PoisonError::into_inner).entry(look.uid().to_owned()).or_insert(now);
        let patience_is_over = Duration::try_from(now.duration_since(since)).unwrap_or_default() > PATIENCE;
        if error.kind == Failure::Permanent || patience_is_over {
            return self.attest_failure(look, &error.message).await;
        }
        Err(error)
    }

    fn look_again(&self, look: &Look) -> Duration {
        let entered = look.course.phases.last().map(|phase| phase.started_at.0);
        let waited = entered.and_then(|entered| Duration::try_from(self.parts.clock.now().duration_since(entered)).ok()).unwrap_or_default();
        if waited > SOON_FOR { SELDOM } else { SOON }
    }

    fn recovered(&self, migration_uid: &str) {
        self.failing.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(migration_uid);
    }

    async fn attest_failure(&self, look: &Look, message: &str) -> PortResult<()> {
        if look.status.failure.as_ref().is_some_and(|failure| failure.message == message) {
            return Ok(());
        }
        let remark = Remark { at: self.now(), message: message.to_owned() };
        self.attest(look, |status| status.failure = Some(remark)).await
    }

    async fn attest(&self, look: &Look, change: impl FnOnce(&mut AttestationStatus)) -> PortResult<()> {
        let mut status = look.status.clone();
        change(&mut status);
        self.parts.api.attest(&look.own, &status).await.map(drop)
    }

    /// The same-name replacement, which was made just now under another UID than its placeholder's. False until its sandbox is there.
    async fn expect(&self, look: &Look) -> PortResult<bool> {
        let uid = look.course.replacement.as_ref().map(|replacement| replacement.uid.clone()).unwrap_or_default();
        self.arm(look, &uid)?;
        if !self.ready_the_sandbox(look, &uid).await? {
            return Ok(false);
        }
        let voted = look.source.vote.as_ref().map(|vote| vote.images.as_slice()).unwrap_or_default();
        self.lay_out(look, &uid, voted).await?;
        let armed = Armed { at: self.now(), pod_uid: uid };
        self.attest(look, |status| status.armed = Some(armed)).await?;
        Ok(true)
    }

    /// I7: what the source says is a hint; what the registry holds counts. Then the sandbox is made ready for the restore.
    async fn verify(&self, look: &Look) -> PortResult<bool> {
        let repository = look.repository()?;
        let voted = look.source.vote.as_ref().map(|vote| vote.images.as_slice()).unwrap_or_default();
        let mut found: Vec<PushedImage> = vec![];
        for image in voted {
            match self.parts.registry.image(repository, look.reference(image)).await? {
                Some(stored) if (&stored.digest, stored.bytes) == (&image.digest, image.bytes) => found.push(image.clone()),
                Some(stored) => {
                    let message =
                        format!("the registry holds {} for container {}, the source voted for {}", stored.digest, image.container, image.digest);
                    return Err(PortError::transient(message));
                }
                None => return Err(PortError::transient(format!("the registry does not hold the image of container {} yet", image.container))),
            }
        }
        // A placeholder's sandbox is nobody's, and it has no claims: its replacement has its own, later.
        if look.course.placeholder.is_none() {
            // A disk that was replaced since they were written has lost them, and nothing can have taken one before the release.
            self.arm(look, look.pod_uid())?;
            if !self.ready_the_sandbox(look, look.pod_uid()).await? {
                return Ok(false);
            }
            self.lay_out(look, look.pod_uid(), voted).await?;
        }
        let at = self.now();
        self.attest(look, |status| status.ready = Some(Pushed { at, images: found })).await?;
        // What was found is what was voted for.
        self.parts.verified.tell(repository, voted);
        Ok(true)
    }

    async fn clean_after_commit(&self, look: &Look) -> PortResult<()> {
        self.open(look)?;
        self.take_addresses_back(look).await?;
        self.parts.layout.discard(look.pod_uid()).await?;
        self.parts.layout.forget(look.repository()?).await?;
        let digests = look.course.containers.iter().map(|c| &c.digest).chain(look.volumes().map(|volumes| &volumes.digest));
        let digests: Vec<Digest> = digests.filter_map(|digest| Digest::parse(digest).ok()).collect();
        self.parts.registry.purge_images(look.repository()?, &digests).await?;
        let at = self.now();
        self.attest(look, |status| status.cleaned = Some(At { at })).await
    }

    /// False as long as anything of the replacement is left on the node: its claims keep it from starting until it is gone.
    async fn clean_after_rollback(&self, look: &Look) -> PortResult<bool> {
        let repository = look.repository()?;
        self.close(look)?;
        for (container, _) in look.tags() {
            self.parts.images.remove(&keys::checkpoint_image(repository, container)).await?;
        }
        self.parts.registry.purge_repository(repository).await?;
        self.parts.layout.forget(repository).await?;
        // A same-name migration has had two pods here.
        for uid in [look.own.spec.pod_uid.as_str(), look.pod_uid()] {
            self.parts.layout.discard(uid).await?;
            let pod = self.parts.kubelet.pod(uid).await?;
            if !nothing_left(pod.as_ref(), &self.parts.runtime.tasks(uid).await?) || !self.end_taken(uid).await? {
                return Ok(false);
            }
        }
        self.forget(look)?;
        let at = self.now();
        self.attest(look, |status| status.cleaned = Some(At { at })).await?;
        Ok(true)
    }

    /// Removes repositories, images and claims that no active migration and no pod of this node needs any more.
    ///
    /// # Errors
    /// What a port said; the next sweep tries again.
    pub async fn sweep(&self) -> PortResult<()> {
        // In this order: a repository that was there before the lists were read, and is in neither, belongs to nobody.
        let stored = self.parts.registry.repositories().await?;
        let images = self.parts.images.checkpoints().await?;
        let marked = self.parts.markers.pods().map_err(|e| PortError::transient(format!("failed to list the claims: {e}")))?;
        let (laid_out, come) = (self.parts.layout.pods().await?, self.parts.layout.repositories().await?);
        if [&stored, &images, &marked, &laid_out, &come].iter().all(|found| found.is_empty()) {
            return Ok(());
        }
        let arrivals = self.parts.api.arrivals().await?;
        let pods = self.parts.kubelet.pods().await?;
        let here = |uid: &str| {
            pods.iter().any(|pod| pod.metadata.uid.as_deref() == Some(uid)) || arrivals.iter().flat_map(|a| &a.pods).any(|pod| pod == uid)
        };
        for uid in laid_out.iter().filter(|uid| !here(uid)) {
            self.parts.layout.discard(uid).await?;
        }
        for uid in marked.iter().filter(|uid| !here(uid)) {
            if !nothing_left(None, &self.parts.runtime.tasks(uid).await?) || !self.end_taken(uid).await? {
                continue;
            }
            self.parts.markers.disarm(uid).map_err(|e| PortError::transient(format!("failed to remove claims: {e}")))?;
        }
        let active = |repository: &str| arrivals.iter().any(|a| a.repository == repository);
        let used = |repository: &str| {
            let prefix = format!("{}/{repository}:", keys::PULL_ADDRESS);
            let specs = pods.iter().filter_map(|pod| pod.spec.as_ref());
            specs.flat_map(|spec| &spec.containers).any(|c| c.image.as_ref().is_some_and(|image| image.starts_with(&prefix)))
        };
        for repository in come.iter().filter(|name| !active(name)) {
            self.parts.layout.forget(repository).await?;
        }
        for image in images {
            let repository = keys::checkpoint_repository(&image).unwrap_or_default();
            if !active(repository) && !used(repository) {
                tracing::info!(image, "no migration and no pod needs this image any more");
                self.parts.images.remove(&image).await?;
            }
        }
        for repository in stored.iter().filter(|name| !active(name) && !used(name)) {
            tracing::info!(repository, "no migration and no pod needs this repository any more");
            self.parts.registry.purge_repository(repository).await?;
        }
        Ok(())
    }

    fn now(&self) -> MicroTime {
        MicroTime(self.parts.clock.now())
    }
}

#[cfg(test)]
mod tests;
