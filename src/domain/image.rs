//! The one-layer OCI image that carries a checkpoint archive (FACTS.md 5).
//!
//! The layer is the archive itself, uncompressed, so its digest is its diff ID and it is hashed once. containerd looks for its mark in the
//! annotations of the *manifest* (`internal/cri/server/container_checkpoint_linux.go`), CRI-O too, under a key of its own; both are set. The config
//! has no entry point: a runtime that cannot restore would otherwise start something from the archive (MEASURED.md 10).

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::ids::Digest;

/// Media type of the manifest.
pub const MANIFEST_MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of the config.
pub const CONFIG_MEDIA_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of the layer: a tar, not compressed.
pub const LAYER_MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
/// Manifest annotation by which containerd 2.1 to 2.3 know a checkpoint; its value is the container's name.
pub const CONTAINERD_MARK: &str = "org.criu.checkpoint.container.name";
/// Manifest annotation by which CRI-O knows a checkpoint.
pub const CRIO_MARK: &str = "io.kubernetes.cri-o.annotations.checkpoint.name";

/// What the layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
}

/// Bytes to be stored under their digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// SHA-256 of the bytes.
    pub digest: Digest,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Config and manifest of a checkpoint image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointImage {
    /// The image's config.
    pub config: Blob,
    /// Its manifest.
    pub manifest: Blob,
}

/// Makes the image of one container's archive. The same input gives the same bytes: nothing carries a time.
///
/// `architecture` is in Go's words (`amd64`). `user` is the base image's `User`, which the kubelet reads for `runAsNonRoot` before it creates the container.
#[must_use]
pub fn checkpoint_image(container: &str, layer: &Layer, architecture: &str, user: Option<&str>) -> CheckpointImage {
    let runtime_config = user.map_or_else(|| json!({}), |user| json!({ "User": user }));
    let config = blob(&json!({
        "architecture": architecture,
        "os": "linux",
        "config": runtime_config,
        "rootfs": {"type": "layers", "diff_ids": [layer.digest.as_str()]},
        "history": [{"created_by": "drover", "comment": "checkpoint of a container"}],
    }));
    let manifest = blob(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_MEDIA_TYPE,
        "config": {"mediaType": CONFIG_MEDIA_TYPE, "digest": config.digest.as_str(), "size": config.bytes.len()},
        "layers": [{"mediaType": LAYER_MEDIA_TYPE, "digest": layer.digest.as_str(), "size": layer.size}],
        "annotations": {CONTAINERD_MARK: container, CRIO_MARK: container},
    }));
    CheckpointImage { config, manifest }
}

/// Media type of the tar with a pod's volumes: no runtime takes it for an image.
pub const VOLUMES_MEDIA_TYPE: &str = "application/vnd.drover.volumes.v1.tar";
/// Media type of a config that says nothing (image-spec 1.1, `application/vnd.oci.empty.v1+json`).
const EMPTY_MEDIA_TYPE: &str = "application/vnd.oci.empty.v1+json";

/// Makes the artifact of a pod's volumes (image-spec 1.1, "Guidelines for Artifact Usage").
#[must_use]
pub fn volumes_artifact(layer: &Layer) -> CheckpointImage {
    let config = blob(&json!({}));
    let manifest = blob(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_MEDIA_TYPE,
        "artifactType": VOLUMES_MEDIA_TYPE,
        "config": {"mediaType": EMPTY_MEDIA_TYPE, "digest": config.digest.as_str(), "size": config.bytes.len()},
        "layers": [{"mediaType": VOLUMES_MEDIA_TYPE, "digest": layer.digest.as_str(), "size": layer.size}],
    }));
    CheckpointImage { config, manifest }
}

/// SHA-256 of bytes.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

/// JSON as a blob.
pub(super) fn blob(value: &serde_json::Value) -> Blob {
    let bytes = value.to_string().into_bytes();
    Blob { digest: digest_of(&bytes), bytes }
}

/// This machine's architecture in Go's words, as images and NodeProfiles name it.
#[must_use]
pub fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer() -> Layer {
        Layer { digest: digest_of(b"tar"), size: 3 }
    }

    #[test]
    fn the_image_is_golden() {
        let image = checkpoint_image("redis", &layer(), "amd64", None);
        assert_eq!(
            String::from_utf8(image.config.bytes).unwrap(),
            format!(
                r#"{{"architecture":"amd64","config":{{}},"history":[{{"comment":"checkpoint of a container","created_by":"drover"}}],"os":"linux","rootfs":{{"diff_ids":["{}"],"type":"layers"}}}}"#,
                layer().digest
            )
        );
        assert_eq!(
            String::from_utf8(image.manifest.bytes).unwrap(),
            format!(
                r#"{{"annotations":{{"io.kubernetes.cri-o.annotations.checkpoint.name":"redis","org.criu.checkpoint.container.name":"redis"}},"config":{{"digest":"{}","mediaType":"application/vnd.oci.image.config.v1+json","size":{}}},"layers":[{{"digest":"{}","mediaType":"application/vnd.oci.image.layer.v1.tar","size":3}}],"mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2}}"#,
                image.config.digest,
                checkpoint_image("redis", &layer(), "amd64", None).config.bytes.len(),
                layer().digest,
            )
        );
    }

    #[test]
    fn it_has_no_entry_point_and_keeps_the_user() {
        let image = checkpoint_image("redis", &layer(), "arm64", Some("999:999"));
        let config: serde_json::Value = serde_json::from_slice(&image.config.bytes).unwrap();
        assert_eq!(config["config"], json!({"User": "999:999"}));
        assert_eq!(config["architecture"], "arm64");
    }

    #[test]
    fn volumes_are_no_image() {
        let artifact = volumes_artifact(&layer());
        assert_eq!(artifact.config.bytes, b"{}");
        let manifest: serde_json::Value = serde_json::from_slice(&artifact.manifest.bytes).unwrap();
        assert_eq!(manifest["layers"][0]["digest"], layer().digest.as_str());
        assert!(manifest.get("annotations").is_none(), "nothing that a runtime could take for a checkpoint");
    }

    #[test]
    fn the_digest_is_sha256() {
        assert_eq!(digest_of(b"").as_str(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
