//! The state machine of a migration: what the manager writes and does next, from what it reads.
//!
//! # Flow
//! The controller reads the Migration and what it speaks of ([`Observed`]), calls [`advance`], and obeys the [`Step`]: either it writes the new status
//! by compare-and-swap and comes again, or it performs the effects. Never both, so that an effect always follows a decision that is already durable
//! (R1: the release is written before anything of it is done).
//!
//! # Guarantees
//! Pure and total: no clock, no randomness, no error. Phases go forward only; the verdict is written once (I3); no rollback is written after
//! the release (I4); every effect may be performed twice.
//!
//! # Assumptions
//! Effects are idempotent and carry UIDs. Attestations are written by the agents of their nodes alone.

mod observed;
mod status;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

pub use observed::{Observed, pod_is_gone};
use status::StatusExt as _;

use super::{preflight::Blocker, verdict};
use crate::api::{
    Migration, MigrationStatus, Outcome, Phase, Role, Verdict,
    migration::{ContainerCheckpoint, DestinationStatus, ReplacementStatus, RestoredContainer, SourceStatus, condition},
};

/// How often an unchanged migration is looked at again; everything else comes by watch.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Seconds in Restoring after which a person is told that the migration is held.
const HOLD_AFTER: Duration = Duration::from_secs(120);
/// How long a rollback waits for a destination that does not answer before it leaves the cleaning to that node's janitor.
const CLEAN_PATIENCE: Duration = Duration::from_secs(45);
/// After this time the waiting replacement, which was never released, is removed by force: its node does not answer.
const FORCE_AFTER: Duration = Duration::from_secs(20);

/// What the manager does next.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Step {
    /// The new status, to be written by compare-and-swap. With it there are no effects.
    pub status: Option<MigrationStatus>,
    /// What is to be done, in this order.
    pub effects: Vec<Effect>,
    /// When to look again though nothing has changed.
    pub after: Option<Duration>,
}

/// One thing that the manager does. Each names what it acts on by UID, and may be done twice.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Put Drover's finalizer on the Migration (R12).
    AddFinalizer,
    /// Take it off: the migration has ended.
    RemoveFinalizer,
    /// Mark the pod as this migration's by compare-and-swap, and take the request's annotation off (R11).
    Lock {
        /// UID of the source pod.
        uid: String,
    },
    /// Take the mark off again.
    Unlock {
        /// UID of the source pod.
        uid: String,
    },
    /// Make the attestation of one side.
    CreateAttestation {
        /// The side.
        role: Role,
        /// Its node.
        node: String,
        /// UID of the pod there.
        pod_uid: String,
    },
    /// Lay out the pod's pull credentials for the destination's agent.
    LayOutPullCredentials,
    /// Remove them again.
    RemovePullCredentials,
    /// Make the waiting replacement.
    CreateReplacement,
    /// Release: name the claim on the replacement; the webhook rewrites the images in the same request.
    Claim {
        /// UID of the replacement.
        uid: String,
    },
    /// Release where the webhook was missed: write the checkpoint images.
    RewriteImages {
        /// UID of the replacement.
        uid: String,
    },
    /// Delete the replacement, which was never released.
    DeleteReplacement {
        /// UID of the replacement.
        uid: String,
        /// Remove the object at once: the node does not answer.
        force: bool,
    },
    /// Delete the source, whose copy is confirmed (R17).
    DeleteSource {
        /// UID of the source pod.
        uid: String,
    },
    /// Delete the Migration: its time after the end is over.
    DeleteMigration,
}

/// What comes next for a migration.
#[must_use]
pub fn advance(migration: &Migration, observed: &Observed, now: Timestamp) -> Step {
    let status = migration.status.clone().unwrap_or_default();
    let course = Course { migration, observed, now };
    if status.phase != Phase::Done && !observed.has_finalizer(migration) && !observed.deleting(migration) {
        return Step::perform(vec![Effect::AddFinalizer]);
    }
    if let Some(reason) = course.reason_to_roll_back(&status) {
        return course.roll_back(status, &reason);
    }
    match status.phase {
        Phase::Pending => course.pending(status),
        Phase::Preflight => course.preflight(status),
        Phase::Preparing => course.preparing(status),
        Phase::Freezing => course.freezing(status),
        Phase::Checkpointing => course.checkpointing(status),
        Phase::Transferring => course.transferring(status),
        Phase::AwaitingReadiness => course.awaiting_readiness(status),
        // Same-name pods are refused by preflight until that flow is built; a status that says so was written by a newer manager.
        Phase::SourceDeleting => Step::wait(),
        Phase::Restoring => course.restoring(status),
        Phase::Finishing => match status.verdict {
            Some(Verdict::Commit) => course.finish_commit(status),
            Some(Verdict::Rollback) => course.finish_rollback(status),
            None => Step::wait(),
        },
        Phase::Done => course.done(&status),
    }
}

