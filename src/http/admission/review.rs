//! The protocol `admission.k8s.io/v1`: reviews in, reviews out; every protocol error ends here.

use std::time::Duration;

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use kube::{
    Resource,
    core::{
        Status,
        admission::{AdmissionRequest, AdmissionResponse},
        response::{StatusCause, StatusDetails},
    },
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::{info, warn};

use crate::{
    domain::{
        admission::{Decision, denial},
        preflight::Blocker,
    },
    metrics::{AdmissionDecision, Metrics},
};

/// Why a review could not be judged.
#[derive(Debug, thiserror::Error)]
pub enum Unanswerable {
    /// The review is not what the protocol says.
    #[error("the AdmissionReview cannot be read: {0}")]
    Malformed(String),
    /// The API server could not be asked.
    #[error("what the decision depends on could not be looked up: {0}; try again")]
    Lookup(String),
    /// The API server did not answer in time.
    #[error("what the decision depends on could not be looked up within {} s; try again", .0.as_secs())]
    Slow(Duration),
}

impl Unanswerable {
    /// A field that is not there.
    pub fn missing(field: &str) -> Self {
        Self::Malformed(format!("{field} is missing"))
    }

    const fn code(&self) -> u16 {
        match self {
            Self::Malformed(_) => 400,
            Self::Lookup(_) => 500,
            Self::Slow(_) => 504,
        }
    }
}

/// Reads a review, has it judged, and answers it.
pub async fn answer<K, F>(webhook: &'static str, body: &[u8], metrics: &Metrics, judge: F) -> Response
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
    F: AsyncFnOnce(&AdmissionRequest<K>) -> Result<Decision, Unanswerable>,
{
    let (uid, request) = match read::<K>(body) {
        Ok(read) => read,
        Err(problem) => {
            warn!(webhook, %problem, "an AdmissionReview without a UID was refused");
            metrics.admission(webhook, AdmissionDecision::Failed);
            return (StatusCode::BAD_REQUEST, format!("{problem}\n")).into_response();
        }
    };
    let judged = match &request {
        Ok(request) => judge(request).await,
        Err(problem) => Err(Unanswerable::Malformed(problem.clone())),
    };
    let mut response = AdmissionResponse::invalid("");
    response.uid = uid;
    let decision = fill(&mut response, judged, webhook);
    metrics.admission(webhook, decision);
    Json(response.into_review()).into_response()
}

fn fill(response: &mut AdmissionResponse, judged: Result<Decision, Unanswerable>, webhook: &'static str) -> AdmissionDecision {
    match judged {
        Ok(Decision::Allow { patch, warnings }) => {
            response.allowed = true;
            response.result = Status::default();
            response.warnings = (!warnings.is_empty()).then_some(warnings);
            if patch.0.is_empty() {
                return AdmissionDecision::Allowed;
            }
            match response.clone().with_patch(patch) {
                Ok(patched) => {
                    *response = patched;
                    AdmissionDecision::Patched
                }
                Err(problem) => refuse(response, &format!("drover: the patch cannot be written: {problem}"), "InternalError", 500),
            }
        }
        Ok(Decision::Deny { what, reasons }) => {
            let message = denial(&what, &reasons);
            info!(webhook, uid = response.uid, message, "refused");
            refuse(response, &message, "Forbidden", 403);
            response.result.details = Some(details(&reasons));
            AdmissionDecision::Denied
        }
        Ok(Decision::Answer { code, reason, message }) => {
            refuse(response, &message, reason, code);
            AdmissionDecision::Denied
        }
        Err(problem) => {
            warn!(webhook, uid = response.uid, %problem, "a review could not be judged");
            refuse(response, &format!("drover: {problem}"), "", problem.code())
        }
    }
}

fn refuse(response: &mut AdmissionResponse, message: &str, reason: &str, code: u16) -> AdmissionDecision {
    response.allowed = false;
    response.result = Status::failure(message, reason).with_code(code);
    AdmissionDecision::Failed
}

/// The reasons once more, for programs.
fn details(reasons: &[Blocker]) -> StatusDetails {
    let causes =
        reasons.iter().map(|r| StatusCause { reason: "FieldValueInvalid".to_owned(), message: r.message.clone(), field: r.field.clone() }).collect();
    StatusDetails { name: String::new(), group: String::new(), kind: String::new(), uid: String::new(), causes, retry_after_seconds: 0 }
}

type Read<K> = (String, Result<AdmissionRequest<K>, String>);

/// The review's UID, and its request or the field that is wrong with it.
fn read<K: Resource<DynamicType = ()> + DeserializeOwned>(body: &[u8]) -> Result<Read<K>, String> {
    let mut review: Value = serde_json::from_slice(body).map_err(|e| format!("the body is no JSON: {e}"))?;
    let uid = match review.pointer("/request/uid").and_then(Value::as_str) {
        Some(uid) if !uid.is_empty() => uid.to_owned(),
        _ => return Err("the AdmissionReview cannot be read: request.uid is missing".to_owned()),
    };
    for (field, expected) in [("apiVersion", "admission.k8s.io/v1"), ("kind", "AdmissionReview")] {
        let found = review.get(field).and_then(Value::as_str).unwrap_or_default();
        if found != expected {
            return Ok((uid, Err(format!("{field} is {found:?}, expected {expected:?}"))));
        }
    }
    let expected = K::kind(&());
    let found = review.pointer("/request/kind/kind").and_then(Value::as_str).unwrap_or_default();
    if found != expected {
        return Ok((
            uid,
            Err(format!("request.kind.kind is {found:?}, expected {expected:?}; the webhook configuration sends the wrong resource here")),
        ));
    }
    for field in ["object", "oldObject"] {
        if let Some(object) = review.pointer(&format!("/request/{field}")).filter(|o| !o.is_null())
            && let Err(e) = K::deserialize(object)
        {
            return Ok((uid, Err(format!("request.{field}: {e}"))));
        }
    }
    let request = serde_json::from_value(review["request"].take()).map_err(|e| format!("request: {e}"));
    Ok((uid, request))
}
