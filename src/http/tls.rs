//! TLS that follows its certificate: configurations are swapped while connections go on; what was good last is kept on error.

use std::{convert::Infallible, net::TcpListener, sync::Arc, time::Duration};

use axum::{Router, extract::FromRequestParts, http::request::Parts};
use axum_server::{
    Handle,
    tls::TlsInfo,
    tls_rustls::{RustlsAcceptor, RustlsConfig},
};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

use crate::ports::front::Identity;

/// How long a client may take for the handshake: a port scanner holds nothing for longer.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a client may take until its first request is there.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate or key cannot be read.
    #[error("failed to read {what}")]
    Pem {
        /// Which of them.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// They are read, but do not work together.
    #[error("failed to use {what}: {problem}")]
    Unusable {
        /// Which of them.
        what: &'static str,
        /// Why.
        problem: String,
    },
}

fn unusable(what: &'static str) -> impl FnOnce(&dyn std::fmt::Display) -> Error {
    move |problem| Error::Unusable { what, problem: problem.to_string() }
}

/// Who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// Anybody: the API server and kube-scheduler show no certificate by default.
    Anyone,
    /// Who shows a certificate that the identity's CA has signed for a client.
    Verified,
}

/// A server's configuration.
///
/// The crypto provider is named rather than taken from the process, so that a library that installs another one changes nothing here.
///
/// # Errors
/// Where a part of the identity is no good.
pub fn server_config(identity: &Identity, clients: Clients) -> Result<ServerConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| unusable("the crypto provider")(&e))?;
    let builder = match clients {
        Clients::Anyone => builder.with_no_client_auth(),
        Clients::Verified => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(&identity.ca_pem, "the CA's certificate")? {
                roots.add(certificate).map_err(|e| unusable("the CA's certificate")(&e))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|e| unusable("the CA's certificate")(&e))?)
        }
    };
    let chain = certificates(&identity.chain_pem, "the certificate")?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(|source| Error::Pem { what: "the key", source })?;
    let mut config = builder.with_single_cert(chain, key).map_err(|e| unusable("certificate and key")(&e))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|source| Error::Pem { what, source })
}

/// TLS that follows an identity.
pub struct FollowingTls {
    identity: watch::Receiver<Arc<Identity>>,
    clients: Clients,
    config: RustlsConfig,
}

impl FollowingTls {
    /// Begins with the identity as it is now.
    ///
    /// # Errors
    /// As [`server_config`].
    pub fn new(mut identity: watch::Receiver<Arc<Identity>>, clients: Clients) -> Result<Self, Error> {
        let first = server_config(&identity.borrow_and_update(), clients)?;
        Ok(Self { identity, clients, config: RustlsConfig::from_config(Arc::new(first)) })
    }

    /// The configuration; clones are swapped too.
    #[must_use]
    pub fn config(&self) -> RustlsConfig {
        self.config.clone()
    }

    /// Swaps the configuration whenever the identity changes, until the token is cancelled or nobody can change it any more.
    ///
    /// # Errors
    /// None; the signature is that of a supervised task.
    pub async fn run(mut self, token: CancellationToken) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                changed = self.identity.changed() => if changed.is_err() {
                    // The issuer has ended, so the process is ending: supervision sees to that.
                    token.cancelled().await;
                    return Ok(());
                }
            }
            let identity = Arc::clone(&self.identity.borrow_and_update());
            match server_config(&identity, self.clients) {
                Ok(config) => {
                    self.config.reload_from_config(Arc::new(config));
                    info!(not_after = %identity.not_after, "TLS uses another certificate");
                }
                Err(e) => error!(error = &e as &dyn std::error::Error, "the new certificate is no good; the last one stays in use"),
            }
        }
    }
}

/// Serves until the token is cancelled, then lets requests in flight end within `grace`.
///
/// Handlers learn who the client is by the extractor [`Peer`].
///
/// # Errors
/// Where the listener breaks.
pub async fn serve(listener: TcpListener, config: RustlsConfig, router: Router, token: CancellationToken, grace: Duration) -> anyhow::Result<()> {
    listener.set_nonblocking(true)?;
    let handle = Handle::new();
    let stopper = handle.clone();
    let stop = tokio::spawn(async move {
        token.cancelled().await;
        stopper.graceful_shutdown(Some(grace));
    });
    let acceptor = RustlsAcceptor::new(config).handshake_timeout(HANDSHAKE);
    let served = axum_server::from_tcp(listener)?
        .acceptor(acceptor)
        .handle(handle)
        .first_request_timeout(FIRST_REQUEST)
        .serve(router.into_make_service())
        .await;
    stop.abort();
    Ok(served?)
}

/// Who is at the other end, as its verified certificate says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// The DNS names in the certificate; empty where the client showed none.
    pub dns_names: Vec<String>,
}

impl<S: Sync> FromRequestParts<S> for Peer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        let leaf = parts.extensions.get::<Arc<TlsInfo>>().and_then(|tls| tls.peer_certificates.first());
        Ok(Self { dns_names: leaf.map(|der| dns_names(der)).unwrap_or_default() })
    }
}

/// rustls has verified the certificate by now; one that cannot be read for its names has none.
fn dns_names(leaf: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = parse_x509_certificate(leaf) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let dns = |name: &GeneralName<'_>| if let GeneralName::DNSName(name) = name { Some((*name).to_owned()) } else { None };
    names.value.general_names.iter().filter_map(dns).collect()
}

#[cfg(test)]
mod tests;
