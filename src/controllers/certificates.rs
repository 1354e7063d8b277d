//! Answers the agents' requests for certificates (signer `drover.dev/agent`).
//!
//! What counts is what the API server wrote into the object: `spec.username` and the node claim in `spec.extra`. What the request itself asks for
//! is compared with that and then thrown away, but for the public key. A request that a person approved by hand is judged all the same.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::PostParams,
    runtime::{Controller, controller::Action, watcher},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    domain::{
        agent_certificate::{NODE_NAME_EXTRA, Requester, SIGNER, judge},
        ids::node_server_name,
        keys,
    },
    ports::front::AgentSigner,
    watching,
};

/// Life of a certificate where the request names none.
const DEFAULT_LIFETIME: SignedDuration = SignedDuration::from_hours(24);
/// The longest life: nothing revokes a certificate.
const LONGEST_LIFETIME: SignedDuration = SignedDuration::from_hours(7 * 24);
/// How long a failed write waits.
const RETRY: Duration = Duration::from_secs(5);

/// Why a request was not answered; it is tried again.
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
}

/// The controller.
pub struct CertificateController {
    requests: Api<CertificateSigningRequest>,
    signer: Arc<dyn AgentSigner>,
    agent_username: String,
}

/// What is done with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// It has its answer, or it is not for us.
    Nothing,
    /// Refuse it.
    Deny(String),
    /// It was approved by hand and must not be signed.
    Fail(String),
    /// Approve it, then sign.
    Approve { node: String },
    /// It is approved: sign for this node.
    Sign { node: String },
}

impl CertificateController {
    /// The controller; `agent_username` is `system:serviceaccount:<namespace>:<agents' service account>`.
    #[must_use]
    pub fn new(client: Client, signer: Arc<dyn AgentSigner>, agent_username: String) -> Self {
        Self { requests: Api::all(client), signer, agent_username }
    }

    /// Works until the token is cancelled. Two at once do no harm: every write is a compare-and-swap.
    ///
    /// # Errors
    /// None; the signature is that of a supervised task.
    pub async fn run(self, token: CancellationToken) -> anyhow::Result<()> {
        let ours = watcher::Config::default().fields(&format!("spec.signerName={SIGNER}"));
        Controller::new(self.requests.clone(), ours)
            .trigger_backoff(watching::backoff())
            .graceful_shutdown_on(token.cancelled_owned())
            .run(reconcile, |_, _, _| Action::requeue(RETRY), Arc::new(self))
            .for_each(async |result| {
                if let Err(error) = result {
                    warn!(error = &error as &dyn std::error::Error, "a certificate request is tried again");
                }
            })
            .await;
        Ok(())
    }