/// The step after an effect that failed for good: before the release a rollback that says why, after it a hold.
#[must_use]
pub fn effect_failed(migration: &Migration, observed: &Observed, message: &str, now: Timestamp) -> Step {
    let status = migration.status.clone().unwrap_or_default();
    let course = Course { migration, observed, now };
    if verdict::may_roll_back(&status) {
        course.roll_back(status, message)
    } else if status.phase == Phase::Restoring {
        course.hold(status, "EffectFailed", message)
    } else {
        Step::wait()
    }
}

impl Step {
    fn perform(effects: Vec<Effect>) -> Self {
        Self { status: None, effects, after: Some(LOOK_AGAIN) }
    }

    fn wait() -> Self {
        Self::perform(vec![])
    }

    fn write(status: MigrationStatus) -> Self {
        Self { status: Some(status), effects: vec![], after: None }
    }
}

/// One look at one migration.
struct Course<'a> {
    migration: &'a Migration,
    observed: &'a Observed,
    now: Timestamp,
}

impl Course<'_> {
    /// Why a migration that has not released its replacement must be undone, if it must.
    fn reason_to_roll_back(&self, status: &MigrationStatus) -> Option<String> {
        if !verdict::may_roll_back(status) || status.phase == Phase::Pending {
            return None;
        }
        let source = self.observed.source_status();
        let destination = self.observed.destination_status();
        if self.observed.deleting(self.migration) {
            return Some("the Migration was deleted".to_owned());
        }
        if let Some(abort) = &source.abort {
            return Some(abort.message.clone());
        }
        if let Some(failure) = &destination.failure {
            return Some(failure.message.clone());
        }
        if status.phase >= Phase::Preparing {
            if let Some(reason) = self.pods_changed(status) {
                return Some(reason);
            }
        }
        let limit = Duration::from_secs(self.migration.spec.deadline_seconds.into());
        let created = self.migration.metadata.creation_timestamp.as_ref().map_or(self.now, |t| t.0);
        let age = Duration::try_from(self.now.duration_since(created)).unwrap_or_default();
        (age > limit).then(|| format!("not released within spec.deadlineSeconds ({} s); it was in phase {}", limit.as_secs(), status.phase))
    }

    fn pods_changed(&self, status: &MigrationStatus) -> Option<String> {
        let source = status.source.as_ref()?;
        if pod_is_gone(self.observed.source.as_ref(), &source.uid) {
            return Some(format!("the source pod {} is gone", source.name));
        }
        if self.observed.source.as_ref().is_some_and(|pod| pod.metadata.deletion_timestamp.is_some()) {
            return Some(format!("the source pod {} is being deleted", source.name));
        }
        let replacement = status.replacement.as_ref().filter(|r| !r.uid.is_empty())?;
        if pod_is_gone(self.observed.replacement.as_ref(), &replacement.uid) {
            return Some(format!("the waiting replacement {} is gone", replacement.name));
        }
        if self.observed.replacement.as_ref().is_some_and(|pod| pod.metadata.deletion_timestamp.is_some()) {
            return Some(format!("the waiting replacement {} is being deleted", replacement.name));
        }
        if self.observed.destination_ready == Some(false) {
            let node = status.destination.as_ref().map_or("", |d| d.node_name.as_str());
            return Some(format!("the destination node {node} is not Ready"));
        }
        None
    }

    fn roll_back(&self, mut status: MigrationStatus, reason: &str) -> Step {
        if status.phase <= Phase::Preflight && status.destination.is_none() {
            return self.refuse(status, reason);
        }
        status.verdict = Some(Verdict::Rollback);
        status.message = format!("rolled back in phase {}: {reason}", status.phase);
        status.enter(Phase::Finishing, self.now);
        Step::write(status)
    }

    fn refuse(&self, mut status: MigrationStatus, reason: &str) -> Step {
        status.message = reason.to_owned();
        status.finish(Outcome::Failed, self.now);
        Step::write(status)
    }

    fn pending(&self, mut status: MigrationStatus) -> Step {
        if self.observed.deleting(self.migration) {
            return self.refuse(status, "the Migration was deleted before it began");
        }
        let Some(pod) = &self.observed.source else {
            let name = self.migration.spec.pod_name.as_deref().unwrap_or_default();
            return self.refuse(status, &format!("spec.podName: there is no pod {name:?} in this namespace"));
        };
        status.source = Some(observed::source_status(pod));
        status.observed_generation = self.migration.metadata.generation;
        status.enter(Phase::Preflight, self.now);
        Step::write(status)
    }

    fn preflight(&self, mut status: MigrationStatus) -> Step {
        let blockers = &self.observed.blockers;
        if !blockers.is_empty() {
            return self.refuse(status, &Blocker::join(blockers));
        }
        if self.migration.spec.check_only {
            status.message = "preflight found no blocker; nothing was touched".to_owned();
            status.complete_check(self.now);
            return Step::write(status);
        }
        let Some(source) = status.source.clone() else { return Step::wait() };
        if !self.observed.locked_by(self.migration) {
            return Step::perform(vec![Effect::Lock { uid: source.uid }]);
        }
        status.destination = Some(DestinationStatus {
            node_name: self.migration.spec.destination.node_name.clone().unwrap_or_default(),
            repository: self.observed.fresh_repository.clone(),
            push_address: String::new(),
        });
        status.replacement = Some(ReplacementStatus { name: self.observed.replacement_name.clone(), ..Default::default() });
        status.enter(Phase::Preparing, self.now);
        Step::write(status)
    }

    fn preparing(&self, mut status: MigrationStatus) -> Step {
        let (Some(source), Some(mut destination), Some(mut replacement)) = (status.source.clone(), status.destination.clone(), status.replacement.clone()) else {
            return Step::wait();
        };
        if self.observed.source_attestation.is_none() {
            return Step::perform(vec![self.attestation(Role::Source, &source.node_name, &source.uid)]);
        }
        let Some(pod) = &self.observed.replacement else {
            return Step::perform(vec![Effect::CreateReplacement]);
        };
        if !self.observed.is_our_replacement(pod, self.migration) {
            return self.roll_back(status, &format!("a pod {} exists already and is not this migration's replacement", replacement.name));
        }
        let node = observed::node_of(pod);
        if replacement.uid.is_empty() || (destination.node_name.is_empty() && node.is_some()) {
            replacement.uid = pod.metadata.uid.clone().unwrap_or_default();
            destination.node_name = node.map_or(destination.node_name, str::to_owned);
            status.replacement = Some(replacement);
            status.destination = Some(destination);
            return Step::write(status);
        }
        let Some(node) = node else {
            return self.told(status, &observed::scheduling_message(pod));
        };
        if node == source.node_name || node != destination.node_name {
            return self.roll_back(status, &format!("the replacement was placed on node {node}, where it must not run"));
        }
        if self.observed.destination_attestation.is_none() {
            return Step::perform(vec![Effect::LayOutPullCredentials, self.attestation(Role::Destination, node, &replacement.uid)]);
        }
        match &self.observed.destination_status().prepared {
            Some(prepared) if observed::sandbox_ready(pod) => {
                destination.push_address.clone_from(&prepared.push_address);
                status.destination = Some(destination);
                status.message.clear();
                status.enter(Phase::Freezing, self.now);
                Step::write(status)
            }
            Some(_) => self.told(status, "waiting for the replacement's sandbox"),
            None => self.told(status, "waiting for the destination's base images"),
        }
    }

    fn freezing(&self, mut status: MigrationStatus) -> Step {
        let Some(frozen) = &self.observed.source_status().frozen else { return Step::wait() };
        let expected = status.source.as_ref().map(|s| s.containers.clone()).unwrap_or_default();
        let same = frozen.containers.len() == expected.len()
            && expected.iter().all(|c| frozen.containers.iter().any(|f| f.name == c.name && f.container_id == c.container_id));
        if !same {
            return self.roll_back(status, "the pod's containers are not those that preflight saw: one was restarted in between");
        }
        status.set_condition(condition::FROZEN, true, "Frozen", "the source is paused", self.now);
        status.enter(Phase::Checkpointing, self.now);
        Step::write(status)
    }

    fn checkpointing(&self, mut status: MigrationStatus) -> Step {
        if self.observed.source_status().checkpointed.is_none() {
            return Step::wait();
        }
        status.enter(Phase::Transferring, self.now);
        Step::write(status)
    }

    fn transferring(&self, mut status: MigrationStatus) -> Step {
        let Some(vote) = &self.observed.source_status().vote else { return Step::wait() };
        let Some(destination) = &status.destination else { return Step::wait() };
        let repository = destination.repository.clone();
        status.containers = vote
            .images
            .iter()
            .map(|image| ContainerCheckpoint {
                name: image.container.clone(),
                digest: image.digest.clone(),
                bytes: image.bytes,
                image: super::keys::checkpoint_image(&repository, &image.container),
            })
            .collect();
        status.enter(Phase::AwaitingReadiness, self.now);
        Step::write(status)
    }

    fn awaiting_readiness(&self, mut status: MigrationStatus) -> Step {
        if !verdict::may_release(&status, self.observed.source_status(), self.observed.destination_status()) {
            return Step::wait();
        }
        status.enter(Phase::Restoring, self.now);
        Step::write(status)
    }

    fn restoring(&self, mut status: MigrationStatus) -> Step {
        let Some(mut replacement) = status.replacement.clone() else { return Step::wait() };
        let destination = self.observed.destination_status();
        if let Some(restored) = &destination.restored {
            replacement.containers =
                restored.containers.iter().map(|c| RestoredContainer { name: c.name.clone(), container_id: c.container_id.clone() }).collect();
            status.replacement = Some(replacement);
            status.verdict = Some(Verdict::Commit);
            status.frozen_millis = self.observed.source_status().frozen.as_ref().map(|frozen| status::millis(frozen.at.0, restored.at.0));
            status.clear_condition(condition::HELD, "Restored", self.now);
            status.message.clear();
            status.enter(Phase::Finishing, self.now);
            return Step::write(status);
        }
        if let Some(failure) = &destination.failure {
            return self.hold(status, "RestoreFailed", &failure.message);
        }
        if pod_is_gone(self.observed.replacement.as_ref(), &replacement.uid) {
            return self.hold(status, "ReplacementGone", &format!("the released replacement {} is gone, and nobody has proved that it never ran", replacement.name));
        }
        let Some(pod) = &self.observed.replacement else { return Step::wait() };
        if pod.metadata.deletion_timestamp.is_some() {
            return self.hold(status, "ReplacementDeleted", &format!("the released replacement {} is being deleted", replacement.name));
        }
        if !observed::claimed_by(pod, self.migration) {
            return Step::perform(vec![Effect::Claim { uid: replacement.uid }]);
        }
        if !observed::has_images(pod, &status.containers) {
            return Step::perform(vec![Effect::RewriteImages { uid: replacement.uid }]);
        }
        if status.time_in(Phase::Restoring, self.now) > HOLD_AFTER {
            return self.hold(status, "NoAttestation", "the destination has not said whether the containers were restored");
        }
        Step::wait()
    }

    /// After the release nothing is undone without proof: the source stays frozen, and a person is told why.
    fn hold(&self, mut status: MigrationStatus, reason: &'static str, message: &str) -> Step {
        let message = format!(
            "held after the release, the source stays frozen: {message}. Look at the replacement with kubectl describe pod and at the destination node; \
             the migration goes on by itself as soon as the destination's agent attests the restore"
        );
        if status.condition_is(condition::HELD, reason, &message) {
            return Step::wait();
        }
        status.set_condition(condition::HELD, true, reason, &message, self.now);
        status.message = message;
        Step::write(status)
    }

    fn finish_commit(&self, mut status: MigrationStatus) -> Step {
        let Some(source) = status.source.clone() else { return Step::wait() };
        let destination = self.observed.destination_status();
        if destination.confirmed.is_none() {
            return match &destination.failure {
                Some(failure) => self.hold_unconfirmed(status, &failure.message.clone()),
                None => Step::wait(),
            };
        }
        if !pod_is_gone(self.observed.source.as_ref(), &source.uid) {
            let deleting = self.observed.source.as_ref().is_some_and(|pod| pod.metadata.deletion_timestamp.is_some());
            return if deleting {
                self.told(status, "the copy is confirmed; waiting for the source to end")
            } else {
                Step::perform(vec![Effect::DeleteSource { uid: source.uid }])
            };
        }
        let ended = self.observed.source_status().ended.is_some();
        if !ended || destination.cleaned.is_none() {
            let side = if ended { "destination" } else { "source" };
            return self.told(status, &format!("the copy is confirmed; waiting for the {side} node's agent to clean up"));
        }
        if self.observed.pull_credentials_left {
            return Step::perform(vec![Effect::RemovePullCredentials]);
        }
        status.message = "the destination's runtime restored the pod from this migration's checkpoint, and it was seen running after the commit".to_owned();
        status.clear_condition(condition::FROZEN, "Migrated", self.now);
        status.clear_condition(condition::HELD, "Migrated", self.now);
        status.finish(Outcome::Migrated, self.now);
        Step::write(status)
    }

    fn hold_unconfirmed(&self, mut status: MigrationStatus, message: &str) -> Step {
        let message = format!("committed but not confirmed, the source stays frozen and is not deleted: {message}");
        if status.condition_is(condition::HELD, "NotConfirmed", &message) {
            return Step::wait();
        }
        status.set_condition(condition::HELD, true, "NotConfirmed", &message, self.now);
        status.message = message;
        Step::write(status)
    }

    fn finish_rollback(&self, mut status: MigrationStatus) -> Step {
        let waited = status.time_in(Phase::Finishing, self.now);
        let replacement = status.replacement.clone().unwrap_or_default();
        if let Some(pod) = self.observed.replacement.as_ref().filter(|pod| self.observed.is_our_replacement(pod, self.migration)) {
            let uid = pod.metadata.uid.clone().unwrap_or_else(|| replacement.uid.clone());
            let force = waited > FORCE_AFTER;
            return if pod.metadata.deletion_timestamp.is_none() || force {
                Step::perform(vec![Effect::DeleteReplacement { uid, force }])
            } else {
                Step { after: Some(Duration::from_secs(1)), ..Step::default() }
            };
        }
        let thawed = self.observed.source_attestation.is_none() || self.observed.source_status().thawed.is_some();
        if !thawed {
            let node = status.source.as_ref().map_or("", |s| s.node_name.as_str()).to_owned();
            return if waited > CLEAN_PATIENCE { self.told(status, &format!("waiting for the agent of node {node} to thaw the source")) } else { Step::wait() };
        }
        let cleaned = self.observed.destination_attestation.is_none() || self.observed.destination_status().cleaned.is_some();
        if !cleaned && waited <= CLEAN_PATIENCE {
            return Step { after: Some(Duration::from_secs(1)), ..Step::default() };
        }
        if self.observed.pull_credentials_left {
            return Step::perform(vec![Effect::RemovePullCredentials]);
        }
        if self.observed.locked_by(self.migration) {
            let uid = status.source.as_ref().map(|s| s.uid.clone()).unwrap_or_default();
            return Step::perform(vec![Effect::Unlock { uid }]);
        }
        if !cleaned {
            status.message.push_str("; the destination's agent does not answer and cleans up when it is back");
        }
        status.clear_condition(condition::FROZEN, "RolledBack", self.now);
        status.finish(Outcome::RolledBack, self.now);
        Step::write(status)
    }

    fn done(&self, status: &MigrationStatus) -> Step {
        // A migration that was refused after it had locked its pod.
        if self.observed.locked_by(self.migration) {
            let uid = status.source.as_ref().map(|s| s.uid.clone()).unwrap_or_default();
            return Step::perform(vec![Effect::Unlock { uid }]);
        }
        if self.observed.has_finalizer(self.migration) {
            return Step::perform(vec![Effect::RemoveFinalizer]);
        }
        let Some(ttl) = self.migration.spec.ttl_seconds_after_finished else { return Step::default() };
        let left = Duration::from_secs(ttl.into()).saturating_sub(status.time_in(Phase::Done, self.now));
        if left.is_zero() { Step::perform(vec![Effect::DeleteMigration]) } else { Step { after: Some(left), ..Step::default() } }
    }

    /// Waits, and says what for where the message does not say so already.
    fn told(&self, mut status: MigrationStatus, message: &str) -> Step {
        if status.message == message {
            return Step::wait();
        }
        message.clone_into(&mut status.message);
        Step::write(status)
    }

    fn attestation(&self, role: Role, node: &str, pod_uid: &str) -> Effect {
        Effect::CreateAttestation { role, node: node.to_owned(), pod_uid: pod_uid.to_owned() }
    }
}

/// The source as `status.source` records it.
#[must_use]
pub fn source_of(pod: &Pod) -> SourceStatus {
    observed::source_status(pod)
}
