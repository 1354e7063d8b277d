//! A Migration of several pods (`spec.deployment`, `spec.selector`): a child Migration for each, one after the other.
//!
//! The pods are chosen once, at the beginning; each is known by its UID from then on. The next child is made when the one before has moved its pod: what
//! stops one pod may stop the others, and a person should see it before all of them have been frozen for nothing. The parent itself touches no pod.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Resource as _, ResourceExt as _};

use super::{
    ids::derived_name,
    keys,
    migration::{StatusExt as _, node_of},
    owner,
    preflight::{Blocker, migration_blockers},
};
use crate::api::{Migration, MigrationSpec, MigrationStatus, Outcome, Phase, migration::Child};

/// So much of the parent's name stands in a child's, whose limit is 52.
const STEM: usize = 40;

/// What the API server has of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// The pods that the parent asks for; none where its Deployment is not there.
    pub pods: Option<Vec<Pod>>,
    /// The parent's children that are there, by name.
    pub children: BTreeMap<String, Migration>,
}

/// What the manager does next; a status comes before a child, as in [`super::migration::Step`].
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Write this status.
    Write(Box<MigrationStatus>),
    /// Make this Migration. It may be there already.
    Make(Box<Migration>),
    /// Wait for a change.
    Wait,
}

/// Whether a Migration asks for several pods.
#[must_use]
pub fn is_parent(migration: &Migration) -> bool {
    migration.spec.pod_name.is_none()
}

/// What comes next for a Migration of several pods that has not ended.
#[must_use]
pub fn advance(parent: &Migration, seen: &Seen, now: Timestamp) -> Step {
    let status = parent.status.clone().unwrap_or_default();
    if parent.metadata.deletion_timestamp.is_some() {
        // Its children go by their owner reference, each to an end of its own.
        return Step::Wait;
    }
    if status.children.is_empty() { plan(parent, seen, status, now) } else { follow(parent, seen, status, now) }
}

/// The step after a child could not be made for good.
#[must_use]
pub fn child_refused(parent: &Migration, child: &Migration, message: &str, now: Timestamp) -> Step {
    let mut status = parent.status.clone().unwrap_or_default();
    if let Some(planned) = status.children.iter_mut().find(|planned| planned.migration == child.name_any()) {
        (planned.phase, planned.outcome, planned.message) = (Some(Phase::Done), Some(Outcome::Failed), message.to_owned());
    }
    end_or_go_on(parent, status, now)
}

fn plan(parent: &Migration, seen: &Seen, mut status: MigrationStatus, now: Timestamp) -> Step {
    let blockers = migration_blockers(parent);
    if !blockers.is_empty() {
        status.blockers = blockers.iter().map(ToString::to_string).collect();
        return refuse(status, Blocker::join(&blockers), now);
    }
    let Some(pods) = &seen.pods else {
        let name = parent.spec.deployment.as_deref().unwrap_or_default();
        return refuse(status, format!("spec.deployment: there is no Deployment {name:?} in this namespace"), now);
    };
    let there = parent.spec.destination.node_name.as_deref();
    let mut pods: Vec<&Pod> = pods.iter().filter(|pod| is_running(pod) && (there.is_none() || node_of(pod) != there)).collect();
    if pods.is_empty() {
        let field = if parent.spec.deployment.is_some() { "spec.deployment" } else { "spec.selector" };
        return refuse(status, format!("{field}: no running pod of it is on another node than the destination"), now);
    }
    pods.sort_by_key(|pod| pod.name_any());
    status.children = pods.into_iter().map(|pod| planned(parent, pod)).collect();
    status.observed_generation = parent.metadata.generation;
    status.message = progress(&status);
    status.enter(Phase::Transferring, now);
    Step::Write(Box::new(status))
}

fn refuse(mut status: MigrationStatus, message: String, now: Timestamp) -> Step {
    status.message = message;
    status.finish(Outcome::Failed, now);
    Step::Write(Box::new(status))
}

fn planned(parent: &Migration, pod: &Pod) -> Child {
    let uid = pod.uid().unwrap_or_default();
    let migration = derived_name(&parent.name_any(), STEM, &format!("{}\n{uid}", parent.uid().unwrap_or_default()));
    Child { pod: pod.name_any(), pod_uid: uid, migration, ..Child::default() }
}

