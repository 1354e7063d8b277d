//! The scheduler extender: `filter`, `prioritize` and `preempt` as kube-scheduler calls them; the decisions are in `domain/extender`.
//!
//! # How failures are answered
//! Anything but HTTP 200 is an error to kube-scheduler, which goes on without the extender where its configuration says `ignorable`. A body that cannot be
//! read is answered by 400 (413 where it is too large) with what is wrong; where the API server cannot be asked, `filter` says so in its `Error` field, and
//! the other two, which have none, by 500. Pods that are none of Drover's never come so far: nothing is looked up for them.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State, rejection::BytesRejection},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::post,
};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde::Serialize;
use tracing::{debug, info, warn};

use crate::{
    api::Migration,
    domain::{
        extender::{
            self, Placement,
            protocol::{ExtenderArgs, ExtenderFilterResult, ExtenderPreemptionArgs, ExtenderPreemptionResult, HostPriority},
        },
        keys,
        preflight::Facts,
    },
    metrics::{ExtenderAnswer, Metrics},
    ports::{Clock, PortError, PortResult, front::PlacementSource},
};

/// Nodes in full are 10 to 20 KiB each; what a manager has of memory does not allow for more than a thousand of them.
const LARGEST_REQUEST: usize = 16 << 20;
/// Below the `httpTimeout` of the sample configuration (3 s), so that kube-scheduler learns why.
const LOOKUP_LIMIT: Duration = Duration::from_secs(2);

/// What the extender needs.
#[derive(Clone)]
pub struct Extender {
    /// Where Migrations, nodes and profiles are looked up.
    pub source: Arc<dyn PlacementSource>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Where answers are counted.
    pub metrics: Metrics,
}

/// The routes `/extender/filter`, `/extender/prioritize` and `/extender/preempt`.
pub fn router(extender: Extender) -> Router {
    Router::new()
        .route("/extender/filter", post(filter))
        .route("/extender/prioritize", post(prioritize))
        .route("/extender/preempt", post(preempt))
        .layer(DefaultBodyLimit::max(LARGEST_REQUEST))
        .with_state(extender)
}

type Body = Result<Bytes, BytesRejection>;

async fn filter(State(extender): State<Extender>, body: Body) -> Response {
    let answer = match read(body, ExtenderArgs::read) {
        Ok(args) => extender.filter(args).await,
        Err(refused) => Err(refused),
    };
    extender.reply("filter", answer)
}

async fn prioritize(State(extender): State<Extender>, body: Body) -> Response {
    let answer = match read(body, ExtenderArgs::read) {
        Ok(args) => extender.prioritize(args).await,
        Err(refused) => Err(refused),
    };
    extender.reply("prioritize", answer)
}

async fn preempt(State(extender): State<Extender>, body: Body) -> Response {
    let answer = match read(body, ExtenderPreemptionArgs::read) {
        Ok(args) => extender.preempt(args).await,
        Err(refused) => Err(refused),
    };
    extender.reply("preempt", answer)
}

/// Why there is no answer.
#[derive(Debug)]
enum Problem {
    /// The request is not what the protocol says.
    Request(StatusCode, String),
    /// The API server could not be asked.
    Lookup(String),
}

impl Problem {
    fn malformed(message: impl Into<String>) -> Self {
        Self::Request(StatusCode::BAD_REQUEST, message.into())
    }
}

fn read<T>(body: Body, parse: fn(&[u8]) -> Result<T, String>) -> Result<T, Problem> {
    let body = body.map_err(|rejection| {
        let remedy = "set nodeCacheCapable: true in kube-scheduler's configuration, then only the nodes' names are sent";
        let message = match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => format!("the body is larger than {} MiB; {remedy}", LARGEST_REQUEST >> 20),
            _ => format!("the body cannot be read: {}", rejection.body_text()),
        };
        Problem::Request(rejection.status(), message)
    })?;
    parse(&body).map_err(Problem::malformed)
}

/// What is known about a pod that Drover has made.
struct Known {
    migrations: Vec<Migration>,
    facts: Facts,
}

