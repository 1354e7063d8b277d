//! What the destination lays out before the source is touched: base images, what stands in for those of init containers, claims.

use bytes::Bytes;
use futures::TryStreamExt as _;

use super::{DestinationAgent, Look};
use crate::{
    api::{attestation::Prepared, migration::InitContainer},
    domain::{
        image::go_architecture,
        init_container::{places, stand_in},
        keys,
    },
    ports::{ImageManifest, PortError, PortResult},
};

impl DestinationAgent {
    /// Base images on the node under `name@digest`, where the restore looks for them (FACTS.md 2.3), and their blobs in the registry, so that
    /// the tags can name them later.
    pub(super) async fn prepare(&self, look: &Look) -> PortResult<()> {
        self.adopt_bases(look).await?;
        if look.course.placeholder.is_none() {
            self.arm(look, look.pod_uid())?;
        }
        self.attest_prepared(look).await
    }

    pub(super) async fn adopt_bases(&self, look: &Look) -> PortResult<()> {
        let credentials = self.parts.api.pull_credentials(look.uid()).await?;
        let repository = look.repository()?;
        for (container, image) in look.tags() {
            let doing = || format!("the base image {image} of container {container}");
            self.parts.images.ensure(image, &credentials).await.map_err(|e| e.context(&format!("failed to pull {}", doing())))?;
            let manifest = self.parts.images.manifest(image).await.map_err(|e| e.context(&format!("failed to read {}", doing())))?;
            self.parts.registry.adopt_base(repository, &manifest).await.map_err(|e| e.context(&format!("failed to store {}", doing())))?;
            if let Some(init) = look.init_containers().find(|init| init.name == container) {
                self.stand_in(repository, init, &manifest)
                    .await
                    .map_err(|e| e.context(&format!("init container {container} cannot be passed over")))?;
            }
        }
        Ok(())
    }

    /// Stores an image that does nothing under the init container's tag. It stays until the pod is restored ([`Self::restore`]).
    async fn stand_in(&self, repository: &str, container: &InitContainer, base: &ImageManifest) -> PortResult<()> {
        let (config, _) = base.blobs.first().ok_or_else(|| PortError::permanent("its image has no config"))?;
        let config: Vec<Bytes> = self.parts.images.blob(config).await?.try_collect().await.map_err(|e| PortError::transient(e.to_string()))?;
        let config =
            serde_json::from_slice(&config.concat()).map_err(|e| PortError::permanent(format!("its image's config cannot be parsed: {e}")))?;
        let image = places(container, &config).and_then(|places| stand_in(&base.bytes, &config, &places, go_architecture()));
        let image = image.map_err(PortError::permanent)?;
        self.parts.registry.store(repository, &container.name, &base.media_type, &image).await
    }

    pub(super) async fn attest_prepared(&self, look: &Look) -> PortResult<()> {
        let prepared = Prepared { at: self.now(), push_address: self.parts.push_address.clone(), pull_address: keys::PULL_ADDRESS.to_owned() };
        self.attest(look, |status| {
            status.prepared = Some(prepared);
            status.failure = None;
        })
        .await
    }
}
