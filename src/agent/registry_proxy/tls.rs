//! The push door's certificates: who may connect, and which node it is.

use std::sync::Arc;

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

use crate::domain::ids::node_of_server_name;

/// Why no server configuration can be made of the files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is no PEM of the kind.
    #[error("failed to read the {what} as PEM")]
    Pem {
        /// Which file.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The CA cannot verify clients.
    #[error("failed to use the CA for client certificates: {0}")]
    Ca(String),
    /// Certificate and key do not go together, or rustls cannot use them.
    #[error("failed to use the agent's certificate")]
    Certificate(#[source] rustls::Error),
}

/// A configuration that shows the agent's certificate and accepts only clients with one that `ca` signed. All three are PEM; `ca` may hold several
/// certificates, as while a CA is replaced.
///
/// # Errors
/// Where a file is no PEM, or certificate and key do not go together.
pub fn server_config(ca: &[u8], certificate: &[u8], key: &[u8]) -> Result<Arc<ServerConfig>, TlsError> {
    let pem = |what| move |source| TlsError::Pem { what, source };
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(ca) {
        roots.add(authority.map_err(pem("CA"))?).map_err(|error| TlsError::Ca(error.to_string()))?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().map_err(|error| TlsError::Ca(error.to_string()))?;
    let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>().map_err(pem("agent's certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(pem("agent's key"))?;
    let mut config = ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key).map_err(TlsError::Certificate)?;
    // One upload is one stream of gigabytes: HTTP/2's windows would only be in its way.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The node that a client's verified chain is about. None where it names no node, or more than one: nobody is two nodes.
pub(super) fn node_of(chain: &[Vec<u8>]) -> Option<String> {
    let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(chain.first()?).ok()?;
    let names = leaf.subject_alternative_name().ok()??;
    let mut nodes = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => node_of_server_name(name),
        _ => None,
    });
    let node = nodes.next()?.to_owned();
    nodes.next().is_none().then_some(node)
}