    fn answer(&self, request: &CertificateSigningRequest) -> Answer {
        let has = |kind: &str| request.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == kind);
        let signed = request.status.as_ref().and_then(|s| s.certificate.as_ref()).is_some_and(|c| !c.0.is_empty());
        if request.spec.signer_name != SIGNER || signed || has("Denied") || has("Failed") {
            return Answer::Nothing;
        }
        let judged = match self.signer.read(&request.spec.request.0) {
            Ok(requested) => judge(&requester(request), &requested, &self.agent_username).map_err(|reasons| reasons.join("; ")),
            Err(problem) => Err(problem),
        };
        match judged {
            Ok(node) if has("Approved") => Answer::Sign { node },
            Ok(node) => Answer::Approve { node },
            Err(reason) if has("Approved") => Answer::Fail(reason),
            Err(reason) => Answer::Deny(reason),
        }
    }

    async fn answer_one(&self, request: &CertificateSigningRequest) -> Result<(), Error> {
        let name = request.name_any();
        match self.answer(request) {
            Answer::Nothing => Ok(()),
            Answer::Deny(reason) => {
                warn!(name, reason, "a certificate request is denied");
                self.decide(request, "Denied", "NotThisAgent", reason).await.map(|_| ())
            }
            Answer::Fail(reason) => {
                warn!(name, reason, "an approved certificate request is not signed");
                let mut failed = request.clone();
                add_condition(&mut failed, "Failed", "NotThisAgent", reason);
                self.write_status(&failed).await
            }
            Answer::Approve { node } => {
                let approved = self.decide(request, "Approved", "AgentOfItsNode", format!("asked for by the agent of node {node}")).await?;
                self.sign(&approved, &node).await
            }
            Answer::Sign { node } => self.sign(request, &node).await,
        }
    }

    async fn decide(
        &self,
        request: &CertificateSigningRequest,
        kind: &str,
        reason: &str,
        message: String,
    ) -> Result<CertificateSigningRequest, Error> {
        let mut decided = request.clone();
        add_condition(&mut decided, kind, reason, message);
        let written = self.requests.replace_subresource("approval", &request.name_any(), &params(), &decided).await;
        written.map_err(|e| Error::Api { verb: "decide on", source: Box::new(e) })
    }

    async fn sign(&self, request: &CertificateSigningRequest, node: &str) -> Result<(), Error> {
        let mut signed = request.clone();
        let lifetime = lifetime(request.spec.expiration_seconds);
        match self.signer.issue(&request.spec.request.0, &node_server_name(node), Timestamp::now(), lifetime) {
            Ok(chain) => {
                signed.status.get_or_insert_default().certificate = Some(ByteString(chain.into_bytes()));
                info!(node, name = request.name_any(), "an agent got its certificate");
            }
            Err(problem) => add_condition(&mut signed, "Failed", "CannotSign", problem),
        }
        self.write_status(&signed).await
    }

    async fn write_status(&self, request: &CertificateSigningRequest) -> Result<(), Error> {
        let written = self.requests.replace_status(&request.name_any(), &params(), request).await;
        written.map(|_| ()).map_err(|e| Error::Api { verb: "write the status of", source: Box::new(e) })
    }
}

async fn reconcile(request: Arc<CertificateSigningRequest>, controller: Arc<CertificateController>) -> Result<Action, Error> {
    controller.answer_one(&request).await?;
    Ok(Action::await_change())
}

fn params() -> PostParams {
    PostParams { field_manager: Some(keys::MANAGER.to_owned()), ..PostParams::default() }
}

fn requester(request: &CertificateSigningRequest) -> Requester {
    let spec = &request.spec;
    Requester {
        username: spec.username.clone().unwrap_or_default(),
        node_names: spec.extra.as_ref().and_then(|extra| extra.get(NODE_NAME_EXTRA)).cloned().unwrap_or_default(),
        usages: spec.usages.clone().unwrap_or_default(),
    }
}

fn lifetime(seconds: Option<i32>) -> SignedDuration {
    seconds.map_or(DEFAULT_LIFETIME, |s| SignedDuration::from_secs(i64::from(s)).min(LONGEST_LIFETIME))
}

fn add_condition(request: &mut CertificateSigningRequest, kind: &str, reason: &str, message: String) {
    let now = Some(Time(Timestamp::now()));
    let condition = CertificateSigningRequestCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: now.clone(),
        last_transition_time: now,
    };
    request.status.get_or_insert_default().conditions.get_or_insert_default().push(condition);
}

#[cfg(test)]
mod tests {
    use axum::http;
    use serde_json::{Value, json};
    use tower_test::mock;

    use super::*;
    use crate::domain::agent_certificate::Requested;

    /// Reads the request as the list of DNS names, divided by commas.
    struct FakeSigner;

    impl AgentSigner for FakeSigner {
        fn read(&self, request: &[u8]) -> Result<Requested, String> {
            let text = std::str::from_utf8(request).map_err(|_| "spec.request is no PEM".to_owned())?;
            Ok(Requested { dns_names: text.split(',').map(str::to_owned).collect(), ..Requested::default() })
        }

