//! The node's own kubelet: [`Kubelet`] over its HTTPS port.
//!
//! Facts: FACTS.md 1 (`pkg/kubelet/server/server.go`). The checkpoint API has no download: the archive appears in `<root-dir>/checkpoints`, which the
//! agent mounts at the same path. The kubelet never stops the container and never collects an archive; both are the agent's work.

mod counters;
mod failure;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use k8s_openapi::{List, api::core::v1::Pod};
use reqwest::{Certificate, Client, Identity, RequestBuilder, Response, Url};
use serde::Deserialize;

use crate::{
    domain::{load::PodCounters, tasks::is_whole},
    ports::{Kubelet, PortError, PortResult},
};

/// How long the kubelet may take for anything but a checkpoint.
const ORDINARY_CALL: Duration = Duration::from_secs(20);

/// The kubelet raises a checkpoint's limit to its runtimeRequestTimeout (2 min by default), so the connection is kept somewhat longer than asked.
const GRACE: Duration = Duration::from_secs(15);

/// How the agent proves to the kubelet who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A bearer token in a file, read again for each call, since projected tokens rotate.
    TokenFile(PathBuf),
    /// A folder with `tls.crt` and `tls.key` (the Secret `kubelet-client-certs`), read when the adapter is made.
    ClientCertificate(PathBuf),
}

/// How the kubelet's certificate is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerTrust {
    /// Against the CA certificates in this PEM file.
    CaFile(PathBuf),
    /// Not at all: for kubelets with self-signed certificates. The call does not leave the node, but who can take its port can read the token.
    Unverified,
}

/// What the adapter needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeletSettings {
    /// `https://HOST_IP:10250`.
    pub url: String,
    /// The agent's side.
    pub credential: Credential,
    /// The kubelet's side.
    pub trust: ServerTrust,
    /// Where archives appear, on the host and in the agent's container alike (`/var/lib/kubelet/checkpoints`).
    pub checkpoints: PathBuf,
}

/// A client of the node's own kubelet.
#[derive(Debug, Clone)]
pub struct LocalKubelet {
    client: Client,
    url: Url,
    token_file: Option<PathBuf>,
    checkpoints: PathBuf,
}

#[derive(Deserialize)]
struct CheckpointAnswer {
    items: Vec<PathBuf>,
}

impl LocalKubelet {
    /// A client with these settings.
    ///
    /// # Errors
    /// Permanent where the URL is none or a named file is missing or no PEM.
    pub fn new(settings: KubeletSettings) -> PortResult<Self> {
        let url = Url::parse(&settings.url).map_err(|error| PortError::permanent(format!("{:?} is no URL of a kubelet: {error}", settings.url)))?;
        // The node's own address never goes through a proxy, whatever the environment says.
        let mut builder = Client::builder().no_proxy().tls_backend_rustls().redirect(reqwest::redirect::Policy::none());
        builder = match &settings.trust {
            ServerTrust::CaFile(path) => {
                let certificates =
                    Certificate::from_pem_bundle(&read(path)?).map_err(|error| PortError::permanent(format!("{}: {error}", path.display())))?;
                builder.tls_certs_only(certificates)
            }
            ServerTrust::Unverified => builder.tls_danger_accept_invalid_certs(true),
        };
        let token_file = match settings.credential {
            Credential::TokenFile(path) => Some(path),
            Credential::ClientCertificate(folder) => {
                let pem = [read(&folder.join("tls.crt"))?, b"\n".to_vec(), read(&folder.join("tls.key"))?].concat();
                builder = builder.identity(Identity::from_pem(&pem).map_err(|error| PortError::permanent(format!("{}: {error}", folder.display())))?);
                None
            }
        };
        let client = builder.build().map_err(|error| PortError::permanent(format!("no client for the kubelet: {error}")))?;
        Ok(Self { client, url, token_file, checkpoints: settings.checkpoints })
    }

    async fn send(&self, request: RequestBuilder, limit: Duration) -> PortResult<Response> {
        let request = match &self.token_file {
            Some(path) => {
                let token = tokio::fs::read_to_string(path)
                    .await
                    .map_err(|error| PortError::transient(format!("the agent's token {} cannot be read: {error}", path.display())))?;
                request.bearer_auth(token.trim())
            }
            None => request,
        };
        request.timeout(limit).send().await.map_err(|error| failure::unreachable(&self.url, limit, &error))
    }

    /// A URL below the kubelet's. Segments are escaped, so that a name can never become a path.
    fn below(&self, segments: &[&str]) -> PortResult<Url> {
        let mut url = self.url.clone();
        url.path_segments_mut().map_err(|()| PortError::permanent(format!("{} is no URL of a kubelet", self.url)))?.extend(segments);
        Ok(url)
    }

    /// An archive's path is taken only from where archives are: the agent runs as root.
    fn archive(&self, path: PathBuf) -> PortResult<PathBuf> {
        let plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
        if plain && path.starts_with(&self.checkpoints) {
            Ok(path)
        } else {
            Err(PortError::permanent(format!(
                "the kubelet wrote the checkpoint to {}, but the agent looks in {}: set the agent's checkpoint folder to <kubelet --root-dir>/checkpoints",
                path.display(),
                self.checkpoints.display()
            )))
        }
    }
}

