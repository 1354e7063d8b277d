//! Pushing a checkpoint to the destination's agent by mTLS.

mod dump;
mod memory;
mod pre_copy;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use backon::{ExponentialBuilder, Retryable as _};
use reqwest::{Certificate, Client, Identity, Url};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::{
    client::{Distribution, Manifest},
    content::{Layers, Tar, VolumesTar, unreadable},
    upload::Upload,
};
use crate::{
    adapters::{
        archive::Archive,
        volumes::{self, Volume},
    },
    api::attestation::{ContainerId, PushedImage},
    domain::{
        ids::{is_dns_subdomain, is_repository, node_server_name},
        image::{self, CheckpointImage, Layer},
        keys,
        pages::PageIndex,
    },
    metrics::Metrics,
    ports::{Failure, Growing, Mending, PortError, PortResult, PushTarget, Pusher, front},
    runc::pages,
};

/// How often a push is begun or resumed at most. The pauses between are 0.2 s, then twice the one before: 6.2 s in all, in which an agent that was killed is
/// back, and each attempt may wait [`CONNECT`] for a network that is away. Who has longer than that is kept frozen for nothing; the freeze budget may end it before.
const ATTEMPTS: usize = 6;

/// How long the destination's agent may take to accept a connection. It is in the same cluster.
const CONNECT: Duration = Duration::from_secs(5);

/// How long what was sent may stay unacknowledged, and an idle connection unanswered, before it counts as cut. A network that forgets a connection says
/// nothing of it, and the kernel would go on for a quarter of an hour; a destination whose disk is that slow is asked again just the same.
const SILENCE: Duration = Duration::from_secs(10);

/// How long a push waits for the first certificate of an agent that has just been restarted; a running manager signs in a second or two.
const CERTIFICATE: Duration = Duration::from_secs(10);

/// Pushes to other nodes' agents. The identity is read for each push, since certificates rotate.
#[derive(Debug, Clone)]
pub struct AgentPusher {
    identity: watch::Receiver<Arc<front::Identity>>,
    first_pause: Duration,
    certificate: Duration,
    metrics: Metrics,
    /// Where page servers listen, as this process sees it.
    pages: PathBuf,
}

impl AgentPusher {
    /// A pusher that shows this certificate and trusts this CA.
    #[must_use]
    pub fn new(identity: watch::Receiver<Arc<front::Identity>>, metrics: Metrics) -> Self {
        Self { identity, first_pause: Duration::from_millis(200), certificate: CERTIFICATE, metrics, pages: pages::ROOT.into() }
    }

    /// The same, with another place for page servers.
    #[must_use]
    pub fn with_pages(self, pages: PathBuf) -> Self {
        Self { pages, ..self }
    }

    /// Tries again what failed in a way that may pass, and counts what arrived.
    async fn measured<F>(&self, what: &str, target: &PushTarget, send: impl FnMut() -> F) -> PortResult<PushedImage>
    where
        F: Future<Output = PortResult<PushedImage>>,
    {
        let begun = std::time::Instant::now();
        let pushed = send
            .retry(self.policy())
            .when(|error| error.kind == Failure::Transient)
            .notify(|error, pause| tracing::warn!(%error, ?pause, what, "the push failed and is tried again"))
            .await
            .map_err(|error| error.context(&format!("push of {what} to node {}", target.node)))?;
        self.metrics.pushed(pushed.bytes, begun.elapsed());
        Ok(pushed)
    }

    fn policy(&self) -> ExponentialBuilder {
        ExponentialBuilder::default().with_min_delay(self.first_pause).with_max_times(ATTEMPTS - 1)
    }

    /// The same with another pause before the second attempt; each further one doubles it.
    #[must_use]
    pub fn with_pause(self, first_pause: Duration) -> Self {
        Self { first_pause, ..self }
    }

    /// A client that accepts nobody but the agent of that node: the connection goes to its address, the certificate must carry its name.
    async fn registry_of(&self, target: &PushTarget) -> PortResult<Distribution> {
        self.client_of(target, SILENCE).await
    }

    /// The same, for connections that may be dead so long before they count as cut.
    async fn client_of(&self, target: &PushTarget, silence: Duration) -> PortResult<Distribution> {
        if !is_dns_subdomain(&target.node) || !is_repository(&target.repository) {
            return Err(PortError::permanent(format!("{:?} on {:?} is no place for a checkpoint", target.repository, target.node)));
        }
        let address = resolve(&target.address).await?;
        let name = node_server_name(&target.node);
        let own = self.own_certificate().await?;
        let shown = format!("{}\n{}", own.chain_pem, own.key_pem);
        let unusable = |error: reqwest::Error| PortError::permanent(format!("the agent's own certificate cannot be used: {error}"));
        let client = Client::builder()
            .no_proxy()
            .tls_backend_rustls()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .tcp_user_timeout(silence)
            .tcp_keepalive(silence / 2)
            .tcp_keepalive_interval(silence / 10)
            .tls_certs_only(Certificate::from_pem_bundle(own.ca_pem.as_bytes()).map_err(unusable)?)
            .identity(Identity::from_pem(shown.as_bytes()).map_err(unusable)?)
            .resolve(&name, address)
            .build()
            .map_err(unusable)?;
        let base = Url::parse(&format!("https://{name}:{}/", address.port()))
            .map_err(|error| PortError::permanent(format!("{name} is no host name: {error}")))?;
        Ok(Distribution::new(client, base))
    }

