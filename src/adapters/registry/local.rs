//! This node's own registry: over its unix socket, and on its disk where a checkpoint must be gone for good.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use reqwest::{Body, Client, Url};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::{
    client::{Distribution, Manifest},
    disk::Disk,
};
use crate::{
    api::attestation::PushedImage,
    domain::{ids::Digest, image::CONTAINERD_MARK, init_container::StandIn},
    ports::{BlobStream, Failure, ImageManifest, Images, LocalRegistry, PortError, PortResult},
};

/// The registry container next to the agent.
pub struct LocalDistribution {
    registry: Distribution,
    disk: Disk,
    images: Arc<dyn Images>,
    /// Held while base blobs are adopted and while content is removed: between 'the content is there already' and the link to it, another
    /// migration's cleaning must not take it away.
    content: Mutex<()>,
}

#[derive(Deserialize)]
struct Document {
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    size: u64,
}

impl LocalDistribution {
    /// The registry that listens on `socket` and keeps its data in `data`; base images come out of `images`.
    ///
    /// # Errors
    /// Permanent where no HTTP client can be made.
    pub fn new(socket: &Path, data: &Path, images: Arc<dyn Images>) -> PortResult<Self> {
        let path: PathBuf = socket.to_owned();
        let client = Client::builder().unix_socket(path).http1_only().redirect(reqwest::redirect::Policy::none()).build();
        let client = client.map_err(|error| PortError::permanent(format!("no client for the node's registry: {error}")))?;
        let base = Url::parse("http://registry/").map_err(|error| PortError::permanent(error.to_string()))?;
        Ok(Self { registry: Distribution::new(client, base), disk: Disk::new(data), images, content: Mutex::new(()) })
    }

    async fn on_disk<T: Send + 'static>(&self, work: impl FnOnce(&Disk) -> std::io::Result<T> + Send + 'static) -> PortResult<T> {
        let disk = self.disk.clone();
        tokio::task::spawn_blocking(move || work(&disk))
            .await
            .map_err(|error| PortError::transient(format!("work on the registry's folder ended early: {error}")))?
            .map_err(|error| PortError::transient(format!("the registry's data folder: {error}; is it mounted into the agent, and writable?")))
    }

    /// What a tag names, with its manifest's annotations; none where the tag, its manifest or a blob is missing.
    async fn held(&self, repository: &str, tag: &str) -> PortResult<Option<(PushedImage, BTreeMap<String, String>)>> {
        let Some(manifest) = self.registry.manifest(repository, tag).await? else {
            return Ok(None);
        };
        let mut document = parsed(&manifest.bytes)?;
        let annotations = std::mem::take(&mut document.annotations);
        let blobs = blobs(document)?;
        for (digest, size) in &blobs {
            if self.registry.blob_size(repository, digest).await? != Some(*size) {
                return Ok(None);
            }
        }
        let bytes = blobs.iter().skip(1).map(|(_, size)| size).sum();
        Ok(Some((
            PushedImage { container: tag.to_owned(), digest: manifest.digest().to_string(), bytes, memory_bytes: None, pre_copied_bytes: None },
            annotations,
        )))
    }

    /// Blobs that the other manifests of the repository need.
    async fn needed_by_others(&self, repository: &str, leaving: &[Digest], revisions: &BTreeSet<Digest>) -> PortResult<BTreeSet<Digest>> {
        let mut needed = BTreeSet::new();
        for digest in revisions.iter().filter(|digest| !leaving.contains(digest)) {
            if let Some(manifest) = self.registry.manifest(repository, digest.as_str()).await? {
                needed.extend(blobs(parsed(&manifest.bytes)?)?.into_iter().map(|(blob, _)| blob));
            }
        }
        Ok(needed)
    }
}

#[async_trait]
impl LocalRegistry for LocalDistribution {
    async fn image(&self, repository: &str, tag: &str) -> PortResult<Option<PushedImage>> {
        Ok(self.held(repository, tag).await?.map(|(image, _)| image))
    }

    async fn checkpoint(&self, repository: &str, tag: &str) -> PortResult<Option<PushedImage>> {
        let held = self.held(repository, tag).await?;
        Ok(held.filter(|(_, annotations)| annotations.get(CONTAINERD_MARK).map(String::as_str) == Some(tag)).map(|(image, _)| image))
    }

    async fn layer(&self, repository: &str, manifest: &Digest) -> PortResult<(Digest, BlobStream)> {
        let found = self.registry.manifest(repository, manifest.as_str()).await?;
        let found = found.filter(|found| found.digest() == *manifest);
        let found = found.ok_or_else(|| PortError::transient(format!("the registry does not hold manifest {manifest} any more")))?;
        let [_, (layer, _)] = blobs(parsed(&found.bytes)?)?.try_into().map_err(|_| PortError::permanent("the artifact has not one layer"))?;
        let stream = self.registry.blob(repository, &layer).await?;
        Ok((layer, Box::pin(stream)))
    }