fn follow(parent: &Migration, seen: &Seen, mut status: MigrationStatus, now: Timestamp) -> Step {
    let before = status.clone();
    for child in status.children.iter_mut().filter(|child| child.phase.is_some_and(|phase| phase != Phase::Done)) {
        if let Some(migration) = seen.children.get(&child.migration) {
            show(child, migration);
        } else {
            (child.phase, child.outcome, child.message) = (Some(Phase::Done), Some(Outcome::Failed), "its Migration was deleted".into());
        }
    }
    let begun = status.children.iter_mut().find(|child| child.phase.is_none()).filter(|child| seen.children.contains_key(&child.migration));
    if let Some(child) = begun {
        show(child, &seen.children[&child.migration]);
    }
    if status != before {
        return end_or_go_on(parent, status, now);
    }
    if status.children.iter().any(|child| child.phase.is_some_and(|phase| phase != Phase::Done)) {
        return Step::Wait;
    }
    let Some(next) = status.children.iter_mut().find(|child| child.phase.is_none()) else { return end_or_go_on(parent, status, now) };
    let pod = seen.pods.iter().flatten().find(|pod| pod.uid().as_deref() == Some(&next.pod_uid) && pod.metadata.deletion_timestamp.is_none());
    let Some(pod) = pod else {
        (next.phase, next.outcome, next.message) = (Some(Phase::Done), Some(Outcome::Failed), "the pod has ended before its turn".into());
        return end_or_go_on(parent, status, now);
    };
    Step::Make(Box::new(child_of(parent, next, pod)))
}

/// What a parent shows of a child.
fn show(child: &mut Child, migration: &Migration) {
    let status = migration.status.clone().unwrap_or_default();
    child.phase = Some(status.phase);
    child.outcome = status.outcome;
    let worth_telling = status.held().is_some() || status.outcome.is_some_and(|outcome| outcome != Outcome::Migrated);
    child.message = if worth_telling { status.message } else { String::new() };
}

fn end_or_go_on(parent: &Migration, mut status: MigrationStatus, now: Timestamp) -> Step {
    let running = status.children.iter().any(|child| child.phase.is_some_and(|phase| phase != Phase::Done));
    let all_begun = status.children.iter().all(|child| child.phase.is_some());
    let stopped = status.children.iter().any(|child| child.outcome.is_some_and(|outcome| outcome != Outcome::Migrated));
    status.message = progress(&status);
    if !running && (all_begun || (stopped && !parent.spec.check_only)) {
        match outcome(&status.children) {
            Some(outcome) => status.finish(outcome, now),
            None => status.complete_check(now),
        }
    }
    if parent.status.as_ref() == Some(&status) { Step::Wait } else { Step::Write(Box::new(status)) }
}

/// How it has ended as a whole; none where every child was a check that found nothing.
fn outcome(children: &[Child]) -> Option<Outcome> {
    if children.iter().all(|child| child.phase == Some(Phase::Done) && child.outcome.is_none()) {
        return None;
    }
    let moved = children.iter().filter(|child| child.outcome == Some(Outcome::Migrated)).count();
    if moved == children.len() {
        return Some(Outcome::Migrated);
    }
    if moved > 0 {
        return Some(Outcome::Partial);
    }
    let worst = [Outcome::GivenUp, Outcome::ColdStarted, Outcome::RolledBack]
        .into_iter()
        .find(|outcome| children.iter().any(|child| child.outcome == Some(*outcome)));
    Some(worst.unwrap_or(Outcome::Failed))
}

fn progress(status: &MigrationStatus) -> String {
    let children = &status.children;
    let moved = children.iter().filter(|child| child.outcome == Some(Outcome::Migrated)).count();
    let mut parts = vec![format!("{moved} of {} pods are moved", children.len())];
    for child in children.iter().filter(|child| child.phase.is_some() && child.outcome != Some(Outcome::Migrated)) {
        let state = child.outcome.map_or_else(|| child.phase.unwrap_or_default().as_str(), Outcome::as_str);
        let why = if child.message.is_empty() { String::new() } else { format!(": {}", child.message) };
        parts.push(format!("{} ({}) {state}{why}", child.pod, child.migration));
    }
    let waiting = children.iter().filter(|child| child.phase.is_none()).count();
    if waiting > 0 {
        parts.push(format!("{waiting} not begun"));
    }
    parts.join("; ")
}

/// The child asks for what its parent asks for, for one pod.
fn child_of(parent: &Migration, planned: &Child, pod: &Pod) -> Migration {
    let spec = MigrationSpec {
        pod_name: Some(planned.pod.clone()),
        deployment: None,
        selector: None,
        keep_name: parent.spec.keep_name || owner::keeps_its_name(&pod.metadata),
        // The parent tells what has become of it, and goes with it.
        ttl_seconds_after_finished: None,
        ..parent.spec.clone()
    };
    let mut child = Migration::new(&planned.migration, spec);
    child.metadata.namespace = parent.namespace();
    child.metadata.labels = Some([(keys::PARENT_UID.to_owned(), parent.uid().unwrap_or_default())].into());
    child.metadata.annotations = Some([(keys::POD_UID.to_owned(), planned.pod_uid.clone())].into());
    child.metadata.owner_references = parent.controller_owner_ref(&()).map(|owner| vec![owner]);
    child
}

/// Whether a Migration is this parent's child.
#[must_use]
pub fn is_child_of(migration: &Migration, parent: &Migration) -> bool {
    owner::controller(&migration.metadata).is_some_and(|owner| parent.uid().is_some_and(|uid| uid == owner.uid))
}

pub(in crate::domain) fn is_running(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}
