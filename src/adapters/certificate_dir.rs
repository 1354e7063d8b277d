//! The webhook's certificate from a mounted folder: `tls.crt`, `tls.key` and, where Drover is to keep caBundle, `ca.crt`.
//!
//! The files are compared by content. A watch on them would miss the kubelet's update, which swaps the symbolic link `..data` above them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::certificates::validity;
use crate::{metrics::Metrics, ports::front::Identity};

/// How often the files are read. The kubelet brings a changed Secret within about a minute, so this adds little.
const LOOK: Duration = Duration::from_secs(10);

/// Why the folder holds no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("failed to read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The files are read, but are no certificate and its key.
    #[error("failed to use {dir}: {problem}")]
    Unusable {
        /// The folder.
        dir: PathBuf,
        /// What is wrong; never the content.
        problem: String,
    },
}

/// A folder that is watched.
pub struct CertificateDir {
    dir: PathBuf,
    metrics: Metrics,
    identity: watch::Sender<Arc<Identity>>,
}

impl CertificateDir {
    /// Reads the folder for the first time.
    ///
    /// # Errors
    /// Where a file is missing or the certificate and the key do not belong together.
    pub async fn start(dir: PathBuf, metrics: Metrics) -> Result<Self, Error> {
        let identity = read(&dir).await?;
        metrics.certificate("webhook", identity.not_after);
        Ok(Self { dir, metrics, identity: watch::Sender::new(Arc::new(identity)) })
    }

    /// The certificate as it changes.
    #[must_use]
    pub fn identity(&self) -> watch::Receiver<Arc<Identity>> {
        self.identity.subscribe()
    }

    /// Follows the files until the token is cancelled; a folder that is no good (also for the moment of a swap) changes nothing.
    ///
    /// # Errors
    /// None; the signature is that of a supervised task.
    pub async fn run(self, token: CancellationToken) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                _ = ticks.tick() => self.look().await,
            }
        }
    }

    async fn look(&self) {
        match read(&self.dir).await {
            Ok(found) if found == **self.identity.borrow() => {}
            Ok(found) => {
                info!(not_after = %found.not_after, dir = %self.dir.display(), "another certificate is used from now on");
                self.metrics.certificate("webhook", found.not_after);
                self.identity.send_replace(Arc::new(found));
            }
            Err(error) => warn!(error = &error as &dyn std::error::Error, "the certificate stays as it is"),
        }
    }
}

async fn read(dir: &Path) -> Result<Identity, Error> {
    let file = async |name: &str| {
        let path = dir.join(name);
        tokio::fs::read_to_string(&path).await.map_err(|source| Error::Read { path, source })
    };
    let chain_pem = file("tls.crt").await?;
    let key_pem = file("tls.key").await?;
    let ca_pem = match file("ca.crt").await {
        Err(Error::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => String::new(),
        other => other?,
    };
    let unusable = |problem: String| Error::Unusable { dir: dir.to_owned(), problem };
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(chain_pem.as_bytes()).collect::<Result<_, _>>().map_err(|e| unusable(format!("tls.crt: {e}")))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| unusable(format!("tls.key: {e}")))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|e| unusable(format!("tls.crt and tls.key do not fit: {e}")))?;
    let (not_before, not_after) = validity(&chain_pem).map_err(|e| unusable(e.to_string()))?;
    Ok(Identity { chain_pem, key_pem, ca_pem, not_before, not_after })
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::adapters::certificates::Authority;

    #[tokio::test]
    async fn a_changed_pair_is_taken_over_and_a_broken_one_is_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let ca = Authority::generate(Timestamp::now()).expect("a CA");
        let leaf = || ca.issue_server(&["x.svc".to_owned()], Timestamp::now(), SignedDuration::from_hours(1)).expect("a leaf");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("a file");
        let first = leaf();
        write("tls.crt", &first.chain_pem);
        let problem = CertificateDir::start(dir.path().to_owned(), Metrics::default()).await.err().expect("no key yet");
        assert!(problem.to_string().contains("tls.key"), "{problem}");
        write("tls.key", &first.key_pem);
        let watched = CertificateDir::start(dir.path().to_owned(), Metrics::default()).await.expect("a pair");
        let identity = watched.identity();
        assert!(identity.borrow().ca_pem.is_empty());

        let second = leaf();
        write("tls.crt", &second.chain_pem);
        watched.look().await;
        assert_eq!(identity.borrow().chain_pem, first.chain_pem, "half a swap changes nothing");
        write("tls.key", &second.key_pem);
        write("ca.crt", ca.certificate_pem());
        watched.look().await;
        assert_eq!((&identity.borrow().chain_pem, &identity.borrow().ca_pem), (&second.chain_pem, &ca.certificate_pem().to_owned()));
    }
}