#[async_trait]
impl Kubelet for LocalKubelet {
    async fn checkpoint(&self, namespace: &str, pod: &str, container: &str, limit: Duration) -> PortResult<PathBuf> {
        let mut url = self.below(&["checkpoint", namespace, pod, container])?;
        url.query_pairs_mut().append_pair("timeout", &limit.as_secs().max(1).to_string());
        let answer = self.send(self.client.post(url), limit + GRACE).await?;
        if !answer.status().is_success() {
            let status = answer.status();
            let body = answer.text().await.unwrap_or_default();
            return Err(failure::refused(status, &body, failure::cause_in_log_named_by(&body))
                .context(&format!("checkpoint of {namespace}/{pod}/{container}")));
        }
        let body: CheckpointAnswer =
            answer.json().await.map_err(|error| PortError::transient(format!("the kubelet's answer to a checkpoint broke off: {error}")))?;
        let path = body.items.into_iter().next().ok_or_else(|| PortError::permanent("the kubelet made a checkpoint but named no archive"))?;
        self.archive(path)
    }

    async fn sync(&self, archive: &Path) -> PortResult<()> {
        let failed = |error| PortError::transient(format!("{} was not synced: {error}", archive.display()));
        tokio::fs::File::open(archive).await.map_err(failed)?.sync_all().await.map_err(failed)?;
        // Its name too.
        let folder = archive.parent().unwrap_or(archive);
        tokio::fs::File::open(folder).await.map_err(failed)?.sync_all().await.map_err(failed)
    }

    async fn counters(&self) -> PortResult<Vec<PodCounters>> {
        let answer = self.send(self.client.get(self.below(&["metrics", "resource"])?), ORDINARY_CALL).await?;
        let (status, body) = (answer.status(), answer.text().await);
        let body = body.map_err(|error| PortError::transient(format!("the kubelet's counters cannot be read: {error}")))?;
        if !status.is_success() {
            return Err(failure::refused(status, &body, None).context("what the kubelet has counted of pods"));
        }
        counters::parse(&body)
    }

    async fn pods(&self) -> PortResult<Vec<Pod>> {
        let answer = self.send(self.client.get(self.below(&["pods"])?), ORDINARY_CALL).await?;
        if !answer.status().is_success() {
            let status = answer.status();
            let body = answer.text().await.unwrap_or_default();
            return Err(failure::refused(status, &body, None).context("list of the kubelet's pods"));
        }
        let list: List<Pod> =
            answer.json().await.map_err(|error| PortError::transient(format!("the kubelet's list of pods cannot be read: {error}")))?;
        if !is_whole(&list.items) {
            return Err(PortError::transient("the kubelet has not read its pods from the API server yet: what it does not list may be there"));
        }
        Ok(list.items)
    }
}

fn read(path: &Path) -> PortResult<Vec<u8>> {
    std::fs::read(path).map_err(|error| PortError::permanent(format!("{} cannot be read: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use wiremock::{
        Mock, MockServer, ResponseTemplate,
        matchers::{header, method, path, query_param},
    };

    use super::*;
    use crate::ports::Failure;

    fn kubelet(server: &MockServer, folder: &Path) -> LocalKubelet {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let token = folder.join("token");
        std::fs::write(&token, "word\n").unwrap();
        let settings = KubeletSettings {
            url: server.uri(),
            credential: Credential::TokenFile(token),
            trust: ServerTrust::Unverified,
            checkpoints: PathBuf::from("/var/lib/kubelet/checkpoints"),
        };
        LocalKubelet::new(settings).unwrap()
    }

    #[tokio::test]
    async fn a_checkpoint_is_a_post_with_token_and_limit() {
        let (server, folder) = (MockServer::start().await, tempfile::tempdir().unwrap());
        let archive = "/var/lib/kubelet/checkpoints/checkpoint-web_shop-app-2026-11-23T06:00:00Z.tar";
        Mock::given(method("POST"))
            .and(path("/checkpoint/shop/web/app"))
            .and(query_param("timeout", "40"))
            .and(header("authorization", "Bearer word"))
            .respond_with(ResponseTemplate::new(200).set_body_json(serde_json::json!({"items": [archive]})))
            .mount(&server)
            .await;
        let made = kubelet(&server, folder.path()).checkpoint("shop", "web", "app", Duration::from_secs(40)).await;
        assert_eq!(made, Ok(PathBuf::from(archive)));
    }

    #[tokio::test]
    async fn an_archive_elsewhere_is_not_touched() {
        let (server, folder) = (MockServer::start().await, tempfile::tempdir().unwrap());
        let answer = serde_json::json!({"items": ["/var/lib/kubelet/checkpoints/../../../etc/shadow"]});
        Mock::given(method("POST")).respond_with(ResponseTemplate::new(200).set_body_json(answer)).mount(&server).await;
        let error = kubelet(&server, folder.path()).checkpoint("shop", "web", "app", Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(error.kind, Failure::Permanent);
        assert!(error.message.contains("--root-dir"));
    }

    #[tokio::test]
    async fn pods_are_the_kubelets_own_list() {
        let (server, folder) = (MockServer::start().await, tempfile::tempdir().unwrap());
        let list = serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [
            {"metadata": {"name": "web", "annotations": {"kubernetes.io/config.source": "api"}}}]});
        Mock::given(method("GET")).and(path("/pods")).respond_with(ResponseTemplate::new(200).set_body_json(list)).mount(&server).await;
        let pods = kubelet(&server, folder.path()).pods().await.unwrap();
        assert_eq!(pods[0].metadata.name.as_deref(), Some("web"));

        let unread = serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": []});
        server.reset().await;
        Mock::given(method("GET")).and(path("/pods")).respond_with(ResponseTemplate::new(200).set_body_json(unread)).mount(&server).await;
        assert_eq!(kubelet(&server, folder.path()).pods().await.unwrap_err().kind, Failure::Transient);
    }
}
