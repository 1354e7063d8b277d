//! What Drover says of an eviction that names it as a responder (KEP-4563): the pod moves instead, and the others wait for that.
//!
//! # Source
//! Names, states and deadlines: k8s.io/api v0.37.2, `lifecycle/v1alpha1/types.go` (alpha; feature gate `EvictionRequestAPI`). An active responder that is silent
//! for 20 minutes is passed over; it should not speak more often than every 20 s.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    ResourceExt as _,
    core::{ApiResource, GroupVersionKind, Object},
};
use serde::{Deserialize, Serialize};

use super::{Seen, can_leave, cools_down, failed};
use crate::{
    api::policy::{Trigger, Unmovable},
    domain::{admission::active_migration, migration::age},
};

/// As pods name it in `spec.evictionResponders`.
pub const RESPONDER: &str = "drover.dev/migration";
/// The state of the responder whose turn it is.
const ACTIVE: &str = "Active";
/// It says nothing new sooner than this after its last word …
const QUIET: Duration = Duration::from_secs(20);
/// … and says the same again after this time.
const HEARTBEAT: Duration = Duration::from_mins(2);

/// An eviction of the API `lifecycle.k8s.io/v1alpha1`, as far as a responder reads it.
pub type EvictionIntent = Object<IntentSpec, IntentStatus>;

/// What is to be evicted.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct IntentSpec {
    /// One of a union.
    #[serde(default)]
    pub target: Target,
}

/// One of a union, whose other members may come later.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// A pod of the eviction's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<TargetPod>,
}

/// A pod.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetPod {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// Who sees to it, and how far they are.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct IntentStatus {
    /// As the controller of these objects has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_responders: Vec<TargetResponder>,
    /// What each says itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub responders: Vec<Responder>,
}

/// A responder, and whether it is its turn.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetResponder {
    /// Its name.
    pub name: String,
    /// `Inactive`, `Active`, `Interrupted`, `Canceled` or `Completed`.
    #[serde(default)]
    pub state: String,
}

/// What a responder says.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Responder {
    /// Its name.
    pub name: String,
    /// When it spoke last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_time: Option<Time>,
    /// When it was done, whatever has come of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// How far it is; at most 4000 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Where the API server keeps them.
#[must_use]
pub fn resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("lifecycle.k8s.io", "v1alpha1", "Eviction"), "evictions")
}

/// The pod of an eviction in which it is Drover's turn.
#[must_use]
pub fn awaited(eviction: &EvictionIntent) -> Option<&TargetPod> {
    let is_our_turn = |status: &IntentStatus| status.target_responders.iter().any(|it| it.name == RESPONDER && it.state == ACTIVE);
    let is_done = said(eviction).is_some_and(|said| said.completion_time.is_some());
    eviction.spec.target.pod.as_ref().filter(|_| eviction.status.as_ref().is_some_and(is_our_turn) && !is_done)
}

/// What is to be said of an eviction now; none where the last word still stands.
#[must_use]
pub fn answer(eviction: &EvictionIntent, seen: &Seen, now: Timestamp) -> Option<Responder> {
    let target = awaited(eviction)?;
    let (is_done, message) = word(target, eviction.namespace().as_deref(), seen, now);
    let last = said(eviction);
    let spoke = last.and_then(|last| last.heartbeat_time.as_ref()).map(|at| age(at.0, now));
    let is_news = last.is_none_or(|last| last.message.as_deref() != Some(&message));
    let is_time = spoke.is_none_or(|ago| ago >= HEARTBEAT || (is_news && ago >= QUIET));
    (is_done || is_time).then(|| Responder {
        name: RESPONDER.to_owned(),
        heartbeat_time: Some(Time(now)),
        completion_time: is_done.then_some(Time(now)),
        message: Some(message.chars().take(4000).collect()),
    })
}

fn said(eviction: &EvictionIntent) -> Option<&Responder> {
    eviction.status.as_ref()?.responders.iter().find(|it| it.name == RESPONDER)
}

/// Whether there is nothing more to do, and how far it is.
fn word(target: &TargetPod, namespace: Option<&str>, seen: &Seen, now: Timestamp) -> (bool, String) {
    let is_it = |pod: &&k8s_openapi::api::core::v1::Pod| pod.metadata.uid.as_ref() == Some(&target.uid) && pod.namespace().as_deref() == namespace;
    let Some(pod) = seen.pods.iter().find(is_it) else { return (true, "the pod is not here any more".to_owned()) };
    if let Some(migration) = active_migration(pod, &seen.migrations) {
        let held = migration.status.as_ref().and_then(|status| status.held());
        let held = held.map(|held| format!(", held for {}: {}", held.reason, held.message)).unwrap_or_default();
        return (false, format!("it moves with its memory: Migration {} is in phase {}{held}", migration.name_any(), migration.phase()));
    }
    let Some(evacuation) = seen.evacuation(pod, Trigger::EvictionRequest) else {
        return (true, "no MigrationPolicy selects this pod whose spec.evacuation.triggers has EvictionRequest".to_owned());
    };
    if !can_leave(pod) {
        return (true, "it does not run, or is a DaemonSet's or a static pod, which do not move".to_owned());
    }
    if let Some(migration) = failed(pod, &seen.migrations) {
        let why = migration.status.as_ref().map(|status| status.message.clone()).unwrap_or_default();
        let stays = evacuation.unmovable == Unmovable::Refuse;
        let then = if stays { "it stays, for its policy evicts no pod that cannot be moved" } else { "it may be evicted as usual" };
        return (!stays, format!("Migration {} has failed, so that {then}: {why}", migration.name_any()));
    }
    let when = match cools_down(pod, evacuation.cool_down(), &seen.migrations, now) {
        Some(_) => "once its policy's coolDownSeconds have passed since it was moved last",
        None => "as soon as it is its turn",
    };
    (false, format!("it moves to another node with its memory {when}"))
}
