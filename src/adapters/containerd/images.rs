//! Images: present under the right name, and gone under every name.

use async_trait::async_trait;
use containerd_client::services::v1::{DeleteImageRequest, GetImageRequest, Image, ListImagesRequest, images_client::ImagesClient};
use k8s_cri::v1::{AuthConfig, ImageSpec, ImageStatusRequest, PullImageRequest, RemoveImageRequest};
use tonic::{Code, Request, Status};

use super::{Containerd, content, failure, request};
use crate::{
    domain::{ids::Digest, keys},
    ports::{BlobStream, Failure, ImageManifest, Images, PortError, PortResult, PullCredential},
};

impl Containerd {
    fn images_client(&self) -> ImagesClient<tonic::transport::Channel> {
        ImagesClient::new(self.channel.clone())
    }

    /// The store's entry under exactly this name.
    async fn stored(&self, name: &str) -> PortResult<Option<Image>> {
        match self.images_client().get(request(GetImageRequest { name: name.to_owned() })).await {
            Ok(answer) => Ok(answer.into_inner().image),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(failure(&format!("look up image {name}"), &status)),
        }
    }

    async fn forget(&self, name: &str) -> PortResult<()> {
        let delete = DeleteImageRequest { name: name.to_owned(), sync: true, target: None };
        match self.images_client().delete(request(delete)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(failure(&format!("remove image name {name}"), &status)),
        }
    }
}

#[async_trait]
impl Images for Containerd {
    /// The restore looks the base image up by this very name (`client.GetImage(rootfsImageRef)`), so another name of the same image is not enough.
    async fn ensure(&self, reference: &str, credentials: &[PullCredential]) -> PortResult<()> {
        if self.stored(reference).await?.is_some() {
            return Ok(());
        }
        let pull = PullImageRequest { image: Some(spec(reference)), auth: credential_for(reference, credentials), sandbox_config: None };
        self.cri_images().pull_image(Request::new(pull)).await.map_err(|status| pull_failure(reference, &status))?;
        match self.stored(reference).await? {
            Some(_) => Ok(()),
            None => Err(PortError::permanent(format!(
                "image {reference} was pulled, but containerd keeps it under another name; name it in full, as in docker.io/library/redis@sha256:…"
            ))),
        }
    }

    /// CRI removes every name of an image at once, which is what a checkpoint needs. Where the tag names the base image by now (it was re-pointed and
    /// pulled again), all other names of that image stay: the workload's own, and those of other pods that have moved here.
    async fn remove(&self, reference: &str) -> PortResult<()> {
        let ask = ImageStatusRequest { image: Some(spec(reference)), verbose: false };
        let status =
            self.cri_images().image_status(Request::new(ask)).await.map_err(|status| failure(&format!("look up image {reference}"), &status))?;
        let Some(image) = status.into_inner().image else {
            // CRI does not know it; the store below may still, after a crash between the two.
            return self.forget(reference).await;
        };
        let names: Vec<_> = image.repo_tags.iter().chain(&image.repo_digests).collect();
        let (ours, others) = going(reference, &names);
        if others.is_empty() {
            let remove = RemoveImageRequest { image: Some(spec(&image.id)) };
            self.cri_images().remove_image(Request::new(remove)).await.map_err(|status| failure(&format!("remove image {reference}"), &status))?;
        } else {
            for name in ours {
                self.forget(name).await?;
            }
        }
        self.forget(reference).await
    }

    async fn checkpoints(&self) -> PortResult<Vec<String>> {
        // Dots stay dots of a pattern: containerd's filters know no escape for them. What else it lets through is left out below.
        let list = ListImagesRequest { filters: vec![format!("name~=\"^{}/\"", keys::PULL_ADDRESS)] };
        let listed = self.images_client().list(request(list)).await.map_err(|status| failure("list the checkpoint images", &status))?;
        Ok(listed.into_inner().images.into_iter().map(|image| image.name).filter(|name| keys::is_checkpoint_image(name)).collect())
    }

    async fn manifest(&self, reference: &str) -> PortResult<ImageManifest> {
        let target = self.stored(reference).await?.and_then(|image| image.target);
        let target = target.ok_or_else(|| {
            PortError::new(Failure::NotFound, format!("image {reference} is not in containerd's store; pull it by that name first"))
        })?;
        let digest = Digest::parse(&target.digest).map_err(|error| PortError::permanent(error.to_string()))?;
        self.platform_manifest(digest, target.media_type).await.map_err(|error| error.context(&format!("could not read the manifest of {reference}")))
    }

