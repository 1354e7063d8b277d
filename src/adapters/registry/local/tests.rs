//! The node's registry against a fake of it behind a unix socket.

use std::{collections::HashMap, process::Command};

use futures::StreamExt as _;

use super::{
    super::{client::Distribution, fake::Fake},
    *,
};
use crate::{
    domain::image::{Layer, MANIFEST_MEDIA_TYPE, checkpoint_image, digest_of},
    ports::{BlobStream, PullCredential},
};

const ONE: &str = "drover/00000000000000000000000000000001";
const TWO: &str = "drover/00000000000000000000000000000002";

/// The runtime's content store, as far as blobs go.
struct Store(HashMap<Digest, Vec<u8>>);

#[async_trait]
impl Images for Store {
    async fn ensure(&self, _: &str, _: &[PullCredential]) -> PortResult<()> {
        Ok(())
    }
    async fn remove(&self, _: &str) -> PortResult<()> {
        Ok(())
    }
    async fn checkpoints(&self) -> PortResult<Vec<String>> {
        Ok(vec![])
    }
    async fn manifest(&self, reference: &str) -> PortResult<ImageManifest> {
        Err(PortError::permanent(reference))
    }
    async fn blob(&self, digest: &Digest) -> PortResult<BlobStream> {
        let bytes = self.0.get(digest).cloned().ok_or_else(|| PortError::new(Failure::NotFound, "no such blob"))?;
        Ok(futures::stream::iter(bytes.chunks(3).map(|part| Ok(bytes::Bytes::copy_from_slice(part))).collect::<Vec<_>>()).boxed())
    }
}

fn base() -> (ImageManifest, Store) {
    let (config, layer) = (b"{\"config\":{}}".to_vec(), b"base layer".to_vec());
    let blobs = vec![(digest_of(&config), config.len() as u64), (digest_of(&layer), layer.len() as u64)];
    let bytes = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST_MEDIA_TYPE,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": blobs[0].0.as_str(), "size": blobs[0].1},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": blobs[1].0.as_str(), "size": blobs[1].1}],
    }))
    .unwrap();
    let manifest = ImageManifest { digest: digest_of(&bytes), media_type: MANIFEST_MEDIA_TYPE.to_owned(), bytes, blobs };
    let store = [config, layer].into_iter().map(|blob| (digest_of(&blob), blob)).collect();
    (manifest, Store(store))
}

/// Stores a checkpoint as a push would.
async fn push(registry: &Distribution, repository: &str, container: &str, memory: &[u8]) -> (Digest, Digest) {
    let layer = digest_of(memory);
    registry.put_blob(repository, &layer, memory.len() as u64, memory.to_vec().into()).await.unwrap();
    let image = checkpoint_image(container, &Layer { digest: layer.clone(), size: memory.len() as u64 }, "amd64", None);
    registry.ensure_blob(repository, &image.config).await.unwrap();
    let manifest = Manifest { media_type: MANIFEST_MEDIA_TYPE.to_owned(), bytes: image.manifest.bytes };
    registry.put_manifest(repository, container, &manifest).await.unwrap();
    (manifest.digest(), layer)
}

fn content_of(data: &Path, digest: &Digest) -> PathBuf {
    let hex = digest.as_str().trim_start_matches("sha256:");
    data.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
}

