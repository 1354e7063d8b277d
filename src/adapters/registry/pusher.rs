//! Pushing a checkpoint to the destination's agent by mTLS.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use backon::{ExponentialBuilder, Retryable as _};
use reqwest::{Certificate, Client, Identity, Url};

use super::client::{Distribution, Manifest};
use crate::{
    adapters::archive::Archive,
    api::attestation::PushedImage,
    domain::{
        ids::{is_dns_subdomain, is_repository, node_server_name},
        image::{self, Layer},
    },
    ports::{Failure, Mending, PortError, PortResult, PushTarget, Pusher},
};

/// How often a layer is sent at most: a freeze has no time for more.
const ATTEMPTS: usize = 3;

/// How long the destination's agent may take to accept a connection. It is in the same cluster.
const CONNECT: Duration = Duration::from_secs(5);

/// Where the agent's own certificate lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushSettings {
    /// PEM of Drover's CA, which signed every agent's certificate.
    pub ca: PathBuf,
    /// PEM of this agent's certificate.
    pub certificate: PathBuf,
    /// PEM of its key.
    pub key: PathBuf,
}

/// Pushes to other nodes' agents. The files are read for each push, since certificates rotate.
#[derive(Debug, Clone)]
pub struct AgentPusher {
    settings: PushSettings,
    first_pause: Duration,
}

impl AgentPusher {
    /// A pusher with these files.
    #[must_use]
    pub fn new(settings: PushSettings) -> Self {
        Self { settings, first_pause: Duration::from_millis(200) }
    }

    /// The same with another pause before the second attempt; each further one doubles it.
    #[must_use]
    pub fn with_pause(self, first_pause: Duration) -> Self {
        Self { first_pause, ..self }
    }

    /// A client that accepts nobody but the agent of that node: the connection goes to its address, the certificate must carry its name.
    async fn registry_of(&self, target: &PushTarget) -> PortResult<Distribution> {
        if !is_dns_subdomain(&target.node) || !is_repository(&target.repository) {
            return Err(PortError::permanent(format!("{:?} on {:?} is no place for a checkpoint", target.repository, target.node)));
        }
        let address = resolve(&target.address).await?;
        let name = node_server_name(&target.node);
        let identity = [read(&self.settings.certificate).await?, b"\n".to_vec(), read(&self.settings.key).await?].concat();
        let unusable = |what: &Path, error: reqwest::Error| PortError::permanent(format!("{} cannot be used: {error}", what.display()));
        let client = Client::builder()
            .no_proxy()
            .tls_backend_rustls()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .tls_certs_only(Certificate::from_pem_bundle(&read(&self.settings.ca).await?).map_err(|error| unusable(&self.settings.ca, error))?)
            .identity(Identity::from_pem(&identity).map_err(|error| unusable(&self.settings.certificate, error))?)
            .resolve(&name, address)
            .build()
            .map_err(|error| unusable(&self.settings.certificate, error))?;
        let base = Url::parse(&format!("https://{name}:{}/", address.port()))
            .map_err(|error| PortError::permanent(format!("{name} is no host name: {error}")))?;
        Ok(Distribution::new(client, base))
    }

    async fn push_once(&self, registry: &Distribution, archive: &Archive, container: &str, repository: &str) -> PortResult<PushedImage> {
        let size = archive.size();
        let mut stream = archive.stream();
        let digest = stream.digest();
        let hashed = async { digest.await.map_err(|_| PortError::transient("the checkpoint archive could not be read to its end")) };
        let digest = registry.stream_blob(repository, size, stream, hashed).await?;
        let made = image::checkpoint_image(container, &Layer { digest, size }, image::go_architecture(), archive.user());
        registry.ensure_blob(repository, &made.config).await?;
        let manifest = Manifest { media_type: image::MANIFEST_MEDIA_TYPE.to_owned(), bytes: made.manifest.bytes };
        registry.put_manifest(repository, container, &manifest).await?;
        Ok(PushedImage { container: container.to_owned(), digest: made.manifest.digest.to_string(), bytes: size })
    }
}

#[async_trait]
impl Pusher for AgentPusher {
    async fn push(&self, archive: &Path, container: &str, mending: &Mending, target: &PushTarget) -> PortResult<PushedImage> {
        let (path, mending) = (archive.to_owned(), mending.clone());
        let archive = tokio::task::spawn_blocking(move || Archive::open(&path, &mending))
            .await
            .map_err(|error| PortError::transient(format!("the checkpoint archive was not looked through: {error}")))??;
        let registry = self.registry_of(target).await?;
        let policy = ExponentialBuilder::default().with_min_delay(self.first_pause).with_max_times(ATTEMPTS - 1);
        (|| self.push_once(&registry, &archive, container, &target.repository))
            .retry(policy)
            .when(|error| error.kind == Failure::Transient)
            .notify(|error, pause| tracing::warn!(%error, ?pause, container, "the push failed; the whole layer is sent again"))
            .await
            .map_err(|error| error.context(&format!("push of container {container} to node {}", target.node)))
    }
}

async fn resolve(address: &str) -> PortResult<SocketAddr> {
    let mut found =
        tokio::net::lookup_host(address).await.map_err(|error| PortError::transient(format!("{address} is no address of an agent: {error}")))?;
    found.next().ok_or_else(|| PortError::transient(format!("{address} has no address")))
}

async fn read(path: &Path) -> PortResult<Vec<u8>> {
    tokio::fs::read(path)
        .await
        .map_err(|error| PortError::transient(format!("{} cannot be read: {error}; is the agent's certificate there yet?", path.display())))
}

#[cfg(test)]
mod tests;
