//! What the manager's front asks of the outside.

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use super::PortResult;
use crate::domain::{
    admission::{Needs, World},
    agent_certificate::Requested,
};

/// What admission decisions depend on, read from the API server. Reads only: a dry run is no different.
#[async_trait]
pub trait WorldSource: Send + Sync {
    /// What `needs` names, for a pod of this namespace.
    async fn world(&self, namespace: &str, needs: &Needs) -> PortResult<World>;
    /// A pod, or none.
    async fn pod(&self, namespace: &str, name: &str) -> PortResult<Option<Pod>>;
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
