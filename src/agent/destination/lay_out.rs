//! The runtime lane's part: the checkpoint is laid out for `drover-runc` before the release, and the tags name the base images from then on, so that whatever
//! the runtime pulls by them is no checkpoint.

use super::{DestinationAgent, Look};
use crate::{
    api::attestation::PushedImage,
    domain::{ids::Digest, keys},
    markers::Claim,
    ports::{PortError, PortResult, layout::Copy},
};

impl Look {
    /// What an image is asked for by. In the runtime lane its tag may name the base image already.
    pub(super) fn reference<'a>(&self, image: &'a PushedImage) -> &'a str {
        if self.course.is_by_runtime() { &image.digest } else { &image.container }
    }

    /// The checkpoints as they were verified.
    pub(super) fn checkpoints(&self) -> Vec<PushedImage> {
        let image = |c: &crate::api::migration::ContainerCheckpoint| PushedImage {
            container: c.name.clone(),
            digest: c.digest.clone(),
            bytes: c.bytes,
            memory_bytes: c.memory_bytes,
            pre_copied_bytes: c.pre_copied_bytes,
        };
        self.course.containers.iter().map(image).collect()
    }
}

impl DestinationAgent {
    /// Lays out what is not laid out yet, and re-points the tags; nothing happens in the image lane. May be done again after a crash.
    pub(super) async fn lay_out(&self, look: &Look, pod_uid: &str, images: &[PushedImage]) -> PortResult<()> {
        if !look.course.is_by_runtime() {
            return Ok(());
        }
        let repository = look.repository()?;
        let containers = images.iter().filter(|image| image.container != keys::VOLUMES_TAG);
        for image in containers.clone() {
            let is_laid_out = self.parts.layout.is_laid_out(pod_uid, &image.container).await?;
            if is_laid_out && !look.is_post_copy {
                continue;
            }
            let copy = Copy {
                repository: repository.to_owned(),
                pod_uid: pod_uid.to_owned(),
                pod: self.name_in_logs(pod_uid).await?,
                container: image.container.clone(),
                image: keys::checkpoint_image(repository, &image.container),
                bytes: image.bytes,
                is_post_copy: look.is_post_copy,
            };
            if look.is_post_copy {
                // Before the restore can begin, and again by an agent that was started anew.
                self.parts.layout.offer(&copy).await?;
            }
            if is_laid_out {
                continue;
            }
            let manifest = Digest::parse(&image.digest).map_err(|error| PortError::permanent(error.to_string()))?;
            let (layer, tar) = self.parts.registry.layer(repository, &manifest).await?;
            self.parts.layout.lay_out(&copy, tar, &layer).await?;
        }
        for image in containers {
            let base = look.bases().find(|(name, _)| *name == image.container).map(|(_, base)| base);
            let base = base.ok_or_else(|| PortError::permanent(format!("the base image of container {} is not known", image.container)))?;
            let manifest = self.parts.images.manifest(base).await?;
            self.parts.registry.repoint(repository, &image.container, &manifest).await?;
        }
        Ok(())
    }

    /// What lies in memory is gone after a boot of the node, whose claims may still wait.
    pub(super) async fn keep_laid_out(&self, look: &Look) -> PortResult<()> {
        if look.course.is_by_runtime() && self.claims(look)?.iter().any(|(_, claim)| *claim == Claim::Waiting) {
            self.lay_out(look, look.pod_uid(), &look.checkpoints()).await?;
        }
        Ok(())
    }

    /// `namespace_name`; empty where the kubelet does not list the pod yet.
    async fn name_in_logs(&self, pod_uid: &str) -> PortResult<String> {
        let pod = self.parts.kubelet.pod(pod_uid).await?;
        let metadata = pod.map(|pod| pod.metadata).unwrap_or_default();
        Ok(metadata.namespace.zip(metadata.name).map(|(namespace, name)| format!("{namespace}_{name}")).unwrap_or_default())
    }
}
