//! The admission webhooks: read the review, look up what the decision needs, decide, answer.
//!
//! # How failures are answered
//! A review whose UID can be read is always answered with HTTP 200, and refused (code 400, 500 or 504) where it cannot be judged: an HTTP error
//! would be a *webhook failure*, which `failurePolicy: Ignore` lets through, and a claim that nobody has checked must not pass. Only pods
//! that carry Drover's annotations come here with something to look up, so an unreachable API server holds up nobody else. Without a UID the
//! API server would not accept any answer; such a body gets HTTP 400.
//!
//! # Side effects
//! None, so a dry run is answered like any other review; but that an eviction was asked for is written down on its pod, unless it is rehearsed.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    response::Response,
    routing::post,
};
use k8s_openapi::api::{core::v1::Pod, policy::v1::Eviction};
use kube::{
    ResourceExt as _,
    core::admission::{AdmissionRequest, Operation},
};

use crate::{
    api::Migration,
    domain::{
        admission::{Change, Decision, Needs, Requester, World, decide, needs, validate_migration},
        evacuation, keys,
    },
    metrics::Metrics,
    ports::{
        Clock, PortError, PortResult,
        front::{EvictionRequests, WorldSource},
    },
};

mod review;

/// A review holds the old and the new object; etcd takes 1.5 MiB each, JSON and the envelope come on top.
const LARGEST_REVIEW: usize = 8 << 20;
/// The API server waits 10 s by default; an answer with a reason is better than its timeout.
const LOOKUP_LIMIT: Duration = Duration::from_secs(7);

/// What the webhooks need.
#[derive(Clone)]
pub struct Admission {
    /// Where nodes, profiles, policies, Migrations and pods are looked up.
    pub world: Arc<dyn WorldSource>,
    /// Where it is written down that a pod is to be evicted.
    pub evictions: Arc<dyn EvictionRequests>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// User name of the manager's service account: `system:serviceaccount:<namespace>:<name>`.
    pub manager_username: String,
    /// Where answers are counted.
    pub metrics: Metrics,
}

/// The routes `/mutate/pods`, `/mutate/evictions` and `/validate/migrations`.
pub fn router(admission: Admission) -> Router {
    Router::new()
        .route("/mutate/pods", post(pods))
        .route("/mutate/evictions", post(evictions))
        .route("/validate/migrations", post(migrations))
        .layer(DefaultBodyLimit::max(LARGEST_REVIEW))
        .with_state(admission)
}

async fn pods(State(admission): State<Admission>, body: Bytes) -> Response {
    review::answer::<Pod, _>("pods", &body, &admission.metrics, async |request| admission.judge_pod(request).await).await
}

async fn evictions(State(admission): State<Admission>, body: Bytes) -> Response {
    review::answer::<Eviction, _>("evictions", &body, &admission.metrics, async |request| admission.judge_eviction(request).await).await
}

async fn migrations(State(admission): State<Admission>, body: Bytes) -> Response {
    review::answer::<Migration, _>("migrations", &body, &admission.metrics, async |request| admission.judge_migration(request).await).await
}

impl Admission {
    async fn judge_pod(&self, request: &AdmissionRequest<Pod>) -> Result<Decision, review::Unanswerable> {
        let new = match request.operation {
            Operation::Create | Operation::Update => request.object.as_ref().ok_or(review::Unanswerable::missing("request.object"))?,
            Operation::Delete | Operation::Connect => return Ok(Decision::allow()),
        };
        let change = match request.operation {
            Operation::Create => Change::Create(new),
            _ => Change::Update { old: request.old_object.as_ref().ok_or(review::Unanswerable::missing("request.oldObject"))?, new },
        };
        let username = request.user_info.username.clone().unwrap_or_default();
        let requester = Requester { is_manager: username == self.manager_username, username };
        let needs = needs(change, &requester);
        let world = if needs.is_empty() {
            World::unseen(self.clock.now())
        } else {
            let namespace = request.namespace.as_deref().ok_or(review::Unanswerable::missing("request.namespace"))?;
            self.look_up(self.world.world(namespace, &needs)).await?
        };
        Ok(decide(change, &requester, &world))
    }

    async fn judge_migration(&self, request: &AdmissionRequest<Migration>) -> Result<Decision, review::Unanswerable> {
        if request.operation != Operation::Create {
            return Ok(Decision::allow());
        }
        let migration = request.object.as_ref().ok_or(review::Unanswerable::missing("request.object"))?;
        let namespace = request.namespace.as_deref().ok_or(review::Unanswerable::missing("request.namespace"))?;
        // The API server has filled in the namespace by now; a review written by hand may lack it.
        let mut migration = migration.clone();
        migration.metadata.namespace.get_or_insert_with(|| namespace.to_owned());
        // Why a pod cannot leave its node must stand somewhere; the preflight will say it.
        if evacuation::evacuates(&migration).is_some() && request.user_info.username.as_ref() == Some(&self.manager_username) {
            return Ok(Decision::allow());
        }
        let pod = match &migration.spec.pod_name {
            Some(name) => self.look_up(self.world.pod(namespace, name)).await?,
            None => None,
        };
        let reasons = validate_migration(&migration, pod.as_ref());
        if reasons.is_empty() {
            return Ok(Decision::allow());
        }
        let name = migration.metadata.name.clone().or(migration.metadata.generate_name).unwrap_or_default();
        Ok(Decision::Deny { what: format!("Migration {namespace}/{name} cannot be made"), reasons })
    }

    async fn judge_eviction(&self, request: &AdmissionRequest<Eviction>) -> Result<Decision, review::Unanswerable> {
        let namespace = request.namespace.as_deref().ok_or(review::Unanswerable::missing("request.namespace"))?;
        // That the pod is gone is the API server's to say: this comes before it has looked.
        let Some(pod) = self.look_up(self.world.pod(namespace, &request.name)).await? else { return Ok(Decision::allow()) };
        let options = request.object.as_ref().and_then(|eviction| eviction.delete_options.as_ref());
        let meant = options.and_then(|options| options.preconditions.as_ref()?.uid.as_ref());
        if meant.is_some_and(|uid| pod.metadata.uid.as_ref() != Some(uid)) {
            return Ok(Decision::allow());
        }
        let needs = Needs { destination: true, elsewhere: pod.annotations().get(keys::REPLACES_IN).cloned(), ..Needs::default() };
        let world = self.look_up(self.world.world(namespace, &needs)).await?;
        let now = self.clock.now();
        match evacuation::judge(&pod, &world, now) {
            evacuation::Eviction::Allow => Ok(Decision::allow()),
            evacuation::Eviction::Gone(message) => Ok(Decision::Answer { code: 404, reason: "NotFound", message }),
            evacuation::Eviction::Later { message, mark } => {
                // kubectl drain --dry-run=server says it in the eviction, not in the request (FACTS.md 8).
                let rehearsed = request.dry_run || options.and_then(|it| it.dry_run.as_ref()).is_some_and(|it| it.iter().any(|all| all == "All"));
                if mark && !rehearsed {
                    self.look_up(self.evictions.note(&pod, now)).await?;
                }
                Ok(Decision::Answer { code: 429, reason: "TooManyRequests", message })
            }
        }
    }

    async fn look_up<T>(&self, lookup: impl Future<Output = PortResult<T>>) -> Result<T, review::Unanswerable> {
        match tokio::time::timeout(LOOKUP_LIMIT, lookup).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(PortError { message, .. })) => Err(review::Unanswerable::Lookup(message)),
            Err(_) => Err(review::Unanswerable::Slow(LOOKUP_LIMIT)),
        }
    }
}

#[cfg(test)]
mod tests;