        fn issue(&self, _request: &[u8], dns_name: &str, _now: Timestamp, lifetime: SignedDuration) -> Result<String, String> {
            Ok(format!("{dns_name} for {} h", lifetime.as_hours()))
        }
    }

    fn controller() -> CertificateController {
        let (service, _) = mock::pair::<http::Request<kube::client::Body>, http::Response<kube::client::Body>>();
        CertificateController::new(Client::new(service, "default"), Arc::new(FakeSigner), "agent".to_owned())
    }

    fn request(names: &str, status: &Value) -> CertificateSigningRequest {
        let request = json!(ByteString(names.as_bytes().to_vec()));
        serde_json::from_value(json!({
            "metadata": {"name": "r"}, "status": status,
            "spec": {
                "signerName": SIGNER, "request": request, "username": "agent", "usages": ["client auth", "server auth"],
                "extra": {"authentication.kubernetes.io/node-name": ["n1"]}
            }
        }))
        .expect("a request")
    }

    #[tokio::test]
    async fn every_request_gets_its_answer_once() {
        let own = "n1.nodes.drover.dev";
        let condition = |kind: &str| json!({"conditions": [{"type": kind, "status": "True"}]});
        let node = || "n1".to_owned();
        assert_eq!(controller().answer(&request(own, &json!({}))), Answer::Approve { node: node() });
        assert_eq!(controller().answer(&request(own, &condition("Approved"))), Answer::Sign { node: node() });
        assert!(matches!(controller().answer(&request("n2.nodes.drover.dev", &json!({}))), Answer::Deny(r) if r.contains("nothing else")));
        assert!(matches!(controller().answer(&request("n2.nodes.drover.dev", &condition("Approved"))), Answer::Fail(_)), "approved by hand");
        for done in [condition("Denied"), condition("Failed"), json!({"certificate": "Q0E="})] {
            assert_eq!(controller().answer(&request(own, &done)), Answer::Nothing);
        }
        let mut foreign = request(own, &json!({}));
        foreign.spec.signer_name = "kubernetes.io/kubelet-serving".to_owned();
        assert_eq!(controller().answer(&foreign), Answer::Nothing);
    }

    #[test]
    fn lives_are_bounded() {
        assert_eq!(lifetime(None).as_hours(), 24);
        assert_eq!(lifetime(Some(600)).as_secs(), 600);
        assert_eq!(lifetime(Some(i32::MAX)).as_hours(), 168);
    }

    #[tokio::test]
    async fn approval_and_certificate_are_written_to_their_subresources() {
        let (service, mut handle) = mock::pair::<http::Request<kube::client::Body>, http::Response<kube::client::Body>>();
        let controller = CertificateController::new(Client::new(service, "default"), Arc::new(FakeSigner), "agent".to_owned());
        let server = tokio::spawn(async move {
            let mut seen = Vec::new();
            for _ in 0..2 {
                let (request, send) = handle.next_request().await.expect("a request");
                let path = format!("{} {}", request.method(), request.uri().path());
                let bytes = request.into_body().collect_bytes().await.expect("a body");
                seen.push((path, serde_json::from_slice::<Value>(&bytes).expect("json")));
                send.send_response(http::Response::new(kube::client::Body::from(bytes.to_vec())));
            }
            seen
        });
        controller.answer_one(&request("n1.nodes.drover.dev", &json!({}))).await.expect("answered");
        let seen = server.await.expect("no panic");
        let base = "PUT /apis/certificates.k8s.io/v1/certificatesigningrequests/r";
        assert_eq!((seen[0].0.as_str(), seen[1].0.as_str()), (format!("{base}/approval").as_str(), format!("{base}/status").as_str()));
        assert_eq!(seen[0].1["status"]["conditions"][0]["type"], "Approved");
        let chain: ByteString = serde_json::from_value(seen[1].1["status"]["certificate"].clone()).expect("base64");
        assert_eq!(chain.0, b"n1.nodes.drover.dev for 24 h");
    }
}
