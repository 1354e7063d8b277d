//! The content store: blobs, and the manifest of this node's platform.

use containerd_client::services::v1::{ReadContentRequest, content_client::ContentClient};
use futures::{StreamExt as _, TryStreamExt as _};
use serde::Deserialize;

use super::{Containerd, LARGEST_ANSWER, failure, request};
use crate::{
    domain::{ids::Digest, image::go_architecture},
    ports::{BlobStream, ImageManifest, PortError, PortResult},
};

/// Largest manifest or index that is read, in bytes: as large as registries take them.
const LARGEST_MANIFEST: usize = 4 << 20;

/// An index may name an index; deeper than this is a mistake or a trap.
const DEEPEST_INDEX: usize = 4;

/// What is common to an index and a manifest.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

impl Containerd {
    pub(super) async fn read_blob(&self, digest: &Digest) -> PortResult<BlobStream> {
        let read = ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
        let answer = ContentClient::new(self.channel.clone())
            .max_decoding_message_size(LARGEST_ANSWER)
            .read(request(read))
            .await
            .map_err(|status| failure(&format!("read blob {digest}"), &status))?;
        Ok(answer.into_inner().map_ok(|part| bytes::Bytes::from(part.data)).map_err(std::io::Error::other).boxed())
    }

    async fn read_document(&self, digest: &Digest) -> PortResult<Vec<u8>> {
        let mut stream = self.read_blob(digest).await?;
        let mut bytes = Vec::new();
        while let Some(part) = stream.try_next().await.map_err(|error| PortError::transient(format!("blob {digest} broke off: {error}")))? {
            if bytes.len() + part.len() > LARGEST_MANIFEST {
                return Err(PortError::permanent(format!("{digest} is larger than {LARGEST_MANIFEST} bytes, which no manifest is")));
            }
            bytes.extend_from_slice(&part);
        }
        Ok(bytes)
    }

    /// Follows indexes down to the manifest of this node's platform.
    pub(super) async fn platform_manifest(&self, mut digest: Digest, mut media_type: String) -> PortResult<ImageManifest> {
        for _ in 0..DEEPEST_INDEX {
            let bytes = self.read_document(&digest).await?;
            match follow(&bytes, go_architecture())? {
                Next::Descend { digest: next, media_type: kind } => (digest, media_type) = (next, kind),
                Next::Manifest { media_type: own, blobs } => {
                    let media_type = own.unwrap_or(media_type);
                    return Ok(ImageManifest { digest, media_type, bytes, blobs });
                }
            }
        }
        Err(PortError::permanent(format!("its index is nested more than {DEEPEST_INDEX} deep")))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    Descend { digest: Digest, media_type: String },
    Manifest { media_type: Option<String>, blobs: Vec<(Digest, u64)> },
}

/// What an index or manifest leads to on `linux/architecture`. The first entry of the platform is taken, as containerd does where variants do not matter.
fn follow(bytes: &[u8], architecture: &str) -> PortResult<Next> {
    let document: Document = serde_json::from_slice(bytes).map_err(|error| PortError::permanent(format!("it is no image manifest: {error}")))?;
    let digest = |text: &str| Digest::parse(text).map_err(|error| PortError::permanent(error.to_string()));
    if let Some(config) = &document.config {
        let blobs = std::iter::once(config).chain(&document.layers).map(|blob| Ok((digest(&blob.digest)?, blob.size))).collect::<PortResult<_>>()?;
        return Ok(Next::Manifest { media_type: document.media_type, blobs });
    }
    let fits = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(|platform| platform.os == "linux" && platform.architecture == architecture);
    let entry =
        document.manifests.iter().find(fits).ok_or_else(|| PortError::permanent(format!("its index has no entry for linux/{architecture}")))?;
    Ok(Next::Descend { digest: digest(&entry.digest)?, media_type: entry.media_type.clone() })
}

/// The registry of a reference, by docker's rule: the first part is a host where it has a dot or a colon, or is `localhost`.
pub(super) fn registry_host(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => match first {
            "index.docker.io" | "registry-1.docker.io" => "docker.io",
            host => host,
        },
        _ => "docker.io",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(digit: &str) -> String {
        format!("sha256:{}", digit.repeat(64))
    }

    #[test]
    fn an_index_leads_to_this_platform() {
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [
            {"mediaType": "m", "digest": hex("0"), "size": 1, "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
            {"mediaType": "m", "digest": hex("1"), "size": 1, "platform": {"os": "linux", "architecture": "amd64"}},
            {"mediaType": "m", "digest": hex("2"), "size": 1, "platform": {"os": "unknown", "architecture": "unknown"}}]})
        .to_string();
        assert_eq!(follow(index.as_bytes(), "amd64"), Ok(Next::Descend { digest: Digest::parse(&hex("1")).unwrap(), media_type: "m".to_owned() }));
        assert!(follow(index.as_bytes(), "riscv64").is_err());
    }

    #[test]
    fn a_manifest_lists_its_config_and_layers() {
        let manifest = serde_json::json!({"config": {"digest": hex("a"), "size": 3}, "layers": [{"digest": hex("b"), "size": 9}]}).to_string();
        let blobs = vec![(Digest::parse(&hex("a")).unwrap(), 3), (Digest::parse(&hex("b")).unwrap(), 9)];
        assert_eq!(follow(manifest.as_bytes(), "amd64"), Ok(Next::Manifest { media_type: None, blobs }));
        assert!(follow(b"no json", "amd64").is_err());
    }

    #[test]
    fn hosts_follow_dockers_rule() {
        for (reference, host) in [
            ("redis", "docker.io"),
            ("library/redis:7", "docker.io"),
            ("ghcr.io/a/b", "ghcr.io"),
            ("localhost/a", "localhost"),
            ("r:5000/a@sha256:0", "r:5000"),
        ] {
            assert_eq!(registry_host(reference), host, "{reference}");
        }
    }
}
