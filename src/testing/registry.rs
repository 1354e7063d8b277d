//! The fake node's registry.

use async_trait::async_trait;
use futures::StreamExt as _;

use super::FakeNode;
use crate::{
    api::attestation::PushedImage,
    domain::{ids::Digest, init_container::StandIn},
    ports::{BlobStream, ImageManifest, LocalRegistry, PortResult},
};

#[async_trait]
impl LocalRegistry for FakeNode {
    async fn image(&self, repository: &str, tag: &str) -> PortResult<Option<PushedImage>> {
        let of = |name: &String, image: &PushedImage| name.starts_with(&format!("{repository}:")) && (name.ends_with(tag) || image.digest == tag);
        self.call("image", |state| Ok(state.registry.iter().find(|(name, image)| of(name, image)).map(|(_, image)| image.clone()))).await
    }
    async fn checkpoint(&self, repository: &str, tag: &str) -> PortResult<Option<PushedImage>> {
        self.image(repository, tag).await
    }
    async fn layer(&self, _repository: &str, manifest: &Digest) -> PortResult<(Digest, BlobStream)> {
        self.call("layer", |_| Ok((manifest.clone(), futures::stream::empty().boxed()))).await
    }
    async fn adopt_base(&self, _repository: &str, _base: &ImageManifest) -> PortResult<()> {
        self.call("adopt_base", |state| {
            state.trace.push("adopt_base".into());
            Ok(())
        })
        .await
    }
    async fn repoint(&self, _repository: &str, tag: &str, _base: &ImageManifest) -> PortResult<()> {
        self.call("repoint", |state| {
            state.trace.push(format!("repoint {tag}"));
            Ok(())
        })
        .await
    }
    async fn store(&self, _repository: &str, tag: &str, _media_type: &str, _image: &StandIn) -> PortResult<()> {
        self.call("store", |state| {
            state.trace.push(format!("store {tag}"));
            Ok(())
        })
        .await
    }
    async fn purge_images(&self, _repository: &str, images: &[Digest]) -> PortResult<()> {
        self.call("purge_images", |state| {
            state.trace.push(format!("purge_images {}", images.len()));
            Ok(())
        })
        .await
    }
    async fn purge_repository(&self, repository: &str) -> PortResult<()> {
        self.call("purge_repository", |state| {
            state.trace.push("purge_repository".into());
            state.registry.retain(|name, _| !name.starts_with(repository));
            Ok(())
        })
        .await
    }
    async fn repositories(&self) -> PortResult<Vec<String>> {
        let of = |name: &String| name.split(':').next().unwrap_or_default().to_owned();
        self.call("repositories", |state| Ok(state.registry.keys().map(of).collect())).await
    }
}
