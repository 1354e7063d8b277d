//! What the eviction of a pod is answered, as KubeVirt's eviction webhook answers it, so that `kubectl drain`, the descheduler and the autoscaler wait.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::{LAPSES_AFTER, asked_at, can_leave, cools_down, ended_at, evacuates, failed};
use crate::{
    api::{
        Migration, Outcome, Phase,
        policy::{Trigger, Unmovable},
    },
    domain::{
        admission::{World, active_migration},
        migration::{age, node_of},
        policy,
    },
};

/// So long after its move a pod that kept its name is spared by evictions that were meant for the one it was. A drain asks every 5 s.
const SPARED_FOR: std::time::Duration = std::time::Duration::from_mins(5);

/// The answer to an eviction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Eviction {
    /// As usual.
    Allow,
    /// 404: the pod that is meant has moved away, and another one has its name. `kubectl drain` takes that for done.
    Gone(String),
    /// 429: it moves; `kubectl drain` asks again after 5 s. The descheduler knows the text.
    Later {
        /// What is told.
        message: String,
        /// Write down that it was asked for.
        mark: bool,
    },
}

/// Judges the eviction of a pod of an opted-in namespace.
#[must_use]
pub fn judge(pod: &Pod, world: &World, now: Timestamp) -> Eviction {
    let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    if let Some(migration) = has_just_come(pod, world, now) {
        let node = migration.status.as_ref().and_then(|status| status.destination.as_ref()).map_or("", |it| it.node_name.as_str());
        return Eviction::Gone(format!("pods {:?} not found: it has moved to node {node} (Migration {})", pod.name_any(), migration.name_any()));
    }
    let later = |what: String, mark| Eviction::Later { message: format!("Eviction triggered evacuation of pod {name}: {what}"), mark };
    let evacuation = policy::evacuation(&world.policies, &world.namespace_labels, pod, Trigger::Drain);
    if let Some(migration) = active_migration(pod, &world.migrations) {
        // Before the release whoever may evict may end the move too; then the pod may be the only copy left.
        let may_be_the_last = (Phase::SourceDeleting..Phase::Done).contains(&migration.phase());
        return if evacuation.is_some() || evacuates(migration).is_some() || may_be_the_last {
            later(format!("Migration {} is in phase {}", migration.name_any(), migration.phase()), false)
        } else {
            Eviction::Allow
        };
    }
    let Some(evacuation) = evacuation.filter(|_| can_leave(pod)) else { return Eviction::Allow };
    match failed(pod, &world.migrations) {
        Some(_) if evacuation.unmovable == Unmovable::Evict => Eviction::Allow,
        Some(migration) => {
            let message = migration.status.as_ref().map(|status| status.message.clone()).unwrap_or_default();
            later(format!("Migration {} has failed, and its policy evicts no pod that cannot be moved: {message}", migration.name_any()), false)
        }
        None => {
            // Not at each try: a write that every few seconds changes nothing else.
            let mark = asked_at(pod).is_none_or(|asked| age(asked, now) > LAPSES_AFTER / 3);
            let when = match cools_down(pod, evacuation.cool_down(), &world.migrations, now) {
                Some(left) => {
                    format!("{} s from now, since it was moved a moment ago (coolDownSeconds of its MigrationPolicy)", left.as_secs().max(1))
                }
                None => "as soon as it is its turn".to_owned(),
            };
            later(format!("it moves to another node with its memory {when}"), mark)
        }
    }
}

/// The Migration by which a pod that kept its name has just come to its node, if that node keeps it.
fn has_just_come<'w>(pod: &Pod, world: &'w World, now: Timestamp) -> Option<&'w Migration> {
    let (uid, node) = (pod.metadata.uid.as_deref()?, node_of(pod)?);
    if world.facts.nodes.iter().any(|view| view.name == node && view.cordoned) {
        return None;
    }
    world.migrations.iter().filter(|m| m.spec.keep_name && m.namespace() == pod.namespace()).find(|m| {
        let Some(status) = m.status.as_ref().filter(|status| status.outcome == Some(Outcome::Migrated)) else { return false };
        status.replacement.as_ref().is_some_and(|it| it.uid == uid) && ended_at(status).is_some_and(|ended| age(ended, now) < SPARED_FOR)
    })
}