impl Known {
    /// The pod's Migration; none where it has none after all.
    fn placement(&self, pod: &Pod) -> Option<Placement<'_>> {
        Placement::of(pod, &self.migrations)
    }
}

impl Extender {
    async fn filter(&self, args: ExtenderArgs) -> Result<(ExtenderAnswer, ExtenderFilterResult), Problem> {
        let known = match self.know(&args.pod).await {
            Err(Problem::Lookup(problem)) => return Ok((ExtenderAnswer::Failed, ExtenderFilterResult::failed(problem))),
            known => known?,
        };
        let Some(placement) = known.placement(&args.pod) else { return Ok((ExtenderAnswer::Ordinary, extender::pass(args))) };
        let pod = args.pod.name_any();
        let result = extender::filter(args, &placement, &known.facts);
        if result.passing() > 0 {
            debug!(pod, nodes = result.passing(), "kube-scheduler may choose");
            return Ok((ExtenderAnswer::Placed, result));
        }
        info!(pod, refused = ?result.failed_and_unresolvable_nodes, "no node may take the pod");
        Ok((ExtenderAnswer::Refused, result))
    }

    async fn prioritize(&self, args: ExtenderArgs) -> Result<(ExtenderAnswer, Vec<HostPriority>), Problem> {
        let known = self.know(&args.pod).await?;
        if known.placement(&args.pod).is_none() {
            return Ok((ExtenderAnswer::Ordinary, extender::indifferent(&args)));
        }
        Ok((ExtenderAnswer::Placed, extender::prioritize(&args, &known.facts)))
    }

    async fn preempt(&self, args: ExtenderPreemptionArgs) -> Result<(ExtenderAnswer, ExtenderPreemptionResult), Problem> {
        let migrations = self.look_up(self.source.migrations(None)).await?;
        let result = extender::preempt(args, &migrations);
        let answer = if result.node_name_to_meta_victims.is_empty() { ExtenderAnswer::Refused } else { ExtenderAnswer::Placed };
        Ok((answer, result))
    }

    /// Looks up what the answer for this pod depends on: nothing, where it is none of Drover's.
    async fn know(&self, pod: &Pod) -> Result<Known, Problem> {
        let facts = Facts { now: self.clock.now(), ..Facts::default() };
        let mut known = Known { migrations: vec![], facts };
        if extender::made_for(pod).is_none() {
            return Ok(known);
        }
        let missing = || Problem::malformed("the ExtenderArgs cannot be read: Pod.metadata.namespace is missing");
        let own = pod.namespace().ok_or_else(missing)?;
        let namespace = pod.annotations().get(keys::REPLACES_IN).cloned().unwrap_or(own);
        known.migrations = self.look_up(self.source.migrations(Some(&namespace))).await?;
        if known.placement(pod).is_some_and(|placement| placement.looks_at_nodes()) {
            known.facts.nodes = self.look_up(self.source.nodes()).await?;
        }
        Ok(known)
    }

    async fn look_up<T>(&self, lookup: impl Future<Output = PortResult<T>>) -> Result<T, Problem> {
        let what = "drover: what the answer depends on could not be looked up";
        match tokio::time::timeout(LOOKUP_LIMIT, lookup).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(PortError { message, .. })) => Err(Problem::Lookup(format!("{what}: {message}"))),
            Err(_) => Err(Problem::Lookup(format!("{what} within {} s", LOOKUP_LIMIT.as_secs()))),
        }
    }

    fn reply<T: Serialize>(&self, verb: &'static str, answer: Result<(ExtenderAnswer, T), Problem>) -> Response {
        let (status, problem) = match answer {
            Ok((answer, body)) => {
                self.metrics.extender(verb, answer);
                return Json(body).into_response();
            }
            Err(Problem::Request(status, problem)) => (status, problem),
            Err(Problem::Lookup(problem)) => (StatusCode::INTERNAL_SERVER_ERROR, problem),
        };
        warn!(verb, %status, problem, "kube-scheduler goes on without an answer");
        self.metrics.extender(verb, ExtenderAnswer::Failed);
        (status, format!("{problem}\n")).into_response()
    }
}

#[cfg(test)]
mod tests;