    async fn blob(&self, digest: &Digest) -> PortResult<BlobStream> {
        self.read_blob(digest).await
    }
}

/// The names of an image that go with `reference`, and those that do not: with the last tag of its repository goes the name by digest.
fn going<'a>(reference: &str, names: &[&'a String]) -> (Vec<&'a String>, Vec<&'a String>) {
    let repository = keys::checkpoint_repository(reference);
    let beside = |name: &str| repository.is_some() && name != reference && keys::checkpoint_repository(name) == repository;
    let is_last = !names.iter().any(|name| beside(name) && !name.contains('@'));
    names.iter().partition(|name| name.as_str() == reference || (is_last && beside(name)))
}

fn spec(reference: &str) -> ImageSpec {
    ImageSpec { image: reference.to_owned(), ..ImageSpec::default() }
}

fn pull_failure(reference: &str, status: &Status) -> PortError {
    let text = status.message();
    let refused = ["401", "403", "authorization failed", "insufficient_scope", "pull access denied"].iter().any(|sign| text.contains(sign));
    if refused {
        PortError::permanent(format!("pull of base image {reference} was refused: {text}; give the pod an imagePullSecret that the registry accepts"))
    } else if text.contains("not found") {
        PortError::permanent(format!(
            "base image {reference} is not in its registry any more: {text}; push it again, or preload it on the node under that name"
        ))
    } else {
        failure(&format!("pull base image {reference}"), status)
    }
}

/// The credential whose registry the reference names. CRI itself compares hosts only where a server address is set, so the choice is made here.
fn credential_for(reference: &str, credentials: &[PullCredential]) -> Option<AuthConfig> {
    let wanted = content::registry_host(reference);
    credentials.iter().find(|credential| credential_host(&credential.registry) == wanted).map(|credential| AuthConfig {
        username: credential.username.clone(),
        password: credential.password.clone(),
        ..AuthConfig::default()
    })
}

/// The host in a docker config's key: `https://index.docker.io/v1/`, `ghcr.io`, `registry:5000/path`. Docker's own names for its hub are one host.
fn credential_host(key: &str) -> &str {
    let without_scheme = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    match without_scheme.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io",
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(registry: &str) -> PullCredential {
        PullCredential { registry: registry.to_owned(), username: registry.to_owned(), password: "secret".to_owned() }
    }

    #[test]
    fn a_credential_goes_to_its_own_registry_only() {
        let all = [credential("https://index.docker.io/v1/"), credential("registry.example:5000"), credential("ghcr.io")];
        let chosen = |reference: &str| credential_for(reference, &all).map(|auth| auth.username);
        assert_eq!(chosen("docker.io/library/redis@sha256:00").as_deref(), Some("https://index.docker.io/v1/"));
        assert_eq!(chosen("redis:7").as_deref(), Some("https://index.docker.io/v1/"));
        assert_eq!(chosen("registry.example:5000/a/b@sha256:00").as_deref(), Some("registry.example:5000"));
        assert_eq!(chosen("registry.example/a"), None);
        assert_eq!(chosen("quay.io/a/b:1"), None);
    }

    #[test]
    fn a_refused_pull_names_the_remedy_and_no_secret() {
        let error = pull_failure("ghcr.io/a@sha256:00", &Status::unknown("failed to resolve: 401 Unauthorized"));
        assert_eq!(error.kind, Failure::Permanent);
        assert!(error.message.contains("imagePullSecret"));
        assert_eq!(pull_failure("x", &Status::unknown("dial tcp: i/o timeout")).kind, Failure::Transient);
    }

    #[test]
    fn of_a_base_image_only_the_names_that_go_with_one_tag_are_removed() {
        let at = |hex: &str, rest: &str| format!("127.0.0.1:5785/drover/{}{rest}", hex.repeat(32));
        let digest = format!("@sha256:{}", "a".repeat(64));
        let all = [at("1", ":c"), at("2", ":c"), at("2", ":init"), at("1", &digest), at("2", &digest), "docker.io/library/redis:7".to_owned()];
        let names: Vec<_> = all.iter().collect();
        assert_eq!(going(&all[0], &names), (vec![&all[0], &all[3]], vec![&all[1], &all[2], &all[4], &all[5]]), "other pods run under such names");
        assert_eq!(going(&all[2], &names).0, [&all[2]], "so does its own pod");
        assert_eq!(going("docker.io/library/redis:7", &names).0, [&all[5]]);
    }
}
