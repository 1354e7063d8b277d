//! What the manager's front asks of the outside.

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use super::PortResult;
use crate::{
    api::Migration,
    domain::{
        admission::{Needs, World},
        agent_certificate::Requested,
        preflight::NodeView,
    },
};

/// What admission decisions depend on, read from the API server. Reads only: a dry run is no different.
#[async_trait]
pub trait WorldSource: Send + Sync {
    /// What `needs` names, for a pod of this namespace.
    async fn world(&self, namespace: &str, needs: &Needs) -> PortResult<World>;
    /// A pod, or none.
    async fn pod(&self, namespace: &str, name: &str) -> PortResult<Option<Pod>>;
}

/// What the eviction webhook writes.
#[async_trait]
pub trait EvictionRequests: Send + Sync {
    /// Writes down that the eviction of this very pod was asked for now. Nothing happens where the pod has changed or is gone: it is asked for again.
    async fn note(&self, pod: &Pod, now: jiff::Timestamp) -> PortResult<()>;
}

/// What the scheduler extender asks of the API server. Reads only.
#[async_trait]
pub trait PlacementSource: Send + Sync {
    /// The Migrations of a namespace, or of all where none is given; ended ones too.
    async fn migrations(&self, namespace: Option<&str>) -> PortResult<Vec<Migration>>;
    /// Every node with its profile.
    async fn nodes(&self) -> PortResult<Vec<NodeView>>;
}

/// Drover's certificate authority, as the controller of agents' certificates sees it.
pub trait AgentSigner: Send + Sync {
    /// What a PEM certificate request asks for; its own signature is verified.
    ///
    /// # Errors
    /// Where it cannot be read, is not signed by its own key, or asks for an extension that is not known, in words for the requester.
    fn read(&self, request_pem: &[u8]) -> Result<Requested, String>;
    /// A certificate for the key of the request and this one DNS name, with the CA's certificate after it, in PEM.
    ///
    /// Nothing but the public key is taken from the request.
    ///
    /// # Errors
    /// Where the request cannot be read or the CA cannot sign.
    fn issue(&self, request_pem: &[u8], dns_name: &str, now: Timestamp, lifetime: SignedDuration) -> Result<String, String>;
}

/// A certificate in use: what a server or client shows, and what it trusts.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// Leaf first, then what leads to the CA, in PEM.
    pub chain_pem: String,
    /// Private key of the leaf, PKCS#8 in PEM. Never written anywhere.
    pub key_pem: String,
    /// The CA that peers are verified against, in PEM; empty where somebody else takes care of that (cert-manager's injector).
    pub ca_pem: String,
    /// From when the leaf is valid.
    pub not_before: Timestamp,
    /// Until when the leaf is valid.
    pub not_after: Timestamp,
}

impl Identity {
    /// What an agent has until its first certificate is signed: nothing that anybody would accept.
    #[must_use]
    pub fn absent() -> Self {
        let (chain_pem, key_pem, ca_pem) = Default::default();
        Self { chain_pem, key_pem, ca_pem, not_before: Timestamp::UNIX_EPOCH, not_after: Timestamp::UNIX_EPOCH }
    }

    /// Whether there is a certificate.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.chain_pem.is_empty()
    }

    /// When to replace it: at two thirds of its life, so that a third is left to find out why that fails.
    #[must_use]
    pub fn renew_at(&self) -> Timestamp {
        let life = self.not_after.duration_since(self.not_before);
        self.not_before + life / 3 * 2
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}
