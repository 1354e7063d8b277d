//! An agent's certificate, asked for through the Kubernetes certificates API and renewed at two thirds of its life.
//!
//! The API server writes into the request who asks and from which node (the node claim of the bound service account token), so the manager need
//! not believe anything that the agent says. The key never leaves this process.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ObjectMeta, PostParams, Preconditions},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::certificates::{self, KeyAndRequest};
use crate::{
    domain::{
        agent_certificate::{SIGNER, USAGES},
        ids::node_server_name,
        keys,
    },
    metrics::Metrics,
    ports::front::Identity,
};

/// Life that is asked for, in seconds: short, since nothing revokes it.
const LIFETIME_SECONDS: i32 = 24 * 60 * 60;
/// How often the request is looked at until it is answered: often at first, since a frozen pod may wait for the answer, and seldom where no manager
/// runs.
const FIRST_POLL: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_secs(2);
/// After so long without an answer another request is made.
const PATIENCE: Duration = Duration::from_mins(2);
/// How often the wall clock is looked at, and how long a failed renewal waits.
const LOOK: Duration = Duration::from_mins(1);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused.
    #[error("failed to {verb} the CertificateSigningRequest")]
    Api {
        /// What was tried.
        verb: &'static str,
        /// Why it failed.
        #[source]
        source: Box<kube::Error>,
    },
    /// The manager refused.
    #[error("CertificateSigningRequest {name} was refused: {reason}")]
    Refused {
        /// The object.
        name: String,
        /// The manager's words.
        reason: String,
    },
    /// Nobody answered.
    #[error("CertificateSigningRequest {name} was not answered within {} s: does Drover's manager run?", PATIENCE.as_secs())]
    Unanswered {
        /// The object.
        name: String,
    },
    /// A key or certificate could not be made or read.
    #[error("failed to make or read a certificate")]
    Certificate(#[from] certificates::Error),
}

/// Asks for certificates for one node's agent.
pub struct AgentCertificate {
    requests: Api<CertificateSigningRequest>,
    node: String,
    metrics: Metrics,
    identity: watch::Sender<Arc<Identity>>,
}

impl AgentCertificate {
    /// Asks for the first certificate.
    ///
    /// # Errors
    /// Where it is refused or nobody answers: worth another try as long as the manager is starting.
    pub async fn start(client: Client, node: String, metrics: Metrics) -> Result<Self, Error> {
        let requests = Api::all(client);
        let identity = obtain(&requests, &node).await?;
        metrics.certificate("agent", identity.not_after);
        Ok(Self { requests, node, metrics, identity: watch::Sender::new(Arc::new(identity)) })
    }

    /// The certificate, its key and the CA, as they change.
    #[must_use]
    pub fn identity(&self) -> watch::Receiver<Arc<Identity>> {
        self.identity.subscribe()
    }

    /// Renews until the token is cancelled; the last good certificate stays in use through every error.
    ///
    /// # Errors
    /// None; the signature is that of a supervised task.
    pub async fn run(self, token: CancellationToken) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {}
            }
            if Timestamp::now() < self.identity.borrow().renew_at() {
                continue;
            }
            match obtain(&self.requests, &self.node).await {
                Ok(renewed) => {
                    info!(not_after = %renewed.not_after, "the agent's certificate was renewed");
                    self.metrics.certificate("agent", renewed.not_after);
                    self.identity.send_replace(Arc::new(renewed));
                }
                Err(error) => warn!(error = &error as &dyn std::error::Error, "the agent's certificate is not renewed yet"),
            }
        }
    }
}

async fn obtain(requests: &Api<CertificateSigningRequest>, node: &str) -> Result<Identity, Error> {
    let KeyAndRequest { key_pem, request_pem } = certificates::request(&node_server_name(node))?;
    let params = PostParams { field_manager: Some(keys::AGENT.to_owned()), ..PostParams::default() };
    let created = requests.create(&params, &object(node, &request_pem)).await.map_err(|e| Error::Api { verb: "create", source: Box::new(e) })?;
    let name = created.name_any();
    let chain_pem = match tokio::time::timeout(PATIENCE, answered(requests, &name)).await {
        Ok(answer) => answer?,
        Err(_) => return Err(Error::Unanswered { name }),
    };
    delete(requests, &created).await;
    let (not_before, not_after) = certificates::validity(&chain_pem)?;
    Ok(Identity { ca_pem: last_certificate(&chain_pem), chain_pem, key_pem, not_before, not_after })
}