/// The whole life of a checkpoint in a registry, whichever it is.
async fn life_of_a_checkpoint(socket: &Path, data: &Path) {
    let (base, store) = base();
    let local = LocalDistribution::new(socket, data, Arc::new(store)).unwrap();
    assert_eq!(local.image(ONE, "redis").await, Ok(None));
    let (digest, memory) = push(&local.registry, ONE, "redis", b"memory of redis").await;
    let image = local.image(ONE, "redis").await.unwrap().unwrap();
    assert_eq!(
        image,
        PushedImage { container: "redis".to_owned(), digest: digest.to_string(), bytes: 15, memory_bytes: None, pre_copied_bytes: None }
    );

    assert_eq!(local.checkpoint(ONE, "redis").await, Ok(Some(image)));
    let (layer, stream) = local.layer(ONE, &digest).await.unwrap();
    let bytes: Vec<bytes::Bytes> = futures::TryStreamExt::try_collect(stream).await.unwrap();
    assert_eq!((layer, bytes.concat()), (memory.clone(), b"memory of redis".to_vec()));

    // The tag comes to name the base image, then the checkpoint goes: twice, as after a crash.
    local.adopt_base(ONE, &base).await.unwrap();
    local.adopt_base(ONE, &base).await.unwrap();
    local.repoint(ONE, "redis", &base).await.unwrap();
    // What an agent that was killed in mid-push has left.
    let broken = data.join("docker/registry/v2/repositories").join(ONE).join("_uploads/01a2");
    std::fs::create_dir_all(&broken).unwrap();
    std::fs::write(broken.join("data"), b"memory of r").unwrap();
    for _ in 0..2 {
        local.purge_images(ONE, std::slice::from_ref(&digest)).await.unwrap();
    }
    assert!(!content_of(data, &memory).exists(), "the memory of a process is still on the disk");
    assert!(!content_of(data, &digest).exists());
    assert!(!broken.exists(), "a part of it is");
    assert_eq!(local.image(ONE, "redis").await.unwrap().unwrap().digest, base.digest.to_string());
    assert_eq!(local.checkpoint(ONE, "redis").await, Ok(None), "the base image is no checkpoint");

    // Another migration shares the base image: what it links outlives the first repository.
    local.adopt_base(TWO, &base).await.unwrap();
    local.repoint(TWO, "redis", &base).await.unwrap();
    assert_eq!(local.repositories().await.unwrap().len(), 2);
    local.purge_repository(ONE).await.unwrap();
    local.purge_repository(ONE).await.unwrap();
    assert_eq!(local.repositories().await, Ok(vec![TWO.to_owned()]));
    assert!(local.image(TWO, "redis").await.unwrap().is_some());
    local.purge_repository(TWO).await.unwrap();
    assert!(base.blobs.iter().all(|(blob, _)| !content_of(data, blob).exists()));
    assert_eq!(local.repositories().await, Ok(Vec::new()));
    assert_eq!(local.image(TWO, "redis").await, Ok(None));
    assert_eq!(local.registry.blob_size(TWO, &base.blobs[1].0).await, Ok(None), "the registry still promises a blob that is gone");
    // And the repository's name can be used again, whatever the registry remembers of its blobs.
    local.adopt_base(TWO, &base).await.unwrap();
    local.repoint(TWO, "redis", &base).await.unwrap();
    assert!(local.image(TWO, "redis").await.unwrap().is_some());
}

#[tokio::test]
async fn a_checkpoint_comes_and_goes() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let (socket, data) = (folder.path().join("s"), folder.path().join("data"));
    Fake::new(&data).serve(&socket);
    life_of_a_checkpoint(&socket, &data).await;
}

#[tokio::test]
#[ignore = "needs distribution's program: DROVER_REGISTRY=/path/to/registry"]
async fn a_checkpoint_comes_and_goes_in_the_real_registry() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let (socket, data) = (folder.path().join("s"), folder.path().join("data"));
    let config = serde_json::json!({"version": 0.1, "log": {"level": "error", "accesslog": {"disabled": true}},
        "storage": {"filesystem": {"rootdirectory": data}, "delete": {"enabled": true}, "cache": {"blobdescriptor": "inmemory"}},
        "http": {"net": "unix", "addr": socket, "secret": "test", "relativeurls": true}});
    std::fs::write(folder.path().join("config.yml"), config.to_string()).unwrap();
    let program = std::env::var("DROVER_REGISTRY").expect("DROVER_REGISTRY");
    let mut child = Command::new(program).arg("serve").arg(folder.path().join("config.yml")).spawn().unwrap();
    while tokio::net::UnixStream::connect(&socket).await.is_err() {
        assert!(child.try_wait().unwrap().is_none(), "the registry ended");
        tokio::task::yield_now().await;
    }
    life_of_a_checkpoint(&socket, &data).await;
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn a_blob_that_the_runtime_dropped_is_named() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let (socket, data) = (folder.path().join("s"), folder.path().join("data"));
    Fake::new(&data).serve(&socket);
    let local = LocalDistribution::new(&socket, &data, Arc::new(Store(HashMap::new()))).unwrap();
    let error = local.adopt_base(ONE, &base().0).await.unwrap_err();
    assert!(error.kind == Failure::Permanent && error.message.contains("discard_unpacked_layers"), "{error}");
}