    async fn adopt_base(&self, repository: &str, base: &ImageManifest) -> PortResult<()> {
        let _held = self.content.lock().await;
        for (digest, size) in &base.blobs {
            if self.registry.blob_size(repository, digest).await? == Some(*size) {
                continue;
            }
            let stream = self.images.blob(digest).await.map_err(|error| missing_blob(error, digest))?;
            self.registry.put_blob(repository, digest, *size, Body::wrap_stream(stream)).await?;
        }
        self.registry.put_manifest(repository, base.digest.as_str(), &manifest_of(base)).await
    }

    async fn repoint(&self, repository: &str, tag: &str, base: &ImageManifest) -> PortResult<()> {
        self.registry.put_manifest(repository, tag, &manifest_of(base)).await
    }

    async fn store(&self, repository: &str, tag: &str, media_type: &str, image: &StandIn) -> PortResult<()> {
        let _held = self.content.lock().await;
        for blob in [&image.layer, &image.config] {
            self.registry.ensure_blob(repository, blob).await?;
        }
        let manifest = Manifest { media_type: media_type.to_owned(), bytes: image.manifest.bytes.clone() };
        self.registry.put_manifest(repository, tag, &manifest).await
    }

    /// Content goes first, the manifest last: after a crash in between, the next call finds the manifest, and by it what is left.
    async fn purge_images(&self, repository: &str, images: &[Digest]) -> PortResult<()> {
        let _held = self.content.lock().await;
        let name = repository.to_owned();
        let links = self.on_disk(move |disk| disk.links(&name)).await?;
        let needed = self.needed_by_others(repository, images, &links.revisions).await?;
        let name = repository.to_owned();
        let elsewhere = self.on_disk(move |disk| disk.linked_elsewhere(&name)).await?;
        for image in images {
            let Some(manifest) = self.registry.manifest(repository, image.as_str()).await? else {
                continue;
            };
            for (blob, _) in blobs(parsed(&manifest.bytes)?)?.into_iter().filter(|(blob, _)| !needed.contains(blob)) {
                self.remove(repository, "blobs", blob, &elsewhere).await?;
            }
            self.registry.delete(repository, "manifests", image).await?;
            self.remove(repository, "manifests", image.clone(), &elsewhere).await?;
        }
        // Nobody pushes checkpoints into this repository any more.
        let name = repository.to_owned();
        self.on_disk(move |disk| disk.remove_uploads(&name)).await
    }

    /// Content first, the links last, so that a crash leaves what still names the rest. In between the registry is told, since it answers HEAD from its
    /// memory for blobs that it has seen; where it does not run, there is no memory to clear.
    async fn purge_repository(&self, repository: &str) -> PortResult<()> {
        let _held = self.content.lock().await;
        let name = repository.to_owned();
        let links = self
            .on_disk(move |disk| {
                let links = disk.links(&name)?;
                let elsewhere = disk.linked_elsewhere(&name)?;
                for digest in links.layers.union(&links.revisions).filter(|digest| !elsewhere.contains(digest)) {
                    disk.remove_content(digest)?;
                }
                Ok(links)
            })
            .await?;
        for (kind, digests) in [("manifests", &links.revisions), ("blobs", &links.layers)] {
            for digest in digests {
                if let Err(error) = self.registry.delete(repository, kind, digest).await {
                    tracing::debug!(%error, repository, "the registry was not told that a blob is gone");
                }
            }
        }
        let name = repository.to_owned();
        self.on_disk(move |disk| disk.remove_repository(&name)).await
    }

    async fn repositories(&self) -> PortResult<Vec<String>> {
        self.on_disk(Disk::repositories).await
    }
}

impl LocalDistribution {
    /// Removes the content, unless another repository links it, then this repository's link. The API is told too, since the registry may keep
    /// descriptors in its memory.
    async fn remove(&self, repository: &str, kind: &str, digest: Digest, elsewhere: &BTreeSet<Digest>) -> PortResult<()> {
        if !elsewhere.contains(&digest) {
            let content = digest.clone();
            self.on_disk(move |disk| disk.remove_content(&content)).await?;
        }
        self.registry.delete(repository, kind, &digest).await?;
        let name = repository.to_owned();
        self.on_disk(move |disk| disk.remove_links(&name, &digest)).await
    }
}

fn manifest_of(base: &ImageManifest) -> Manifest {
    Manifest { media_type: base.media_type.clone(), bytes: base.bytes.clone() }
}

fn missing_blob(error: PortError, digest: &Digest) -> PortError {
    if error.kind == Failure::NotFound {
        PortError::permanent(format!(
            "blob {digest} of the base image is not in containerd's content store: set discard_unpacked_layers = false in its CRI image configuration and pull the \
             image again"
        ))
    } else {
        error
    }
}

fn parsed(manifest: &[u8]) -> PortResult<Document> {
    serde_json::from_slice(manifest).map_err(|error| PortError::permanent(format!("the registry holds a manifest of an unknown kind: {error}")))
}

/// Config first, then the layers.
fn blobs(document: Document) -> PortResult<Vec<(Digest, u64)>> {
    let parsed = std::iter::once(document.config).chain(document.layers).map(|blob| Ok((Digest::parse(&blob.digest)?, blob.size)));
    parsed.collect::<Result<_, crate::domain::ids::InvalidName>>().map_err(|error| PortError::permanent(error.to_string()))
}

#[cfg(test)]
mod tests;