fn object(node: &str, request_pem: &str) -> CertificateSigningRequest {
    CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some(format!("drover-agent-{node}-")), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request_pem.as_bytes().to_vec()),
            signer_name: SIGNER.to_owned(),
            usages: Some(USAGES.map(str::to_owned).to_vec()),
            expiration_seconds: Some(LIFETIME_SECONDS),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    }
}

/// Waits for the chain. Asking again bridges a restart of the API server, which a watch would have to be rebuilt for.
async fn answered(requests: &Api<CertificateSigningRequest>, name: &str) -> Result<String, Error> {
    let mut pause = FIRST_POLL;
    loop {
        match requests.get(name).await {
            Ok(request) => {
                if let Some(answer) = verdict(&request) {
                    return answer;
                }
            }
            Err(error @ kube::Error::Api(_)) => return Err(Error::Api { verb: "get", source: Box::new(error) }),
            Err(error) => debug!(%error, name, "asking again"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL);
    }
}

fn verdict(request: &CertificateSigningRequest) -> Option<Result<String, Error>> {
    let status = request.status.as_ref()?;
    let refused = status.conditions.iter().flatten().find(|c| c.type_ == "Denied" || c.type_ == "Failed");
    if let Some(condition) = refused {
        let reason = condition.message.clone().unwrap_or_default();
        return Some(Err(Error::Refused { name: request.name_any(), reason }));
    }
    let pem = status.certificate.as_ref().filter(|c| !c.0.is_empty())?;
    Some(Ok(String::from_utf8_lossy(&pem.0).into_owned()))
}

/// The CA is the chain's end.
fn last_certificate(chain_pem: &str) -> String {
    chain_pem.rfind("-----BEGIN CERTIFICATE-----").map(|start| chain_pem[start..].to_owned()).unwrap_or_default()
}

/// Where RBAC does not allow it, the cluster's cleaner removes the object an hour after its answer.
async fn delete(requests: &Api<CertificateSigningRequest>, created: &CertificateSigningRequest) {
    let own = Preconditions { uid: created.uid(), resource_version: None };
    let params = DeleteParams { preconditions: Some(own), ..DeleteParams::default() };
    if let Err(error) = requests.delete(&created.name_any(), &params).await {
        debug!(%error, "the CertificateSigningRequest is left to the cluster's cleaner");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with_status(status: &serde_json::Value) -> CertificateSigningRequest {
        let mut value = serde_json::to_value(object("n1", "PEM")).expect("json");
        value["metadata"]["name"] = json!("drover-agent-n1-x");
        value["status"] = status.clone();
        serde_json::from_value(value).expect("a request")
    }

    #[test]
    fn an_answer_is_a_chain_or_a_reason() {
        assert!(verdict(&with_status(&json!({}))).is_none());
        assert!(verdict(&with_status(&json!({"conditions": [{"type": "Approved", "status": "True"}]}))).is_none(), "approved is not signed yet");
        let refused = verdict(&with_status(&json!({"conditions": [{"type": "Denied", "status": "True", "message": "not your node"}]})));
        assert!(refused.is_some_and(|r| r.is_err_and(|e| e.to_string().contains("drover-agent-n1-x was refused: not your node"))));
        let signed = verdict(&with_status(&json!({"certificate": "Q0hBSU4="})));
        assert_eq!(signed.and_then(Result::ok), Some("CHAIN".to_owned()));
    }

    #[test]
    fn the_ca_is_the_end_of_the_chain() {
        let (leaf, ca) =
            ("-----BEGIN CERTIFICATE-----\nbGVhZg==\n-----END CERTIFICATE-----\n", "-----BEGIN CERTIFICATE-----\nY2E=\n-----END CERTIFICATE-----\n");
        assert_eq!(last_certificate(&format!("{leaf}{ca}")), ca);
    }
}