    /// A restarted agent finds its frozen pod before its certificate is signed: to fail at once would give up a move that a second would save.
    async fn own_certificate(&self) -> PortResult<Arc<front::Identity>> {
        let mut identity = self.identity.clone();
        match tokio::time::timeout(self.certificate, identity.wait_for(|own| !own.is_absent())).await {
            Ok(Ok(own)) => Ok(Arc::clone(&own)),
            _ => Err(PortError::transient("this agent has no certificate yet: is Drover's manager running?")),
        }
    }

    async fn push_archive(&self, registry: &Distribution, archive: &Archive, container: &str, target: &PushTarget) -> PortResult<PushedImage> {
        let repository = &target.repository;
        let upload = Mutex::new(Upload::new(registry, repository, Layers::of(archive), &self.metrics));
        let once = || async {
            let layer = upload.lock().await.attempt().await?;
            let made = image::checkpoint_image(container, &layer, image::go_architecture(), archive.user());
            name(registry, repository, container, made, layer.size).await
        };
        self.measured(&format!("container {container}"), target, once).await
    }

    /// Pushes the tar of a pod's volumes.
    async fn push_volumes_layer(&self, layer: std::io::Result<Layer>, tar: Tar, target: &PushTarget) -> PortResult<PushedImage> {
        let layer = layer.map_err(|error| unreadable(&error))?;
        let registry = self.registry_of(target).await?;
        let repository = &target.repository;
        let made = image::volumes_artifact(&layer);
        let upload = Mutex::new(Upload::new(&registry, repository, VolumesTar { tar, layer }, &self.metrics));
        let once = || async {
            let size = upload.lock().await.attempt().await?.size;
            name(&registry, repository, keys::VOLUMES_TAG, made.clone(), size).await
        };
        self.measured("the pod's volumes", target, once).await
    }
}

/// Stores the image of a layer that is there, under a tag.
async fn name(registry: &Distribution, repository: &str, tag: &str, made: CheckpointImage, bytes: u64) -> PortResult<PushedImage> {
    registry.ensure_blob(repository, &made.config).await?;
    let manifest = Manifest { media_type: image::MANIFEST_MEDIA_TYPE.to_owned(), bytes: made.manifest.bytes };
    registry.put_manifest(repository, tag, &manifest).await?;
    Ok(PushedImage { container: tag.to_owned(), digest: made.manifest.digest.to_string(), bytes, memory_bytes: None, pre_copied_bytes: None })
}

#[async_trait]
impl Pusher for AgentPusher {
    async fn push(&self, archive: &Path, container: &str, mending: &Mending, target: &PushTarget) -> PortResult<PushedImage> {
        if archive.is_dir() {
            return self.push_dump(archive, container, mending, target).await;
        }
        let (path, mending) = (archive.to_owned(), mending.clone());
        let archive = tokio::task::spawn_blocking(move || Archive::open(&path, &mending))
            .await
            .map_err(|error| PortError::transient(format!("the checkpoint archive was not looked through: {error}")))??;
        let registry = self.registry_of(target).await?;
        self.push_archive(&registry, &archive, container, target).await
    }

    async fn pre_copy(&self, container: &ContainerId, bytes: u64, target: &PushTarget) -> PortResult<PageIndex> {
        self.send_pages(container, bytes, target).await
    }

    async fn send_ahead(&self, dump: &Growing, target: &PushTarget, written: CancellationToken) -> PortResult<()> {
        let registry = self.registry_of(target).await?;
        self.follow(&registry, dump, target, written).await
    }

    async fn give_memory(&self, container: &ContainerId, target: &PushTarget) -> PortResult<()> {
        self.give(container, target).await
    }

    async fn push_volumes(&self, volumes: &[(String, PathBuf)], target: &PushTarget) -> PortResult<PushedImage> {
        let volumes: Vec<Volume> = volumes.iter().map(|(name, folder)| Volume { name: name.clone(), folder: folder.clone() }).collect();
        let measured = volumes.clone();
        let layer = tokio::task::spawn_blocking(move || volumes::measure(&measured)).await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        self.push_volumes_layer(layer, Tar::Folders(volumes), target).await
    }

    async fn push_volumes_archive(&self, archive: &Path, target: &PushTarget) -> PortResult<PushedImage> {
        let measured = archive.to_owned();
        let layer =
            tokio::task::spawn_blocking(move || volumes::measure_archive(&measured)).await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        self.push_volumes_layer(layer, Tar::File(archive.to_owned()), target).await
    }
}

async fn resolve(address: &str) -> PortResult<SocketAddr> {
    let mut found =
        tokio::net::lookup_host(address).await.map_err(|error| PortError::transient(format!("{address} is no address of an agent: {error}")))?;
    found.next().ok_or_else(|| PortError::transient(format!("{address} has no address")))
}

#[cfg(test)]
mod tests;
