//! The agent's port to its own node's registry.

use async_trait::async_trait;
use drover::{
    api::attestation::PushedImage,
    domain::{ids::Digest, init_container::StandIn},
    ports::{BlobStream, ImageManifest, LocalRegistry, PortError, PortResult},
};

use crate::{
    node::{Content, Node},
    truth,
    world::{Door, Handle},
};

fn with_registry<T>(node: &mut Node, repository: &str, deed: impl FnOnce(&mut crate::node::Repository) -> T) -> T {
    deed(node.registry.entry(repository.to_owned()).or_default())
}

#[async_trait]
impl LocalRegistry for Handle {
    async fn checkpoint(&self, repository: &str, tag: &str) -> PortResult<Option<PushedImage>> {
        self.image(repository, tag).await
    }
    async fn image(&self, repository: &str, tag: &str) -> PortResult<Option<PushedImage>> {
        let at = self.at();
        self.call(Door::Registry(at), |world| {
            let Some(stored) = world.nodes[at].registry.get(repository) else { return Ok(None) };
            let Some(digest) = stored.tags.get(tag) else { return Ok(None) };
            let image = |(_, bytes): &(Content, u64)| PushedImage {
                container: tag.to_owned(),
                digest: digest.clone(),
                bytes: *bytes,
                memory_bytes: None,
                pre_copied_bytes: None,
            };
            Ok(stored.manifests.get(digest).map(image))
        })
        .await
    }

    async fn layer(&self, _repository: &str, _manifest: &Digest) -> PortResult<(Digest, BlobStream)> {
        Err(PortError::permanent("no pod has volumes here"))
    }

    async fn adopt_base(&self, repository: &str, base: &ImageManifest) -> PortResult<()> {
        let at = self.at();
        self.call(Door::Registry(at), |world| {
            with_registry(&mut world.nodes[at], repository, |r| r.manifests.insert(base.digest.as_str().to_owned(), (Content::Base, 1)));
            Ok(())
        })
        .await
    }

    async fn repoint(&self, repository: &str, tag: &str, base: &ImageManifest) -> PortResult<()> {
        let at = self.at();
        self.call(Door::Registry(at), |world| {
            let digest = base.digest.as_str().to_owned();
            if !world.nodes[at].registry.get(repository).is_some_and(|r| r.manifests.contains_key(&digest)) {
                return Err(PortError::permanent("the base image was not adopted"));
            }
            with_registry(&mut world.nodes[at], repository, |r| r.tags.insert(tag.to_owned(), digest));
            Ok(())
        })
        .await
    }

    async fn store(&self, _repository: &str, _tag: &str, _media_type: &str, _image: &StandIn) -> PortResult<()> {
        Err(PortError::permanent("no pod has init containers here"))
    }

    async fn purge_images(&self, repository: &str, images: &[Digest]) -> PortResult<()> {
        let at = self.at();
        self.call(Door::Registry(at), |world| {
            truth::drover_collects(world, |world| {
                let Some(stored) = world.nodes[at].registry.get_mut(repository) else { return };
                stored.manifests.retain(|digest, _| !images.iter().any(|image| image.as_str() == digest));
                stored.tags.retain(|_, digest| stored.manifests.contains_key(digest));
            });
            Ok(())
        })
        .await
    }

    async fn purge_repository(&self, repository: &str) -> PortResult<()> {
        let at = self.at();
        self.call(Door::Registry(at), |world| {
            truth::drover_collects(world, |world| {
                world.nodes[at].registry.remove(repository);
            });
            Ok(())
        })
        .await
    }

    async fn repositories(&self) -> PortResult<Vec<String>> {
        let at = self.at();
        self.call(Door::Registry(at), |world| Ok(world.nodes[at].registry.keys().cloned().collect())).await
    }
}
