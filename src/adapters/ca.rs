//! Drover's own CA in the Secret `drover-ca`, and the webhook's certificate that it signs.
//!
//! Each manager signs a leaf of its own and keeps its key in memory; only the CA is shared. Replacing the Secret replaces the CA: the managers
//! follow within a minute, agents at their next certificate (webhook-certs/self-managed.md).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::certificates::{self, Authority, WEBHOOK_LIFETIME};
use crate::{
    domain::{agent_certificate::Requested, keys},
    metrics::Metrics,
    ports::front::{AgentSigner, Identity},
};

/// Name of the Secret, in Drover's namespace.
pub const SECRET: &str = "drover-ca";
/// How often the Secret and the wall clock are looked at. Short looks instead of one long sleep: a suspended machine sleeps on.
const LOOK: Duration = Duration::from_mins(1);

/// Why there is no CA.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server was asked in vain.
    #[error("failed to {verb} Secret {SECRET}")]
    Api {
        /// What was tried.
        verb: &'static str,
        /// Why it failed.
        #[source]
        source: Box<kube::Error>,
    },
    /// The Secret is not what it should be.
    #[error("Secret {SECRET} has no readable {key}; delete it to have a new CA made")]
    Incomplete {
        /// The missing key.
        key: &'static str,
    },
    /// A certificate could not be made or read.
    #[error("failed to use the CA of Secret {SECRET}")]
    Certificate(#[from] certificates::Error),
}

/// The Secret that holds the CA.
#[derive(Clone)]
pub struct CaStore {
    secrets: Api<Secret>,
}

impl CaStore {
    /// The Secret in Drover's own namespace.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { secrets: Api::namespaced(client, namespace) }
    }

    /// The CA of the Secret, which is made where there is none. Of several managers one makes it; the others read it.
    ///
    /// # Errors
    /// Where the API server refuses, or the Secret cannot be read as a CA.
    pub async fn load_or_create(&self, now: Timestamp) -> Result<Authority, Error> {
        if let Some(authority) = self.load().await? {
            return Ok(authority);
        }
        let authority = Authority::generate(now)?;
        self.store(&authority).await?;
        // Whoever came first: what stands in the Secret is the CA.
        self.load().await?.ok_or(Error::Incomplete { key: "tls.crt" })
    }

    async fn load(&self) -> Result<Option<Authority>, Error> {
        let found = self.secrets.get_opt(SECRET).await.map_err(|e| Error::Api { verb: "get", source: Box::new(e) })?;
        let Some(secret) = found else { return Ok(None) };
        let data = secret.data.unwrap_or_default();
        let text = |key: &'static str| -> Result<&str, Error> {
            data.get(key).and_then(|bytes| std::str::from_utf8(&bytes.0).ok()).ok_or(Error::Incomplete { key })
        };
        Ok(Some(Authority::from_pem(text("tls.crt")?, text("tls.key")?)?))
    }

    /// Creating is the compare-and-swap: it succeeds for one.
    async fn store(&self, authority: &Authority) -> Result<(), Error> {
        let data = BTreeMap::from([
            ("tls.crt".to_owned(), ByteString(authority.certificate_pem().as_bytes().to_vec())),
            ("tls.key".to_owned(), ByteString(authority.key_pem().as_bytes().to_vec())),
        ]);
        let secret = Secret {
            metadata: ObjectMeta { name: Some(SECRET.to_owned()), ..ObjectMeta::default() },
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(data),
            ..Secret::default()
        };
        let params = PostParams { field_manager: Some(keys::MANAGER.to_owned()), ..PostParams::default() };
        match self.secrets.create(&params, &secret).await {
            Ok(_) => {
                info!(secret = SECRET, "a CA was made");
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            Err(e) => Err(Error::Api { verb: "create", source: Box::new(e) }),
        }
    }
}

/// The webhook's certificate from Drover's own CA.
pub struct SelfManaged {
    store: CaStore,
    dns_names: Vec<String>,
    metrics: Metrics,
    authority: watch::Sender<Arc<Authority>>,
    identity: watch::Sender<Arc<Identity>>,
}

/// DNS names under which the API server and kube-scheduler call a Service.
#[must_use]
pub fn service_names(service: &str, namespace: &str) -> Vec<String> {
    vec![format!("{service}.{namespace}.svc"), format!("{service}.{namespace}.svc.cluster.local")]
}

impl SelfManaged {
    /// Loads or makes the CA and signs the first certificate.
    ///
    /// # Errors
    /// As [`CaStore::load_or_create`].
    pub async fn start(store: CaStore, dns_names: Vec<String>, metrics: Metrics) -> Result<Self, Error> {
        let now = Timestamp::now();
        let authority = store.load_or_create(now).await?;
        let identity = authority.issue_server(&dns_names, now, WEBHOOK_LIFETIME)?;
        let started =
            Self { store, dns_names, metrics, authority: watch::Sender::new(Arc::new(authority)), identity: watch::Sender::new(Arc::new(identity)) };
        started.measure();
        Ok(started)
    }

    /// The webhook's certificate as it changes.
    #[must_use]
    pub fn identity(&self) -> watch::Receiver<Arc<Identity>> {
        self.identity.subscribe()
    }

    /// The CA as signer of agents' certificates; follows a replaced Secret.
    #[must_use]
    pub fn signer(&self) -> FollowedAuthority {
        FollowedAuthority(self.authority.subscribe())
    }

    /// Follows the Secret and renews the certificate until the token is cancelled. What was good last stays in use through every error.
    ///
    /// # Errors
    /// None; the signature is that of a supervised task.
    pub async fn run(self, token: CancellationToken) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            if let Err(error) = self.look().await {
                warn!(error = &error as &dyn std::error::Error, "the certificate stays as it is");
            }
        }
    }

    async fn look(&self) -> Result<(), Error> {
        let now = Timestamp::now();
        let current = Arc::clone(&self.authority.borrow());
        match self.store.load().await? {
            Some(found) if found.certificate_pem() == current.certificate_pem() => {}
            Some(found) => {
                info!("Secret {SECRET} holds another CA, which is used from now on");
                self.authority.send_replace(Arc::new(found));
            }
            None => {
                // The same CA again: every agent trusts it.
                warn!("Secret {SECRET} is gone and is written again");
                self.store.store(&current).await?;
            }
        }
        let authority = Arc::clone(&self.authority.borrow());
        let identity = Arc::clone(&self.identity.borrow());
        if identity.ca_pem != authority.certificate_pem() || now >= identity.renew_at() {
            let renewed = authority.issue_server(&self.dns_names, now, WEBHOOK_LIFETIME)?;
            info!(not_after = %renewed.not_after, "the webhook's certificate was renewed");
            self.identity.send_replace(Arc::new(renewed));
        }
        self.measure();
        Ok(())
    }

    fn measure(&self) {
        self.metrics.certificate("ca", self.authority.borrow().not_after());
        self.metrics.certificate("webhook", self.identity.borrow().not_after);
    }
}

/// The CA that stands in the Secret now.
#[derive(Clone)]
pub struct FollowedAuthority(watch::Receiver<Arc<Authority>>);

impl AgentSigner for FollowedAuthority {
    fn read(&self, request_pem: &[u8]) -> Result<Requested, String> {
        self.0.borrow().read(request_pem)
    }

    fn issue(&self, request_pem: &[u8], dns_name: &str, now: Timestamp, lifetime: jiff::SignedDuration) -> Result<String, String> {
        self.0.borrow().issue(request_pem, dns_name, now, lifetime)
    }
}
