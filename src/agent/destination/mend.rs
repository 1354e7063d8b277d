//! What a restore on another node needs besides the checkpoint: before it the pod's volumes and its old address, after it the pipes' owner.

use super::{DestinationAgent, Look};
use crate::{
    api::attestation::{ContainerId, PushedImage},
    domain::{ids::Digest, keys},
    ports::{PortError, PortResult},
};

impl Look {
    /// The artifact with the pod's volumes that the source has voted for; none where they were empty.
    pub(super) fn volumes(&self) -> Option<&PushedImage> {
        let voted = self.source.vote.as_ref().map(|vote| vote.images.as_slice()).unwrap_or_default();
        voted.iter().find(|image| image.container == keys::VOLUMES_TAG)
    }

    /// Addresses that the pod leaves behind.
    fn old_addresses(&self) -> &[String] {
        self.course.source.as_ref().map(|source| source.pod_ips.as_slice()).unwrap_or_default()
    }
}

impl DestinationAgent {
    /// Fills the waiting replacement's volumes, and lends it the old address; false where its sandbox is not there yet. May be done again after a crash:
    /// the volumes are emptied first.
    pub(super) async fn ready_the_sandbox(&self, look: &Look, pod: &str) -> PortResult<bool> {
        if !self.parts.inside.has_sandbox(pod).await? {
            return Ok(false);
        }
        if let Some(volumes) = look.volumes() {
            let manifest = Digest::parse(&volumes.digest).map_err(|error| PortError::permanent(error.to_string()))?;
            let (layer, tar) = self.parts.registry.layer(look.repository()?, &manifest).await?;
            self.parts.inside.fill_volumes(pod, tar, &layer).await?;
        }
        self.parts.inside.lend_addresses(pod, look.old_addresses()).await?;
        Ok(true)
    }

    /// What is mended once the processes run. They run whether it succeeds or not, so a failure is no doubt about the restore; it is told in the log, and
    /// the address is taken back once more when all is over.
    pub(super) async fn mend_restored(&self, look: &Look, containers: &[ContainerId]) {
        let owned = self.parts.inside.own_stdio(containers).await;
        let taken = self.take_addresses_back(look).await;
        for error in [owned.err(), taken.err()].into_iter().flatten() {
            tracing::warn!(pod = look.pod_uid(), %error, "the restored pod lacks a mend");
        }
    }

    /// The old address belongs to nobody now, and to another pod soon.
    pub(super) async fn take_addresses_back(&self, look: &Look) -> PortResult<()> {
        self.parts.inside.take_addresses_back(look.pod_uid(), look.old_addresses()).await
    }
}
